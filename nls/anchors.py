r"""Noise counted where a model is surest: the transition matrix, its best rate, and what resampling makes of them.

A model that was fitted without an example tells which class it looks like. Among the examples that look most like a
class nearly all are of it, so the labels that they carry show the row of the transition matrix. Only the order of the
predictions counts, not how well they are calibrated. If those examples are all of one class, and the noise depends on
the class alone, then their labels have nothing to do with what else they look like: that can be tested.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nls import _checks
from nls.rates import NO_INFORMATION
from nls.training import seeded_generator

SHARES = (0.7, 0.5, 0.35, 0.25, 0.17, 0.12, 0.08)
"""Shares of the examples predicted to be of a class, the surest ones, that its row may be counted on."""

LEAST = 30
"""Examples in all below which a share is not used."""

STRICTNESS = 2.0
"""Standard errors by which a share may differ from a smaller one and still be taken."""

DEPENDENCE = 3.0
"""Standard deviations of :func:`label_dependence` up to which the labels of a share may be independent."""


@dataclass(frozen=True, eq=False)
class CountedNoise:
    r"""What the surest examples say, and what resamples of the data make of it.

    Attributes:
        transition: Rows counted [K, K], float64; a class that is predicted nowhere has the row of symmetric noise.
        prior: Shares of the predicted classes [K].
        counts: Examples that each row was counted on [K].
        share: The share that was taken.
        depends_on_example: Whether labels are independent of what else an example looks like in no more than half of
            the share that agreement alone allows, see :func:`label_dependence`.
        noise_rate: :math:`\epsilon = 1 - \sum_i \pi_i T_{ii}` of the data, then of each resample [1 + B].
        smooth_rate: The rate nearest to an inverse of T [1 + B]; ``nan`` where labels carry no information.
        residual: The share of the damage that no one rate removes [1 + B].
    """

    transition: torch.Tensor
    prior: torch.Tensor
    counts: torch.Tensor
    share: float
    depends_on_example: bool
    noise_rate: torch.Tensor
    smooth_rate: torch.Tensor
    residual: torch.Tensor


def count_noise(
    probabilities: torch.Tensor, noisy_labels: torch.Tensor, *, resamples: int = 200, seed: int = 0
) -> CountedNoise:
    r"""Count the noise among the examples that look most like their predicted class.

    .. math:: \hat T_{ij}(q) = \frac{|\{x \in R_i(q) : \tilde y = j\}|}{|R_i(q)|}, \qquad
        R_i(q) = \text{the share } q \text{ of } \{x : \arg\max p(x) = i\} \text{ with the largest } p_i(x)

    A small share holds few examples of other classes, and few examples. The largest share is taken whose disagreement
    of label and prediction, and that of each larger step below it, differs from that of every smaller one by at most
    two standard errors of the difference, as in Lepski's method. Resamples of the examples choose anew. No share above
    the largest one in which :func:`label_dependence` is at most ``DEPENDENCE`` is taken, and only the smallest usable
    one if there is none.

    The squares in the formulas of :func:`nls.rates.frobenius_rate` are taken without the part that counting adds:
    :math:`|T_i|^2 \leftarrow (n_i |\hat T_i|^2 - 1) / (n_i - 1)`.

    Args:
        probabilities: Out of sample [n, K].
        noisy_labels: [n].
        resamples: B, at least 0.
        seed: Draws them.

    Returns:
        The counts and what follows from them.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, a value is out of range, or no class is predicted twice.

    Examples:
        >>> labels = torch.arange(400) % 2
        >>> right = torch.where(labels == 0, 0.9, 0.1).double()
        >>> noisy = torch.where(torch.arange(400) % 10 < 2, 1 - labels, labels)
        >>> found = count_noise(torch.stack([right, 1 - right], 1), noisy)
        >>> round(float(found.noise_rate[0]), 2), round(float(found.smooth_rate[0]), 2)
        (0.2, -0.67)

    References:
        Patrini et al., 2017, arXiv:1609.03683, for anchors.
        Lepski, 1991, doi:10.1137/1135065, for the choice of a share.
    """
    model, labels = _predictions(probabilities, noisy_labels)
    resamples = _checks.integer(resamples, "resamples")
    predicted, place = _places(model)
    if not bool((place <= SHARES[0]).any()):
        raise ValueError(
            f"probabilities must be largest for some class twice, got {len(labels)} rows, each for another"
        )
    weights = torch.ones(1 + resamples, len(labels), dtype=torch.float64)
    maker = seeded_generator(seed, "resamples")
    for row in weights[1:]:
        drawn = torch.randint(len(labels), labels.shape, generator=maker)
        row.copy_(torch.bincount(drawn, minlength=len(labels)))
    taken = _take(place, labels != predicted, weights)
    used = [place <= share for share in SHARES if (place <= share).sum() >= LEAST]
    fair = [_dependence(model[rows], predicted[rows], labels[rows]) <= DEPENDENCE for rows in used]
    largest = fair.index(True) if any(fair) else len(used)
    depends_on_example = bool(used) and (largest == len(used) or SHARES[largest] <= SHARES[taken[0]] / 2)
    taken = taken.clamp(min=max(min(largest, len(used) - 1), 0))
    parts = [
        _rows(model.shape[1], predicted, labels, weight, place <= SHARES[share], once=b == 0)
        for b, (weight, share) in enumerate(zip(weights, taken.tolist(), strict=True))
    ]
    transition, prior, counts, _ = parts[0]
    found = torch.stack([summary for *_, summary in parts])
    return CountedNoise(transition, prior, counts, SHARES[taken[0]], depends_on_example, *found.T)


def label_dependence(probabilities: torch.Tensor, noisy_labels: torch.Tensor) -> float:
    r"""Test whether, among examples predicted to be of one class, the label depends on what else they look like.

    .. math:: z = \frac{S}{\sqrt{V}}, \qquad
        S = \sum_i \sum_{x \in R_i} \langle e_{\tilde y} - \bar e_i, q(x) - \bar q_i \rangle, \qquad
        V = \sum_i \frac{\langle E_i^\top E_i, Q_i^\top Q_i \rangle}{|R_i| - 1}

    with the examples :math:`R_i` predicted to be of class i, :math:`q_j = p_j / (1 - p_i)` for :math:`j \ne i` and
    :math:`q_i = 0`, the one-hot labels :math:`e`, means :math:`\bar e_i`, :math:`\bar q_i` over :math:`R_i`, and the
    matrices :math:`E_i`, :math:`Q_i` of the centred rows. V is the variance of S when the labels of each :math:`R_i`
    are permuted, so z is about standard normal if all of each :math:`R_i` is of one class and the noise depends on the
    class alone. It is large where labels follow the class that an example looks like next: classes that are mixed,
    noise that depends on the example, and models that saw the labels do that. The more labels are wrong, the less is
    left of it. Of two classes there is nothing else to look like: it is 0.

    Args:
        probabilities: Out of sample [n, K].
        noisy_labels: [n].

    Returns:
        z.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit or a value is out of range.

    Examples:
        >>> probabilities = torch.tensor([[0.8, 0.2, 0.0], [0.8, 0.0, 0.2]] * 50)
        >>> round(label_dependence(probabilities, torch.tensor([1, 2] * 50)), 1)  # labels follow
        9.9
        >>> label_dependence(probabilities, torch.tensor([1, 2, 2, 1] * 25))  # they do not
        0.0

    References:
        Mantel, 1963, doi:10.1080/01621459.1963.10500879, for the test over strata.
    """
    model, labels = _predictions(probabilities, noisy_labels)
    return _dependence(model, model.argmax(1), labels)


def _predictions(probabilities: torch.Tensor, noisy_labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both arguments after their checks."""
    model = _checks.probabilities(probabilities, "probabilities").detach().double()
    if model.ndim != 2 or len(model) < 2:
        raise ValueError(f"probabilities must have shape [n, K] with n >= 2, got {tuple(model.shape)}")
    labels = _checks.integer_labels(noisy_labels, "noisy_labels", model.shape[1])
    if labels.shape != model.shape[:1]:
        raise ValueError(f"noisy_labels must have shape ({len(model)},), got {tuple(labels.shape)}")
    return model, labels


def _places(model: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the predicted classes, and how far each example is from the surest one of its class, in (0, 1]."""
    sure, predicted = model.max(1)
    place = torch.empty_like(sure)
    for k in predicted.unique():
        rows = (predicted == k).nonzero()[:, 0]
        order = rows[sure[rows].sort(descending=True, stable=True).indices]
        place[order] = torch.arange(1, len(rows) + 1, dtype=torch.float64) / len(rows)
    return predicted, place


def _take(place: torch.Tensor, wrong: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the number of the share that each row of weights [B, n] takes."""
    inside = torch.stack([place <= share for share in SHARES]).double()
    size = weights @ inside.T
    rate = (weights @ (inside * wrong).T) / size.clamp(min=1)
    variance = (rate * (1 - rate)).clamp(min=1 / size.clamp(min=51) * 0.98) / size.clamp(min=1)
    used = size >= LEAST
    taken = torch.zeros(len(weights), dtype=torch.long)
    agrees = torch.ones(len(weights), dtype=torch.bool)
    for a in reversed(range(len(SHARES))):
        smaller = slice(a + 1, None)
        spread = (variance[:, smaller] - variance[:, a, None]).clamp(min=1e-12).sqrt()
        near = (rate[:, smaller] - rate[:, a, None]).abs() <= STRICTNESS * spread
        agrees &= (near | ~used[:, smaller]).all(1)
        taken[agrees & used[:, a]] = a
    return taken


def _dependence(model: torch.Tensor, predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """Return how far labels depend on the other probabilities within predicted classes, in standard deviations."""
    total = variance = 0.0
    for k in predicted.unique():
        rows = predicted == k
        others = model[rows].clone()
        others[:, k] = 0
        others /= others.sum(1, keepdim=True).clamp(min=1e-12)
        one_hot = torch.nn.functional.one_hot(labels[rows], model.shape[1]).double()
        one_hot, others = one_hot - one_hot.mean(0), others - others.mean(0)
        total += float((one_hot * others).sum())
        variance += float(((one_hot.T @ one_hot) * (others.T @ others)).sum()) / max(len(others) - 1, 1)
    return total / variance**0.5 if variance > 1e-12 else 0.0


def _rows(
    classes: int, predicted: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, inside: torch.Tensor, once: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the matrix, the prior, the counts, and noise rate, best rate and residual."""
    counts = torch.bincount(predicted * classes + labels, weight * inside, classes**2).view(classes, classes)
    size = counts.sum(1)
    prior = torch.bincount(predicted, weight, classes) / weight.sum()
    right = float(counts.diagonal().sum() / size.sum()) if size.any() else 1 / classes  # no example tells nothing
    symmetric = torch.full_like(counts, (1 - right) / (classes - 1)).fill_diagonal_(right)
    matrix = torch.where(size[:, None] > 0, counts / size[:, None].clamp(min=1), symmetric)
    square = matrix.square().sum(1)
    # What counting adds to a square; a resample adds it twice, once with the data and once again.
    extra = (1 - square) / (size - 1).clamp(min=1) * (1 if once else 2)
    square = torch.where(size > 1, square - extra, square)
    noise = 1 - float(prior @ matrix.diagonal())
    signal, energy = classes * (1 - noise) - 1, classes * float(prior @ square) - 1
    if signal <= NO_INFORMATION:
        return matrix, prior, size, torch.tensor([noise, torch.nan, 1.0], dtype=torch.float64)
    energy = max(energy, signal**2 / (classes - 1))  # Cauchy and Schwarz, which the subtraction may break
    left = 1 - signal**2 / (energy * (classes - 1))
    total = (energy - 2 * signal) / (classes - 1) + 1
    share = (max(left, 0.0) / total) ** 0.5 if total > NO_INFORMATION else 0.0
    return matrix, prior, size, torch.tensor([noise, 1 - signal / energy, min(share, 1.0)], dtype=torch.float64)
