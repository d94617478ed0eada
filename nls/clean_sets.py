"""The few clean examples: how they are drawn, and that none of them is trained or tested on elsewhere."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping

import torch

from nls import _checks
from nls.training import seeded_generator


def draw_clean(
    labels: torch.Tensor,
    per_class: int,
    generator: torch.Generator | None = None,
    *,
    seed: int = 0,
    num_classes: int | None = None,
) -> torch.Tensor:
    """Return the places of a few examples of each class, drawn without replacement.

    With the same seed a smaller draw is part of a larger one.

    Args:
        labels: Clean class indices of the pool [N]; or real targets, which count as one class.
        per_class: Examples of each class, at least 1.
        generator: A CPU generator; by default one that is made from ``seed``.
        seed: Used without a generator, at least 0.
        num_classes: K; by default one more than the largest label.

    Returns:
        Places [K per_class], class after class.

    Raises:
        TypeError: If ``labels`` is no tensor.
        ValueError: If a class has too few examples; the message names it.

    Examples:
        >>> labels = torch.tensor([0, 1, 0, 1, 1])
        >>> labels[draw_clean(labels, 2)]
        tensor([0, 0, 1, 1])
    """
    per_class = _checks.integer(per_class, "per_class", low=1)
    generator = seeded_generator(seed, "clean") if generator is None else generator
    if _checks.tensor(labels, "labels").is_floating_point():
        labels, num_classes = torch.zeros(len(labels), dtype=torch.long), 1
    classes = int(labels.max()) + 1 if num_classes is None else _checks.integer(num_classes, "num_classes", low=1)
    places = []
    for label in range(classes):
        members = (labels == label).nonzero().flatten()
        if len(members) < per_class:
            raise ValueError(f"per_class must be at most {len(members)}, what class {label} has, got {per_class}")
        places.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    return torch.cat(places)


def check_disjoint(parts: Mapping[str, torch.Tensor], features: torch.Tensor | None = None) -> None:
    """Refuse parts of the data that share an example, by place or by content.

    Args:
        parts: Name to features [n, ...] of one part; or, with ``features``, to places [n] in them.
        features: The data set that places are of, or None.

    Raises:
        TypeError: If a part is no tensor, or places are no integers.
        ValueError: If two parts share a place, or hold equal examples; the message names both, and how many.

    Examples:
        >>> rows = torch.tensor([[0.0], [1.0], [0.0]])
        >>> check_disjoint({"clean": torch.tensor([0]), "test": torch.tensor([1])}, rows)
        >>> check_disjoint({"clean": torch.tensor([0]), "test": torch.tensor([2])}, rows)
        Traceback (most recent call last):
        ...
        ValueError: clean and test must not share examples, got 1 of test with the content of one of clean
    """
    contents = {}
    for name, part in parts.items():
        if features is not None and _checks.tensor(part, name).dtype != torch.long:
            raise TypeError(f"{name} must hold places in features as int64, got {_checks.describe(part)}")
        contents[name] = fingerprints(_checks.tensor(part, name) if features is None else features[part])
    for first, second in itertools.combinations(parts, 2):
        if features is not None:
            shared = set(parts[first].tolist()) & set(parts[second].tolist())
            if shared:
                got = f"{len(shared)} places, {min(shared)} among them"
                raise ValueError(f"{first} and {second} must not share examples, got {got}")
        known = set(contents[first])
        equal = sum(found in known for found in contents[second])
        if equal:
            got = f"{equal} of {second} with the content of one of {first}"
            raise ValueError(f"{first} and {second} must not share examples, got {got}")


def fingerprints(features: torch.Tensor) -> list[bytes]:
    """Return 16 bytes for each example [N, ...], which two share if they are equal.

    Examples:
        >>> first, second, third = fingerprints(torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]]))
        >>> first == second, first == third
        (True, False)
    """
    # + 0 turns -0.0 into 0.0, which are equal but not as bytes.
    rows = (features.detach().cpu() + 0).contiguous().flatten(1).numpy() if len(features) else []
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
