"""Claims: what a page says, as statements that a machine checks and a table that a reader can scan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nls.stats import Interval


class ClaimError(AssertionError):
    """A page says something that its own numbers do not support."""


@dataclass(frozen=True)
class Claim:
    """One statement of a page and what was measured for it.

    Attributes:
        name: Short and unique on the page, in lower case with hyphens.
        statement: What the page says, one sentence that can be false.
        source: The paper it comes from, or ``"this book"``.
        holds: Whether the numbers of this run support the statement.
        effect: The measured effect: an interval, or text where an interval makes no sense.
        protocol: Data, selection rule and whether the numbers are live or stored.
        n: Number of runs behind an effect given as text; an interval has its own.

    Raises:
        TypeError: If ``holds`` is not True or False.

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

    def __post_init__(self) -> None:
        if not isinstance(self.holds, (bool, np.bool_)):
            raise TypeError(f"holds must be True or False, got {self.holds!r}")

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"fails"``, or ``"no verdict"`` for an effect from a single run."""
        if (self.effect.n if isinstance(self.effect, Interval) else self.n) == 1:
            return "no verdict"
        return "holds" if self.holds else "fails"


def claims_table(claims: Iterable[Claim]) -> pd.DataFrame:
    """Return one row for each claim: name, statement, source, effect, protocol, verdict.

    Raises:
        ValueError: If two claims share a name.

    Examples:
        >>> claims_table([Claim("signs", "NLS beats CE.", "this book", True, "2 of 2 sets", "Twonorm, live")]).shape
        (1, 6)
    """
    rows = [
        {
            "claim": c.name,
            "statement": c.statement,
            "source": c.source,
            "effect": str(c.effect),
            "protocol": c.protocol,
            "verdict": c.verdict,
        }
        for c in claims
    ]
    table = pd.DataFrame(rows, columns=["claim", "statement", "source", "effect", "protocol", "verdict"])
    if table["claim"].duplicated().any():
        twice = ", ".join(sorted(set(table["claim"][table["claim"].duplicated()])))
        raise ValueError(f"claims must have different names, got {twice} more than once")
    return table


def check_claims(claims: Iterable[Claim]) -> pd.DataFrame:
    """Return :func:`claims_table` if every claim holds, and stop the page otherwise.

    A claim that rests on a single run has no verdict and does not stop the page.

    Raises:
        ClaimError: If a claim fails, naming each one with its effect.
        ValueError: If there are no claims, or two share a name.
    """
    claims = list(claims)
    if not claims:
        raise ValueError("claims must hold at least one claim, got none")
    table = claims_table(claims)
    failed = [f"{c.name}: {c.statement} Measured: {c.effect}." for c in claims if c.verdict == "fails"]
    if failed:
        raise ClaimError(f"{len(failed)} of {len(claims)} claims fail. " + " ".join(failed))
    return table
