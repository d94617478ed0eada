"""Cuts: the numbers of a run are those of a plain loop, rules choose what they say, studies are whole."""

import pandas as pd
import pytest
import torch

from nls.cuts import MODULES, PLACES, choose_cut, cut_run, cut_study, live_runs, paired
from nls.layer_runs import _Split, layer_run
from nls.probes import draw_clean, probe
from nls.training import seeded_generator

SMALL = {"num_examples": 200, "epochs": 2, "noise": "pair", "noise_rate": 0.4, "seed": 1}


@pytest.fixture(scope="module")
def found():
    return pd.DataFrame(cut_run(network="cnn", measured="0 1", draws=2, **SMALL))


def test_a_run_agrees_with_the_run_of_layers(found):
    rows = layer_run(network="cnn", measured="1", draws=2, **SMALL)
    other = pd.DataFrame(rows)
    for epoch in (1, 2):
        probes = other[(other["what"] == "probe") & (other["epoch"] == epoch)].sort_values("depth")["accuracy"]
        ours = found[(found["epoch"] == epoch) & (found["pooling"] == "mean")].groupby("depth")["accuracy"].mean()
        assert ours.tolist() == pytest.approx(probes.tolist(), abs=1e-6)
    network = other[other["what"] == "network"].set_index("epoch")
    output = found[found["place"] == "output"].set_index("epoch")
    for column in ("accuracy", "memorised"):
        assert output[column].tolist() == pytest.approx(network[column].tolist(), abs=1e-6)
    fresh = other[other["what"] == "random"].sort_values("depth")["accuracy"]
    ours = found[(found["epoch"] == 0) & (found["pooling"] == "mean")].groupby("depth")["accuracy"].mean()
    assert ours.tolist() == pytest.approx(fresh.tolist(), abs=1e-6)


def test_the_raw_input_and_its_error_are_those_of_a_probe(found):
    split = _Split("digits_images", None, "pair", 0.4, 1, 200, 0)
    places = draw_clean(split.pool_labels, 10, seeded_generator(1, "clean 1"), num_classes=10)
    by_hand = probe(split.pool[places].flatten(1), split.pool_labels[places], split.test.flatten(1), num_classes=10)
    row = found[(found["place"] == "input") & (found["draw"] == 1)].iloc[0]
    right = (by_hand.predicted == split.test_labels).double().mean().item()
    assert (row["accuracy"], row["error"]) == pytest.approx((right, by_hand.error.item()), abs=1e-6)
    assert row[["epoch", "depth"]].tolist() == [0, 0]


def test_each_place_has_its_readings_and_depth(found):
    at = found[(found["epoch"] == 2) & (found["draw"] == 0)]
    assert at[["place", "depth", "pooling"]].values.tolist() == [
        ["output", 4, "flatten"],
        *[[f"layer {i}", i, "mean"] for i in (1, 2, 3)],
        *[[f"layer {i}", i, "flatten"] for i in (1, 2, 3)],
        ["logits", 4, "flatten"],
    ]
    whole, mean = (at[(at["pooling"] == p) & (at["place"] == "layer 1")]["error"].item() for p in ("flatten", "mean"))
    assert whole < mean
    assert {network: len(names) for network, names in MODULES.items()} == {n: len(p) for n, p in PLACES.items()}


def test_rules_choose_what_they_say():
    cuts = ([(0.9, 3), (0.6, 1), (0.5, 2)], [(0.5, 1), (0.8, 2), (0.7, 3)], [(0.6, 2), (0.7, 3), (0.9, 1)])
    rows = pd.DataFrame(
        [
            {"seed": seed, "draw": 0, "place": f"layer {i}", "pooling": "mean", "accuracy": accuracy, "error": error}
            for seed, known in enumerate(cuts)
            for i, (accuracy, error) in enumerate(known, 1)
        ]
    )
    extra = rows.iloc[:1].assign(place="output", accuracy=1.0, error=0)
    rows = pd.concat([rows, extra], ignore_index=True)
    chosen = {rule: choose_cut(rows, rule).sort_values("seed") for rule in ("leave-one-out", "test", "other seeds")}
    assert chosen["leave-one-out"]["place"].tolist() == ["layer 2", "layer 1", "layer 3"]
    assert chosen["test"]["accuracy"].tolist() == [0.9, 0.8, 0.9]
    # Means over the other two seeds: (.55, .75, .8), (.75, .65, .7), (.7, .7, .6); of equal ones the first.
    assert chosen["other seeds"]["place"].tolist() == ["layer 3", "layer 1", "layer 1"]
    with pytest.raises(ValueError, match="two seeds or more for rule='other seeds', got 1"):
        choose_cut(rows[rows["seed"] == 0], "other seeds")
    with pytest.raises(ValueError, match="each cut once"):
        choose_cut(pd.concat([rows, rows]))
    with pytest.raises(ValueError, match="rule must be one of"):
        choose_cut(rows, "best")


def test_differences_are_of_the_seeds_that_both_have():
    first, second = pd.Series([0.5, 0.7, 0.9], index=[0, 1, 2]), pd.Series([0.6, 0.2], index=[2, 1])
    gap = paired(first, second)
    assert (gap.mean, gap.n) == pytest.approx((0.4, 2))
    assert paired(first, second, test_ratio=1.0).high > gap.high
    nothing = paired(first, pd.Series(dtype=float))
    assert nothing.n == 0
    assert not nothing.above_zero
    assert not nothing.below_zero


def test_the_study_has_each_run_once():
    runs = cut_study(2, 3)
    assert len({tuple(sorted(map(str, run.items()))) for run in runs}) == len(runs) == 2 * 3 + 3 * 6 + 3 * 2 + 2 * 6
    assert {run["network"] for run in live_runs([4])} == {"cnn", "mlp"}
    assert {run["seed"] for run in live_runs([4, 5])} == {4, 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "resnet34"}, "network must be one of"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"noise": "white"}, "noise must be one of"),
    ],
)
def test_what_cannot_be_run_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        cut_run(**SMALL | {"network": "mlp"} | change)


def test_resnet_is_cut_at_eight_places():
    rows = pd.DataFrame(cut_run(num_examples=40, epochs=1, draws=1, measured=""))
    assert rows[rows["pooling"] == "mean"]["place"].tolist() == [f"layer {i}" for i in range(1, 9)]
    last = rows[rows["place"].isin(["layer 7", "layer 8"])].pivot_table(
        index="place", columns="pooling", values="error"
    )
    assert torch.allclose(torch.tensor(last["mean"].to_numpy()), torch.tensor(last["flatten"].to_numpy()))
