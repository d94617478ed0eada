"""Peaks, flows, attacks, rays and norms, each against an oracle of its own."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import nls
import nls.overconfidence as module
from nls.baselines import confidence_penalty_loss
from nls.confidence import risk_coverage
from nls.overconfidence import (
    along_rays,
    best_margin,
    confidence_row,
    fgsm,
    fit_arms,
    label_margin,
    linear_flow,
    matched_penalty,
    normalized_confidence,
    small_set,
    stack_logits,
    widest_gap,
)
from nls.stack import StackedMLP

SIGNED = torch.tensor([[2.0, 1.0], [3.0, -0.5], [1.0, 2.0], [2.5, 2.0]])  # y x, all on one side


def points(seed=0, count=20):
    """Separable points of two classes, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    shift = torch.tensor([2.0, 1.0])
    return (2 * labels - 1)[:, None] * shift + 0.4 * torch.randn(count, 2, generator=generator), labels


# The lead that a loss wants


@pytest.mark.parametrize(("classes", "rate"), [(2, 0.3), (3, 0.05), (10, 0.1), (10, 0.9), (100, 0.2)])
def test_rate_wants_what_the_loss_says(classes, rate):
    def loss(s):
        logits = torch.zeros(1, classes, dtype=torch.float64)
        logits[0, 0] = float(s[0])
        return float(nls.gls_loss(logits, torch.tensor([0]), rate))

    found = minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-14}).x[0]
    assert best_margin(classes, rate) == pytest.approx(found, abs=1e-4)


@pytest.mark.parametrize(("classes", "penalty"), [(2, 0.5), (3, 0.32), (10, 0.24), (10, 1.5), (50, 0.4)])
def test_penalty_wants_what_the_loss_says_over_all_logits(classes, penalty):
    """The minimum over free logits, from a start without symmetry, has the label ahead of all others by one lead."""

    def loss(z):
        logits = torch.tensor(z[None], requires_grad=True)
        value = confidence_penalty_loss(logits, torch.tensor([0]), penalty)
        value.backward()
        return float(value.detach()), logits.grad[0].numpy()

    start = np.random.default_rng(0).normal(size=classes)
    z = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-10}).x
    assert z[0] - z[1:] == pytest.approx(best_margin(classes, penalty=penalty), abs=1e-4)


def test_no_lead_is_enough_without_smoothing():
    assert best_margin(10) == best_margin(10, -0.4) == best_margin(10, penalty=-0.1) == math.inf
    assert best_margin(4, 1.0) == 0.0


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_matched_penalty_wants_the_same_lead(classes, rate):
    penalty = matched_penalty(classes, rate)
    assert best_margin(classes, penalty=penalty) == pytest.approx(best_margin(classes, rate), rel=1e-9)


def test_label_margin_is_the_lead_over_the_mean():
    logits = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    found = label_margin(logits, labels)
    for b in range(3):
        for i, label in enumerate(labels.tolist()):
            others = [float(logits[b, i, k]) for k in range(5) if k != label]
            assert float(found[b, i]) == pytest.approx(float(logits[b, i, label]) - np.mean(others))


# The flow


@pytest.mark.parametrize("rate", [0.4, 0.0, -0.2])
def test_flow_is_the_limit_of_small_steps(rate):
    """Plain gradient descent on the loss of a two-column model, with a step of 1/500, arrives at the same weights."""
    features, labels = points()
    weight = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    step = 1 / 500
    for _ in range(1000):
        loss = nls.gls_loss(features.double() @ weight, labels, rate)
        (slope,) = torch.autograd.grad(loss, weight)
        weight = (weight - step / 2 * slope).detach().requires_grad_()  # two columns share the difference
    reached = (weight[:, 1] - weight[:, 0]).detach().numpy()
    assert linear_flow(features, labels, rate, [2.0])[0] == pytest.approx(reached, rel=5e-3)


def test_flow_has_three_speeds():
    features, labels = points(1)
    times = np.logspace(8, 12, 5)
    norm = {r: np.linalg.norm(linear_flow(features, labels, r, times), axis=1) for r in (0.1, 0.0, -0.1)}
    assert norm[0.1] == pytest.approx([norm[0.1][0]] * 5, rel=1e-6)
    slope = (norm[0.0][-1] - norm[0.0][-2]) / np.log(10)
    assert slope * widest_gap(features, labels) == pytest.approx(1, abs=0.05)
    push = float(((2 * labels - 1)[:, None] * features).mean(0).norm())
    assert norm[-0.1] / times == pytest.approx([0.05 * push] * 5, rel=1e-3)
    assert norm[-0.1][-1] > 1e6 * norm[0.0][-1] > norm[0.1][-1]


def test_widest_gap_is_that_of_the_best_direction():
    features, labels = points(2)
    signed = ((2 * labels - 1)[:, None] * features).numpy()
    angle = np.linspace(0, 2 * np.pi, 100_001)
    best = (signed @ np.stack([np.cos(angle), np.sin(angle)])).min(0).max()
    assert widest_gap(features, labels) == pytest.approx(best, abs=1e-4)
    both = torch.cat([features, -features])
    assert widest_gap(both, torch.cat([labels, labels])) == pytest.approx(0, abs=1e-6)


# Attacks


def small_stack(members=3, seed=0):
    return StackedMLP((4, 8, 3), members, torch.Generator().manual_seed(seed), torch.float64)


def test_stack_logits_are_those_of_the_stack_and_can_be_differentiated():
    stack = small_stack()
    stack.parameters.add_(0.3 * torch.randn(stack.parameters.shape, generator=torch.Generator().manual_seed(1)))
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.allclose(stack_logits(stack)(rows), stack.forward(rows))
    own = rows.expand(3, -1, -1) + torch.arange(3)[:, None, None]
    for b in range(3):
        assert torch.allclose(stack_logits(stack)(own)[b], stack.forward(own[b])[b])
    assert torch.autograd.gradcheck(stack_logits(stack), rows.requires_grad_())


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_fgsm_goes_the_way_of_finite_differences(loss):
    stack = small_stack(2, seed=3)
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])

    def value(x, b):
        z = stack.forward(x)[b]
        if loss == "cross_entropy":
            return -z.log_softmax(1)[range(6), labels]
        rivals = torch.stack([z[i, [k for k in range(3) if k != y]].max() for i, y in enumerate(labels.tolist())])
        return rivals - z[range(6), labels]

    moved = fgsm(stack_logits(stack), rows, labels, 0.25, loss=loss)
    assert moved.shape == (2, 6, 4)
    for b in range(2):
        for j in range(4):
            bump = torch.zeros(4, dtype=torch.float64)
            bump[j] = 1e-6
            slope = value(rows + bump, b) - value(rows - bump, b)
            assert torch.equal(moved[b, :, j] - rows[:, j] > 0, slope > 0)
    assert torch.allclose((moved - rows).abs(), torch.tensor(0.25, dtype=torch.float64))


def test_steps_stay_in_the_box_and_the_limits_and_hurt_more():
    data = small_set("waveform", 0)
    stack = fit_arms(data, [0.0], epochs=5).last
    function, (rows, labels) = stack_logits(stack), data.test
    right = {}
    for steps in (1, 10):
        moved = fgsm(function, rows, labels, 0.3, loss="margin", steps=steps, limits=(-1.0, 1.5))[0]
        inside = rows.clamp(-1.0, 1.5)
        assert float((moved - inside).abs().max()) <= 0.3 + 1e-6
        assert -1.0 <= float(moved.min()) <= float(moved.max()) <= 1.5
        free = fgsm(function, rows, labels, 0.3, loss="margin", steps=steps)[0]
        right[steps] = float((function(free)[0].argmax(1) == labels).double().mean())
    clean = float((function(rows)[0].argmax(1) == labels).double().mean())
    assert right[10] < right[1] < clean - 0.1


def test_two_classes_hide_the_temperature_and_float32_hides_the_gradient():
    two = StackedMLP((4, 8, 2), 1, torch.Generator().manual_seed(5))
    rows, labels = torch.randn(50, 4, generator=torch.Generator().manual_seed(6)), torch.arange(50) % 2
    moved = [fgsm(stack_logits(two), rows.double(), labels, 0.1, temperature=t) for t in (0.5, 1.0, 20.0)]
    assert torch.equal(moved[0], moved[1])
    assert torch.equal(moved[1], moved[2])
    sure = labels == two.forward(rows)[0].argmax(1)
    cold = fgsm(stack_logits(two), rows, labels, 0.1, temperature=1e-8)[0]
    assert torch.equal(cold[sure], rows[sure])
    warm = fgsm(stack_logits(two), rows, labels, 0.1, temperature=1e-8, loss="margin")[0]
    assert not (warm == rows).all(1).any()


def test_more_classes_show_the_temperature():
    weight = torch.tensor(
        [[0.0], [3.0], [-1.0]]
    )  # the steeper rival counts when the scale is small, the nearer one else

    def function(x):
        return x @ weight.T + torch.tensor([0.0, -4.0, -1.0])

    hot, cold = (fgsm(function, torch.tensor([[0.5]]), torch.tensor([0]), 0.1, temperature=t) for t in (100.0, 0.05))
    assert float(hot[0, 0]) == pytest.approx(0.6)
    assert float(cold[0, 0]) == pytest.approx(0.4)


# Rays, norms and rows


def test_rays_start_at_the_centre_and_pass_the_example():
    features, centre = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 0.0, -1.0])
    far = along_rays(features, centre, [0.0, 1.0, 5.0])
    assert torch.equal(far[0], centre.expand(6, 3))
    assert torch.allclose(far[1], features)
    assert torch.allclose(far[2] - far[1], 4 * (features - centre), atol=1e-5)


@pytest.mark.parametrize("power", [1.0, 2.0, 5.0])
def test_normalised_confidence_has_no_scale_and_orders_as_written(power):
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = normalized_confidence(logits, power)
    for row, score in zip(logits.numpy(), found.tolist(), strict=True):
        centred = row - row.mean()
        assert score == pytest.approx(centred.max() / (np.abs(centred) ** power).sum() ** (1 / power))
    assert torch.allclose(normalized_confidence(1e200 * logits + 7, power), found)
    assert normalized_confidence(torch.ones(2, 3)).tolist() == [0.0, 0.0]


def test_normalised_confidence_of_two_classes_orders_nothing():
    logits = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    assert normalized_confidence(logits).tolist() == pytest.approx([2**-0.5] * 40)


def test_confidence_row_against_its_parts():
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(300, 4, generator=generator), torch.randint(4, (300,), generator=generator)
    row = confidence_row(logits, labels, logits, labels)
    model = logits.double().softmax(1)
    right = model.argmax(1) == labels
    assert row["accuracy"] == pytest.approx(float(right.double().mean()))
    assert row["confidence"] == pytest.approx(float(model.max(1).values.mean()))
    assert row["nll"] == pytest.approx(-float(model[range(300), labels].log().mean()))
    assert row["area"] == pytest.approx(risk_coverage(model.max(1).values, right).area)
    wrong = int((~right).sum())
    last = [max(0, k - (300 - wrong)) / k for k in range(1, 301)]
    assert row["area_best"] == pytest.approx(np.mean(last))
    assert row["nll_scaled"] < row["nll"]
    assert row["temperature"] > 1
    sure = confidence_row(1e4 * logits, labels, 1e4 * logits, labels)
    assert sure["area"] == pytest.approx(risk_coverage(_gap(logits), right).area, rel=0.02)


def _gap(logits):
    """The lead of the largest logit over the second, which orders very sure predictions."""
    top = logits.double().topk(2, 1).values
    return top[:, 0] - top[:, 1]


# The small sets and the networks on them


def test_small_sets_are_what_the_page_says():
    digits, waveform = small_set("digits", 0), small_set("waveform", 0)
    assert (len(digits.validation[0]), digits.num_classes, digits.limits) == (360, 10, (0.0, 1.0))
    assert [(float(part[0].min()), float(part[0].max())) for part in (digits.train, digits.test)] == [(0.0, 1.0)] * 2
    assert [len(part[1]) for part in (waveform.train, waveform.validation)] == [300, 100]
    rows = {tuple(row) for row in waveform.train[0].tolist()}
    assert not rows & {tuple(row) for row in waveform.test[0].tolist()}


def test_arms_are_what_training_each_alone_gives():
    data = small_set("waveform", 1)
    arms = fit_arms(data, [0.2, 0.0], [0.4], [1e-2], epochs=6, seed=3)
    features, labels = data.train
    options = {"num_classes": 3, "hidden": (64, 64), "epochs": 6, "learning_rate": 2e-3, "seed": 3}

    def penalised(logits, targets, members):
        losses = confidence_penalty_loss(logits.flatten(0, 1), targets.flatten(), 0.4, reduction="none")
        return losses.view(targets.shape)

    alone = [{"smooth_rate": 0.2}, {}, {"loss": penalised}, {"weight_decay": 1e-2}]
    for member, own in enumerate(alone):
        fit = nls.fit_stack(features, labels[None], **own, **options)
        expected = fit.stack.forward(data.test[0])[0]
        assert torch.allclose(arms.last.forward(data.test[0])[member], expected, atol=1e-4)


def test_stopped_is_the_epoch_of_the_least_validation_loss():
    data = small_set("waveform", 2)
    arms = fit_arms(data, [0.1, 0.0], epochs=15, seed=0)
    rows, labels = data.validation
    losses = []
    for epochs in range(1, 16):
        model = fit_arms(data, [0.1, 0.0], epochs=epochs, seed=0).last.forward(rows).double().log_softmax(-1)
        losses.append([-float(model[b, range(100), labels].mean()) for b in range(2)])
    best = np.argmin(losses, axis=0)
    assert (best + 1).tolist() == arms.epochs.tolist()
    model = arms.stopped.forward(rows).double().log_softmax(-1)
    for b in range(2):
        assert -float(model[b, range(100), labels].mean()) == pytest.approx(losses[best[b]][b], rel=1e-4)


REFUSED = {
    "both": (lambda: best_margin(3, 0.1, 0.1), ValueError, "one of smooth_rate and penalty must be 0"),
    "rate": (lambda: best_margin(3, 1.5), ValueError, "smooth_rate must be a finite number"),
    "matched": (lambda: matched_penalty(3, 0.0), ValueError, "smooth_rate must be a finite number"),
    "times": (lambda: linear_flow(*points(), 0.0, [2.0, 1.0]), ValueError, "times must increase"),
    "shapes": (lambda: widest_gap(torch.ones(3, 2), torch.tensor([0, 1])), ValueError, r"features must be \[n, d\]"),
    "loss": (lambda: attack(loss="hinge"), ValueError, "loss must be one of"),
    "epsilon": (lambda: attack(epsilon=-1.0), ValueError, "epsilon must be a finite number"),
    "steps": (lambda: attack(steps=0), ValueError, "steps must be at least 1"),
    "temperature": (lambda: attack(temperature=0.0), ValueError, "temperature must be a finite number"),
    "labels": (lambda: attack(labels=torch.tensor([0])), ValueError, r"labels must have shape \(2,\)"),
    "index": (lambda: attack(labels=torch.tensor([0, 3])), ValueError, r"labels must lie in \[0, 2\]"),
    "power": (lambda: normalized_confidence(torch.ones(1, 3), 0.5), ValueError, "power must be a finite number"),
    "integers": (lambda: normalized_confidence(torch.ones(1, 3).long()), TypeError, "logits must be a floating"),
    "set": (lambda: small_set("mnist", 0), ValueError, "name must be one of 'digits', 'waveform'"),
}  # fmt: skip


def attack(labels=None, epsilon=0.1, **options):
    labels = torch.tensor([0, 1]) if labels is None else labels
    return fgsm(lambda x: x @ torch.ones(4, 3), torch.ones(2, 4), labels, epsilon, **options)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_argument(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


def test_image_arm_trains_at_its_rate_and_attacks(monkeypatch):
    """On made images whose brightness tells the class: a sure network at rate 0, a less sure one at 0.4."""
    generator = torch.Generator().manual_seed(0)
    splits = {}
    for name, count in (("train", 200), ("validation", 60), ("test", 60)):
        labels = torch.arange(count) % 3
        noise = torch.randint(60, (count, 3, 8, 8), generator=generator)
        splits |= {
            f"{name}_features": (noise + 70 * labels[:, None, None, None]).to(torch.uint8),
            f"{name}_labels": labels,
        }
    made = SimpleNamespace(num_classes=3, **splits)
    monkeypatch.setattr(module, "load_dataset", lambda name, root, seed, num_examples: made)
    rows = {rate: module.image_arm(None, rate, 0, epochs=6) for rate in (0.0, 0.4)}
    for row in rows.values():
        assert row["accuracy"] > 0.9
        assert row["pgd_margin"] <= row["fgsm_margin"] + 0.02
        assert set(module.ATTACKS) < set(row)
    assert rows[0.4]["confidence"] < 0.8 < rows[0.0]["confidence"]
