"""Claims: what a page says, as statements that a machine checks and a table that a reader can scan."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from nls import _checks
from nls.stats import Interval


class ClaimError(AssertionError):
    """A page says something that its own numbers do not support."""


@dataclass(frozen=True)
class Claim:
    """One statement of a page and what was measured for it.

    Attributes:
        name: Short and unique on the page, in lower case with hyphens.
        statement: One sentence that can be false, of the page or of a paper.
        source: The paper it comes from, or ``"this book"``.
        holds: Whether the numbers of this run support the statement; None for a reproduction that is not tested here.
        effect: The measured effect: an interval, or text where an interval makes no sense.
        protocol: Data, selection rule and whether the numbers are live or stored.
        n: Number of runs behind an effect given as text; an interval has its own.
        kind: ``"measured"``; ``"proved"`` for what the page derives and the numbers only confirm; or
            ``"reproduction"`` for what a paper reports of its own experiments.
        says: What the page says of the statement, ``"holds"`` or ``"fails"``.
        test: The test that checks the statement, ``"file::name"``.
        figure: Name of the figure that shows it.
        condition: What a reproduction needs beside the paper's own protocol; it is part of the verdict.
        cost: What the numbers took, such as ``"40 cells, 6 minutes on one H200"``.

    Raises:
        TypeError: If ``holds`` is not True or False, or None for a reproduction.
        ValueError: If ``kind`` or ``says`` is another word, or a condition comes with another kind.

    Examples:
        >>> Claim("signs", "NLS beats CE.", "this book", True, "2 of 2 sets", "Twonorm, live").verdict
        'holds'
    """

    name: str
    statement: str
    source: str
    holds: bool | None
    effect: Interval | str
    protocol: str
    n: int | None = None
    kind: str = "measured"
    says: str = "holds"
    test: str = ""
    figure: str = ""
    condition: str = ""
    cost: str = ""

    def __post_init__(self) -> None:
        _checks.choice(self.kind, "kind", ("measured", "proved", "reproduction"))
        _checks.choice(self.says, "says", ("holds", "fails"))
        reproduction = self.kind == "reproduction"
        if not (isinstance(self.holds, (bool, np.bool_)) or (self.holds is None and reproduction)):
            raise TypeError(f"holds must be True or False, or None for a reproduction, got {self.holds!r}")
        if self.condition and not reproduction:
            raise ValueError(f"condition is for kind='reproduction', got {self.condition!r} with {self.kind!r}")

    @property
    def verdict(self) -> str:
        """What the numbers say, in a word or two.

        ``"holds"`` or ``"fails"``; of a reproduction ``"reproduced"``, ``"reproduced only under ..."``, ``"not
        reproduced"`` or ``"not tested"``; ``"no verdict"`` for an effect from a single run.
        """
        if self.holds is None:
            return "not tested"
        if (self.effect.n if isinstance(self.effect, Interval) else self.n) == 1:
            return "no verdict"
        if self.kind != "reproduction":
            return "holds" if self.holds else "fails"
        under = f" only under {self.condition}" if self.condition else ""
        return f"reproduced{under}" if self.holds else "not reproduced"

    @property
    def runs(self) -> str:
        """How many runs stand behind the effect, as text; empty where nothing is counted.

        An effect in words may name several intervals, each with its own number: then these, in their order.

        Examples:
            >>> effect = "digits +0.1 [+0.0, +0.2] (n=10); wine +0.3 [+0.1, +0.5] (n=5)"
            >>> Claim("gains", "It gains.", "this book", True, effect, "live", n=5).runs
            '10, 5'
        """
        named = dict.fromkeys(re.findall(r"\(n=(\d+)", str(self.effect)))
        return ", ".join(named) or str(self.n or "")

    @property
    def as_said(self) -> bool:
        """Whether the verdict is what the page says, or there is none."""
        return self.verdict in ("no verdict", "not tested") or self.holds == (self.says == "holds")


class ClaimsTable(pd.DataFrame):
    """A table of claims that also leaves them as data in an executed notebook, for the page of all statements."""

    KEY = "nls_claims"

    def _repr_mimebundle_(self, **_: object) -> tuple[dict, dict]:
        # Jupyter shows the usual forms of a table; the records go to the metadata of the output.
        return {}, {self.KEY: self.attrs["claims"]}

    def _repr_html_(self) -> str:
        # pandas would cut a statement after fifty characters.
        with pd.option_context("display.max_colwidth", None):
            page = super()._repr_html_()
        for row, name in self.get("claim", pd.Series(dtype=str)).items():  # so that the ledger can point to a row
            page = page.replace(f"<tr>\n      <th>{row}</th>", f'<tr id="claim-{name}">\n      <th>{row}</th>', 1)
        return page


def claims_table(claims: Iterable[Claim]) -> ClaimsTable:
    """Return one row for each claim: name, statement, verdict, effect, protocol, source.

    Raises:
        ValueError: If two claims share a name.

    Examples:
        >>> claims_table([Claim("signs", "NLS beats CE.", "this book", True, "2 of 2 sets", "Twonorm, live")]).shape
        (1, 6)
    """
    records = [
        {
            field.name: str(getattr(claim, field.name) or "")
            for field in fields(claim)
            if field.name not in ("holds", "n")
        }
        | {"n": claim.runs, "verdict": claim.verdict}
        for claim in claims
    ]
    columns = ["name", "statement", "verdict", "effect", "protocol", "source"]
    table = ClaimsTable(records, columns=columns).rename(columns={"name": "claim"})
    if table["claim"].duplicated().any():
        twice = ", ".join(sorted(set(table["claim"][table["claim"].duplicated()])))
        raise ValueError(f"claims must have different names, got {twice} more than once")
    table = ClaimsTable(table)
    table.attrs["claims"] = records
    return table


def check_claims(claims: Iterable[Claim]) -> ClaimsTable:
    """Return :func:`claims_table` if every claim is what its page says, and stop the page otherwise.

    A claim that rests on a single run, or was not tested, does not stop the page.

    Raises:
        ClaimError: If a verdict is not what the page says, naming each claim with its effect.
        ValueError: If there are no claims, or two share a name.
    """
    claims = list(claims)
    if not claims:
        raise ValueError("claims must hold at least one claim, got none")
    table = claims_table(claims)
    wrong = [c for c in claims if not c.as_said]
    if wrong:
        found = " ".join(f"{c.name}, which {c.verdict}: {c.statement} Measured: {c.effect}." for c in wrong)
        raise ClaimError(f"{len(wrong)} of {len(claims)} claims are not as the page says. {found}")
    return table
