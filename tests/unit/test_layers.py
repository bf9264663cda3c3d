"""The architecture: modules import downwards only, and each outside library comes in at one place.

    cli  >  jobs api compat  >  lm  >  ps  >  store text  >  kernels (kvps._x)  >  errors units pools

bench and tests may import anything; nothing imports them.
"""
import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kvps"
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))
KERNELS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "ext").rglob("*.p[yx][xd]"))

# A new room or module of the package gets its layer here.
LAYER = {
    "errors": 0, "units": 0, "pools": 0,
    # 1: kernels
    "text": 2, "store": 2,
    "ps": 3,
    "lm": 4,
    "jobs": 5, "api": 5, "compat": 5, "testing": 5, "__init__": 5,
    "cli": 6, "__main__": 6,
}
# Imports from a room of the same layer are sparing: these, and no others.
BESIDE = {
    "units": {"kvps.errors"},
    "text": {"kvps.store.files"},
    "api": {"kvps.jobs"},
    "compat": {"kvps.api"},
    "testing": {"kvps.api"},
    "__init__": {"kvps.api"},
    "__main__": {"kvps.cli"},
}
# Who alone may import a library.
ALONE = {
    "lmdb": ["kvps/store/environment.py"],
    "click": ["kvps/cli/"],
    "zmq": ["kvps/ps/connection.py", "kvps/ps/server.py"],
    "ray": ["kvps/ps/ray.py"],
    "pyctcdecode": ["kvps/compat/pyctcdecode.py"],
    "flashlight": ["kvps/compat/flashlight.py"],
    "bench": [],
    "tests": [],
}
# Libraries of those who have them already: adapters for them, which ask for nothing. (pyctcdecode wants an older NumPy.)
THEIRS = {"pyctcdecode", "flashlight"}


def room(module):
    """Return the room of a dotted module name: "text" for kvps.text.corpus, "__init__" for kvps itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def layer(module):
    """Return the layer of a dotted module name of the package; KeyError where it has none."""
    return 1 if room(module).startswith("_") and not room(module).startswith("__") else LAYER[room(module)]


def imports(tree, package):
    """Yield (line, dotted name) of all that a module imports, wherever in it; `package` resolves relative names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def imports_of(path):
    """Return the imports of one module of the package, given by its path in the checkout."""
    package = ".".join(Path(path).parent.parts)
    return list(imports(ast.parse((ROOT / path).read_text(encoding="utf-8")), package))


def dotted(path):
    """Return the dotted name of a module given by its path in the checkout."""
    return ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")


def may_import(importer, imported):
    """Return whether one module of the package may import a name from another."""
    if imported == "kvps" or (imported.startswith("kvps.") and room(imported) not in LAYER
                              and not room(imported).startswith("_")):
        return layer(importer) == 6  # a public name of the package itself, which is made of everything
    own, other = room(importer), room(imported)
    if own == other:
        return True
    if layer(imported) == layer(importer):
        return any(imported == name or imported.startswith(name + ".") for name in BESIDE.get(own, ()))
    return layer(imported) < layer(importer)


def test_there_are_modules():
    """The test sees the package."""
    assert {"kvps/errors.py", "kvps/text/corpus.py", "kvps/store/environment.py"} <= set(MODULES)


@pytest.mark.parametrize("path", MODULES)
def test_module_has_a_layer(path):
    """Every module of the package belongs to a layer that is written down."""
    assert room(dotted(path)) in LAYER


@pytest.mark.parametrize("path", MODULES)
def test_imports_point_down(path):
    """A module imports from lower layers, from its own room, and from few named neighbours."""
    up = [f"{path}:{line} imports {name}" for line, name in imports_of(path)
          if name.split(".")[0] == "kvps" and not may_import(dotted(path), name)]

    assert not up


@pytest.mark.parametrize("path", MODULES)
def test_libraries_come_in_at_one_place(path):
    """Only the named modules import lmdb, click, zmq, ray and what decodes speech; nothing imports bench or tests."""
    wrong = [f"{path}:{line} imports {name}" for line, name in imports_of(path)
             if name.split(".")[0] in ALONE and not path.startswith(tuple(ALONE[name.split(".")[0]]))]

    assert not wrong


@pytest.mark.parametrize("path", MODULES)
def test_libraries_are_declared(path):
    """Whatever is imported comes with Python, or is a declared dependency or extra, or has an adapter here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    names = {re.match(r"[\w-]+", line)[0].replace("-", "_").lower() for line in declared}
    names |= {"zmq"} if "pyzmq" in names else set()

    missing = [f"{path}:{line} imports {name}" for line, name in imports_of(path)
               if name.split(".")[0] not in {*sys.stdlib_module_names, *names, *THEIRS, "kvps"}]

    assert not missing


@pytest.mark.parametrize("path", KERNELS)
def test_kernels_know_only_kernels(path):
    """A kernel imports nothing of the package but other kernels, errors and units."""
    text = (ROOT / path).read_text(encoding="utf-8")
    names = re.findall(r"^\s*(?:from|cimport|import)\s+(kvps[\w.]*)", text, re.MULTILINE)

    assert [name for name in names if not re.match(r"kvps\.(_|errors\b|units\b)", name)] == []


@pytest.mark.parametrize(("importer", "imported", "allowed"), [
    ("kvps.lm.model", "kvps.store.shard.Shard", True), ("kvps.store.shard", "kvps.lm.model", False),
    ("kvps.text.spool", "kvps.store.files", True), ("kvps.text.spool", "kvps.store.shard.Shard", False),
    ("kvps.store.root", "kvps.text.tokenize", False), ("kvps.errors", "kvps.units.parse_bytes", False),
    ("kvps.text.tokenize", "kvps._text.first_invalid_utf8", True), ("kvps.jobs.train", "kvps.cli.main", False),
    ("kvps.jobs.train", "kvps.open", False), ("kvps.cli.train", "kvps.open", True), ("kvps", "kvps.api.Store", True)])
def test_the_rule_itself(importer, imported, allowed):
    """The rule says yes and no where the drawing does."""
    assert may_import(importer, imported) == allowed


def test_relative_imports_are_resolved():
    """A relative import counts as what it means."""
    tree = ast.parse("from . import a\nfrom .b import c\nfrom ..store import files\nimport x.y")

    assert list(imports(tree, "kvps.text")) == [
        (1, "kvps.text.a"), (2, "kvps.text.b.c"), (3, "kvps.store.files"), (4, "x.y")]
