"""Smoothing rates in closed form: the best one for a known noise, for a matrix, and the lowest that is bounded."""

from __future__ import annotations

import math

import torch

from nls import _checks

# Below this, 1 - c and tr T - 1 count as rounding of zero, also from float32: the labels carry no information.
NO_INFORMATION = 1e-6


def optimal_smooth_rate(
    noise_rate: float | torch.Tensor, num_classes: int, clean_rate: float = 0.0
) -> float | torch.Tensor:
    r"""Return the smoothing rate under symmetric noise that equals a given rate on clean labels.

    .. math:: r_{\mathrm{opt}} = \frac{r^* - c}{1 - c}, \qquad c = \frac{K \epsilon}{K - 1}

    Symmetric noise is itself label smoothing, at rate :math:`c`, and rates compose by
    :math:`1 - r = (1 - r_1)(1 - r_2)`. So smoothing noisy labels at :math:`r_{\mathrm{opt}}` has the same
    population risk, for every model, as smoothing clean labels at :math:`r^*`. The sign changes at
    :math:`\epsilon = r^* (K - 1) / K`: below it the rate is positive, above it negative. This is a statement about
    the population: from few labels per input, a higher rate estimates the clean posterior better.

    Args:
        noise_rate: Flip probability :math:`\epsilon \in [0, (K - 1) / K)`, a number or a floating-point tensor.
        num_classes: Number of classes :math:`K \ge 2`.
        clean_rate: Rate :math:`r^* \le 1` that is best on clean labels; 0 recovers the clean posterior, by the
            backward correction :math:`r = -c / (1 - c)`.

    Returns:
        The rate, a float for a number; for a tensor, float64 of its shape.

    Raises:
        TypeError: If an argument is not a number of the right kind.
        ValueError: If an argument is out of range, or :math:`c \ge 1`.

    Examples:
        >>> round(optimal_smooth_rate(0.4, 10), 4)
        -0.8
        >>> round(optimal_smooth_rate(0.4, 10, clean_rate=0.1), 4)
        -0.62
        >>> optimal_smooth_rate(torch.tensor([0.0, 0.25]), 2)
        tensor([ 0., -1.], dtype=torch.float64)

    References:
        Wei et al., 2022, arXiv:2106.04149, for two classes; Lukasik et al., 2020, arXiv:2003.02819.
    """
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    clean_rate = _checks.number(clean_rate, "clean_rate", high=1)
    is_tensor = isinstance(noise_rate, torch.Tensor)
    if is_tensor:
        rate = _checks.floating(noise_rate, "noise_rate").double()
        if not bool(((rate >= 0) & (rate <= 1)).all()):
            low, high = rate.detach().aminmax()
            raise ValueError(f"noise_rate must lie in [0, 1], got {float(low):g} to {float(high):g}")
    else:
        rate = torch.tensor(_checks.number(noise_rate, "noise_rate", low=0, high=1), dtype=torch.float64)
    lost = num_classes * rate / (num_classes - 1)
    if bool((lost > 1 - NO_INFORMATION).any()):
        raise ValueError(
            f"noise_rate must be below (K - 1) / K = {(num_classes - 1) / num_classes:.6g} for K = {num_classes}, "
            f"got {float(rate.detach().max()):.6g}: there labels carry no information, beyond it reversed, "
            "and no rate up to 1 undoes that"
        )
    optimal = (clean_rate - lost) / (1 - lost)
    return optimal if is_tensor else float(optimal)


def frobenius_rate(transition: torch.Tensor, prior: torch.Tensor | None = None) -> tuple[float, float]:
    r"""Return the one smoothing rate that comes nearest to inverting a transition matrix, and what is left over.

    .. math::
        1 - r_F = \frac{\operatorname{tr} T - 1}{\|T\|_F^2 - 1}
        \quad\text{minimises}\quad \|T\,G(r) - I\|_F, \qquad G(r) = (1 - r) I + r\,u 1^\top,
        \qquad \text{residual } \varrho = \frac{\|T\,G(r_F) - I\|_F}{\|I - u 1^\top\|_F}

    Row i of :math:`T\,G(r)` is the expected target of an example of class i. With a class prior w its rows count by
    :math:`w_i`, and :math:`1 - r_F = (\sum_i w_i T_{ii} - 1/K) / (\sum_i w_i |T_i|^2 - 1/K)`.

    The residual is the sine of the angle between :math:`T - u 1^\top` and :math:`I - u 1^\top`: 0 for symmetric noise,
    where the rate is the exact :math:`-c / (1 - c)`, and 1 as far from clean labels as no label at all. Against the
    exact rate of symmetric noise that keeps as many labels, :math:`1 - r_F = (1 - \varrho^2) (1 - r_{LC})`. The rate
    need not fall as noise grows, so read it together with the residual.

    Args:
        transition: Row-stochastic matrix [K, K] with a trace above 1.
        prior: Class probabilities w of the clean label [K]; by default uniform.

    Returns:
        The rate, below 1, and the residual, in [0, 1).

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If it is not row-stochastic, its trace (with a prior, :math:`K \sum_i w_i T_{ii}`) is at most 1,
            or ``prior`` is not made of K probabilities.

    Examples:
        >>> rate, residual = frobenius_rate(torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
        >>> round(rate, 4), round(residual, 4)
        (-1.0, 0.0)
    """
    matrix, weight = _weighted_rows(transition, prior)
    num_classes = len(matrix)
    signal = num_classes * float(weight @ matrix.diagonal()) - 1
    if signal <= NO_INFORMATION:
        raise ValueError(
            f"transition must have a trace above 1, got {1 + signal:.6g}: on average over classes the noisy label is "
            "then no likelier to be right than a uniform guess, and no rate below 1 comes nearer to the clean labels"
        )
    deviation = matrix - 1 / num_classes
    scale = signal / (num_classes * float(weight @ deviation.square().sum(1)))
    return 1 - scale, _distance(scale * deviation + 1 / num_classes, weight)


def scalar_share(transition: torch.Tensor, prior: torch.Tensor | None = None) -> float:
    r"""Return which share of the damage of a transition matrix no single smoothing rate removes.

    .. math:: \frac{\|T\,G(r_F) - I\|_F}{\|T - I\|_F}

    It compares the best rate of :func:`frobenius_rate` with plain cross entropy on the noisy labels.

    Args:
        transition: Row-stochastic matrix [K, K] with a trace above 1.
        prior: Class probabilities of the clean label [K]; by default uniform.

    Returns:
        The share, in [0, 1]; 0 for symmetric noise and without noise, 1 where the best rate is 0.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: As for :func:`frobenius_rate`.

    Examples:
        >>> pair = 0.8 * torch.eye(10) + 0.2 * torch.eye(10).roll(1, 1)
        >>> round(scalar_share(pair), 3)
        0.83
    """
    left = frobenius_rate(transition, prior)[1]
    matrix, weight = _weighted_rows(transition, prior)
    total = _distance(matrix, weight)
    return left / total if total else 0.0


def per_label_rates(transition: torch.Tensor, prior: torch.Tensor | None = None) -> tuple[torch.Tensor, float]:
    r"""Return one smoothing rate for each noisy label that together come nearest to inverting a transition matrix.

    .. math::
        \min_{r \in \mathbb R^K} \|T\,Q(r) - I\|_F, \qquad Q(r) = \operatorname{diag}(1 - r) + r\,u^\top

    An example with noisy label j is smoothed at :math:`r_j`: ``gls_loss(logits, labels, rates[labels])``. This is the
    backward correction itself, with residual 0, if and only if a label of class i is kept with probability
    :math:`1 - c_i` and otherwise drawn with probabilities proportional to :math:`1 - c_j`; then
    :math:`r_i = -c_i / (1 - c_i)`. Two classes always are such a case, with
    :math:`r_y = -2 e_y / (1 - e_0 - e_1)` for flip probabilities :math:`e_y` of the clean label y.

    Args:
        transition: Row-stochastic matrix [K, K].
        prior: Class probabilities of the clean label [K], which weigh the rows of the matrix; by default uniform.

    Returns:
        The rates [K], float64, and the residual, on the scale of that of :func:`frobenius_rate` and never above it.
        A label that never occurs has rate 0. A rate above 1 belongs to a label that is likelier wrong than right;
        losses take it as a target row only, see :func:`nls.losses.gls_loss`.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If ``transition`` is not row-stochastic or ``prior`` is not made of K probabilities.

    Examples:
        >>> rates, residual = per_label_rates(torch.tensor([[0.9, 0.1], [0.4, 0.6]], dtype=torch.float64))
        >>> rates, round(residual, 12)
        (tensor([-0.4000, -1.6000], dtype=torch.float64), 0.0)
    """
    matrix, weight = _weighted_rows(transition, prior)
    centred = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device) - 1 / len(matrix)
    # The normal equations of T Q - I = (T - I) - sum_i r_i T_{., i} (e_i - u)^T; a label never seen leaves a zero row.
    weighted = weight.unsqueeze(1) * matrix
    products = matrix.T @ weighted
    wanted = (products - weighted.T) @ centred
    rates = torch.linalg.pinv(products * centred, hermitian=True) @ wanted.diagonal()
    return rates, _distance(matrix @ (torch.eye(len(matrix)).to(matrix) - rates.unsqueeze(1) * centred), weight)


def crossover_pairs(transition: torch.Tensor) -> float:
    r"""Return how many labels of each class, known clean and noisy, an estimated matrix needs to beat one rate.

    .. math::
        m_0 = \frac{\sum_i \bigl(\sum_j T_{ij} |R_j|^2 - 1\bigr)}{\|T\,G(r_F) - I\|_F^2}, \qquad R = T^{-1}

    A matrix counted from m labels of each class is wrong by chance, and correcting with its inverse leaves
    :math:`T \hat T^{-1} - I`, whose part of first order in the error has the expected squared length numerator / m;
    the best single rate leaves the denominator however many labels there are. Below :math:`m_0` keep the rate, well
    above it take the matrix. Few labels make inverses with heavy tails, which the first order does not see, so in
    between prefer the rate.

    Args:
        transition: Row-stochastic matrix [K, K] with a trace above 1.

    Returns:
        The size, infinite for symmetric noise and for a singular matrix.

    Raises:
        TypeError: If ``transition`` is not a floating-point tensor.
        ValueError: As for :func:`frobenius_rate`.

    Examples:
        >>> pair = 0.8 * torch.eye(10) + 0.2 * torch.eye(10).roll(1, 1)
        >>> round(crossover_pairs(pair), 1)
        12.1
    """
    residual = frobenius_rate(transition)[1]
    matrix = _checks.transition_matrix(transition)
    inverse, broken = torch.linalg.inv_ex(matrix)
    if broken or residual < NO_INFORMATION:
        return math.inf
    return float((matrix @ inverse.square().sum(1) - 1).sum()) / ((len(matrix) - 1) * residual**2)


def _weighted_rows(transition: object, prior: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a transition matrix and the weights of its rows, float64."""
    matrix = _checks.transition_matrix(transition)
    if prior is None:
        return matrix, torch.full_like(matrix[0], 1 / len(matrix))
    weight = _checks.probabilities(_checks.tensor(prior, "prior"), "prior").detach().double()
    if weight.shape != matrix[0].shape:
        raise ValueError(f"prior must have shape ({len(matrix)},), got {tuple(weight.shape)}")
    return matrix, (weight / weight.sum()).to(matrix.device)


def _distance(matrix: torch.Tensor, weight: torch.Tensor) -> float:
    """Return how far the rows of a matrix are from one-hot, as a part of how far uniform rows are."""
    apart = matrix - torch.eye(len(matrix)).to(matrix)
    return math.sqrt(float(weight @ apart.square().sum(1)) / (1 - 1 / len(matrix)))


def feasible_rate(posterior: torch.Tensor) -> float:
    r"""Return the lowest smoothing rate at which the risk on noisy labels is bounded below.

    .. math:: r_{\min} = \frac{-K \mu}{1 - K \mu}, \qquad \mu = \operatorname*{ess\,inf}_{x, k} \tilde\eta_k(x)

    At an input the class weights are :math:`q_k = (1 - r)\tilde\eta_k + r / K`, and the risk there has a minimum,
    at :math:`p = q`, if and only if every weight is positive. Above :math:`r_{\min}` all are. At
    :math:`r_{\min}` the weight of a class with :math:`\tilde\eta_k(x) = \mu` is 0: the risk is bounded, but at
    such an input no finite logits reach its infimum. Below, the risk falls without bound in a model that is free
    to choose its logits at each input; a limited model may still have a minimum.

    The essential infimum is estimated by the least entry, which a sample can only overstate: the returned rate is
    at or below that of the distribution, so keep a distance from it. One-hot rows, such as labels that a network
    memorises, give 0.

    Args:
        posterior: *Noisy* class probabilities, shape [N, K] or [..., K], at least one row.

    Returns:
        The rate, at most 0; ``-inf`` if the posterior is uniform everywhere.

    Raises:
        TypeError: If ``posterior`` is not a floating-point tensor.
        ValueError: If it is not made of probabilities or has no rows.

    Examples:
        >>> feasible_rate(torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
        -1.0
        >>> feasible_rate(torch.eye(3))
        0.0
    """
    posterior = _checks.probabilities(_checks.tensor(posterior, "posterior").detach(), "posterior")
    if not posterior.numel():
        raise ValueError(f"posterior must have at least one row, got {_checks.describe(posterior)}")
    lowest = posterior.shape[-1] * float(posterior.min())
    # A uniform posterior reaches 1 only up to the rounding of its dtype.
    if lowest >= 1 - 16 * torch.finfo(posterior.dtype).eps:
        return -math.inf
    # Subtracted from 0.0, for a negated zero would print as -0.0.
    return 0.0 - lowest / (1 - lowest)


def compose_rates(*rates: float) -> float:
    r"""Return the one rate that does what several rates, one after the other, do.

    .. math:: 1 - r = \prod_i (1 - r_i)

    Rates other than 1 form a group: 0 does nothing, and :math:`-r / (1 - r)` undoes :math:`r`. Symmetric noise is
    the rate :math:`c = K \epsilon / (K - 1)`.

    Args:
        rates: Any number of rates, each at most 1.

    Returns:
        The rate, at most 1.

    Raises:
        TypeError: If a rate is not a number.
        ValueError: If a rate is above 1 or not finite.

    Examples:
        >>> round(compose_rates(0.5, -1.0), 12)
        0.0
        >>> compose_rates(0.5, 0.5)
        0.75
    """
    kept = [1 - _checks.number(rate, f"rates[{i}]", high=1) for i, rate in enumerate(rates)]
    return 1 - math.prod(kept)


def finite_sample_rate(posterior: torch.Tensor, noise_rate: float, num_examples: int) -> torch.Tensor:
    r"""Return the rate that estimates a clean posterior best from a few noisy labels of one input.

    The estimate is :math:`(1 - r) f + r u` with the class frequencies :math:`f` of n labels. Its expected squared
    distance from :math:`\eta` is least at

    .. math:: 1 - r^*_n = \frac{(1 - c)\, S}{(1 - c)^2 S + V / n}, \qquad
        S = \|\eta - u\|^2, \quad V = 1 - \|\tilde\eta\|^2, \quad c = \frac{K \epsilon}{K - 1}

    It falls with n, from above, to the exact correction :math:`-c / (1 - c)`: few labels want smoothing.

    Args:
        posterior: Clean class probabilities at an input, shape [..., K].
        noise_rate: Symmetric flip probability :math:`\epsilon \in [0, (K - 1) / K)`.
        num_examples: Number n of labels at the input, at least 1.

    Returns:
        The rates, at most 1, float64, shape [...]; 1 where the posterior is uniform.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range.

    Examples:
        >>> eta = torch.tensor([0.82] + [0.02] * 9, dtype=torch.float64)
        >>> [round(float(finite_sample_rate(eta, 0.4, n)), 3) for n in (1, 20)]
        [0.644, -0.496]
    """
    kept, signal, variance = _few_labels(posterior, noise_rate)
    num_examples = _checks.integer(num_examples, "num_examples", low=1)
    return 1 - kept * signal / (kept**2 * signal + variance / num_examples)


def crossover_size(posterior: torch.Tensor, noise_rate: float) -> torch.Tensor:
    r"""Return how many labels at an input it takes until the best rate is no longer positive.

    .. math:: n_0 = \frac{V}{c\, (1 - c)\, S}

    with the terms of :func:`finite_sample_rate`, whose rate is positive below :math:`n_0` and negative above.

    Args:
        posterior: Clean class probabilities at an input, shape [..., K].
        noise_rate: Symmetric flip probability :math:`\epsilon \in [0, (K - 1) / K)`.

    Returns:
        The sizes, float64, shape [...]; infinite without noise, and where the posterior is uniform.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range.

    Examples:
        >>> eta = torch.tensor([0.82] + [0.02] * 9, dtype=torch.float64)
        >>> round(float(crossover_size(eta, 0.4)), 2)
        5.08
    """
    kept, signal, variance = _few_labels(posterior, noise_rate)
    gain = (1 - kept) * kept * signal
    # Without noise one-hot rows leave 0 / 0: there the best rate is 0 at any size.
    return torch.where(gain > 0, variance / gain, math.inf)


def _few_labels(posterior: torch.Tensor, noise_rate: float) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Return 1 - c, the squared distance of a posterior from uniform, and the variance of one noisy label."""
    exact = _checks.probabilities(posterior, "posterior").detach().double()
    num_classes = exact.shape[-1]
    high = (num_classes - 1) / num_classes
    kept = 1 - _checks.number(noise_rate, "noise_rate", low=0, high=high, open_high=True) / high
    centred = exact - 1 / num_classes
    noisy = kept * centred + 1 / num_classes
    return kept, centred.square().sum(-1), 1 - noisy.square().sum(-1)
