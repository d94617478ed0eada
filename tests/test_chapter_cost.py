"""What a rate costs: each statement of the chapter against an oracle of its own, and its claims under mutations."""

import math

import numpy as np
import pytest
import sympy
import torch
from chapters import run_chapter, run_solution, unexpected
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar

import nls
import nls.linear
import nls.stack
from nls.calibration import adaptive_calibration_error, classwise_calibration_error
from nls.linear import fit_linear
from nls.losses import gls_parts

STEM = "07_cost"
SMALL = {"num_points": 60000, "num_fits": 10, "train_size": 8000, "num_seeds": 2, "digit_seeds": 4}
TINY = SMALL | {"num_fits": 2, "digit_seeds": 1}
FAST = settings(max_examples=50, deadline=None, derandomize=True)
PROBLEMS = {"seed": st.integers(0, 10**6), "k": st.integers(2, 8), "rate": st.floats(-5, 1)}


def problem(seed, k, n=1, floor=0.0):
    """Return posteriors [n, k] of at least ``floor``, a random transition and logits."""
    rng = np.random.default_rng(seed)
    posterior = torch.tensor(rng.dirichlet(np.ones(k), size=n)) * (1 - k * floor) + floor
    return posterior, torch.tensor(rng.dirichlet(np.ones(k), size=k)), torch.tensor(rng.normal(0, 3, (n, k)))


def losses_of_all_labels(logits, rate):
    """Return the loss of every label at every input, [n, k]."""
    n, k = logits.shape
    labels = torch.arange(k).repeat(n)
    return nls.gls_loss(logits.repeat_interleave(k, 0), labels, rate, reduction="none").view(n, k)


def moments(weights, values):
    """Return mean and variance over the last axis."""
    mean = (weights * values).sum(-1)
    return mean, (weights * values**2).sum(-1) - mean**2


def free_minimum(targets, rate):
    """Return the minimiser of the risk with free logits for each row of targets, by L-BFGS."""
    eye = torch.eye(len(targets), dtype=torch.float64)
    fit = fit_linear(eye, targets, targets.shape[1], rate, intercept=False)
    assert fit.converged
    return fit(eye).softmax(1)


def mean_margin(probabilities, posterior):
    """Return E[p_y - max of the others] for each row, by enumeration in numpy."""
    p, eta = probabilities.numpy(), posterior.numpy()
    others = np.stack([np.delete(p, k, 1).max(1) for k in range(p.shape[1])], 1)
    return (eta * (p - others)).sum(1)


def symmetric_rate(noise_rate, k):
    """Return c."""
    return k * noise_rate / (k - 1)


# Variance


@FAST
@given(**PROBLEMS)
def test_variance_given_the_input_scales_with_the_square(seed, k, rate):
    posterior, transition, logits = problem(seed, k)
    noisy = nls.noisy_posterior(posterior, transition)
    _, variance = moments(noisy, losses_of_all_labels(logits, rate))
    _, of_logits = moments(noisy, logits)  # m differs from the logits by a constant
    assert float(variance) == pytest.approx((1 - rate) ** 2 * float(of_logits), abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_total_variance_is_a_parabola_in_the_rate(seed):
    posterior, transition, logits = problem(seed, 4, n=50)
    weights = nls.noisy_posterior(posterior, transition) / 50
    parts = [gls_parts(logits, torch.full((50,), k)) for k in range(4)]
    a, m = (torch.stack([part[i] for part in parts], 1).flatten() for i in (0, 1))
    covariance = np.cov(torch.stack([a, m]).numpy(), aweights=weights.flatten().numpy(), ddof=0)

    def variance(scale):
        return float(moments(weights.flatten(), losses_of_all_labels(logits, 1 - scale).flatten())[1])

    for scale in (0.0, 0.5, 1.0, 3.0):
        expected = covariance[0, 0] - 2 * scale * covariance[0, 1] + scale**2 * covariance[1, 1]
        assert variance(scale) == pytest.approx(expected, rel=1e-10)
    if covariance[0, 1] > 0:
        best = covariance[0, 1] / covariance[1, 1]
        found = minimize_scalar(variance, bounds=(0, 5), method="bounded", options={"xatol": 1e-9}).x
        assert found == pytest.approx(best, abs=1e-5)
        assert variance(best + 0.1) > variance(best) + 0.009 * covariance[1, 1]


@FAST
@given(**PROBLEMS)
def test_no_rate_changes_the_signal_to_noise_of_a_label(seed, k, rate):
    """In the gradient as well, here by autograd: what the label adds has a mean and a spread with one common factor."""
    posterior, transition, logits = problem(seed, k)
    weights = nls.noisy_posterior(posterior, transition)[0][:, None]

    def label_part(rate):
        rows = logits.expand(k, -1).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(nls.gls_loss(rows, torch.arange(k), rate, reduction="sum"), rows)
        part = gradient - gradient.mean(0)  # the mean over all labels is the gradient of A
        mean = (weights * part).sum(0)
        return mean, (weights * (part - mean) ** 2).sum().sqrt()

    mean, spread = label_part(min(rate, 0.9))
    plain_mean, plain_spread = label_part(0.0)
    torch.testing.assert_close(mean * plain_spread, plain_mean * spread, rtol=1e-9, atol=1e-12)


def test_best_rate_for_a_held_out_set():
    posterior, _, logits = problem(3, 5, n=40)
    logits = 1.5 * posterior.log() + 0.2 * logits  # a model that has learnt something
    c = symmetric_rate(0.4, 5)
    noisy = nls.noisy_posterior(posterior, nls.symmetric_transition(5, 0.4)) / 40
    truth = float(-(posterior * logits.log_softmax(1)).sum(1).mean())
    a, m = (v.view(40, 5) for v in gls_parts(logits.repeat_interleave(5, 0), torch.arange(5).repeat(40)))
    level = float((posterior * m).sum(1).mean())
    spread, mean_m, mean_a = float(moments(noisy.flatten(), m.flatten())[1]), (noisy * m).sum(), (noisy * a).sum()
    covariance = float((noisy * (a - mean_a) * (m - mean_m)).sum())
    last = -math.inf
    for n in (3, 30, 3000):

        def error(scale, n=n):
            mean, variance = moments(noisy.flatten(), losses_of_all_labels(logits, 1 - scale).flatten())
            return float((mean - truth) ** 2 + variance / n)

        formula = ((1 - c) * level**2 + covariance / n) / ((1 - c) ** 2 * level**2 + spread / n)
        found = minimize_scalar(error, bounds=(0, 5), method="bounded", options={"xatol": 1e-9}).x
        assert found == pytest.approx(formula, abs=1e-5)
        assert error(formula + 0.1) > error(formula) * (1 + 1e-4)
        assert last < formula < 1 / (1 - c)  # from above in the rate
        last = formula
    assert last == pytest.approx(1 / (1 - c), abs=0.02)


def test_the_best_rate_comes_from_below_where_the_covariance_is_large():
    """Clean labels and a wrong model whose logits differ in scale: here r_LC = 0, and the best rate is below it."""
    scale = torch.tensor([1.0, 3.0], dtype=torch.float64)[:, None]
    logits, labels = scale * torch.tensor([3.0, 1.2, -1.0], dtype=torch.float64), torch.tensor([1, 1])
    a, m = gls_parts(logits, labels)
    covariance, spread = float(((a - a.mean()) * (m - m.mean())).mean()), float(m.var(correction=0))
    assert covariance > 5 * spread
    truth = float(nls.gls_loss(logits, labels, 0.0))

    def error(scale, n=10):
        loss = nls.gls_loss(logits, labels, 1 - scale, reduction="none")
        return float((loss.mean() - truth) ** 2 + loss.var(correction=0) / n)

    found = minimize_scalar(error, bounds=(0, 20), method="bounded", options={"xatol": 1e-9}).x
    formula = (float(m.mean()) ** 2 + covariance / 10) / (float(m.mean()) ** 2 + spread / 10)
    assert found == pytest.approx(formula, abs=1e-5)
    assert found > 1.3


# The price


@FAST
@given(seed=st.integers(0, 10**6), k=st.integers(2, 8), share=st.floats(0, 0.95))
def test_price_of_a_corrected_label(seed, k, share):
    posterior, _, a = problem(seed, k)
    a = a - a.mean()
    transition = nls.symmetric_transition(k, share * (k - 1) / k)
    corrected = (torch.eye(k, dtype=torch.float64) - share / k) / (1 - share)
    _, variance = moments(nls.noisy_posterior(posterior, transition), (corrected @ a[0])[None])
    _, clean = moments(posterior, a)
    formula = clean + share / (1 - share) * (posterior * a**2).sum(1) + share / (1 - share) ** 2 * (a**2).mean(1)
    assert float(variance) == pytest.approx(float(formula), rel=1e-8)


@FAST
@given(seed=st.integers(0, 10**6), k=st.integers(2, 8), share=st.floats(0, 0.95))
def test_price_of_judging_over_all_inputs(seed, k, share):
    """The two terms, averaged over inputs, are what noise adds to the variance of the loss over everything."""
    posterior, _, logits = problem(seed, k, n=6)
    noise_rate = share * (k - 1) / k
    noisy = nls.noisy_posterior(posterior, nls.symmetric_transition(k, noise_rate))
    rate = nls.optimal_smooth_rate(noise_rate, k)
    variances = [
        float(moments(weights.flatten() / 6, losses_of_all_labels(logits, r).flatten())[1])
        for weights, r in ((posterior, 0.0), (noisy, rate))
    ]
    square = (logits - logits.mean(1, keepdim=True)) ** 2
    added = share / (1 - share) * (posterior * square).sum(1) + share / (1 - share) ** 2 * square.mean(1)
    assert variances[1] / variances[0] == pytest.approx(1 + float(added.mean()) / variances[0], rel=1e-7)


def test_price_of_a_corrected_label_symbolically():
    eta, a = sympy.symbols("e0:3"), sympy.symbols("a0:2")
    c = sympy.Symbol("c")
    eta, a = (*eta[:2], 1 - eta[0] - eta[1]), (*a, -a[0] - a[1])
    noisy = [(1 - c) * e + c / 3 for e in eta]
    first, second = (sum(q * (x / (1 - c)) ** p for q, x in zip(noisy, a, strict=True)) for p in (1, 2))
    clean_first, clean_second = (sum(e * x**p for e, x in zip(eta, a, strict=True)) for p in (1, 2))
    clean = clean_second - clean_first**2
    price = c / (1 - c) * clean_second + c / (1 - c) ** 2 * sum(x**2 for x in a) / 3
    assert sympy.simplify(second - first**2 - clean - price) == 0


def test_price_of_learning():
    """Binary logistic regression: excess risk of fits at r_LC and of the forward correction, against the traces."""
    rng, n, e, runs = np.random.default_rng(0), 3000, 0.2, 80
    nodes = np.linspace(-3, 3, 2001)
    design, weight = np.stack([nodes, np.ones_like(nodes)], 1), np.exp(-(nodes**2) / 2)
    weight /= weight.sum()
    sigmoid = lambda t: 1 / (1 + np.exp(-t))  # noqa: E731
    eta = sigmoid(1.5 * nodes)
    flipped = e + (1 - 2 * e) * eta
    outer = lambda v: np.einsum("n,na,nb->ab", weight * v, design, design)  # noqa: E731
    hessian = outer(eta * (1 - eta))
    learn = np.trace(np.linalg.solve(hessian, outer(flipped * (1 - flipped)))) / (1 - 2 * e) ** 2 / 2
    fisher = outer((1 - 2 * e) ** 2 * (eta * (1 - eta)) ** 2 / (flipped * (1 - flipped)))
    believe = np.trace(np.linalg.solve(fisher, hessian)) / 2
    paid = {"learn": [], "believe": []}
    for _ in range(runs):
        x = rng.choice(nodes, n, p=weight)
        y = (rng.random(n) < e + (1 - 2 * e) * sigmoid(1.5 * x)).astype(int)
        rows = np.stack([x, np.ones(n)], 1)

        def forward(w, rows=rows, y=y):
            p = sigmoid(rows @ w)
            q = e + (1 - 2 * e) * p
            slope = (1 - 2 * e) * p * (1 - p) * (q - y) / (q * (1 - q))
            return -np.mean(np.log(np.where(y == 1, q, 1 - q))), rows.T @ slope / n

        fit = fit_linear(torch.tensor(x)[:, None], torch.tensor(y), 2, -2 * e / (1 - 2 * e))
        gap = lambda values: float(values[1] - values[0])  # noqa: E731
        found = {"learn": np.array([gap(fit.weight[:, 0]), gap(fit.bias)])}
        found["believe"] = minimize(forward, np.zeros(2), jac=True, method="BFGS").x
        for name, w in found.items():
            p = sigmoid(design @ w)
            kl = eta * np.log(eta / p) + (1 - eta) * np.log((1 - eta) / (1 - p))
            paid[name].append(n * float(weight @ kl))  # tends to half of the price times the two parameters
    for name, price in (("learn", learn), ("believe", believe)):
        found = nls.mean_interval(paid[name])
        assert abs(found.mean - price) < 4 * (found.high - found.low) / 3.92
    assert learn - 0.5 > believe > 1.5  # 4.58 and 3.89


# Criteria


@FAST
@given(seed=st.integers(0, 10**6), k=st.integers(2, 8), share=st.floats(0, 0.9))
def test_held_out_loss_at_the_exact_rate_is_unbiased(seed, k, share):
    posterior, _, logits = problem(seed, k)
    noise_rate = share * (k - 1) / k
    noisy = nls.noisy_posterior(posterior, nls.symmetric_transition(k, noise_rate))
    rate = nls.optimal_smooth_rate(noise_rate, k)
    at_rate = (noisy * losses_of_all_labels(logits, rate)).sum()
    clean = -(posterior * logits.log_softmax(1)).sum()
    assert float(at_rate) == pytest.approx(float(clean), abs=1e-9)


def test_noisy_cross_entropy_prefers_the_noisy_posterior():
    posterior, _, _ = problem(5, 5, n=30)
    noisy = nls.noisy_posterior(posterior, nls.symmetric_transition(5, 0.4))
    risk = lambda p: float(-(noisy * p.log()).sum(1).mean())  # noqa: E731
    found = free_minimum(noisy, 0.0)
    torch.testing.assert_close(found, noisy, atol=1e-5, rtol=0)
    excess = risk(posterior) - risk(noisy)
    assert excess == pytest.approx(float(nls.kl_divergence(noisy, posterior).mean()), abs=1e-12)
    assert excess > 0.1  # not a near tie
    assert risk(found) < risk(nls.gls_posterior(noisy, 0.4)) < risk(posterior)


@FAST
@given(seed=st.integers(0, 10**6), k=st.integers(2, 8), share=st.floats(0, 1))
def test_noisy_accuracy_is_affine_in_the_clean_one(seed, k, share):
    """By a sample in which every label occurs as often as it should."""
    rng = np.random.default_rng(seed)
    guess, clean = rng.integers(k, size=200), rng.integers(k, size=200)
    transition = nls.symmetric_transition(k, share * (k - 1) / k).numpy()
    noisy_accuracy = np.mean([transition[y, g] for y, g in zip(clean, guess, strict=True)])
    assert noisy_accuracy == pytest.approx((1 - share) * np.mean(clean == guess) + share / k, abs=1e-12)


# Confidence


def test_confidence_of_two_classes_under_symmetric_noise():
    posterior, _, _ = problem(6, 2, n=25)
    noisy = nls.noisy_posterior(posterior, nls.symmetric_transition(2, 0.3))
    last = 0.0
    for rate in (0.5, 0.0, -0.5, -1.2):  # r_min is about -1.5
        found = mean_margin(free_minimum(noisy, rate), posterior).mean()
        formula = (1 - rate) * (1 - 0.6) * float(((2 * posterior[:, 0] - 1) ** 2).mean())
        assert found == pytest.approx(formula, abs=1e-5)
        assert found > last + 0.01
        last = found


def test_confidence_can_fall_with_the_rate():
    three = torch.tensor([[0.4, 0.3, 0.3]], dtype=torch.float64)
    found = [float(mean_margin(free_minimum(three, rate), three)[0]) for rate in (0.0, -0.5, -1.0)]
    assert found == pytest.approx([-0.02, -0.03, -0.04], abs=1e-6)
    two = torch.tensor([[0.4, 0.6]], dtype=torch.float64)
    noisy = nls.noisy_posterior(two, torch.tensor([[1.0, 0.0], [0.3, 0.7]], dtype=torch.float64))
    found = [float(mean_margin(free_minimum(noisy, rate), two)[0]) for rate in (0.0, -1.0, -3.0)]
    assert found == pytest.approx([-0.032, -0.064, -0.128], abs=1e-6)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 6), share=st.floats(0.05, 0.9))
def test_margins_are_proportional_to_one_minus_the_rate(seed, k, share):
    posterior, transition, _ = problem(seed, k, n=3, floor=0.02)
    noisy = nls.noisy_posterior(posterior, transition)
    rate = share * nls.feasible_rate(noisy)
    plain, low = free_minimum(noisy, 0.0), free_minimum(noisy, rate)
    for measure in (lambda p: nls.margin(p).numpy(), lambda p: mean_margin(p, posterior)):
        assert measure(low) == pytest.approx((1 - rate) * measure(plain), abs=2e-5)


def test_four_sevenths():
    def gain(eta):
        return mean_margin(eta, eta)

    generator = torch.Generator().manual_seed(0)
    for k in (2, 3, 6, 40):
        spread = torch.rand(20000, k, generator=generator, dtype=torch.float64) ** 4
        spread[:, 0] = 0
        largest = 4 / 7 + 3 / 7 * torch.rand(20000, generator=generator, dtype=torch.float64) ** 3
        eta = spread / spread.sum(1, keepdim=True) * (1 - largest)[:, None]
        eta[:, 0] = largest
        assert gain(eta).min() > 0
    # Sharp: just below, with a rival of half the size and the rest thinly spread.
    for largest, sign in ((4 / 7 - 0.01, -1), (4 / 7 + 0.01, 1)):
        eta = torch.full((1, 2002), (1 - 1.5 * largest) / 2000, dtype=torch.float64)
        eta[0, :2] = torch.tensor([largest, largest / 2])
        assert sign * gain(eta)[0] > 0.005
    # With three classes the border is (10 + 2 sqrt 2) / 23.
    border = (10 + 2 * math.sqrt(2)) / 23
    rivals = torch.linspace(0, 1, 4001, dtype=torch.float64)
    for largest, sign in ((border - 0.002, -1), (border + 0.002, 1)):
        rival = largest / 2 + rivals * (1 - 1.5 * largest)
        eta = torch.stack([torch.full_like(rival, largest), rival, 1 - largest - rival], 1)
        eta = eta[(eta >= 0).all(1) & (eta[:, 1] >= eta[:, 2])]
        assert sign * gain(eta).min() > 0
    assert gain(torch.tensor([[0.5, 0.375, 0.125]], dtype=torch.float64))[0] == pytest.approx(-0.03125)


def test_mean_of_the_others_grows_under_symmetric_noise_but_not_under_any_noise():
    posterior, _, _ = problem(7, 4, n=20, floor=0.01)
    c = symmetric_rate(0.3, 4)
    noisy = nls.noisy_posterior(posterior, nls.symmetric_transition(4, 0.3))
    for rate in (0.5, 0.0, 0.5 * nls.feasible_rate(noisy)):
        p = free_minimum(noisy, rate)
        others = (1 - p) / 3
        found = float((posterior * (p - others)).sum(1).mean())
        square = float((posterior**2).sum(1).mean())
        assert found == pytest.approx(4 / 3 * (1 - rate) * (1 - c) * (square - 1 / 4), abs=1e-5)
    # Two classes, e1 = .3: the mean of the others is the other class, and its margin falls.
    two = torch.tensor([[0.4, 0.6]], dtype=torch.float64)
    flipped = nls.noisy_posterior(two, torch.tensor([[1.0, 0.0], [0.3, 0.7]], dtype=torch.float64))
    gains = [float((two * (2 * free_minimum(flipped, rate) - 1)).sum()) for rate in (0.0, -1.0)]
    assert gains[1] < gains[0] - 0.03


def test_top_gaps_scale_alike_where_right_and_where_wrong():
    posterior, _, _ = problem(8, 4, n=30, floor=0.01)
    noisy = nls.noisy_posterior(posterior, nls.symmetric_transition(4, 0.3))
    ratios = []
    for rate in (0.6, 0.0, 0.8 * nls.feasible_rate(noisy)):
        p = free_minimum(noisy, rate)
        right = posterior.gather(1, p.argmax(1, keepdim=True))[:, 0]
        gap = nls.margin(p)
        ratios.append(float((right * gap).sum() / right.sum() / (((1 - right) * gap).sum() / (1 - right).sum())))
    assert ratios == pytest.approx([ratios[0]] * 3, rel=1e-4)
    assert ratios[0] > 1.05


# Calibration


def exact_sample(k=4):
    """Return posteriors in twentieths and a sample in which noisy and clean labels occur exactly as often as they do.

    With c = 1/2 and K = 4 the noisy posterior is in fortieths; each input occurs 40 times.
    """
    eta = torch.tensor(
        [[14, 2, 2, 2], [1, 16, 2, 1], [5, 4, 10, 1], [8, 5, 5, 2], [3, 3, 3, 11]], dtype=torch.float64
    ) / 20  # fmt: skip
    noisy = nls.noisy_posterior(eta, nls.symmetric_transition(k, 3 / 8))
    rows = torch.arange(len(eta)).repeat_interleave(40)
    clean, flipped = (
        torch.cat([torch.arange(k).repeat_interleave((40 * row).round().long()) for row in table])
        for table in (eta, noisy)
    )
    assert len(clean) == len(flipped) == len(rows)
    return eta, noisy, rows, {"clean": clean, "noisy": flipped}


def test_minimisers_are_calibrated_to_the_labels_of_their_rate():
    _, noisy, rows, labels = exact_sample()
    for rate in (0.4, 0.0, -0.5, -1.0):
        p = free_minimum(noisy, rate)[rows]
        for kind, home in (("clean", -1.0), ("noisy", 0.0)):
            for error in (nls.expected_calibration_error, classwise_calibration_error, adaptive_calibration_error):
                found = error(p, labels[kind], 1000)
                assert found < 1e-5 if rate == home else found > 0.02


def test_calibration_error_in_closed_form():
    eta, noisy, rows, labels = exact_sample()
    accuracy = float(eta.amax(1).mean())
    for rate in (0.4, 0.0, -0.5, -0.9):
        p = free_minimum(noisy, rate)[rows]
        s = (1 - rate) / 2
        for bins in (1, 7, 1000):
            clean = nls.expected_calibration_error(p, labels["clean"], bins)
            assert clean == pytest.approx(abs(1 - s) * (accuracy - 1 / 4), abs=1e-5)
            against_noise = nls.expected_calibration_error(p, labels["noisy"], bins)
            assert against_noise == pytest.approx(abs(rate) / 2 * (accuracy - 1 / 4), abs=1e-5)


@FAST
@given(seed=st.integers(0, 10**6))
def test_smoothing_a_model_by_the_noise_scales_its_gaps(seed):
    """Any model, calibrated or not: against noisy labels, (1 - c) p + c / K has 1 - c times the gaps of p."""
    _, _, rows, labels = exact_sample()
    p = problem(seed, 4, n=5)[0]
    smoothed = nls.gls_posterior(p, 0.5)
    for c in range(4):
        for i in range(5):
            clean, flipped = (float((labels[kind][rows == i] == c).double().mean()) for kind in ("clean", "noisy"))
            assert flipped - float(smoothed[i, c]) == pytest.approx((clean - float(p[i, c])) / 2, abs=1e-12)


def test_binned_error_is_biased_upwards():
    # One bin, n examples of confidence p: the exact mean of |hits / n - p|, for a calibrated and for a wrong model.
    for n, truth in ((5, 0.7), (50, 0.7), (400, 0.6)):
        hits = np.arange(n + 1)
        weight = np.array([math.comb(n, h) for h in hits], dtype=float) * truth**hits * (1 - truth) ** (n - hits)
        calibrated, wrong = (float(weight @ np.abs(hits / n - stated)) for stated in (truth, truth + 0.05))
        assert calibrated == pytest.approx(math.sqrt(2 / math.pi * truth * (1 - truth) / n), rel=0.6 / n + 0.01)
        assert calibrated > 0
        assert wrong > 0.05
    # And through the function: 200 samples of a perfect model with five confidences.
    generator = torch.Generator().manual_seed(0)
    top = torch.tensor([0.55, 0.65, 0.75, 0.85, 0.95], dtype=torch.float64).repeat(20)
    rows = torch.stack([top, 1 - top], 1)
    found = nls.mean_interval([
        nls.expected_calibration_error(rows, rows.multinomial(1, generator=generator)[:, 0], 10) for _ in range(200)
    ])  # fmt: skip
    formula = math.sqrt(2 / math.pi) * float((top * (1 - top) * 20).view(20, 5)[0].sqrt().sum()) / 100
    assert found.mean == pytest.approx(formula, rel=0.1)


# The page


def sign_lost(patch):
    """Take |r|, at most 1, in the loss and in the linear fits, and 0 for a negative rate in the networks."""
    loss, fit, target = nls.gls_loss, nls.linear.fit_linear, nls.stack.target_values
    patch.setattr(nls, "gls_loss", lambda z, y, rate, **rest: loss(z, y, min(abs(rate), 1.0), **rest))
    patch.setattr(
        nls.linear, "fit_linear", lambda x, y, k, rate=0.0, **rest: fit(x, y, k, min(abs(rate), 0.99), **rest)
    )
    patch.setattr(nls.stack, "target_values", lambda rate, k: target(rate.clamp_min(0), k))


def labels_shuffled(patch):
    """Train and validate on labels that have nothing to do with the inputs."""
    draw = nls.draw_noisy_labels

    def shuffled(labels, transition, generator):
        return draw(labels, transition, generator)[torch.randperm(len(labels), generator=generator)]

    patch.setattr(nls, "draw_noisy_labels", shuffled)


def formulas_wrong(patch):
    """Compare with the mean of the others instead of the largest, and reverse the noise."""
    margin, noisy = nls.margin, nls.noisy_posterior

    def mean_of_others(posterior, labels=None):
        if labels is None:
            return margin(posterior) ** 2
        own = posterior.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return own - (1 - own) / (posterior.shape[-1] - 1)

    patch.setattr(nls, "margin", mean_of_others)
    patch.setattr(nls, "noisy_posterior", lambda posterior, matrix: noisy(posterior, matrix.flip(0, 1)))


MUTATIONS = {
    sign_lost: {
        "variance-given-input", "signal-to-noise", "calmest-rate", "held-out-rate", "price-of-judging",
        "price-of-learning", "criterion-unbiased", "noisy-ce-misleads", "criterion-finds", "confidence-binary",
        "rate-multiplies", "surer-when-right", "unsure-when-wrong", "surer-when-wrong", "brakes-decide",
        "calibrated-to-noise", "calibration-in-closed-form",
    },
    labels_shuffled: {"price-of-learning", "criterion-unbiased", "criterion-finds", "noisy-accuracy",
                      "calibration-in-closed-form"},
    formulas_wrong: {"confidence-not-general", "four-sevenths", "same-factor", "rate-multiplies"},
}  # fmt: skip


@pytest.fixture(scope="module")
def page():
    """The names that the page leaves, in a small run."""
    with pytest.MonkeyPatch.context() as patch:
        return run_chapter(STEM, patch, **SMALL)


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    fallen = {name for names in MUTATIONS.values() for name in names}
    assert {claim.name for claim in page["claims"]} - fallen == set()


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_claims_fall_under_a_mutation(mutate, monkeypatch):
    mutate(monkeypatch)
    # Where the digits matter, as many of them as in the run in which every claim is as the page says.
    scale = SMALL if "surer-when-right" in MUTATIONS[mutate] else TINY
    assert MUTATIONS[mutate] - unexpected(run_chapter(STEM, monkeypatch, **scale)) == set()


WRONG = {
    "solution-check": ("smoothed = nls.gls_posterior(model, lost)", "smoothed = model"),
    "solution-margin": ("[0.5, 0.375, 0.125]", "[0.5, 0.25, 0.25]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])
