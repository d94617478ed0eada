"""What a model is worth where the true posterior is known, with the labels averaged out instead of drawn."""

from __future__ import annotations

import torch

from nls import _checks


def truth_scores(logits: torch.Tensor, posterior: torch.Tensor) -> dict[str, torch.Tensor]:
    r"""Compare predictions with the true posterior at the same inputs.

    With the prediction :math:`\hat y = \arg\max_k p_k`, its probability :math:`p_{\hat y}`, and means over inputs,

    .. math::

        \text{accuracy} = \mathbb E\,\eta_{\hat y}, \qquad
        \text{confidence right} = \frac{\mathbb E[\eta_{\hat y}\, p_{\hat y}]}{\mathbb E\,\eta_{\hat y}}, \qquad
        \text{confidence wrong} = \frac{\mathbb E[(1 - \eta_{\hat y})\, p_{\hat y}]}{\mathbb E[1 - \eta_{\hat y}]}.

    These are what a test set of labels drawn from :math:`\eta` gives in expectation.

    Args:
        logits: Of one model or several, [..., n, K]; log-probabilities are logits as well.
        posterior: True posterior :math:`\eta` at the inputs [n, K].

    Returns:
        Float64 tensors [...]: ``accuracy``; ``disagreement``, the share of inputs where :math:`\hat y` is not the class
        that Bayes' rule picks; ``kl``, the mean of :math:`\mathrm{KL}(\eta \Vert p)` in nats; ``confidence``, the mean
        of :math:`p_{\hat y}`; ``confidence_right`` and ``confidence_wrong``. A model that holds nan gets nan.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If ``posterior`` is not [n, K] with n at least 1, holds no probabilities, or ``logits`` has another
            n or K.

    Examples:
        >>> truth = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
        >>> scores = truth_scores(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), truth)
        >>> scores["accuracy"], scores["disagreement"]
        (tensor(0.5000, dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    """
    truth = _checks.probabilities(posterior, "posterior").double()
    if truth.ndim != 2 or not len(truth):
        raise ValueError(f"posterior must have shape [n, K] with n >= 1, got {_checks.describe(posterior)}")
    if _checks.floating(logits, "logits").shape[-2:] != truth.shape:
        wanted = f"[..., {truth.shape[0]}, {truth.shape[1]}] as posterior has"
        raise ValueError(f"logits must have shape {wanted}, got {_checks.describe(logits)}")
    log_model = logits.detach().double().log_softmax(-1)
    lost = torch.isnan(log_model).any(-1).any(-1)
    log_confidence, predicted = log_model.max(-1)
    confidence = log_confidence.exp()
    right = truth.expand(log_model.shape).gather(-1, predicted.unsqueeze(-1)).squeeze(-1)
    # A class of probability 0 costs nothing, also where the model gives it a logarithm of minus infinity.
    kl = torch.xlogy(truth, truth) - torch.where(truth > 0, truth * log_model, 0.0)
    accuracy = right.mean(-1)
    scores = {
        "accuracy": accuracy,
        "disagreement": (predicted != truth.argmax(-1)).double().mean(-1),
        "kl": kl.sum(-1).mean(-1),
        "confidence": confidence.mean(-1),
        "confidence_right": (right * confidence).mean(-1) / accuracy,
        "confidence_wrong": ((1 - right) * confidence).mean(-1) / (1 - accuracy),
    }
    return {name: values.masked_fill(lost, torch.nan) for name, values in scores.items()}
