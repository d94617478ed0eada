r"""Which smooth rate for your labels? The noise estimated from them, the rate that undoes it, and whether to use it."""

from __future__ import annotations

import functools
import importlib.util
import math
import warnings
from dataclasses import asdict, dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

from nls import _checks
from nls.anchors import CountedNoise, count_noise
from nls.each import fit_each
from nls.estimate import estimate_transition
from nls.models import predict_logits
from nls.rates import NO_INFORMATION, frobenius_rate, scalar_share

SURE = 0.99
"""Probability of the likeliest class that the logit clip of a recipe allows."""

MOST_LEFT = 0.5
"""Share of the damage left over by one rate above which it is not advised."""

_AGREEMENT = 0.999


@dataclass(frozen=True, eq=False)
class Advice:
    r"""What to do about noisy labels, with the numbers that it rests on.

    Attributes:
        noise_rate: Estimated share of wrong labels.
        noise_rate_interval: Its ends, from resamples of the examples.
        smooth_rate: The rate whose target matrix comes nearest to an inverse of the noise, see
            :func:`nls.rates.frobenius_rate`; None if the labels carry too little information for any.
        smooth_rate_interval: Its ends; ``-inf`` where resamples carry too little information for any.
        symmetry_residual: The share of the damage that no single rate removes: 0 for symmetric noise, 1 if none helps.
        feasible: Whether, as far as the counts can tell, the risk at ``smooth_rate`` is bounded below for a network
            that is free at each input.
        depends_on_example: Whether labels go with what else an example looks like, among the surest ones too: then
            classes are mixed there, noise depends on the example, or the models saw the labels.
        use: Whether that rate is advised.
        advice: Plain sentences.
        recipe: ``warm_up``, a sentence; ``step_factor``, by which to multiply the step size after it; ``logit_gap``,
            at which to clip the largest minus the mean of the others.
        transition: The matrix that was counted [K, K].
        share: Which share of the examples, the surest of each class, it was counted on.
        estimates: For each method its ``noise_rate``, ``smooth_rate`` and ``residual``, None where it finds none.
        num_examples: n.
        num_classes: K.
    """

    noise_rate: float
    noise_rate_interval: tuple[float, float]
    smooth_rate: float | None
    smooth_rate_interval: tuple[float, float] | None
    symmetry_residual: float
    feasible: bool
    depends_on_example: bool
    use: bool
    advice: str
    recipe: dict[str, str | float | None]
    transition: torch.Tensor
    share: float
    num_examples: int
    num_classes: int
    estimates: dict[str, dict[str, float | None]] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Return plain values, ready for ``json.dumps``; an end without bound, which JSON does not know, is None."""
        ends = self.smooth_rate_interval and [end if math.isfinite(end) else None for end in self.smooth_rate_interval]
        return asdict(self) | {"transition": self.transition.tolist(), "smooth_rate_interval": ends}

    def __str__(self) -> str:
        return self.advice


def suggest_smooth_rate(
    noisy_labels: torch.Tensor,
    probabilities: torch.Tensor | None = None,
    *,
    features: torch.Tensor | None = None,
    model: object = None,
    num_classes: int | None = None,
    folds: int = 5,
    training: dict | None = None,
    level: float = 0.9,
    resamples: int = 200,
    out_of_sample: bool = False,
    seed: int = 0,
) -> Advice:
    r"""Estimate the noise of labels, and say which smooth rate undoes it, how surely, and whether to use one.

    .. math:: \hat r = 1 - \frac{K \sum_i \pi_i \hat T_{ii} - 1}{K \sum_i \pi_i \lVert \hat T_i \rVert^2 - 1}

    with the matrix :math:`\hat T` of :func:`nls.anchors.count_noise`, counted where the model is surest, and the
    shares :math:`\pi` of the predicted classes. For symmetric noise that is the exact correction
    :math:`-c / (1 - c)`, :math:`c = K \epsilon / (K - 1)`. It repairs the posterior; with plenty of data the predicted
    class is the same for every rate.

    Args:
        noisy_labels: [n], class indices.
        probabilities: Predicted by models that did not see the label they predict [n, K].
        features: In their place, what a model is cross-fitted on here [n, ...].
        model: A scikit-learn classifier, or a network for :func:`nls.fit_each`: a name, or a function that returns a
            new one.
        num_classes: K, with ``features``; by default one more than the largest label.
        folds: Of the cross-fit.
        training: Arguments of :func:`nls.fit_each`, with a network.
        level: Of the intervals, from 0.5 to 0.999; they are percentiles of resamples and cover
            the draw of the labels, not that the surest examples of a class are less noisy than others, or not of it.
        resamples: Their number, at least 20.
        out_of_sample: Say True if you know that labels and predictions agree so well although no model saw its label.
        seed: Draws folds, networks and resamples.

    Returns:
        The advice.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, a value is out of range, or the probabilities look as if the models had
            seen the labels.

    Examples:
        >>> labels = torch.arange(400) % 2
        >>> noisy = torch.where(torch.arange(400) % 10 < 2, 1 - labels, labels)
        >>> right = torch.where(labels == 0, 0.9, 0.1)
        >>> found = suggest_smooth_rate(noisy, torch.stack([right, 1 - right], 1))
        >>> round(found.noise_rate, 2), round(found.smooth_rate, 2), found.use
        (0.2, -0.67, True)

    References:
        Wei et al., 2022, arXiv:2106.04149, for the rate.
    """
    level = _checks.number(level, "level", low=0.5, high=0.999)
    resamples = _checks.integer(resamples, "resamples", low=20)
    _refuse_mixed(probabilities, features, model=model, num_classes=num_classes, training=training)
    noisy_labels = _checks.tensor(noisy_labels, "noisy_labels").cpu()
    if probabilities is None:
        probabilities = _crossfit(features, noisy_labels, model, num_classes, folds, training or {}, seed)
        out_of_sample = True
    probabilities = _checks.tensor(probabilities, "probabilities").detach().cpu()
    found = count_noise(probabilities, noisy_labels, resamples=resamples, seed=seed)
    if not out_of_sample:
        _refuse_seen(probabilities, noisy_labels)
    rate = float(found.smooth_rate[0])
    rate = None if math.isnan(rate) else rate + 0.0
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    noise = tuple(found.noise_rate[1:].quantile(ends).tolist())
    # A resample in which the labels carry no information has a rate without bound.
    rates = tuple(
        found.smooth_rate[1:].nan_to_num(-math.inf).sort().values[(ends * (resamples - 1)).round().long()].tolist()
    )
    feasible = rate is not None and _is_feasible(found, rate)
    use, text = _advice(found, rate, noise, rates, feasible, level)
    text += "" if use else _other_order(probabilities, noisy_labels)
    return Advice(
        float(found.noise_rate[0]), noise, rate, None if rate is None else rates, float(found.residual[0]), feasible,
        found.depends_on_example, use, text, _recipe(rate, len(found.prior)), found.transition, found.share,
        len(noisy_labels), len(found.prior), _estimates(found, probabilities, noisy_labels),
    )  # fmt: skip


def dual_transition(probabilities: torch.Tensor, noisy_labels: torch.Tensor) -> torch.Tensor:
    r"""Estimate the transition matrix in two steps that are each easier: to the predicted class, and from there.

    .. math:: \hat T = \hat T^{\clubsuit} \hat T^{\spadesuit}, \qquad
        \hat T^{\clubsuit}_{il} = \hat p_l(\bar x^i), \qquad
        \hat T^{\spadesuit}_{lj} = \frac{|\{x : \arg\max p = l, \tilde y = j\}|}{|\{x : \arg\max p = l\}|}

    with the anchors :math:`\bar x^i` of :func:`nls.estimate.estimate_transition`. A class that is predicted nowhere
    keeps its labels in the second step.

    Args:
        probabilities: Out of sample [n, K].
        noisy_labels: [n].

    Returns:
        The matrix [K, K], float64.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: As for :func:`nls.estimate.estimate_transition`.

    Examples:
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
        >>> probabilities = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)
        >>> dual_transition(probabilities, labels)
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]], dtype=torch.float64)

    References:
        Yao et al., 2020, arXiv:2006.07805.
    """
    first = estimate_transition(probabilities, noisy_labels)
    classes = len(first)
    counts = torch.bincount(probabilities.argmax(1) * classes + noisy_labels, minlength=classes**2)
    counts = counts.view(classes, classes).double()
    counts[counts.sum(1) == 0] = torch.eye(classes, dtype=torch.float64)[counts.sum(1) == 0]
    return first @ (counts / counts.sum(1, keepdim=True))


def confident_transition(probabilities: torch.Tensor, noisy_labels: torch.Tensor) -> torch.Tensor:
    """Return cleanlab's estimate of the transition matrix, from its confident joint.

    Args:
        probabilities: Out of sample [n, K].
        noisy_labels: [n]; each class must occur.

    Returns:
        The matrix [K, K], float64.

    Raises:
        ImportError: If cleanlab is not installed: ``pip install 'nls[advisor]'``.

    Examples:
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
        >>> probabilities = torch.tensor([[0.75, 0.25]] * 4 + [[0.25, 0.75]] * 4)
        >>> confident_transition(probabilities, labels).argmax(1)
        tensor([0, 1])

    References:
        Northcutt et al., 2021, arXiv:1911.00068.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm wants ipywidgets in a notebook; nothing is shown here
        try:
            from cleanlab import count
        except ImportError as error:
            raise ImportError("this needs cleanlab: pip install 'nls[advisor]'") from error

    labels, model = noisy_labels.numpy(), probabilities.double().numpy()
    joint = count.compute_confident_joint(labels, model)
    _, noise, _ = count.estimate_latent(joint, labels)
    matrix = torch.from_numpy(noise).double().T
    return matrix / matrix.sum(1, keepdim=True)


def _refuse_mixed(probabilities: object, features: object, **of_features: object) -> None:
    """Refuse probabilities and features together, neither, and what only a cross-fit on features would read."""
    if (probabilities is None) == (features is None):
        raise ValueError(
            "give either probabilities, or features and a model, got " + ("none" if features is None else "both")
        )
    idle = [name for name, given in of_features.items() if given is not None]
    if features is None and idle:
        raise ValueError(f"{' and '.join(idle)} must come with features, got probabilities")


def _crossfit(
    features: torch.Tensor,
    labels: torch.Tensor,
    model: object,
    num_classes: int | None,
    folds: int,
    training: dict,
    seed: int,
) -> torch.Tensor:
    """Return probabilities of models that did not see the label they predict."""
    if model is None:
        raise ValueError("features need a model: a scikit-learn classifier, or a network, got none")
    if _checks.tensor(features, "features").shape[:1] != labels.shape or not len(labels):
        raise ValueError(
            f"features must have shape [n, ...] and noisy_labels shape [n], n >= 1, got {tuple(features.shape)} and "
            f"{tuple(labels.shape)}"
        )
    given = int(labels.max()) + 1 if num_classes is None else num_classes
    classes = _checks.integer(given, "num_classes", low=2)
    labels = _checks.integer_labels(labels, "noisy_labels", classes)
    folds, seed = _checks.integer(folds, "folds", low=2, high=len(labels)), _checks.integer(seed, "seed")
    if hasattr(model, "predict_proba"):
        from nls.crossfit import crossfit_posterior  # scikit-learn takes a second to import

        return crossfit_posterior(features, labels, classes, model, folds=folds, seed=seed)
    fold = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)) % folds
    found = torch.empty(len(labels), classes, dtype=torch.float64)
    for k in range(folds):
        held = fold == k
        fit = fit_each(features[~held], labels[~held], network=model, num_classes=classes, seed=seed, **training)
        found[held] = predict_logits(fit.network, features[held]).double().softmax(1).cpu()
    return found


def _refuse_seen(probabilities: torch.Tensor, labels: torch.Tensor) -> None:
    """Refuse predictions that agree with nearly every label."""
    agree = float((probabilities.argmax(1) == labels).double().mean())
    if agree >= _AGREEMENT:
        raise ValueError(
            f"probabilities must be out of sample, but their largest entry is the given label for {100 * agree:.2f} % "
            "of the examples, as it is when the model has seen these labels. Cross-fit them, for instance with "
            "scikit-learn's cross_val_predict, or with features=... and model=...; if no model saw its label, pass "
            "out_of_sample=True (--out-of-sample)"
        )


def _other_order(probabilities: torch.Tensor, labels: torch.Tensor) -> str:
    """Ask about the order of the columns if another one agrees with clearly more labels, as symmetric noise cannot."""
    classes = probabilities.shape[1]
    pairs = torch.bincount(labels * classes + probabilities.argmax(1), minlength=classes**2).view(classes, classes)
    order = linear_sum_assignment(pairs.numpy(), maximize=True)[1]
    here, there = (float(pairs[range(classes), at].sum()) / len(labels) for at in (range(classes), order))
    if there - here < max(0.05, 3 / math.sqrt(len(labels))):
        return ""
    swapped = ", ".join(f"{k} for class {i}" for i, k in enumerate(order.tolist()) if i != k)
    return (
        f" Are the columns of the probabilities in the order of the classes? Their largest entry is the label for "
        f"{100 * here:.0f} % of the examples; with column {swapped} it would be for {100 * there:.0f} %."
    )


def _is_feasible(found: CountedNoise, rate: float) -> bool:
    """Return whether the counts are compatible with weights (1 - r) T_ij + r / K that are nowhere below zero."""
    if rate >= 0:
        return True
    classes, rows = len(found.prior), found.counts > 0
    size = found.counts[rows, None].expand(-1, classes).numpy()
    seen = (found.transition[rows] * found.counts[rows, None]).round().numpy()
    needed = -rate / (1 - rate) / classes
    one = binom.cdf(seen, size, needed)  # a single entry that is too small
    empty = (1 - needed) ** size  # many entries that are empty, each of them too few examples to tell
    excess = (seen == 0).sum() - empty.sum()
    return bool((one > 0.05 / classes**2).all() and excess <= 3 * math.sqrt((empty * (1 - empty)).sum()))


def _recipe(rate: float | None, classes: int) -> dict[str, str | float | None]:
    """Return how to train at a rate."""
    return {
        "warm_up": "Train with cross entropy until its accuracy on held-out noisy labels is best; start from there.",
        "step_factor": None if rate is None else min(1.0, 1 / (1 - rate)),
        "logit_gap": math.log(SURE * (classes - 1) / (1 - SURE)),
    }


def _advice(
    found: CountedNoise, rate: float | None, noise: tuple, rates: tuple, feasible: bool, level: float
) -> tuple[bool, str]:
    """Return whether to use the rate, and sentences that say so."""
    wrong, low, high = (100 * value for value in (float(found.noise_rate[0]), *noise))
    share = f"{wrong:.0f} % of the labels look wrong ({100 * level:.0f} % interval {low:.0f} to {high:.0f} %)."
    residual = float(found.residual[0])
    if rate is None or not math.isfinite(rates[0]):
        return False, (
            f"{share} Do not use a smooth rate: it is not clear that the labels are right more often than chance."
        )
    if noise[0] <= 0.01:
        return False, (
            f"{share} Do not correct: keep rate 0. A positive rate is then one regulariser among others; let held-out "
            "labels choose it."
        )
    if residual > MOST_LEFT:
        return False, (
            f"{share} Do not use one rate: the noise is far from symmetric, and the best one, {rate:.2f}, leaves "
            f"{100 * residual:.0f} % of the damage. Use the matrix, with nls.forward_corrected_loss."
        )
    if found.depends_on_example:
        return False, (
            f"{share} Do not use one rate: among the surest examples of a class the label still goes with the other "
            "class that an example looks like, so classes are mixed there or the noise depends on the example, and "
            "these counts may hide the direction of the noise. Ask again with the probabilities of a better model."
        )
    if not feasible:
        return False, (
            f"{share} Do not use one rate: some pairs of classes are hardly ever mixed up, and at {rate:.2f} the loss "
            "has no minimum for a network that is free at each input. Use the matrix, with nls.forward_corrected_loss."
        )
    return True, (
        f"{share} Use smooth rate {rate:.2f} ({rates[0]:.2f} to {rates[1]:.2f}) after a warm-up with cross entropy, at "
        f"{min(1.0, 1 / (1 - rate)):.2f} of its step size; it repairs the probabilities and seldom the predicted class."
    )


def _estimates(found: CountedNoise, probabilities: torch.Tensor, labels: torch.Tensor) -> dict[str, dict]:
    """Return what each method finds."""
    methods = {
        "anchor": functools.partial(estimate_transition, method="anchor"),
        "confident counts": functools.partial(estimate_transition, method="confident"),
        "dual": dual_transition,
    }
    if importlib.util.find_spec("cleanlab"):
        methods["cleanlab"] = confident_transition
    rate = float(found.smooth_rate[0])
    counted = (float(found.noise_rate[0]), None if math.isnan(rate) else rate + 0.0, float(found.residual[0]))
    table = {"counted": dict(zip(("noise_rate", "smooth_rate", "residual"), counted, strict=True))}
    for name, estimate in methods.items():
        try:
            table[name] = _numbers(estimate(probabilities, labels), found.prior)
        except ValueError:  # a class without labels, or without a confident example
            table[name] = {"noise_rate": None, "smooth_rate": None, "residual": None}
    return table


def _numbers(matrix: torch.Tensor, prior: torch.Tensor) -> dict[str, float | None]:
    """Return noise rate, best rate and what it leaves, of a matrix."""
    noise = 1 - float(prior @ matrix.diagonal())
    if len(prior) * (1 - noise) - 1 <= NO_INFORMATION:
        return {"noise_rate": noise, "smooth_rate": None, "residual": None}
    return {
        "noise_rate": noise,
        "smooth_rate": frobenius_rate(matrix, prior)[0],
        "residual": scalar_share(matrix, prior),
    }
