"""The networks of a contest are those of the grid, paired; memories see their own examples; matrices are told."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import nls
from nls import contest
from nls.contest import Entry, run_contest
from nls.crossfit import crossfit_posterior
from nls.estimate import estimate_transition
from nls.loss_table import LOSSES
from nls.training import seeded_generator

SMALL = {"hidden": (8,), "epochs": 4, "batch_size": 32}
NOISES = [("symmetric", 0.4), ("pair", 0.3)]


def test_entries_are_the_networks_that_the_grid_trains():
    """The same loss, noise and seed by the grid gives the same curves, up to rounding: same labels, start and order."""
    entries = [Entry("NLS", "gls", -0.4), Entry("GCE", "gce"), Entry("forward", "forward"), Entry("NLNL", "nlnl")]
    table = run_contest("wine", entries, NOISES, seed=3, **SMALL)
    assert table["entry"].tolist() == [e.label for e in entries for _ in NOISES]
    assert table["noise"].tolist() == ["symmetric", "pair"] * 4
    for entry in entries:
        for noise, rate in NOISES:
            own = {"smooth_rate": entry.parameter} if entry.loss == "gls" else {"loss": entry.loss}
            grid = nls.Grid(dataset="wine", noise=noise, noise_rate=rate, seed=3, learning_rate=2e-3, **own, **SMALL)
            (expected,) = nls.run_grid(grid, workers=1).to_dict("records")
            (found,) = table[(table["entry"] == entry.label) & (table["noise"] == noise)].to_dict("records")
            for name in ("nll_last", "accuracy_last", "accuracy_noisy_validation", "epoch_clean_test", "train_loss"):
                assert found[name] == pytest.approx(expected[name], rel=1e-4), (entry.label, noise, name)
            if entry.loss == "gls":
                assert found["nll_mapped_last"] == pytest.approx(expected["nll_mapped_last"], rel=1e-4)


def test_a_memory_sees_the_rows_of_its_own_examples(monkeypatch):
    """After one epoch each row is .3 of one prediction; one that was met twice or never would not sum to .3."""
    memories = []
    build = LOSSES["elr"].build

    def keep(run):
        memories.append(build(run))
        return memories[-1]

    monkeypatch.setitem(LOSSES, "elr", dataclasses.replace(LOSSES["elr"], build=keep))
    run_contest("wine", [Entry("CE"), Entry("ELR", "elr")], NOISES, **(SMALL | {"epochs": 1}))
    assert len(memories) == 2
    for memory in memories:
        torch.testing.assert_close(memory.targets.sum(1), torch.full((107,), 0.3), rtol=0, atol=1e-6)
    assert not torch.equal(memories[0].targets, memories[1].targets)


def test_another_order_is_refused(monkeypatch):
    monkeypatch.setattr(contest, "_positions", lambda n, size, seed: iter([torch.arange(size)]))
    with pytest.raises(RuntimeError, match="not in the order that was drawn"):
        run_contest("wine", [Entry("CE")], NOISES, **SMALL)


def test_told_matrices_are_the_true_or_the_estimated_ones(monkeypatch):
    told = []
    build = LOSSES["forward"].build

    def listen(run):
        told.append(run.transition)
        return build(run)

    monkeypatch.setitem(LOSSES, "forward", dataclasses.replace(LOSSES["forward"], build=listen))
    entries = [Entry(matrix, "forward", matrix=matrix) for matrix in ("true", "anchor", "confident")]
    table = run_contest("digits", entries, NOISES, seed=1, **(SMALL | {"epochs": 1}))
    truth = [nls.symmetric_transition(10, 0.4), nls.pair_transition(10, 0.3)]
    data = nls.load_dataset("digits", seed=1)
    from sklearn.neighbors import KNeighborsClassifier

    for j, matrix in enumerate(truth):
        assert torch.equal(told[j], matrix)
        noisy = nls.draw_noisy_labels(data.train_labels, matrix, seeded_generator(1, "train noise"))
        posterior = crossfit_posterior(data.train_features, noisy, 10, KNeighborsClassifier(30), seed=1)
        for i, method in enumerate(("anchor", "confident"), 1):
            torch.testing.assert_close(told[2 * i + j], estimate_transition(posterior, noisy, method=method))
    errors = table.set_index(["entry", "noise"])["matrix_error"]
    assert errors["true"].eq(0).all()
    by_hand = np.abs(told[2].numpy() - truth[0].numpy()).sum(1).mean()
    assert errors["anchor", "symmetric"] == pytest.approx(by_hand)
    assert 0 < errors["confident", "pair"] < 0.6  # that of no noise at all


def test_every_loss_takes_part_and_all_are_paired():
    entries = [Entry(name, name) for name in LOSSES]
    table = run_contest("wine", entries, NOISES, **SMALL).set_index(["entry", "noise"])
    assert len(table) == 2 * len(LOSSES)
    assert table["nll_last"].notna().all()
    # Under Adam a factor does nothing, so two losses that differ by one end at the same place.
    for noise, _ in NOISES:
        pair = [table.loc[(name, noise), "nll_last"] for name in ("complementary", "unhinged")]
        assert pair[0] == pytest.approx(pair[1], rel=1e-3)
    assert table["nll_last"].round(4).nunique() > 2 * (len(LOSSES) - 3)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"loss must be one of 'gls', .* got 'focal'"):
        Entry("focal", "focal")
    with pytest.raises(ValueError, match="matrix must be one of 'true', 'anchor', 'confident', got 'guess'"):
        Entry("forward", "forward", matrix="guess")
    for entries, noises, name in (([], NOISES, "entries"), ([Entry("CE")], [], "noises")):
        with pytest.raises(ValueError, match=f"{name} must hold at least one, got none"):
            run_contest("wine", entries, noises)
    with pytest.raises(ValueError, match="entries must have different labels, got CE more than once"):
        run_contest("wine", [Entry("CE"), Entry("CE", "gce")], NOISES)
    with pytest.raises(ValueError, match=r"noises must be one of 'symmetric', .* got 'instance'"):
        run_contest("wine", [Entry("CE")], [("instance", 0.4)])
    with pytest.raises(ValueError, match="parameter must be a finite number"):
        run_contest("wine", [Entry("GCE", "gce", 2.0)], NOISES)
    assert math.isfinite(run_contest("wine", [Entry("CE")], NOISES, **SMALL)["nll_last"].iloc[0])
