"""Tables of the advice: what is stored, what following gains, and who disagrees among the surest."""

import numpy as np
import pandas as pd
import pytest
import torch

from nls.advice_tables import advice_table, follow_advice, surest_dependence, surest_disagreement
from nls.anchors import label_dependence


def made_study():
    """One case, two seeds: the advice is followed in the first and not in the second."""
    rows = []
    for seed, use in ((0, 1.0), (1, 0.0)):
        run = {"dataset": "made", "noise": "pair", "noise_rate": 0.4, "seed": seed}
        rows.append(run | {"what": "estimate", "method": "advice", "smooth_rate": -1.0, "use": use})
        rows.append(run | {"what": "estimate", "method": "anchor", "smooth_rate": -7.0})
        for method, rate, accuracy, nll in (
            ("grid", 0.0, 0.7, 0.6),
            ("grid", 0.4, 0.9, 0.8),
            ("grid", -2.0, 0.6, 0.3 + seed),
            ("advice", -1.0, 0.8, 0.5),
        ):
            rows.append(
                run | {"what": "network", "method": method, "smooth_rate": rate, "accuracy": accuracy, "nll": nll}
            )
    return pd.DataFrame(rows)


def test_following_takes_the_rate_only_where_it_is_advised():
    found = follow_advice(made_study())
    assert found["accuracy_follow"].tolist() == [0.8, 0.7]
    assert found["nll_follow"].tolist() == [0.5, 0.6]
    assert found["accuracy_advised"].tolist() == [0.8, 0.8]
    assert found["accuracy_zero"].tolist() == [0.7, 0.7]


def test_the_best_rate_is_that_of_the_case_and_not_of_a_seed():
    found = follow_advice(made_study())
    assert found["accuracy_rate"].tolist() == [0.4, 0.4]
    assert found["nll_rate"].tolist() == [0.0, 0.0]  # -2 is best in one seed, and not on average
    assert found["nll_best"].tolist() == [0.6, 0.6]


def test_an_advice_without_a_rate_counts_as_rate_zero():
    study = made_study()
    found = follow_advice(study[~((study["what"] == "network") & (study["method"] == "advice"))])
    assert found["nll_advised"].tolist() == [0.6, 0.6]


@pytest.mark.parametrize("change", [{"nll": np.nan}, {"smooth_rate": 0.1}])
def test_a_study_without_log_loss_or_rate_zero_is_refused(change):
    study = made_study()
    zero = (study["what"] == "network") & (study["smooth_rate"] == 0)
    study.loc[zero, list(change)] = list(change.values())
    with pytest.raises(ValueError, match="study must have accuracy and nll of each network, and one at rate 0"):
        follow_advice(study)


def test_rows_are_stored_without_what_is_the_same():
    rows = pd.DataFrame({"dataset": ["a", "a"], "epochs": 30, "seconds": 1.5, "use": [True, None], "feasible": False})
    table = advice_table(rows)
    assert list(table) == ["dataset", "use", "feasible"]
    assert table["use"].tolist()[0] == 1.0
    assert np.isnan(table["use"].tolist()[1])


def test_disagreement_is_counted_within_each_predicted_class():
    sure = torch.tensor([0.99, 0.98, 0.97, 0.96, 0.6, 0.55], dtype=torch.float64)
    probabilities = torch.stack([sure, 1 - sure], 1)
    probabilities[4:] = probabilities[4:].flip(1)  # the last two look like class 1
    labels = torch.tensor([0, 1, 0, 0, 0, 1])
    assert surest_disagreement(probabilities, labels, [0.5, 1.0]) == [
        (pytest.approx(2 / 3), 3),
        (pytest.approx(1 / 3), 6),
    ]
    with pytest.raises(ValueError, match="shares"):
        surest_disagreement(probabilities, labels, [1.5])


def test_dependence_is_that_of_the_surest_of_each_predicted_class():
    maker = torch.Generator().manual_seed(0)
    model = torch.rand(90, 3, generator=maker, dtype=torch.float64).softmax(1)
    labels = torch.randint(3, (90,), generator=maker)
    predicted, kept = model.argmax(1), []
    for k in range(3):
        rows = (predicted == k).nonzero()[:, 0]
        kept += rows[model[rows, k].argsort(descending=True)][: int(0.4 * len(rows))].tolist()
    kept = sorted(kept)
    assert surest_dependence(model, labels, [0.4]) == [pytest.approx(label_dependence(model[kept], labels[kept]))]
    with pytest.raises(ValueError, match="shares"):
        surest_dependence(model, labels, [1.5])


@pytest.mark.parametrize("table", [surest_disagreement, surest_dependence])
def test_labels_that_do_not_fit_are_named(table):
    with pytest.raises(ValueError, match=r"noisy_labels must have shape \(4,\), got \(3,\)"):
        table(torch.full((4, 2), 0.5), torch.tensor([0, 1, 0]), [1.0])
