"""The claims of the chapter hold, and each fails under a planted mutation of what it rests on."""

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch

import nls
import nls.grid
import nls.training
from nls import plotting

NOTEBOOK = Path(__file__).parents[1] / "book" / "notebooks" / "01_uci.ipynb"
SCALE = {"num_seeds": 4, "plenty_seeds": 2, "strict": False}  # smaller than the book's, large enough to hold
TRAINED = {}  # grid -> table, for runs that do not mutate the training


def rate_becomes(change):
    """Train with another rate than the one asked for."""
    original = nls.training.gls_loss_and_gradient

    def mutate(patch):
        patch.setattr(
            nls.training, "gls_loss_and_gradient", lambda logits, labels, rate: original(logits, labels, change(rate))
        )

    return mutate


def shuffle_labels(patch):
    """Train on labels that have nothing to do with the inputs."""
    original = nls.grid.draw_noisy_labels

    def shuffled(labels, transition, generator):
        return original(labels, transition, generator)[torch.randperm(len(labels), generator=generator)]

    patch.setattr(nls.grid, "draw_noisy_labels", shuffled)


def drop_adam(patch):
    """Train the normalised runs, and those beside them, with SGD where they say Adam."""
    original = nls.training._optimizer
    patch.setattr(nls.training, "_optimizer", lambda stack, name, *rest: original(stack, "sgd", *rest))
    reuse = nls.run_grid
    fresh = nls.grid.run_grid
    patch.setattr(nls, "run_grid", lambda grid: fresh(grid) if any(cell.normalized for cell in grid) else reuse(grid))


def report_the_last_epoch(patch):
    """Report the last epoch under every rule."""
    original = nls.run_grid

    def run(grid):
        table = original(grid)
        return table.assign(**{f"accuracy_{rule}": table["accuracy_last"] for rule in nls.grid.RULES})

    patch.setattr(nls, "run_grid", run)


def shuffle_stored_rates(patch):
    """Put the stored results under other rates, seed by seed."""
    original, rng = nls.load_results, np.random.default_rng(0)

    def load(study):
        table = original(study)
        if study == "uci":
            runs = table.groupby(["dataset", "noise_rate", "seed"])["smooth_rate"]
            table["smooth_rate"] = runs.transform(lambda rates: rng.permutation(rates.to_numpy()))
        return table

    patch.setattr(nls, "load_results", load)


TRAINING = {
    "rate -> |rate|": (
        rate_becomes(torch.abs),
        ["twonorm-noisy", "cancer-noisy", "selection-shrinks", "kl-at-theory", "kl-exact", "accuracy-flat"],
    ),
    "negative rate -> 0, as torch does": (
        rate_becomes(lambda rate: rate.clamp_min(0)),
        ["waveform-clean", "digits-noisy", "decay-recovers", "feasible-border", "sgd-diverges"],
    ),
    "labels shuffled": (shuffle_labels, ["twonorm-noisy", "waveform-clean", "best-rate-falls", "kl-at-theory"]),
}
REPORTING = {
    "Adam -> SGD": (drop_adam, ["adam-invariance"]),
    "every rule -> last": (report_the_last_epoch, ["selection", "selection-shrinks"]),
    "stored rates shuffled": (
        shuffle_stored_rates,
        ["splice-noisy", "twonorm-file", "splice-clean", "files-both-ways", "files-clean"],
    ),
}


def run_page(patch):
    """Execute the notebook's cells in this process and return the verdict of each claim."""
    patch.setenv("NLS_WORKERS", "1")
    patch.setattr(plotting, "glue", lambda name, value: None)
    names = {}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code" and not cell.id.startswith("solution"):
            exec(compile(cell.source, f"{NOTEBOOK.name}:{cell.id}", "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names.update(SCALE)
    plt.close("all")
    return {claim.name: claim.verdict for claim in names["claims"]}


def remember(grid):
    """Train a grid once in this process."""
    key = tuple(cell.id for cell in grid)
    if key not in TRAINED:
        TRAINED[key] = nls.grid.run_grid(grid)
    return TRAINED[key].copy()


def test_claims_hold_and_fail_under_mutations_of_the_reporting(monkeypatch):
    monkeypatch.setattr(nls, "run_grid", remember)
    verdicts = run_page(monkeypatch)
    assert [name for name, verdict in verdicts.items() if verdict != "holds"] == []
    covered = {name for _, expected in (TRAINING | REPORTING).values() for name in expected}
    assert covered == set(verdicts)  # every claim of the page is seen to fail somewhere
    for mutate, expected in REPORTING.values():
        with monkeypatch.context() as patch:
            mutate(patch)
            mutated = run_page(patch)
        assert [name for name in expected if mutated[name] != "fails"] == []


@pytest.mark.parametrize("mutation", TRAINING)
def test_claims_fail_under_a_mutation_of_the_training(mutation, monkeypatch):
    mutate, expected = TRAINING[mutation]
    mutate(monkeypatch)
    mutated = run_page(monkeypatch)
    assert [name for name in expected if mutated[name] != "fails"] == []
