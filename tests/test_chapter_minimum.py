"""The statements of the chapter on minima, its claims under planted mutations, and its exercises."""

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch
from chapters import run_chapter, run_solution, unexpected
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import nls
import nls.linear
import nls.rates
import nls.remedies
import nls.stack
from nls import feasible_rate, gls_loss, gls_posterior, noisy_posterior, optimal_smooth_rate, symmetric_transition
from nls.losses import gls_parts

STEM = "06_minimum"
SMALL = {
    "flow_steps": 600, "label_draws": 4, "sample_sizes": [60, 200, 1000], "critical_seeds": 4, "remedy_seeds": 5
}  # fmt: skip
TINY = {
    "flow_steps": 2, "time_steps": 3, "label_draws": 4, "sample_sizes": [60, 200], "critical_seeds": 2,
    "remedy_seeds": 1,
}  # fmt: skip
quick = settings(max_examples=40, deadline=None, derandomize=True)


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior_of(classes, seed, scale=2.0):
    return normal(1, classes, seed=seed, scale=scale).softmax(1)


def project(weights):
    """The nearest probabilities, by a general optimiser."""
    start = np.full(len(weights), 1 / len(weights))
    found = minimize(
        lambda p: ((p - weights) ** 2).sum(), start, jac=lambda p: 2 * (p - weights), bounds=[(0, 1)] * len(weights),
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": lambda p: np.ones_like(p)}, tol=1e-14,
    )  # fmt: skip
    return found.x


# --- the statements ---


@given(classes=st.integers(2, 8), seed=st.integers(0, 999), share=st.floats(0.0, 0.99), scale=st.floats(0.1, 5))
@quick
def test_the_minimum_is_the_weights_and_the_excess_a_divergence(classes, seed, share, scale):
    posterior = posterior_of(classes, seed)
    rate = share * max(feasible_rate(posterior), -50)
    weights = gls_posterior(posterior, rate)
    assert float(weights.min()) > 0
    logits = normal(1, classes, seed=seed + 1, scale=scale)
    excess = gls_loss(logits, posterior, rate) - nls.entropy(weights)[0]
    assert float(excess) == pytest.approx(float(nls.kl_divergence(weights, logits.softmax(1))), abs=2e-12)
    assert float(gls_loss(weights.log(), posterior, rate) - nls.entropy(weights)[0]) == pytest.approx(0, abs=2e-13)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_below_the_boundary_there_is_no_bound_and_on_it_no_minimum(classes):
    posterior = posterior_of(classes, seed=classes, scale=0.7)
    boundary, rarest = feasible_rate(posterior), int(posterior.argmin())

    def risk_along(times, rate):
        away = torch.zeros(1, classes, dtype=torch.float64)
        away[0, rarest] = -times
        return float(gls_loss(away, posterior, rate))

    least = float(gls_posterior(posterior, boundary - 0.1).min())
    assert least < -1e-3
    assert risk_along(2e4, boundary - 0.1) - risk_along(1e4, boundary - 0.1) == pytest.approx(1e4 * least, rel=1e-9)
    others = gls_posterior(posterior, boundary)[0].clamp_min(0)
    infimum = float(torch.special.entr(others).sum())
    above = []
    for times in (5, 10, 20):
        logits = others.clamp_min(1e-300).log()
        logits[rarest] = -times
        above.append(float(gls_loss(logits[None], posterior, boundary)) - infimum)
    assert above[0] > above[1] > above[2] > 0
    assert above[2] < 1e-7
    for seed in range(50):
        assert float(gls_loss(normal(1, classes, seed=seed, scale=4), posterior, boundary)) > infimum


@pytest.mark.parametrize("rate", [0.3, 0.0, -0.6, -1.5, -3.0, -9.0])
def test_free_logits_end_at_the_nearest_probabilities(rate):
    posterior = torch.tensor([[0.42, 0.31, 0.17, 0.10]], dtype=torch.float64)
    weights = gls_posterior(posterior, rate)
    nearest = project(weights[0].numpy())
    logits, risks = normal(1, 4, seed=3), []
    for _ in range(3000):
        logits = logits - 0.5 * (logits.softmax(1) - weights)
        risks.append(float(gls_loss(logits, posterior, rate)) if len(risks) > 2990 else 0.0)
    np.testing.assert_allclose(logits.softmax(1)[0].numpy(), nearest, atol=2e-6)
    fall = (risks[-2] - risks[-1]) / 0.5
    assert fall == pytest.approx(float(((weights[0].numpy() - nearest) ** 2).sum()), abs=1e-5)
    assert (rate < feasible_rate(posterior)) == (fall > 1e-3)


@given(classes=st.integers(2, 12), noise=st.floats(0, 0.95), seed=st.integers(0, 999), certain=st.booleans())
@quick
def test_the_feasible_rate_composes_with_the_exact_correction(classes, noise, seed, certain):
    noise *= (classes - 1) / classes
    clean = torch.eye(classes, dtype=torch.float64) if certain else normal(7, classes, seed=seed).softmax(1)
    noisy = noisy_posterior(clean, symmetric_transition(classes, noise))
    correction = optimal_smooth_rate(noise, classes)
    composed = nls.rates.compose_rates(feasible_rate(clean), correction)
    assert feasible_rate(noisy) == pytest.approx(composed, rel=1e-9, abs=1e-9)
    # Bounded means that no weight is negative: the smallest one changes its sign there.
    margin = 1e-6 * (1 - composed)
    assert float(gls_posterior(noisy, composed + margin).min()) > 0
    assert float(gls_posterior(noisy, composed - margin).min()) < 0
    assert composed == pytest.approx(correction, abs=1e-9) if certain else composed < correction - 1e-9


@given(classes=st.integers(2, 20), rate=st.floats(-8, 1), gap=st.floats(-5, 40))
@quick
def test_the_loss_of_a_memorised_example_follows_the_margin(classes, rate, gap):
    logits = torch.zeros(1, classes, dtype=torch.float64)
    logits[0, 1] = gap
    expected = rate * gap * (classes - 1) / classes + math.log1p((classes - 1) * math.exp(-gap))
    assert float(gls_loss(logits, torch.tensor([1]), rate)) == pytest.approx(expected, abs=1e-12)
    logits[0, 1] = 60.0
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(gls_loss(logits, torch.tensor([1]), rate), logits)
    assert float(gradient.norm()) == pytest.approx(abs(rate) * math.sqrt((classes - 1) / classes), abs=1e-12)


@given(
    classes=st.integers(2, 6), rate=st.floats(-8, 0.9), seed=st.integers(0, 999), times=st.floats(0.1, 50),
    fitted=st.booleans(),
)  # fmt: skip
@quick
def test_a_loss_below_zero_proves_that_there_is_no_minimum(classes, rate, seed, times, fitted):
    logits = normal(9, classes, seed=seed, scale=2)
    labels = logits.argmax(1) if fitted else torch.arange(9) % classes
    part, margin = gls_parts(logits, labels)
    gap, scale = (logits.amax(1) - logits.mean(1)).mean(), 1 / (1 - rate)
    margin = margin.mean()
    risk = float(gls_loss(times * logits, labels, rate))
    low = float((1 - rate) * times * (scale * gap - margin))
    assert low - 1e-9 * (1 + abs(low)) <= risk <= low + math.log(classes) + 1e-9 * (1 + abs(low))
    assert float(part.mean()) >= float(gap)
    if risk < 0:  # then further out it is lower still, without a bound
        far = float(gls_loss(1e3 * times * logits, labels, rate))
        assert far < 900 * risk
    if margin <= scale * gap:
        assert risk >= -1e-9


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_depth_sets_the_speed_of_the_fall(layers):
    """The two inequalities of the proof, along gradient ascent on D of ReLU networks without biases."""
    features = normal(30, 6)
    sizes = [6, *([8] * (layers - 1)), 3]
    weights = [
        normal(b, a, seed=i + 5, scale=0.5).requires_grad_() for i, (a, b) in enumerate(itertools.pairwise(sizes))
    ]

    def logits_of(weights):
        z = features
        for i, weight in enumerate(weights):
            z = (z if i == 0 else z.relu()) @ weight.T
        return z

    labels = logits_of(weights).argmax(1)  # so that D is positive

    def excess(weights):
        z = logits_of(weights)
        gap = z.gather(1, labels[:, None])[:, 0] - z.mean(1)
        return (3 * gap - (z.amax(1) - z.mean(1))).mean()  # 1 - r = 3

    shares = []
    for _ in range(30):
        value = excess(weights)
        gradients = torch.autograd.grad(value, weights)
        length = sum(float(w.detach().square().sum()) for w in weights)
        euler = sum(float((w.detach() * g).sum()) for w, g in zip(weights, gradients, strict=True))
        value, speed = float(value.detach()), sum(float(g.square().sum()) for g in gradients)
        assert euler == pytest.approx(layers * value, rel=1e-10)
        assert value > 0
        assert speed >= layers**2 * value**2 / length * (1 - 1e-12)
        shares.append(value / length ** (layers / 2))
        step = 1e-3 / math.sqrt(speed)
        weights = [(w.detach() + step * g).requires_grad_() for w, g in zip(weights, gradients, strict=True)]
    assert all(later >= earlier * (1 - 1e-6) for earlier, later in itertools.pairwise(shares))


def test_the_speed_of_the_proof_is_linear_exponential_or_explosive():
    """D' = L^2 g^(2/L) D^(2 - 2/L), solved by sympy for one, two and three layers."""
    import sympy

    t = sympy.symbols("t", positive=True)
    start, share = sympy.symbols("D0 g", positive=True)
    solved = {1: start + share**2 * t, 2: start * sympy.exp(4 * share * t)}
    rate3 = 9 * share ** sympy.Rational(2, 3)
    solved[3] = (start ** sympy.Rational(-1, 3) - rate3 * t / 3) ** -3
    for layers, path in solved.items():
        power = sympy.Integer(2) - sympy.Rational(2, layers)
        right = layers**2 * share ** sympy.Rational(2, layers) * path**power
        for values in ({t: 0.01, start: 0.7, share: 0.3}, {t: 0.1, start: 1.3, share: 0.5}):
            assert float((sympy.diff(path, t) - right).subs(values)) == pytest.approx(0, abs=1e-10)
        assert sympy.simplify(path.subs(t, 0) - start) == 0
    blows_up = sympy.solve(1 / solved[3].subs({start: 1, share: 1}), t)
    assert blows_up == [sympy.Rational(1, 3)]


@given(rate=st.floats(-8, 0.9), seed=st.integers(0, 99), classes=st.integers(2, 4))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_the_rate_is_first_a_learning_rate(rate, seed, classes):
    features, labels = normal(20, 3, seed=seed), torch.arange(20) % classes
    onehot = torch.eye(classes, dtype=torch.float64)[labels]
    line = (onehot - 1 / classes).T @ features / 20
    smoothness = float(torch.linalg.matrix_norm(features, 2)) ** 2 / 40
    weights, step = torch.zeros(classes, 3, dtype=torch.float64), 0.01
    for count in range(1, 120):
        target = (1 - rate) * onehot + rate / classes
        gradient = ((features @ weights.T).softmax(1) - target).T @ features / 20
        weights = weights - step / (1 - rate) * gradient
        tau = step * count
        bound = smoothness * tau**2 / (2 * (1 - rate)) * float(line.norm())
        assert float((weights - tau * line).norm()) <= bound * (1 + 1e-9)


@given(seed=st.integers(0, 999), rate=st.floats(-20, 0.95), step=st.floats(0.01, 2.0), classes=st.integers(2, 6))
@quick
def test_gradient_descent_keeps_the_order_of_the_classes(seed, rate, step, classes):
    posterior = posterior_of(classes, seed)
    weights = gls_posterior(posterior, rate)
    logits = torch.zeros_like(weights)
    order = weights[0].argsort()
    for _ in range(60):
        logits = logits - step * (logits.softmax(1) - weights)
        assert float(logits[0, order].diff().min()) > -1e-12
    assert (posterior[0].argsort() == order).all()


def test_a_long_step_can_break_the_order():
    weights, logits = torch.tensor([0.55, 0.45], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    broken = []
    for _ in range(40):
        logits = logits - 8.0 * (logits.softmax(0) - weights)
        broken.append(bool(logits[0] < logits[1]))
    assert any(broken)


@given(seed=st.integers(0, 999), layers=st.integers(1, 4))
@quick
def test_weight_decay_has_a_threshold_that_depth_decides(seed, layers):
    features, rate = normal(12, 4, seed=seed), -2.0
    sizes = [4, *([5] * (layers - 1)), 2]
    weights = [normal(b, a, seed=seed + i) for i, (a, b) in enumerate(itertools.pairwise(sizes))]
    z = features
    for i, weight in enumerate(weights):
        z = (z if i == 0 else z.relu()) @ weight.T
    labels = z.argmax(1)  # so that D is positive here
    excess = float(((1 - rate) * gls_parts(z, labels)[1] - (z.amax(1) - z.mean(1))).mean())
    length = sum(float(w.square().sum()) for w in weights)
    assert excess > 0

    def objective(times, decay):
        return float(gls_loss(times**layers * z, labels, rate)) + decay / 2 * times**2 * length

    threshold = 2 * excess / length
    if layers == 1:
        assert objective(1e8, 1e-3 * threshold) > 0
    elif layers == 2:
        assert objective(1e3, 0.99 * threshold) < -1e3 * excess
        # Logits of two layers are at most half of |theta|^2 |x| long, which bounds D: a decay that holds everywhere.
        enough = (1 - rate) * float(features.norm(dim=1).mean())
        assert enough >= threshold
        assert all(objective(times, enough) >= 0 for times in (0.01, 0.1, 1, 10, 1000))
    else:
        assert objective(1e6 * threshold + 1e6, 100 * threshold) < -1e3


# --- the claims ---

TRAINED = {}


def remember(fit):
    """Train what was trained before in this process only once, as long as nothing it rests on has changed."""

    def digest(value):
        if isinstance(value, torch.Tensor):
            return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        return repr(value)

    def remembered(*args, evaluate=None, loss=None, **rest):
        key = [digest(value) for value in (*args, *sorted(rest.items(), key=lambda item: item[0]))]
        key += [digest(value) for value in rest.values()]
        key += [
            id(nls.stack.target_values),
            loss is None or [id(nls.remedies.clip_logits), id(nls.remedies.floored_loss)],
        ]
        if repr(key) not in TRAINED:
            TRAINED[repr(key)] = fit(*args, evaluate=evaluate, loss=loss, **rest)
        return TRAINED[repr(key)]

    return remembered


def run(patch, mutations=(), **values):
    """Run the chapter with something planted in it."""
    patch.setattr(nls, "fit_stack", remember(nls.fit_stack))
    for mutate in mutations:
        mutate(patch)
    return run_chapter(STEM, patch, **values)


def rate_becomes(change):
    """Another rate wherever the page gives one: in losses, in weights and in training."""

    def mutate(patch):
        loss, weights, values = nls.gls_loss, nls.gls_posterior, nls.stack.target_values
        patch.setattr(nls, "gls_loss", lambda z, y, rate, **rest: loss(z, y, change(rate), **rest))
        patch.setattr(nls, "gls_posterior", lambda posterior, rate: weights(posterior, change(rate)))
        patch.setattr(nls.stack, "target_values", lambda rate, num_classes: values(change(rate), num_classes))

    return mutate


def size_of(rate):
    """|r|, at most 1."""
    return rate.abs().clamp_max(1) if isinstance(rate, torch.Tensor) else min(abs(rate), 1.0)


def loss_ignores_negative_rates(patch):
    """As torch's own cross entropy does."""
    loss = nls.gls_loss
    zero = lambda rate: rate.clamp_min(0) if isinstance(rate, torch.Tensor) else max(rate, 0.0)  # noqa: E731
    patch.setattr(nls, "gls_loss", lambda z, y, rate, **rest: loss(z, y, zero(rate), **rest))


def labels_are_shuffled(patch):
    draw = nls.draw_noisy_labels

    def shuffled(labels, transition, generator):
        return draw(labels, transition, generator)[torch.randperm(len(labels), generator=generator)]

    patch.setattr(nls, "draw_noisy_labels", shuffled)


def noise_turns_the_classes(patch):
    """The transposed matrix of a noise that moves every class on: the arg-max is another one."""
    original = nls.noisy_posterior
    patch.setattr(nls, "noisy_posterior", lambda posterior, matrix: original(posterior, matrix).roll(1, -1))


def critical_rate_drops_features(patch):
    """That of a model which sees half of them."""
    original = nls.linear.critical_rate
    patch.setattr(
        nls.linear, "critical_rate", lambda x, *rest, **more: original(x[:, : x.shape[1] // 3], *rest, **more)
    )


def largest_sample_first(patch):
    """A critical rate that rises with the sample."""
    original = nls.linear.critical_rate
    patch.setattr(nls.linear, "critical_rate", lambda x, *rest, **more: original(x, *rest, **more) + len(x) / 500)


def rates_add_up(patch):
    patch.setattr(nls.rates, "compose_rates", lambda *rates: sum(rates))


def networks_are_linear(patch):
    fit = nls.fit_stack
    patch.setattr(nls, "fit_stack", lambda *args, hidden, **rest: fit(*args, hidden=(), **rest))


def validation_labels_choose_the_last_epoch(patch):
    patch.setattr(np, "nanargmax", lambda values: len(values) - 1)


def remedies_are_left_out(patch):
    """Train every remedy as if there were none; cross entropy, the linear model and other sections stay as they are."""
    fit = nls.fit_stack

    def bare(*args, evaluate=None, **rest):
        if evaluate is None or rest.get("smooth_rate") == 0.0:
            return fit(*args, evaluate=evaluate, **rest)
        kept = {name: rest[name] for name in ("num_classes", "optimizer", "momentum", "seed", "batch_size", "hidden")}
        return fit(*args, smooth_rate=-1.5, learning_rate=0.1, epochs=40, evaluate=evaluate, **kept)

    patch.setattr(nls, "fit_stack", bare)


MUTATIONS = {
    "rate -> |rate|": ([rate_becomes(size_of)], TINY, [
        "minimum-at-the-weights", "straight-line", "below-zero-is-a-proof", "explosion-hides"]),
    "rate -> 0 in the loss, rates added": ([loss_ignores_negative_rates, rates_add_up], TINY | {"flow_steps": 600}, [
        "ends-at-the-nearest", "straight-line", "below-zero-is-a-proof", "feasible-composes", "first-a-learning-rate"]),
    "labels shuffled": ([labels_are_shuffled], TINY | {"sample_sizes": [60, 200, 1000], "critical_seeds": 4}, [
        "exact-has-none"]),
    "classes turned by the noise": ([noise_turns_the_classes], TINY | {"time_steps": 500}, [
        "order-is-kept", "passes-the-truth"]),
    "critical rate of a third of the features": ([critical_rate_drops_features], TINY, [
        "feasible-composes", "boundary-of-the-fit", "limit-of-many-points"]),
    "critical rate rises with the sample": (
        [largest_sample_first], TINY | {"sample_sizes": [60, 200, 1000], "critical_seeds": 4}, ["boundary-falls"]),
    "no hidden layers": ([networks_are_linear], TINY, ["depth-sets-the-speed", "explosion-hides"]),
    "remedies left out": (
        [remedies_are_left_out, validation_labels_choose_the_last_epoch],
        TINY | {"remedy_seeds": 5},
        ["clipping-costs-accuracy", "stopping-beats-bounding", "decay-has-a-threshold", "small-step-after-warm-up",
         "class-or-time"]),
}  # fmt: skip


def test_the_claims_are_as_the_page_says(monkeypatch):
    names = run(monkeypatch, **SMALL)
    assert unexpected(names) == set()
    # Every claim of the page is seen to fail somewhere below.
    assert {name for _, _, expected in MUTATIONS.values() for name in expected} == {c.name for c in names["claims"]}


@pytest.fixture(scope="module")
def page():
    with pytest.MonkeyPatch.context() as patch:
        return run(patch, **TINY)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_claims_fail_under_a_mutation(mutation, page, monkeypatch):
    mutations, values, expected = MUTATIONS[mutation]
    if values is TINY:  # it is the mutation that makes them fail, not the small parameters
        assert unexpected(page) & set(expected) == set()
    assert set(expected) - unexpected(run(monkeypatch, mutations, **values)) == set()


# --- the exercises ---


@pytest.mark.parametrize(
    ("name", "change"),
    [
        # The exact correction is the last rate with a minimum, whatever the clean posterior.
        ("solution-1", ("compose_rates(nls.feasible_rate(clean), correction)", "correction")),
        # What the distribution allows, a sample allows as well.
        ("solution-2", ("critical_rate(x, y)", "nls.feasible_rate(nls.noisy_posterior(raw.posterior, transition))")),
    ],
)
def test_each_solution_holds_and_the_misconception_fails(name, change, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, change)
