"""What a network knows: the claims of the chapter under planted mutations, and its exercises."""

import numpy as np
import pandas as pd
import pytest
import torch
from chapters import run_chapter, run_solution, unexpected

import nls
from nls import rescue_study

STEM = "30_probes"
SMALL = {"num_seeds": 5, "draws": 2}


def noise_off(patch):
    """Show the networks that learned from clean labels under the names of all noises."""

    def clean(table):
        shown = table[table["noise"] == "symmetric 0"]
        kept = table[table["noise"] == ""]
        parts = [shown.assign(noise=noise) for noise in table["noise"].unique() if noise]
        close = table[table["way"].isin(["fine-tune", "scratch"]) | (table["per_class"].isin([1, 5, 30]))]
        return pd.concat([kept, *parts, close[close["noise"] != ""]])

    change_live(patch, clean)


def pool_shuffled(patch):
    """Give the clean examples each other's labels."""
    measure = rescue_study.predictive_power

    def shuffled(network, pool, test, **options):
        order = torch.randperm(len(pool[1]), generator=torch.Generator().manual_seed(0))
        return measure(network, (pool[0], pool[1][order]), test, **options)

    patch.setattr(rescue_study, "predictive_power", shuffled)


def change_live(patch, change):
    """Pass the live table through a function."""
    rescue = rescue_study.stack_rescue
    patch.setattr(rescue_study, "stack_rescue", lambda *args, **rest: change(rescue(*args, **rest)))


def rename_live(patch, **changes):
    """Rename entries of the columns of the live table."""
    change_live(patch, lambda table: table.replace(changes))


def kinds_swapped(patch):
    """Take the noise that moves a class for that which moves single labels."""
    names = {"pair 0.8": "symmetric 0.8", "pair 0.4": "symmetric 0.4"}
    rename_live(patch, noise=names | {new: old for old, new in names.items()})


def stages_swapped(patch):
    """Take the early network for the late one."""
    rename_live(patch, stage={"early": "late", "late": "early"})


def layers_swapped(patch):
    """Take the first hidden layer for the last one."""
    rename_live(patch, way={"hidden1": "penultimate", "penultimate": "hidden1"})


def ways_swapped(patch):
    """Take outputs put right for the probe of the last hidden layer, and the other way round."""

    def swap(table):
        ends = table["stage"].isin(rescue_study.STAGES)
        names = {"map": "penultimate", "penultimate": "map"}
        return table.assign(way=table["way"].where(~ends, table["way"].replace(names)))

    change_live(patch, swap)


def one_split(patch):
    """Show one split under the name of all."""
    rescue = rescue_study.stack_rescue
    patch.setattr(
        rescue_study, "stack_rescue", lambda *args, seed, **rest: rescue(*args, seed=0, **rest).assign(seed=seed)
    )


def change_stored(patch, change):
    load = nls.load_results
    patch.setattr(nls, "load_results", lambda name: change(load(name)))


def controls_forgotten(patch):
    """Compare the stored probes with their networks and not with the labels alone."""
    change_stored(patch, lambda table: table.assign(**dict.fromkeys(("input", "random", "scratch"), table["network"])))


def stored_swapped(patch):
    """Take outputs put right for the stored probe, and the other way round."""
    names = {"penultimate": "map", "map": "penultimate"}
    change_stored(patch, lambda table: table.rename(columns=names))


def stored_shuffled(patch):
    """Give each stored row the numbers of another one of its set."""

    def shuffle(table):
        keys = ["dataset", "seed", "epochs", "heavy", "most", "noise", "noise_rate", "stage", "per_class"]
        measured = [name for name in table if name not in keys]
        table = table.copy()
        for _, rows in table.groupby(["dataset", "per_class"]):
            order = np.random.default_rng(0).permutation(len(rows))
            table.loc[rows.index, measured] = rows[measured].to_numpy()[order]
        return table

    change_stored(patch, lambda table: shuffle(table.reset_index(drop=True)))


MUTATIONS = {
    noise_off: {
        "random-labels-memorised",
        "probe-beats-network",
        "no-rescue-from-random",
        "nothing-left",
        "last-layers-suffer",
        "map-breaks-first",
    },
    pool_shuffled: {"probe-beats-network", "useful-although-poor", "no-rescue-from-random", "fewer-labels-more-gain"},
    kinds_swapped: {"useful-although-poor", "no-rescue-from-random", "last-layers-suffer"},
    stages_swapped: {"noisy-labels-generalise", "early-stop-beats-the-probe", "map-breaks-first"},
    layers_swapped: {"last-layers-suffer", "first-layer-is-the-input"},
    ways_swapped: {"probe-beats-network", "useful-although-poor"},
    one_split: {"draws-are-not-splits"},
    controls_forgotten: {"cnn-no-rescue", "heavy-random-nowhere"},
    stored_swapped: {"early-flip-rescued", "spirals-map"},
    stored_shuffled: {"cnn-no-rescue", "early-flip-rescued", "heavy-random-nowhere"},
}


@pytest.fixture(scope="module")
def known():
    """What was trained and measured before, by what it depends on."""
    return {}


def remember(patch, known, *names):
    """Compute nothing twice that a mutation does not touch."""
    for name in names:
        function = getattr(rescue_study, name)

        def remembered(*args, function=function, **rest):
            key = repr((function.__name__, [a if isinstance(a, (str, dict, list)) else a.card for a in args], rest))
            if key not in known:
                known[key] = function(*args, **rest)
            return known[key]

        patch.setattr(rescue_study, name, remembered)


@pytest.fixture(scope="module")
def page(known):
    """The names that the page leaves, in a small run."""
    with pytest.MonkeyPatch.context() as patch:
        remember(patch, known, "stack_stages", "stack_rescue")
        return run_chapter(STEM, patch, **SMALL)


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    fallen = {name for names in MUTATIONS.values() for name in names}
    assert {claim.name for claim in page["claims"]} - fallen == set()


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_claims_fall_under_a_mutation(mutate, monkeypatch, known):
    remember(monkeypatch, known, "stack_stages" if mutate is pool_shuffled else "stack_rescue")
    mutate(monkeypatch)
    assert MUTATIONS[mutate] - unexpected(run_chapter(STEM, monkeypatch, **SMALL)) == set()


WRONG = {
    "solution-untrained": ("1000", "20"),
    "solution-relu": ("weight + bias)", "weight + bias).relu()"),
    "solution-spread": ('by_split.mean().groupby("per_class").std()', "over_draws"),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])


def test_the_chapter_says_what_was_stored(page):
    assert page["study"].groupby("dataset")["seed"].nunique().to_dict() == {
        "digits_images": 10, "spirals": 10, "waveform": 10
    }  # fmt: skip
    assert len(page["study"]) == 1200
