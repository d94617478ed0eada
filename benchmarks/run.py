"""Measure what the package claims about speed and memory, and print one table of ratios.

    python benchmarks/run.py [--quick] [--only NAME ...] [--repeats 5] [--images FILE.npz]
                             [--json FILE] [--markdown FILE] [--study NAME] [--gate]

Every ratio comes from one run in which the two sides alternate, their order reversed every other time, on one thread
unless the row says otherwise. A row of CPU time hardly depends on what else the machine does; a row of wall time does.
The exit status is 0; 1 if a row is below its gate and --gate is given; 2 if a row crashed.
"""

import argparse
import gc
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

TOPICS = ("loss", "noise", "pipeline", "stack", "cnn", "grid", "gpu")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: every row runs, no number means anything")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="topics or benchmarks; see --list")
    parser.add_argument("--list", action="store_true", help="print the names for --only and stop")
    parser.add_argument("--repeats", type=int, default=5, help="samples of each side, at least 5 unless --quick")
    parser.add_argument("--images", help="NPZ with train_images and train_labels for the rows on a GPU")
    parser.add_argument("--json", type=Path, help="write every row, with all samples")
    parser.add_argument("--markdown", type=Path, help="write the table as a page")
    parser.add_argument("--study", help="store the rows in this folder of book/results, which the page on speed reads")
    parser.add_argument("--gate", action="store_true", help="exit with 1 if a row is below its gate")
    chosen = parser.parse_args(arguments)
    if chosen.repeats < (1 if chosen.quick else 5):
        parser.error(f"--repeats must be at least {1 if chosen.quick else 5}, got {chosen.repeats}")
    return chosen


def measure(benchmark, options) -> list:
    """Return the rows of a benchmark; what is missing or crashes becomes a row that says so."""
    from benchmarks import table

    try:
        return [row.judge(options.quick) for row in benchmark.run(options)]
    except table.MissingError as error:
        return [table.note_row(benchmark.name, f"missing: {error}", "missing", table.MISSING)]
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}".strip().splitlines()[-1]
        return [table.note_row(benchmark.name, text, "crashed", table.CRASHED)]


def select(names: list[str]) -> list:
    """Return the benchmarks of the named topics, or with the names, in the order of the table."""
    known = [(topic, b) for topic in TOPICS for b in importlib.import_module(f"benchmarks.{topic}").BENCHMARKS]
    offered = {name for topic, benchmark in known for name in (topic, benchmark.name)}
    if unknown := sorted(set(names) - offered):
        raise SystemExit(f"--only: unknown {', '.join(unknown)}; known: {', '.join(sorted(offered))}")
    return [benchmark for topic, benchmark in known if not names or {topic, benchmark.name} & set(names)]


def main(arguments: list[str] | None = None) -> int:
    chosen = parse(arguments)
    import torch

    from benchmarks import table

    torch.set_num_threads(1)
    benchmarks = select(chosen.only)
    if chosen.list:
        print("\n".join([*TOPICS, *(benchmark.name for benchmark in benchmarks)]))
        return 0
    machine, date, start = table.describe_machine(), table.today(), time.perf_counter()
    options = table.Options(chosen.quick, chosen.repeats, chosen.images)
    print(f"{date}: " + ", ".join(f"{key} {value}" for key, value in machine.items()))
    if chosen.quick:
        print("--quick: tiny sizes, so that every row runs; the numbers are meaningless")
    rows = []
    gc.freeze()  # what is imported by now need not be searched before every sample
    for benchmark in benchmarks:
        for row in measure(benchmark, options):
            rows.append(row)
            name, compared, sizes, ours, baseline, value, gate, verdict = table.cells(row)
            print(f"{name}: {compared}", flush=True)
            if sizes:
                sides = f"{ours} against {baseline}: {value}" if baseline else f"{ours} ({value})"
                print("    " + " | ".join(text for text in (sizes, sides, gate, verdict) if text), flush=True)
    gc.unfreeze()
    machine["load at the end"] = table.describe_machine()["load"]
    machine["seconds in all"] = round(time.perf_counter() - start)
    page = (rows, machine, date, chosen.quick)
    if chosen.json:
        chosen.json.write_text(json.dumps(table.as_json(*page), indent=1) + "\n")
    if chosen.markdown:
        chosen.markdown.write_text(table.markdown(*page))
    if chosen.study:
        import nls

        nls.save_results(table.tidy(*page[:3]), chosen.study, by="topic")
    verdicts = [row.verdict for row in rows]
    counts = {name: verdicts.count(name) for name in (table.PASS, table.BELOW, table.MISSING, table.CRASHED)}
    print(f"{len(rows)} rows in {machine['seconds in all']} s: " + ", ".join(f"{n} {k}" for k, n in counts.items()))
    if counts[table.CRASHED]:
        return 2
    return int(chosen.gate and counts[table.BELOW] > 0)


if __name__ == "__main__":
    # Read by the thread pools of torch and NumPy when they are first imported, here and in every worker.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    # The folder of this file would offer its modules under bare names, such as `noise`.
    sys.path[0] = os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    raise SystemExit(main())
