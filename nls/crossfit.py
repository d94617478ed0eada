"""The entropy of the label given the input, estimated from data by models that did not see the label they predict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone

from nls import _checks
from nls.posterior import entropy
from nls.stats import Interval, mean_interval


@dataclass(frozen=True)
class EntropyEstimate:
    r"""What predicted probabilities say about :math:`H(\tilde Y \mid X)`, in nats.

    Attributes:
        cross_entropy: Mean log loss on the labels. Out of fold, where the folds do not look at the labels, it is at
            least the entropy in expectation, for every estimator; in-sample it can be on either side.
        plug_in: Mean entropy of the predicted rows. It bounds nothing: a model that is too sure gives too little.
        label_entropy: Entropy of the label shares, which estimates :math:`H(\tilde Y)` from below.
        information: ``label_entropy`` minus ``cross_entropy``: out of such folds at most :math:`I(X; \tilde Y)` in
            expectation. Below zero, the model predicts worse than the label shares do.
    """

    cross_entropy: Interval
    plug_in: Interval
    label_entropy: float
    information: Interval

    def __str__(self) -> str:
        rows = {"cross-entropy": self.cross_entropy, "plug-in entropy": self.plug_in, "information": self.information}
        return "\n".join(f"{name}: {interval}" for name, interval in rows.items())


def crossfit_posterior(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    estimator: BaseEstimator,
    folds: int = 5,
    seed: int = 0,
    *,
    stratified: bool = True,
) -> torch.Tensor:
    r"""Return class probabilities for each example from a model that was fitted without it.

    .. math:: p_i = \frac{m\, \hat p^{(-k(i))}(x_i) + u}{m + 1}

    The model for example i, of fold :math:`k(i)`, is fitted to the m examples of the other folds. One more example,
    spread over all classes as :math:`u = 1/K`, keeps each probability above zero, also for a class that those m lack.

    Args:
        features: Inputs [n, d] or [n, ...], which is flattened; floating point, finite.
        labels: Observed labels [n], integers in [0, K); classes may be rare or absent.
        num_classes: Number of classes :math:`K \ge 2`.
        estimator: A scikit-learn classifier with ``predict_proba``, or a pipeline that ends in one. It is cloned for
            each fold; where its ``random_state`` is None, the seed takes its place.
        folds: Number of folds, from 2 to n.
        seed: Seed of the folds, at least 0.
        stratified: Whether folds share out each class evenly. That steadies the estimate, but the models then know
            the class counts of the labels they predict: the mean log loss of the label shares themselves comes out
            below :math:`H(\tilde Y)`, by about :math:`(K - 1) / 2n`. For a strict upper bound pass False.

    Returns:
        Probabilities [n, K], float64, on the CPU; the same arguments give the same tensor.

    Raises:
        TypeError: If an argument has the wrong type, or ``estimator`` has no probabilities.
        ValueError: If a shape does not fit, a value is out of range, or ``estimator`` returns no probabilities.

    Examples:
        >>> from sklearn.naive_bayes import GaussianNB
        >>> features = torch.tensor([[-3.0], [-2.0], [-1.0], [1.0], [2.0], [3.0]])
        >>> posterior = crossfit_posterior(features, torch.tensor([0, 0, 0, 1, 1, 1]), 2, GaussianNB(), folds=3)
        >>> posterior.argmax(1), round(float(posterior.min()), 4)
        (tensor([0, 0, 0, 1, 1, 1]), 0.1)

    References:
        Stone, 1974, doi:10.1111/j.2517-6161.1974.tb00994.x; Chernozhukov et al., 2018, doi:10.1111/ectj.12097, for the
        name cross-fitting.
    """
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    rows = _checks.floating(features, "features").detach().cpu()
    target = _checks.integer_labels(_checks.tensor(labels, "labels").cpu(), "labels", num_classes)
    if rows.ndim < 2 or target.shape != rows.shape[:1]:
        shapes = f"{tuple(rows.shape)} and {tuple(target.shape)}"
        raise ValueError(f"features must have shape [n, d] or [n, ...] and labels shape [n], got {shapes}")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("features must be finite")
    if not isinstance(estimator, BaseEstimator) or not hasattr(estimator, "predict_proba"):
        raise TypeError(f"estimator must be a scikit-learn classifier with predict_proba, got {estimator!r}")
    seed = _checks.integer(seed, "seed", high=2**32 - 1)
    fold = _fold_of(target.numpy(), _checks.integer(folds, "folds", low=2, high=len(target)), seed, stratified)
    x, y = rows.flatten(1).double().numpy(), target.numpy()
    posterior = np.empty((len(y), num_classes))
    for k in range(folds):
        held = fold == k
        posterior[held] = _fit_predict(_seeded(estimator, seed), x[~held], y[~held], x[held], num_classes)
    return torch.from_numpy(posterior)


def entropy_estimate(posterior: torch.Tensor, labels: torch.Tensor, *, level: float = 0.95) -> EntropyEstimate:
    r"""Return what predicted probabilities and the labels they predict say about the entropy of the label.

    .. math::
        \text{cross-entropy} = -\frac1n \sum_i \log p_{i, y_i}, \qquad
        \text{plug-in} = \frac1n \sum_i H(p_i), \qquad
        \text{information} = \frac1n \sum_i \log \frac{p_{i, y_i}}{\hat\pi_{y_i}}

    with the label shares :math:`\hat\pi`. For a p that did not see :math:`y_i`, the expected log loss is
    :math:`H(\tilde Y \mid X) + E\,\mathrm{KL}(\tilde\eta \,\|\, p)`. The intervals are t intervals over examples: they
    cover the draw of the labels, not the distance between p and the truth.

    Args:
        posterior: Predicted probabilities [n, K]; from :func:`crossfit_posterior`, not from the data that p was
            fitted to.
        labels: Observed labels [n], integers in [0, K).
        level: Confidence level in (0, 1).

    Returns:
        An :class:`EntropyEstimate`; printing it gives a summary.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``posterior`` is not made of probabilities, a shape does not fit, n is 0, or a label has
            probability 0, where the log loss is infinite.

    Examples:
        >>> posterior = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.75, 0.25], [0.25, 0.75]])
        >>> print(entropy_estimate(posterior, torch.tensor([0, 0, 1, 1])))
        cross-entropy: +0.562 [-0.312, +1.436] (n=4)
        plug-in entropy: +0.562 [+0.562, +0.562] (n=4)
        information: +0.131 [-0.743, +1.005] (n=4)

    References:
        Bayle et al., 2020, arXiv:2007.12671, for the interval of a cross-validated loss.
    """
    exact = _checks.probabilities(_checks.tensor(posterior, "posterior").detach().cpu(), "posterior").double()
    if exact.ndim != 2 or not len(exact):
        raise ValueError(f"posterior must have shape [n, K] with n >= 1, got {_checks.describe(posterior)}")
    target = _checks.integer_labels(_checks.tensor(labels, "labels").cpu(), "labels", exact.shape[1])
    if target.shape != exact.shape[:1]:
        raise ValueError(f"labels must have shape [{len(exact)}], got shape {tuple(target.shape)}")
    given = exact.gather(1, target[:, None])[:, 0]
    if bool((given == 0).any()):
        count = int((given == 0).sum())
        raise ValueError(f"posterior must give each label a positive probability, got 0 for {count} of {len(given)}")
    shares = torch.bincount(target, minlength=exact.shape[1]).double() / len(target)
    return EntropyEstimate(
        cross_entropy=mean_interval(-given.log(), level=level),
        plug_in=mean_interval(entropy(exact), level=level),
        label_entropy=float(entropy(shares)),
        information=mean_interval(given.log() - shares[target].log(), level=level),
    )


def crossfit_entropy(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    estimator: BaseEstimator,
    folds: int = 5,
    seed: int = 0,
    *,
    stratified: bool = True,
    level: float = 0.95,
) -> EntropyEstimate:
    r"""Estimate :math:`H(\tilde Y \mid X)` and :math:`I(X; \tilde Y)` from features and observed labels.

    .. math:: E[\text{cross-entropy}] \ge H(\tilde Y \mid X), \qquad E[\text{information}] \le I(X; \tilde Y)

    for every estimator, where the folds do not look at the labels (``stratified=False``); else both may be off by about
    :math:`(K - 1) / 2n`. How far the estimates are from the truth is up to the estimator.

    Args:
        features: As for :func:`crossfit_posterior`.
        labels: As for :func:`crossfit_posterior`; noisy labels give the entropy of the noisy label.
        num_classes: As for :func:`crossfit_posterior`.
        estimator: As for :func:`crossfit_posterior`.
        folds: As for :func:`crossfit_posterior`.
        seed: As for :func:`crossfit_posterior`.
        stratified: As for :func:`crossfit_posterior`.
        level: As for :func:`entropy_estimate`.

    Returns:
        An :class:`EntropyEstimate`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit or a value is out of range.

    Examples:
        >>> from sklearn.linear_model import LogisticRegression
        >>> from nls import load_dataset
        >>> data = load_dataset("twonorm")
        >>> found = crossfit_entropy(data.train_features, data.train_labels, 2, LogisticRegression())
        >>> found.cross_entropy.mean < 0.1 < 0.6 < found.information.mean
        True

    References:
        The references of :func:`crossfit_posterior` and :func:`entropy_estimate`.
    """
    posterior = crossfit_posterior(features, labels, num_classes, estimator, folds, seed, stratified=stratified)
    return entropy_estimate(posterior, labels.cpu(), level=level)


def _fold_of(labels: np.ndarray, folds: int, seed: int, stratified: bool) -> np.ndarray:
    """Return the fold of each example: a shuffled deck, sorted by class if stratified, is dealt out."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if stratified:
        order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


def _seeded(estimator: BaseEstimator, seed: int) -> BaseEstimator:
    """Return an unfitted copy, with the seed wherever a random state is left open."""
    copy = clone(estimator)
    open_states = [
        name
        for name, value in copy.get_params().items()
        if value is None and (name == "random_state" or name.endswith("__random_state"))
    ]
    return copy.set_params(**dict.fromkeys(open_states, seed))


def _fit_predict(
    estimator: BaseEstimator, features: np.ndarray, labels: np.ndarray, held: np.ndarray, num_classes: int
) -> np.ndarray:
    """Fit to one side of a split and return probabilities [m, K] for the other, each above zero."""
    present, n = np.unique(labels), len(labels)
    found = np.zeros((len(held), num_classes))
    if len(present) == 1:  # most classifiers refuse a single class
        found[:, present] = 1.0
    else:
        estimator.fit(features, labels)
        predicted = np.asarray(estimator.predict_proba(held), dtype=float)
        sums_to_one = predicted.shape == (len(held), len(present)) and np.allclose(predicted.sum(1), 1, atol=1e-4)
        if not sums_to_one or predicted.min() < 0:
            raise ValueError(
                f"estimator must return probabilities of shape [{len(held)}, {len(present)}] that sum to 1, "
                f"got shape {predicted.shape} from {type(estimator).__name__}"
            )
        found[:, present] = predicted / predicted.sum(1, keepdims=True)
    return (n * found + 1 / num_classes) / (n + 1)
