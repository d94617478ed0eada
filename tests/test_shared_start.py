import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from nls import fit_each, load_dataset
from nls.clothing_made import make_clothing
from nls.models import predict_logits
from nls.shared_start import clothing_curves, pick_epochs, train_from_shared_start

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
    assert set(pick_epochs(found)["rule"]) == {"last", "noisy_validation", "clean_test"}


def test_each_rule_picks_within_its_stage():
    curves = pd.DataFrame(
        {
            "smooth_rate": [math.nan, math.nan, 0.0, 0.0, 0.0, -1.0, -1.0],
            "epoch": [1, 2, 1, 2, 3, 1, 2],
            "noisy_validation": [0.9, 0.8, 0.2, 0.5, 0.5, 0.4, math.nan],
            "clean_test": [0.7, 0.9, 0.1, 0.2, 0.3, 0.4, math.nan],
        }
    )
    two = pd.concat([curves.assign(seed=0), curves[::-1].assign(seed=1)])
    picked = pick_epochs(two).set_index(["rule", "seed", "stage", "smooth_rate"])["epoch"]
    for seed in (0, 1):
        assert picked[:, seed, "warm-up", 0.0].to_dict() == {"last": 2, "noisy_validation": 1, "clean_test": 2}
        assert picked[:, seed, "rate", -1.0].to_dict() == {"last": 2, "noisy_validation": 1, "clean_test": 1}
        assert picked[:, seed, "rate", 0.0][["last", "clean_test"]].tolist() == [3, 3]
    assert picked["noisy_validation", 0, "rate", 0.0] == 2
    assert len(picked) == 2 * 3 * 3
    pd.testing.assert_frame_equal(
        pick_epochs(curves.assign(seed=0)), pick_epochs(two).query("seed == 0")[::1].reset_index(drop=True)
    )


def test_clothing_is_trained_for_each_seed(tmp_path):
    roots = {}
    for seed in (3, 4):
        (tmp_path / str(seed)).mkdir()
        roots[seed] = make_clothing(tmp_path / str(seed), seed, (280, 140, 28, 28))
    found = clothing_curves(roots, [0.0, -1.0], num_examples=140, image_size=8, **SETTINGS)
    assert found.groupby("seed").size().to_dict() == {3: 8, 4: 8}
    data = load_dataset("clothing1m", roots[4], 4, num_examples=140, image_size=8)
    checked = load_dataset("clothing1m_clean", roots[4], image_size=8)
    clean = checked.validation_features, checked.validation_labels
    alone = train_from_shared_start(data, [0.0, -1.0], seed=4, clean=clean, **SETTINGS)
    own = found[found["seed"] == 4].drop(columns="seed").reset_index(drop=True)
    pd.testing.assert_frame_equal(own, alone)


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
    one = replace(data, train_labels=torch.full_like(data.train_labels, 4))
    picked = pick_epochs(train_from_shared_start(one, [0.0], seed=0, **SETTINGS))
    share = float((data.test_labels == 4).double().mean())
    last = picked.query("rule == 'last' and stage == 'rate'")
    assert last["clean_test"].item() == pytest.approx(share, abs=1e-6)
