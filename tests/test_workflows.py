"""The workflows: what they call exists, what they trust is pinned, and nothing that is typed is read as code."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))  # the pipeline is a folder of scripts, not a package

import parameters  # noqa: E402

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.search(r"\.PHONY: ((?:.*\\\n)*.*)", MAKEFILE).group(1).replace("\\\n", " ").split())


def jobs():
    return [(f"{name}/{job}", body) for name, flow in WORKFLOWS.items() for job, body in flow["jobs"].items()]


def steps(key):
    return [(job, step) for job, body in jobs() for step in body["steps"] if key in step]


def test_there_are_workflows():
    assert set(WORKFLOWS) == {"ci", "pages", "run", "weekly"}
    assert len(steps("run")) > 12


def test_every_run_step_is_a_make_target_that_exists():
    assert not [(job, step["run"]) for job, step in steps("run") if not re.fullmatch(r"make [\w-]+", step["run"])]
    called = {step["run"].removeprefix("make ") for _, step in steps("run")}
    assert called <= TARGETS, called - TARGETS
    for target in TARGETS:  # each has a rule
        assert re.search(rf"^[\w -]*(?<![\w-]){target}(?![\w-])[\w -]*:", MAKEFILE, re.MULTILINE), target


def test_actions_are_pinned_by_commit_and_agree():
    lines = [line.strip() for path in FILES for line in path.read_text().splitlines() if "uses:" in line]
    pins = {}
    for line in lines:
        found = re.fullmatch(r"(?:- )?uses: (actions/[\w-]+)@([0-9a-f]{40})  # (v\d+\.\d+\.\d+)", line)
        assert found, line
        assert pins.setdefault(found[1], found.groups()[1:]) == found.groups()[1:], line
    assert len(lines) == len(steps("uses"))


def test_permissions_are_the_least():
    wanted = {
        "pages/deploy": {"pages": "write", "id-token": "write"},
        "pages/launch": {"contents": "write"},
        "weekly/issue": {"issues": "write"},
    }
    assert all(flow["permissions"] == {"contents": "read"} for flow in WORKFLOWS.values())
    assert {job: body["permissions"] for job, body in jobs() if "permissions" in body} == wanted
    checkouts = [step for _, step in steps("uses") if step["uses"].startswith("actions/checkout@")]
    assert all(step["with"] == {"persist-credentials": False} for step in checkouts)
    # YAML reads the key `on` as true. Neither trigger may be there: both run foreign code with the owner's rights.
    triggers = {trigger for flow in WORKFLOWS.values() for trigger in flow[True]}
    assert triggers == {"push", "pull_request", "schedule", "workflow_dispatch"}


def test_every_job_ends():
    assert all(body["timeout-minutes"] <= 120 for _, body in jobs())


def test_nothing_that_is_typed_is_code():
    """An expression in a command or a script is pasted before it is read; in `env` it is only data."""
    code = [step["run"] for _, step in steps("run")]
    code += [step["with"]["script"] for _, step in steps("with") if "script" in step["with"]]
    assert len(code) > len(steps("run"))
    assert not [text for text in code if "${{" in text]


def test_the_parameters_that_the_workflows_name_exist():
    profiles = parameters.read_profiles(ROOT / "book" / "profiles.yml")
    matrix = WORKFLOWS["weekly"]["jobs"]["run"]["strategy"]["matrix"]["include"]
    assert {entry["profile"] for entry in matrix} == {"book", "smoke"}
    for entry in matrix:
        runs = parameters.plan_runs(ROOT / "book", entry["profile"], entry["set"].split())
        named = {setting.partition(".")[0] for setting in entry["set"].split()}
        assert all(runs[name]["seed"] == 1 for name in named)
        # With other seeds a claim may fail by chance: only pages that do not stop for it are run.
        assert all(runs[name]["strict"] is False for name in named)
    form = WORKFLOWS["run"][True]["workflow_dispatch"]["inputs"]
    assert {name: given["type"] for name, given in form.items()} == {
        "profile": "choice", "only": "string", "set": "string", "compare": "boolean",
    }  # fmt: skip
    assert set(form["profile"]["options"]) <= set(profiles)
    (shown,) = re.findall(r"\S+\.\w+=\S+(?= *$)", form["set"]["description"])
    parameters.plan_runs(ROOT / "book", "book", [shown])


@pytest.fixture
def tree(tmp_path):
    """The Makefile, with an environment whose python prints its arguments."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\nprintf '<%s>' \"$@\"\n")
    python.chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def make(tree, *arguments, **environment):
    clean = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "PROFILE")}
    return subprocess.run(
        ["make", *arguments], cwd=tree, env=clean | environment, capture_output=True, text=True, check=False
    )


def test_what_a_form_says_reaches_the_command_as_it_is(tree):
    typed = "11_uci.live_sets=[digits,wine] a.b=$(touch$IFS./one) c.d=$(shell$IFS./two) e.f='`touch./three`;*"
    said = make(tree, "book", PROFILE="smoke", SET=typed, ONLY="1*").stdout
    expected = ["book/run.py", "--profile", "smoke", "--only", "1*"]
    expected += [part for setting in typed.split() for part in ("--set", setting)]
    assert re.findall("<([^>]*)>", said) == expected
    assert make(tree, "book").stdout == "<book/run.py><--profile><book><--only><*>"
    assert {path.name for path in tree.iterdir()} == {
        "Makefile", ".venv", "requirements.txt", "constraints.txt", "pyproject.toml",
    }  # fmt: skip


def test_launch_copies_are_pushed_as_one_commit(tree):
    refused = make(tree, "push-launch")
    assert refused.returncode != 0
    assert "no launch copies" in refused.stderr
    subprocess.run(["git", "init", "--quiet", "--bare", str(tree / "remote")], check=True)
    notebooks = tree / "_build" / "launch" / "book" / "notebooks"
    notebooks.mkdir(parents=True)
    for text in ("first", "second"):  # a second push takes the place of the first
        (notebooks / "01_one.ipynb").write_text(text)
        done = make(tree, "push-launch", f"REMOTE={tree / 'remote'}")
        assert done.returncode == 0, done.stderr
        git = ["git", "-C", str(tree / "remote")]
        shown = subprocess.run([*git, "show", "launch:book/notebooks/01_one.ipynb"], capture_output=True, text=True)
        assert shown.stdout == text
        count = subprocess.run([*git, "rev-list", "--count", "launch"], capture_output=True, text=True).stdout
        assert count.strip() == "1"
    assert not (tree / "_build" / "launch" / ".git").exists()


def test_ends_of_the_ranges():
    at_end = runpy.run_path(str(ROOT / ".ci" / "ranges.py"))["at_end"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert at_end(wanted, "newest") == wanted
    assert "torch==2.6" in at_end(wanted, "lowest")
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in at_end(wanted, "lowest"))
    with pytest.raises(ValueError, match="expected NAME>=VERSION, got 'torch'"):
        at_end(["torch"], "lowest")
    with pytest.raises(ValueError, match="end must be 'lowest' or 'newest', got 'oldest'"):
        at_end(wanted, "oldest")
    named = re.search(r"tests/test_,\$\(addsuffix \.py,([\w ]+)\)", MAKEFILE).group(1).split()
    assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in named)
    assert {"losses", "noise", "posterior", "rates"} <= set(named)


def test_the_linters_are_pinned():
    lines = [line for line in (ROOT / ".github" / "requirements-lint.txt").read_text().splitlines() if line[0] != "#"]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines)
    assert len(lines) == 2
