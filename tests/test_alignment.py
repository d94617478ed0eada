"""Alignment: functions, networks and measure against hand-made values and oracles."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from nls import alignment
from nls.alignment import (
    ENTRIES,
    NETWORKS,
    NO_FUNCTION,
    PREDICTORS,
    SET_FUNCTIONS,
    chance_of_order,
    draw_sample,
    ladder,
    median_interval,
    needs,
    predictions,
    rank_correlations,
    sample_complexity,
    set_function,
    survive,
)
from nls.clean_sets import check_disjoint
from nls.members import Members, fit_members, patches, relative_error


def generator():
    return torch.Generator().manual_seed(0)


# Worlds


@pytest.mark.parametrize("name", SET_FUNCTIONS)
def test_set_functions_have_mean_0_and_variance_1(name):
    values = set_function(name, torch.rand(200000, ENTRIES, generator=generator()))
    assert abs(float(values.mean())) < 4 / math.sqrt(200000)
    assert float(values.var()) == pytest.approx(1, abs=0.02)


def test_set_functions_by_hand():
    numbers = torch.tensor([0.2, 0.9, 0.6])
    found = {name: float(set_function(name, numbers)) for name in SET_FUNCTIONS}
    assert found["max"] == pytest.approx((0.9 - 0.75) / math.sqrt(3 / 80))
    assert found["sum"] == pytest.approx(0.2 * math.sqrt(4))
    assert found["first"] == pytest.approx(-0.3 * math.sqrt(12))
    assert found["parity"] == -1
    with pytest.raises(ValueError, match=r"name must be one of .*'parity'.* got 'median'"):
        set_function("median", numbers)


def test_targets_and_noises_of_sets_are_independent():
    sample = draw_sample("sets", 20000, [3])
    for target, noise in itertools.product(SET_FUNCTIONS, (*SET_FUNCTIONS, NO_FUNCTION)):
        values = torch.stack([sample.targets[target][0], sample.noises[noise][0]])
        assert abs(float(torch.corrcoef(values)[0, 1])) < 4 / math.sqrt(20000)
    numbers = sample.inputs / math.sqrt(12) + 0.5
    assert torch.allclose(set_function("max", numbers[..., 0]), sample.targets["max"], atol=1e-4)
    assert torch.allclose(set_function("max", numbers[..., 1]), sample.noises["max"], atol=1e-4)


def test_images_show_their_classes():
    sample = draw_sample("images", 300, [0])
    marks = (sample.inputs[0, :, 1] + 1) / 4
    by_place = [marks[sample.targets["place"][0] == k] for k in range(10)]
    for k, (row, column) in enumerate(alignment._PLACES):
        outside = by_place[k].clone()
        outside[:, row : row + 3, column : column + 3] = 0
        assert not bool(outside.any())
        assert bool((by_place[k].flatten(1).sum(1) >= 3).all())
    cut = {
        (int(k), "".join(str(int(v)) for v in marks[i, r : r + 3, c : c + 3].flatten()))
        for i, (k, (r, c)) in enumerate(
            (sample.targets["shape"][0, i], alignment._PLACES[sample.targets["place"][0, i]]) for i in range(300)
        )
    }
    assert cut == set(enumerate(alignment._SHAPES))
    assert len(set(alignment._SHAPES)) == len(set(alignment._PLACES)) == 10
    assert sample.targets["digit"].dtype == torch.int64


def test_parts_share_no_image_and_seeds_differ():
    parts = {part: draw_sample("images", 340, [1], part).inputs[0, :, 0] for part in ("train", "clean", "test")}
    digits = {name: values[:200] for name, values in parts.items()}
    check_disjoint(digits)
    train, rungs = (draw_sample("sets", 50, [1, 2], part).inputs for part in ("train", "ladder"))
    assert not torch.equal(train[0], train[1])
    assert not torch.equal(train, rungs)
    assert torch.equal(train[1], draw_sample("sets", 50, [2]).inputs[0])


def test_samples_refuse_what_they_cannot_draw():
    with pytest.raises(ValueError, match=r"count must be at most 3\d\d, what test has of images, got 1000"):
        draw_sample("images", 1000, [0], "test")
    with pytest.raises(ValueError, match="world must be one of 'sets', 'images'"):
        draw_sample("graphs", 5, [0])
    with pytest.raises(ValueError, match="part must be one of"):
        draw_sample("sets", 5, [0], "validation")


# Networks


def test_patches_are_a_convolution_around_the_edges():
    images = torch.randn(4, 2, 8, 8, generator=generator())
    weight = torch.randn(5, 2, 3, 3, generator=generator())
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="circular")
    expected = torch.nn.functional.conv2d(padded, weight).flatten(2).mT
    assert torch.allclose(patches(images) @ weight.flatten(1).T, expected, atol=1e-4)


@pytest.mark.parametrize(("kind", "shape"), [(k, (6, 2)) for k in NETWORKS["sets"]] + [("patches", (2, 8, 8))])
def test_members_are_networks_of_their_own(kind, shape):
    """Member b reads the examples of seed b modulo S, and equals a plain network of its parameters."""
    network = Members(kind, 6, shape, 3)
    inputs = torch.randn(2, 5, *shape, generator=generator())
    outputs = network(network.read(inputs))
    for b in range(6):
        (w, v), rest = (network.weights[0][b], network.biases[0][b]), range(1, len(network.weights))
        x = network.read(inputs)[b % 2]
        hidden = ((x.flatten(1) if kind == "MLP" else x) @ w + v).relu()
        for i in rest:
            hidden = hidden @ network.weights[i][b] + network.biases[i][b]
            if i == 1 and kind != "MLP":
                hidden = hidden.amax(1) if kind == "max set" else hidden.mean(1)
            elif i < len(network.weights) - 1:
                hidden = hidden.relu()
        assert torch.allclose(outputs[b], hidden, atol=1e-5)


@pytest.mark.parametrize("kind", ["max set", "sum set"])
def test_set_networks_are_blind_to_the_order(kind):
    network, sets = Members(kind, 1, (6, 2), 1), torch.randn(1, 9, 6, 2, generator=generator())
    turned = sets[:, :, torch.randperm(6, generator=generator())]
    assert torch.allclose(network(sets), network(turned), atol=1e-6)
    assert not torch.allclose(*(Members("MLP", 1, (6, 2), 1)(values) for values in (sets, turned)), atol=1e-3)


def test_members_train_as_they_would_alone():
    sample = draw_sample("sets", 40, [0, 1])
    both, alone = Members("max set", 2, (6, 2), 1), Members("max set", 2, (6, 2), 1)
    with torch.no_grad():
        for mine, theirs in zip(alone.parameters(), both.parameters(), strict=True):
            mine.copy_(theirs)
            mine[1] = theirs[0]
    fit_members(both, sample.inputs, sample.targets["max"], steps=20)
    fit_members(alone, sample.inputs[[0, 0]], sample.targets["max"][[0, 0]], steps=20)
    assert torch.allclose(both.weights[0][0], alone.weights[0][1], atol=1e-5)
    assert not torch.allclose(both.weights[0][0], both.weights[0][1])


def test_classes_are_trained_with_cross_entropy():
    sample = draw_sample("images", 128, [0])
    network = Members("MLP", 1, (2, 8, 8), 10)
    fit_members(network, sample.inputs, sample.targets["place"], steps=80)
    assert float(relative_error(network(sample.inputs), sample.targets["place"])) < 0.1


def test_relative_error_by_hand():
    assert relative_error(torch.tensor([[1.0], [1.0]]), torch.tensor([0.0, 4.0])).item() == pytest.approx(5 / 4)
    scores = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    assert relative_error(scores, torch.tensor([0, 1, 0, 1])).item() == pytest.approx(0.5)


# The measure


def test_sample_complexity_by_hand():
    assert sample_complexity([8, 16, 32], [0.5, 0.2, 0.1], 0.3) == pytest.approx(8 * 2 ** (np.log(5 / 3) / np.log(2.5)))
    assert sample_complexity([8, 16], [0.1, 0.05], 0.3) == 8
    assert math.isinf(sample_complexity([8, 16], [0.1, 0.4], 0.3))  # the last rung decides
    assert sample_complexity([8, 16, 32], [0.1, 0.4, 0.2], 0.3) > 16  # luck at the first rung does not count
    assert math.isinf(sample_complexity([8, 16], [0.5, math.nan], 0.3))
    with pytest.raises(ValueError, match="errors must hold one value for each of 2 sizes, got 1"):
        sample_complexity([8, 16], [0.1], 0.3)
    with pytest.raises(ValueError, match="delta must be"):
        sample_complexity([8], [0.1], 0.0)


def test_a_smaller_error_needs_no_fewer_examples():
    errors = torch.rand(50, 6, generator=generator()).cumsum(1).flip(1).tolist()
    for row in errors:
        found = [sample_complexity([2**i for i in range(6)], row, delta) for delta in (0.2, 0.5, 1.0, 2.0)]
        assert found == sorted(found, reverse=True)


def test_median_intervals_cover():
    rng = np.random.default_rng(0)
    covered = np.mean([(i := median_interval(rng.normal(size=10)))[1] <= 0 <= i[2] for _ in range(2000)])
    assert 0.95 - 3 * math.sqrt(0.05 * 0.95 / 2000) < covered
    assert median_interval([1, 2, 3])[0] == 2
    assert all(math.isnan(end) for end in median_interval([1, 2, 3])[1:])
    assert median_interval([1.0, 2.0, math.inf, math.inf])[0] == 2
    assert math.isinf(median_interval([1.0, math.inf, math.inf])[0])
    assert median_interval(range(10))[1:] == (1, 8)


def test_ladder_finds_what_was_built_in():
    sizes, seeds = [8, 32], [0, 1]
    table = pd.concat(ladder("sets", network, sizes, seeds, steps=150) for network in NETWORKS["sets"])
    assert len(table) == 3 * len(SET_FUNCTIONS) * 4
    last = table[table["size"] == 32].groupby(["network", "function"])["error"].mean()
    assert last["max set", "max"] < last["sum set", "max"] < last["MLP", "max"]
    assert last["sum set", "sum"] < last["MLP", "sum"] < 0.5
    with pytest.raises(ValueError, match=r"sizes must rise, got \[32, 8\]"):
        ladder("sets", "MLP", [32, 8], [0])
    with pytest.raises(ValueError, match="network must be one of 'patches', 'MLP', got 'max set'"):
        ladder("images", "max set", [8], [0])


# Noise


@pytest.fixture(scope="module")
def left():
    return survive("sets", "sum set", [0.0, 0.8], [0, 1], targets=["sum", "max"], num_noisy=128, steps=150)


def test_survive_without_noise_is_training_on_clean_labels(left):
    clean = left[left["ratio"] == 0].set_index(["target", "noise", "seed"]).sort_index()
    for target in ("sum", "max"):  # labels are the same whatever the noise, but initialisations differ
        assert clean.loc[target, "own"].max() < (0.05 if target == "sum" else 0.6)
    assert (left.groupby(["target", "seed"])["input"].nunique() == 1).all()
    assert set(left["noise"]) == {*SET_FUNCTIONS, NO_FUNCTION}


def test_noise_that_is_learnt_costs_more(left):
    noisy = left[left["ratio"] == 0.8].set_index(["target", "noise", "seed"]).sort_index()["own"].loc["sum"]
    assert noisy["sum"].mean() > noisy["random"].mean() + 0.3


def test_linear_models_see_neither_training_nor_test_examples(monkeypatch):
    drawn = []
    inner = alignment.draw_sample
    monkeypatch.setattr(alignment, "draw_sample", lambda *args: drawn.append((args[3], s := inner(*args))) or s)
    survive("sets", "MLP", [0.5], [0], targets=["sum"], steps=1)
    assert [part for part, _ in drawn] == ["train", "clean", "test"]
    check_disjoint({part: sample.inputs[0] for part, sample in drawn})


def test_images_are_not_their_own_noise():
    table = survive("images", "MLP", [0.5], [0], num_noisy=64, num_clean=32, steps=2)
    assert set(zip(table["target"], table["noise"], strict=True)) == {
        (t, n) for t in ("digit", "place", "shape") for n in ("digit", "place", "shape", "random") if t != n
    }
    with pytest.raises(ValueError, match="ratios must be"):
        survive("sets", "MLP", [1.5], [0])


# What the measure predicts


def made(known=None):
    """Return ladders and survivals of one network in which the error left is the need of the target, in closed form."""
    cost = {"max": 8, "sum": 64, "first": 256}
    rungs = pd.DataFrame(
        [
            {"network": "MLP", "function": f, "seed": s, "size": size, "error": 0.5 * n / size}
            for f, n in cost.items() for s in (0, 1) for size in (4, 16, 512)
        ]
    )  # fmt: skip
    rows = [
        {"network": "MLP", "target": f, "noise": g, "ratio": 0.5, "seed": s, "own": n / cost.get(g, 1024), "probe": n,
         "untrained": 1.0 / n}
        for f, n in cost.items() for g in (*cost, NO_FUNCTION) for s in (0, 1)
    ]  # fmt: skip
    return rungs, pd.DataFrame(rows)


def test_predictions_by_hand():
    rungs, rows = made()
    assert needs(rungs, 0.5).groupby("function")["need"].first().to_dict() == pytest.approx(
        {"first": 256, "max": 8, "sum": 64}
    )
    table = predictions(rungs, rows, 0.5, rung=16)
    row = table[(table["target"] == "sum") & (table["noise"] == "max")].iloc[0]
    assert [row[f"by_{name}"] for name in PREDICTORS] == pytest.approx([-6, 3, -3, -2, -1 / 64])
    assert table.loc[table["noise"] == NO_FUNCTION, "by_noise"].unique().tolist() == [10]
    strict = predictions(rungs, rows, 0.01, rung=16)  # all but the first are censored: twice the last rung
    assert strict.loc[strict["target"] == "first", "by_target"].unique().tolist() == [-10]
    with pytest.raises(ValueError, match="ladders must hold every network, function and seed of survivals"):
        predictions(rungs[rungs["seed"] == 0], rows, 0.5, rung=16)
    with pytest.raises(ValueError, match="and the rung"):
        predictions(rungs, rows, 0.5, rung=17)


def test_rank_correlations_are_those_of_scipy():
    table = predictions(*made(), 0.5, rung=16)
    found = rank_correlations(table).set_index(["outcome", "predictor", "seed"])["correlation"]
    assert found["own", "difference", 0] == pytest.approx(1)
    assert found["own", "within", 0] == pytest.approx(1)
    assert found["probe", "target", 1] == pytest.approx(1)
    assert found["probe", "untrained", 1] == pytest.approx(-1)
    part = table[table["seed"] == 0]
    for name, outcome in itertools.product(PREDICTORS, ("own", "probe")):
        assert found[outcome, name, 0] == pytest.approx(stats.spearmanr(part[f"by_{name}"], -part[outcome])[0])


def test_chance_of_order_counts_permutations():
    table = predictions(*made(), 0.5, rung=16)
    exact = chance_of_order(table, "own", draws=600)
    assert exact == pytest.approx(1 / 6, abs=0.05)  # three alignments: one order of six is the true one
    assert chance_of_order(table.assign(own=-table["own"]), "own", draws=60) == 1
