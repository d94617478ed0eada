r"""How sure a network becomes, on its data and away from them, and whether an attack that fails was strong enough.

The networks of a page are a :class:`nls.stack.StackedMLP`, so that all rates are attacked in one pass.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq, nnls
from scipy.special import expit

from nls import _checks
from nls.confidence import fit_temperature, risk_coverage
from nls.data import load_dataset
from nls.each import fit_each
from nls.posterior import expected_calibration_error
from nls.stack import StackedMLP
from nls.training import fit_stack

Logits = Callable[[torch.Tensor], torch.Tensor]

SETS = ("digits", "waveform")
"""Sets that :func:`small_set` knows."""

ATTACKS = {
    "fgsm": {"loss": "cross_entropy"},
    "fgsm_margin": {"loss": "margin"},
    "pgd": {"loss": "cross_entropy", "steps": 10},
    "pgd_margin": {"loss": "margin", "steps": 10},
}
"""Attacks by name, with their options of :func:`fgsm`."""

_FEW, _HELD_OUT = 300, 100


def best_margin(num_classes: int, smooth_rate: float = 0.0, penalty: float = 0.0) -> float:
    r"""Return by how much the label's logit leads the others where the loss of one example is least.

    For generalised label smoothing and for the confidence penalty

    .. math:: s^\ast = \log\Bigl(1 + \frac{K(1-r)}{r}\Bigr), \qquad s^\ast\, p(s^\ast) = \frac1b, \qquad
        p(s) = \frac{1}{1 + (K-1)\, e^{-s}} .

    Args:
        num_classes: K, at least 2.
        smooth_rate: r, at most 1.
        penalty: b; one of the two must be 0.

    Returns:
        The margin in nats; infinite for a rate or a penalty of 0 or below.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range, or both the rate and the penalty are not 0.

    Examples:
        >>> round(best_margin(10, 0.1), 4), round(best_margin(10, penalty=0.3), 4), best_margin(10, -0.1)
        (4.5109, 3.9254, inf)

    References:
        Szegedy et al., 2016, arXiv:1512.00567; Pereyra et al., 2017, arXiv:1701.06548.
    """
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    rate, penalty = _checks.number(smooth_rate, "smooth_rate", high=1.0), _checks.number(penalty, "penalty")
    if rate and penalty:
        raise ValueError(f"one of smooth_rate and penalty must be 0, got {rate:g} and {penalty:g}")
    if rate > 0:
        return math.log1p(num_classes * (1 - rate) / rate)
    if penalty <= 0:
        return math.inf
    # s p(s) rises from 0, and p is at least 1 / K.
    return brentq(lambda s: s / (1 + (num_classes - 1) * math.exp(-s)) - 1 / penalty, 0.0, num_classes / penalty)


def matched_penalty(num_classes: int, smooth_rate: float) -> float:
    r"""Return the confidence penalty that wants the label as probable as a rate does.

    .. math:: b = \frac{1}{s^\ast\, p^\ast}, \qquad p^\ast = 1 - r + \frac rK

    Args:
        num_classes: K, at least 2.
        smooth_rate: r, above 0 and below 1.

    Returns:
        The penalty, whose :func:`best_margin` is that of the rate.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range.

    Examples:
        >>> penalty = matched_penalty(10, 0.1)
        >>> round(penalty, 4), round(best_margin(10, penalty=penalty) - best_margin(10, 0.1), 9)
        (0.2436, 0.0)
    """
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    rate = _checks.number(smooth_rate, "smooth_rate", low=1e-12, high=1.0, open_high=True)
    return 1 / (best_margin(num_classes, rate) * (1 - rate + rate / num_classes))


def label_margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r"""Return the logit of the label less the mean of the other logits.

    .. math:: z_y - \frac{1}{K-1} \sum_{k \ne y} z_k = \frac{K}{K-1}\,(z_y - \bar z)

    Args:
        logits: Shape [..., N, K].
        labels: Class indices [N], or of the logits' shape without the last axis.

    Returns:
        The margins [..., N].

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a label is out of range.

    Examples:
        >>> label_margin(torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 3.0]]), torch.tensor([0, 1]))
        tensor([ 3.0000, -0.5000])
    """
    num_classes = _checks.floating(logits, "logits").shape[-1]
    own = _of_label(logits, _checks.integer_labels(labels, "labels", num_classes))
    return (own - logits.mean(-1)) * num_classes / (num_classes - 1)


def linear_flow(features: torch.Tensor, labels: torch.Tensor, smooth_rate: float, times: Sequence[float]) -> np.ndarray:
    r"""Follow the weights of a linear model for two classes under gradient flow from zero.

    With labels :math:`y = \pm 1`, margins :math:`s_i = y_i\, w \cdot x_i` and the logistic function :math:`\sigma`,

    .. math:: \dot w = \frac1n \sum_i \bigl(\sigma(-s_i) - \tfrac r2\bigr)\, y_i x_i .

    Args:
        features: Shape [n, d]; there is no bias, unless a column is constant.
        labels: 0 or 1, shape [n].
        smooth_rate: r, at most 1.
        times: Increasing times, the first above 0; they may span many powers of ten.

    Returns:
        The weights of the logit difference at these times, float64 [T, d].

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range, or the times do not increase.

    Examples:
        >>> features = torch.tensor([[2.0], [-1.0]])
        >>> weights = linear_flow(features, torch.tensor([1, 0]), -1.0, [1e3, 2e3]).ravel()
        >>> round(weights[1] - weights[0])  # with all margins large, 3/4 of the time
        750

    References:
        Soudry et al., 2018, arXiv:1710.10345, for rate 0.
    """
    rate = _checks.number(smooth_rate, "smooth_rate", high=1.0)
    signed = _signed(features, labels)
    times = np.asarray(times, dtype=float)
    if times.ndim != 1 or not len(times) or times[0] <= 0 or not (np.diff(times) > 0).all():
        raise ValueError("times must increase from above 0")
    start, clock = 1e-6, np.log(times)  # in log t the flow is followed over any number of decades

    def speed(log_time: float, weight: np.ndarray) -> np.ndarray:
        pull = expit(-signed @ weight) - rate / 2
        return math.exp(log_time) * (pull @ signed) / len(signed)

    first = start * (0.5 - rate / 2) * signed.mean(0)
    span = (min(math.log(start), clock[0] - 1), clock[-1])
    return solve_ivp(speed, span, first, "LSODA", t_eval=clock, rtol=1e-8, atol=1e-10).y.T


def widest_gap(features: torch.Tensor, labels: torch.Tensor) -> float:
    r"""Return the largest margin by which a linear model without bias separates two classes.

    .. math:: \max_{\|w\| = 1} \min_i y_i\, w \cdot x_i = \min_{a \ge 0,\, \sum_i a_i = 1} \Bigl\|\sum_i a_i y_i x_i
        \Bigr\|

    Args:
        features: Shape [n, d].
        labels: 0 or 1, shape [n].

    Returns:
        The distance from the border to the nearest point; 0 if the labels cannot be separated.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range.

    Examples:
        >>> round(widest_gap(torch.tensor([[2.0, 1.0], [-3.0, 1.0], [0.0, -1.0]]), torch.tensor([1, 0, 0])), 4)
        0.8321
    """
    signed = _signed(features, labels)
    heavy = 1e4 * float(np.abs(signed).max())
    system = np.vstack([signed.T, np.full(len(signed), heavy)])
    share, _ = nnls(system, np.append(np.zeros(signed.shape[1]), heavy))
    return float(np.linalg.norm(share / share.sum() @ signed))


def stack_logits(stack: StackedMLP) -> Logits:
    """Return the stack as a function of features that can be differentiated by them.

    Args:
        stack: B networks.

    Returns:
        A function from features [n, d], the same for all, or [B, n, d] to logits [B, n, K]; it computes in the type of
        the features.

    Examples:
        >>> stack = StackedMLP((4, 8, 3), 5, torch.Generator().manual_seed(0))
        >>> stack_logits(stack)(torch.zeros(7, 4, dtype=torch.float64)).shape
        torch.Size([5, 7, 3])
    """

    def logits(features: torch.Tensor) -> torch.Tensor:
        values = features.expand(stack.num_members, *features.shape[-2:])
        for layer, (weight, bias) in enumerate(zip(stack.weights, stack.biases, strict=True)):
            values = values.relu() if layer else values
            values = torch.baddbmm(bias.to(values)[:, None], values, weight.to(values).mT)
        return values

    return logits


def fgsm(
    function: Logits,
    features: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float,
    *,
    loss: str = "cross_entropy",
    temperature: float = 1.0,
    steps: int = 1,
    limits: tuple[float, float] | None = None,
) -> torch.Tensor:
    r"""Move each example within a box around it so that a loss grows, by the signs of its gradient.

    One step is the fast gradient sign method, :math:`x' = x + \epsilon\, \operatorname{sign} \nabla_x \ell(z(x), y)`;
    several are projected gradient steps of :math:`2.5\,\epsilon / \mathrm{steps}`. Where the float type rounds the
    probability of the label to 1, the gradient of the cross entropy is zero and its attack does nothing; the
    ``"margin"`` :math:`\max_{k \ne y} z_k - z_y` has no such place, and no temperature.

    Args:
        function: From features to logits [..., n, K].
        features: Shape [n, ...].
        labels: Class indices [n].
        epsilon: Half the side of the box, at least 0.
        loss: ``"cross_entropy"`` or ``"margin"``.
        temperature: Divides the logits before the loss, above 0.
        steps: At least 1.
        limits: The least and the largest value of a feature, or None.

    Returns:
        The moved features, with a leading axis where the function has several networks.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range.

    Examples:
        >>> weight = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
        >>> fgsm(lambda x: x @ weight.T, torch.tensor([[3.0, 1.0]]), torch.tensor([0]), 0.5)
        tensor([[2.5000, 1.5000]])

    References:
        Goodfellow et al., 2015, arXiv:1412.6572; Madry et al., 2018, arXiv:1706.06083; Carlini and Wagner, 2017,
        arXiv:1608.04644, for the margin.
    """
    epsilon = _checks.number(epsilon, "epsilon", low=0.0)
    temperature = _checks.number(temperature, "temperature", low=1e-12)
    steps = _checks.integer(steps, "steps", low=1)
    _checks.choice(loss, "loss", ("cross_entropy", "margin"))
    origin = _checks.floating(features, "features").detach()
    with torch.no_grad():
        logits = function(origin)
    if _checks.integer_labels(labels, "labels", logits.shape[-1]).shape != origin.shape[:1]:
        raise ValueError(f"labels must have shape ({len(origin)},), as many as features, got {tuple(labels.shape)}")
    origin = origin.expand(*logits.shape[:-2], *origin.shape)
    moved, size = origin, epsilon if steps == 1 else 2.5 * epsilon / steps
    for _ in range(steps):
        given = moved.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(_attacked(function(given) / temperature, labels, loss).sum(), given)
        moved = torch.minimum(torch.maximum(moved + size * slope.sign(), origin - epsilon), origin + epsilon)
        moved = moved if limits is None else moved.clamp(*limits)
    return moved.detach()


def along_rays(features: torch.Tensor, centre: torch.Tensor, distances: Sequence[float]) -> torch.Tensor:
    r"""Return points on the rays from a centre through each example.

    .. math:: x(t) = c + t\,(x - c)

    Args:
        features: Shape [n, d].
        centre: c, shape [d].
        distances: t, where 1 is the example itself.

    Returns:
        The points [T, n, d].

    Raises:
        TypeError: If ``features`` is not a floating-point tensor.

    Examples:
        >>> along_rays(torch.tensor([[3.0]]), torch.tensor([1.0]), [0.0, 1.0, 4.0]).flatten()
        tensor([1., 3., 9.])
    """
    offset = _checks.floating(features, "features") - centre
    return centre + torch.tensor(distances, dtype=offset.dtype)[:, None, None] * offset


def normalized_confidence(logits: torch.Tensor, power: float = 2.0) -> torch.Tensor:
    r"""Return the largest logit over the norm of the logits, a score for which predictions to keep.

    .. math:: \frac{\max_k v_k}{\|v\|_p}, \qquad v = z - \bar z

    No temperature changes it. With two classes it is the same for every prediction, and orders nothing.

    Args:
        logits: Shape [N, K], finite.
        power: p, at least 1.

    Returns:
        The scores [N], float64, in (0, 1]; 0 where all logits are equal.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``power`` is below 1.

    Examples:
        >>> normalized_confidence(torch.tensor([[3.0, 0.0, 0.0], [30.0, 0.0, 0.0], [3.0, 3.0, 0.0]]))
        tensor([0.8165, 0.8165, 0.4082], dtype=torch.float64)

    References:
        Cattelan and Silva, 2024, arXiv:2305.15508; Xia et al., 2025, arXiv:2403.14715.
    """
    power = _checks.number(power, "power", low=1.0)
    exact = _checks.floating(logits, "logits").detach().double()
    centred = exact - exact.mean(-1, keepdim=True)
    # The maximum norm goes first: a power of a large logit would overflow.
    unit = centred / centred.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return unit.amax(-1) / torch.linalg.vector_norm(unit, power, -1).clamp_min(1e-300)


@dataclass(frozen=True)
class SmallSet:
    """A small set in three splits, all float32 or class indices, with clean labels.

    Attributes:
        train: Features [n, d] and labels [n].
        validation: The same, for temperatures and for the epoch to stop at.
        test: The same.
        num_classes: K.
        limits: The range of a feature, or None.
    """

    train: tuple[torch.Tensor, torch.Tensor]
    validation: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
    num_classes: int
    limits: tuple[float, float] | None


def small_set(name: str, seed: int) -> SmallSet:
    """Return digits, whose labels are sure, or few examples of waveform, whose classes overlap.

    Pixels of ``"digits"`` lie in [0, 1]; ``"waveform"`` keeps 300 training and 100 validation examples of a fresh
    sample, standardised.

    Args:
        name: One of ``SETS``.
        seed: Draws the split or the sample.

    Returns:
        The set.

    Raises:
        ValueError: If the name is unknown.

    Examples:
        >>> data = small_set("waveform", 0)
        >>> data.train[0].shape, data.num_classes, data.limits
        (torch.Size([300, 21]), 3, None)
    """
    _checks.choice(name, "name", SETS)
    whole = load_dataset("digits_images" if name == "digits" else name, seed=seed)
    splits = [(getattr(whole, f"{s}_features"), getattr(whole, f"{s}_labels")) for s in ("train", "validation", "test")]
    if name == "digits":
        splits = [(pixels.flatten(1).float() / 255, labels) for pixels, labels in splits]
    else:
        splits = [
            tuple(part[:most] for part in pair) for pair, most in zip(splits, (_FEW, _HELD_OUT, None), strict=True)
        ]
    return SmallSet(*splits, whole.num_classes, (0.0, 1.0) if name == "digits" else None)


@dataclass(frozen=True)
class Arms:
    """Networks that differ in their loss alone.

    Attributes:
        last: After the last epoch; the rates come first, then the penalties, then the decays.
        stopped: The same networks, each after the epoch with the least cross entropy on validation examples.
        epochs: Which epoch that was, counted from 1, [B].
    """

    last: StackedMLP
    stopped: StackedMLP
    epochs: torch.Tensor


def fit_arms(
    data: SmallSet,
    rates: Sequence[float],
    penalties: Sequence[float] = (),
    decays: Sequence[float] = (),
    *,
    hidden: tuple[int, ...] = (64, 64),
    epochs: int = 60,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Arms:
    """Train a network for each smooth rate, confidence penalty and weight decay, from one start and in one order.

    Args:
        data: What to train on.
        rates: Rates of label smoothing, at most 1, at least one.
        penalties: Weights of the entropy in :func:`nls.baselines.confidence_penalty_loss`.
        decays: Weight decays of plain cross entropy.
        hidden: Widths of the hidden layers.
        epochs: Passes over the data, at least 1.
        learning_rate: Step size of Adam.
        seed: Draws the initialisation and the order.

    Returns:
        The networks at the end and at their best epoch.

    Examples:
        >>> arms = fit_arms(small_set("waveform", 0), [0.1, 0.0], [0.3], epochs=2)
        >>> arms.last.num_members, arms.epochs.tolist()
        (3, [2, 2, 2])
    """
    features, labels = data.train
    options = {"num_classes": data.num_classes, "hidden": hidden, "epochs": epochs, "learning_rate": learning_rate}
    weight = torch.tensor(penalties)[:, None]

    def penalised(logits: torch.Tensor, targets: torch.Tensor, members: slice) -> torch.Tensor:
        # confidence_penalty_loss without its checks, which would take longer than the step
        log_model = logits.log_softmax(-1)
        return weight[members] * (log_model.exp() * log_model).sum(-1) - _of_label(log_model, targets)

    kinds = [(len(rates), {"smooth_rate": torch.tensor(rates)})]
    kinds += [(len(penalties), {"loss": penalised}), (len(decays), {"weight_decay": torch.tensor(decays)})]
    kinds = [(count, objective) for count, objective in kinds if count]
    size = (features.shape[1], *hidden, data.num_classes)
    whole = [StackedMLP(size, sum(count for count, _ in kinds), torch.Generator()) for _ in range(2)]
    best_epoch, start = [], 0
    for count, objective in kinds:
        watch = _Watch(data.validation)
        fit = fit_stack(
            features, labels.expand(count, -1), **objective, **options, seed=seed, chunk=count, evaluate=watch
        )
        for stack, part in zip(whole, (fit.stack, watch.best), strict=True):
            stack.put(slice(start, start + count), part)
        best_epoch.append(watch.epochs)
        start += count
    return Arms(*whole, torch.cat(best_epoch))


class _Watch:
    """Keeps each network of a stack as it was after its best epoch."""

    def __init__(self, held_out: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.features, self.labels = held_out
        self.epoch, self.best = 0, None

    def __call__(self, stack: StackedMLP, members: slice) -> dict[str, torch.Tensor]:
        loss = -_of_label(stack.forward(self.features).double().log_softmax(-1), self.labels).mean(1)
        self.epoch += 1
        if self.best is None:
            self.least, self.epochs = loss, torch.ones(len(loss), dtype=torch.long)
            self.best = stack.part(slice(None))
        for member in (loss < self.least).nonzero().flatten().tolist():
            self.best.put(slice(member, member + 1), stack.part(slice(member, member + 1)))
            self.least[member], self.epochs[member] = loss[member], self.epoch
        return {"validation_loss": loss}


def confidence_row(
    held_out: torch.Tensor, held_labels: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor
) -> dict:
    """Return how right, how sure and how well ordered the predictions of one network are.

    Args:
        held_out: Logits of validation examples, for the temperature.
        held_labels: Their labels.
        logits: Logits of test examples [N, K].
        labels: Their labels [N].

    Returns:
        ``accuracy``; ``confidence``, ``nll`` and ``ece`` as trained; ``temperature``, with ``nll_scaled`` and
        ``ece_scaled`` after it; the area under the risk-coverage curve ordered by the largest probability, ``area``,
        after the temperature, ``area_scaled``, by :func:`normalized_confidence`, ``area_norm``, and with all errors
        last, ``area_best``.

    Examples:
        >>> logits, labels = 4 * torch.eye(3), torch.tensor([0, 1, 1])
        >>> row = confidence_row(logits, labels, logits, labels)
        >>> round(row["accuracy"], 3), round(row["confidence"], 3), row["temperature"] > 1
        (0.667, 0.965, True)
    """
    exact = logits.double()
    temperature = fit_temperature(held_out, held_labels)
    right = exact.argmax(1) == labels
    row = {"accuracy": float(right.double().mean()), "temperature": temperature}
    for ending, model in (("", exact), ("_scaled", exact / temperature)):
        log_model = model.log_softmax(1)
        sure = log_model.max(1).values  # the logarithm keeps apart what rounds to a probability of 1
        row[f"confidence{ending}"] = float(sure.exp().mean())
        row[f"nll{ending}"] = -float(_of_label(log_model, labels).mean())
        row[f"ece{ending}"] = expected_calibration_error(log_model.exp(), labels)
        row[f"area{ending}"] = risk_coverage(_surest(model), right).area
    orders = {"norm": normalized_confidence(logits), "best": right.double()}
    return row | {f"area_{name}": risk_coverage(score, right).area for name, score in orders.items()}


def image_arm(root: str | os.PathLike[str], rate: float, seed: int, num_examples: int = 5600, epochs: int = 10) -> dict:
    """Train the small CNN on clean images of CIFAR-10 at a rate, and return how sure and how robust it is.

    Args:
        root: Folder with ``cifar10.npz``.
        rate: r.
        seed: Draws the training images, the initialisation and the order.
        num_examples: Training and validation images together.
        epochs: Passes over the training images.

    Returns:
        The values of :func:`confidence_row` on 10,000 test images, and the accuracy on the first 500 of them after
        each attack, a share of 2/255 of the range of a pixel.
    """
    data = load_dataset("cifar10", root, seed, num_examples=num_examples)
    recipe = {"network": "cnn", "batch_size": 128, "learning_rate": 0.05, "weight_decay": 5e-4, "schedule": "cosine"}
    fit = fit_each(
        data.train_features, data.train_labels, rate, num_classes=data.num_classes, epochs=epochs, seed=seed, **recipe
    )
    network = fit.network.eval()
    mean, std = (value.float().view(1, -1, 1, 1) for value in (network.pixel_mean, network.pixel_std))

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        return network((pixels - mean) / std)

    with torch.no_grad():
        held, test = (
            torch.cat([logits(part.float() / 255) for part in images.split(500)])
            for images in (data.validation_features, data.test_features)
        )
    row = confidence_row(held, data.validation_labels, test, data.test_labels)
    images, labels = data.test_features[:500].float() / 255, data.test_labels[:500]
    for name, options in ATTACKS.items():
        moved = [
            fgsm(logits, part, own, 2 / 255, limits=(0.0, 1.0), **options)
            for part, own in zip(images.split(250), labels.split(250), strict=True)
        ]
        with torch.no_grad():
            right = [logits(part).argmax(1) == own for part, own in zip(moved, labels.split(250), strict=True)]
        row[name] = float(torch.cat(right).double().mean())
    return row


def _attacked(logits: torch.Tensor, labels: torch.Tensor, loss: str) -> torch.Tensor:
    """Return what an attack makes large, [..., n]."""
    if loss == "cross_entropy":
        return -_of_label(logits.log_softmax(-1), labels)
    index = labels.expand(logits.shape[:-1])[..., None]
    return logits.scatter(-1, index, -torch.inf).amax(-1) - _of_label(logits, labels)


def _surest(logits: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of p / (1 - p) of the largest probability p, which never rounds to a tie."""
    top, rest = logits.max(-1), logits
    others = rest.scatter(-1, top.indices[..., None], -torch.inf)
    return top.values - others.logsumexp(-1)


def _of_label(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the value of each label, [..., N] of [..., N, K]."""
    return values.gather(-1, labels.expand(values.shape[:-1])[..., None]).squeeze(-1)


def _signed(features: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Return the examples with their sign, float64 [n, d]."""
    labels = _checks.integer_labels(labels, "labels", 2)
    if _checks.floating(features, "features").ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features must be [n, d] and labels [n], got {tuple(features.shape)}, {tuple(labels.shape)}")
    return (features.double() * (2 * labels - 1)[:, None]).numpy()
