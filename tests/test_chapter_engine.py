"""The claims of the chapter on the engine hold, and each fails under a planted mutation of what it rests on."""

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

import nls
import nls.chunk
import nls.engine
import nls.records
from nls.training import seeded_generator

# The page collects warnings of damaged records; elsewhere in these tests a warning is an error.
pytestmark = pytest.mark.filterwarnings("always::nls.records.RecordWarning")
NOTEBOOK = Path(__file__).parents[1] / "book" / "notebooks" / "90_engine.ipynb"
SMALL = {"num_seeds": 2, "epochs": 2}


def train_all_again(patch):
    """Resume without looking at what is stored."""
    plan = nls.engine.plan_chunks
    calls = itertools.count()
    # Once for each run, or it would never end.
    patch.setattr(
        nls.engine, "plan_chunks", lambda grid, results: plan(grid, results if next(calls) % 2 else lambda cell: None)
    )
    patch.setattr(nls.engine._Run, "_tasks", lambda self, chunks: map(self.forced, chunks), raising=True)

    def forced(self, chunk):
        self.claimed.update(cell.id for cell in chunk)
        return nls.engine.joblib.delayed(nls.engine._work)(chunk, **self.options)

    patch.setattr(nls.engine._Run, "forced", forced, raising=False)


def believe_every_file(patch):
    """Read records without their checksum."""
    patch.setattr(
        nls.records, "_decode", lambda content, cell, files: nls.records.json.loads(content.partition(b"\n")[2])
    )


def draw_by_the_clock(patch):
    """Let noise depend on what was drawn before, not on the seed of the cell."""
    count = itertools.count()
    patch.setattr(nls.chunk, "seeded_generator", lambda seed, purpose: seeded_generator(next(count), purpose))


def draw_anew_for_each_rate(patch):
    """Flip a share of the labels that has nothing to do with the rate."""
    draw = nls.chunk.draw_noisy_labels
    patch.setattr(
        nls.chunk, "draw_noisy_labels", lambda labels, matrix, generator: draw(labels, matrix.flip(0), generator)
    )


MUTATIONS = {
    "resume-trains-the-missing": train_all_again,
    "damage-is-found-and-mended": believe_every_file,
    "alone-equals-among-others": draw_by_the_clock,
    "noise-is-nested": draw_anew_for_each_rate,
}


def run_page(until=None):
    """Run the code of the page, but for its exercise, and return the verdict of each claim up to the one named."""
    names = {"facts": []}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type != "code" or cell.id.startswith("solution") or cell.id in ("claims", "end"):
            continue
        exec(compile(cell.source, f"{NOTEBOOK.name}:{cell.id}", "exec"), names)
        if "parameters" in tags:
            names.update(SMALL)
        if until in {fact[0] for fact in names["facts"]}:
            names["scratch"].cleanup()
            return {fact[0]: bool(fact[2]) for fact in names["facts"]}
    plt.close("all")
    names["scratch"].cleanup()
    (claims,) = (c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.id == "claims")
    exec(claims[: claims.index("nls.check_claims")], names)
    return {claim.name: bool(claim.holds) for claim in names["claims"]}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setenv("NLS_WORKERS", "1")
    monkeypatch.chdir(NOTEBOOK.parent)


def test_all_claims_hold():
    assert run_page() == dict.fromkeys(MUTATIONS, True)


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_claim_fails_under_its_mutation(name, monkeypatch):
    MUTATIONS[name](monkeypatch)
    assert run_page(name)[name] is False
