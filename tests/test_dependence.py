"""Statistics against loops and SciPy; sizes and coverage by simulation, with binomial tolerances."""

import io
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import nls
from nls import dependence
from nls.dependence import DependenceTest, annotator_dependence, flip_covariance, neighbour_dependence
from nls.human import load_human_labels

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_annotators(num_examples, num_annotators, seed=0, num_classes=4):
    """Labels that are independent given the class."""
    g = seeded(seed)
    clean = torch.randint(num_classes, (num_examples,), generator=g)
    rows = torch.rand(num_classes, num_classes, generator=g) + 2 * torch.eye(num_classes)
    return torch.multinomial(rows[clean], num_annotators, replacement=True, generator=g), clean


def draw_features(num_examples=60, seed=0, num_classes=3):
    g = seeded(seed)
    clean = torch.randint(num_classes, (num_examples,), generator=g)
    noisy = torch.where(
        torch.rand(num_examples, generator=g) < 0.5, torch.randint(num_classes, (num_examples,), generator=g), clean
    )
    return torch.randn(num_examples, 4, generator=g), clean, noisy


def near_level(p_values, level):
    """Whether the share of p-values at or below a level is within four standard errors of it."""
    share = (np.asarray(p_values) <= level + 1e-9).mean()
    return abs(share - level) < 4 * math.sqrt(level * (1 - level) / len(p_values))


# Annotators.


def test_the_information_is_the_g_statistic_of_scipy():
    labels, clean = draw_annotators(400, 3)
    total = 0.0
    for first, second in itertools.combinations(range(3), 2):
        for label in clean.unique():
            table = np.zeros((4, 4))
            np.add.at(table, tuple(labels[clean == label][:, [first, second]].T.numpy()), 1)
            table = table[table.sum(1) > 0][:, table.sum(0) > 0]
            total += stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
    found = annotator_dependence(labels, clean, seeded(), num_permutations=1)
    assert found.statistic == pytest.approx(total / (2 * 400 * 3), abs=1e-12)
    assert found.num_examples == 400


def test_permutations_have_the_distribution_of_tables_with_fixed_margins():
    """SciPy draws such tables by another algorithm, without labels."""
    labels, clean = draw_annotators(200, 2, num_classes=3)
    found = annotator_dependence(labels, clean, seeded(), num_permutations=300)
    drawn = np.zeros(300)
    for label in range(3):
        rows, columns = (np.bincount(labels[clean == label, a], minlength=3) for a in (0, 1))
        tables = stats.random_table(rows, columns, seed=0).rvs(300)
        mean = rows[:, None] * columns / rows.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn += np.where(tables > 0, tables * np.log(tables / mean), 0).sum((1, 2)) / 200
    error = math.hypot(drawn.std(), found.deviation) / math.sqrt(300)
    assert abs(drawn.mean() - found.expected) < 4 * error
    assert found.deviation == pytest.approx(drawn.std(), rel=4 / math.sqrt(2 * 300) * math.sqrt(2))


def test_permutations_keep_classes_and_are_uniform_within_them():
    clean = torch.tensor([0, 1, 0, 0, 1])
    g, seen = seeded(), {}
    for _ in range(1200):
        order = dependence._permute_within(clean, g)
        assert clean[order].equal(clean)
        seen[tuple(order.tolist())] = seen.get(tuple(order.tolist()), 0) + 1
    assert len(seen) == math.factorial(3) * math.factorial(2)
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.parametrize("num_annotators", [2, 3])
def test_annotators_have_the_right_size(num_annotators):
    p_values = [
        annotator_dependence(*draw_annotators(120, num_annotators, seed), seeded(seed), num_permutations=19).p_value
        for seed in range(120)
    ]
    assert min(p_values) >= 1 / 20
    assert near_level(p_values, 0.05)
    assert near_level(p_values, 0.5)


def test_annotators_who_err_together_are_found():
    """A rate of 0 or 0.6 by example: the covariance is 0.09 (1 - 1/n), and one class without errors changes nothing."""
    g = seeded(1)
    clean = torch.arange(2000) % 2
    hard = torch.rand(2000, generator=g) < 0.5
    rates = torch.where(hard & (clean == 0), 0.6, 0.0)
    wrong = torch.rand(2000, 2, generator=g) < rates[:, None]
    labels = torch.where(wrong, 1 - clean[:, None], clean[:, None])
    found = annotator_dependence(labels, clean, g, num_permutations=39)
    assert found.p_value == 1 / 40
    assert found.score > 10
    shared = flip_covariance(labels, clean)
    assert shared.low < 0.5 * 0.09 < shared.high
    assert shared.above_zero


def test_skill_drawn_afresh_for_each_label_is_no_dependence():
    g = seeded(2)
    clean = torch.zeros(20_000, dtype=torch.int64)
    skill = 0.4 * torch.rand(20_000, 2, generator=g)
    labels = (torch.rand(20_000, 2, generator=g) < skill).long()
    assert flip_covariance(labels, clean).low < 0 < flip_covariance(labels, clean).high
    assert annotator_dependence(labels, clean, g, num_permutations=19).p_value > 0.05


def test_opposite_rates_make_negative_covariance_and_are_found():
    g = seeded(3)
    clean = torch.zeros(4000, dtype=torch.int64)
    rate = torch.where(torch.rand(4000, generator=g) < 0.5, 0.1, 0.7)
    labels = (torch.rand(4000, 2, generator=g) < torch.stack([rate, 0.8 - rate], 1)).long()
    assert flip_covariance(labels, clean).below_zero
    assert annotator_dependence(labels, clean, g, num_permutations=19).p_value == 1 / 20


def test_the_covariance_is_that_of_numpy():
    labels, clean = draw_annotators(300, 3, seed=5)
    wrong = (labels != clean[:, None]).numpy()
    total = 0.0
    for label in range(4):
        own = wrong[clean == label].astype(float)
        matrix = np.cov(own.T)
        total += len(own) * (matrix[0, 1] + matrix[0, 2] + matrix[1, 2]) / 3
    assert flip_covariance(labels, clean).mean == pytest.approx(total / 300, abs=1e-12)


def test_the_interval_of_the_covariance_covers():
    """Beta(1, 3) flip rates have variance 0.0375."""
    rng = np.random.default_rng(0)
    clean = torch.arange(400) % 4
    hits, means = 0, []
    for _ in range(200):
        wrong = torch.from_numpy(rng.random((400, 2)) < rng.beta(1, 3, (400, 1)))
        found = flip_covariance(torch.where(wrong, (clean[:, None] + 1) % 4, clean[:, None]), clean)
        hits += found.low < 0.0375 < found.high
        means.append(found.mean)
    assert 0.95 - hits / 200 < 4 * math.sqrt(0.95 * 0.05 / 200)
    assert abs(np.mean(means) - 0.0375) < 4 * np.std(means) / math.sqrt(200)


def test_examples_alone_in_their_class_do_not_count():
    labels = torch.tensor([[1, 1], [0, 0], [0, 1], [0, 2]])
    clean = torch.tensor([0, 0, 0, 3])
    assert flip_covariance(labels, clean).n == 3
    with pytest.raises(ValueError, match="a class with at least 2 examples, got none"):
        flip_covariance(labels, torch.arange(4))


# Neighbours.


def naive_neighbours(features, clean, num_neighbors):
    """The nearest members of the same class of each example, by loops."""
    near = {}
    for i in range(len(clean)):
        others = [j for j in range(len(clean)) if clean[j] == clean[i] and j != i]
        near[i] = sorted(others, key=lambda j: (float((features[i] - features[j]).norm()), j))[:num_neighbors]
    return near


def naive_correlation(near, clean, noisy, compare):
    """Moran's I within classes, by loops."""
    clean, noisy = clean.tolist(), noisy.tolist()
    top = bottom = 0.0
    for label in sorted(set(clean)):
        own = [i for i in range(len(clean)) if clean[i] == label]
        if len(own) < 2:
            continue
        targets = sorted({noisy[i] for i in own} - {label}) if compare == "label" else [None]
        for target in targets:
            w = {i: float(noisy[i] != label if target is None else noisy[i] == target) for i in own}
            p = sum(w.values()) / len(own)
            for i in own:
                top += sum((w[i] - p) * (w[j] - p) for j in near[i])
                bottom += len(near[i]) * p * (1 - p)
    return top / bottom


@pytest.mark.parametrize("compare", ["label", "flip"])
@pytest.mark.parametrize("num_neighbors", [1, 5, 100])
def test_the_correlation_equals_the_loop(compare, num_neighbors):
    features, clean, noisy = draw_features()
    clean[0] = 7  # alone in its class
    settings = {"num_neighbors": num_neighbors, "num_permutations": 1, "compare": compare}
    found = neighbour_dependence(features.double(), clean, noisy, seeded(), **settings)
    expected = naive_correlation(naive_neighbours(features.double(), clean, num_neighbors), clean, noisy, compare)
    assert found.statistic == pytest.approx(expected, abs=1e-12)


def test_permutations_give_what_loops_over_permuted_labels_give():
    features, clean, noisy = draw_features(40)
    found = neighbour_dependence(features, clean, noisy, seeded(), num_neighbors=3, num_permutations=400)
    g = seeded(1)
    near = naive_neighbours(features, clean, 3)
    drawn = [naive_correlation(near, clean, noisy[dependence._permute_within(clean, g)], "label") for _ in range(100)]
    error = math.hypot(np.std(drawn) / 10, found.deviation / 20)
    assert abs(np.mean(drawn) - found.expected) < 4 * error
    assert found.deviation == pytest.approx(np.std(drawn), rel=0.35)


@pytest.mark.parametrize("compare", ["label", "flip"])
def test_neighbours_have_the_right_size(compare):
    p_values = []
    for seed in range(150):
        features, clean, noisy = draw_features(90, seed)
        settings = {"num_neighbors": 4, "num_permutations": 19, "compare": compare}
        p_values.append(neighbour_dependence(features, clean, noisy, seeded(seed), **settings).p_value)
    assert near_level(p_values, 0.05)
    assert near_level(p_values, 0.5)


def test_flips_on_one_side_are_found_by_flips_and_split_targets_by_labels():
    g = seeded()
    features = torch.randn(600, 2, generator=g)
    clean = torch.zeros(600, dtype=torch.int64)
    wrong = torch.rand(600, generator=g)
    sided = torch.where(wrong < torch.where(features[:, 0] > 0, 0.6, 0.1), 1, 0)
    split = torch.where(wrong < 0.3, torch.where(features[:, 0] > 0, 1, 2), 0)
    for noisy, compare, seen in ((sided, "flip", True), (split, "label", True), (split, "flip", False)):
        found = neighbour_dependence(features, clean, noisy, seeded(), compare=compare, num_permutations=39)
        assert (found.p_value <= 0.05) is seen, (compare, found)


def test_hubs_do_not_cost_power():
    """Centres are many points' neighbours; if they are rarely wrong, uncentred pairs of wrong labels become rare."""
    g = seeded(4)
    features = torch.randn(500, 8, generator=g)
    clean = torch.zeros(500, dtype=torch.int64)
    radius = features.norm(dim=1)
    noisy = (torch.rand(500, generator=g) < 0.8 * (radius.argsort().argsort() / 500)).long()
    found = neighbour_dependence(features, clean, noisy, g, num_neighbors=20, compare="flip", num_permutations=39)
    assert found.score > 4
    near = torch.cdist(features, features).fill_diagonal_(torch.inf).topk(20, largest=False).indices
    wrong = noisy == 1
    shuffled = [wrong[torch.randperm(500, generator=g)] for _ in range(39)]
    pairs = [float((w[:, None] & w[near]).float().mean()) for w in [wrong, *shuffled]]
    assert pairs[0] < min(pairs[1:])  # by pairs alone, wrong labels seem to avoid one another


def test_names_of_classes_order_and_scale_do_not_matter():
    features, clean, noisy = draw_features(80)
    test = {"num_permutations": 1}
    base = neighbour_dependence(features, clean, noisy, seeded(), **test).statistic
    rename, order = torch.tensor([5, 0, 3]), torch.randperm(80, generator=seeded())
    renamed = neighbour_dependence(features, rename[clean], rename[noisy], seeded(), **test).statistic
    moved = neighbour_dependence(3 * features[order] + 1, clean[order], noisy[order], seeded(), **test).statistic
    assert renamed == pytest.approx(base, abs=1e-12)
    assert moved == pytest.approx(base, abs=1e-12)
    images = neighbour_dependence(features.view(80, 1, 2, 2), clean, noisy, seeded(), **test).statistic
    assert images == pytest.approx(base, abs=1e-12)


def test_chunks_change_nothing(monkeypatch):
    features, clean, noisy = draw_features(100)
    whole = neighbour_dependence(features, clean, noisy, seeded(), num_permutations=23)
    monkeypatch.setattr(dependence, "_CHUNK", 1)
    monkeypatch.setattr(dependence, "_BLOCK", 7)
    parts = neighbour_dependence(features, clean, noisy, seeded(), num_permutations=23)
    assert parts.p_value == whole.p_value
    assert (parts.statistic, parts.expected) == pytest.approx((whole.statistic, whole.expected), abs=1e-12)


def test_without_wrong_labels_nothing_is_found():
    features, clean, _ = draw_features()
    found = neighbour_dependence(features, clean, clean, seeded())
    assert (found.statistic, found.p_value, found.score) == (0.0, 1.0, 0.0)
    alone = neighbour_dependence(features[:3], torch.arange(3), torch.tensor([1, 1, 1]), seeded())
    assert alone.p_value == 1.0


def test_copies_are_neighbours_but_nobody_of_themselves():
    features = torch.zeros(6, 2)
    clean, noisy = torch.zeros(6, dtype=torch.int64), torch.tensor([1, 0, 0, 0, 0, 0])
    found = neighbour_dependence(features, clean, noisy, seeded(), num_neighbors=5)
    assert found.statistic == pytest.approx(-1 / 5)  # every pair once: -1 / (n - 1)
    assert found.p_value == 1.0


@pytest.mark.shared_data
@pytest.mark.skipif(not (SHARED / "cifar10_jpeg.npz").is_file(), reason="no CIFAR-10 beside the checkout")
def test_people_err_on_neighbouring_images_of_cifar10():
    """On colours of 8 x 8 blocks, a poor measure of likeness: the correlation is small and clear."""
    with np.load(SHARED / "cifar10_jpeg.npz") as packed:
        header, scan, offset = packed["header"].tobytes(), packed["scan"], packed["offset"]
        files = [header + scan[offset[i] : offset[i + 1]].tobytes() for i in range(6000)]
    images = torch.from_numpy(np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files]))
    features = torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2).float() / 255, 4)
    labels = load_human_labels("cifar10n", SHARED)
    clean = labels.clean_labels[:6000]
    settings = {"num_permutations": 39, "compare": "flip"}
    found = neighbour_dependence(features, clean, labels.label_sets["worst"][:6000], seeded(), **settings)
    assert found.p_value == 1 / 40
    assert found.score > 3
    assert 0.005 < found.statistic < 0.03
    drawn = nls.draw_noisy_labels(clean, labels.transition("worst"), seeded())
    assert abs(neighbour_dependence(features, clean, drawn, seeded(), **settings).score) < 3


# What both share.


def test_the_summary_reads_well():
    found = DependenceTest(0.5, 0.1, 0.05, 0.01, 99, 1000)
    assert found.score == pytest.approx(8)
    assert str(found) == ("0.5, class-conditional noise gives 0.1 (score +8.0, p = 0.01, 99 permutations, n=1000)")
    assert DependenceTest(0.5, 0.1, 0.0, 0.01, 99, 1000).score == math.inf


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(5, dtype=torch.int64)}, ValueError, r"\[N, A\] with at least 2 .*got \(5,\)"),
        ({"labels": torch.zeros(5, 1, dtype=torch.int64)}, ValueError, r"at least 2 annotators"),
        ({"labels": torch.zeros(4, 2, dtype=torch.int64)}, ValueError, r"got \(4, 2\) and \(5,\)"),
        ({"labels": torch.zeros(5, 2)}, TypeError, "labels must hold integer class indices"),
        ({"labels": [[0, 1]]}, TypeError, "labels must be a torch tensor, got list"),
        ({"clean_labels": -torch.ones(5, dtype=torch.int64)}, ValueError, "clean_labels must lie in .*value -1"),
        ({"generator": 0}, TypeError, "generator must be a torch.Generator on the CPU, got 0"),
        ({"num_permutations": 0}, ValueError, "num_permutations must be at least 1"),
        ({"num_permutations": 2.5}, TypeError, "num_permutations must be an integer"),
    ],
)
def test_arguments_of_annotators_are_checked(change, error, message):
    zeros = torch.zeros(5, dtype=torch.int64)
    given = {"labels": torch.stack([zeros, zeros], 1), "clean_labels": zeros, "generator": seeded()} | change
    with pytest.raises(error, match=message):
        annotator_dependence(**given)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(5)}, ValueError, r"features must have shape \[N, d\].*got \(5,\)"),
        ({"features": torch.zeros(4, 2)}, ValueError, r"got \(4, 2\), \(5,\) and \(5,\)"),
        ({"features": torch.zeros(5, 2, dtype=torch.int64)}, TypeError, "features must be a floating-point tensor"),
        ({"features": torch.full((5, 2), torch.nan)}, ValueError, "features must be finite"),
        ({"features": None}, TypeError, "features must be a torch tensor, got NoneType"),
        ({"noisy_labels": torch.zeros(4, dtype=torch.int64)}, ValueError, r"\(5,\) and \(4,\)"),
        ({"noisy_labels": torch.zeros(5)}, TypeError, "noisy_labels must hold integer"),
        ({"compare": "both"}, ValueError, "compare must be one of 'label', 'flip', got 'both'"),
        ({"num_neighbors": 0}, ValueError, "num_neighbors must be at least 1"),
        ({"generator": None}, TypeError, "generator must be"),
    ],
)
def test_arguments_of_neighbours_are_checked(change, error, message):
    zeros = torch.zeros(5, dtype=torch.int64)
    given = {"features": torch.zeros(5, 2), "clean_labels": zeros, "noisy_labels": zeros, "generator": seeded()}
    with pytest.raises(error, match=message):
        neighbour_dependence(**given | change)
