"""Graphs, noise on their numbers, and networks of them against loops and against torch_geometric."""

import ast
import dataclasses
import inspect
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components

import nls.graphs
from nls.graphs import (
    GraphNetwork,
    Graphs,
    connected,
    draw_graphs,
    fit_graphs,
    geometric_batch,
    geometric_network,
    graph_run,
    graph_runs,
    label_name,
    linear_fit,
    mape,
    noisy_targets,
    represent,
)
from nls.runs import run_all
from nls.training import seeded_generator

TINY = {"num_graphs": 48, "num_clean": 24, "num_test": 20, "width": 8, "epochs": 1}


@pytest.fixture(scope="module")
def graphs():
    return draw_graphs(900, (20, 39), seeded_generator(0, "graphs"))


@pytest.fixture(scope="module")
def few():
    return draw_graphs(5, (4, 9), seeded_generator(1, "graphs"))


def padded(graphs, most):
    """Return the same graphs with more empty places."""
    more = most - graphs.features.shape[1]
    pad = torch.nn.functional.pad
    return Graphs(
        pad(graphs.features, (0, more)), pad(graphs.adjacency, (0, more, 0, more)), pad(graphs.present, (0, more))
    )


# Graphs


def test_graphs_are_undirected_connected_and_of_all_sizes(graphs):
    sizes = graphs.present.sum(1)
    assert sizes.unique().tolist() == list(range(20, 40))
    assert torch.equal(graphs.adjacency, graphs.adjacency.mT)
    assert not graphs.adjacency.diagonal(dim1=1, dim2=2).any()
    for edges, n in zip(graphs.adjacency[:200], sizes, strict=False):
        assert connected_components(edges[:n, :n].numpy(), directed=False)[0] == 1
        assert not edges[n:].any()


def test_edges_are_as_many_as_their_probabilities_say(graphs):
    sizes = graphs.present.sum(1)
    density = graphs.adjacency.sum((1, 2)) / (sizes * (sizes - 1))
    # Nine probabilities; those above .25 need no second draw, so their share of graphs and their mean are known.
    high = density[density > 0.25]
    assert abs(float(high.mean()) - 0.6) < 0.01
    assert abs(len(high) - 700) < 30
    spread = float(density.std())
    assert abs(spread - np.std(np.arange(1, 10) / 10)) < 0.02


def test_numbers_are_whole_and_reach_their_top(graphs):
    here = graphs.features[graphs.present]
    assert torch.equal(here, here.round())
    assert (int(here.min()), int(here.max())) == (1, 100)
    assert abs(float(here.mean()) - 50.5) < 4 * 28.9 / len(here) ** 0.5
    assert not graphs.features[~graphs.present].any()
    spread = draw_graphs(300, (20, 39), seeded_generator(0, "graphs"), top=(20, 100)).target("feature")
    assert spread.std() > 15 > 5 > graphs.target("feature").std()
    assert spread.max() <= 100


def test_connected_agrees_with_scipy():
    generator = torch.Generator().manual_seed(3)
    upper = (torch.rand(200, 8, 8, generator=generator) < 0.25).triu(1)
    edges = upper | upper.mT
    found = connected(edges, torch.ones(200, 8, dtype=torch.bool))
    expected = [connected_components(e.numpy(), directed=False)[0] == 1 for e in edges]
    assert found.tolist() == expected
    assert 20 < sum(expected) < 180


def test_targets_are_those_of_loops(few):
    for i in range(len(few)):
        n = int(few.present[i].sum())
        degrees = [sum(bool(few.adjacency[i, u, v]) for v in range(n)) for u in range(n)]
        assert few.target("degree")[i] == max(degrees)
        assert few.target("feature")[i] == max(few.features[i, :n].tolist())


def test_draws_depend_on_the_generator_alone():
    first, second = (draw_graphs(20, (20, 39), seeded_generator(5, "graphs")) for _ in range(2))
    assert torch.equal(first.flat(), second.flat())
    assert not torch.equal(first.flat(), draw_graphs(20, (20, 39), seeded_generator(6, "graphs")).flat())


# Labels


def test_the_ratio_is_the_share_of_noisy_labels_and_draws_are_nested(graphs):
    clean = graphs.target("degree")
    drawn = {
        ratio: noisy_targets(graphs, "degree", "normal", ratio, seeded_generator(2, "noise"), 10.0, 15.0)
        for ratio in (0.0, 0.5, 1.0)
    }
    assert torch.equal(drawn[0.0], clean)
    changed = drawn[0.5] != clean
    assert abs(float(changed.float().mean()) - 0.5) < 4 * 0.5 / 900**0.5
    assert torch.equal(drawn[0.5][changed], drawn[1.0][changed])
    added = drawn[1.0] - clean
    assert abs(float(added.mean()) - 10) < 4 * 15 / 900**0.5
    assert abs(float(added.std()) - 15) < 4 * 15 / (2 * 900) ** 0.5
    assert abs(np.corrcoef(added, clean)[0, 1]) < 4 / 900**0.5


def test_gamma_noise_is_skew_with_mean_zero(graphs):
    added = noisy_targets(graphs, "degree", "gamma", 1.0, seeded_generator(2, "noise"), 15.0) - graphs.target("degree")
    deviation = 15 * 2**0.5
    assert abs(float(added.mean())) < 4 * deviation / 30
    assert abs(float(added.std()) - deviation) < 0.1 * deviation
    assert float(added.min()) >= -30
    skew = float(((added - added.mean()) / added.std()).pow(3).mean())
    assert 0.8 < skew < 2.2  # 2 / sqrt(2) is 1.41


def test_the_other_noises_are_what_their_names_say(graphs):
    clean, generator = graphs.target("feature"), seeded_generator(2, "noise")
    assert torch.equal(noisy_targets(graphs, "feature", "instance", 1.0, generator), graphs.target("degree"))
    assert torch.equal(noisy_targets(graphs, "degree", "instance", 1.0, generator), clean)
    assert torch.equal(noisy_targets(graphs, "feature", "none", 1.0, generator), clean)
    shuffled = noisy_targets(graphs, "degree", "shuffled", 1.0, generator)
    assert torch.equal(shuffled.sort().values, graphs.target("degree").sort().values)
    assert abs(np.corrcoef(shuffled, graphs.target("degree"))[0, 1]) < 4 / 30


def test_the_error_is_the_mean_of_shares():
    assert mape(torch.tensor([12.0, 15.0, 40.0]), torch.tensor([10.0, 20.0, 40.0])) == pytest.approx(15.0)
    with pytest.raises(ValueError, match=r"targets must be above 0 .* least value of 0"):
        mape(torch.ones(2), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"shape of predicted, \(2,\), got \(2, 1\)"):
        mape(torch.ones(2), torch.ones(2, 1))


# Networks


@pytest.mark.parametrize("kind", ["max-sum", "max-max", "deepset"])
def test_a_network_is_that_of_torch_geometric_with_its_gradients(kind):
    graphs = draw_graphs(12, (20, 39), seeded_generator(7, "graphs"))
    # Of equal numbers a maximum may send its gradient to either, so here there are none.
    jitter = 0.3 * torch.rand(graphs.features.shape, generator=seeded_generator(7, "jitter"))
    graphs = dataclasses.replace(graphs, features=graphs.features + jitter * graphs.present)
    network = GraphNetwork(kind, 16, seed=3)
    outputs = network(graphs), geometric_network(network)(geometric_batch(graphs))
    assert torch.allclose(*outputs, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(out.square().sum(), list(network.parameters())) for out in outputs]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", ["max-sum", "max-max", "deepset"])
def test_a_network_is_that_of_a_loop(kind, few):
    network = GraphNetwork(kind, 6)
    for i in range(len(few)):
        n, x = int(few.present[i].sum()), few.features[i] / 100
        nodes = []
        for u in range(n):
            if kind == "deepset":
                nodes.append(network.message(x[u, None]))
                continue
            sent = [network.message(torch.stack([x[u], x[v]])) for v in range(n) if few.adjacency[i, u, v]]
            nodes.append(torch.stack(sent).sum(0) if kind == "max-sum" else torch.stack(sent).amax(0))
        expected = torch.stack(nodes).amax(0)
        assert torch.allclose(network.represent(few)[i], expected, atol=1e-5)


@pytest.mark.parametrize("kind", nls.graphs.NETWORKS)
def test_empty_places_do_not_count(kind, few):
    network = GraphNetwork(kind, 8)
    assert torch.allclose(network(few), network(padded(few, 30)), atol=1e-6)


@pytest.mark.parametrize("kind", nls.graphs.NETWORKS)
def test_the_last_layer_reads_the_representation(kind, few):
    network = GraphNetwork(kind, 8)
    values = represent(network, few, block=2)
    assert not values.requires_grad
    assert torch.allclose(network.output(values).squeeze(1), network(few), atol=1e-6)
    assert kind != "mlp" or bool((values >= 0).all())  # after its activation, as the output reads it


def test_the_mlp_reads_numbers_and_edges_each_in_its_place(few):
    network = GraphNetwork("mlp", 4)
    row = network._row(few.features, few.adjacency)
    assert row.shape == (5, 69 + 69 * 68 // 2)
    assert torch.equal(row[:, :9], few.features)
    assert torch.equal(row[:, 69:].sum(1), few.adjacency.sum((1, 2)) / 2)
    assert torch.equal(row[:, 69 : 69 + 8], few.adjacency[:, 0, 1:9].float())


def test_raw_numbers_are_a_hundred_times_the_scaled_ones(few):
    scaled, raw = GraphNetwork("deepset", 8), GraphNetwork("deepset", 8, feature_scale=1.0)
    with torch.no_grad():
        raw.first.weight.div_(100)
    assert torch.allclose(scaled(few), raw(few), atol=1e-5)


# Training


def test_squared_errors_learn_the_mean_and_absolute_ones_the_median(graphs):
    labels = torch.where(torch.arange(900) % 4 == 0, 80.0, 0.0)
    found = {}
    for loss in ("mse", "mae"):
        network = fit_graphs(GraphNetwork("deepset", 8), graphs, labels, loss=loss, epochs=8, learning_rate=0.03)
        with torch.no_grad():
            found[loss] = float(network(graphs).mean())
    assert found["mse"] == pytest.approx(20, abs=3)
    assert found["mae"] == pytest.approx(0, abs=3)


def test_training_depends_on_its_seeds_and_no_epochs_change_nothing(graphs):
    some, labels = graphs[:64], graphs[:64].target("feature")
    start, same, again, other = (GraphNetwork("deepset", 4, seed=seed) for seed in (0, 0, 0, 1))
    assert torch.equal(start.first.weight, same.first.weight)
    assert not torch.equal(start.first.weight, other.first.weight)
    fit_graphs(same, some, labels, epochs=0)
    assert torch.equal(start.first.weight, same.first.weight)
    for network in (same, again):
        fit_graphs(network, some, labels, epochs=2, batch_size=16, seed=4)
    assert torch.equal(same.first.weight, again.first.weight)
    fit_graphs(start, some, labels, epochs=2, batch_size=16, seed=5)
    assert not torch.equal(start.first.weight, again.first.weight)


# The study


def test_a_linear_fit_is_that_of_least_squares():
    x = torch.randn(200, 5, generator=seeded_generator(0, "x"))
    y = x @ torch.arange(5.0) + 3 + 0.1 * torch.randn(200, generator=seeded_generator(1, "x"))
    test = torch.randn(7, 5, generator=seeded_generator(2, "x"))
    weights = np.linalg.lstsq(np.c_[x, np.ones(200)], y.numpy(), rcond=None)[0]
    assert linear_fit(x, y, test).numpy() == pytest.approx(np.c_[test, np.ones(7)] @ weights, abs=1e-3)


def test_a_run_reports_each_error_of_its_own_and_is_drawn_by_its_seed(monkeypatch):
    settings = TINY | {"network": "max-sum", "target": "degree", "noise": "normal", "mean": 10.0, "deviation": 1.0}
    rows = graph_run(noise_ratio=1.0, seed=0, **settings)
    assert [row["nodes"] for row in rows] == ["20-39", "50-69"]
    assert rows == graph_run(noise_ratio=1.0, seed=0, **settings)
    assert rows[0]["head"] != graph_run(noise_ratio=1.0, seed=1, **settings)[0]["head"]
    names = ("head", "recalibrated", "probe", "untrained", "constant")
    assert len({row[name] for row in rows for name in names}) == 10
    still = graph_run(noise_ratio=1.0, seed=0, **settings | {"epochs": 0})
    assert [row["probe"] for row in still] == [row["untrained"] for row in still] == [row["untrained"] for row in rows]
    assert [row["constant"] for row in still] == [row["constant"] for row in rows]


def test_linear_models_see_clean_labels_of_training_graphs_and_never_a_test_graph(monkeypatch):
    seen, drawn, fit = [], [], nls.graphs.linear_fit
    original = nls.graphs.draw_graphs

    def keep(*args, **rest):
        drawn.append(original(*args, **rest))
        return drawn[-1]

    monkeypatch.setattr(nls.graphs, "draw_graphs", keep)
    monkeypatch.setattr(nls.graphs, "linear_fit", lambda x, y, test: seen.append(y) or fit(x, y, test))
    graph_run("deepset", "feature", "instance", 1.0, 0, **TINY)
    train, small, _ = drawn
    assert all(len(labels) == TINY["num_clean"] for labels in seen)
    assert set(seen[0].tolist()) <= set(train.target("feature").tolist())
    assert not torch.equal(seen[0], train.target("degree")[: len(seen[0])])
    monkeypatch.setattr(nls.graphs, "draw_graphs", lambda count, sizes, *_, **__: train if sizes[0] == 20 else small)
    with pytest.raises(ValueError, match="train and test must not share examples, got 48 of test"):
        graph_run("deepset", "feature", "instance", 1.0, 0, **TINY)


def test_the_runs_of_the_study_are_kept(tmp_path):
    runs = graph_runs(range(2), **TINY)
    assert len(runs) == 64
    assert [run["seed"] for run in runs[:2]] == [0, 1]
    assert len({(run["network"], run["target"], label_name(run)) for run in runs}) == 32
    chosen = [run for run in runs if run["network"] == "deepset" and run["seed"] == 0][:2]
    first = run_all(graph_run, chosen, store=tmp_path, workers=1, progress=False)
    again = run_all(graph_run, chosen, store=tmp_path, workers=1, progress=False)
    assert first.equals(again)
    assert first.groupby(["noise_ratio", "nodes"]).size().tolist() == [1] * 4


# Refusals


def test_what_is_wrong_is_named(few):
    generator = seeded_generator(0, "x")
    cases = [
        (lambda: draw_graphs(0, (20, 39), generator), "count must be at least 1, got 0"),
        (lambda: draw_graphs(1, (39, 20), generator), r"sizes must be two integers in order, got \(39, 20\)"),
        (lambda: draw_graphs(1, (1, 20), generator), "sizes must be at least 2, got 1"),
        (lambda: draw_graphs(1, (2, 3), generator, top=(5, 101)), "top must be at most 100, got 101"),
        (lambda: few.target("size"), "target must be one of 'degree', 'feature', got 'size'"),
        (lambda: noisy_targets(few, "degree", "flip", 0.5, generator), "noise must be one of 'none', .* got 'flip'"),
        (
            lambda: noisy_targets(few, "degree", "normal", 0.5, generator, 1.0),
            r"numbers must be mean, deviation for noise='normal', got \(1.0,\)",
        ),
        (lambda: noisy_targets(few, "degree", "shuffled", 1.5, generator), "noise_ratio must be a finite number"),
        (lambda: GraphNetwork("sum-sum"), "kind must be one of 'max-sum', .* got 'sum-sum'"),
        (
            lambda: fit_graphs(GraphNetwork("deepset", 2), few, torch.ones(3)),
            r"labels must have one entry for each of 5 graphs, got \(3,\)",
        ),
        (
            lambda: fit_graphs(GraphNetwork("deepset", 2), few, torch.ones(5), loss="huber"),
            "loss must be one of 'mse', 'mae', got 'huber'",
        ),
        (lambda: geometric_network(GraphNetwork("mlp", 2)), "got 'mlp', which passes no messages"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_the_package_is_named_where_it_is_missing_and_only_there(few, monkeypatch):
    top = ast.parse(inspect.getsource(nls.graphs)).body
    named = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
    assert "torch_geometric" not in named
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(ValueError, match=r"pip install 'nls\[graphs\]'"):
        geometric_batch(few)
    assert GraphNetwork("max-sum", 4)(few).shape == (5,)


def test_only_the_import_is_silent(few):
    geometric_batch(few)
    with pytest.raises(FutureWarning, match="deprecated"):
        warnings.warn("`torch.jit.script` is deprecated", FutureWarning, stacklevel=1)
