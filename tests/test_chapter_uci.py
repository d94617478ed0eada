"""The claims of the chapter hold, and each fails under a planted mutation of what it rests on."""

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch

import nls
import nls.chunk
import nls.engine
import nls.noise
import nls.stack
import nls.training
from nls import plotting

NOTEBOOK = Path(__file__).parents[1] / "book" / "notebooks" / "11_uci.ipynb"
SETUP = ["imports", "parameters", "settings"]
# The page in parts that share only the set-up, each smaller than in the book and large enough for its claims to hold,
# with the noise rates that they speak of.
PARTS = {
    "small samples": (
        {"num_seeds": 6, "noise_rates": [0.0, 0.4]},
        ["grid", "grid-numbers", "best", "best-claims", "stored", "paper-numbers", "rules", "rules-numbers"],
    ),
    "files and controls": (
        {"control_seeds": 20},
        ["stored", "paper-numbers", "fig-sets", "controls", "compare", "controls-numbers", "sgd", "sgd-claims"],
    ),
    "plenty of data": (
        {"num_seeds": 2, "plenty_seeds": 2, "noise_rates": [0.0, 0.3, 0.4]},
        ["many", "posterior", "posterior-numbers"],
    ),
    "network": ({"num_seeds": 5, "plenty_seeds": 5}, ["many", "network", "network-claims"]),
}  # fmt: skip
TRAINED = {}  # grid -> table, for runs that do not mutate the training


def rate_becomes(change):
    """Train with another rate than the one asked for."""
    original = nls.stack.target_values

    def mutate(patch):
        patch.setattr(nls.stack, "target_values", lambda rate, num_classes: original(change(rate), num_classes))

    return mutate


def shuffle_labels(patch):
    """Train on labels that have nothing to do with the inputs."""
    original = nls.chunk.draw_noisy_labels

    def shuffled(labels, transition, generator):
        return original(labels, transition, generator)[torch.randperm(len(labels), generator=generator)]

    patch.setattr(nls.chunk, "draw_noisy_labels", shuffled)


def count_the_true_class(patch):
    """Draw symmetric noise by the other convention, in which a flip may land on the true class."""
    original = nls.noise.symmetric_transition
    noise = {"symmetric": lambda k, rate: original(k, rate * (k - 1) / k)}
    patch.setattr(nls.chunk, "TRANSITIONS", noise)


def drop_adam(patch):
    """Train the normalised runs, and those beside them, with SGD where they say Adam."""
    original = nls.training._optimizer
    patch.setattr(nls.training, "_optimizer", lambda stack, name, *rest: original(stack, "sgd", *rest))
    reuse = nls.run_grid
    fresh = nls.engine.run_grid
    patch.setattr(nls, "run_grid", lambda grid: fresh(grid) if any(cell.normalized for cell in grid) else reuse(grid))


def report_the_last_epoch(patch):
    """Report the last epoch under every rule."""
    original = nls.run_grid

    def run(grid):
        table = original(grid)
        return table.assign(**{f"accuracy_{rule}": table["accuracy_last"] for rule in nls.chunk.RULES})

    patch.setattr(nls, "run_grid", run)


def stop_in_time(patch):
    """Report the noisy-validation epoch as the last one."""
    original = nls.run_grid

    def run(grid):
        table = original(grid)
        return table.assign(kl_last=table["kl_noisy_validation"]) if "kl_last" in table else table

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


SMALL, CONTROLS, PLENTY, NETWORK = PARTS
TRAINING = {
    "rate -> |rate|, small samples": (
        SMALL, rate_becomes(torch.abs), ["twonorm-noisy", "cancer-noisy", "selection-shrinks"]),
    "rate -> |rate|, controls": (CONTROLS, rate_becomes(torch.abs), ["decay-recovers"]),
    "rate -> |rate|, plenty of data": (
        PLENTY, rate_becomes(torch.abs), ["kl-at-theory", "kl-exact", "accuracy-close", "feasible-border"]),
    "rate -> |rate|, network": (NETWORK, rate_becomes(torch.abs), ["map-behind"]),
    "negative rate -> 0, as torch does, small samples": (
        SMALL, rate_becomes(lambda rate: rate.clamp_min(0)), ["waveform-clean", "digits-noisy"]),
    "negative rate -> 0, as torch does, controls": (
        CONTROLS, rate_becomes(lambda rate: rate.clamp_min(0)), ["decay-recovers", "sgd-diverges"]),
    "noise by the other convention": (PLENTY, count_the_true_class, ["kl-at-theory", "kl-exact", "feasible-border"]),
    "labels shuffled": (SMALL, shuffle_labels, ["twonorm-noisy", "waveform-clean", "digits-noisy", "best-rate-falls"]),
}  # fmt: skip
REPORTING = {
    "Adam -> SGD": (CONTROLS, drop_adam, ["adam-invariance"]),
    "every rule -> last": (SMALL, report_the_last_epoch, ["selection", "selection-shrinks"]),
    "last -> noisy validation": (NETWORK, stop_in_time, ["map-safer"]),
    "stored rates shuffled, two sets": (
        SMALL, shuffle_stored_rates, ["splice-noisy", "twonorm-file", "splice-clean"]),
    "stored rates shuffled, all sets": (
        CONTROLS, shuffle_stored_rates,
        ["splice-noisy", "twonorm-file", "splice-clean", "files-both-ways", "files-clean"]),
}  # fmt: skip


def run_page(part, patch):
    """Execute a part of the notebook in this process and return the verdict of each of its claims."""
    patch.setenv("NLS_WORKERS", "1")
    patch.setattr(plotting, "glue", lambda name, value: None)
    scale, chosen = PARTS[part]
    cells = {cell.id: cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells}
    names = {}
    for name in SETUP + chosen:
        exec(compile(cells[name].source, f"{NOTEBOOK.name}:{name}", "exec"), names)
        if name in SETUP:
            names.update(scale)
    plt.close("all")
    return {claim.name: claim.verdict for claim in (nls.Claim(*fact) for fact in names["facts"])}


def remember(grid):
    """Train a grid once in this process."""
    key = tuple(cell.id for cell in grid)
    if key not in TRAINED:
        TRAINED[key] = nls.engine.run_grid(grid)
    return TRAINED[key].copy()


@pytest.mark.parametrize("part", PARTS)
def test_claims_hold_and_fail_under_mutations_of_the_reporting(part, monkeypatch):
    monkeypatch.setattr(nls, "run_grid", remember)
    verdicts = run_page(part, monkeypatch)
    assert [name for name, verdict in verdicts.items() if verdict != "holds"] == []
    mutations = [m for m in (TRAINING | REPORTING).values() if m[0] == part]
    # Every claim of the page is seen to fail somewhere.
    assert {name for _, _, expected in mutations for name in expected} == set(verdicts)
    for where, mutate, expected in REPORTING.values():
        if where == part:
            with monkeypatch.context() as patch:
                mutate(patch)
                mutated = run_page(part, patch)
            assert [name for name in expected if mutated[name] != "fails"] == []


@pytest.mark.parametrize("mutation", TRAINING)
def test_claims_fail_under_a_mutation_of_the_training(mutation, monkeypatch):
    part, mutate, expected = TRAINING[mutation]
    mutate(monkeypatch)
    mutated = run_page(part, monkeypatch)
    assert [name for name in expected if mutated[name] != "fails"] == []


def test_the_parts_hold_every_claim_of_the_page():
    cells = {cell.id: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"}
    stating = [name for name, source in cells.items() if "facts +=" in source]
    assert len(stating) >= 8
    assert set(stating) <= {name for _, chosen in PARTS.values() for name in chosen}
