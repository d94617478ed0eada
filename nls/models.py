"""The networks the book trains one by one, from a small one for a CPU to the ResNet-34 of the paper; their logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from nls import _checks
from nls.batches import Normalisation
from nls.training import seeded_generator

NETWORKS = ("cnn", "resnet9", "resnet34")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def build_network(name: str, num_classes: int, in_channels: int = 3, seed: int = 0) -> nn.Module:
    """Return a network whose initial parameters depend on ``seed`` alone; the global random state is left as it was.

    Args:
        name: One of ``NETWORKS``.
        num_classes: K, at least 2.
        in_channels: Channels of the images, at least 1.
        seed: Draws the initialisation, at least 0.

    Returns:
        A network in float32 on the CPU that maps images [N, C, H, W] to logits [N, K].

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the name is unknown or a number is out of range.

    Examples:
        >>> network = build_network("cnn", num_classes=10, in_channels=1)
        >>> network(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    _checks.choice(name, "name", NETWORKS)
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    in_channels = _checks.integer(in_channels, "in_channels", low=1)
    build = {"cnn": small_cnn, "resnet9": resnet9, "resnet34": resnet34}[name]
    with seeded_state(seed, "init"):
        return build(num_classes, in_channels)


@contextmanager
def seeded_state(seed: int, purpose: str, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generators inside a block, and leave them as they were.

    Args:
        seed: Any integer of at least 0.
        purpose: What the draws are for; two purposes never share draws.
        device: Its generator is seeded too if it is an accelerator.

    Yields:
        Nothing.

    Examples:
        >>> with seeded_state(0, "dropout"):
        ...     first = torch.rand(2)
        >>> with seeded_state(0, "dropout"):
        ...     print(bool((torch.rand(2) == first).all()))
        True
    """
    start = seeded_generator(seed, purpose).initial_seed()
    on_cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        # torch.manual_seed would also reseed every accelerator, also those that are not put back afterwards.
        torch.default_generator.manual_seed(start)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(start)
        yield


def small_cnn(num_classes: int, in_channels: int = 3) -> nn.Sequential:
    """Return three convolutions, 32, 64 and 128 wide, each with batch normalisation: about 95,000 parameters.

    Pooling comes before the normalisation, which then touches a quarter of the values.

    Args:
        num_classes: K.
        in_channels: Channels of the images, whose sides are at least 4.

    Returns:
        The network, initialised from torch's global generator; :func:`build_network` seeds it.

    Examples:
        >>> sum(p.numel() for p in small_cnn(10).parameters())
        94762
    """
    widths = (in_channels, 32, 64, 128)
    blocks = [_conv(*widths[i : i + 2], pool=i < 2) for i in range(3)]
    return nn.Sequential(*blocks, _Mean(), nn.Linear(widths[-1], num_classes))


def resnet9(num_classes: int, in_channels: int = 3) -> nn.Sequential:
    """Return the nine-layer residual network known from the DAWNBench race, 64 wide at its first layer.

    Its logits are scaled by 1/8, as there: the largest of all places is otherwise too large a start.

    Args:
        num_classes: K.
        in_channels: Channels of the images, whose sides are at least 8.

    Returns:
        The network, initialised from torch's global generator; :func:`build_network` seeds it.

    Examples:
        >>> sum(p.numel() for p in resnet9(10).parameters())
        6573130

    References:
        Page, 2018, "How to Train Your ResNet".
        Coleman et al., 2017, "DAWNBench: An End-to-End Deep Learning Benchmark and Competition".
    """
    return nn.Sequential(
        _conv(in_channels, 64),
        _conv(64, 128, pool=True),
        _Residual(_conv(128, 128), _conv(128, 128)),
        _conv(128, 256, pool=True),
        _conv(256, 512, pool=True),
        _Residual(_conv(512, 512), _conv(512, 512)),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(512, num_classes),
        _Scale(1 / 8),
    )


def resnet34(num_classes: int, in_channels: int = 3) -> nn.Module:
    """Return ResNet-34 in its form for small images: a 3x3 stem of stride 1 and no pooling after it.

    Args:
        num_classes: K.
        in_channels: Channels of the images, whose sides are at least 1.

    Returns:
        The network of torchvision with another stem, initialised from torch's global generator;
        :func:`build_network` seeds it.

    Raises:
        ValueError: If torchvision is not installed; the message names the extra.

    References:
        He et al., 2016, arXiv:1512.03385.
    """
    try:
        from torchvision.models.resnet import BasicBlock, ResNet
    except ImportError as error:
        raise ValueError("ResNet-34 needs torchvision: pip install 'nls[images]'") from error

    network = ResNet(BasicBlock, [3, 4, 6, 3], num_classes=num_classes)
    network.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    network.maxpool = nn.Identity()
    return network


def embedding_classifier(num_classes: int, vocabulary: int, width: int = 64) -> nn.Module:
    r"""Return a linear model on the mean of the embeddings of a text's words.

    .. math:: z = W \cdot \frac{1}{n} \sum_{i : w_i \ne 0} E_{w_i} + b

    Args:
        num_classes: K.
        vocabulary: V; token ids are 0, ..., V - 1, and 0 is padding, which does not count.
        width: Length of an embedding.

    Returns:
        A network that maps token ids [N, L] to logits [N, K], initialised from torch's global generator.

    Examples:
        >>> network = embedding_classifier(2, vocabulary=5)
        >>> with torch.no_grad():
        ...     logits = network(torch.tensor([[3, 4, 0], [4, 3, 4], [3, 4, 0]]))
        >>> bool((logits[0] == logits[2]).all()), bool((logits[0] == logits[1]).all())
        (True, False)

    References:
        Joulin et al., 2017, "Bag of Tricks for Efficient Text Classification", arXiv:1607.01759.
    """
    return nn.Sequential(nn.EmbeddingBag(vocabulary, width, mode="mean", padding_idx=0), nn.Linear(width, num_classes))


def predict_logits(
    network: nn.Module,
    features: torch.Tensor,
    *,
    batch_size: int = 1024,
    mean: torch.Tensor | None = None,
    std: torch.Tensor | None = None,
    device: torch.device | str | None = None,
    precision: str = "auto",
) -> torch.Tensor:
    """Return the logits of a network in evaluation mode, without gradients; its mode is left as it was.

    Args:
        network: Maps batches to logits [N, K].
        features: uint8 images [n, C, H, W], or floats or token ids [n, ...], used as they are; n at least 1.
        batch_size: Examples at a time, at least 1.
        mean: Mean of each channel of uint8 images on the scale 0..1, [C]; by default what :func:`nls.fit_each`
            trained the network with.
        std: Their deviation, likewise.
        device: Where the network is; by default found out from its parameters.
        precision: As for :func:`nls.fit_each`.

    Returns:
        Logits [n, K] on the device, float32, or float64 for a network of this type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape or a range is wrong, or uint8 images come without mean and deviation.

    Examples:
        >>> network = build_network("cnn", num_classes=3, in_channels=1)
        >>> images = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
        >>> predict_logits(network, images, mean=torch.zeros(1), std=torch.ones(1), batch_size=2).shape
        torch.Size([5, 3])
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch module, got {_checks.describe(network)}")
    size = _checks.integer(batch_size, "batch_size", low=1)
    if device is None:
        device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    device = torch.device(device)
    if _checks.tensor(features, "features").dtype == torch.uint8:
        mean = getattr(network, "pixel_mean", None) if mean is None else mean
        std = getattr(network, "pixel_std", None) if std is None else std
    elif not len(features):
        raise ValueError(f"features must not be empty, got shape {tuple(features.shape)}")
    normalise = Normalisation(features, mean, std, device=device)
    features = features.permute(0, 2, 3, 1) if features.dtype == torch.uint8 else features
    products = autocast(device, resolve_precision(precision, device))
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), products:
            return torch.cat([at_least_float32(network(normalise(part.to(device)))) for part in features.split(size)])
    finally:
        network.train(training)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of matrix products on a device: bfloat16 or float16 on a GPU if it is left open."""
    if _checks.choice(precision, "precision", PRECISIONS) != "auto":
        return getattr(torch, precision)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Return a block in which matrix products have this type."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Return float16 and bfloat16 values as float32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class _Residual(nn.Sequential):
    """Adds its input to its output."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + super().forward(images)


class _Mean(nn.Module):
    """Averages over the places of an image: [N, C, H, W] to [N, C]."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # The two are equal, but each hands back its gradient in one layout, and the other layout pays several times.
        if images.is_contiguous(memory_format=torch.channels_last):
            return images.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
        return images.mean((2, 3))


class _Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.factor * values


def _conv(in_channels: int, out_channels: int, *, pool: bool = False) -> nn.Sequential:
    """Return a 3x3 convolution with batch normalisation, halving the sides first if it pools."""
    halve = [nn.MaxPool2d(2)] if pool else []
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, *halve, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
