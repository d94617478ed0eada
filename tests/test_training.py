import functools
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from nls.noise import draw_noisy_labels, symmetric_transition
from nls.training import (
    SCHEDULES,
    StackedMLP,
    fit_stack,
    gls_loss_and_gradient,
    schedule_factor,
    seeded_generator,
)

RATES = (0.8, 0.2, 0.0, -0.4, -2.0)


def make_problem(num_classes=3, n=50, d=4, members=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(n, d, dtype=dtype, generator=generator)
    labels = torch.randint(num_classes, (members, n), generator=generator)
    return features, labels


def naive_losses(logits, labels, rate):
    """The definition, one example at a time: (1 - r) l_y + r mean_k l_k."""
    losses = -logits.log_softmax(-1)
    chosen = torch.stack([row[y] for row, y in zip(losses, labels, strict=True)])
    return (1 - rate) * chosen + rate * losses.mean(-1)


def naive_factor(schedule, progress):
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "step":
        return 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
    return 1.0


def plain_network(features, num_classes, hidden, seed):
    """One nn.Module with the initialisation of a stack."""
    start = StackedMLP((features.shape[1], *hidden, num_classes), 1, seeded_generator(seed, "init"), features.dtype)
    layers = []
    for weight, bias in start.member(0):
        linear = nn.Linear(*weight.shape, dtype=features.dtype)
        linear.weight.data, linear.bias.data = weight.T.clone(), bias.clone()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def limited_step(step, parameters, limit):
    """Take a step of a torch optimiser and shorten it; return the length it would have had."""
    before = [p.detach().clone() for p in parameters]
    step.step()
    changes = [p.detach() - old for p, old in zip(parameters, before, strict=True)]
    length = math.sqrt(sum(float((c**2).sum()) for c in changes))
    if length > limit:
        for p, old, change in zip(parameters, before, changes, strict=True):
            p.data.copy_(old + limit / length * change)
    return length


def train_alone(
    features,
    labels,
    *,
    num_classes,
    hidden=(8,),
    epochs,
    batch_size=64,
    optimizer="adam",
    learning_rate=7e-4,
    weight_decay=0.0,
    loss_scale=1.0,
    momentum=0.9,
    smooth_rate=0.0,
    schedule="constant",
    warmup_epochs=0,
    warmup_learning_rate=None,
    max_update_norm=math.inf,
    loss=None,
    seed=0,
):
    """The oracle: one nn.Module, autograd, torch optimisers, the same initialisation and batches."""
    model = plain_network(features, num_classes, hidden, seed)
    order, curve = seeded_generator(seed, "order"), []
    loss = loss or functools.partial(naive_losses, rate=smooth_rate)
    for count, warm in ((warmup_epochs, True), (epochs, False)):
        rate = warmup_learning_rate if warm and warmup_learning_rate else learning_rate
        options = {"lr": rate, "weight_decay": weight_decay}
        parameters = list(model.parameters())
        step = (
            torch.optim.Adam(parameters, **options)
            if optimizer == "adam"
            else torch.optim.SGD(parameters, momentum=momentum, **options)
        )
        taken, steps = 0, count * math.ceil(len(features) / batch_size)
        for _ in range(count):
            total = 0.0
            for batch in torch.randperm(len(features), generator=order).split(batch_size):
                step.param_groups[0]["lr"] = rate * (1 if warm else naive_factor(schedule, taken / steps))
                step.zero_grad()
                losses = (functools.partial(naive_losses, rate=0.0) if warm else loss)(
                    model(features[batch]), labels[batch]
                )
                ((1.0 if warm else loss_scale) * losses.mean()).backward()
                limited_step(step, parameters, max_update_norm)
                total += float(losses.detach().sum())
                taken += 1
            curve.append(total / len(features))
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    return [(layer.weight.detach().T, layer.bias.detach()) for layer in linear], curve


def largest_difference(members, others):
    """Largest difference of parameters over lists of members."""
    pairs = [
        (a, b)
        for member, other in zip(members, others, strict=True)
        for layer, twin in zip(member, other, strict=True)
        for a, b in zip(layer, twin, strict=True)
    ]
    return max(float((a - b).abs().max()) for a, b in pairs)


def members_of(fit):
    return [fit.stack.member(i) for i in range(fit.stack.num_members)]


def generalised_cross_entropy(logits, labels, members=None):
    """(1 - p_y^q) / q with q = 0.7."""
    chosen = logits.softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    return (1 - chosen**0.7) / 0.7


def forward_corrected(logits, labels, members=None):
    """-log (T^t p)_y for one matrix."""
    transition = symmetric_transition(logits.shape[-1], 0.3).to(logits)
    return -(logits.softmax(-1) @ transition).log().gather(-1, labels[..., None]).squeeze(-1)


EACH = {
    "learning_rate": torch.linspace(0.005, 0.02, 5, dtype=torch.float64),
    "weight_decay": torch.linspace(0.0, 0.1, 5, dtype=torch.float64),
    "loss_scale": torch.linspace(0.5, 1.5, 5, dtype=torch.float64),
}
SETTINGS = {
    "plain": {},
    "own values": EACH,
    "schedule": {"schedule": "cosine", "learning_rate": 0.02},
    "drops": {"schedule": "step", "learning_rate": 0.02},
    "warm-up": {"warmup_epochs": 2, "warmup_learning_rate": 0.03, "learning_rate": 0.01, "loss_scale": 0.5},
    "limit": {
        "learning_rate": 0.05,
        "max_update_norm": torch.tensor([0.02, 0.05, 0.1, 0.2, 9.0], dtype=torch.float64),
        "schedule": "cosine",
    },
    "all": EACH
    | {
        "schedule": "step",
        "warmup_epochs": 1,
        "max_update_norm": torch.tensor([0.02, 0.05, 0.1, 0.2, 9.0], dtype=torch.float64),
    },
}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("hidden", [(), (8,), (6, 5)])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_stack_equals_its_members_trained_alone(optimizer, hidden, setting):
    features, labels = make_problem()
    options = {"num_classes": 3, "hidden": hidden, "epochs": 4, "batch_size": 16, "optimizer": optimizer, "seed": 3}
    given = SETTINGS[setting] | {"smooth_rate": torch.tensor(RATES, dtype=torch.float64)}
    fit = fit_stack(features, labels, **given, **options)
    oracles = []
    for i in range(len(RATES)):
        own = {k: float(v[i]) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
        oracles.append(train_alone(features, labels[i], **own, **options))
    assert largest_difference(members_of(fit), [member for member, _ in oracles]) < 1e-12
    curves = torch.tensor([curve for _, curve in oracles], dtype=torch.float64)
    assert fit.curves["train_loss"].shape == curves.shape
    assert (fit.curves["train_loss"] - curves).abs().max() < 1e-12


@pytest.mark.parametrize("loss", [generalised_cross_entropy, forward_corrected])
@pytest.mark.parametrize("hidden", [(), (6, 5)])
def test_a_loss_of_your_own_trains_as_it_does_alone(loss, hidden):
    features, labels = make_problem()
    options = {"num_classes": 3, "hidden": hidden, "epochs": 3, "batch_size": 16, "optimizer": "sgd", "loss": loss}
    options |= {"learning_rate": 0.05, "warmup_epochs": 1}
    fit = fit_stack(features, labels, **options)
    oracles = [train_alone(features, own, **options) for own in labels]
    assert largest_difference(members_of(fit), [member for member, _ in oracles]) < 1e-12
    curves = torch.tensor([curve for _, curve in oracles], dtype=torch.float64)
    assert (fit.curves["train_loss"] - curves).abs().max() < 1e-12


def test_a_loss_of_your_own_knows_its_members_and_its_labels():
    features, labels = make_problem()
    rates, seen = torch.tensor(RATES, dtype=torch.float64), []

    def loss(logits, own, members):
        seen.append((members.start, members.stop))
        rate = rates[members][:, None]
        losses = -logits.log_softmax(-1)
        return (1 - rate) * losses.gather(-1, own[..., None]).squeeze(-1) + rate * losses.mean(-1)

    options = {"num_classes": 3, "epochs": 2, "batch_size": 20}
    with torch.no_grad():  # the gradient is taken all the same
        own = fit_stack(features, labels, loss=loss, chunk=2, **options)
    built_in = fit_stack(features, labels, rates, **options)
    assert largest_difference(members_of(own), members_of(built_in)) < 1e-12
    assert seen == [ends for ends in ((0, 2), (2, 4), (4, 5)) for _ in range(2 * 3)]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("hidden", [(), (6, 5)])
@pytest.mark.parametrize("loss", [None, generalised_cross_entropy])
def test_vmap_and_the_gradients_by_hand_train_the_same_networks(optimizer, hidden, loss):
    features, labels = make_problem()
    given = SETTINGS["all"] | ({} if loss else {"smooth_rate": torch.tensor(RATES)})
    options = {"num_classes": 3, "hidden": hidden, "epochs": 5, "batch_size": 16, "optimizer": optimizer, "loss": loss}

    def evaluate(stack, members):
        return {"norm": torch.stack([stack.member(i)[-1][1].norm() for i in range(stack.num_members)])}

    by_hand, readable = (
        fit_stack(features, labels, method=method, evaluate=evaluate, **given, **options)
        for method in ("manual", "vmap")
    )
    assert largest_difference(members_of(by_hand), members_of(readable)) < 1e-12
    for name in ("train_loss", "norm"):
        assert (by_hand.curves[name] - readable.curves[name]).abs().max() < 1e-12


def test_vmap_isolates_a_member_that_diverges():
    features, labels = make_problem()
    options = {"num_classes": 3, "hidden": (6, 5), "epochs": 4, "optimizer": "sgd", "method": "vmap"}
    steps = torch.tensor([0.05, 1e150, 0.05, 0.05, 0.05], dtype=torch.float64)
    fit = fit_stack(features, labels, learning_rate=steps, **options)
    healthy = fit_stack(features, labels, learning_rate=0.05, **options)
    assert fit.diverged_epoch.tolist()[1] > 0
    others = [0, 2, 3, 4]
    assert torch.equal(fit.curves["train_loss"][others], healthy.curves["train_loss"][others])


@pytest.mark.parametrize("chunk", [1, 2, 5, 9])
def test_chunks_change_nothing_but_what_evaluate_sees(chunk):
    features, labels = make_problem()
    seen = []

    def evaluate(stack, members):
        assert stack.num_members == len(range(5)[members])
        seen.append((members.start, members.stop))
        return {"first": torch.arange(5.0)[members] + float(stack.forward(features).isfinite().all())}

    rates, limits = torch.tensor(RATES), torch.linspace(0.01, 0.2, 5)
    options = {"num_classes": 3, "epochs": 3, "batch_size": 16, "max_update_norm": limits, **EACH}
    whole = fit_stack(features, labels, rates, **options)
    fit = fit_stack(features, labels, rates, chunk=chunk, evaluate=evaluate, **options)
    starts = range(0, 5, chunk)
    assert seen == [(start, min(start + chunk, 5)) for start in starts for _ in range(3)]
    assert fit.stack.num_members == 5
    assert largest_difference(members_of(fit), members_of(whole)) < 1e-12
    assert (fit.curves["train_loss"] - whole.curves["train_loss"]).abs().max() < 1e-12
    assert fit.curves["first"].tolist() == [[1.0 + i] * 3 for i in range(5)]


def test_automatic_chunks_are_as_equal_as_can_be(monkeypatch):
    features, labels = make_problem(members=10)
    monkeypatch.setattr("nls.training.automatic_chunk", lambda *_: 4)
    seen = []
    fit_stack(features, labels, evaluate=lambda _, m: seen.append(m.stop - m.start) or {}, num_classes=3, epochs=1)
    assert seen == [4, 4, 2]


def digits(dtype):
    """The first 1078 digits, standardised, and their labels."""
    data = load_digits()
    features = torch.tensor(data.data, dtype=dtype)[:1078]
    features = (features - features.mean(0)) / features.std(0).clamp_min(1e-6)
    return features, torch.tensor(data.target)[:1078]


def cell_labels(clean, noise_rates):
    draws = [draw_noisy_labels(clean, symmetric_transition(10, e), seeded_generator(0, "noise")) for e in noise_rates]
    return torch.stack(draws)


def make_cells(count):
    """Cells of a grid of 14 rates and 4 noise rates, over and over."""
    rates = torch.tensor([0.8, 0.6, 0.4, 0.2, 0, -0.2, -0.4, -0.6, -0.8, -1, -2, -4, -6, -8], dtype=torch.float64)
    noise = torch.arange(4).repeat_interleave(14).repeat(count // 56)
    return rates.repeat(count // 14), noise


@pytest.mark.parametrize(
    ("epochs", "limit", "picked"),
    [(20, 0.05, (5, 42, 55, 200)), (20, None, (0, 4, 16, 59)), (2, None, (6, 9, 27, 139))],
)
def test_a_cell_alone_equals_the_cell_in_a_stack_of_280(epochs, limit, picked):
    """In float64: all members if steps are limited, rates of at least 0 without, and the others for a while."""
    rates, noise = make_cells(280)
    features, clean = digits(torch.float64)
    labels = cell_labels(clean, (0, 0.2, 0.4, 0.6))[noise][:, :128]
    options = {"num_classes": 10, "hidden": (8, 8), "epochs": epochs, "optimizer": "sgd", "learning_rate": 0.02}
    options |= {"max_update_norm": limit, "seed": 4, "batch_size": 32}
    grid = fit_stack(features[:128], labels, rates, chunk=280, **options)
    for i in picked:
        alone = fit_stack(features[:128], labels[i : i + 1], float(rates[i]), **options)
        assert limit is not None or epochs == 2 or rates[i] >= 0
        assert largest_difference(members_of(alone), [grid.stack.member(i)]) < 1e-12


def test_a_cell_starts_from_the_same_bits_and_sees_the_same_batches_in_any_stack():
    features, _ = make_problem()
    labels = torch.arange(50).expand(280, 50)  # an example of its own class each, so that labels tell the batch

    def run(labels):
        batches = []

        def loss(logits, own, members):
            batches.append(own[0].tolist())
            return logits[..., 0] * 0  # nothing is learnt, so that the parameters stay the first ones

        return fit_stack(features, labels, num_classes=50, epochs=2, batch_size=16, loss=loss, chunk=280), batches

    (grid, seen), (alone, seen_alone) = run(labels), run(labels[:1])
    assert seen == seen_alone
    order = seeded_generator(0, "order")
    assert seen == [batch.tolist() for _ in range(2) for batch in torch.randperm(50, generator=order).split(16)]
    for index in (0, 123, 279):
        for layer, twin in zip(grid.stack.member(index), alone.stack.member(0), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(layer, twin, strict=True))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_chunk_with_the_same_members_is_the_same_bit_for_bit_in_float32(optimizer):
    features, labels = make_problem(members=12, dtype=torch.float32)
    rates = torch.linspace(0.8, -2, 12)
    options = {"num_classes": 3, "hidden": (8, 8), "epochs": 20, "batch_size": 16, "optimizer": optimizer}
    grid = fit_stack(features, labels, rates, chunk=4, learning_rate=0.02, **options)
    again = fit_stack(features, labels, rates, chunk=4, learning_rate=0.02, **options)
    part = fit_stack(features, labels[4:8], rates[4:8], chunk=4, learning_rate=0.02, **options)
    assert torch.equal(grid.stack.parameters, again.stack.parameters)
    assert torch.equal(grid.curves["train_loss"][4:8], part.curves["train_loss"])
    for i in range(4):
        for layer, twin in zip(grid.stack.member(4 + i), part.stack.member(i), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(layer, twin, strict=True))


def test_the_seed_draws_initialisation_and_order():
    features, labels = make_problem()
    first, second = (fit_stack(features, labels, num_classes=3, epochs=1, seed=seed) for seed in (0, 1))
    assert largest_difference(members_of(first), members_of(second)) > 0.1


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("warmup_epochs", [0, 3])
def test_a_diverged_member_is_reported_with_its_epoch_and_leaves_the_others_alone(optimizer, limit, warmup_epochs):
    features, labels = make_problem(dtype=torch.float32)
    gone = torch.tensor([False, True, False])

    def loss(logits, own, members, factor):
        losses = -logits.log_softmax(-1).gather(-1, own[..., None]).squeeze(-1)
        return losses * torch.where(gone, factor, 1.0)[:, None]

    options = {"num_classes": 3, "epochs": 6, "optimizer": optimizer, "hidden": (8, 8), "max_update_norm": limit}
    options |= {"learning_rate": 0.05, "batch_size": 16, "warmup_epochs": warmup_epochs, "chunk": 3}
    fit, healthy = (
        fit_stack(features, labels[:3], loss=functools.partial(loss, factor=factor), **options)
        for factor in (torch.inf, 1.0)
    )
    epoch = warmup_epochs + 1
    assert fit.diverged_epoch.tolist() == [0, epoch, 0]
    assert healthy.diverged_epoch.tolist() == [0, 0, 0]
    curve = fit.curves["train_loss"]
    assert bool(curve[1, epoch - 1 :].isnan().all())
    assert bool(curve[1, : epoch - 1].isfinite().all())
    assert torch.equal(curve[[0, 2]], healthy.curves["train_loss"][[0, 2]])
    assert all(bool(t.isnan().all()) for pair in fit.stack.member(1) for t in pair)
    for i in (0, 2):
        for layer, twin in zip(fit.stack.member(i), healthy.stack.member(i), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(layer, twin, strict=True))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("phase", ["learning_rate", "warmup_learning_rate"])
def test_a_member_that_diverges_by_its_step_leaves_the_others_alone_and_turns_finite_inside(optimizer, phase):
    """After the epoch of its divergence a member computes with zeros, since numbers that are none are slow."""
    features, labels = make_problem(dtype=torch.float32)
    seen = []

    def evaluate(stack, members):
        seen.append(bool(stack.parameters.isfinite().all()))
        return {"ones": torch.ones(3)}

    options = {"num_classes": 3, "epochs": 6, "optimizer": optimizer, "hidden": (8, 8), "weight_decay": 0.01}
    options |= {"warmup_epochs": 5, "learning_rate": 0.05, "warmup_learning_rate": 0.05}
    rates = torch.tensor([0.0, -8.0, 0.2])
    wild = options | {phase: torch.tensor([0.05, 1e20, 0.05])}
    calm = options | {phase: torch.tensor([0.05, 1e-3, 0.05])}
    fit = fit_stack(features, labels[:3], rates, evaluate=evaluate, **wild)
    healthy = fit_stack(features, labels[:3], rates, **calm)
    epoch = int(fit.diverged_epoch[1])
    assert fit.diverged_epoch.tolist() == [0, epoch, 0]
    assert (1 <= epoch <= 5) if phase == "warmup_learning_rate" else (6 <= epoch <= 10)
    assert seen == [i != epoch for i in range(1, 12)]  # not finite at the end of one epoch only
    assert torch.equal(fit.curves["train_loss"][[0, 2]], healthy.curves["train_loss"][[0, 2]])
    assert fit.curves["ones"].isnan().sum(1).tolist() == [0, 12 - epoch, 0]
    assert all(bool(t.isnan().all()) for pair in fit.stack.member(1) for t in pair)


@pytest.mark.parametrize("what", ["parameters", "loss"])
def test_parameters_or_a_loss_alone_that_are_not_finite_count_as_divergence(what):
    features, labels = make_problem(dtype=torch.float32)
    options = {"num_classes": 3, "epochs": 1, "optimizer": "sgd"}
    if what == "parameters":  # in the only step, after its loss was measured
        options |= {"learning_rate": torch.tensor([0.1, 1e20, 0.1, 0.1, 0.1]), "loss_scale": 1e20}
    else:  # a constant has no gradient
        height = torch.tensor([0.0, torch.inf, 0.0, 0.0, 0.0])
        options |= {"loss": lambda z, y, m: z.square().sum(-1) * (height == 0)[:, None] + height[:, None]}
    options["loss_scale"] = torch.tensor([1.0, options.pop("loss_scale", 1.0), 1.0, 1.0, 1.0])
    fit = fit_stack(features, labels, **options)
    assert fit.diverged_epoch.tolist() == [0, 1, 0, 0, 0]


def test_without_a_limit_negative_rates_diverge_on_digits_and_with_it_none_does():
    features, clean = digits(torch.float32)
    rates, noise = make_cells(56)
    labels = cell_labels(clean, (0, 0.2, 0.4, 0.6))[noise]
    options = {"num_classes": 10, "hidden": (32, 32), "optimizer": "sgd", "learning_rate": 0.05}
    free = fit_stack(features, labels, rates, epochs=10, **options)
    limited = fit_stack(features, labels, rates, epochs=20, max_update_norm=1.0, **options)
    assert int((free.diverged_epoch > 0).sum()) >= 5
    assert bool((free.diverged_epoch[rates >= 0] == 0).all())
    assert limited.diverged_epoch.tolist() == [0] * 56
    assert bool(limited.stack.parameters.isfinite().all())


def test_a_step_at_the_limit_or_of_zero_length_is_left_exactly_as_it_is():
    features, labels = torch.tensor([[4.0], [-4.0]], dtype=torch.float64), torch.tensor([[0, 1]])
    options = {"num_classes": 2, "hidden": (), "epochs": 1, "optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0}

    def move(limit, pull):
        """The change of the parameters: the features have mean 0, so only the biases move, by ``pull``."""
        fit = fit_stack(features, labels, loss=lambda z, y, m: z @ pull, max_update_norm=limit, **options)
        start = StackedMLP((1, 2), 1, seeded_generator(0, "init"), torch.float64)
        return fit.stack.parameters, start.parameters - fit.stack.parameters

    pull = torch.tensor([3.0, 4.0], dtype=torch.float64)  # exactly 5 long
    free, exact, short, half = (move(limit, pull) for limit in (None, 5.0, math.nextafter(5.0, 0.0), 2.5))
    assert torch.equal(free[0], exact[0])
    assert not torch.equal(free[0], short[0])
    assert half[1].tolist() == pytest.approx([0.0, 0.0, 1.5, 2.0])
    still, change = move(1e-12, 0 * pull)
    assert bool(still.isfinite().all())
    assert change.tolist() == [0.0] * 4


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_no_step_is_longer_than_the_limit(optimizer):
    features, labels = make_problem(n=16)
    limits = torch.tensor([0.01, 0.02, 0.05, 0.1, 1e9], dtype=torch.float64)
    places = []

    def evaluate(stack, members):
        places.append(torch.cat(stack.rows(stack.parameters), 1).clone())
        return {}

    options = {"num_classes": 3, "epochs": 30, "optimizer": optimizer, "learning_rate": 0.5, "batch_size": 16}
    fit_stack(features, labels, -1.0, max_update_norm=limits, evaluate=evaluate, **options)
    lengths = torch.stack(places).diff(dim=0).norm(dim=2).amax(0)
    assert lengths[:4].tolist() == pytest.approx(limits[:4].tolist(), rel=1e-9)
    assert float(lengths[4]) > 0.2


def test_schedules_have_their_shapes():
    step = [schedule_factor("step", s, 200) for s in range(200)]
    assert step == [1.0] * 100 + [0.1] * 50 + [0.01] * 50  # the released recipe: .1 x 100, .01 x 50, .001 x 50
    assert [schedule_factor("step", s, 7) for s in range(7)] == [1, 1, 1, 1, 0.1, 0.1, 0.01]
    thirds = [schedule_factor("thirds", s, 120) for s in range(120)]
    assert thirds == pytest.approx([1.0] * 40 + [0.1] * 40 + [0.01] * 40)  # the released warm-up: .1, .01, .001 x 40
    assert [schedule_factor("thirds", s, 4) for s in range(4)] == pytest.approx([1, 1, 0.1, 0.01])
    cosine = torch.tensor([schedule_factor("cosine", s, 200) for s in range(200)])
    assert float(cosine[0]) == 1.0
    assert float(cosine[100]) == pytest.approx(0.5)
    assert bool((cosine.diff() < 0).all())
    assert 0 < float(cosine[-1]) < 1e-4
    assert {schedule_factor("constant", s, 3) for s in range(3)} == {1.0}
    assert {schedule_factor(name, 0, 1) for name in SCHEDULES} == {1.0}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("linear", 0, 1), ValueError, "schedule must be one of 'constant', 'cosine', 'step', 'thirds', got"),
        (("step", 3, 3), ValueError, "step must be at most 2, got 3"),
        (("step", -1, 3), ValueError, "step must be at least 0, got -1"),
        (("step", 0, 0), ValueError, "num_steps must be at least 1, got 0"),
        (("step", 0.5, 3), TypeError, "step must be an integer"),
    ],
)
def test_schedules_refuse_what_lies_outside_the_run(arguments, error, message):
    with pytest.raises(error, match=message):
        schedule_factor(*arguments)


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

    def evaluate(stack, members):
        seen.append((stack, stack.parameters.clone()))
        return {"count": torch.full((5,), float(len(seen)))}

    fit = fit_stack(features, labels, num_classes=3, epochs=3, warmup_epochs=1, evaluate=evaluate)
    assert fit.curves["count"].tolist() == [[1.0, 2.0, 3.0, 4.0]] * 5
    assert fit.curves["count"].dtype == torch.float64
    assert torch.equal(seen[-1][1], fit.stack.parameters)
    assert not torch.equal(seen[-2][1], fit.stack.parameters)


def test_names_are_importable_from_training():
    import nls.stack

    assert StackedMLP is nls.stack.StackedMLP
    assert gls_loss_and_gradient is nls.stack.gls_loss_and_gradient


FIT = {"num_classes": 3, "epochs": 1}
BAD = {
    "features of integers": (lambda x, y: fit_stack(x.long(), y, **FIT), TypeError, "features must be a floating"),
    "labels of a list": (lambda x, y: fit_stack(x, y.tolist(), **FIT), TypeError, "labels must be a torch tensor"),
    "no features": (lambda x, y: fit_stack(x[:, :0], y, **FIT), ValueError, "none of them empty"),
    "features not finite": (lambda x, y: fit_stack(x / 0, y, **FIT), ValueError, "features must be finite, got 200"),
    "half precision": (lambda x, y: fit_stack(x.half(), y, **FIT), ValueError, "float32 or float64, got torch.float16"),
    "no step": (lambda x, y: fit_stack(x, y, learning_rate=0.0, **FIT), ValueError, "learning_rate must be"),
    "no loss": (lambda x, y: fit_stack(x, y, loss_scale=0.0, **FIT), ValueError, "loss_scale must be"),
    "evaluate of one value": (
        lambda x, y: fit_stack(x, y, evaluate=lambda *_: {"a": torch.zeros(1)}, **FIT),
        ValueError,
        r"\[5\] values for 'a', got \(1,\)",
    ),
    "evaluate of numbers": (
        lambda x, y: fit_stack(x, y, evaluate=lambda *_: {"a": 1.0}, **FIT),
        TypeError,
        "evaluate's 'a' must be a torch tensor",
    ),
    "evaluate of a tensor": (
        lambda x, y: fit_stack(x, y, evaluate=lambda *_: torch.zeros(5), **FIT),
        TypeError,
        "evaluate must return a dict",
    ),
    "evaluate of other names over epochs": (
        lambda x, y: fit_stack(x, y, evaluate=Renaming(1), num_classes=3, epochs=2),
        ValueError,
        r"same names every time, got \['b', 'train_loss'\]",
    ),
    "evaluate of other names over chunks": (
        lambda x, y: fit_stack(x, y, evaluate=Renaming(2), chunk=3, num_classes=3, epochs=2),
        ValueError,
        "same names every time",
    ),
    "evaluate of no function": (lambda x, y: fit_stack(x, y, evaluate=1, **FIT), TypeError, "evaluate must be None or"),
    "labels of one axis": (lambda x, y: fit_stack(x, y[0], **FIT), ValueError, r"labels \[B, n\]"),
    "labels too short": (lambda x, y: fit_stack(x, y[:, 1:], **FIT), ValueError, r"\(5, 49\)"),
    "label out of range": (lambda x, y: fit_stack(x, y + 1, **FIT), ValueError, r"\[0, 2\], got the value 3"),
    "rate above one": (lambda x, y: fit_stack(x, y, 1.5, **FIT), ValueError, "smooth_rate must be a finite number"),
    "rate not a number": (lambda x, y: fit_stack(x, y, math.nan, **FIT), ValueError, "smooth_rate"),
    "no rate": (lambda x, y: fit_stack(x, y, None, **FIT), TypeError, "smooth_rate must be a real number"),
    "rates of the wrong length": (
        lambda x, y: fit_stack(x, y, torch.zeros(4), **FIT),
        ValueError,
        r"\(5,\), got \(4,\)",
    ),
    "step beyond float32": (
        lambda x, y: fit_stack(x.float(), y, learning_rate=1e300, **FIT),
        ValueError,
        "learning_rate must be finite in torch.float32",
    ),
    "rates beyond float32": (
        lambda x, y: fit_stack(x.float(), y, torch.full((5,), -1e300, dtype=torch.float64), **FIT),
        ValueError,
        "smooth_rate must be finite in torch.float32",
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
    "unknown schedule": (lambda x, y: fit_stack(x, y, schedule="linear", **FIT), ValueError, "schedule must be one of"),
    "negative warm-up": (lambda x, y: fit_stack(x, y, warmup_epochs=-1, **FIT), ValueError, "warmup_epochs must be at"),
    "no warm-up step": (
        lambda x, y: fit_stack(x, y, warmup_epochs=1, warmup_learning_rate=0.0, **FIT),
        ValueError,
        "warmup_learning_rate must be",
    ),
    "no limit": (lambda x, y: fit_stack(x, y, max_update_norm=0.0, **FIT), ValueError, "max_update_norm must be"),
    "limits of the wrong length": (
        lambda x, y: fit_stack(x, y, max_update_norm=torch.ones(2), **FIT),
        ValueError,
        r"max_update_norm must be one number or have shape \(5,\)",
    ),
    "loss of text": (lambda x, y: fit_stack(x, y, loss="gce", **FIT), TypeError, "loss must be None or a function"),
    "loss and rate": (
        lambda x, y: fit_stack(x, y, 0.1, loss=generalised_cross_entropy, **FIT),
        ValueError,
        "smooth_rate must not be given with a loss of your own",
    ),
    "loss and rates": (
        lambda x, y: fit_stack(x, y, torch.zeros(5), loss=generalised_cross_entropy, **FIT),
        ValueError,
        "smooth_rate must not be given with a loss of your own",
    ),
    "loss reduced": (
        lambda x, y: fit_stack(x, y, loss=lambda z, y, m: z.sum((1, 2)), **FIT),
        ValueError,
        r"loss must return one value per example, shape \(5, 50\), got \(5,\)",
    ),
    "loss of numbers": (
        lambda x, y: fit_stack(x, y, loss=lambda z, y, m: 1.0, method="vmap", **FIT),
        ValueError,
        r"loss must return one value per example, shape \(5, 50\), got float",
    ),
    "loss without gradient": (
        lambda x, y: fit_stack(x, y, loss=lambda z, y, m: y.double(), **FIT),
        ValueError,
        "depend on the logits",
    ),
    "unknown method": (lambda x, y: fit_stack(x, y, method="loop", **FIT), ValueError, "'manual', 'vmap', got 'loop'"),
    "no chunk": (lambda x, y: fit_stack(x, y, chunk=0, **FIT), ValueError, "chunk must be at least 1"),
    "chunks of vmap": (lambda x, y: fit_stack(x, y, chunk=2, method="vmap", **FIT), ValueError, "chunk must not be"),
}


class Renaming:
    """An evaluation that names its value otherwise after some calls."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self, stack, members):
        self.left -= 1
        return {"a" if self.left >= 0 else "b": torch.zeros(stack.num_members)}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_name(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call(*make_problem())
