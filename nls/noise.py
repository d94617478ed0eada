"""Label noise: transition matrices, a vectorised draw of noisy labels, and a report on what was drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nls import _checks

# Labels drawn at once: the uniforms and indices of a chunk stay in the processor's cache.
CHUNK = 65_536

# A report holds a [K, K] table, so a stray large label must not set K.
MAX_INFERRED_CLASSES = 10_000


def symmetric_transition(num_classes: int, noise_rate: float) -> torch.Tensor:
    r"""Return the transition matrix of symmetric noise, the true class excluded.

    .. math:: T_{ij} = (1 - \epsilon)\,[i = j] + \tfrac{\epsilon}{K - 1}\,[i \ne j]

    Some papers draw a replacement among all :math:`K` classes, the true one included; their rate is
    :math:`c = K \epsilon / (K - 1)`, so their "50 %" on 10 classes flips 45 % of the labels.

    Args:
        num_classes: Number of classes :math:`K \ge 2`.
        noise_rate: Probability :math:`\epsilon \in [0, 1]` that a label changes.

    Returns:
        A float64 tensor of shape [K, K] whose rows sum to 1.

    Raises:
        TypeError: If an argument is not a number of the right kind.
        ValueError: If an argument is out of range.

    Examples:
        >>> symmetric_transition(3, 0.5)
        tensor([[0.5000, 0.2500, 0.2500],
                [0.2500, 0.5000, 0.2500],
                [0.2500, 0.2500, 0.5000]], dtype=torch.float64)

    References:
        Angluin and Laird, 1988, doi:10.1007/BF00116829; Patrini et al., 2017, arXiv:1609.03683.
    """
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    noise_rate = _checks.number(noise_rate, "noise_rate", low=0, high=1)
    transition = torch.full((num_classes, num_classes), noise_rate / (num_classes - 1), dtype=torch.float64)
    return transition.fill_diagonal_(1 - noise_rate)


def pair_transition(num_classes: int, noise_rate: float) -> torch.Tensor:
    r"""Return the transition matrix of pair noise: each class flips to the next one.

    .. math:: T_{ij} = (1 - \epsilon)\,[j = i] + \epsilon\,[j = i + 1 \bmod K]

    Args:
        num_classes: Number of classes :math:`K \ge 2`.
        noise_rate: Probability :math:`\epsilon \in [0, 1]` that a label changes.

    Returns:
        A float64 tensor of shape [K, K] whose rows sum to 1.

    Raises:
        TypeError: If an argument is not a number of the right kind.
        ValueError: If an argument is out of range.

    Examples:
        >>> pair_transition(3, 0.25)
        tensor([[0.7500, 0.2500, 0.0000],
                [0.0000, 0.7500, 0.2500],
                [0.2500, 0.0000, 0.7500]], dtype=torch.float64)

    References:
        Han et al., 2018, arXiv:1804.06872.
    """
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    successors = {clean: (clean + 1) % num_classes for clean in range(num_classes)}
    return _one_target_transition(num_classes, successors, noise_rate)


def cifar10_asymmetric_transition(noise_rate: float) -> torch.Tensor:
    r"""Return the usual class-dependent noise of CIFAR-10, between classes that look alike.

    Truck flips to automobile, bird to airplane, deer to horse, and cat and dog flip to each other. The other
    five classes stay clean, so :math:`\epsilon` per flipping class is :math:`\epsilon / 2` over all labels.

    Args:
        noise_rate: Probability :math:`\epsilon \in [0, 1]` that a label of a flipping class changes.

    Returns:
        A float64 tensor of shape [10, 10] whose rows sum to 1.

    Raises:
        TypeError: If ``noise_rate`` is not a number.
        ValueError: If ``noise_rate`` is out of range.

    Examples:
        >>> transition = cifar10_asymmetric_transition(0.4)
        >>> transition[9, 1].item(), transition[1, 9].item(), transition[1, 1].item()
        (0.4, 0.0, 1.0)

    References:
        Patrini et al., 2017, arXiv:1609.03683.
    """
    return _one_target_transition(10, {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}, noise_rate)


def cifar10_pair_transition(noise_rate: float) -> torch.Tensor:
    r"""Return the two-way pair flip on CIFAR-10 that the code released with negative label smoothing draws.

    Truck and automobile, bird and airplane, deer and horse, cat and dog, frog and ship flip to each other.
    It is not the one-way noise of :func:`cifar10_asymmetric_transition`: all ten classes flip, so a rate of
    :math:`\epsilon` changes a share :math:`\epsilon` of all labels, and the matrix is symmetric.

    Args:
        noise_rate: Probability :math:`\epsilon \in [0, 1]` that a label changes.

    Returns:
        A float64 tensor of shape [10, 10] whose rows, and columns, sum to 1.

    Raises:
        TypeError: If ``noise_rate`` is not a number.
        ValueError: If ``noise_rate`` is out of range.

    Examples:
        >>> transition = cifar10_pair_transition(0.4)
        >>> transition[9, 1].item(), transition[1, 9].item(), transition[1, 1].item()
        (0.4, 0.4, 0.6)

    References:
        Wei et al., 2022, arXiv:2106.04149 (the released code, ``data/utils.py``).
    """
    pairs = ((9, 1), (2, 0), (4, 7), (3, 5), (6, 8))
    targets = dict(pairs) | {second: first for first, second in pairs}
    return _one_target_transition(10, targets, noise_rate)


def _one_target_transition(num_classes: int, targets: dict[int, int], noise_rate: float) -> torch.Tensor:
    """Return the matrix in which each class that is a key of ``targets`` flips to its value."""
    noise_rate = _checks.number(noise_rate, "noise_rate", low=0, high=1)
    transition = torch.eye(num_classes, dtype=torch.float64)
    for clean, noisy in targets.items():
        transition[clean, clean] = 1 - noise_rate
        transition[clean, noisy] = noise_rate
    return transition


def draw_noisy_labels(labels: torch.Tensor, transition: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    r"""Draw one noisy label for each label, independently.

    .. math:: \tilde y_i \sim T_{y_i, \cdot}

    Each label spends two uniforms. The first decides whether it flips, :math:`u_1 < 1 - T_{yy}`; the second
    picks the wrong class from the row without its diagonal. So noise is nested: with generators in the same
    state, a higher rate of the same family keeps every flip with its wrong class, and only adds flips.
    Differences between noise rates then carry no noise of the draw itself.

    Args:
        labels: Clean labels, integers in [0, K), of any shape and on any device.
        transition: Row-stochastic matrix [K, K], ``transition[i, j]`` = P(noisy j | clean i).
        generator: Source of randomness. It advances by a number of draws that depends on the number of labels
            only.

    Returns:
        An int64 tensor of the shape and on the device of ``labels``. The draw itself runs on the CPU, so labels
        on an accelerator get the same noise as on the CPU if ``generator`` is a CPU generator.

    Raises:
        TypeError: If ``labels`` are not integers, ``transition`` is not a floating-point tensor, or
            ``generator`` is not a generator.
        ValueError: If a label is out of range or ``transition`` is not row-stochastic.

    Examples:
        >>> labels = torch.arange(3).repeat(4)
        >>> draw_noisy_labels(labels, pair_transition(3, 1.0), torch.Generator().manual_seed(0))
        tensor([1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    """
    matrix = _checks.transition_matrix(transition).cpu()
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            "generator must be a torch.Generator, such as torch.Generator().manual_seed(0), "
            f"got {_checks.describe(generator)}"
        )
    clean = _checks.integer_labels(_checks.tensor(labels, "labels").cpu(), "labels", len(matrix)).flatten()
    flip_probability, wrong_class_cdf = _flip_tables(matrix)
    noisy = clean.clone()
    for start in range(0, clean.numel(), CHUNK):
        part = noisy[start : start + CHUNK]
        # Both uniforms are drawn for every label, flipped or not: no draw depends on the rate.
        uniforms = torch.rand(2, part.numel(), dtype=torch.float64, generator=generator, device=generator.device).cpu()
        flipped = (uniforms[0] < flip_probability[part]).nonzero().squeeze(1)
        part[flipped] = _wrong_classes(part[flipped], uniforms[1, flipped], wrong_class_cdf)
    return noisy.view(labels.shape).to(labels.device)


def _flip_tables(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return P(flip) [K] and the row-offset CDF [K, K] of the wrong class, ascending when flattened."""
    off_diagonal = matrix.clone().fill_diagonal_(0)
    cdf = off_diagonal.cumsum(1)
    total = cdf[:, -1:].clone()
    # Dividing by the last entry makes the end of each row exactly 1, through trailing zeros as well. A row without
    # wrong classes never flips, also where rounding leaves its diagonal just below 1.
    cdf = torch.where(total > 0, cdf / total, 1.0)
    flip_probability = torch.where(total.squeeze(1) > 0, 1 - matrix.diagonal(), 0.0)
    return flip_probability, cdf + torch.arange(len(matrix), dtype=cdf.dtype).unsqueeze(1)


def _wrong_classes(clean: torch.Tensor, uniforms: torch.Tensor, row_offset_cdf: torch.Tensor) -> torch.Tensor:
    """Return the wrong class of each flipped label: the first whose CDF exceeds its uniform."""
    upper = torch.nextafter(clean.double() + 1, torch.zeros((), dtype=torch.float64))
    # clean + uniform may round up to clean + 1, which is the next row.
    position = torch.minimum(clean + uniforms, upper)
    # right=True passes over entries equal to the position: classes of probability zero, at 0 and at ties.
    return torch.searchsorted(row_offset_cdf.flatten(), position, right=True) - clean * len(row_offset_cdf)


@dataclass(frozen=True, eq=False)
class NoiseReport:
    r"""What a draw of label noise did, beside what it was meant to do.

    Attributes:
        num_examples: Number of labels :math:`N`.
        realised_rate: Share of labels that changed.
        nominal_rate: :math:`\sum_i N_i (1 - T_{ii}) / N`, or None without a transition matrix.
        standard_error: Binomial standard error of ``realised_rate`` given the class counts, from the nominal rates
            where they are known and from the realised ones otherwise.
        counts: Clean labels per class, int64 [K].
        realised_rate_per_class: Share of each class that changed, float64 [K]; nan for a class without labels.
        nominal_rate_per_class: :math:`1 - T_{ii}`, float64 [K], or None without a transition matrix.
        empirical_transition: Shares of noisy labels per clean class, float64 [K, K]; nan rows likewise.
    """

    num_examples: int
    realised_rate: float
    nominal_rate: float | None
    standard_error: float
    counts: torch.Tensor
    realised_rate_per_class: torch.Tensor
    nominal_rate_per_class: torch.Tensor | None
    empirical_transition: torch.Tensor

    def __str__(self) -> str:
        nominal = "" if self.nominal_rate is None else f", nominal {self.nominal_rate:.4f}"
        lines = [
            f"{self.num_examples} labels, {len(self.counts)} classes: noise rate {self.realised_rate:.4f}{nominal} "
            f"(standard error {self.standard_error:.4f})"
        ]
        present = self.counts.nonzero().squeeze(1)
        rates = self.realised_rate_per_class[present]
        low, high = int(rates.argmin()), int(rates.argmax())
        lines.append(
            f"per class: from {float(rates[low]):.4f} (class {int(present[low])}) "
            f"to {float(rates[high]):.4f} (class {int(present[high])})"
        )
        absent = (self.counts == 0).nonzero().squeeze(1).tolist()
        if absent:
            lines.append(f"classes without labels, rate nan: {', '.join(map(str, absent))}")
        return "\n".join(lines)


def noise_report(
    clean_labels: torch.Tensor, noisy_labels: torch.Tensor, transition: torch.Tensor | None = None
) -> NoiseReport:
    r"""Compare noisy labels with clean ones, and with the matrix they were drawn from if it is known.

    .. math::
        \hat T_{ij} = \frac{\#\{n : y_n = i, \tilde y_n = j\}}{N_i}, \qquad
        \mathrm{se} = \frac1N \sqrt{\sum_i N_i \epsilon_i (1 - \epsilon_i)}

    Args:
        clean_labels: Clean labels, integers in [0, K), of any shape, at least one.
        noisy_labels: Noisy labels, of the same shape.
        transition: Row-stochastic matrix [K, K] that the labels were drawn from, or None. Without it, K is the
            largest label plus 1, at most 10,000.

    Returns:
        A :class:`NoiseReport`; printing it gives a summary.

    Raises:
        TypeError: If labels are not integer tensors or ``transition`` is not a floating-point tensor.
        ValueError: If the shapes differ, there are no labels, or a label is out of range.

    Examples:
        >>> clean = torch.tensor([0, 0, 0, 0, 2, 2])
        >>> noisy = torch.tensor([0, 0, 0, 1, 2, 1])
        >>> print(noise_report(clean, noisy, symmetric_transition(3, 0.3)))
        6 labels, 3 classes: noise rate 0.3333, nominal 0.3000 (standard error 0.1871)
        per class: from 0.2500 (class 0) to 0.5000 (class 2)
        classes without labels, rate nan: 1
    """
    clean = _checks.tensor(clean_labels, "clean_labels").cpu()
    noisy = _checks.tensor(noisy_labels, "noisy_labels").cpu()
    if clean.shape != noisy.shape or not clean.numel():
        raise ValueError(
            "clean_labels and noisy_labels must have the same shape and at least one label, "
            f"got shapes {tuple(clean.shape)} and {tuple(noisy.shape)}"
        )
    matrix = None if transition is None else _checks.transition_matrix(transition).cpu()
    num_classes = MAX_INFERRED_CLASSES if matrix is None else len(matrix)
    clean = _checks.integer_labels(clean, "clean_labels", num_classes).flatten()
    noisy = _checks.integer_labels(noisy, "noisy_labels", num_classes).flatten()
    if matrix is None:
        num_classes = max(int(clean.max()), int(noisy.max()), 1) + 1

    pairs = torch.bincount(clean * num_classes + noisy, minlength=num_classes**2).view(num_classes, num_classes)
    counts = pairs.sum(1)
    changed = counts - pairs.diagonal()
    realised = changed / counts.double()
    nominal = None if matrix is None else 1 - matrix.diagonal()
    rates = realised.nan_to_num(0) if nominal is None else nominal
    return NoiseReport(
        num_examples=clean.numel(),
        realised_rate=int(changed.sum()) / clean.numel(),
        nominal_rate=None if nominal is None else float(counts.double() @ nominal) / clean.numel(),
        standard_error=float((counts * rates * (1 - rates)).sum().sqrt()) / clean.numel(),
        counts=counts,
        realised_rate_per_class=realised,
        nominal_rate_per_class=nominal,
        empirical_transition=pairs / counts.double().unsqueeze(1),
    )
