"""Train what is missing of a study of images, and write what its store holds to ``book/results``.

    python book/study.py NAME --root FOLDER --store FOLDER [--time-limit SECONDS] [--workers N] [--device cuda]
                         [--only noise=symmetric ...] [--set seeds=1 ...] [--no-export]

NAME is one of ``nls.studies.STUDIES``. FOLDER of --root holds cifar10.npz and CIFAR-10_human.pt. Call it again after an
interruption, on another machine with a copy of the store, or with more seeds: it trains what the store lacks. The rows
go to ``book/results/NAME``, the curves to ``book/results/NAME_curves``, one file for each noise.
"""

import argparse
import sys
import time

import nls
from nls.studies import STUDIES, noise_name, study

# Factors that every row of these studies shares, or that the id already holds.
_DROPPED = ("dataset", "from_root", "hidden", "min_steps")


def export(name: str, grid: nls.Grid, store: nls.RecordStore) -> dict[str, int]:
    """Write the trained cells of a study to the results, and say how many there are of each state.

    Args:
        name: The study.
        grid: Its cells.
        store: Where they are.

    Returns:
        Number of cells by state: done, diverged, missing.
    """
    table = store.table(grid)
    counts = {state: int((table["state"] == state).sum()) for state in ("done", "diverged", "missing")}
    table = table[table["state"] != "missing"].drop(columns=list(_DROPPED))
    if table.empty:
        return counts
    names = {cell.id: noise_name(cell) for cell in grid}
    table = table.assign(noise_name=table["id"].map(names))
    nls.save_results(table, name, by="noise_name")
    curves = store.curves(grid).merge(table[["id", "noise_name"]], on="id")
    nls.save_results(curves, f"{name}_curves", by="noise_name")
    return counts


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(STUDIES))
    parser.add_argument("--root", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--time-limit", type=float)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device")
    parser.add_argument("--only", nargs="*", default=[], metavar="FACTOR=VALUE")
    parser.add_argument("--set", nargs="*", default=[], metavar="ARGUMENT=NUMBER")
    parser.add_argument("--no-export", action="store_true")
    args = parser.parse_args(arguments)
    changes = {key: int(value) for key, _, value in (text.partition("=") for text in args.set)}
    grid = whole = study(args.name, **changes)
    for factor, _, value in (text.partition("=") for text in args.only):
        grid = nls.Grid.of(cell for cell in grid if str(getattr(cell, factor)) == value)
    if not len(grid):
        parser.error(f"--only {' '.join(args.only)}: no such cells in {args.name}")
    store, started = nls.RecordStore(args.store), time.perf_counter()
    options = {"root": args.root, "workers": args.workers, "device": args.device, "time_limit": args.time_limit}
    done = nls.run_grid(grid, store=store, **options)
    print(f"{args.name}: {done.attrs['trained']} cells trained in {time.perf_counter() - started:.0f} s")
    if not args.no_export:
        counts = export(args.name, whole, store)
        print(f"{args.name}: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
