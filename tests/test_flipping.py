"""Flipped labels against oracles: enumeration, loops, brute force, and what the book trains elsewhere."""

import itertools
import math

import numpy as np
import pytest
import torch

import nls
from nls import flipping
from nls.flipping import Arm, DisturbedLoss, attack_labels, flip_labels, flip_spread, run_arms, train_digits
from nls.models import predict_logits
from nls.runs import run_all


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def example():
    """Logits and labels of a small batch."""
    logits = torch.randn(6, 4, generator=generator(1), dtype=torch.float64)
    return logits, torch.tensor([0, 1, 2, 3, 3, 0])


# Flips


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_flipped_labels_have_the_smooth_target_as_their_mean(num_classes, rate):
    labels, count = torch.arange(num_classes), 40_000
    flipped = flip_labels(labels[:, None].expand(-1, count), num_classes, rate, generator())
    shares = torch.stack([row.bincount(minlength=num_classes) for row in flipped]).double() / count
    target = nls.gls_targets(labels, num_classes, rate).double()
    error = (target * (1 - target) / count).sqrt()
    assert ((shares - target).abs() <= 4.5 * error + 1e-7).all()


def test_a_flip_is_symmetric_noise_at_a_lower_rate():
    """The true class is among the draws, so a label changes with probability alpha (K-1) / K."""
    matrix = nls.symmetric_transition(5, 0.4 * 4 / 5)
    target = nls.gls_targets(torch.arange(5), 5, 0.4).double()
    assert torch.allclose(matrix, target, atol=1e-7)


def test_each_member_has_a_rate_of_its_own():
    labels = torch.zeros(2, 5000, dtype=torch.long)
    flipped = flip_labels(labels, 4, torch.tensor([[0.0], [0.8]]), generator())
    assert not flipped[0].any()
    assert abs(float((flipped[1] != 0).double().mean()) - 0.6) < 4.5 * math.sqrt(0.24 / 5000)


@pytest.mark.parametrize(("num_classes", "rate", "draws"), [(2, 0.3, 1), (3, 0.2, 2), (4, 1.0, 3), (3, 0.0, 2)])
def test_the_spread_is_that_of_an_enumeration(num_classes, rate, draws):
    target = nls.gls_targets(torch.tensor([0]), num_classes, rate).double()[0].numpy()
    total = 0.0
    for outcome in itertools.product(range(num_classes), repeat=draws):
        mean = np.eye(num_classes)[list(outcome)].mean(0)
        total += np.prod(target[list(outcome)]) * ((mean - target) ** 2).sum()
    assert flip_spread(rate, num_classes, draws) == pytest.approx(total, abs=1e-7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"flip_rate": 1.2}, ValueError, r"flip_rate must be a finite number in \[0, 1\], got 1.2"),
        ({"flip_rate": torch.tensor([0.1, -0.5])}, ValueError, "flip_rate must be a finite number"),
        ({"flip_rate": "often"}, TypeError, "flip_rate must be a real number, got 'often'"),
        ({"num_classes": 1}, ValueError, "num_classes must be at least 2, got 1"),
        ({"labels": torch.tensor([0, 7])}, ValueError, "labels"),
        ({"labels": torch.tensor([0.5])}, TypeError, "labels"),
        ({"flip_rate": torch.full((3,), 0.1)}, ValueError, r"flip_rate must broadcast over labels of shape \(2,\)"),
    ],
)
def test_flips_refuse(change, error, message):
    given = {"labels": torch.tensor([0, 1]), "num_classes": 3, "flip_rate": 0.1} | change
    with pytest.raises(error, match=message):
        flip_labels(**given, generator=generator())


def test_flips_and_attacks_need_a_generator():
    labels = torch.tensor([0, 1])
    with pytest.raises(TypeError, match="generator must be"):
        flip_labels(labels, 3, 0.1, None)
    with pytest.raises(TypeError, match="generator must be"):
        attack_labels(labels, 3, "pair", 0.5, 0)


def test_a_spread_needs_a_draw():
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        flip_spread(0.1, 3, 0)


# The loss


def test_the_loss_is_the_mean_over_its_own_draws(example):
    logits, labels = example
    loss = DisturbedLoss(0.6, num_draws=3, smooth_rate=-0.5, seed=4)
    state = loss.generator.clone_state()
    repeated = labels[:, None].expand(-1, 3)
    flipped = flip_labels(repeated, 4, 0.6, state)
    naive = [
        np.mean([float(nls.gls_loss(z[None], k[None], -0.5)) for k in row])
        for z, row in zip(logits, flipped, strict=True)
    ]
    assert loss(logits, labels).tolist() == pytest.approx(naive, abs=1e-12)
    assert (flipped != repeated).any()


def test_the_loss_without_flips_is_label_smoothing(example):
    logits, labels = example
    for rate in (-0.7, 0.0, 0.3, 1.0):
        ours = DisturbedLoss(0.0, smooth_rate=torch.tensor(rate, dtype=torch.float64))(logits, labels)
        assert ours.tolist() == pytest.approx(nls.gls_loss(logits, labels, rate, reduction="none").tolist(), abs=1e-6)


def test_the_loss_is_label_smoothing_on_average(example):
    logits, labels = example
    loss = DisturbedLoss(0.3, seed=2)
    draws = torch.stack([loss(logits, labels) for _ in range(4000)])
    smooth = nls.gls_loss(logits, labels, 0.3, reduction="none")
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - smooth).abs() < 4.5 * error).all()
    # The variance is that of a drawn loss, and m draws have an m-th of it.
    target, losses = nls.gls_targets(labels, 4, 0.3).double(), -logits.log_softmax(1)
    variance = (target * losses**2).sum(1) - (target * losses).sum(1) ** 2
    assert (draws.var(0) / variance - 1).abs().max() < 0.15
    four = DisturbedLoss(0.3, num_draws=4)
    draws = torch.stack([four(logits, labels) for _ in range(4000)])
    assert (4 * draws.var(0) / variance - 1).abs().max() < 0.15


def test_the_members_of_a_stack_have_their_rates(example):
    logits, labels = example
    loss = DisturbedLoss(torch.tensor([0.0, 1.0, 0.0]), smooth_rate=torch.tensor([0.0, 0.0, 0.4]))
    stacked, given = logits.expand(3, -1, -1), labels.expand(3, -1)
    losses = loss(stacked, given, slice(0, 3))
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(losses[0], plain)
    assert not torch.allclose(losses[1], plain)
    assert torch.allclose(losses[2], nls.gls_loss(logits, labels, 0.4, reduction="none"), atol=1e-6)
    assert torch.allclose(loss(stacked[2:], given[2:], slice(2, 3))[0], losses[2])


def test_an_interrupted_loss_goes_on_with_its_draws(example):
    logits, labels = example
    loss, other = DisturbedLoss(0.5, seed=1), DisturbedLoss(0.5, seed=2)
    loss(logits, labels)
    other.load_state_dict(loss.state_dict())
    following = torch.stack([loss(logits, labels) for _ in range(5)])
    assert torch.equal(following, torch.stack([other(logits, labels) for _ in range(5)]))
    assert len(following.unique(dim=0)) > 1, "the flips are fresh at each call"


def test_the_loss_refuses():
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        DisturbedLoss(0.1, num_draws=0)
    with pytest.raises(ValueError, match=r"smooth_rate must be a finite number in .*, 1\], got 1.5"):
        DisturbedLoss(0.1, smooth_rate=1.5)
    with pytest.raises(ValueError, match="flip_rate must be a finite number"):
        DisturbedLoss(torch.tensor([0.1, 1.1]))


# The adversary


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1.0])
@pytest.mark.parametrize("attack", flipping.ATTACKS)
def test_an_attack_changes_exactly_its_share(attack, share):
    labels = torch.arange(200) % 5
    logits = torch.randn(200, 5, generator=generator(3))
    changed = attack_labels(labels, 5, attack, share, generator(), logits if attack == "surest" else None)
    assert int((changed != labels).sum()) == int(200 * share + 0.5)
    assert 0 <= int(changed.min()) <= int(changed.max()) < 5


def test_a_share_that_is_no_number_of_labels_is_rounded():
    labels = torch.zeros(7, dtype=torch.long)
    changed = [int((attack_labels(labels, 3, "pair", share, generator()) != 0).sum()) for share in (0.2, 0.5, 0.6)]
    assert changed == [1, 4, 4]


def test_random_attacks_reach_all_wrong_classes_alike_and_pairs_the_next():
    labels = torch.zeros(9000, dtype=torch.long)
    counts = attack_labels(labels, 4, "random", 1.0, generator()).bincount(minlength=4)
    assert counts[0] == 0
    assert (counts[1:] - 3000).abs().max() < 4.5 * math.sqrt(9000 * 2 / 9)
    assert (attack_labels(labels + 3, 4, "pair", 1.0, generator()) == 0).all()


def test_larger_attacks_keep_the_flips_of_smaller_ones():
    labels, logits = torch.arange(100) % 3, torch.randn(100, 3, generator=generator(2))
    for attack in flipping.ATTACKS:
        small, large = (attack_labels(labels, 3, attack, share, generator(), logits) for share in (0.2, 0.5))
        kept = small != labels
        assert torch.equal(small[kept], large[kept])


def test_no_other_flips_raise_the_loss_as_much_as_the_surest():
    labels, logits = torch.tensor([0, 1, 2, 0, 1]), torch.randn(5, 3, generator=generator(8), dtype=torch.float64)

    def loss(changed):
        return float(nls.gls_loss(logits, torch.as_tensor(changed), 0.0))

    others = [
        c for c in itertools.product(range(3), repeat=5) if sum(a != b for a, b in zip(c, labels, strict=True)) == 2
    ]
    attacked = attack_labels(labels, 3, "surest", 0.4, generator(), logits)
    assert loss(attacked) == pytest.approx(max(map(loss, others)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attack": "clever"}, "attack must be one of 'random', 'pair', 'surest', got 'clever'"),
        ({"share": 1.5}, r"share must be a finite number in \[0, 1\], got 1.5"),
        ({"attack": "surest"}, r"logits must have shape \(2, 3\) for 'surest', got NoneType"),
        ({"attack": "surest", "logits": torch.zeros(2, 2)}, r"logits must have shape \(2, 3\) .*, got \(2, 2\)"),
    ],
)
def test_attacks_refuse(change, message):
    given = {"labels": torch.tensor([0, 1]), "num_classes": 3, "attack": "pair", "share": 0.5} | change
    with pytest.raises(ValueError, match=message):
        attack_labels(**given, generator=generator())


# Arms


def test_arms_refuse():
    with pytest.raises(ValueError, match="kind must be one of"):
        Arm("x", "often")
    with pytest.raises(ValueError, match="rate must be a finite number"):
        Arm("x", "fresh", -0.1)
    with pytest.raises(ValueError, match="rate must be a finite number"):
        Arm("x", "plain", 0.1)
    assert Arm("x", "smooth", -2.0).rate_if("smooth") == -2.0
    assert Arm("x", "smooth", -2.0).rate_if("fresh") == 0.0
    with pytest.raises(ValueError, match="arms must hold at least one arm, each with a label of its own"):
        run_arms("wine", [Arm("x"), Arm("x", "fresh", 0.1)])
    with pytest.raises(ValueError, match="attacks must hold at least one"):
        run_arms("wine", [Arm("x")], [])


SHORT = {"seed": 3, "epochs": 8, "hidden": (8,), "batch_size": 16, "learning_rate": 1e-2}


def test_arms_are_what_the_book_trains_elsewhere():
    """Plain and smooth arms are those of fit_stack; fixed flips are fit_stack on labels flipped before."""
    arms = [Arm("CE"), Arm("LS", "smooth", 0.3), Arm("fixed", "fixed", 0.5), Arm("none", "fresh", 0.0)]
    table = run_arms("wine", arms, **SHORT)
    data = nls.load_dataset("wine", seed=3)
    flips = nls.seeded_generator(3, "fixed flips")
    fixed = flip_labels(data.train_labels, 3, 0.5, flips)
    labels = torch.stack([data.train_labels, data.train_labels, fixed])
    fit = nls.fit_stack(data.train_features, labels, torch.tensor([0.0, 0.3, 0.0]), num_classes=3, **SHORT)
    logits = fit.stack.forward(data.test_features)
    nll = [float(torch.nn.functional.cross_entropy(z, data.test_labels)) for z in logits]
    assert table["nll_last"].tolist()[:3] == pytest.approx(nll, rel=1e-4)
    assert table["nll_last"].iloc[3] == pytest.approx(nll[0], rel=1e-6)
    predicted = fit.stack.forward(data.train_features).argmax(-1)
    own = fixed != data.train_labels
    assert table["fits_flips"].iloc[2] == pytest.approx(float((predicted[2] == fixed)[own].float().mean()))
    assert table["fits_true"].iloc[0] == pytest.approx(float((predicted[0] == data.train_labels).float().mean()))
    assert table["fits_attack"].isna().all()
    assert table["ece_last"].iloc[1] == pytest.approx(
        nls.expected_calibration_error(logits[1].softmax(1), data.test_labels), abs=1e-5
    )


def test_arms_under_attack():
    arms = [Arm("CE"), Arm("LS", "smooth", 0.3), Arm("fresh", "fresh", 0.3)]
    attacks = [("random", 0.0), ("surest", 0.3)]
    table = run_arms("wine", arms, attacks, **SHORT)
    assert table[["attack", "share", "arm"]].values.tolist() == [[*a, arm.label] for a in attacks for arm in arms]
    hit = table[table["share"] > 0]
    assert hit["fits_attack"].between(0, 1).all()
    assert hit["accuracy_last"].mean() < table[table["share"] == 0]["accuracy_last"].mean()
    assert table["apart"].isna().tolist() == [True, False, False] * 2
    assert (table[table["arm"] == "LS"]["apart"] == 0).all()
    assert (table[table["arm"] == "fresh"]["apart"] > 0).all()
    alone = run_arms("wine", arms, attacks[1:], **SHORT)
    assert alone["nll_last"].tolist()[:2] == pytest.approx(hit["nll_last"].tolist()[:2], rel=1e-4)


def test_more_draws_come_closer_to_smoothing():
    arms = [Arm("LS", "smooth", 0.4), Arm("fresh", "fresh", 0.4)]
    apart = [run_arms("wine", arms, num_draws=draws, **SHORT)["apart"].iloc[1] for draws in (1, 50)]
    assert apart[1] < apart[0] / 2


def test_digits_without_flips_are_those_of_fit_each():
    found = train_digits(0.0, "smooth", 0.2, seed=1, epochs=1)
    data = nls.load_dataset("digits_images", seed=1)
    fit = nls.fit_each(
        data.train_features, data.train_labels, 0.2, network=lambda: flipping._digits_network(0.0), num_classes=10,
        epochs=1, batch_size=64, optimizer="adam", learning_rate=2e-3, seed=1,
    )  # fmt: skip
    logits = predict_logits(fit.network, data.test_features)
    assert found["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, data.test_labels)), rel=1e-4)
    wrong = int((logits.argmax(1) != data.test_labels).sum())
    assert found["error"] == pytest.approx(100 * wrong / len(data.test_labels))


def test_dropout_and_flips_change_what_is_learnt():
    losses = [train_digits(*how, seed=0, epochs=1)["nll"] for how in ((0.0, "plain", 0.0), (0.5, "plain", 0.0))]
    losses.append(train_digits(0.0, "fresh", 0.2, seed=0, epochs=1)["nll"])
    assert len({round(loss, 6) for loss in losses}) == 3
    with pytest.raises(ValueError, match="kind must be one of 'plain', 'smooth', 'fresh', got 'fixed'"):
        train_digits(0.0, "fixed", 0.2, seed=0, epochs=1)
    with pytest.raises(ValueError, match="dropout must be a finite number"):
        train_digits(1.0, "plain", 0.0, seed=0, epochs=1)


def test_the_study_is_a_run_that_can_be_stored(monkeypatch, tmp_path):
    monkeypatch.setattr(flipping, "STUDY_ARMS", (Arm("CE"),))
    monkeypatch.setattr(flipping, "STUDY_ATTACKS", (("random", 0.0), ("pair", 0.2)))
    runs = [{"dataset": "wine", "seed": 0}]
    found = run_all(flipping.attack_study, runs, store=tmp_path, workers=1)
    assert found["attack"].tolist() == ["random", "pair"]
    assert found["fits_attack"].isna().tolist() == [True, False]
    assert run_all(flipping.attack_study, runs, store=tmp_path, workers=1).equals(found)
