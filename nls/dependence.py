r"""Does label noise depend on the instance? Two tests, and a measure of how much.

One transition matrix is enough only if the noisy label is independent of the input given the clean label. Both tests
permute labels among examples of one clean class: under class-conditional noise that changes no distribution, so a
p-value is valid at any sample size, unless the features were learned from the noisy labels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nls import _checks
from nls.stats import Interval, mean_interval

# Cells of [permutations, members, neighbours] that are compared at once.
_CHUNK = 2**22

# Members of a class whose distances to all others are held at once.
_BLOCK = 1024


@dataclass(frozen=True)
class DependenceTest:
    """What a permutation test within classes found.

    Attributes:
        statistic: The statistic of the data.
        expected: Its mean over the permutations: what class-conditional noise gives.
        deviation: Its standard deviation over the permutations.
        p_value: Share of permutations, the data among them, with a statistic at least as large.
        num_permutations: How many were drawn; the least possible p-value is 1 / (1 + this).
        num_examples: Number of examples N.
    """

    statistic: float
    expected: float
    deviation: float
    p_value: float
    num_permutations: int
    num_examples: int

    @property
    def score(self) -> float:
        """How many standard deviations the statistic lies above what class-conditional noise gives."""
        excess = self.statistic - self.expected
        return excess / self.deviation if self.deviation else math.copysign(math.inf, excess) if excess else 0.0

    def __str__(self) -> str:
        return (
            f"{self.statistic:.4g}, class-conditional noise gives {self.expected:.4g} (score {self.score:+.1f}, "
            f"p = {self.p_value:.3g}, {self.num_permutations} permutations, n={self.num_examples})"
        )


def annotator_dependence(
    labels: torch.Tensor, clean_labels: torch.Tensor, generator: torch.Generator, *, num_permutations: int = 199
) -> DependenceTest:
    r"""Test whether several annotators err on the same examples of a class.

    The statistic is the plug-in estimate of what one annotator's label tells about another's, once the class is known:

    .. math:: \hat I(\tilde Y_a; \tilde Y_b \mid Y) = \sum_{i,j,k} \hat p_{ijk} \log
        \frac{\hat p_{ijk}\, \hat p_{i}}{\hat p_{ij}\, \hat p_{ik}},

    in nats, the mean over pairs of annotators; :math:`2N\hat I` is the G statistic of the tables of all classes. Under
    class-conditional noise the annotators are independent given the class, and each one's labels may be permuted
    within it.

    Args:
        labels: One column for each annotator, integers [N, A], A at least 2.
        clean_labels: Clean labels, integers [N].
        generator: Source of the permutations.
        num_permutations: At least 1.

    Returns:
        The test; ``expected`` is the bias of the plug-in estimate, so ``statistic - expected`` is the effect.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit or a label is negative.

    Examples:
        >>> clean = torch.zeros(40, dtype=torch.int64)
        >>> wrong = (torch.arange(40) < 8).long()
        >>> test = annotator_dependence(torch.stack([wrong, wrong], 1), clean, torch.Generator().manual_seed(0))
        >>> test.p_value  # both err on the same eight
        0.005

    References:
        Dawid and Skene, 1979, doi:10.2307/2346806, whose model of annotators is the null hypothesis.
    """
    labels, clean = _annotators(labels, clean_labels)
    num_permutations = _prepare(generator, num_permutations)
    num_classes = int(max(labels.max(), clean.max())) + 1
    columns = list(labels.T)

    def information(columns: list[torch.Tensor]) -> float:
        pairs = list(itertools.combinations(columns, 2))
        return sum(_conditional_information(clean, a, b, num_classes) for a, b in pairs) / len(pairs)

    drawn = []
    for _ in range(num_permutations):
        # The first annotator may stay: only how they lie to one another matters.
        shuffled = [column[_permute_within(clean, generator)] for column in columns[1:]]
        drawn.append(information([columns[0], *shuffled]))
    return _summarise(information(columns), torch.tensor(drawn, dtype=torch.float64), len(clean))


def flip_covariance(labels: torch.Tensor, clean_labels: torch.Tensor) -> Interval:
    r"""Estimate how much the flip rate varies from example to example of a class.

    With :math:`e_a(x) = P(\tilde Y_a \ne y \mid x, y)` and annotators who answer independently given the example,

    .. math:: \operatorname{Cov}(1[\tilde Y_a \ne Y], 1[\tilde Y_b \ne Y] \mid Y)
        = \operatorname{Cov}(e_a(X), e_b(X) \mid Y),

    which for annotators of one kind is the variance of the flip rate: zero under class-conditional noise.

    Args:
        labels: One column for each annotator, integers [N, A], A at least 2.
        clean_labels: Clean labels, integers [N].

    Returns:
        The mean over classes, weighted by their size, and over pairs of annotators, with its interval over examples;
        examples that are alone in their class do not count.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, a label is negative, or no class has two examples.

    Examples:
        >>> clean = torch.zeros(40, dtype=torch.int64)
        >>> wrong = (torch.arange(40) < 8).long()
        >>> round(flip_covariance(torch.stack([wrong, wrong], 1), clean).mean, 3)  # .2 (1 - .2) (40 / 39)
        0.164
    """
    labels, clean = _annotators(labels, clean_labels)
    sizes = clean.bincount()
    wrong = (labels != clean.unsqueeze(1)).double()
    rates = torch.zeros(len(sizes), wrong.shape[1], dtype=torch.float64).index_add_(0, clean, wrong)
    centred = wrong - (rates / sizes.clamp(min=1).unsqueeze(1))[clean]
    pairs = list(itertools.combinations(range(wrong.shape[1]), 2))
    products = sum(centred[:, a] * centred[:, b] for a, b in pairs) / len(pairs)
    counted = sizes[clean] > 1
    if not bool(counted.any()):
        raise ValueError("clean_labels must have a class with at least 2 examples, got none")
    size = sizes[clean[counted]].double()
    return mean_interval(products[counted] * size / (size - 1))


def neighbour_dependence(
    features: torch.Tensor,
    clean_labels: torch.Tensor,
    noisy_labels: torch.Tensor,
    generator: torch.Generator,
    *,
    num_neighbors: int = 10,
    num_permutations: int = 199,
    compare: str = "label",
) -> DependenceTest:
    r"""Test whether wrong labels lie near one another within their clean class, with one noisy label an example.

    The statistic is the correlation of wrong labels (Moran's I) over the pairs of an example i and one of its k nearest
    neighbours j within its class. With :math:`w_i^l = 1[\tilde y_i = l \ne y_i]` and its mean :math:`p^l` in the class,

    .. math:: S = \frac{\sum_i \sum_{j \in \mathrm{nn}(i)} \sum_l (w_i^l - p^l)(w_j^l - p^l)}
        {\sum_i \sum_{j \in \mathrm{nn}(i)} \sum_l p^l (1 - p^l)},

    about 0 under class-conditional noise. For ``compare="flip"`` all wrong labels of a class count as the same one.
    (Pairs of wrong labels alone, not centred, would mislead: some examples are neighbours of many others, and if those
    are rarely wrong, wrong labels seem to avoid one another.)

    The test sees what varies with the features as their distance measures it, and nothing else: a flip rate drawn for
    each example independently of the features gives labels of the same distribution as class-conditional noise.
    Features of a network that was trained on the noisy labels void the p-value.

    Args:
        features: Floating-point features [N, d], or [N, ...] that are flattened; distances are Euclidean.
        clean_labels: Clean labels, integers [N].
        noisy_labels: Noisy labels, integers [N].
        generator: Source of the permutations.
        num_neighbors: k, at least 1; a class with fewer other members uses all of them.
        num_permutations: At least 1.
        compare: ``"label"`` asks whether neighbours have the same wrong label, ``"flip"`` whether both are wrong.

    Returns:
        The test; without wrong labels its statistic is 0 and its p-value 1.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is not finite or out of range.

    Examples:
        >>> features, clean = torch.arange(40.0).unsqueeze(1), torch.zeros(40, dtype=torch.int64)
        >>> noisy = (torch.arange(40) < 8).long()  # all on one side
        >>> neighbour_dependence(features, clean, noisy, torch.Generator().manual_seed(0), num_neighbors=2).p_value
        0.005

    References:
        Moran, 1950, doi:10.1093/biomet/37.1-2.17; Poyiadzi et al., 2021, arXiv:2103.02630, for another
        test of class-conditional noise.
    """
    rows = _checks.floating(features, "features").detach().flatten(1).cpu() if _has_rows(features) else None
    clean, noisy = (_plain_labels(v, n) for v, n in ((clean_labels, "clean_labels"), (noisy_labels, "noisy_labels")))
    if rows is None or len(rows) != len(clean) or clean.shape != noisy.shape:
        raise ValueError(
            "features must have shape [N, d] and clean_labels and noisy_labels shape [N], "
            f"got {tuple(features.shape)}, {tuple(clean.shape)} and {tuple(noisy.shape)}"
        )
    if not bool(rows.isfinite().all()):
        raise ValueError("features must be finite")
    num_neighbors = _checks.integer(num_neighbors, "num_neighbors", low=1)
    num_permutations = _prepare(generator, num_permutations)
    _checks.choice(compare, "compare", ("label", "flip"))
    # Right labels get 0; wrong ones a number of their own from 1, or all the same.
    code = torch.where(noisy == clean, 0, 1 + noisy if compare == "label" else 1)
    products, scale = torch.zeros(num_permutations + 1, dtype=torch.float64), 0.0
    for members, neighbours in _class_neighbours(rows, clean, num_neighbors):
        shares = code[members].bincount().double() / len(members)
        shares[0] = 0
        scale += neighbours.numel() * float((shares * (1 - shares)).sum())
        products += _products(code[members], shares, neighbours, num_permutations, generator)
    correlations = products / scale if scale else torch.zeros_like(products)
    return _summarise(float(correlations[0]), correlations[1:], len(clean))


def _has_rows(features: object) -> bool:
    """Return whether features can be flattened to a matrix; raise unless they are a tensor."""
    return _checks.tensor(features, "features").ndim >= 2


def _plain_labels(labels: object, name: str) -> torch.Tensor:
    """Return labels [N] as int64 on the CPU, none negative."""
    return _checks.integer_labels(_checks.tensor(labels, name).cpu(), name, 2**31)


def _annotators(labels: object, clean_labels: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return checked labels [N, A] and clean labels [N]."""
    table, clean = _plain_labels(labels, "labels"), _plain_labels(clean_labels, "clean_labels")
    if table.ndim != 2 or table.shape[1] < 2 or clean.shape != table.shape[:1] or not len(clean):
        raise ValueError(
            "labels must have shape [N, A] with at least 2 annotators and clean_labels shape [N], N at least 1, "
            f"got {tuple(table.shape)} and {tuple(clean.shape)}"
        )
    return table, clean


def _prepare(generator: object, num_permutations: object) -> int:
    """Check what all permutation tests take."""
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise TypeError(f"generator must be a torch.Generator on the CPU, got {_checks.describe(generator)}")
    return _checks.integer(num_permutations, "num_permutations", low=1)


def _permute_within(clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a random permutation [N] that maps each class to itself."""
    shuffled = torch.randperm(len(clean), generator=generator)
    by_class = shuffled[clean[shuffled].argsort(stable=True)]
    return torch.empty_like(by_class).scatter_(0, clean.argsort(stable=True), by_class)


def _conditional_information(clean: torch.Tensor, first: torch.Tensor, second: torch.Tensor, num_classes: int) -> float:
    """Return the plug-in estimate of I(first; second | clean), in nats."""
    code = (clean * num_classes + first) * num_classes + second
    joint = torch.bincount(code, minlength=num_classes**3).view(num_classes, num_classes, num_classes).double()

    def terms(counts: torch.Tensor) -> float:
        return float(torch.special.xlogy(counts, counts).sum())

    margins = (joint.sum((1, 2)), joint.sum(2), joint.sum(1))
    return (terms(joint) + terms(margins[0]) - terms(margins[1]) - terms(margins[2])) / len(clean)


def _class_neighbours(
    rows: torch.Tensor, clean: torch.Tensor, num_neighbors: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the members [n] of each class with at least two, and places [n, k] of their neighbours among them."""
    for label in clean.unique().tolist():
        members = (clean == label).nonzero().flatten()
        if len(members) < 2:
            continue
        count, found = min(num_neighbors, len(members) - 1), []
        own = rows[members].double()
        for start in range(0, len(members), _BLOCK):
            distance = torch.cdist(own[start : start + _BLOCK], own)
            place = torch.arange(len(distance))
            distance[place, place + start] = math.inf  # nobody is their own neighbour, not even beside a copy
            found.append(distance.topk(count, largest=False).indices)
        yield members, torch.cat(found)


def _products(
    code: torch.Tensor,
    shares: torch.Tensor,
    neighbours: torch.Tensor,
    num_permutations: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the sum of centred products over the pairs of a class in the data, then in each permutation."""
    size, count = neighbours.shape
    chosen = neighbours.flatten().bincount(minlength=size).double()  # how often each one is a neighbour
    constant = size * count * float(shares.square().sum()) - count * float(shares[code].sum())
    sums, step = [], max(1, _CHUNK // neighbours.numel())
    for start in range(0, num_permutations + 1, step):
        order = torch.rand(min(step, num_permutations + 1 - start), size, generator=generator).argsort(1)
        if start == 0:
            order[0] = torch.arange(size)
        drawn = code[order]
        both = (drawn[:, neighbours] == drawn.unsqueeze(2)) & (drawn > 0).unsqueeze(2)
        sums.append(both.flatten(1).sum(1) - shares[drawn] @ chosen)
    return torch.cat(sums) + constant


def _summarise(statistic: float, drawn: torch.Tensor, num_examples: int) -> DependenceTest:
    """Return the test; ties count against the data, and so does rounding."""
    at_least = int((drawn >= statistic - 1e-9 * abs(statistic) - 1e-12).sum())
    deviation = float(drawn.std(correction=0))
    p_value = (1 + at_least) / (1 + len(drawn))
    return DependenceTest(statistic, float(drawn.mean()), deviation, p_value, len(drawn), num_examples)
