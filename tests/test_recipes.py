"""Each recipe trains, its rate reaches the gradient, and its loss is the one that the page says.

A recipe is run as it stands; shorter, and at other rates, by a change of its text. NLS_RECIPES=all, which
`make test-recipes` sets, makes a missing library an error.
"""

import contextlib
import functools
import importlib
import io
import os
import re
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

import nls

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "book" / "recipes"
RECIPES = {"plain_torch": "torch", "timm_mixup": "timm", "lightning_module": "lightning", "hf_trainer": "transformers"}
SHORT = (r"^EPOCHS, WARM_UP = .*$", "EPOCHS, WARM_UP = 3, 2")
ACCURACY = {"plain_torch": 0.8, "timm_mixup": 0.9, "lightning_module": 0.8, "hf_trainer": 0.7}  # of at most .78 there


def changed(name, changes):
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    for pattern, new in changes:
        source, count = re.subn(pattern, new, source, flags=re.MULTILINE)
        assert count, pattern
    return source


@functools.cache
def run(name, *changes):
    """Return what a recipe leaves, with its epochs as rows of `train` and `rate` in `history`."""
    library = RECIPES.get(name, "torch")
    if os.environ.get("NLS_RECIPES") == "all":
        importlib.import_module(library)
    else:
        pytest.importorskip(library, reason=f"{library} is of the extra nls[recipes]: make test-recipes")
    said, space = io.StringIO(), {"__name__": name}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.ExitStack() as stack:
        if library in ("lightning", "transformers"):
            warnings.simplefilter("ignore")  # theirs, of their own parts and of what they bring along
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(contextlib.redirect_stdout(said))
        exec(compile(changed(name, changes), f"{name}.py", "exec"), space)
        if library == "lightning":
            logged = pd.read_csv(Path(space["trainer"].logger.log_dir) / "metrics.csv")
            space["history"] = logged.dropna(subset="train")[["train", "rate"]].to_dict("records")
    if library == "transformers":
        logged = space["trainer"].state.log_history
        rates = [row["eval_rate"] for row in logged if "eval_rate" in row]
        losses = [row["loss"] for row in logged if "loss" in row]
        space["history"] = [{"train": one, "rate": rate} for one, rate in zip(losses, rates, strict=True)]
    return space | {"said": said.getvalue()}


def final_rate(name):
    return run(name).get("RATE", run(name).get("rate"))


def short_curve(name, rate=None):
    """Return the training losses of two epochs of warm-up and one at a rate, that of the recipe by default."""
    setting = [] if rate is None else [(r"^(rate|RATE) = .*$", rf"\1 = {rate}")]
    return [row["train"] for row in run(name, SHORT, *setting)["history"]]


def check_falls(curve, plain):
    """Require that two runs are one until the rate comes in, and that it lowers the loss from then on."""
    assert curve[:2] == pytest.approx(plain[:2], rel=1e-4)
    assert curve[2] < plain[2] - 0.1


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_as_it_stands(name):
    space = run(name)
    rates, losses = ([row[key] for row in space["history"]] for key in ("rate", "train"))
    warm_up, classes = space["WARM_UP"], space["logits"].shape[1]
    assert len(rates) > warm_up
    assert rates == pytest.approx([0.0] * warm_up + [final_rate(name)] * (len(rates) - warm_up))
    assert final_rate(name) < -0.2
    assert losses[warm_up - 1] < losses[0]
    assert losses[-1] < losses[warm_up]
    assert space["accuracy"] > ACCURACY[name]
    assert space["log_loss"] < 0.65 * np.log(classes)
    assert f"clean accuracy {space['accuracy']:.3f}" in space["said"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_negative_rate_reaches_the_training(name):
    plain = short_curve(name, 0.0)
    check_falls(short_curve(name), plain)
    with pytest.raises(AssertionError):
        check_falls(short_curve(name, 0.5), plain)


def batch_of(name):
    """Return the loss function of a recipe at its final rate, and logits and labels [N, K], [N] of its own."""
    space = run(name)
    if name == "plain_torch":
        logits, labels = space["model"](space["features"][:50]), space["labels"][:50]
    elif name == "timm_mixup":
        logits, labels = space["model"](space["images"][:50]), space["labels"][:50]
    elif name == "lightning_module":
        logits, labels = space["model"].network(space["features"][:50]), space["labels"][:50]
    else:
        given = {key: torch.stack([row[key] for row in space["rows"](space["noisy"], slice(0, 9))]) for key in FIELDS}
        logits, labels = space["model"](**given).logits, given["labels"]
        return lambda z, y: space["compute_loss"]({"logits": z}, y, (y != -100).sum()), logits, labels
    return space["loss_function"] if name != "lightning_module" else space["model"].loss_function, logits, labels


FIELDS = ("input_ids", "attention_mask", "labels")


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_of_a_recipe_is_cross_entropy_with_the_rows_of_its_rate(name):
    loss_function, logits, labels = batch_of(name)
    logits = logits.detach().requires_grad_()
    kept = labels != -100
    rows = nls.gls_targets(labels[kept], logits.shape[-1], final_rate(name))
    assert rows.min() < -0.04
    loss, expected = loss_function(logits, labels), cross_entropy(logits[kept], rows)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    slope, wanted = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(slope, wanted, rtol=1e-5, atol=1e-6)
    assert abs(loss.item() - cross_entropy(logits[kept], labels[kept]).item()) > 0.1


def test_torch_ignores_the_rate():
    _, logits, labels = batch_of("plain_torch")
    assert cross_entropy(logits, labels, label_smoothing=-0.4).equal(cross_entropy(logits, labels))


def test_what_timm_does_with_the_rate():
    space = run("timm_mixup")
    from timm.data import Mixup
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
    from timm.utils import random_seed

    loss_function, logits, labels = batch_of("timm_mixup")
    rate = space["RATE"]
    smoothed = LabelSmoothingCrossEntropy(rate)(logits, labels)
    assert smoothed.item() == pytest.approx(loss_function(logits, labels).item(), abs=1e-6)

    def mixed(given):
        random_seed(3)
        return Mixup(mixup_alpha=0.8, num_classes=10, **given)(space["images"][:50], labels)[1]

    rows = mixed({"label_smoothing": rate})  # in Mixup or in the loss: the same
    in_mixup, in_loss = SoftTargetCrossEntropy()(logits, rows), loss_function(logits, mixed({"label_smoothing": 0.0}))
    assert in_mixup.item() == pytest.approx(in_loss.item(), abs=1e-6)
    assert rows.min() < 0
    # What mixes the rows mixes the losses.
    largest = mixed({"label_smoothing": 0.0}).max(1).values
    share = largest[largest < 0.999].max()  # it is one where a label meets itself
    pure = torch.stack([loss_function(logits, one) for one in (labels, labels.flip(0))])
    low, high = sorted((share * pure[0] + (1 - share) * pure[1], share * pure[1] + (1 - share) * pure[0]))
    assert min(abs(in_loss - low), abs(in_loss - high)) < 1e-5
    # Mixup smooths by 0.1 unless told otherwise, and rates multiply.
    both = 1 - (1 - rate) * (1 - 0.1)
    twice = loss_function(logits, mixed({}))
    assert twice.item() == pytest.approx(nls.gls_loss(logits, mixed({"label_smoothing": 0.0}), both).item(), abs=1e-5)


def test_what_trainer_does_with_the_rate():
    space = run("hf_trainer")
    from transformers import Trainer, TrainingArguments

    model = space["model"].eval()
    given = {key: torch.stack([row[key] for row in space["rows"](space["noisy"], slice(0, 9))]) for key in FIELDS}
    loss_function, logits, labels = batch_of("hf_trainer")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = TrainingArguments(folder, label_smoothing_factor=space["RATE"], report_to="none", use_cpu=True)
        theirs = Trainer(model, settings).compute_loss(model, dict(given))
        both = Trainer(model, settings, compute_loss_func=lambda *_, **__: torch.tensor(7.0))
        assert both.compute_loss(model, dict(given)).item() == 7  # the factor is not asked where both are given
    assert theirs.item() == pytest.approx(loss_function(logits, labels).item(), abs=1e-5)


def test_shapes_are_those_of_torch():
    ours, below = run("shapes", (r"-0\.4", "0.4"))["losses"], run("shapes")["losses"]
    torchs = run("shapes", (r"nls\.GLSLoss\(-0\.4", "torch.nn.CrossEntropyLoss(label_smoothing=0.4"))["losses"]
    plain = run("shapes", (r"-0\.4", "0.0"))["losses"]
    assert list(ours) == list(below) == list(torchs)
    assert len(ours) == 9
    for name in set(ours) - {"a rate each", "bfloat16"}:
        assert ours[name].item() == pytest.approx(torchs[name].item(), abs=1e-6), name
    assert ours["bfloat16"].item() == pytest.approx(torchs["bfloat16"].item(), abs=0.02)
    for name in ours:  # in the rate the loss is a line
        assert below[name].item() == pytest.approx(2 * plain[name].item() - ours[name].item(), abs=1e-5), name
        assert abs(below[name].item() - plain[name].item()) > 1e-3
