"""Which layers noise hurts: the claims of the chapter under planted mutations, its exercises, what it stored."""

import itertools

import numpy as np
import pandas as pd
import pytest
from chapters import run_chapter, run_solution, unexpected

import nls
from nls import cuts, runs

STEM = "32_layers"


@pytest.fixture(scope="module")
def shelf():
    """The stored studies; that of CIFAR-10, which may lack seeds, with a planted one in its place."""
    return {"layers_resnet": nls.load_results("layers_resnet"), "layers": planted()}


def planted():
    """Three seeds in the form of the stored study of layers: a CNN keeps more than an MLP, a probe than an output."""
    marks = {
        "network": 0.3,
        "probe": 0.45,
        "random": 0.35,
        "input": 0.3,
        "scratch": 0.4,
        "fine-tune": 0.6,
        "map": 0.25,
    }
    noises = (("symmetric", 0.72), ("symmetric", 0.0), ("cifar10_asymmetric", 0.8), ("picture_colour", 0.8))
    rows = []
    for (noise, rate), network, seed, (what, mark) in itertools.product(
        noises, ("cnn", "mlp"), range(3), marks.items()
    ):
        fresh, value = (
            what in ("random", "input"),
            mark + 0.05 * (network == "cnn") + 0.001 * seed * len(network + what),
        )
        for epoch in [0] if fresh else [1, 3, 6, 10, 15, 20]:
            method = None if fresh else "r=0" if epoch == 20 else "warm-up"
            key = {"network": network, "noise": noise, "noise_rate": rate, "seed": seed, "method": method}
            key |= {"epoch": epoch, "what": what, "clean_per_class": 50 * (what != "network"), "memorised": 0.1}
            for depth in (1, 2, 3) if what in ("probe", "random") else (0,):
                gain = (0.01 if rate else 0.03 + 0.001 * seed) * depth
                rows.append(key | {"depth": depth, "accuracy": value + gain, "file": "planted"})
    return pd.DataFrame(rows)


def show(patch, shelf, live=None, stored=None, big=None):
    """Run the page with its live networks from the store, and tables passed through functions."""
    changes = {"layers_resnet": stored, "layers": big}
    patch.setattr(nls, "load_results", lambda name: (changes[name] or (lambda rows: rows))(shelf[name].copy()))
    rows = shelf["layers_resnet"]
    rows = rows[rows["num_examples"] == 0].drop(columns="file")
    patch.setattr(runs, "run_all", lambda function, wanted, **options: live(rows.copy()) if live else rows)
    return run_chapter(STEM, patch)


def is_kind(table, kind, rate):
    return (table["noise"] == kind) & (table["noise_rate"] == rate)


def noise_off(table):
    """Show the networks that learned from clean labels under the names of all noises."""
    calm = table[is_kind(table, "symmetric", 0.0)]
    calm = calm[calm["epoch"] == calm.groupby("network")["epoch"].transform("max")]
    calm = pd.concat([calm.assign(epoch=epoch) for epoch in sorted(set(table["epoch"])) if epoch])
    kept = table[(is_kind(table, "symmetric", 0.8) & (table["epoch"] == 0)) | (table["noise"] == "picture_place")]
    return pd.concat([kept, calm, calm.assign(noise_rate=0.8), calm.assign(noise="pair", noise_rate=0.8)])


def kinds_swapped(table):
    """Take next-class noise for random noise, and the other way round."""
    trained = table["epoch"] > 0
    flip, late = is_kind(table, "pair", 0.8) & trained, is_kind(table, "symmetric", 0.8) & trained
    return table.assign(noise=table["noise"].mask(late, "pair").mask(flip, "symmetric"))


def depth_turned(table):
    """Take the first layer for the last one."""
    table = table.copy()
    for network, places in cuts.PLACES.items():
        names = dict(zip(places, places[::-1], strict=True))
        mine = table["network"] == network
        table.loc[mine, "place"] = table.loc[mine, "place"].replace(names)
    return table


def errors_turned(table):
    """Let leave-one-out choose the worst cut."""
    return table.assign(error=-table["error"])


def readings_swapped(table):
    """Take the mean over the image for the whole of it where both are there."""
    both = table["place"].isin(cuts.PLACES["cnn"]) & (table["network"] == "cnn")
    return table.assign(
        pooling=table["pooling"].mask(both, table["pooling"].map({"mean": "flatten", "flatten": "mean"}))
    )


def fresh_forgotten(table):
    """Take chance for what an untrained network knows."""
    fresh = (table["epoch"] == 0) & (table["place"] != "input")
    return table.assign(accuracy=table["accuracy"].mask(fresh, 0.1))


def fresh_praised(table):
    """Take the untrained network for perfect."""
    fresh = (table["epoch"] == 0) & (table["place"] != "input")
    return table.assign(accuracy=table["accuracy"].mask(fresh, 1.0))


def outputs_praised(table):
    """Take outputs for probes of the last hidden layer."""
    return table.assign(accuracy=table["accuracy"].mask(table["place"] == "output", 0.99))


def cnn_blind(table):
    """Take chance for what the CNN keeps of a pixel."""
    blind = (table["network"] == "cnn") & (table["noise_rate"] > 0) & (table["epoch"] > 0)
    return table.assign(accuracy=table["accuracy"].mask(blind, 0.1))


def signs_turned(table):
    """Take errors for accuracies."""
    return table.assign(accuracy=1 - table["accuracy"])


def others_worse(table):
    """Take chance for what other uses of the clean labels reach."""
    return table.assign(accuracy=table["accuracy"].mask(table["what"].isin(["scratch", "fine-tune", "map"]), 0.1))


def rows_shuffled(table):
    """Give each stored row the numbers of another one."""
    order = np.random.default_rng(0).permutation(len(table))
    numbers = ["accuracy", "error"]
    table = table.copy()
    table[numbers] = table[numbers].to_numpy()[order]
    return table


HIDDEN = {"last-layers-suffer-random", "first-layer-unhurt", "early-cut-gains"}
MUTATIONS = {
    "noise_off": (
        {"live": noise_off, "stored": noise_off},
        {"last-layers-suffer-random", "output-suffers-most", "dense-layer-replaced", "flip-spares-hidden"}
        | {"harm-to-chance", "early-cut-gains", "untrained-as-good"},
    ),
    "kinds_swapped": (
        {"live": kinds_swapped, "stored": kinds_swapped},
        {"last-layers-suffer-random", "last-hidden-suffers-flip", "useful-though-poor", "untrained-as-good"},
    ),
    "depth_turned": ({"live": depth_turned, "stored": depth_turned}, HIDDEN),
    "errors_turned": ({"live": errors_turned, "stored": errors_turned}, {"choosing-is-cheap", "late-cut-right"}),
    "readings_swapped": ({"live": readings_swapped}, {"reading-hides"}),
    "fresh_forgotten": ({"live": fresh_forgotten}, {"harm-to-chance"}),
    "fresh_praised": ({"live": fresh_praised}, {"useful-though-poor"}),
    "outputs_praised": ({"live": outputs_praised}, {"dense-layer-replaced", "flip-spares-hidden"}),
    "cnn_blind": ({"stored": cnn_blind}, {"mlp-loses-more", "suits-and-keeps", "early-layer-knows"}),
    "stored_shuffled": ({"stored": rows_shuffled}, {"early-layer-knows"}),
    "signs_turned": (
        {"big": signs_turned},
        {"cifar-probe-uniform", "cifar-probe-flipped", "cifar-suits-uniform", "cifar-suits-flipped"}
        | {"cifar-last-layers", "cifar-colour"},
    ),
    "others_worse": (
        {"big": others_worse},
        {"cifar-beats-others"},
    ),
}


@pytest.fixture(scope="module")
def page(shelf):
    with pytest.MonkeyPatch.context() as patch:
        return show(patch, shelf)


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    fallen = {name for _, names in MUTATIONS.values() for name in names}
    tested = {claim.name for claim in page["claims"] if claim.holds is not None}
    assert tested - fallen == set()


@pytest.mark.parametrize("name", MUTATIONS)
def test_claims_fall_under_a_mutation(name, monkeypatch, shelf):
    changes, fall = MUTATIONS[name]
    assert fall - unexpected(show(monkeypatch, shelf, **changes)) == set()


WRONG = {
    "solution-reading": ("idxmin()", "idxmax()"),
    "solution-optimism": (".max(axis=1)", ".mean(axis=1)"),
    "solution-twin": ("path[1] - path[0]", "path[-1] - path[1]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])


def test_the_page_runs_with_one_seed_of_the_large_study_and_with_none_of_a_cell(monkeypatch, shelf):
    def one(table):
        return table[
            (table["seed"] == 0)
            & (table["network"] == "cnn")
            & (table["noise"] == "symmetric")
            & (table["noise_rate"] > 0)
        ]

    page = show(monkeypatch, shelf, big=one)
    verdicts = {claim.name: claim.verdict for claim in page["claims"]}
    assert verdicts["cifar-probe-uniform"] == verdicts["cifar-colour"] == "not tested"
    assert page["lacking"] == 20
    row = page["shown"].loc["CNN: raw pixels"]
    assert row["80 % uniform"] == "0.350"
    assert row["probe minus it, uniform"] == "+0.180 (n=1)"
    assert row["80 % flipped"] == "not run"


def test_the_chapter_says_what_was_stored(shelf):
    study = shelf["layers_resnet"]
    found = study.fillna({"num_examples": 0}).drop_duplicates(
        ["network", "noise", "noise_rate", "num_examples", "seed"]
    )
    wanted = pd.DataFrame(cuts.cut_study()).fillna({"num_examples": 0})
    keys = ["network", "noise", "noise_rate", "num_examples", "seed", "epochs"]
    assert sorted(map(tuple, found[keys].to_numpy())) == sorted(map(tuple, wanted[keys].to_numpy()))


def test_a_live_run_comes_out_as_it_was_stored(shelf):
    """The numbers that the tests of this page rest on are those that the page trains."""
    run = cuts.live_runs([0])[3]
    assert (run["network"], run["noise"]) == ("mlp", "symmetric")
    again = pd.DataFrame(cuts.cut_run(**run))
    stored = shelf["layers_resnet"].query(
        "network == 'mlp' and noise == 'symmetric' and noise_rate == 0.8 and seed == 0"
    )
    assert again["place"].tolist() == stored["place"].tolist()
    assert (again["accuracy"].to_numpy() - stored["accuracy"].to_numpy()).round(6) == pytest.approx(0, abs=0.05)
    fresh = (again["epoch"] == 0).to_numpy()
    assert again["error"].to_numpy()[fresh] == pytest.approx(stored["error"].to_numpy()[fresh], abs=1e-4)
