r"""Flipped labels: fresh at each step, fixed for good, or flipped by an adversary; beside them smoothed targets.

A flip at rate :math:`\alpha` replaces a label by a uniform draw from all K classes, the true one included. The mean of
such labels is the target of :func:`nls.gls_targets` at :math:`r = \alpha`; what label smoothing lacks is their spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import nn

from nls import _checks
from nls.data import Dataset, load_dataset
from nls.each import fit_each
from nls.models import predict_logits
from nls.noise import _check_generator
from nls.posterior import expected_calibration_error
from nls.stack import StackedMLP
from nls.training import StackHistory, fit_stack, seeded_generator

__all__ = [
    "ATTACKS", "STUDY_ARMS", "STUDY_ATTACKS", "Arm", "DisturbedLoss", "attack_labels", "attack_study", "flip_labels",
    "flip_spread", "run_arms", "train_digits",
]  # fmt: skip

ATTACKS = ("random", "pair", "surest")
_KINDS = ("plain", "smooth", "fresh", "fixed")


def flip_labels(
    labels: torch.Tensor, num_classes: int, flip_rate: float | torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    r"""Replace each label, with a probability of its own, by a uniform draw from all classes.

    .. math:: P(\tilde y = k \mid y) = (1 - \alpha)\,[k = y] + \alpha / K

    Args:
        labels: Class indices in [0, K), of any shape, on the device of ``generator``.
        num_classes: K, at least 2.
        flip_rate: :math:`\alpha` in [0, 1], a number or a tensor that broadcasts over ``labels``. The share of labels
            that change is :math:`\alpha (K-1)/K`, as some draws are the label itself.
        generator: Source of randomness; it advances by two draws for each label, whatever the rate.

    Returns:
        int64, of the shape of ``labels``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a label or a rate is out of range, or the rate does not broadcast over the labels.

    Examples:
        >>> flip_labels(torch.zeros(6, dtype=torch.long), 3, 1.0, torch.Generator().manual_seed(0))
        tensor([1, 1, 1, 0, 2, 2])

    References:
        Xie et al., 2016, arXiv:1605.00055.
    """
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    labels = _checks.integer_labels(labels, "labels", num_classes)
    _check_generator(generator)
    rate = _rates(flip_rate, "flip_rate", 0.0).to(labels.device)
    try:
        rate = rate.expand(labels.shape)
    except RuntimeError:
        shapes = f"{tuple(labels.shape)}, got {tuple(rate.shape)}"
        raise ValueError(f"flip_rate must broadcast over labels of shape {shapes}") from None
    return _flip(labels, num_classes, rate, generator)


def flip_spread(flip_rate: float, num_classes: int, num_draws: int = 1) -> float:
    r"""Return how far the mean of some flipped labels spreads about the smoothed target.

    .. math:: E\,\Bigl\lVert \tfrac1m \sum_{j=1}^m e_{\tilde y_j} - q \Bigr\rVert^2
        = \frac{1 - \lVert q \rVert^2}{m} = \frac{K-1}{K} \cdot \frac{\alpha (2 - \alpha)}{m}

    with the smoothed target :math:`q = (1-\alpha) e_y + \alpha u`. It is the trace of the covariance of the gradient
    on the logits that flipping adds, at any logits.

    Args:
        flip_rate: :math:`\alpha` in [0, 1].
        num_classes: K, at least 2.
        num_draws: m, flips of a label at a time, at least 1.

    Returns:
        The expected squared distance.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range.

    Examples:
        >>> round(flip_spread(0.2, 10), 3), round(flip_spread(0.2, 10, num_draws=4), 3)
        (0.324, 0.081)
    """
    rate = _checks.number(flip_rate, "flip_rate", low=0.0, high=1.0)
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    return (num_classes - 1) / num_classes * rate * (2 - rate) / _checks.integer(num_draws, "num_draws", low=1)


class DisturbedLoss:
    r"""Cross entropy on labels that are flipped afresh at every call: DisturbLabel.

    .. math:: \frac1m \sum_{j=1}^m \ell_r(z, \tilde y_j), \qquad \tilde y_j \sim (1 - \alpha)\, e_y + \alpha u

    At :math:`r = 0` its mean over the draws is :func:`nls.gls_loss` at the rate :math:`\alpha`; as m grows it becomes
    that. For :func:`nls.fit_each` and, with one rate for each member, for :func:`nls.fit_stack`. Its draws come from
    a generator of its own, which ``state_dict`` saves.

    Args:
        flip_rate: :math:`\alpha` in [0, 1]; a number, or [B] for the members of a stack.
        num_draws: m, flips of each label at a time, at least 1.
        smooth_rate: r, at most 1, of the loss on the flipped labels; a number or [B].
        seed: Draws the flips, at least 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range.

    Examples:
        >>> from nls import gls_loss
        >>> logits, labels = torch.tensor([[2.0, 0.0]] * 100_000), torch.zeros(100_000, dtype=torch.long)
        >>> losses = DisturbedLoss(0.2)(logits, labels)
        >>> round(float(losses.mean()), 2), round(float(gls_loss(logits, labels, 0.2)), 2)
        (0.33, 0.33)

    References:
        Xie et al., 2016, arXiv:1605.00055.
    """

    def __init__(
        self,
        flip_rate: float | torch.Tensor,
        *,
        num_draws: int = 1,
        smooth_rate: float | torch.Tensor = 0.0,
        seed: int = 0,
    ) -> None:
        self.flip_rate = _rates(flip_rate, "flip_rate", 0.0)
        self.num_draws = _checks.integer(num_draws, "num_draws", low=1)
        self.smooth_rate = _rates(smooth_rate, "smooth_rate", -torch.inf)
        self.generator = seeded_generator(seed, "disturbed labels")

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, members: slice = slice(None)) -> torch.Tensor:
        """Return losses [n] of logits [n, K], or losses [B, n] of logits [B, n, K]."""
        num_classes = logits.shape[-1]
        flip_rate, smooth_rate = (
            rate[members, None] if rate.ndim else rate for rate in (self.flip_rate, self.smooth_rate)
        )
        repeated = labels.unsqueeze(-1).expand(*labels.shape, self.num_draws)
        flipped = _flip(repeated, num_classes, flip_rate.unsqueeze(-1), self.generator)
        losses = -logits.log_softmax(-1)
        drawn = losses.gather(-1, flipped).mean(-1)
        return drawn if not smooth_rate.any() else (1 - smooth_rate) * drawn + smooth_rate * losses.mean(-1)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state of the generator, for a run that is interrupted."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a state that :meth:`state_dict` returned."""
        self.generator.set_state(state["generator"])


def attack_labels(
    labels: torch.Tensor,
    num_classes: int,
    attack: str,
    share: float,
    generator: torch.Generator,
    logits: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Return labels of which an adversary has made a share wrong.

    Exactly :math:`\lfloor s n + 1/2 \rfloor` labels change: under ``"random"`` those of random examples, each to a
    random other class; under ``"pair"`` those of random examples, each to the next class, :math:`y + 1 \bmod K`; under
    ``"surest"`` those where it pays most: with the logits of a network trained on the right labels, the examples with
    the largest :math:`z_y - \min_k z_k`, each to its least likely class. No other flips of as many labels raise the
    loss of that network as much. The examples of a smaller share are among those of a larger one.

    Args:
        labels: [n], class indices in [0, K).
        num_classes: K, at least 2.
        attack: One of ``ATTACKS``.
        share: s in [0, 1].
        generator: Source of randomness.
        logits: [n, K], what the adversary knows; for ``"surest"`` only.

    Returns:
        int64 [n].

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range, the attack is unknown, or ``"surest"`` comes without logits.

    Examples:
        >>> labels = torch.zeros(5, dtype=torch.long)
        >>> attack_labels(labels, 3, "pair", 0.4, torch.Generator().manual_seed(0)).sum()
        tensor(2)
    """
    _checks.choice(attack, "attack", ATTACKS)
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    labels = _checks.integer_labels(labels, "labels", num_classes)
    _check_generator(generator)
    count = int(_checks.number(share, "share", low=0.0, high=1.0) * len(labels) + 0.5)
    if attack == "surest":
        if not isinstance(logits, torch.Tensor) or logits.shape != (len(labels), num_classes):
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise ValueError(f"logits must have shape ({len(labels)}, {num_classes}) for 'surest', got {got}")
        wrong = logits.scatter(1, labels[:, None], torch.inf).argmin(1)
        gain = (logits.gather(1, labels[:, None]) - logits.gather(1, wrong[:, None])).squeeze(1)
        chosen = gain.argsort(descending=True, stable=True)[:count]
    else:
        chosen = torch.randperm(len(labels), generator=generator)[:count]
        step = torch.randint(1, num_classes, labels.shape, generator=generator) if attack == "random" else 1
        wrong = (labels + step) % num_classes
    return labels.index_copy(0, chosen, wrong[chosen])


@dataclass(frozen=True)
class Arm:
    r"""One way to train on given labels.

    Attributes:
        label: What a table calls it.
        kind: ``"plain"`` cross entropy, ``"smooth"`` targets, or flips of the labels that are ``"fresh"`` at each step
            or ``"fixed"`` before the first.
        rate: :math:`r` of smooth targets, :math:`\alpha` of flips; 0 for plain.

    Raises:
        ValueError: If the kind is another word, or the rate is out of range.

    Examples:
        >>> Arm("DisturbLabel", "fresh", 0.2).rate
        0.2
    """

    label: str
    kind: str = "plain"
    rate: float = 0.0

    def __post_init__(self) -> None:
        _checks.choice(self.kind, "kind", _KINDS)
        low = -torch.inf if self.kind == "smooth" else 0.0
        _checks.number(self.rate, "rate", low=low, high=0.0 if self.kind == "plain" else 1.0)

    def rate_if(self, kind: str) -> float:
        """Return the rate if the arm is of a kind, else 0."""
        return self.rate if self.kind == kind else 0.0


STUDY_ARMS = (
    Arm("CE"),
    *(Arm(f"{k} {r}", k, r) for k in ("smooth", "fresh") for r in (0.2, 0.5)),
    Arm("fixed 0.2", "fixed", 0.2),
)
STUDY_ATTACKS = (("random", 0.0), *((attack, share) for attack in ATTACKS for share in (0.1, 0.2, 0.4)))
"""What the stored study compares, in every combination."""


def run_arms(
    dataset: str,
    arms: Sequence[Arm],
    attacks: Sequence[tuple[str, float]] = (("random", 0.0),),
    *,
    seed: int = 0,
    hidden: tuple[int, ...] = (64,),
    epochs: int = 60,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    num_draws: int = 1,
    num_examples: int | None = None,
) -> pd.DataFrame:
    r"""Train one small network for each arm and attack, all in one stack by Adam, and return what came of each.

    All start from one initialisation and see the same batches. The adversary changes training and validation labels,
    test labels are clean. The adversary behind ``"surest"`` knows the data, the right labels and the recipe: a network
    trained so on the right labels, from another initialisation. Fixed flips come after the attack, and are the same for
    all attacks.

    Args:
        dataset: A name that :func:`nls.load_dataset` knows, with plain features.
        arms: Ways to train, with different labels.
        attacks: Pairs of a name in ``ATTACKS`` and a share.
        seed: Varies the split (or the sample), attack, flips, initialisation and the order of the batches.
        hidden: Widths of the hidden layers.
        epochs: Passes over the data, at least 1.
        batch_size: Examples in a step, at least 1.
        learning_rate: Step size above 0.
        num_draws: Flips of each label in a step, for arms of fresh flips.
        num_examples: Size of a generated set; None for its default.

    Returns:
        One row for each attack and arm: ``dataset``, ``seed``, ``attack``, ``share``, ``arm``; ``accuracy_last``,
        ``nll_last`` and ``ece_last`` on the test set; ``accuracy_picked``, at the first epoch with the best accuracy on
        the attacked validation labels; and shares of training examples whose prediction is the right label
        (``fits_true``), the label that the adversary gave it (``fits_attack``, of those that were changed), or the
        fixed flip (``fits_flips``, likewise); and ``apart``, the mean total variation distance of the test predictions
        from those of the smooth arm of the same rate. What is not there is not a number.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a name is unknown, two arms share a label, there are none, or a value is out of range.

    Examples:
        >>> table = run_arms("wine", [Arm("CE"), Arm("DisturbLabel", "fresh", 0.2)], [("pair", 0.1)], epochs=2)
        >>> table[["attack", "share", "arm"]].values.tolist()
        [['pair', 0.1, 'CE'], ['pair', 0.1, 'DisturbLabel']]
    """
    arms, attacks = list(arms), list(attacks)
    if not arms or len({arm.label for arm in arms}) < len(arms):
        raise ValueError(f"arms must hold at least one arm, each with a label of its own, got {arms}")
    if not attacks:
        raise ValueError("attacks must hold at least one pair of a name and a share, got none")
    sized = {} if num_examples is None else {"num_examples": num_examples}
    data = load_dataset(dataset, seed=seed, **sized)
    recipe = {"hidden": hidden, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    shown = _attacked(data, attacks, seed, recipe)
    cells = [(place, arm) for place in range(len(attacks)) for arm in arms]
    labels = torch.stack(
        [_with_fixed_flips(shown["train"][place], arm, data.num_classes, seed) for place, arm in cells]
    )
    rates = {kind: torch.tensor([arm.rate_if(kind) for _, arm in cells]) for kind in ("fresh", "smooth")}
    loss = DisturbedLoss(rates["fresh"], num_draws=num_draws, smooth_rate=rates["smooth"], seed=seed)
    fit = fit_stack(
        data.train_features, labels, num_classes=data.num_classes, seed=seed, loss=loss,
        evaluate=_Evaluate(data, shown["validation"][[place for place, _ in cells]]), chunk=len(cells), **recipe,
    )  # fmt: skip
    rows = [
        {"dataset": dataset, "seed": seed, "attack": attacks[place][0], "share": attacks[place][1], "arm": arm.label}
        for place, arm in cells
    ]
    test = fit.stack.forward(data.test_features).softmax(-1)
    found = _found(fit, data, test, torch.stack([shown["train"][place] for place, _ in cells]), labels)
    return pd.DataFrame(rows).assign(**found, apart=_apart(cells, test))


def _with_fixed_flips(labels: torch.Tensor, arm: Arm, num_classes: int, seed: int) -> torch.Tensor:
    """Return labels as an arm has them before the first step."""
    return _flip(labels, num_classes, arm.rate_if("fixed"), seeded_generator(seed, "fixed flips"))


def _apart(cells: list[tuple[int, Arm]], test: torch.Tensor) -> list[float]:
    """Return how far the predictions [B, n, K] are from those of the smooth arm of the same attack and rate."""
    smooth = {(place, arm.rate): own for (place, arm), own in zip(cells, test, strict=True) if arm.kind == "smooth"}
    pairs = [(own, smooth.get((place, arm.rate))) for (place, arm), own in zip(cells, test, strict=True)]
    return [torch.nan if other is None else float((own - other).abs().sum(1).mean() / 2) for own, other in pairs]


class _Evaluate:
    """Measures a stack after every epoch."""

    def __init__(self, data: Dataset, validation: torch.Tensor) -> None:
        self.data, self.validation = data, validation

    def __call__(self, stack: StackedMLP, members: slice) -> dict[str, torch.Tensor]:
        held = stack.forward(self.data.validation_features, classes_last=False).max(1).indices
        logits = stack.forward(self.data.test_features, classes_last=False)
        chosen = self.data.test_labels.expand(len(logits), 1, -1)
        return {
            "validation": (held == self.validation[members]).float().mean(1),
            "accuracy": (logits.max(1).indices == self.data.test_labels).float().mean(1),
            "nll": -logits.log_softmax(1).gather(1, chosen).mean((1, 2)),
        }


def _found(
    fit: StackHistory, data: Dataset, test: torch.Tensor, shown: torch.Tensor, labels: torch.Tensor
) -> dict[str, list[float]]:
    """Return what came of each member, whose labels [B, n] are those shown with fixed flips."""
    curves, clean = fit.curves, data.train_labels.expand_as(labels)
    picked = curves["validation"].argmax(1, keepdim=True)
    predicted = fit.stack.forward(data.train_features, classes_last=False).max(1).indices
    return {
        "accuracy_last": curves["accuracy"][:, -1].tolist(),
        "nll_last": curves["nll"][:, -1].tolist(),
        "ece_last": [expected_calibration_error(model, data.test_labels) for model in test],
        "accuracy_picked": curves["accuracy"].gather(1, picked)[:, 0].tolist(),
        "fits_true": _share(predicted == clean, torch.ones_like(clean, dtype=torch.bool)),
        "fits_attack": _share(predicted == shown, shown != clean),
        "fits_flips": _share(predicted == labels, labels != shown),
    }


def _share(hits: torch.Tensor, among: torch.Tensor) -> list[float]:
    """Return the share of hits in each row among some, not a number where there are none."""
    return ((hits & among).sum(1) / among.sum(1)).tolist()


def _attacked(data: Dataset, attacks: Sequence[tuple[str, float]], seed: int, recipe: dict) -> dict[str, torch.Tensor]:
    """Return training and validation labels as the adversary leaves them, a row for each attack."""
    classes, known = data.num_classes, {"train": None, "validation": None}
    if any(attack == "surest" for attack, _ in attacks):
        fit = fit_stack(data.train_features, data.train_labels[None], num_classes=classes, seed=seed + 1, **recipe)
        known = {split: fit.stack.forward(getattr(data, f"{split}_features"))[0] for split in known}
    return {
        split: torch.stack([
            attack_labels(
                getattr(data, f"{split}_labels"), classes, attack, share,
                seeded_generator(seed, f"{split} {attack}"), logits if attack == "surest" else None,
            ) for attack, share in attacks
        ]) for split, logits in known.items()
    }  # fmt: skip


def train_digits(dropout: float, kind: str, rate: float, seed: int, epochs: int = 40) -> dict[str, float]:
    r"""Train one small convolutional network on the images of digits, with or without dropout.

    Two convolutions, 16 and 32 wide, each with pooling, then 128 units with dropout before the last layer; Adam with a
    step of 0.002, batches of 64.

    Args:
        dropout: Probability in [0, 1) that a unit is left out.
        kind: As in :class:`Arm`, but for ``"fixed"``.
        rate: As in :class:`Arm`.
        seed: Varies the split, the initialisation, the order of the batches, flips and dropout.
        epochs: Passes over the data, at least 1.

    Returns:
        ``error`` in percent and ``nll`` in nats on the test set, and the ``train_loss`` of the last epoch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range.

    Examples:
        >>> sorted(train_digits(0.5, "fresh", 0.1, seed=0, epochs=1))
        ['error', 'nll', 'train_loss']
    """
    arm = Arm("", _checks.choice(kind, "kind", ("plain", "smooth", "fresh")), rate)
    dropout = _checks.number(dropout, "dropout", low=0.0, high=1.0, open_high=True)
    data = load_dataset("digits_images", seed=seed)
    fit = fit_each(
        data.train_features, data.train_labels, network=partial(_digits_network, dropout), num_classes=10,
        epochs=epochs, batch_size=64, optimizer="adam", learning_rate=2e-3, seed=seed,
        loss=DisturbedLoss(arm.rate_if("fresh"), smooth_rate=arm.rate_if("smooth"), seed=seed),
    )  # fmt: skip
    logits = predict_logits(fit.network, data.test_features)
    error = 100 * float((logits.argmax(1) != data.test_labels).double().mean())
    nll = float(nn.functional.cross_entropy(logits, data.test_labels))
    return {"error": error, "nll": nll, "train_loss": float(fit.curves["train_loss"][-1])}


def _digits_network(dropout: float) -> nn.Sequential:
    convolutions = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, 16), (16, 32)))
    blocks = [part for layer in convolutions for part in (layer, nn.ReLU(), nn.MaxPool2d(2))]
    dense = (nn.Linear(128, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, 10))
    return nn.Sequential(*blocks, nn.Flatten(), *dense)


def attack_study(dataset: str, seed: int) -> list[dict]:
    """Return the rows of one data set and seed of the stored study of attacks, for :func:`nls.runs.run_all`.

    Args:
        dataset: As for :func:`run_arms`; a generated set has 1,000 examples.
        seed: As for :func:`run_arms`.

    Returns:
        A row for each of ``STUDY_ATTACKS`` and ``STUDY_ARMS``, with None where there is no number.
    """
    sized = {"num_examples": 1000} if dataset in ("twonorm", "waveform") else {}
    table = run_arms(dataset, STUDY_ARMS, STUDY_ATTACKS, seed=seed, **sized).drop(columns=["dataset", "seed"])
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _flip(
    labels: torch.Tensor, num_classes: int, rate: float | torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Flip labels whatever the rate: the draws do not depend on it."""
    flips = torch.rand(labels.shape, generator=generator, device=labels.device) < rate
    drawn = torch.randint(num_classes, labels.shape, generator=generator, device=labels.device)
    return torch.where(flips, drawn, labels)


def _rates(value: float | torch.Tensor, name: str, low: float) -> torch.Tensor:
    """Return a number or some numbers in [low, 1] as a float32 tensor."""
    for number in value.flatten().tolist() if isinstance(value, torch.Tensor) else [value]:
        _checks.number(number, name, low=low, high=1.0)
    return torch.as_tensor(value, dtype=torch.float32)
