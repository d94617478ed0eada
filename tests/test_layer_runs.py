"""One run of the study of layers: parts are apart, numbers are those of a plain loop, methods share a start."""

import math

import pandas as pd
import pytest
import torch

from nls import fit_each, load_dataset
from nls.layer_runs import _Split, image_mlp, layer_run, linear_cka
from nls.models import predict_logits
from nls.probes import check_disjoint, predictive_power

SMALL = {"network": "mlp", "num_examples": 300, "num_test": 200, "draws": 2}


@pytest.fixture(scope="module")
def table():
    rows = layer_run(
        **SMALL, noise="pair", noise_rate=0.4, methods="r=0 r=-0.8 gce", warmup_epochs=2, epochs=2, measured="1 3",
        per_class="2 10", rescue="map scratch", rescue_per_class="3", seed=1,
    )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("noise", ["symmetric", "pair", "picture_place"])
def test_no_two_parts_share_an_image(noise):
    split = _Split("digits_images", None, noise, 0.4, 0, 400, 0)
    parts = {"train": split.features, "validation": split.validation, "pool": split.pool, "test": split.test}
    check_disjoint(parts)
    assert [len(part) for part in parts.values()] == [360, 40, 360, 359]


def test_training_labels_are_as_noisy_as_said_and_the_others_clean():
    split = _Split("digits_images", None, "pair", 0.4, 0, 0, 0)
    wrong = (split.labels != split.clean).double().mean()
    assert abs(wrong - 0.4) < 4 * math.sqrt(0.24 / len(split.labels))
    assert torch.equal(split.labels[split.labels != split.clean], (split.clean[split.labels != split.clean] + 1) % 10)
    data = load_dataset("digits_images", seed=0)
    assert torch.equal(split.pool_labels, data.validation_labels)
    assert torch.equal(split.test_labels, data.test_labels)


def test_where_pixels_tell_the_class_the_picture_is_the_noise():
    split = _Split("digits_images", None, "picture_place", 0.4, 0, 0, 0)
    data = load_dataset("digits_images", seed=0)
    assert torch.equal(split.test.flatten(1)[:, :10].argmax(1), split.test_labels)
    held_out = len(data.train_labels) - len(split.labels)
    replaced = split.labels != split.clean
    assert torch.equal(split.labels[replaced], data.train_labels[held_out:][replaced])
    assert 0.3 < replaced.double().mean() < 0.4  # of four tenths, a tenth of them of the same class


def test_numbers_are_those_of_a_network_trained_by_hand(table):
    data = load_dataset("digits_images", seed=1)
    split = _Split("digits_images", None, "pair", 0.4, 1, 300, 200)
    fit = fit_each(
        split.features, split.labels, -0.8, num_classes=10, network=lambda: image_mlp(10, (1, 8, 8)), epochs=2,
        warmup_epochs=2, learning_rate=0.05, weight_decay=1e-4, seed=1,
    )  # fmt: skip
    logits = predict_logits(fit.network, data.test_features[:200])
    rows = table[(table["method"] == "r=-0.8") & (table["epoch"] == 4)]
    found = rows.set_index("what")["accuracy"]
    assert found["network"] == pytest.approx((logits.argmax(1) == data.test_labels[:200]).double().mean().item())
    wrong = split.labels != split.clean
    memorised = (predict_logits(fit.network, split.features[wrong]).argmax(1) == split.labels[wrong]).double().mean()
    assert rows["memorised"].dropna().item() == pytest.approx(memorised.item())
    again = predictive_power(
        fit.network, (split.pool, split.pool_labels), (split.test, split.test_labels), per_class=10, draws=2, seed=1
    )
    again = again[again["method"] == "probe"].groupby("layer")["accuracy"].mean()
    probes = rows[(rows["what"] == "probe") & (rows["clean_per_class"] == 10)].set_index("layer")["accuracy"]
    assert len(probes) == 3
    for layer, value in probes.items():
        assert value == pytest.approx(again[layer], abs=1e-6)


def test_methods_go_on_from_one_warm_up_that_is_measured_once(table):
    networks = table[table["what"] == "network"]
    assert networks.groupby("method")["epoch"].apply(list).to_dict() == {
        "warm-up": [1, 2], "r=0": [3, 4], "r=-0.8": [3, 4], "gce": [3, 4],
    }  # fmt: skip
    probes = table[table["what"] == "probe"].groupby("method")["epoch"].unique().map(sorted).to_dict()
    assert probes == {"warm-up": [1], "r=0": [3, 4], "r=-0.8": [3, 4], "gce": [3, 4]}
    counts = table.groupby("what")["clean_per_class"].unique().map(sorted).to_dict()
    assert counts == {
        "network": [0], "alike": [0], "probe": [2, 10], "input": [2, 10], "random": [2, 10], "map": [3],
        "scratch": [3],
    }  # fmt: skip
    assert table[table["what"] == "scratch"]["method"].unique().tolist() == ["r=0"]
    assert table[table["what"] == "probe"]["depth"].unique().tolist() == [1, 2, 3]


def test_likeness_is_that_of_gram_matrices_and_knows_no_rotation_or_scale():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, width, generator=generator, dtype=torch.float64) for width in (4, 7))
    centre = torch.eye(30, dtype=torch.float64) - 1 / 30
    grams = [centre @ values @ values.T @ centre for values in (x, y)]
    by_hand = (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())
    assert linear_cka(x, y) == pytest.approx(by_hand.item(), abs=1e-12)
    rotation, _ = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64))
    assert linear_cka(3 * x + 1, y @ rotation) == pytest.approx(by_hand.item(), abs=1e-12)
    with pytest.raises(ValueError, match="second must have 30 rows as first, got 29"):
        linear_cka(x, y[1:])


def test_layers_are_compared_with_the_end_of_the_warm_up(table):
    alike = table[table["what"] == "alike"]
    assert alike.groupby("method")["depth"].apply(list).to_dict() == {m: [1, 2, 3] for m in ("r=0", "r=-0.8", "gce")}
    assert alike["accuracy"].between(0.5, 1).all()
    still = pd.DataFrame(layer_run(**SMALL, warmup_epochs=1, epochs=1, stage_learning_rate=1e-12))
    assert still.query("what == 'alike'")["accuracy"].tolist() == pytest.approx([1.0] * 3)


def test_a_network_that_was_never_trained_is_the_same_for_all_epochs():
    first, second = (
        pd.DataFrame(layer_run(**SMALL, epochs=epochs)).query("what == 'random'")["accuracy"].tolist()
        for epochs in (1, 2)
    )
    assert first == second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": "white"}, "noise must be one of"),
        ({"network": "vgg"}, "network must be one of 'mlp', 'cnn'"),
        ({"methods": "ls"}, "methods must be one of"),
        ({"rescue": "magic"}, "rescue must be one of"),
        ({"num_examples": 5}, "num_examples must be from 10 to 1078, or 0 for all, got 5"),
        ({"noise": "picture_colour"}, "3 channels"),
    ],
)
def test_what_cannot_be_run_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        layer_run(**SMALL | {"epochs": 1} | change)
