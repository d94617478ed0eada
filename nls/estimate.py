r"""The transition matrix from noisy labels alone: read off at anchor points, or counted among confident examples.

Both methods look at estimates of the noisy posterior :math:`P(\tilde y \mid x)`. Take them out of sample, as from
:func:`nls.crossfit.crossfit_posterior` or an early epoch: a model that has memorised its labels returns the labels, and
then either method returns something near the identity, whatever the noise.
"""

from __future__ import annotations

import torch

from nls import _checks

__all__ = ["estimate_transition"]

METHODS = ("anchor", "confident")


def estimate_transition(
    probabilities: torch.Tensor, noisy_labels: torch.Tensor, *, method: str = "anchor", percentile: float = 0.97
) -> torch.Tensor:
    r"""Estimate the transition matrix from noisy labels and what a model makes of their inputs.

    ``"anchor"`` takes, for each class, the example that looks most like it, and reads the row off there:

    .. math:: \hat T_{ij} = \hat p(\tilde y = j \mid \bar x^i), \qquad
        \bar x^i = \operatorname*{arg\,max}_x \hat p(\tilde y = i \mid x)

    where an outlier is avoided by the example at a percentile of :math:`\hat p(\tilde y = i \mid x)` instead of the
    largest. It is exact if the probabilities are those of the noisy posterior, the classes have points at which they
    are certain, and the label of a class stays its most probable one.

    ``"confident"`` counts, in the confident joint C, examples with label i that are sure enough to be of class k, gives
    each label its share in the data, and reads off the rows:

    .. math:: C_{ik} = \bigl|\{x : \tilde y = i,\ k = \operatorname*{arg\,max}_{l:\, \hat p_l(x) \ge t_l} \hat p_l(x)\}
        \bigr|, \qquad t_l = \operatorname*{mean}_{x :\, \tilde y = l} \hat p_l(x), \qquad
        \hat T_{ki} \propto \frac{n_i\, C_{ik}}{\sum_l C_{il}}

    Args:
        probabilities: Estimates of the noisy posterior [n, K], out of sample, rows sum to one; on the CPU.
        noisy_labels: The labels [n] of the same examples, class indices in [0, K). The anchors do not look at them.
        method: ``"anchor"`` or ``"confident"``.
        percentile: For the anchors, in (0, 1]; 0.97 is the paper's choice. 1 takes the largest, which is what remains
            where a class has less than 1 - ``percentile`` of the examples, as with 100 classes.

    Returns:
        The matrix [K, K], float64, rows sum to one, ``transition[i, j]`` = P(noisy j | clean i).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, a value is out of range, or, for ``"confident"``, a class has no label or
            no confident example.

    Examples:
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
        >>> probabilities = torch.tensor([[0.75, 0.25]] * 4 + [[0.25, 0.75]] * 4)
        >>> estimate_transition(probabilities, labels)
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]], dtype=torch.float64)
        >>> bool((estimate_transition(probabilities, labels, method="confident") == probabilities[[0, 4]]).all())
        True

    References:
        Patrini et al. 2017, "Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach",
        arXiv 1609.03683.
        Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels",
        arXiv 1911.00068.
    """
    model = _checks.probabilities(probabilities, "probabilities").detach().double()
    if model.ndim != 2 or not len(model):
        raise ValueError(f"probabilities must have shape [n, K] with n >= 1, got {tuple(model.shape)}")
    labels = _checks.integer_labels(noisy_labels, "noisy_labels", model.shape[1])
    if labels.shape != model.shape[:1]:
        raise ValueError(f"noisy_labels must have shape ({len(model)},), got {tuple(labels.shape)}")
    percentile = _checks.number(percentile, "percentile", low=1e-12, high=1.0)
    model = model / model.sum(1, keepdim=True)  # half precision leaves sums that a matrix must not have
    if _checks.choice(method, "method", METHODS) == "anchor":
        return _anchors(model, percentile)
    return _confident(model, labels)


def _anchors(model: torch.Tensor, percentile: float) -> torch.Tensor:
    """Return the rows of the examples at a percentile of the probability of each class."""
    place = round(percentile * (len(model) - 1))
    return model[model.argsort(0)[place]]


def _confident(model: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the rows of the calibrated confident joint."""
    num_classes = model.shape[1]
    counts = torch.bincount(labels, minlength=num_classes).double()
    if bool((counts == 0).any()):
        raise ValueError(f"noisy_labels must hold every class, got none of class {int(counts.argmin())}")
    onehot = torch.nn.functional.one_hot(labels, num_classes).double()
    thresholds = (onehot * model).sum(0) / counts
    # Rounding must not push out an example at its own threshold, as where all of a class have one probability.
    sure = model >= thresholds * (1 - 1e-12)
    kept = sure.any(1)
    guess = model.masked_fill(~sure, -1.0).argmax(1)[kept]
    joint = onehot[kept].T @ torch.nn.functional.one_hot(guess, num_classes).double()  # [label, class]
    if bool((joint.sum(0) == 0).any()):
        missing = int(joint.sum(0).argmin())
        raise ValueError(f"probabilities must be confident of every class somewhere, got no such example of {missing}")
    share = joint / joint.sum(1, keepdim=True) * counts[:, None]
    return (share / share.sum(0)).T.contiguous()
