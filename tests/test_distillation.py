"""Distillation: the loss against naive loops, the estimator against worlds whose information is known."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import nls
from nls.distillation import (
    compare_students,
    distillation_loss,
    draw_look_alikes,
    fit_students,
    gaussian_information,
    logit_variation,
    mixture_information,
    wrong_class_entropy,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The loss


def naive_loss(z, y, teacher, heat, weight):
    """Return the loss of one example, by sums over plain numbers."""

    def softmax(values):
        total = sum(math.exp(v) for v in values)
        return [math.exp(v) / total for v in values]

    p, q = softmax([v / heat for v in teacher]), softmax([v / heat for v in z])
    divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return (1 - weight) * -math.log(softmax(z)[y]) + weight * heat**2 * divergence


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_loss_is_that_of_naive_loops(weight):
    z, teacher, y = 2 * randn(2, 4, 5), 2 * randn(2, 4, 5, seed=1), torch.arange(8).view(2, 4) % 5
    heat = torch.tensor([[1.0], [6.0]])
    found = distillation_loss(z, y, teacher, heat, weight)
    for b in range(2):
        for i in range(4):
            wanted = naive_loss(z[b, i].tolist(), int(y[b, i]), teacher[b, i].tolist(), float(heat[b]), weight)
            assert float(found[b, i]) == pytest.approx(wanted, rel=1e-9)


def test_gradients_are_right_and_those_of_the_teacher_are_none():
    z, teacher, y = randn(3, 4).requires_grad_(), randn(3, 4, seed=1).requires_grad_(), torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda logits: distillation_loss(logits, y, teacher, 3.0, 0.6), z)
    distillation_loss(z, y, teacher, 3.0).sum().backward()
    assert teacher.grad is None


def test_hot_students_match_logits():
    """As the temperature grows, the loss goes to half the squared distance of the centred logits, divided by K."""
    z, teacher = randn(6, 5), randn(6, 5, seed=1)
    apart = (z - z.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    found = distillation_loss(z, torch.zeros(6, dtype=torch.long), teacher, 1e4)
    torch.testing.assert_close(found, apart.square().sum(1) / 10, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_logits": torch.zeros(3, 5)}, r"teacher_logits must have the shape of logits, \(3, 4\)"),
        ({"labels": torch.tensor([0, 1])}, r"labels must have shape \(3,\), got \(2,\)"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"weight": 1.5}, "weight must"),
    ],
)
def test_bad_arguments_of_the_loss(change, message):
    given = {"logits": torch.zeros(3, 4), "labels": torch.tensor([0, 1, 2]), "teacher_logits": torch.zeros(3, 4)}
    with pytest.raises(ValueError, match=message):
        distillation_loss(**given | change)


# Students

OPTIONS = {"hidden": (6,), "epochs": 3, "batch_size": 7, "learning_rate": 0.05, "seed": 3}


def students_one_by_one(x, y, teacher, heat, weight):
    """Train one student by autograd alone, in batches that are drawn as fit_stack draws them."""
    k = teacher.shape[-1]
    stack = nls.fit_stack(x, y[None], num_classes=k, **OPTIONS | {"epochs": 1, "learning_rate": 1e-12}).stack
    layers = [(w.clone().requires_grad_(), b.clone().requires_grad_()) for w, b in stack.member(0)]
    optimizer = torch.optim.Adam([value for layer in layers for value in layer], lr=OPTIONS["learning_rate"])
    order = nls.seeded_generator(OPTIONS["seed"], "order")
    for _ in range(OPTIONS["epochs"]):
        for rows in torch.randperm(len(x), generator=order).split(OPTIONS["batch_size"]):
            z = (x[rows] @ layers[0][0] + layers[0][1]).relu() @ layers[1][0] + layers[1][1]
            loss = distillation_loss(z, y[rows], teacher[rows], heat, weight).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return ((x @ layers[0][0] + layers[0][1]).relu() @ layers[1][0] + layers[1][1]).detach()


@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_students_side_by_side_are_those_one_by_one(weight):
    x, y, teacher = randn(20, 3), torch.arange(20) % 4, 3 * randn(2, 20, 4, seed=1)
    heat = torch.tensor([1.0, 5.0])
    z = fit_students(x, y, teacher, heat, weight, **OPTIONS).stack.forward(x)
    for b in range(2):
        torch.testing.assert_close(
            z[b], students_one_by_one(x, y, teacher[b], float(heat[b]), weight), rtol=1e-5, atol=1e-6
        )


def test_students_need_a_row_for_each_example():
    with pytest.raises(ValueError, match=r"teacher_logits must have shape \[B, 5, K\], one row for each example"):
        fit_students(randn(5, 2), torch.zeros(5, dtype=torch.long), randn(1, 4, 3))


def test_comparison_grades_what_it_names():
    train, held, test = draw_look_alikes((80, 60, 70), num_features=6, num_classes=4)
    sets = [(part.features, part.labels) for part in (train, held, test)]
    rates = [0.3, 0.0]
    teachers = nls.fit_stack(
        *sets[0][:1], train.labels.expand(2, -1), torch.tensor(rates), num_classes=4, epochs=4
    ).stack
    table = compare_students(teachers, rates, *sets, [1.0, 3.0], hidden=(5,), epochs=2)
    masters = table[table["who"] == "teacher"].set_index("rate")
    z = teachers.forward(test.features)[0].double()
    assert masters.loc[0.3, "accuracy"] == pytest.approx(float((z.argmax(1) == test.labels).double().mean()))
    assert masters.loc[0.3, "nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(z, test.labels)), rel=1e-5)
    assert masters.loc[0.3, "ece"] == pytest.approx(
        float(nls.expected_calibration_error(z.softmax(1), test.labels, 15))
    )
    alone = nls.fit_stack(*sets[0][:1], train.labels[None], 0.3, num_classes=4, hidden=(5,), epochs=2).stack
    right = (alone.forward(held.features)[0].argmax(1) == held.labels).double().mean()
    named = table[(table["who"] == "alone") & (table["rate"] == 0.3)]
    assert named["held_accuracy"].item() == pytest.approx(float(right))
    hot = fit_students(*sets[0], teachers.forward(train.features)[1:], 3.0, hidden=(5,), epochs=2).stack.forward(
        test.features
    )
    named = table[(table["who"] == "student") & (table["rate"] == 0.0) & (table["temperature"] == 3.0)]
    assert named["accuracy"].item() == pytest.approx(float((hot[0].argmax(1) == test.labels).double().mean()))
    assert (table["nll_scaled"] < table["nll"] + 0.05).all()
    with pytest.raises(ValueError, match="rates must name each of the 2 teachers, got 1"):
        compare_students(teachers, [0.3], *sets, [1.0])


# The estimator


def naive_information(draws, scored):
    n = len(draws)
    mean, spread = draws.mean(1), draws.var(1, ddof=1).mean()
    total = 0.0
    for i in range(n):
        for value in scored[i]:
            density = stats.norm.pdf(value, mean, math.sqrt(spread))
            total += math.log(density[i] / density.mean())
    return total / scored.size


def test_estimate_is_that_of_naive_loops():
    draws, other = 2 * randn(2, 6, 4), 2 * randn(2, 6, 3, seed=1)
    for b in range(2):
        wanted = (
            naive_information(draws[b].numpy(), draws[b].numpy()),
            naive_information(draws[b].numpy(), other[b].numpy()),
        )
        assert float(gaussian_information(draws)[b]) == pytest.approx(wanted[0])
        assert float(gaussian_information(draws, other)[b]) == pytest.approx(wanted[1])


def test_no_factor_and_no_shift_changes_an_estimate():
    draws, other = 3 * randn(9, 1) + randn(9, 5, seed=1), 3 * randn(9, 1) + randn(9, 5, seed=2)
    found = gaussian_information(draws, other)
    torch.testing.assert_close(gaussian_information(-0.01 * draws + 7, -0.01 * other + 7), found)


@pytest.mark.parametrize("spread", [0.0, 0.7, 3.0, 30.0])
def test_held_out_draws_give_a_lower_bound(spread):
    """On average over draws, up to three standard errors; many draws come to the exact value; none exceeds log N."""
    means = spread * randn(16, 1)
    draws, other = means + randn(200, 16, 6, seed=1), means + randn(200, 16, 6, seed=2)
    exact = mixture_information(means[:, 0])
    held, same = gaussian_information(draws, other), gaussian_information(draws)
    error = 3 * float(held.std()) / math.sqrt(200)
    assert float(held.mean()) < exact + error
    assert float(same.mean()) > exact - error
    assert float(torch.cat([held, same]).max()) <= math.log(16) + 1e-9
    many = gaussian_information(means + randn(16, 4000, seed=3), means + randn(16, 4000, seed=4))
    assert float(many) == pytest.approx(exact, abs=0.02)


def test_exact_information_is_that_of_quadrature_and_of_the_limit():
    means = np.array([-1.0, 0.2, 0.3, 4.0])

    def term(y, i):
        p = stats.norm.pdf(y, means)
        return p[i] * math.log(p[i] / p.mean()) / 4

    wanted = sum(integrate.quad(term, m - 12, m + 12, args=(i,), epsabs=1e-12)[0] for i, m in enumerate(means))
    assert mixture_information(torch.tensor(means)) == pytest.approx(wanted, abs=1e-9)
    assert mixture_information(3 * torch.tensor(means), 3.0) == pytest.approx(wanted, abs=1e-9)
    quantiles = torch.tensor(stats.norm.ppf((np.arange(2000) + 0.5) / 2000))
    assert mixture_information(2 * quantiles) == pytest.approx(0.5 * math.log(5), abs=0.002)
    assert mixture_information(torch.zeros(5)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_information(torch.zeros(3, 1)), r"draws must have shape \[..., N, L\].*got \(3, 1\)"),
        (lambda: gaussian_information(torch.zeros(3, 4), torch.zeros(2, 4)), "held_out must have the shape of draws"),
        (lambda: mixture_information(torch.zeros(2, 2)), r"means must have shape \[N\]"),
        (lambda: mixture_information(torch.zeros(2), 0.0), "deviation must"),
        (lambda: wrong_class_entropy(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)), "K at least 3"),
        (
            lambda: wrong_class_entropy(torch.zeros(3, 4), torch.zeros(2, dtype=torch.long)),
            r"labels must have shape \[3\]",
        ),
        (lambda: logit_variation(torch.zeros(3, 2)), "K at least 3"),
        (lambda: draw_look_alikes((3,), num_classes=5), "num_classes must be even"),
        (lambda: draw_look_alikes((3,), blend=0.5), "blend must"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# What logits say beyond the label


def test_evenness_and_variation_are_those_of_naive_loops():
    z, y = 2 * randn(30, 4), torch.arange(30) % 4
    even = wrong_class_entropy(z, y)
    lead, pattern, apart, groups = [], [], [], {}
    for row, label, found in zip(z.tolist(), y.tolist(), even.tolist(), strict=True):
        p = np.array([math.exp(v) for k, v in enumerate(row) if k != label])
        p /= p.sum()
        assert found == pytest.approx(-(p * np.log(p)).sum() / math.log(3))
        groups.setdefault(int(np.argmax(row)), []).append(row)
    for c, rows in groups.items():
        others = np.delete(np.array(rows), c, 1)
        centred = others - others.mean(1, keepdims=True)
        lead += list(np.array(rows)[:, c] - others.mean(1))
        pattern += [centred.mean(0) ** 2] * len(rows)
        apart += list((centred - centred.mean(0)) ** 2)
    wanted = math.sqrt(np.mean(pattern)) / np.mean(lead), math.sqrt(np.mean(apart)) / np.mean(lead)
    assert logit_variation(z) == pytest.approx(wanted)
    assert logit_variation(5 * z + 3) == pytest.approx(wanted)
    torch.testing.assert_close(wrong_class_entropy(z.expand(2, -1, -1), y)[1], even)


def test_look_alikes_lie_between_their_class_and_what_they_resemble():
    train, test = draw_look_alikes((4000, 10), deviation=1e-6, num_features=30, seed=2)
    own, other = train.centres[train.labels], train.centres[train.resembles]
    share = ((train.features - own) * (other - own)).sum(1) / (other - own).square().sum(1)
    torch.testing.assert_close(train.features, torch.lerp(own, other, share[:, None]), atol=1e-4, rtol=0)
    assert float(share.min()) + 1e-5 >= 0
    assert float(share.max()) < 0.4 + 1e-5
    assert float(share.mean()) == pytest.approx(0.2, abs=4 * 0.4 / math.sqrt(12 * 4000))
    steps = torch.bincount((train.resembles - train.labels) % 10, minlength=10) / 4000
    wanted = torch.tensor([0, 0.4, 0, 0, 0, 0.2, 0, 0, 0, 0.4])
    assert float((steps - wanted).abs().max()) < 4 * math.sqrt(0.24 / 4000)
    assert torch.equal(draw_look_alikes((4000, 10), deviation=1e-6, num_features=30, seed=2)[1].features, test.features)
    assert not torch.equal(draw_look_alikes((10,), seed=3)[0].centres, draw_look_alikes((10,), seed=2)[0].centres)
