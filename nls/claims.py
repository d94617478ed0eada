"""Claims: what a page says, as statements that a machine checks and a table that a reader can scan."""

from __future__ import annotations

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
        holds: Whether the numbers of this run support the statement.
        effect: The measured effect: an interval, or text where an interval makes no sense.
        protocol: Data, selection rule and whether the numbers are live or stored.
        n: Number of runs behind an effect given as text; an interval has its own.
        kind: ``"measured"``, or ``"proved"`` for what the page derives and the numbers only confirm.
        says: What the page says of the statement, ``"holds"`` or ``"fails"``.
        test: The test that checks the statement, ``"file::name"``.
        figure: Name of the figure that shows it.

    Raises:
        TypeError: If ``holds`` is not True or False.
        ValueError: If ``kind`` or ``says`` is another word.

    Examples:
        >>> Claim("signs", "NLS beats CE.", "this book", True, "2 of 2 sets", "Twonorm, live").verdict
        'holds'
    """

    name: str
    statement: str
    source: str
    holds: bool
    effect: Interval | str
    protocol: str
    n: int | None = None
    kind: str = "measured"
    says: str = "holds"
    test: str = ""
    figure: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.holds, (bool, np.bool_)):
            raise TypeError(f"holds must be True or False, got {self.holds!r}")
        _checks.choice(self.kind, "kind", ("measured", "proved"))
        _checks.choice(self.says, "says", ("holds", "fails"))

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"fails"``, or ``"no verdict"`` for an effect from a single run."""
        if (self.effect.n if isinstance(self.effect, Interval) else self.n) == 1:
            return "no verdict"
        return "holds" if self.holds else "fails"


class ClaimsTable(pd.DataFrame):
    """A table of claims that also leaves them as data in an executed notebook, for the page of all statements."""

    KEY = "nls_claims"

    def _repr_mimebundle_(self, **_: object) -> tuple[dict, dict]:
        # Jupyter shows the usual forms of a table; the records go to the metadata of the output.
        return {}, {self.KEY: self.attrs["claims"]}

    def _repr_html_(self) -> str:
        # pandas would cut a statement after fifty characters.
        with pd.option_context("display.max_colwidth", None):
            return super()._repr_html_()


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
        | {"verdict": claim.verdict}
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

    A claim that rests on a single run has no verdict and does not stop the page.

    Raises:
        ClaimError: If a verdict is not what the page says, naming each claim with its effect.
        ValueError: If there are no claims, or two share a name.
    """
    claims = list(claims)
    if not claims:
        raise ValueError("claims must hold at least one claim, got none")
    table = claims_table(claims)
    wrong = [c for c in claims if c.verdict not in (c.says, "no verdict")]
    if wrong:
        found = " ".join(f"{c.name}, which {c.verdict}: {c.statement} Measured: {c.effect}." for c in wrong)
        raise ClaimError(f"{len(wrong)} of {len(claims)} claims are not as the page says. {found}")
    return table
