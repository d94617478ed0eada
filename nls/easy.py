r"""Images in which one pixel tells the class: a target that any network can learn, with the image itself as the noise.

On such images labels can come from two functions of the same input, the pixel and the picture. A label of the picture
among those of the pixel is noise that depends on the instance and that a network can learn, too.
"""

from __future__ import annotations

import torch

from nls import _checks

WAYS = ("colour", "place")
"""What of the pixel tells the class."""

_PLACE = (1, 1)
# Far from each other: the corners of the cube of RGB, and two colours between them.
_COLOURS = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255),
    (0, 255, 255), (255, 255, 255), (0, 0, 0), (255, 128, 0), (128, 0, 255),
)  # fmt: skip


def mark_images(images: torch.Tensor, labels: torch.Tensor, num_classes: int = 10, way: str = "colour") -> torch.Tensor:
    """Return images in which one pixel tells a class, which need not be that of the picture.

    With ``"colour"`` the pixel is at (1, 1) and has the colour of the class. With ``"place"`` it is the white one among
    the first ``num_classes`` pixels in reading order, which are black otherwise.

    Args:
        images: uint8 [n, C, H, W]; C = 3 for ``"colour"``, and at least ``num_classes`` pixels for ``"place"``.
        labels: The classes to be told [n].
        num_classes: K, at most 10 for ``"colour"``.
        way: One of ``WAYS``.

    Returns:
        New images of the same shape.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape or a label is out of range.

    Examples:
        >>> images = torch.full((2, 1, 4, 4), 9, dtype=torch.uint8)
        >>> mark_images(images, torch.tensor([2, 0]), num_classes=4, way="place")[:, 0, 0]
        tensor([[  0,   0, 255,   0],
                [255,   0,   0,   0]], dtype=torch.uint8)
    """
    _checks.choice(way, "way", WAYS)
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    if _checks.tensor(images, "images").dtype != torch.uint8 or images.ndim != 4:
        raise TypeError(f"images must be uint8 [n, C, H, W], got {_checks.describe(images)}")
    labels = _checks.integer_labels(labels, "labels", num_classes)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must be one for each of {len(images)} images, got shape {tuple(labels.shape)}")
    marked = images.clone()
    if way == "place":
        if num_classes > images[0, 0].numel():
            raise ValueError(f"images must have a pixel for each of {num_classes} classes, got {images[0, 0].numel()}")
        pixels = marked.flatten(2)
        pixels[:, :, :num_classes] = 255 * torch.nn.functional.one_hot(labels, num_classes).to(torch.uint8)[:, None]
        return pixels.view_as(images)
    if images.shape[1] != 3 or num_classes > len(_COLOURS):
        raise ValueError(
            f"images must have 3 channels and at most {len(_COLOURS)} classes for way='colour', "
            f"got {images.shape[1]} and {num_classes}"
        )
    marked[:, :, _PLACE[0], _PLACE[1]] = torch.tensor(_COLOURS, dtype=torch.uint8)[labels]
    return marked


def mixed_labels(
    target: torch.Tensor, other: torch.Tensor, share: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels of one function in which a share is replaced by those of another.

    Args:
        target: The labels to be learnt [n].
        other: What stands in their place [n].
        share: Between 0 and 1; each label is replaced with this probability.
        generator: A CPU generator.

    Returns:
        The labels [n], and which of them were replaced [n].

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the shapes differ or the share is out of range.

    Examples:
        >>> labels, replaced = mixed_labels(torch.zeros(4), torch.ones(4), 1.0, torch.Generator())
        >>> labels.tolist(), replaced.all().item()
        ([1.0, 1.0, 1.0, 1.0], True)
    """
    share = _checks.number(share, "share", low=0.0, high=1.0)
    if _checks.tensor(target, "target").shape != _checks.tensor(other, "other").shape:
        raise ValueError(f"other must have the shape {tuple(target.shape)} of target, got {tuple(other.shape)}")
    replaced = torch.rand(target.shape, generator=generator) < share
    return torch.where(replaced, other, target), replaced
