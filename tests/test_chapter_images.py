"""The chapter on images: its claims hold, each falls under a planted mutation, and its study can be trained again."""

import numpy as np
import pytest
from chapters import run_chapter, run_solution, unexpected
from planted_studies import relabel, splits_in_the_build, write_made_cifar

import nls
import nls.engine
import nls.image_runs

STEM = "14_images"
SMALL = {"live_seeds": 3}


def rotate_noises(patch):
    """Put the results of the small study under the next noise."""
    original = nls.image_runs.load_study
    names = ["symmetric_0", "symmetric_0.2", "symmetric_0.4", "symmetric_0.6", "cifar10_asymmetric_0.3"]
    turned = dict(zip(names, names[1:] + names[:1], strict=True))

    def load(name):
        table = original(name)
        return table.assign(noise_name=table["noise_name"].replace(turned)) if name == "cifar10_small" else table

    patch.setattr(nls.image_runs, "load_study", load)


def start_at_the_end(patch):
    """Take the end of the stage for the end of the warm-up, and exchange both in the large study."""
    original = nls.image_runs.load_curves

    def load(name):
        curves = original(name)
        if name == "cifar10_small":
            return curves.assign(epoch=curves["epoch"] - 5)
        return curves.assign(epoch=curves["epoch"].replace({40: 60, 60: 40}))

    patch.setattr(nls.image_runs, "load_curves", load)


def lose_the_control(patch):
    """Put a worse start under the stage at r = 0 of the released recipe."""
    original = nls.image_runs.load_study

    def load(name):
        table = original(name)
        if name == "cifar10_released":
            table["accuracy_last"] -= 0.03 * table["smooth_rate"].eq(0)
        return table

    patch.setattr(nls.image_runs, "load_study", load)


def far_stage_gains(patch):
    """Make negative rates better where the stage of the released recipe goes as far as the original."""
    original = nls.image_runs.load_study

    def load(name):
        table = original(name)
        if name == "cifar10_released":
            table["accuracy_last"] += 0.05 * (table["learning_rate"].eq(1e-4) & table["smooth_rate"].lt(0))
        return table

    patch.setattr(nls.image_runs, "load_study", load)


def rates_exchanged_live(patch):
    """Train r = 0.4 where r = -2 is asked for, and the other way round."""
    train = nls.run_grid

    def run(grid, **options):
        table = train(grid, **options)
        rows = table.set_index(["smooth_rate", "normalized", "seed"])
        columns = [column for column in table if column.startswith(("accuracy_", "memorised_"))]
        for place, row in table.iterrows():
            other = {-2.0: 0.4, 0.4: -2.0}.get(row["smooth_rate"])
            if (other, False, row["seed"]) in rows.index:
                table.loc[place, columns] = rows.loc[(other, False, row["seed"]), columns]
            elif other is not None:  # no such stage from this start: as r = 0, less a little
                table.loc[place, columns] = rows.loc[(0.0, False, row["seed"]), columns].astype(float) - 0.01
        return table

    patch.setattr(nls, "run_grid", run)


def every_rule_is_the_last(patch):
    """Report the last epoch under noisy validation, on the digits."""
    train = nls.run_grid
    patch.setattr(
        nls,
        "run_grid",
        lambda grid, **options: train(grid, **options).pipe(
            lambda table: table.assign(accuracy_noisy_validation=table["accuracy_last"])
        ),
    )


GAINS = {f"gain-{noise}" for noise in
         ("symmetric_0", "symmetric_0.2", "symmetric_0.4", "symmetric_0.6", "cifar10_asymmetric_0.3")}  # fmt: skip
MUTATIONS = {
    "r = 0 and r = -6 exchanged": (
        [relabel("cifar10_small", {"r = 0": "r = -6"}), every_rule_is_the_last],
        GAINS | {"stage-gains", "nll-at-theory", "nll-repaired", "others-symmetric", "picked-by-validation"}),
    "the same, at 60 % alone": (
        [relabel("cifar10_small", {"r = 0": "r = -6"}, ["symmetric_0.6"]),
         relabel("cifar10_memorising", {"r = 0.4": "r = -0.4"})],
        {"best-rate-falls", "direct", "positive-direct"}),
    "sign of the rate": (
        [relabel("cifar10_small", {"r = 0.6": "r = -6", "r = 0.4": "r = -2"}), rates_exchanged_live],
        {"over-ls-symmetric_0.4", "over-ls-symmetric_0.6", "nll-at-theory", "step-gives-back", "after-memorising",
         "more-after-memorising", "forgets", "not-the-step", "positive-hurts"}),
    "normalised and not": (
        [relabel("cifar10_small", {f"r = {r}": f"r = {r}, normalised" for r in ("0.4", "-0.8", "-2", "-6")}),
         far_stage_gains],
        {"step-gives-back", "valley-moves", "released-as-far"}),
    "control lost": (
        [relabel("cifar10_small", {"r = 0": "r = -6, normalised"}), lose_the_control],
        {"rate-still-costs", "price-falls", "released-stage", "tiny-step"}),
    "noises rotated": (
        [rotate_noises], {"same-loss", "map-behind", "nll-asymmetric", "told-asymmetric", "nll-at-theory"}),
    "epochs shifted": ([start_at_the_end], {"gain-over-warmup", "stage-gains", "positive-hurts-large"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A folder that keeps the networks of the page, so that they are trained once for all mutations."""
    return tmp_path_factory.mktemp("images")


def train_here(patch, stores):
    """Train the digits in this process, and into a store that stays."""
    patch.setenv("NLS_WORKERS", "1")
    original = nls.RecordStore
    patch.setattr(nls, "RecordStore", lambda folder: original(stores / str(folder).rsplit("/", 1)[-1]))


@pytest.fixture
def patch(monkeypatch, stores):
    """What a test plants in a page."""
    train_here(monkeypatch, stores)
    return monkeypatch


@pytest.fixture(scope="module")
def page(stores):
    """The names that the page leaves."""
    with pytest.MonkeyPatch.context() as patch:
        train_here(patch, stores)
        return run_chapter(STEM, patch, **SMALL)


def untested(page):
    return {claim.name for claim in page["claims"] if claim.holds is None}


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    assert untested(page) == {"full-length", "asymmetric-20", "cifar-100"}
    fallen = {name for _, names in MUTATIONS.values() for name in names}
    assert {claim.name for claim in page["claims"]} - untested(page) == fallen
    assert all(claim.test == "test_chapter_images.py::test_claims_are_as_the_page_says" or claim.holds is None
               for claim in page["claims"])  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_claims_fall_under_a_mutation(mutation, patch):
    plant, names = MUTATIONS[mutation]
    for mutate in plant:
        mutate(patch)
    assert names - unexpected(run_chapter(STEM, patch, **SMALL)) == set()


def test_effects_are_those_of_a_plain_loop(page):
    """The table of what remains, from the rows by hand."""
    table = nls.load_results("cifar10_small").query("noise_name == 'symmetric_0.4' and loss == 'gls'")
    table = table[~table["normalized"]]
    curves = nls.load_results("cifar10_small_curves")
    best, tuned, start = [], [], []
    for seed in range(3):
        rows = table[table["seed"] == seed].set_index("smooth_rate")
        below = rows[rows.index < 0]
        best.append(below["accuracy_clean_test"].max() - rows.loc[0.0, "accuracy_clean_test"])
        picked = below.sort_values("validation_accuracy_noisy_validation", kind="stable").iloc[-1]
        tuned.append(picked["accuracy_noisy_validation"] - rows.loc[0.0, "accuracy_noisy_validation"])
        course = curves[curves["id"] == rows.loc[0.0, "id"]].set_index("epoch")["accuracy"]
        start.append(below["accuracy_clean_test"].max() - course[15])
    gains = page["gains"]
    for key, values in {"clean test": best, "noisy validation": tuned}.items():
        assert gains[f"over r = 0, {key}", "symmetric_0.4"].mean == pytest.approx(100 * np.mean(values))
    assert gains["over the warm-up", "symmetric_0.4"].mean == pytest.approx(100 * np.mean(start))
    assert gains["over the warm-up", "symmetric_0.4"].n == 3


def test_the_text_on_the_far_stage_counts_the_stored_seeds(page):
    """Effects and numbers of seeds at 1e-4, from the rows by hand."""
    rows = nls.load_results("cifar10_released").query("learning_rate == 1e-4 and warmup_pick == 'clean_test'")
    table = rows.pivot(index="seed", columns=["noise_name", "smooth_rate"], values="accuracy_last")["symmetric_0.6"]
    gaps = 100 * table.sub(table[0.0], axis=0)[[-0.8, -2.0, -6.0]].dropna()
    said = f"60 %: {gaps.mean().min():+.2f} to {gaps.mean().max():+.2f} points, n = {len(gaps)}"
    assert said in page["far"]
    assert page["far"].endswith("No interval from three seeds is above zero.")


def test_the_measured_time_of_an_epoch_is_that_of_the_card(page):
    card = (nls.store.results_root() / "cifar10_large" / "README.md").read_text()
    assert f"ResNet-34 {page['resnet34_epoch']} s" in card


def test_missing_cells_are_shown_as_missing(patch):
    """The section on the released recipe lives with any part of its cells."""
    original = nls.image_runs.load_study

    def load(name):
        table = original(name)
        if name == "cifar10_released":
            far = table["learning_rate"].eq(1e-4)
            table = table.assign(state=table["state"].where(~far, "missing"))
        return table

    patch.setattr(nls.image_runs, "load_study", load)
    page = run_chapter(STEM, patch, **SMALL)
    assert unexpected(page) == set()
    assert "released-as-far" in untested(page)


def test_the_page_can_be_run_whole_with_a_study_trained_again(tmp_path, patch):
    write_made_cifar(tmp_path)
    patch.setenv("NLS_DATA", str(tmp_path))
    patch.setenv("NLS_WORKERS", "1")
    sizes = {"num_seeds": 1, "num_examples": 110, "warmup_epochs": 1, "epochs": 1}
    page = run_chapter(STEM, patch, whole=True, recompute=True, store=str(tmp_path / "kept"), **sizes, **SMALL)
    assert len(page["done"]) == 5 * 20
    assert page["curves"]["epoch"].max() == 2
    assert len(list((tmp_path / "kept").glob("*.json"))) == 5 * 20


def test_the_page_trains_what_it_says(page):
    assert splits_in_the_build(STEM) >= 5
    assert page["count"] == 8 * SMALL["live_seeds"]


WRONG = {
    "solution-stage": ('== "r = 0.4, normalised"]', '== "r = -6"]'),
    "solution-step": ("step = 0.001 / 7", "step = 0.001"),
    "solution-seeds": ("spread / math.sqrt(n) < 0.5", "spread / n < 0.5"),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])
