import functools
import math
import os
import warnings

import pytest
import torch
from torch import nn

from nls.batches import TensorBatches, channel_statistics
from nls.each import fit_each
from nls.models import build_network, embedding_classifier, predict_logits
from nls.stack import StackedMLP
from nls.training import fit_stack, schedule_factor, seeded_generator

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def make_vectors(n=50, d=4, num_classes=3):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return features, torch.randint(num_classes, (n,), generator=generator)


def make_images(n=40, channels=1, side=8, num_classes=3):
    """Images whose class shows: a bright row."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(num_classes, (n,), generator=generator)
    images = torch.randint(100, (n, channels, side, side), dtype=torch.uint8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 2 * label + 1] += 120
    return images, labels


def mlp(seed=0, sizes=(4, 6, 3)):
    """The network of the stacked engine as a module, with its initialisation."""
    layers = []
    for weight, bias in StackedMLP(sizes, 1, seeded_generator(seed, "init"), torch.float64).member(0):
        linear = nn.Linear(*weight.shape, dtype=torch.float64)
        linear.weight.data, linear.bias.data = weight.T.clone(), bias.clone()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def parameters_of(network):
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def equal_bits(first, second):
    """Whether two runs ended with the same curves, parameters and buffers."""
    same = first.curves.keys() == second.curves.keys() and first.diverged_epoch == second.diverged_epoch
    for name in first.curves:
        same = same and torch.equal(first.curves[name].nan_to_num(7), second.curves[name].nan_to_num(7))
    states = first.network.state_dict(), second.network.state_dict()
    return (
        same
        and states[0].keys() == states[1].keys()
        and all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    )


def naive_loss(logits, labels, rate):
    losses = -logits.log_softmax(-1)
    return (1 - rate) * losses[torch.arange(len(labels)), labels] + rate * losses.mean(-1)


# The same training as elsewhere.


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "smooth_rate": -1.0, "weight_decay": 0.01},
        {"optimizer": "adam", "smooth_rate": 0.3, "loss_scale": 0.5, "weight_decay": 0.1},
        {"optimizer": "sgd", "momentum": 0.0, "schedule": "cosine"},
        {"optimizer": "adam", "schedule": "step", "warmup_epochs": 2, "smooth_rate": -2.0},
        {"optimizer": "sgd", "warmup_epochs": 1, "warmup_learning_rate": 0.2, "loss_scale": 1.5, "smooth_rate": -0.4},
        {"optimizer": "sgd", "max_update_norm": 0.02, "schedule": "cosine", "smooth_rate": -3.0},
        {"optimizer": "adam", "max_update_norm": 0.03, "warmup_epochs": 1},
    ],
)
def test_it_is_the_training_of_a_member_of_a_stack(options):
    features, labels = make_vectors()
    options = {"num_classes": 3, "epochs": 4, "batch_size": 16, "learning_rate": 0.05, "seed": 3} | options
    stack = fit_stack(features, labels[None], hidden=(6,), **options)
    fit = fit_each(features, labels, network=functools.partial(mlp, 3), **options)
    expected = torch.cat([torch.cat([w.T.flatten(), b]) for w, b in stack.stack.member(0)])
    torch.testing.assert_close(parameters_of(fit.network), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(fit.curves["train_loss"], stack.curves["train_loss"][0], rtol=0, atol=1e-12)


def train_plainly(images, labels, rate, *, seed, epochs, batch_size, learning_rate, schedule, nesterov, augment=None):
    """The oracle: torch's default layout and optimiser, a loop that anyone would write, float64."""
    network = build_network("cnn", 3, images.shape[1], seed).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9, nesterov=nesterov)
    mean, std = channel_statistics(images)
    batches = TensorBatches(images, batch_size, mean=mean, std=std, augment=augment, seed=seed, dtype=torch.float64)
    losses, step = [], 0
    for _ in range(epochs):
        total = 0.0
        for x, index in batches:
            optimizer.param_groups[0]["lr"] = learning_rate * schedule_factor(schedule, step, epochs * len(batches))
            optimizer.zero_grad()
            loss = naive_loss(network(x.contiguous()), labels[index], rate)
            loss.mean().backward()
            optimizer.step()
            total, step = total + float(loss.detach().sum()), step + 1
        losses.append(total / len(images))
    return network, losses


@pytest.mark.parametrize(("nesterov", "augment"), [(False, None), (True, "crop_flip")])
def test_images_are_trained_on_as_in_a_plain_loop(nesterov, augment):
    images, labels = make_images()
    options = {"seed": 1, "epochs": 3, "batch_size": 16, "learning_rate": 0.02, "schedule": "cosine"}
    options |= {"nesterov": nesterov, "augment": augment}
    plain, losses = train_plainly(images, labels, -0.5, **options)
    fit = fit_each(images, labels, -0.5, network="cnn", num_classes=3, **options)
    assert fit.curves["train_loss"].tolist() == pytest.approx(losses, rel=1e-3)
    torch.testing.assert_close(parameters_of(fit.network).double(), parameters_of(plain), rtol=1e-3, atol=1e-3)
    started = parameters_of(build_network("cnn", 3, 1, 1)).double()
    assert float((parameters_of(plain) - started).abs().max()) > 0.02


def test_it_learns_and_carries_the_statistics_of_its_images():
    images, labels = make_images(200)
    fit = fit_each(images, labels, num_classes=3, epochs=6, batch_size=32)
    mean, std = channel_statistics(images)
    logits = predict_logits(fit.network, images)
    assert float((logits.argmax(1) == labels).float().mean()) > 0.95
    assert torch.equal(logits, predict_logits(fit.network, images, mean=mean, std=std))
    build_network("cnn", 3, 1).load_state_dict(fit.network.state_dict())
    assert not fit.network.training


# Losses of one's own.


class RunningTargets(nn.Module):
    """Regularises towards a running average of each example's own predictions."""

    def __init__(self, n, num_classes, beta=0.7, weight=3.0):
        super().__init__()
        self.beta, self.weight = beta, weight
        self.register_buffer("memory", torch.zeros(n, num_classes))

    def forward(self, logits, labels, indices):
        model = logits.softmax(1).clamp(1e-4, 1 - 1e-4)
        self.memory[indices] = self.beta * self.memory[indices] + (1 - self.beta) * model.detach()
        agreement = (self.memory[indices] * model).sum(1)
        return nn.functional.cross_entropy(logits, labels, reduction="none") + self.weight * (1 - agreement).log()


def test_a_loss_with_memory_sees_the_positions_of_its_examples():
    features, labels = make_vectors()
    options = {"num_classes": 3, "epochs": 4, "batch_size": 16, "learning_rate": 0.05, "momentum": 0.0}
    loss = RunningTargets(50, 3).double()
    fit = fit_each(features, labels, network=mlp, loss=loss, **options)
    network, order = mlp(), seeded_generator(0, "order")
    memory = [torch.zeros(3, dtype=torch.float64) for _ in labels]
    for _ in range(4):
        for batch in torch.randperm(50, generator=order).split(16):
            total = 0.0
            for i in batch.tolist():
                p = network(features[i]).softmax(0).clamp(1e-4, 1 - 1e-4)
                memory[i] = 0.7 * memory[i] + 0.3 * p.detach()
                total = total - network(features[i]).log_softmax(0)[labels[i]] + 3.0 * (1 - memory[i] @ p).log()
            gradients = torch.autograd.grad(total / len(batch), list(network.parameters()))
            for value, gradient in zip(network.parameters(), gradients, strict=True):
                value.data -= 0.05 * gradient
    torch.testing.assert_close(parameters_of(fit.network), parameters_of(network), rtol=0, atol=1e-12)
    torch.testing.assert_close(loss.memory, torch.stack(memory), rtol=0, atol=1e-12)


def test_which_losses_get_positions():
    features, labels = make_vectors()
    seen = []

    def with_default(logits, labels, indices=None):
        seen.append(indices)
        return naive_loss(logits, labels, 0.0)

    def unnamed(logits, labels, _):
        seen.append(_)
        return naive_loss(logits, labels, 0.0)

    def other_default(logits, labels, rate=0.0):
        return naive_loss(logits, labels, rate)

    runs = [
        fit_each(features, labels, network=mlp, num_classes=3, epochs=1, batch_size=50, loss=loss)
        for loss in (with_default, unnamed, other_default, None)
    ]
    order = torch.randperm(50, generator=seeded_generator(0, "order"))
    assert len(seen) == 2
    assert all(torch.equal(index, order) for index in seen)
    for run in runs[:-1]:
        torch.testing.assert_close(parameters_of(run.network), parameters_of(runs[-1].network), rtol=0, atol=1e-14)


def test_warm_up_uses_neither_the_loss_nor_its_scale():
    features, labels = make_vectors()
    calls = []

    def loss(logits, labels):
        calls.append(len(labels))
        return 2 * naive_loss(logits, labels, 0.5)

    options = {"network": mlp, "num_classes": 3, "batch_size": 25, "epochs": 1}
    fit = fit_each(features, labels, loss=loss, loss_scale=3.0, warmup_epochs=2, **options)
    plain = fit_each(features, labels, **options | {"epochs": 2})
    assert calls == [25, 25]
    assert fit.curves["train_loss"].shape == (3,)
    torch.testing.assert_close(fit.curves["train_loss"][:2], plain.curves["train_loss"], rtol=0, atol=1e-14)


# Divergence.


def test_divergence_is_reported_and_ends_the_run():
    images, labels = make_images()
    calls = []
    fit = fit_each(
        images, labels, -8.0, num_classes=3, epochs=6, batch_size=16, learning_rate=1e30,
        evaluate=lambda network: calls.append(1) or {"a": float(len(calls))},
    )  # fmt: skip
    epoch = fit.diverged_epoch
    assert 1 <= epoch < 6
    assert len(calls) == epoch
    for curve in fit.curves.values():
        assert curve.shape == (6,)
        assert bool(curve[epoch - 1 :].isnan().all())
        assert bool(curve[: epoch - 1].isfinite().all())


def test_parameters_that_are_not_finite_count_although_the_loss_is():
    """The gradient of a square root at 0 is infinite; the loss itself is 0."""
    features, labels = make_vectors()

    def loss(logits, labels):
        return (logits - logits.detach())[:, 0].sqrt()

    fit = fit_each(features, labels, network=mlp, num_classes=3, epochs=3, batch_size=50, loss=loss)
    assert fit.diverged_epoch == 1
    assert bool(fit.curves["train_loss"].isnan().all())


def test_an_update_whose_length_overflows_counts_as_diverged():
    features, labels = make_vectors()
    options = {"network": mlp, "num_classes": 3, "epochs": 2, "learning_rate": 1e300}
    assert (
        fit_each(features.float(), labels, max_update_norm=1.0, **options | {"learning_rate": 1e30}).diverged_epoch == 1
    )
    assert fit_each(features, labels, max_update_norm=1.0, **options | {"learning_rate": 1e6}).diverged_epoch == 0


# What is drawn, and what is measured.


def test_random_state_of_the_caller_is_neither_used_nor_changed():
    features, labels = make_vectors()

    def build():
        return nn.Sequential(nn.Linear(4, 20), nn.Dropout(0.5), nn.Linear(20, 3))

    runs = []
    for start in (1, 2):
        torch.manual_seed(start)
        before = torch.get_rng_state()
        runs.append(fit_each(features, labels, network=build, num_classes=3, epochs=2, seed=5))
        assert torch.equal(torch.get_rng_state(), before)
    assert equal_bits(*runs)
    assert not equal_bits(runs[0], fit_each(features, labels, network=build, num_classes=3, epochs=2, seed=6))


def test_evaluate_sees_the_network_in_evaluation_mode_after_each_epoch():
    images, labels = make_images()
    modes, networks = [], []

    def evaluate(network):
        modes.extend(module.training for module in network.modules())
        networks.append(network)
        assert not torch.is_grad_enabled()
        return {"epoch": len(networks), "tensor": torch.tensor(0.5), "none": math.nan}

    fit = fit_each(images, labels, num_classes=3, epochs=3, evaluate=evaluate)
    assert modes
    assert not any(modes)
    assert all(network is fit.network for network in networks)
    assert fit.curves["epoch"].tolist() == [1, 2, 3]
    assert fit.curves["tensor"].tolist() == [0.5] * 3
    assert fit.curves["epoch"].dtype == torch.float64
    assert int(fit.network[0][2].num_batches_tracked) == 3, "batch statistics are only gathered in training"


@pytest.mark.parametrize(
    ("evaluate", "error", "message"),
    [
        (lambda _: None, TypeError, "evaluate must return a dict, got None"),
        (lambda _: {"a": "x"}, TypeError, "evaluate must return one number for each name"),
        (lambda _: {"a": torch.zeros(2)}, TypeError, "evaluate must return one number for each name"),
        (lambda _, calls=[]: calls.append(1) or {str(len(calls)): 0}, ValueError, "same names every time"),
    ],
)
def test_bad_measurements_are_refused(evaluate, error, message):
    features, labels = make_vectors()
    with pytest.raises(error, match=message):
        fit_each(features, labels, network=mlp, num_classes=3, epochs=2, evaluate=evaluate)


# Precision, compilation, layout.


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_trains_nearly_the_same(precision):
    images, labels = make_images()
    options = {"num_classes": 3, "epochs": 3, "batch_size": 16, "learning_rate": 0.02}
    types = set()

    def loss(logits, labels):
        types.add(logits.dtype)
        return naive_loss(logits, labels, -0.5)

    exact = fit_each(images, labels, -0.5, **options)
    rounded = fit_each(images, labels, loss=loss, precision=precision, **options)
    assert types == {torch.float32}, "the loss is computed in float32"
    assert {value.dtype for value in rounded.network.parameters()} == {torch.float32}
    difference = (rounded.curves["train_loss"] - exact.curves["train_loss"]).abs()
    assert 0 < float(difference.max()) < 0.1


def test_half_precision_scales_the_loss(monkeypatch):
    """Without the scale, gradients this small vanish in float16."""
    images, labels = make_images()
    options = {
        "num_classes": 3,
        "epochs": 1,
        "batch_size": 40,
        "learning_rate": 1e6,
        "loss_scale": 1e-6,
        "momentum": 0.0,
    }
    fits = {precision: fit_each(images, labels, precision=precision, **options) for precision in ("float32", "float16")}
    kind = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: kind(device, enabled=False))
    fits["unscaled"] = fit_each(images, labels, precision="float16", **options)
    start = parameters_of(build_network("cnn", 3, 1))
    moves = {name: float((parameters_of(fit.network) - start).norm()) for name, fit in fits.items()}
    assert moves["float16"] == pytest.approx(moves["float32"], rel=0.02)
    assert moves["unscaled"] < 0.5 * moves["float32"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_that_overflow_are_left_out(optimizer):
    """The first steps overflow, as a rule, until the scaler has found its scale; nothing of them may remain."""
    images, labels = make_images()
    options = {"num_classes": 3, "batch_size": 40, "optimizer": optimizer, "precision": "float16"}
    first, more = (fit_each(images, labels, loss_scale=100.0, learning_rate=1e-4, epochs=n, **options) for n in (1, 12))
    assert torch.equal(parameters_of(first.network), parameters_of(build_network("cnn", 3, 1)))
    assert more.diverged_epoch == 0
    assert float(more.curves["train_loss"][-1]) < float(more.curves["train_loss"][0]) - 0.01


def test_compile_is_used_for_training_only_when_asked(monkeypatch):
    images, labels = make_images()
    seen = []

    def fake(network):
        seen.append(network)
        return lambda x: network(x)

    monkeypatch.setattr(torch, "compile", fake)
    plain = fit_each(images, labels, num_classes=3, epochs=1)
    assert not seen
    compiled = fit_each(images, labels, num_classes=3, epochs=1, compile=True)
    assert seen == [compiled.network]
    assert equal_bits(plain, compiled)


def test_images_train_channels_last():
    images, labels = make_images(channels=3)
    layouts = []

    def build():
        network = build_network("cnn", 3, 3)
        network.register_forward_pre_hook(
            lambda _, x: layouts.append(x[0].is_contiguous(memory_format=torch.channels_last))
        )
        return network

    fit = fit_each(images, labels, network=build, num_classes=3, epochs=1, batch_size=16)
    assert layouts == [True] * 3
    weight = fit.network[1][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


# Checkpoints.


class StoppedError(Exception):
    """What ends a run from outside."""


def stop_after(epochs):
    calls = []

    def evaluate(network):
        calls.append(1)
        if len(calls) > epochs:
            raise StoppedError
        return measure(network)

    return evaluate


def measure(network):
    return {"norm": float(parameters_of(network).norm())}


def drop_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Dropout(0.3), nn.Linear(12, 3))


RUNS = {
    "sgd": {"network": "cnn"},
    "adam, crops": {"network": "cnn", "optimizer": "adam", "learning_rate": 1e-3, "augment": "crop_flip"},
    "nesterov, cosine, limit": {"network": "cnn", "nesterov": True, "schedule": "cosine", "max_update_norm": 0.1},
    "dropout": {"network": drop_network},
    "warm-up": {"network": "cnn", "epochs": 2, "warmup_epochs": 2, "optimizer": "adam", "warmup_learning_rate": 0.01},
    # A loss this large overflows in float16 until the scaler has lowered its scale, which the rest of the run keeps.
    "half": {"network": drop_network, "precision": "float16", "loss_scale": 100.0, "learning_rate": 1e-4},
    "memory": {"network": drop_network, "loss": functools.partial(RunningTargets, 40, 3), "smooth_rate": 0.0},
}


def run_cell(name, evaluate=measure, checkpoint=None, **change):
    images, labels = make_images()
    options = {"num_classes": 3, "epochs": 4, "batch_size": 16, "smooth_rate": -0.4, "seed": 2} | RUNS[name] | change
    loss = options.pop("loss", None)
    return fit_each(images, labels, loss=loss and loss(), evaluate=evaluate, checkpoint=checkpoint, **options)


@pytest.mark.parametrize("pick", [None, "train_loss"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_shared_warm_up_changes_no_bit(tmp_path, pick, checkpoint):
    """Every run alone, with its own warm-up, is the oracle."""
    options = {"warmup_epochs": 3, "epochs": 2, "warmup_learning_rate": 0.05, "warmup_schedule": "thirds"}
    options |= {"warmup_pick": pick, "augment": "crop_flip"}
    kept, trained = {}, []

    def count(network):
        trained.append(1)
        return measure(network)

    for i, rate in enumerate((0.4, -0.4, -1.0)):
        path = tmp_path / f"{i}.checkpoint" if checkpoint else None
        alone = run_cell("sgd", smooth_rate=rate, **options)
        shared = run_cell("sgd", count, path, smooth_rate=rate, shared_warmup=kept, **options)
        assert {name: curve.tolist() for name, curve in shared.curves.items()} == {
            name: curve.tolist() for name, curve in alone.curves.items()
        }
        state = alone.network.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in shared.network.state_dict().items())
    assert len(kept) == 1
    assert len(trained) == 3 + 3 * 2
    run_cell("sgd", smooth_rate=0.4, shared_warmup=kept, **options | {"warmup_learning_rate": 0.06})
    assert len(kept) == 2  # another warm-up is not taken for this one


def test_a_warm_up_may_hand_over_its_best_epoch():
    """What follows starts from the epoch that is picked; the first of equal ones."""
    scores, states = iter([0.2, 0.9, 0.9, 0.1, 0.5]), []

    def score(network):
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        return {"score": next(scores)}

    options = {"warmup_epochs": 4, "epochs": 1, "learning_rate": 1e-12, "warmup_learning_rate": 0.05}
    run_cell("dropout", score, warmup_pick="score", smooth_rate=0.0, **options)
    weights = [state["1.weight"] for state in states]
    assert torch.equal(weights[4], weights[1])
    assert not torch.equal(weights[4], weights[2])
    with pytest.raises(ValueError, match=r"warmup_pick must be one of what evaluate returns.* got 'other'"):
        run_cell("dropout", warmup_pick="other", warmup_epochs=1)
    with pytest.raises(
        ValueError, match="warmup_pick must be a name that evaluate returns, with warmup_epochs above 0"
    ):
        run_cell("dropout", warmup_pick="score")


def test_a_loss_sees_the_network_when_it_takes_over():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def prepare(self, network):
            self.seen.append(network(torch.zeros(2, 1, 8, 8)).shape)

        def forward(self, logits, labels):
            assert len(self.seen) == 1
            return nn.functional.cross_entropy(logits, labels, reduction="none")

    loss = Asks()
    run_cell("sgd", warmup_epochs=2, smooth_rate=0.0, loss=lambda: loss)
    assert loss.seen == [(2, 3)]


def test_token_ids_are_trained_on_as_they_are():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (80,), generator=generator)
    tokens = torch.randint(3, 20, (80, 6), generator=generator)
    tokens[:, 0] = 1 + labels  # a word that tells the class
    build = functools.partial(embedding_classifier, 2, 20, 8)
    fit = fit_each(
        tokens, labels, network=build, num_classes=2, epochs=30, batch_size=16, optimizer="adam", learning_rate=0.05
    )
    assert (predict_logits(fit.network, tokens).argmax(1) == labels).double().mean() > 0.95
    with pytest.raises(ValueError, match="features must be images"):
        fit_each(tokens, labels, network="cnn", num_classes=2)


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_goes_on_ends_with_the_same_bits(tmp_path, name, epochs):
    whole = run_cell(name)
    path = tmp_path / "cell.checkpoint"
    with pytest.raises(StoppedError):
        run_cell(name, stop_after(epochs), path)
    assert [file.name for file in tmp_path.iterdir()] == ["cell.checkpoint"]
    torch.manual_seed(epochs)
    evaluations = []
    resumed = run_cell(name, lambda network: evaluations.append(1) or measure(network), path)
    assert len(evaluations) == 4 - epochs
    assert equal_bits(resumed, whole)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_changes_nothing_and_is_written_every_so_many_epochs(tmp_path):
    path = tmp_path / "cell.checkpoint"
    seen = []

    def evaluate(network):
        seen.append(path.stat().st_mtime_ns if path.exists() else 0)
        return measure(network)

    checked = run_cell("sgd", evaluate, path, epochs=6, checkpoint_every=2)
    assert seen[:2] == [0, 0]
    assert seen[2] == seen[3] > 0
    assert seen[4] == seen[5] > seen[3]
    assert equal_bits(checked, run_cell("sgd", epochs=6))


def test_a_kill_between_two_checkpoints_goes_on_from_the_last(tmp_path):
    path = tmp_path / "cell.checkpoint"
    with pytest.raises(StoppedError):
        run_cell("sgd", stop_after(3), path, checkpoint_every=2)
    evaluations = []
    resumed = run_cell("sgd", lambda network: evaluations.append(1) or measure(network), path, checkpoint_every=2)
    assert len(evaluations) == 2
    assert equal_bits(resumed, run_cell("sgd"))


def write_one(path, name="sgd", **change):
    with pytest.raises(StoppedError):
        run_cell(name, stop_after(2), path, **change)
    return path.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped head", "flipped tensor", "longer"])
def test_a_damaged_checkpoint_is_named_and_not_used(tmp_path, damage):
    path = tmp_path / "cell.checkpoint"
    content = write_one(path)
    middle = len(content) // 2
    path.write_bytes(
        {
            "cut": content[:-100],
            "empty": b"",
            "text": b"hello",
            "flipped head": bytes([content[0] ^ 1]) + content[1:],
            "flipped tensor": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "longer": content + b"x",
        }[damage]
    )
    with pytest.warns(RuntimeWarning, match=r"cell\.checkpoint is damaged or cut short: training starts anew"):
        again = run_cell("sgd", checkpoint=path)
    assert equal_bits(again, run_cell("sgd"))
    assert not path.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"smooth_rate": -0.5}, {"seed": 3}, {"epochs": 5}, {"learning_rate": 0.06}, {"batch_size": 15},
        {"weight_decay": 1e-4}, {"momentum": 0.8}, {"schedule": "cosine"}, {"augment": "crop_flip"},
        {"network": drop_network}, {"precision": "bfloat16"}, {"loss_scale": 0.5}, {"max_update_norm": 9.0},
        {"warmup_epochs": 1}, {"optimizer": "adam"}, {"num_classes": 4},
        {"loss": lambda: lambda z, y: naive_loss(z, y, -0.4), "smooth_rate": 0.0},
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_run_is_named_and_not_used(tmp_path, change):
    path = tmp_path / "cell.checkpoint"
    write_one(path)
    with pytest.warns(RuntimeWarning, match="belongs to a run with other data, arguments or versions"):
        again = run_cell("sgd", checkpoint=path, **change)
    assert equal_bits(again, run_cell("sgd", **change))


def test_a_checkpoint_of_other_data_is_not_used(tmp_path):
    path = tmp_path / "cell.checkpoint"
    images, labels = make_images()
    other_labels, other_images = labels.clone(), images.clone()
    other_labels[0] = (labels[0] + 1) % 3
    other_images[0, 0, 0, 0] ^= 1
    options = {"num_classes": 3, "epochs": 4, "batch_size": 16, "checkpoint": path}
    for changed in ((images, other_labels), (other_images, labels)):
        with pytest.raises(StoppedError):
            fit_each(images, labels, evaluate=stop_after(2), **options)
        with pytest.warns(RuntimeWarning, match="other data"):
            fit_each(*changed, **options)


def make_loss(rate):
    return lambda logits, labels: naive_loss(logits, labels, rate)


def test_two_losses_of_one_name_are_told_apart(tmp_path):
    path = tmp_path / "cell.checkpoint"
    features, labels = make_vectors()
    options = {"network": mlp, "num_classes": 3, "epochs": 4, "checkpoint": path}
    with pytest.raises(StoppedError):
        fit_each(features, labels, loss=make_loss(-1.0), evaluate=stop_after(2), **options)
    kept = path.read_bytes()
    with pytest.warns(RuntimeWarning, match="belongs to a run with other"):
        fit_each(features, labels, loss=make_loss(-2.0), **options)
    path.write_bytes(kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_each(features, labels, loss=make_loss(-1.0), evaluate=measure, **options)


def test_a_memory_that_cannot_be_saved_is_refused_with_a_checkpoint(tmp_path):
    features, labels = make_vectors()
    memory = torch.zeros(50, dtype=torch.float64)

    def loss(logits, labels, indices):
        memory[indices] += 1
        return naive_loss(logits, labels, 0.0) * (1 + memory[indices])

    options = {"network": mlp, "num_classes": 3, "epochs": 1, "loss": loss}
    with pytest.raises(ValueError, match="loss must have state_dict and load_state_dict to be used with a checkpoint"):
        fit_each(features, labels, checkpoint=tmp_path / "c", **options)
    fit_each(features, labels, **options)


def test_a_loss_may_draw_and_goes_on_with_its_draws(tmp_path):
    """Only memory has to be saved by the loss itself; what it draws comes from the state of the run."""

    def loss():
        return lambda logits, labels: naive_loss(logits, labels, 0.0) * torch.rand(len(labels))

    path = tmp_path / "cell.checkpoint"
    whole = run_cell("memory", loss=loss)
    with pytest.raises(StoppedError):
        run_cell("memory", stop_after(2), path, loss=loss)
    assert equal_bits(run_cell("memory", checkpoint=path, loss=loss), whole)


def test_looking_at_a_loss_does_not_train_its_memory(tmp_path):
    """What tells losses apart asks a copy."""
    runs, losses = [], []
    for checkpoint in (None, tmp_path / "cell.checkpoint"):
        losses.append(RunningTargets(40, 3))
        runs.append(run_cell("memory", checkpoint=checkpoint, loss=lambda: losses[-1]))
    assert equal_bits(*runs)
    assert torch.equal(losses[0].memory, losses[1].memory)


def test_a_write_that_fails_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "cell.checkpoint"
    calls = []

    def full(_):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run_cell("sgd", checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["cell.checkpoint"]
    evaluations = []
    resumed = run_cell("sgd", lambda network: evaluations.append(1) or measure(network), path)
    assert len(evaluations) == 3
    assert resumed.curves["norm"].shape == (4,)


def test_a_diverged_run_leaves_no_checkpoint(tmp_path):
    path = tmp_path / "cell.checkpoint"
    fit = run_cell("sgd", checkpoint=path, learning_rate=1e30)
    assert fit.diverged_epoch
    assert not path.exists()


# Bad input.

FIT = {"num_classes": 3, "epochs": 1, "network": mlp}
BAD = {
    "features of a list": ({"features": [1]}, TypeError, "features must be a torch tensor"),
    "integers": (
        {"features": torch.ones(50, 4).int()},
        ValueError,
        "features must be uint8, int64, float32 or float64",
    ),
    "half": ({"features": torch.ones(50, 4).half()}, ValueError, "features must be uint8, int64, float32 or float64"),
    "no features": ({"features": torch.ones(0, 4), "labels": torch.zeros(0).long()}, ValueError, "none of them empty"),
    "not finite": ({"features": torch.full((50, 4), math.inf)}, ValueError, "features must be finite, got 200"),
    "labels too short": ({"labels": torch.zeros(49).long()}, ValueError, r"labels \[n\].*\(50, 4\) and \(49,\)"),
    "labels of two axes": ({"labels": torch.zeros(1, 50).long()}, ValueError, r"labels \[n\]"),
    "labels of floats": ({"labels": torch.zeros(50)}, TypeError, "labels must hold integer class indices"),
    "label too large": ({"labels": torch.full((50,), 3)}, ValueError, r"\[0, 2\], got the value 3"),
    "rate above one": ({"smooth_rate": 1.5}, ValueError, "smooth_rate must be a finite number"),
    "rate of two": ({"smooth_rate": torch.zeros(2)}, TypeError, "smooth_rate must be a real number"),
    "rate and loss": (
        {"smooth_rate": 0.1, "loss": make_loss(0.0)},
        ValueError,
        "smooth_rate must not be given with a loss",
    ),
    "no epochs": ({"epochs": 0}, ValueError, "epochs must be at least 1"),
    "no step": ({"learning_rate": 0.0}, ValueError, "learning_rate must be"),
    "no warm step": ({"warmup_learning_rate": 0.0}, ValueError, "warmup_learning_rate must be"),
    "negative decay": ({"weight_decay": -1.0}, ValueError, "weight_decay must be"),
    "no limit": ({"max_update_norm": 0.0}, ValueError, "max_update_norm must be"),
    "no scale": ({"loss_scale": 0.0}, ValueError, "loss_scale must be"),
    "momentum": ({"momentum": 1.0}, ValueError, r"momentum .* \[0, 1\)"),
    "optimiser": ({"optimizer": "lion"}, ValueError, "optimizer must be one of 'adam', 'sgd', got 'lion'"),
    "schedule": ({"schedule": "linear"}, ValueError, "schedule must be one of"),
    "nesterov": ({"nesterov": True, "optimizer": "adam"}, ValueError, "nesterov=True needs optimizer='sgd'"),
    "nesterov without": ({"nesterov": True, "momentum": 0.0}, ValueError, "momentum above 0, got 'sgd' and 0.0"),
    "crops of vectors": ({"augment": "crop_flip"}, ValueError, "augment is for uint8 images"),
    "precision": ({"precision": "int8"}, ValueError, "precision must be one of 'auto'"),
    "network name": ({"network": "vgg"}, ValueError, r"features must be images \[n, C, H, W\] for network='vgg'"),
    "network trained": ({"network": nn.Linear(4, 3)}, TypeError, "network must be a name or a function"),
    "network of a number": ({"network": 3}, TypeError, "network must be a name or a function"),
    "network builds none": ({"network": lambda: 3}, TypeError, "network must return a torch module, got 3"),
    "loss of a text": ({"loss": "gce"}, TypeError, "loss must be a function, got 'gce'"),
    "evaluate of a text": ({"evaluate": "a"}, TypeError, "evaluate must be a function"),
    "loss reduced": ({"loss": lambda z, y: z.mean()}, ValueError, r"one value per example, shape \(50,\), got \(\)"),
    "loss of a number": ({"loss": lambda z, y: 1.0}, ValueError, "one value per example.* got float"),
    "loss detached": ({"loss": lambda z, y: z.detach()[:, 0]}, ValueError, "depend on the logits"),
    "seed": ({"seed": "a"}, TypeError, "seed must be an integer"),
    "checkpoint": ({"checkpoint": 3}, TypeError, "checkpoint must be the path of a file, got 3"),
    "no folder": ({"checkpoint": "no/such/folder/c"}, ValueError, "checkpoint must be a file in a folder that exists"),
    "a folder": ({"checkpoint": "."}, ValueError, "checkpoint must be a file"),
    "every": ({"checkpoint": "c", "checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_name(case):
    change, error, message = BAD[case]
    features, labels = make_vectors()
    arguments = {"features": features, "labels": labels} | FIT | change
    with pytest.raises(error, match=message):
        fit_each(**arguments)


def test_unknown_names_of_networks_are_refused():
    images, labels = make_images()
    with pytest.raises(ValueError, match="name must be one of 'cnn'"):
        fit_each(images, labels, num_classes=3, network="vgg")


# On a GPU.


@needs_cuda
@pytest.mark.parametrize("precision", ["auto", "float32", "float16"])
def test_a_gpu_trains_nearly_the_same(precision):
    images, labels = make_images(200)
    options = {"num_classes": 3, "epochs": 3, "batch_size": 32, "learning_rate": 0.02, "augment": "crop_flip"}
    here = fit_each(images, labels, -0.4, **options)
    there = fit_each(images, labels, -0.4, device="cuda", precision=precision, **options)
    assert next(there.network.parameters()).is_cuda
    assert predict_logits(there.network, images).is_cuda
    difference = (here.curves["train_loss"] - there.curves["train_loss"]).abs()
    assert float(difference.max()) < 0.1


@needs_cuda
@pytest.mark.parametrize("name", RUNS)
def test_a_gpu_goes_on_from_a_checkpoint(tmp_path, name):
    path = tmp_path / "cell.checkpoint"
    whole = run_cell(name, device="cuda")
    with pytest.raises(StoppedError):
        run_cell(name, stop_after(2), path, device="cuda")
    resumed = run_cell(name, checkpoint=path, device="cuda")
    # A GPU may sum in another order from run to run.
    for curve in whole.curves:
        torch.testing.assert_close(resumed.curves[curve], whole.curves[curve], rtol=1e-2, atol=1e-2)


@needs_cuda
def test_a_compiled_network_trains_nearly_the_same_on_a_gpu():
    images, labels = make_images(200)
    options = {"num_classes": 3, "epochs": 2, "batch_size": 32, "device": "cuda", "precision": "float32"}
    plain, compiled = (fit_each(images, labels, compile=compiled, **options) for compiled in (False, True))
    torch.testing.assert_close(plain.curves["train_loss"], compiled.curves["train_loss"], rtol=1e-2, atol=1e-2)
