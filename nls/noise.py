"""Label noise: transition matrices, a vectorised draw of noisy labels, and a report on what was drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from nls import _checks

# Labels drawn at once: the integers and indices of a chunk stay in the processor's cache.
CHUNK = 65536

# The bits of a random integer that pick the wrong class.
_LOW_BITS = 2**32 - 1

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

    Each label spends one random integer of 63 bits. All of it decides whether the label flips, with probability
    :math:`1 - T_{yy}`; its lower 32 bits, which do not know the rate, pick the wrong class from the row without its
    diagonal, so shares of wrong classes are met to :math:`2^{-32}`. So noise is nested: with generators in the same
    state, a higher rate of the same family keeps every flip with its wrong class, and only adds flips.
    Differences between noise rates then carry no noise of the draw itself.

    Args:
        labels: Clean labels, integers in [0, K), of any shape and on any device.
        transition: Row-stochastic matrix [K, K], ``transition[i, j]`` = P(noisy j | clean i). Too many classes for a
            matrix: see :func:`draw_symmetric_labels`.
        generator: Source of randomness. It advances by one integer for each label, whatever the matrix.

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
    _check_generator(generator)
    if _is_symmetric_noise(matrix):
        return _draw_symmetric(labels, len(matrix), float(matrix[0, 0]), generator)
    limits, wrong_class_ends = _flip_tables(matrix)
    guide = _guide(wrong_class_ends, _checks.tensor(labels, "labels").numel())

    def flip(part: torch.Tensor, integers: torch.Tensor) -> None:
        flipped = (integers <= limits.index_select(0, part)).nonzero().squeeze(1)
        clean = part.index_select(0, flipped)
        low = integers.index_select(0, flipped).bitwise_and_(_LOW_BITS)
        part.index_copy_(0, flipped, _wrong_classes(clean, low, wrong_class_ends, guide))

    return _draw(labels, len(matrix), generator, flip)


def draw_symmetric_labels(
    labels: torch.Tensor, num_classes: int, noise_rate: float, generator: torch.Generator
) -> torch.Tensor:
    r"""Draw one label for each label under symmetric noise, without a matrix.

    .. math:: \tilde y_i \sim (1 - \epsilon)\,[j = y_i] + \tfrac{\epsilon}{K - 1}\,[j \ne y_i]

    The labels are those of :func:`draw_noisy_labels` with :func:`symmetric_transition`, bit for bit. With 50,000
    classes that matrix would take 20 GB.

    Args:
        labels: Clean labels, integers in [0, K), of any shape and on any device.
        num_classes: Number of classes K, from 2 to :math:`2^{31}`.
        noise_rate: Probability :math:`\epsilon \in [0, 1]` that a label changes.
        generator: Source of randomness. It advances by one integer for each label, whatever the rate.

    Returns:
        An int64 tensor of the shape and on the device of ``labels``.

    Raises:
        TypeError: If ``labels`` are not integers, a number is of the wrong kind, or ``generator`` is not a generator.
        ValueError: If a label or a number is out of range.

    Examples:
        >>> labels = torch.tensor([0, 7, 49_999])
        >>> draw_symmetric_labels(labels, 50_000, 0.0, torch.Generator().manual_seed(0))
        tensor([    0,     7, 49999])

    References:
        Angluin and Laird, 1988, doi:10.1007/BF00116829.
    """
    num_classes = _checks.integer(num_classes, "num_classes", low=2, high=2**31)
    noise_rate = _checks.number(noise_rate, "noise_rate", low=0, high=1)
    _check_generator(generator)
    return _draw_symmetric(labels, num_classes, 1 - noise_rate, generator)


def _draw_symmetric(
    labels: object, num_classes: int, stay_probability: float, generator: torch.Generator
) -> torch.Tensor:
    """Draw under symmetric noise by arithmetic: the same sweeps over all labels, flipped or not."""
    limit = _integer_limits(torch.tensor(1 - stay_probability, dtype=torch.float64)).item()

    def flip(part: torch.Tensor, integers: torch.Tensor) -> None:
        flipped = integers <= limit
        wrong = integers.bitwise_and_(_LOW_BITS).mul_(num_classes - 1).bitwise_right_shift_(32)
        # The wrong classes are numbered without the label itself.
        wrong.add_(wrong >= part)
        torch.where(flipped, wrong, part, out=part)

    return _draw(labels, num_classes, generator, flip)


def _draw(
    labels: object,
    num_classes: int,
    generator: torch.Generator,
    flip: Callable[[torch.Tensor, torch.Tensor], None],
) -> torch.Tensor:
    """Return checked labels after ``flip(labels, integers)`` has changed them in place, chunk by chunk."""
    clean = _checks.integer_labels(_checks.tensor(labels, "labels").cpu(), "labels", num_classes)
    noisy = clean.flatten().clone()
    integers = torch.empty(min(CHUNK, noisy.numel()), dtype=torch.int64, device=generator.device)
    for part in noisy.split(CHUNK):
        # One integer for every label, flipped or not: no draw depends on the rate, or on the size of a chunk.
        flip(part, integers[: part.numel()].random_(generator=generator).cpu())
    return noisy.view(labels.shape).to(labels.device)


def _check_generator(generator: object) -> None:
    """Raise unless ``generator`` is a generator."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            "generator must be a torch.Generator, such as torch.Generator().manual_seed(0), "
            f"got {_checks.describe(generator)}"
        )


def _is_symmetric_noise(matrix: torch.Tensor) -> bool:
    """Return whether all rows stay with one probability, and flip to all others with another."""
    stay, other = matrix[0, 0], matrix[0, 1]
    # Equal entries outside a diagonal of equal entries: no copy of the matrix is needed to see it.
    others = (matrix == other).sum() - (matrix.diagonal() == other).sum()
    return bool(others == len(matrix) * (len(matrix) - 1)) and bool((matrix.diagonal() == stay).all())


def _integer_limits(probability: torch.Tensor) -> torch.Tensor:
    """Return the integers up to which a uniform integer of 63 bits lies with a given probability; -1 for zero."""
    # 2**63 itself does not fit; a product with it is exact.
    below = (probability.clamp_max(1 - 2**-53) * 2.0**63).long() - 1
    return torch.where(probability >= 1, 2**63 - 1, below)


def _flip_tables(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return limits of flipping [K], and where wrong classes end [K, K], ascending when flattened."""
    cdf = matrix.clone().fill_diagonal_(0)
    torch.cumsum(cdf, 1, out=cdf)
    total = cdf[:, -1:].clone()
    # Dividing by the last entry makes the end of each row exactly 1, through trailing zeros as well. A row without
    # wrong classes never flips, also where rounding leaves its diagonal just below 1.
    flips = total.squeeze(1) > 0
    ends = cdf.div_(total).masked_fill_(~flips.unsqueeze(1), 1).mul_(2.0**32).round_().long()
    offsets = torch.arange(len(matrix)).unsqueeze(1) << 32
    return _integer_limits(torch.where(flips, 1 - matrix.diagonal(), 0.0)), ends.add_(offsets)


def _guide(row_offset_ends: torch.Tensor, num_labels: int) -> torch.Tensor | None:
    """Return the wrong class by clean class and first bits [K, 2**b], -1 where these do not decide; or None."""
    num_classes = len(row_offset_ends)
    # Filling the table must cost less than the searches that it saves, and most of its entries must decide.
    bits = min(10, (num_labels // num_classes).bit_length() - 1)
    if 2**bits < 2 * num_classes:
        return None
    cells = torch.arange(num_classes << bits).view(num_classes, -1)
    # How many classes end by the first position of a cell, and by its last one.
    ended = [
        torch.bincount(cell.flatten(), minlength=cells.numel() + 1)[:-1].cumsum(0).view_as(cells)
        for cell in (row_offset_ends + (1 << 32 - bits) - 1 >> 32 - bits, row_offset_ends >> 32 - bits)
    ]
    return torch.where(ended[0] == ended[1], ended[0] - cells[:, :1] // 2**bits * num_classes, -1)


def _wrong_classes(
    clean: torch.Tensor, low: torch.Tensor, row_offset_ends: torch.Tensor, guide: torch.Tensor | None
) -> torch.Tensor:
    """Return the wrong class of each flipped label: the first that ends above its 32 bits."""
    position = low.add_(clean << 32)
    if guide is None:
        # right=True passes over ends equal to the position: classes of probability zero, at 0 and at ties.
        found = torch.searchsorted(row_offset_ends.flatten(), position, right=True)
        return found.sub_(clean, alpha=len(row_offset_ends))
    found = guide.flatten().index_select(0, position >> 32 - (guide.shape[1].bit_length() - 1))
    open_ones = (found < 0).nonzero().squeeze(1)
    rest = _wrong_classes(clean[open_ones], position[open_ones] & _LOW_BITS, row_offset_ends, None)
    return found.index_copy_(0, open_ones, rest)


def instance_transition(
    features: torch.Tensor,
    labels: torch.Tensor,
    noise_rate: float,
    generator: torch.Generator,
    *,
    num_classes: int,
    deviation: float = 0.1,
) -> torch.Tensor:
    r"""Return P(noisy label | example) for each example under the noise of :func:`draw_instance_noise`.

    .. math:: T_i = (1 - q_i)\,\mathrm{onehot}(y_i) + q_i \operatorname{softmax}_{j \ne y_i}(x_i W_{y_i})

    A generator in the same state gives the rows that the labels are drawn from. The result takes 8nK bytes, the work
    some ten megabytes more: 4 MB for 50,000 examples and 10 classes, 400 MB for 1,000 classes.

    Args:
        features: As for :func:`draw_instance_noise`.
        labels: As for :func:`draw_instance_noise`.
        noise_rate: As for :func:`draw_instance_noise`.
        generator: Source of randomness; it advances as in :func:`draw_instance_noise`.
        num_classes: Number of classes :math:`K \ge 2`.
        deviation: As for :func:`draw_instance_noise`.

    Returns:
        A float64 tensor [n, K] on the device of ``features`` whose rows sum to 1.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> labels = torch.tensor([0, 1, 1])
        >>> settings = {"generator": torch.Generator().manual_seed(0), "num_classes": 3, "deviation": 0.0}
        >>> instance_transition(torch.zeros(3, 4), labels, 0.5, **settings)
        tensor([[0.5000, 0.2500, 0.2500],
                [0.2500, 0.5000, 0.2500],
                [0.2500, 0.5000, 0.2500]], dtype=torch.float64)

    References:
        Xia et al., 2020, arXiv:2006.07836, Algorithm 2.
    """
    rows, clean, uniforms = _prepare_instances(features, labels, noise_rate, generator, num_classes, deviation)
    flip_rates = _flip_rates(uniforms[0], float(noise_rate), float(deviation)).to(rows.device)
    result = torch.empty(len(rows), num_classes, dtype=torch.float64, device=rows.device)
    everything = torch.arange(len(rows))
    for chosen, shares in _wrong_class_shares(rows, clean, everything, num_classes, generator):
        result[chosen] = shares.double() * flip_rates[chosen].unsqueeze(1)
    return result.scatter_(1, clean.to(rows.device).unsqueeze(1), 1 - flip_rates.unsqueeze(1))


def draw_instance_noise(
    features: torch.Tensor,
    labels: torch.Tensor,
    noise_rate: float,
    generator: torch.Generator,
    *,
    num_classes: int,
    deviation: float = 0.1,
) -> torch.Tensor:
    r"""Draw noisy labels that depend on the features of each example.

    .. math::
        q_i \sim \mathcal N(\epsilon, \sigma^2) \text{ on } [0, 1], \qquad
        \tilde y_i \sim (1 - q_i)\,\mathrm{onehot}(y_i) + q_i \operatorname{softmax}_{j \ne y_i}(x_i W_{y_i})

    with one matrix :math:`W_k` of standard normal entries for each class. Cutting the normal at 0 and 1 moves the mean
    of :math:`q_i` to :math:`\epsilon + \sigma (\varphi(a) - \varphi(b)) / (\Phi(b) - \Phi(a))` with
    :math:`a = -\epsilon / \sigma, b = (1 - \epsilon) / \sigma`: for the usual deviation 0.1 to 0.129 from 0.1, 0.206
    from 0.2, 0.300 from 0.3, and up to 0.080 as the rate falls to 0. At a rate of exactly 0 no label changes.

    Each label spends three uniforms: for its flip rate, for whether it flips, and for its wrong class. So noise is
    nested: with generators in the same state, a higher rate keeps every flip with its wrong class, and only adds flips.
    Another state of the generator draws other matrices as well. Only examples that flip are multiplied, each by the one
    matrix of its class.

    Args:
        features: Shape [n, d] or [n, ...], which is flattened. Floating-point features are used as they are: their
            scale decides how sure the wrong class is. Images of type uint8 are divided by 255.
        labels: Clean labels, integers in [0, K), shape [n].
        noise_rate: :math:`\epsilon \in [0, 1]`, the mean of the normal before it is cut.
        generator: Source of randomness. It advances by a number of draws that depends on n, d and K only.
        num_classes: Number of classes :math:`K \ge 2`.
        deviation: :math:`\sigma \ge 0`; with 0, each label flips with probability ``noise_rate``.

    Returns:
        An int64 tensor [n] on the device of ``labels``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> images = torch.arange(3 * 12).view(3, 3, 2, 2).to(torch.uint8)
        >>> settings = {"num_classes": 2, "deviation": 0.0}
        >>> draw_instance_noise(images, torch.tensor([0, 1, 1]), 1.0, torch.Generator().manual_seed(0), **settings)
        tensor([1, 0, 0])

    References:
        Xia et al., 2020, arXiv:2006.07836, Algorithm 2.
    """
    rows, clean, uniforms = _prepare_instances(features, labels, noise_rate, generator, num_classes, deviation)
    flipped = (uniforms[1] < _flip_rates(uniforms[0], float(noise_rate), float(deviation))).nonzero().squeeze(1)
    noisy = clean.clone()
    for chosen, shares in _wrong_class_shares(rows, clean, flipped, num_classes, generator):
        ends = shares.double().cumsum_(1)
        # A float64 uniform is at most 1 - 2**-53, and times the total it stays below the total, rounded as well.
        picks = uniforms[2, chosen].to(ends.device).unsqueeze(1) * ends[:, -1:]
        noisy[chosen] = torch.searchsorted(ends, picks, right=True).squeeze(1).cpu()
    return noisy.to(labels.device)


def _prepare_instances(
    features: object, labels: object, noise_rate: object, generator: object, num_classes: object, deviation: object
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features [n, d], labels [n] on the CPU, and three float64 uniforms for each example [3, n]."""
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    _checks.number(noise_rate, "noise_rate", low=0, high=1)
    _checks.number(deviation, "deviation", low=0)
    _check_generator(generator)
    if not _checks.tensor(features, "features").is_floating_point() and features.dtype != torch.uint8:
        raise TypeError(f"features must be floating-point or uint8, got {_checks.describe(features)}")
    clean = _checks.integer_labels(_checks.tensor(labels, "labels").cpu(), "labels", num_classes)
    if features.ndim < 2 or clean.shape != features.shape[:1]:
        raise ValueError(
            "features must have shape [n, d] or [n, ...] and labels shape [n], "
            f"got {tuple(features.shape)} and {tuple(clean.shape)}"
        )
    uniforms = torch.rand(3, len(clean), dtype=torch.float64, generator=generator, device=generator.device)
    return features.detach().flatten(1), clean, uniforms.cpu()


def _flip_rates(uniforms: torch.Tensor, noise_rate: float, deviation: float) -> torch.Tensor:
    """Return quantiles of the normal around ``noise_rate`` cut to [0, 1], which rise with the rate."""
    if noise_rate == 0 or deviation == 0:
        return torch.full_like(uniforms, noise_rate)
    bounds = torch.tensor([-noise_rate, 1 - noise_rate], dtype=torch.float64) / deviation
    low, high = torch.special.ndtr(bounds)
    quantiles = torch.special.ndtri(low + uniforms * (high - low))
    return quantiles.mul_(deviation).add_(noise_rate).clamp_(0, 1)


def _wrong_class_shares(
    features: torch.Tensor, clean: torch.Tensor, chosen: torch.Tensor, num_classes: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield indices among ``chosen``, all of one class, with the softmax of their scores over the other classes."""
    kind = torch.float64 if features.dtype == torch.float64 else torch.float32
    width = features.shape[1]
    by_class = clean[chosen].argsort(stable=True)
    groups = chosen[by_class].split(torch.bincount(clean[chosen], minlength=num_classes).tolist())
    for label, group in enumerate(groups):
        # Drawn for each class, present or not, and one at a time: all of them would take K times the memory.
        weight = torch.randn(width, num_classes, dtype=kind, generator=generator, device=generator.device)
        weight = weight.to(features.device)
        for part in group.split(max(1, CHUNK * 64 // max(width, num_classes, 1))) if len(group) else ():
            rows = features[part.to(features.device)].to(kind)
            scores = (rows.div_(255) if features.dtype == torch.uint8 else rows) @ weight
            if not bool(scores.isfinite().all()):
                raise ValueError("features must be finite, got values that are not, or too large to multiply")
            scores[:, label] = -math.inf
            yield part, scores.softmax(1)


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
