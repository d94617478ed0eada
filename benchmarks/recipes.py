"""Run every recipe of the book whose library is installed, and print what it ran with and what came out.

    python benchmarks/recipes.py [--study NAME]

A recipe whose library cannot be imported is left out.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import io
import platform
import runpy
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = {
    "plain_torch": "torch",
    "timm_mixup": "timm",
    "lightning_module": "lightning",
    "hf_trainer": "transformers",
    "shapes": "torch",
}


def run(recipe: str) -> dict[str, object]:
    """Return a row on a recipe, run as it stands.

    Raises:
        ImportError: If its library is not installed.
    """
    versions = {name: importlib.metadata.version(name) for name in ("torch", LIBRARIES[recipe])}
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            left = runpy.run_path(str(ROOT / "book" / "recipes" / f"{recipe}.py"))
    rate = left.get("RATE", left.get("rate"))
    return {
        "recipe": recipe,
        "library": LIBRARIES[recipe],
        "version": versions[LIBRARIES[recipe]],
        "torch": versions["torch"],
        "python": platform.python_version(),
        "rate": left["loss_function"].smooth_rate if rate is None else rate,
        "accuracy": left.get("accuracy"),
        "log_loss": left.get("log_loss"),
        "seconds": round(time.process_time() - start, 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": "cpu",
    }


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", help="store the rows in this folder of book/results, one file for each recipe")
    chosen = parser.parse_args(arguments)
    rows = []
    for recipe in LIBRARIES:
        try:
            rows.append(run(recipe))
        except ImportError as error:
            print(f"{recipe}: left out, {error}")
    table = pd.DataFrame(rows)
    print(table.drop(columns=["date", "device"]).to_string(index=False))
    if chosen.study:
        import nls

        nls.save_results(table, chosen.study, by="recipe")
    return 0


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    raise SystemExit(main())
