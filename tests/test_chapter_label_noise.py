"""Each statement of the chapter on noise models, the page itself, and what it takes to make its claims fail."""

import itertools
import math
import re

import nbformat
import numpy as np
import pytest
import torch
from chapters import NOTEBOOKS, run_chapter, run_solution, unexpected
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import nls
import nls.noise
from nls import dependence, human
from nls.dependence import annotator_dependence, flip_covariance, neighbour_dependence

STEM = "02_label_noise"
SMALL = {"num_draws": 150, "num_runs": 6}
FIVE = ("aggregate", "random1", "random2", "random3", "worst")
PAIRS = (("random1", "random2"), ("random1", "random3"), ("random2", "random3"))
quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_rows(shape, g):
    """Probability vectors, some of them at the edge."""
    rows = torch.rand(shape, generator=g, dtype=torch.float64) ** 3
    rows = rows * (torch.rand(shape, generator=g) < 0.8) + 1e-3 * torch.eye(shape[-1])[0]
    return rows / rows.sum(-1, keepdim=True)


def near(share, rate, count):
    """Whether a share is within four standard errors of a rate."""
    return abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / count)


# The noisy posterior.


@quick
@given(seeds, st.integers(2, 12))
def test_the_noisy_posterior_is_the_transposed_matrix_times_the_posterior(seed, num_classes):
    """By enumeration of P(y, noisy y | x)."""
    g = seeded(seed)
    eta, transition = random_rows((2, num_classes), g), random_rows((num_classes, num_classes), g)
    found, rows = nls.noisy_posterior(eta, transition).tolist(), transition.tolist()
    for x, clean in enumerate(eta.tolist()):
        for j in range(num_classes):
            assert found[x][j] == pytest.approx(math.fsum(clean[i] * rows[i][j] for i in range(num_classes)), abs=1e-15)


@quick
@given(seeds, st.integers(2, 12), st.floats(0, 1))
def test_symmetric_noise_mixes_the_posterior_with_the_uniform_one(seed, num_classes, rate):
    """Also its eigenvalues: 1, and 1 - c for all that sums to zero; worst errors in 1000 draws 3e-16 and 3e-15."""
    eta, c = random_rows((5, num_classes), seeded(seed)), num_classes * rate / (num_classes - 1)
    transition = nls.symmetric_transition(num_classes, rate)
    torch.testing.assert_close(
        nls.noisy_posterior(eta, transition), (1 - c) * eta + c / num_classes, rtol=0, atol=1e-14
    )
    values = torch.linalg.eigvalsh(transition)
    expected = torch.tensor([1 - c] * (num_classes - 1) + [1.0], dtype=torch.float64).sort().values
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)


@quick
@given(seeds, st.integers(2, 6))
def test_the_average_matrix_gives_the_shares_of_classes_and_not_the_posterior(seed, num_classes):
    """Shares to 3e-16 in 1000 draws; the posterior is off as soon as the matrices differ between inputs."""
    g = seeded(seed)
    eta, each = random_rows((9, num_classes), g), random_rows((9, num_classes, num_classes), g)
    average = torch.einsum("xi,xij->ij", eta, each) / eta.sum(0)[:, None]
    true = torch.einsum("xi,xij->xj", eta, each)
    torch.testing.assert_close((eta @ average).mean(0), true.mean(0), rtol=0, atol=1e-14)
    assert (eta @ average - true).abs().max() > 1e-3


def test_independence_of_the_input_given_the_class_is_what_one_matrix_says():
    """Two noises with one average matrix: the posterior of one is T'eta, that of the other misses it by over 0.1."""
    eta = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.1, 0.9]], dtype=torch.float64)
    each = torch.stack([nls.symmetric_transition(2, rate) for rate in (0.0, 0.6, 0.0)])
    average = torch.einsum("xi,xij->ij", eta, each) / eta.sum(0)[:, None]
    by_average = nls.noisy_posterior(eta, average)
    true = torch.stack([nls.noisy_posterior(eta[x], each[x]) for x in range(3)])
    assert (true - by_average).abs().max() > 0.1
    torch.testing.assert_close(true.sum(0), by_average.sum(0), rtol=0, atol=1e-15)


# Conventions.


@quick
@given(st.integers(2, 40), st.floats(0, 1))
def test_replacing_at_rate_rho_is_symmetric_noise(num_classes, rho):
    """Of rate rho (K - 1) / K; worst error in 1000 draws 2e-16. So rho is c, and 50 % on ten classes is 45 %."""
    replace = (1 - rho) * torch.eye(num_classes, dtype=torch.float64) + rho / num_classes
    rate = rho * (num_classes - 1) / num_classes
    torch.testing.assert_close(replace, nls.symmetric_transition(num_classes, rate), rtol=0, atol=1e-15)
    assert num_classes * rate / (num_classes - 1) == pytest.approx(rho, abs=1e-15)
    assert nls.symmetric_transition(10, 0.45).equal(nls.symmetric_transition(10, 0.5 * 9 / 10))


def test_each_convention_realises_the_rate_that_it_implies():
    clean, g = torch.arange(10).repeat_interleave(2000), seeded()
    inputs = torch.randn(20_000, 3, generator=g)
    for rate in (0.1, 0.4, 0.6):
        drawn = {
            rate: nls.draw_noisy_labels(clean, nls.symmetric_transition(10, rate), g),
            rate / 2: nls.draw_noisy_labels(clean, nls.cifar10_asymmetric_transition(rate), g),
            stats.truncnorm.mean(-rate / 0.1, (1 - rate) / 0.1, rate, 0.1): nls.draw_instance_noise(
                inputs, clean, rate, g, num_classes=10
            ),
        }
        for implied, noisy in drawn.items():
            report = nls.noise_report(clean, noisy)
            assert near(report.realised_rate, implied, 20_000), (rate, implied)
    assert stats.truncnorm.mean(-1, 9, 0.1, 0.1) == pytest.approx(0.1288, abs=1e-4)


# What pairs of labels know.


def test_the_error_of_an_entry_is_binomial():
    transition = human.human_counts("cifar10n", "random1") / 5000
    clean, g = torch.arange(10).repeat_interleave(40), seeded()
    drawn = torch.stack(
        [nls.noise_report(clean, nls.draw_noisy_labels(clean, transition, g)).empirical_transition for _ in range(400)]
    )
    expected = transition * (1 - transition) / 40
    assert abs(float(drawn.var(0).sum() / expected.sum()) - 1) < 0.05
    error = (expected / 400).sqrt()
    assert ((drawn.mean(0) - transition).abs() / error).max() < 4.5  # unbiased, entry by entry
    assert math.ceil(1.96**2 * 0.4 * 0.6 / 0.05**2) == 369
    low, high = stats.binomtest(148, 369).proportion_ci(method="wilson")
    assert (high - low) / 2 == pytest.approx(0.05, abs=1e-3)


def test_the_worst_of_many_equal_classes_looks_worse():
    """A hundred classes of rate 0.4 and 50 labels: the worst shows 0.57, by the exact distribution of the maximum."""
    k = np.arange(51)
    below = stats.binom.cdf(k, 50, 0.4) ** 100
    expected = float((1 - below).sum()) / 50
    drawn = (np.random.default_rng(0).binomial(50, 0.4, (500, 100)) / 50).max(1).mean()
    assert 0.56 < expected < 0.59
    assert abs(drawn - expected) < 0.01


# Human labels.


def flips_of(name, label_set):
    counts = human.human_counts(name, label_set)
    return (counts.sum(1) - counts.diagonal()).numpy(), counts.sum(1).numpy()


def test_classes_of_the_human_labels_differ():
    """A chi-square test of equal rates, and exact intervals of SciPy at the level of Bonferroni."""
    for name, label_set in [("cifar10n", s) for s in FIVE] + [("cifar100n", "fine")]:
        wrong, totals = flips_of(name, label_set)
        assert stats.chi2_contingency([wrong, totals - wrong]).pvalue < 1e-100
        rate, level = wrong.sum() / totals.sum(), 1 - 0.05 / len(wrong)
        tests = [stats.binomtest(int(k), int(n)) for k, n in zip(wrong, totals, strict=True)]
        low, high = np.array([test.proportion_ci(level) for test in tests]).T
        assert (low > rate).any()
        assert (high < rate).any()
    assert (low > rate).sum() == 26
    assert (high < rate).sum() == 37
    assert high.min() < 0.15
    assert low.max() > 0.8
    published = {"aggregate": 9.03, "random1": 17.23, "random2": 18.12, "random3": 17.64, "worst": 40.21}
    for label_set, rate in published.items():
        wrong, totals = flips_of("cifar10n", label_set)
        assert 100 * wrong.sum() / totals.sum() == pytest.approx(rate, abs=0.03)


def test_human_errors_have_favourite_targets():
    """Symmetric noise would put a ninth of a class's errors on each wrong class."""
    for label_set in FIVE:
        counts = human.human_counts("cifar10n", label_set)
        for label, row in enumerate(counts):
            errors = np.delete(row.numpy(), label)
            assert stats.chisquare(errors).pvalue < 1e-15
            assert errors.max() / errors.sum() > 0.15


def test_three_classes_get_another_label_first():
    counts = human.human_counts("cifar100n", "fine").numpy()
    odd = {human.class_names("cifar100n")[i]: counts[i] for i in range(100) if counts[i].argmax() != i}
    assert set(odd) == {"pine_tree", "shrew", "streetcar"}
    for name, row in odd.items():
        own = row[human.class_names("cifar100n").index(name)]
        # The two counts share their sum evenly under equality.
        assert 2 * stats.binom.sf(row.max() - 1, row.max() + own, 0.5) > 0.05


# Two labels for each example.


@quick
@given(seeds, st.integers(2, 5), st.integers(2, 6))
def test_the_covariance_of_errors_is_the_variance_of_the_flip_rate(seed, num_classes, num_inputs):
    """By enumeration of the inputs of one class, also for two unlike annotators; worst error in 1000 draws 7e-16."""
    g = seeded(seed)
    weight = random_rows((num_inputs,), g)
    first, second = random_rows((2, num_inputs, num_classes), g)  # T_0j(x) of two annotators

    def joint(one, other):
        table = torch.zeros(num_classes, num_classes, dtype=torch.float64)
        for x, j, k in itertools.product(range(num_inputs), range(num_classes), range(num_classes)):
            table[j, k] += weight[x] * one[x, j] * other[x, k]
        return table

    for other in (first, second):
        table = joint(first, other)
        covariance = table - table.sum(1)[:, None] * table.sum(0)
        centred = (first - weight @ first)[:, :, None] * (other - weight @ other)[:, None, :]
        torch.testing.assert_close(covariance, torch.einsum("x,xjk->jk", weight, centred), rtol=0, atol=1e-14)
        flip, flip_other = 1 - first[:, 0], 1 - other[:, 0]
        expected = float(weight @ (flip * flip_other) - (weight @ flip) * (weight @ flip_other))
        assert float(covariance[1:, 1:].sum()) == pytest.approx(expected, abs=1e-14)
    constant = [rows[0].expand(num_inputs, -1) for rows in (first, second)]
    assert (joint(*constant) - first[0][:, None] * second[0]).abs().max() < 1e-15


def test_unlike_annotators_can_be_independent_although_both_depend_on_the_input():
    """Four inputs of equal weight; each annotator is unsure on two, and these choices are uncorrelated."""
    first, second = np.array([0.0, 0.0, 0.6, 0.6]), np.array([0.0, 0.6, 0.0, 0.6])
    assert first.var() > 0.05
    assert second.var() > 0.05
    assert np.mean(first * second) - first.mean() * second.mean() == pytest.approx(0, abs=1e-16)


def test_annotators_of_cifar10n_are_not_independent_given_the_class():
    """SciPy's G test of each class; automobiles alone show nothing in the covariance."""
    for pair in PAIRS:
        counts = human.human_counts("cifar10n", *pair)
        g, degrees = 0.0, 0
        for table in counts.numpy():
            table = table[table.sum(1) > 0][:, table.sum(0) > 0]
            test = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
            g, degrees = g + test.statistic, degrees + test.dof
        assert g > degrees + 20 * math.sqrt(2 * degrees)
        cells = torch.repeat_interleave(counts.nonzero(), counts[counts > 0], 0)
        found = annotator_dependence(cells[:, 1:], cells[:, 0], seeded(), num_permutations=9)
        assert found.statistic == pytest.approx(g / 100_000, abs=1e-9)
        # The chi-square approximation says how large the bias of the plug-in estimate is.
        assert found.expected == pytest.approx(degrees / 100_000, rel=0.1)
        spread = flip_covariance(cells[:, 1:], cells[:, 0])
        assert 0.014 < spread.low < spread.high < 0.0186
        car = cells[cells[:, 0] == 1]
        assert flip_covariance(car[:, 1:], car[:, 0]).low < 0.001


def test_the_majority_errs_more_than_the_tables_promise():
    """The vote of three independent annotators, by loops over their labels."""
    tables = [(human.human_counts("cifar10n", f"random{i}") / 5000).tolist() for i in (1, 2, 3)]
    majority = one = two = 0.0
    for y in range(10):
        for labels in itertools.product(range(10), repeat=3):
            p = math.prod(table[y][label] for table, label in zip(tables, labels, strict=True)) / 10
            if len(set(labels)) == 3:
                majority += p * (1 - labels.count(y) / 3)
            else:
                majority += p * (max(set(labels), key=labels.count) != y)
            one += p * (labels.count(y) < 3)
            two += p * (labels[0] != y and labels[1] != y)
    found = {}
    for label_set in ("aggregate", "worst"):
        wrong, _ = flips_of("cifar10n", label_set)
        found[label_set] = wrong.sum() / 50_000
    joint = human.human_counts("cifar10n", "random1", "random2")
    both = sum(int(joint[y].sum() - joint[y, y].sum() - joint[y, :, y].sum() + joint[y, y, y]) for y in range(10))
    assert majority == pytest.approx(0.0660, abs=1e-4)
    assert one == pytest.approx(0.4369, abs=1e-4)
    assert found["aggregate"] > majority + 20 * math.sqrt(0.066 / 50_000)
    assert found["worst"] < one - 10 * math.sqrt(0.25 / 50_000)
    assert both / 50_000 > 1.4 * two


# One label for each example.


@pytest.fixture(scope="module")
def digits():
    data = nls.load_dataset("digits")
    return data.train_features[:600], data.train_labels[:600]


def share_rejected(features, clean, draw, compare, runs=40):
    tests = [
        neighbour_dependence(features, clean, draw(seeded(run)), seeded(run), compare=compare, num_permutations=19)
        for run in range(runs)
    ]
    return sum(test.p_value <= 0.05 for test in tests) / runs


@pytest.mark.parametrize("compare", ["flip", "label"])
def test_p_values_are_uniform_under_one_table(digits, compare):
    features, clean = digits
    transition = human.human_counts("cifar10n", "worst") / 5000
    assert near(
        share_rejected(features, clean, lambda g: nls.draw_noisy_labels(clean, transition, g), compare), 0.05, 40
    )


def test_the_level_is_kept_by_enumeration_of_all_orders():
    """Of five labels, and of two permutations of them; ties make the test careful, never bold."""
    features, clean = torch.tensor([[0.0], [1.0], [2.5], [4.5], [4.6]]), torch.zeros(5, dtype=torch.int64)
    for labels, compare in (((0, 0, 0, 1, 1), "flip"), ((0, 0, 1, 1, 2), "label")):
        given = {"num_neighbors": 2, "num_permutations": 1, "compare": compare}
        orders = [torch.tensor(order) for order in sorted(set(itertools.permutations(labels)))]
        tests = [neighbour_dependence(features, clean, order, seeded(), **given) for order in orders]
        values = [round(test.statistic, 9) for test in tests]
        triples = itertools.product(set(values), repeat=3)
        p_of = {(s, *drawn): dependence._summarise(s, torch.tensor(drawn), 5).p_value for s, *drawn in triples}
        p_values = np.array([p_of[triple] for triple in itertools.product(values, repeat=3)])
        assert len(set(values)) > 3
        assert 0 < (p_values < 0.4).mean() <= 1 / 3
        assert 0 < (p_values < 0.7).mean() <= 2 / 3


def test_neighbours_find_noise_that_varies_with_the_features(digits):
    features, clean = digits
    side = torch.where(features[:, 20] > features[:, 20].median(), 0.6, 0.05)

    def rates(g):
        shift = torch.randint(1, 10, clean.shape, generator=g)
        return torch.where(torch.rand(len(clean), generator=g) < side, (clean + shift) % 10, clean)

    def targets(g):
        return nls.draw_instance_noise(features, clean, 0.3, g, num_classes=10)

    assert share_rejected(features, clean, rates, "flip", 15) > 0.6
    assert share_rejected(features, clean, targets, "label", 15) > 0.9


def test_drawn_rates_leave_no_trace_in_one_label(digits):
    """The generator's flip rates are the same numbers whatever the inputs are; only the targets change."""
    features, clean = digits
    both = [
        nls.noise.instance_transition(inputs, clean, 0.3, seeded(), num_classes=10)
        for inputs in (features, torch.randn(features.shape, generator=seeded(1)))
    ]
    stay = [rows.gather(1, clean[:, None]) for rows in both]
    assert stay[0].equal(stay[1])
    assert (both[0] - both[1]).abs().max() > 0.1
    drawn = share_rejected(
        features, clean, lambda g: nls.draw_instance_noise(features, clean, 0.3, g, num_classes=10), "flip"
    )
    assert near(drawn, 0.05, 40)
    # A label from a drawn row has the distribution of one from the average row: an identity of sums, by enumeration.
    rows, weight = random_rows((6, 4), seeded(2)), random_rows((6,), seeded(3))
    mixture = [sum(float(weight[v] * rows[v, j]) for v in range(6)) for j in range(4)]
    np.testing.assert_allclose(mixture, weight @ rows, atol=1e-15)


# The page.


def plant_formulas(patch):
    """The matrix untransposed, the other convention, errors not centred, and neighbours at random."""
    posterior, symmetric, neighbours = nls.noisy_posterior, nls.symmetric_transition, dependence._class_neighbours
    patch.setattr(nls, "noisy_posterior", lambda eta, transition: posterior(eta, transition.T))
    patch.setattr(nls, "symmetric_transition", lambda k, rate: symmetric(k, rate * (k - 1) / k))

    def uncentred(labels, clean):
        products = (labels != clean[:, None]).double().prod(1)
        return nls.mean_interval(products)

    def anywhere(rows, clean, num_neighbors):
        g = seeded()
        for members, near_ones in neighbours(rows, clean, num_neighbors):
            yield members, torch.randint(len(members), near_ones.shape, generator=g)

    patch.setattr(dependence, "flip_covariance", uncentred)
    patch.setattr(dependence, "_class_neighbours", anywhere)


def plant_labels(patch):
    """Draws that come in pairs; human counts as one symmetric table would give them.

    Also permutations across classes, and instance-dependent noise that flips on one side of the inputs only.
    """
    draw, draw_by_input, read = nls.draw_noisy_labels, nls.draw_instance_noise, human.human_counts
    neighbours = dependence._class_neighbours

    def in_pairs(labels, transition, generator):
        if labels.ndim > 1:
            return draw(labels, transition, generator)
        return draw(labels[::2], transition, generator).repeat_interleave(2)  # classes come in even blocks

    def smooth(name, *label_sets):
        counts = read(name, *label_sets)
        if label_sets[0] in ("worst", "coarse"):
            return counts
        table = nls.symmetric_transition(len(counts), 0.4 if name == "cifar100n" else 0.2)
        size = counts.sum() // len(counts)
        joint = table if len(label_sets) == 1 else torch.einsum("yi,yj->yij", table, table)
        return (size * joint).round().long()

    def one_sided(features, labels, noise_rate, generator, **options):
        noisy = draw_by_input(features, labels, min(1.0, 2 * noise_rate), generator, **options)
        side = features.mean(1)
        return torch.where(side > side.median(), noisy, labels)

    patch.setattr(nls, "draw_noisy_labels", in_pairs)
    patch.setattr(nls, "draw_instance_noise", one_sided)
    patch.setattr(human, "human_counts", smooth)
    patch.setattr(dependence, "_class_neighbours", lambda rows, clean, k: neighbours(rows, clean // 2, k))


MUTATIONS = {
    plant_formulas: {"noisy-posterior", "replaced-at-half", "four-conventions", "covariance-is-variance", "power"},
    plant_labels: {
        "sampling-error", "classes-differ", "hundred-classes-differ", "own-name-first",
        "human-noise-depends-on-the-image", "majority-promise", "size", "blind-to-drawn-rates",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def page():
    with pytest.MonkeyPatch.context() as patch:
        return run_chapter(STEM, patch, **SMALL)


def test_the_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    assert {claim.name for claim in page["claims"]} == set().union(*MUTATIONS.values())


def test_each_claim_names_a_test_and_a_figure_that_exist(page):
    cells = nbformat.read(NOTEBOOKS / f"{STEM}.ipynb", as_version=4).cells
    figures = {cell.metadata.mystnb.figure.name for cell in cells if "mystnb" in cell.metadata}
    for claim in page["claims"]:
        file, name = claim.test.split("::")
        assert file == "test_chapter_label_noise.py"
        assert callable(globals().get(name)), name
        assert claim.figure in figures
    text = "\n".join(cell.source for cell in cells)
    asked = set(re.findall(r"\{glue:text\}`noise-([\w-]+)[:`]", text))
    assert asked <= page["glued"].keys()


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_claims_fail_under_mutations(mutate, monkeypatch):
    mutate(monkeypatch)
    assert MUTATIONS[mutate] - unexpected(run_chapter(STEM, monkeypatch, **SMALL)) == set()


WRONG = {
    "solution-rate": ("0.8 * (num_classes - 1) / num_classes", "0.8"),
    "solution-worst": (".max(1).mean()\nenough", ".mean(1).mean()\nenough"),
    "solution-average": ("nls.noisy_posterior(eta, average)", "nls.noisy_posterior(eta, each.mean(0))"),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_run_and_wrong_ones_are_caught(name, page, capsys):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])


@pytest.mark.shared_data
def test_the_page_counts_the_label_files_where_they_are(monkeypatch):
    folder = human.Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    if not (folder / "CIFAR-100_human.pt").is_file():
        pytest.skip("needs the human labels beside the checkout")
    read, load = [], human.load_human_labels

    def recorded(name, root):
        read.append(name)
        return load(name, root)

    monkeypatch.setattr(human, "load_human_labels", recorded)
    cells = {cell.id: cell for cell in nbformat.read(NOTEBOOKS / f"{STEM}.ipynb", as_version=4).cells}
    space = {}
    for name in ("imports", "parameters", "settings"):
        exec(cells[name].source, space)
        if name == "parameters":
            space["human_root"] = str(folder)
    assert space["origin"] == "counted again from the label files"
    assert set(read) == {"cifar10n", "cifar100n", "cifar100n_coarse"}
