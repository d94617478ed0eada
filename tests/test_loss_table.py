"""What the table says of each loss is measured: bounds, symmetry, and its place among the smooth rates."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import nls
from nls import baselines, robust
from nls.each import fit_each
from nls.grid import LOSSES as CELL_LOSSES
from nls.loss_table import LOSSES, Rival, loss_table, rows
from nls.losses import gls_parts
from nls.remedies import floored_loss

K = 4
SYMMETRIC = nls.symmetric_transition(K, 0.3)  # c = 0.4
ROWS = [*rows(), *(LOSSES[name] for name in LOSSES if name == "gls")]
EVERY = pytest.mark.parametrize("rival", ROWS, ids=lambda rival: f"{rival.label}, {rival.default}")


def expected_losses(rival, logits, transition=SYMMETRIC):
    """Return the loss of every label at every input, [n, K]; for drawn losses the mean over the draws, by formula."""
    n, k = logits.shape
    labels = torch.arange(k).expand(n, k)
    wide = logits[:, None].expand(n, k, k).mT  # [n, class, label]
    if rival.name == "peer":  # the peer has this input and each label as likely
        return baselines.peer_loss(wide, labels, rival.default, reduction="none")
    if rival.name == "nlnl":
        each = baselines.nlnl_loss(wide, labels, reduction="none")
        return (each.sum(1, keepdim=True) - each) / (k - 1)
    loss = rival.make(n * k, k, rival.default, transition)
    losses = loss(logits.repeat_interleave(k, 0), labels.flatten(), torch.arange(n * k))
    return losses.view(n, k)


def some_logits(n=40, seed=0, k=K):
    return 2 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lowest_mean(rival, scale):
    """Return the least mean loss of batches of large logits: those of a network that memorises, and random ones."""
    labels = torch.arange(K).repeat(3)
    generator = torch.Generator().manual_seed(1)
    directions = [functional.one_hot(labels, K).double(), -functional.one_hot(labels, K).double()]
    directions += [functional.one_hot(labels.roll(1), K).double()]
    directions += [torch.randn(len(labels), K, generator=generator, dtype=torch.float64) for _ in range(20)]
    means = []
    for direction in directions:
        loss = rival.make(len(labels), K, rival.default, SYMMETRIC, seed=2)
        for _ in range(60):  # a memory comes to agree, and draws are averaged
            losses = loss(scale * direction, labels, torch.arange(len(labels)))
        means.append(float(losses.mean()))
    return min(means)


@EVERY
def test_bounded_below_is_measured(rival):
    near, far = lowest_mean(rival, 1e2), lowest_mean(rival, 1e4)
    if rival.bounded:
        assert far > near - 1e-6
        assert far > -30  # early-learning regularisation: 3 log(2e-4) by its margin
    else:
        assert far < 50 * near < 0  # it falls in proportion to the logits


@EVERY
def test_symmetric_is_measured(rival):
    total = expected_losses(rival, some_logits()).sum(1)
    assert (float(total.std()) < 1e-12 * K) == rival.symmetric, float(total.std())


@pytest.mark.parametrize("rival", [r for r in ROWS if r.name != "floored"], ids=lambda r: f"{r.label}, {r.default}")
def test_place_in_the_family_is_measured(rival):
    """A member is a combination of 1, A and m, with A not negative: its rate is 1 less the ratio of the two weights."""
    logits = some_logits()
    losses = expected_losses(rival, logits).flatten()
    free, linear = gls_parts(logits.repeat_interleave(K, 0), torch.arange(K).repeat(len(logits)))
    design = torch.stack([torch.ones_like(free), free, linear], 1)
    weights = torch.linalg.lstsq(design, losses).solution
    error = float((design @ weights - losses).abs().max())
    assert (error < 1e-10) == rival.in_family, error
    if rival.in_family:
        _, alpha, minus_beta = weights.tolist()
        rate = 1 + minus_beta / alpha if alpha > 1e-10 else -math.inf
        expected = {"gls": rival.default, "backward": -0.4 / 0.6}.get(rival.name, -math.inf)
        assert rate == pytest.approx(expected, abs=1e-9)
        assert ("infty" in rival.rate) == math.isinf(rate)


def test_a_floor_takes_cross_entropy_out_of_the_family_below_it():
    logits, labels, places = some_logits(), torch.arange(K).repeat(10), torch.arange(40)
    loss = LOSSES["floored"].make(40, K, 1.0, SYMMETRIC)
    slopes = []
    for scale in (0.1, 30):
        given = (scale * (logits / 10 + functional.one_hot(labels, K))).requires_grad_()
        plain = functional.cross_entropy(given, labels, reduction="none")
        (found,) = torch.autograd.grad(loss(given, labels, places).sum(), given)
        (expected,) = torch.autograd.grad(plain.sum(), given)
        slopes.append(float((found * expected).sum() / (expected * expected).sum()))
    assert slopes == pytest.approx([1, -1])
    assert not LOSSES["floored"].in_family


def test_other_noise_takes_backward_correction_out_of_the_family():
    logits = some_logits()
    losses = expected_losses(LOSSES["backward"], logits, nls.pair_transition(K, 0.3)).flatten()
    free, linear = gls_parts(logits.repeat_interleave(K, 0), torch.arange(K).repeat(len(logits)))
    design = torch.stack([torch.ones_like(free), free, linear], 1)
    assert float((design @ torch.linalg.lstsq(design, losses).solution - losses).abs().max()) > 0.1


# What a builder builds


def test_each_name_builds_the_loss_it_says():
    logits, labels = some_logits(6), torch.tensor([0, 1, 2, 3, 0, 1])
    places = torch.arange(6)
    entropy = -(0.7 * math.log(0.7) + 0.3 * math.log(0.1))  # of a row (.7, .1, .1, .1)
    oracles = {
        "gls": (-0.4, lambda: nls.gls_loss(logits, labels, -0.4, reduction="none")),
        "backward": (None, lambda: nls.backward_corrected_loss(logits, labels, SYMMETRIC, reduction="none")),
        "forward": (None, lambda: nls.forward_corrected_loss(logits, labels, SYMMETRIC, reduction="none")),
        "complementary": (None, lambda: baselines.complementary_loss(logits, labels, reduction="none")),
        "unhinged": (None, lambda: baselines.unhinged_loss(logits, labels, reduction="none")),
        "gce": (0.5, lambda: robust.gce_loss(logits, labels, 0.5, reduction="none")),
        "sce": (2.0, lambda: robust.sce_loss(logits, labels, 2.0, 1.0, reduction="none")),
        "bootstrap_soft": (0.5, lambda: robust.bootstrap_loss(logits, labels, 0.5, reduction="none")),
        "bootstrap_hard": (0.5, lambda: robust.bootstrap_loss(logits, labels, 0.5, hard=True, reduction="none")),
        "elr": (2.0, lambda: robust.ELRLoss(6, K, 2.0, 0.7)(logits, labels, places)),
        "confidence_penalty": (0.5, lambda: baselines.confidence_penalty_loss(logits, labels, 0.5, reduction="none")),
        "normalized_ce": (None, lambda: robust.normalized_cross_entropy_loss(logits, labels, reduction="none")),
        "active_passive": (3.0, lambda: robust.active_passive_loss(logits, labels, 3.0, 1.0, reduction="none")),
        "floored": (
            4.0, lambda: floored_loss(functional.cross_entropy(logits, labels, reduction="none"), 4 * entropy)),
    }  # fmt: skip
    assert oracles.keys() == LOSSES.keys() - {"peer", "nlnl"}
    for name, (parameter, oracle) in oracles.items():
        found = LOSSES[name].make(6, K, parameter, SYMMETRIC)(logits, labels, places)
        torch.testing.assert_close(found, oracle(), msg=name)


@pytest.mark.parametrize(("name", "parameter"), [("peer", 0.5), ("nlnl", None)])
def test_drawn_losses_have_the_mean_that_they_should(name, parameter):
    logits, labels = some_logits(5), torch.tensor([0, 0, 1, 2, 3])
    loss, places = LOSSES[name].make(5, K, parameter, seed=3), torch.arange(5)
    draws = torch.stack([loss(logits, labels, places).mean() for _ in range(4000)])
    if name == "peer":
        prior = torch.tensor([2, 1, 1, 1]) / 5
        expected = baselines.peer_loss(logits, labels, 0.5, prior=prior)
    else:
        each = [
            baselines.nlnl_loss(logits, (labels + step) % K, reduction="none") for step in range(1, K)
        ]  # every other class once
        expected = torch.stack(each).mean()
    assert float(draws.std()) > 0.05
    assert abs(float(draws.mean() - expected)) < 4 * float(draws.std()) / 4000**0.5


def test_drawn_losses_follow_their_seed_and_not_the_global_state():
    logits, labels, places = some_logits(5), torch.tensor([0, 0, 1, 2, 3]), torch.arange(5)
    for name in ("peer", "nlnl"):
        first, same, other = (LOSSES[name].make(5, K, seed=s) for s in (3, 3, 4))
        torch.manual_seed(0)
        found = first(logits, labels, places)
        torch.manual_seed(1)
        assert torch.equal(found, same(logits, labels, places))
        assert not torch.equal(found, other(logits, labels, places))
        saved = copy.deepcopy(first.state_dict())
        again = first(logits, labels, places)
        assert not torch.equal(found, again)  # a new draw for each step
        other.load_state_dict(saved)
        assert torch.equal(other(logits, labels, places), again)


def test_complementary_labels_are_uniform_over_the_other_classes():
    labels = torch.tensor([0, 2]).repeat(30000)
    drawn = baselines.draw_complementary_labels(labels, K, torch.Generator().manual_seed(0))
    assert drawn.shape == labels.shape
    assert drawn.dtype == torch.int64
    for label in (0, 2):
        shares = torch.bincount(drawn[labels == label], minlength=K) / 30000
        assert float(shares[label]) == 0
        others = [k for k in range(K) if k != label]
        assert float((shares[others] - 1 / 3).abs().max()) < 4 * math.sqrt(2 / 9 / 30000)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        baselines.draw_complementary_labels(labels, 1)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 1\], got the value 2"):
        baselines.draw_complementary_labels(labels, 2)


def test_two_classes_and_no_noise_bring_rivals_back_to_cross_entropy():
    logits, labels, places = some_logits(6, k=2), torch.tensor([0, 1, 1, 0, 0, 1]), torch.arange(6)
    cross_entropy = functional.cross_entropy(logits, labels, reduction="none")
    clean = torch.eye(2, dtype=torch.float64)
    for name, parameter in (
        ("nlnl", None), ("forward", None), ("backward", None), ("confidence_penalty", 0.0), ("elr", 0.0),
        ("peer", 0.0), ("bootstrap_soft", 1.0), ("bootstrap_hard", 1.0), ("floored", 1.0),
    ):  # fmt: skip
        found = LOSSES[name].make(6, 2, parameter, clean)(logits, labels, places)
        torch.testing.assert_close(found, cross_entropy, msg=name)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_and_goes_on_after_an_interruption(name, tmp_path):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 3, generator=generator)
    labels = (features[:, :K].argmax(1)).long()

    def fit(epochs_before_stop, folder):
        count = [0]

        def evaluate(network):
            count[0] += 1
            if count[0] == epochs_before_stop:
                raise InterruptedError
            return {"accuracy": (network(features).argmax(1) == labels).float().mean()}

        return fit_each(
            features, labels, loss=LOSSES[name].make(60, K, None, SYMMETRIC, seed=1), num_classes=K, epochs=6,
            network=lambda: torch.nn.Linear(3, K), batch_size=20, learning_rate=0.5, evaluate=evaluate,
            checkpoint=tmp_path / folder,
        )  # fmt: skip

    whole = fit(None, "whole")
    with pytest.raises(InterruptedError):
        fit(3, "part")
    again = fit(None, "part")
    assert torch.equal(whole.network.weight, again.network.weight)
    assert float(whole.curves["accuracy"][-1]) > 0.6  # a third by chance


# The table


def test_the_table_has_a_row_for_each_loss_and_says_what_the_records_say():
    table = loss_table().set_index("loss")
    assert table.index.is_unique
    assert len(table) == len(LOSSES) + 2  # generalised label smoothing has three rows
    assert set(CELL_LOSSES) <= set(LOSSES)
    bib = (Path(__file__).parents[1] / "book" / "references.bib").read_text(encoding="utf-8")
    keys = set(re.findall(r"@\w+\{(\w+),", bib))
    for rival in rows():
        row = table.loc[rival.label]
        assert row["bounded below"] == ("yes" if rival.bounded else "no")
        assert row["symmetric"] == ("yes" if rival.symmetric else "no")
        assert row["must be told"] == ("$T$" if rival.needs_transition else rival.told)
        assert not rival.reference or rival.reference in keys
        assert row["formula"] == f"${rival.formula}$"
    assert table["parameter"]["GCE"] == "$q = 0.7$"
    told = table["must be told"]
    assert told[told != ""].to_dict() == {
        "negative smoothing": "the noise rate",
        "backward": "$T$",
        "forward": "$T$",
        "CE with a floor": "$T$",
    }


def test_the_table_is_shown_as_markdown_with_whole_rows():
    table = loss_table()
    assert table._repr_html_ is None
    lines = table._repr_markdown_().splitlines()
    assert len(lines) == len(table) + 2
    for line in lines:
        bare = re.sub(r"\\\|", "", line)
        assert bare.count("|") == len(table.columns) + 1, line  # a bar inside a formula would cut the cell
    assert r"\vert" in next(line for line in lines if "floor" in line)
    assert type(table[table["symmetric"] == "yes"]).__name__ == "DataFrame"


# What is refused


def test_bad_arguments():
    with pytest.raises(ValueError, match="transition must be given for the loss 'forward', got None"):
        LOSSES["forward"].make(5, 3)
    with pytest.raises(ValueError, match=r"transition must have shape \(3, 3\) for 3 classes, got \(4, 4\)"):
        LOSSES["backward"].make(5, 3, transition=SYMMETRIC)
    with pytest.raises(ValueError, match="transition must have rows that sum to 1"):
        LOSSES["floored"].make(5, 4, transition=2 * SYMMETRIC)
    with pytest.raises(ValueError, match=r"parameter must be None for the loss 'unhinged', which has none, got 1\.0"):
        LOSSES["unhinged"].make(5, 3, 1.0)
    with pytest.raises(ValueError, match=r"parameter must be a finite number in \[1e-12, 1\], got 2.0"):
        LOSSES["gce"].make(5, 3, 2.0)
    with pytest.raises(ValueError, match=r"parameter must be a finite number in \(-inf, 1\], got 1.5"):
        LOSSES["gls"].make(5, 3, 1.5)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        LOSSES["gls"].make(5, 1)
    with pytest.raises(ValueError, match="num_examples must be at least 1, got 0"):
        LOSSES["gls"].make(0, 3)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        LOSSES["nlnl"].make(5, 3, seed=-1)
    assert all(isinstance(rival, Rival) for rival in LOSSES.values())
