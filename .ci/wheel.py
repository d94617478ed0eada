"""Check nls on its own: its wheel in an environment that has nothing but what the wheel asks for.

    python .ci/wheel.py WHEEL

Runs in that environment, away from the checkout; prints sizes and seconds, and fails where something does not work.
"""

import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

IMPORT_SECONDS = 2.0  # of processor that `import nls` takes at most, torch included,
IMPORT_SHARE = 1.25  # or this many times what torch takes alone, on a machine where that is slow
REPEATS = 7  # fresh processes, of which the median counts
BOOK = ("cleanlab", "dask", "jupyter_book", "myst_nb", "papermill", "timm", "torch_geometric", "torchvision")

WORKS = {
    "losses": """
import torch, nls
logits, labels = torch.randn(8, 3, requires_grad=True), torch.arange(8) % 3
loss = nls.gls_loss(logits, labels, -0.4)
loss.backward()
assert loss.isfinite() and logits.grad.isfinite().all()
noise = nls.symmetric_transition(3, 0.2)
assert nls.backward_corrected_loss(logits, labels, noise).isfinite()
""",
    "noise and posterior": """
import torch, nls
noise = nls.pair_transition(3, 0.3)
noisy = nls.draw_noisy_labels(torch.zeros(1000, dtype=torch.long), noise, nls.seeded_generator(0, "wheel"))
assert 200 < int((noisy == 1).sum()) < 400
assert nls.noisy_posterior(torch.eye(3, dtype=torch.float64), noise).equal(noise)
assert nls.optimal_smooth_rate(0.2, 3) < 0
assert nls.expected_calibration_error(torch.eye(3), torch.arange(3)) == 0
""",
    "data and grid": """
import nls
table = nls.run_grid(nls.Grid(dataset="wine", noise_rate=0.2, smooth_rate=[0.0, -1.0], epochs=2), workers=1)
assert len(table) == 2 and table["accuracy_last"].between(0, 1).all()
""",
    "advisor, plotting and typing": """
import numpy, torch, nls, pathlib
from sklearn.linear_model import LogisticRegression
from nls import plotting
from nls.crossfit import crossfit_posterior
data = nls.load_dataset("twonorm")
labels = nls.draw_noisy_labels(data.train_labels, nls.symmetric_transition(2, 0.2), nls.seeded_generator(0, "wheel"))
found = nls.suggest_smooth_rate(labels, features=data.train_features, model=LogisticRegression())
assert 0.1 < found.noise_rate < 0.3, found
numpy.savetxt("labels.csv", labels.numpy(), fmt="%d", header="label", comments="")
numpy.save("probabilities.npy", crossfit_posterior(data.train_features, labels, 2, LogisticRegression()).numpy())
assert pathlib.Path(nls.__file__).with_name("py.typed").is_file()
""",
}
# What needs an extra, and what its error must say.
EXTRAS = {
    "images": ("import nls.models as m; m.resnet34(10)", "pip install 'nls[images]'"),
    "images, data": ("import nls; nls.load_dataset('cifar10', root='.')", "pip install 'nls[images]'"),
    "graphs": ("from nls.graphs import geometric_batch; geometric_batch(None)", "pip install 'nls[graphs]'"),
    "advisor": ("import nls.advise as a; a.confident_transition(None, None)", "cleanlab"),
    "cluster": ("import joblib\nwith joblib.parallel_config(backend='dask'): pass", "dask"),
}


def run(code: str) -> subprocess.CompletedProcess:
    """Run code in a fresh process."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def seconds(statement: str) -> tuple[float, float]:
    """Return the median time that a statement takes in a fresh process, and that of the processor."""
    clock = "print(time.perf_counter() - start, time.process_time())"
    code = f"import time; start = time.perf_counter(); {statement}; {clock}"
    times = [map(float, run(code).stdout.split()) for _ in range(REPEATS)]
    return tuple(map(statistics.median, zip(*times, strict=True)))


def size(paths) -> float:
    """Return the size of files in MB."""
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def find_faults(wheel: Path) -> list[str]:
    """Try what must work and what must say why it does not.

    Args:
        wheel: The wheel that is installed here.

    Returns:
        What failed.
    """
    faults = [f"{name} is installed here" for name in BOOK if importlib.util.find_spec(name)]
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
    if "nls/py.typed" not in files:
        faults.append("the wheel lacks nls/py.typed")
    faults += [f"the wheel holds {name}" for name in files if not re.match(r"nls/\w+\.py$|nls/py\.typed$|nls-", name)]
    for name, code in WORKS.items():
        answer = run(code)
        print(f"works: {name}" if answer.returncode == 0 else f"FAILED: {name}\n{answer.stderr}", flush=True)
        faults += [name] * (answer.returncode != 0)
    answer = subprocess.run(
        [sys.executable, "-m", "nls", "advise", "labels.csv", "probabilities.npy", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if answer.returncode or not 0.1 < json.loads(answer.stdout)["noise_rate"] < 0.3:
        faults.append(f"python -m nls advise: {answer.stdout}{answer.stderr}")
    else:
        print(f"works: python -m nls advise: {json.loads(answer.stdout)['advice']}")
    for name, (code, wanted) in EXTRAS.items():
        said = run(code).stderr.strip().splitlines()[-1:]
        print(f"without {name}: {' '.join(said)}")
        faults += [f"without {name}, the message must name {wanted}"] * (wanted not in " ".join(said))
    return faults


def main(wheel: Path) -> int:
    """Print what the environment weighs and takes, and return 1 if anything fails."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        packages = Path(sysconfig.get_path("purelib"))
        parts = {name: size((packages / name).rglob("*")) for name in ("nls", "torch", "nvidia", "triton")}
        print(f"Python {sys.version.split()[0]}, torch {version('torch')}: wheel {size([wheel]):.2f} MB", end=", ")
        print(f"environment {size(packages.rglob('*')):,.0f} MB, of which", end=" ")
        print(", ".join(f"{name} {part:,.1f}" for name, part in parts.items()), flush=True)
        faults = find_faults(wheel)
        (wall_alone, alone), (wall, whole) = seconds("import torch"), seconds("import nls")
        print(f"import nls {wall:.2f} s (processor {whole:.2f} s), import torch {wall_alone:.2f} s", end=" ")
        print(f"(processor {alone:.2f} s); medians of {REPEATS} processes")
        if whole > IMPORT_SECONDS and whole > IMPORT_SHARE * alone:
            faults.append(f"import nls takes more than {IMPORT_SECONDS} s and {IMPORT_SHARE} times as long as torch")
    print(*(f"wheel-check: {fault}" for fault in faults), sep="\n", end="\n" if faults else "", file=sys.stderr)
    print("FAILED" if faults else "passed")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
