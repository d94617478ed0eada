"""Cells that share a warm-up, human labels, rival losses, token ids, and what a network is asked after an epoch."""

import math
import shutil
import types

import numpy as np
import pandas as pd
import pytest
import torch

import nls
import nls.chunk
import nls.engine
import nls.human
from nls.chunk import train_chunk
from nls.data import load_dataset
from nls.each import fit_each
from nls.engine import run_grid
from nls.estimate import estimate_transition
from nls.grid import LOSSES, Cell, Grid
from nls.loss_table import LOSSES as RIVALS
from nls.measure import best_epoch, fitted
from nls.models import predict_logits
from nls.noise import draw_noisy_labels, symmetric_transition
from nls.text import write_made_news
from nls.training import fit_stack, seeded_generator

DIGITS = {"dataset": "digits_images", "network": "cnn", "optimizer": "sgd", "learning_rate": 0.01, "epochs": 1}
WARMED = DIGITS | {"warmup_epochs": 1, "warmup_learning_rate": 0.05, "num_examples": 300}
COUNT = 400


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder with 400 made images and human labels for them, in the released forms."""
    rng = np.random.default_rng(0)
    clean = rng.permutation(np.arange(COUNT) % 10)
    images = (clean[:, None, None, None] * 20 + rng.integers(0, 40, (COUNT, 8, 8, 3))).astype(np.uint8)
    np.savez(
        tmp_path / "cifar10.npz", train_images=images, train_labels=clean, test_images=images[:100],
        test_labels=clean[:100],
    )  # fmt: skip
    keys = ("aggre_label", "random_label1", "random_label2", "random_label3", "worse_label")
    noisy = {key: np.where(rng.random(COUNT) < 0.3, rng.integers(0, 10, COUNT), clean) for key in keys}
    torch.save({"clean_label": clean} | noisy, tmp_path / "CIFAR-10_human.pt")
    monkeypatch.setattr(nls.human, "NUM_EXAMPLES", COUNT)
    return types.SimpleNamespace(folder=tmp_path, clean=clean, noisy=noisy)


HUMAN = {"dataset": "cifar10", "from_root": True, "network": "cnn", "optimizer": "sgd", "epochs": 1}


def test_human_labels_are_paired_with_their_images(cifar, monkeypatch):
    """The labels that a network is trained and validated on are those of the file at the images' places."""
    seen = {}

    def keep(features, labels, *_, **options):
        seen["train"] = labels
        return fit_each(features, labels, **options)

    monkeypatch.setattr(nls.chunk, "fit_each", keep)
    cell = Cell(noise="cifar10n_worst", seed=3, **HUMAN)
    (record,) = train_chunk([cell], cifar.folder)
    data = load_dataset("cifar10", cifar.folder, 3)
    worst = torch.from_numpy(cifar.noisy["worse_label"])
    assert torch.equal(seen["train"], worst[data.train_indices])
    expected = float((worst[data.train_indices] != data.train_labels).double().mean())
    assert record["results"]["realised_noise_rate"] == pytest.approx(expected)
    assert 0.2 < expected < 0.35
    assert math.isfinite(record["results"]["nll_mapped_last"])  # undone by the counted matrix


def test_images_in_another_order_than_the_labels_are_refused(cifar):
    with np.load(cifar.folder / "cifar10.npz") as arrays:
        moved = dict(arrays)
    moved["train_labels"] = np.roll(moved["train_labels"], 1)
    np.savez(cifar.folder / "cifar10.npz", **moved)
    with pytest.raises(ValueError, match=r"'cifar10' must hold the images of 'cifar10n' in their order: \d+ of 400"):
        train_chunk([Cell(noise="cifar10n_worst", **HUMAN)], cifar.folder)


def test_human_labels_need_the_images_that_people_saw(cifar):
    with pytest.raises(ValueError, match="needs the images that people saw, 'wine' has no such images"):
        run_grid(Grid(dataset="wine", noise="cifar10n_worst"), workers=1)


def test_the_names_of_losses_are_those_of_the_table():
    assert set(LOSSES) == set(RIVALS)


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"gls", "backward", "forward"}))
def test_a_network_is_trained_on_the_loss_of_its_name(loss):
    """The oracle calls fit_each with the loss from the table."""
    parameter = 3.0 if loss == "floored" else None  # the usual floor is below the loss of a first epoch
    cell = Cell(noise_rate=0.3, loss=loss, loss_parameter=parameter, num_examples=200, **DIGITS)
    (record,) = train_chunk([cell])
    data = load_dataset("digits_images", num_examples=200)
    noise = symmetric_transition(10, 0.3)
    labels = draw_noisy_labels(data.train_labels, noise, seeded_generator(0, "train noise"))
    own = RIVALS[loss].make(len(labels), 10, parameter, noise, 0)
    fit = fit_each(
        data.train_features,
        labels,
        network="cnn",
        num_classes=10,
        epochs=1,
        batch_size=64,
        learning_rate=0.01,
        loss=own,
    )
    assert record["curves"]["train_loss"] == fit.curves["train_loss"].tolist()
    plain = train_chunk([Cell(noise_rate=0.3, num_examples=200, **DIGITS)])[0]
    assert record["curves"]["train_loss"] != plain["curves"]["train_loss"]


def test_members_of_a_stack_have_losses_of_their_own_noise():
    grid = Grid(dataset="wine", loss="gce", loss_parameter=0.9, noise_rate=[0.1, 0.3], epochs=3)
    table = run_grid(grid, workers=1)
    data = load_dataset("wine")
    for rate, row in zip((0.1, 0.3), table.to_dict("records"), strict=True):
        noise = symmetric_transition(3, rate)
        labels = draw_noisy_labels(data.train_labels, noise, seeded_generator(0, "train noise"))
        own = RIVALS["gce"].make(len(data.train_labels), 3, 0.9, noise, 0)
        fit = fit_stack(
            data.train_features, labels[None], num_classes=3, hidden=(32,), epochs=3,
            loss=lambda z, y, _, own=own: own(z[0], y[0], torch.arange(y.shape[1]))[None],
        )  # fmt: skip
        assert row["train_loss"] == pytest.approx(float(fit.curves["train_loss"][0, -1]), rel=1e-5)


def test_a_matrix_is_estimated_from_the_end_of_the_warm_up(monkeypatch):
    """The oracle warms up alone, estimates, and compares with the matrix that the loss ends with."""
    made = []
    monkeypatch.setattr(
        nls.chunk, "_Corrected", lambda *a, real=nls.chunk._Corrected: made.append(real(*a)) or made[-1]
    )
    train_chunk([Cell(noise_rate=0.3, loss="forward", transition="estimated", **WARMED)])
    data = load_dataset("digits_images", num_examples=300)
    labels = draw_noisy_labels(data.train_labels, symmetric_transition(10, 0.3), seeded_generator(0, "train noise"))
    warm = fit_each(
        data.train_features, labels, network="cnn", num_classes=10, epochs=1, batch_size=64, learning_rate=0.05
    )
    predicted = predict_logits(warm.network, data.train_features).double().softmax(1)
    expected = estimate_transition(predicted, labels, method="anchor")
    assert torch.allclose(made[0].matrix, expected, atol=1e-6)
    assert not torch.allclose(expected, torch.eye(10, dtype=torch.float64), atol=0.01)


def test_cells_of_one_warm_up_are_one_chunk_and_equal_cells_alone():
    grid = Grid(noise_rate=0.3, smooth_rate=[0.4, 0.0, -0.4], **WARMED) + Grid(noise_rate=0.3, loss="gce", **WARMED)
    assert len({cell.stack_key for cell in grid}) == 1
    assert len({cell.stack_key for cell in Grid(smooth_rate=[0.4, 0.0], **DIGITS)}) == 2
    together = train_chunk(grid.cells)
    for cell, record in zip(grid, together, strict=True):
        (alone,) = train_chunk([cell])
        assert str(record["curves"]) == str(alone["curves"])  # so that missing numbers are equal
        assert record["chunk"] == [cell.id]


@pytest.mark.parametrize(
    ("pick", "name"), [("last", None), ("clean_test", "accuracy"), ("noisy_validation", "validation_accuracy")]
)
def test_the_loss_takes_over_from_the_epoch_that_is_picked(pick, name, monkeypatch):
    asked = []
    monkeypatch.setattr(nls.chunk, "fit_each", lambda *a, **options: asked.append(options) or fit_each(*a, **options))
    (record,) = train_chunk([Cell(noise_rate=0.3, warmup_pick=pick, **WARMED)])
    assert asked[0]["warmup_pick"] == name
    assert name is None or name in record["curves"]


@pytest.mark.parametrize(
    "options", [WARMED, {"dataset": "digits", "warmup_epochs": 1, "epochs": 1, "num_examples": None}]
)
def test_the_map_of_the_warm_up_is_that_of_cross_entropy(options):
    """In the warm-up r is 0 whatever comes after it."""
    grid = Grid(noise_rate=0.3, smooth_rate=[0.4, 0.0, -0.4], **options)
    first, second = zip(*(record["curves"]["nll_mapped"] for record in train_chunk(grid.cells)), strict=True)
    assert len(set(first)) == 1
    assert len(set(second)) == 3


def test_a_time_limit_ends_a_run_between_cells_and_the_next_goes_on(tmp_path, monkeypatch):
    grid = Grid(noise_rate=0.3, smooth_rate=[0.4, 0.0, -0.4], **WARMED)
    whole = run_grid(grid, workers=1)
    assert run_grid(grid, store=tmp_path, workers=1, time_limit=0).empty
    clock = types.SimpleNamespace(**{name: getattr(nls.chunk.time, name) for name in ("time", "perf_counter")})
    clock.time = lambda: math.inf  # every further network would be too late
    monkeypatch.setattr(nls.chunk, "time", clock)
    part = run_grid(grid, store=tmp_path, workers=1, time_limit=100)
    # Each call of the chunk trains one network, and the run asks again until nothing is left.
    assert part["smooth_rate"].tolist() == [0.4, 0.0, -0.4]
    pd.testing.assert_frame_equal(part.drop(columns="seconds"), whole.drop(columns="seconds"))
    with pytest.raises(ValueError, match="time_limit must be a finite number"):
        run_grid(grid, time_limit=-1)


def test_a_chunk_stops_before_a_network_that_would_end_too_late():
    grid = Grid(noise_rate=0.3, smooth_rate=[0.4, 0.0, -0.4], **WARMED)
    assert len(train_chunk(grid.cells, deadline=0.0)) == 1
    assert len(train_chunk(grid.cells)) == 3


def test_one_damaged_record_of_a_warm_up_is_trained_again_alone(tmp_path):
    grid = Grid(noise_rate=0.3, smooth_rate=[0.4, 0.0], **WARMED)
    before = run_grid(grid, store=tmp_path, workers=1)
    (tmp_path / f"{grid.cells[1].id}.json").write_text("damaged")
    with pytest.warns(nls.records.RecordWarning, match="counts as missing"):
        after = run_grid(grid, store=tmp_path, workers=1)
    assert after.attrs["trained"] == 1
    pd.testing.assert_frame_equal(after.drop(columns="seconds"), before.drop(columns="seconds"))


def test_token_ids_are_classified_by_their_embeddings(tmp_path):
    write_made_news(tmp_path, num_train=400, num_test=100, seed=0)
    options = {"dataset": "ag_news_tokens", "from_root": True, "network": "embedding", "noise_rate": 0.1}
    table = run_grid(Grid(learning_rate=0.02, epochs=8, **options), root=tmp_path, workers=1)
    assert table["accuracy_last"][0] > 0.6
    with pytest.raises(
        ValueError, match="network='embedding' needs a data set of token ids, 'digits_images' is another"
    ):
        run_grid(Grid(dataset="digits_images", network="embedding"), workers=1)


def test_changed_news_are_other_news(tmp_path):
    folder = write_made_news(tmp_path / "news", num_train=200, num_test=50, seed=0)
    grid = Grid(dataset="ag_news", from_root=True, epochs=1)
    table = run_grid(grid, store=tmp_path / "store", root=tmp_path / "news", workers=1)
    again = run_grid(grid, store=tmp_path / "store", root=tmp_path / "news", workers=1)
    assert (table.attrs["trained"], again.attrs["trained"]) == (1, 0)
    shutil.rmtree(folder)
    write_made_news(tmp_path / "news", num_train=200, num_test=50, seed=1)
    with pytest.warns(nls.records.RecordWarning, match="trained on another file 'ag_news'"):
        changed = run_grid(grid, store=tmp_path / "store", root=tmp_path / "news", workers=1)
    assert changed.attrs["trained"] == 1


def test_a_huge_folder_is_told_by_names_and_sizes(tmp_path, monkeypatch):
    (tmp_path / "mine" / "train").mkdir(parents=True)
    (tmp_path / "mine" / "train" / "a.png").write_bytes(b"1234")
    whole = nls.engine._digest(tmp_path, "mine")
    (tmp_path / "mine" / "train" / "a.png").write_bytes(b"1235")
    assert nls.engine._digest(tmp_path, "mine") != whole
    monkeypatch.setattr(nls.engine, "_READ_WHOLE", 0)
    listed = nls.engine._digest(tmp_path, "mine")
    (tmp_path / "mine" / "train" / "a.png").write_bytes(b"1234")
    assert nls.engine._digest(tmp_path, "mine") == listed
    (tmp_path / "mine" / "train" / "b.png").write_bytes(b"")
    assert nls.engine._digest(tmp_path, "mine") != listed
    assert nls.engine._digest(tmp_path, "other") == ""


def test_what_a_network_has_memorised_is_counted():
    clean = torch.tensor([0, 0, 1, 1, 2])
    labels = torch.tensor([0, 1, 1, 0, 0])  # three wrong ones
    predicted = torch.tensor([0, 1, 0, 1, 1])  # of these: one memorised, one recovered, one neither
    logits = torch.nn.functional.one_hot(predicted, 3).float()
    assert fitted(logits, labels, clean) == pytest.approx(
        {"memorised": 1 / 3, "recovered": 1 / 3, "train_accuracy": 2 / 5}
    )
    nothing = fitted(logits, clean, clean)
    assert math.isnan(nothing["memorised"])
    assert math.isnan(nothing["recovered"])


def test_the_best_epoch_is_the_first_of_equal_ones_and_never_one_without_a_number():
    assert best_epoch([0.1, 0.5, 0.5, math.nan]) == 1
    assert best_epoch([math.nan, 0.0]) == 1
