"""Does it carry over to text: the claims hold, and each fails under a planted mutation of what it rests on."""

import numpy as np
import pandas as pd
import pytest
import torch
from chapters import run_chapter, run_solution, unexpected

import nls
import nls.each
import nls.engine
import nls.stack
import nls.text
import nls.training
from nls.linear import critical_rate, fit_linear
from nls.text import write_made_news

STEM = "18_text"
SMALL = {
    "num_examples": 700, "num_seeds": 6, "control_seeds": 4, "memory_seeds": 2, "embedding_seeds": 3,
    "made_texts": 4000,
}  # fmt: skip
UNTESTED = {"ag-news-noisy", "ag-news-clean"}
TRAINED = {}  # what was trained without a mutation: cells by their id, other networks by their seed, rate and start


def trained_grid(grid, root=None):
    """Train a grid of the page once in this process."""
    missing = [cell for cell in grid if cell.id not in TRAINED]
    if missing:
        for row in nls.engine.run_grid(nls.Grid.of(missing), root=root, workers=1).to_dict("records"):
            TRAINED[row["id"]] = row
    return pd.DataFrame([TRAINED[cell.id] for cell in grid])


def trained_stack(features, labels, rates, **options):
    """Follow a stack of the page once in this process."""
    key = ("stack", options["seed"])
    if key not in TRAINED:
        TRAINED[key] = nls.training.fit_stack(features, labels, rates, **options)
    return TRAINED[key]


def trained_network(features, labels, rate, **options):
    """Train an embedding classifier of the page once in this process."""
    key = ("network", options["seed"], rate, options["network"].func.__name__)
    if key not in TRAINED:
        TRAINED[key] = nls.each.fit_each(features, labels, rate, **options)
    return TRAINED[key]


KEPT = {"run_grid": trained_grid, "fit_stack": trained_stack, "fit_each": trained_network}


def run(patch, fresh=(), **values):
    """Execute the page at its smallest size; what is in ``fresh`` is trained anew."""
    patch.setenv("NLS_WORKERS", "1")
    for name, function in KEPT.items():
        if name not in fresh:
            patch.setattr(nls, name, function)
    return run_chapter(STEM, patch, **SMALL | values)


# Mutations: of the training, of the data, of the reporting.


def rates_become(change):
    """Train the linear models at another rate than the one asked for."""
    original = nls.stack.target_values
    return lambda patch: patch.setattr(
        nls.stack, "target_values", lambda rate, num_classes: original(change(rate), num_classes)
    )


def few_words(patch):
    """Let a bag hold fewer words than there are texts."""
    patch.setattr(nls.text, "BAG_WORDS", 100)


def forget_negative_rates(patch):
    """Train networks as torch's cross entropy would, which ignores a negative rate."""
    patch.setattr(nls, "fit_each", lambda x, y, rate, **options: trained_network(x, y, max(rate, 0.0), **options))


def change_table(change):
    """Change the tables of the page."""

    def mutate(patch):
        patch.setattr(nls, "run_grid", lambda grid, root=None: change(trained_grid(grid, root)))

    return mutate


def every_rule_is_the_last(table):
    rules = ("noisy_validation", "clean_test")
    names = ("accuracy", "nll", "nll_mapped")
    return table.assign(**{f"{name}_{rule}": table[f"{name}_last"] for rule in rules for name in names})


def decays_lost(table):
    """Report a run with weight decay as the one without."""
    if not (table["weight_decay"] > 0).any():
        return table
    bare = {(r["smooth_rate"], r["seed"]): r["accuracy_last"] for r in TRAINED.values() if is_plain(r)}
    found = [bare[r.smooth_rate, r.seed] if r.weight_decay else r.accuracy_last for r in table.itertuples()]
    return table.assign(accuracy_last=found)


def is_plain(row):
    """Return whether this is a run of the grid at noise rate 0.4."""
    if not isinstance(row, dict) or row["noise_rate"] != 0.4 or row["weight_decay"]:
        return False
    return row["optimizer"] == "adam" and not row["warmup_epochs"]


def swapped_starts(patch):
    """Call the two starts of embeddings by each other's names."""
    import nls.models

    torch_start, small_start = nls.models.embedding_classifier, nls.text.fasttext_classifier
    patch.setattr(nls.text, "fasttext_classifier", torch_start)
    patch.setattr(nls.models, "embedding_classifier", small_start)


MUTATIONS = {
    "few words": (few_words, ["fit_stack"], {"bags-memorise", "no-minimum"}),
    "rate -> |rate|, followed": (rates_become(torch.abs), ["fit_stack"], {"no-minimum", "bags-pay-later"}),
    "rate -> |rate|, in the grid": (
        rates_become(torch.abs), ["run_grid"],
        {"made-news-noisy", "gain-grows", "no-correction", "gain-is-timing", "same-start", "not-the-step"}),
    "rate -> -|rate|": (rates_become(lambda rate: -rate.abs()), ["run_grid"], {"smoothing-loses-clean"}),
    "every rule -> last": (
        change_table(every_rule_is_the_last), ["run_grid"], {"gain-is-timing", "map-needs-stopping"}),
    "decays lost": (change_table(decays_lost), ["run_grid"], {"decay-does-it"}),
    "networks without negative rates": (forget_negative_rates, ["fit_each"], {"start-decides", "embedding-pays"}),
    "starts swapped": (swapped_starts, [], {"start-decides"}),
}  # fmt: skip


def test_claims_hold(monkeypatch):
    names = run(monkeypatch)
    assert unexpected(names) == set()
    assert {claim.name for claim in names["claims"] if claim.verdict == "not tested"} == UNTESTED
    mutated = set().union(*(expected for *_, expected in MUTATIONS.values()))
    assert mutated | UNTESTED == {claim.name for claim in names["claims"]}, "a claim is seen to fail nowhere"


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_claims_hold_and_fail_under_mutations(mutation, monkeypatch):
    mutate, fresh, expected = MUTATIONS[mutation]
    mutate(monkeypatch)
    names = run(monkeypatch, fresh)
    assert expected - unexpected(names) == set()


def test_the_release_is_tested_where_it_is_given(monkeypatch, tmp_path):
    names = run(monkeypatch, root=str(write_made_news(tmp_path, 1000, 100)))
    claims = {claim.name: claim for claim in names["claims"]}
    assert claims["ag-news-noisy"].verdict == "reproduced"
    assert claims["ag-news-clean"].verdict == "not reproduced"
    assert "on one core" in claims["ag-news-clean"].cost


def test_full_rank_leaves_no_minimum_below_zero():
    """Features of full row rank, labels at random: no rate below zero has a minimum; with more texts some have."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (12,), generator=generator)
    assert torch.linalg.matrix_rank(features) == 12
    assert critical_rate(features, labels, 4) == 0.0
    assert critical_rate(features[:, :2], labels, 4) < -0.01
    # The margin of the page: all labels lead by s.
    for rate in (0.4, -0.5):
        for lead in (1.0, 7.0):
            logits = lead * torch.eye(4, dtype=torch.float64)[labels]
            weights = torch.linalg.lstsq(features, logits).solution
            reached = nls.gls_loss(features @ weights, labels, rate)
            formula = rate * 3 / 4 * lead + np.log(1 + 3 * np.exp(-lead))
            assert float(reached) == pytest.approx(formula, abs=1e-9)
    best = min(0.4 * 3 / 4 * lead + np.log(1 + 3 * np.exp(-lead)) for lead in np.linspace(0, 10, 10001))
    assert fit_linear(features, labels, 4, 0.4).value == pytest.approx(best, abs=1e-6)


SOLUTIONS = {
    "solution-quotes": ('escapechar="\\\\"', 'escapechar="@"'),
    "solution-size": ("count > words + 1", "count > 4 * words"),
    "solution-gain": ('"accuracy_noisy_validation"', '"accuracy_last"'),
}


@pytest.fixture(scope="module")
def page():
    with pytest.MonkeyPatch.context() as patch:
        yield run(patch)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solutions_hold_and_wrong_answers_do_not(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, SOLUTIONS[name])
