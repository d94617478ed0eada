"""Alignment: the floor of the chapter against an oracle of its own, its claims under mutations, its solutions."""

import itertools
import statistics

import numpy as np
import pandas as pd
import pytest
from chapters import run_chapter, run_solution, unexpected

from nls import alignment

STEM = "34_alignment"
SMALL = {"num_seeds": 3, "steps": 150, "image_steps": 100, "ratios": [0.4, 0.8]}


# The statements


def test_no_order_blind_function_beats_the_floor():
    """Over all orders of a set, the mean is the best single answer for its first number, and no better than 1 - 1/m."""
    rng = np.random.default_rng(0)
    m, count = 3, 20000
    sets = rng.random((count, m))
    best = np.mean([
        statistics.pvariance(order[0] for order in itertools.permutations(row)) for row in sets[:2000].tolist()
    ]) * 12  # fmt: skip
    assert best == pytest.approx(1 - 1 / m, abs=0.03)
    worse = np.mean((np.median(sets, 1) - sets[:, 0]) ** 2) * 12  # another function that is blind to the order
    assert worse > best


def test_learnable_noise_doubles_the_cost():
    rng = np.random.default_rng(0)
    target, noise = rng.standard_normal((2, 200000))
    for ratio in (0.2, 0.8):
        learnt = (1 - ratio) * target + ratio * noise
        assert np.mean((learnt - target) ** 2) == pytest.approx(2 * ratio**2, rel=0.02)
        assert np.mean(((1 - ratio) * target - target) ** 2) == pytest.approx(ratio**2, rel=0.02)


# The page


def change(patch, name, function):
    """Pass what a function of the module returns through another one."""
    inner = getattr(alignment, name)
    patch.setattr(alignment, name, lambda *args, **rest: function(inner(*args, **rest)))


def functions_renamed(patch):
    """Call the largest number the sum, the sum the first number, and the first the largest."""
    turn = {"max": "sum", "sum": "first", "first": "max", "digit": "place", "place": "shape", "shape": "digit"}
    change(patch, "ladder", lambda table: table.assign(function=table["function"].replace(turn)))


def targets_as_noise(patch):
    """Take the alignment with the target for that with the noise, and the other way round."""

    def swap(table):
        noise = -table["by_noise"]
        return table.assign(by_noise=-table["by_target"], by_target=noise, by_difference=table["by_difference"])

    change(patch, "predictions", swap)


def sign_lost(patch):
    """Predict that what needs many examples survives."""
    change(
        patch,
        "predictions",
        lambda table: table.assign(by_difference=-table["by_difference"], by_rung=-table["by_rung"]),
    )


def columns_swapped(patch):
    """Read the network's own error as that of its last layer, and that after training as that before."""
    names = {"own": "probe", "probe": "own", "untrained": "input", "input": "untrained"}
    change(patch, "survive", lambda table: table.rename(columns=names))


def before_as_after(patch):
    """Read the last layer before training as the one after."""
    change(patch, "survive", lambda table: table.rename(columns={"probe": "untrained", "untrained": "probe"}))


def errors_shuffled(patch):
    """Give each pair the errors of another one."""

    def shuffle(table):
        order = np.random.default_rng(1).permutation(len(table))
        columns = ["own", "rescaled", "probe", "untrained"]
        return table.assign(**{name: table[name].to_numpy()[order] for name in columns})

    change(patch, "survive", shuffle)


def noises_alike(patch):
    """Give all noises the errors that random noise leaves."""

    def level(table):
        keys = ["network", "target", "ratio", "seed"]
        random = table[table["noise"] == alignment.NO_FUNCTION].set_index(keys)
        rows = table.set_index(keys)
        return rows.assign(
            own=random["own"].reindex(rows.index), probe=random["probe"].reindex(rows.index)
        ).reset_index()

    change(patch, "survive", level)


def target_mixed_with_probe(patch):
    """Let the last layer depend on the noise as the output does, and on the target no more."""

    def mix(table):
        return table.assign(probe=table["own"], own=table["own"]) if "own" in table else table

    change(patch, "survive", mix)
    change(
        patch,
        "predictions",
        lambda table: table.assign(by_target=0.01 * np.arange(len(table)) % 1, by_difference=-table["own"]),
    )


def clean_ladder_of_noise(patch):
    """Add the error of a constant at the rung that has as many examples as the linear models see."""
    change(patch, "ladder", lambda table: table.assign(error=table["error"] + (table["size"] == 32)))


MUTATIONS = {
    functions_renamed: {"built-in-order", "order-blind"},
    targets_as_noise: {"harder-noise-leaves-more", "one-rung"},
    sign_lost: {"difference-orders", "images-order", "one-rung"},
    columns_swapped: {"trained-beats-random"},
    before_as_after: {"trained-beats-random"},
    errors_shuffled: {"difference-orders", "learnable-noise", "images-order"},
    noises_alike: {"learnable-noise", "harder-noise-leaves-more", "output-by-difference"},
    target_mixed_with_probe: {"layer-by-target", "images-noise-adds"},
    clean_ladder_of_noise: {"clean-alone-better"},
}
UNTESTED = {"modules"}


@pytest.fixture(scope="module")
def trained():
    """Tables that were trained before, by what they depend on; a mutation changes tables and trains nothing again."""
    return {}


def remember(patch, trained):
    """Train no network twice."""
    for name in ("ladder", "survive"):
        inner = getattr(alignment, name)

        def remembered(*args, name=name, inner=inner, **rest):
            key = repr((name, args, rest))
            if key not in trained:
                trained[key] = inner(*args, **rest)
            return trained[key].copy()

        patch.setattr(alignment, name, remembered)


@pytest.fixture(scope="module")
def page(trained):
    """The names that the page leaves, in a small run."""
    with pytest.MonkeyPatch.context() as patch:
        remember(patch, trained)
        return run_chapter(STEM, patch, **SMALL)


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    fallen = {name for names in MUTATIONS.values() for name in names}
    assert {claim.name for claim in page["claims"]} - fallen == UNTESTED
    assert {claim.name for claim in page["claims"] if claim.holds is None} == UNTESTED


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_claims_fall_under_a_mutation(mutate, monkeypatch, trained):
    remember(monkeypatch, trained)
    mutate(monkeypatch)
    assert MUTATIONS[mutate] - unexpected(run_chapter(STEM, monkeypatch, **SMALL)) == set()


WRONG = {
    "solution-censored": ("upper=math.inf", "upper=sizes[-1]"),
    "solution-pairs": ('by_pair.groupby(["network", "target"]).mean()', "by_pair"),
    "solution-delta": ("lost[other] = int(np.isinf(ends).sum())", "lost[other] = int((ends > 0).sum())"),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])


def test_the_page_says_how_much_it_trained(page):
    assert len(page["rungs"]) == 3 * 4 * len(page["sizes"]) * SMALL["num_seeds"]
    assert page["pairs"] == 45
    assert isinstance(page["known"], pd.DataFrame)
    assert page["known"]["network"].nunique() == 3
