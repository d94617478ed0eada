"""The numbers that a build is expected to show, and how far each may move before it counts as drift.

A build's numbers are the values that its notebooks glue into their text and the verdicts of their claims.
`expected/PROFILE.csv` holds them, one row each, with `moved`: for each number of a value the largest distance that was
seen between builds of the same sources on other kernels or versions of torch, and for a verdict the others seen.
Rounding differs between processors, a trained network carries the difference on, and how far depends on the number; so
it is measured, not assumed.
"""

import ast
import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
from parameters import BookError
from statements import KEY

KINDS = ("number", "text", "verdict")
COLUMNS = ("notebook", "key", "kind", "value", "moved")
GLUE = "application/papermill.record/text/plain"
CLOCKS = frozenset({"clothing-hours", "next-words-fused", "graphs-faster"})
"""Glued values that time something: they must be there, whatever they are."""
PYTHON = "Python"
OF_PYTHON = frozenset({"24_next_words"})
"""Notebooks whose data come with Python, another text with another version; its name is a value of theirs."""

TIMES_MOVED = 4.0
"""A number may move this many times as far as it was seen to."""
SHARE = 0.02
"""And by this share of itself, if a number of its notebook was seen to move by more than rounding."""
UNMEASURED = 0.15
"""Or by this share of itself, where no second build has measured it; the largest seen of a number not near 0 is .11."""
ROUNDING = 1e-5
"""And by this share of itself, always: sums in another order."""
OF_INTERVAL = 0.25
"""A number of an interval may move by this part of its half-width, unless its notebook was seen to stand still."""
OR = " | "
"""Between the verdicts in `moved`."""
NUMBER = re.compile(r"(?<![\w.])[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Drift:
    """One number that is not what was expected.

    Attributes:
        where: The notebook or the stored study.
        what: The name of the number.
        expected: What was stored, or what is missing there.
        found: What came out.
        allowed: How far it may move.
    """

    where: str
    what: str
    expected: str
    found: str
    allowed: str = ""


@dataclass(frozen=True)
class Value:
    """A glued value or a verdict, with the distances that its numbers were seen to move.

    Attributes:
        kind: `number`, `text` or `verdict`.
        shown: The value as it is stored: a number's repr, or the text.
        moved: One distance for each of its numbers, or None if they were never measured.
        also: Other verdicts that a claim was seen to get on other kernels, where samples are too small for one.
    """

    kind: str
    shown: str
    moved: tuple[float, ...] | None = None
    also: tuple[str, ...] = ()


def read_values(path: Path) -> dict[str, Value]:
    """Read what an executed notebook glues and claims.

    Args:
        path: The notebook.

    Returns:
        Name -> value; the names of claims start with `claim `, and `PYTHON` is the version for `OF_PYTHON`.

    Raises:
        BookError: If a glued value is not plain.
    """
    notebook, values = nbformat.read(path, 4), {}
    if path.stem in OF_PYTHON:
        values[PYTHON] = Value("verdict", notebook.metadata.language_info.version)
    for output in (o for cell in notebook.cells for o in cell.get("outputs", [])):
        metadata = output.get("metadata", {})
        for claim in metadata.get(KEY, []):
            values[f"claim {claim['name']}"] = Value("verdict", claim["verdict"])
        if "scrapbook" in metadata and GLUE in output.data:
            values[metadata["scrapbook"]["name"]] = _value(output.data[GLUE], path.stem)
    return values


def _value(text: str, where: str) -> Value:
    """Return the value that a glued repr stands for."""
    try:
        value = float(text) if text in ("nan", "inf", "-inf") else ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise BookError(f"{where}: expected a glued number or text, got {text[:60]}") from None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Value("number", repr(value)) if is_number else Value("text", str(value))


def numbers(value: Value) -> list[tuple[float, float | None]]:
    """Return the numbers of a value, each with the size of the last place that it shows.

    Args:
        value: What was glued.

    Returns:
        The numbers in their order; the place is None of a whole number, and 0 of a float with all its digits.

    Examples:
        >>> numbers(Value("text", "-0.5 [-0.9, -0.1], n = 3"))
        [(-0.5, 0.1), (-0.9, 0.1), (-0.1, 0.1), (3.0, None)]
        >>> numbers(Value("number", "0.25")), numbers(Value("verdict", "holds at 3"))
        ([(0.25, 0.0)], [])
    """
    if value.kind == "number":
        return [(float(value.shown), None if re.fullmatch(r"-?\d+", value.shown) else 0.0)]
    found = [match.group() for match in NUMBER.finditer(value.shown)] if value.kind == "text" else []
    return [(float(text.replace(",", "")), _place(text)) for text in found]


def _place(text: str) -> float | None:
    """Return the size of the last place of a number as it is written, None of a whole number."""
    digits, _, exponent = text.partition("e")
    if "." not in digits and not exponent:
        return None
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def words(value: Value) -> str:
    """Return a value with its numbers left out.

    Examples:
        >>> words(Value("text", "20 of 20 sets"))
        '# of # sets'
    """
    return "#" if value.kind == "number" else NUMBER.sub("#", value.shown) if value.kind == "text" else value.shown


def half_widths(value: Value) -> list[float]:
    """Return for each number of a value the half-width of the interval that it belongs to, 0 for the others.

    Examples:
        >>> half_widths(Value("text", "-0.5 [-0.75, -0.25], n = 3"))
        [0.25, 0.25, 0.25, 0.0]
    """
    found = [] if value.kind != "text" else list(NUMBER.finditer(value.shown))
    widths, ends = [0.0] * len(numbers(value)), [number for number, _ in numbers(value)]
    for i in range(len(found) - 2):
        between = [value.shown[found[j].end() : found[j + 1].start()] for j in (i, i + 1)]
        if between == [" [", ", "] and value.shown[found[i + 2].end() :].startswith("]"):
            widths[i : i + 3] = [abs(ends[i + 2] - ends[i + 1]) / 2] * 3
    return widths


def is_lively(values: dict[str, Value]) -> bool:
    """Return whether a number of a notebook was seen to move by more than rounding."""
    return any(
        moved > ROUNDING * abs(number)
        for key, value in values.items()
        if key not in CLOCKS and value.moved
        for moved, (number, _) in zip(value.moved, numbers(value), strict=True)
    )


def allowances(value: Value, lively: bool) -> list[float]:
    """Return how far each number of an expected value may move.

    Args:
        value: The expected value.
        lively: Whether any number of its notebook was seen to move, by :func:`is_lively`.

    Returns:
        One distance for each of `numbers(value)`.
    """
    allowed = []
    for index, ((number, place), width) in enumerate(zip(numbers(value), half_widths(value), strict=True)):
        size = abs(number) if math.isfinite(number) else 0.0
        distance = ROUNDING * size + (place or 0.0)
        if value.moved is None:
            distance += UNMEASURED * size + OF_INTERVAL * width
        elif lively:
            distance += TIMES_MOVED * value.moved[index] + SHARE * size + OF_INTERVAL * width
        else:
            distance += TIMES_MOVED * value.moved[index]
        allowed.append(distance)
    return allowed


def distances(first: Value, second: Value) -> list[float] | None:
    """Return how far apart the numbers of two values are, or None if they do not say the same thing.

    Args:
        first: A value.
        second: The value of the same name in another build.

    Returns:
        One distance for each number.
    """
    if first.kind != second.kind or words(first) != words(second):
        return None
    pairs = zip(numbers(first), numbers(second), strict=True)
    return [0.0 if a == b or (math.isnan(a) and math.isnan(b)) else abs(a - b) for (a, _), (b, _) in pairs]


def compare_values(where: str, expected: dict[str, Value], found: dict[str, Value]) -> list[Drift]:
    """Compare the values of one notebook.

    Args:
        where: The notebook.
        expected: Name -> value, as stored.
        found: Name -> value, of the build.

    Returns:
        What is missing, new, of other words or verdict, or further off than allowed.
    """
    lively = is_lively(expected)
    drifts = []
    for key in [*expected, *(found.keys() - expected.keys())]:
        old, new = expected.get(key), found.get(key)
        if old is None or new is None:
            drifts.append(Drift(where, key, old.shown if old else "not stored", new.shown if new else "missing"))
        elif key not in CLOCKS and not (new.kind == "verdict" and new.shown in old.also):
            apart, allowed = distances(old, new), allowances(old, lively)
            if apart is None or not all(a <= b for a, b in zip(apart, allowed, strict=True)):
                limit = ", ".join(f"{a:.3g}" for a in allowed)
                drifts.append(Drift(where, key, old.shown, new.shown, limit))
    return drifts


def same_python(expected: dict[str, Value], found: dict[str, Value]) -> bool:
    """Return whether the text that a notebook reads is that of the expected values; true where none is named."""
    versions = {values[PYTHON].shown for values in (expected, found) if PYTHON in values}
    return len(versions) < 2


def read_expected(path: Path) -> dict[str, dict[str, Value]]:
    """Read the expected numbers of a profile.

    Args:
        path: The CSV file.

    Returns:
        Notebook -> name -> value.

    Raises:
        BookError: If the file is missing, has other columns, or a row is damaged.
    """
    if not path.is_file():
        raise BookError(f"{path}: no such file; `make expected` writes it from a build of this profile")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise BookError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {reader.fieldnames}")
    notebooks: dict[str, dict[str, Value]] = {}
    for line, row in enumerate(rows, 2):
        try:
            if row["kind"] == "verdict":
                value = Value("verdict", row["value"], None, tuple(filter(None, row["moved"].split(OR))))
            else:
                moved = None if row["moved"] == "" else tuple(map(float, row["moved"].split()))
                value = Value(row["kind"], row["value"], moved)
            count = len(numbers(value))
            if value.kind not in KINDS or count != len(value.moved if value.moved is not None else range(count)):
                raise ValueError
        except (TypeError, ValueError, AttributeError):
            raise BookError(f"{path}, row {line}: expected a value and a distance for each of its numbers") from None
        notebooks.setdefault(row["notebook"], {})[row["key"]] = value
    return notebooks


def write_expected(path: Path, notebooks: dict[str, dict[str, Value]]) -> int:
    """Write the expected numbers of a profile.

    Args:
        path: The CSV file.
        notebooks: Notebook -> name -> value.

    Returns:
        The number of rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name in sorted(notebooks):
            for key, value in notebooks[name].items():
                moved = OR.join(value.also) if value.also else " ".join(f"{m:.3g}" for m in value.moved or ())
                writer.writerow([name, key, value.kind, value.shown, moved])
                count += 1
    return count


def with_moves(value: Value, others: list[Value], earlier: Value | None) -> Value:
    """Return a value with the distances that it was seen to move, a verdict with the others that were seen.

    Args:
        value: What the build shows.
        others: The same number in other builds of the same sources; one that says something else has no distance.
        earlier: What is stored, whose distances are kept if it has as many numbers, and whose other verdicts are.

    Returns:
        The value with the largest distances, or with none if it was never measured.
    """
    if value.kind == "verdict":
        seen = {other.shown for other in others}
        if earlier and earlier.also:
            seen |= {earlier.shown, *earlier.also}
        return Value("verdict", value.shown, (), tuple(sorted(seen - {value.shown})))
    count = len(numbers(value))
    seen = [d for other in others if (d := distances(value, other)) is not None]
    if earlier is not None and earlier.moved is not None and len(earlier.moved) == count:
        seen.append(list(earlier.moved))
    if not seen:
        return Value(value.kind, value.shown, () if count == 0 else None)
    return Value(value.kind, value.shown, tuple(map(max, zip(*seen, strict=True))) if count else ())
