import dataclasses
import itertools
import math
import time
from fractions import Fraction

import pytest
import torch

from nls import noise
from nls.noise import (
    CHUNK,
    cifar10_asymmetric_transition,
    cifar10_pair_transition,
    draw_noisy_labels,
    draw_symmetric_labels,
    noise_report,
    pair_transition,
    symmetric_transition,
)

LOW_BITS = 2**32 - 1
FAMILIES = {
    "symmetric": lambda rate: symmetric_transition(10, rate),
    "pair": lambda rate: pair_transition(10, rate),
    "cifar10_asymmetric": cifar10_asymmetric_transition,
    "cifar10_pair": cifar10_pair_transition,
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_transition(num_classes, seed=0, zeros=0.0):
    """A random row-stochastic matrix in which about a share ``zeros`` of the entries is 0."""
    generator = seeded(seed)
    matrix = torch.rand(num_classes, num_classes, dtype=torch.float64, generator=generator)
    matrix[torch.rand(matrix.shape, generator=generator) < zeros] = 0
    matrix[torch.arange(num_classes), torch.randint(num_classes, (num_classes,), generator=generator)] += 0.1
    return matrix / matrix.sum(1, keepdim=True)


def draw_one_by_one(labels, transition, generator):
    """Oracle: the same integers, one label and one class at a time."""
    rows = transition.double().tolist()
    integers = torch.empty(len(labels), dtype=torch.int64).random_(generator=generator).tolist()
    result = []
    for label, integer in zip(labels.tolist(), integers, strict=True):
        wrong = [(k, p) for k, p in enumerate(rows[label]) if k != label and p > 0]
        mass = sum(p for _, p in wrong)
        pick = (integer & LOW_BITS) / 2**32
        chosen, below = label, 0.0
        if integer < (1 - rows[label][label]) * 2**63 and mass > 0:
            for k, p in wrong:
                chosen, below = k, below + p / mass
                if pick < below:
                    break
        result.append(chosen)
    return torch.tensor(result)


def fix_integers(monkeypatch, integer):
    monkeypatch.setattr(torch.Tensor, "random_", lambda self, **_: self.fill_(integer))


# Transition matrices


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("noise_rate", [0, 0.1, 0.45, 1])
def test_symmetric_and_pair_equal_their_definitions(num_classes, noise_rate):
    symmetric, pair = symmetric_transition(num_classes, noise_rate), pair_transition(num_classes, noise_rate)
    for i in range(num_classes):
        for j in range(num_classes):
            assert symmetric[i, j] == (1 - noise_rate if i == j else noise_rate / (num_classes - 1))
            expected = 1 - noise_rate if i == j else noise_rate if (i + 1) % num_classes == j else 0
            assert pair[i, j] == expected


@pytest.mark.parametrize(
    ("build", "flips"),
    [
        (cifar10_asymmetric_transition, ["truck automobile", "bird airplane", "deer horse", "cat dog", "dog cat"]),
        (
            cifar10_pair_transition,
            [
                *("truck automobile", "automobile truck", "bird airplane", "airplane bird", "deer horse"),
                *("horse deer", "cat dog", "dog cat", "frog ship", "ship frog"),
            ],
        ),
    ],
)
def test_cifar10_transitions_flip_the_named_classes_only(build, flips):
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    expected = torch.eye(10, dtype=torch.float64)
    for flip in flips:
        clean, noisy = (names.index(name) for name in flip.split())
        expected[clean, clean], expected[clean, noisy] = 0.7, 0.3
    torch.testing.assert_close(build(0.3), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("noise_rate", [0.0, 0.2, 1.0])
def test_transitions_are_float64_and_row_stochastic(family, noise_rate):
    transition = FAMILIES[family](noise_rate)
    assert transition.dtype == torch.float64
    assert transition.min() >= 0
    torch.testing.assert_close(transition.sum(1), torch.ones(10, dtype=torch.float64), rtol=0, atol=1e-15)


def test_pair_noise_on_two_classes_is_symmetric_noise():
    assert pair_transition(2, 0.3).equal(symmetric_transition(2, 0.3))


@pytest.mark.parametrize("build", [symmetric_transition, pair_transition])
@pytest.mark.parametrize(
    ("num_classes", "error", "message"),
    [(1, ValueError, "num_classes must be at least 2, got 1"), (2.5, TypeError, "num_classes must be an integer")],
)
def test_num_classes_is_checked(build, num_classes, error, message):
    with pytest.raises(error, match=message):
        build(num_classes, 0.1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("noise_rate", "error", "message"),
    [
        (-0.1, ValueError, r"noise_rate must be a finite number in \[0, 1\], got -0.1"),
        (1.01, ValueError, r"noise_rate must be a finite number in \[0, 1\], got 1.01"),
        (math.nan, ValueError, "noise_rate must be a finite number"),
        ("0.1", TypeError, "noise_rate must be a real number"),
    ],
)
def test_noise_rate_is_checked(family, noise_rate, error, message):
    with pytest.raises(error, match=message):
        FAMILIES[family](noise_rate)


# Drawing


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_draw_equals_a_loop_over_the_same_uniforms(num_classes, zeros):
    transition = random_transition(num_classes, seed=num_classes, zeros=zeros)
    labels = torch.randint(num_classes, (20_000,), generator=seeded(1))
    drawn = draw_noisy_labels(labels, transition, seeded(2))
    assert drawn.equal(draw_one_by_one(labels, transition, seeded(2)))


def test_draw_equals_the_loop_across_chunks():
    labels = torch.randint(3, (CHUNK + 1000,), generator=seeded(1))
    transition = random_transition(3, seed=5)
    assert draw_noisy_labels(labels, transition, seeded(2)).equal(draw_one_by_one(labels, transition, seeded(2)))


@pytest.mark.parametrize(
    "transition",
    [symmetric_transition(k, rate) for k in (2, 3, 10, 100) for rate in (0.2, 0.9)]
    + [pair_transition(10, 0.45), cifar10_asymmetric_transition(0.4), cifar10_pair_transition(0.2)]
    + [random_transition(k, seed=k, zeros=zeros) for k in (2, 3, 10, 100) for zeros in (0.0, 0.4)],
    ids=lambda t: f"K{len(t)}-diagonal{float(t[0, 0]):.2f}",
)
def test_realised_transition_is_within_five_standard_errors(transition):
    num_classes = len(transition)
    per_class = max(200_000 // num_classes, 10_000)
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    report = noise_report(labels, draw_noisy_labels(labels, transition, seeded(3)), transition)
    tolerance = 5 * (transition * (1 - transition) / per_class).sqrt()
    # Rare entries have longer tails than the normal one: five labels more. Entries of 0 and 1 are met exactly.
    tolerance[(transition > 0) & (transition * per_class < 25)] += 5 / per_class
    assert ((report.empirical_transition - transition).abs() <= tolerance + 1e-12).all()
    assert abs(report.realised_rate - report.nominal_rate) <= 5 * report.standard_error


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_is_nested_over_rates(family):
    labels = torch.randint(10, (CHUNK + 5000,), generator=seeded(4))
    rates = [0.0, 0.05, 0.2, 0.4, 0.6, 0.9, 1.0]
    draws = [draw_noisy_labels(labels, FAMILIES[family](rate), seeded(5)) for rate in rates]
    assert draws[0].equal(labels)
    for lower, higher in itertools.pairwise(draws):
        flipped = lower != labels
        assert higher[flipped].equal(lower[flipped])
        assert (higher != labels).sum() > flipped.sum()


def test_draws_used_do_not_depend_on_the_rate():
    labels, states = torch.zeros(1000, dtype=torch.int64), []
    for rate in (0.0, 0.3, 1.0):
        generator = seeded(6)
        draw_noisy_labels(labels, symmetric_transition(10, rate), generator)
        states.append(generator.get_state())
    assert states[0].equal(states[1])
    assert states[0].equal(states[2])


@pytest.mark.parametrize("pick", [0, LOW_BITS])
@pytest.mark.parametrize("repeats", [1, 20])
@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
def test_impossible_classes_are_not_drawn_at_the_ends_of_the_uniform(monkeypatch, pick, repeats, num_classes):
    transition = random_transition(num_classes, seed=7, zeros=0.8)
    transition[-1] = 0
    transition[-1, 0] = 1
    transition[0] = 0
    transition[0, [0, 1]] = 0.5
    labels = torch.arange(num_classes)
    fix_integers(monkeypatch, pick)
    # Many labels per class: a table of first bits is used.
    drawn = draw_noisy_labels(labels.repeat(repeats), transition, seeded())
    assert drawn.equal(drawn[:num_classes].repeat(repeats))
    drawn = drawn[:num_classes]
    assert (transition[labels, drawn] > 0).all()
    can_flip = transition.diagonal() < 1
    assert can_flip.sum() > 1
    assert ((drawn != labels) == can_flip).all()
    wrong = (transition.clone().fill_diagonal_(0) > 0).double()
    ends = wrong.argmax(1) if pick == 0 else num_classes - 1 - wrong.flip(1).argmax(1)
    assert drawn[can_flip].equal(ends[can_flip])


def test_sure_rows_never_flip_and_zero_diagonals_always_do(monkeypatch):
    transition = torch.tensor([[0.2, 0.2, 0.6], [0.3, 0.0, 0.7], [0.0, 0.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([1, 2]).repeat(50_000)
    drawn = draw_noisy_labels(labels, transition, seeded(8))
    assert ((drawn != labels) == (labels == 1)).all()
    fix_integers(monkeypatch, 0)
    assert draw_noisy_labels(torch.tensor([2, 2]), transition, seeded()).tolist() == [2, 2]
    # Rounding may leave a sure row just below 1, with no class to flip to.
    transition[2, 2] = 1 - 1e-9
    assert draw_noisy_labels(torch.tensor([2, 2]), transition, seeded()).tolist() == [2, 2]


@pytest.mark.parametrize("probability", [0.0, 2**-60, 0.25, 0.7, 1 - 2**-53, 1.0])
def test_limits_hold_the_probability(probability):
    limit = noise._integer_limits(torch.tensor(probability, dtype=torch.float64)).item()
    assert limit + 1 == Fraction(probability) * 2**63


@pytest.mark.parametrize("zeros", [0.0, 0.6])
@pytest.mark.parametrize("num_classes", [2, 3, 10, 40])
def test_first_bits_decide_as_the_search_does(num_classes, zeros):
    transition = random_transition(num_classes, seed=num_classes, zeros=zeros)
    _, ends = noise._flip_tables(transition)
    guide = noise._guide(ends, 200 * num_classes)
    clean = torch.randint(num_classes, (40_000,), generator=seeded(1))
    low = torch.randint(2**32, (40_000,), generator=seeded(2))
    # Positions at the ends of classes and of cells, and one below.
    low[:10_000] = ends.flatten()[torch.randint(num_classes**2, (10_000,), generator=seeded(3))]
    low[10_000:20_000] &= ~(2**24 - 1)
    low[5_000:15_000] -= 1
    low &= LOW_BITS
    searched = noise._wrong_classes(clean, low.clone(), ends, None)
    assert noise._wrong_classes(clean, low.clone(), ends, guide).equal(searched)
    assert (guide >= 0).double().mean() > 0.4
    assert noise._guide(ends, num_classes) is None


@pytest.mark.parametrize("num_classes", [2, 3, 9, 10, 1000])
@pytest.mark.parametrize("noise_rate", [0.0, 0.3, 1.0])
def test_symmetric_labels_are_those_of_the_matrix(num_classes, noise_rate):
    labels = torch.randint(num_classes, (3, 5_000), generator=seeded(1))
    drawn = draw_symmetric_labels(labels, num_classes, noise_rate, seeded(2))
    transition = symmetric_transition(num_classes, noise_rate)
    assert drawn.equal(draw_noisy_labels(labels, transition, seeded(2)))
    # The general path finds the same classes in its tables.
    flips, ends = noise._flip_tables(transition)
    integers = torch.empty(15_000, dtype=torch.int64).random_(generator=seeded(2))
    wrong = noise._wrong_classes(labels.flatten(), integers & LOW_BITS, ends, noise._guide(ends, 15_000))
    assert drawn.flatten().equal(torch.where(integers <= flips[labels.flatten()], wrong, labels.flatten()))


def test_fifty_thousand_classes_without_a_matrix():
    labels, num_classes = torch.arange(50_000).repeat(8), 50_000
    drawn = draw_symmetric_labels(labels, num_classes, 0.4, seeded(3))
    flipped = drawn != labels
    standard_error = math.sqrt(0.4 * 0.6 / len(labels))
    assert abs(flipped.double().mean().item() - 0.4) <= 5 * standard_error
    # Steps to the wrong class, uniform on 1 to K - 1: mean K / 2, variance (K - 1)**2 / 12.
    steps = (drawn - labels)[flipped].remainder(num_classes).double()
    assert abs(steps.mean().item() - num_classes / 2) <= 5 * (num_classes - 1) / math.sqrt(12 * len(steps))
    assert steps.min() >= 1
    lower = draw_symmetric_labels(labels, num_classes, 0.1, seeded(3))
    assert lower[lower != labels].equal(drawn[lower != labels])


def test_almost_symmetric_matrices_take_the_general_path():
    transition = symmetric_transition(3, 0.4)
    assert noise._is_symmetric_noise(transition)
    for i, j in itertools.product(range(3), repeat=2):
        changed = transition.clone()
        changed[i, j] += 1e-9
        assert not noise._is_symmetric_noise(changed)
    assert noise._is_symmetric_noise(torch.full((3, 3), 1 / 3, dtype=torch.float64))
    assert noise._is_symmetric_noise(symmetric_transition(2, 0.2))
    assert not noise._is_symmetric_noise(pair_transition(3, 0.2))


def test_labels_do_not_depend_on_the_chunk(monkeypatch):
    labels, transition = torch.randint(5, (1000,), generator=seeded(1)), random_transition(5, seed=2)
    expected = draw_noisy_labels(labels, transition, seeded(3))
    monkeypatch.setattr(noise, "CHUNK", 64)
    generator, other = seeded(3), seeded(3)
    assert draw_noisy_labels(labels, transition, generator).equal(expected)
    torch.empty(1000, dtype=torch.int64).random_(generator=other)
    assert generator.get_state().equal(other.get_state())
    assert draw_noisy_labels(labels[:500], transition[:5], seeded(3)).equal(expected[:500])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.tensor([3]), 3, 0.1, seeded()), ValueError, r"labels must lie in \[0, 2\], got the value 3"),
        (([0], 3, 0.1, seeded()), TypeError, "labels must be a torch tensor, got list"),
        ((torch.tensor([0]), 1, 0.1, seeded()), ValueError, "num_classes must be at least 2, got 1"),
        ((torch.tensor([0]), 2**31 + 1, 0.1, seeded()), ValueError, "num_classes must be at most 2147483648"),
        ((torch.tensor([0]), 3, 1.1, seeded()), ValueError, r"noise_rate must be a finite number in \[0, 1\], got 1.1"),
        ((torch.tensor([0]), 3, 0.1, 0), TypeError, r"generator must be a torch.Generator.*got 0 \(int\)"),
    ],
)
def test_symmetric_draw_refuses_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        draw_symmetric_labels(*arguments)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_shape_is_kept_and_dtype_is_int64(shape, dtype):
    labels = torch.ones(shape, dtype=dtype)
    before = labels.clone()
    drawn = draw_noisy_labels(labels, pair_transition(3, 1.0), seeded())
    assert drawn.shape == labels.shape
    assert drawn.dtype == torch.int64
    assert (drawn == 2).all()
    assert labels.equal(before)


def test_strided_labels_and_float32_transitions_are_accepted():
    labels = torch.arange(10).repeat(6, 1).T
    transition = symmetric_transition(10, 0.5)
    expected = draw_noisy_labels(labels.contiguous(), transition, seeded(9))
    assert draw_noisy_labels(labels, transition.float(), seeded(9)).equal(expected)
    assert 0 < (expected != labels).sum() < labels.numel()


def test_seed_decides_the_draw():
    labels, transition = torch.arange(10).repeat(100), symmetric_transition(10, 0.4)
    first = draw_noisy_labels(labels, transition, seeded(1))
    assert first.equal(draw_noisy_labels(labels, transition, seeded(1)))
    assert not first.equal(draw_noisy_labels(labels, transition, seeded(2)))
    generator = seeded(1)
    draw_noisy_labels(labels, transition, generator)
    assert not first.equal(draw_noisy_labels(labels, transition, generator))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_labels_on_an_accelerator_get_the_noise_of_the_cpu():
    labels, transition = torch.arange(10).repeat(100), symmetric_transition(10, 0.4)
    drawn = draw_noisy_labels(labels.cuda(), transition.cuda(), seeded(1))
    assert drawn.is_cuda
    assert drawn.cpu().equal(draw_noisy_labels(labels, transition, seeded(1)))
    assert draw_noisy_labels(labels, transition, torch.Generator("cuda").manual_seed(1)).device.type == "cpu"


LABELS, TRANSITION = torch.tensor([0, 1, 2]), symmetric_transition(3, 0.2)
TRANSPOSED = torch.tensor([[0.9, 0.5], [0.1, 0.5]])


@pytest.mark.parametrize(
    ("labels", "transition", "generator", "error", "message"),
    [
        (LABELS, TRANSITION, None, TypeError, r"generator must be a torch.Generator, such as .*manual_seed\(0\)"),
        (LABELS, TRANSITION, 0, TypeError, r"generator must be a torch.Generator.*got 0 \(int\)"),
        (LABELS.tolist(), TRANSITION, seeded(), TypeError, "labels must be a torch tensor, got list"),
        (LABELS.float(), TRANSITION, seeded(), TypeError, "labels must hold integer class indices"),
        (LABELS + 1, TRANSITION, seeded(), ValueError, r"labels must lie in \[0, 2\], got the value 3"),
        (LABELS - 1, TRANSITION, seeded(), ValueError, r"labels must lie in \[0, 2\], got the value -1"),
        (LABELS, TRANSITION[:2], seeded(), ValueError, r"transition must be a square matrix \[K, K\]"),
        (LABELS, -TRANSITION, seeded(), ValueError, "transition must not be negative"),
        (LABELS % 2, TRANSPOSED, seeded(), ValueError, "rows that sum to 1.*columns sum to 1, so pass the transpose"),
        (LABELS, TRANSITION * 2, seeded(), ValueError, "rows that sum to 1, got 2 in row 0$"),
    ],
)
def test_draw_refuses_bad_input(labels, transition, generator, error, message):
    with pytest.raises(error, match=message):
        draw_noisy_labels(labels, transition, generator)


def test_generator_is_required():
    with pytest.raises(TypeError, match="generator"):
        draw_noisy_labels(LABELS, TRANSITION)


def test_speed_is_printed_not_asserted(capsys):
    labels, transition = torch.arange(10).repeat(5_000), symmetric_transition(10, 0.4)
    draw_noisy_labels(labels, transition, seeded())
    start = time.perf_counter()
    draw_noisy_labels(labels, transition, seeded())
    with capsys.disabled():
        print(f"\n50,000 labels: {1e3 * (time.perf_counter() - start):.1f} ms")


# Reporting


def test_report_equals_a_loop():
    transition = random_transition(5, seed=11)
    clean = torch.randint(5, (3, 700), generator=seeded(12))
    noisy = draw_noisy_labels(clean, transition, seeded(13))
    report = noise_report(clean, noisy, transition)

    table = [[0] * 5 for _ in range(5)]
    for y, z in zip(clean.flatten().tolist(), noisy.flatten().tolist(), strict=True):
        table[y][z] += 1
    counts = [sum(row) for row in table]
    nominal = [1 - float(transition[i, i]) for i in range(5)]
    assert report.num_examples == 2100
    assert report.counts.tolist() == counts
    assert report.realised_rate == pytest.approx(sum(counts[i] - table[i][i] for i in range(5)) / 2100, rel=1e-14)
    assert report.nominal_rate == pytest.approx(sum(n * e for n, e in zip(counts, nominal, strict=True)) / 2100)
    variance = sum(n * e * (1 - e) for n, e in zip(counts, nominal, strict=True))
    assert report.standard_error == pytest.approx(math.sqrt(variance) / 2100)
    assert report.nominal_rate_per_class.tolist() == pytest.approx(nominal)
    assert report.realised_rate_per_class.tolist() == pytest.approx([1 - table[i][i] / counts[i] for i in range(5)])
    for i in range(5):
        assert report.empirical_transition[i].tolist() == pytest.approx([n / counts[i] for n in table[i]])


def test_standard_error_is_the_spread_of_the_realised_rate():
    clean, transition = torch.arange(3).repeat(200), random_transition(3, seed=14)
    generator, repeats = seeded(15), 500
    reports = [noise_report(clean, draw_noisy_labels(clean, transition, generator), transition) for _ in range(repeats)]
    spread = torch.tensor([report.realised_rate for report in reports]).std().item()
    nominal = reports[0].standard_error
    # The standard deviation of n normal draws has a relative standard error of about 1 / sqrt(2 n).
    assert abs(spread / nominal - 1) <= 5 / math.sqrt(2 * repeats)


def test_report_without_a_transition_uses_realised_rates():
    clean, noisy = torch.tensor([0, 0, 0, 0, 3]), torch.tensor([0, 1, 0, 0, 3])
    report = noise_report(clean, noisy)
    assert report.nominal_rate is None
    assert report.nominal_rate_per_class is None
    assert report.counts.tolist() == [4, 0, 0, 1]
    assert report.standard_error == pytest.approx(math.sqrt(4 * 0.25 * 0.75) / 5)
    assert "nominal" not in str(report)
    assert noise_report(torch.tensor([0]), torch.tensor([0])).counts.tolist() == [1, 0]
    assert len(noise_report(torch.tensor([0]), torch.tensor([4])).counts) == 5


def test_absent_classes_have_a_rate_of_nan_and_the_report_says_so():
    report = noise_report(torch.tensor([0, 0, 3]), torch.tensor([0, 3, 3]), symmetric_transition(5, 0.2))
    assert report.realised_rate_per_class.isnan().tolist() == [False, True, True, False, True]
    assert report.empirical_transition[1].isnan().all()
    assert report.nominal_rate == pytest.approx(0.2)
    assert str(report).splitlines() == [
        "3 labels, 5 classes: noise rate 0.3333, nominal 0.2000 (standard error 0.2309)",
        "per class: from 0.0000 (class 3) to 0.5000 (class 0)",
        "classes without labels, rate nan: 1, 2, 4",
    ]


def test_report_is_frozen():
    report = noise_report(LABELS, LABELS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.num_examples = 0


@pytest.mark.parametrize(
    ("clean", "noisy", "transition", "error", "message"),
    [
        (LABELS, LABELS[:2], None, ValueError, r"same shape and at least one label, got shapes \(3,\) and \(2,\)"),
        (LABELS[:0], LABELS[:0], None, ValueError, "at least one label"),
        (LABELS.float(), LABELS, None, TypeError, "clean_labels must hold integer class indices"),
        (LABELS, LABELS.tolist(), None, TypeError, "noisy_labels must be a torch tensor"),
        (LABELS, LABELS - 1, None, ValueError, "noisy_labels must lie in .*got the value -1"),
        (LABELS, LABELS + 1, TRANSITION, ValueError, r"noisy_labels must lie in \[0, 2\], got the value 3"),
        (LABELS + 10**9, LABELS, None, ValueError, r"clean_labels must lie in \[0, 9999\]"),
        (LABELS, LABELS, TRANSPOSED, ValueError, "columns sum to 1, so pass the transpose"),
    ],
)
def test_report_refuses_bad_input(clean, noisy, transition, error, message):
    with pytest.raises(error, match=message):
        noise_report(clean, noisy, transition)
