"""Batches from tensors that stay on the device: shuffled, cropped, flipped and normalised without a data loader."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from nls import _checks
from nls.training import seeded_generator

AUGMENTATIONS = (None, "crop_flip")
PADDING = 4
_SHIFTS = 2 * PADDING + 1


def channel_statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return mean and standard deviation of each channel of images whose values 0..255 are read as 0..1.

    .. math:: \mu_c = \frac{1}{255}\,\mathrm{mean}(x_c), \qquad
        \sigma_c = \frac{1}{255}\sqrt{\mathrm{mean}(x_c^2) - \mathrm{mean}(x_c)^2}

    They come from counts of the 256 values, so they are the same on every device and in every order of the images.

    Args:
        images: uint8 [N, C, H, W], not empty; the training split, so that nothing is learned from the others.

    Returns:
        Mean and deviation, float64 [C] on the CPU. A constant channel has deviation 1: it is only centred.

    Raises:
        TypeError: If ``images`` are not uint8.
        ValueError: If their shape is wrong.

    Examples:
        >>> channel_statistics(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
        (tensor([0.5000], dtype=torch.float64), tensor([0.5000], dtype=torch.float64))
    """
    _check_images(images, "images")
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
    share = counts.double().cpu() / (images.numel() // images.shape[1])
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    # Centred before they are squared, as a small spread around a large mean would cancel.
    deviation = (share * (values - mean[:, None]).square()).sum(1).sqrt()
    constant = counts.cpu().count_nonzero(1) == 1
    return mean, deviation.masked_fill(constant, 1.0)


class TensorBatches:
    r"""Shuffled batches of uint8 images that stay on one device, as floats, with their positions.

    Each channel becomes :math:`(x / 255 - \mu_c) / \sigma_c`. With ``augment="crop_flip"`` an image is first padded by
    4 zeros on each side, cropped to its size at a place of its own among :math:`9 \times 9`, and mirrored with
    probability one half. The padding is black, not the mean colour, as it comes before the normalisation.

    Order and augmentation are drawn on the CPU from two streams of ``seed``, so a run sees the same batches on every
    device, and in the same order with and without augmentation. Iterating draws the next epoch.

    With augmentation the padded images are held twice, mirrored and not, so that a crop is one gather:
    :math:`2 N C (H + 8) (W + 8)` bytes, 480 MB for CIFAR-10.

    Args:
        images: uint8 [N, C, H, W], or floats or int64 token ids [N, ...], which are batched as they are.
        batch_size: Images in a batch, at least 1.
        augment: None or ``"crop_flip"``.
        mean: :math:`\mu`, [C], on the scale 0..1; for uint8 images only, as ``std``; see :func:`channel_statistics`.
        std: :math:`\sigma`, [C], above 0.
        seed: Draws order and augmentation.
        device: Where the images are held; the device of ``images`` if None.
        drop_last: Whether to leave out a last batch that is smaller than the others.
        channels_last: Whether batches of images lie in memory channels last, which convolutions prefer.
        dtype: Type of the batches; float32, or that of the images if they are floats.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape or a range is wrong.

    Examples:
        >>> images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 8, 8)
        >>> batches = TensorBatches(images, 2, mean=torch.zeros(1), std=torch.ones(1))
        >>> [(tuple(x.shape), (255 * x[:, 0, 0, 0]).round().int().tolist() == i.tolist()) for x, i in batches]
        [((2, 1, 8, 8), True), ((2, 1, 8, 8), True), ((1, 1, 8, 8), True)]
    """

    def __init__(
        self,
        images: torch.Tensor,
        batch_size: int,
        *,
        augment: str | None = None,
        mean: torch.Tensor | None = None,
        std: torch.Tensor | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        drop_last: bool = False,
        channels_last: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.device = torch.device(device) if device is not None else _checks.tensor(images, "images").device
        self.augment = _checks.choice(augment, "augment", AUGMENTATIONS)
        self.batch_size = _checks.integer(batch_size, "batch_size", low=1)
        self.drop_last, self.channels_last = drop_last, channels_last
        self._order, self._changes = seeded_generator(seed, "order"), seeded_generator(seed, "augment")
        self._normalise = Normalisation(images, mean, std, device=self.device, channels_last=channels_last, dtype=dtype)
        if augment and images.dtype != torch.uint8:
            raise ValueError(f"augment is for uint8 images, got {_checks.describe(images)}")
        self._shape = images.shape
        images = images.detach().to(self.device)
        stored = images.permute(0, 2, 3, 1) if images.dtype == torch.uint8 else images
        self._stored = _pad_and_mirror(stored) if augment else stored.contiguous()

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        size, n = self.batch_size, self._shape[0]
        return n // size if self.drop_last else -(-n // size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of the next epoch, each with the positions of its images."""
        order = torch.randperm(self._shape[0], generator=self._order)
        changes = self._draw_changes() if self.augment else None
        # The draws of a whole epoch move to the device at once, so that no step waits for the processor.
        batches = order.to(self.device).split(self.batch_size)
        for index in itertools.islice(batches, len(self)):
            # index_select copies whole rows, several times faster than indexing with brackets.
            picked = self._stored.index_select(0, index) if changes is None else self._crop(index, *changes[:, index])
            yield self._normalise(picked), index

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the states of both streams; between epochs they say all about what comes."""
        return {"order": self._order.get_state(), "augment": self._changes.get_state()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a state that :meth:`state_dict` returned."""
        self._order.set_state(state["order"].cpu())
        self._changes.set_state(state["augment"].cpu())

    def _draw_changes(self) -> torch.Tensor:
        """Return for each image, by its position, whether to mirror and which row and column to crop at: [3, N]."""
        n = self._shape[0]
        flips = torch.randint(2, (1, n), generator=self._changes)
        corners = torch.randint(_SHIFTS, (2, n), generator=self._changes)
        return torch.cat([flips, corners]).to(self.device)

    def _crop(self, index: torch.Tensor, flip: torch.Tensor, top: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """Return crops [n, H, W, C]; mirroring comes after cropping, as in torchvision."""
        n, channels, height, width = self._shape
        rows, columns = height + 2 * PADDING, width + 2 * PADDING
        # A crop that is mirrored afterwards lies as far from the right edge of the mirrored image.
        left = torch.where(flip.bool(), _SHIFTS - 1 - left, left)
        first = ((flip * n + index) * rows + top) * columns + left
        starts = first[:, None] + columns * torch.arange(height, device=self.device)
        # A view of every stretch of W pixels that starts at any pixel: the stretches overlap, and nothing is copied.
        stretches = self._stored.as_strided((2 * n * rows * columns - width + 1, width * channels), (channels, 1))
        return stretches.index_select(0, starts.flatten()).view(len(index), height, width, channels)


class Normalisation:
    r"""Turns stored batches into what a network reads: :math:`(x / 255 - \mu_c) / \sigma_c` for uint8 images.

    Args:
        images: What the batches are taken from: uint8 [N, C, H, W], or floats or int64 token ids [N, ...].
        mean: :math:`\mu`, [C], and
        std: :math:`\sigma`, [C], above 0; both None for floats and token ids, which pass as they are.
        device: Where the batches are.
        channels_last: Whether images lie in memory channels last afterwards.
        dtype: Type of the result; None for float32, or the type of float images.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape or a range is wrong.

    Examples:
        >>> images = torch.full((1, 1, 1, 1), 51, dtype=torch.uint8)
        >>> Normalisation(images, torch.tensor([0.1]), torch.tensor([0.5]))(images.permute(0, 2, 3, 1)).flatten()
        tensor([0.2000])
    """

    def __init__(
        self,
        images: torch.Tensor,
        mean: torch.Tensor | None = None,
        std: torch.Tensor | None = None,
        *,
        device: torch.device | str | None = None,
        channels_last: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.channels_last, self._scale, self._shift = channels_last, None, None
        tokens = _checks.tensor(images, "images").dtype == torch.int64
        as_they_are = tokens or images.is_floating_point()
        self.dtype = dtype or (images.dtype if as_they_are else torch.float32)
        if tokens and dtype not in (None, torch.int64):
            raise ValueError(f"dtype must be left to int64 for token ids, got {dtype}")
        if not (tokens or self.dtype.is_floating_point):
            raise ValueError(f"dtype must be a floating-point type, got {self.dtype}")
        if as_they_are:
            if mean is not None or std is not None:
                raise ValueError(f"mean and std are for uint8 images only, got them with {_checks.describe(images)}")
            return
        _check_images(images, "images")
        if mean is None or std is None:
            raise ValueError("mean and std must be given for uint8 images; channel_statistics computes them")
        channels, pixels = images.shape[1], images.shape[2] * images.shape[3]
        mean, std = _per_channel(mean, "mean", channels), _per_channel(std, "std", channels)
        if not bool((std > 0).all()):
            raise ValueError(f"std must be above 0, got {std.tolist()}")
        # One scale and one shift for each value of an image, channels last: a single contiguous pass.
        self._scale = (1 / (255 * std)).to(self.dtype).repeat(pixels).to(device)
        self._shift = (-mean / std).to(self.dtype).repeat(pixels).to(device)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Return a batch of uint8 images [n, H, W, C] as floats [n, C, H, W], and one of floats as it is."""
        if self._scale is None:
            return batch.to(self.dtype)
        values = batch.flatten(1).to(self.dtype)
        torch.addcmul(self._shift, values, self._scale, out=values)
        images = values.view(batch.shape).permute(0, 3, 1, 2)
        return images if self.channels_last else images.contiguous()


def _pad_and_mirror(images: torch.Tensor) -> torch.Tensor:
    """Return images [N, H, W, C] padded with zeros, as they are and mirrored: [2, N, H + 8, W + 8, C]."""
    n, height, width, channels = images.shape
    stored = images.new_zeros(2, n, height + 2 * PADDING, width + 2 * PADDING, channels)
    inner = stored[:, :, PADDING:-PADDING, PADDING:-PADDING]
    inner[0] = images
    inner[1] = images.flip(2)
    return stored


def _check_images(images: object, name: str) -> torch.Tensor:
    """Return ``images`` if they are uint8 [N, C, H, W] and not empty."""
    if _checks.tensor(images, name).dtype != torch.uint8:
        raise TypeError(f"{name} must be a uint8 tensor, got {_checks.describe(images)}")
    if images.ndim != 4 or not images.numel():
        raise ValueError(f"{name} must have shape [N, C, H, W], not empty, got {tuple(images.shape)}")
    return images


def _per_channel(values: object, name: str, channels: int) -> torch.Tensor:
    """Return ``values`` as float64 [C] on the CPU if they are finite."""
    values = _checks.floating(values, name).detach().double().cpu()
    if values.shape != (channels,) or not bool(values.isfinite().all()):
        raise ValueError(f"{name} must hold {channels} finite values, one per channel, got {values.tolist()}")
    return values
