"""The statements of the chapter by independent means; its claims as it runs, and each seen to fail under a mutation."""

import itertools
import math

import pytest
import sympy
import torch
from chapters import run_chapter, run_solution, unexpected
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from torch.nn import functional

import nls
import nls.linear
import nls.losses
import nls.noise
from nls import baselines
from nls.linear import fit_linear
from nls.losses import backward_corrected_loss, forward_corrected_loss, gls_loss, gls_parts
from nls.noise import draw_symmetric_labels, pair_transition, symmetric_transition

STEM = "05_one_family"
exactly = settings(deadline=None, max_examples=20, derandomize=True)
class_counts = st.integers(2, 10)
seeds = st.integers(0, 10**6)
shares = st.floats(0, 0.9)  # c


def make(seed, num_classes, num_examples=6, scale=3.0):
    """Logits [N, K] and a generator to draw more from."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_examples, num_classes, generator=generator, dtype=torch.float64), generator


def make_transition(generator, num_classes):
    """An invertible noise matrix without symmetry."""
    noise = torch.rand(num_classes, num_classes, generator=generator, dtype=torch.float64)
    noise += num_classes * torch.eye(num_classes, dtype=torch.float64)
    return noise / noise.sum(1, keepdim=True)


def every_label(loss, logits):
    """Losses [N, K]: each example under each label."""
    num_classes = logits.shape[1]
    rows, labels = logits.repeat_interleave(num_classes, 0), torch.arange(num_classes).repeat(len(logits))
    return loss(rows, labels, reduction="none").view(-1, num_classes)


def log_losses(logits):
    """The -log p_k from which the papers build their losses, [N, K]."""
    return -logits.log_softmax(1)


def every_gradient(loss, logits):
    """Gradients [N, K labels, K classes]."""
    num_classes = logits.shape[1]
    rows = logits.detach().repeat_interleave(num_classes, 0).requires_grad_()
    labels = torch.arange(num_classes).repeat(len(logits))
    (gradient,) = torch.autograd.grad(loss(rows, labels, reduction="sum"), rows)
    return gradient.view(-1, num_classes, num_classes)


def distance_from_members(loss, logits):
    """What no weights of A and -m and no constant explain of a loss, as a share of its spread."""
    values = every_label(loss, logits).flatten()
    num_classes = logits.shape[1]
    centred = logits - logits.mean(1, keepdim=True)
    label_free = centred.exp().sum(1).log().repeat_interleave(num_classes)
    basis = torch.stack([label_free, -centred.flatten(), torch.ones_like(values)], 1)
    rest = values - basis @ torch.linalg.lstsq(basis, values[:, None]).solution[:, 0]
    return float(rest.norm() / (values - values.mean()).norm())


def minimiser(weights, loss):
    """Probabilities [K] that minimise the loss under weights of the labels [K], by BFGS from uniform."""

    def risk(point):
        logits = torch.tensor(point[None], requires_grad=True)
        value = (every_label(loss, logits)[0] * weights).sum()
        (gradient,) = torch.autograd.grad(value, logits)
        return value.item(), gradient[0].numpy()

    found = minimize(risk, torch.zeros(len(weights)).double().numpy(), jac=True, method="BFGS", options={"gtol": 1e-10})
    return torch.from_numpy(found.x).softmax(0)


def close(first, second, tolerance=1e-12):
    """Equal within a tolerance relative to the largest value."""
    torch.testing.assert_close(first, second, rtol=0, atol=tolerance * max(1.0, float(second.abs().max())))


# When a loss is a rate


@exactly
@given(seeds, class_counts, st.floats(0, 3), st.floats(-5, 5))
def test_two_tests_decide_membership(seed, num_classes, alpha, beta):
    logits, _ = make(seed, num_classes)
    label_free, margin = gls_parts(logits.repeat_interleave(num_classes, 0), torch.arange(num_classes).repeat(6))
    values = (alpha * label_free - beta * margin + 0.7).view(-1, num_classes)
    differences = values[:, :, None] - values[:, None, :]
    close(differences, -beta * (logits[:, :, None] - logits[:, None, :]))
    close(values.mean(1), alpha * (logits.logsumexp(1) - logits.mean(1)) + 0.7)
    if alpha > 0.1:  # alpha times the smoothing loss at 1 - beta / alpha
        rate = 1 - beta / alpha
        soft = (1 - rate) * torch.eye(num_classes, dtype=torch.float64) + rate / num_classes
        close(values, alpha * log_losses(logits) @ soft.T + 0.7)


@exactly
@given(seeds, class_counts, st.floats(0, 1))
def test_the_loss_at_minus_r_is_the_mirror_image(seed, num_classes, rate):
    logits, _ = make(seed, num_classes)
    ours = every_label(lambda z, y, **how: gls_loss(z, y, -rate, **how), logits)
    smoothed = every_label(lambda z, y, **how: functional.cross_entropy(z, y, label_smoothing=rate, **how), logits)
    close(ours, 2 * log_losses(logits) - smoothed)


# Backward and forward correction


@exactly
@given(seeds, class_counts, shares)
def test_backward_correction_is_a_rate_sample_by_sample(seed, num_classes, share):
    logits, _ = make(seed, num_classes)
    transition = symmetric_transition(num_classes, share * (num_classes - 1) / num_classes)
    backward = every_label(lambda z, y, **how: backward_corrected_loss(z, y, transition, **how), logits)
    rate = -share / (1 - share)
    close(backward, (1 - rate) * log_losses(logits) + rate * log_losses(logits).mean(1, keepdim=True))


def test_the_exact_rates_of_ten_classes():
    rates = [-0.286, -0.8, -2.0]
    for noise_rate, rate in zip((0.2, 0.4, 0.6), rates, strict=True):
        inverse = torch.linalg.inv(symmetric_transition(10, noise_rate))
        assert 10 * float(inverse[0, 1]) == pytest.approx(rate, abs=5e-4)


def test_the_inverse_of_symmetric_noise_is_a_rate_in_symbols():
    size, share = 4, sympy.symbols("c")
    uniform = sympy.ones(size) / size
    noise = (1 - share) * sympy.eye(size) + share * uniform
    rate = -share / (1 - share)
    smoothing = (1 - rate) * sympy.eye(size) + rate * uniform
    assert (noise * smoothing - sympy.eye(size)).applyfunc(sympy.simplify) == sympy.zeros(size)


@exactly
@given(seeds, class_counts)
def test_backward_correction_has_the_clean_risk_for_every_model(seed, num_classes):
    logits, generator = make(seed, num_classes)
    transition = make_transition(generator, num_classes)
    backward = every_label(lambda z, y, **how: backward_corrected_loss(z, y, transition, **how), logits)
    close(backward @ transition.T, log_losses(logits))


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_forward_correction_is_no_rate(num_classes, share):
    logits, _ = make(0, num_classes, 100)
    transition = symmetric_transition(num_classes, share * (num_classes - 1) / num_classes)
    assert distance_from_members(lambda z, y, **how: forward_corrected_loss(z, y, transition, **how), logits) > 0.1
    assert distance_from_members(lambda z, y, **how: backward_corrected_loss(z, y, transition, **how), logits) < 1e-13


@exactly
@given(seeds, class_counts)
def test_forward_correction_is_bounded_below_and_the_bound_is_sharp(seed, num_classes):
    logits, generator = make(seed, num_classes, scale=8.0)
    transition = make_transition(generator, num_classes)
    bound = -transition.amax(0).log()
    forward = every_label(lambda z, y, **how: forward_corrected_loss(z, y, transition, **how), logits)
    assert (forward >= bound - 1e-12).all()
    sure = 60 * torch.eye(num_classes, dtype=torch.float64)[transition.argmax(0)]
    labels = torch.arange(num_classes)
    close(forward_corrected_loss(sure, labels, transition, reduction="none"), bound)
    assert backward_corrected_loss(sure, labels, transition) < -1


@exactly
@given(seeds, class_counts)
def test_the_forward_gradient_is_p_minus_the_belief_of_the_model(seed, num_classes):
    logits, generator = make(seed, num_classes)
    transition = make_transition(generator, num_classes)
    gradients = every_gradient(lambda z, y, **how: forward_corrected_loss(z, y, transition, **how), logits)
    p = logits.softmax(1)
    joint = p[:, :, None] * transition  # P(y = i, noisy y = j)
    belief = (joint / joint.sum(1, keepdim=True)).mT  # noisy label, class
    close(gradients, p[:, None] - belief)


@exactly
@given(seeds, class_counts)
def test_forward_is_backward_times_a_matrix_that_sees_no_label(seed, num_classes):
    logits, generator = make(seed, num_classes, 3, scale=1.0)
    transition = make_transition(generator, num_classes)
    forward = every_gradient(lambda z, y, **how: forward_corrected_loss(z, y, transition, **how), logits)
    backward = every_gradient(lambda z, y, **how: backward_corrected_loss(z, y, transition, **how), logits)
    for p, ours, theirs in zip(logits.softmax(1), forward, backward, strict=True):
        clean = p.diag() - torch.outer(p, p)
        # Fisher information of the noisy label as the mean outer product of its scores, which are minus the gradients.
        noisy = torch.einsum("j,ja,jb->ab", transition.T @ p, ours, ours)
        close(ours, theirs @ (noisy @ torch.linalg.pinv(clean, rtol=1e-13)).T, 1e-9)
        # No label tells more after noise than before.
        assert float(torch.linalg.eigvalsh(clean - noisy).min()) > -1e-14


def test_for_two_classes_the_brake_is_a_number_in_symbols():
    gap, share = sympy.symbols("g c", positive=True)
    p = 1 / (1 + sympy.exp(-gap))
    q = (1 - share) * p + share / 2
    ratios = []
    for seen, other, sign in ((q, p, 1), (1 - q, 1 - p, -1)):
        forward = sympy.diff(-sympy.log(seen), gap)
        target = (1 + sign / (1 - share)) / 2  # of class 1 under backward correction
        ratios.append(sympy.simplify(forward / (p - target)))
        del other
    expected = (1 - share) ** 2 * p * (1 - p) / (q * (1 - q))
    assert [sympy.simplify(ratio - expected) for ratio in ratios] == [0, 0]


@exactly
@given(seeds, class_counts)
def test_forward_correction_without_zeros_lies_between_two_constants_and_is_no_rate(seed, num_classes):
    logits, generator = make(seed, num_classes, 40)
    transition = make_transition(generator, num_classes)
    far = 100 * logits  # a member whose labels differ at all is unbounded
    forward = every_label(lambda z, y, **how: forward_corrected_loss(z, y, transition, **how), far)
    assert (forward >= -transition.amax(0).log() - 1e-12).all()
    assert (forward <= -transition.amin(0).log() + 1e-12).all()
    assert float((forward - forward.roll(1, 1)).abs().max()) > 0.1
    assert distance_from_members(lambda z, y, **how: forward_corrected_loss(z, y, transition, **how), logits) > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_with_free_logits_forward_and_backward_share_the_minimiser(seed):
    _, generator = make(seed, 4)
    transition = make_transition(generator, 4)
    eta = torch.rand(4, generator=generator, dtype=torch.float64) + 0.2
    eta /= eta.sum()
    for correction in (forward_corrected_loss, backward_corrected_loss):
        found = minimiser(transition.T @ eta, lambda z, y, c=correction, **how: c(z, y, transition, **how))
        assert float((found - eta).abs().max()) < 1e-6
    plain = minimiser(transition.T @ eta, functional.cross_entropy)
    assert float((plain - transition.T @ eta).abs().max()) < 1e-6
    assert float((plain - eta).abs().max()) > 0.01


def test_a_singular_matrix_leaves_forward_correction_undecided():
    transition = torch.tensor([[0.8, 0.2, 0.0], [0.2, 0.8, 0.0], [0.5, 0.5, 0.0]], dtype=torch.float64)
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.375, 0.125, 0.5]], dtype=torch.float64).log()  # one q for two p
    losses = [forward_corrected_loss(logits, torch.full((2,), k), transition, reduction="none") for k in (0, 1)]
    for loss in losses:
        assert float(loss[0] - loss[1]) == pytest.approx(0, abs=1e-15)
    with pytest.raises(ValueError, match="invertible"):
        backward_corrected_loss(logits, torch.tensor([0, 1]), transition)


def test_in_a_small_class_forward_and_backward_differ_in_sign():
    eta, mass, inputs, noise_rate = (0.8, 0.1), (0.9, 0.1), (1.0, 10.0), 0.3

    def risk(weight, correction):
        total = 0.0
        for clean, share, x in zip(eta, mass, inputs, strict=True):
            p = 1 / (1 + math.exp(-weight * x))
            noisy = (1 - noise_rate) * clean + noise_rate * (1 - clean)
            if correction == "forward":
                q = (1 - noise_rate) * p + noise_rate * (1 - p)
                total -= share * (noisy * math.log(q) + (1 - noisy) * math.log(1 - q))
            else:  # the clean risk, which backward correction has at every weight
                total -= share * (clean * math.log(p) + (1 - clean) * math.log(1 - p))
        return total

    backward = minimize_scalar(risk, bounds=(-2, 3), args=("backward",), method="bounded")
    left, right = (
        minimize_scalar(risk, bounds=span, args=("forward",), method="bounded") for span in ((-0.5, 0.2), (0.2, 3))
    )
    assert backward.x == pytest.approx(-0.0486, abs=1e-3)
    assert right.x == pytest.approx(1.386, abs=1e-2)
    assert left.x < 0
    assert left.fun - right.fun > 0.003  # the better minimum is on the other side


def test_at_the_start_forward_moves_as_backward_with_a_shorter_step():
    transition = symmetric_transition(5, 0.4)
    zero = torch.zeros(1, 5, dtype=torch.float64)
    forward = every_gradient(lambda z, y, **how: forward_corrected_loss(z, y, transition, **how), zero)
    backward = every_gradient(lambda z, y, **how: backward_corrected_loss(z, y, transition, **how), zero)
    close(forward, (1 - 0.5) ** 2 * backward)  # c = 0.5


# Peer loss, the complementary loss and the limit


@exactly
@given(seeds, class_counts, st.floats(0, 0.95))
def test_weighted_peer_loss_is_a_rate(seed, num_classes, weight):
    logits, _ = make(seed, num_classes)
    losses = log_losses(logits)
    peer = every_label(lambda z, y, **how: baselines.peer_loss(z, y, weight, **how), logits)
    close(peer, losses - weight * losses.mean(1, keepdim=True))
    rate = -weight / (1 - weight)
    close(peer, (1 - weight) * every_label(lambda z, y, **how: gls_loss(z, y, rate, **how), logits))
    transition = symmetric_transition(num_classes, weight * (num_classes - 1) / num_classes)
    backward = every_label(lambda z, y, **how: backward_corrected_loss(z, y, transition, **how), logits)
    close(peer, (1 - weight) * backward)  # a = c


@exactly
@given(seeds, class_counts, st.floats(0, 0.9))
def test_weighted_peer_loss_with_a_prior_corrects_replacement_by_it(seed, num_classes, weight):
    logits, generator = make(seed, num_classes)
    prior = torch.rand(num_classes, generator=generator, dtype=torch.float64)
    prior /= prior.sum()
    replaced = (1 - weight) * torch.eye(num_classes, dtype=torch.float64) + weight * prior
    peer = every_label(lambda z, y, **how: baselines.peer_loss(z, y, weight, prior=prior, **how), logits)
    close(peer, (1 - weight) * log_losses(logits) @ torch.linalg.inv(replaced).T)
    close(peer @ replaced.T, (1 - weight) * log_losses(logits))  # the clean risk, for every model


@exactly
@given(seeds, st.floats(0.01, 0.45), st.floats(0.01, 0.45))
def test_any_binary_noise_is_replacement_by_a_prior(seed, first, second):
    logits, _ = make(seed, 2)
    noise = torch.tensor([[1 - first, first], [second, 1 - second]], dtype=torch.float64)
    weight, prior = first + second, torch.tensor([second, first], dtype=torch.float64) / (first + second)
    peer = every_label(lambda z, y, **how: baselines.peer_loss(z, y, weight, prior=prior, **how), logits)
    close(peer @ noise.T, (1 - weight) * log_losses(logits))


@exactly
@given(seeds, class_counts)
def test_a_prior_adds_a_term_to_peer_loss(seed, num_classes):
    logits, generator = make(seed, num_classes)
    prior = torch.rand(num_classes, generator=generator, dtype=torch.float64)
    prior /= prior.sum()
    losses = log_losses(logits)
    peer = every_label(lambda z, y, **how: baselines.peer_loss(z, y, prior=prior, **how), logits)
    close(peer, -(logits - (logits @ prior)[:, None]))
    extra = -(losses @ (prior - 1 / num_classes))
    close(peer, every_label(baselines.unhinged_loss, logits) + extra[:, None])
    if float((prior - 1 / num_classes).abs().max()) > 0.1:
        many, _ = make(seed, num_classes, 60)
        for weight in (0.5, 1.0):
            found = distance_from_members(
                lambda z, y, a=weight, **how: baselines.peer_loss(z, y, a, prior=prior, **how), many
            )
            assert found > 0.01


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_drawn_peers_average_to_the_prior_form(weight):
    logits, _ = make(1, 3, 4)
    labels = torch.tensor([0, 2, 2, 1])
    pairs = list(itertools.product(range(4), repeat=2))  # every input with every label, each as likely
    drawn = []
    for u, v in pairs:
        peers = torch.tensor([[u] * 4, [v] * 4])
        drawn.append(baselines.sampled_peer_loss(logits, labels, peers, weight, reduction="none"))
    frequencies = torch.bincount(labels, minlength=3).double() / 4
    mean = torch.stack(drawn).mean(0)
    expected = baselines.peer_loss(logits, labels, weight, prior=frequencies, reduction="none")
    assert float(mean.mean() - expected.mean()) == pytest.approx(0, abs=1e-14)
    assert float((mean - expected).abs().max()) > 0.1  # of a batch, not of an example


def peer_risks(transition, generator, noisy_prior=True, num_models=30):
    """Exact peer risks of random models on a random population, on clean and on noisy labels."""
    num_classes = len(transition)
    eta = (2 * torch.randn(20, num_classes, generator=generator, dtype=torch.float64)).softmax(1)
    eta = nls.gls_posterior(eta, 0.1) * torch.arange(1, num_classes + 1)  # unequal classes
    eta /= eta.sum(1, keepdim=True)
    logits = 2 * torch.randn(num_models * 20, num_classes, generator=generator, dtype=torch.float64)
    risks = []
    for posterior in (eta, eta @ transition):
        prior = posterior.mean(0) if noisy_prior else torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
        losses = every_label(lambda z, y, p=prior, **how: baselines.peer_loss(z, y, prior=p, **how), logits)
        risks.append((losses.view(num_models, 20, num_classes) * posterior).sum(2).mean(1))
    covariance = torch.zeros(num_models, dtype=torch.float64)
    for k in range(num_classes):
        z, seen = logits[:, k].view(num_models, 20), (eta @ transition)[:, k]
        covariance += (z * seen).mean(1) - z.mean(1) * seen.mean()
    return *risks, -covariance


@exactly
@given(seeds, st.floats(0, 0.6), st.floats(0, 0.6))
def test_binary_noise_scales_the_peer_risk(seed, first, second):
    _, generator = make(seed, 2)
    transition = torch.tensor([[1 - first, first], [second, 1 - second]], dtype=torch.float64)
    clean, noisy, covariance = peer_risks(transition, generator)
    close(noisy, (1 - first - second) * clean)
    close(noisy, covariance)


def test_only_noise_with_equal_columns_off_the_diagonal_scales_the_peer_risk():
    _, generator = make(0, 3)
    prior = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    to_prior = 0.6 * torch.eye(3, dtype=torch.float64) + 0.4 * prior  # each label replaced by a draw from a prior
    for transition, scale in ((symmetric_transition(3, 0.4), 0.4), (to_prior, 0.6)):
        clean, noisy, covariance = peer_risks(transition, generator)
        close(noisy, scale * clean)
        close(noisy, covariance)
    for transition in (pair_transition(3, 0.4), make_transition(generator, 3)):
        clean, noisy, covariance = peer_risks(transition, generator)
        close(noisy, covariance)
        assert float((noisy - (noisy @ clean) / (clean @ clean) * clean).norm() / noisy.norm()) > 0.02
    uneven = torch.tensor([[0.9, 0.1], [0.4, 0.6]], dtype=torch.float64)
    clean, noisy, _ = peer_risks(uneven, generator, noisy_prior=False)
    assert float((noisy - (noisy @ clean) / (clean @ clean) * clean).norm() / noisy.norm()) > 0.1


@exactly
@given(seeds, class_counts)
def test_the_complementary_loss_is_the_margin(seed, num_classes):
    logits, _ = make(seed, num_classes)
    losses = log_losses(logits)
    others = (losses.sum(1, keepdim=True) - losses) / (num_classes - 1)
    ours = every_label(baselines.complementary_loss, logits)
    close(ours, losses - others)
    close(ours, -(logits - logits.mean(1, keepdim=True)) * num_classes / (num_classes - 1))
    if num_classes == 2:
        close(ours, losses - losses.flip(1))


@exactly
@given(seeds, class_counts, st.floats(-1e4, -1))
def test_the_loss_approaches_the_unhinged_loss_at_first_order(seed, num_classes, rate):
    logits, _ = make(seed, num_classes)
    ours = every_label(lambda z, y, **how: gls_loss(z, y, rate, **how), logits) / (1 - rate)
    unhinged = logits.mean(1, keepdim=True) - logits
    gap = (ours - unhinged) * (1 - rate)
    close(gap, (logits.logsumexp(1) - logits.mean(1))[:, None].expand_as(gap), 1e-9)


@pytest.mark.parametrize(("num_classes", "ridge"), [(2, 0.05), (3, 0.5), (5, 3.0)])
def test_minimisers_approach_the_centroids_at_first_order_within_the_bound(num_classes, ridge):
    _, generator = make(num_classes, 2)
    labels = torch.randint(num_classes, (120,), generator=generator)
    features = torch.randn(120, 3, generator=generator, dtype=torch.float64)
    features[torch.arange(120), labels % 3] += 1.5
    centroid = torch.zeros(num_classes, 3, dtype=torch.float64)
    for x, y in zip(features, labels, strict=True):
        for k in range(num_classes):
            centroid[k] += (float(k == y) - 1 / num_classes) * x / 120 / ridge
    p = (features @ centroid.T).softmax(1)
    slope = float(((p - 1 / num_classes).T @ features / 120).norm())
    spread = float(features.square().sum(1).mean()) / 2
    shares = []
    for rate in (0.0, -3.0, -30.0, -300.0):
        fit = fit_linear(features, labels, num_classes, rate, ridge=ridge * (1 - rate), intercept=False)
        apart = float((fit.weight - centroid).norm())
        assert apart >= slope / (ridge * (1 - rate) + spread) * (1 - 1e-5)
        shares.append(apart / (slope / ridge / (1 - rate)))
    assert all(share <= 1 + 1e-5 for share in shares)
    assert shares[-1] == pytest.approx(1, abs=5e-3)


# Complementary labels


@exactly
@given(seeds, class_counts)
def test_the_unbiased_complementary_estimator_is_rate_k(seed, num_classes):
    logits, _ = make(seed, num_classes)
    losses = log_losses(logits)
    ours = every_label(baselines.unbiased_complementary_loss, logits)
    close(ours, losses.sum(1, keepdim=True) - (num_classes - 1) * losses)
    at_rate = (1 - num_classes) * torch.eye(num_classes, dtype=torch.float64) + 1  # (1 - r) onehot + r / K at r = K
    close(ours, losses @ at_rate.T)
    with pytest.raises(ValueError, match="smooth_rate"):
        gls_loss(logits, torch.zeros(6, dtype=torch.long), float(num_classes))
    always_wrong = symmetric_transition(num_classes, 1.0)
    backward = every_label(lambda z, y, **how: backward_corrected_loss(z, y, always_wrong, **how), logits)
    close(ours, backward)


@exactly
@given(seeds, class_counts)
def test_the_unbiased_complementary_estimator_averages_to_cross_entropy(seed, num_classes):
    logits, _ = make(seed, num_classes)
    ours = every_label(baselines.unbiased_complementary_loss, logits)
    for y in range(num_classes):
        others = [k for k in range(num_classes) if k != y]
        close(ours[:, others].mean(1), log_losses(logits)[:, y])


def test_complementary_labels_of_noisy_labels_correct_nothing():
    eta = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    noisy = eta @ symmetric_transition(3, 0.4)
    other = (1 - noisy) / 2  # a class drawn from those other than the noisy label
    for loss in (baselines.unbiased_complementary_loss, baselines.nlnl_loss):
        assert float((minimiser(other, loss) - noisy).abs().max()) < 1e-6
        assert float((minimiser((1 - eta) / 2, loss) - eta).abs().max()) < 1e-6
    assert float((noisy - eta).abs().max()) > 0.2
    logits, _ = make(0, 3)
    ours = every_label(baselines.unbiased_complementary_loss, logits)
    close(ours @ other, log_losses(logits) @ noisy)


@pytest.mark.parametrize("num_classes", [3, 4, 10])
def test_nlnl_is_no_rate_for_three_classes_or_more(num_classes):
    logits, _ = make(0, num_classes, 100)
    assert distance_from_members(baselines.nlnl_loss, logits) > 0.2
    # The counterexample of the proof: the third logit changes how two labels differ.
    low, high = torch.zeros(2, num_classes, dtype=torch.float64)
    low[0] = high[0] = 1.0
    high[2] = 30.0
    values = every_label(baselines.nlnl_loss, torch.stack([low, high]))
    apart = values[:, 0] - values[:, 1]
    assert float(apart[0]) > 0.1
    assert abs(float(apart[1])) < 1e-9


def test_nlnl_of_two_classes_is_cross_entropy_of_the_other():
    logits, _ = make(0, 2, 50)
    close(every_label(baselines.nlnl_loss, logits), log_losses(logits).flip(1))
    assert distance_from_members(baselines.nlnl_loss, logits) < 1e-13


@exactly
@given(seeds, class_counts)
def test_nlnl_is_forward_correction_at_flip_rate_one(seed, num_classes):
    logits, _ = make(seed, num_classes)
    always_wrong = symmetric_transition(num_classes, 1.0)
    forward = every_label(lambda z, y, **how: forward_corrected_loss(z, y, always_wrong, **how), logits)
    ours = every_label(baselines.nlnl_loss, logits)
    close(forward - math.log(num_classes - 1), ours)
    close(ours, -torch.log1p(-logits.softmax(1)), 1e-9)


# Cousins


def test_disturblabel_is_smoothing_in_expectation():
    logits, _ = make(0, 4, 1)
    losses, alpha = log_losses(logits)[0], 0.3
    draws = torch.zeros(200_000, dtype=torch.long)
    drawn = draw_symmetric_labels(draws, 4, alpha * 3 / 4, torch.Generator().manual_seed(0))
    smoothed = (1 - alpha) * losses[0] + alpha * losses.mean()
    values = losses[drawn]
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean() - smoothed)) < 4 * error
    # The variance is that of the margin of the drawn label.
    target = torch.full((4,), alpha / 4, dtype=torch.float64)
    target[0] += 1 - alpha
    margin = logits[0] - logits[0].mean()
    variance = float((target * margin**2).sum() - (target @ margin) ** 2)
    assert variance > 0.1
    assert float(values.var()) == pytest.approx(variance, rel=0.02)


@exactly
@given(seeds, class_counts, st.floats(0, 0.9))
def test_smoothing_and_confidence_penalty_are_the_two_divergences(seed, num_classes, rate):
    logits, _ = make(seed, num_classes)
    losses, uniform, weight = (
        log_losses(logits),
        torch.full((6, num_classes), 1 / num_classes, dtype=torch.float64),
        rate / (1 - rate),
    )
    p = logits.softmax(1)
    smoothing = every_label(lambda z, y, **how: gls_loss(z, y, rate, **how), logits)
    reverse = nls.kl_divergence(uniform, p)[:, None] + math.log(num_classes)
    close(smoothing, (1 - rate) * (losses + weight * reverse), 1e-10)
    penalised = every_label(lambda z, y, **how: baselines.confidence_penalty_loss(z, y, weight, **how), logits)
    forward = nls.kl_divergence(p, uniform)[:, None] - math.log(num_classes)
    close(penalised, losses + weight * forward, 1e-10)
    assert float(nls.kl_divergence(p, uniform).max()) <= math.log(num_classes) + 1e-12
    # A negative penalty stays bounded below, a negative rate does not.
    negative = every_label(lambda z, y, **how: baselines.confidence_penalty_loss(z, y, -weight, **how), 50 * logits)
    assert float(negative.min()) >= -1e-9
    if rate > 0.1:
        assert float(every_label(lambda z, y, **how: gls_loss(z, y, -rate, **how), 50 * logits).min()) < -1


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("weight", [0.2, 0.6, 2.0])
def test_the_confidence_penalty_starts_as_smoothing_and_ends_as_cross_entropy(num_classes, weight):
    def penalty(z, y, **how):
        return baselines.confidence_penalty_loss(z, y, weight, **how)

    small, _ = make(0, num_classes, scale=1e-4)
    rate = weight / (1 + weight)
    target = (1 - rate) * torch.eye(num_classes, dtype=torch.float64) + rate / num_classes
    ours, away = every_gradient(penalty, small), small.softmax(1)[:, None] - 1 / num_classes
    # (1 + b)(p - target), to second order in the logits.
    close(ours, (1 + weight) * (away + 1 / num_classes - target), 1e-7)
    assert float(away.abs().max()) > 1e-5
    sure = 25 * torch.eye(num_classes, dtype=torch.float64)[:1]
    close(every_gradient(penalty, sure), every_gradient(functional.cross_entropy, sure), 1e-8)
    many, _ = make(0, num_classes, 100)
    assert distance_from_members(penalty, many) > 0.01


# The chapter

SMALL = {"num_logits": 40, "num_draws": 1500, "num_models": 12, "num_steps": 60}


def other_convention(patch):
    """Count the true class in the noise rate."""
    original = nls.noise.symmetric_transition
    patch.setattr(nls, "symmetric_transition", lambda k, rate: original(k, rate * (k - 1) / k))


def size_of_rate(patch):
    """Take |r| for r."""
    original, fit = nls.losses.gls_loss, nls.linear.fit_linear

    def loss(logits, labels, smooth_rate, **how):
        return original(logits, labels, min(abs(smooth_rate), 1.0), **how)

    patch.setattr(nls, "gls_loss", loss)
    patch.setattr(nls.linear, "fit_linear", lambda x, y, k, r, **how: fit(x, y, k, min(abs(r), 0.99), **how))


def multiply_by_noise(patch):
    """Correct backwards by T where its inverse belongs."""

    def loss(logits, labels, transition, *, reduction="mean"):
        values = (log_losses(logits) @ transition.T).gather(1, labels[:, None])[:, 0]
        return values if reduction == "none" else getattr(values, reduction)()

    patch.setattr(nls, "backward_corrected_loss", loss)


def transpose_forward(patch):
    """Correct forwards by the transpose of T."""

    def loss(logits, labels, transition, *, reduction="mean"):
        values = -(logits.softmax(1) @ transition.T).log().gather(1, labels[:, None])[:, 0]
        return values if reduction == "none" else getattr(values, reduction)()

    patch.setattr(nls, "forward_corrected_loss", loss)


def forward_as_backward(patch):
    """Draw forward and backward correction as one curve."""
    patch.setattr(nls, "forward_corrected_loss", nls.losses.backward_corrected_loss)


def transpose_noise(patch):
    """Make the noisy posterior with the transpose of T."""
    patch.setattr(
        nls, "noisy_posterior", lambda posterior, transition: functional.normalize(posterior @ transition.T, p=1)
    )


def shuffle_labels(patch):
    """Draw labels that have nothing to do with those they come from."""
    draw, noisy = nls.noise.draw_symmetric_labels, nls.noise.draw_noisy_labels

    def shuffled(labels, *rest):
        return draw(labels, *rest)[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]

    patch.setattr(nls.noise, "draw_symmetric_labels", shuffled)
    patch.setattr(nls, "draw_noisy_labels", noisy)


def no_noise(patch):
    """Draw no noise where noisy labels are asked for, and none in pairs of classes."""
    patch.setattr(nls, "draw_noisy_labels", lambda labels, transition, generator: labels)
    patch.setattr(nls, "pair_transition", nls.noise.symmetric_transition)


def forget_the_prior(patch):
    """Ignore the prior of peer loss."""
    original = baselines.peer_loss
    patch.setattr(
        baselines, "peer_loss", lambda z, y, peer_weight=1.0, *, prior=None, **how: original(z, y, peer_weight, **how)
    )


def half_the_peer_weight(patch):
    """Subtract half of the peers."""
    original, drawn = baselines.peer_loss, baselines.sampled_peer_loss
    patch.setattr(baselines, "peer_loss", lambda z, y, peer_weight=1.0, **how: original(z, y, peer_weight / 2, **how))
    patch.setattr(baselines, "sampled_peer_loss", lambda z, y, peers: drawn(z, y, peers, 0.5))


def peers_of_one(patch):
    """Take the input and the label of a peer from one example."""
    drawn = baselines.sampled_peer_loss
    patch.setattr(baselines, "sampled_peer_loss", lambda z, y, peers: drawn(z, y, peers[:1].expand(2, -1)))


def wrong_formulas(patch):
    """Count the label among the others, by one too many, with the wrong sign, and with the other divergence."""

    def penalty(z, y, penalty, **how):
        return (1 + penalty) * gls_loss(z, y, penalty / (1 + penalty), **how)

    unbiased, unhinged = baselines.unbiased_complementary_loss, baselines.unhinged_loss
    patch.setattr(baselines, "complementary_loss", unhinged)
    patch.setattr(
        baselines, "unbiased_complementary_loss", lambda z, y, **how: unbiased(z, y, **how) - unhinged(z, y, **how)
    )
    patch.setattr(baselines, "nlnl_loss", functional.cross_entropy)
    patch.setattr(baselines, "confidence_penalty_loss", penalty)


MUTATIONS = {
    other_convention: {"backward-is-a-rate", "peer-weight-c-corrects", "forward-is-bounded", "nlnl-is-forward"},
    size_of_rate: {"mirror", "values-of-first-order", "minimisers-of-first-order"},
    multiply_by_noise: {
        "backward-is-a-rate", "backward-has-the-clean-risk", "one-natural-gradient", "same-optimum-if-free"},
    transpose_forward: {"one-natural-gradient", "forward-gradient-is-a-belief"},
    forward_as_backward: {"forward-is-no-rate", "forward-is-bounded", "other-optimum-if-small", "nlnl-is-forward"},
    transpose_noise: {"binary-noise-scales-peer-risk"},
    shuffle_labels: {"estimator-is-unbiased", "disturblabel-is-smoothing"},
    no_noise: {"complementary-corrects-nothing", "other-noise-does-not"},
    forget_the_prior: {"peer-prior-is-no-rate", "binary-noise-scales-peer-risk", "peer-corrects-any-binary-noise"},
    half_the_peer_weight: {"peer-weight-c-corrects", "peer-is-the-limit"},
    peers_of_one: {"peer-is-the-limit"},
    wrong_formulas: {
        "complementary-is-the-limit", "estimator-is-rate-k", "estimator-is-unbiased", "nlnl-is-no-rate",
        "nlnl-is-forward", "penalty-starts-as-smoothing"},
}  # fmt: skip


@pytest.fixture(scope="module")
def chapter():
    with pytest.MonkeyPatch.context() as patch:
        return run_chapter(STEM, patch, **SMALL)


def test_the_claims_are_as_the_page_says(chapter):
    assert unexpected(chapter) == set()
    assert set.union(*MUTATIONS.values()) == {claim.name for claim in chapter["claims"]}
    tests = {claim.test.removeprefix("test_chapter_one_family.py::") for claim in chapter["claims"]}
    assert tests <= set(globals())


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_claims_fail_under_a_mutation(mutate, monkeypatch):
    mutate(monkeypatch)
    assert unexpected(run_chapter(STEM, monkeypatch, **SMALL)) >= MUTATIONS[mutate]


WRONG = {
    # The same push from both, as if one minimiser made one loss.
    "solution-forward": ('"forward"].norm()) < 1e-6', '"backward"].norm()) < 1e-6'),
    # The flip rate, which does not count the true class.
    "solution-peer": ("num_classes * noise_rate / (num_classes - 1)", "noise_rate"),
    # Complementary labels as if they came from clean labels.
    "solution-complementary": ("ten @ nls.symmetric_transition(10, 1.0)", "nls.symmetric_transition(10, 1.0)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_run_and_wrong_ones_fail(name, chapter):
    run_solution(STEM, name, chapter)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, chapter, WRONG[name])
