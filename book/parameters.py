"""Profiles and parameters: what each notebook runs with, checked before anything runs.

`profiles.yml` maps profile -> notebook -> parameter. A notebook states its parameters and their defaults in one
cell tagged `parameters`, as literals. papermill alone would accept a misspelt name or a value of another type and
run to the end with the default, so both are refused here.
"""

import ast
import difflib
from pathlib import Path

import nbformat
import yaml

CELL_TIMEOUT = 900
"""Seconds a cell may take where its profile says nothing else."""

SCALARS = (bool, int, float, str)


class BookError(Exception):
    """What stops a build, one finding per line."""

    def __init__(self, findings: list[str] | str) -> None:
        self.findings = [findings] if isinstance(findings, str) else findings
        super().__init__("\n".join(self.findings))


def _bad_byte(error: UnicodeDecodeError) -> str:
    """Say what came where UTF-8 was expected."""
    return f"byte 0x{error.object[error.start]:02x} at position {error.start}"


class _UniqueKeys(yaml.SafeLoader):
    """YAML loader that refuses a key given twice, where PyYAML would keep the last in silence."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                line = node.value[index][0].start_mark.line + 1
                raise BookError(f"{self.name}, line {line}: {key} is given twice")
        return super().construct_mapping(node, deep)


def _read_profile(name, profile, where: str) -> dict[str, dict]:
    """Return notebook -> parameter -> value of one profile; a notebook or a list left empty has no values."""
    if not isinstance(name, str):
        raise BookError(f"{where}: profile {name!r}: expected a name that is text, got {type(name).__name__}")
    if not isinstance(profile, dict) or set(profile) - {"cell_timeout"} != {"description", "notebooks"}:
        expected = "expected the keys description and notebooks, and perhaps cell_timeout"
        raise BookError(f"{where}: profile {name}: {expected}, got {profile!r}")
    seconds = profile.get("cell_timeout", CELL_TIMEOUT)
    if type(seconds) is not int or seconds < 1:
        raise BookError(f"{where}: profile {name}, cell_timeout: expected whole seconds, at least 1, got {seconds!r}")
    notebooks = {} if profile["notebooks"] is None else profile["notebooks"]
    if not isinstance(notebooks, dict):
        raise BookError(f"{where}: profile {name}, notebooks: expected notebook: parameters, got {notebooks!r}")
    for stem, values in notebooks.items():
        if not isinstance(values, dict | None):
            raise BookError(f"{where}: profile {name}, {stem}: expected parameter: value, got {values!r}")
    return {stem: values or {} for stem, values in notebooks.items()}


def _read_tree(path: Path) -> dict:
    """Return profile -> what profiles.yml says of it."""
    try:
        with path.open(encoding="utf-8") as stream:
            tree = yaml.load(stream, _UniqueKeys)
    except FileNotFoundError:
        raise BookError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise BookError(f"{path}: expected text in UTF-8, got {_bad_byte(error)}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        raise BookError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict) or set(tree) != {"profiles"} or not isinstance(tree["profiles"], dict):
        raise BookError(f"{path}: expected one top-level key, profiles, that maps names to profiles")
    return tree["profiles"]


def read_profiles(path: Path) -> dict[str, dict[str, dict]]:
    """Read profiles.yml.

    Args:
        path: The file.

    Returns:
        Profile -> notebook (its name without .ipynb) -> parameter -> value.

    Raises:
        BookError: If the file is missing, is no YAML in UTF-8, repeats a key or has another layout.
    """
    return {name: _read_profile(name, profile, str(path)) for name, profile in _read_tree(path).items()}


def read_cell_timeout(path: Path, profile: str) -> int:
    """Return how long a cell may take in a profile.

    Args:
        path: The file profiles.yml.
        profile: The name of a profile in it.

    Returns:
        Seconds, ``CELL_TIMEOUT`` where the profile does not say.

    Raises:
        BookError: As :func:`read_profiles`.
    """
    read_profiles(path)  # refuses what cannot be meant
    return _read_tree(path)[profile].get("cell_timeout", CELL_TIMEOUT)


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a source notebook, which holds no outputs.

    Args:
        path: The notebook.

    Returns:
        The notebook, in format 4.

    Raises:
        BookError: If it is no notebook, or holds outputs or execution counts.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)  # reading only logs what is invalid
    except UnicodeDecodeError as error:
        raise BookError(f"{path.name}: not a notebook: expected text in UTF-8, got {_bad_byte(error)}") from None
    except (nbformat.ValidationError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise BookError(f"{path.name}: not a notebook: {str(error).splitlines()[0]}") from None
    stored = [n for n, c in enumerate(notebook.cells, 1) if c.get("outputs") or c.get("execution_count") is not None]
    if stored:
        raise BookError(f"{path.name}: outputs are stored in cell {stored[0]}; clear all outputs, then save")
    return notebook


def read_defaults(notebook: nbformat.NotebookNode, name: str) -> dict:
    """Read the literals of the parameters cell.

    Args:
        notebook: The notebook.
        name: Its name, for messages.

    Returns:
        Parameter -> default value.

    Raises:
        BookError: If there is not exactly one cell tagged parameters, or it holds anything but literals.
    """
    cells = [(n, c) for n, c in enumerate(notebook.cells, 1) if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise BookError(f"{name}: expected one cell tagged parameters, found {len(cells)}")
    number, cell = cells[0]
    try:
        statements = ast.parse(cell.source).body
    except SyntaxError as error:
        raise BookError(f"{name}: the parameters cell (cell {number}) is not valid Python: {error}") from None
    defaults = {}
    for node in statements:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        try:
            (target,) = targets
            value = ast.literal_eval(node.value)
            if not isinstance(target, ast.Name) or not isinstance(value, (*SCALARS, list, type(None))):
                raise ValueError
        except (AttributeError, TypeError, ValueError):
            raise BookError(
                f"{name}: parameters cell (cell {number}), line {node.lineno}: expected `name = literal` "
                f"(bool, int, float, str, list or None), got `{ast.unparse(node)}`"
            ) from None
        defaults[target.id] = value
    return defaults


def _expected_type(value, default) -> str | None:
    """Return what a parameter's value should be, or None where it already is."""
    if isinstance(default, list):
        kinds = {type(item) for item in default} or set(SCALARS)
        if float in kinds:
            kinds.add(int)
        if isinstance(value, list) and all(type(item) in kinds for item in value):
            return None
        return "list of " + " or ".join(sorted(kind.__name__ for kind in kinds))
    if default is None:
        return None if value is None or isinstance(value, str) else "str or None"
    kinds = {float, int} if isinstance(default, float) else {type(default)}
    return None if type(value) in kinds else type(default).__name__


def check_values(values: dict, defaults: dict, where: str) -> list[str]:
    """Compare values with the defaults they replace.

    Args:
        values: Parameter -> value.
        defaults: Parameter -> default, from `read_defaults`.
        where: What the messages start with.

    Returns:
        One message per unknown parameter or wrong type; empty where all is well.
    """
    findings = []
    for key, value in values.items():
        if key not in defaults:
            near = difflib.get_close_matches(str(key), defaults, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            findings.append(f"{where}: no parameter named {key}; {hint}known: {', '.join(defaults)}")
        elif expected := _expected_type(value, defaults[key]):
            hint = ""
            if isinstance(value, str) and "e" in value.lower() and expected == "float":
                hint = " (YAML reads 1e-3 as text: write 1.0e-3)"
            findings.append(
                f"{where}: {key}: expected {expected} (the default is {defaults[key]!r}), "
                f"got {type(value).__name__} {value!r}{hint}"
            )
    return findings


def _as_default(value, default):
    """Turn whole numbers into floats where the default is a float, as -4 for -4.0."""
    if isinstance(default, float):
        return float(value)
    if isinstance(default, list) and float in map(type, default):
        return [float(item) if type(item) is int else item for item in value]
    return value


def _parse_setting(setting: str) -> tuple[str, str, object]:
    """Split NOTEBOOK.PARAMETER=VALUE, the value read as YAML."""
    target, equals, text = setting.partition("=")
    stem, dot, key = target.rpartition(".")
    if not (equals and dot and stem and key):
        raise BookError(f"--set {setting}: expected NOTEBOOK.PARAMETER=VALUE")
    try:
        return stem, key, yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise BookError(f"--set {setting}: the value is not valid YAML") from None


def plan_runs(source: Path, profile: str, settings: list[str] | tuple = ()) -> dict[str, dict]:
    """Decide what each notebook runs with, and refuse what cannot be meant.

    Args:
        source: The book's folder, with profiles.yml and notebooks/.
        profile: The name of a profile.
        settings: Overrides, each NOTEBOOK.PARAMETER=VALUE.

    Returns:
        Notebook (its name without .ipynb) -> parameter -> value, for every notebook of the book.

    Raises:
        BookError: With every finding: unknown profile, notebook or parameter, wrong type, stored outputs, no
            parameters cell, no notebooks.
    """
    profiles = read_profiles(source / "profiles.yml")
    if profile not in profiles:
        raise BookError(f"unknown profile {profile}; known: {', '.join(profiles)}")
    findings, defaults = [], {}
    for path in sorted((source / "notebooks").glob("*.ipynb")):
        defaults[path.stem] = {}
        try:
            defaults[path.stem] = read_defaults(read_notebook(path), path.name)
        except BookError as error:
            findings += error.findings
    if not defaults:
        raise BookError(f"{source / 'notebooks'}: no notebooks")
    if findings:
        raise BookError(findings)
    wanted = [(f"profile {profile}", stem, values) for stem, values in profiles[profile].items()]
    wanted += [("--set", stem, {key: value}) for stem, key, value in map(_parse_setting, settings)]
    runs = {stem: {} for stem in defaults}
    for origin, stem, values in wanted:
        if stem in runs:
            wrong = check_values(values, defaults[stem], f"{origin}, {stem}")
            findings += wrong
            if not wrong:
                runs[stem] |= {key: _as_default(value, defaults[stem][key]) for key, value in values.items()}
        else:
            findings.append(f"{origin}: no notebook named {stem}; known: {', '.join(runs)}")
    if findings:
        raise BookError(findings)
    return runs
