"""Numbers worked out by hand from each paper's formula; then loops in Python floats, shapes, gradients and refusals."""

import math

import pytest
import torch

from nls import baselines
from nls.losses import gls_loss
from nls.training import fit_stack

ROW = torch.tensor([[2.0, 0.0, -2.0]], dtype=torch.float64)  # log(e^2 + 1 + e^-2) = 2.142931628, mean 0
PRIOR = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}


def near(value):
    return pytest.approx(value, abs=1e-8)


# Each baseline by hand: l = (0.142931628, 2.142931628, 4.142931628) at ROW


@pytest.mark.parametrize(("label", "expected"), [(0, -2.0), (1, 0.0), (2, 2.0)])
def test_unhinged_by_hand(label, expected):
    assert float(baselines.unhinged_loss(ROW, torch.tensor([label]))) == near(expected)  # mean logit less own logit


def test_unhinged_is_the_papers_one_minus_v_but_for_a_constant():
    scores = torch.tensor([-1.5, 0.25, 3.0], dtype=torch.float64)  # v = (z_y - z_other) / 2, the label being 1
    logits = torch.stack([-scores, scores], 1)
    ours = baselines.unhinged_loss(logits, torch.ones(3, dtype=torch.long), reduction="none")
    torch.testing.assert_close(1 + ours, 1 - scores, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("weight", "prior", "expected"),
    [
        (1.0, None, -2.0),  # 0.142932 - (0.142932 + 2.142932 + 4.142932) / 3
        (0.5, None, -0.928534186),  # 0.142932 - 0.5 * 2.142932
        (1.0, PRIOR, -1.0),  # 0.142932 - (0.142932 + 2.142932) / 2
        (0.5, PRIOR, -0.428534186),  # 0.142932 - 0.5 * 1.142932
        (0.0, PRIOR, 0.142931628),  # cross entropy
    ],
)
def test_peer_by_hand(weight, prior, expected):
    assert float(baselines.peer_loss(ROW, torch.tensor([0]), weight, prior=prior)) == near(expected)


def test_sampled_peer_by_hand():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64), torch.tensor([0, 1])
    # Example 0 less the input of 1 with the label of 1; example 1 less the input of 0 with the label of 1.
    peers = torch.tensor([[1, 0], [1, 1]])
    losses = baselines.sampled_peer_loss(logits, labels, peers, 0.5, reduction="none")
    own = [math.log1p(math.exp(-2)), math.log1p(math.exp(-1))]  # 0.126928, 0.313262
    assert losses.tolist() == near([own[0] - 0.5 * own[1], own[1] - 0.5 * (2 + own[0])])


def test_complementary_by_hand():
    assert float(baselines.complementary_loss(ROW, torch.tensor([0]))) == near(
        -3.0
    )  # 0.142932 - (2.142932 + 4.142932) / 2
    two = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    assert float(baselines.complementary_loss(two, torch.tensor([1]))) == near(1.5)  # l_1 - l_0 = z_0 - z_1


def test_unbiased_complementary_by_hand():
    # Sum 6.428794883; less 2 * 2.142931628, and less 2 * 4.142931628.
    assert float(baselines.unbiased_complementary_loss(ROW, torch.tensor([1]))) == near(2.142931628)
    assert float(baselines.unbiased_complementary_loss(ROW, torch.tensor([2]))) == near(-1.857068372)


def test_nlnl_by_hand():
    # p = (7.389056, 1, 0.135335) / 8.524391.
    assert float(baselines.nlnl_loss(ROW, torch.tensor([0]))) == near(-math.log(1.1353352832 / 8.5243913822))
    assert float(baselines.nlnl_loss(ROW, torch.tensor([2]))) == near(-math.log(1 - 0.1353352832 / 8.5243913822))


def test_confidence_penalty_by_hand():
    odds = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)  # p = (3/4, 1/4), H = 0.562335145
    assert float(baselines.confidence_penalty_loss(odds, torch.tensor([0]), 1.0)) == near(0.287682072 - 0.562335145)
    assert float(baselines.confidence_penalty_loss(odds, torch.tensor([0]), -0.5)) == near(0.287682072 + 0.281167573)


# Against loops in Python floats


def naive(name, logits, label):
    top = max(logits)
    partition = math.log(math.fsum(math.exp(value - top) for value in logits)) + top
    losses = [partition - value for value in logits]
    size = len(losses)
    others = losses[:label] + losses[label + 1 :]
    prior = [2 * (k + 1) / (size * (size + 1)) for k in range(size)]
    return {
        "unhinged": lambda: sum(logits) / size - logits[label],
        "peer": lambda: losses[label] - 0.7 * sum(losses) / size,
        "peer, prior": lambda: losses[label] - 0.7 * math.fsum(w * v for w, v in zip(prior, losses, strict=True)),
        "complementary": lambda: losses[label] - math.fsum(others) / (size - 1),
        "unbiased": lambda: math.fsum(losses) - (size - 1) * losses[label],
        "nlnl": lambda: -math.log(math.fsum(math.exp(-value) for value in others)),
        "penalty": lambda: losses[label] - 0.3 * math.fsum(value * math.exp(-value) for value in losses),
    }[name]()


LOSSES = {
    "unhinged": baselines.unhinged_loss,
    "peer": lambda z, y, **kw: baselines.peer_loss(z, y, 0.7, **kw),
    "peer, prior": lambda z, y, **kw: baselines.peer_loss(z, y, 0.7, prior=rising(z.shape[1]), **kw),
    "complementary": baselines.complementary_loss,
    "unbiased": baselines.unbiased_complementary_loss,
    "nlnl": baselines.nlnl_loss,
    "penalty": lambda z, y, **kw: baselines.confidence_penalty_loss(z, y, 0.3, **kw),
}


def rising(num_classes):
    weights = torch.arange(1, num_classes + 1, dtype=torch.float64)
    return weights / weights.sum()


def draw(num_classes, num_examples=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_examples, num_classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(num_classes, (num_examples,), generator=generator)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("name", LOSSES)
def test_values(name, num_classes, dtype):
    logits, labels = draw(num_classes)
    for offset in (0, 100):
        rounded = (logits + offset).to(dtype)
        found = LOSSES[name](rounded, labels, reduction="none")
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        rows = [naive(name, row, label) for row, label in zip(rounded.tolist(), labels.tolist(), strict=True)]
        # The estimator multiplies the rounding by K.
        tolerance = TOLERANCE[dtype] * (num_classes if name == "unbiased" else 1) * (1 + offset / 10)
        torch.testing.assert_close(found.double(), torch.tensor(rows, dtype=torch.float64), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_reductions_dense_shapes_and_gradients(name):
    loss = LOSSES[name]
    logits, labels = draw(4, 6)
    losses = loss(logits, labels, reduction="none")
    assert float(loss(logits, labels)) == near(float(losses.mean()))
    assert float(loss(logits, labels, reduction="sum")) == near(float(losses.sum()))
    dense = loss(logits.view(2, 3, 4).mT, labels.view(2, 3), reduction="none")  # [2, 4, 3]: the members of a stack
    torch.testing.assert_close(dense.flatten(), losses)
    given = logits[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels[:2], reduction="none"), given)
    assert torch.autograd.gradgradcheck(lambda z: loss(z, labels[:2], reduction="none"), given)
    functional = torch.func.grad(lambda z: loss(z, labels))(logits)
    (expected,) = torch.autograd.grad(loss(logits.requires_grad_(), labels), logits)
    torch.testing.assert_close(functional, expected)
    assert float(functional.sum(1).abs().max()) < 1e-15 * 100  # a common shift of the logits changes nothing


def test_drawn_peers_have_the_right_gradient():
    logits, labels = draw(3, 4)
    peers = torch.tensor([[1, 1, 3, 0], [0, 2, 2, 3]])
    losses = baselines.sampled_peer_loss(logits, labels, peers, reduction="none")
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    crossed = torch.nn.functional.cross_entropy(logits[peers[0]], labels[peers[1]], reduction="none")
    torch.testing.assert_close(losses, plain - crossed)
    given = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: baselines.sampled_peer_loss(z, labels, peers), given)


def test_a_parameter_may_be_one_number_for_each_example():
    logits, labels = draw(3, 4)
    weights = torch.tensor([0.0, 0.5, 1.0, 2.0])
    peers = torch.tensor([[1, 2, 3, 0], [2, 0, 1, 3]])
    for loss in (
        lambda z, y, w, **kw: baselines.sampled_peer_loss(z, y, peers, w, **kw),
        baselines.peer_loss,
        baselines.confidence_penalty_loss,
    ):
        together = loss(logits, labels, weights, reduction="none")
        alone = [loss(logits, labels, float(w), reduction="none")[i] for i, w in enumerate(weights)]
        torch.testing.assert_close(together, torch.stack(alone))
    # One value for each member of a stack, logits [B, n, K].
    stacked, members = logits.view(2, 2, 3).mT, torch.tensor([0.3, 1.0])
    found = baselines.peer_loss(stacked, labels.view(2, 2), members, reduction="none")
    for b, weight in enumerate(members):
        torch.testing.assert_close(
            found[b],
            baselines.peer_loss(logits.view(2, 2, 3)[b], labels.view(2, 2)[b], float(weight), reduction="none"),
        )


@pytest.mark.parametrize("method", ["manual", "vmap"])
def test_a_stack_trains_on_a_baseline(method):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    labels = (features[:, 0] > 0).long().expand(2, -1)
    weights = torch.tensor([0.0, 0.5])

    def peer(logits, labels, members):
        return baselines.peer_loss(logits.mT, labels, weights[members], reduction="none")

    settings = {"num_classes": 2, "hidden": (), "epochs": 3, "learning_rate": 0.1, "method": method}
    fit = fit_stack(features, labels, loss=peer, **settings)
    # a = 0 is cross entropy, a = 1/2 half of the smoothing loss at rate -1.
    plain = fit_stack(features, labels, torch.tensor([0.0, -1.0]), loss_scale=torch.tensor([1.0, 0.5]), **settings)
    for ours, theirs in zip(fit.stack.weights, plain.stack.weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extreme_logits_stay_finite_and_precise(dtype):
    logits = torch.tensor([[1e4, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    for label, expected in ((0, 1e4 - math.log(2)), (1, 0.0)):
        loss = baselines.nlnl_loss(logits, torch.tensor([label]))
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all()
    assert float(baselines.confidence_penalty_loss(logits.detach(), torch.tensor([0]), 1.0)) == 0
    near_one = torch.tensor([[40.0, 0.0, 0.0]], dtype=torch.float64)  # 1 - p would have lost most of its digits
    assert float(baselines.nlnl_loss(near_one, torch.tensor([0]))) == pytest.approx(40 - math.log(2), rel=1e-14)


def test_one_hot_extremes_of_the_family():
    logits, labels = draw(5, 8)
    cross_entropy = gls_loss(logits, labels, 0.0, reduction="none")
    torch.testing.assert_close(baselines.peer_loss(logits, labels, 0.0, reduction="none"), cross_entropy)
    torch.testing.assert_close(baselines.confidence_penalty_loss(logits, labels, 0.0, reduction="none"), cross_entropy)


# What is refused


@pytest.mark.parametrize("name", LOSSES)
def test_bad_arguments(name):
    loss = LOSSES[name]
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(TypeError, match="logits must be a floating-point tensor, got int64"):
        loss(labels[:, None].expand(2, 3), labels)
    with pytest.raises(ValueError, match=r"logits must have shape \[N, K\].*got \(2, 1\)"):
        loss(torch.zeros(2, 1), labels)
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\).*got \(3,\)"):
        loss(logits, torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match="labels must hold integer class indices, got float32"):
        loss(logits, torch.zeros(2, 3))
    for label in (3, -1, -100):  # there is no ignore_index
        with pytest.raises(ValueError, match=rf"labels must lie in \[0, 2\], got the value {label}"):
            loss(logits, torch.tensor([0, label]))
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', 'none', got 'max'"):
        loss(logits, labels, reduction="max")


def test_bad_parameters():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"peer_weight must be a finite number in \[0, inf\), got -0.5"):
        baselines.peer_loss(logits, labels, -0.5)
    with pytest.raises(TypeError, match="peer_weight must be a real number, got 'c'"):
        baselines.peer_loss(logits, labels, "c")
    with pytest.raises(ValueError, match=r"peer_weight must be finite and at least 0, got -1"):
        baselines.peer_loss(logits, labels, torch.tensor([1.0, -1.0]))
    with pytest.raises(
        ValueError, match=r"peer_weight must be a number or have one of the shapes \(\), \(2,\), got \(3,\)"
    ):
        baselines.peer_loss(logits, labels, torch.ones(3))
    with pytest.raises(TypeError, match="peer_weight must hold real numbers, got bool"):
        baselines.peer_loss(logits, labels, torch.tensor([True, False]))
    with pytest.raises(ValueError, match="penalty must be finite, got"):
        baselines.confidence_penalty_loss(logits, labels, torch.tensor([1.0, math.inf]))
    with pytest.raises(ValueError, match="penalty must be a finite number"):
        baselines.confidence_penalty_loss(logits, labels, math.nan)
    with pytest.raises(TypeError, match="prior must be a torch tensor, got list"):
        baselines.peer_loss(logits, labels, prior=[0.5, 0.5, 0.0])
    with pytest.raises(ValueError, match=r"prior must have shape \(3,\), one per class, got \(2,\)"):
        baselines.peer_loss(logits, labels, prior=torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="prior must sum to 1"):
        baselines.peer_loss(logits, labels, prior=torch.tensor([0.5, 0.5, 0.5]))


def test_bad_peers():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"peers must have shape \(2, 2\) for 2 labels, got \(2, 3\)"):
        baselines.sampled_peer_loss(logits, labels, torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"peers must lie in \[0, 1\], got the value 2"):
        baselines.sampled_peer_loss(logits, labels, torch.tensor([[0, 1], [2, 0]]))
    with pytest.raises(TypeError, match="peers must hold integer"):
        baselines.sampled_peer_loss(logits, labels, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"logits must have shape \[N, K\] for drawn peers, got \(2, 3, 4\)"):
        baselines.sampled_peer_loss(torch.zeros(2, 3, 4), torch.zeros(2, 4).long(), torch.zeros(2, 2).long())
