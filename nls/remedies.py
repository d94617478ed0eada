r"""Two losses that stay bounded at a negative rate: one through the logits, one through its value.

A network whose logits can be scaled has no minimum once its training loss is below zero. Clipping takes the scaling
away, a floor the values below zero; neither keeps a network from memorising what it can still reach.
"""

from __future__ import annotations

import torch

from nls import _checks


def clip_logits(logits: torch.Tensor, bound: float) -> torch.Tensor:
    r"""Return centred logits, shortened to a Euclidean norm of at most a bound.

    .. math:: z \mapsto (z - \bar z)\, \min\Bigl(1, \frac{b}{\|z - \bar z\|}\Bigr)

    They are centred first, since a common offset changes no probability. The gap between one class and the others is
    then at most :math:`g = b \sqrt{K / (K - 1)}`, so that no probability exceeds :math:`1 / (1 + (K - 1) e^{-g})`, and
    the generalised label smoothing loss at a rate :math:`r \le 0` is at least
    :math:`r\, g\, (K - 1) / K + \log(1 + (K - 1) e^{-g})`. Beyond the bound the gradient keeps its direction across
    the logits and has no part along them.

    Args:
        logits: Shape [..., K], K at least 2.
        bound: b, above 0.

    Returns:
        Logits of the shape and type of ``logits``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``logits`` has fewer than 2 classes, or ``bound`` is not above 0.

    Examples:
        >>> clip_logits(torch.tensor([[8.0, 0.0], [1.0, 0.0]]), 2**0.5).round(decimals=3)
        tensor([[ 1.0000, -1.0000],
                [ 0.5000, -0.5000]])

    References:
        Wei et al., 2023, arXiv:2212.04055, who do not centre.
    """
    if _checks.floating(logits, "logits").ndim == 0 or logits.shape[-1] < 2:
        raise ValueError(f"logits must have at least 2 classes on the last axis, got {_checks.describe(logits)}")
    bound = _checks.number(bound, "bound", low=1e-12)
    centred = logits - logits.mean(-1, keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return centred * (bound / norm.clamp_min(bound))


def floored_loss(losses: torch.Tensor, floor: float) -> torch.Tensor:
    r"""Return losses whose mean turns around at a floor, where the mean of the given ones would fall through it.

    .. math:: \ell_i \mapsto f + \operatorname{sign}(\bar\ell - f)\,(\ell_i - f),
        \qquad\text{with the mean}\qquad f + |\bar\ell - f|

    Below the floor a step of descent on the result is one of ascent on the given losses. The floor is for the mean:
    at the true posterior single losses of a negative rate lie on both sides of it. A floor of 0 needs no knowledge of
    the data: where logits can be scaled, a generalised label smoothing risk that is bounded below is nowhere below 0.

    Args:
        losses: Loss of each example, shape [..., n]; the mean is over the last axis.
        floor: f, any number.

    Returns:
        Losses of the shape and type of ``losses``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``losses`` is empty, or ``floor`` is not finite.

    Examples:
        >>> floored_loss(torch.tensor([[1.0, 2.0], [-3.0, 1.0]]), 0.0)
        tensor([[ 1.,  2.],
                [ 3., -1.]])

    References:
        Ishida et al., 2020, arXiv:2002.08709; Toner and Storkey, 2023, arXiv:2307.13100, for noisy labels.
    """
    if _checks.floating(losses, "losses").ndim == 0 or not losses.numel():
        raise ValueError(f"losses must have shape [..., n] with n >= 1, got {_checks.describe(losses)}")
    floor = _checks.number(floor, "floor")
    side = torch.sign(losses.detach().mean(-1, keepdim=True) - floor)
    return floor + side * (losses - floor)
