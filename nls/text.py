r"""News as numbers: AG News from its CSV files, as a bag of words or as token ids, and made news in the same format.

The files are those of Zhang, Zhao and LeCun: ``train.csv`` with 120,000 rows and ``test.csv`` with 7,600, UTF-8, no
header, three quoted columns: class 1 to 4, title, description. A quote inside a column is doubled. A backslash
escapes nothing: in the released files it stands where a line break was, also as the last character of a column, so
that a reader with ``escapechar="\\"`` glues rows together.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import os
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import nn

from nls import _checks
from nls.data import DataCard, Dataset
from nls.images import take
from nls.models import embedding_classifier

TEXT_SETS = ("ag_news", "ag_news_tokens")
"""The names of AG News as a bag of words and as token ids."""

CLASS_NAMES = ("World", "Sports", "Business", "Sci/Tech")
"""What the classes 1 to 4 of the files mean; labels here are 0 to 3."""

BAG_WORDS, TOKEN_WORDS, TOKEN_LENGTH = 2000, 20000, 64
"""The most words of a bag, the most with a token id of their own, and the words of a text that get one."""

_FOLDERS = ("ag_news_csv", "ag_news", "AG_NEWS")
_SPLITS = ("train", "validation", "test")
_VALIDATION_SHARE = 0.1
# Rows and MD5 of the released files, as torchtext checks them.
_RELEASED = {
    "train": (120_000, "b1a00f826fdfbd249f79597b59e1dc12"),
    "test": (7_600, "d52ea96a97a2d943681189a97654912d"),
}
_MADE = "Made news: random words in the format of AG News, written by nls.text.write_made_news. No news."
# Source and licence on the card.
_SOURCES = {
    "released": ("AG's corpus of news articles, sorted by Zhang, Zhao and LeCun 2015", "research, non-commercial"),
    "made": ("made by nls.text.write_made_news", "none needed: random words"),
    "other": ("your own files", "yours to know"),
}
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_APOSTROPHE = re.compile(r"\s?&?#39;")
_ENTITY = re.compile(r"&?\b(?:amp|gt|lt|nbsp|quot);|&?#\d+;")
_STEPS = """to get the real ones:
1. take train.csv and test.csv from data/ag_news_csv of https://github.com/mhjabreel/CharCnn_Keras, or unpack
   ag_news_csv.tar.gz, which https://github.com/zhangxiangxiao/Crepe links to (research and non-commercial use);
2. put them into FOLDER/ag_news_csv;
3. load_dataset("ag_news", root=FOLDER).
Made news in the same format: nls.text.write_made_news(FOLDER)"""


class _News(NamedTuple):
    """The files of a folder as words: all training texts, then all test texts."""

    labels: np.ndarray  # int64 [n], 0 to 3
    num_train: int
    words: tuple[str, ...]  # each distinct word once
    ids: np.ndarray  # int32: the texts, one after another, as places in ``words``
    starts: np.ndarray  # int64 [n + 1]: where each text begins
    digests: tuple[str, str]  # MD5 of the two files


def tokenize(text: str) -> list[str]:
    r"""Return the words of a text, case-folded.

    A word is a run of letters and digits, with apostrophes inside: ``[^\W_]+(?:'[^\W_]+)*``, in the letters of any
    script, after Unicode's normal form NFKC. What is left in the released files of marks of HTML is undone first:
    ``#39;`` is an apostrophe again, and ``quot;``, ``&lt;``, ``#36;`` and the like end a word, as a backslash does.

    Args:
        text: Any text.

    Returns:
        The words in their order.

    Raises:
        TypeError: If ``text`` is not a string.

    Examples:
        >>> tokenize("Zürich\\shares: Tom #39;s  quot;IPO quot; nets #36;10M (AP)")
        ['zürich', 'shares', "tom's", 'ipo', 'nets', '10m', 'ap']
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {_checks.describe(text)}")
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    if ";" in text:
        text = _ENTITY.sub(" ", _APOSTROPHE.sub("'", text))
    return _WORD.findall(text.casefold())


def load_text(
    name: str, folder: str | os.PathLike[str] | None, seed: int = 0, num_examples: int | None = None
) -> Dataset:
    r"""Return AG News, or made news in its format, split and with its card.

    A text is title and description. ``ag_news`` is its bag of words: with the count :math:`n_{ij}` of word j in text i
    and the number :math:`d_j` of the n training texts that hold it, feature j is

    .. math:: x_{ij} \propto n_{ij} \Bigl(\log \frac{1 + n}{1 + d_j} + 1\Bigr), \qquad \|x_i\| = 1,

    dense float32 [n, V], for the V words that are most frequent in the training split, at most ``BAG_WORDS`` and each
    there at least twice: 8 kB for a text and 1 GB for the whole release. ``ag_news_tokens`` holds token ids, int64
    [n, L], for the first L = ``TOKEN_LENGTH`` words: 0 is padding, 1 a word without an id, and the ids from 2 on go by
    the frequency of the word among these words of the training split, at most ``TOKEN_WORDS`` of them. Every id occurs
    in training, so that ``train_features.max() + 1`` is the number of embeddings that a network needs.

    The test split is that of the file. A tenth of the training texts, stratified by class, validates; texts of the
    same words are not validated on. Whether the files are the released ones is found out by their MD5 and said by the
    card, as is the number of rows where they are not.

    Args:
        name: ``"ag_news"`` or ``"ag_news_tokens"``.
        folder: The folder with ``ag_news_csv/train.csv`` and ``test.csv`` (or ``ag_news/``, or torchtext's
            ``AG_NEWS/``), or the folder that holds the two itself. A ``classes.txt`` beside them is checked.
        seed: Seed of the split, at least 0.
        num_examples: How many of the training texts to take, at least 10 for each class; all if None. Classes keep
            their shares, and what a smaller number takes a larger one takes too.

    Returns:
        The data set; ``train_indices`` are rows of ``train.csv``, ``test_indices`` of ``test.csv``, counted from 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the name is unknown, ``num_examples`` out of range, or the files are missing (with the steps to
            get them), cut short, not in the format, or of other classes.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_made_news(folder, num_train=400, num_test=80)
        ...     data, tokens = load_text("ag_news", folder), load_text("ag_news_tokens", folder)
        >>> data.card.split_sizes, data.train_features.dtype, round(float(data.train_features[0].norm()), 5)
        ((360, 40, 80), torch.float32, 1.0)
        >>> tokens.train_features.dtype, tokens.train_features.shape
        (torch.int64, torch.Size([360, 64]))

    References:
        Zhang, Zhao and LeCun 2015, "Character-level Convolutional Networks for Text Classification",
        arXiv 1509.01626, for the files.
    """
    _checks.choice(name, "name", TEXT_SETS)
    generator = np.random.default_rng(_checks.integer(seed, "seed"))
    news = _read_news(folder)
    version, description = _describe(_find(folder), news)
    kept = take(news.labels[: news.num_train], num_examples, generator)
    texts = {row: news.ids[news.starts[row] : news.starts[row + 1]].tobytes() for row in range(len(news.labels))}
    copies = Counter(texts[row] for row in kept)
    alone = kept[[copies[texts[row]] == 1 for row in kept]]
    validation = alone[len(alone) - round(_VALIDATION_SHARE * len(kept)) :]
    test = np.arange(news.num_train, len(news.labels))
    parts = [generator.permutation(np.setdiff1d(kept, validation)), generator.permutation(validation), test]
    duplicates = len(kept) + len(test) - len(copies.keys() | {texts[row] for row in test})
    features, made_of = (_bags if name == "ag_news" else _token_ids)(news, parts)
    preparation = (
        f"Of {len(kept)} training texts a tenth, stratified by class and drawn by seed {seed}, validates; the test "
        f"split is the file's. {made_of} Labels are as in the file, 1..4 as 0..3: you add the noise. Texts of the "
        "same words that occur twice in training are not validated on; copies across training and test are counted "
        "only."
    )
    sizes = tuple(len(rows) for rows in parts)
    shape = (sum(sizes), features[0].shape[1], len(CLASS_NAMES), duplicates, sizes)
    card = DataCard(name, *_SOURCES[version], description, preparation, *shape)
    tensors = {}
    for split, rows, values in zip(_SPLITS, parts, features, strict=True):
        missing = np.setdiff1d(np.arange(len(CLASS_NAMES)), news.labels[rows])
        if len(missing):
            raise ValueError(
                f"data set {name!r}: class {CLASS_NAMES[missing[0]]!r} does not occur in the {split} split"
            )
        tensors[f"{split}_features"] = torch.from_numpy(values)
        tensors[f"{split}_labels"] = torch.from_numpy(news.labels[rows])
        tensors[f"{split}_indices"] = torch.from_numpy(rows - (news.num_train if split == "test" else 0))
    return Dataset(name, CLASS_NAMES, card, **tensors)


def fasttext_classifier(num_classes: int, vocabulary: int, width: int = 64) -> nn.Module:
    r"""Return :func:`nls.models.embedding_classifier` with the start of fastText, which is small.

    .. math:: E_{wj} \sim \mathcal{U}(-1 / h, 1 / h), \qquad W = 0, \qquad b = 0

    In torch an embedding starts standard normal, so that texts have features at random before any is learnt.

    Args:
        num_classes: K, at least 2.
        vocabulary: V, at least 2; token ids are 0, ..., V - 1, and 0 is padding.
        width: h, the length of an embedding, at least 1.

    Returns:
        A network that maps token ids [N, L] to logits [N, K], which are all 0 at first.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If an argument is out of range.

    Examples:
        >>> fasttext_classifier(4, vocabulary=5)(torch.tensor([[3, 4, 0]])).tolist()
        [[0.0, 0.0, 0.0, 0.0]]

    References:
        Joulin et al. 2017, "Bag of Tricks for Efficient Text Classification", arXiv 1607.01759; the start is that of
        its released code.
    """
    sizes = {"num_classes": (num_classes, 2), "vocabulary": (vocabulary, 2), "width": (width, 1)}
    num_classes, vocabulary, width = (_checks.integer(value, name, low=low) for name, (value, low) in sizes.items())
    network = embedding_classifier(num_classes, vocabulary, width)
    with torch.no_grad():
        network[0].weight.uniform_(-1 / width, 1 / width)[0] = 0
        for parameter in network[1].parameters():
            parameter.zero_()
    return network


def _gather(news: _News, rows: np.ndarray, limit: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each word of these texts, the text's place in ``rows``, its place in the text, and the word."""
    lengths = np.diff(news.starts)[rows]
    lengths = lengths if limit is None else np.minimum(lengths, limit)
    owner = np.repeat(np.arange(len(rows)), lengths)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return owner, place, news.ids[np.repeat(news.starts[rows], lengths) + place]


def _vocabulary(news: _News, words: np.ndarray, most: int) -> tuple[int, np.ndarray]:
    """Return the size of the vocabulary, and the rank of each word in it, -1 outside: frequent first, then a to z."""
    counts = np.bincount(words, minlength=len(news.words))
    ranked = sorted(np.flatnonzero(counts >= 2).tolist(), key=lambda word: (-counts[word], news.words[word]))[:most]
    if not ranked:
        raise ValueError("the training texts must have a word that occurs twice, found none")
    ranks = np.full(len(news.words), -1)
    ranks[ranked] = np.arange(len(ranked))
    return len(ranked), ranks


def _bags(news: _News, parts: list[np.ndarray]) -> tuple[list[np.ndarray], str]:
    """Return dense float32 bags of words, and a sentence about them."""
    size, ranks = _vocabulary(news, _gather(news, parts[0])[2], BAG_WORDS)
    bags, scale = [], None
    for rows in parts:
        owner, _, words = _gather(news, rows)
        known = ranks[words] >= 0
        ones = np.ones(int(known.sum()), np.float32)
        bag = sparse.coo_array((ones, (owner[known], ranks[words[known]])), (len(rows), size)).tocsr()
        if scale is None:
            scale = np.log((1 + len(rows)) / (1 + np.bincount(bag.indices, minlength=size))) + 1
        bag.data *= scale[bag.indices].astype(np.float32)
        length = np.sqrt(bag.multiply(bag).sum(1))
        bag.data /= np.repeat(length, np.diff(bag.indptr))
        bags.append(bag.toarray())
    megabytes = sum(bag.nbytes for bag in bags) / 1e6
    told = (
        f"Bags of the {size} words that are most frequent in the training split, each there twice or more, weighted "
        f"by tf-idf and scaled to length 1: dense float32, {megabytes:.0f} MB."
    )
    return bags, told


def _token_ids(news: _News, parts: list[np.ndarray]) -> tuple[list[np.ndarray], str]:
    """Return int64 token ids, and a sentence about them."""
    size, ranks = _vocabulary(news, _gather(news, parts[0], TOKEN_LENGTH)[2], TOKEN_WORDS)
    tokens = [np.zeros((len(rows), TOKEN_LENGTH), np.int64) for rows in parts]
    for rows, ids in zip(parts, tokens, strict=True):
        owner, place, words = _gather(news, rows, TOKEN_LENGTH)
        ids[owner, place] = np.where(ranks[words] < 0, 1, ranks[words] + 2)
    told = (
        f"Token ids of the first {TOKEN_LENGTH} words: 0 pads, 1 is a word without an id, 2 to {size + 1} are the most "
        "frequent words of the training split, each there twice or more."
    )
    return tokens, told


def _read_news(folder: object) -> _News:
    """Return the two files in a folder, read once for as long as they stay as they are."""
    inside = _find(folder)
    paths = tuple(inside / f"{split}.csv" for split in _RELEASED)
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f"{path} is missing, beside {', '.join(sorted(p.name for p in inside.iterdir()))}; {_STEPS}"
            )
    _check_classes(inside)
    return _parse_news(paths, tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in paths))


def _find(folder: object) -> Path:
    """Return the folder that holds the two files."""
    if folder is None:
        raise ValueError(f"AG News needs root=, a folder with its files; {_STEPS}")
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"folder must be the path of a folder, got {_checks.describe(folder)}")
    root = Path(os.path.expanduser(folder))
    candidates = [root, *(root / inside for inside in _FOLDERS)] if os.fspath(folder) else []
    # A file system that ignores case shows one folder under two names.
    found = {path.stat().st_ino: path for path in candidates if any((path / f"{s}.csv").is_file() for s in _RELEASED)}
    if not found:
        raise ValueError(f"{os.fspath(folder)!r} holds no {_FOLDERS[0]}/train.csv and test.csv; {_STEPS}")
    if len(found) > 1:
        raise ValueError(f"{root} holds AG News twice, in {' and '.join(map(str, found.values()))}; keep one")
    return next(iter(found.values()))


@functools.lru_cache(maxsize=2)
def _parse_news(paths: tuple[Path, Path], _: object) -> _News:
    """Return the two files as words; the second argument tells versions of them apart."""
    labels, index, ids, starts, digests = array("q"), {}, array("i"), array("q", [0]), []
    for path in paths:
        content, num_train = path.read_bytes(), len(labels)
        digests.append(hashlib.md5(content, usedforsecurity=False).hexdigest())
        for label, text in _rows(path, content):
            labels.append(label)
            ids.extend([index.setdefault(word, len(index)) for word in tokenize(text)])
            starts.append(len(ids))
    arrays = np.array(ids, dtype=np.int32), np.array(starts)
    return _News(np.array(labels), num_train, tuple(index), *arrays, tuple(digests))


def _rows(path: Path, content: bytes) -> Iterator[tuple[int, str]]:
    """Yield label 0 to 3 and text of each row of a file."""
    if not content.strip():
        raise ValueError(f"{path} has no rows")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in filter(None, reader):  # without blank lines
            if len(row) != 3:
                expected = "expected 3 columns (class, title, description)"
                raise ValueError(f"{path}, line {reader.line_num}: {expected}, got {len(row)}; is the file cut short?")
            if row[0] not in ("1", "2", "3", "4"):
                header = "; the released files have no header" if reader.line_num == 1 else ""
                raise ValueError(f"{path}, line {reader.line_num}: expected a class 1 to 4, got {row[0]!r}{header}")
            yield int(row[0]) - 1, f"{row[1]} {row[2]}"
    except csv.Error as error:
        told = "quotes inside a column are doubled, not escaped; a file that ends inside a column is cut short"
        raise ValueError(f"{path}, line {reader.line_num}: {error} ({told})") from error
    # Cut behind a closing quote, a file would still have whole rows.
    if not text.endswith(("\n", "\r")):
        raise ValueError(f"{path}, line {reader.line_num}: expected a line break at its end; the file may be cut short")


def _check_classes(folder: Path) -> None:
    """Refuse files whose list of classes is another one."""
    path = folder / "classes.txt"
    if path.is_file() and (named := tuple(path.read_text(encoding="utf-8").split())) != CLASS_NAMES:
        raise ValueError(f"{path} must name the classes {', '.join(CLASS_NAMES)}, got {', '.join(named)}")


def _describe(folder: Path, news: _News) -> tuple[str, str]:
    """Return which version the files are, "released", "made" or "other", and what the card says of it."""
    released = tuple(_RELEASED.values())
    counts = (news.num_train, len(news.labels) - news.num_train)
    rows = f"{counts[0]:,} training and {counts[1]:,} test texts"
    if news.digests == tuple(digest for _, digest in released):
        return "released", f"The released files, by their MD5: {rows}."
    readme = folder / "readme.txt"
    told = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if told.startswith(_MADE) and all(digest in told for digest in news.digests):
        return "made", f"{_MADE} {rows}."
    same = counts == tuple(count for count, _ in released)
    why = "as many as there, but with other MD5" if same else f"there are {released[0][0]:,} and {released[1][0]:,}"
    here = ", ".join(digest[:12] for digest in news.digests)
    return "other", f"Not the released files: {rows}, {why} (here {here})."


# Made news. The population is fixed: words, topics and their frequencies do not depend on the seed.
_SYLLABLES = (
    "zor", "vel", "tham", "quil", "brin", "dax", "mer", "lun", "fen", "gor", "jal", "kes", "nim", "pol", "rav", "sul",
    "tor", "wex", "yan", "hul", "dren", "mip", "bël", "ñor", "graß",
)  # fmt: skip
_COUNTS = _NUM_FUNCTION, _NUM_SHARED, _NUM_TOPIC = 60, 600, 300
_SHARES = (0.45, 0.37, 0.18)  # of function words, of words that all topics share, and of the topic's own
_AMBIGUOUS = 0.15  # of the texts draw their topic words from two topics alike


def write_made_news(folder: str | os.PathLike[str], num_train: int = 4000, num_test: int = 1000, seed: int = 0) -> Path:
    r"""Write made news in the format of AG News: random words of four topics, with a readme that says so.

    A text of class y has 25 to 50 words. A word is, with probability .45, one of 60 function words; with .37, one of
    600 that all topics share; else one of 300 of its topic, each group with Zipf frequencies proportional to
    1 / (2 + rank). Topic words come from topic y, but in 15 % of the texts as often from another topic, whose class
    the text might as well have. The files hold what makes the released ones hard to read: doubled quotes, backslashes,
    also as the last character of a column, ``#39;`` and other marks, and letters outside ASCII.

    Args:
        folder: Where to write ``ag_news_csv/train.csv``, ``test.csv``, ``classes.txt`` and ``readme.txt``; made if it
            does not exist. Files that were not made by this function are not overwritten.
        num_train: Rows of the training file, at least 40; the classes have equal shares up to one row.
        num_test: Rows of the test file, at least 4.
        seed: Draws the texts, at least 0. Words, topics and frequencies are the same for all seeds.

    Returns:
        ``folder``, for :func:`load_text`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range, or the folder holds other news.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lines = (write_made_news(folder, 40, 4) / "ag_news_csv" / "test.csv").read_text("utf-8").splitlines()
        >>> len(lines), lines[0][:4]
        (4, '"1",')
    """
    sizes = {"train": _checks.integer(num_train, "num_train", low=40)}
    sizes["test"] = _checks.integer(num_test, "num_test", low=4)
    generator = np.random.default_rng([_checks.integer(seed, "seed"), 1])
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise TypeError(f"folder must be the path of a folder, got {_checks.describe(folder)}")
    inside = Path(folder) / _FOLDERS[0]
    readme = inside / "readme.txt"
    if inside.exists() and not (readme.is_file() and readme.read_text(encoding="utf-8").startswith(_MADE)):
        raise ValueError(f"{inside} exists and was not made by write_made_news; it is not overwritten")
    inside.mkdir(parents=True, exist_ok=True)
    digests = []
    for split, size in sizes.items():
        file = io.StringIO(newline="")
        csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(_made_rows(size, generator))
        content = file.getvalue().encode()
        digests.append(f"{split}.csv, {size} rows, MD5 {hashlib.md5(content, usedforsecurity=False).hexdigest()}")
        (inside / f"{split}.csv").write_bytes(content)
    (inside / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n", encoding="utf-8")
    readme.write_text("\n".join([_MADE, f"Seed {seed}.", *digests]) + "\n", encoding="utf-8")
    return Path(folder)


def _made_rows(size: int, generator: np.random.Generator) -> Iterator[tuple[int, str, str]]:
    """Yield class 1 to 4, title and description of made news."""
    words = _made_words()
    labels = generator.permutation(np.arange(size) % len(CLASS_NAMES))
    others = (labels + generator.integers(1, len(CLASS_NAMES), size)) % len(CLASS_NAMES)
    mixed = generator.random(size) < _AMBIGUOUS
    for label, other, mix, length in zip(labels, others, mixed, generator.integers(25, 51, size), strict=True):
        kind = np.searchsorted(np.cumsum(_SHARES)[:2], generator.random(length))
        own = np.where(mix & (generator.random(length) < 0.5), other, label)
        first = np.select([kind == 0, kind == 1], [0, _NUM_FUNCTION], _NUM_FUNCTION + _NUM_SHARED + _NUM_TOPIC * own)
        places = np.stack(
            [_zipf(count, generator.random(length)) for count in (_NUM_FUNCTION, _NUM_SHARED, _NUM_TOPIC)]
        )
        drawn = [words[place] for place in first + places[kind, np.arange(length)]]
        yield label + 1, " ".join(drawn[:7]).title(), _decorated(drawn[7:], generator)


def _decorated(words: list[str], generator: np.random.Generator) -> str:
    """Return a description with the oddities of the released files."""
    chance = generator.random(len(words))
    marked = [
        f'"{word}"' if u < 0.02 else f"{word} #39;s" if u < 0.03 else f" quot;{word} quot;" if u < 0.04 else word
        for word, u in zip(words, chance, strict=True)
    ]
    gaps = np.where(generator.random(len(words)) < 0.04, "\\", " ")
    gaps[-1] = "\\" if generator.random() < 0.05 else "."
    return "".join(f"{word}{gap}" for word, gap in zip(marked, gaps, strict=True)).capitalize()


@functools.cache
def _made_words() -> tuple[str, ...]:
    """Return function words, shared words, and the words of each topic, all different."""
    generator = np.random.default_rng(2106)
    short = [a + b for a in _SYLLABLES for b in _SYLLABLES]
    long = [a + b for a in short for b in _SYLLABLES]
    generator.shuffle(short)
    generator.shuffle(long)
    return tuple(short[:_NUM_FUNCTION] + long[: _NUM_SHARED + len(CLASS_NAMES) * _NUM_TOPIC])


@functools.cache
def _zipf_steps(count: int) -> np.ndarray:
    weights = 1 / (2 + np.arange(count))
    return np.cumsum(weights / weights.sum())[:-1]


def _zipf(count: int, uniforms: np.ndarray) -> np.ndarray:
    """Return ranks 0 to count - 1 with probabilities proportional to 1 / (2 + rank)."""
    return np.searchsorted(_zipf_steps(count), uniforms)
