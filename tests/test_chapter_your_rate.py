"""Which rate for your labels: the claims of the chapter under planted mutations, and its exercises."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from chapters import run_chapter, run_solution, unexpected

import nls
from nls import advice_study, advice_tables, anchors, crossfit

STEM = "40_your_rate"
SMALL = {"num_repeats": 24, "share_seeds": 15}


def change_study(patch, change, study="advice"):
    """Pass a stored table through a function."""
    load = nls.load_results
    patch.setattr(nls, "load_results", lambda name: change(load(name)) if name == study else load(name))


def in_sample(patch):
    """Predict the labels by models that saw them."""

    def seen(features, labels, num_classes, classifier, **options):
        fitted = classifier.fit(features.numpy(), labels.numpy())
        found = torch.zeros(len(labels), num_classes, dtype=torch.float64)
        found[:, fitted.classes_] = torch.from_numpy(fitted.predict_proba(features.numpy())).double()
        return found

    patch.setattr(crossfit, "crossfit_posterior", seen)


def one_share(patch):
    """Count on all examples."""
    patch.setattr(anchors, "SHARES", (1.0,))


def smallest_share(patch):
    """Count on the surest examples only."""
    patch.setattr(anchors, "_take", lambda place, wrong, weights: torch.full((len(weights),), len(anchors.SHARES) - 1))


def transposed(patch):
    """Take the matrix for its transpose."""
    rows = anchors._rows

    def turned(*args, **rest):
        matrix, *others = rows(*args, **rest)
        return (matrix.T / matrix.sum(0)[:, None].clamp(min=1e-9), *others)

    patch.setattr(anchors, "_rows", turned)


def unsorted_examples(patch):
    """Take any examples for the surest ones, by a calibration of the probabilities."""

    def places(model):
        predicted = model.argmax(1)
        return predicted, model.square().sum(1).frac().mul(997).frac().clamp(min=1e-9)

    patch.setattr(anchors, "_places", places)


def wide(patch):
    """Say of each interval that it covers."""
    run = advice_study.advice_run
    patch.setattr(
        advice_study, "advice_run", lambda **run_of: [row | {"low": 0.0, "high": 1.0} for row in run(**run_of)]
    )


def mirrored(patch):
    """Take the network at a positive rate for that at the advised one."""

    def mirror(study):
        study = study.copy()
        networks = study[study["what"] == "network"]
        advice = networks[networks["method"] == "advice"]
        grid = networks[(networks["method"] == "grid") & (networks["smooth_rate"] == 0.6)]
        key = [*advice_tables.CASE, "seed"]
        values = grid.set_index(key)[["accuracy", "nll"]].loc[list(zip(*(advice[name] for name in key), strict=True))]
        study.loc[advice.index, ["accuracy", "nll"]] = values.to_numpy()
        return study

    change_study(patch, mirror)


def shuffled_cases(patch):
    """Give the estimates of a case to another one."""

    def shuffle(study):
        study = study.copy()
        estimates = study["what"] == "estimate"
        values = ["truth", "true_rate", "true_residual"]
        for _, rows in study[estimates].groupby("dataset"):
            order = np.random.default_rng(0).permutation(len(rows))
            study.loc[rows.index, values] = rows[values].to_numpy()[order]
        return study

    change_study(patch, shuffle)


def shuffled_networks(patch):
    """Give each network the numbers of another one of its set."""

    def shuffle(study):
        study = study.copy()
        values = ["accuracy", "nll"]
        for _, rows in study[study["what"] == "network"].groupby("dataset"):
            order = np.random.default_rng(0).permutation(len(rows))
            study.loc[rows.index, values] = rows[values].to_numpy()[order]
        return study

    change_study(patch, shuffle)


def methods_swapped(patch):
    """Take the noise rate of the anchors for that of the advice, and the other way round."""

    def swap(study):
        study = study.copy()
        key = [*advice_tables.CASE, "seed"]
        rows = {name: study[study["method"].eq(name) & study["what"].eq("estimate")] for name in ("advice", "anchor")}
        for name, other in (("advice", "anchor"), ("anchor", "advice")):
            values = rows[other].set_index(key)["estimate"].loc[rows[name].set_index(key).index]
            study.loc[rows[name].index, "estimate"] = values.to_numpy()
        return study

    change_study(patch, swap)


def always_used(patch):
    """Let the advice always say yes."""
    change_study(patch, lambda study: study.assign(use=study["use"].where(study["use"].isna(), 1.0)))


def never_used(patch):
    """Let the advice always say no."""
    change_study(patch, lambda study: study.assign(use=study["use"].where(study["use"].isna(), 0.0)))


def always_flagged(patch):
    """Let labels depend on the example in every run."""
    column = "depends_on_example"
    change_study(patch, lambda study: study.assign(**{column: study[column].where(study[column].isna(), 1.0)}))


def unpaired(patch):
    """Test what each example looks like against the label of another one."""
    dependence = anchors._dependence
    patch.setattr(
        anchors, "_dependence",
        lambda model, predicted, labels: dependence(model, predicted, labels[torch.randperm(len(labels))]),
    )  # fmt: skip


def people_agree(patch):
    """Let the advice about the labels of people be to use a rate."""
    change_study(patch, lambda table: table.assign(use=table["use"].where(table["use"].isna(), 1.0)), "advice_human")


def people_swapped(patch):
    """Take cleanlab for the advice, and the other way round, on the labels of people."""
    names = {"advice": "cleanlab", "cleanlab": "advice"}
    change_study(patch, lambda table: table.assign(method=table["method"].replace(names)), "advice_human")


MUTATIONS = {
    in_sample: {"in-sample-finds-nothing"},
    one_share: {"covers"},
    smallest_share: {"larger-share-less-error"},
    transposed: {"matrix-points-forward"},
    unsorted_examples: {"order-not-calibration", "surest-are-less-wrong"},
    wide: {"does-not-cover"},
    mirrored: {"repairs-log-loss", "accuracy-both-ways"},
    shuffled_cases: {"near-the-truth", "overlap-is-noticed"},
    shuffled_networks: {"repairs-log-loss", "accuracy-both-ways"},
    methods_swapped: {"near-the-truth", "nearer-than-anchors"},
    always_used: {"refuses-where-apart", "overlap-is-noticed", "following-harms-nowhere"},
    always_flagged: {"silent-on-symmetric"},
    unpaired: {"dependence-tells"},
    people_agree: {"people-get-a-no"},
    people_swapped: {"people-too-high"},
    never_used: {"repairs-log-loss", "accuracy-both-ways"},
}
STORED = (
    mirrored, shuffled_cases, shuffled_networks, methods_swapped, always_used, always_flagged, never_used, people_agree,
    people_swapped,
)  # fmt: skip
LEAST = {"num_repeats": 2, "share_seeds": 2, "num_splits": 1, "test_seeds": 2}
NEEDS = {  # what a mutation is about; the rest is run as little as it can be
    one_share: {"num_repeats": 24},
    wide: {"num_repeats": 24},
    smallest_share: {"share_seeds": 15},
    unsorted_examples: {"share_seeds": 15},
    in_sample: {"num_splits": 2},
    transposed: {"num_splits": 3},
    unpaired: {"test_seeds": 5},
}


@pytest.fixture(scope="module")
def known():
    """What was computed before, by what it depends on."""
    return {}


def remember(patch, known, owner, *names):
    """Compute nothing twice that a mutation does not touch."""
    for name in names:
        function = getattr(owner, name)

        def remembered(*args, function=function, **rest):
            told = [a.numpy().tobytes() if isinstance(a, torch.Tensor) else repr(a) for a in args]
            key = hash((function.__name__, *told, repr(sorted(rest.items()))))
            if key not in known:
                known[key] = function(*args, **rest)
            return known[key]

        patch.setattr(owner, name, remembered)


def remember_command(patch, known):
    """Run the command once; its files are in another folder each time."""
    run = subprocess.run

    def remembered(command, **options):
        key = hash((command[3], *(Path(name).read_bytes() for name in command[4:6])))
        if key not in known:
            known[key] = run(command, **options)
        return known[key]

    patch.setattr(subprocess, "run", remembered)


def prepared(patch, known, mutate=None):
    """Plant a mutation, and remember the rest."""
    remember_command(patch, known)
    if mutate is not in_sample:
        remember(patch, known, crossfit, "crossfit_posterior")
    if mutate in (None, wide, *STORED):
        remember(patch, known, advice_study, "advice_run")
        remember(patch, known, nls, "suggest_smooth_rate")
    if mutate is not None:
        mutate(patch)
    return run_chapter(STEM, patch, **(SMALL if mutate is None else LEAST | NEEDS.get(mutate, {})))


@pytest.fixture(scope="module")
def page(known):
    """The names that the page leaves, in a small run."""
    with pytest.MonkeyPatch.context() as patch:
        return prepared(patch, known)


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    fallen = {name for names in MUTATIONS.values() for name in names}
    assert {claim.name for claim in page["claims"]} - fallen == set()


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_claims_fall_under_a_mutation(mutate, monkeypatch, known):
    assert MUTATIONS[mutate] - unexpected(prepared(monkeypatch, known, mutate)) == set()


WRONG = {
    "solution-smallest": ('smallest["twonorm"] > 1.15 *', 'smallest["twonorm"] < '),
    "solution-seen": ("kind.fit(features, noisy).predict_proba(features.numpy())", "outside.numpy()"),
    "solution-two": ("[0.6, 0.4], [0.1, 0.9]", "[0.75, 0.25], [0.25, 0.75]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])


def test_the_command_and_the_notebook_agree(page):
    assert page["answer"]["noise_rate"] == page["found"].noise_rate
    assert page["answer"]["advice"] == page["found"].advice


def test_the_chapter_says_what_was_stored(page):
    assert len(page["seeds_stored"]) == 24
    assert set(page["seeds_stored"]) == {10}
