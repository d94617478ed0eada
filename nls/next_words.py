r"""Next words: a text that ships with Python, its counts, and the tables that smooth them.

Every table here is a part for what was seen and a part for what may come:

.. math:: P(w \mid h) = s(h, w) + b(h)\, q(w \mid h')

with a prior :math:`q`, which may look at a shorter context :math:`h'`, and the share :math:`b(h)` that it gets.
A smooth rate, add-k and Kneser-Ney differ in :math:`b` and in :math:`q`, and in nothing else.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nls import _checks

SCHEMES = ("rate", "pseudo", "discount")


@dataclass(frozen=True, eq=False, repr=False)
class WordText:
    """A text as contexts and next words, in blocks that share no topic.

    Attributes:
        words: The vocabulary, sorted: every word of the text, whatever block it is in.
        contexts: The words before each word, the nearest one last [N, size], int64; before the first word of a
            paragraph stands ``len(words)``.
        targets: The next word [N], int64.
        blocks: The block [N] that it is in, int64.
        topics: The names of the topics in each block.
        num_repeated: Words in paragraphs that were there before, which are left out.
        version: The version of Python that the text came with, or "".
        digest: First 12 hexadecimal digits of the SHA-256 of the whole text.
    """

    words: tuple[str, ...]
    contexts: torch.Tensor
    targets: torch.Tensor
    blocks: torch.Tensor
    topics: tuple[tuple[str, ...], ...]
    num_repeated: int
    version: str
    digest: str

    @property
    def num_words(self) -> int:
        """Size of the vocabulary V."""
        return len(self.words)

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        return f"WordText({len(self)} words, {self.num_words} distinct, {len(self.topics)} blocks)"

    def split(self, fold: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return which words are for training, validation and test: block ``fold`` tests, the next one validates.

        Args:
            fold: In [0, number of blocks).

        Returns:
            Three masks [N], bool.
        """
        fold = _checks.integer(fold, "fold", high=len(self.topics) - 1)
        test, validation = self.blocks == fold, self.blocks == (fold + 1) % len(self.topics)
        return ~(test | validation), validation, test


def read_words(topics: Mapping[str, str], num_blocks: int = 10, size: int = 3, *, version: str = "") -> WordText:
    r"""Return a text as contexts and next words.

    Words are what lies between white space. A paragraph that occurs in several topics belongs to the shortest of
    them, so that no paragraph is in two blocks. A block is a run of topics in the order of their names, of about
    equal numbers of words; no context reaches over the start of a paragraph.

    Args:
        topics: Name to text.
        num_blocks: At least 3, for training, validation and test.
        size: Words in a context, at least 1.
        version: Kept with the text.

    Returns:
        The text.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is out of range or there are fewer topics with words than blocks.

    Examples:
        >>> text = read_words({"a": "one two three", "b": "two one", "c": "one two three\n\none"}, 3, 1)
        >>> text, text.num_repeated
        (WordText(6 words, 3 distinct, 3 blocks), 3)
        >>> text.contexts[:3, 0].tolist(), text.targets[:3].tolist()
        ([3, 0, 2], [0, 2, 1])
    """
    num_blocks, size = _checks.integer(num_blocks, "num_blocks", low=3), _checks.integer(size, "size", low=1)
    paragraphs, seen, num_repeated = {}, set(), 0
    for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
        found = [tuple(part.split()) for part in re.split(r"\n[ \t]*\n", topics[name])]
        paragraphs[name] = [part for part in dict.fromkeys(found) if part and part not in seen]
        num_repeated += sum(map(len, found)) - sum(map(len, paragraphs[name]))
        seen.update(found)
    names = [name for name in sorted(topics) if paragraphs[name]]
    if len(names) < num_blocks:
        raise ValueError(f"topics must be at least {num_blocks} with words of their own, got {len(names)}")
    words = tuple(sorted({word for name in names for part in paragraphs[name] for word in part}))
    number, total = {word: i for i, word in enumerate(words)}, sum(map(len, seen))
    contexts, targets, blocks, before, inside = [], [], [], 0, [[] for _ in range(num_blocks)]
    for name in names:
        length = sum(map(len, paragraphs[name]))
        block = min(num_blocks - 1, (2 * before + length) * num_blocks // (2 * total))
        inside[block].append(name)
        before += length
        for part in paragraphs[name]:
            line = [len(words)] * size + [number[word] for word in part]
            contexts += [line[i : i + size] for i in range(len(part))]
            targets += line[size:]
        blocks += [block] * length
    digest = hashlib.sha256("".join(topics[name] for name in sorted(topics)).encode()).hexdigest()[:12]
    tensors = (torch.tensor(values) for values in (contexts, targets, blocks))
    return WordText(words, *tensors, tuple(map(tuple, inside)), num_repeated, version, digest)


def load_topics(num_blocks: int = 10, size: int = 3) -> WordText:
    """Return the help topics of this Python, which it ships as ``pydoc_data.topics``: its reference, in English.

    The text differs between versions of Python: with 3.11 to 3.13 it has from 52,000 to 57,000 words, 8,800 to 9,300
    of them distinct. ``version`` and ``digest`` say which one this is.

    Args:
        num_blocks: See :func:`read_words`.
        size: See :func:`read_words`.

    Returns:
        The text.

    Examples:
        >>> text = load_topics()
        >>> len(text) >= 50_000, text.num_words >= 5_000
        (True, True)
    """
    from pydoc_data.topics import topics

    return read_words(topics, num_blocks, size, version=platform.python_version())


@dataclass(frozen=True, eq=False, repr=False)
class Counts:
    """How often which word followed which context.

    Attributes:
        size: Words in a context, 0 or more; longer contexts are cut at their left.
        num_words: V.
        contexts: Keys of the contexts that occurred [C], sorted, int64.
        totals: n(h), how often each of them occurred [C], int64.
        types: t(h), how many distinct words followed [C], int64.
        pairs: Keys of the pairs that occurred [P], sorted, int64.
        counts: n(h, w), how often each of them occurred [P], int64.
    """

    size: int
    num_words: int
    contexts: torch.Tensor
    totals: torch.Tensor
    types: torch.Tensor
    pairs: torch.Tensor
    counts: torch.Tensor

    def key(self, contexts: torch.Tensor) -> torch.Tensor:
        """Return one number for each context [N, at least size]."""
        return _key(contexts, self.size, self.num_words)

    def of_contexts(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return n(h) and t(h) of each key, 0 where it did not occur."""
        place, known = _find(self.contexts, keys)
        return self.totals[place] * known, self.types[place] * known

    def of_pairs(self, keys: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Return n(h, w) of each key and word, 0 where they did not occur."""
        place, known = _find(self.pairs, keys * self.num_words + words)
        return self.counts[place] * known


def count_words(contexts: torch.Tensor, words: torch.Tensor, num_words: int, size: int) -> Counts:
    """Count which word follows which context.

    Args:
        contexts: [N, at least size], each entry in [0, num_words], the nearest word last.
        words: The next words [N], in [0, num_words).
        num_words: V, at least 2.
        size: Words in a context, in [0, 3].

    Returns:
        The counts.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit or a value is out of range.

    Examples:
        >>> counts = count_words(torch.tensor([[2], [0], [0]]), torch.tensor([0, 1, 1]), 2, 1)
        >>> counts.totals, counts.counts
        (tensor([2, 1]), tensor([2, 1]))
    """
    num_words = _checks.integer(num_words, "num_words", low=2)
    size = _checks.integer(size, "size", high=3)
    contexts = _checks.integer_labels(contexts, "contexts", num_words + 1)
    words = _checks.integer_labels(words, "words", num_words)
    if contexts.ndim != 2 or contexts.shape[1] < size or words.shape != contexts.shape[:1] or not len(words):
        raise ValueError(
            f"contexts must have shape [N, at least {size}] and words shape [N], N >= 1, "
            f"got {tuple(contexts.shape)} and {tuple(words.shape)}"
        )
    pairs, counts = (_key(contexts, size, num_words) * num_words + words).unique(return_counts=True)
    keys, place, types = (pairs // num_words).unique_consecutive(return_inverse=True, return_counts=True)
    totals = torch.zeros_like(types).index_add(0, place, counts)
    return Counts(size, num_words, keys, totals, types, pairs, counts)


@dataclass(frozen=True, eq=False, repr=False)
class WordTable:
    r"""A table of probabilities of the next word, smoothed in one of three ways.

    .. math:: P(w \mid h) = s(h, w) + b(h)\, q(w \mid h')

    - ``"rate"``: :math:`s = (1 - a)\, n(h, w) / n(h)` and :math:`b = a`, what a free table trained at the smooth rate
      a has, with the prior in place of the uniform law;
    - ``"pseudo"``: :math:`s = n(h, w) / (n(h) + a)` and :math:`b = a / (n(h) + a)`, which is add-k for a uniform
      prior and :math:`a = k V`;
    - ``"discount"``: :math:`s = \max(n(h, w) - a, 0) / n(h)` and :math:`b = a\, t(h) / n(h)`, as in Kneser-Ney.

    A context that did not occur has :math:`b = 1`.

    Attributes:
        counts: The counts it rests on.
        scheme: One of ``SCHEMES``.
        strength: a; at most 1 for ``"rate"``, at least 0 for ``"pseudo"``, in [0, 1] for ``"discount"``. A negative
            rate has entries below zero and is then no table of probabilities.
        prior: q, probabilities [V], or a table for shorter contexts.
    """

    counts: Counts
    scheme: str
    strength: float
    prior: torch.Tensor | WordTable

    def __post_init__(self) -> None:
        _checks.choice(self.scheme, "scheme", SCHEMES)
        low, high = {"rate": (-float("inf"), 1), "pseudo": (0, float("inf")), "discount": (0, 1)}[self.scheme]
        _checks.number(self.strength, "strength", low=low, high=high)
        if not isinstance(self.prior, WordTable):
            _checks.probabilities(self.prior, "prior")
            if self.prior.shape != (self.counts.num_words,):
                raise ValueError(f"prior must have shape ({self.counts.num_words},), got {tuple(self.prior.shape)}")

    def share(self, contexts: torch.Tensor) -> torch.Tensor:
        """Return b(h), the share that each context [N, at least size] leaves to the prior, float64."""
        total, types = (n.double() for n in self.counts.of_contexts(self.counts.key(contexts)))
        if self.scheme == "rate":
            found = torch.full_like(total, self.strength)
        elif self.scheme == "pseudo":
            found = self.strength / (total + self.strength)
        else:
            found = self.strength * types / total
        return found.where(total > 0, 1.0)

    def probability(self, contexts: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Return P(w | h) of each context [N, at least size] and word [N], float64.

        Args:
            contexts: The words before, the nearest one last.
            words: The next words.

        Returns:
            The probabilities [N].
        """
        keys = self.counts.key(contexts)
        pairs, totals = self.counts.of_pairs(keys, words), self.counts.of_contexts(keys)[0]
        prior = self.prior
        base = prior.probability(contexts, words) if isinstance(prior, WordTable) else prior.double()[words]
        return self._seen(pairs, totals) + self.share(contexts) * base

    def rows(self, contexts: torch.Tensor) -> torch.Tensor:
        """Return P(. | h) of each context [N, at least size], [N, V], float64: a lot of memory for many contexts."""
        keys = self.counts.key(contexts)
        prior = self.prior
        base = prior.rows(contexts) if isinstance(prior, WordTable) else prior.double()
        table = self.share(contexts)[:, None] * base
        place, known = _find(self.counts.contexts, keys)
        types = self.counts.types * 1
        starts = types.cumsum(0) - types
        lengths = types[place] * known
        line = torch.repeat_interleave(torch.arange(len(keys)), lengths)
        pair = torch.arange(len(line)) - (lengths.cumsum(0) - lengths)[line] + starts[place][line]
        seen = self._seen(self.counts.counts[pair], self.counts.totals[place][line])
        table[line, self.counts.pairs[pair] % self.counts.num_words] += seen
        return table

    def _seen(self, pairs: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
        """Return s(h, w) from n(h, w) and n(h)."""
        pairs, totals = pairs.double(), totals.double()
        if self.scheme == "rate":
            found = (1 - self.strength) * pairs / totals
        elif self.scheme == "pseudo":
            found = pairs / (totals + self.strength)
        else:
            found = (pairs - self.strength).clamp(min=0) / totals
        return found.where(totals > 0, 0.0)


def uniform_prior(num_words: int) -> torch.Tensor:
    """Return the uniform law over V words, float64.

    Examples:
        >>> uniform_prior(4)
        tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)
    """
    num_words = _checks.integer(num_words, "num_words", low=2)
    return torch.full((num_words,), 1 / num_words, dtype=torch.float64)


def unigram_prior(words: torch.Tensor, num_words: int) -> torch.Tensor:
    r"""Return how often each word occurs, with one more for each, so that none has probability 0.

    .. math:: q(w) = \frac{n(w) + 1}{N + V}

    Args:
        words: [N], in [0, num_words).
        num_words: V, at least 2.

    Returns:
        The probabilities [V], float64.

    Examples:
        >>> unigram_prior(torch.tensor([0, 0]), 2)
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    num_words = _checks.integer(num_words, "num_words", low=2)
    counts = _checks.integer_labels(words, "words", num_words).bincount(minlength=num_words).double()
    return (counts + 1) / (counts.sum() + num_words)


def kneser_ney(contexts: torch.Tensor, words: torch.Tensor, num_words: int, size: int) -> WordTable:
    r"""Return the interpolated Kneser-Ney model.

    The longest contexts have their counts, every shorter one counts how many distinct words stood before it: a word
    that follows anything is a better guess than one that is frequent after one word. Below the empty context lies the
    uniform law. The discount of each length is :math:`n_1 / (n_1 + 2 n_2)`, with :math:`n_j` pairs that occur j times.

    Args:
        contexts: [N, at least size], the nearest word last.
        words: The next words [N].
        num_words: V.
        size: Words in the longest context, in [0, 3].

    Returns:
        The table, whose prior is the table for contexts that are a word shorter.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit or a value is out of range.

    Examples:
        >>> model = kneser_ney(torch.tensor([[2], [0], [0]]), torch.tensor([0, 1, 0]), 2, 1)
        >>> model.probability(torch.tensor([[0], [1]]), torch.tensor([1, 1]))
        tensor([0.3333, 0.3333], dtype=torch.float64)

    References:
        Kneser and Ney, 1995, doi:10.1109/ICASSP.1995.479394; Chen and Goodman, 1999, doi:10.1006/csla.1999.0128.
    """
    levels = [count_words(contexts, words, num_words, size)]
    while levels[-1].size:
        size -= 1
        longer = levels[-1].pairs // num_words
        shorter = longer % (num_words + 1) ** size
        held = (
            torch.stack([shorter // (num_words + 1) ** i % (num_words + 1) for i in range(size)][::-1], 1)
            if size
            else shorter.new_zeros(len(shorter), 0)
        )
        levels.append(count_words(held, levels[-1].pairs % num_words, num_words, size))
    model: torch.Tensor | WordTable = uniform_prior(num_words)
    for counts in reversed(levels):
        once, twice = (int((counts.counts == j).sum()) for j in (1, 2))
        model = WordTable(counts, "discount", once / (once + 2 * twice) if once else 0.0, model)
    return model


def _key(contexts: torch.Tensor, size: int, num_words: int) -> torch.Tensor:
    """Return the last ``size`` words of each context as one number."""
    powers = (num_words + 1) ** torch.arange(size - 1, -1, -1)
    return (contexts[:, contexts.shape[1] - size :] * powers).sum(1)


def _find(table: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where each key is in a sorted table, and whether it is."""
    place = torch.searchsorted(table, keys).clamp(max=len(table) - 1)
    return place, table[place] == keys
