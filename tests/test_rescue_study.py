"""The study of rescues: stages against epochs by hand, ways against single probes, and labels that stay apart."""

import pytest
import torch

import nls
from nls import rescue_study
from nls.probes import predictive_power
from nls.rescue_study import noisy_splits, rescue_rows, run_study, stack_rescue, stack_stages, train_stages

NOISES = {"a": ("pair", 0.4), "b": ("symmetric", 0.6)}


def test_noise_is_drawn_apart_for_both_splits_and_again_the_same():
    data = nls.load_dataset("digits")
    train, validation = noisy_splits(data, "symmetric", 0.5, 0)
    assert 0.4 < float((train != data.train_labels).double().mean()) < 0.6
    assert 0.4 < float((validation != data.validation_labels).double().mean()) < 0.6
    again = noisy_splits(data, "symmetric", 0.5, 0)
    assert bool((again[0] == train).all() and (again[1] == validation).all())
    assert not bool((noisy_splits(data, "symmetric", 0.5, 1)[0] == train).all())
    with pytest.raises(ValueError, match="noise must be one of 'symmetric', 'pair'"):
        noisy_splits(data, "none", 0.5, 0)


def test_early_is_the_best_epoch_on_noisy_validation_labels_of_each_member():
    data = nls.load_dataset("wine")
    epochs = list(range(1, 9))
    stages = stack_stages(data, list(NOISES.values()), seed=1, epochs=8, learning_rate=0.03, keep=epochs)
    for i, noise in enumerate(NOISES.values()):
        labels = noisy_splits(data, *noise, 1)[1]
        scores = [
            float((stages[e].forward(data.validation_features)[i].argmax(1) == labels).double().mean()) for e in epochs
        ]
        best = epochs[scores.index(max(scores))]
        row, early = (s.part(slice(i, i + 1)).parameters for s in (stages[best], stages["early"]))
        torch.testing.assert_close(row, early)
        train = noisy_splits(data, *noise, 1)[0]
        fitted = float((stages["late"].forward(data.train_features)[i].argmax(1) == train).double().mean())
        assert float(stages["late"].memorised[i]) == pytest.approx(fitted)
    torch.testing.assert_close(stages[8].parameters, stages["late"].parameters)


def test_one_network_has_its_best_epoch_too():
    data = nls.load_dataset("wine")
    noisy = noisy_splits(data, "pair", 0.4, 0)
    seen = []
    fit = nls.each.fit_each

    def watched(*args, evaluate, **rest):
        def both(network):
            found = evaluate(network)
            seen.append((found["noisy_validation"], network(data.test_features).detach()))
            return found

        return fit(*args, evaluate=both, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rescue_study, "fit_each", watched)
        options = {"optimizer": "adam", "learning_rate": 0.03}
        stages = train_stages(data, noisy, lambda: torch.nn.Linear(13, 3), seed=0, epochs=12, **options)
    scores = [score for score, _ in seen]
    best = scores.index(max(scores))
    assert best < 11
    torch.testing.assert_close(stages["early"](data.test_features).detach(), seen[best][1])
    torch.testing.assert_close(stages["late"](data.test_features).detach(), seen[-1][1])


def test_ways_are_those_of_predictive_power():
    table = stack_rescue("wine", NOISES, seed=0, epochs=3, close=1, looks=[2], per_class=[1, 3], tuned=3, draws=2)
    assert set(table["stage"]) == {"2", "early", "late"}
    late = table[table["stage"] == "late"]
    assert set(late[late["noise"] == "b"]["way"]) == {
        "hidden1", "penultimate", "logits", "map", "network", "random", "random_hidden1"
    }  # fmt: skip
    assert set(late[late["noise"] == "a"]["way"]) - set(late[late["noise"] == "b"]["way"]) == {"fine-tune", "scratch"}
    data = nls.load_dataset("wine")
    stack = stack_stages(data, list(NOISES.values()), seed=0, epochs=3)["late"]
    pool, test = (data.validation_features, data.validation_labels), (data.test_features, data.test_labels)
    alone = predictive_power(stack, pool, test, per_class=3, draws=2, layers=["penultimate"])
    for member, noise in enumerate(NOISES):
        expected = alone[(alone["method"] == "probe") & (alone["member"] == member)]["accuracy"]
        found = late[(late["noise"] == noise) & (late["way"] == "penultimate") & (late["per_class"] == 3)]
        assert found["accuracy"].tolist() == pytest.approx(expected.tolist())
    assert late[late["way"] == "input"]["noise"].unique().tolist() == [""]


def test_pool_and_test_set_are_kept_apart(monkeypatch):
    seen = []
    measure = rescue_study.predictive_power

    def watched(network, pool, test, **options):
        seen.append((pool, test, options["train"]))
        return measure(network, pool, test, **options)

    monkeypatch.setattr(rescue_study, "predictive_power", watched)
    rescue_rows("wine", 3, epochs=1, most=2, tuned=2, draws=2)
    data = nls.load_dataset("wine", seed=3)
    for pool, test, train in seen:
        assert pool[0] is not test[0]
        assert bool((pool[1] == data.validation_labels).all())
        assert bool((test[1] == data.test_labels).all())
        assert train.shape == data.train_features.shape


def test_rows_of_the_study():
    tiny = {"wine": {"epochs": 2, "most": 3, "tuned": 3, "draws": 2, "heavy": 0.6}}
    table = run_study(1, sets=tiny)
    assert len(table) == 5 * 2 * 2
    assert sorted(table["noise_rate"].unique()) == [0.0, 0.4, 0.6, 0.8]
    at = table[table["per_class"] == 3]
    assert at["scratch"].nunique() == 1
    assert table[table["per_class"] == 1]["fine_tune"].isna().all()
    assert at[["network", "penultimate", "logits", "input", "map", "random", "fine_tune"]].notna().all(axis=None)
    clean = at[at["noise_rate"] == 0.0]
    assert clean["input"].nunique() == 1
