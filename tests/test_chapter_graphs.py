"""Graphs with noisy numbers: the claims hold, and each fails under a planted mutation of what it rests on."""

import numpy as np
import pandas as pd
import pytest
import torch
from chapters import run_chapter, run_solution, unexpected

import nls
import nls.graphs
import nls.runs
from nls.graphs import GraphNetwork, graph_runs, label_name

STEM = "31_graphs"
SMALL = {"num_seeds": 2, "num_graphs": 80, "num_clean": 70, "num_test": 40, "epochs": 8}
TRAINED = {}  # rows of the runs that were made without a mutation


def trained_runs(function, runs, **options):
    """Make the runs of the page once in this process."""
    missing = [run for run in runs if str(run) not in TRAINED]
    for run in missing:
        TRAINED[str(run)] = [run | row | {"seconds": 1.0} for row in function(**run)]
    return pd.DataFrame([row for run in runs for row in TRAINED[str(run)]])


def run(patch, change=None):
    """Execute the page at a small size, with both of its tables changed."""
    patch.setenv("NLS_WORKERS", "1")
    load, change = nls.load_results, change or (lambda table: table)
    patch.setattr(nls.runs, "run_all", lambda function, runs, **options: change(trained_runs(function, runs)))
    patch.setattr(nls, "load_results", lambda study: change(load(study)))
    return run_chapter(STEM, patch, **SMALL)


# Mutations: of the networks, of the tables.


def other_parameters(patch):
    """Compare a network with another one in torch_geometric."""
    original = nls.graphs.geometric_network
    patch.setattr(nls.graphs, "geometric_network", lambda network: original(GraphNetwork(network.kind, seed=9)))


def renamed(**names):
    """Return a change that gives columns the values of others."""
    return lambda table: table.assign(**{new: table[old] for new, old in names.items()})


def swapped(column, first, second):
    """Return a change that exchanges two values of a column."""
    return lambda table: table.assign(**{column: table[column].replace({first: second, second: first})})


def not_anything(patch):
    """Leave all as it is."""


MUTATIONS = {
    "output -> recalibrated": (not_anything, renamed(head="recalibrated"), {"output-off-by-mean"}),
    "other parameters": (other_parameters, None, {"same-network"}),
    "trained <-> untrained": (
        not_anything, renamed(probe="untrained", untrained="probe"),
        {"trained-beats-random", "labels-not-needed", "empty-labels-help"}),
    "probe -> output": (
        not_anything, renamed(probe="head"),
        {"aligned-keeps-power", "last-layer-hurt-most", "shuffled-probe-low", "form-carries-over"}),
    "probe -> recalibrated": (not_anything, renamed(probe="recalibrated"), {"power-follows-information"}),
    "untrained -> constant": (not_anything, renamed(untrained="constant"), {"deepset-untrained"}),
    "sizes swapped": (not_anything, swapped("nodes", "20-39", "50-69"), {"form-carries-over"}),
    "networks swapped": (not_anything, lambda table: table.assign(
        probe=table["probe"].where(table["target"] == "degree", 20 - table["probe"])), {"deepset-over-max-sum"}),
    "shuffled rows -> recalibrated to 1 %": (not_anything, lambda table: table.assign(
        recalibrated=table["recalibrated"].where(table["noise"] != "shuffled", 1.0)), {"labels-teach-output"}),
    "losses swapped": (not_anything, lambda table: table.assign(
        loss=table["loss"].where(table["noise_ratio"] != 0.25, table["loss"].map({"mse": "mae", "mae": "mse"}))),
        {"mae-at-low-ratios"}),
    "ratios turned round": (not_anything, lambda table: table.assign(
        noise_ratio=table["noise_ratio"].where(table["target"] == "degree", 1 - table["noise_ratio"])),
        {"mlp-follows-labels"}),
    "scales swapped": (not_anything, lambda table: table.assign(
        untrained=table["untrained"].where(table["feature_scale"] == 100, 1.0)), {"scale-of-inputs"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def page():
    with pytest.MonkeyPatch.context() as patch:
        yield run(patch)


def test_claims_hold(page):
    assert unexpected(page) == set()
    verdicts = {claim.name: claim.verdict for claim in page["claims"]}
    assert "not tested" not in verdicts.values()
    assert verdicts["power-follows-information"] == "not reproduced"
    mutated = set().union(*(expected for *_, expected in MUTATIONS.values()))
    assert mutated == set(verdicts), "a claim is seen to fail nowhere"


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_claims_hold_and_fail_under_mutations(mutation, monkeypatch):
    mutate, change, expected = MUTATIONS[mutation]
    mutate(monkeypatch)
    assert expected - unexpected(run(monkeypatch, change)) == set()


def test_the_stored_study_is_whole_and_what_its_card_says():
    table = nls.load_results("graphs")
    card = (nls.store.results_root() / "graphs" / "README.md").read_text()
    assert len(table) == 320
    assert "160 networks" in card
    assert "320 rows" in card
    assert f"{table['seconds'].sum() / 2:.0f} seconds" in card
    wanted = {(label_name(run), run["network"], run["target"], run["seed"]) for run in graph_runs(range(5))}
    keys = ["network", "target", "seed"]
    found = set(zip(table.apply(label_name, axis=1), *(table[key] for key in keys), strict=True))
    assert found == wanted
    assert set(table["num_graphs"]) == {1000, 5000}
    assert set(table["nodes"]) == {"20-39", "50-69"}
    # Runs of one target and seed share graphs: what was never trained cannot differ between labels.
    same = table[table["num_graphs"] == 5000].groupby(["target", "network", "feature_scale", "seed", "nodes"])
    assert (same["untrained"].nunique() == 1).all()
    assert np.isfinite(table[["head", "probe", "recalibrated", "untrained"]].to_numpy()).all()


def test_a_stored_number_is_what_a_run_gives_again():
    """Of the cheapest cell, the probe of the untrained network is recomputed in full."""
    table = nls.load_results("graphs").query("network == 'deepset' and target == 'degree' and seed == 0")
    row = table[(table["nodes"] == "20-39") & (table["noise_ratio"] == 0)].iloc[0]
    run = next(r for r in graph_runs([0]) if r["network"] == "deepset" and r["target"] == "degree")
    again = nls.graphs.graph_run(**run | {"epochs": 0})[0]
    assert again["untrained"] == pytest.approx(row["untrained"], rel=1e-3)
    assert again["constant"] == pytest.approx(row["constant"], rel=1e-3)


SOLUTIONS = {
    "solution-hundred": ("shift = 10.0", "shift = 0.0"),
    "solution-taught": ('deepset["untrained"]', 'deepset["head"]'),
    "solution-mean": ("best < float(many.median())", "best >= float(many.mean())"),
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solutions_hold_and_wrong_answers_do_not(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, SOLUTIONS[name])


def test_a_max_sum_of_constant_messages_is_the_largest_degree():
    """The form alone: with phi = 1 the representation is the target."""
    network = GraphNetwork("max-sum", 3)
    with torch.no_grad():
        network.second.weight.zero_()
        network.second.bias.fill_(1.0)
    graphs = nls.graphs.draw_graphs(9, (20, 39), nls.seeded_generator(0, "constant"))
    assert torch.equal(network.represent(graphs)[:, 1], graphs.target("degree"))
