"""What the launch copies need is what Colab has, what nls brings along, or what they say that they install."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))  # the pipeline is a folder of scripts, not a package

import launch  # noqa: E402

NOTEBOOKS = sorted((ROOT / "book" / "notebooks").glob("*.ipynb"))
IMPORTED_AS = {"scikit-learn": "sklearn", "pyyaml": "yaml", "pillow": "PIL", "jinja2": "jinja2"}
BEHIND = {"nls.graphs": "torch_geometric"}  # imported when a function of the module is called


def names(file):
    """The packages that a list names, as they are imported."""
    lines = [line for line in (ROOT / ".ci" / file).read_text().splitlines() if not line.startswith("#")]
    packages = [re.split("==", line)[0].lower() for line in lines]
    return {IMPORTED_AS.get(name, name) for name in packages}


def imports(path):
    """The packages that a notebook's cells import."""
    code = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    modules = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    behind = {package for module, package in BEHIND.items() if module in modules}
    return {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"nls", "IPython"} | behind


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_imports_what_colab_has_or_what_its_copy_installs(path):
    installed = launch.PACKAGES.get(path.stem, [])
    lacking = imports(path) - names("colab.txt")
    assert lacking == set(installed), lacking


def test_chapters_that_install_something_exist():
    assert launch.PACKAGES.keys() <= {path.stem for path in NOTEBOOKS}


def test_set_up_cells_are_code_that_differs_in_packages_only(tmp_path):
    address, commit = "https://github.com/someone/some-book", "0123456789abcdef"
    cells = {
        path.stem: nbformat.read(path, 4).cells[0].source
        for path in launch.write_launch_copies(ROOT / "book", tmp_path, address, commit)
    }
    assert cells.keys() == {path.stem for path in NOTEBOOKS}
    for name, cell in cells.items():
        ast.parse(cell)
        line = '"--constraint", held, folder' + "".join(f', "{each}"' for each in launch.PACKAGES.get(name, [])) + "],"
        assert cell.count(line) == 1
        assert cell.replace(line, "") == cells["02_label_noise"].replace('"--constraint", held, folder],', "")
    assert len(cells["02_label_noise"].splitlines()) < 40
    assert max(map(len, cells["02_label_noise"].splitlines())) <= 120
    assert "/content/some-book" in cells["02_label_noise"]


def test_the_oldest_torch_is_the_one_that_the_package_names():
    pins = dict(
        line.split("==") for line in (ROOT / ".ci" / "colab-oldest.txt").read_text().splitlines() if "==" in line
    )
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = dict(line.split(">=") for line in [*wanted["dependencies"], *wanted["optional-dependencies"]["images"]])
    assert pins["torch"].startswith(lowest["torch"] + ".")
    assert pins["torchvision"].startswith(lowest["torchvision"] + ".")
    for name in lowest.keys() & pins.keys():
        assert list(map(int, pins[name].split("."))) >= list(map(int, lowest[name].split("."))), name


def test_what_stands_for_colab_mounts_a_drive(tmp_path):
    code = "import sys; assert 'google.colab' in sys.modules; from google.colab import drive; drive.mount(sys.argv[1])"
    environment = {"PYTHONPATH": str(ROOT / ".ci" / "colab")}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
    assert (tmp_path / "MyDrive").is_dir()
