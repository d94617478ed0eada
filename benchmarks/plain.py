"""The algorithms of the code released with Wei et al. 2022 (arXiv 2106.04149), written plainly as the other side.

Each does step by step what its original does, and no more: no line is copied, and what the original does beside the
measured work (printing, writing files, reading archives) is left out, in its favour.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

Layers = list[tuple[torch.Tensor, torch.Tensor]]

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def plain_loss(logits: torch.Tensor, labels: torch.Tensor, smooth_rate: float) -> torch.Tensor:
    """Return the mean loss as the released training step forms it.

    Mirrors: log-softmax of all logits, the label's entry gathered, the mean over the classes, both weighted; then the
    losses per example are copied to NumPy, only to count them.
    """
    log_model = functional.log_softmax(logits, dim=-1)
    of_label = -log_model.gather(-1, labels[:, None])[:, 0]
    of_all = -log_model.mean(-1)
    losses = (1 - smooth_rate) * of_label + smooth_rate * of_all
    count = len(losses.data.cpu().numpy())
    return losses.sum() / count


def plain_noise(labels: np.ndarray, transition: np.ndarray, seed: int) -> np.ndarray:
    """Return noisy labels, drawn one by one.

    Mirrors: a Python loop over the labels; for each, one multinomial draw from its row of the matrix, and the position
    of the one in it.
    """
    random = np.random.RandomState(seed)
    noisy = labels.copy()
    for index, label in enumerate(labels):
        noisy[index] = np.argmax(random.multinomial(1, transition[label]))
    return noisy


def plain_instance_noise(
    features: np.ndarray, labels: np.ndarray, noise_rate: float, num_classes: int, seed: int, *, per_class: bool = False
) -> np.ndarray:
    """Return labels whose noise depends on the features, drawn one by one.

    Mirrors: a flip rate per example, normal around the noise rate and cut to (0, 1); for each example in a Python loop
    a product with a random matrix, the label's entry masked, a softmax scaled to the flip rate, and one draw.

    Args:
        features: [n, d].
        labels: [n].
        noise_rate: Mean of the flip rates before the cut.
        num_classes: K.
        seed: Of everything drawn.
        per_class: Whether each class has its own matrix (Xia et al. 2020, arXiv 2006.07836) or all share one.
    """
    random = np.random.RandomState(seed)
    drawn = random.normal(noise_rate, 0.1, 2 * len(labels) + 100)
    rates = drawn[(drawn > 0) & (drawn < 1)]
    matrices = random.normal(size=(num_classes if per_class else 1, features.shape[1], num_classes))
    matrices = matrices.astype(features.dtype)
    noisy = labels.copy()
    for index, (example, label) in enumerate(zip(features, labels, strict=True)):
        scores = example @ matrices[label if per_class else 0]
        scores[label] = -1e6
        row = rates[index] * functional.softmax(torch.tensor(scores), dim=0).double().numpy()
        row[label] = 1 - rates[index]
        noisy[index] = random.choice(num_classes, p=row / row.sum())
    return noisy


class _Images(Dataset):
    """Images that become PIL images, and then tensors, one at a time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def plain_loader(
    images: torch.Tensor, labels: torch.Tensor, *, batch_size: int = 128, workers: int = 0
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Return the loader of uint8 images [n, 3, 32, 32].

    Mirrors: each image through PIL, a random crop of 32 after padding by 4, a random flip, the conversion to float,
    the normalisation, and a collation to batches of 128.
    """
    from torchvision import transforms  # heavy, and only this needs it

    steps = [transforms.RandomCrop(images.shape[-1], padding=4), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(CIFAR_MEAN, CIFAR_STD)]
    data = _Images(images.permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy(), transforms.Compose(steps))
    return DataLoader(data, batch_size, shuffle=True, num_workers=workers)


def plain_mlp(sizes: tuple[int, ...], start: Layers | None = None) -> nn.Sequential:
    """Return a multilayer perceptron as a list of modules, from torch's initialisation or from ``start``.

    Args:
        sizes: Widths, from the features to the classes.
        start: Pairs of weight [in, out] and bias [out].
    """
    linears = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
    for linear, (weight, bias) in zip(linears, start or [], strict=start is not None):
        linear.weight, linear.bias = nn.Parameter(weight.T.clone()), nn.Parameter(bias.clone())
    layers = [part for linear in linears for part in (linear, nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def train_model(
    model: nn.Module,
    batches: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]],
    smooth_rate: float,
    *,
    epochs: int,
    learning_rate: float,
    momentum: float = 0.9,
    max_norm: float | None = None,
    evaluate: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Train one model, the only one of its cell.

    Mirrors: one module per cell, SGD with momentum, autograd, a loss that is copied to NumPy at every step.

    Args:
        model: Trained in place.
        batches: Called once per epoch.
        smooth_rate: r.
        epochs: Passes over the data.
        learning_rate: Step size.
        momentum: Of SGD.
        max_norm: Bound of the gradient's norm; None for no bound.
        evaluate: Called after each epoch, without gradients.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
    for _ in range(epochs):
        model.train()
        for inputs, labels in batches():
            optimizer.zero_grad()
            plain_loss(model(inputs), labels, smooth_rate).backward()
            if max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
        if evaluate is not None:
            model.eval()
            with torch.no_grad():
                evaluate(model)
    return model


def shuffled(
    features: torch.Tensor, labels: torch.Tensor, batch_size: int, generator: torch.Generator
) -> Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]:
    """Return batches of resident tensors in a new order each epoch.

    They replace the released loader, in its favour, where a row measures training alone.
    """

    def batches() -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        for rows in torch.randperm(len(features), generator=generator).split(batch_size):
            yield features[rows], labels[rows]

    return batches
