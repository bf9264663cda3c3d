"""Nothing a store or a text says is run as code, no name leads out of its folder, no link out of a store."""
import ast
import os
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from kvps.cli import main
from kvps.errors import ArgumentError
from kvps.units import check_name

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "kvps").rglob("*.py"))
KERNELS = sorted(path for path in (ROOT / "ext").rglob("*") if path.suffix in (".pyx", ".pxd", ".pxi"))

# Reading what these write can run code.
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "pickletools", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_BUILTINS = {"eval", "exec", "compile", "__import__"}
UNSAFE_NAMES = {("os", "system"), ("os", "popen"), ("subprocess", "getoutput"), ("subprocess", "getstatusoutput"),
                ("yaml", "load"), ("yaml", "load_all"), ("yaml", "full_load"), ("yaml", "unsafe_load"),
                *(("builtins", name) for name in UNSAFE_BUILTINS)}
UNSAFE_METHODS = {"recv_pyobj", "send_pyobj"}
# Keywords that make a call unsafe, unless they are given as False.
UNSAFE_KEYWORDS = {"allow_pickle", "shell"}


def own_names(tree):
    """Return what a module defines or imports itself: there, `compile` is not Python's."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    imported = [alias for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]
    return names | {alias.asname or alias.name for alias in imported}


def found_in_python(source):
    """Return what in a module could run code that somebody else wrote, as (line, what)."""
    tree = ast.parse(source)
    builtins = UNSAFE_BUILTINS - own_names(tree)
    found = []
    for node in ast.walk(tree):
        hits = []
        if isinstance(node, ast.Import):
            hits = [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            hits = [f"{module}.{alias.name}" for alias in node.names
                    if module.split(".")[0] in UNSAFE_MODULES or (module, alias.name) in UNSAFE_NAMES]
        elif isinstance(node, ast.Name) and node.id in builtins:
            hits = [node.id]
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            hits = [node.attr] if (owner, node.attr) in UNSAFE_NAMES or node.attr in UNSAFE_METHODS else []
        elif isinstance(node, ast.Call):
            hits = [word.arg for word in node.keywords if word.arg in UNSAFE_KEYWORDS
                    and not (isinstance(word.value, ast.Constant) and word.value.value is False)]
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == "import_module":
                hits += [word.value for word in node.args if isinstance(word, ast.Constant) and word.value in UNSAFE_MODULES]
        found += [(node.lineno, hit) for hit in hits]
    return found


def found_in_cython(source):
    """Return the same of a Cython source, by its words: comments and texts are left out."""
    text = re.sub(r'"""(?s:.*?)"""', lambda match: "\n" * match[0].count("\n"), source)
    pattern = (rf"\b({'|'.join(sorted(UNSAFE_MODULES | UNSAFE_KEYWORDS | UNSAFE_METHODS))})\b"
               rf"|(?<![\w.])(?:{'|'.join(sorted(UNSAFE_BUILTINS))})\s*\("
               r"|\b(?:os\s*\.\s*(?:system|popen)|yaml)\b")
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        code = re.sub(r'"[^"\n]*"|\'[^\'\n]*\'', '""', line).split("#")[0]
        found += [(number, match[0]) for match in re.finditer(pattern, code)]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_runs_foreign_code(path):
    """No module of the package can turn data into code."""
    assert found_in_python(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_no_kernel_runs_foreign_code(path):
    """No kernel can either."""
    assert found_in_cython(path.read_text(encoding="utf-8")) == []


def test_scan_sees_the_package():
    """The scan looks at the package and its kernels, in whichever folder."""
    names = {path.relative_to(ROOT).as_posix() for path in MODULES}

    assert {"kvps/errors.py", "kvps/store/shard.py", "kvps/text/tokenize.py", "kvps/cli/train.py"} <= names
    assert {"_runs.pyx", "_types.pxd"} <= {path.name for path in KERNELS}


UNSAFE = ["import pickle", "import pickle as p", "from pickle import loads", "def f():\n    import marshal", "import shelve",
          "import dill.source", "eval('1')", "f = eval", "exec(text)", "compile(text, 'x', 'exec')",
          "__import__('pickle')", "import builtins\nbuiltins.eval('1')", "np.load(path, allow_pickle=True)",
          "np.load(path, allow_pickle=chosen)", "subprocess.run(line, shell=True)", "sp.Popen(line, shell=yes)",
          "os.system(line)", "os.popen(line)", "from os import system", "subprocess.getoutput(line)", "yaml.load(text)",
          "from yaml import unsafe_load", "importlib.import_module('pickle')", "socket.recv_pyobj()"]
SAFE = ["import re\nre.compile('x')", "from kvps.lm import compile\ncompile(1)", "def compile(x):\n    pass\ncompile(1)",
        "np.load(path)", "np.load(path, allow_pickle=False)", "subprocess.run(['a'], shell=False)", "'pickle and eval'",
        "yaml.safe_load(text)", "model.evaluate(text)", "# eval(x)", "'''exec(x)'''"]


@pytest.mark.parametrize("source", UNSAFE)
def test_scan_finds_unsafe_python(source):
    """The scan finds each of the ways that it is there to find."""
    assert found_in_python(f"x = 1\n{source}\n")


@pytest.mark.parametrize("source", SAFE)
def test_scan_leaves_safe_python_alone(source):
    """The scan takes nothing harmless for unsafe."""
    assert found_in_python(f"x = 1\n{source}\n") == []


@pytest.mark.parametrize(("source", "found"), [
    ("import pickle", True), ("from marshal cimport loads", True), ("    x = eval(text)", True), ("exec (text)", True),
    ("compile(text)", True), ("np.load(p, allow_pickle=True)", True), ("run(line, shell=True)", True),
    ("os.system(line)", True), ("yaml.load(text)", True), ('"""A text."""\nx = eval(y)  # why', True),
    ("# pickle", False), ('"""\nNo pickle here: eval(x).\n"""', False), ("x = 'pickle'", False), ("re.compile(x)", False),
    ("evaluate(x)", False), ("retrieval(x)", False)])
def test_scan_of_cython(source, found):
    """The scan of a kernel finds the same words in code, and not in comments and texts."""
    assert bool(found_in_cython(f"x = 1\n{source}\n")) == found


# Names


@pytest.mark.parametrize("name", ["a", "7", "_", "2026-11-23", "A.b-c_d", "x" * 64, "a..b", "con"])
def test_names_that_are_fine(name):
    """Letters, digits and a few signs make a name, which is returned as it is."""
    assert check_name("label", name) == name


@pytest.mark.parametrize("name", [
    "", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0", "\0", "a\n", "\na", "a b", " a", "-rf", ".hidden", "x" * 65,
    "x" * 4096, "ä", "a\u0308", "․․", "∕etc", "ａ", "a\u202eb", "a\u200b", "१", "\ud800", "~", "a:b", "a*", None, 7, b"a"])
def test_names_that_lead_elsewhere(name):
    """A name that is a path, hides, or looks like another is refused, and the message says what is allowed."""
    with pytest.raises(ArgumentError, match="cannot be the name of a label: use 1 to 64 of the letters") as caught:
        check_name("label", name)
    assert len(str(caught.value)) < 800
    assert "\n" not in str(caught.value)


@given(st.text(max_size=80) | st.from_regex(r"[A-Za-z0-9_.\-/\n]{1,70}", fullmatch=True))
@example("a\n")
@example("..")
def test_names_stay_in_their_folder(name):
    """Whatever is accepted is one visible plain entry of its folder; all that is such by the rule is accepted."""
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
    expected = 1 <= len(name) <= 64 and set(name) <= allowed and name[0] not in ".-"
    try:
        assert check_name("checkpoint", name) == name
        accepted = True
    except ArgumentError:
        accepted = False

    assert accepted == expected
    if accepted:
        assert os.path.normpath(os.path.join("/folder", name)) == f"/folder/{name}"


# Links


def kvps(*arguments):
    """Run a command in this process and return its exit code, stdout and stderr."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def snapshot(path):
    """Return name, mode, time of change and contents of a file, or of all that is below a folder."""
    def one(entry):
        found = entry.lstat()
        return str(entry), found.st_mode, found.st_mtime_ns, entry.read_bytes() if entry.is_file() else None
    return [one(entry) for entry in (path, *sorted(path.rglob("*")))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with a compiled model, as a writer and a reader leave it."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text").write_text("the cat sat on the mat\nthe dog sat\n")
    (folder / "more").write_text("a cat and a dog\n")
    assert kvps("train", folder / "store", folder / "text", "-o", 2, "--shards", 2)[0] == 0
    assert kvps("perplexity", folder / "store", folder / "more")[0] == 0
    return folder


def test_linked_parts_of_a_store(made, tmp_path):
    """A file or folder of a store that is a link is refused by whoever would follow it, in one line; its target stays."""
    parts = [path.relative_to(made / "store") for path in sorted((made / "store").rglob("*"))]
    for number, part in enumerate(parts):
        place = tmp_path / str(number)
        shutil.copytree(made / "store", place / "store")
        shutil.move(place / "store" / part, place / "elsewhere")
        (place / "store" / part).symlink_to(place / "elsewhere")
        before = snapshot(place / "elsewhere")
        refused = set()
        score = ("perplexity", made / "more")
        for command in (score, ("update", made / "more"), ("compact",), score):
            code, out, err = kvps(command[0], place / "store", *command[1:])
            if code:
                refused.add(command[0])
                assert (code, out, err.count("\n")) == (1, "", 1), (part, command, out, err)
                assert str(place / "store") in err and "link" in err, (part, command, err)
            assert snapshot(place / "elsewhere") == before, (part, command)
        if part.suffix == ".kvm":              # derived: made anew, in the place of the link
            assert not refused, part
        elif part.parts[0] == "models":        # of no use to who writes counts
            assert refused == {"perplexity"}, part
        else:
            assert refused == {"update", "compact", "perplexity"}, part
    assert len(parts) >= 10


def test_link_to_a_whole_store(made, tmp_path):
    """The store itself may be named by a link: it is the user's own word."""
    (tmp_path / "link").symlink_to(made / "store")

    assert kvps("perplexity", tmp_path / "link", made / "more")[0] == 0
