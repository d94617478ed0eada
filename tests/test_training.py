import math

import pytest
import torch
from torch import nn

from nls.training import StackedMLP, fit_stack, gls_loss_and_gradient, seeded_generator

RATES = (0.8, 0.2, 0.0, -0.4, -2.0)


def make_problem(num_classes=3, n=50, d=4, members=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(n, d, dtype=dtype, generator=generator)
    labels = torch.randint(num_classes, (members, n), generator=generator)
    return features, labels


def naive_loss(logits, labels, rate):
    """The definition, one class at a time: (1 - r) l_y + r mean_k l_k."""
    losses = -logits.log_softmax(-1)
    chosen = torch.stack([row[y] for row, y in zip(losses, labels, strict=True)])
    return ((1 - rate) * chosen + rate * losses.mean(-1)).mean()


def train_alone(
    features,
    labels,
    rate,
    *,
    num_classes,
    hidden,
    epochs,
    batch_size,
    optimizer,
    learning_rate,
    weight_decay,
    loss_scale,
    seed,
):
    """The oracle: one nn.Module, autograd, a torch optimiser, the same initialisation and batches."""
    sizes = (features.shape[1], *hidden, num_classes)
    start = StackedMLP(sizes, 1, seeded_generator(seed, "init"), features.dtype).member(0)
    layers = []
    for weight, bias in start:
        linear = nn.Linear(*weight.shape, dtype=features.dtype)
        linear.weight.data, linear.bias.data = weight.T.clone(), bias.clone()
        layers += [linear, nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    options = {"lr": learning_rate, "weight_decay": weight_decay}
    step = (
        torch.optim.Adam(model.parameters(), **options)
        if optimizer == "adam"
        else torch.optim.SGD(model.parameters(), momentum=0.9, **options)
    )
    order = seeded_generator(seed, "order")
    for _ in range(epochs):
        for batch in torch.randperm(len(features), generator=order).split(batch_size):
            step.zero_grad()
            (loss_scale * naive_loss(model(features[batch]), labels[batch], rate)).backward()
            step.step()
    return [(layer.weight.detach().T, layer.bias.detach()) for layer in model if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("hidden", [(), (8,), (6, 5)])
def test_a_stack_equals_its_members_trained_alone(optimizer, hidden):
    features, labels = make_problem()
    rates = torch.tensor(RATES)
    options = {"num_classes": 3, "hidden": hidden, "epochs": 4, "batch_size": 16, "optimizer": optimizer, "seed": 3}
    steps, decays, scales = (torch.linspace(*ends, len(RATES)) for ends in ((0.005, 0.02), (0.0, 0.1), (0.5, 1.5)))
    fit = fit_stack(features, labels, rates, learning_rate=steps, weight_decay=decays, loss_scale=scales, **options)
    worst = 0.0
    for i in range(len(RATES)):
        alone = train_alone(
            features,
            labels[i],
            float(rates[i]),
            learning_rate=float(steps[i]),
            weight_decay=float(decays[i]),
            loss_scale=float(scales[i]),
            **options,
        )
        pairs = zip(fit.stack.member(i), alone, strict=True)
        worst = max(worst, *(float((a - b).abs().max()) for layer in pairs for a, b in zip(*layer, strict=True)))
    assert worst < 1e-12


def test_a_member_does_not_depend_on_its_neighbours():
    features, labels = make_problem()
    rates = torch.tensor(RATES)
    together = fit_stack(features, labels, rates, num_classes=3, epochs=3)
    alone = fit_stack(features, labels[2:3], rates[2:3], num_classes=3, epochs=3)
    for (weight, bias), (weight_alone, bias_alone) in zip(together.stack.member(2), alone.stack.member(0), strict=True):
        assert torch.allclose(weight, weight_alone, rtol=0, atol=1e-13)
        assert torch.allclose(bias, bias_alone, rtol=0, atol=1e-13)


def test_loss_and_gradient_agree_with_autograd_on_the_definition():
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(len(RATES), 9, 5, dtype=torch.float64, generator=generator)).requires_grad_()
    labels = torch.randint(5, (len(RATES), 9), generator=generator)
    loss, gradient = gls_loss_and_gradient(logits.detach(), labels, torch.tensor(RATES, dtype=torch.float64))
    for i, rate in enumerate(RATES):
        naive = naive_loss(logits[i], labels[i], rate)
        (expected,) = torch.autograd.grad(naive, logits)
        assert abs(loss[i].mean() - naive.detach()) < 1e-12
        assert (gradient[i] / 9 - expected[i]).abs().max() < 1e-13


def test_a_diverged_member_is_reported_with_its_epoch_and_leaves_the_others_alone():
    features, labels = make_problem(dtype=torch.float32)
    options = {"num_classes": 3, "epochs": 6, "optimizer": "sgd", "hidden": (8, 8)}
    rates = torch.tensor([0.0, -8.0, 0.2])
    steps = torch.tensor([0.05, 1e4, 0.05])
    fit = fit_stack(features, labels[:3], rates, learning_rate=steps, **options)
    healthy = fit_stack(features, labels[:3], rates, learning_rate=torch.tensor([0.05, 1e-3, 0.05]), **options)
    epoch = int(fit.diverged_epoch[1])
    assert fit.diverged_epoch.tolist() == [0, epoch, 0]
    assert 1 <= epoch <= 6
    loss = fit.curves["train_loss"]
    assert bool(loss[1, epoch - 1 :].isnan().all())
    assert bool(loss[1, : epoch - 1].isfinite().all())
    assert torch.equal(loss[[0, 2]], healthy.curves["train_loss"][[0, 2]])


def test_adam_does_not_see_a_constant_factor_of_the_loss_and_sgd_does():
    features, labels = make_problem()
    for optimizer, invariant in (("adam", True), ("sgd", False)):
        plain, scaled = (
            fit_stack(
                features,
                labels,
                -8.0,
                num_classes=3,
                epochs=5,
                optimizer=optimizer,
                learning_rate=1e-3,
                loss_scale=scale,
            ).stack.member(0)[0][0]
            for scale in (1.0, 1 / 9)
        )
        assert (float((plain - scaled).abs().max()) < 1e-5) is invariant


def test_evaluate_is_called_after_every_epoch_and_its_values_are_kept():
    features, labels = make_problem()
    seen = []
    fit = fit_stack(
        features,
        labels,
        num_classes=3,
        epochs=3,
        evaluate=lambda stack: seen.append(stack) or {"count": torch.full((5,), float(len(seen)))},
    )
    assert fit.curves["count"].tolist() == [[1.0, 2.0, 3.0]] * 5
    assert all(stack is fit.stack for stack in seen)


def test_initialisation_has_the_scale_of_torch_linear():
    stack = StackedMLP((400, 300, 2), 2, seeded_generator(0, "init"))
    for (weight, bias), fan_in in zip(stack.member(1), (400, 300), strict=True):
        assert abs(float(weight.std()) * math.sqrt(3 * fan_in) - 1) < 0.1
        assert float(torch.cat([weight.flatten(), bias]).abs().max()) <= 1 / math.sqrt(fan_in)


FIT = {"num_classes": 3, "epochs": 1}
BAD = {
    "features of integers": (lambda x, y: fit_stack(x.long(), y, **FIT), TypeError, "features must be a floating"),
    "labels of a list": (lambda x, y: fit_stack(x, y.tolist(), **FIT), TypeError, "labels must be a torch tensor"),
    "no features": (lambda x, y: fit_stack(x[:, :0], y, **FIT), ValueError, "none of them empty"),
    "features not finite": (lambda x, y: fit_stack(x / 0, y, **FIT), ValueError, "features must be finite, got 200"),
    "half precision": (lambda x, y: fit_stack(x.half(), y, **FIT), ValueError, "float32 or float64 on the CPU"),
    "no step": (lambda x, y: fit_stack(x, y, learning_rate=0.0, **FIT), ValueError, "learning_rate must be"),
    "no loss": (lambda x, y: fit_stack(x, y, loss_scale=0.0, **FIT), ValueError, "loss_scale must be"),
    "evaluate of one value": (
        lambda x, y: fit_stack(x, y, evaluate=lambda _: {"a": torch.zeros(1)}, **FIT),
        ValueError,
        r"\[5\] values for 'a'",
    ),
    "labels of one axis": (lambda x, y: fit_stack(x, y[0], **FIT), ValueError, r"labels \[B, n\]"),
    "labels too short": (lambda x, y: fit_stack(x, y[:, 1:], **FIT), ValueError, r"\(5, 49\)"),
    "label out of range": (lambda x, y: fit_stack(x, y + 1, **FIT), ValueError, r"\[0, 2\], got the value 3"),
    "rate above one": (lambda x, y: fit_stack(x, y, 1.5, **FIT), ValueError, "smooth_rate must be a finite number"),
    "rate not a number": (lambda x, y: fit_stack(x, y, math.nan, **FIT), ValueError, "smooth_rate"),
    "rates of the wrong length": (
        lambda x, y: fit_stack(x, y, torch.zeros(4), **FIT),
        ValueError,
        r"\(5,\), got \(4,\)",
    ),
    "no epochs": (lambda x, y: fit_stack(x, y, num_classes=3, epochs=0), ValueError, "epochs must be at least 1"),
    "fractional batch": (
        lambda x, y: fit_stack(x, y, batch_size=1.5, **FIT),
        TypeError,
        "batch_size must be an integer",
    ),
    "negative step": (lambda x, y: fit_stack(x, y, learning_rate=-1.0, **FIT), ValueError, "learning_rate"),
    "unknown optimiser": (
        lambda x, y: fit_stack(x, y, optimizer="lion", **FIT),
        ValueError,
        "'adam', 'sgd', got 'lion'",
    ),
    "momentum of one": (lambda x, y: fit_stack(x, y, momentum=1.0, **FIT), ValueError, r"momentum .* \[0, 1\)"),
    "empty hidden layer": (lambda x, y: fit_stack(x, y, hidden=(0,), **FIT), ValueError, "hidden must be at least 1"),
    "one class": (lambda x, y: fit_stack(x, y, num_classes=1), ValueError, "num_classes must be at least 2"),
    "seed of text": (lambda x, y: fit_stack(x, y, seed="a", **FIT), TypeError, "seed must be an integer, got 'a'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_name(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call(*make_problem())
