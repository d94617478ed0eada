"""Count the human labels of CIFAR: ``python book/human_counts.py --root FOLDER``.

Reads CIFAR-10_human.pt and CIFAR-100_human.pt from the folder (default: the one that NLS_DATA names) and writes
``book/results/cifar_n`` (clean label by noisy label) and ``book/results/cifar_n_pairs`` (clean label by the labels of
two annotators). Only counts are stored: the licence of the labels does not allow to pass them on with the book.
"""

import argparse
import itertools

import pandas as pd
import torch

import nls
from nls.human import HumanLabels, load_human_labels

ANNOTATORS = ("random1", "random2", "random3")


def tabulate(labels: HumanLabels, *label_sets: str) -> pd.DataFrame:
    """Return one row for each cell of the counts that is not zero.

    Args:
        labels: The labels.
        label_sets: One or two names of sets.

    Returns:
        Columns ``dataset``, the names of the sets, ``clean``, the noisy labels, ``count``.
    """
    counts = labels.counts(*label_sets)
    single = len(label_sets) == 1
    named = dict(zip(["label_set"] if single else ["first_set", "second_set"], label_sets, strict=True))
    columns = ["clean", "noisy"] if single else ["clean", "first", "second"]
    cells = pd.DataFrame(counts.nonzero().numpy(), columns=columns)
    rows = cells.assign(dataset=labels.name, **named, count=counts[counts > 0].numpy())
    return rows[["dataset", *named, *columns, "count"]]


def main() -> None:
    """Write the two studies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="folder of the label files; default: the one that NLS_DATA names")
    root = parser.parse_args().root
    everything = [load_human_labels(name, root) for name in ("cifar10n", "cifar100n", "cifar100n_coarse")]
    single = [tabulate(labels, label_set) for labels in everything for label_set in labels.label_sets]
    double = [tabulate(everything[0], *pair) for pair in itertools.combinations(ANNOTATORS, 2)]
    for study, tables in (("cifar_n", single), ("cifar_n_pairs", double)):
        for path in nls.save_results(pd.concat(tables), study):
            print(path)
    print({labels.name: labels.digest for labels in everything}, "torch", torch.__version__)


if __name__ == "__main__":
    main()
