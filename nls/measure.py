"""What a cell of a grid is measured by after every epoch, and the numbers that three selection rules pick from that."""

from __future__ import annotations

import dataclasses
import math

import torch

from nls.data import Dataset
from nls.grid import Cell
from nls.posterior import FLOOR

RULES = ("last", "noisy_validation", "clean_test")
"""Rules for the epoch to report, which is the last, the best on noisy validation, or the best on the clean test set."""

METRICS = (
    "accuracy", "validation_accuracy", "nll", "nll_mapped", "kl", "kl_mapped", "entropy",
    "ece", "confidence_right", "confidence_wrong", "memorised", "recovered", "train_accuracy",
)  # fmt: skip
"""What is measured where it can be, see :func:`nls.run_grid` for the meaning of each."""

_NUM_BINS = 15


class Measure:
    """Accuracy on noisy validation labels, and the rest on the clean test set.

    Logits come as [B, K, n]: over a middle axis of classes a softmax takes a tenth of the time.

    Args:
        cells: The B members, one data set.
        data: It.
        validation: Noisy validation labels [B, n].
        transitions: The matrix of each member's noise, None where there is none; it undoes the noise of a prediction.
        device: Where the logits will be.
        warm: Whether it measures the warm-up, in which every member has r = 0.
    """

    def __init__(
        self,
        cells: list[Cell],
        data: Dataset,
        validation: torch.Tensor,
        transitions: list[torch.Tensor | None],
        device: torch.device,
        *,
        warm: bool = False,
    ) -> None:
        if warm:
            plain = {"loss": "gls", "loss_parameter": None, "transition": "true", "smooth_rate": 0.0}
            cells = [dataclasses.replace(cell, normalized=False, **plain) for cell in cells]
        self.validation, self.labels = validation.to(device), data.test_labels.to(device)
        self.scale, self.inverse = _output_maps(cells, transitions, data.num_classes, device)
        self.posterior, self.negative_entropy = None, 0.0
        if data.test_posterior is not None:
            self.posterior = data.test_posterior.T.float().contiguous().to(device)
            self.negative_entropy = torch.xlogy(self.posterior, self.posterior).sum(0).mean()

    def __call__(
        self, validation_logits: torch.Tensor, test_logits: torch.Tensor, members: slice
    ) -> dict[str, torch.Tensor]:
        """Return every member's metrics [B] of logits [B, K, n]."""
        count, _, n = test_logits.shape
        chosen = self.labels.expand(count, 1, n)
        log_model = test_logits.log_softmax(1)
        model = log_model.exp()
        # Not argmax, which is slow over a middle axis; both take the first of equal values.
        right = test_logits.max(1).indices == self.labels
        out = {
            "validation_accuracy": _share(validation_logits.max(1).indices == self.validation[members]),
            "accuracy": _share(right),
            "nll": -log_model.gather(1, chosen).mean((1, 2)),
            "entropy": -(model * log_model).sum(1).mean(1),
        }
        out |= _confidence(model.amax(1), right)
        mapped = self._undo(model, members).clamp_(min=FLOOR)
        log_total = mapped.sum(1).log().mean(1)
        out["nll_mapped"] = log_total - mapped.gather(1, chosen).log_().mean((1, 2))
        if self.posterior is not None:
            out["kl"] = self.negative_entropy - (self.posterior * log_model).sum(1).mean(1)
            out["kl_mapped"] = self.negative_entropy + log_total - (self.posterior * mapped.log_()).sum(1).mean(1)
        return out

    def _undo(self, model: torch.Tensor, members: slice) -> torch.Tensor:
        """Return what the model says of the clean label, before it is cut and normalised; ``model`` is used up."""
        if self.inverse is not None:
            return self.inverse[members] @ model
        scale = self.scale[members]
        return model.sub_((1 - scale) / model.shape[1]).div_(scale)


def fitted(logits: torch.Tensor, labels: torch.Tensor, clean_labels: torch.Tensor) -> dict[str, float]:
    r"""Return what a network makes of its own training examples.

    Args:
        logits: [n, K] on training examples.
        labels: The labels [n] that were trained on.
        clean_labels: The true ones [n].

    Returns:
        ``memorised`` and ``recovered``, the shares of the wrongly labelled examples whose prediction is the wrong
        label and the true one, not a number without wrong labels; and ``train_accuracy``, the share of all whose
        prediction is the label that was trained on.
    """
    predicted, wrong = logits.argmax(1), labels != clean_labels
    hits = {"memorised": predicted[wrong] == labels[wrong], "recovered": predicted[wrong] == clean_labels[wrong]}
    hits["train_accuracy"] = predicted == labels
    return {name: float(values.float().mean()) for name, values in hits.items()}


def selected(curves: dict[str, list[float]]) -> dict:
    """Return a cell's metrics at the epochs that the three rules pick."""
    best = {"last": len(curves["train_loss"]) - 1}
    for rule, name in (("noisy_validation", "validation_accuracy"), ("clean_test", "accuracy")):
        best[rule] = best_epoch(curves[name])
    out = {f"epoch_{rule}": epoch + 1 for rule, epoch in best.items()}
    out |= {f"{name}_{rule}": curves[name][epoch] for rule, epoch in best.items() for name in METRICS if name in curves}
    below = [epoch for epoch, loss in enumerate(curves["train_loss"], 1) if loss < 0]
    return out | {"train_loss": curves["train_loss"][-1], "negative_loss_epoch": below[0] if below else 0}


def best_epoch(values: list[float]) -> int:
    """Return the place of the largest value, of equal ones the first; what is not a number is the smallest."""
    comparable = [-1.0 if math.isnan(value) else value for value in values]
    return comparable.index(max(comparable))


def _share(hits: torch.Tensor) -> torch.Tensor:
    return hits.float().mean(1)


def _confidence(confidence: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return mean confidence on right and on wrong predictions, and the calibration error, each [B], from [B, n]."""
    hits = right.float()
    bins = (confidence.nan_to_num() * _NUM_BINS).long()  # closed on the left; exactly 1 has a bin of its own
    gaps = torch.zeros(len(hits), _NUM_BINS + 1, device=hits.device).scatter_add_(1, bins, hits - confidence)
    return {
        "ece": gaps.abs().sum(1) / hits.shape[1],
        "confidence_right": (confidence * hits).sum(1) / hits.sum(1),
        "confidence_wrong": (confidence * (1 - hits)).sum(1) / (1 - hits).sum(1),
    }


def _output_maps(
    cells: list[Cell], transitions: list[torch.Tensor | None], num_classes: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""Return what undoes rate and noise of each member: a scale [B, 1, 1], and matrices [B, K, K] if one needs it.

    A model that fits rate r on labels of matrix T predicts :math:`q = (1 - r) T^\top \eta + r u`, so
    :math:`\eta = T^{-\top} (q - r u) / (1 - r)`. Under symmetric noise that is a matter of one number.
    """
    # With two classes all noise of one matrix and rate is symmetric.
    symmetric = {"symmetric", "pair"} if num_classes == 2 else {"symmetric"}
    scale = torch.tensor(
        [
            (1 - c.smooth_rate) * (1 - num_classes * c.noise_rate / (num_classes - 1))
            if c.loss == "gls" and c.noise in symmetric
            else 0.0
            for c in cells
        ],
        device=device,
    )
    scale = scale[:, None, None].masked_fill(scale[:, None, None] <= 0, torch.nan)
    if all(c.loss != "gls" or c.noise in symmetric or t is None for c, t in zip(cells, transitions, strict=True)):
        return scale, None
    inverses = [_inverse(c, t, num_classes) for c, t in zip(cells, transitions, strict=True)]
    return scale, torch.stack(inverses).to(device)


def _inverse(cell: Cell, transition: torch.Tensor | None, num_classes: int) -> torch.Tensor:
    """Return the matrix that undoes a cell's rate and noise, not a number where there is none."""
    rate, invertible = cell.smooth_rate, transition is not None and torch.linalg.matrix_rank(transition) == num_classes
    if not invertible or rate == 1 or cell.loss != "gls":
        return torch.full((num_classes, num_classes), math.nan)
    unsmooth = (torch.eye(num_classes, dtype=torch.float64) - rate / num_classes) / (1 - rate)
    return torch.linalg.solve(transition.double().T, unsmooth).float()
