import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

import nls.grid
from nls.data import load_dataset
from nls.grid import ENGINE_VERSION, RULES, Cell, Grid, run_grid
from nls.noise import draw_noisy_labels, symmetric_transition
from nls.posterior import gls_posterior, noisy_posterior, output_map
from nls.training import StackedMLP, fit_stack, seeded_generator

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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", "digits"),
        ("from_root", True), ("num_examples", 500), ("noise", "pair"), ("noise_rate", 0.1), ("smooth_rate", -0.5),
        ("normalized", True), ("seed", 1), ("hidden", (8,)), ("optimizer", "sgd"), ("learning_rate", 0.1),
        ("weight_decay", 0.1), ("epochs", 31), ("min_steps", 5), ("batch_size", 32),
    ],
)  # fmt: skip
def test_an_id_changes_with_every_factor(name, value):
    base = Cell("wine")
    assert dataclasses.replace(base, **{name: value}).id != base.id


def test_the_id_test_covers_every_factor():
    names = {mark.args[1][i][0] for mark in test_an_id_changes_with_every_factor.pytestmark for i in range(15)}
    assert names == set(FACTORS)


def test_an_id_does_not_change_with_the_type_of_a_number_and_changes_with_the_engine(monkeypatch):
    cell = Cell("wine", smooth_rate=-1, noise_rate=0, seed=np.int64(3))
    assert cell.id == Cell("wine", smooth_rate=-1.0, noise_rate=-0.0, seed=3).id
    before = cell.id
    monkeypatch.setattr(nls.grid, "ENGINE_VERSION", ENGINE_VERSION + 1)
    assert cell.id != before


def test_a_cell_alone_equals_the_cell_in_a_grid():
    grid = Grid(noise_rate=[0.0, 0.2, 0.4], smooth_rate=[0.4, 0.0, -1.0], seed=[0, 5], **QUICK)
    table = run_grid(grid, workers=1).set_index("id")
    cell = Cell(noise_rate=0.4, smooth_rate=-1.0, seed=5, **QUICK)
    alone = run_grid(Grid(noise_rate=0.4, smooth_rate=-1.0, seed=5, **QUICK), workers=1).iloc[0]
    same = table.loc[cell.id]
    for column in ("realised_noise_rate", "epoch_clean_test", "accuracy_last", "accuracy_noisy_validation"):
        assert alone[column] == same[column]
    # Sums in a product of another width may round differently; nothing else differs.
    for column in ("nll_last", "train_loss"):
        assert alone[column] == pytest.approx(same[column], rel=1e-4)


def test_rows_come_in_the_order_of_the_grid_and_processes_do_not_change_them():
    grid = Grid(noise_rate=[0.4, 0.0], smooth_rate=[0.0, -1.0], seed=[3, 1], **QUICK)
    one, two = run_grid(grid, workers=1), run_grid(grid, workers=2)
    assert one["id"].tolist() == [cell.id for cell in grid]
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"))


def test_rows_hold_what_a_plain_run_gives():
    """The oracle: fit_stack by hand on one cell, metrics written out."""
    cell = {"noise_rate": 0.3, "smooth_rate": -0.5, "seed": 2}
    row = run_grid(Grid(**cell, **QUICK), workers=1).iloc[0]
    data = load_dataset("wine", seed=2)
    noise = symmetric_transition(3, 0.3)
    train = draw_noisy_labels(data.train_labels, noise, seeded_generator(2, "train noise"))
    held_out = draw_noisy_labels(data.validation_labels, noise, seeded_generator(2, "validation noise"))
    curve = []

    def evaluate(stack):
        test = stack.forward(data.test_features)[0].softmax(-1)
        validation = stack.forward(data.validation_features)[0].argmax(-1)
        chosen = test[torch.arange(len(test)), data.test_labels]
        curve.append(
            {
                "accuracy": float((test.argmax(-1) == data.test_labels).float().mean()),
                "validation_accuracy": float((validation == held_out).float().mean()),
                "nll": float(-chosen.log().mean()),
                "entropy": float(-(test * test.log()).sum(-1).mean()),
            }
        )
        return {}

    fit_stack(data.train_features, train[None], -0.5, num_classes=3, hidden=(32,), epochs=4, seed=2, evaluate=evaluate)
    picked = {
        "last": 3,
        "noisy_validation": int(np.argmax([c["validation_accuracy"] for c in curve])),
        "clean_test": int(np.argmax([c["accuracy"] for c in curve])),
    }
    assert row["realised_noise_rate"] == float((train != data.train_labels).double().mean())
    for rule, epoch in picked.items():
        assert row[f"epoch_{rule}"] == epoch + 1
        for name, value in curve[epoch].items():
            assert row[f"{name}_{rule}"] == pytest.approx(value, rel=1e-5)


def test_kl_is_that_of_the_true_posterior_and_missing_where_it_is_unknown():
    row = run_grid(Grid(dataset="twonorm", num_examples=300, epochs=1, seed=1), workers=1).iloc[0]
    data = load_dataset("twonorm", seed=1, num_examples=300)
    model = StackedMLP((20, 32, 2), 1, seeded_generator(1, "init"))
    fit = fit_stack(data.train_features, data.train_labels[None], num_classes=2, hidden=(32,), epochs=1, seed=1)
    prediction = fit.stack.forward(data.test_features)[0].double().softmax(-1)
    true = data.test_posterior
    kl = (true * (true.log() - prediction.log())).sum(-1).mean()
    assert row["kl_last"] == pytest.approx(float(kl), rel=1e-4)
    untrained = model.forward(data.test_features)[0].double().softmax(-1)
    assert row["kl_last"] != pytest.approx(float((true * (true.log() - untrained.log())).sum(-1).mean()), rel=1e-2)
    assert "kl_last" not in run_grid(Grid(**QUICK), workers=1)


def test_clean_test_never_reports_less_than_last_and_noisy_validation_does_not_see_the_test_set():
    table = run_grid(Grid(noise_rate=0.4, smooth_rate=[0.4, 0.0, -1.0], seed=range(4), **QUICK), workers=1)
    assert (table["accuracy_clean_test"] >= table["accuracy_last"]).all()
    assert (table["accuracy_clean_test"] >= table["accuracy_noisy_validation"]).all()
    best = table[[f"validation_accuracy_{rule}" for rule in RULES]].max(axis=1)
    assert (table["validation_accuracy_noisy_validation"] == best).all()


def test_flips_are_nested_in_the_noise_rate():
    table = run_grid(Grid(noise_rate=[0.1, 0.2, 0.4], seed=0, **QUICK), workers=1)
    assert table["realised_noise_rate"].is_monotonic_increasing
    data = load_dataset("wine", seed=0)
    draws = [
        draw_noisy_labels(data.train_labels, symmetric_transition(3, e), seeded_generator(0, "train noise"))
        for e in (0.1, 0.4)
    ]
    flipped = draws[0] != data.train_labels
    assert bool(flipped.any())
    assert torch.equal(draws[0][flipped], draws[1][flipped])


def test_a_diverged_cell_has_no_last_accuracy_and_its_neighbours_do():
    grid = Grid(smooth_rate=[0.0, -8.0], optimizer="sgd", learning_rate=[0.01, 1e6], **QUICK)
    table = run_grid(grid, workers=1).set_index(["smooth_rate", "learning_rate"])
    assert table.loc[(-8.0, 1e6), "diverged_epoch"] > 0
    assert np.isnan(table.loc[(-8.0, 1e6), "accuracy_last"])
    assert table.loc[(0.0, 0.01), "diverged_epoch"] == 0
    assert np.isfinite(table.loc[(0.0, 0.01), "accuracy_last"])


def test_min_steps_adds_epochs_to_a_small_set():
    assert run_grid(Grid(min_steps=30, **QUICK), workers=1)["epoch_last"].tolist() == [15]  # 106 rows: 2 steps an epoch
    assert run_grid(Grid(min_steps=1, **QUICK), workers=1)["epoch_last"].tolist() == [4]


def test_the_map_is_missing_where_the_noise_is_not_symmetric():
    table = run_grid(Grid(noise=["symmetric", "pair"], noise_rate=0.2, **QUICK), workers=1)
    assert np.isfinite(table["nll_mapped_last"]).tolist() == [True, False]
    assert np.isfinite(table["nll_last"]).all()


def test_a_file_and_a_set_of_its_name_are_different_cells(tmp_path):
    data = load_dataset("wine", seed=0)
    rows = torch.cat([data.train_features[:, :2], data.train_labels[:, None]], 1).tolist()
    lines = ["first,second,target", *(f"{a},{b},{int(y)}" for a, b, y in rows)]
    (tmp_path / "wine.csv").write_text("\n".join(lines) + "\n")
    own = Grid(from_root=True, **QUICK)
    assert own.cells[0].id != Grid(**QUICK).cells[0].id
    assert run_grid(own, root=tmp_path, workers=1)["from_root"].tolist() == [True]
    for grid, root in ((own, None), (Grid(**QUICK), tmp_path)):
        with pytest.raises(ValueError, match="root must be given for cells with from_root=True, and only for them"):
            run_grid(grid, root=root)


def test_the_environment_names_the_number_of_workers(monkeypatch):
    monkeypatch.setenv("NLS_WORKERS", "many")
    with pytest.raises(ValueError, match="NLS_WORKERS must be a number of at least 1, got 'many'"):
        run_grid(Grid(**QUICK))


def test_the_output_map_undoes_noise_and_rate():
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(50, 5, dtype=torch.float64, generator=generator) + 0.2
    clean = clean / clean.sum(-1, keepdim=True)
    for noise_rate, smooth_rate in ((0.3, 0.2), (0.5, 0.0), (0.2, -0.2)):
        fitted = gls_posterior(noisy_posterior(clean, symmetric_transition(5, noise_rate)), smooth_rate)
        assert (output_map(fitted, smooth_rate, noise_rate) - clean).abs().max() < 1e-12
        transposed = output_map(fitted, smooth_rate, noise_rate / 2)
        assert (transposed - clean).abs().max() > 1e-3
    assert bool(output_map(clean, 0.0, 0.8).isnan().all())  # c = 1: the labels carry nothing


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
