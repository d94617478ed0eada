"""One pixel tells the class, nothing else changes, and a share of labels comes from elsewhere."""

import math

import pytest
import torch

from nls.easy import mark_images, mixed_labels


@pytest.fixture
def images():
    return torch.randint(256, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


LABELS = torch.arange(60) % 10


def test_one_pixel_changes_and_its_colour_tells_the_class(images):
    before = images.clone()
    marked = mark_images(images, LABELS)
    assert torch.equal(images, before)
    changed = (marked != images).any(1)
    assert changed.flatten(1).sum(1).max() == 1
    assert changed[:, 1, 1].sum() == changed.sum()
    colours = {tuple(pixel.tolist()): int(label) for pixel, label in zip(marked[:, :, 1, 1], LABELS, strict=True)}
    assert sorted(colours.values()) == list(range(10))  # one colour for each class, and no other


def test_the_place_of_a_white_pixel_tells_the_class(images):
    marked = mark_images(images[:, :1], LABELS, way="place")
    assert torch.equal(marked.flatten(1)[:, :10].argmax(1), LABELS)
    assert torch.equal(marked.flatten(1)[:, 10:], images[:, :1].flatten(1)[:, 10:])
    assert set(marked.flatten(1)[:, :10].unique().tolist()) == {0, 255}


def test_a_share_of_labels_is_replaced():
    target, other = torch.zeros(20_000, dtype=torch.long), torch.ones(20_000, dtype=torch.long)
    labels, replaced = mixed_labels(target, other, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(labels.bool(), replaced)
    assert abs(replaced.double().mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 20_000)
    kept, replaced = mixed_labels(target, other, 0.0, torch.Generator())
    assert torch.equal(kept, target)
    assert not replaced.any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"way": "shape"}, ValueError, "way must be one of"),
        ({"labels": LABELS[:3]}, ValueError, "labels must be one for each of 60 images"),
        ({"labels": LABELS + 1}, ValueError, "labels"),
        ({"images": torch.zeros(60, 3, 8, 8)}, TypeError, "images must be uint8"),
        ({"images": torch.zeros(60, 1, 8, 8, dtype=torch.uint8)}, ValueError, "3 channels .* got 1 and 10"),
        ({"images": torch.zeros(60, 1, 3, 3, dtype=torch.uint8), "way": "place"}, ValueError, "a pixel for each of 10"),
    ],
)
def test_what_cannot_be_marked_is_refused(images, change, error, message):
    with pytest.raises(error, match=message):
        mark_images(**{"images": images, "labels": LABELS} | change)


def test_labels_that_cannot_be_mixed_are_refused():
    with pytest.raises(ValueError, match=r"other must have the shape \(3,\) of target, got \(2,\)"):
        mixed_labels(torch.zeros(3), torch.zeros(2), 0.5, torch.Generator())
    with pytest.raises(ValueError, match="share"):
        mixed_labels(torch.zeros(3), torch.zeros(3), 1.5, torch.Generator())
