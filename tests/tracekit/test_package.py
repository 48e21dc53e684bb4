"""The architecture, read off the source: who imports whom, what is public, how long a file is, what the wheel holds."""

import ast
import importlib
import pkgutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

import tracekit

ROOT = Path(tracekit.__file__).parents[1]
PACKAGES = ("tracekit", "recorders", "replay", "reports")
ALLOWED = {
    "tracekit": {"tracekit"},
    "recorders": {"recorders", "tracekit"},
    "replay": {"replay", "tracekit"},
    "reports": {"reports", "replay", "tracekit"},
}
LONGEST_FILE = 400
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


@cache
def tree_of(file):
    return ast.parse(file.read_text("utf-8"))


@cache
def imported(file):
    """Full names of the modules that a file imports, wherever in it."""
    names = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.append(str(node.module))
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_downwards(package):
    """recorders → tracekit, replay → tracekit, reports → replay; only the command line knows all of them."""
    for file in (ROOT / package).rglob("*.py"):
        if file.is_relative_to(ROOT / "tracekit" / "cli"):
            continue
        ours = {name.split(".")[0] for name in imported(file)} & set(PACKAGES)
        assert ours <= ALLOWED[package], f"{file.relative_to(ROOT)} imports {sorted(ours - ALLOWED[package])}"


def test_nothing_imports_the_command_line():
    for file in FILES:
        if not file.is_relative_to(ROOT / "tracekit" / "cli"):
            assert not [name for name in imported(file) if name.startswith("tracekit.cli")], file


def test_tests_are_not_imported():
    for file in FILES:
        assert not [name for name in imported(file) if name.split(".")[0] in ("tests", "pytest", "transformers")], file


def test_the_vocabulary_does_not_know_the_mechanism():
    """Modules that everything stands on import no package of `tracekit` that stands on them."""
    lowest = ("actions", "camera", "digest", "errors", "keys", "layout", "observation", "philox", "_fields")
    packages = {file.parent.name for file in (ROOT / "tracekit").glob("*/__init__.py")} - {"pruning"}
    for name in lowest:
        for module in imported(ROOT / "tracekit" / f"{name}.py"):
            parts = module.split(".")
            assert parts[0] != "tracekit" or parts[1] not in packages, f"{name} imports {module}"


def test_files_are_short():
    lengths = {file.relative_to(ROOT).as_posix(): len(file.read_text("utf-8").splitlines()) for file in FILES}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def public_packages():
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield package
        for info in pkgutil.walk_packages(package.__path__, f"{name}."):
            if info.ispkg and not any(part.startswith("_") for part in info.name.split(".")):
                yield importlib.import_module(info.name)


@pytest.mark.parametrize("package", list(public_packages()), ids=lambda package: package.__name__)
def test_what_a_package_offers_is_listed_sorted_and_there(package):
    listed = package.__all__
    assert list(listed) == sorted(listed, key=_sort_key)
    assert len(set(listed)) == len(listed)
    for name in listed:
        assert getattr(package, name) is not None
        assert not name.startswith("_")
    tree = tree_of(Path(package.__file__))
    names = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == package.__name__.split(".")[0]:
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    public = {name for name in names if not name.startswith("_")}
    used_inside = {name for name in public if _is_used(tree, name)}
    assert public - used_inside <= set(listed), f"imported and not offered: {sorted(public - set(listed))}"


def _sort_key(name):
    """CONSTANTS, then Classes, then functions, as ruff sorts `__all__`."""
    rank = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return rank, name


def _is_used(tree, name):
    """Whether a module works with what it imported, rather than handing it on."""
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(tree))


def test_every_module_lists_what_it_offers():
    for file in FILES:
        where, tree = file.relative_to(ROOT).as_posix(), tree_of(file)
        defined, listed = set(), None
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.ImportFrom):
                defined |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = {target.id for target in targets if isinstance(target, ast.Name)}
                defined |= names
                if names == {"__all__"}:
                    listed = ast.literal_eval(node.value)
        if listed is None:
            assert file.stem.startswith("_"), f"{where} is public and has no __all__"
        else:
            assert listed == sorted(listed, key=_sort_key), where
            assert set(listed) <= defined, where


def test_packages_are_typed():
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()
        assert (ROOT / package / "__init__.py").is_file()


def test_importing_the_vocabulary_loads_no_torch():
    script = "import sys, tracekit, tracekit.errors; print([m for m in ('torch', 'numpy', 'zarr') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_wheel_installs_four_names_and_no_test(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("mla_tracekit-")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        entry_points = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert not [name for name in names if "test" in name.rsplit("/", 1)[-1] and not name.startswith("tracekit/testing")]
    assert "tracekit/presets/default.toml" in names
    assert {"replay/grids/fig7.toml", "tracekit/samples/sample.zarr/zarr.json"} <= set(names)
    assert "tracekit/py.typed" in names
    assert "tracekit = tracekit.cli:main" in entry_points
