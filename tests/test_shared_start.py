import math

import numpy as np
import pandas as pd
import pytest
import torch

from nls import fit_each, load_dataset
from nls.models import predict_logits
from nls.shared_start import pick_epochs, train_from_shared_start

SETTINGS = {
    "warmup_epochs": 2, "epochs": 3, "learning_rate": 0.01, "warmup_learning_rate": 0.05, "batch_size": 20
}  # fmt: skip
RATES = [0.4, 0.0, -4.0]


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits_images", num_examples=200)


@pytest.fixture(scope="module")
def curves(data):
    clean = data.test_features[:17], data.test_labels[:17]
    return train_from_shared_start(data, RATES, seed=3, clean=clean, **SETTINGS)


def test_one_row_for_each_epoch_and_one_warm_up(curves):
    assert curves["smooth_rate"].isna().sum() == 2
    assert curves["epoch"].tolist() == [1, 2] + [1, 2, 3] * 3
    assert curves["smooth_rate"].dropna().tolist() == [rate for rate in RATES for _ in range(3)]
    measured = curves.drop(columns=["smooth_rate", "train_loss"])
    assert np.isfinite(measured.to_numpy()).all()


def test_each_stage_is_what_a_run_of_its_own_gives(data, curves):
    """With a warm-up of its own, and measured by hand."""
    for rate in RATES:
        fit = fit_each(
            data.train_features, data.train_labels, rate, num_classes=10, loss_scale=1 / (1 - rate), seed=3, **SETTINGS
        )
        rows = curves[curves["smooth_rate"] == rate]
        np.testing.assert_array_equal(rows["train_loss"], fit.curves["train_loss"][2:])
        probability = predict_logits(fit.network, data.test_features).double().softmax(1)
        labels, last = data.test_labels, rows.iloc[-1]
        right = probability.argmax(1) == labels
        confidence = probability.max(1).values
        held_out = predict_logits(fit.network, data.validation_features).argmax(1) == data.validation_labels
        assert last["clean_test"] == pytest.approx(float(right.double().mean()), abs=1e-6)
        assert last["noisy_validation"] == pytest.approx(float(held_out.double().mean()), abs=1e-6)
        assert last["clean_validation"] == pytest.approx(float(right[:17].double().mean()), abs=1e-6)
        nll = -probability.gather(1, labels[:, None]).log().mean()
        assert last["nll"] == pytest.approx(float(nll), rel=1e-4)
        assert last["confidence_right"] == pytest.approx(float(confidence[right].mean()), rel=1e-4)
        assert last["confidence_wrong"] == pytest.approx(float(confidence[~right].mean()), rel=1e-4)


def test_without_a_clean_set_there_is_no_such_column(data):
    found = train_from_shared_start(data, [0.0], seed=0, warmup_epochs=1, epochs=1)
    assert "clean_validation" not in found
    with pytest.raises(ValueError, match=r"rule must be one of 'last', .*, got 'clean_validation'"):
        pick_epochs(found, "clean_validation")


def test_epochs_are_picked_within_the_stages():
    curves = pd.DataFrame(
        {
            "smooth_rate": [math.nan, math.nan, 0.0, 0.0, 0.0, -1.0, -1.0],
            "epoch": [1, 2, 1, 2, 3, 1, 2],
            "noisy_validation": [0.9, 0.9, 0.2, 0.5, 0.5, 0.4, 0.1],
            "clean_test": [0.9, 0.9, 0.1, 0.2, 0.3, 0.4, 0.5],
        }
    )
    assert pick_epochs(curves, "last")["clean_test"].to_dict() == {-1.0: 0.5, 0.0: 0.3}
    assert pick_epochs(curves, "noisy_validation")["clean_test"].to_dict() == {-1.0: 0.4, 0.0: 0.2}
    assert pick_epochs(curves, "clean_test")["epoch"].to_dict() == {-1.0: 2, 0.0: 3}
    with pytest.raises(ValueError, match="rule must be one of 'last', 'noisy_validation', 'clean_test', got 'epoch'"):
        pick_epochs(curves, "epoch")


@pytest.mark.parametrize(
    ("rates", "changes", "error", "message"),
    [
        ([], {}, ValueError, r"rates must hold different numbers, at least one, got \[\]"),
        ([0.0, -1.0, 0.0], {}, ValueError, "rates must hold different numbers"),
        ([1.0], {}, ValueError, "rates must be a finite number in .*1.*, got 1.0"),
        (["a"], {}, TypeError, "rates must be a real number"),
        ([0.0], {"warmup_epochs": 0}, ValueError, "warmup_epochs must be at least 1, got 0"),
        ([0.0], {"epochs": 0}, ValueError, "epochs must be at least 1"),
    ],
)
def test_arguments_are_checked(data, rates, changes, error, message):
    with pytest.raises(error, match=message):
        train_from_shared_start(data, rates, seed=0, **SETTINGS | changes)


def test_labels_that_come_noisy_are_used_as_they_are(data):
    """Nothing draws noise: with all labels of one class the network says this class."""
    from dataclasses import replace

    one = replace(data, train_labels=torch.full_like(data.train_labels, 4))
    last = pick_epochs(train_from_shared_start(one, [0.0], seed=0, **SETTINGS), "last")
    share = float((data.test_labels == 4).double().mean())
    assert last.loc[0.0, "clean_test"] == pytest.approx(share, abs=1e-6)
