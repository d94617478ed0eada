import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import nls
from benchmarks import gpu, measure, plain, table
from benchmarks.measure import Sample, Worker, WorkerError, interleave, peak_memory, ratio, spread, time_call
from nls.losses import gls_loss
from nls.noise import cifar10_asymmetric_transition
from nls.training import fit_stack, seeded_generator

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = table.Options(quick=True, repeats=1)


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def pass_by(self, amount):
        self.now += amount


def test_variants_alternate_and_every_other_repetition_reverses_their_order():
    seen = []
    variants = {name: lambda name=name: seen.append(name) or Sample(1.0, 1.0) for name in "abc"}
    samples = interleave(variants, 4)
    assert "".join(seen) == "abc" + "abc" + "cba" + "abc" + "cba"  # the first three warm up
    assert {name: len(found) for name, found in samples.items()} == dict.fromkeys("abc", 4)
    seen.clear()
    interleave(variants, 1, warm=False)
    assert seen == ["a", "b", "c"]


def test_samples_of_one_index_ran_side_by_side():
    clock = iter(range(100))
    samples = interleave({name: lambda: Sample(next(clock), 0.0) for name in "ab"}, 3, warm=False)
    assert [int(s.cpu) for s in samples["a"]] == [0, 3, 4]
    assert [int(s.cpu) for s in samples["b"]] == [1, 2, 5]


def test_no_repetitions_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        interleave({}, 0)


def test_a_call_is_timed_on_both_clocks_and_divided_by_its_number():
    cpu, wall = Clock(), Clock()

    def call():
        cpu.pass_by(2.0)
        wall.pass_by(3.0)

    assert time_call(call, 4, cpu_clock=cpu, wall_clock=wall) == Sample(2.0, 3.0)
    assert cpu.now == 8.0
    assert Sample(2.0, 3.0).per(4) == Sample(0.5, 0.75)


def test_the_ratio_is_the_median_of_the_pairs_with_the_extremes():
    baseline = [Sample(cpu, 100.0) for cpu in (10.0, 12.0, 30.0, 8.0, 9.0)]
    ours = [Sample(cpu, 50.0) for cpu in (1.0, 2.0, 3.0, 4.0, 1.0)]
    assert ratio(baseline, ours, "cpu") == (9.0, 2.0, 10.0)  # of 10, 6, 10, 2 and 9
    assert ratio(baseline, ours, "wall") == (2.0, 2.0, 2.0)
    assert spread([5.0, 1.0, 3.0, 4.0]) == (3.5, 1.0, 5.0)


def test_a_slow_spell_of_the_machine_cancels_in_the_ratio():
    slow = [1, 1, 7, 7, 1]
    found = ratio([Sample(3.0 * s, 0.0) for s in slow], [Sample(1.0 * s, 0.0) for s in slow], "cpu")
    assert found == (3.0, 3.0, 3.0)


@pytest.mark.parametrize(("seconds", "at_least", "calls"), [(1.0, 5.0, 6), (9.0, 5.0, 1), (0.25, 50.0, 220)])
def test_short_calls_are_repeated_until_they_last(seconds, at_least, calls):
    clock = Clock()
    found = measure.calls_for(lambda: clock.pass_by(seconds), at_least, cpu_clock=clock, wall_clock=clock)
    assert found in (calls, calls + 1)  # a tenth more than needed, rounded up


@pytest.mark.parametrize(
    ("kind", "value", "gate", "verdict"),
    [
        ("ratio", 5.0, 5.0, table.PASS),
        ("ratio", 4.9, 5.0, table.BELOW),
        ("ratio", 4.9, None, ""),
        ("memory", 2.1, 2.1, table.PASS),
        ("memory", 2.2, 2.1, table.BELOW),
        ("note", None, 1.0, ""),
    ],
)
def test_verdicts(kind, value, gate, verdict):
    assert table.Row("", "", kind=kind, value=value, gate=gate).judge(quick=False).verdict == verdict


def test_a_quick_run_never_passes():
    assert table.Row("", "", value=9.0, gate=5.0).judge(quick=True).verdict == table.MEANINGLESS


def test_a_row_holds_medians_of_both_sides_and_shows_them():
    ours, baseline = [Sample(0.001, 0.01), Sample(0.003, 0.01), Sample(0.002, 0.01)], [Sample(0.02, 5.0)] * 3
    row = table.ratio_row("name", "a against b", ours, baseline, sizes="3x4", unit="call", target=12.0, gate=9.0).judge(
        False
    )
    assert (row.ours["cpu"], row.baseline["wall"], row.repeats, row.verdict) == (0.002, 5.0, 3, table.PASS)
    shown = table.cells(row)
    assert shown[2:] == ["3x4; cpu, call; n = 3", "2 ms", "20 ms", "10 (6.67 to 20)", "at least 9 (target 12)", "PASS"]
    page = table.markdown([row], {"cpu": "a chip"}, "2030-01-02", quick=False)
    assert "| cpu | a chip |" in page
    assert "Measured on 2030-01-02" in page
    widths = {line.count("|") for line in page.splitlines() if line.startswith(("| name", "| row"))}
    assert widths == {9}


def test_what_is_missing_is_named():
    assert table.need("nls.losses", "gls_loss", "reduction") is gls_loss
    for args, text in (
        (("nls.losses", "other"), r"nls\.losses\.other"),
        (("nls.nothing", "other"), r"nls\.nothing\.other"),
        (("nls.losses", "gls_loss", "speed"), r"nls\.losses\.gls_loss\(speed=\)"),
    ):
        with pytest.raises(table.MissingError, match=text):
            table.need(*args)


def prepare_two_blocks():
    def call():
        first = np.ones(64 << 20, np.uint8)
        return first + first  # only one of the two outlives the call

    return call


def fail(text):
    raise KeyError(text)


def test_workers_work_together_and_report_their_errors():
    with Worker() as first, Worker() as second:
        assert first.call(os.getpid) != second.call(os.getpid) != os.getpid()
        assert first.call(torch.get_num_threads) == 1
        both = measure.time_together((first, second), measure.time.sleep, 0.2)
        with pytest.raises(WorkerError, match="KeyError: 'what'"):
            first.call(fail, "what")
        assert first.call(abs, -2) == 2
    # One after the other would take 0.4 s; asleep they use no processor.
    assert both.wall >= 0.2
    assert both.cpu < both.wall


def test_peak_memory_counts_what_a_call_adds():
    assert 2 * 64 - 4 < peak_memory(prepare_two_blocks) / 2**20 < 2 * 64 + 16


@pytest.mark.parametrize("rate", [0.8, 0.0, -0.4, -8.0])
def test_the_plain_loss_is_the_generalised_one(rate):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(17, 5, dtype=torch.float64, generator=generator)).requires_grad_()
    labels = torch.randint(5, (17,), generator=generator)
    released, ours = plain.plain_loss(logits, labels, rate), gls_loss(logits, labels, rate)
    (expected,), (found,) = (torch.autograd.grad(loss, logits) for loss in (ours, released))
    assert abs(float((released - ours).detach())) < 1e-13
    assert float((found - expected).abs().max()) < 1e-14


def test_the_plain_noise_follows_its_matrix():
    transition, count = cifar10_asymmetric_transition(0.4).numpy(), 1500
    labels = np.repeat(np.arange(10), count)
    noisy = plain.plain_noise(labels, transition, 0)
    rates = np.stack([np.bincount(noisy[labels == label], minlength=10) / count for label in range(10)])
    error = np.sqrt(transition * (1 - transition) / count)
    assert (np.abs(rates - transition) <= 5 * error).all()
    assert (noisy == plain.plain_noise(labels, transition, 0)).all()
    assert (noisy != plain.plain_noise(labels, transition, 1)).any()


@pytest.mark.parametrize("per_class", [False, True])
def test_the_plain_instance_noise_has_its_rate_and_depends_on_the_features(per_class):
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32).repeat(100, 0)
    labels = np.arange(40).repeat(100) % 4
    noisy = plain.plain_instance_noise(features, labels, 0.3, 4, 0, per_class=per_class)
    flipped = (noisy != labels).mean()
    assert abs(flipped - 0.3) < 5 * np.sqrt(0.3 * 0.7 / len(labels))
    # Rows of equal features flip mostly to one class, which the class alone does not fix.
    groups = [
        (label[0], kept[kept != label]) for label, kept in zip(np.split(labels, 40), np.split(noisy, 40), strict=True)
    ]
    counts = [np.bincount(flips, minlength=4) for _, flips in groups]
    assert np.mean([count.max() / count.sum() for count in counts]) > 0.6
    assert len({(label, count.argmax()) for (label, _), count in zip(groups, counts, strict=True)}) > 4


def test_the_plain_loader_pads_crops_flips_and_normalises():
    images = torch.full((6, 3, 32, 32), 255, dtype=torch.uint8)
    ((batch, labels),) = plain.plain_loader(images, torch.arange(6), batch_size=6)
    assert batch.shape == (6, 3, 32, 32)
    assert sorted(labels.tolist()) == list(range(6))
    mean, std = (torch.tensor(values)[:, None, None] for values in (plain.CIFAR_MEAN, plain.CIFAR_STD))
    grey = batch * std + mean
    assert bool(((grey - 1).abs().lt(1e-5) | grey.abs().lt(1e-5)).all())  # white, or the black of the padding
    assert 0 < float((grey < 0.5).float().mean()) < 0.4


def test_the_plain_loop_trains_what_the_stack_trains():
    generator = torch.Generator().manual_seed(1)
    features, labels = torch.randn(50, 4, generator=generator), torch.randint(3, (3, 50), generator=generator)
    rates, options = torch.tensor([0.4, 0.0, -0.4]), {"epochs": 3, "learning_rate": 0.05}
    fit = fit_stack(
        features, labels, rates, num_classes=3, hidden=(6, 5), batch_size=16, optimizer="sgd", seed=3, **options
    )
    start = type(fit.stack)((4, 6, 5, 3), 1, seeded_generator(3, "init")).member(0)
    for i, rate in enumerate(rates.tolist()):
        model = plain.plain_mlp((4, 6, 5, 3), start)
        batches = plain.shuffled(features, labels[i], 16, seeded_generator(3, "order"))
        plain.train_model(model, batches, rate, **options)
        found = [parameter.detach() for parameter in model.parameters()]
        expected = [part for weight, bias in fit.stack.member(i) for part in (weight.T, bias)]
        assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) < 1e-5
        assert float((found[0] - start[0][0].T).abs().max()) > 1e-2


def test_the_rows_of_a_gpu_can_be_measured_on_a_cpu():
    try:
        table.need("nls.each", "fit_each")
    except table.MissingError:
        pytest.skip("fit_each is not there yet")
    longer = ("a longer run", 10, 3)
    rows = gpu.measure_network("cnn", 16, longer, device="cpu", count=32, repeats=1, compiled=False, workers=0)
    assert [row.name for row in rows] == ["gpu, cnn, batch 16, eager", "gpu, cnn, batch 16, eager, a longer run"]
    one, many = rows
    assert many.ours["wall"] == pytest.approx(30 * one.ours["wall"])
    assert many.note.startswith("EXTRAPOLATED")
    assert many.value == pytest.approx(one.value)


def test_without_a_gpu_one_line_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (row,) = gpu.measure_gpu(OPTIONS)
    assert row.compared == "no GPU: not measured"


def run(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT.parent)


def test_a_quick_run_prints_every_row_and_writes_both_files(tmp_path):
    finished = run(
        "--quick", "--repeats", "1", "--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "the numbers are meaningless" in finished.stdout
    written = json.loads(
        (tmp_path / "r.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} in the JSON")
    )
    assert written["quick"] is True
    assert {"cpu", "cores", "python", "torch", "numpy", "nls"} <= set(written["machine"])
    names = [row["name"] for row in written["rows"]]
    assert len(set(names)) == len(names)
    topics = (
        "loss",
        "fused loss",
        "peak memory",
        "loss, cost of K",
        "noise",
        "pipeline",
        "stack",
        "cnn",
        "grid",
        "gpu",
    )
    missing = [row["name"] for row in written["rows"] if row["verdict"] == table.MISSING]
    for topic in topics:
        assert any(topic in name for name in names), topic
    assert not missing
    for row in written["rows"]:
        if row["kind"] in ("ratio", "cost", "memory"):
            assert row["verdict"] == table.MEANINGLESS
            assert row["low"] <= row["value"] <= row["high"]
            assert row["compared"]
            assert row["sizes"]
            assert row["unit"]
            assert row["repeats"] >= 1
        assert row["name"] in (tmp_path / "r.md").read_text()
    gates = {row["name"]: row["gate"] for row in written["rows"] if row["gate"]}
    assert len(gates) >= 12
    assert str(ROOT) not in (tmp_path / "r.json").read_text() + (tmp_path / "r.md").read_text()


def test_what_crashes_or_falls_below_its_gate_sets_the_exit_status(monkeypatch, capsys):
    from benchmarks import run as command

    bad = table.Row(
        "bad",
        "a against b",
        value=1.0,
        low=1.0,
        high=1.0,
        gate=5.0,
        target=8.0,
        ours={"cpu": 1.0},
        baseline={"cpu": 1.0},
    )
    benchmarks = {
        "slow": lambda _: [bad],
        "broken": lambda _: fail("x"),
        "absent": lambda _: table.need("nls", "nothing"),
    }
    monkeypatch.setattr(command, "select", lambda names: [table.Benchmark(name, benchmarks[name]) for name in names])
    assert command.main(["--only", "slow"]) == 0
    assert command.main(["--only", "slow", "--gate"]) == 1
    assert command.main(["--only", "absent", "--gate"]) == 0
    assert command.main(["--only", "slow", "broken", "--gate"]) == 2
    out = capsys.readouterr().out
    assert "below gate" in out
    assert "broken: KeyError: 'x'" in out
    assert "absent: missing: nls.nothing" in out


@pytest.mark.parametrize(
    ("arguments", "text"), [(["--repeats", "4"], "at least 5, got 4"), (["--only", "typo"], "unknown typo")]
)
def test_wrong_arguments_are_refused(arguments, text):
    finished = run(*arguments)
    assert finished.returncode != 0
    assert text in finished.stderr


def test_rows_are_stored_without_commas_and_with_their_curve(tmp_path, monkeypatch):
    monkeypatch.setenv("NLS_RESULTS", str(tmp_path))
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "README.md").write_text("# card\n")
    sample = [measure.Sample(cpu=2.0, wall=3.0)] * 5
    half = [measure.Sample(cpu=1.0, wall=1.0)] * 5
    rows = [
        table.ratio_row("stack, small, one core", "a, b", half, sample, sizes="50,000 labels, K = 10", unit="call"),
        table.cost_row("stack, cost of 280 cells", "ours", half, unit="call"),
        table.cost_row("noise, cost of size, 10M", "ours", half, unit="call"),
        table.note_row("gpu", "no GPU: not measured"),
    ]
    nls.save_results(table.tidy(rows, table.describe_machine(), "2026-01-01"), "speed", by="topic")
    back = nls.load_results("speed").set_index("name")
    assert len(back) == 3
    assert back.loc["stack small one core", ["value", "ours", "baseline"]].tolist() == [2.0, 1.0, 2.0]
    assert back.loc["stack small one core", "sizes"] == "50000 labels K = 10"
    assert back.loc["stack cost of 280 cells", ["curve", "size"]].tolist() == ["cells", 280]
    assert back.loc["noise cost of size 10M", ["curve", "size"]].tolist() == ["labels", 10**7]
