"""What the tests of the chapters on images plant in stored studies."""

from pathlib import Path

import nbformat
import numpy as np
import torch
import yaml

import nls.image_runs

BOOK = Path(__file__).parents[1] / "book"

# The keys of CIFAR-10N, with shares of labels that are drawn anew.
HUMAN = {"aggre_label": 0.1, "random_label1": 0.2, "random_label2": 0.2, "random_label3": 0.2, "worse_label": 0.4}


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


def write_made_cifar(folder, num_train=160, human=False):
    """Write images of 8 x 8 pixels that their class brightens, as cifar10.npz, and labels of people beside them."""
    rng = np.random.default_rng(0)
    clean = rng.permutation(np.arange(num_train) % 10)
    pixels = rng.integers(0, 40, (num_train, 8, 8, 3), dtype=np.uint8)
    images = (clean[:, None, None, None] * 20).astype(np.uint8) + pixels
    arrays = {"train_images": images, "train_labels": clean, "test_images": images[:40], "test_labels": clean[:40]}
    np.savez(folder / "cifar10.npz", **arrays)
    if human:
        sets = {"clean_label": clean}
        for name, rate in HUMAN.items():
            sets[name] = np.where(rng.random(num_train) < rate, rng.integers(0, 10, num_train), clean)
        torch.save(sets, folder / "CIFAR-10_human.pt")
