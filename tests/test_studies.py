"""The image studies: their grids, how they are trained and written, and what is read back."""

import sys
from pathlib import Path

import numpy as np
import pytest

import nls
from nls.grid import Cell
from nls.studies import STUDIES, load_curves, load_study, method_name, noise_name, study

sys.path.insert(0, str(Path(__file__).parents[1] / "book"))

import study as command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with 200 made images, and an empty one for results."""
    rng = np.random.default_rng(0)
    clean = rng.permutation(np.arange(200) % 10)
    images = (clean[:, None, None, None] * 20 + rng.integers(0, 40, (200, 8, 8, 3))).astype(np.uint8)
    arrays = {"train_images": images, "train_labels": clean, "test_images": images[:50], "test_labels": clean[:50]}
    (tmp_path / "data").mkdir()
    (tmp_path / "results").mkdir()
    np.savez(tmp_path / "data" / "cifar10.npz", **arrays)
    monkeypatch.setenv("NLS_RESULTS", str(tmp_path / "results"))
    return tmp_path


def run(folder, *arguments):
    places = ["--root", str(folder / "data"), "--store", str(folder / "store")]
    return command.main([*arguments, *places])


@pytest.mark.parametrize("name", STUDIES)
def test_every_method_of_a_study_has_the_controls_from_the_same_start(name):
    """For each noise and seed, r = 0 and r > 0 are trained as the negative rates are."""
    for key in {(cell.noise, cell.noise_rate, cell.seed, cell.learning_rate, cell.warmup_pick) for cell in study(name)}:
        cells = [c for c in study(name) if (c.noise, c.noise_rate, c.seed, c.learning_rate, c.warmup_pick) == key]
        rates = {cell.smooth_rate for cell in cells if cell.loss == "gls" and not cell.normalized}
        assert 0.0 in rates
        assert max(rates) > 0 > min(rates)
        assert len({cell.stack_key for cell in cells}) == 1 or not cells[0].warmup_epochs


def test_names_of_methods_are_different_within_a_noise_and_seed():
    for name in STUDIES:
        cells = list(study(name, seeds=1))
        named = {(noise_name(c), method_name(c), c.learning_rate, c.warmup_pick, c.epochs) for c in cells}
        assert len(named) == len(cells)
    assert method_name(Cell("wine", smooth_rate=-2, normalized=True)) == "r = -2, normalised"


def test_a_study_is_trained_written_and_read_back(folder, monkeypatch, capsys):
    monkeypatch.setitem(STUDIES, "cifar10_small", lambda: study_of_two())
    assert run(folder, "cifar10_small", "--workers", "1", "--only", "smooth_rate=0.0") == 0
    assert "cifar10_small: 1 done, 0 diverged, 1 missing" in capsys.readouterr().out
    for part in ("", "_curves"):
        (folder / "results" / f"cifar10_small{part}" / "README.md").write_text("card")
    table = load_study("cifar10_small").set_index("smooth_rate")
    assert table["state"].to_dict() == {0.4: "missing", 0.0: "done"}
    assert np.isnan(table.loc[0.4, "accuracy_last"])
    curves = load_curves("cifar10_small")
    assert curves["epoch"].tolist() == [1, 2]
    assert curves["accuracy"].iloc[-1] == pytest.approx(table.loc[0.0, "accuracy_last"], abs=1e-6)
    # Called again, it trains what is missing and nothing else.
    assert run(folder, "cifar10_small", "--workers", "1") == 0
    assert "cifar10_small: 1 cells trained" in capsys.readouterr().out
    assert set(load_study("cifar10_small")["state"]) == {"done"}


def study_of_two():
    return nls.Grid(
        dataset="cifar10", from_root=True, num_examples=150, noise_rate=0.2, smooth_rate=[0.4, 0.0], network="cnn",
        optimizer="sgd", warmup_epochs=1, epochs=1,
    )  # fmt: skip


def test_rows_that_are_of_another_grid_are_refused(folder, monkeypatch):
    monkeypatch.setitem(STUDIES, "cifar10_small", lambda: study_of_two())
    target = folder / "results" / "cifar10_small"
    target.mkdir()
    (target / "README.md").write_text("card")
    (target / "a.csv").write_text("id,state\n0123456789abcdef,done\n")
    with pytest.raises(ValueError, match="cifar10_small must hold cells of its grid only, got 1 others, such as 0123"):
        load_study("cifar10_small")


def test_unknown_studies_and_empty_choices_are_refused(folder, capsys):
    with pytest.raises(ValueError, match="name must be one of 'cifar10_small'"):
        study("cifar11")
    with pytest.raises(SystemExit):
        run(folder, "cifar10_small", "--only", "noise=blue")
    assert "--only noise=blue: no such cells in cifar10_small" in capsys.readouterr().err
