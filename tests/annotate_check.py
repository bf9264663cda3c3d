"""Check that kernels stay free of Python: Cython must score 0 for every line inside a nogil function.

    python tests/annotate_check.py

Translates ext/kvps with the settings of setup.py (KVPS_ANNOTATE=1) in a temporary folder; nothing is compiled. Prints
each line that touches Python and ends with exit code 1 if there is one.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LINE = re.compile(r'<pre class="cython line score-(\d+)"[^>]*>.*?<span class="">(\d+)</span>')


def nogil_lines(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) of the bodies of all functions declared nogil and of all `with nogil` blocks."""
    body_of = None  # indentation of the header whose body we are in
    header = None  # indentation of a header whose brackets are still open
    n_open = 0
    for number, line in enumerate(source.splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        indent = len(line) - len(line.lstrip())
        code = text.split("#")[0].rstrip()
        if body_of is not None and indent <= body_of:
            body_of = None
        if body_of is not None:
            yield number, line
        elif header is not None or re.match(r"(cdef|cpdef)\b.*\(", code):
            header = indent if header is None else header
            n_open += code.count("(") - code.count(")")
            if n_open <= 0:
                body_of = header if re.search(r"\bnogil:$", code) else None
                header, n_open = None, 0
        elif code == "with nogil:":
            body_of = indent


def python_lines(source: str, html: str) -> list[tuple[int, str]]:
    """Return the lines of nogil code that Cython's annotation scores above 0."""
    scores = {int(number): int(score) for score, number in _LINE.findall(html)}
    if len(scores) < len(source.splitlines()) // 2:
        raise ValueError("the annotation does not look as expected: has Cython changed its format?")
    return [(number, line) for number, line in nogil_lines(source) if scores.get(number)]


def translate(folder: Path) -> None:
    """Copy what setup.py reads to `folder` and translate the kernels there, with annotations."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "ext", folder / "ext")
    (folder / "kvps").mkdir()
    subprocess.run([sys.executable, "setup.py", "--quiet", "--name"], cwd=folder, check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, "KVPS_ANNOTATE": "1"})


def main() -> int:
    """Check all kernels; return the exit code."""
    n_lines = 0
    bad = []
    with tempfile.TemporaryDirectory() as folder:
        translate(Path(folder))
        kernels = sorted((ROOT / "ext" / "kvps").glob("_*.pyx"))
        for kernel in kernels:
            source = (Path(folder) / "ext" / "kvps" / kernel.name).read_text(encoding="utf-8")
            html = (Path(folder) / "build/cython/ext/kvps" / f"{kernel.stem}.html").read_text(encoding="utf-8")
            n_lines += sum(1 for _ in nogil_lines(source))
            bad += [f"ext/kvps/{kernel.name}:{number} touches Python: {line.strip()}"
                    for number, line in python_lines(source, html)]
    print(*bad, sep="\n", end="\n" if bad else "")
    print(f"annotate check: {len(kernels)} kernels, {n_lines} lines without the GIL, {len(bad)} of them touch Python")
    return 1 if bad or not n_lines else 0


if __name__ == "__main__":
    sys.exit(main())
