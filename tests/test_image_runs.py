"""Studies that are read or trained, and methods side by side under a matrix of one's own."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

import nls
import nls.image_runs
from nls.grid import Cell
from nls.image_runs import describe, study_tables, train_methods
from nls.stats import Interval
from nls.studies import load_curves, load_study


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with 160 made images in the form of CIFAR-10."""
    rng = np.random.default_rng(0)
    clean = rng.permutation(np.arange(160) % 10)
    images = (clean[:, None, None, None] * 20 + rng.integers(0, 40, (160, 8, 8, 3))).astype(np.uint8)
    arrays = {"train_images": images, "train_labels": clean, "test_images": images[:40], "test_labels": clean[:40]}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    monkeypatch.setenv("NLS_WORKERS", "1")
    return tmp_path


SIZES = {"seeds": 1, "num_examples": 110, "warmup_epochs": 1, "epochs": 1}


def test_stored_tables_are_those_of_the_study_and_can_be_a_part():
    table, curves = study_tables("cifar10_large")
    pd.testing.assert_frame_equal(table, load_study("cifar10_large"))
    pd.testing.assert_frame_equal(curves, load_curves("cifar10_large"))
    table, curves = study_tables("cifar10_large", noises=["symmetric_0.6", "cifar10n_worst"])
    assert table["noise_name"].value_counts().to_dict() == {"symmetric_0.6": 18, "cifar10n_worst": 18}
    assert set(curves["noise_name"]) == {"symmetric_0.6"}


def test_a_trained_study_has_the_columns_of_a_stored_one_and_goes_on_from_its_store(folder):
    options = {"root": folder, "store": folder / "kept", "noises": ["symmetric_0.4"], **SIZES}
    table, curves = study_tables("cifar10_small", **options)
    assert set(table["state"]) == {"done"}
    stored, stored_curves = study_tables("cifar10_small", noises=["symmetric_0.4"])
    assert set(stored.columns) <= set(table.columns)
    assert set(stored_curves.columns) <= set(curves.columns)
    assert table["method"].tolist() == stored[stored["seed"] == 0]["method"].tolist()
    again, _ = study_tables("cifar10_small", **options)
    pd.testing.assert_frame_equal(again, table)  # with the same seconds, so nothing was trained
    assert curves.groupby("method")["epoch"].max().eq(2).all()


def test_wrong_studies_noises_and_sizes_are_refused(folder):
    with pytest.raises(ValueError, match="name must be one of"):
        study_tables("cifar11")
    with pytest.raises(ValueError, match=r"noises must be one of .*'symmetric_0.4'.* got 'pair_0.4'"):
        study_tables("cifar10_small", noises=["pair_0.4"])
    with pytest.raises(ValueError, match="root must be given for a study of other sizes, got none with seeds"):
        study_tables("cifar10_small", seeds=1)


DATA = nls.load_dataset("digits_images", seed=0)
SETTINGS = {"batch_size": 128, "warmup_epochs": 1, "warmup_learning_rate": 0.05, "epochs": 1, "learning_rate": 0.01}


def test_methods_train_as_cells_of_a_grid_do():
    """Under symmetric noise, where a grid has the same cell: labels, training and measurements are the same."""
    matrix = nls.symmetric_transition(10, 0.4)
    methods = {
        "CE": 0.0,
        "NLS": -0.8,
        "backward": lambda z, y: nls.backward_corrected_loss(z, y, matrix, reduction="none"),
    }
    table, curves = train_methods(DATA, matrix, methods, seed=0, **SETTINGS)
    common = {"dataset": "digits_images", "network": "cnn", "optimizer": "sgd", "noise_rate": 0.4, **SETTINGS}
    cells = [Cell(**common), Cell(smooth_rate=-0.8, **common), Cell(loss="backward", **common)]
    expected = nls.run_grid(nls.Grid.of(cells), workers=1)
    columns = [f"{name}_{rule}" for name in ("accuracy", "nll", "ece") for rule in ("last", "noisy_validation")]
    columns += ["memorised_last", "recovered_last", "epoch_noisy_validation", "diverged_epoch"]
    np.testing.assert_allclose(table[columns].to_numpy(float), expected[columns].to_numpy(float), atol=1e-5)
    # The output map goes through the matrix here and through one number there.
    np.testing.assert_allclose(table["nll_mapped_last"][:2], expected["nll_mapped_last"][:2], rtol=1e-3)
    assert np.isnan(table["nll_mapped_last"][2])
    assert curves.groupby("method")["epoch"].apply(list).tolist() == [[1, 2]] * 3
    starts = curves[curves["epoch"] == 1]
    assert starts["accuracy"].nunique() == 1  # one warm-up
    # r_LC is backward correction.
    assert table["accuracy_last"][1] == pytest.approx(table["accuracy_last"][2], abs=0.01)


def test_labels_are_drawn_by_the_matrix_and_not_its_transpose():
    matrix = torch.eye(10, dtype=torch.float64)
    matrix[0] = torch.tensor([0.0, 1.0] + [0.0] * 8)  # every zero is called a one
    tiny = dataclasses.replace(DATA, test_features=DATA.test_features[:50], test_labels=DATA.test_labels[:50])
    seen = []

    def spy(logits, labels):
        seen.append(labels)
        return nls.gls_loss(logits, labels, 0.0, reduction="none")

    train_methods(tiny, matrix, {"spy": spy}, seed=1, **SETTINGS | {"warmup_epochs": 0, "warmup_learning_rate": None})
    counts = torch.cat(seen).bincount(minlength=10)
    truth = DATA.train_labels.bincount(minlength=10)
    assert counts[0] == 0
    assert counts[1] == truth[0] + truth[1]
    assert (counts[2:] == truth[2:]).all()


def test_the_warmup_is_trained_once(monkeypatch):
    evaluations = []
    measure = nls.image_runs.Measure.__call__
    monkeypatch.setattr(nls.image_runs.Measure, "__call__", lambda *args: evaluations.append(1) or measure(*args))
    train_methods(DATA, nls.symmetric_transition(10, 0.4), {"CE": 0.0, "NLS": -0.8}, seed=0, **SETTINGS)
    assert len(evaluations) == 1 + 2  # an epoch of warm-up, and one of each method


def test_no_method_is_refused():
    with pytest.raises(ValueError, match="methods must hold at least one method, got none"):
        train_methods(DATA, nls.symmetric_transition(10, 0.4), {}, seed=0)


def test_an_effect_is_told_with_its_interval_and_n():
    assert describe(Interval(-0.0312, -0.05, -0.0124, 5), 3) == "-0.031 [-0.050, -0.012], n = 5"
    assert describe(Interval(2.0, float("nan"), float("nan"), 1)) == "+2.0, n = 1"
    with pytest.raises(ValueError, match="digits must be"):
        describe(Interval(1.0, 0.0, 2.0, 3), -1)
