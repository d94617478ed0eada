"""The chapter on labels of people: its claims hold, and each falls under a planted mutation."""

import numpy as np
import pytest
from chapters import run_chapter, run_solution, unexpected
from planted_studies import relabel, splits_in_the_build, write_made_cifar

import nls
import nls.human
import nls.image_runs

STEM = "15_human"
SMALL = {"live_seeds": 3}


def shift_sets(patch):
    """Put the results of the small study under the next label set."""
    original = nls.image_runs.load_study
    names = ["cifar10n_aggregate", "cifar10n_random1", "cifar10n_worst"]
    turned = dict(zip(names, names[1:] + names[:1], strict=True))

    def load(name):
        table = original(name)
        return table.assign(noise_name=table["noise_name"].replace(turned)) if name == "cifar10_small" else table

    patch.setattr(nls.image_runs, "load_study", load)


def losses_exchanged_live(patch):
    """Report backward correction as forward and r = 0.4 as the named rate, and the other way round."""
    train = nls.image_runs.train_methods
    exchange = {"backward": "forward", "forward": "backward", "r = 0.4": "r_F", "r_F": "r = 0.4"}

    def run(*args, **options):
        table, curves = train(*args, **options)
        return table.assign(method=table["method"].replace(exchange)), curves

    patch.setattr(nls.image_runs, "train_methods", run)


def last_epoch_live(patch):
    """Report the last epoch under noisy validation."""
    train = nls.image_runs.train_methods

    def run(*args, **options):
        table, curves = train(*args, **options)
        return table.assign(accuracy_noisy_validation=table["accuracy_last"]), curves

    patch.setattr(nls.image_runs, "train_methods", run)


def rerun_low(patch):
    """Let the re-run of cross entropy be as low as no one has it."""
    original = nls.load_results

    def load(study):
        table = original(study)
        if study == "paper_cifar":
            table["accuracy"] = table["accuracy"].where(table["provenance"] != "R", 40.0)
        return table

    patch.setattr(nls, "load_results", load)


def annotators_independent(patch):
    """Let two annotators err independently within a class."""
    count = nls.human.human_counts

    def counts(name, *sets):
        table = count(name, *sets).double()
        if len(sets) == 1:
            return table
        first, second = table.sum(2), table.sum(1)
        return first[:, :, None] * second[:, None, :] / table.sum((1, 2))[:, None, None]

    patch.setattr(nls.human, "human_counts", counts)


def curves_in_order(patch):
    """Let test accuracy in the large study rise over the warm-up, whatever validation labels say."""
    original = nls.image_runs.load_curves

    def load(name):
        curves = original(name)
        if name == "cifar10_large":
            curves = curves[curves["epoch"] <= 40].sort_values(["seed", "epoch"])
            curves["accuracy"] = np.sort(curves["accuracy"].to_numpy().reshape(3, 40), axis=1).ravel()
        return curves

    patch.setattr(nls.image_runs, "load_curves", load)


MUTATIONS = {
    "r = 0 and r = -6 exchanged": (
        [relabel("cifar10_small", {"r = 0": "r = -6"}), last_epoch_live],
        {"gain-aggregate", "gain-random1", "some-rate", "some-matrix", "never-below", "picked-by-validation"}),
    "sign of the rate": (
        [relabel("cifar10_small", {"r = 0.6": "r = -6", "r = 0.4": "r = -2"}),
         losses_exchanged_live],
        {"over-ls", "after-memorising", "forward-keeps"}),
    "rivals among the rates": (
        [relabel("cifar10_small", {"forward": "r = -6", "gce": "r = -2", "peer": "r = 0"}), rerun_low],
        {"gain-worst", "over-forward", "over-gce", "over-peer", "reported-over-again"}),
    "label sets exchanged": ([shift_sets], {"rate-repairs-worst", "rate-hurts-aggregate"}),
    "the bottom where the matrix has it": (
        [relabel("cifar10_small", {"r = 0": "r = -0.4"}, ["cifar10n_random1"]),
         relabel("cifar10_small", {"r = -0.4": "r = -0.8"}, ["cifar10n_worst"])],
        {"at-named-rate"}),
    "annotators independent": (
        [annotators_independent, curves_in_order, relabel("cifar10_small", {"backward": "r = -0.4"})],
        {"matrix-repairs-worst", "errors-together", "rule-worth", "validation-suffices"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    """Tables of the digits by their arguments, so that they are trained once for all mutations."""
    return {}


def train_once(patch, trained):
    original = nls.image_runs.train_methods

    def run(data, transition, methods, *, seed, **settings):
        key = (seed, tuple(methods))
        if key not in trained:
            trained[key] = original(data, transition, methods, seed=seed, **settings)
        return tuple(table.copy() for table in trained[key])

    patch.setattr(nls.image_runs, "train_methods", run)


@pytest.fixture
def patch(monkeypatch, trained):
    """What a test plants in a page."""
    train_once(monkeypatch, trained)
    return monkeypatch


@pytest.fixture(scope="module")
def page(trained):
    """The names that the page leaves."""
    with pytest.MonkeyPatch.context() as patch:
        train_once(patch, trained)
        return run_chapter(STEM, patch, **SMALL)


def untested(page):
    return {claim.name for claim in page["claims"] if claim.holds is None}


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    assert untested(page) == {"cifar-100n", "full-length"}
    fallen = {name for _, names in MUTATIONS.values() for name in names}
    assert {claim.name for claim in page["claims"]} - untested(page) - fallen == set()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_claims_fall_under_a_mutation(mutation, patch):
    plant, names = MUTATIONS[mutation]
    for mutate in plant:
        mutate(patch)
    assert names - unexpected(run_chapter(STEM, patch, **SMALL)) == set()


def test_the_rule_is_worth_what_a_plain_loop_finds(page):
    curves = nls.load_results("cifar10_large_curves")
    lifts, lost = [], []
    for _, run in curves[curves["epoch"] <= 40].groupby("id"):
        accuracy, validation = (run.sort_values("epoch")[c].tolist() for c in ("accuracy", "validation_accuracy"))
        lifts.append(max(accuracy) - accuracy[-1])
        lost.append(max(accuracy) - accuracy[validation.index(max(validation))])
    assert page["worth"].mean == pytest.approx(100 * np.mean(lifts))
    assert page["given_up"].mean == pytest.approx(100 * np.mean(lost))
    assert page["worth"].n == 3


def test_the_digits_err_as_the_matrix_says(page):
    """The labels that the stages are trained on are those of the counted matrix."""
    counts = nls.human.human_counts("cifar10n", "worst").double()
    matrix = counts / counts.sum(1, keepdim=True)
    data = nls.load_dataset("digits_images", seed=0)
    labels = nls.draw_noisy_labels(data.train_labels, page["T"], nls.seeded_generator(0, "train noise"))
    share = float((labels != data.train_labels).double().mean())
    expected = float((1 - matrix.diagonal())[data.train_labels].mean())
    assert abs(share - expected) < 4 * (0.25 / len(labels)) ** 0.5
    assert (page["live"]["method"].value_counts() == SMALL["live_seeds"]).all()


def test_the_page_can_be_run_whole_with_a_study_trained_again(tmp_path, patch):
    write_made_cifar(tmp_path, num_train=50_000, human=True)
    patch.setenv("NLS_DATA", str(tmp_path))
    patch.setenv("NLS_WORKERS", "1")
    sizes = {"num_seeds": 1, "num_examples": 110, "warmup_epochs": 1, "epochs": 1}
    page = run_chapter(STEM, patch, whole=True, recompute=True, store=str(tmp_path / "kept"), **sizes, **SMALL)
    assert len(page["done"]) == 3 * 20
    assert page["curves"]["epoch"].max() == 2
    assert len(list((tmp_path / "kept").glob("*.json"))) == 3 * 20


def test_the_page_trains_what_it_says(page):
    assert splits_in_the_build(STEM) >= 5
    assert len(page["live"]) == 6 * SMALL["live_seeds"]


WRONG = {
    "solution-board": ("in over_again.items() if gap > 0}", "in over_reported.items() if gap > 0}"),
    "solution-worst": ("(matrices[worst], spread_evenly)", "(spread_evenly, spread_evenly)"),
    "solution-lift": ('= means["accuracy_clean_test"] - means["accuracy_last"]', '= means["accuracy_last"] * 0'),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])
