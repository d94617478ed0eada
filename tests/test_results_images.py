"""The stored image studies hold what their data cards say, and what the chapters need of them."""

import re

import numpy as np
import pytest

from nls.store import load_results, results_root
from nls.studies import load_curves, load_study, study

STUDIES = ("cifar10_small", "cifar10_released", "cifar10_memorising", "cifar10_large")
HARD = ["symmetric_0.4", "symmetric_0.6", "cifar10n_worst"]


def trained(table):
    return table[table["state"] != "missing"]


@pytest.mark.parametrize("name", STUDIES)
def test_the_rows_are_as_many_as_the_card_says(name):
    card = (results_root() / name / "README.md").read_text()
    found = re.search(r"\| not in it \|.* (\d+) of (\d+) cells", card)
    assert found, "the card must say how many cells are there"
    done, whole = map(int, found.groups())
    table = load_study(name)
    assert len(table) == whole == len(study(name))
    assert len(trained(table)) == done == len(load_results(name))
    curves = load_curves(name)
    assert set(curves["id"]) == set(trained(table)["id"])
    assert not curves.duplicated(["id", "epoch"]).any()


@pytest.mark.parametrize("name", STUDIES)
def test_both_cards_of_a_study_say_the_same(name):
    cards = [(results_root() / folder / "README.md").read_text() for folder in (name, f"{name}_curves")]
    for row in ("command", "protocol", "data", "seed", "made", "not in it"):
        lines = [next(line for line in card.splitlines() if line.startswith(f"| {row} |")) for card in cards]
        assert lines[0] == lines[1], row
    assert not re.search(r"\b[A-Z]+_[A-Z]+\b", cards[0].replace("FOLDER", "")), "a card is not filled in"


def test_the_small_study_has_the_noises_rates_losses_and_seeds_that_were_promised():
    table = trained(load_study("cifar10_small"))
    assert set(table["noise_name"]) == {
        "symmetric_0", "symmetric_0.2", "symmetric_0.4", "symmetric_0.6", "cifar10_asymmetric_0.3",
        "cifar10n_aggregate", "cifar10n_random1", "cifar10n_worst",
    }  # fmt: skip
    for _, rows in table.groupby("noise_name"):
        rates = rows[rows["loss"].eq("gls") & ~rows["normalized"]]
        assert rates["smooth_rate"].nunique() >= 6
        assert {rate > 0 for rate in rates["smooth_rate"]} == {True, False}
        assert 0.0 in set(rates["smooth_rate"])
        assert rows[rows["loss"] != "gls"]["loss"].nunique() >= 5
        assert rows["normalized"].sum() >= 4
        assert rates.groupby("smooth_rate")["seed"].nunique().eq(3).all()
    for noise in HARD:
        others = table[(table["noise_name"] == noise) & (table["loss"] != "gls")]
        assert (others.groupby("method")["seed"].nunique() == 3).sum() >= 5


def test_all_methods_of_a_noise_and_seed_start_from_one_network():
    curves = load_curves("cifar10_small")
    start = curves[curves["epoch"] <= 15].groupby(["noise_name", "seed", "epoch"])
    for column in ("accuracy", "nll", "validation_accuracy", "train_loss", "memorised"):
        assert start[column].nunique(dropna=False).eq(1).all(), column


def test_the_last_epoch_of_a_curve_is_that_of_the_row():
    for name in STUDIES:
        table = load_study(name).query("state == 'done'").set_index("id")
        curves = load_curves(name)
        ends = curves.loc[curves.groupby("id")["epoch"].idxmax()].set_index("id").loc[table.index]
        for column in ("accuracy", "nll", "memorised"):
            known = ends[column].notna()
            assert known.equals(table[f"{column}_last"].notna())
            expected = ends[column][known].to_numpy()
            np.testing.assert_allclose(table[f"{column}_last"][known], expected, rtol=1e-5, err_msg=f"{name}, {column}")


def test_the_published_numbers_are_all_there_with_their_provenance():
    table = load_results("paper_cifar")
    assert table["provenance"].value_counts().to_dict() == {"A": 80, "N": 25, "R": 5}
    paper = table[table["provenance"] == "A"]
    counts = paper.groupby(["dataset", "noise", "noise_rate"])["smooth_rate"].nunique()
    assert len(counts) == 8
    assert counts.eq(10).all()
    # Numbers that the text of the chapters speaks of.
    place = paper.set_index(["dataset", "noise", "noise_rate", "smooth_rate"])["accuracy"]
    assert place["cifar10", "symmetric", 0.4, 0.0] == 80.42
    assert place["cifar10", "symmetric", 0.4, -6.0] == 84.52
    assert place["cifar10", "symmetric", 0.4, 0.6] == 82.11
    assert place["cifar10", "asymmetric", 0.2].idxmax() == 0.4
    assert place["cifar100", "symmetric", 0.4].max() - place["cifar100", "symmetric", 0.4, 0.0] == pytest.approx(10.32)
    card = (results_root() / "paper_cifar" / "README.md").read_text()
    assert all(f"provenance {mark}" in card for mark in "ANR")
