"""Labels that people gave: CIFAR-10N and CIFAR-100N, read without running code, checked, and counted."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from nls import _checks
from nls.store import load_results

NUM_EXAMPLES = 50_000
"""Training images of CIFAR, each with its labels."""

# In the same order as the clean labels, the noisiest set agrees in 60 % of the places; in another order, in 1/K.
_LEAST_AGREEMENT = 0.3

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
_CIFAR100_COARSE = (
    "aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices "
    "household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes "
    "large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees "
    "vehicles_1 vehicles_2"
)


class _Release(NamedTuple):
    """Where the labels of one name are: file, size in MB, key of the clean labels, label set -> key, class names."""

    file: str
    megabytes: float
    clean: str
    sets: dict[str, str]
    class_names: tuple[str, ...]


_RELEASES = {
    "cifar10n": _Release(
        "CIFAR-10_human.pt",
        2.4,
        "clean_label",
        {"aggregate": "aggre_label", **{f"random{i}": f"random_label{i}" for i in (1, 2, 3)}, "worst": "worse_label"},
        tuple(_CIFAR10.split()),
    ),
    "cifar100n": _Release("CIFAR-100_human.pt", 1.0, "clean_label", {"fine": "noisy_label"}, tuple(_CIFAR100.split())),
    "cifar100n_coarse": _Release(
        "CIFAR-100_human.pt",
        1.0,
        "clean_coarse_label",
        {"coarse": "noisy_coarse_label"},
        tuple(_CIFAR100_COARSE.split()),
    ),
}
_SOURCE = "CIFAR-N, Wei et al. 2022, Learning with Noisy Labels Revisited, arXiv:2110.12088, noisylabels.com"
_LICENCE = "CC BY-NC 4.0: non-commercial use, with attribution"
_ENVIRONMENT = "NLS_DATA"


@dataclass(frozen=True, eq=False, repr=False)
class HumanLabels:
    """Labels that people gave to the training images of CIFAR, in torchvision's order of the images.

    Attributes:
        name: The name they were asked for.
        clean_labels: The labels of CIFAR itself [50000], int64.
        label_sets: Name of a set to its labels [50000], int64; read-only. Of ``cifar10n``: ``random1``, ``random2``
            and ``random3`` are one annotator's each, ``aggregate`` is their majority (one of the
            three where all differ), ``worst`` a wrong one where there is one.
        class_names: One name per class.
        source: Whom to cite.
        licence: What the labels may be used for.
        digest: First 12 hexadecimal digits of the SHA-256 of the file.
    """

    name: str
    clean_labels: torch.Tensor
    label_sets: Mapping[str, torch.Tensor]
    class_names: tuple[str, ...]
    source: str
    licence: str
    digest: str

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    def __repr__(self) -> str:
        return f"HumanLabels({self.name!r}: {len(self.clean_labels)} examples, sets {', '.join(self.label_sets)})"

    def counts(self, *label_sets: str) -> torch.Tensor:
        r"""Return how often clean label i met the noisy labels j, k, ... of one or more sets.

        Args:
            label_sets: Names of sets, at least one.

        Returns:
            Counts [K, K], or [K, K, K] of two sets, and so on, int64: the clean label comes first.

        Raises:
            ValueError: If a name is unknown or none is given.
        """
        if not label_sets:
            raise ValueError(f"label_sets must name at least one of {', '.join(self.label_sets)}, got none")
        code = self.clean_labels
        for label_set in label_sets:
            known = _checks.choice(label_set, "label_set", tuple(self.label_sets))
            code = code * self.num_classes + self.label_sets[known]
        shape = [self.num_classes] * (1 + len(label_sets))
        return torch.bincount(code, minlength=self.num_classes ** len(shape)).view(shape)

    def transition(self, label_set: str) -> torch.Tensor:
        r"""Return the shares :math:`\hat T_{ij} = n_{ij} / n_i` of noisy labels for each clean class.

        Args:
            label_set: Name of a set.

        Returns:
            A float64 tensor [K, K] whose rows sum to 1.

        Raises:
            ValueError: If the name is unknown.
        """
        counts = self.counts(label_set).double()
        return counts / counts.sum(1, keepdim=True)

    def check_order(self, clean_labels: torch.Tensor, indices: torch.Tensor | None = None) -> None:
        """Raise unless your data set has its examples in the order of these labels.

        Args:
            clean_labels: The labels [n] of your data set.
            indices: Rows [n] of the training images that they belong to, such as ``train_indices`` of
                :func:`nls.load_dataset`; None for all 50,000 in order.

        Raises:
            TypeError: If an argument is not an integer tensor.
            ValueError: If labels differ, naming how many and the first.
        """
        given = _checks.integer_labels(clean_labels, "clean_labels", self.num_classes).cpu()
        own = self.clean_labels
        if indices is not None:
            own = own[_checks.integer_labels(indices, "indices", len(own)).cpu()]
        if given.shape != own.shape:
            raise ValueError(f"clean_labels must have shape {tuple(own.shape)}, got {tuple(given.shape)}")
        wrong = (given != own).nonzero().flatten()
        if len(wrong):
            first = int(wrong[0])
            same = torch.equal(given.bincount(minlength=self.num_classes), own.bincount(minlength=self.num_classes))
            hint = " Classes are as frequent, so the examples are in another order than torchvision's." if same else ""
            raise ValueError(
                f"clean_labels must be those of {self.name}: {len(wrong)} of {len(own)} differ, the first at place "
                f"{first}, where {int(own[first])} was expected and {int(given[first])} came.{hint}"
            )


def load_human_labels(name: str, root: str | os.PathLike[str] | None = None) -> HumanLabels:
    r"""Read the human labels of CIFAR from the file that its authors released.

    The file is a pickle of NumPy arrays. Unpickling can run any code, so only what rebuilds an array is let in
    (``torch.load(weights_only=True)`` with four names of NumPy added); a file that asks for anything else is refused
    before it is called. Number, range and order of the labels are checked.

    Args:
        name: ``"cifar10n"``, ``"cifar100n"`` or ``"cifar100n_coarse"`` (the 20 superclasses of the same labels).
        root: Folder with ``CIFAR-10_human.pt`` or ``CIFAR-100_human.pt``; if None, the one that the environment
            variable ``NLS_DATA`` names.

    Returns:
        The labels with their source and licence.

    Raises:
        TypeError: If ``root`` is not a path.
        ValueError: If the name is unknown, the file is missing (with the steps to get it), damaged, unsafe, or not
            what it should be.

    References:
        Wei et al., 2022, arXiv:2110.12088.
    """
    release = _RELEASES[_checks.choice(name, "name", tuple(_RELEASES))]
    path = _find(release, root)
    content = _read_arrays(path)
    clean = _labels(content, release.clean, path, release)
    sets = {label_set: _labels(content, key, path, release) for label_set, key in release.sets.items()}
    if clean.bincount(minlength=len(release.class_names)).unique().numel() > 1:
        raise ValueError(f"{path}: {release.clean} must hold each class equally often, as CIFAR does; it does not")
    for key, labels in zip(release.sets.values(), sets.values(), strict=True):
        agreement = float((labels == clean).double().mean())
        if agreement < _LEAST_AGREEMENT:
            raise ValueError(
                f"{path}: {key} must be in the order of {release.clean}, it agrees in {agreement:.1%} of the places"
            )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return HumanLabels(name, clean, MappingProxyType(sets), release.class_names, _SOURCE, _LICENCE, digest)


def human_counts(name: str, *label_sets: str) -> torch.Tensor:
    r"""Return stored counts of human labels, for which no label file is needed.

    The book keeps counts only: their licence forbids to pass the labels on with it. They are made by
    ``python book/human_counts.py --root FOLDER``.

    Args:
        name: As for :func:`load_human_labels`.
        label_sets: One set, or two of ``random1``, ``random2``, ``random3`` in this order.

    Returns:
        Counts [K, K] or [K, K, K], int64, as :meth:`HumanLabels.counts`.

    Raises:
        ValueError: If the name is unknown, or these sets are not stored.

    Examples:
        >>> counts = human_counts("cifar10n", "worst")
        >>> round(1 - counts.diagonal().sum().item() / counts.sum().item(), 3)
        0.402
    """
    num_classes = len(_RELEASES[_checks.choice(name, "name", tuple(_RELEASES))].class_names)
    columns = ["clean", "noisy"] if len(label_sets) == 1 else ["clean", "first", "second"]
    table = load_results("cifar_n" if len(label_sets) == 1 else "cifar_n_pairs")
    key = table["label_set"] if len(label_sets) == 1 else table["first_set"] + " " + table["second_set"]
    rows = table[(table["dataset"] == name) & (key == " ".join(label_sets))]
    if rows.empty:
        known = ", ".join(sorted(key[table["dataset"] == name].unique()))
        raise ValueError(f"label_sets must be stored for {name!r}, got {' '.join(label_sets)!r}; known: {known}")
    counts = torch.zeros([num_classes] * len(columns), dtype=torch.int64)
    counts[tuple(torch.tensor(rows[columns].to_numpy()).T)] = torch.tensor(rows["count"].to_numpy())
    return counts


def class_names(name: str) -> tuple[str, ...]:
    """Return the names of the classes, for which no label file is needed.

    Args:
        name: As for :func:`load_human_labels`.

    Returns:
        One name per class.

    Raises:
        ValueError: If the name is unknown.

    Examples:
        >>> class_names("cifar10n")[1], class_names("cifar100n")[52], len(class_names("cifar100n_coarse"))
        ('automobile', 'oak_tree', 20)
    """
    return _RELEASES[_checks.choice(name, "name", tuple(_RELEASES))].class_names


def _find(release: _Release, root: object) -> Path:
    """Return the path of the released file, or say how to get it."""
    origin = _ENVIRONMENT if root is None else "root"
    named = os.environ.get(_ENVIRONMENT) if root is None else root
    if named is not None and not isinstance(named, (str, os.PathLike)):
        raise TypeError(f"root must be the path of a folder, got {_checks.describe(named)}")
    folder = Path(os.path.expanduser(named)) if named else None
    if folder is not None and (folder / release.file).is_file():
        return folder / release.file
    state = "which holds no such file" if folder is not None and folder.is_dir() else "which is no folder"
    where = f"{origin} names {str(folder)!r}, {state}" if folder is not None else f"{origin} names no folder"
    raise ValueError(
        f"{release.file} must be in your folder of data sets, but {where}. To get it: "
        f"1. open the CIFAR-N project page, noisylabels.com, and from there the repository UCSC-REAL/cifar-10-100n; "
        f"2. download data/{release.file} ({release.megabytes} MB; {_LICENCE}); 3. put it into a folder under this "
        f"name; 4. pass that folder as root, or set the environment variable {_ENVIRONMENT} to it"
    )


def _read_arrays(path: Path) -> dict:
    """Return the dictionary in a file of pickled arrays, without letting it call anything but NumPy's rebuilding."""
    rebuild = np.empty(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in ("int8", "int16", "int32", "int64", "uint8")}
    # The function moved from numpy.core to numpy._core; a file may name either place.
    names = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    wanted = [*names, np.ndarray, np.dtype, *kinds]
    # On leaving, torch drops all names of the list, also those that you had allowed yourself before.
    new = [entry for entry in wanted if entry not in torch.serialization.get_safe_globals()]
    try:
        with torch.serialization.safe_globals(new):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of it, it is not read
        # What torch says is not passed on: it advises to load the file with its code.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            raise ValueError(f"{path} is refused: it asks to call {asked[1]}, which labels do not need") from None
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) must hold pickled arrays of integers; it is another file, damaged "
            f"or cut short, download it again ({type(error).__name__})"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary of arrays, got {type(content).__name__}")
    return content


def _labels(content: dict, key: str, path: Path, release: _Release) -> torch.Tensor:
    """Return one array of labels of the file, checked, as int64."""
    if key not in content:
        raise ValueError(f"{path} must hold {key!r}, got {', '.join(map(repr, content)) or 'nothing'}")
    try:
        labels = np.asarray(content[key])
    except ValueError:
        labels = np.empty(0, dtype=object)
    if labels.dtype.kind not in "iu" or labels.shape != (NUM_EXAMPLES,):
        raise ValueError(f"{path}: {key} must hold {NUM_EXAMPLES} integers, got {labels.dtype} of shape {labels.shape}")
    num_classes = len(release.class_names)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{path}: {key} must lie in [0, {num_classes - 1}], got values from {low} to {high}")
    return torch.from_numpy(labels.astype(np.int64))
