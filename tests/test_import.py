"""What importing nls costs: torch, and nothing that a loss does not need."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nls

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("cleanlab", "joblib", "matplotlib", "pandas", "scipy", "seaborn", "sklearn", "torch_geometric", "torchmetrics", "torchvision")  # fmt: skip  # noqa: E501


def test_losses_noise_and_posterior_need_torch_only():
    code = (
        "import sys, torch, nls\n"
        "from nls import fit_stack, load_dataset, noisy_posterior, optimal_smooth_rate, symmetric_transition\n"
        "nls.gls_loss(torch.ones(2, 3), torch.tensor([0, 1]), -0.4)\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []


def test_what_is_imported_later_is_there_under_its_name():
    code = (
        "import nls\n"
        "assert all(hasattr(nls, name) for name in nls.__all__)\n"
        "assert nls.stats.mean_interval is nls.mean_interval and nls.RecordStore is nls.records.RecordStore\n"
        "from nls import run_grid, engine\n"
        "assert engine.run_grid is run_grid is nls.run_grid"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert {*nls.__all__, *nls._LATER} <= set(dir(nls))
    with pytest.raises(AttributeError, match="module 'nls' has no attribute 'smooth'"):
        nls.smooth  # noqa: B018


def test_type_checkers_see_what_is_imported_later():
    tree = ast.parse(Path(nls.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {line.module.removeprefix("nls."): tuple(name.name for name in line.names) for line in block.body}
    assert seen == nls._LATER
    assert {name for names in seen.values() for name in names} <= set(nls.__all__)
