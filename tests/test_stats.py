import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nls.stats import mean_interval, paired_interval, select_by_validation, tied_levels


def make_table(seeds=5):
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 0.1, seeds)
    rows = [
        {"seed": s, "rate": rate, "accuracy": 0.5 + gain + luck[s] + rng.normal(0, 0.001)}
        for s in range(seeds)
        for rate, gain in ((0.0, 0.0), (-1.0, 0.02), (-2.0, 0.0193), (0.4, -0.1))
    ]
    return pd.DataFrame(rows)


def test_an_interval_equals_that_of_scipy():
    values = np.random.default_rng(1).normal(size=12)
    found = mean_interval(values, level=0.9)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.n, found.level) == (12, 0.9)


def test_an_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(2).normal(0.3, 1, (2000, 8))
    covered = np.mean([interval.low <= 0.3 <= interval.high for interval in map(mean_interval, draws)])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_overlapping_splits_widen_the_interval_by_the_correction():
    values = np.random.default_rng(3).normal(size=10)
    plain, corrected = mean_interval(values), mean_interval(values, test_ratio=1 / 3)
    ratio = (corrected.high - corrected.mean) / (plain.high - plain.mean)
    assert ratio == pytest.approx(math.sqrt((1 / 10 + 1 / 3) / (1 / 10)))


def test_a_single_run_has_no_interval_and_no_verdict():
    single = mean_interval([0.3])
    assert single.mean == 0.3
    assert math.isnan(single.low)
    assert not single.above_zero
    assert not single.below_zero


def test_pairing_removes_what_the_seeds_share():
    table = make_table()
    found = paired_interval(table, "accuracy", "rate", -1.0, 0.0)
    assert found.mean == pytest.approx(0.02, abs=0.002)
    assert found.above_zero
    unpaired = table[table["rate"] == -1.0]["accuracy"].std()
    assert found.high - found.low < unpaired / 10
    assert paired_interval(table, "accuracy", "rate", 0.0, -1.0).mean == pytest.approx(-found.mean)


def test_pairing_uses_the_seeds_that_both_levels_have():
    table = make_table()
    table.loc[(table["seed"] == 2) & (table["rate"] == 0.0), "accuracy"] = np.nan
    found = paired_interval(table, "accuracy", "rate", -1.0, 0.0)
    assert (found.n, found.missing) == (4, 1)
    assert str(found).endswith("(n=4, 1 missing)")


def test_tied_levels_are_those_that_the_runs_cannot_tell_apart():
    assert tied_levels(make_table(), "accuracy", "rate") == (-1.0, [-2.0, -1.0])
    assert tied_levels(make_table(seeds=1), "accuracy", "rate")[1] == [-2.0, -1.0, 0.0, 0.4]


def test_validation_selects_one_row_for_each_seed():
    table = pd.DataFrame(
        {"seed": [0, 0, 1, 1], "validation_accuracy_noisy_validation": [0.5, 0.6, 0.7, 0.7], "decay": [0.0, 0.1] * 2}
    )
    assert select_by_validation(table)["decay"].tolist() == [0.1, 0.0]
    twice = pd.concat([table[:2], table[2:].reset_index(drop=True)])  # equal labels of rows
    assert select_by_validation(twice)["decay"].tolist() == [0.1, 0.0]
    last = table.assign(validation_accuracy_last=[0.9, 0.6, 0.7, 0.8])
    assert select_by_validation(last, "last")["decay"].tolist() == [0.0, 0.1]


BAD = {
    "empty": (lambda: mean_interval([]), "values must hold at least one number"),
    "not finite": (lambda: mean_interval([1.0, math.nan]), "1 of them not finite"),
    "level": (lambda: mean_interval([1.0], level=1.0), "level must be a finite number"),
    "ratio": (lambda: mean_interval([1.0], test_ratio=-1.0), "test_ratio must be a finite number"),
    "two rows for a seed": (
        lambda: paired_interval(pd.concat([make_table()] * 2), "accuracy", "rate", -1.0, 0.0),
        "one row for each seed",
    ),
    "unknown column": (
        lambda: paired_interval(make_table(), "speed", "rate", -1.0, 0.0),
        "the columns 'speed', got seed",
    ),
    "unknown rule": (
        lambda: select_by_validation(make_table(), "clean_test"),
        "rule must be one of 'noisy_validation', 'last'",
    ),
    "no validation": (lambda: select_by_validation(make_table()), "the columns 'validation_accuracy_noisy_validation'"),
    "no common seed": (lambda: paired_interval(make_table(), "accuracy", "rate", -1.0, 0.7), "rate=0.7, got none"),
    "no value": (
        lambda: tied_levels(make_table().assign(accuracy=np.nan), "accuracy", "rate"),
        "accuracy must have a value in every row, got 20 without one",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_name(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
