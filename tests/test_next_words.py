"""Next words: text, counts and tables against dictionaries, and what a smooth rate does to a table."""

from collections import Counter, defaultdict
from itertools import pairwise
from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nls
from nls.next_words import (
    WordTable,
    count_words,
    kneser_ney,
    load_topics,
    read_words,
    uniform_prior,
    unigram_prior,
)

FAST = settings(max_examples=15, deadline=None, derandomize=True)
TOY = {
    "a": "the cat saw the dog\n\nthe dog saw the cat",
    "b": "a dog saw a cat\n  \nthe cat saw the dog\n\n\n",
    "c": "the cat sat\n\n\nthe dog sat the cat sat",
    "d": "cat",
}


def toy(size=3):
    text = read_words(TOY, 3, size)
    return text, text.contexts, text.targets, text.num_words


def draws(seed, num_words, count):
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.randint(num_words + 1, (count, 3), generator=generator)
    return contexts, torch.randint(num_words, (count,), generator=generator)


# Oracles: dictionaries and loops.


def naive_counts(contexts, words, size):
    found = defaultdict(Counter)
    for context, word in zip(contexts.tolist(), words.tolist(), strict=True):
        found[tuple(context[len(context) - size :])][word] += 1
    return found


def naive_smoothed(found, context, word, num_words, share):
    seen = found.get(context)
    if not seen:
        return 1 / num_words
    return (1 - share(seen)) * seen[word] / sum(seen.values()) + share(seen) / num_words


def naive_kneser_ney(contexts, words, num_words, size):
    """Return P(w | h) by the recursion over dictionaries."""
    tables = [naive_counts(contexts, words, size)]
    for length in range(size - 1, -1, -1):
        shorter = defaultdict(Counter)
        for context, seen in tables[-1].items():
            for word in seen:
                shorter[context[len(context) - length :]][word] += 1
        tables.append(shorter)

    def probability(context, word, level=0):
        if level == len(tables):
            return 1 / num_words
        context = context[len(context) - (size - level) :]
        lower = probability(context, word, level + 1)
        counts = [count for seen in tables[level].values() for count in seen.values()]
        discount = counts.count(1) / (counts.count(1) + 2 * counts.count(2)) if 1 in counts else 0.0
        seen = tables[level].get(context)
        if not seen:
            return lower
        total = sum(seen.values())
        return max(seen[word] - discount, 0) / total + discount * len(seen) / total * lower

    return probability


# The text


def test_a_paragraph_is_in_the_shortest_of_its_topics_only():
    text, contexts, words, _ = toy()
    assert text.words == ("a", "cat", "dog", "sat", "saw", "the")
    assert len(text) == 5 + 5 + 5 + 3 + 6 + 1
    assert text.num_repeated == 5
    # "the cat saw the dog" is in "a" and in "b", and b is the longer one.
    sizes = {name: len(TOY[name]) for name in "ab"}
    assert sizes["a"] < sizes["b"]
    assert [text.words[i] for i in words[:5].tolist()] == ["the", "cat", "saw", "the", "dog"]
    assert text.topics == (("a",), ("b",), ("c", "d"))
    assert text.blocks.bincount().tolist() == [10, 5, 10]
    assert contexts[:3].tolist() == [[6, 6, 6], [6, 6, 5], [6, 5, 1]]


def test_no_paragraph_is_in_two_blocks_of_the_topics():
    text = load_topics()
    assert len(text) >= 50_000
    assert text.num_words >= 5_000
    assert len(text.topics) == 10
    starts = [*(text.contexts == text.num_words).all(1).nonzero()[:, 0].tolist(), len(text)]
    home = {}
    for first, last in pairwise(starts):
        (block,) = set(text.blocks[first:last].tolist())
        assert home.setdefault(tuple(text.targets[first:last].tolist()), block) == block
    assert len(home) == len(starts) - 1
    for fold in range(10):
        train, validation, test = text.split(fold)
        assert (train.int() + validation.int() + test.int() == 1).all()
        assert int(test.sum()) > 1500
        assert int(train.sum()) > 35_000
    assert (text.split(9)[1] == (text.blocks == 0)).all()


def test_size_and_digest_belong_to_the_text():
    text = read_words(TOY, 3, 1, version="3.x")
    assert text.contexts.shape == (25, 1)
    assert text.version == "3.x"
    changed = read_words(TOY | {"d": "dog"}, 3, 1)
    assert len(text.digest) == 12
    assert text.digest != changed.digest
    assert torch.equal(text.targets[:-1], changed.targets[:-1])


# Counts


@FAST
@given(seed=st.integers(0, 10**6), num_words=st.integers(2, 6), count=st.integers(1, 40), size=st.integers(0, 3))
def test_counts_are_those_of_a_dictionary(seed, num_words, count, size):
    contexts, words = draws(seed, num_words, count)
    counts, naive = count_words(contexts, words, num_words, size), naive_counts(contexts, words, size)
    assert len(counts.contexts) == len(naive)
    for context, word in zip(*(x.tolist() for x in draws(seed + 1, num_words, 30)), strict=True):
        key = counts.key(torch.tensor([context]))
        seen = naive.get(tuple(context[3 - size :]), Counter())
        total, types = counts.of_contexts(key)
        assert (int(total), int(types)) == (sum(seen.values()), len(seen))
        assert int(counts.of_pairs(key, torch.tensor([word]))) == seen[word]


def test_keys_of_three_words_fit_64_bits():
    large = 50_000
    contexts = torch.full((1, 3), large)
    counts = count_words(contexts, torch.tensor([large - 1]), large, 3)
    assert int(counts.pairs) > 0
    assert int(counts.of_pairs(counts.key(contexts), torch.tensor([large - 1]))) == 1


# Tables


SHARES = {
    "rate": lambda a: lambda seen: a,
    "pseudo": lambda a: lambda seen: a / (sum(seen.values()) + a),
}


@FAST
@given(seed=st.integers(0, 10**6), scheme=st.sampled_from(["rate", "pseudo"]), strength=st.floats(0, 1))
def test_tables_are_those_of_a_dictionary(seed, scheme, strength):
    num_words = 5
    contexts, words = draws(seed, num_words, 40)
    table = WordTable(count_words(contexts, words, num_words, 1), scheme, strength, uniform_prior(num_words))
    naive = naive_counts(contexts, words, 1)
    asked, next_words = draws(seed + 1, num_words, 30)
    got = table.probability(asked, next_words)
    for context, word, value in zip(asked.tolist(), next_words.tolist(), got.tolist(), strict=True):
        expected = naive_smoothed(naive, tuple(context[2:]), word, num_words, SHARES[scheme](strength))
        assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_kneser_ney_is_that_of_a_dictionary_and_sums_to_one(size):
    _, contexts, words, num_words = toy()
    model = kneser_ney(contexts, words, num_words, size)
    naive = naive_kneser_ney(contexts, words, num_words, size)
    asked = torch.cat([contexts, draws(0, num_words, 20)[0]])
    rows = model.rows(asked)
    assert rows.sum(1).tolist() == pytest.approx([1.0] * len(asked), abs=1e-12)
    assert rows.min() > 0
    for word in range(num_words):
        expected = [naive(tuple(context), word) for context in asked.tolist()]
        assert model.probability(asked, torch.full((len(asked),), word)).tolist() == pytest.approx(expected, abs=1e-12)
        assert rows[:, word].tolist() == pytest.approx(expected, abs=1e-12)


def test_kneser_ney_worked_by_hand():
    """Three pairs (2, 0), (0, 1), (0, 0) once each: discount 1, so all mass goes to the continuation counts."""
    contexts, words = torch.tensor([[2], [0], [0]]), torch.tensor([0, 1, 0])
    model = kneser_ney(contexts, words, 2, 1)
    assert model.strength == 1.0  # n_1 / (n_1 + 2 n_2) = 3 / 3
    # Word 0 follows two contexts, word 1 one: counts 2 and 1, discount 1 / (1 + 2) = 1/3, two types of three pairs.
    assert model.prior.strength == pytest.approx(1 / 3)
    zero = (2 - 1 / 3) / 3 + 1 / 3 * 2 / 3 / 2
    assert model.rows(torch.tensor([[1]])).tolist() == [pytest.approx([zero, 1 - zero])]


@pytest.mark.parametrize("scheme", ["rate", "pseudo", "discount"])
def test_rows_sum_to_one_whatever_the_prior(scheme):
    _, contexts, words, num_words = toy()
    prior = unigram_prior(words, num_words)
    for inner in (prior, WordTable(count_words(contexts, words, num_words, 1), "pseudo", 2.0, prior)):
        table = WordTable(count_words(contexts, words, num_words, 2), scheme, 0.4, inner)
        rows = table.rows(torch.cat([contexts, torch.full((1, 3), 2)]))
        assert rows.sum(1).tolist() == pytest.approx([1.0] * len(rows), abs=1e-12)
        assert torch.allclose(rows[:-1].gather(1, words[:, None])[:, 0], table.probability(contexts, words))


# What a rate does to a table


def free_table(contexts, words, num_words, rate, prior=None):
    """Train a table of free logits, one row for each word before, by the loss; return its probabilities."""
    rows = contexts[:, -1].unique(return_inverse=True)[1]
    logits = torch.zeros(int(rows.max()) + 1, num_words, dtype=torch.float64, requires_grad=True)
    target = torch.nn.functional.one_hot(words, num_words).double()
    target = (1 - rate) * target + rate * (uniform_prior(num_words) if prior is None else prior)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = nls.gls_loss(logits[rows], words if prior is None else target, rate if prior is None else 0.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().softmax(1)[rows]


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_a_free_table_at_a_smooth_rate_is_add_k_with_k_by_context(rate):
    _, contexts, words, num_words = toy()
    counts = count_words(contexts, words, num_words, 1)
    trained = free_table(contexts, words, num_words, rate)
    table = WordTable(counts, "rate", rate, uniform_prior(num_words))
    assert torch.allclose(trained, table.rows(contexts), atol=1e-6)
    totals = counts.of_contexts(counts.key(contexts))[0]
    for total in totals.unique().tolist():
        k = rate * total / (num_words * (1 - rate))
        same = contexts[totals == total]
        add_k = WordTable(counts, "pseudo", k * num_words, uniform_prior(num_words))
        assert torch.allclose(add_k.rows(same), table.rows(same), atol=1e-12)
    assert len(totals.unique()) > 2, "contexts of one count only would show nothing"


def test_a_free_table_with_a_prior_is_interpolation():
    _, contexts, words, num_words = toy()
    prior = unigram_prior(words, num_words)
    trained = free_table(contexts, words, num_words, 0.3, prior)
    table = WordTable(count_words(contexts, words, num_words, 1), "rate", 0.3, prior)
    assert torch.allclose(trained, table.rows(contexts), atol=1e-6)


def test_the_hard_table_is_the_average_of_its_targets():
    _, contexts, words, num_words = toy()
    table = WordTable(count_words(contexts, words, num_words, 1), "rate", 0.0, uniform_prior(num_words))
    rows = table.rows(contexts)
    for key in contexts[:, -1].unique():
        same = contexts[:, -1] == key
        average = torch.nn.functional.one_hot(words[same], num_words).double().mean(0)
        assert torch.allclose(rows[same], average.expand(int(same.sum()), -1))


def test_the_best_rate_for_a_target_is_how_often_it_is_wrong():
    hits, words = 0.26, 1000
    scores = {
        rate: -hits * log(1 - rate + rate / words) - (1 - hits) * log(rate / words)
        for rate in (0.01 * i for i in range(1, 100))
    }
    assert min(scores, key=scores.get) == pytest.approx(1 - hits, abs=0.011)


REFUSED = {
    "num_blocks must be at least 3, got 2": lambda: read_words(TOY, 2),
    "size must be at least 1, got 0": lambda: read_words(TOY, 3, 0),
    "topics must be at least 4 with words of their own, got 3": lambda: read_words(dict(list(TOY.items())[:3]), 4),
    "fold must be at most 2, got 3": lambda: toy()[0].split(3),
    "size must be at most 3, got 4": lambda: count_words(*toy()[1:], 4),
    "num_words must be at least 2, got 1": lambda: count_words(*toy()[1:3], 1, 1),
    r"words must lie in \[0, 4\], got the value 5": lambda: count_words(toy()[1] % 5, toy()[2], 5, 1),
    r"contexts must have shape \[N, at least 2\]": lambda: count_words(toy(1)[1], toy(1)[2], 6, 2),
    "scheme must be one of": lambda: table_of("add"),
    r"strength must be a finite number in \(-inf, 1\]": lambda: table_of("rate", 1.5),
    r"strength must be a finite number in \[0, 1\]": lambda: table_of("discount", -0.5),
    r"prior must have shape \(6,\), got \(4,\)": lambda: table_of("rate", 0.1, uniform_prior(4)),
}


def table_of(scheme, strength=0.1, prior=None):
    _, contexts, words, num_words = toy()
    return WordTable(
        count_words(contexts, words, num_words, 1), scheme, strength, uniform_prior(6) if prior is None else prior
    )


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_wrong_is_said(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
