"""Co-teaching against a loop by hand, and against one network where nothing is forgotten."""

import numpy as np
import pytest
import torch
from torch import nn

from nls import draw_noisy_labels, fit_each, load_dataset, symmetric_transition
from nls.batches import TensorBatches
from nls.co_teaching import co_teach, kept_share, smallest
from nls.training import seeded_generator


def test_the_share_falls_in_a_line_and_stays():
    shares = [kept_share(epoch, 0.6, 3) for epoch in range(1, 6)]
    np.testing.assert_allclose(shares, [0.8, 0.6, 0.4, 0.4, 0.4])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 1.0])
def test_the_smallest_losses_are_those_that_numpy_sorts_first(share):
    losses = torch.rand(37, generator=torch.Generator().manual_seed(0))
    rows = smallest(losses, share)
    assert rows.tolist() == np.argsort(losses.numpy())[: max(1, int(share * 37))].tolist()


def test_with_nothing_forgotten_the_first_network_is_trained_as_alone():
    data = load_dataset("digits_images")
    features, labels = data.train_features[:256], data.train_labels[:256]
    taught = co_teach(features, labels, num_classes=10, forget_rate=0.0, epochs=2, seed=3)
    alone = fit_each(features, labels, num_classes=10, epochs=2, seed=3, learning_rate=0.05).network
    for own, other in zip(taught.networks[0].parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
    first, second = (member.state_dict()["0.0.weight"] for member in taught.networks)
    assert (first - second).abs().max() > 0.01


class Fixed(nn.Module):
    """A linear network without randomness, whose start depends on how many came before it."""

    made = 0

    def __init__(self):
        super().__init__()
        start = torch.linspace(-1, 1, 6, dtype=torch.float64)
        self.weight = nn.Parameter((start if Fixed.made % 2 == 0 else start.square()).view(3, 2))
        Fixed.made += 1

    def forward(self, x):
        return x @ self.weight


def test_each_network_learns_what_the_other_picks():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 3, dtype=torch.float64, generator=generator), torch.arange(12) % 2
    Fixed.made = 0
    settings = {"batch_size": 6, "seed": 5}
    taught = co_teach(
        x, y, num_classes=2, forget_rate=0.5, network=Fixed, epochs=2, ramp_epochs=2, momentum=0.0, learning_rate=0.1,
        **settings,
    )  # fmt: skip
    weights = [np.linspace(-1, 1, 6).reshape(3, 2) ** power for power in (1, 2)]
    batches = TensorBatches(x, **settings)
    for epoch in (1, 2):
        count = int(6 * (1 - 0.5 * epoch / 2) + 1e-9)
        for _, index in batches:
            inputs, onehot = x[index].numpy(), np.eye(2)[y[index].numpy()]
            logits = [inputs @ weight for weight in weights]
            shares = [np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in logits]
            picks = [np.argsort(-np.log((p * onehot).sum(1)), kind="stable")[:count] for p in shares]
            for own, other in ((0, 1), (1, 0)):
                rows = picks[other]
                gradient = inputs[rows].T @ (shares[own] - onehot)[rows] / count
                weights[own] = weights[own] - 0.1 * gradient
    for network, weight in zip(taught.networks, weights, strict=True):
        np.testing.assert_allclose(network.weight.detach().numpy(), weight, atol=1e-12)


def test_what_is_handed_over_is_purer_than_the_labels():
    data = load_dataset("digits_images")
    labels = draw_noisy_labels(data.train_labels, symmetric_transition(10, 0.4), seeded_generator(0, "noise"))
    taught = co_teach(
        data.train_features, labels, num_classes=10, forget_rate=0.4, epochs=6, ramp_epochs=3,
        clean_labels=data.train_labels, evaluate=lambda network: {"epoch": network.epoch},
    )  # fmt: skip
    assert taught.curves["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    right = (labels == data.train_labels).double().mean()
    assert taught.curves["purity"][-1] > right + 0.25
    assert not any(network.training for network in taught.networks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forget_rate": 1.0}, "forget_rate"),
        ({"ramp_epochs": 0}, "ramp_epochs"),
        ({"labels": torch.arange(4) + 1}, "labels"),
    ],
)
def test_what_cannot_be_taught_is_refused(change, message):
    arguments = {
        "labels": torch.arange(4) % 2,
        "forget_rate": 0.1,
        "num_classes": 2,
        "network": lambda: nn.Linear(3, 2),
    }
    with pytest.raises(ValueError, match=message):
        co_teach(torch.randn(4, 3), **arguments | change)
