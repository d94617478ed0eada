r"""A made set in the layout of Clothing1M: drawn garments whose shop texts confuse what looks alike.

The real set needs a licence. This one needs none, holds the same files, and has noise of the same kind: it depends on
the image, falls on similar classes, and is unknown to whoever trains. No number of it is one of the real set.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nls import _checks
from nls.clothing import NUM_CLASSES, PUBLISHED

# Half width at the shoulder and at the hem, length, length of the sleeves, strength of the stripes, brightness.
_GARMENTS = {
    "T-Shirt": (0.42, 0.42, 0.50, 0.30, 0.10, 0.65),
    "Shirt": (0.42, 0.42, 0.60, 0.80, 0.10, 0.75),
    "Knitwear": (0.50, 0.48, 0.58, 0.80, 0.90, 0.55),
    "Chiffon": (0.38, 0.50, 0.55, 0.60, 0.10, 0.90),
    "Sweater": (0.52, 0.50, 0.58, 0.85, 0.65, 0.50),
    "Hoodie": (0.58, 0.55, 0.62, 0.85, 0.30, 0.40),
    "Windbreaker": (0.58, 0.50, 0.66, 0.90, 0.15, 0.60),
    "Jacket": (0.52, 0.44, 0.60, 0.90, 0.15, 0.35),
    "Downcoat": (0.64, 0.64, 0.85, 0.90, 0.55, 0.35),
    "Suit": (0.48, 0.44, 0.75, 0.90, 0.05, 0.15),
    "Shawl": (0.64, 0.15, 0.55, 0.00, 0.45, 0.60),
    "Dress": (0.32, 0.72, 0.95, 0.20, 0.20, 0.70),
    "Vest": (0.38, 0.40, 0.60, 0.00, 0.20, 0.60),
    "Underwear": (0.34, 0.14, 0.32, 0.00, 0.05, 0.70),
}
# How much a garment differs from its kind, in each of the six.
_SPREAD = np.array([0.035, 0.035, 0.035, 0.06, 0.09, 0.10])
# The share of texts that say nothing about the image.
_UNRELATED = 0.1
# How far apart two kinds may look and still share a text, in spreads.
_BLUR = 2.95
_SIZE = 24


def make_clothing(folder: str | Path, seed: int, counts: tuple[int, int, int, int] = (2100, 560, 140, 700)) -> Path:
    r"""Write a made set into ``<folder>/clothing1m/``, for :func:`nls.clothing.load_clothing` to read.

    A garment has six measures :math:`g`, drawn around those of its kind. Its text, the noisy label, is drawn from

    .. math:: P(\tilde y = j \mid g) = (1 - u) \operatorname{softmax}_j\big(-|g - g_j|^2 / (2 b^2)\big) + u / 14,

    with distances in units of the spread within a kind: texts confuse what looks alike, and more so where one garment
    lies between two kinds. Half of the images of the clean lists have a text too, as in the release.

    Args:
        folder: An existing folder without ``clothing1m``.
        seed: Draws everything, at least 0.
        counts: Numbers of images in noisy_train, clean_train, clean_val and clean_test, at least 14 each; kinds come
            in equal shares.

    Returns:
        The folder itself, to be passed as ``root``.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is too small, or the set is there already.
    """
    generator = np.random.default_rng(_checks.integer(seed, "seed"))
    if len(counts) != len(PUBLISHED):
        raise ValueError(f"counts must hold {len(PUBLISHED)} numbers, for {', '.join(PUBLISHED)}, got {len(counts)}")
    sizes = [_checks.integer(count, "counts", low=NUM_CLASSES) for count in counts]
    place = Path(folder) / "clothing1m"
    if place.exists():
        raise ValueError(f"folder must not hold clothing1m yet, got {place}")
    kinds = np.concatenate([generator.permutation(np.arange(size) % NUM_CLASSES) for size in sizes])
    garments, texts = draw_garments(kinds, generator)
    keys = [f"images/{row % 10}/{row:07},1.jpg" for row in range(len(kinds))]
    _write_images(place, keys, paint(garments, generator))
    first = np.cumsum([0, *sizes])
    noisy, clean = {}, {}
    for name, start, stop in zip(PUBLISHED, first[:-1], first[1:], strict=True):
        rows = range(start, stop)
        _write_lines(place / f"{name}_key_list.txt", [keys[row] for row in rows])
        if name != "noisy_train":
            clean |= {keys[row]: kinds[row] for row in rows}
        noisy |= {keys[row]: texts[row] for row in rows if name == "noisy_train" or generator.random() < 0.5}
    for name, labels in (("noisy", noisy), ("clean", clean)):
        _write_lines(place / f"{name}_label_kv.txt", [f"{key} {label}" for key, label in labels.items()])
    _write_lines(place / "category_names_eng.txt", list(_GARMENTS))
    return Path(folder)


def draw_garments(kinds: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the measures [n, 6] of garments of these kinds [n], and what their texts say [n].

    Args:
        kinds: The true classes, in 0..13.
        generator: Draws both.

    Returns:
        Measures and noisy labels.
    """
    centres = np.array(list(_GARMENTS.values()))
    garments = centres[kinds] + _SPREAD * generator.standard_normal((len(kinds), centres.shape[1]))
    distance = (((garments[:, None] - centres) / _SPREAD) ** 2).sum(2)
    weight = np.exp(-(distance - distance.min(1, keepdims=True)) / (2 * _BLUR**2))
    posterior = (1 - _UNRELATED) * weight / weight.sum(1, keepdims=True) + _UNRELATED / NUM_CLASSES
    texts = (posterior.cumsum(1) < generator.random((len(kinds), 1))).sum(1)
    return garments, texts.clip(max=NUM_CLASSES - 1)


def paint(garments: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return pictures of garments.

    Args:
        garments: Measures [n, 6].
        generator: Draws colours, places and the grain of the pictures.

    Returns:
        Pixels [n, 24, 24, 3], uint8.
    """
    shape = (len(garments), 1, 1)
    shoulder, hem, length, sleeve, stripes, light = (column.reshape(shape) for column in garments.astype(np.float32).T)
    down, across = np.mgrid[0:_SIZE, 0:_SIZE].astype(np.float32) / (_SIZE - 1)
    down = (down - 0.05 + 0.04 * generator.standard_normal(shape, np.float32)) / 0.9
    across = np.abs(2 * across - 1 + 0.08 * generator.standard_normal(shape, np.float32))
    inside = (down > 0) & (down < length)
    body = inside & (across < shoulder + (hem - shoulder) * down / length)
    # A sleeve hangs from the shoulder, a little outwards.
    arm = (down > 0) & (down < 0.75 * sleeve) & (np.abs(across - shoulder - 0.08 - 0.3 * down) < 0.09)
    worn = (body | arm)[..., None]
    tint = 0.2 * generator.standard_normal((len(garments), 1, 1, 3), np.float32)
    wave = 0.45 * stripes * np.sin(2 * np.pi * 4 * down)
    cloth = (light + wave)[..., None] + tint
    # Never the colour of the cloth, or there would be nothing to see.
    wall = (light[..., None] + tint + 0.5 + 0.15 * generator.standard_normal(tint.shape, np.float32)) % 1
    grain = generator.standard_normal((len(garments), _SIZE, _SIZE, 3), np.float32)
    pixels = np.where(worn, cloth, wall) + 0.08 * grain
    return (255 * pixels.clip(0, 1)).astype(np.uint8)


def _write_images(place: Path, keys: list[str], pixels: np.ndarray) -> None:
    """Write one JPEG for each key."""
    from PIL import Image

    for last in range(10):
        (place / "images" / str(last)).mkdir(parents=True)
    for key, image in zip(keys, pixels, strict=True):
        Image.fromarray(image).save(place / key, quality=90)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
