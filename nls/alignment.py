r"""How well a network suits a function, as a number of examples, and what that says of noise it survives.

The alignment of a network with a function is measured by the number of clean examples of the function after which
the network, trained on them alone, errs by at most a share delta of what a constant errs, on fresh examples: the fewer,
the better aligned. Xu et al. define it over the modules of a network; here the whole network is one module.

There are two worlds in which functions are known. In sets of entries with two numbers each, the target is a function
of the first numbers and the noise one of the second; images of digits carry a mark of one of ten shapes in one of ten
places. Networks of one kind are trained side by side, each on data of its own.

References:
    Li et al., 2021, arXiv:2012.12896.
    Xu et al., 2020, What Can Neural Networks Reason About?, arXiv:1905.13211.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import stats

from nls import _checks
from nls.data import load_dataset
from nls.members import Members, fit_members, relative_error
from nls.probes import probe
from nls.training import seeded_generator

ENTRIES = 6
"""Entries of a set."""

SET_FUNCTIONS = ("max", "sum", "first", "parity")
"""The largest number, the sum, the number in the first place, and whether an even count of them is below a half."""

FUNCTIONS = {"sets": SET_FUNCTIONS, "images": ("digit", "place", "shape")}
"""Functions of each world; of an image they are what is written, where the mark is, and which shape it has."""

NETWORKS = {"sets": ("max set", "sum set", "MLP"), "images": ("patches", "MLP")}
"""Networks of each world."""

NO_FUNCTION = "random"
"""Noise that is no function of the input, but fresh normal numbers, or classes drawn uniformly."""

_PLACES = ((0, 0), (0, 3), (0, 5), (2, 1), (2, 4), (3, 2), (3, 5), (5, 0), (5, 3), (5, 5))  # row and column of marks
_SHAPES = (
    "111000000",
    "100100100",
    "100010001",
    "001010100",
    "010111010",
    "101010101",
    "111101111",
    "110110000",
    "111010010",
    "010010111",
)  # rows of 3 x 3 pixels


# Worlds


def set_function(name: str, numbers: torch.Tensor) -> torch.Tensor:
    r"""Return a function of sets, of mean 0 and variance 1 if the numbers are independent and uniform on (0, 1).

    Of m numbers the largest has mean :math:`m/(m+1)` and variance :math:`m / ((m+1)^2 (m+2))`, the sum
    :math:`m/2` and :math:`m/12`, the first 1/2 and 1/12, and the parity :math:`\prod_i \mathrm{sign}(x_i - 1/2)` 0
    and 1.

    Args:
        name: One of ``SET_FUNCTIONS``.
        numbers: [..., m].

    Returns:
        Values [...].

    Raises:
        ValueError: If the name is unknown.

    Examples:
        >>> set_function("parity", torch.tensor([[0.9, 0.1], [0.9, 0.8]])).tolist()
        [-1.0, 1.0]
    """
    m = numbers.shape[-1]
    if _checks.choice(name, "name", SET_FUNCTIONS) == "max":
        return (numbers.amax(-1) - m / (m + 1)) * (m + 1) * math.sqrt((m + 2) / m)
    if name == "sum":
        return (numbers.sum(-1) - m / 2) * math.sqrt(12 / m)
    return (numbers[..., 0] - 0.5) * math.sqrt(12) if name == "first" else (numbers - 0.5).sign().prod(-1)


@dataclass(frozen=True)
class Sample:
    """Examples for each of S seeds, and every function of them.

    Attributes:
        inputs: [S, n, m, 2] or [S, n, 2, 8, 8], float32.
        targets: Function to its values [S, n]; classes as int64.
        noises: The same for the noise; of sets they read the second numbers, which no target reads.
    """

    inputs: torch.Tensor
    targets: dict[str, torch.Tensor]
    noises: dict[str, torch.Tensor]


def draw_sample(world: str, count: int, seeds: Sequence[int], part: str = "train") -> Sample:
    """Draw examples for each seed.

    Args:
        world: ``"sets"`` or ``"images"``.
        count: n, at least 1; of images at most as many as the part has.
        seeds: One draw for each.
        part: ``"train"``, ``"ladder"``, ``"clean"`` (what a probe sees) or ``"test"``. The first two share images, but
            no marks; no other parts share an image.

    Returns:
        The examples with every function, and random noise.

    Raises:
        ValueError: If a name is unknown, or there are too few images.

    Examples:
        >>> sample = draw_sample("sets", 5, [0, 1])
        >>> sample.inputs.shape, sorted(sample.noises)
        (torch.Size([2, 5, 6, 2]), ['first', 'max', 'parity', 'random', 'sum'])
    """
    count = _checks.integer(count, "count", low=1)
    _checks.choice(part, "part", ("train", "ladder", "clean", "test"))
    draw = {"sets": _draw_set, "images": _draw_images}[_checks.choice(world, "world", tuple(FUNCTIONS))]
    parts = [draw(count, seed, part, seeded_generator(seed, f"alignment {world} {part}")) for seed in seeds]
    inputs, targets, noises = zip(*parts, strict=True)
    stacked = ({name: torch.stack([p[name] for p in values]) for name in values[0]} for values in (targets, noises))
    return Sample(torch.stack(inputs), *stacked)


def _draw_set(count: int, seed: int, part: str, generator: torch.Generator) -> tuple:
    numbers = torch.rand(count, ENTRIES, 2, generator=generator)
    targets, noises = ({name: set_function(name, numbers[..., i]) for name in SET_FUNCTIONS} for i in (0, 1))
    noises[NO_FUNCTION] = torch.randn(count, generator=generator)
    return (numbers - 0.5) * math.sqrt(12), targets, noises


def _draw_images(count: int, seed: int, part: str, generator: torch.Generator) -> tuple:
    data = load_dataset("digits_images", seed=seed)
    split = {"clean": "validation", "test": "test"}.get(part, "train")
    images, digits = getattr(data, f"{split}_features"), getattr(data, f"{split}_labels")
    if count > len(images):
        raise ValueError(f"count must be at most {len(images)}, what {part} has of images, got {count}")
    chosen = torch.randperm(len(images), generator=generator)[:count]
    place, shape = torch.randint(10, (2, count), generator=generator)
    drawn = torch.tensor([[float(pixel) for pixel in row] for row in _SHAPES]).view(-1, 3, 3)
    marks = torch.zeros(10, 10, 8, 8)
    for (i, (row, column)), (j, pixels) in itertools.product(enumerate(_PLACES), enumerate(drawn)):
        marks[i, j, row : row + 3, column : column + 3] = pixels
    inputs = torch.stack([images[chosen, 0].float() / 64 - 1, 4 * marks[place, shape] - 1], 1)
    functions = {"digit": digits[chosen], "place": place, "shape": shape}
    return inputs, functions, functions | {NO_FUNCTION: torch.randint(10, (count,), generator=generator)}


# The measure


def ladder(
    world: str, network: str, sizes: Sequence[int], seeds: Sequence[int], *, steps: int = 300, num_test: int = 340
) -> pd.DataFrame:
    """Train a network on clean examples of each function of a world, at a ladder of sizes.

    Args:
        world: ``"sets"`` or ``"images"``.
        network: One of the world's ``NETWORKS``.
        sizes: Numbers of examples, rising.
        seeds: Runs, each with examples, initialisation and test set of its own.
        steps: For :func:`nls.members.fit_members`.
        num_test: Fresh examples.

    Returns:
        One row for each function, size and seed: ``network``, ``function``, ``size``, ``seed``, ``error``.

    Raises:
        ValueError: If a name is unknown, or sizes do not rise.

    Examples:
        >>> ladder("sets", "sum set", [8, 16], [0], steps=2).shape
        (8, 5)
    """
    _checks.choice(network, "network", NETWORKS[_checks.choice(world, "world", tuple(NETWORKS))])
    if list(sizes) != sorted(set(sizes)):
        raise ValueError(f"sizes must rise, got {list(sizes)}")
    names, rows = FUNCTIONS[world], []
    test, pool = draw_sample(world, num_test, seeds, "test"), draw_sample(world, max(sizes), seeds, "ladder")
    wanted = torch.cat([test.targets[name] for name in names])
    for size in sizes:
        labels = torch.cat([pool.targets[name][:, :size] for name in names])
        members = Members(network, len(labels), pool.inputs.shape[2:], _outputs(labels))
        fit_members(members, members.read(pool.inputs[:, :size]), labels, steps=steps)
        with torch.no_grad():
            errors = relative_error(members(members.read(test.inputs)), wanted)
        rows += [
            {"network": network, "function": name, "size": size, "seed": seed, "error": error}
            for (name, seed), error in zip(itertools.product(names, seeds), errors.tolist(), strict=True)
        ]
    return pd.DataFrame(rows)


def _outputs(labels: torch.Tensor) -> int:
    return 1 if labels.is_floating_point() else 10


def sample_complexity(sizes: Sequence[int], errors: Sequence[float], delta: float) -> float:
    r"""Return the number of examples from which on the error is at most delta.

    Between the last rung above delta and the next one, size and error are taken to follow a power law. A ladder that
    ends above delta gives infinity, censored: the number is larger than the last rung. One that begins below gives
    its first rung, which is an upper bound.

    Args:
        sizes: Rungs [R], rising.
        errors: Errors [R], above 0.
        delta: The error to reach, above 0.

    Returns:
        The number, or infinity.

    Raises:
        ValueError: If the lengths differ, or delta is out of range.

    Examples:
        >>> sample_complexity([10, 40], [0.4, 0.1], 0.2)
        20.0
        >>> sample_complexity([10, 40], [0.4, 0.3], 0.2)
        inf
    """
    delta = _checks.number(delta, "delta", low=1e-12)
    if len(sizes) != len(errors):
        raise ValueError(f"errors must hold one value for each of {len(sizes)} sizes, got {len(errors)}")
    above = [i for i, error in enumerate(errors) if not error <= delta]
    if not above:
        return float(sizes[0])
    if above[-1] == len(sizes) - 1:
        return math.inf
    i = above[-1]
    (x, u), (y, v) = ((math.log(sizes[j]), math.log(max(errors[j], 1e-12))) for j in (i, i + 1))
    return round(math.exp(x + (y - x) * (u - math.log(delta)) / (u - v)), 9)


def needs(ladders: pd.DataFrame, delta: float) -> pd.DataFrame:
    """Return the sample complexity of each network, function and seed of :func:`ladder`, as the column ``need``.

    Examples:
        >>> rungs = {"size": [8, 16], "error": [0.5, 0.1], "seed": 0, "function": "sum", "network": "MLP"}
        >>> needs(pd.DataFrame(rungs), 0.5)["need"].tolist()
        [8.0]
    """
    groups = ladders.sort_values("size").groupby(["network", "function", "seed"], sort=False)
    found = [(*key, sample_complexity(rows["size"].tolist(), rows["error"].tolist(), delta)) for key, rows in groups]
    return pd.DataFrame(found, columns=["network", "function", "seed", "need"])


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    r"""Return the median with an interval from order statistics, which takes censored values as they are.

    The j-th smallest and the j-th largest of n values enclose the median with probability
    :math:`1 - 2 P(\mathrm{Bin}(n, 1/2) < j)`; j is the largest for which that is at least ``level``. Below six values
    no such j exists at 95 %, and the ends are not a number.

    Args:
        values: [n], infinity allowed.
        level: In (0, 1).

    Returns:
        Median, lower and upper end. The median of an even number is the lower of the middle two if the upper is
        infinite.

    Examples:
        >>> median_interval([4.0, 1.0, 2.0, 3.0, 5.0, math.inf])
        (3.5, 1.0, inf)
    """
    ordered = sorted(values)
    n = len(ordered)
    low, high = ordered[(n - 1) // 2], ordered[n // 2]
    median = low if math.isinf(high) else (low + high) / 2
    j = max((j for j in range(1, n // 2 + 1) if 1 - 2 * stats.binom.cdf(j - 1, n, 0.5) >= level), default=0)
    return (median, ordered[j - 1], ordered[n - j]) if j else (median, math.nan, math.nan)


# Noise


def survive(
    world: str,
    network: str,
    ratios: Sequence[float],
    seeds: Sequence[int],
    *,
    targets: Sequence[str] | None = None,
    num_noisy: int = 512,
    num_clean: int = 32,
    steps: int = 300,
    num_test: int = 340,
) -> pd.DataFrame:
    """Train a network on labels of which a share comes from another function, and measure what is left of the target.

    Args:
        world: ``"sets"`` or ``"images"``.
        network: One of the world's ``NETWORKS``.
        ratios: Shares of noisy labels, in [0, 1]; with one seed the labels that are noisy at one are so at a larger.
        seeds: Runs, as for :func:`ladder`.
        targets: Functions to learn; all of the world by default.
        num_noisy: Examples to train on.
        num_clean: Examples of the target that a linear model of the last layer sees; none of them is trained on.
        steps: For :func:`nls.members.fit_members`.
        num_test: Fresh examples, labels clean.

    Returns:
        One row for each target, noise, ratio and seed, with errors (:func:`nls.members.relative_error`) of the
        network's ``own`` output, and of linear models, fitted to the clean examples, of it (``rescaled``), of the
        representation (``probe``), of that before training (``untrained``), and of the ``input``. Linear predictions of
        numbers are kept within the range of the clean examples. Noises are the
        functions of the world (of images only the other ones) and ``NO_FUNCTION``.

    Raises:
        ValueError: If a name is unknown or a number out of range.

    Examples:
        >>> survive("sets", "MLP", [0.5], [0], targets=["sum"], steps=2).columns[-4:].tolist()
        ['rescaled', 'probe', 'untrained', 'input']
    """
    _checks.choice(network, "network", NETWORKS[_checks.choice(world, "world", tuple(NETWORKS))])
    ratios = [_checks.number(ratio, "ratios", low=0, high=1) for ratio in ratios]
    counts = {"train": num_noisy, "clean": num_clean, "test": num_test}
    parts = {part: draw_sample(world, count, seeds, part) for part, count in counts.items()}
    cells = [
        (target, noise, ratio)
        for target in (FUNCTIONS[world] if targets is None else targets)
        for noise in (*FUNCTIONS[world], NO_FUNCTION)
        for ratio in ratios
        if world == "sets" or noise != target
    ]
    chance = torch.stack([torch.rand(num_noisy, generator=seeded_generator(seed, "noisy")) for seed in seeds])
    train = parts["train"]
    labels = torch.cat(
        [torch.where(chance < ratio, train.noises[noise], train.targets[target]) for target, noise, ratio in cells]
    )
    wanted = {name: torch.cat([parts[name].targets[target] for target, _, _ in cells]) for name in ("clean", "test")}
    members = Members(network, len(labels), train.inputs.shape[2:], _outputs(labels))
    inputs = {name: members.read(part.inputs) for name, part in parts.items()}
    errors = _errors(members, parts, inputs, labels, wanted, steps)
    return pd.DataFrame(
        [
            {"network": network, "target": cell[0], "noise": cell[1], "ratio": cell[2], "seed": seed}
            | {name: float(values[i]) for name, values in errors.items()}
            for i, (cell, seed) in enumerate(itertools.product(cells, seeds))
        ]
    )


def _errors(
    members: Members,
    parts: Mapping[str, Sample],
    inputs: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    wanted: Mapping[str, torch.Tensor],
    steps: int,
) -> dict[str, torch.Tensor]:
    """Train the members, and return the errors [B] of them and of linear models."""
    before = _probed(members.represent, inputs, wanted)
    fit_members(members, inputs["train"], labels, steps=steps)
    with torch.no_grad():
        own = relative_error(members(inputs["test"]), wanted["test"])
    flat = {name: part.inputs.flatten(2) for name, part in parts.items()}
    times = len(labels) // len(flat["test"])
    return {
        "own": own,
        "rescaled": _probed(members, inputs, wanted),
        "probe": _probed(members.represent, inputs, wanted),
        "untrained": before,
        "input": _probed(lambda values: values.repeat(times, 1, 1), flat, wanted),
    }


def _probed(
    represent: Callable[[torch.Tensor], torch.Tensor],
    inputs: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """Return the errors of linear models of what a function makes of the inputs [B]."""
    with torch.no_grad():
        seen, test = (represent(inputs[name]) for name in ("clean", "test"))
    classes = None if wanted["clean"].is_floating_point() else 10
    outputs = probe(seen, wanted["clean"], test, num_classes=classes).outputs
    if classes is None:  # a unit that the clean examples hardly switch on would otherwise make a few absurd predictions
        low, high = (values[:, None, None] for values in torch.aminmax(wanted["clean"], dim=1))
        outputs = outputs.clamp(low, high)
    return relative_error(outputs, wanted["test"])


# What the measure predicts


PREDICTORS = ("target", "noise", "difference", "rung", "untrained")
"""What :func:`predictions` knows of a pair before a network is trained on noisy labels."""


def predictions(ladders: pd.DataFrame, survivals: pd.DataFrame, delta: float, *, rung: int) -> pd.DataFrame:
    r"""Join what was measured on clean examples to what noise left; a larger predictor promises a smaller error.

    With N the sample complexity, censored ones counted as twice the last rung, ``by_target`` is
    :math:`-\log_2 N(\text{target})`, ``by_noise`` :math:`\log_2 N(\text{noise})` and ``by_difference`` their sum.
    Two rivals are cheaper: ``by_rung``, less the error that the network has on the target at a single size, and
    ``by_untrained``, less the error of the probe before training. Noise that is no function counts as censored.

    Args:
        ladders: Rows of :func:`ladder`.
        survivals: Rows of :func:`survive`.
        delta: For :func:`sample_complexity`.
        rung: One of the sizes.

    Returns:
        The rows of ``survivals`` with five columns more.

    Raises:
        ValueError: If the ladders lack a network, function, seed or the rung.

    Examples:
        >>> rungs, left = ladder("sets", "MLP", [8, 16], [0], steps=2), survive("sets", "MLP", [0.5], [0], steps=2)
        >>> float(predictions(rungs, left, 0.5, rung=8)["by_noise"].max())
        5.0
    """
    keys = ["network", "function", "seed"]
    cap = 2 * ladders["size"].max()
    known = needs(ladders, delta).set_index(keys)["need"].clip(upper=cap)
    single = ladders[ladders["size"] == rung].set_index(keys)["error"]
    places = [
        pd.MultiIndex.from_frame(survivals[["network", role, "seed"]], names=keys) for role in ("target", "noise")
    ]
    functions = survivals["noise"] != NO_FUNCTION
    found = survivals.assign(
        by_target=-known.reindex(places[0]).map(math.log2).to_numpy(),
        by_noise=known.reindex(places[1]).where(functions.to_numpy(), cap).map(math.log2).to_numpy(),
        by_rung=-single.reindex(places[0]).to_numpy(),
        by_untrained=-survivals["untrained"],
    )
    if found[["by_target", "by_noise", "by_rung"]].isna().any(axis=None):
        raise ValueError("ladders must hold every network, function and seed of survivals, and the rung")
    return found.assign(by_difference=found["by_target"] + found["by_noise"])


def rank_correlations(table: pd.DataFrame, outcomes: Sequence[str] = ("own", "probe")) -> pd.DataFrame:
    """Return Spearman's rank correlation of each predictor with the accuracy that is left, over pairs, by seed.

    Args:
        table: Rows of :func:`predictions`.
        outcomes: Columns of errors.

    Returns:
        One row for each ratio, seed, outcome and predictor: these and ``correlation``; 1 is a perfect order. The
        predictor ``"within"`` is ``"noise"`` at a fixed network and target, averaged over these.

    Examples:
        >>> rows = {"network": "MLP", "target": "sum", "noise": ["max", "sum", "first"], "ratio": 0.5, "seed": 0}
        >>> known = {f"by_{name}": [1.0, 2.0, 3.0] for name in PREDICTORS} | {"own": [0.3, 0.2, 0.1]}
        >>> rank_correlations(pd.DataFrame(rows | known), ["own"])["correlation"].tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    rows = []
    for (ratio, seed), part in table.groupby(["ratio", "seed"]):
        for outcome in outcomes:
            found = {name: float(_spearman(part[f"by_{name}"], -part[outcome])) for name in PREDICTORS}
            cells = [rows for _, rows in part.groupby(["network", "target"]) if rows["by_noise"].nunique() > 1]
            within = [float(_spearman(rows["by_noise"], -rows[outcome])) for rows in cells]
            found["within"] = sum(within) / max(len(within), 1)
            rows += [
                {"ratio": ratio, "seed": seed, "outcome": outcome, "predictor": name, "correlation": value}
                for name, value in found.items()
            ]
    return pd.DataFrame(rows)


def _spearman(first: np.ndarray, second: Sequence[float]) -> np.ndarray:
    """Return the rank correlations of rows [..., n] with one row [n]; 0 where all values of a row are equal."""
    a, b = (stats.rankdata(values, axis=-1) - (np.shape(values)[-1] + 1) / 2 for values in (first, second))
    size = np.sqrt((a**2).sum(-1) * (b**2).sum())
    return np.round((a * b).sum(-1) / np.where(size > 0, size, 1), 12)


def chance_of_order(table: pd.DataFrame, outcome: str, *, draws: int = 999, seed: int = 0) -> float:
    """Return how often alignments that are dealt out anew order the pairs as well as the true ones: a p-value.

    Pairs share networks and functions, so they are not independent. What is permuted is therefore not pairs but the
    alignments of networks with functions, of which all pairs are made; medians over seeds stand for both sides.

    Args:
        table: Rows of :func:`predictions` at one ratio.
        outcome: A column of errors.
        draws: Permutations.
        seed: Draws them.

    Returns:
        One more than the number of permutations with a correlation of at least the true one, over one more than all.

    Examples:
        >>> rungs, left = ladder("sets", "MLP", [8, 16], [0], steps=2), survive("sets", "MLP", [0.5], [0], steps=2)
        >>> 0 < chance_of_order(predictions(rungs, left, 0.5, rung=8), "own", draws=9) <= 1
        True
    """
    keys = ["network", "target", "noise"]
    pairs = table.groupby(keys)[["by_target", "by_noise", outcome]].median().reset_index()
    cost = {(row.network, row.target): -row.by_target for row in pairs.itertuples()}
    functions = pairs[pairs["noise"] != NO_FUNCTION]
    cost |= {(row.network, row.noise): row.by_noise for row in functions.itertuples()}
    cap = pairs.loc[pairs["noise"] == NO_FUNCTION, "by_noise"].max()
    cells = list(cost)
    at = {cell: i for i, cell in enumerate(cells)}
    target = [at[row.network, row.target] for row in pairs.itertuples()]
    noise = [at.get((row.network, row.noise), len(cells)) for row in pairs.itertuples()]

    values, generator = np.array(list(cost.values())), np.random.default_rng(seed)
    dealt = np.stack([values, *(generator.permutation(values) for _ in range(draws))])
    dealt = np.hstack([dealt, np.full((1 + draws, 1), cap)])
    true, *others = _spearman(dealt[:, noise] - dealt[:, target], -pairs[outcome].to_numpy())
    return (1 + sum(bool(other >= true) for other in others)) / (1 + draws)
