r"""A small neural model of the next word, on any target: hard, smoothed, smoothed towards a prior, or negative.

With a vocabulary of thousands the logits :math:`z = W a + b` are by far the largest tensor, so the loss is the fused
one, :func:`nls.fused_gls_loss`. A prior :math:`q` in place of the uniform law :math:`u` needs no further pass over
them:

.. math::
    \ell_{r, q}(z, y) = \ell_r(z, y) + r\, (u - q) \cdot z, \qquad
    (u - q) \cdot z = a \cdot W^\top (u - q) + (u - q) \cdot b
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from nls import _checks
from nls.fused import fused_gls_loss, tune_allocator
from nls.next_words import WordText, load_topics, uniform_prior, unigram_prior
from nls.training import seeded_generator

TARGETS = ("uniform", "unigram")

# Words by how often the training text has them: never, once, two to ten times, more often.
RARITIES = ("0", "1", "2-10", "11+")

# The networks of the stored study, and what in them differs from the hard target.
ARMS = {
    "hard": {},
    "uniform 0.1": {"target": "uniform", "rate": 0.1},
    "uniform 0.2": {"target": "uniform", "rate": 0.2},
    "uniform 0.4": {"target": "uniform", "rate": 0.4},
    "unigram 0.1": {"target": "unigram", "rate": 0.1},
    "unigram 0.4": {"target": "unigram", "rate": 0.4},
    "negative": {"target": "uniform", "rate": -0.1},
    "dropout": {"dropout": 0.3},
    "weight decay": {"weight_decay": 0.3},
    "weight decay + uniform 0.2": {"weight_decay": 0.3, "target": "uniform", "rate": 0.2},
}

# What a share of a prior, mixed in after training, is chosen from.
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8)

_BATCH_SIZE = 512


class WordNetwork(nn.Module):
    """Embeddings of the words before, one hidden layer, and one logit for each word.

    It starts at the prior: the bias is its logarithm.

    Args:
        prior: Probabilities [V], positive.
        size: Words in a context.
        embedding: Width of an embedding.
        hidden: Width of the hidden layer.
        dropout: Share of embeddings and hidden units that are dropped in training, in [0, 1).
        generator: Draws the start.
    """

    def __init__(
        self,
        prior: torch.Tensor,
        size: int,
        embedding: int,
        hidden: int,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(prior) + 1, embedding)
        self.hidden = nn.Linear(size * embedding, hidden)
        self.output = nn.Linear(hidden, len(prior))
        self.dropout = nn.Dropout(_checks.number(dropout, "dropout", low=0, high=1, open_high=True))
        with torch.no_grad():
            self.embedding.weight.normal_(std=0.3, generator=generator)
            self.hidden.weight.normal_(std=(size * embedding) ** -0.5, generator=generator)
            self.hidden.bias.zero_()
            self.output.weight.normal_(std=0.1 * hidden**-0.5, generator=generator)
            self.output.bias.copy_(prior.log())

    def features(self, contexts: torch.Tensor) -> torch.Tensor:
        """Return the hidden layer [N, hidden] of contexts [N, size]."""
        return self.dropout(torch.tanh(self.hidden(self.dropout(self.embedding(contexts).flatten(1)))))

    def forward(self, contexts: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, V] of contexts [N, size]."""
        return self.output(self.features(contexts))


def prior_smoothed_loss(
    features: torch.Tensor, output: nn.Linear, words: torch.Tensor, rate: float, prior: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Return the mean loss of the target :math:`(1 - r)\,\mathrm{onehot}(y) + r\, q`.

    Args:
        features: Input of the last layer [N, d].
        output: The last layer, d to V.
        words: The next words [N].
        rate: :math:`r \le 1`.
        prior: q, probabilities [V]; None for the uniform law.

    Returns:
        A scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit or a value is out of range.

    Examples:
        >>> output = nn.Linear(2, 4)
        >>> features, words, prior = torch.ones(3, 2), torch.tensor([0, 1, 3]), torch.tensor([0.5, 0.5, 0.0, 0.0])
        >>> target = 0.6 * nn.functional.one_hot(words, 4) + 0.4 * prior
        >>> loss = prior_smoothed_loss(features, output, words, 0.4, prior)
        >>> bool(torch.isclose(loss, nn.functional.cross_entropy(output(features), target)))
        True
    """
    loss = fused_gls_loss(output(features), words, rate, compile=False)
    if prior is None or rate == 0:
        return loss
    _checks.probabilities(prior, "prior")
    if prior.shape != (output.out_features,):
        raise ValueError(f"prior must have shape ({output.out_features},), got {tuple(prior.shape)}")
    apart = 1 / len(prior) - prior.to(features.dtype)
    return loss + rate * (features.mean(0) @ (apart @ output.weight) + apart @ output.bias)


def run_words(
    fold: int,
    target: str = "uniform",
    rate: float = 0.0,
    *,
    text: WordText | None = None,
    num_tokens: int = 0,
    epochs: int = 5,
    embedding: int = 32,
    hidden: int = 64,
    learning_rate: float = 0.005,
    dropout: float = 0.0,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Train a network on one split of the help topics, and measure it after every epoch.

    Adam with decoupled weight decay and batches of 512. The start and the order of the words depend on the fold and
    the seed alone, so that arms are paired.

    Args:
        fold: The block that tests, see :meth:`nls.next_words.WordText.split`.
        target: What the rate smooths towards, one of ``TARGETS``.
        rate: r; 0 is the hard target, whatever ``target`` is.
        text: The text; by default :func:`nls.next_words.load_topics`.
        num_tokens: Words of the training blocks to train on, drawn at random; 0 for all.
        epochs: Passes over them.
        embedding: Width of an embedding.
        hidden: Width of the hidden layer.
        learning_rate: Step of Adam.
        dropout: See :class:`WordNetwork`.
        weight_decay: Decoupled, of all weights but the biases.
        seed: Varies start and order.

    Returns:
        For each epoch ``epoch`` and the measures of :func:`measure_words` on validation and test, each with the name
        of the part before it.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.
    """
    _checks.choice(target, "target", TARGETS)
    tune_allocator()
    text = load_topics() if text is None else text
    parts = dict(zip(("train", "validation", "test"), text.split(fold), strict=True))
    draws = seeded_generator(seed, f"next words, fold {fold}")
    contexts, words = text.contexts[parts["train"]], text.targets[parts["train"]]
    if num_tokens:
        chosen = torch.randperm(len(words), generator=draws)[:num_tokens]
        contexts, words = contexts[chosen], words[chosen]
    prior = unigram_prior(words, text.num_words)
    frequency = words.bincount(minlength=text.num_words)
    network = WordNetwork(prior.float(), contexts.shape[1], embedding, hidden, dropout, draws)
    smooth_to = prior.float() if target == "unigram" else None
    optimizer = _adam(network, learning_rate, weight_decay)
    rows = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout draws from the global stream
        for epoch in range(1, epochs + 1):
            network.train()
            for batch in torch.randperm(len(words), generator=draws).split(_BATCH_SIZE):
                optimizer.zero_grad(set_to_none=True)
                features = network.features(contexts[batch])
                prior_smoothed_loss(features, network.output, words[batch], rate, smooth_to).backward()
                optimizer.step()
            rows.append({"epoch": epoch} | _measures(network.eval(), text, parts, prior, frequency))
    return rows


def _adam(network: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return Adam with decoupled weight decay of all weights but the biases."""
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def _measures(
    network: WordNetwork, text: WordText, parts: dict[str, torch.Tensor], prior: torch.Tensor, frequency: torch.Tensor
) -> dict[str, float]:
    """Return the measures on validation and test, and the losses after mixing with shares chosen on validation."""
    found, priors = {}, {"uniform": uniform_prior(text.num_words), "unigram": prior}
    for part in ("validation", "test"):
        contexts, words = text.contexts[parts[part]], text.targets[parts[part]]
        with torch.no_grad():
            columns = _columns((network(some).softmax(1) for some in contexts.split(256)), words, frequency)
        found |= {f"{part}_{name}": value for name, value in _summary(columns, words, frequency).items()}
        for name, base in priors.items():
            losses = {s: -float(((1 - s) * columns[:, 0] + s * base[words]).log().mean()) for s in SHARES}
            if part == "validation":
                found[f"share_{name}"] = min(losses, key=losses.get)
            found[f"{part}_nll_{name}"] = losses[found[f"share_{name}"]]
    return found


def measure_words(
    probabilities: Iterable[torch.Tensor], words: torch.Tensor, frequency: torch.Tensor
) -> dict[str, float]:
    """Return how good and how well calibrated predictions of the next word are.

    Args:
        probabilities: Batches of predictions, [n, V] each, N in all.
        words: The next words [N].
        frequency: How often the training text has each word [V].

    Returns:
        ``nll`` in nats; ``known_nll``, the same over next words that the training text has, with all others ruled out;
        ``accuracy`` and mean ``confidence`` of the likeliest word, the first of equally likely ones, and its
        calibration error ``ece``, in bins of width 0.1; and for each of ``RARITIES`` the ``mass_`` that words of this
        rarity get and the ``share_`` of the next words that they are.

    Examples:
        >>> rows = [torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])]
        >>> found = measure_words(rows, torch.tensor([0, 2]), torch.tensor([20, 1, 0]))
        >>> found["accuracy"], found["ece"], round(found["mass_0"], 3), found["share_0"]
        (0.5, 0.0, 0.2, 0.5)
    """
    return _summary(_columns(probabilities, words, frequency), words, frequency)


def _kinds(frequency: torch.Tensor) -> torch.Tensor:
    """Return which of ``RARITIES`` each word has."""
    return torch.bucketize(frequency, torch.tensor([0, 1, 10]))


def _columns(batches: Iterable[torch.Tensor], words: torch.Tensor, frequency: torch.Tensor) -> torch.Tensor:
    """Return for each word its probability, the largest one, whether they are the same, and the mass by rarity."""
    members, parts, start = nn.functional.one_hot(_kinds(frequency), len(RARITIES)), [], 0
    for rows in batches:
        line, top = words[start : start + len(rows)], rows.max(1)
        three = torch.stack((rows.gather(1, line[:, None])[:, 0], top.values, top.indices == line), 1)
        parts.append(torch.cat([three, rows @ members.to(rows.dtype)], 1).double())
        start += len(rows)
    return torch.cat(parts)


def _summary(columns: torch.Tensor, words: torch.Tensor, frequency: torch.Tensor) -> dict[str, float]:
    """Return what :func:`measure_words` returns, from the columns."""
    own, sure, hits, *masses = columns.T
    gaps = torch.zeros(10, dtype=torch.float64).index_add(0, (sure * 10).long().clamp(max=9), hits - sure)
    known, kinds = frequency[words] > 0, _kinds(frequency)[words]
    found = {
        "nll": -own.log().mean(),
        "known_nll": -(own / (1 - masses[0]))[known].log().mean(),
        "accuracy": hits.mean(),
        "confidence": sure.mean(),
        "ece": gaps.abs().sum() / len(words),
    }
    for i, (rarity, mass) in enumerate(zip(RARITIES, masses, strict=True)):
        found |= {f"mass_{rarity}": mass.mean(), f"share_{rarity}": (kinds == i).double().mean()}
    return {name: float(value) for name, value in found.items()}
