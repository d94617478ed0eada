"""Ask every library that is installed for a negative smooth rate, and print what it returns.

    python benchmarks/conformance.py [--only NAME ...] [--study NAME]

Each call gets the same logits and labels, first at the rate 0.5, which shows that it is called as it should be, then at
-0.5, then at -0.5 with logits 10 times as large, as a confident network gives them. Its value and its gradient are
compared with those of generalised label smoothing (GLS), computed here in NumPy, and with those of the same formula at
rate zero, which is plain cross entropy (CE). A library that cannot be imported is left out.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

CONTROL, RATE, CONFIDENT = 0.5, -0.5, 10
ASKED = ((CONTROL, 1), (RATE, 1), (RATE, CONFIDENT))
GLS, SILENT, RAISES, NEITHER = "GLS", "plain CE silently", "raises", "neither"
MIXED = "CE value and GLS gradient"

Call = Callable[[float, np.ndarray, np.ndarray], tuple[float, np.ndarray]]
Calls = dict[tuple[str, str], Call]  # (what is called, the argument that takes the rate) -> how


def example(num_examples: int = 6, num_classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits [N, K] and labels [N] that no two rates agree on."""
    rng = np.random.default_rng(seed)
    logits = (2 * rng.standard_normal((num_examples, num_classes))).astype(np.float32)
    return logits, rng.integers(0, num_classes, num_examples)


def targets(rate: float, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the rows ``(1 - r) onehot(y) + r / K``."""
    return (1 - rate) * np.eye(num_classes)[labels] + rate / num_classes


def reference(rate: float, logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean GLS loss and its gradient, in float64."""
    z = logits.astype(np.float64)
    z = z - z.max(1, keepdims=True)
    log_posterior = z - np.log(np.exp(z).sum(1, keepdims=True))
    rows = targets(rate, labels, z.shape[1])
    return -(rows * log_posterior).sum(1).mean(), (np.exp(log_posterior) - rows) / len(z)


def judge(call: Call, rate: float, logits: np.ndarray, labels: np.ndarray) -> tuple[str, float, str]:
    """Return the verdict on a call at a rate, the value it returned, and the error it raised."""
    try:
        value, gradient = call(rate, logits, labels)
    except Exception as error:  # whatever a library refuses a rate with is the measurement
        return RAISES, float("nan"), f"{type(error).__name__}: {error}".splitlines()[0].strip(": ")

    def matches(rate: float) -> tuple[bool, bool]:
        loss, slope = reference(rate, logits, labels)
        return bool(np.isclose(value, loss, rtol=1e-4)), bool(np.allclose(gradient, slope, rtol=1e-3, atol=1e-5))

    of_rate, of_zero = matches(rate), matches(0.0)
    known = {
        ((True, True), (False, False)): GLS,
        ((False, False), (True, True)): SILENT,
        ((False, True), (True, False)): MIXED,
    }
    return known.get((of_rate, of_zero), NEITHER), float(value), ""


def with_torch(loss: Callable) -> Call:
    """Return a call that differentiates ``loss(rate, logits, labels)`` of torch tensors."""

    def call(rate: float, logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
        import torch

        z = torch.tensor(logits, requires_grad=True)
        value = loss(rate, z, torch.tensor(labels))
        (gradient,) = torch.autograd.grad(value, z)
        return float(value.detach()), gradient.numpy()

    return call


def torch_rows(rate: float, z: object, y: object) -> object:
    """Return the target rows of torch labels, in the type of the logits."""
    import torch

    return torch.tensor(targets(rate, y.numpy(), z.shape[1]), dtype=z.dtype)


def ask_torch() -> Calls:
    from torch.nn import CrossEntropyLoss
    from torch.nn.functional import cross_entropy

    losses = {
        ("cross_entropy", "label_smoothing"): lambda r, z, y: cross_entropy(z, y, label_smoothing=r),
        ("CrossEntropyLoss", "label_smoothing"): lambda r, z, y: CrossEntropyLoss(label_smoothing=r)(z, y),
        ("cross_entropy on one-hot rows", "label_smoothing"): lambda r, z, y: cross_entropy(
            z, torch_rows(0.0, z, y), label_smoothing=r
        ),
        ("cross_entropy on GLS rows", "the rows"): lambda r, z, y: cross_entropy(z, torch_rows(r, z, y)),
    }
    return {name: with_torch(loss) for name, loss in losses.items()}


def ask_timm() -> Calls:
    from timm.loss import LabelSmoothingCrossEntropy, PolyCrossEntropy, SoftTargetCrossEntropy

    losses = {
        ("LabelSmoothingCrossEntropy", "smoothing"): lambda r, z, y: LabelSmoothingCrossEntropy(r)(z, y),
        ("SoftTargetCrossEntropy on GLS rows", "the rows"): lambda r, z, y: SoftTargetCrossEntropy()(
            z, torch_rows(r, z, y)
        ),
        ("PolyCrossEntropy with epsilon 0", "smoothing"): lambda r, z, y: PolyCrossEntropy(0.0, smoothing=r)(z, y),
    }
    return {name: with_torch(loss) for name, loss in losses.items()}


def ask_optax() -> Calls:
    import jax
    import jax.numpy as jnp
    import optax

    def call(rate: float, logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
        onehot = jax.nn.one_hot(jnp.asarray(labels), logits.shape[1])

        def loss(z: jax.Array) -> jax.Array:
            return optax.softmax_cross_entropy(z, optax.smooth_labels(onehot, rate)).mean()

        value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
        return float(value), np.asarray(gradient)

    return {("softmax_cross_entropy of smooth_labels", "alpha"): call}


def ask_keras() -> Calls:
    import keras
    from torch.nn.functional import one_hot

    if keras.backend.backend() != "torch":
        raise ImportError("keras was imported with another backend than torch")

    def loss(rate: float, z: object, y: object, from_logits: bool) -> object:
        function = keras.losses.CategoricalCrossentropy(from_logits=from_logits, label_smoothing=rate)
        return function(one_hot(y, z.shape[1]).to(z), z if from_logits else z.softmax(1))

    return {
        (f"CategoricalCrossentropy on {name}", "label_smoothing"): with_torch(
            lambda r, z, y, from_logits=name == "logits": loss(r, z, y, from_logits)
        )
        for name in ("logits", "probabilities")
    }


def ask_transformers() -> Calls:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments
    from transformers.trainer_pt_utils import LabelSmoother

    class Given(PreTrainedModel):
        """A model whose parameters are the logits."""

        config_class = PretrainedConfig

        def __init__(self, logits: torch.Tensor):
            super().__init__(PretrainedConfig())
            self.logits = torch.nn.Parameter(logits)

        def forward(self, labels: torch.Tensor | None = None) -> dict:
            return {"logits": self.logits}

    def trainer(rate: float, logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
        model = Given(torch.tensor(logits))
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(folder, label_smoothing_factor=rate, report_to=[], use_cpu=True)
            loss = Trainer(model, settings).compute_loss(model, {"labels": torch.tensor(labels)})
        (gradient,) = torch.autograd.grad(loss, model.logits)
        return float(loss.detach()), gradient.numpy()

    smoother = with_torch(lambda r, z, y: LabelSmoother(epsilon=r)({"logits": z}, y))
    return {("LabelSmoother", "epsilon"): smoother, ("Trainer", "label_smoothing_factor"): trainer}


def ask_liger_kernel() -> Calls:
    from liger_kernel.transformers import LigerCrossEntropyLoss
    from liger_kernel.transformers.functional import liger_cross_entropy

    # Each writes the gradient over its input, hence the copies.
    losses = {
        ("LigerCrossEntropyLoss", "label_smoothing"): lambda r, z, y: LigerCrossEntropyLoss(label_smoothing=r)(
            z.clone(), y
        ),
        ("liger_cross_entropy", "label_smoothing"): lambda r, z, y: liger_cross_entropy(
            z.clone(), y, label_smoothing=r
        ),
    }
    return {name: with_torch(loss) for name, loss in losses.items()}


def ask_fastai() -> Calls:
    from fastai.losses import LabelSmoothingCrossEntropy

    loss = with_torch(lambda r, z, y: LabelSmoothingCrossEntropy(eps=r)(z, y))
    return {("LabelSmoothingCrossEntropy", "eps"): loss}


def ask_segmentation_models_pytorch() -> Calls:
    from segmentation_models_pytorch.losses import SoftCrossEntropyLoss

    loss = with_torch(lambda r, z, y: SoftCrossEntropyLoss(smooth_factor=r)(z, y))
    return {("SoftCrossEntropyLoss", "smooth_factor"): loss}


def ask_monai() -> Calls:
    from monai.losses import DiceCELoss

    def loss(rate: float, z: object, y: object) -> object:
        function = DiceCELoss(to_onehot_y=True, softmax=True, lambda_dice=0.0, label_smoothing=rate)
        return function(z[:, :, None, None], y[:, None, None, None])

    return {("DiceCELoss with lambda_dice 0", "label_smoothing"): with_torch(loss)}


def ask_paddle() -> Calls:
    import paddle

    def call(rate: float, logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
        z = paddle.to_tensor(logits, stop_gradient=False)
        value = paddle.nn.functional.cross_entropy(z, paddle.to_tensor(labels), label_smoothing=rate)
        value.backward()
        return float(value), z.grad.numpy()

    return {("cross_entropy", "label_smoothing"): call}


LIBRARIES = {name.removeprefix("ask_"): ask for name, ask in list(globals().items()) if name.startswith("ask_")}


def version(name: str) -> str:
    """Return the version of the package that a module comes from."""
    return importlib.metadata.version(importlib.metadata.packages_distributions()[name][0])


def ask(name: str) -> list[dict[str, object]]:
    """Return one row for each call of a library.

    Raises:
        ImportError: If it is not installed.
    """
    logits, labels = example()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    rows = []
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        calls = LIBRARIES[name]()
        made = {"library": name, "version": version(name)}
        for (call, argument), function in calls.items():
            found = [judge(function, rate, scale * logits, labels) for rate, scale in ASKED]
            verdicts = dict(zip(("control", "result", "confident"), (verdict for verdict, *_ in found), strict=True))
            _, value, error = found[1]
            row = made | {"call": call, "argument": argument} | verdicts
            rows.append(row | {"value": value, "error": error.replace(",", ";"), "date": today, "device": "cpu"})
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the exit status is 1 if a call does not return GLS at the rate 0.5."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(LIBRARIES), default=list(LIBRARIES), metavar="NAME")
    parser.add_argument("--study", help="store the rows in this folder of book/results, one file for each library")
    chosen = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    rows = []
    for name in chosen.only:
        try:
            rows += ask(name)
        except ImportError as error:
            print(f"{name}: left out, {error}")
    if not rows:
        return 0
    table = pd.DataFrame(rows)
    print(table.drop(columns=["error", "device"]).to_string(index=False))
    if chosen.study:
        import nls

        nls.save_results(table, chosen.study, by="library")
    return int((table["control"] != GLS).any())


if __name__ == "__main__":
    # Keras picks its backend, Triton its interpreter and Hugging Face its manners when they are imported.
    os.environ |= {"KERAS_BACKEND": "torch", "TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1"}
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    raise SystemExit(main())
