"""The claims of the chapter are as it says, and each fails under a planted mutation of what it rests on."""

import numpy as np
import pytest
from chapters import run_chapter, run_solution, unexpected

import nls
import nls.clothing_made
import nls.shared_start
from nls.clothing_made import make_clothing

STEM = "19_clothing"
# The smallest size tried at which the claims about the sets trained here hold, for four first seeds.
SMALL = {"num_seeds": 4, "num_examples": 700, "warmup_epochs": 8, "epochs": 2}


def turn_the_sign(patch):
    """Train at the inverse of each rate: smoothing where the page says negative, and the other way round."""
    original = nls.shared_start.fit_each

    def fit(features, labels, rate, **settings):
        return original(features, labels, rate / (rate - 1), **settings)

    patch.setattr(nls.shared_start, "fit_each", fit)


def leave_out_the_stage(patch):
    """Let the second stage take no steps worth the name."""
    original = nls.shared_start.fit_each

    def fit(*arguments, **settings):
        return original(*arguments, **settings | {"learning_rate": 1e-9})

    patch.setattr(nls.shared_start, "fit_each", fit)


def confuse_at_random(patch):
    """Let texts be wrong as often, and not name what looks alike."""
    original = nls.clothing_made.draw_garments

    def draw(kinds, generator):
        garments, _ = original(kinds, generator)
        other = (kinds + generator.integers(1, 14, len(kinds))) % 14
        return garments, np.where(generator.random(len(kinds)) < 0.375, other, kinds)

    patch.setattr(nls.clothing_made, "draw_garments", draw)


def change_results(study, change):
    """Let a stored study hold something else."""

    def mutate(patch):
        original = nls.load_results
        patch.setattr(nls, "load_results", lambda name: change(original(name)) if name == study else original(name))

    return mutate


def store_errors(table):
    """Report errors as accuracies."""
    return table.assign(clean_test=1 - table["clean_test"])


def swap_rates(table):
    """File the stages at -1 under 0, and the other way round."""
    rate = table["smooth_rate"].where(table["stage"] == "rate")
    return table.assign(smooth_rate=rate.map({-4: -4, -1: 0, 0: -1, 0.4: 0.4}).fillna(0.0))


def drop_the_sign(table):
    """Store the size of the training loss."""
    return table.assign(train_loss=table["train_loss"].abs())


def swap_regimes(table):
    """Put the number of label smoothing beside cross entropy."""
    return table.assign(regime=table["regime"].map({"CE": "LS", "LS": "CE", "NLS": "NLS"}))


# The others change what is read, and need nothing new.
TRAINING, DRAWING = ("the sign turned", "no second stage"), ("texts wrong at random",)
MUTATIONS = {
    "the sign turned": (turn_the_sign, {"smoothing-costs", "least-below-zero", "sure-when-wrong"}),
    "no second stage": (leave_out_the_stage, {"stage-live"}),
    "texts wrong at random": (confuse_at_random, {"one-rate-leaves"}),
    "errors stored as accuracies": (change_results("clothing_made", store_errors), {"apparent-gain", "stage-alone"}),
    "stored rates swapped": (change_results("clothing_made", swap_rates), {"rate-adds", "rate-picked"}),
    "stored losses without sign": (change_results("clothing_made", drop_the_sign), {"no-minimum"}),
    "published regimes swapped": (change_results("paper_clothing1m", swap_regimes), {"gap-shared"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Make a set once, for the runs that do not mutate how it is made."""
    original, sets = nls.clothing_made.make_clothing, {}

    def make(_, *arguments):
        if arguments not in sets:
            sets[arguments] = original(tmp_path_factory.mktemp("made"), *arguments)
        return sets[arguments]

    return make


@pytest.fixture(scope="module")
def chapter(drawn):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nls.clothing_made, "make_clothing", drawn)
        return run_chapter(STEM, patch, **SMALL)


def test_claims_are_as_the_page_says(chapter):
    assert unexpected(chapter) == set()
    verdicts = {claim.name: claim.verdict for claim in chapter["claims"]}
    assert {name for name, verdict in verdicts.items() if verdict == "not tested"} == {"paper-over-ce", "paper-over-ls"}
    assert set().union(*(names for _, names in MUTATIONS.values())) == verdicts.keys() - {
        "paper-over-ce",
        "paper-over-ls",
    }


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_claim_fails_under_a_planted_mutation(name, chapter, drawn, monkeypatch):
    mutate, broken = MUTATIONS[name]
    size = SMALL
    if name in TRAINING:
        size = SMALL | {"num_seeds": 2}  # to fail, two are enough
    else:
        monkeypatch.setattr(nls.shared_start, "clothing_curves", lambda *_, **__: chapter["curves"])
    if name not in DRAWING:
        monkeypatch.setattr(nls.clothing_made, "make_clothing", drawn)
    mutate(monkeypatch)
    assert unexpected(run_chapter(STEM, monkeypatch, **size)) >= broken


def test_a_folder_that_is_named_gives_the_claims_of_the_paper_a_verdict(tmp_path, monkeypatch, chapter):
    root = make_clothing(tmp_path, 7, (560, 280, 140, 560))
    monkeypatch.setattr(nls.shared_start, "clothing_curves", lambda *_, **__: chapter["curves"])
    names = run_chapter(STEM, monkeypatch, **SMALL | {"root": str(root), "num_examples": 420})
    claims = {claim.name: claim for claim in names["claims"]}
    for name in ("paper-over-ce", "paper-over-ls"):
        assert claims[name].verdict in ("reproduced", "not reproduced")
        assert "seconds on cpu" in claims[name].cost
    assert set(names["roots"].values()) == {root}
    assert (root / "clothing1m").is_dir(), "a folder that was named is not removed"


@pytest.mark.parametrize(
    ("solution", "change"),
    [
        ("solution-stage", ("losers == []", "losers == [0.4]")),
        ("solution-validate", ('apart["noisy"] > apart["clean"]', 'apart["noisy"] < apart["clean"]')),
        ("solution-pairs", ("means[140] > means[560]", "means[140] <= means[560]")),
    ],
)
def test_the_tempting_answer_of_each_exercise_is_wrong(solution, change, chapter):
    run_solution(STEM, solution, chapter)
    with pytest.raises(AssertionError):
        run_solution(STEM, solution, chapter, change)


def test_the_stored_study_is_what_its_card_says():
    table = nls.load_results("clothing_made")
    assert table["seed"].nunique() == 20
    assert (table["num_examples"] == 2800).all()
    counts = table.groupby(["rule", "stage", "smooth_rate"]).size()
    assert (counts == 20).all()
    assert len(counts) == 4 * 5  # four rules, a warm-up and four rates
    curves = table["clean_test"]
    assert curves.between(0, 1).all()
    best = table.pivot(index=["seed", "stage", "smooth_rate"], columns="rule", values="clean_test")
    assert (best["clean_test"] >= best.max(axis=1)).all()
