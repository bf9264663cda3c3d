"""Build all kernels with the address and undefined behaviour sanitizers, and run tests with them.

    python tests/sanitize.py [--keep FOLDER] [PYTEST ARGUMENT...]          TESTS by default

Works on a copy of the tree in a temporary folder (or in FOLDER, which stays and is brought up to date by the next run),
so that the checkout keeps its own kernels. Needs what building kvps needs, and gcc's libasan and libubsan. Leaks are not
looked for: CPython leaves memory behind at exit. The first report ends a run, with a line of a kernel and an exit code
other than 0.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# With these every kernel is run.
TESTS = ["tests/unit", "tests/property", "tests/e2e/test_import.py", "tests/e2e/test_compat_kenlm.py"]
# What a build needs and what the tests read.
PARTS = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore", ".ci", "ext", "kvps",
         "tests", "bench"]


def copy_tree(target):
    """Copy the sources to a folder; files that have not changed keep their times, so that only what changed is built."""
    for part in PARTS:
        source = ROOT / part
        if source.is_file():
            refresh(source, target / part)
        for file in source.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".so":
                refresh(file, target / file.relative_to(ROOT))


def refresh(source, target):
    """Copy a file where the target differs."""
    if target.exists() and target.read_bytes() == source.read_bytes():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def libraries():
    """Return the sanitizers' libraries for LD_PRELOAD, or None where gcc has none."""
    found = []
    for name in ("libasan.so", "libubsan.so"):
        try:
            path = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None
        if not os.path.isabs(path):            # gcc repeats the name of what it does not have
            return None
        found.append(os.path.realpath(path))
    return found


def environment(copy, preload):
    """Return the environment of a run."""
    return {**os.environ, "PYTHONPATH": str(copy), "LD_PRELOAD": " ".join(preload),
            # Python's own allocator would hide where an object ends.
            "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:handle_segv=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1"}


def build(copy):
    """Build the kernels of a copy."""
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=copy, check=True,
                   env={**os.environ, "KVPS_SANITIZE": "1"})


def run(copy, arguments):
    """Run pytest in a copy; return its exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=copy, env=environment(copy, libraries()), check=False).returncode


def main():
    """Copy, build, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the copy is made, and stays")
    known, arguments = parser.parse_known_args()
    if libraries() is None:
        sys.exit("gcc has no libasan.so and libubsan.so here")
    with tempfile.TemporaryDirectory(prefix="kvps-sanitize-") as scratch:
        copy = (known.keep or Path(scratch) / "kvps").resolve()
        copy_tree(copy)
        build(copy)
        sys.exit(run(copy, arguments or TESTS))


if __name__ == "__main__":
    main()
