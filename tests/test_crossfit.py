"""Cross-fitted probabilities do not see the label they predict, and the estimates are what they say."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier

from nls import crossfit
from nls.crossfit import EntropyEstimate, crossfit_entropy, crossfit_posterior, entropy_estimate


def sample(n=60, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=n)
    features = rng.standard_normal((n, 2)) + 2 * np.eye(num_classes, 2)[labels]
    return torch.from_numpy(features), torch.from_numpy(labels)


@pytest.mark.parametrize("stratified", [True, False])
def test_matches_scikit_learn_on_the_same_folds(stratified):
    features, labels = sample()
    fold = crossfit._fold_of(labels.numpy(), 4, 7, stratified)
    theirs = cross_val_predict(
        GaussianNB(), features.numpy(), labels.numpy(), cv=PredefinedSplit(fold), method="predict_proba"
    )
    fitted = len(labels) - np.bincount(fold)[fold][:, None]
    ours = crossfit_posterior(features, labels, 3, GaussianNB(), folds=4, seed=7, stratified=stratified)
    np.testing.assert_allclose(ours, (fitted * theirs + 1 / 3) / (fitted + 1), rtol=0, atol=1e-14)
    assert ours.dtype == torch.float64


@pytest.mark.parametrize("stratified", [True, False])
def test_folds_are_even_and_share_out_classes_if_asked(stratified):
    labels = np.repeat([0, 1, 2], [50, 13, 4])
    fold = crossfit._fold_of(labels, 5, 0, stratified)
    assert np.ptp(np.bincount(fold, minlength=5)) <= 1
    spread = [np.ptp(np.bincount(fold[labels == k], minlength=5)) for k in range(3)]
    assert (max(spread) <= 1) == stratified
    assert not np.array_equal(fold, crossfit._fold_of(labels, 5, 1, stratified))


def test_a_prediction_does_not_depend_on_the_label_it_predicts():
    """A memorising estimator would show it; stratified folds move with the labels, so they are left out here."""
    features, labels = sample()
    before = crossfit_posterior(features, labels, 3, DecisionTreeClassifier(), stratified=False)
    for i in range(0, 60, 7):
        other = labels.clone()
        other[i] = (other[i] + 1) % 3
        after = crossfit_posterior(features, other, 3, DecisionTreeClassifier(), stratified=False)
        assert torch.equal(after[i], before[i])
        assert not torch.equal(after, before)


def test_classes_that_a_fold_lacks_keep_a_small_probability():
    """Class 0 has one example, class 2 none: a model is not asked about classes that it never saw."""
    features, labels = sample(n=40, num_classes=2)
    labels = 2 * labels + 1
    labels[5] = 0
    posterior = crossfit_posterior(features, labels, 4, GaussianNB(), folds=5)
    torch.testing.assert_close(posterior.sum(1), torch.ones(40, dtype=torch.float64))
    assert float(posterior[5, 0]) == pytest.approx(1 / (4 * (32 + 1)))
    assert posterior[:, 2].tolist() == pytest.approx([1 / (4 * (32 + 1))] * 40)
    assert float(posterior.gather(1, labels[:, None]).mean()) > 0.7
    assert entropy_estimate(posterior, labels).cross_entropy.mean < math.inf


def test_a_training_part_of_a_single_class_predicts_it():
    features = torch.arange(4.0)[:, None]
    posterior = crossfit_posterior(features, torch.tensor([0, 0, 0, 1]), 2, LogisticRegression(), folds=4)
    assert posterior[3].tolist() == [3.5 / 4, 0.5 / 4]
    alone = crossfit_posterior(features, torch.zeros(4, dtype=torch.int64), 2, LogisticRegression(), folds=2)
    assert alone.tolist() == [[2.5 / 3, 0.5 / 3]] * 4


def test_the_same_arguments_give_the_same_tensor_and_leave_the_estimator_alone():
    features, labels = sample()
    estimator = make_pipeline(SGDClassifier(loss="log_loss", max_iter=5, tol=None))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (crossfit_posterior(features, labels, 3, estimator, seed=3) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, crossfit_posterior(features, labels, 3, estimator, seed=4))
    assert not hasattr(estimator[-1], "classes_")
    assert estimator[-1].random_state is None
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert crossfit._seeded(SGDClassifier(random_state=9), 3).random_state == 9


def test_features_of_any_shape_are_flattened():
    features, labels = sample()
    flat = crossfit_posterior(features, labels, 3, GaussianNB())
    assert torch.equal(crossfit_posterior(features.view(60, 1, 2, 1), labels, 3, GaussianNB()), flat)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"features": torch.zeros(6)}, ValueError, r"features must have shape \[n, d\].* got \(6,\) and \(6,\)"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, ValueError, r"got \(6, 1\) and \(5,\)"),
        ({"features": torch.zeros(6, 1, dtype=torch.int64)}, TypeError, "features must be a floating-point tensor"),
        ({"features": torch.full((6, 1), math.nan)}, ValueError, "features must be finite"),
        ({"labels": torch.full((6,), 2)}, ValueError, r"labels must lie in \[0, 1\], got the value 2"),
        ({"labels": [0, 1, 0, 1, 0, 1]}, TypeError, "labels must be a torch tensor, got list"),
        ({"num_classes": 1}, ValueError, "num_classes must be at least 2, got 1"),
        ({"folds": 1}, ValueError, "folds must be at least 2, got 1"),
        ({"folds": 7}, ValueError, "folds must be at most 6, got 7"),
        ({"folds": 2.0}, TypeError, "folds must be an integer"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"estimator": None}, TypeError, "estimator must be a scikit-learn classifier with predict_proba, got None"),
        ({"estimator": SGDClassifier()}, TypeError, r"predict_proba, got SGDClassifier\(\)"),
        ({"estimator": GaussianNB}, TypeError, "estimator must be a scikit-learn classifier"),
    ],
)
def test_bad_arguments_are_named(changed, error, message):
    settings = {
        "features": torch.arange(6.0)[:, None],
        "labels": torch.tensor([0, 1, 0, 1, 0, 1]),
        "num_classes": 2,
        "estimator": GaussianNB(),
        "folds": 2,
        "seed": 0,
    } | changed
    with pytest.raises(error, match=message):
        crossfit_posterior(**settings)


class Scores(ClassifierMixin, BaseEstimator):
    """Calls its scores probabilities."""

    def __init__(self, scale=2.0):
        self.scale = scale

    def fit(self, features, labels):
        self.classes_ = np.unique(labels)
        return self

    def predict_proba(self, features):
        return np.full((len(features), len(self.classes_)), self.scale / len(self.classes_))


def test_scores_that_are_no_probabilities_are_refused():
    features, labels = sample()
    with pytest.raises(ValueError, match=r"estimator must return probabilities of shape \[12, 3\].*from Scores"):
        crossfit_posterior(features, labels, 3, Scores())
    assert crossfit_posterior(features, labels, 3, Scores(1.0)).unique().tolist() == pytest.approx([1 / 3])


# The estimates


def test_the_estimates_are_those_of_scikit_learn_and_scipy():
    features, labels = sample()
    posterior = crossfit_posterior(features, labels, 3, GaussianNB())
    found = entropy_estimate(posterior, labels, level=0.9)
    assert isinstance(found, EntropyEstimate)
    assert found.cross_entropy.mean == pytest.approx(log_loss(labels, posterior, labels=[0, 1, 2]), abs=1e-12)
    assert found.plug_in.mean == pytest.approx(stats.entropy(posterior.numpy(), axis=1).mean(), abs=1e-12)
    assert found.label_entropy == pytest.approx(stats.entropy(np.bincount(labels)), abs=1e-12)
    assert found.information.mean == pytest.approx(found.label_entropy - found.cross_entropy.mean, abs=1e-12)
    losses = -posterior.gather(1, labels[:, None])[:, 0].log().numpy()
    low, high = stats.t.interval(0.9, 59, losses.mean(), stats.sem(losses))
    assert (found.cross_entropy.low, found.cross_entropy.high) == pytest.approx((low, high))
    assert found.cross_entropy.n == 60
    assert found == crossfit_entropy(features, labels, 3, GaussianNB(), level=0.9)
    assert str(found).splitlines()[2].startswith("information: +")


@pytest.mark.parametrize(
    ("posterior", "labels", "message"),
    [
        (torch.full((3,), 1 / 3), torch.tensor([0]), r"posterior must have shape \[n, K\] with n >= 1"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), r"posterior must have shape \[n, K\] with n >= 1"),
        (torch.full((2, 2), 0.5), torch.tensor([0]), r"labels must have shape \[2\], got shape \(1,\)"),
        (torch.full((1, 2), 0.6), torch.tensor([0]), "posterior must sum to 1"),
        (torch.eye(2), torch.tensor([0, 0]), "posterior must give each label a positive probability, got 0 for 1 of 2"),
    ],
)
def test_what_has_no_estimate_is_refused(posterior, labels, message):
    with pytest.raises(ValueError, match=message):
        entropy_estimate(posterior, labels)


def expected(estimate, chances, features):
    """The mean of an estimate over all label vectors of independent examples with these chances of class 1."""
    total = 0.0
    for labels in itertools.product((0, 1), repeat=len(chances)):
        weight = math.prod(p if label else 1 - p for p, label in zip(chances, labels, strict=True))
        total += weight * estimate(features, torch.tensor(labels))
    return total


def held_out(estimator, folds, stratified, part="cross_entropy"):
    settings = {"folds": folds, "stratified": stratified}
    return lambda features, labels: getattr(crossfit_entropy(features, labels, 2, estimator, **settings), part).mean


@pytest.mark.parametrize("estimator", [DummyClassifier(strategy="prior"), DecisionTreeClassifier()])
def test_folds_blind_to_the_labels_bound_the_entropy_from_above_for_every_estimator(estimator):
    """All 64 label vectors: the bound of the expectation is exact, whatever the estimator does."""
    features, chances = torch.tensor([0.0, 0, 0, 1, 1, 1])[:, None], [0.2] * 3 + [0.7] * 3
    truth = np.mean([stats.entropy([p, 1 - p]) for p in chances])
    assert expected(held_out(estimator, 3, False), chances, features) > truth + 0.03
    information = expected(held_out(estimator, 3, False, "information"), chances, features)
    assert information < stats.entropy([0.45, 0.55]) - truth - 0.03


def test_stratified_folds_can_break_the_bound_by_about_k_minus_1_over_2n():
    """Labels that the features say nothing about: the class counts of the training part tell those of the rest."""
    n, prior, missing = 50, DummyClassifier(strategy="prior"), math.log(2)
    for count in range(n + 1):  # stratified folds depend on the counts alone
        labels = (torch.arange(n) < count).long()
        found = crossfit_entropy(torch.zeros(n, 1), labels, 2, prior, stratified=True)
        missing -= stats.binom.pmf(count, n, 0.5) * found.cross_entropy.mean
    assert 0.7 < missing * 2 * n < 1
    blind = expected(held_out(prior, 3, False), [0.5] * 6, torch.zeros(6, 1))
    assert blind > math.log(2) + 0.05


def test_in_sample_frequencies_are_too_low_in_expectation():
    """The entropy of the frequencies at each input, which is their log loss as well."""
    features, chances = torch.tensor([0.0, 0, 0, 1, 1, 1])[:, None], [0.2] * 3 + [0.7] * 3

    def in_sample(features, labels):
        fitted = DecisionTreeClassifier().fit(features.numpy(), labels.numpy())
        seen = torch.zeros(6, 2, dtype=torch.float64)
        seen[:, fitted.classes_] = torch.from_numpy(fitted.predict_proba(features.numpy()))
        found = entropy_estimate(seen, labels)
        assert found.plug_in.mean == pytest.approx(found.cross_entropy.mean, abs=1e-12)
        return found.cross_entropy.mean

    truth = np.mean([stats.entropy([p, 1 - p]) for p in chances])
    assert expected(in_sample, chances, features) < truth - 0.1


def test_a_nearest_neighbour_is_sure_of_its_training_set_only():
    features, labels = sample(n=200)
    fitted = KNeighborsClassifier(1).fit(features.numpy(), labels.numpy())
    seen = torch.from_numpy(fitted.predict_proba(features.numpy()))
    assert entropy_estimate(seen, labels).cross_entropy.mean == 0
    assert crossfit_entropy(features, labels, 3, KNeighborsClassifier(1)).cross_entropy.mean > 1
