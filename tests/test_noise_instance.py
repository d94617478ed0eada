"""The oracle is the recipe of Xia et al., one example at a time in float64."""

import itertools
import math

import pytest
import torch
from scipy import stats

from nls import noise
from nls.noise import draw_instance_noise, instance_transition

NUM_CLASSES = 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(num_examples, width=7, seed=0, dtype=torch.float64):
    features = torch.randn(num_examples, width, generator=seeded(seed), dtype=dtype)
    return features, torch.randint(NUM_CLASSES, (num_examples,), generator=seeded(seed + 1))


def quantile(uniform, rate, deviation):
    return stats.truncnorm.ppf(uniform, -rate / deviation, (1 - rate) / deviation, loc=rate, scale=deviation)


def naive(features, labels, rate, generator, num_classes=NUM_CLASSES, deviation=0.1):
    """Return noisy labels and rows of transition probabilities, by loops in float64."""
    uniforms = torch.rand(3, len(labels), dtype=torch.float64, generator=generator).tolist()
    width = features.shape[1]
    weights = [
        torch.randn(width, num_classes, dtype=features.dtype, generator=generator).tolist() for _ in range(num_classes)
    ]
    drawn, rows = [], []
    for x, y, first, second, third in zip(features.double().tolist(), labels.tolist(), *uniforms, strict=True):
        flip_rate = quantile(first, rate, deviation) if deviation else rate
        scores = [math.fsum(x[d] * weights[y][d][k] for d in range(width)) for k in range(num_classes)]
        top = max(score for k, score in enumerate(scores) if k != y)
        powers = [0.0 if k == y else math.exp(score - top) for k, score in enumerate(scores)]
        shares = [power / math.fsum(powers) for power in powers]
        rows.append([1 - flip_rate if k == y else flip_rate * share for k, share in enumerate(shares)])
        noisy = y
        if second < flip_rate:
            noisy = next(k for k in range(num_classes) if third < math.fsum(shares[: k + 1]))
        drawn.append(noisy)
    return torch.tensor(drawn), torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("deviation", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("rate", [0.1, 0.45, 1.0])
def test_labels_and_rows_equal_the_loop(rate, deviation):
    features, labels = draw(60)
    settings = {"num_classes": NUM_CLASSES, "deviation": deviation}
    expected, expected_rows = naive(features, labels, rate, seeded(2), deviation=deviation)
    drawn = draw_instance_noise(features, labels, rate, seeded(2), **settings)
    rows = instance_transition(features, labels, rate, seeded(2), **settings)
    assert drawn.equal(expected)
    assert drawn.dtype == torch.int64
    assert rows.dtype == torch.float64
    torch.testing.assert_close(rows, expected_rows, rtol=0, atol=1e-12)


def test_images_are_flattened_and_scaled():
    images = torch.randint(256, (60, 3, 4, 4), generator=seeded(), dtype=torch.uint8)
    labels = torch.randint(NUM_CLASSES, (60,), generator=seeded(1))
    rows = instance_transition(images, labels, 0.4, seeded(2), num_classes=NUM_CLASSES)
    floats = images.flatten(1).float() / 255
    _, expected = naive(floats, labels, 0.4, seeded(2))
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-5)
    assert rows.equal(instance_transition(floats, labels, 0.4, seeded(2), num_classes=NUM_CLASSES))
    drawn = draw_instance_noise(images, labels, 0.4, seeded(2), num_classes=NUM_CLASSES)
    assert drawn.equal(draw_instance_noise(floats, labels, 0.4, seeded(2), num_classes=NUM_CLASSES))
    half = instance_transition(floats.half(), labels, 0.4, seeded(2), num_classes=NUM_CLASSES)
    torch.testing.assert_close(half, expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4])
def test_realised_rate_is_the_mean_of_the_cut_normal(rate):
    features, labels = draw(200_000, width=2, dtype=torch.float32)
    drawn = draw_instance_noise(features, labels, rate, seeded(3), num_classes=NUM_CLASSES)
    mean = stats.truncnorm.mean(-rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1)
    assert abs((drawn != labels).double().mean().item() - mean) <= 5 * math.sqrt(mean * (1 - mean) / len(labels))


def test_the_documented_means_are_right():
    means = [stats.truncnorm.mean(-r / 0.1, (1 - r) / 0.1, loc=r, scale=0.1) for r in (1e-9, 0.1, 0.2, 0.3)]
    assert [f"{mean:.3f}" for mean in means] == ["0.080", "0.129", "0.206", "0.300"]
    for mean in ("0.080", "0.129", "0.206", "0.300"):
        assert mean in draw_instance_noise.__doc__


def test_labels_follow_the_rows_within_five_standard_errors():
    features, labels = draw(8)
    settings = {"num_classes": NUM_CLASSES}
    repeats = 4_000
    rows = torch.zeros(8, NUM_CLASSES, dtype=torch.float64)
    counts, variance = torch.zeros_like(rows), torch.zeros_like(rows)
    generator = seeded(4)
    for _ in range(repeats // 40):
        copies = features.repeat(40, 1), labels.repeat(40)
        state = generator.get_state()
        some = instance_transition(*copies, 0.5, generator, **settings).view(40, 8, -1)
        generator.set_state(state)
        drawn = draw_instance_noise(*copies, 0.5, generator, **settings).view(40, 8)
        counts += torch.nn.functional.one_hot(drawn, NUM_CLASSES).sum(0)
        rows += some.sum(0)
        variance += (some * (1 - some)).sum(0)
    # One label for each example and draw: a sum of independent indicators, given the rows.
    assert ((counts - rows).abs() <= 5 * variance.sqrt() + 1).all()


def test_noise_is_nested_over_rates():
    features, labels = draw(3_000)
    rates = [0.0, 0.01, 0.2, 0.4, 0.8, 1.0]
    draws = [draw_instance_noise(features, labels, rate, seeded(5), num_classes=NUM_CLASSES) for rate in rates]
    assert draws[0].equal(labels)
    for lower, higher in itertools.pairwise(draws):
        flipped = lower != labels
        assert higher[flipped].equal(lower[flipped])
        assert (higher != labels).sum() > flipped.sum()


def test_flip_rates_stay_in_range_and_rise():
    uniforms = torch.tensor([0.0, 1e-12, 0.3, 0.999, 1 - 2**-53], dtype=torch.float64)
    for deviation in (1e-3, 0.1, 10.0):
        rates = torch.stack([noise._flip_rates(uniforms, rate, deviation) for rate in (1e-6, 0.01, 0.3, 0.99, 1.0)])
        assert ((rates >= 0) & (rates <= 1)).all()
        # Rates of examples that hardly flip may fall by rounding.
        assert (rates.diff(dim=0) >= -1e-14).all()
        assert (rates.diff(dim=1) >= 0).all()


def test_generator_decides_and_advances_by_the_sizes_only():
    features, labels = draw(400)
    settings = {"num_classes": NUM_CLASSES}
    first = draw_instance_noise(features, labels, 0.4, seeded(6), **settings)
    assert first.equal(draw_instance_noise(features, labels, 0.4, seeded(6), **settings))
    assert not first.equal(draw_instance_noise(features, labels, 0.4, seeded(7), **settings))
    states = []
    for some, rate, draw_function in (
        (labels, 0.0, draw_instance_noise),
        (labels, 0.9, draw_instance_noise),
        (labels * 0, 0.4, draw_instance_noise),
        (labels, 0.4, instance_transition),
    ):
        generator = seeded(6)
        draw_function(features, some, rate, generator, **settings)
        states.append(generator.get_state())
    for state in states[1:]:
        assert state.equal(states[0])


def test_noise_depends_on_the_features():
    labels = torch.zeros(2_000, dtype=torch.int64)
    features = torch.eye(2).repeat(1_000, 1)
    drawn = draw_instance_noise(features, labels, 1.0, seeded(8), num_classes=NUM_CLASSES).view(-1, 2)
    shares = torch.stack([torch.bincount(column, minlength=NUM_CLASSES) for column in drawn.T]) / 1_000
    assert (shares[0] - shares[1]).abs().max() > 0.2


def test_work_in_parts_changes_nothing(monkeypatch):
    features, labels = draw(500)
    settings = {"num_classes": NUM_CLASSES}
    whole = instance_transition(features, labels, 0.3, seeded(9), **settings)
    monkeypatch.setattr(noise, "CHUNK", 2)
    torch.testing.assert_close(instance_transition(features, labels, 0.3, seeded(9), **settings), whole)
    assert draw_instance_noise(features[:0], labels[:0], 0.3, seeded(9), **settings).shape == (0,)


def test_largest_uniforms_do_not_leave_the_classes(monkeypatch):
    features, labels = draw(200, dtype=torch.float32)
    monkeypatch.setattr(noise.torch, "rand", lambda *size, **_: torch.full(size, 1 - 2**-53, dtype=torch.float64))
    rates = {"deviation": 0.0, "num_classes": NUM_CLASSES}
    drawn = draw_instance_noise(1e3 * features, labels, 1.0, seeded(10), **rates)
    rows = instance_transition(1e3 * features, labels, 1.0, seeded(10), **rates)
    assert (drawn != labels).all()
    assert (rows[torch.arange(200), drawn] > 0).all()


FEATURES, LABELS = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("function", [draw_instance_noise, instance_transition])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": [[0.0]]}, TypeError, "features must be a torch tensor, got list"),
        ({"features": FEATURES.int()}, TypeError, "features must be floating-point or uint8, got int32"),
        ({"features": FEATURES[:3]}, ValueError, r"features must have shape .*got \(3, 3\) and \(4,\)"),
        ({"features": FEATURES[:, 0]}, ValueError, r"features must have shape .*got \(4,\) and \(4,\)"),
        ({"features": FEATURES + math.nan}, ValueError, "features must be finite"),
        ({"labels": LABELS + 1}, ValueError, r"labels must lie in \[0, 2\], got the value 3"),
        ({"labels": LABELS.float()}, TypeError, "labels must hold integer class indices"),
        ({"noise_rate": 1.1}, ValueError, r"noise_rate must be a finite number in \[0, 1\], got 1.1"),
        ({"deviation": -0.1}, ValueError, "deviation must be a finite number in .*got -0.1"),
        ({"num_classes": 1}, ValueError, "num_classes must be at least 2, got 1"),
        ({"generator": None}, TypeError, "generator must be a torch.Generator"),
    ],
)
def test_bad_input(function, change, error, message):
    arguments = {"features": FEATURES, "labels": LABELS, "noise_rate": 1.0, "generator": seeded(), "num_classes": 3}
    with pytest.raises(error, match=message):
        function(**arguments | change)
