"""The small language model: its loss against soft targets, its measures against loops, its runs."""

import math

import pytest
import torch

import nls
from nls.next_words import read_words, uniform_prior
from nls.word_networks import ARMS, RARITIES, SHARES, WordNetwork, measure_words, prior_smoothed_loss, run_words

TEXT = read_words({f"topic {i}": " ".join(f"w{(i * j * j + j) % 23}" for j in range(40 + i)) for i in range(6)}, 3, 3)
SMALL = {"text": TEXT, "embedding": 4, "hidden": 6, "epochs": 2}


def layer(seed=0):
    torch.manual_seed(seed)
    return torch.randn(7, 5).double(), torch.nn.Linear(5, 9).double(), torch.randint(9, (7,))


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0, -0.4])
@pytest.mark.parametrize("with_prior", [False, True])
def test_the_loss_and_its_gradient_are_those_of_the_soft_target(rate, with_prior):
    features, output, words = layer()
    prior = torch.softmax(torch.randn(9).double(), 0) if with_prior else None
    loss = prior_smoothed_loss(features, output, words, rate, prior)
    found = torch.autograd.grad(loss, list(output.parameters()))
    base = uniform_prior(9) if prior is None else prior
    target = (1 - rate) * torch.nn.functional.one_hot(words, 9).double() + rate * base
    naive = -(target * output(features).log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(naive.item(), abs=1e-12)
    for one, other in zip(found, torch.autograd.grad(naive, list(output.parameters())), strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    if prior is None:
        assert loss.item() == pytest.approx(nls.gls_loss(output(features), words, rate).item(), abs=1e-12)


def test_the_network_starts_at_its_prior():
    prior = torch.softmax(torch.arange(6.0), 0)
    network = WordNetwork(prior, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(network.output.weight)
    assert torch.allclose(network(torch.tensor([[6, 0]])).softmax(1)[0], prior, atol=1e-6)


def naive_measures(rows, words, frequency):
    bins = {}
    nll, known, hits = [], [], []
    groups = [(0, 0), (1, 1), (2, 10), (11, math.inf)]
    mass = [0.0] * 4
    for row, word in zip(rows.tolist(), words.tolist(), strict=True):
        top = max(row)
        nll.append(-math.log(row[word]))
        unseen = sum(p for p, n in zip(row, frequency.tolist(), strict=True) if n == 0)
        if frequency[word]:
            known.append(-math.log(row[word] / (1 - unseen)))
        hits.append(float(row.index(top) == word))
        bins.setdefault(min(int(top * 10), 9), []).append(hits[-1] - top)
        for i, (low, high) in enumerate(groups):
            mass[i] += sum(p for p, n in zip(row, frequency.tolist(), strict=True) if low <= n <= high)
    found = {"nll": nll, "known_nll": known, "accuracy": hits}
    found = {name: sum(values) / len(values) for name, values in found.items()}
    found["ece"] = sum(abs(sum(values)) for values in bins.values()) / len(words)
    return found | {f"mass_{rarity}": m / len(words) for rarity, m in zip(RARITIES, mass, strict=True)}


def test_measures_are_those_of_loops():
    torch.manual_seed(1)
    rows, words = torch.randn(40, 8).mul(2).softmax(1).double(), torch.randint(8, (40,))
    rows[:9] = 1 / 8  # ties: the first of equally likely words is the guess
    frequency = torch.tensor([0, 1, 2, 10, 11, 500, 0, 1])
    found = measure_words(rows.split(16), words, frequency)
    for name, value in naive_measures(rows, words, frequency).items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    assert sum(found[f"mass_{rarity}"] for rarity in RARITIES) == pytest.approx(1)
    kinds = [sum(int(frequency[w]) in kind for w in words.tolist()) / 40 for kind in ((0,), (1,), (2, 10), (11, 500))]
    assert [found[f"share_{rarity}"] for rarity in RARITIES] == pytest.approx(kinds)


def test_a_run_is_repeatable_and_its_arms_start_alike():
    first, again = run_words(0, **SMALL), run_words(0, **SMALL)
    assert first == again
    assert [row["epoch"] for row in first] == [1, 2]
    assert run_words(0, **SMALL | {"seed": 1}) != first
    # At a step that is next to none, all arms are the network at its start.
    still = SMALL | {"learning_rate": 1e-12, "epochs": 1}
    reference = run_words(1, **still)[0]
    for arm in ({"rate": 0.4}, {"target": "unigram", "rate": 0.4}, {"dropout": 0.5}, {"weight_decay": 0.1}):
        assert run_words(1, **still | arm)[0]["test_nll"] == pytest.approx(reference["test_nll"], abs=1e-6)


def test_every_setting_counts():
    found = {str(arm): run_words(0, **SMALL | arm)[-1]["test_nll"] for arm in ARMS.values()}
    found["tokens"] = run_words(0, **SMALL, num_tokens=50)[-1]["test_nll"]
    assert len(set(found.values())) == len(ARMS) + 1


def test_a_share_is_chosen_on_validation_and_read_on_test():
    row = run_words(0, **SMALL | {"epochs": 5, "learning_rate": 0.05})[-1]
    assert row["share_uniform"] in SHARES
    assert row["share_uniform"] > 0
    assert row["validation_nll_uniform"] < row["validation_nll"]
    assert row["test_nll_uniform"] != row["test_nll"]


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("target must be one of 'uniform', 'unigram', got 'hard'", lambda: run_words(0, "hard", text=TEXT)),
        ("fold must be at most 2, got 3", lambda: run_words(3, text=TEXT)),
        (r"dropout must be a finite number in \[0, 1\)", lambda: run_words(0, **SMALL | {"dropout": 1.0})),
        (r"prior must have shape \(9,\)", lambda: prior_smoothed_loss(*layer(), 0.1, torch.ones(2) / 2)),
    ],
)
def test_what_is_wrong_is_said(message, call):
    with pytest.raises(ValueError, match=message):
        call()
