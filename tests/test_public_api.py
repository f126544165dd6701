"""What users import exists and is documented; what docstrings cite is in references.bib."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pyro_invariance

ROOT = Path(__file__).resolve().parents[1]
CITATION = re.compile(r"\b[a-z]+(?:19|20)\d\d[a-z]+\b")  # family name, year, first word of the title
BIB_ENTRY = re.compile(r"^@\w+\{([^,\s]+),", re.MULTILINE)


def undocumented(namespace: object, names: list[str]) -> list[str]:
    """Return the names that are missing or have no docstring of their own (a dataclass makes up `Name(field, ...)`)."""
    found = []
    for name in names:
        if name.startswith("__"):
            continue
        value = getattr(namespace, name, None)
        text = getattr(value, "__doc__", None) or ""
        if value is None or not text.strip() or text.startswith(f"{name}(") or text == type(value).__doc__:
            found.append(name)
    return found


def undocumented_methods(module: ModuleType) -> list[str]:
    """Return the methods and properties of a module's public classes that neither have nor inherit a docstring."""
    found = []
    for name, value in vars(module).items():
        if name.startswith("_") or not inspect.isclass(value) or value.__module__ != module.__name__:
            continue
        for member, method in vars(value).items():
            if member.startswith("_") or member in getattr(value, "__dataclass_fields__", {}):
                continue
            takes_doc = inspect.isfunction(method) or isinstance(method, property | classmethod | staticmethod)
            documented = any(getattr(vars(base).get(member), "__doc__", None) for base in value.__mro__)
            if takes_doc and not documented:
                found.append(f"{module.__name__}.{name}.{member}")
    return found


def cited(folder: Path) -> dict[str, str]:
    """Return every key cited in the Python and Markdown files of a folder, with one file that cites it."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in {".py", ".md"}]
    return {
        key: str(path.relative_to(ROOT)) for path in files for key in CITATION.findall(path.read_text(encoding="utf-8"))
    }


def test_all_is_complete_and_documented():
    assert len(set(pyro_invariance.__all__)) == len(pyro_invariance.__all__)
    assert undocumented(pyro_invariance, pyro_invariance.__all__) == []


def test_undocumented_mutants_are_reported():
    def documented() -> None:
        """Do nothing."""

    def bare() -> None:
        pass

    automatic = type("automatic", (), {"__doc__": "automatic(field: int)"})
    namespace = SimpleNamespace(documented=documented, bare=bare, automatic=automatic, constant=3.0)
    names = ["documented", "bare", "automatic", "constant", "missing", "__version__"]
    assert undocumented(namespace, names) == ["bare", "automatic", "constant", "missing"]


def test_methods_are_documented():
    modules = [info.name for info in pkgutil.walk_packages(pyro_invariance.__path__, "pyro_invariance.")]
    assert [name for module in modules for name in undocumented_methods(importlib.import_module(module))] == []


def test_undocumented_method_mutant_is_reported():
    module = ModuleType("gadgets")
    exec(
        "class Base:\n"
        "    def turn(self):\n"
        "        'Turn.'\n"
        "    def shift(self): ...\n"
        "class Gadget(Base):\n"
        "    def turn(self): ...\n"
        "    @property\n"
        "    def size(self): ...\n",
        vars(module),
    )
    assert undocumented_methods(module) == ["gadgets.Base.shift", "gadgets.Gadget.size"]


def test_public_functions_have_annotations():
    for name in pyro_invariance.__all__:
        value = getattr(pyro_invariance, name)
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            bare = [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
            assert bare == [], name
            assert signature.return_annotation is not inspect.Signature.empty, name


def test_references_resolve():
    keys = BIB_ENTRY.findall((ROOT / "references.bib").read_text(encoding="utf-8"))
    assert len(keys) == len(set(keys))
    assert all(CITATION.fullmatch(key) for key in keys)
    citations = cited(ROOT / "pyro_invariance") | cited(ROOT / "models")
    missing = {key: path for key, path in citations.items() if key not in keys}
    assert missing == {}


def test_citation_pattern():
    text = "Kernels as in [vanderwilk2018learning] and [kondor2008group], not sha 3f2019ab, float64 or arm2024."
    assert CITATION.findall(text) == ["vanderwilk2018learning", "kondor2008group"]
