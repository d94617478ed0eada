"""Probes: layers against passes by hand, the ridge against scikit-learn and refits, and parts that may not overlap."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, RidgeCV
from torch import nn
from torch.nn import functional

import nls
from nls import probes
from nls.activations import unwrapped
from nls.models import build_network, predict_logits
from nls.probes import (
    STRENGTHS,
    activations,
    check_disjoint,
    draw_clean,
    fine_tune,
    gold_map,
    power_intervals,
    power_of,
    predictive_power,
    probe,
    untrained,
)
from nls.stack import StackedMLP

FAST = settings(max_examples=25, deadline=None, derandomize=True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def small_mlp(inplace=False, seed=0):
    with nls.models.seeded_state(seed, "test"):
        parts = [nn.Linear(4, 6), nn.ReLU(inplace), nn.Linear(6, 5), nn.ReLU(inplace), nn.Linear(5, 3)]
        return nn.Sequential(*parts)


def small_stack(members=3, seed=0):
    stack = StackedMLP((4, 6, 5, 3), members, seeded(seed))
    return untrained(stack, seed)


def as_module(stack, index):
    """Return one member as a plain module."""
    parts = []
    for weight, bias in stack.member(index):
        linear = nn.Linear(*weight.shape)
        linear.load_state_dict({"weight": weight.T, "bias": bias})
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


# Layers


@pytest.mark.parametrize("inplace", [False, True])
def test_layers_are_read_after_their_relu(inplace):
    network, x = small_mlp(inplace), draw(50, 4).float()
    found = activations(network, x)
    first = functional.linear(x, network[0].weight, network[0].bias)
    second = functional.linear(first.clamp(min=0), network[2].weight, network[2].bias)
    assert list(found) == ["1", "3"]
    torch.testing.assert_close(found["1"], first.clamp(min=0).detach())
    torch.testing.assert_close(found["3"], second.clamp(min=0).detach())
    # What a code that leaves out the nonlinearity reads is something else.
    before = activations(network, x, ["0", "2"])
    torch.testing.assert_close(before["0"], first.detach())
    torch.testing.assert_close(before["2"], second.detach())
    assert (before["0"] < 0).any()
    assert not torch.allclose(before["2"], found["3"])


def test_all_members_of_a_stack_are_read_after_their_relu():
    stack, x = small_stack(), draw(30, 4).float()
    found = activations(stack, x)
    assert {name: tuple(v.shape) for name, v in found.items()} == {"hidden1": (3, 30, 6), "hidden2": (3, 30, 5)}
    for i in range(3):
        alone = activations(as_module(stack, i), x)
        torch.testing.assert_close(found["hidden1"][i], alone["1"])
        torch.testing.assert_close(found["hidden2"][i], alone["3"])
    network = as_module(stack, 0)
    torch.testing.assert_close(activations(network, x, ["logits"], batch_size=7)["logits"], network(x).detach())
    more = activations(stack, x, ["input", "penultimate", "logits"], batch_size=7)
    torch.testing.assert_close(more["logits"], stack.forward(x))
    torch.testing.assert_close(more["penultimate"], found["hidden2"])
    torch.testing.assert_close(more["input"], x)


def test_results_of_fits_are_read_too():
    x, y = draw(20, 4).float(), torch.arange(20) % 3
    fit = nls.fit_stack(x, y[None], num_classes=3, hidden=(5,), epochs=2)
    torch.testing.assert_close(activations(fit, x)["hidden1"], activations(fit.stack, x)["hidden1"])
    images = (torch.arange(20 * 64) % 251).to(torch.uint8).view(20, 1, 8, 8)
    fit = nls.fit_each(images, y, num_classes=3, epochs=1, batch_size=10)
    found = activations(fit, images, ["penultimate"])["penultimate"]
    head = fit.network[-1]
    torch.testing.assert_close(functional.linear(found, head.weight, head.bias), predict_logits(fit.network, images))


def test_a_module_with_a_part_called_network_is_not_unwrapped():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = small_mlp()

        def forward(self, x):
            return self.network(x) + 1

    assert list(activations(Wrapper(), draw(5, 4).float())) == ["network.1", "network.3"]


def test_evaluation_mode_and_no_traces():
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    network[1].running_mean.fill_(0.3)
    network.train()
    x = draw(40, 4).float()
    found = activations(network, x, ["2", "3"], batch_size=7)
    assert network.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    torch.testing.assert_close(found["2"], found["3"])
    torch.testing.assert_close(found["2"], network[:3].eval()(x).detach())
    assert float(network[1].running_mean[0]) == pytest.approx(0.3)
    assert not found["2"].requires_grad


def test_places_are_averaged_or_kept_and_layers_come_in_order():
    network = build_network("cnn", 10, 1).eval()
    x = draw(6, 1, 8, 8).float()
    mean, flat = activations(network, x), activations(network, x, pooling="flatten")
    assert [v.shape[1] for v in mean.values()] == [32, 64, 128]
    assert [v.shape[1] for v in flat.values()] == [32 * 16, 64 * 4, 128 * 4]
    places = network[:2](x).flatten(2)
    torch.testing.assert_close(list(mean.values())[1], places.mean(2).detach())
    torch.testing.assert_close(list(flat.values())[1], places.flatten(1).detach())
    names = list(mean)
    assert list(activations(network, x, names[::-1])) == names
    torch.testing.assert_close(list(mean.values())[2], activations(network, x, ["penultimate"])["penultimate"])


def test_a_shared_activation_is_read_at_its_last_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()

        def forward(self, x):
            return self.relu(self.second(self.relu(self.first(x))) + x)

    network, x = Twice(), draw(9, 4).float()
    torch.testing.assert_close(activations(network, x)["relu"], network(x).detach())


def test_batches_of_any_kind_are_handed_over_as_they_are():
    class Sets(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.relu, self.head = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)

        def forward(self, sets):
            return self.head(torch.stack([self.relu(self.embed(one)).sum(0) for one in sets]))

    network = Sets()
    batches = [[draw(3, 2).float(), draw(5, 2, seed=1).float()], [draw(4, 2, seed=2).float()]]
    found = activations(network, batches, ["penultimate"])["penultimate"]
    expected = torch.stack([(network.embed(one)).relu().sum(0) for batch in batches for one in batch])
    torch.testing.assert_close(found, expected.detach())
    dropped = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)).train()
    torch.testing.assert_close(activations(dropped, [torch.ones(3, 2)], ["0"])["0"], torch.ones(3, 2))
    assert dropped.training
    with pytest.raises(ValueError, match="layer 'relu' must have one row for each of 3 examples, got"):
        activations(network, batches, ["relu"])
    with pytest.raises(ValueError, match="features must hold at least one batch"):
        activations(network, [], ["penultimate"])


def test_layers_that_are_not_there():
    x = draw(5, 4).float()
    with pytest.raises(ValueError, match="layers must be names of modules, got 'layer9'; it has '0', '1'"):
        activations(small_mlp(), x, ["layer9"])
    with pytest.raises(ValueError, match=r"layers must be one of 'hidden1', 'hidden2', 'logits', .* got 'hidden3'"):
        activations(small_stack(), x, ["hidden3"])
    with pytest.raises(ValueError, match="no module for its nonlinearity; it has '0'"):
        activations(nn.Sequential(nn.Linear(4, 2)), x)
    with pytest.raises(ValueError, match="'penultimate' without a linear layer"):
        activations(nn.Sequential(nn.ReLU()), x, ["penultimate"])
    with pytest.raises(ValueError, match="pooling must be one of 'mean', 'flatten', got 'max'"):
        activations(small_mlp(), x, pooling="max")
    with pytest.raises(TypeError, match="network must be a torch module, a stack of MLPs or a fit, got str"):
        unwrapped("cnn")

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 2), nn.ReLU()

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match="layer 'unused' must take part in a forward pass"):
        activations(Unused(), x)


# The clean examples


@FAST
@given(seed=st.integers(0, 10**6), per_class=st.integers(1, 4))
def test_a_draw_has_so_many_of_each_class_and_holds_the_smaller_ones(seed, per_class):
    labels = torch.randperm(60, generator=seeded(seed)) % 4
    places = draw_clean(labels, per_class, seed=seed)
    assert torch.bincount(labels[places]).tolist() == [per_class] * 4
    assert len(set(places.tolist())) == 4 * per_class
    assert set(draw_clean(labels, 1, seed=seed).tolist()) <= set(places.tolist())
    assert draw_clean(labels, per_class, seed=seed).tolist() == places.tolist()


def test_draws_differ_and_cover_the_pool():
    labels = torch.arange(40) % 2
    seen = [frozenset(draw_clean(labels, 3, seed=seed).tolist()) for seed in range(40)]
    assert len(set(seen)) == 40
    assert set().union(*seen) == set(range(40))
    assert draw_clean(labels, 3, seeded(1)).tolist() != draw_clean(labels, 3, seeded(2)).tolist()
    assert sorted(draw_clean(draw(10), 10).tolist()) == list(range(10))


def test_a_class_with_too_few_examples_is_named():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    with pytest.raises(ValueError, match="per_class must be at most 1, what class 1 has, got 2"):
        draw_clean(labels, 2)
    with pytest.raises(ValueError, match="at most 0, what class 3 has, got 1"):
        draw_clean(labels, 1, num_classes=4)
    with pytest.raises(ValueError, match="per_class must be at least 1, got 0"):
        draw_clean(labels, 0)


def test_parts_that_share_a_place_or_a_content_are_refused():
    rows = draw(12, 3)
    rows[11] = rows[2]
    rows[10] = torch.tensor([0.0, 1.0, 2.0])
    rows[3] = torch.tensor([-0.0, 1.0, 2.0])
    places = torch.arange(12)
    check_disjoint({"clean": places[:4], "train": places[4:8], "test": places[8:10]}, rows)
    check_disjoint({"clean": rows[:4], "test": rows[4:10]})
    with pytest.raises(ValueError, match="clean and test must not share examples, got 2 places, 2 among them"):
        check_disjoint({"clean": places[:4], "train": places[5:7], "test": torch.tensor([3, 8, 2])}, rows)
    with pytest.raises(ValueError, match=r"clean and test .* got 2 of test with the content of one of clean"):
        check_disjoint({"clean": places[:4], "test": places[8:]}, rows)
    with pytest.raises(ValueError, match=r"train and test .* got 1 of test with the content of one of train"):
        check_disjoint({"clean": rows[4:6], "train": rows[:3], "test": rows[11:]})
    with pytest.raises(TypeError, match="clean must hold places in features as int64, got float64"):
        check_disjoint({"clean": rows[0], "test": places[:1]}, rows)


@pytest.fixture(scope="module")
def classed():
    """Features with classes that a line can tell apart, mostly."""
    labels = torch.arange(150) % 3
    return (draw(150, 4) + 1.5 * functional.one_hot(labels, 4)).float(), labels


@pytest.mark.parametrize("form", ["places", "features"])
@pytest.mark.parametrize("between", ["pool and test", "pool and train"])
@pytest.mark.parametrize("shared", ["place", "content"])
def test_predictive_power_refuses_what_overlaps(form, between, shared, classed):
    x, y = classed[0].clone(), classed[1]
    parts = {"pool": torch.arange(60), "test": torch.arange(60, 100), "train": torch.arange(100, 150)}
    second = between.split()[-1]
    if shared == "place":
        parts[second][0] = 7
    else:
        x[parts[second][0]] = x[7]

    def measure(train):
        places = parts | ({} if train else {"train": None})
        if form == "places":
            return predictive_power(small_mlp(), data=(x, y), per_class=2, draws=1, **places)
        pairs = {name: (x[places[name]], y[places[name]]) for name in ("pool", "test")}
        train = None if places["train"] is None else x[places["train"]]
        return predictive_power(small_mlp(), train=train, per_class=2, draws=1, **pairs)

    with pytest.raises(ValueError, match=f"{between} must not share examples"):
        measure(train=True)
    if second == "train":
        assert len(measure(train=False)) == 4


# The probe


def by_scikit_learn(x, targets, test):
    """Return strength and predictions of scikit-learn's ridge with its leave-one-out, on standardised features."""
    mean, scale = x.mean(0), x.std(0)
    unit = len(x) * x.shape[1] / min(x.shape)
    model = RidgeCV(alphas=[s * unit for s in STRENGTHS]).fit((x - mean) / scale, targets)
    return model.alpha_ / unit, model.predict((test - mean) / scale)


@FAST
@given(seed=st.integers(0, 10**6), n=st.integers(4, 30), d=st.integers(1, 30))
def test_the_ridge_is_that_of_scikit_learn(seed, n, d):
    rng = np.random.default_rng(seed)
    x, test = 3 + 2 * rng.normal(size=(n, d)), rng.normal(size=(5, d))
    targets = x @ rng.normal(size=(d, 2)) + rng.normal(size=(n, 2))
    fitted = probe(*map(torch.from_numpy, (x, targets, test)))
    strength, predicted = by_scikit_learn(x, targets, test)
    assert float(fitted.strength) == pytest.approx(strength)
    np.testing.assert_allclose(fitted.outputs.numpy(), predicted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fitted(torch.from_numpy(test)), fitted.outputs)


@pytest.mark.parametrize(("n", "d"), [(8, 3), (6, 20)])
def test_leave_one_out_is_what_refits_give(n, d):
    x, y = draw(n, d), torch.arange(n) % 2
    z = (x - x.mean(0)) / x.std(0, correction=0)
    targets = functional.one_hot(y).double()
    strength = 0.1
    unit = strength * n * d / min(n, d)
    errors = []
    for i in range(n):
        keep = torch.arange(n) != i
        centre, level = z[keep].mean(0), targets[keep].mean(0)
        gram = (z[keep] - centre).mT @ (z[keep] - centre) + unit * torch.eye(d).double()
        weight = torch.linalg.solve(gram, (z[keep] - centre).mT @ (targets[keep] - level))
        errors.append(targets[i] - level - (z[i] - centre) @ weight)
    fitted = probe(x, y, x, strengths=[strength])
    assert float(fitted.error) == pytest.approx(float(torch.stack(errors).square().mean()))


def test_a_batch_is_one_fit_after_another():
    x, test = draw(2, 3, 12, 5), draw(2, 1, 7, 5, seed=1)
    y = torch.randperm(36, generator=seeded()).view(3, 12) % 3
    whole = probe(x, y, test, num_classes=3)
    assert whole.outputs.shape == (2, 3, 7, 3)
    assert whole.strength.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        one = probe(x[i, j], y[j], test[i, 0], num_classes=3)
        torch.testing.assert_close(whole.outputs[i, j], one.outputs)
        torch.testing.assert_close(whole.error[i, j], one.error)
    # One set of features for several sets of labels.
    several = probe(x[0, 0], y, test[0, 0], num_classes=3)
    torch.testing.assert_close(several.outputs[2], probe(x[0, 0], y[2], test[0, 0], num_classes=3).outputs)


def test_only_the_clean_examples_set_the_scale():
    x, y, test = draw(20, 4), torch.arange(20) % 2, draw(9, 4, seed=1)
    alone = probe(x, y, test[:1]).outputs
    moved = torch.cat([test[:1], 1e6 * test[1:] + 1e6])
    torch.testing.assert_close(probe(x, y, moved).outputs[:1], alone)
    # The units of a feature do not matter.
    torch.testing.assert_close(probe(1000 * x - 7, y, 1000 * test - 7).outputs, probe(x, y, test).outputs)


def test_a_constant_feature_has_no_weight():
    x, y, test = draw(10, 3), torch.arange(10) % 2, draw(5, 3, seed=1)
    x[:, 1] = 0.1
    fitted = probe(x, y, test)
    assert fitted.weight[1].tolist() == [0, 0]
    torch.testing.assert_close(fitted.outputs, probe(x[:, ::2], y, test[:, ::2]).outputs, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_logistic_kind_is_that_of_scikit_learn(classes):
    y = torch.arange(45) % classes
    x = draw(45, 4) + functional.one_hot(y, 4)
    fitted = probe(x, y, x, kind="logistic", strengths=[0.5])
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    model = LogisticRegression(C=0.5, max_iter=5000).fit(z, y.numpy())
    np.testing.assert_allclose(fitted.outputs.softmax(1).numpy(), model.predict_proba(z), atol=1e-6)


def test_the_logistic_kind_chooses_by_cross_validation_and_skips_absent_classes():
    y = torch.tensor([0, 2] * 20)
    x = draw(2, 40, 6)
    x[1] += 3 * y[:, None]
    fitted = probe(x, y, x, kind="logistic", num_classes=4)
    assert set(fitted.predicted.flatten().tolist()) == {0, 2}
    assert float(fitted.strength[0]) < float(fitted.strength[1])  # noise wants little weight
    assert float(fitted.error[0]) > float(fitted.error[1])
    single = probe(draw(3, 4), torch.arange(3), draw(3, 4), kind="logistic")
    assert float(single.strength) == 0.1
    assert bool(single.error.isnan())
    assert single.predicted.tolist() == [0, 1, 2]


def test_real_targets_in_either_shape():
    x, test = draw(20, 3), draw(6, 3, seed=1)
    y = x @ torch.tensor([[1.0], [2.0], [3.0]]).double() + 4
    fitted = probe(x, y.squeeze(1), test)
    torch.testing.assert_close(fitted.outputs, probe(x, y, test).outputs)
    assert float(fitted.strength) == min(STRENGTHS)
    torch.testing.assert_close(
        fitted.outputs, test @ torch.tensor([[1.0], [2.0], [3.0]]).double() + 4, atol=0.01, rtol=0
    )


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"features_train": draw(1, 3)}, ValueError, r"features_train must have shape \[..., n, D\] with n >= 2"),
        ({"features_test": draw(5, 2)}, ValueError, "features_test must have 3 columns as features_train, got 2"),
        ({"labels": torch.arange(4)}, ValueError, "labels must have one entry for each of 6 rows"),
        ({"features_train": torch.full((6, 3), torch.nan)}, ValueError, "features_train must be finite, got 18"),
        ({"kind": "lasso"}, ValueError, "kind must be one of 'ridge', 'logistic', got 'lasso'"),
        ({"kind": "logistic", "labels": draw(6)}, TypeError, "labels must be class indices for kind='logistic'"),
        ({"kind": "logistic", "labels": torch.zeros(6).long()}, ValueError, "labels must hold at least 2 classes"),
        ({"labels": torch.arange(6), "num_classes": 3}, ValueError, r"labels must lie in \[0, 2\], got the value 5"),
        ({"strengths": []}, ValueError, "strengths must hold at least one number above 0"),
        ({"strengths": [-1.0]}, ValueError, "strengths must be a finite number"),
        ({"features_train": [1, 2]}, TypeError, "features_train must be a torch tensor, got list"),
    ],
)
def test_bad_input_of_a_probe(change, kind, message):
    given_values = {"features_train": draw(6, 3), "labels": torch.arange(6) % 2, "features_test": draw(5, 3)}
    with pytest.raises(kind, match=message):
        probe(**(given_values | change))


# Predictive power


def test_power_of_is_probe_after_probe(classed):
    x, y = classed
    layers = {"a": (x[:90], x[90:]), "b": (x[:90] ** 2, x[90:] ** 2), "c": (x[:90, :2], x[90:, :2])}
    table = power_of(layers, y[:90], y[90:], per_class=[2, 5], draws=3, seed=4)
    assert len(table) == 3 * 2 * 3
    for row in table.itertuples():
        places = draw_clean(y[:90], row.per_class, nls.seeded_generator(4, f"clean {row.draw}"))
        values, test = layers[row.layer]
        fitted = probe(values[places], y[:90][places], test)
        assert row.accuracy == pytest.approx(float((fitted.predicted == y[90:]).double().mean()))
        assert row.strength == pytest.approx(float(fitted.strength))


def test_real_targets_are_scored_in_percent():
    x = draw(60, 3)
    y = 10 + x[:, 0]
    table = power_of({"x": (x[:40], x[40:])}, y[:40], y[40:], per_class=20, draws=2)
    assert "accuracy" not in table
    fitted = probe(x[draw_clean(y[:40], 20, nls.seeded_generator(0, "clean 1"))], y[:20], x[40:])
    places = draw_clean(y[:40], 20, nls.seeded_generator(0, "clean 1"))
    fitted = probe(x[places], y[places], x[40:])
    by_hand = np.mean([100 * abs(float(p) - float(t)) / float(t) for p, t in zip(fitted.outputs, y[40:], strict=True)])
    assert table["mape"][1] == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="test_labels must not hold 0 for a percentage error"):
        power_of({"x": (x[:40], x[40:])}, y[:40], torch.zeros(20), per_class=20, draws=1)


def test_a_stack_is_probed_as_its_members_are(classed):
    x, y = classed
    stack = small_stack(2)
    places = {"pool": torch.arange(90), "test": torch.arange(90, 150), "data": (x, y)}
    options = {"per_class": [1, 4], "draws": 2, "controls": ("map", "fine-tune", "scratch", "random")}
    whole = predictive_power(stack, **places, **options, tuning={"steps": 5})
    assert set(whole["method"]) == {"probe", "input", "network", "map", "fine-tune", "scratch", "random"}
    for member in range(2):
        alone = predictive_power(as_module(stack, member), **places, **options, tuning={"steps": 5})
        mine = whole[(whole["member"] == member) | (whole["method"] == "input")]
        for method, layers in (
            ("probe", {"1": "hidden1", "3": "hidden2"}),
            ("map", {}),
            ("fine-tune", {}),
            ("input", {}),
        ):
            a = alone[alone["method"] == method].replace({"layer": layers}).set_index(["layer", "per_class", "draw"])
            b = mine[mine["method"] == method].set_index(["layer", "per_class", "draw"])
            np.testing.assert_allclose(a["accuracy"], b["accuracy"].reindex(a.index), atol=1e-9, err_msg=method)
        own = as_module(stack, member)(x[90:]).argmax(1)
        row = mine[mine["method"] == "network"]
        assert row["accuracy"].item() == pytest.approx(float((own == y[90:]).double().mean()))
        assert row["per_class"].item() == 0


def test_controls_of_an_image_network():
    images = (torch.arange(60 * 64) * 37 % 251).to(torch.uint8).view(60, 1, 8, 8)
    y = torch.arange(60) % 2
    images[y == 1, :, :4] = 255
    fit = nls.fit_each(images[:20], y[:20], num_classes=2, epochs=1, batch_size=10)
    parts = {"pool": torch.arange(20, 40), "test": torch.arange(40, 60), "train": torch.arange(20)}
    table = predictive_power(
        fit, **parts, data=(images, y), per_class=3, draws=2, controls=("scratch", "fine-tune"), tuning={"steps": 20}
    )
    means = table.groupby("method")["accuracy"].mean()
    assert set(means.index) == {"probe", "input", "network", "scratch", "fine-tune"}
    assert means[["probe", "input", "fine-tune"]].min() > 0.9
    again = predictive_power(fit, **parts, data=(images, y), per_class=3, draws=2)
    probed = table[table["method"] == "probe"]["accuracy"].tolist()
    assert again[again["method"] == "probe"]["accuracy"].tolist() == probed


def test_predictive_power_says_what_is_wrong(classed):
    x, y = classed
    with pytest.raises(ValueError, match="controls must be one of 'random', 'map', 'scratch', 'fine-tune', got 'none'"):
        predictive_power(small_mlp(), (x[:9], y[:9]), (x[9:], y[9:]), controls=["none"])
    with pytest.raises(ValueError, match="pool must be features and labels of one length, or places with data="):
        predictive_power(small_mlp(), torch.arange(9), (x[9:], y[9:]))
    with pytest.raises(ValueError, match="per_class must be at most 3, what class 0 has, got 4"):
        predictive_power(small_mlp(), (x[:9], y[:9]), (x[9:], y[9:]), per_class=4)


def test_intervals_average_what_is_not_the_sample(classed):
    x, y = classed
    tables = [
        power_of({"x": (x[:90], x[90:])}, y[:90], y[90:], per_class=2, draws=4, seed=seed).assign(seed=seed)
        for seed in range(3)
    ]
    table = nls.stats.pd.concat(tables)
    over_seeds = power_intervals(table, over="seed")["x", 2]
    assert over_seeds.n == 3
    expected = nls.mean_interval([t["accuracy"].mean() for t in tables])
    assert (over_seeds.low, over_seeds.high) == pytest.approx((expected.low, expected.high))
    assert power_intervals(table)["x", 2].n == 4
    with pytest.raises(ValueError, match="table must have 'run' and 'accuracy' or 'mape', got layer"):
        power_intervals(table, over="run")


# The same labels, spent otherwise


def test_an_untrained_network_is_new_and_reproducible():
    network = build_network("cnn", 10, 1)
    network[0][2].running_mean.fill_(3.0)
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    first, second, other = (untrained(network, seed) for seed in (0, 0, 1))
    assert float(first[0][2].running_mean.abs().max()) == 0
    weights = [parameter[-1].weight for parameter in (first, second, other, network)]
    assert bool((weights[0] == weights[1]).all())
    assert not bool((weights[0] == weights[2]).any())
    assert not bool((weights[0] == weights[3]).any())
    assert all(bool((kept[name] == value).all()) for name, value in network.state_dict().items())
    stack = small_stack(2)
    assert not bool((stack.weights[0][0] == stack.weights[0][1]).any())

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(ValueError, match=r"can be initialised anew, got 1 \(Bare\), which cannot"):
        untrained(nn.Sequential(nn.Linear(2, 2), Bare()))


@FAST
@given(seed=st.integers(0, 10**6))
def test_the_gold_map_undoes_any_invertible_channel(seed):
    rng = np.random.default_rng(seed)
    matrix = torch.from_numpy(0.7 * np.eye(4)[rng.permutation(4)] + 0.3 * rng.dirichlet(np.ones(4), size=4))
    clean = torch.from_numpy(rng.dirichlet(np.ones(4), size=30))
    gold = torch.eye(4).double() @ matrix  # what a model says of examples whose class is certain
    labels = torch.tensor([0, 1, 2, 3, 3, 2, 3])  # unequal numbers, whose means are these rows
    noise = torch.from_numpy(rng.normal(size=4)) / 100
    gold = torch.cat([gold, gold[[3, 2, 3]]])
    gold[[4, 6]] += torch.stack([noise, -noise])
    scores = gold_map(gold, labels, clean @ matrix, 4)
    torch.testing.assert_close(scores, clean, atol=1e-6, rtol=0)


def test_fine_tuning_a_stack_is_fine_tuning_its_members():
    stack, x = small_stack(3), draw(3, 10, 4).float()
    y = torch.randperm(30, generator=seeded()).view(3, 10) % 3
    before = stack.parameters.clone()
    tuned = fine_tune(stack, x, y, steps=12, learning_rate=0.01, weight_decay=0.1)
    assert bool((stack.parameters == before).all())
    assert not tuned.parameters.requires_grad
    for i in range(3):
        alone = fine_tune(as_module(stack, i), x[i], y[i], steps=12, learning_rate=0.01, weight_decay=0.1)
        torch.testing.assert_close(tuned.forward(x[0])[i], alone(x[0]).detach(), atol=1e-4, rtol=1e-3)
    shared = fine_tune(stack, x[0], y[0], steps=3)
    torch.testing.assert_close(
        shared.part(slice(1)).parameters, fine_tune(stack.part(slice(1)), x[0], y[0], steps=3).parameters
    )


def test_fine_tuning_keeps_the_statistics_of_a_normalisation_unless_told():
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    x, y = draw(12, 4).float() + 5, torch.arange(12) % 2
    frozen = fine_tune(network, x, y, steps=3)
    moving = fine_tune(network, x, y, steps=3, frozen_statistics=False)
    assert not frozen.training
    assert not moving.training
    assert bool((frozen[1].running_mean == network[1].running_mean).all())
    assert not bool((moving[1].running_mean == network[1].running_mean).any())
    line = fine_tune(nn.Linear(4, 1), x, x[:, 0], steps=2000, learning_rate=0.01)
    torch.testing.assert_close(line(x).squeeze(1).detach(), x[:, 0], atol=0.2, rtol=0)
    with pytest.raises(ValueError, match="learning_rate must be a finite number"):
        fine_tune(network, x, y, learning_rate=0.0)


def test_the_module_is_an_attribute_of_the_package():
    assert nls.probes is probes
    assert all(hasattr(probes, name) for name in probes.__all__)
