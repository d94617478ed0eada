"""The conformance script tells the kinds of answers apart, and its stored table is what the libraries still do."""

import datetime

import numpy as np
import pandas as pd
import pytest

import nls
from benchmarks import conformance
from benchmarks.conformance import GLS, MIXED, NEITHER, RAISES, SILENT, judge, reference

LOGITS, LABELS = conformance.example()


def refuse(rate, logits, labels):
    raise ValueError(f"the rate must be positive, got {rate}\nand more")


ANSWERS = {
    "the loss": (reference, GLS),
    "cross entropy": (lambda r, z, y: reference(0.0, z, y), SILENT),
    "one value, another gradient": (lambda r, z, y: (reference(0.0, z, y)[0], reference(r, z, y)[1]), MIXED),
    "the size of the rate": (lambda r, z, y: reference(abs(r), z, y), NEITHER),
    "smoothing over the other classes": (lambda r, z, y: reference(r * 5 / 4, z, y), NEITHER),
    "a sum": (lambda r, z, y: (6 * reference(r, z, y)[0], 6 * reference(r, z, y)[1]), NEITHER),
    "an error": (refuse, RAISES),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_each_kind_of_answer_gets_its_verdict(name):
    call, expected = ANSWERS[name]
    verdict, value, error = judge(call, -0.5, LOGITS, LABELS)
    assert verdict == expected
    assert error == ("ValueError: the rate must be positive, got -0.5" if call is refuse else "")
    assert np.isnan(value) == (call is refuse)


@pytest.mark.parametrize("rate", [0.5, 0.0, -0.5])
def test_the_reference_is_the_loss_of_the_package(rate):
    torch = pytest.importorskip("torch")
    z = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    loss = nls.gls_loss(z, torch.tensor(LABELS), rate)
    (gradient,) = torch.autograd.grad(loss, z)
    value, slope = reference(rate, LOGITS, LABELS)
    assert value == pytest.approx(float(loss.detach()), rel=1e-12)
    np.testing.assert_allclose(slope, gradient.numpy(), atol=1e-15)


def test_torch_and_timm_do_what_the_stored_table_says():
    found = pd.DataFrame(conformance.ask("torch") + conformance.ask("timm"))
    stored = nls.load_results("conformance")
    columns = ["library", "call", "argument", "control", "result", "confident"]
    expected = stored[stored["library"].isin(["torch", "timm"])]
    pd.testing.assert_frame_equal(
        found[columns].sort_values(columns).reset_index(drop=True),
        expected[columns].sort_values(columns).reset_index(drop=True),
    )
    results = found.set_index(["library", "call"])["result"]
    assert results["torch", "cross_entropy"] == SILENT
    assert results["torch", "cross_entropy on GLS rows"] == results["timm", "LabelSmoothingCrossEntropy"] == GLS


def test_the_stored_table_answers_for_each_library():
    stored = nls.load_results("conformance")
    assert set(stored["library"]) == set(conformance.LIBRARIES)
    assert not stored.duplicated(["library", "call"]).any()
    assert set(stored["control"]) == {GLS}  # else the call was made wrongly
    assert set(stored["result"]) == {GLS, SILENT, MIXED, RAISES}
    assert set(stored["confident"]) <= {GLS, SILENT, MIXED, RAISES, NEITHER}
    assert ((stored["result"] == RAISES) == stored["error"].notna()).all()
    assert ((stored["result"] == RAISES) == stored["value"].isna()).all()
    ours = {rate: reference(rate, LOGITS, LABELS)[0] for rate in (-0.5, 0.0)}
    for verdict, rate in ((GLS, -0.5), (SILENT, 0.0), (MIXED, 0.0)):
        np.testing.assert_allclose(stored.loc[stored["result"] == verdict, "value"], ours[rate], rtol=1e-4)
    for date in stored["date"]:
        assert datetime.date(2026, 1, 1) < datetime.date.fromisoformat(date)


def test_the_script_stores_a_file_for_each_library_and_leaves_out_what_is_missing(tmp_path, monkeypatch, capsys):
    def missing():
        raise ImportError("no such library")

    monkeypatch.setenv("NLS_RESULTS", str(tmp_path))
    monkeypatch.setattr(conformance.logging, "disable", lambda level: None)
    monkeypatch.setitem(conformance.LIBRARIES, "optax", missing)
    assert conformance.main(["--only", "torch", "optax", "--study", "tried"]) == 0
    assert [path.name for path in (tmp_path / "tried").iterdir()] == ["torch.csv"]
    assert "optax: left out, no such library" in capsys.readouterr().out
    assert conformance.main(["--only", "optax"]) == 0


def test_a_call_that_is_made_wrongly_fails_the_script(monkeypatch, capsys):
    calls = {("cross_entropy", "label_smoothing"): lambda r, z, y: reference(r / 2, z, y)}
    monkeypatch.setitem(conformance.LIBRARIES, "torch", lambda: calls)
    monkeypatch.setattr(conformance.logging, "disable", lambda level: None)
    assert conformance.main(["--only", "torch"]) == 1
