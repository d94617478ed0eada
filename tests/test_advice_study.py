"""Advice on noise that is known: what a run returns, and that the advice is not told the truth."""

import pandas as pd
import pytest
import torch
from planted_studies import write_made_cifar

import nls
from nls import advice_study as module
from nls.advice_study import NOISES, RATES, advice_run, advice_study, human_run, human_study, noisy_split

SMALL = {"dataset": "wine", "classifier": "logistic", "epochs": 3, "resamples": 20}


@pytest.mark.parametrize("noise", NOISES)
def test_noise_has_the_rate_and_the_matrix_that_is_called_true(noise):
    data = nls.load_dataset("digits")
    features, clean, noisy, matrix = noisy_split(data, noise, 0.3, 1)
    assert len(features) == len(data.train_labels) + len(data.validation_labels)
    counts = torch.bincount(clean * 10 + noisy, minlength=100).view(10, 10).double()
    shares = counts / counts.sum(1, keepdim=True)
    spread = (matrix * (1 - matrix) / counts.sum(1, keepdim=True)).sqrt()
    assert float(((shares - matrix).abs() - 5 * spread).max()) <= 1e-9
    assert 0.25 < 1 - float(matrix.diagonal().mean()) < 0.35
    assert torch.equal(noisy, noisy_split(data, noise, 0.3, 1)[2])
    assert not torch.equal(noisy, noisy_split(data, noise, 0.3, 2)[2])


def test_a_run_has_an_estimate_for_each_method_and_a_network_for_each_rate():
    table = pd.DataFrame(advice_run(**SMALL))
    estimates, networks = (table[table["what"] == what] for what in ("estimate", "network"))
    assert {"advice", "counted", "anchor", "confident counts", "dual"} <= set(estimates["method"])
    advice = estimates.set_index("method").loc["advice"]
    assert networks[networks["method"] == "grid"]["smooth_rate"].tolist() == list(RATES)
    assert networks[networks["method"] == "advice"]["smooth_rate"].tolist() == [advice["smooth_rate"]]
    assert advice["low"] <= advice["estimate"] <= advice["high"]
    assert advice["truth"] == pytest.approx(0.2)
    assert advice["true_rate"] == pytest.approx(-0.3 / 0.7)


def test_the_network_at_a_rate_is_that_of_fit_stack():
    """The advised member is trained beside the grid and does not touch it."""
    table = pd.DataFrame(advice_run(**SMALL))
    grid = table[(table["what"] == "network") & (table["method"] == "grid")].reset_index(drop=True)
    data = nls.load_dataset("wine", seed=0)
    noisy = noisy_split(data, "symmetric", 0.2, 0)[2][: len(data.train_labels)]
    fit = nls.fit_stack(
        data.train_features, noisy[None], RATES[3], num_classes=3, hidden=(64,), epochs=int(grid["epoch"][3]),
        batch_size=128, learning_rate=2e-3,
    )  # fmt: skip
    logits = fit.stack.forward(data.test_features)[0].log_softmax(1)
    nll = -logits.gather(1, data.test_labels[:, None]).mean()
    assert float(nll) == pytest.approx(grid["nll"][3], rel=1e-4)


@pytest.fixture
def asked(monkeypatch):
    """The labels that advice was asked on."""
    seen, suggest = [], module.suggest_smooth_rate
    monkeypatch.setattr(
        module, "suggest_smooth_rate", lambda labels, **options: (seen.append(labels), suggest(labels, **options))[1]
    )
    return seen


def test_the_advice_sees_noisy_labels_only(asked):
    advice_run(**SMALL | {"noise_rate": 0.5, "networks": False})
    clean = torch.cat([getattr(nls.load_dataset("wine"), f"{part}_labels") for part in ("train", "validation")])
    assert sorted(asked[0].tolist()) != sorted(clean.tolist())


def test_a_part_of_the_examples_is_a_shuffled_one(asked):
    advice_run(dataset="digits", classifier="bayes", num_examples=200, networks=False, resamples=20)
    assert len(asked[0]) == 200
    data = nls.load_dataset("digits")
    assert not torch.equal(asked[0], noisy_split(data, "symmetric", 0.2, 0)[2][:200])


def test_peoples_labels_are_advised_on(tmp_path):
    write_made_cifar(tmp_path, num_train=50_000, human=True)
    rows = human_run(label_set="worst", root=str(tmp_path), num_examples=90, folds=2, epochs=1, resamples=20)
    row = rows[0]
    assert row["method"] == "advice"
    assert 0.15 < row["truth"] < 0.6
    assert 0 < row["true_residual"] < 1
    with pytest.raises(ValueError, match="label_set must be one of 'aggregate'"):
        human_run(label_set="best", root=str(tmp_path))


def test_the_stored_studies_have_each_case_once():
    runs = advice_study(2) + human_study("data", 2)
    assert len({tuple(sorted(run.items())) for run in runs}) == len(runs) == 58


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="classifier must be one of 'bayes'"):
        advice_run(dataset="wine", classifier="tree")
    with pytest.raises(ValueError, match="noise must be one of 'symmetric', 'pair', 'instance'"):
        advice_run(dataset="wine", noise="none")
