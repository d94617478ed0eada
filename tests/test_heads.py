"""Heads trained alone: a run is that of the study of layers, a head is that of a loop, a share has its interval."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nls import gls_loss, heads, mean_interval
from nls.activations import activations
from nls.heads import fit_head, head_run, head_study, outputs, share_interval, stage_ends
from nls.layer_runs import _Split, layer_run
from nls.models import build_network, predict_logits

SMALL = {"num_examples": 200, "warmup_epochs": 2, "epochs": 1, "draws": 2, "noise_rate": 0.4, "seed": 1}


@pytest.fixture(scope="module")
def table():
    rows = head_run(**SMALL, methods="r=0 r=-0.8 r=-0.8:0.5 gce", twin=True, rescue="map")
    return pd.DataFrame(rows)


def test_what_layers_know_is_what_the_study_of_layers_finds(table):
    options = SMALL | {"stage_learning_rate": 0.01, "measured": "2", "per_class": "10"}
    rows = layer_run(**options, methods="r=0 r=-0.8 gce", rescue="map", rescue_per_class="10")
    names = ["method", "epoch", "what", "layer", "depth", "clean_per_class", "accuracy"]
    expected = pd.DataFrame(rows)
    expected = expected[(expected["what"] != "map") | (expected["method"] == "r=0")]  # only the first stage is rescued
    found = table[table["method"].isin(["", "warm-up", "r=0", "r=-0.8", "gce"]) & ~table["what"].isin(["full", "head"])]
    both = [part[names].sort_values(names).reset_index(drop=True) for part in (expected, found)]
    assert len(both[0]) == 31
    pd.testing.assert_frame_equal(*both)


def test_heads_go_on_from_the_end_of_the_warm_up_and_leave_the_body(table):
    data = _Split("digits_images", None, "symmetric", 0.4, 1, 200, 0)
    still = pd.DataFrame(head_run(**SMALL, stage_learning_rate=1e-12, methods="r=-4", co_teaching=False))
    start = still.query("what == 'network' and epoch == 2")["accuracy"].item()
    assert still.query("what == 'head'")["accuracy"].item() == pytest.approx(start)
    body = build_network("cnn", 10, 1, 0).eval()
    for name, value in zip(("pixel_mean", "pixel_std"), (torch.tensor([0.3]), torch.tensor([0.4])), strict=True):
        body.register_buffer(name, value, persistent=False)
    before = {name: value.clone() for name, value in body.state_dict().items()}
    options = {"num_classes": 10, "epochs": 2, "batch_size": len(data.labels), "learning_rate": 0.1, "momentum": 0.9}
    head = fit_head(body, data.features, data.labels, smooth_rate=-0.8, loss_scale=0.5, **options)
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())
    values = activations(body, data.features, ["penultimate"])["penultimate"]
    weight, bias = (before[f"4.{name}"].clone().requires_grad_() for name in ("weight", "bias"))
    optimizer = torch.optim.SGD([weight, bias], lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        (0.5 * gls_loss(values @ weight.T + bias, data.labels, -0.8)).backward()
        optimizer.step()
    torch.testing.assert_close(head.weight, weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(head.bias, bias, rtol=1e-4, atol=1e-6)


def test_each_method_has_a_head_and_the_scale_of_its_loss_counts(table):
    heads_of = table[table["what"].isin(["full", "head"])].set_index(["what", "method"])
    named = ["r=0", "r=-0.8", "r=-0.8:0.5", "gce"]
    assert heads_of.index.tolist() == [(w, m) for m in named for w in ("full", "head")] + [("full", "co-teaching")]
    margins = heads_of.loc["head", "margin"]
    assert margins["r=-0.8"] > margins["r=-0.8:0.5"] > margins["r=0"]
    own = table[(table["what"] == "network") & (table["epoch"] == 3)].set_index("method")["accuracy"]
    assert heads_of.loc["full", "accuracy"].to_dict() == own.to_dict()


def test_the_scale_of_likeness_and_of_co_teaching_are_there(table):
    alike = table[table["what"] == "alike"]
    assert alike.groupby("method")["depth"].apply(list)["twin"] == [1, 2, 3]
    assert alike.groupby("method")["accuracy"].mean()["r=0"] > alike.groupby("method")["accuracy"].mean()["untrained"]
    taught = table[table["method"] == "co-teaching"]
    assert taught[taught["what"] == "network"]["epoch"].tolist() == [1, 2, 3]
    assert taught[taught["what"] == "probe"]["epoch"].unique().tolist() == [3]
    assert 0.4 < taught[taught["what"] == "purity"]["accuracy"].item() < 1


def test_ends_are_the_last_rows_and_the_best_by_noisy_validation(table):
    ends = stage_ends(pd.concat([table.assign(seed=1, noise="a"), table.assign(seed=2, noise="a")]))
    assert ends.index.names == ["noise", "method", "seed"]
    assert len(ends) == 2 * 7  # four stages, co-teaching, and what has no accuracy: the untrained network and the twin
    row = ends.loc["a", "gce", 2]
    curve = table[(table["what"] == "network") & table["method"].isin(["warm-up", "gce"])].sort_values("epoch")
    assert curve["epoch"].tolist() == [1, 2, 3]
    assert row["own"] == curve["accuracy"].iloc[-1]
    assert row["chosen"] == curve["accuracy"].iloc[int(np.argmax(curve["validation"]))]
    of_gce = table[table["method"] == "gce"]
    probes = of_gce[(of_gce["what"] == "probe") & (of_gce["layer"] == "2.2")]
    assert row["probe"] == probes["accuracy"].item()
    assert [row[f"alike_{depth}"] for depth in (1, 2, 3)] == of_gce[of_gce["what"] == "alike"]["accuracy"].tolist()
    assert row["alike"] == row["alike_3"]
    assert row["head_margin"] == of_gce[of_gce["what"] == "head"]["margin"].item()
    assert math.isnan(ends.loc[("a", "co-teaching", 1), "alike"])
    assert math.isnan(ends.loc[("a", "twin", 1), "own"])


def test_outputs_are_those_of_a_loop():
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 5
    rows = []
    for z, y in zip(logits.double().tolist(), labels.tolist(), strict=True):
        p = np.exp(z) / np.exp(z).sum()
        top = sorted(z)
        rows.append((int(np.argmax(z)) == y, -math.log(p[y]), p.max(), top[-1] - top[-2]))
    found = outputs(logits, labels)
    assert list(found) == list(heads.MEASURES)
    assert list(found.values()) == pytest.approx(np.mean(rows, 0))


@pytest.mark.parametrize("test_ratio", [0.0, 1 / 3])
def test_a_share_has_the_interval_of_all_shares_that_fit(test_ratio):
    generator = np.random.default_rng(0)
    whole = generator.normal(2.0, 0.5, 8)
    part = 0.4 * whole + generator.normal(0.0, 0.2, 8)
    found = share_interval(part, whole, test_ratio=test_ratio)
    shares = np.linspace(-1, 2, 30_001)
    kept = [s for s in shares if not _excludes_zero(mean_interval(part - s * whole, test_ratio=test_ratio))]
    assert (found.low, found.high) == pytest.approx((min(kept), max(kept)), abs=2e-4)
    assert found.mean == pytest.approx(part.mean() / whole.mean())
    assert found.n == 8
    turned = share_interval(-part, -whole, test_ratio=test_ratio)
    assert (turned.low, turned.high) == pytest.approx((found.low, found.high))


def _excludes_zero(interval):
    return interval.above_zero or interval.below_zero


def test_a_share_of_nothing_has_no_ends_and_one_run_has_no_interval():
    unsure = share_interval([1.0, 2.0, 3.0], [-1.0, 0.5, 1.0])
    assert (unsure.low, unsure.high) == (-math.inf, math.inf)
    single = share_interval([1.0], [2.0])
    assert single.mean == 0.5
    assert math.isnan(single.low)
    with pytest.raises(ValueError, match="whole must have 2 values as part, got 3"):
        share_interval([1.0, 2.0], [1.0, 2.0, 3.0])


def test_the_study_has_both_noises_and_both_starts():
    runs = head_study(3)
    assert len(runs) == 12
    assert {(run["noise"], run["warmup_epochs"]) for run in runs[:4]} == {
        ("symmetric", 15), ("symmetric", 5), ("cifar10_asymmetric", 15), ("cifar10_asymmetric", 5),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_epochs": 0}, "warmup_epochs must be at least 1"),
        ({"methods": "ls"}, "methods must be one of"),
        ({"rescue": "magic"}, "rescue must be one of"),
    ],
)
def test_what_cannot_be_run_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        head_run(**SMALL | change)


def test_a_head_reads_what_the_last_layer_reads():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    head = fit_head(network, x, torch.arange(9) % 2, num_classes=2, epochs=1, learning_rate=1e-12)
    values = activations(network, x, ["penultimate"])["penultimate"]
    torch.testing.assert_close(predict_logits(head, values), predict_logits(network, x))
