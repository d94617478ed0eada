"""The layer before the logits: each number against loops of its own, and the runs against training by hand."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nls
from nls.geometry import (
    DECAYS,
    RATES,
    clean_image_run,
    clean_images,
    clean_run,
    penultimate,
    project_on_templates,
    scatter_ratio,
)
from nls.models import build_network, predict_logits

FAST = settings(max_examples=20, deadline=None, derandomize=True)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Activations and templates


@pytest.mark.parametrize("hidden", [(), (5,), (6, 4)])
def test_logits_of_a_perceptron_are_products_with_its_templates(hidden):
    features, labels = normal(30, 4).float(), torch.arange(30) % 3
    fit = nls.fit_stack(
        features, labels.expand(2, -1), torch.tensor([0.0, 0.4]), num_classes=3, hidden=hidden, epochs=2
    )
    for i in range(2):
        activations, templates = penultimate(fit.stack.member(i), features)
        assert activations.shape == (30, (hidden[-1] if hidden else 4) + 1)
        torch.testing.assert_close(activations @ templates.T, fit.stack.forward(features)[i])
        assert bool((activations[:, -1] == 1).all())
        if hidden:
            assert float(activations.min()) == 0.0  # after the rectifier, not before


def test_logits_of_a_network_are_products_with_its_templates_and_its_mode_stays():
    images = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fit = nls.fit_each(images, torch.arange(12) % 3, 0.1, num_classes=3, epochs=1)
    expected = predict_logits(fit.network, images)
    for training in (False, True):
        fit.network.train(training)
        activations, templates = penultimate(fit.network, images)
        torch.testing.assert_close(activations @ templates.T, expected)
        assert [module.training for module in fit.network.modules()] == [training] * len(list(fit.network.modules()))


def test_other_networks_are_refused():
    with pytest.raises(TypeError, match="must end with a linear layer, got Sequential"):
        penultimate(build_network("resnet9", 3), torch.zeros(1, 3, 8, 8))
    with pytest.raises(TypeError, match=r"network must be an nn\.Sequential or a list of layers, got Linear"):
        penultimate(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(TypeError, match="a list of layers, got list"):
        penultimate([], torch.zeros(1, 2))


# Scatter


def naive_ratio(activations, labels):
    """Return the ratio by loops over examples and coordinates."""
    rows, classes = activations.tolist(), labels.tolist()
    whole = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    within = between = 0.0
    for k in set(classes):
        own = [row for row, label in zip(rows, classes, strict=True) if label == k]
        centre = [sum(column) / len(own) for column in zip(*own, strict=True)]
        for row in own:
            within += sum((x - m) ** 2 for x, m in zip(row, centre, strict=True))
            between += sum((c - m) ** 2 for c, m in zip(centre, whole, strict=True))
    return within / between


@FAST
@given(seed=st.integers(0, 10**6), n=st.integers(4, 30), d=st.integers(1, 5), k=st.integers(2, 4))
def test_the_ratio_is_that_of_loops(seed, n, d, k):
    activations, labels = normal(n, d, seed=seed), 3 * (torch.arange(n) % k)  # class indices with gaps
    assert scatter_ratio(activations, labels) == pytest.approx(naive_ratio(activations, labels), rel=1e-9)


def test_the_ratio_ignores_rotation_shift_and_scale_and_falls_when_clusters_shrink():
    activations, labels = normal(40, 3), torch.arange(40) % 4
    ratio = scatter_ratio(activations, labels)
    rotation = torch.linalg.qr(normal(3, 3, seed=1)).Q
    assert scatter_ratio(7 * activations @ rotation + 5, labels) == pytest.approx(ratio, rel=1e-9)
    means = torch.stack([activations[labels == k].mean(0) for k in range(4)])[labels]
    assert scatter_ratio(means + (activations - means) / 2, labels) == pytest.approx(ratio / 4, rel=1e-9)
    assert scatter_ratio(torch.tensor([[1.0], [3.0], [1.0], [3.0]]), torch.tensor([0, 0, 1, 1])) == math.inf


def test_the_ratio_refuses_what_has_none():
    with pytest.raises(ValueError, match=r"labels must hold at least two classes, got \[1\]"):
        scatter_ratio(normal(3, 2), torch.ones(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\), one for each row, got \(2,\)"):
        scatter_ratio(normal(3, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"activations must have shape \[N, d\] with N >= 1, got \(3,\)"):
        scatter_ratio(normal(3), torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="activations must be finite, got 1 values that are not"):
        scatter_ratio(torch.tensor([[0.0], [math.nan]]), torch.tensor([0, 1]))
    with pytest.raises(TypeError, match="activations must be a floating-point tensor"):
        scatter_ratio(torch.ones(3, 2, dtype=torch.long), torch.tensor([0, 1, 0]))


# Projection


def naive_projection(rows, templates, classes):
    """Return coordinates by the steps of Gram and Schmidt, one vector at a time."""
    axes = []
    for k in classes[1:]:
        side = [x - y for x, y in zip(templates[k], templates[classes[0]], strict=True)]
        for axis in axes:
            part = sum(x * y for x, y in zip(side, axis, strict=True))
            side = [x - part * y for x, y in zip(side, axis, strict=True)]
        length = math.sqrt(sum(x * x for x in side))
        axes.append([x / length for x in side])
    return [[sum(x * y for x, y in zip(row, axis, strict=True)) for axis in axes] for row in rows]


@FAST
@given(seed=st.integers(0, 10**6), d=st.integers(4, 9), count=st.integers(2, 5))
def test_the_projection_is_that_of_gram_and_schmidt(seed, d, count):
    activations, templates = normal(7, d, seed=seed), normal(6, d, seed=seed + 1)
    classes = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).tolist()[:count]
    points, corners = project_on_templates(activations, templates, classes)
    expected = naive_projection(activations.tolist(), templates.tolist(), classes)
    torch.testing.assert_close(points, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-7)
    corner_rows = [templates[k].tolist() for k in classes]
    expected = naive_projection(corner_rows, templates.tolist(), classes)
    torch.testing.assert_close(corners, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-7)


def test_all_templates_span_what_differences_of_logits_depend_on():
    activations, templates = normal(7, 9), normal(4, 9, seed=1)
    points, corners = project_on_templates(activations, templates)
    assert points.shape == (7, 3)
    logits = activations @ templates.T
    seen = points @ corners.T
    torch.testing.assert_close(seen - seen[:, :1], logits - logits[:, :1])
    # Distances between templates are kept: the flat runs through all of them.
    torch.testing.assert_close(torch.cdist(corners, corners), torch.cdist(templates, templates))


def test_the_projection_refuses_what_spans_no_flat():
    templates = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match="templates of 3 classes must span 2 dimensions, got fewer"):
        project_on_templates(normal(3, 2), templates, (0, 1, 2))
    with pytest.raises(ValueError, match=r"classes must be two or more different ones, got \[1, 1, 2\]"):
        project_on_templates(normal(3, 2), templates, (1, 1, 2))
    with pytest.raises(ValueError, match=r"two or more different ones, got \[1\]"):
        project_on_templates(normal(3, 2), templates, (1,))
    with pytest.raises(ValueError, match="classes must be at most 3, got 4"):
        project_on_templates(normal(3, 2), templates, (0, 1, 4))
    with pytest.raises(ValueError, match=r"activations must have shape \[N, d\] and templates \[K, d\], got \(3, 3\)"):
        project_on_templates(normal(3, 3), templates, (0, 1, 3))


# Runs on clean labels


def test_a_run_trains_what_a_grid_trains():
    rows = clean_run("wine", 0, 3, epochs=4, min_steps=1)
    options = {"hidden": (64,), "learning_rate": 0.003, "epochs": 4}
    grid = nls.Grid(dataset="wine", smooth_rate=list(RATES), seed=3, **options)
    for row, cell in zip(rows, nls.run_grid(grid, workers=1).to_dict("records"), strict=True):
        assert row["smooth_rate"] == cell["smooth_rate"]
        for name in ("accuracy_last", "nll_last", "ece_noisy_validation", "epoch_noisy_validation", "train_loss"):
            assert row[name] == pytest.approx(cell[name], rel=1e-4, abs=1e-6), name


def test_a_run_scales_logits_and_measures_scatter_as_by_hand():
    rows = clean_run("digits", 90, 0, epochs=5, min_steps=1)
    data = nls.load_dataset("digits", seed=0)
    x, y = data.train_features[:90], data.train_labels[:90]
    options = {"hidden": (64,), "learning_rate": 0.003, "epochs": 5, "num_classes": 10}
    fit = nls.fit_stack(x, y.expand(2, -1), torch.tensor([0.0, 0.4]), **options)
    for i, row in enumerate([rows[0], rows[RATES.index(0.4)]]):
        (weight, bias), (out, shift) = fit.stack.member(i)
        hidden = (data.test_features @ weight + bias).relu()
        logits = hidden @ out + shift
        held_out = (data.validation_features[:30] @ weight + bias).relu() @ out + shift
        found = nls.confidence.fit_temperature(held_out, data.validation_labels[:30])
        assert row["temperature"] == pytest.approx(found, rel=1e-3)
        scaled = torch.nn.functional.cross_entropy(logits / found, data.test_labels)
        assert row["nll_scaled"] == pytest.approx(float(scaled), rel=1e-3)
        assert row["scatter"] == pytest.approx(naive_ratio(hidden, data.test_labels), rel=1e-3)
        with_bias = torch.cat([out, shift[None]]).double()
        axes = torch.linalg.qr(with_bias[:, 1:] - with_bias[:, :1]).Q
        inside = torch.cat([hidden, torch.ones(len(hidden), 1)], 1).double() @ axes
        assert row["span_scatter"] == pytest.approx(naive_ratio(inside, data.test_labels), rel=1e-3)
        assert row["num_train"] == 90
        sure = ((x @ weight + bias).relu() @ out + shift).softmax(1).amax(1).mean()
        assert row["train_confidence"] == pytest.approx(float(sure), rel=1e-3)


def test_tuned_runs_add_each_decay_to_each_rate_from_zero_on():
    rows = clean_run("wine", 60, 0, True, epochs=9, min_steps=1)
    pairs = [(row["smooth_rate"], row["weight_decay"]) for row in rows]
    smooth = [rate for rate in RATES if rate >= 0]
    assert sorted(pairs) == sorted([(rate, 0.0) for rate in RATES] + [(r, d) for r in smooth for d in DECAYS])
    by = {pair: row["train_loss"] for pair, row in zip(pairs, rows, strict=True)}
    losses = [by[0.0, decay] for decay in (0.0, *DECAYS)]
    assert losses == sorted(losses)
    assert losses[-1] > losses[0]


def test_a_small_set_takes_more_epochs():
    assert {row["epoch_last"] for row in clean_run("wine", 60, 0, epochs=2, min_steps=5)} == {5}
    assert {row["epoch_last"] for row in clean_run("wine", 0, 0, epochs=2, min_steps=5)} == {3}


def test_a_diverged_network_has_no_temperature(monkeypatch):
    def diverge(*args, **options):
        fit = nls.fit_stack(*args, **options)
        return dataclasses.replace(fit, diverged_epoch=torch.arange(len(fit.diverged_epoch)))

    monkeypatch.setattr(nls.geometry, "fit_stack", diverge)
    first, second, *_ = clean_run("wine", 60, 0, epochs=1, min_steps=1)
    assert first["diverged_epoch"] == 0
    assert first["temperature"] > 0
    assert second["diverged_epoch"] == 1
    assert second["temperature"] is second["span_scatter"] is None


def test_image_runs_report_both_rules():
    last, chosen = clean_image_run("", "digits_images", 200, "cnn", 0.4, 0, 10, 32)
    data = nls.load_dataset("digits_images", seed=0, num_examples=200)
    options = {"batch_size": 32, "learning_rate": 0.05, "schedule": "cosine", "weight_decay": 5e-4}
    held, test = ((getattr(data, f"{s}_features"), getattr(data, f"{s}_labels")) for s in ("validation", "test"))
    fit = nls.fit_each(
        data.train_features,
        data.train_labels,
        0.4,
        num_classes=10,
        epochs=10,
        seed=0,
        evaluate=lambda network: {
            "held": (predict_logits(network, held[0]).argmax(1) == held[1]).double().mean(),
            "accuracy": ((logits := predict_logits(network, test[0])).argmax(1) == test[1]).double().mean(),
            "nll": torch.nn.functional.cross_entropy(logits, test[1]),  # it sees the weight decay, accuracy does not
        },
        **options,
    )
    best = int(fit.curves["held"].argmax())
    assert best < 9, "the two rules pick one epoch, and the test sees nothing"
    assert chosen["epoch"] == best + 1
    for row, epoch in ((last, -1), (chosen, best)):
        for name in ("accuracy", "nll"):
            assert row[name] == pytest.approx(float(fit.curves[name][epoch]), rel=1e-4), name


def test_the_study_of_images_goes_on_where_it_stopped(tmp_path):
    options = {"dataset": "digits_images", "num_examples": 100, "workers": 1, "progress": False}
    table = clean_images("", tmp_path, 1, rates={1: (0.0, 0.4), 2: (0.1,)}, **options)
    assert table["rule"].tolist() == ["last", "validation"] * 3
    assert table[["epochs", "smooth_rate"]].drop_duplicates().values.tolist() == [[1, 0.0], [1, 0.4], [2, 0.1]]
    assert "root" not in table
    again = clean_images("", tmp_path, 1, rates={2: (0.1,)}, **options)
    assert again.to_dict("records") == table[table["epochs"] == 2].to_dict("records")
    assert len(list(tmp_path.glob("*.json"))) == 3
