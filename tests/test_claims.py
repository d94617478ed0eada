import dataclasses

import pytest
from IPython.core.formatters import DisplayFormatter

from nls.claims import Claim, ClaimError, ClaimsTable, check_claims, claims_table
from nls.stats import Interval

HOLDS = Claim("up", "It rises.", "this book", True, Interval(0.1, 0.05, 0.15, 10), "live")
FAILS = Claim("down", "It falls.", "this book", False, Interval(0.1, 0.05, 0.15, 10), "live")
SINGLE = Claim("once", "It happened.", "this book", False, Interval(0.1, float("nan"), float("nan"), 1), "live")


def test_claims_that_hold_give_a_table():
    table = check_claims([HOLDS, SINGLE])
    assert table["verdict"].tolist() == ["holds", "no verdict"]
    assert table["effect"][0] == "+0.100 [+0.050, +0.150] (n=10)"


def test_a_claim_that_fails_stops_the_page_and_is_named():
    with pytest.raises(ClaimError, match=r"1 of 2 claims are not .* down, which fails: It falls\. Measured: \+0\.1"):
        check_claims([HOLDS, FAILS])
    assert claims_table([HOLDS, FAILS])["verdict"].tolist() == ["holds", "fails"]


def test_a_page_may_say_that_a_statement_of_a_paper_fails():
    refuted = dataclasses.replace(FAILS, says="fails", source="a paper")
    assert check_claims([HOLDS, refuted])["verdict"].tolist() == ["holds", "fails"]
    with pytest.raises(ClaimError, match="up, which holds: It rises"):
        check_claims([dataclasses.replace(HOLDS, says="fails")])
    for field in ("says", "kind"):
        with pytest.raises(ValueError, match=f"{field} must be one of"):
            dataclasses.replace(HOLDS, **{field: "perhaps"})


def test_an_executed_notebook_carries_its_claims_as_data():
    claim = dataclasses.replace(HOLDS, kind="proved", test="test_a.py::test_b", figure="fig-a")
    data, metadata = DisplayFormatter().format(check_claims([claim]))
    assert set(data) == {"text/plain", "text/html"}
    assert metadata[ClaimsTable.KEY] == [
        {"name": "up", "statement": "It rises.", "source": "this book", "effect": str(HOLDS.effect), "protocol": "live",
         "kind": "proved", "says": "holds", "test": "test_a.py::test_b", "figure": "fig-a", "condition": "", "cost": "",
         "verdict": "holds", "n": "10"}
    ]  # fmt: skip
    assert '<tr id="claim-up">\n      <th>0</th>' in data["text/html"]


def test_the_number_of_runs_is_that_of_the_intervals_or_else_as_given():
    assert HOLDS.runs == "10"
    assert dataclasses.replace(HOLDS, effect="4 of 5", n=5).runs == "5"
    assert dataclasses.replace(HOLDS, effect="two at n = 1000").runs == ""
    assert dataclasses.replace(HOLDS, effect=f"{SINGLE.effect}, {HOLDS.effect}, {HOLDS.effect}", n=1).runs == "1, 10"


def test_a_long_statement_is_shown_whole():
    statement = "It rises " + "and rises " * 20 + "without end."
    assert statement in claims_table([dataclasses.replace(HOLDS, statement=statement)])._repr_html_()


def test_two_claims_of_one_name_are_refused():
    with pytest.raises(ValueError, match="different names, got up more than once"):
        claims_table([HOLDS, HOLDS])


def test_no_claims_give_an_empty_table_with_its_columns():
    assert list(claims_table([]).columns) == ["claim", "statement", "verdict", "effect", "protocol", "source"]


def test_a_text_from_a_single_run_has_no_verdict_and_no_claims_are_refused():
    assert Claim("once", "It happened.", "this book", False, "1 of 1", "live", n=1).verdict == "no verdict"
    assert Claim("twice", "It happened.", "this book", False, "1 of 2", "live", n=2).verdict == "fails"
    with pytest.raises(ValueError, match="at least one claim, got none"):
        check_claims([])


def test_a_verdict_that_is_not_true_or_false_is_refused():
    for holds in ("False", float("nan"), None):
        with pytest.raises(TypeError, match="holds must be True or False"):
            Claim("up", "It rises.", "this book", holds, "text", "live")


@pytest.mark.parametrize(
    ("holds", "condition", "n", "verdict"),
    [
        (True, "", 5, "reproduced"),
        (True, "selection on test data", 5, "reproduced only under selection on test data"),
        (False, "", 5, "not reproduced"),
        (None, "", 5, "not tested"),
        (False, "", 1, "no verdict"),
    ],
)
def test_a_reproduction_has_words_of_its_own(holds, condition, n, verdict):
    claim = Claim("wins", "It wins.", "a paper", holds, "1 of 5", "live", n, "reproduction", condition=condition)
    assert claim.verdict == verdict
    assert claim.as_said == (verdict != "not reproduced")
    assert (
        check_claims([dataclasses.replace(claim, says="holds" if claim.as_said else "fails")])["verdict"][0] == verdict
    )


def test_a_condition_is_for_reproductions():
    with pytest.raises(ValueError, match="condition is for kind='reproduction', got 'x' with 'measured'"):
        dataclasses.replace(HOLDS, condition="x")
