"""Which rate for your labels: the advice, its estimates, and the command."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from test_anchors import made
from torch import nn

import nls
from nls.__main__ import main, read_labels, read_probabilities
from nls.advise import confident_transition, dual_transition, suggest_smooth_rate
from nls.rates import scalar_share

KEYS = {
    "noise_rate", "noise_rate_interval", "smooth_rate", "smooth_rate_interval", "symmetry_residual", "feasible",
    "depends_on_example", "use", "advice", "recipe", "transition", "share", "num_examples", "num_classes", "estimates",
}  # fmt: skip


def advised(transition, per_class=2000, **options):
    noisy, model = made(transition, per_class)
    return suggest_smooth_rate(noisy, model, **options)


def test_symmetric_noise_gets_the_exact_rate():
    found = advised(nls.symmetric_transition(10, 0.3))
    exact = nls.optimal_smooth_rate(0.3, 10)
    assert found.use
    assert found.feasible
    assert found.smooth_rate == pytest.approx(exact, abs=0.1)
    assert found.smooth_rate_interval[0] - 0.1 < exact < found.smooth_rate_interval[1] + 0.1
    assert found.noise_rate_interval[0] - 0.02 < 0.3 < found.noise_rate_interval[1] + 0.02
    assert found.smooth_rate_interval[0] < found.smooth_rate < found.smooth_rate_interval[1]
    assert found.recipe["step_factor"] == pytest.approx(1 / (1 - found.smooth_rate))
    gap = torch.tensor([found.recipe["logit_gap"]] + [0.0] * 9)
    assert float(gap.softmax(0)[0]) == pytest.approx(0.99, abs=1e-6)
    assert f"Use smooth rate {found.smooth_rate:.2f}" in str(found)


def test_intervals_cover_symmetric_noise():
    """At least 85 of 100 of the 90 % intervals; here the model is right and only the labels are drawn."""
    inside = 0
    for seed in range(100):
        noisy, model = made(nls.symmetric_transition(3, 0.3), 200, seed)
        low, high = suggest_smooth_rate(noisy, model, resamples=100, seed=seed).noise_rate_interval
        inside += low <= 0.3 <= high
    assert inside >= 85


def test_pair_noise_is_told_to_use_its_matrix():
    found = advised(nls.pair_transition(10, 0.4))
    assert not found.use
    assert not found.feasible
    assert found.symmetry_residual == pytest.approx(scalar_share(nls.pair_transition(10, 0.4)), abs=0.02)
    assert "Do not use one rate" in found.advice
    assert "forward_corrected_loss" in found.advice


def test_few_examples_of_each_class_still_show_that_pair_noise_has_no_minimum():
    assert not advised(nls.pair_transition(10, 0.2), 60).feasible
    assert advised(nls.symmetric_transition(10, 0.2), 60).feasible


def test_labels_that_go_with_what_else_an_example_looks_like_get_no_rate():
    """Each predicted class holds two groups: labels of one are pulled to the class before, of the other to the next."""
    group = torch.arange(6000) % 2
    predicted = torch.arange(6000) // 2 % 3
    other = (predicted + 1 + group) % 3
    model = (
        0.7 * torch.eye(3, dtype=torch.float64)[predicted] + 0.2 * torch.eye(3, dtype=torch.float64)[other] + 0.1 / 3
    )
    wrong = torch.rand(6000, generator=torch.Generator().manual_seed(0)) < 0.3
    mixed = suggest_smooth_rate(torch.where(wrong, other, predicted), model)
    assert (mixed.use, mixed.depends_on_example) == (False, True)
    assert mixed.symmetry_residual < 0.1  # on average the matrix is symmetric, and says nothing
    assert "the label still goes with the other class" in mixed.advice
    either = (predicted + 1 + torch.arange(6000) // 6 % 2) % 3  # the same matrix, drawn without a look at the group
    found = suggest_smooth_rate(torch.where(wrong, either, predicted), model)
    assert (found.use, found.depends_on_example) == (True, False)


def test_clean_labels_are_left_alone():
    noisy, model = made(nls.symmetric_transition(4, 0.0))
    found = suggest_smooth_rate(noisy, model, out_of_sample=True)
    assert (found.use, found.noise_rate, found.smooth_rate) == (False, 0.0, 0.0)
    assert "keep rate 0" in found.advice


def test_labels_that_may_be_clean_are_left_alone():
    found = advised(nls.symmetric_transition(4, 0.02))
    assert found.noise_rate_interval[0] < 0.01 < found.noise_rate_interval[1]
    assert not found.use
    assert "keep rate 0" in found.advice


def test_a_positive_rate_has_a_minimum_and_the_step_of_cross_entropy():
    found = advised(nls.pair_transition(4, 0.6), 500)
    assert found.smooth_rate > 0.1
    assert found.feasible
    assert found.recipe["step_factor"] == 1


def test_an_entry_that_is_seen_but_too_small_leaves_no_minimum():
    transition = torch.tensor([[0.7, 0.28, 0.02], [0.02, 0.7, 0.28], [0.28, 0.02, 0.7]], dtype=torch.float64)
    found = advised(transition)
    assert bool((found.transition > 0).all())
    assert not found.feasible


def test_labels_that_may_be_no_better_than_chance_get_no_rate():
    found = advised(nls.symmetric_transition(2, 0.5), 300)
    assert not found.use
    assert "right more often than chance" in found.advice


def test_predictions_of_a_model_that_saw_its_labels_are_refused():
    noisy, _ = made(nls.symmetric_transition(4, 0.3), 300)
    seen = torch.nn.functional.one_hot(noisy, 4).double() * 0.9 + 0.025
    with pytest.raises(ValueError, match=r"probabilities must be out of sample.*100\.00 %"):
        suggest_smooth_rate(noisy, seen)
    assert suggest_smooth_rate(noisy, seen, out_of_sample=True).noise_rate == 0  # and this is why


def test_the_numbers_are_plain_and_all_there():
    found = advised(nls.symmetric_transition(3, 0.2), 300)
    back = json.loads(json.dumps(found.to_dict()))
    assert back.keys() == KEYS
    assert back["num_examples"] == 900
    assert back["num_classes"] == 3
    assert {"counted", "anchor", "confident counts", "dual"} <= back["estimates"].keys()


def test_a_classifier_is_cross_fitted():
    data = nls.load_dataset("twonorm")
    noisy = nls.draw_noisy_labels(data.train_labels, nls.symmetric_transition(2, 0.3), nls.seeded_generator(0, "noise"))
    found = suggest_smooth_rate(noisy, features=data.train_features, model=LogisticRegression())
    assert found.noise_rate_interval[0] < 0.3 < found.noise_rate_interval[1]


def test_a_network_is_cross_fitted():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(2, (1200,), generator=generator)
    features = torch.randn(1200, 5, generator=generator) + 2 * clean[:, None]
    noisy = nls.draw_noisy_labels(clean, nls.symmetric_transition(2, 0.3), generator)
    options = {"features": features, "model": lambda: nn.Linear(5, 2), "training": {"epochs": 5}, "folds": 3}
    found = suggest_smooth_rate(noisy, **options)
    assert abs(found.noise_rate - 0.3) < 0.06
    assert found.noise_rate == suggest_smooth_rate(noisy, **options).noise_rate


def test_a_network_never_sees_the_examples_that_it_predicts(monkeypatch):
    features, seen, predicted = torch.arange(60.0)[:, None], [], []

    def fit(given, labels, **options):
        seen.append(given)
        return nls.each.fit_each(given, labels, **options)

    def predict(network, given):
        predicted.append(given)
        return torch.zeros(len(given), 2)

    monkeypatch.setattr(nls.advise, "fit_each", fit)
    monkeypatch.setattr(nls.advise, "predict_logits", predict)
    options = {"model": lambda: nn.Linear(1, 2), "training": {"epochs": 1}, "folds": 3}
    suggest_smooth_rate(torch.arange(60) % 2, features=features, **options)
    for given, held in zip(seen, predicted, strict=True):
        assert sorted([*given[:, 0].tolist(), *held[:, 0].tolist()]) == features[:, 0].tolist()
    assert sorted(torch.cat(predicted)[:, 0].tolist()) == features[:, 0].tolist()


def test_the_dual_estimate_is_exact_where_its_steps_are():
    transition = nls.pair_transition(4, 0.25)
    noisy = nls.draw_noisy_labels(torch.arange(4).repeat(5000), transition, nls.seeded_generator(0, "noise"))
    model = torch.eye(4, dtype=torch.float64).repeat(5000, 1)
    assert float((dual_transition(model, noisy) - transition).abs().max()) < 5 * (0.25 * 0.75 / 5000) ** 0.5


def test_without_cleanlab_its_estimate_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(ImportError, match=r"pip install 'nls\[advisor\]'"):
        confident_transition(torch.eye(2).repeat(3, 1), torch.arange(6) % 2)


def test_cleanlab_and_the_counts_of_this_book_agree():
    pytest.importorskip("cleanlab")
    noisy, model = made(nls.symmetric_transition(4, 0.3), 1000)
    counts = nls.estimate.estimate_transition(model, noisy, method="confident")
    assert float((confident_transition(model, noisy) - counts).abs().max()) < 0.02


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"probabilities": None}, ValueError, "either probabilities, or features and a model, got none"),
        ({"features": torch.zeros(6, 2)}, ValueError, "got both"),
        ({"probabilities": None, "features": torch.zeros(6, 2)}, ValueError, "features need a model"),
        ({"model": "mlp", "training": {}}, ValueError, "model and training must come with features, got probabilities"),
        ({"num_classes": 2}, ValueError, "num_classes must come with features"),
        (
            {
                "probabilities": None,
                "features": torch.zeros(6, 2),
                "model": LogisticRegression(),
                "noisy_labels": ["cat"] * 6,
            },
            TypeError,
            "noisy_labels must be a torch tensor, got list",
        ),
        ({"level": 1.0}, ValueError, "level"),
        ({"resamples": 5}, ValueError, "resamples"),
        ({"seed": "a"}, TypeError, "seed must be an integer, got 'a'"),
        ({"probabilities": [[0.5, 0.5]] * 6}, TypeError, "probabilities must be a torch tensor, got list"),
        ({"noisy_labels": torch.arange(6).double()}, TypeError, "noisy_labels"),
    ],
)
def test_bad_input_is_named(change, error, message):
    good = {"noisy_labels": torch.arange(6) % 2, "probabilities": torch.full((6, 2), 0.5)}
    with pytest.raises(error, match=message):
        suggest_smooth_rate(**good | change)


@pytest.mark.parametrize("model", [LogisticRegression(), lambda: nn.Linear(3, 2)], ids=["classifier", "network"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"noisy_labels": torch.arange(5) % 2}, ValueError, r"features must .* n >= 1, got \(8, 3\) and \(5,\)"),
        ({"noisy_labels": torch.arange(8)[:, None]}, ValueError, r"noisy_labels shape \[n\], .* and \(8, 1\)"),
        ({"noisy_labels": torch.arange(0), "features": torch.zeros(0, 3)}, ValueError, r"got \(0, 3\) and \(0,\)"),
        ({"noisy_labels": torch.arange(8) % 2 + 0.0}, TypeError, "noisy_labels must hold integer class indices"),
        ({"noisy_labels": torch.arange(8) - 1}, ValueError, r"noisy_labels must lie in \[0, 6\], got the value -1"),
        ({"noisy_labels": torch.zeros(8, dtype=torch.long)}, ValueError, "num_classes must be at least 2, got 1"),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 2, got 0"),
        ({"num_classes": "2"}, TypeError, "num_classes must be an integer, got '2'"),
        ({"folds": 9}, ValueError, "folds must be at most 8, got 9"),
        ({"features": [[0.0] * 3] * 8}, TypeError, "features must be a torch tensor, got list"),
    ],
)
def test_bad_input_of_a_crossfit_is_named(change, error, message, model):
    good = {"noisy_labels": torch.arange(8) % 2, "features": torch.zeros(8, 3), "model": model}
    with pytest.raises(error, match=message):
        suggest_smooth_rate(**good | change)


def test_an_end_without_bound_is_null_in_json():
    found = advised(nls.symmetric_transition(2, 0.4), 60)
    assert found.smooth_rate is not None
    assert found.smooth_rate_interval[0] == -float("inf")
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["smooth_rate_interval"] == [None, found.smooth_rate_interval[1]]


def test_probabilities_may_come_with_their_gradient():
    pytest.importorskip("cleanlab")
    noisy, model = made(nls.symmetric_transition(3, 0.2), 300)
    found = suggest_smooth_rate(noisy, model.clone().requires_grad_())
    assert found.to_dict() == suggest_smooth_rate(noisy, model).to_dict()


# The command


@pytest.fixture
def files(tmp_path):
    noisy, model = made(nls.symmetric_transition(3, 0.3), 400)
    np.savetxt(tmp_path / "labels.csv", noisy.numpy(), fmt="%d", header="label", comments="")
    np.save(tmp_path / "probabilities.npy", model.numpy())
    return tmp_path / "labels.csv", tmp_path / "probabilities.npy", noisy, model


def test_the_command_prints_a_sentence_or_all_numbers(files, capsys):
    labels, probabilities, noisy, model = files
    assert main(["advise", str(labels), str(probabilities)]) == 0
    found = suggest_smooth_rate(noisy, model)
    assert capsys.readouterr().out.strip() == found.advice
    assert main(["advise", str(labels), str(probabilities), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.to_dict()))


def test_the_command_runs_as_a_module(files):
    command = [sys.executable, "-m", "nls", "advise", *map(str, files[:2])]
    assert "Use smooth rate" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_names_of_classes_and_columns(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("id,kind\n7,cat\n8,dog\n", encoding="utf-8")
    assert read_labels(path, "kind", ["dog", "cat"]).tolist() == [1, 0]
    path.write_text("1\n0\n2\n", encoding="utf-8")
    assert read_labels(path).tolist() == [1, 0, 2]


def test_probabilities_of_a_csv_file(tmp_path):
    path = tmp_path / "p.csv"
    for head in ("", "a,b\n"):
        path.write_text(head + "0.25,0.75\n0.5,0.5\n", encoding="utf-8")
        assert read_probabilities(path).tolist() == [[0.25, 0.75], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ("", "1,0\n", "labels.csv must hold labels, got none"),
        ("label\n", "1,0\n", "labels.csv must hold labels, got none"),
        ("a,b\n1,2\n", "1,0\n", "labels.csv must have a column 'label', got a, b; name the one with the labels"),
        ("label\n0\ncat\n", "1,0\n1,0\n", "labels.csv, line 3: expected a class index from 0, got 'cat'"),
        ("label\n0\n-1\n", "1,0\n1,0\n", "line 3: expected a class index from 0, got '-1'"),
        ("label\n0\n\n\n-1\n", "1,0\n1,0\n", "labels.csv, line 5: expected a class index from 0, got '-1'"),
        ("label\n0\n1e30\n", "1,0\n1,0\n", "line 3: expected a class index from 0, got '1e30'"),
        ("label\n0\n1\n", "1,0\nx,0\n", "p.csv must hold a table of numbers"),
        ("label\n0\n1\n", "1,0\n0,nan\n", r"p.csv must hold a table of numbers \[n, K\], got nan in row 1, column 1"),
        ("label\n0\n", "1,0\n", r"probabilities must have shape \[n, K\] with n >= 2"),
        ("label\n0\n1\n", "1,0\n", "labels.csv holds 2 labels, p.csv 1 rows of probabilities; a header that is a num"),
        ("label\n0\n", "0.5,0.5\n0.5,0.5\n", "labels.csv holds 1 labels, p.csv 2 rows of probabilities"),
        ("label\na\nb\n", "p0,p1\n1,0\n1,0\n", "line 2: expected a class index from 0, got 'a'; names need --classes"),
        ("label\n0\n", "", r"p.csv must hold a table of numbers \[n, K\], got float64 of shape \(0, 1\)"),
        ("label\n0\n", "a,b\n", r"p.csv must hold a table of numbers \[n, K\], got float64 of shape \(0, 1\)"),
        ("label\n1\n2\n", "1,0\n1,0\n", "labels.csv holds the label 2, p.csv 2 columns; classes count from 0"),
    ],
)
def test_the_command_names_what_is_wrong_in_a_file(labels, probabilities, message, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text(labels, encoding="utf-8")
    (tmp_path / "p.csv").write_text(probabilities, encoding="utf-8")
    assert main(["advise", str(tmp_path / "labels.csv"), str(tmp_path / "p.csv")]) == 2
    assert re.search(message, capsys.readouterr().err)


HEADERS = ["cat,dog\n", "# cat,dog\n", ",cat,dog\n", ",0,1\n", ""]


@pytest.mark.parametrize("head", HEADERS)
def test_names_come_from_the_header_of_the_probabilities(head, tmp_path, capsys):
    """As pandas writes them, with an index too, with numbers for columns that have no name; and as NumPy does."""
    lines = [f"{k}," * head.startswith(",") + ("0.25,0.75\n" if k % 2 else "0.75,0.25\n") for k in range(40)]
    (tmp_path / "p.csv").write_text(head + "".join(lines), encoding="utf-8")
    labels = ["dog" if (k % 2) != (k % 10 < 2) else "cat" for k in range(40)]
    (tmp_path / "labels.csv").write_text("label\n" + "\n".join(labels) + "\n", encoding="utf-8")
    files = ["advise", str(tmp_path / "labels.csv"), str(tmp_path / "p.csv")]
    assert main([*files, "--json", "--classes", "cat, dog"]) == 0
    found = capsys.readouterr().out
    assert json.loads(found)["noise_rate"] < 0.5
    assert main([*files, "--json"]) == (0 if "cat" in head else 2)
    said = capsys.readouterr()
    assert said.out == (found if "cat" in head else "")
    assert "cat" in head or "names need --classes, in the order of the columns" in said.err
    assert main([*files, "--classes", "dog,cat"]) == (2 if "cat" in head else 0)
    assert ("p.csv has its columns in another order than --classes: cat,dog" in capsys.readouterr().err) == (
        "cat" in head
    )
    assert main([*files, "--classes", "cat"]) == 2
    assert "p.csv has 2 columns, --classes 1 names" in capsys.readouterr().err
    assert main([*files, "--classes", "cat,cat"]) == 2
    assert "--classes must name each class once, got cat,cat" in capsys.readouterr().err


def test_the_header_that_pandas_gives_to_columns_without_a_name(tmp_path):
    (tmp_path / "p.csv").write_text("0,1,2\n0.25,0.5,0.25\n", encoding="utf-8")
    assert read_probabilities(tmp_path / "p.csv").tolist() == [[0.25, 0.5, 0.25]]
    (tmp_path / "p.csv").write_text("0,1\n0.5,0.5\n", encoding="utf-8")  # of two columns it may as well be a row
    assert read_probabilities(tmp_path / "p.csv").tolist() == [[0.0, 1.0], [0.5, 0.5]]


def test_files_in_the_wrong_place(tmp_path, capsys):
    np.save(tmp_path / "p.npy", np.full(3, 0.5))
    (tmp_path / "labels.csv").write_text("label\n0\n", encoding="utf-8")
    assert main(["advise", str(tmp_path / "p.npy"), str(tmp_path / "labels.csv")]) == 2
    capsys.readouterr()
    assert main(["advise", str(tmp_path / "p.npy"), str(tmp_path / "p.npy")]) == 2
    assert "p.npy must hold a table of numbers [n, K], got float64 of shape (3,)" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r"p\.npy must hold integer labels \[n\], got float64 of shape \(3,\); names go"
    ):
        read_labels(tmp_path / "p.npy")
    (tmp_path / "p.npy").rename(tmp_path / "p.csv")
    with pytest.raises(ValueError, match=r"p\.csv is no text; labels are a CSV file, or a \.npy file of integers"):
        read_labels(tmp_path / "p.csv")


def test_the_header_that_numbers_columns_in_another_way_names_the_classes(tmp_path, capsys):
    """Columns in the order of texts, as 0, 10, 2: a label is the number in the header, not the place."""
    lines = [f"{k},0.2,{0.7 - 0.6 * (k % 2)},{0.1 + 0.6 * (k % 2)}\n" for k in range(40)]
    (tmp_path / "p.csv").write_text(",0,2,1\n" + "".join(lines), encoding="utf-8")
    labels = [2 - ((k % 2) != (k % 10 < 2)) for k in range(40)]
    (tmp_path / "labels.csv").write_text("label\n" + "\n".join(map(str, labels)) + "\n", encoding="utf-8")
    assert main(["advise", str(tmp_path / "labels.csv"), str(tmp_path / "p.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["noise_rate"] < 0.5
    (tmp_path / "labels.csv").write_text("label\n3\n" + "1\n" * 39, encoding="utf-8")
    assert main(["advise", str(tmp_path / "labels.csv"), str(tmp_path / "p.csv")]) == 2
    assert "labels.csv, line 2: expected one of the classes 0, 2, 1, got '3'" in capsys.readouterr().err


def test_labels_of_a_npy_file(files, capsys):
    labels, probabilities, noisy, _ = files
    path = labels.with_suffix(".npy")
    for kind in ("int64", "uint8", ">i4"):
        np.save(path, noisy.numpy().astype(kind))
        assert read_labels(path).tolist() == noisy.tolist()
    assert main(["advise", str(labels), str(probabilities), "--json"]) == 0
    expected = capsys.readouterr().out
    assert main(["advise", str(path), str(probabilities), "--json"]) == 0
    assert capsys.readouterr().out == expected
    np.save(path, np.array([7, 3, 7]))
    assert read_labels(path, classes=["7", "3"]).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (
            np.array([0.0, 1.0]),
            [],
            "labels.npy must hold integer labels [n], got float64 of shape (2,); names go into a",
        ),
        (np.array([[0], [1]]), [], "labels.npy must hold integer labels [n], got int64 of shape (2, 1)"),
        (np.array([True, False]), [], "labels.npy must hold integer labels [n], got bool of shape (2,)"),
        (np.array(["0", "1"]), [], "labels.npy must hold integer labels [n], got <U1 of shape (2,)"),
        (np.array([0, "cat"], dtype=object), [], "labels.npy must hold integer labels [n]: Object arrays cannot be"),
        (np.array([], dtype=int), [], "labels.npy must hold labels, got none"),
        (np.array([0, -1]), [], "labels.npy, row 1, counted from 0: expected a class index from 0, got '-1'"),
        (np.array([0, 2**63], dtype=np.uint64), [], "row 1, counted from 0: expected a class index from 0, got '92233"),
        (np.array([0, 2]), [], "labels.npy holds the label 2, p.npy 2 columns; classes count from 0"),
        (
            np.array([0, 1]),
            ["--classes", "cat,dog"],
            "row 0, counted from 0: expected one of the classes cat, dog, got",
        ),
        (np.array([0, 1]), ["--column", "kind"], "labels.npy must be a CSV file for --column, got --column kind"),
    ],
)
def test_the_command_names_what_is_wrong_in_labels_of_a_npy_file(labels, options, message, tmp_path, capsys):
    np.save(tmp_path / "labels.npy", labels, allow_pickle=True)
    np.save(tmp_path / "p.npy", np.full((2, 2), 0.5))
    assert main(["advise", str(tmp_path / "labels.npy"), str(tmp_path / "p.npy"), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.array([[0.5, 0.5], [0.5, np.nan]]), ", got nan in row 1, column 1, counted from 0"),
        (np.array([[0.5, 0.5], [np.inf, 0.5]], dtype=np.float16), ", got inf in row 1, column 0, counted from 0"),
        (np.array([["0.5", "0.5"]]), ", got <U3 of shape (1, 2)"),
        (np.array([[0.5j, 0.5]]), ", got complex128 of shape (1, 2)"),
    ],
)
def test_the_command_names_what_is_wrong_in_probabilities_of_a_npy_file(table, message, tmp_path, capsys):
    np.save(tmp_path / "p.npy", table)
    (tmp_path / "labels.csv").write_text("label\n0\n1\n", encoding="utf-8")
    assert main(["advise", str(tmp_path / "labels.csv"), str(tmp_path / "p.npy")]) == 2
    assert f"p.npy must hold a table of numbers [n, K]{message}" in capsys.readouterr().err


def test_half_precision_keeps_the_rounding_of_its_sums(files, capsys):
    labels, probabilities, _, model = files
    np.save(probabilities, model.numpy().astype(np.float16))
    assert float((read_probabilities(probabilities).double().sum(1) - 1).abs().max()) > 1e-4  # too far off for float64
    assert main(["advise", str(labels), str(probabilities)]) == 0
    assert "Use smooth rate" in capsys.readouterr().out


def test_an_archive_of_arrays_is_refused(tmp_path):
    with (tmp_path / "p.npy").open("wb") as file:
        np.savez(file, labels=np.arange(3))
    for read in (read_labels, read_probabilities):
        with pytest.raises(ValueError, match=r"p\.npy must hold .*: got an archive of arrays"):
            read(tmp_path / "p.npy")


def test_columns_in_another_order_are_asked_about():
    noisy, model = made(nls.symmetric_transition(3, 0.3), 3000)
    assert "order" not in suggest_smooth_rate(noisy, model).advice
    assert "with column 1 for class 0, 2 for class 1, 0 for class 2 it would be" in (
        suggest_smooth_rate(noisy, model[:, [2, 0, 1]]).advice
    )
    random = torch.randint(3, noisy.shape, generator=torch.Generator().manual_seed(0))
    assert "order" not in suggest_smooth_rate(random, model).advice


def test_a_pickle_is_refused(tmp_path, capsys):
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "labels.csv").write_text("label\n0\n", encoding="utf-8")
    assert main(["advise", str(tmp_path / "labels.csv"), str(tmp_path / "p.npy")]) == 2
    assert "p.npy must hold a table of numbers" in capsys.readouterr().err
