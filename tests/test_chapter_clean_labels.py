"""Label smoothing on clean labels: the bound against an oracle, the claims, each under a planted mutation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chapters import run_chapter, run_solution, unexpected
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import nls
import nls.geometry
import nls.store
import nls.studies

STEM = "20_clean_labels"
SMALL = {"num_seeds": 5, "geometry_seeds": 3}
TRAINED = {}  # runs and stacks of the page without a mutation, by what they depend on
FAST = settings(max_examples=10, deadline=None, derandomize=True)


# The statement


@FAST
@given(rate=st.floats(0.02, 0.9), k=st.integers(2, 10), accuracy=st.floats(0.5, 0.99), less=st.floats(0, 0.2))
def test_a_rate_that_is_sure_to_be_too_much(rate, k, accuracy, less):
    """The minimiser of one example's loss is as sure as the target, and above the bound less sure than right."""

    def risk(z):
        model = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        target = (1 - rate) * np.eye(k)[0] + rate / k
        return -target @ np.log(model), model - target

    z = minimize(risk, np.zeros(k), jac=True, method="BFGS", options={"gtol": 1e-10}).x
    sure = (np.exp(z - z.max()) / np.exp(z - z.max()).sum()).max()
    assert sure == pytest.approx(1 - rate * (k - 1) / k, abs=1e-6)
    shortfall = accuracy - (sure - less)  # others get at most the confidence of training examples
    assert shortfall >= accuracy - 1 + rate * (k - 1) / k - 1e-6
    bound = (1 - accuracy) * k / (k - 1)
    assert (shortfall > 1e-6) or rate <= bound + 1e-5
    exact = accuracy - (1 - bound * (k - 1) / k)
    assert exact == pytest.approx(0, abs=1e-12)


def test_live_networks_are_as_sure_of_what_they_learnt_as_the_loss_wants(page):
    """The bound rests on networks that reach the minimum of their training examples, up to a few hundredths."""
    live = page["live"]
    for rate in (0.05, 0.1, 0.2, 0.4):
        for name, rows in live[live["smooth_rate"] == rate].groupby("dataset"):
            k = page["classes"][name]
            wanted = 1 - rate * (k - 1) / k
            assert wanted - 0.07 < rows["train_confidence"].mean() < wanted + 0.01, (name, rate)


# The page


def kept(key, make):
    """Make something once in this process."""
    if key not in TRAINED:
        TRAINED[key] = make()
    return TRAINED[key]


def stored_rows(name):
    """Return a stored study, which is read once."""
    return kept(name, lambda: nls.store.load_results(name)).copy()


def run(patch, change=lambda rows: rows, member=lambda index: index, **values):
    """Execute the page at its smallest size; ``change`` sees the rows of every live run."""
    train, stack = nls.geometry.clean_run, nls.fit_stack

    def live(name, size, seed):
        return change([dict(row) for row in kept((name, size, seed), lambda: train(name, size, seed))])

    def fit(features, labels, rates, **options):
        key = (options["seed"], options["hidden"])
        found = kept(key, lambda: stack(features, labels, rates, **options)).stack
        return SimpleNamespace(stack=SimpleNamespace(member=lambda index: found.member(member(index))))

    patch.setattr(nls.geometry, "clean_run", live)
    if nls.load_results is nls.store.load_results:
        patch.setattr(nls, "load_results", stored_rows)
    patch.setattr(nls, "fit_stack", fit)
    return run_chapter(STEM, patch, **SMALL | values)


def rates_become(change):
    """Give each row the results of the row whose rate is ``change`` of its own."""

    def planted(rows):
        by = {(row["smooth_rate"], row["weight_decay"]): row for row in rows}
        return [
            by[change(row["smooth_rate"]), row["weight_decay"]] | {"smooth_rate": row["smooth_rate"]} for row in rows
        ]

    return planted


def flattered(rows):
    """Report positive rates as far more accurate and calibrated, the last epoch for the other, no temperature."""
    better = {"accuracy_last": lambda a: a + 0.2, "ece_last": lambda e: 0.05 * e}
    rows = [
        row | ({name: f(row[name]) for name, f in better.items()} if row["smooth_rate"] > 0 else {}) for row in rows
    ]
    return [row | {"accuracy_noisy_validation": row["accuracy_last"], "nll_scaled": row["nll_last"]} for row in rows]


def stored_rates(change):
    """Pass the stored rows of small sets through a function, and swap the rates of those on images."""
    changes = {"clean_sets": change, "clean_images": swapped}

    def mutate(patch):
        patch.setattr(nls, "load_results", lambda name: changes.get(name, lambda table: table)(stored_rows(name)))

    return mutate


def accuracies_shuffled(table):
    """Shuffle the test accuracies of the stored rows within each setting and seed."""
    table = table.copy()
    columns = ["accuracy_last", "accuracy_noisy_validation"]
    for i, (_, rows) in enumerate(table.groupby(["dataset", "train_size", "seed"])):
        order = np.random.default_rng(i).permutation(len(rows))
        table.loc[rows.index, columns] = rows[columns].to_numpy()[order]
    return table


def validation_upside_down(table):
    """Pick the worst on validation."""
    names = [name for name in table if name.startswith("validation_accuracy")]
    return table.assign(**{name: 1 - table[name] for name in names})


def swapped(table):
    """Call r = 0.1 on the images r = 0 and the other way round, and draw its classes together by half."""
    rate = table["smooth_rate"].replace({0.0: 0.1, 0.1: 0.0})
    tight = {name: table[name] * np.where(rate == 0.1, 0.5, 1.0) for name in ("span_scatter", "train_span_scatter")}
    return table.assign(smooth_rate=rate, **tight)


def images_swapped(patch):
    """Call the stored r = 0.4 on images r = 0 and the other way round."""
    load = nls.studies.load_study
    swap = {0.0: 0.4, 0.4: 0.0}
    patch.setattr(
        nls.studies, "load_study", lambda name: (t := load(name)).assign(smooth_rate=t["smooth_rate"].replace(swap))
    )


MUTATIONS = {
    "rate -> |rate|": ({"change": rates_become(abs)}, (), {"best-rate-not-negative"}),
    "rate -> 0": ({"change": rates_become(lambda rate: 0.0)}, (), {
        "positive-on-calibration", "sign-depends-on-the-set", "turns-early", "worse-on-four"}),
    "flattered": ({"change": flattered}, (), {
        "regardless-of-labels", "as-good-as-temperature", "a-matter-of-stopping", "few-held-out-labels"}),
    "too small a rate, members reversed, stored rows shuffled, images swapped": (
        {"change": rates_become(lambda r: {0.1: 0.0, 0.2: 0.05, 0.4: 0.05}.get(r, r)), "member": lambda i: 2 - i},
        (stored_rates(accuracies_shuffled), images_swapped),
        {"under-confident-bound", "tighter-clusters", "depth-decides", "positive-on-generalisation",
         "both-signs-when-tuned", "nothing-to-hold-back", "calibrates-on-images", "tighter-on-images"}),
    "validation upside down": ({}, (stored_rates(validation_upside_down),), {"choice-takes-the-loss-away"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def page():
    """The names that the page leaves, in a small run."""
    with pytest.MonkeyPatch.context() as patch:
        return run(patch)


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    fallen = set().union(*(names for *_, names in MUTATIONS.values()))
    assert {claim.name for claim in page["claims"]} == fallen, "a claim is seen to fail nowhere"


@pytest.mark.parametrize("name", MUTATIONS)
def test_claims_fall_under_a_mutation(name, monkeypatch):
    live, stored, expected = MUTATIONS[name]
    for mutate in stored:
        mutate(monkeypatch)
    assert expected - unexpected(run(monkeypatch, **live)) == set()


def test_the_stored_study_has_the_scale_that_its_card_states():
    table = nls.load_results("clean_sets")
    settings_of = table.groupby(["dataset", "train_size"])
    assert set(settings_of.groups) == set(nls.geometry.SETTINGS)
    assert (settings_of["seed"].nunique() == 10).all()
    assert (table.groupby(["dataset", "train_size", "seed"]).size() == 45).all()
    assert len(table) == 4050
    assert "4,050 networks" in (nls.store.results_root() / "clean_sets" / "README.md").read_text()


def test_a_stored_run_comes_out_again():
    stored = nls.load_results("clean_sets").set_index(["dataset", "train_size", "seed", "smooth_rate", "weight_decay"])
    for row in nls.geometry.clean_run("wine", 0, 3):
        same = stored.loc["wine", 0, 3, row["smooth_rate"], 0.0]
        assert row["num_train"] == same["num_train"]
        assert abs(row["accuracy_last"] - same["accuracy_last"]) < 0.06  # two of 36 test rows: processors round
        if row["smooth_rate"] > 0:
            assert row["ece_last"] == pytest.approx(same["ece_last"], abs=0.03)


def test_every_stored_run_saw_its_whole_training_set():
    table = nls.load_results("clean_sets")
    expected = {"digits": 1078, "wine": 107, "breast_cancer": 341}
    for (name, size), rows in table.groupby(["dataset", "train_size"]):
        assert set(rows["num_train"]) == {size or expected.get(name, 1800)}


# The exercises

WRONG = {
    "solution-confidence": ("sure <= accuracy", "sure <= accuracy + 0.05"),
    "solution-tight": ("scatter_ratio(shrunk, y)", 'distance["shrunk"]'),
    "solution-best": (".max(1).values", ".mean(1)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    torch.manual_seed(1)
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])
