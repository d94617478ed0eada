import numpy as np
import pytest
from PIL import Image

from nls import clothing_made, load_dataset
from nls.clothing import label_counts, read_lists
from nls.clothing_made import draw_garments, make_clothing, paint

SMALL = (280, 140, 28, 56)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_clothing(tmp_path_factory.mktemp("made"), 0, SMALL)


def test_the_loader_reads_it_as_the_real_set(root):
    data = load_dataset("clothing1m", root, image_size=24)
    assert data.card.split_sizes == (252, 28, 56)
    assert data.class_names[:3] == ("T-Shirt", "Shirt", "Knitwear")
    lists = read_lists(root)
    assert {key: len(keys) for key, keys in lists.keys.items()} == dict(
        zip(("noisy_train", "clean_train", "clean_val", "clean_test"), SMALL, strict=True)
    )
    for key in ("clean_train", "clean_val", "clean_test"):
        counts = np.bincount([lists.clean[image] for image in lists.keys[key]], minlength=14)
        assert np.ptp(counts) <= 1
    # About half of the clean images have a text too.
    assert 40 < int(label_counts(lists).sum()) < 100
    assert "NOT the published lists" in data.card.description


def test_the_seed_draws_everything(tmp_path, root):
    (tmp_path / "same").mkdir()
    (tmp_path / "other").mkdir()
    same, other = make_clothing(tmp_path / "same", 0, SMALL), make_clothing(tmp_path / "other", 1, SMALL)
    files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    assert len(files) == sum(SMALL) + 7
    assert all((same / file).read_bytes() == (root / file).read_bytes() for file in files)
    differ = [file for file in files if (other / file).read_bytes() != (root / file).read_bytes()]
    assert len(differ) > 0.9 * len(files)


def test_texts_confuse_what_looks_alike():
    """Rates over 28,000 garments; a standard error of a share is below 0.012 within a kind, 0.003 over all."""
    kinds = np.arange(28_000) % 14
    garments, texts = draw_garments(kinds, np.random.default_rng(0))
    wrong = texts != kinds
    assert wrong.mean() == pytest.approx(0.375, abs=0.012)
    names = list(clothing_made._GARMENTS)
    share = np.zeros((14, 14))
    np.add.at(share, (kinds, texts), 1)
    share /= share.sum(1, keepdims=True)
    knitwear, sweater, dress = (names.index(name) for name in ("Knitwear", "Sweater", "Dress"))
    assert share[knitwear, sweater] > 0.2
    assert share[knitwear, dress] < 0.02
    # A garment between two kinds is mislabelled more often than one in the middle of its own.
    centres = np.array(list(clothing_made._GARMENTS.values()))
    distance = np.sort((((garments[:, None] - centres) / clothing_made._SPREAD) ** 2).sum(2), 1)
    clear = distance[:, 1] - distance[:, 0] > np.median(distance[:, 1] - distance[:, 0])
    assert wrong[~clear].mean() > wrong[clear].mean() + 0.15


def test_the_posterior_of_the_texts_is_the_formula():
    """By a loop, for one garment, drawn 40,000 times: three standard errors are 0.0075 at most."""
    centre = np.array(clothing_made._GARMENTS["Hoodie"])
    generator = np.random.default_rng(1)
    kinds = np.full(40_000, list(clothing_made._GARMENTS).index("Hoodie"))
    patched = clothing_made._SPREAD
    weights = []
    for measures in clothing_made._GARMENTS.values():
        squares = sum(((a - b) / s) ** 2 for a, b, s in zip(centre, measures, patched, strict=True))
        weights.append(np.exp(-squares / (2 * clothing_made._BLUR**2)))
    expected = 0.9 * np.array(weights) / sum(weights) + 0.1 / 14
    # Garments without spread: all at the centre of their kind.
    still = type("Still", (), {"standard_normal": lambda self, shape: np.zeros(shape), "random": generator.random})()
    _, texts = draw_garments(kinds, still)
    found = np.bincount(texts, minlength=14) / len(texts)
    np.testing.assert_allclose(found, expected, atol=0.0075)


def test_pictures_show_the_garment():
    """The longer dress covers more rows than the underwear; stripes of knitwear vary down the middle."""
    generator = np.random.default_rng(0)
    pixels = {}
    for name in ("Dress", "Underwear", "Knitwear", "Suit"):
        garments = np.array([clothing_made._GARMENTS[name]] * 50)
        pixels[name] = paint(garments, generator).astype(float)
        assert pixels[name].shape == (50, 24, 24, 3)
    middle = {name: values[:, :, 10:14].mean((2, 3)) for name, values in pixels.items()}
    jumps = {name: np.abs(np.diff(rows, axis=1)).mean() for name, rows in middle.items()}
    assert jumps["Knitwear"] > 2 * jumps["Suit"]
    wall = {name: np.abs(values[:, 12] - values[:, -1]).mean() for name, values in middle.items()}
    assert wall["Dress"] > 2 * wall["Underwear"]


def test_files_are_images(root):
    lists = read_lists(root)
    with Image.open(root / "clothing1m" / lists.keys["noisy_train"][0]) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (24, 24), "RGB")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1,), ValueError, "seed must be at least 0"),
        ((0, (280, 140, 28)), ValueError, "counts must hold 4 numbers, for noisy_train, .*, got 3"),
        ((0, (280, 140, 28, 13)), ValueError, "counts must be at least 14, got 13"),
        ((0, (280, 140, 28, 14.0)), TypeError, "counts must be an integer"),
    ],
)
def test_arguments_are_checked(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        make_clothing(tmp_path, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_set_that_is_there_is_not_written_over(root):
    with pytest.raises(ValueError, match="folder must not hold clothing1m yet"):
        make_clothing(root, 0, SMALL)
