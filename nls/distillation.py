r"""Distillation from many teachers at once, and what of their inputs the teachers' logits still tell.

A student that learns from a teacher's logits sees more than the label: which other classes an example resembles.
Smoothing can erase that. The functions here train the students, count the information, and draw data in which the
resemblance is known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch.nn import functional

from nls import _checks
from nls.contest import _positions
from nls.posterior import expected_calibration_error
from nls.stack import StackedMLP
from nls.training import StackHistory, fit_stack, seeded_generator

__all__ = [
    "LookAlikes",
    "compare_students",
    "distillation_loss",
    "draw_look_alikes",
    "fit_students",
    "gaussian_information",
    "logit_variation",
    "mixture_information",
    "wrong_class_entropy",
]


def distillation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    weight: float = 1.0,
) -> torch.Tensor:
    r"""Return how far a student is from its teacher, and from the labels.

    With :math:`p^\tau = \operatorname{softmax}(z/\tau)`,

    .. math:: (1-w)\,\bigl(-\log p^1_y\bigr) + w\,\tau^2\,\mathrm{KL}(p^\tau_{\text{teacher}} \Vert p^\tau) .

    The factor :math:`\tau^2` keeps the gradient of the second part at one size. At :math:`w = 1` no label is used.

    Args:
        logits: Of the student, [..., K].
        labels: Class indices [...].
        teacher_logits: [..., K]; no gradient flows into them.
        temperature: :math:`\tau`, above 0; a number, or a tensor that broadcasts over [...].
        weight: w in [0, 1].

    Returns:
        One loss for each example, [...].

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If shapes differ or a number is out of range.

    Examples:
        >>> z = torch.tensor([[2.0, 0.0, -1.0]])
        >>> distillation_loss(z, torch.tensor([0]), z + 5.0, temperature=4.0).abs().item() < 1e-6
        True

    References:
        Hinton, Vinyals and Dean, 2015, arXiv:1503.02531.
    """
    _checks.floating(logits, "logits")
    if _checks.floating(teacher_logits, "teacher_logits").shape != logits.shape:
        got = tuple(teacher_logits.shape)
        raise ValueError(f"teacher_logits must have the shape of logits, {tuple(logits.shape)}, got {got}")
    if _checks.integer_labels(labels, "labels", logits.shape[-1]).shape != logits.shape[:-1]:
        raise ValueError(f"labels must have shape {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}")
    weight, heat = _checks.number(weight, "weight", low=0.0, high=1.0), _heat(temperature, logits)
    teacher = (teacher_logits.detach() / heat).log_softmax(-1)
    loss = (
        weight
        * heat.squeeze(-1).square()
        * functional.kl_div((logits / heat).log_softmax(-1), teacher, reduction="none", log_target=True).sum(-1)
    )
    if weight == 1.0:
        return loss
    return loss + (1 - weight) * _cross_entropy(logits, labels.long())


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the negative log-probability of each label."""
    return logits.logsumexp(-1) - logits.gather(-1, labels[..., None]).squeeze(-1)


def _heat(temperature: float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return temperatures with an axis for the classes behind the others."""
    if not isinstance(temperature, torch.Tensor):
        temperature = _checks.number(temperature, "temperature")
    heat = torch.as_tensor(temperature, dtype=like.dtype, device=like.device)
    if not bool(((heat > 0) & heat.isfinite()).all()):
        raise ValueError(f"temperature must be above 0 and finite, got {_checks.describe(temperature)}")
    return heat[..., None]


def fit_students(
    features: torch.Tensor,
    labels: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    weight: float = 1.0,
    *,
    batch_size: int = 64,
    seed: int = 0,
    **options: object,
) -> StackHistory:
    """Train one student for each teacher, side by side, by :func:`distillation_loss`.

    All students start from one initialisation and see the same batches.

    Args:
        features: The transfer set, [n, d].
        labels: Its labels [n], which are not used at ``weight`` 1.
        teacher_logits: What the B teachers say of the transfer set, [B, n, K].
        temperature: Above 0; one number, or one for each student, [B].
        weight: As for :func:`distillation_loss`.
        batch_size: As for :func:`nls.fit_stack`.
        seed: As for :func:`nls.fit_stack`.
        options: ``hidden``, ``epochs``, ``learning_rate`` and what else :func:`nls.fit_stack` takes.

    Returns:
        What :func:`nls.fit_stack` returns; its ``stack`` holds the students.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape or a range is wrong.

    Examples:
        >>> x = torch.eye(3)
        >>> fit = fit_students(x, torch.tensor([0, 1, 2]), 5 * torch.eye(3)[None], 2.0, hidden=(), epochs=1)
        >>> fit.stack.forward(x).shape
        torch.Size([1, 3, 3])
    """
    if _checks.floating(teacher_logits, "teacher_logits").ndim != 3 or teacher_logits.shape[1] != len(features):
        raise ValueError(
            f"teacher_logits must have shape [B, {len(features)}, K], one row for each example, "
            f"got {tuple(teacher_logits.shape)}"
        )
    count, n, num_classes = teacher_logits.shape
    heat = _heat(temperature, teacher_logits).expand(count, 1)[..., None]
    weight = _checks.number(weight, "weight", low=0.0, high=1.0)
    soft = (teacher_logits.detach() / heat).softmax(-1)
    entropy = -torch.xlogy(soft, soft).sum(-1)
    positions = _positions(n, batch_size, seed)

    def loss(logits: torch.Tensor, batch: torch.Tensor, members: slice) -> torch.Tensor:
        # As distillation_loss, with all that does not depend on the students taken out of the loop.
        where = next(positions)
        log_model = (logits / heat).log_softmax(-1)
        apart = -(soft[:, where] * log_model).sum(-1) - entropy[:, where]
        losses = weight * heat.squeeze(-1).square() * apart
        return losses if weight == 1.0 else losses + (1 - weight) * _cross_entropy(logits, batch)

    # One chunk, so that each batch is drawn once for all students.
    size = {"num_classes": num_classes, "chunk": count, "batch_size": batch_size, "seed": seed}
    return fit_stack(features, labels.expand(count, -1), loss=loss, **size, **options)


Pair = tuple[torch.Tensor, torch.Tensor]


def compare_students(
    teachers: StackedMLP,
    rates: Sequence[float],
    transfer: Pair,
    held: Pair,
    test: Pair,
    temperatures: Sequence[float],
    **options: object,
) -> pd.DataFrame:
    """Train a student for each teacher and temperature, and for each rate one without a teacher, and grade them all.

    Students with and without a teacher start from one initialisation and see the same batches of the transfer set.

    Args:
        teachers: One for each rate.
        rates: What the teachers were trained with.
        transfer: Features [n, d] and labels [n]. Teachers are asked about the features; the labels are for the students
            without a teacher.
        held: Features and labels on which a temperature is to be chosen, and scales are fitted.
        test: Features and labels for the grades.
        temperatures: Of the distillation.
        options: As for :func:`fit_students`.

    Returns:
        One row for each teacher (``who`` is ``"teacher"``), student alone (``"alone"``), and student with its
        ``temperature`` (``"student"``): ``rate``, ``accuracy`` and ``nll`` on the test set, ``held_accuracy``,
        ``ece`` in 15 bins, and ``nll_scaled`` after one factor on the logits that is best on the held-out labels.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape or a range is wrong.

    Examples:
        >>> train, test = draw_look_alikes((60, 20))
        >>> sets = [(part.features, part.labels) for part in (train, test, test)]
        >>> fit = fit_stack(*sets[0][:1], sets[0][1].expand(2, -1), torch.tensor([0.1, 0.0]), num_classes=10, epochs=1)
        >>> table = compare_students(fit.stack, [0.1, 0.0], *sets, [1.0, 4.0], hidden=(8,), epochs=1)
        >>> table["who"].value_counts().to_dict()
        {'student': 4, 'teacher': 2, 'alone': 2}
    """
    if len(rates) != teachers.num_members:
        raise ValueError(f"rates must name each of the {teachers.num_members} teachers, got {len(rates)}")
    features, labels = transfer
    crossed = list(itertools.product(range(len(rates)), temperatures))
    said = teachers.forward(features)
    heat = torch.tensor([float(temperature) for _, temperature in crossed])
    taught = fit_students(features, labels, said[[i for i, _ in crossed]], heat, **options)
    rate = torch.tensor([float(rate) for rate in rates])
    alone = fit_stack(features, labels.expand(len(rates), -1), rate, num_classes=said.shape[-1], **options)
    tables = []
    for who, stack in (("teacher", teachers), ("alone", alone.stack), ("student", taught.stack)):
        pairs = crossed if who == "student" else [(i, math.nan) for i in range(len(rates))]
        graded = _grades(stack.forward(held[0]), held[1], stack.forward(test[0]), test[1])
        named = {"who": who, "rate": [rates[i] for i, _ in pairs], "temperature": [heat for _, heat in pairs]}
        tables.append(pd.DataFrame(named | graded))
    return pd.concat(tables, ignore_index=True)


def _grades(held: torch.Tensor, held_labels: torch.Tensor, test: torch.Tensor, labels: torch.Tensor) -> dict:
    """Return what is measured of logits [B, n, K], a list of B values for each name."""
    factors = torch.logspace(-3, 3, 25, base=2).tolist()
    fitted = torch.stack([_nll(factor * held, held_labels) for factor in factors]).argmin(0)
    best = torch.tensor(factors)[fitted][:, None, None]
    found = {"accuracy": _share_right(test, labels), "held_accuracy": _share_right(held, held_labels)}
    found |= {"nll": _nll(test, labels), "nll_scaled": _nll(best * test, labels)}
    error = [float(expected_calibration_error(z.double().softmax(-1), labels, 15)) for z in test]
    return {name: values.tolist() for name, values in found.items()} | {"ece": error}


def _share_right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the accuracy of each member, [B]."""
    return (logits.argmax(-1) == labels).double().mean(1)


def _nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean negative log-likelihood of each member, [B]."""
    return _cross_entropy(logits, labels.expand(len(logits), -1)).mean(1)


def gaussian_information(draws: torch.Tensor, held_out: torch.Tensor | None = None) -> torch.Tensor:
    r"""Estimate the mutual information between an example's index and a random number that depends on it.

    Each of N examples gets a Gaussian, with the mean :math:`\hat\mu_i` of its draws and one variance for all, the
    mean of the variances :math:`\hat\sigma^2` within an example. For draws :math:`y_{il}`,

    .. math:: \hat I = \log N + \operatorname{mean}_{i,l} \log \frac
        {\exp(-(y_{il} - \hat\mu_i)^2 / 2\hat\sigma^2)}{\sum_j \exp(-(y_{il} - \hat\mu_j)^2 / 2\hat\sigma^2)} ,

    in nats and at most :math:`\log N`. With draws that are held out from the Gaussians its expectation is a lower
    bound of the information. With the same draws it is about 1/(2L) too large: the means of L draws each scatter with
    variance :math:`\sigma^2/L` even where all examples are alike, and that looks like information.

    Args:
        draws: [..., N, L], N and L at least 2; such as a difference of two logits under L random changes of the input.
        held_out: [..., N, M] other draws of the same examples, to be scored; by default the same.

    Returns:
        The estimates [...], float64; not a number where the draws of no example differ.

    Raises:
        TypeError: If draws are not floating-point tensors.
        ValueError: If shapes do not fit.

    Examples:
        >>> far_apart = torch.arange(8.0)[:, None] * 100 + torch.tensor([-1.0, 0.0, 1.0])
        >>> round(float(gaussian_information(far_apart)), 4), round(math.log(8), 4)
        (2.0794, 2.0794)

    References:
        Mueller, Kornblith and Hinton, 2019, arXiv:1906.02629, section 4.
    """
    if _checks.floating(draws, "draws").ndim < 2 or min(draws.shape[-2:]) < 2:
        raise ValueError(f"draws must have shape [..., N, L] with N and L at least 2, got {tuple(draws.shape)}")
    scored = draws if held_out is None else _checks.floating(held_out, "held_out")
    if scored.shape[:-1] != draws.shape[:-1]:
        raise ValueError(
            f"held_out must have the shape of draws but for the last axis, {tuple(draws.shape)}, "
            f"got {tuple(scored.shape)}"
        )
    draws, scored = draws.double(), scored.double()
    mean, spread = draws.mean(-1), draws.var(-1).mean(-1)
    apart = scored[..., :, None, :] - mean[..., None, :, None]  # [..., i, j, l]
    score = -apart.square_().div_(2 * spread[..., None, None, None])
    own = score.diagonal(dim1=-3, dim2=-2).mT
    return math.log(draws.shape[-2]) + (own - score.logsumexp(-2)).mean((-2, -1))


def mixture_information(means: torch.Tensor, deviation: float = 1.0) -> float:
    r"""Return the exact mutual information between the index and the value of an even mixture of Gaussians.

    :math:`I = h\bigl(\tfrac1N \sum_i \mathcal N(\mu_i, \sigma^2)\bigr) - \tfrac12 \log(2\pi e \sigma^2)` in nats, by
    the trapezoidal rule, which converges faster than any power here. It is what :func:`gaussian_information` estimates.

    Args:
        means: :math:`\mu_i`, [N].
        deviation: :math:`\sigma`, above 0.

    Returns:
        A number between 0 and :math:`\log N`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``means`` is not one row, or ``deviation`` is not above 0.

    Examples:
        >>> round(mixture_information(torch.tensor([0.0, 50.0])), 6) == round(math.log(2), 6)
        True
    """
    if _checks.floating(means, "means").ndim != 1 or not len(means):
        raise ValueError(f"means must have shape [N] with N at least 1, got {tuple(means.shape)}")
    scaled = means.double() / _checks.number(deviation, "deviation", low=1e-300)
    low, high = float(scaled.min()) - 9, float(scaled.max()) + 9
    grid = torch.linspace(low, high, math.ceil((high - low) * 20) + 1, dtype=torch.float64)
    log_density = torch.cat(
        [(-(part[:, None] - scaled).square() / 2).logsumexp(1) for part in grid.split(4096)]
    ) - math.log(len(means) * math.sqrt(2 * math.pi))
    entropy = -torch.trapezoid(log_density.exp() * log_density, grid)
    return float(entropy) - math.log(2 * math.pi * math.e) / 2


def wrong_class_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r"""Return how evenly a model spreads what it leaves to the wrong classes: 1 if each is as probable as the next.

    :math:`H(p_k / (1 - p_y) : k \ne y) / \log(K-1)`, so that neither confidence nor K sets the scale.

    Args:
        logits: [..., N, K], K at least 3.
        labels: [N].

    Returns:
        Values in [0, 1], [..., N].

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape is wrong or K is below 3.

    Examples:
        >>> wrong_class_entropy(torch.tensor([[9.0, 1.0, 1.0], [9.0, 500.0, 1.0]]), torch.tensor([0, 0])).tolist()
        [1.0, 0.0]
    """
    if _checks.floating(logits, "logits").ndim < 2 or logits.shape[-1] < 3:
        raise ValueError(f"logits must have shape [..., N, K] with K at least 3, got {tuple(logits.shape)}")
    labels = _checks.integer_labels(labels, "labels", logits.shape[-1])
    if labels.shape != logits.shape[-2:-1]:
        raise ValueError(f"labels must have shape [{logits.shape[-2]}], got {tuple(labels.shape)}")
    own = functional.one_hot(labels, logits.shape[-1]).bool()
    log_p = logits.masked_fill(own, -math.inf).log_softmax(-1).masked_fill(own, 0.0)
    entropy = -(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1] - 1)
    return entropy.clamp(0.0, 1.0).abs()  # no minus zero


def logit_variation(logits: torch.Tensor) -> tuple[float, float]:
    r"""Return how much the logits of the classes that are not predicted vary, across classes and across examples.

    For an example with prediction c let :math:`w_k = z_k - \bar z_{-c}` for :math:`k \ne c`, with :math:`\bar z_{-c}`
    the mean of these logits, and let its lead be :math:`z_c - \bar z_{-c}`. The mean of w over the examples with one
    prediction is the pattern of that class: its root mean square is the variation across classes, that of the
    deviations from it the variation across examples. Both are divided by the mean lead, so that a multiple of all
    logits changes neither.

    Args:
        logits: [N, K], K at least 3.

    Returns:
        Variation across classes and across examples, both at least 0.

    Raises:
        TypeError: If ``logits`` is not a floating-point tensor.
        ValueError: If its shape is wrong.

    Examples:
        >>> logit_variation(torch.tensor([[6.0, 1.0, -1.0], [6.0, 1.0, -1.0]]))
        (0.16666666666666666, 0.0)
    """
    if _checks.floating(logits, "logits").ndim != 2 or logits.shape[1] < 3 or not len(logits):
        raise ValueError(f"logits must have shape [N, K] with N at least 1 and K at least 3, got {tuple(logits.shape)}")
    z, num_classes = logits.double(), logits.shape[1]
    predicted, pattern, apart, lead = z.argmax(1), 0.0, 0.0, 0.0
    for c in predicted.unique().tolist():
        rows = z[predicted == c]
        others = torch.cat([rows[:, :c], rows[:, c + 1 :]], 1)
        level = others.mean(1, keepdim=True)
        shape = (others - level).mean(0)
        pattern += len(rows) * float(shape.square().sum())
        apart += float((others - level - shape).square().sum())
        lead += float((rows[:, c] - level[:, 0]).sum())
    size = lead / len(z)
    count = len(z) * (num_classes - 1)
    return math.sqrt(pattern / count) / size, math.sqrt(apart / count) / size


@dataclass(frozen=True)
class LookAlikes:
    """Examples of which it is known what they resemble.

    Attributes:
        features: [n, d], float32.
        labels: The class of each example [n], always the right one.
        resembles: Another class [n], towards whose centre the example was moved.
        centres: The centres of the classes, [K, d].
    """

    features: torch.Tensor
    labels: torch.Tensor
    resembles: torch.Tensor
    centres: torch.Tensor


def draw_look_alikes(
    sizes: tuple[int, ...],
    *,
    num_features: int = 50,
    deviation: float = 0.5,
    blend: float = 0.4,
    num_classes: int = 10,
    seed: int = 0,
) -> list[LookAlikes]:
    r"""Draw sets of examples from one world of classes on a ring, each moved towards a class that it resembles.

    The centres :math:`\mu_k` are Gaussian with squared length about 8. An example of class y resembles k, one of its
    two neighbours on the ring with probability 0.4 each and the class across with 0.2, and

    .. math:: x = (1-a)\,\mu_y + a\,\mu_k + \sigma\,\epsilon, \qquad a \sim U(0, b) .

    Args:
        sizes: How many examples each set has.
        num_features: d, at least 1.
        deviation: :math:`\sigma`, above 0.
        blend: b in [0, 0.5): below a half every example is nearer to its own class, but for the noise.
        num_classes: K, even and at least 4.
        seed: Draws centres and examples.

    Returns:
        One set for each size.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range.

    Examples:
        >>> train, test = draw_look_alikes((5, 3), seed=1)
        >>> train.features.shape, bool((test.resembles != test.labels).all())
        (torch.Size([5, 50]), True)
    """
    num_classes = _checks.integer(num_classes, "num_classes", low=4)
    if num_classes % 2:
        raise ValueError(f"num_classes must be even, for a class across the ring, got {num_classes}")
    width = _checks.integer(num_features, "num_features", low=1)
    noise = _checks.number(deviation, "deviation", low=1e-12)
    most = _checks.number(blend, "blend", low=0.0, high=0.5, open_high=True)
    sizes = [_checks.integer(size, "sizes", low=1) for size in sizes]
    generator = seeded_generator(seed, "look-alikes")
    centres = torch.randn(num_classes, width, generator=generator) * math.sqrt(8 / width)
    steps = torch.tensor([1, -1, num_classes // 2])
    sets = []
    for size in sizes:
        labels = torch.randint(num_classes, (size,), generator=generator)
        step = torch.multinomial(torch.tensor([0.4, 0.4, 0.2]), size, replacement=True, generator=generator)
        resembles = (labels + steps[step]) % num_classes
        share = most * torch.rand(size, 1, generator=generator)
        spread = noise * torch.randn(size, width, generator=generator)
        sets.append(
            LookAlikes(torch.lerp(centres[labels], centres[resembles], share) + spread, labels, resembles, centres)
        )
    return sets
