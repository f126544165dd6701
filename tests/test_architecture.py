"""Imports point down: a module may import modules of earlier rows only, entries of the zoo import the core only."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "pyro_invariance"

LAYERS = (
    ("numerics", "typing"),
    ("devices",),
    ("representations",),
    ("features",),
    ("groups",),
    ("matrix_groups", "deformations"),
    ("densities",),
    ("blobs", "sites", "posed"),
    ("canonical", "prototypes"),
    ("orbits",),
    ("quadrature",),
    ("kernels", "molecular", "sphere", "toroidal"),
    ("force_field",),
    ("averaged",),
    ("interdomain",),
    ("processes",),
    ("charges",),
    ("sparse",),
    ("collapsed",),
    ("priors",),
    ("guides",),
    ("traces", "trained"),
    ("evidence.base", "evidence.watched"),
    ("evidence.importance", "evidence.mapped", "evidence.sitewise"),
    ("evidence.checks",),
    ("evidence.problem",),
    ("evidence.laplace", "evidence.variational", "evidence.incremental"),
    ("evidence.fitted",),
    ("evidence.weights",),
    ("evidence.*",),
    ("evidence",),  # its __init__, which only re-exports
    ("reference",),
    ("inference_data",),
    ("arrays", "downloads"),
    ("datasets",),
    ("zoo",),
    ("modes", "orbit_process", "profiles"),
    ("posed_process",),
    ("sums",),
    ("fitting", "sparse_fitting"),
    ("sparse_classes",),
    ("calibration", "diagnostics", "runs", "verdict"),
    ("carrying", "scrutiny", "sweep"),
    ("results",),
    ("sensitivity",),
    ("selection",),
    ("examination",),
    ("plotting.base",),
    ("plotting.*",),
    ("plotting",),
    ("export", "report"),
    ("cli",),
    ("__init__",),
)
RIM = {"plotting", "export", "report", "cli", "__init__"}


def row(module: str) -> int | None:
    """Return the layer of a module, or None if it has none; a name of its own goes before a wildcard."""
    parent = module.rpartition(".")[0]
    for name in (module, f"{parent}.*"):
        for number, names in enumerate(LAYERS):
            if name in names:
                return number
    return None


def name_of(path: Path, folder: Path) -> str:
    """Return `evidence.base` for evidence/base.py, `evidence` for evidence/__init__.py, `__init__` for the root's."""
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def read(folder: Path) -> dict[str, str]:
    return {name_of(path, folder): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}


def imported(source: str, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Yield line and target of each import of this package, wherever it stands; a relative one has target `.`."""

    def inside(dotted: str) -> str:
        return dotted.removeprefix(PACKAGE).lstrip(".") or "__init__"

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            dotted_names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "."
            continue
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            dotted_names = [name if inside(name) in modules else node.module for name in submodules]
        else:
            continue
        for dotted in dotted_names:
            if dotted == PACKAGE or dotted.startswith(f"{PACKAGE}."):
                yield node.lineno, inside(dotted)
            elif dotted == "models" or dotted.startswith("models."):
                yield node.lineno, dotted


def core_violations(sources: dict[str, str]) -> list[str]:
    found = []
    for module, source in sources.items():
        own = row(module)
        if own is None:
            found.append(f"{module} is in no layer: add it to LAYERS")
            continue
        for line, target in imported(source, set(sources)):
            other = row(target)
            if target == ".":
                found.append(f"{module}:{line} has a relative import")
            elif target == "__init__":
                found.append(f"{module}:{line} imports the root")
            elif other is None:
                found.append(f"{module}:{line} imports {target}, which is in no layer")
            elif other >= own:
                found.append(f"{module}:{line} imports {target}, which is not below it")
    return found


def entry_violations(sources: dict[str, str], core: set[str]) -> list[str]:
    found = []
    for entry, source in sources.items():
        for line, target in imported(source, core):
            if target == "." or target.split(".")[0] == "models":
                found.append(f"models/{entry}:{line} imports another entry")
            elif target in RIM:
                found.append(f"models/{entry}:{line} imports {target}, which is not for entries")
            elif target not in core:
                found.append(f"models/{entry}:{line} imports {target}, which does not exist")
    return found


def test_imports_of_the_core_point_down():
    assert core_violations(read(ROOT / PACKAGE)) == []


def test_entries_import_only_the_core():
    assert entry_violations(read(ROOT / "models"), set(read(ROOT / PACKAGE))) == []


def third_party(source: str) -> set[str]:
    """Return the distributions that a source imports, by the names they are installed under."""
    tops = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            tops |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            tops.add(node.module.split(".")[0])
    renamed = {"pyro": "pyro-ppl", "sklearn": "scikit-learn"}
    return {renamed.get(top, top) for top in tops - sys.stdlib_module_names - {PACKAGE}}


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["dask"]
    declared = {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}
    sources = [*read(ROOT / PACKAGE).values(), *read(ROOT / "models").values()]
    assert set().union(*map(third_party, sources)) - declared == set()
    assert third_party("import os, pyro.nn\nfrom sklearn import svm\nfrom numba import jit") - declared == {"numba"}


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / PACKAGE).rglob("*.py")}
    expected = {".".join(folder.parts) for folder in folders} | {f"{PACKAGE}.models"}
    assert set(settings["packages"]) == expected
    assert all((ROOT / folder).is_dir() for folder in settings["package-dir"].values())


DOWNWARD = {
    "numerics": "import torch",
    "groups": "from pyro_invariance.numerics import x",
    "orbits": "from pyro_invariance import groups\nimport pyro_invariance.densities",
    "densities": "",
    "evidence.base": "from pyro_invariance import groups",
    "evidence.exact": "from pyro_invariance.evidence import base\nfrom pyro_invariance.evidence.base import Evidence",
    "evidence": "from pyro_invariance.evidence.exact import exact",
    "__init__": "from pyro_invariance.orbits import Orbit",
}


def test_downward_imports_pass():
    assert core_violations(DOWNWARD) == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("groups", "from pyro_invariance.orbits import Orbit", "imports orbits, which is not below it"),
        ("groups", "from pyro_invariance import orbits", "imports orbits, which is not below it"),
        ("groups", "import pyro_invariance.orbits as o", "imports orbits, which is not below it"),
        ("groups", "def f():\n    from pyro_invariance.orbits import Orbit", "imports orbits, which is not below it"),
        ("typing", "from pyro_invariance.numerics import x", "imports numerics, which is not below it"),
        ("evidence.laplace", "from pyro_invariance.evidence.exact import exact", "imports evidence.exact, which"),
        ("evidence.laplace", "from pyro_invariance.evidence import Evidence", "imports evidence, which is not below"),
        ("orbits", "from pyro_invariance import Evidence", "imports the root"),
        ("orbits", "import pyro_invariance as pi", "imports the root"),
        ("orbits", "from .groups import Cyclic", "has a relative import"),
        ("orbits", "from . import groups", "has a relative import"),
        ("zoo", "import pyro_invariance.models.toy", "imports models.toy, which is in no layer"),
        ("zoo", "from models import toy", "imports models, which is in no layer"),
        ("gadgets", "", "is in no layer"),
    ],
)
def test_mutant_is_reported(module: str, source: str, complaint: str):
    found = core_violations(DOWNWARD | {module: source})
    assert len(found) == 1
    assert found[0].startswith(module)
    assert complaint in found[0]


@pytest.mark.parametrize(
    "source",
    [
        "from pyro_invariance.models.other import model",
        "from pyro_invariance.models import other",
        "from models import other",
        "from . import other",
        "from pyro_invariance.cli import main",
        "from pyro_invariance import plotting",
        "import pyro_invariance",
        "from pyro_invariance.gadgets import x",
    ],
)
def test_mutant_entry_is_reported(source: str):
    core = {*DOWNWARD, "plotting", "cli"}
    assert entry_violations({"toy": "from pyro_invariance.groups import Cyclic"}, core) == []
    assert len(entry_violations({"toy": source}, core)) == 1
