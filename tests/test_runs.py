"""Runs of a function: kept, resumed, checked when they are read, and refused where they are not plain."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from nls.records import RecordWarning
from nls.runs import run_all

CALLS = []


def power(base, exponent):
    """Return a power, and count the call."""
    CALLS.append((base, exponent))
    return {"value": float(base) ** exponent}


def steps(count):
    return [{"step": step, "half": step / 2} for step in range(count)]


def falls_at(base):
    if base == 2:
        raise ZeroDivisionError("two")
    return {"value": base}


@pytest.fixture(autouse=True)
def _no_calls():
    CALLS.clear()


def beside(folder):
    """Return an environment in which modules of this folder are found, and nls."""
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{Path(__file__).parents[1]}"}


RUNS = [{"base": base, "exponent": 2} for base in (1, 2, 3)]


def test_rows_are_those_of_a_loop_in_the_order_of_the_runs():
    table = run_all(power, RUNS, workers=1)
    assert table[["base", "exponent", "value"]].values.tolist() == [[b, 2, b**2] for b in (1, 2, 3)]
    assert (table["seconds"] >= 0).all()
    assert run_all(steps, [{"count": 3}, {"count": 1}], workers=1)["half"].tolist() == [0, 0.5, 1, 0]


def test_two_workers_find_what_one_finds():
    both = [run_all(steps, [{"count": n} for n in range(1, 6)], workers=n).drop(columns="seconds") for n in (1, 2)]
    assert both[0].equals(both[1])


def test_one_run_starts_no_process(tmp_path):
    run_all(power, RUNS[:2], store=tmp_path, workers=1)
    CALLS.clear()
    run_all(power, RUNS, store=tmp_path, workers=2)
    assert CALLS == [(3, 2)]


def test_a_finished_run_is_not_run_again(tmp_path):
    first = run_all(power, RUNS[:2], store=tmp_path, workers=1)
    assert len(CALLS) == 2
    again = run_all(power, RUNS, store=tmp_path, workers=1)
    assert CALLS[2:] == [(3, 2)]
    assert again[:2].equals(first)  # seconds, too, are those of the run
    assert not list(tmp_path.glob(".*"))


def test_the_environment_names_a_store_for_calls_that_name_none(tmp_path, monkeypatch):
    monkeypatch.setenv("NLS_STORE", str(tmp_path / "session"))
    first = run_all(power, RUNS[:2], workers=1)
    assert run_all(power, RUNS[:2], workers=1).equals(first)
    assert len(CALLS) == len(list((tmp_path / "session").glob("*.json"))) == 2
    run_all(power, RUNS[:2], store=tmp_path / "own", workers=1)
    assert len(CALLS) == 4
    monkeypatch.setenv("NLS_STORE", "")
    run_all(power, RUNS[:2], workers=1)
    assert len(CALLS) == 6


def test_an_error_names_the_run_and_loses_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught:
        run_all(falls_at, [{"base": base} for base in (1, 2, 3)], store=tmp_path, workers=1)
    assert caught.value.__notes__ == ["in falls_at with {'base': 2}"]
    assert len(list(tmp_path.glob("*.json"))) == 1


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b.replace(b"4.0", b"5.0"), lambda b: b""])
def test_a_damaged_record_is_named_and_run_again(tmp_path, spoil):
    run_all(power, RUNS[1:2], store=tmp_path, workers=1)
    (path,) = tmp_path.glob("*.json")
    assert spoil(path.read_bytes()) != path.read_bytes()
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.warns(RecordWarning, match=f"{path.name} .* counts as missing"):
        table = run_all(power, RUNS[1:2], store=tmp_path, workers=1)
    assert table["value"].tolist() == [4]
    assert len(CALLS) == 2


def test_a_record_of_other_code_is_run_again_and_of_another_docstring_not(tmp_path):
    module = tmp_path / "made.py"
    script = """
        import sys, made
        from nls.runs import run_all
        print(run_all(made.found, [{"base": 3}], store=sys.argv[1], workers=1)["value"][0])
    """

    def run(body):
        module.write_text(f"def found(base):\n    {body}\n")
        environment = os.environ | {
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "kept")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert run('"""Say."""; return {"value": base}').stdout == "3\n"
    same = run('"""Say it."""\n    # as before\n    return {"value": base}')
    assert (same.stdout, same.stderr) == ("3\n", "")
    other = run('return {"value": base + 1}')
    assert other.stdout == "4\n"
    assert "another version of made.found" in other.stderr


def test_a_killed_process_loses_the_run_in_flight_only(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        import naps
        from nls.runs import run_all
        run_all(naps.nap, [{"seconds_long": s} for s in (0.0, 0.01, 60.0)], store=sys.argv[1], workers=1)
    """)
    (tmp_path / "naps.py").write_text(
        "import time\ndef nap(seconds_long):\n    time.sleep(seconds_long)\n    return {}\n"
    )
    kept = tmp_path / "kept"
    with subprocess.Popen([sys.executable, "-c", script, str(kept)], env=beside(tmp_path)) as process:
        deadline = time.time() + 60
        while len(list(kept.glob("*.json"))) < 2 and time.time() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert len(list(kept.glob("*.json"))) == 2
    assert not list(kept.glob(".*"))


def test_no_run_is_begun_after_the_limit(tmp_path):
    assert run_all(power, RUNS, store=tmp_path, workers=1, time_limit=0).empty
    assert CALLS == []
    assert len(run_all(power, RUNS, store=tmp_path, workers=1, time_limit=60)) == 3


def test_not_a_number_is_kept(tmp_path):
    for _ in range(2):
        table = run_all(half_of_nothing, [{"base": 1}], store=tmp_path, workers=1)
        assert math.isnan(table["value"][0])


def half_of_nothing(base):
    return {"value": float("nan")}


def returns_list_inside(base):
    return {"value": [base]}


def returns_parameter(base):
    return {"base": base}


@pytest.mark.parametrize(
    ("function", "runs", "error", "message"),
    [
        (power, [], ValueError, "runs must hold at least one"),
        (power, [RUNS[0], RUNS[0]], ValueError, "runs must differ .* twice"),
        (power, [{"base": [1]}], TypeError, r"runs must hold numbers, texts or None by name, got 'base'"),
        (power, ["base"], TypeError, "runs must hold dicts"),
        (returns_list_inside, [{"base": 1}], TypeError, "what returns_list_inside returns must hold numbers"),
        (returns_parameter, [{"base": 1}], ValueError, "must not return the names of its parameters, got 'base'"),
        ("power", RUNS, TypeError, "function must be a function"),
    ],
)
def test_what_is_not_plain_is_refused(function, runs, error, message):
    with pytest.raises(error, match=message):
        run_all(function, runs, workers=1)
