import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from nls.batches import channel_statistics
from nls.models import NETWORKS, build_network, predict_logits, seeded_state


def conv_sizes(network):
    return [tuple(m.weight.shape) for m in network.modules() if isinstance(m, nn.Conv2d)]


def count_products(network, side):
    """Multiplications and additions of a forward pass, from the shapes that pass by."""
    total = 0

    def add(module, _, output):
        nonlocal total
        places = output[0, 0].numel() if output.ndim == 4 else 1
        total += module.weight.numel() * places

    hooks = [m.register_forward_hook(add) for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    network.eval()(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return total


# Parameters, added up by hand: weights of the convolutions, two per channel for the normalisation, the last layer.

CNN = (3 * 32 + 32 * 64 + 64 * 128) * 9 + 2 * (32 + 64 + 128) + 128 * 10 + 10
RESNET9 = (
    (3 * 64 + 64 * 128 + 2 * 128 * 128 + 128 * 256 + 256 * 512 + 2 * 512 * 512) * 9
    + 2 * (64 + 3 * 128 + 256 + 3 * 512)
    + 512 * 10
    + 10
)


def stage(before, width, blocks):
    """Two convolutions in each block; the first block of all stages but one also has a 1x1 shortcut."""
    shortcut = before * width + 2 * width if before != width else 0
    return (before * width + (2 * blocks - 1) * width**2) * 9 + 4 * width * blocks + shortcut


RESNET34 = 3 * 64 * 9 + 128 + stage(64, 64, 3) + stage(64, 128, 4) + stage(128, 256, 6) + stage(256, 512, 3) + 5130


@pytest.mark.parametrize(
    ("name", "count", "stated"),
    [("cnn", CNN, 94_762), ("resnet9", RESNET9, 6_573_130), ("resnet34", RESNET34, 21_282_122)],
)
def test_parameters_are_as_many_as_by_hand(name, count, stated):
    network = build_network(name, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == count == stated


@pytest.mark.parametrize(("name", "products"), [("resnet9", 0.379e9), ("resnet34", 1.159e9)])
def test_the_work_of_a_forward_pass_is_that_of_the_form_for_small_images(name, products):
    """A stem of stride 2, or pooling after it, would leave a fraction of it."""
    assert count_products(build_network(name, 10), 32) == pytest.approx(products, rel=2e-3)


def test_resnet34_has_the_layers_of_the_paper():
    sizes = conv_sizes(build_network("resnet34", 10))
    assert sizes[0] == (64, 3, 3, 3)
    assert sum(size[2] == 3 for size in sizes) == 33
    assert [size[0] for size in sizes if size[2] == 1] == [128, 256, 512]


def test_resnet34_without_torchvision_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models.resnet", None)
    with pytest.raises(ValueError, match=r"ResNet-34 needs torchvision: pip install 'nls\[images\]'"):
        build_network("resnet34", 10)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (2, 17)])
def test_sizes_and_channels(name, channels, side):
    images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    logits = build_network(name, 4, channels).eval()(images)
    assert logits.shape == (2, 4)
    assert logits.isfinite().all()


def naive_block(state, prefix, x, pool):
    """Convolution, pooling, normalisation by running statistics, ReLU, each from its definition."""
    x = F.conv2d(x, state[f"{prefix}.0.weight"], padding=1)
    n, c, h, w = x.shape
    if pool:
        x = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2).amax((3, 5))
    norm = f"{prefix}.{2 if pool else 1}"
    mean, var, weight, bias = (
        state[f"{norm}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp_min(0)


def shaken(name):
    """A network whose statistics are not those of the start."""
    network = build_network(name, 5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                values.copy_(torch.rand(len(values), generator=torch.Generator().manual_seed(len(values))) + 0.5)
    return network.eval().double()


def test_cnn_is_what_it_says():
    network = shaken("cnn")
    state = network.state_dict()
    images = x = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for i in range(3):
        x = naive_block(state, str(i), x, pool=i < 2)
    expected = x.mean((2, 3)) @ state["4.weight"].T + state["4.bias"]
    for layout in (torch.contiguous_format, torch.channels_last):
        logits = network.to(memory_format=layout)(images.contiguous(memory_format=layout))
        torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_resnet9_is_what_it_says():
    network = shaken("resnet9")
    state = network.state_dict()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = naive_block(state, "1", naive_block(state, "0", images, False), True)
    x = x + naive_block(state, "2.1", naive_block(state, "2.0", x, False), False)
    x = naive_block(state, "4", naive_block(state, "3", x, True), True)
    x = x + naive_block(state, "5.1", naive_block(state, "5.0", x, False), False)
    expected = (x.amax((2, 3)) @ state["8.weight"].T + state["8.bias"]) / 8
    torch.testing.assert_close(network(images), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["cnn", "resnet34"])
def test_the_start_depends_on_the_seed_alone(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_network(name, 10, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = (build_network(name, 10, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    weights = [key for key in first if first[key].ndim == 4]
    assert not any(torch.equal(first[key], other[key]) for key in weights)


def test_a_new_stem_starts_like_the_others():
    """Normal weights of variance 2 / fan-out, as torchvision starts the rest of the network."""
    network = build_network("resnet34", 10)
    for weight in (network.conv1.weight, network.layer1[0].conv1.weight):
        assert float(weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.06)


def test_seeded_state_separates_purposes_and_restores_after_an_error():
    before = torch.get_rng_state()
    draws = []
    for purpose in ("a", "b", "a"):
        with seeded_state(0, purpose):
            draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
    with pytest.raises(ValueError, match="seed"), seeded_state(0, "a"):
        build_network("cnn", 10, seed=-1)
    assert torch.equal(torch.get_rng_state(), before)


def test_import_leaves_torchvision_out():
    code = (
        "import sys, types; package = sys.modules['nls'] = types.ModuleType('nls'); package.__path__ = ['nls']; "
        "import nls.models, nls.each, nls.images; "
        "sys.exit(', '.join({'torchvision', 'sklearn'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("vgg", 10), ValueError, "name must be one of 'cnn', 'resnet9', 'resnet34', got 'vgg'"),
        (("cnn", 1), ValueError, "num_classes must be at least 2, got 1"),
        (("cnn", 10, 0), ValueError, "in_channels must be at least 1"),
        (("cnn", 10, 3, -1), ValueError, "seed must be at least 0"),
        (("cnn", "10"), TypeError, "num_classes must be an integer"),
    ],
)
def test_bad_networks_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        build_network(*arguments)


# Logits.


def images_and_network():
    images = torch.randint(256, (11, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, build_network("cnn", 3, 2)


def test_logits_are_those_of_normalised_images_in_evaluation_mode():
    images, network = images_and_network()
    mean, std = channel_statistics(images)
    network.train()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    logits = predict_logits(network, images, mean=mean, std=std, batch_size=4)
    assert network.training
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert not logits.requires_grad
    inputs = (images.double() / 255 - mean[:, None, None]) / std[:, None, None]
    network = network.double().eval()
    torch.testing.assert_close(logits.double(), network(inputs).detach(), rtol=1e-4, atol=1e-5)
    whole = predict_logits(network, inputs)
    assert whole.dtype == torch.float64
    torch.testing.assert_close(whole, network(inputs).detach())


def test_a_network_that_carries_its_statistics_needs_no_others():
    images, network = images_and_network()
    mean, std = channel_statistics(images)
    network.register_buffer("pixel_mean", mean, persistent=False)
    network.register_buffer("pixel_std", std, persistent=False)
    given = predict_logits(network, images, mean=mean, std=std)
    assert torch.equal(predict_logits(network, images), given)
    assert not torch.equal(predict_logits(network, images, mean=mean + 1), given)


def test_lower_precision_comes_back_as_float32():
    images, network = images_and_network()
    mean, std = channel_statistics(images)
    exact, rounded = (
        predict_logits(network, images, mean=mean, std=std, precision=precision) for precision in ("auto", "bfloat16")
    )
    assert rounded.dtype == torch.float32
    assert 0 < float((exact - rounded).abs().max()) < 0.05


def test_the_mode_is_put_back_after_an_error():
    network = build_network("cnn", 3).train()
    with pytest.raises(RuntimeError):
        predict_logits(network, torch.zeros(2, 5, 8, 8))
    assert network.training


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"network": len}, TypeError, "network must be a torch module"),
        ({"features": [1]}, TypeError, "features must be a torch tensor"),
        ({"features": torch.zeros(0, 2, 8, 8)}, ValueError, "features must not be empty"),
        ({"features": torch.zeros(0, 2, 8, 8, dtype=torch.uint8)}, ValueError, "not empty"),
        ({}, ValueError, "mean and std must be given for uint8 images"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"precision": "int8", "features": torch.zeros(1, 2, 8, 8)}, ValueError, "precision must be one of"),
    ],
)
def test_bad_input_of_predict_logits(change, error, message):
    images, network = images_and_network()
    arguments = {"network": network, "features": images} | change
    with pytest.raises(error, match=message):
        predict_logits(**arguments)
