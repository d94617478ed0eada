"""How fast is it: the claims of the chapter under changed measurements, and its exercise."""

import pytest
from chapters import run_chapter, run_solution, unexpected

import nls

STEM = "91_speed"


def change(patch, where, **values):
    """Change rows of the stored measurements."""
    load = nls.load_results

    def changed(study):
        rows = load(study)
        for column, value in values.items():
            rows.loc[rows.index[where(rows)], column] = value
        return rows

    patch.setattr(nls, "load_results", changed)


MUTATIONS = {
    "gates": (lambda rows: rows["gate"] == rows["gate"].max(), {"value": 0.9}),
    "memory": (lambda rows: rows["kind"] == "memory", {"value": 2.5}),
    "stacking-is-for-small-networks": (lambda rows: rows["name"] == "stack 32 wide one core", {"value": 1.0}),
    "the-loss-is-a-small-part": (lambda rows: rows["name"] == "fused loss backward 128x10", {"baseline": 0.01}),
}


@pytest.fixture(scope="module")
def page():
    """The names that the page leaves."""
    with pytest.MonkeyPatch.context() as patch:
        return run_chapter(STEM, patch)


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    assert {claim.name for claim in page["claims"]} == set(MUTATIONS)


@pytest.mark.parametrize("name", MUTATIONS)
def test_claims_fall_with_other_measurements(name, monkeypatch):
    where, values = MUTATIONS[name]
    change(monkeypatch, where, **values)
    assert name in unexpected(run_chapter(STEM, monkeypatch))


def test_the_solution_holds_and_another_loss_is_refused(page):
    run_solution(STEM, "solution-loss", page)
    with pytest.raises(AssertionError):
        run_solution(STEM, "solution-loss", page, ('"fused loss backward 128x10"', '"noise torch.multinomial 50k"'))
