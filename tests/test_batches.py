import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as pil

from nls.batches import Normalisation, TensorBatches, channel_statistics
from nls.training import seeded_generator

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def make_images(n=20, channels=3, height=8, width=8, seed=0):
    shape = (n, channels, height, width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def make_batches(images, batch_size=6, **options):
    mean, std = channel_statistics(images)
    return TensorBatches(images, batch_size, **({"mean": mean, "std": std} | options))


def draws(n, seed, epochs=1):
    """The order, flips and corners of an epoch, from their definition: two streams of the seed."""
    order, changes = seeded_generator(seed, "order"), seeded_generator(seed, "augment")
    for _ in range(epochs):
        permutation = torch.randperm(n, generator=order)
        flips = torch.randint(2, (1, n), generator=changes)[0]
        corners = torch.randint(9, (2, n), generator=changes)
    return permutation, flips, corners


def by_torchvision(image, flip, top, left, mean, std):
    """One image through PIL, as the usual pipeline does it."""
    array = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    cropped = pil.crop(pil.pad(picture, 4), int(top), int(left), *image.shape[1:])
    tensor = pil.to_tensor(pil.hflip(cropped) if flip else cropped)
    return pil.normalize(tensor, mean.tolist(), std.tolist())


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 8, 8), (3, 9, 14)])
def test_each_image_is_what_torchvision_makes_of_it(channels, height, width):
    images = make_images(150, channels, height, width)
    mean, std = channel_statistics(images)
    batches = TensorBatches(images, 32, augment="crop_flip", mean=mean, std=std, seed=4)
    for epoch in (1, 2):
        order, flips, (tops, lefts) = draws(150, 4, epoch)
        assert 40 < flips.sum() < 110
        seen = []
        for x, index in batches:
            seen.append(index)
            for values, i in zip(x, index.tolist(), strict=True):
                expected = by_torchvision(images[i], flips[i], tops[i], lefts[i], mean, std)
                torch.testing.assert_close(values, expected, rtol=1e-6, atol=2e-6)
        assert torch.equal(torch.cat(seen), order)


def test_without_augmentation_images_are_normalised_only():
    images = make_images(13)
    mean, std = channel_statistics(images)
    for x, index in make_batches(images, 5, seed=2):
        expected = (images[index].double() / 255 - mean[:, None, None]) / std[:, None, None]
        torch.testing.assert_close(x.double(), expected, rtol=1e-6, atol=2e-6)


def test_crops_and_flips_are_uniform_and_independent():
    """One bright pixel in the middle says where each crop lies; a second one whether it is mirrored."""
    image = torch.zeros(1, 1, 11, 11, dtype=torch.uint8)
    image[0, 0, 5, 5], image[0, 0, 5, 6] = 255, 100
    n = 9000
    batches = TensorBatches(image.expand(n, -1, -1, -1), n, augment="crop_flip", mean=torch.zeros(1), std=torch.ones(1))
    ((x, index),) = batches
    x = x[index.argsort(), 0]
    flat = x.flatten(1).argmax(1)
    rows, columns = flat // 11, flat % 11
    flips = x[torch.arange(n), rows, columns - 1] > 0
    counts = torch.zeros(2, 9, 9).index_put_((flips.long(), rows - 1, columns - 1), torch.ones(()), accumulate=True)
    # 162 cells of 56 expected: six standard errors.
    assert float((counts - n / 162).abs().max()) < 6 * (n / 162) ** 0.5
    for first, second in ((rows[:-1], rows[1:]), (rows, columns), (columns, flips)):
        assert abs(float(torch.corrcoef(torch.stack([first.float(), second.float()]))[0, 1])) < 5 / n**0.5


def test_order_is_that_of_the_stacked_engine_with_and_without_augmentation():
    images = make_images(30)
    order = seeded_generator(7, "order")
    epochs = [torch.randperm(30, generator=order) for _ in range(2)]
    for augment in (None, "crop_flip"):
        batches = make_batches(images, 8, seed=7, augment=augment)
        for expected in epochs:
            parts = [index for _, index in batches]
            assert [len(part) for part in parts] == [8, 8, 8, 6]
            assert torch.equal(torch.cat(parts), expected)
    assert not torch.equal(torch.cat([i for _, i in make_batches(images, 8, seed=8)]), epochs[0])


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [8, 8, 4]), (True, [8, 8])])
def test_length_and_last_batch(drop_last, sizes):
    batches = make_batches(make_images(20), 8, drop_last=drop_last)
    assert [len(x) for x, _ in batches] == sizes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize("augment", [None, "crop_flip"])
def test_layout_and_type(augment):
    images = make_images()
    for options, last in (({}, True), ({"channels_last": False}, False)):
        x, _ = next(iter(make_batches(images, augment=augment, **options)))
        assert x.is_contiguous(memory_format=torch.channels_last) is last
        assert x.is_contiguous() is not last
        assert x.dtype == torch.float32
    plain, half = (
        next(iter(make_batches(images, augment=augment, dtype=dtype)))[0] for dtype in (torch.float64, torch.bfloat16)
    )
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), plain, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("last", [True, False])
def test_memory_layout_of_the_images_does_not_matter(last):
    images = make_images(channels=3, height=9, width=10)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    for augment in (None, "crop_flip"):
        ours = torch.cat([x for x, _ in make_batches(images, augment=augment)])
        theirs = torch.cat([x for x, _ in make_batches(images.contiguous(), augment=augment)])
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("augment", [None, "crop_flip"])
def test_a_state_says_all_about_the_epochs_to_come(augment):
    images = make_images()
    batches = make_batches(images, augment=augment, seed=1)
    list(batches)
    state = batches.state_dict()
    expected = [*batches, *batches]
    other = make_batches(images, augment=augment, seed=2)
    other.load_state_dict(state)
    for (x, index), (y, position) in zip([*other, *other], expected, strict=True):
        assert torch.equal(index, position)
        assert torch.equal(x, y)


def test_what_is_done_to_a_batch_does_not_reach_the_store():
    images = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    kept = images.clone()
    batches = TensorBatches(images, 6)
    for x, _ in batches:
        x.zero_()
    assert torch.equal(images, kept)
    x, index = next(iter(batches))
    assert torch.equal(x, kept[index])


def test_floats_pass_as_they_are():
    features = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for x, index in TensorBatches(features, 3):
        assert torch.equal(x, features[index])
    assert next(iter(TensorBatches(features, 3, dtype=torch.float32)))[0].dtype == torch.float32


# Statistics.


def test_statistics_agree_with_float64():
    images = make_images(50, 3, 7, 9)
    mean, std = channel_statistics(images)
    values = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(std, values.std((0, 2, 3)), rtol=1e-13)
    shuffled = channel_statistics(images.flip(0).contiguous(memory_format=torch.channels_last))
    assert torch.equal(shuffled[0], mean)
    assert torch.equal(shuffled[1], std)


def test_statistics_of_nearly_constant_and_of_constant_channels():
    images = torch.full((100, 2, 10, 10), 200, dtype=torch.uint8)
    images[3, 0, 2, 2] = 201
    mean, std = channel_statistics(images)
    share = 1e-4
    assert float(mean[0]) == pytest.approx((200 + share) / 255, rel=1e-14)
    assert float(std[0]) == pytest.approx((share * (1 - share)) ** 0.5 / 255, rel=1e-9)
    assert float(std[1]) == 1
    x, _ = next(iter(TensorBatches(images, 2, mean=mean, std=std)))
    assert float(x[:, 1].abs().max()) < 1e-6


BAD = {
    "a list": ({"images": [1]}, TypeError, "images must be a torch tensor, got list"),
    "integers": ({"images": make_images().int()}, TypeError, "images must be a uint8 tensor, got int32"),
    "three axes": ({"images": make_images()[:, 0]}, ValueError, r"images must have shape \[N, C, H, W\]"),
    "no images": ({"images": make_images()[:0]}, ValueError, "not empty"),
    "no mean": ({"mean": None}, ValueError, "mean and std must be given for uint8 images"),
    "mean of two": ({"mean": torch.zeros(2)}, ValueError, "mean must hold 3 finite values"),
    "std of zero": ({"std": torch.zeros(3)}, ValueError, "std must be above 0"),
    "std nan": ({"std": torch.full((3,), torch.nan)}, ValueError, "std must hold 3 finite values"),
    "mean of integers": ({"mean": torch.zeros(3).long()}, TypeError, "mean must be a floating-point"),
    "mean of floats": ({"images": make_images().float()}, ValueError, "mean and std are for uint8 images only"),
    "crops of floats": (
        {"images": make_images().float(), "mean": None, "std": None, "augment": "crop_flip"},
        ValueError,
        "augment is for uint8 images",
    ),
    "no batch": ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    "unknown": ({"augment": "cutout"}, ValueError, "augment must be one of None, 'crop_flip', got 'cutout'"),
    "integer type": ({"dtype": torch.int32}, ValueError, "dtype must be a floating-point type"),
    "seed": ({"seed": -1}, ValueError, "seed must be at least 0"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("device", [None, "cpu"])
def test_bad_input_is_refused(case, device):
    change, error, message = BAD[case]
    given = {"images": make_images(), "batch_size": 4, "mean": torch.zeros(3), "std": torch.ones(3)} | change
    with pytest.raises(error, match=message):
        TensorBatches(**given, device=device)


def test_bad_input_of_the_parts_is_refused():
    with pytest.raises(TypeError, match="images must be a uint8 tensor"):
        channel_statistics(make_images().float())
    with pytest.raises(ValueError, match="mean and std must be given"):
        Normalisation(make_images())


@needs_cuda
@pytest.mark.parametrize("augment", [None, "crop_flip"])
def test_a_gpu_sees_the_same_batches(augment):
    images = make_images(100)
    here, there = (make_batches(images, 32, augment=augment, device=device) for device in ("cpu", "cuda"))
    for (x, index), (y, position) in zip(here, there, strict=True):
        assert y.is_cuda
        assert position.is_cuda
        assert torch.equal(index, position.cpu())
        torch.testing.assert_close(x, y.cpu(), rtol=1e-6, atol=2e-6)
