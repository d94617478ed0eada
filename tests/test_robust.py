"""Numbers worked out by hand from each paper's formula; then loops in Python floats, limits, gradients and refusals."""

import copy
import math

import pytest
import torch
from torch.nn import functional

from nls import baselines, robust
from nls.each import fit_each
from nls.losses import gls_loss

ODDS = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)  # p = (3/4, 1/4)
THREE = torch.tensor([[math.log(5.0), math.log(3.0), math.log(2.0)]], dtype=torch.float64)  # p = (.5, .3, .2)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}


def near(value):
    return pytest.approx(value, abs=1e-8)


def at(loss, label, *rest, logits=THREE, **options):
    return float(loss(logits, torch.tensor([label]), *rest, **options))


# Each loss by hand, from probabilities .5, .3, .2: l = (.693147181, 1.203972804, 1.609437912), sum 3.506557897


def test_mae_by_hand():
    assert at(robust.mae_loss, 1) == near(0.5 + 0.7 + 0.2)  # |.5 - 0| + |.3 - 1| + |.2 - 0|


@pytest.mark.parametrize(("q", "expected"), [(0.5, 1.0), (1.0, 0.75)])
def test_gce_by_hand(q, expected):
    assert at(robust.gce_loss, 1, q, logits=ODDS) == near(expected)  # (1 - sqrt(1/4)) / .5, and 1 - 1/4


def test_sce_by_hand():
    # Label 1: the reverse part is -(.5 * A + .3 * log 1 + .2 * A) = .7 * 4 with A = -4.
    assert at(robust.sce_loss, 1, 0.1, 1.0) == near(0.1203972804 + 2.8)
    assert at(robust.sce_loss, 1, 2.0, 0.5, log_zero=-6.0) == near(2.407945608 + 0.5 * 4.2)
    assert at(robust.sce_loss, 1) == near(2.9203972804)  # the defaults are those of the paper for CIFAR-10


def test_bootstrap_by_hand():
    # H = .5 * .693147181 + .3 * 1.203972804 + .2 * 1.609437912 = 1.029653014
    assert at(robust.bootstrap_loss, 2, 0.8) == near(0.8 * 1.609437912 + 0.2 * 1.029653014)
    assert at(robust.bootstrap_loss, 2, 0.8, hard=True) == near(0.8 * 1.609437912 + 0.2 * 0.693147181)


def test_normalised_cross_entropy_by_hand():
    assert at(robust.normalized_cross_entropy_loss, 0) == near(0.693147181 / 3.506557897)


def test_active_passive_by_hand():
    share = 1.203972804 / 3.506557897
    assert at(robust.active_passive_loss, 1, 0.5, 2.0) == near(2 * share + 0.5 * 1.4)
    assert at(robust.active_passive_loss, 1, 0.5, 2.0, kind="rce") == near(2 * share + 0.5 * 4 * 0.7)


def test_elr_by_hand():
    loss = robust.ELRLoss(4, 2, strength=3.0, momentum=0.5).double()
    label, place = torch.tensor([1]), torch.tensor([2])
    # First target (3/8, 1/8), so that p . t = 9/32 + 1/32; second target (9/16, 3/16) and p . t = 27/64 + 3/64.
    assert float(loss(ODDS, label, place)) == near(math.log(4) + 3 * math.log(22 / 32))
    assert float(loss(ODDS, label, place)) == near(math.log(4) + 3 * math.log(34 / 64))
    assert loss.targets[2].tolist() == near([9 / 16, 3 / 16])
    assert loss.targets[[0, 1, 3]].eq(0).all()  # no other example is touched


# Against loops in Python floats


def naive(name, logits, label):
    top = max(logits)
    partition = math.log(math.fsum(math.exp(value - top) for value in logits)) + top
    losses = [partition - value for value in logits]
    p = [math.exp(-value) for value in losses]
    rest = math.fsum(value for k, value in enumerate(p) if k != label)
    own, total = losses[label], math.fsum(losses)
    entropy = math.fsum(a * b for a, b in zip(p, losses, strict=True))
    return {
        "mae": lambda: rest + abs(p[label] - 1),
        "gce": lambda: (1 - p[label] ** 0.3) / 0.3,
        "sce": lambda: 0.6 * own - 0.7 * math.fsum(-3 * value for k, value in enumerate(p) if k != label),
        "soft": lambda: 0.9 * own + 0.1 * entropy,
        "hard": lambda: 0.9 * own + 0.1 * min(losses),
        "normalised": lambda: own / total,
        "active": lambda: 2 * own / total + 0.3 * 2 * rest,
        "active, rce": lambda: 2 * own / total + 0.3 * 4 * rest,
    }[name]()


LOSSES = {
    "mae": robust.mae_loss,
    "gce": lambda z, y, **kw: robust.gce_loss(z, y, 0.3, **kw),
    "sce": lambda z, y, **kw: robust.sce_loss(z, y, 0.6, 0.7, log_zero=-3.0, **kw),
    "soft": lambda z, y, **kw: robust.bootstrap_loss(z, y, 0.9, **kw),
    "hard": lambda z, y, **kw: robust.bootstrap_loss(z, y, 0.9, hard=True, **kw),
    "normalised": robust.normalized_cross_entropy_loss,
    "active": lambda z, y, **kw: robust.active_passive_loss(z, y, 0.3, 2.0, **kw),
    "active, rce": lambda z, y, **kw: robust.active_passive_loss(z, y, 0.3, 2.0, kind="rce", **kw),
}
SYMMETRIC = {"mae": lambda k: 2 * (k - 1), "normalised": lambda k: 1.0, "active": lambda k: 2 + 0.6 * (k - 1)}


def draw(num_classes, num_examples=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_examples, num_classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(num_classes, (num_examples,), generator=generator)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("name", LOSSES)
def test_values(name, num_classes, dtype):
    logits, labels = draw(num_classes)
    for scale, offset in ((1, 0), (1, 100), (30, 0)):
        rounded = (scale * logits + offset).to(dtype)
        found = LOSSES[name](rounded, labels, reduction="none")
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        rows = [naive(name, row, label) for row, label in zip(rounded.tolist(), labels.tolist(), strict=True)]
        tolerance = TOLERANCE[dtype] * (scale + offset / 10)
        torch.testing.assert_close(found.double(), torch.tensor(rows, dtype=torch.float64), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_reductions_dense_shapes_and_gradients(name):
    loss = LOSSES[name]
    logits, labels = draw(4, 6)
    losses = loss(logits, labels, reduction="none")
    assert float(loss(logits, labels)) == near(float(losses.mean()))
    assert float(loss(logits, labels, reduction="sum")) == near(float(losses.sum()))
    dense = loss(logits.view(2, 3, 4).mT, labels.view(2, 3), reduction="none")  # [2, 4, 3]: the members of a stack
    torch.testing.assert_close(dense.flatten(), losses)
    given = logits[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels[:2], reduction="none"), given)
    assert torch.autograd.gradgradcheck(lambda z: loss(z, labels[:2], reduction="none"), given)
    functional_gradient = torch.func.grad(lambda z: loss(z, labels))(logits)
    (expected,) = torch.autograd.grad(loss(logits.requires_grad_(), labels), logits)
    torch.testing.assert_close(functional_gradient, expected)
    assert float(functional_gradient.sum(1).abs().max()) < 1e-13  # a common shift of the logits changes nothing


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extreme_logits_stay_finite(name, dtype):
    logits = torch.tensor([[1e4, 0.0, -1e4]], dtype=dtype, requires_grad=True)
    for label in range(3):
        loss = LOSSES[name](logits, torch.tensor([label]))
        assert loss.item() == pytest.approx(naive(name, [1e4, 0.0, -1e4], label), rel=1e-6, abs=1e-6)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("name", SYMMETRIC)
def test_losses_of_all_labels_sum_to_a_constant(name, num_classes):
    logits, _ = draw(num_classes, 7)
    total = sum(LOSSES[name](logits, torch.full((7,), k), reduction="none") for k in range(num_classes))
    expected = SYMMETRIC[name](num_classes)
    torch.testing.assert_close(total, torch.full((7,), expected, dtype=torch.float64), rtol=0, atol=1e-12)


# Limits


def test_limits_are_the_cross_entropy():
    logits, labels = draw(5, 8)
    cross_entropy = functional.cross_entropy(logits, labels, reduction="none")
    for found in (
        robust.gce_loss(logits, labels, 1e-10, reduction="none"),
        robust.sce_loss(logits, labels, 1.0, 0.0, reduction="none"),
        robust.bootstrap_loss(logits, labels, 1.0, reduction="none"),
        robust.bootstrap_loss(logits, labels, 1.0, hard=True, reduction="none"),
        robust.ELRLoss(8, 5, 0.0)(logits, labels, torch.arange(8)),
    ):
        torch.testing.assert_close(found, cross_entropy, rtol=1e-8, atol=1e-8)


def test_limits_are_the_absolute_error():
    logits, labels = draw(5, 8)
    error = functional.one_hot(labels, 5).sub(logits.softmax(1)).abs().sum(1)
    torch.testing.assert_close(robust.gce_loss(logits, labels, 1.0, reduction="none"), error / 2)
    torch.testing.assert_close(robust.sce_loss(logits, labels, 0.0, 0.5, reduction="none"), error)
    torch.testing.assert_close(robust.active_passive_loss(logits, labels, 0.5, 0.0, reduction="none"), error / 2)
    plain = robust.active_passive_loss(logits, labels, 0.0, reduction="none")
    torch.testing.assert_close(plain, robust.normalized_cross_entropy_loss(logits, labels, reduction="none"))


def test_soft_bootstrap_is_a_negative_confidence_penalty():
    logits, labels = draw(4, 6)
    logits.requires_grad_()
    soft = robust.bootstrap_loss(logits, labels, 0.8)
    penalty = 0.8 * baselines.confidence_penalty_loss(logits, labels, -0.25)
    assert soft.item() == near(penalty.item())
    gradients = [torch.autograd.grad(value, logits)[0] for value in (soft, penalty)]
    torch.testing.assert_close(*gradients)


def test_normalised_cross_entropy_is_a_ratio_of_the_two_parts():
    logits, labels = draw(4, 6)
    whole = gls_loss(logits, labels, 1.0, reduction="none")  # A, the part that no label enters
    expected = gls_loss(logits, labels, 0.0, reduction="none") / (4 * whole)
    torch.testing.assert_close(robust.normalized_cross_entropy_loss(logits, labels, reduction="none"), expected)


def test_gradient_of_gce_is_that_of_cross_entropy_times_a_power():
    logits, labels = draw(4, 6)
    logits.requires_grad_()
    (gce,) = torch.autograd.grad(robust.gce_loss(logits, labels, 0.7, reduction="sum"), logits)
    (plain,) = torch.autograd.grad(functional.cross_entropy(logits, labels, reduction="sum"), logits)
    weight = logits.softmax(1).gather(1, labels[:, None]) ** 0.7
    torch.testing.assert_close(gce, plain * weight)


def test_a_parameter_may_be_one_number_for_each_example():
    logits, labels = draw(3, 4)
    values = torch.tensor([0.1, 0.5, 0.9, 1.0])
    for loss in (
        robust.gce_loss,
        robust.sce_loss,
        lambda z, y, w, **kw: robust.sce_loss(z, y, 1.0, w, **kw),
        robust.bootstrap_loss,
        robust.active_passive_loss,
        lambda z, y, w, **kw: robust.active_passive_loss(z, y, 1.0, w, **kw),
    ):
        together = loss(logits, labels, values, reduction="none")
        alone = [loss(logits, labels, float(v), reduction="none")[i] for i, v in enumerate(values)]
        torch.testing.assert_close(together, torch.stack(alone))
        members = loss(logits.view(2, 2, 3).mT, labels.view(2, 2), values[:2], reduction="none")  # one for each member
        torch.testing.assert_close(members[1], loss(logits[2:], labels[2:], float(values[1]), reduction="none"))


# The memory of early-learning regularisation


def naive_elr(logits, labels, places, targets, strength, momentum):
    """Update targets, a list of rows, in place and return the losses, in Python floats."""
    out = []
    for row, label, place in zip(logits.tolist(), labels.tolist(), places.tolist(), strict=True):
        top = max(row)
        weights = [math.exp(value - top) for value in row]
        p = [w / math.fsum(weights) for w in weights]
        kept = [min(max(value, 1e-4), 1 - 1e-4) for value in p]
        share = [value / math.fsum(kept) for value in kept]
        targets[place] = [momentum * t + (1 - momentum) * s for t, s in zip(targets[place], share, strict=True)]
        agreement = math.fsum(a * b for a, b in zip(kept, targets[place], strict=True))
        out.append(math.log(math.fsum(weights)) + top - row[label] + strength * math.log(1 - agreement))
    return out


def test_elr_against_loops_over_several_visits():
    loss, targets = robust.ELRLoss(6, 4, strength=2.0, momentum=0.6).double(), [[0.0] * 4 for _ in range(6)]
    for step in range(8):
        logits, labels = draw(4, 3, seed=step)
        places = torch.randperm(6, generator=torch.Generator().manual_seed(step))[:3]
        found = loss(6 * logits, labels, places)  # far enough for the margin to bite
        assert found.tolist() == near(naive_elr(6 * logits, labels, places, targets, 2.0, 0.6))
    torch.testing.assert_close(loss.targets, torch.tensor(targets, dtype=torch.float64))


def test_elr_gradient_does_not_pass_through_the_targets():
    logits, labels = draw(3, 4)
    places = torch.arange(4)
    loss = robust.ELRLoss(4, 3).double()
    loss(logits, labels, places)
    loss.eval()  # the targets stay where they are
    before = loss.targets.clone()
    given = logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, places), given)
    assert torch.equal(loss.targets, before)
    assert not loss.targets.requires_grad
    # The paper's gradient: p - onehot, and lambda p_k (p . t - t_k) / (1 - p . t).
    (found,) = torch.autograd.grad(loss(given, labels, places).sum(), given)
    p, t = logits.softmax(1), before
    agreement = (p * t).sum(1, keepdim=True)
    expected = p - functional.one_hot(labels, 3) + 3 * p * (agreement - t) / (1 - agreement)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_elr_in_other_types(dtype):
    logits, labels = draw(5, 4)
    places = torch.arange(4)
    found = robust.ELRLoss(4, 5)(logits.to(dtype), labels, places)
    assert found.dtype == torch.float32
    expected = robust.ELRLoss(4, 5).double()(logits.to(dtype).double(), labels, places)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)


def test_elr_memory_survives_an_interruption(tmp_path):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 4, generator=generator)
    labels = torch.randint(3, (60,), generator=generator)
    settings = {
        "num_classes": 3, "network": lambda: torch.nn.Linear(4, 3), "batch_size": 20, "learning_rate": 0.3,
        "checkpoint": tmp_path / "run",
    }  # fmt: skip
    whole = robust.ELRLoss(60, 3)
    fit = fit_each(features, labels, loss=whole, epochs=4, **settings)

    class StopError(Exception):
        pass

    count = [0]

    def stop(network):
        count[0] += 1
        if count[0] == 3:
            raise StopError
        return {}

    with pytest.raises(StopError):
        fit_each(features, labels, loss=robust.ELRLoss(60, 3), epochs=4, evaluate=stop, **settings)
    rest = robust.ELRLoss(60, 3)
    again = fit_each(features, labels, loss=rest, epochs=4, **settings)
    assert torch.equal(again.network.weight, fit.network.weight)
    assert torch.equal(rest.targets, whole.targets)
    assert float(whole.targets.sum(1).min()) > 0.7  # every example was seen: 1 - .7^4 = .76


def test_elr_copies_and_shows_its_settings():
    loss = robust.ELRLoss(4, 3, 2.0, 0.5)
    loss(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([1]))
    other = robust.ELRLoss(4, 3, 2.0, 0.5)
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert torch.equal(other.targets, loss.targets)
    assert repr(loss) == "ELRLoss(num_examples=4, num_classes=3, strength=2.0, momentum=0.5)"


# What is refused


@pytest.mark.parametrize("name", LOSSES)
def test_bad_arguments(name):
    loss = LOSSES[name]
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(TypeError, match="logits must be a floating-point tensor, got int64"):
        loss(labels[:, None].expand(2, 3), labels)
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\).*got \(3,\)"):
        loss(logits, torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match="labels must hold integer class indices, got float32"):
        loss(logits, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\], got the value -100"):
        loss(logits, torch.tensor([0, -100]))
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', 'none', got 'max'"):
        loss(logits, labels, reduction="max")


def test_bad_parameters():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    for q in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"q must be a finite number in \[1e-12, 1\], got {q}"):
            robust.gce_loss(logits, labels, q)
    with pytest.raises(ValueError, match=r"q must be finite and at least 1e-12 and at most 1, got 1.5"):
        robust.gce_loss(logits, labels, torch.tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"alpha must be a finite number in \[0, inf\), got -1"):
        robust.sce_loss(logits, labels, -1.0)
    with pytest.raises(ValueError, match="beta must be finite and at least 0, got -1"):
        robust.sce_loss(logits, labels, 1.0, torch.tensor([1.0, -1.0]))
    for loss in (robust.sce_loss, robust.active_passive_loss):
        with pytest.raises(ValueError, match=r"log_zero must be a finite number in .*, got 4\.0"):
            loss(logits, labels, log_zero=4.0)
    with pytest.raises(ValueError, match=r"beta must be a finite number in \[0, 1\], got 1.1"):
        robust.bootstrap_loss(logits, labels, 1.1)
    with pytest.raises(ValueError, match="hard must be one of False, True, got 'yes'"):
        robust.bootstrap_loss(logits, labels, hard="yes")
    with pytest.raises(ValueError, match="passive must be a finite number"):
        robust.active_passive_loss(logits, labels, -1.0)
    with pytest.raises(ValueError, match="active must be a finite number"):
        robust.active_passive_loss(logits, labels, 1.0, -1.0)
    with pytest.raises(ValueError, match="kind must be one of 'mae', 'rce', got 'nce'"):
        robust.active_passive_loss(logits, labels, kind="nce")


def test_bad_memory():
    with pytest.raises(ValueError, match="num_examples must be at least 1, got 0"):
        robust.ELRLoss(0, 3)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        robust.ELRLoss(4, 1)
    with pytest.raises(ValueError, match="strength must be a finite number"):
        robust.ELRLoss(4, 3, -1.0)
    with pytest.raises(ValueError, match=r"momentum must be a finite number in \[0, 1\], got 1.5"):
        robust.ELRLoss(4, 3, 1.0, 1.5)
    loss, labels = robust.ELRLoss(4, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"logits must have shape \[b, 3\] for these targets, got \(2, 4\)"):
        loss(torch.zeros(2, 4), labels, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"logits must have shape \[b, 3\] for these targets, got \(2, 3, 2\)"):
        loss(torch.zeros(2, 3, 2), torch.zeros(2, 2).long(), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"indices must have shape \(2,\), got \(3,\)"):
        loss(torch.zeros(2, 3), labels, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 3\], got the value 4"):
        loss(torch.zeros(2, 3), labels, torch.tensor([0, 4]))
