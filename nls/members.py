r"""Small networks of one kind trained side by side: of sets, of the patches of images, or of numbers in a row.

Each member has an initialisation and labels of its own, and reads the examples of one of a few seeds. It is the
counterpart of :mod:`nls.stack` for networks other than perceptrons, with gradients by autograd.

References:
    Zaheer et al., 2017, Deep Sets, arXiv:1703.06114.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from nls import _checks
from nls.models import seeded_state
from nls.training import seeded_generator


def patches(images: torch.Tensor) -> torch.Tensor:
    """Return the 3 x 3 surroundings of every pixel, around the edges of the image.

    Args:
        images: [..., C, H, W].

    Returns:
        [..., H W, 9 C]. Shifted images, around the edges, have the same patches in another order.

    Examples:
        >>> patches(torch.ones(5, 2, 8, 8)).shape
        torch.Size([5, 64, 18])
    """
    lead, (channels, height, width) = images.shape[:-3], images.shape[-3:]
    padded = functional.pad(images.reshape(-1, channels, height, width), (1, 1, 1, 1), mode="circular")
    return functional.unfold(padded, 3).mT.reshape(*lead, height * width, 9 * channels)


class Members(nn.Module):
    r"""B networks of one kind, each with an initialisation of its own.

    With :math:`\phi(a) = V \max(0, W a + b)` the representations of a set are :math:`\max(0, \max_i \phi(x_i) + c)`
    for ``"max set"`` and :math:`\max(0, \frac1m\sum_i \phi(x_i) + c)` for ``"sum set"``. ``"patches"`` is a sum set of
    the patches of an image, that is, a convolution of 3 x 3, the mean over places and a hidden layer. ``"MLP"`` has two
    hidden layers on all numbers in a row. A linear layer follows.

    Args:
        kind: ``"max set"``, ``"sum set"``, ``"patches"`` or ``"MLP"``.
        count: B, at least 1.
        shape: Of one input: (m, 2), or (2, 8, 8).
        outputs: K; 1 for real numbers.
        seed: Draws the initialisation.

    Raises:
        ValueError: If the kind is unknown.

    Examples:
        >>> Members("max set", 3, (6, 2), 1)(torch.zeros(3, 5, 6, 2)).shape
        torch.Size([3, 5, 1])
    """

    def __init__(self, kind: str, count: int, shape: Sequence[int], outputs: int, seed: int = 0) -> None:
        super().__init__()
        self.kind = _checks.choice(kind, "kind", ("max set", "sum set", "MLP", "patches"))
        width = 32 if kind == "MLP" else 16
        first = {"MLP": math.prod(shape), "patches": 9 * shape[0]}.get(kind, shape[-1])
        sizes = [first, width, width, outputs] if kind == "MLP" else [first, width, width, width, outputs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        with seeded_state(seed, "init"):
            for fan, out in itertools.pairwise(sizes):
                bound = 1 / math.sqrt(fan)  # as torch's linear layers
                self.weights.append(torch.empty(count, fan, out).uniform_(-bound, bound))
                self.biases.append(torch.empty(count, 1, out).uniform_(-bound, bound))

    def _layer(self, i: int, values: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.biases[i], values, self.weights[i])

    def read(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs [..., n, ...] as the members read them, which is what need be done only once."""
        return patches(inputs) if self.kind == "patches" else inputs

    def represent(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what the last layer reads [B, n, width], of what S seeds ``read`` [S, n, ...], S a divisor of B."""
        count, (seeds, n) = len(self.weights[0]), inputs.shape[:2]
        if self.kind in ("MLP", "max set"):
            inputs = inputs.expand(count // seeds, *inputs.shape).flatten(0, 1)
            if self.kind == "MLP":
                return self._layer(1, self._layer(0, inputs.flatten(2)).relu()).relu()
            entries = self._layer(1, self._layer(0, inputs.flatten(1, 2)).relu())
            return self._layer(2, entries.view(count, n, inputs.shape[2], -1).amax(2)).relu()
        # One product for all members of a seed; the second layer is linear, so the mean over entries can come first.
        weight, bias = (
            values.unflatten(0, (-1, seeds)).permute(1, 2, 0, 3).flatten(2)
            for values in (self.weights[0], self.biases[0])
        )
        entries = torch.baddbmm(bias, inputs.flatten(1, 2), weight).relu()
        means = entries.view(seeds, n, inputs.shape[2], -1).mean(2).unflatten(2, (count // seeds, -1))
        return self._layer(2, self._layer(1, means.permute(2, 0, 1, 3).flatten(0, 1))).relu()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return outputs [B, n, K] of what was read."""
        return self._layer(len(self.weights) - 1, self.represent(inputs))


def fit_members(
    network: Members,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    steps: int = 300,
    batch_size: int = 32,
    learning_rate: float = 0.01,
    seed: int = 0,
) -> None:
    """Train the members in place by Adam with a cosine, on squared error, or cross entropy for classes.

    Args:
        network: B members.
        inputs: What they read, [S, n, ...]; member b reads that of seed b modulo S.
        labels: [B, n], float32, or int64 for classes.
        steps: At least 1.
        batch_size: Examples of a step, drawn with replacement, the same places for all members.
        learning_rate: The first step size.
        seed: Draws the batches.

    Examples:
        >>> sets = torch.rand(1, 64, 6, 2, generator=torch.Generator().manual_seed(0))
        >>> network, labels = Members("sum set", 1, (6, 2), 1), sets[..., 0].sum(2) - 3
        >>> fit_members(network, sets, labels, steps=200)
        >>> bool(relative_error(network(sets), labels) < 0.1)
        True
    """
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = seeded_generator(seed, "batches")
    for _ in range(steps):
        places = torch.randint(inputs.shape[1], (batch_size,), generator=generator)
        outputs, wanted = network(inputs[:, places]), labels[:, places]
        if wanted.is_floating_point():
            losses = (outputs.squeeze(2) - wanted).square()
        else:
            losses = functional.cross_entropy(outputs.flatten(0, 1), wanted.flatten(), reduction="none")
        optimizer.zero_grad()
        (losses.sum() / batch_size).backward()  # members share no parameter, so each has the gradient of its own mean
        optimizer.step()
        schedule.step()


def relative_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    r"""Return the error as a share of that of the best constant.

    :math:`\sum_j (\hat y_j - y_j)^2 / \sum_j (\bar y - y_j)^2`; of classes, the share of wrong ones over the
    share of examples outside of the most frequent class.

    Args:
        outputs: [..., m, K].
        targets: [..., m]; classes as int64.

    Returns:
        [...]: 0 is perfect, and 1 is what a constant reaches.

    Examples:
        >>> float(relative_error(torch.tensor([[0.0], [0.0]]), torch.tensor([-1.0, 1.0])))
        1.0
    """
    if targets.is_floating_point():
        squared = (outputs.squeeze(-1) - targets).square().mean(-1)
        return squared / targets.var(-1, correction=0)
    shares = functional.one_hot(targets, outputs.shape[-1]).double().mean(-2)
    return (outputs.argmax(-1) != targets).double().mean(-1) / (1 - shares.amax(-1))
