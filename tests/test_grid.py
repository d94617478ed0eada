import dataclasses

import numpy as np
import pytest

import nls.grid
from nls.engine import run_grid
from nls.grid import ENGINE_VERSION, Cell, Grid

QUICK = {"dataset": "wine", "epochs": 4}
FACTORS = [field.name for field in dataclasses.fields(Cell)]


def test_a_grid_is_the_product_of_its_levels_in_a_fixed_order():
    grid = Grid(dataset=["wine", "digits"], noise_rate=[0.0, 0.4], smooth_rate=[0.2, -1.0], seed=range(3))
    cells = [(c.dataset, c.noise_rate, c.smooth_rate, c.seed) for c in grid]
    expected = [
        (d, e, r, s) for d in ("wine", "digits") for e in (0.0, 0.4) for r in (0.2, -1.0) for s in range(3)
    ]  # fmt: skip
    assert cells == expected
    assert len(grid) == len({c.id for c in grid}) == 24


def test_grids_add_up_and_each_cell_stays_once():
    left, right = Grid(dataset="wine", smooth_rate=[0.0, -1.0]), Grid(dataset="wine", smooth_rate=[-1, 0.2])
    assert [c.smooth_rate for c in left + right] == [0.0, -1.0, 0.2]
    assert len(sum([left, right])) == 3


OTHER = {
    "dataset": "digits", "from_root": True, "num_examples": 500, "noise": "pair", "noise_rate": 0.1, "loss": "forward",
    "smooth_rate": -0.5, "normalized": True, "seed": 1, "network": "cnn", "hidden": (8,), "optimizer": "sgd",
    "learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.1, "schedule": "cosine", "max_update_norm": 1.0,
    "warmup_epochs": 2, "warmup_learning_rate": 0.1, "epochs": 31, "min_steps": 5, "batch_size": 32,
    "augment": "crop_flip", "loss_parameter": 0.5, "transition": "estimated", "warmup_schedule": "thirds",
    "warmup_pick": "clean_test",
}  # fmt: skip
WARMED = {"network": "cnn", "warmup_epochs": 1}
NEEDS = {
    "augment": {"network": "cnn"}, "momentum": {"optimizer": "sgd"}, "warmup_learning_rate": {"warmup_epochs": 1},
    "loss_parameter": {"loss": "gce"}, "transition": {"loss": "forward"} | WARMED, "warmup_schedule": WARMED,
    "warmup_pick": WARMED,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_an_id_changes_with_every_factor(name):
    base = Cell("wine", **NEEDS.get(name, {}))
    assert dataclasses.replace(base, **{name: OTHER[name]}).id != base.id


def test_the_id_test_covers_every_factor():
    assert set(OTHER) == set(FACTORS)


def test_ids_stay_what_they_are():
    """A changed default, order or spelling would make stored results those of other cells without a word."""
    assert ENGINE_VERSION == 2
    assert Cell("wine").id == "c4a0a9ba0b34148f"
    assert Cell("twonorm", noise_rate=0.4, smooth_rate=-8, seed=3, hidden=(8, 8)).id == "7013d98c0d4e35c3"


def test_an_id_does_not_change_with_the_type_of_a_number_and_changes_with_the_engine(monkeypatch):
    cell = Cell("wine", smooth_rate=-1, noise_rate=0, seed=np.int64(3))
    assert cell.id == Cell("wine", smooth_rate=-1.0, noise_rate=-0.0, seed=3).id
    before = cell.id
    monkeypatch.setattr(nls.grid, "ENGINE_VERSION", ENGINE_VERSION + 1)
    assert cell.id != before


BAD = {
    "unknown factor": (
        lambda: Grid(dataset="wine", smoothing=0.1),
        ValueError,
        "unknown factor 'smoothing'; the factors",
    ),
    "no levels": (lambda: Grid(dataset="wine", seed=[]), ValueError, "seed must have at least one level"),
    "tuple of rates": (
        lambda: Grid(dataset="wine", smooth_rate=(0.0, 1.0)),
        TypeError,
        "smooth_rate must be a real number",
    ),
    "list of widths": (lambda: Cell("wine", hidden=[8]), TypeError, "hidden must be a tuple of widths"),
    "rate above one": (lambda: Cell("wine", smooth_rate=1.1), ValueError, "smooth_rate must be a finite number"),
    "noise above one": (lambda: Cell("wine", noise_rate=1.1), ValueError, r"noise_rate .* \[0, 1\], got 1.1"),
    "unknown noise": (lambda: Cell("wine", noise="uniform"), ValueError, "noise must be one of 'symmetric', 'pair'"),
    "unknown optimiser": (lambda: Cell("wine", optimizer="lion"), ValueError, "optimizer must be one of 'adam', 'sgd'"),
    "seed of text": (lambda: Cell("wine", seed="0"), TypeError, "seed must be an integer"),
    "normalized at one": (
        lambda: Cell("wine", smooth_rate=1, normalized=True),
        ValueError,
        "normalized needs a smooth_rate",
    ),
    "normalized of a number": (lambda: Cell("wine", normalized=1), TypeError, "normalized must be True or False"),
    "dataset of a number": (lambda: Cell(3), TypeError, "dataset must be a name, got 3"),
    "rate of a corrected loss": (
        lambda: Cell("wine", loss="backward", smooth_rate=0.2),
        ValueError,
        "smooth_rate is used by loss='gls' only, got 0.2; leave it at 0.0",
    ),
    "a parameter of a loss without one": (
        lambda: Cell("wine", loss_parameter=0.5),
        ValueError,
        "loss_parameter is used by a loss that has one only, got 0.5; leave it at None",
    ),
    "a rate of human labels": (
        lambda: Cell("cifar10", noise="cifar10n_worst", noise_rate=0.4),
        ValueError,
        "noise_rate is used by noise that is drawn only, got 0.4",
    ),
    "an estimate without a warm-up": (
        lambda: Cell("digits_images", network="cnn", loss="forward", transition="estimated"),
        ValueError,
        "transition='estimated' needs a network with a warm-up",
    ),
    "a memory in a stack": (lambda: Cell("wine", loss="elr"), ValueError, "loss='elr' remembers single examples"),
    "a schedule of no warm-up": (
        lambda: Cell("wine", warmup_schedule="cosine"),
        ValueError,
        "warmup_schedule is used by a network with a warm-up, no MLP only",
    ),
    "correction of instance noise": (
        lambda: Cell("wine", loss="forward", noise="instance"),
        ValueError,
        "loss='forward' needs noise of one transition matrix",
    ),
    "widths of a cnn": (
        lambda: Cell("wine", network="cnn", hidden=(8,)),
        ValueError,
        "hidden is used by network='mlp'",
    ),
    "augmented features": (
        lambda: Cell("wine", augment="crop_flip"),
        ValueError,
        "augment is used by an image network",
    ),
    "momentum of adam": (lambda: Cell("wine", momentum=0.5), ValueError, "momentum is used by another optimizer"),
    "nesterov of an mlp": (lambda: Cell("wine", optimizer="nesterov"), ValueError, "optimizer must be 'adam' or 'sgd'"),
    "warm-up without epochs": (
        lambda: Cell("wine", warmup_learning_rate=0.1),
        ValueError,
        "warmup_learning_rate is used by warmup_epochs above 0 only",
    ),
    "momentum of one": (lambda: Cell("wine", optimizer="sgd", momentum=1.0), ValueError, "momentum must be"),
    "unknown schedule": (lambda: Cell("wine", schedule="linear"), ValueError, "schedule must be one of 'constant'"),
    "unknown network": (lambda: Cell("wine", network="vit"), ValueError, "network must be one of 'mlp', 'cnn'"),
    "cnn on plain features": (
        lambda: run_grid(Grid(dataset="wine", network="cnn"), workers=1),
        ValueError,
        "network='cnn' needs a data set of images, 'wine' is another",
    ),
    "noise of ten classes": (
        lambda: run_grid(Grid(dataset="wine", noise="cifar10_pair"), workers=1),
        ValueError,
        "noise='cifar10_pair' is for 10 classes, data set 'wine' has 3",
    ),
    "store of a number": (
        lambda: run_grid(Grid(dataset="wine"), store=3),
        TypeError,
        "store must be a folder or a RecordStore, got 3",
    ),
    "no grid": (lambda: run_grid([Cell("wine")]), TypeError, "grid must be a Grid, got list"),
    "no workers": (lambda: run_grid(Grid(dataset="wine"), workers=0), ValueError, "workers must be at least 1, got 0"),
    "text as a width": (lambda: Cell("wine", hidden=("a",)), TypeError, "hidden must be an integer, got 'a'"),
    "no width": (lambda: Cell("wine", hidden=(0,)), ValueError, "hidden must be at least 1"),
    "no examples": (lambda: Cell("twonorm", num_examples=-1), ValueError, "num_examples must be at least 1"),
    "grid plus a number": (lambda: Grid(dataset="wine") + 1, TypeError, "unsupported operand"),
    "root as text": (lambda: Cell("wine", from_root="yes"), TypeError, "from_root must be True or False"),
    "unknown set": (lambda: run_grid(Grid(dataset="nothing"), workers=1), ValueError, "nothing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_name(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
