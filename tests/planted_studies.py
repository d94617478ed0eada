"""What the tests of the chapters on images plant in stored studies."""

from pathlib import Path

import nbformat
import yaml

import nls.image_runs

BOOK = Path(__file__).parents[1] / "book"


def splits_in_the_build(stem):
    """Return on how many splits of the digits a chapter trains in the default build."""
    names = {}
    for cell in nbformat.read(BOOK / "notebooks" / f"{stem}.ipynb", as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            exec(cell.source, names)
    profiles = yaml.safe_load((BOOK / "profiles.yml").read_text())["profiles"]
    changed = (profiles["book"]["notebooks"] or {}).get(stem, {})
    return (names | changed)["live_seeds"]


def relabel(study, pairs, noises=None):
    """Exchange the methods of a stored study, two by two, in all noises or in some."""
    exchange = dict(pairs) | {second: first for first, second in pairs.items()}

    def mutate(patch):
        original = nls.image_runs.load_study

        def load(name):
            table = original(name)
            if name == study:
                chosen = table["noise_name"].isin(noises or set(table["noise_name"]))
                rates = {method: rows["smooth_rate"].iloc[0] for method, rows in table.groupby("method")}
                method = table["method"].where(~chosen, table["method"].replace(exchange))
                table = table.assign(method=method, smooth_rate=method.map(rates))
            return table

        patch.setattr(nls.image_runs, "load_study", load)

    return mutate
