import os

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

import nls.chunk
import nls.each
import nls.engine
import nls.records
from nls.chunk import RULES
from nls.data import load_dataset
from nls.engine import WorkerError, plan_chunks, run_grid
from nls.grid import Cell, Grid
from nls.losses import backward_corrected_loss, forward_corrected_loss
from nls.noise import draw_noisy_labels, pair_transition, symmetric_transition
from nls.posterior import (
    FLOOR,
    entropy,
    expected_calibration_error,
    gls_posterior,
    kl_divergence,
    noisy_posterior,
    output_map,
)
from nls.records import RecordStore, RecordWarning
from nls.training import StackedMLP, fit_stack, seeded_generator

QUICK = {"dataset": "wine", "epochs": 4}


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

    def evaluate(stack, _):
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


def test_the_map_undoes_any_matrix_and_is_missing_without_one():
    """The oracle undoes rate and matrix step by step, in float64."""
    grid = Grid(noise=["symmetric", "pair", "instance"], noise_rate=0.2, smooth_rate=0.3, **QUICK)
    table = run_grid(grid, workers=1).set_index("noise")
    assert np.isnan(table.loc["instance", "nll_mapped_last"])
    data = load_dataset("wine")
    for noise, matrix in (("pair", pair_transition(3, 0.2)), ("symmetric", symmetric_transition(3, 0.2))):
        labels = draw_noisy_labels(data.train_labels, matrix, seeded_generator(0, "train noise"))
        fit = fit_stack(data.train_features, labels[None], 0.3, num_classes=3, hidden=(32,), epochs=4, seed=0)
        predicted = fit.stack.forward(data.test_features)[0].double().softmax(-1)
        unsmoothed = (predicted - 0.3 / 3) / 0.7
        clean = (unsmoothed @ matrix.inverse()).clamp(min=FLOOR)
        clean /= clean.sum(1, keepdim=True)
        expected = -clean[torch.arange(len(clean)), data.test_labels].log().mean()
        assert table.loc[noise, "nll_mapped_last"] == pytest.approx(float(expected), rel=1e-4)


def test_confidence_and_calibration_are_those_of_the_public_functions():
    table = run_grid(Grid(noise_rate=0.3, smooth_rate=-0.5, **QUICK), workers=1)
    data = load_dataset("wine")
    labels = draw_noisy_labels(data.train_labels, symmetric_transition(3, 0.3), seeded_generator(0, "train noise"))
    fit = fit_stack(data.train_features, labels[None], -0.5, num_classes=3, hidden=(32,), epochs=4, seed=0)
    model = fit.stack.forward(data.test_features)[0].softmax(-1)
    confidence, predicted = model.max(1)
    right = predicted == data.test_labels
    row = table.iloc[0]
    assert row["ece_last"] == pytest.approx(expected_calibration_error(model, data.test_labels), rel=1e-4)
    assert row["confidence_right_last"] == pytest.approx(float(confidence[right].mean()), rel=1e-5)
    assert row["confidence_wrong_last"] == pytest.approx(float(confidence[~right].mean()), rel=1e-5)
    assert right.any()
    assert not right.all()


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


def test_the_engine_measures_what_the_public_functions_say():
    grid = Grid(dataset="waveform", num_examples=300, noise_rate=0.3, smooth_rate=[0.4, -0.5], epochs=3, seed=1)
    table = run_grid(grid, workers=1)
    data = load_dataset("waveform", seed=1, num_examples=300)
    noise = symmetric_transition(3, 0.3)
    labels = draw_noisy_labels(data.train_labels, noise, seeded_generator(1, "train noise"))
    for row, rate in zip(table.to_dict("records"), (0.4, -0.5), strict=True):
        fit = fit_stack(data.train_features, labels[None], rate, num_classes=3, hidden=(32,), epochs=3, seed=1)
        model = fit.stack.forward(data.test_features)[0].double().softmax(-1)
        mapped = output_map(model, rate, 0.3)
        assert row["kl_last"] == pytest.approx(float(kl_divergence(data.test_posterior, model).mean()), rel=1e-4)
        assert row["kl_mapped_last"] == pytest.approx(
            float(kl_divergence(data.test_posterior, mapped).mean()), rel=1e-4
        )
        assert row["entropy_last"] == pytest.approx(float(entropy(model).mean()), rel=1e-5)
        chosen = mapped[torch.arange(len(mapped)), data.test_labels]
        assert row["nll_mapped_last"] == pytest.approx(float(-chosen.log().mean()), rel=1e-5)


IMAGES = {"dataset": "digits_images", "network": "cnn", "optimizer": "sgd", "learning_rate": 0.05, "epochs": 2}


def test_image_networks_are_cells_like_others(tmp_path):
    grid = Grid(noise_rate=0.2, smooth_rate=[0.2, -0.2], warmup_epochs=1, **IMAGES)
    table = run_grid(grid, store=tmp_path / "store", workers=1)
    assert table["epoch_last"].tolist() == [3, 3]
    assert (table["accuracy_clean_test"] > 0.5).all()
    assert table["realised_noise_rate"].nunique() == 1
    assert sorted(path.suffix for path in (tmp_path / "store").iterdir()) == ["", ".json", ".json"]
    again = run_grid(grid, workers=2)
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), again.drop(columns="seconds"))


def test_an_interrupted_image_network_goes_on_inside_its_cell(tmp_path, monkeypatch):
    grid = Grid(noise_rate=0.2, **IMAGES | {"epochs": 4})
    whole = run_grid(grid, workers=1)
    measure, epochs = nls.chunk.Measure.__call__, []

    def stop_in_the_third(self, *arguments):
        epochs.append(1)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    monkeypatch.setattr(nls.chunk.Measure, "__call__", stop_in_the_third)
    monkeypatch.setattr(nls.chunk, "_CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, store=tmp_path, workers=1)
    assert [path.name for path in tmp_path.glob("*.checkpoint*")] == [f"{grid.cells[0].id}.checkpoint"]
    table = run_grid(grid, store=tmp_path, workers=1)
    assert len(epochs) == 3 + 2  # epochs three and four only
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), whole.drop(columns="seconds"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", f"{grid.cells[0].id}.json"]


@pytest.mark.parametrize("loss", ["backward", "forward"])
def test_corrected_losses_are_those_of_the_true_matrix(loss):
    """For symmetric noise the backward correction is a smooth rate; the forward one is checked on its own."""
    row = run_grid(Grid(noise_rate=0.3, loss=loss, **QUICK), workers=1).iloc[0]
    data = load_dataset("wine", seed=0)
    noise = symmetric_transition(3, 0.3)
    labels = draw_noisy_labels(data.train_labels, noise, seeded_generator(0, "train noise"))
    correct = {"backward": backward_corrected_loss, "forward": forward_corrected_loss}[loss]
    rate = -0.45 / 0.55  # c = K eps / (K - 1)
    fits = {
        "own": {"loss": lambda z, y, _: correct(z[0], y[0], noise, reduction="none")[None]},
        "rate": {"smooth_rate": rate},
    }
    nll = {}
    for name, options in fits.items():
        fit = fit_stack(data.train_features, labels[None], num_classes=3, hidden=(32,), epochs=4, seed=0, **options)
        model = fit.stack.forward(data.test_features)[0].log_softmax(-1)
        nll[name] = -float(model[torch.arange(len(model)), data.test_labels].mean())
    assert row["nll_last"] == pytest.approx(nll["own"], rel=1e-5)
    assert (row["nll_last"] == pytest.approx(nll["rate"], rel=1e-4)) == (loss == "backward")


def test_instance_noise_depends_on_the_instance_and_is_nested():
    table = run_grid(Grid(noise="instance", noise_rate=[0.1, 0.3], **QUICK), workers=1)
    assert table["realised_noise_rate"].is_monotonic_increasing
    assert np.isnan(table["nll_mapped_last"]).all()


def test_the_environment_names_a_store_for_grids_that_have_none(tmp_path, monkeypatch):
    monkeypatch.setenv("NLS_STORE", str(tmp_path))
    grid = Grid(smooth_rate=[0.0, -1.0], **QUICK)
    tables = [run_grid(grid, workers=1) for _ in range(2)]
    assert [table.attrs["trained"] for table in tables] == [2, 0]
    pd.testing.assert_frame_equal(*tables)
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_a_larger_grid_trains_only_what_it_adds(tmp_path):
    small = Grid(noise_rate=[0.0, 0.4], smooth_rate=[0.0, -1.0], **QUICK)
    first = run_grid(small, store=tmp_path, workers=1)
    table = run_grid(small + Grid(noise_rate=0.4, smooth_rate=[0.2, -0.2], **QUICK), store=tmp_path, workers=1)
    assert table.attrs == {"trained": 2, "repeated": 0}
    pd.testing.assert_frame_equal(table[:4], first)


def test_a_torn_chunk_is_planned_as_it_was():
    grid = Grid(smooth_rate=[0.4, 0.2, 0.0, -0.2, -0.4], seed=[0, 1], **QUICK)
    ids = [cell.id for cell in grid]

    def plan(done, chunk=None):
        stored = {name: {"chunk": chunk or ids[::2]} for name in done}
        return [[cell.id for cell in part] for part in plan_chunks(grid, lambda cell: stored.get(cell.id))]

    assert plan([]) == [ids[::2], ids[1::2]]
    assert plan(ids) == []
    assert plan(ids[2:3] + ids[1::2]) == [ids[::2]]  # seed 0 was cut short: again as a whole
    other = ids[:3:2]  # trained before the grid grew: what is left of seed 0 makes a chunk of its own
    assert plan(other + ids[1::2], other) == [ids[4::2]]


def test_workers_that_die_again_and_again_end_the_run(monkeypatch):
    def die(self, chunks, bar):
        self.claimed.add("cell")
        raise TerminatedWorkerError("out of memory")

    monkeypatch.setattr(nls.engine._Run, "_train", die)
    with (
        pytest.warns(RuntimeWarning, match="a worker process died; its cells"),
        pytest.raises(WorkerError, match="workers died 3 times in a row, at the cells cell"),
    ):
        run_grid(Grid(**QUICK), workers=2)


@pytest.mark.parametrize("name", ["CI", "TQDM_DISABLE"])
def test_progress_is_one_line_and_quiet_in_ci(name, capsys, monkeypatch):
    for other in ("CI", "TQDM_DISABLE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv(name, "1")
    run_grid(Grid(seed=[0, 1], **QUICK), workers=1)
    assert capsys.readouterr().err == ""
    run_grid(Grid(seed=[0, 1], **QUICK), workers=1, progress=True)
    line = capsys.readouterr().err
    assert "2/2" in line
    assert "diverged=0" in line
    assert "\n" not in line.strip()
    monkeypatch.delenv(name)
    run_grid(Grid(seed=[0, 1], **QUICK), workers=1)
    assert "2/2" in capsys.readouterr().err


def test_each_worker_owns_a_gpu_of_its_own(tmp_path, monkeypatch):
    """Two GPUs and three workers: the third shares; a lock file stands for the other workers."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    owned, held = [], []
    for _ in range(3):
        monkeypatch.setattr(nls.engine, "_gpu", held := [])
        owned.append((nls.engine._own_gpu(), nls.engine._own_gpu(), held))
    assert [first for first, *_ in owned[:2]] == [0, 1]
    assert all(first == again for first, again, _ in owned)
    assert owned[2][0] in (0, 1)


def test_gpus_decide_the_number_of_workers_where_they_are_used(monkeypatch):
    monkeypatch.delenv("NLS_WORKERS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert nls.engine._count_workers(None, on_gpu=True) == 3
    assert nls.engine._count_workers(2, on_gpu=True) == 2
    assert nls.engine._count_workers(None, on_gpu=False) == os.cpu_count()
    with joblib.parallel_config(backend="threading"):
        assert nls.engine._count_workers(None, on_gpu=False) == -1


def write_own_set(folder, shift):
    folder.mkdir()
    rows = [f"{0.1 * i + shift * (i % 2)},{-0.2 * i},{i % 2}" for i in range(40)]
    (folder / "mine.csv").write_text("\n".join(["first,second,target", *rows]) + "\n")


def test_a_changed_file_of_your_own_is_another_set(tmp_path):
    write_own_set(tmp_path / "a", 1.0)
    write_own_set(tmp_path / "b", 5.0)
    grid = Grid(dataset="mine", from_root=True, epochs=2)
    run_grid(grid, root=tmp_path / "a", store=tmp_path / "store", workers=1)
    assert run_grid(grid, root=tmp_path / "a", store=tmp_path / "store", workers=1).attrs["trained"] == 0
    with pytest.warns(RecordWarning, match="it was trained on another file 'mine' than the one in root"):
        second = run_grid(grid, root=tmp_path / "b", store=tmp_path / "store", workers=1)
    assert second.attrs["trained"] == 1
    kept = RecordStore(tmp_path / "store")  # one store for both files remembers neither of them too long
    assert run_grid(grid, root=tmp_path / "b", store=kept, workers=1).attrs["trained"] == 0
    with pytest.warns(RecordWarning, match="it was trained on another file 'mine'"):
        assert run_grid(grid, root=tmp_path / "a", store=kept, workers=1).attrs["trained"] == 1


def test_a_file_of_your_own_is_read_once_for_its_digest(tmp_path, monkeypatch):
    write_own_set(tmp_path / "a", 1.0)
    digest, asked = nls.engine._digest, []
    monkeypatch.setattr(nls.engine, "_digest", lambda root, name: asked.append(name) or digest(root, name))
    run_grid(Grid(dataset="mine", from_root=True, epochs=1, seed=range(3)), root=tmp_path / "a", workers=1)
    assert asked == ["mine"]
    with pytest.raises(TypeError, match="root must be the path of a folder, got 3"):
        run_grid(Grid(dataset="mine", from_root=True), root=3, workers=1)


def test_a_changed_file_changes_the_numbers(tmp_path):
    write_own_set(tmp_path / "a", 1.0)
    write_own_set(tmp_path / "b", 5.0)
    grid = Grid(dataset="mine", from_root=True, epochs=2)
    first, second = (run_grid(grid, root=tmp_path / name, workers=1) for name in ("a", "b"))
    assert second["train_loss"][0] != first["train_loss"][0]


def test_a_finished_image_network_is_not_lost_with_its_record(tmp_path, monkeypatch):
    grid, write = Grid(noise_rate=0.2, **IMAGES), nls.records.RecordStore.write

    def fail(self, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nls.records.RecordStore, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        run_grid(grid, store=tmp_path, workers=1)
    assert [path.suffix for path in tmp_path.glob("*.checkpoint")] == [".checkpoint"]
    monkeypatch.setattr(nls.records.RecordStore, "write", write)
    monkeypatch.setattr(nls.each._Training, "_train_epoch", None)  # nothing is left to train
    table = run_grid(grid, store=tmp_path, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", f"{grid.cells[0].id}.json"]
    monkeypatch.undo()
    pd.testing.assert_frame_equal(
        table.drop(columns="seconds"), run_grid(grid, workers=1).drop(columns="seconds"), check_exact=True
    )


def test_workers_with_another_engine_are_found(monkeypatch):
    train = nls.chunk.train_chunk
    monkeypatch.setattr(nls.engine, "train_chunk", lambda *rest: [record | {"engine": 99} for record in train(*rest)])
    with pytest.raises(WorkerError, match="all workers must have one version of nls, one answered with engine 99"):
        run_grid(Grid(**QUICK), workers=1)


def test_planned_chunks_leave_torn_ones_alone():
    old = Grid(smooth_rate=[0.4, 0.2, 0.0, -0.2, -0.4], **QUICK)
    ids = [cell.id for cell in old]
    grid = Grid(smooth_rate=[-0.01 * i for i in range(1, 29)], **QUICK) + old
    stored = {name: {"chunk": ids} for name in ids[:3]}
    chunks = [[cell.id for cell in part] for part in plan_chunks(grid, lambda cell: stored.get(cell.id))]
    assert [chunk for chunk in chunks if set(chunk) & set(ids)] == [ids]


def test_a_device_decides_who_is_counted(monkeypatch):
    counted = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nls.engine, "_count_workers", lambda workers, on_gpu: counted.append(on_gpu) or 1)
    monkeypatch.setattr(nls.engine._Run, "finish", lambda self: 1 / 0)
    for device, grid in (
        ("cpu", Grid(**IMAGES)),
        ("cuda", Grid(**QUICK)),
        (None, Grid(**QUICK)),
        (None, Grid(**IMAGES)),
    ):
        with pytest.raises(ZeroDivisionError):
            run_grid(grid, device=device)
    assert counted == [False, True, False, True]
    with pytest.raises(ValueError, match="device must be 'cpu', 'cuda' or 'cuda:0' and so on, got 'tpu'"):
        run_grid(Grid(**QUICK), device="tpu")
