"""Build the Cython kernels: ext/kvps/_x.pyx becomes the module kvps._x.

Everything declarative is in pyproject.toml.
KVPS_CYTHON_DEBUG=1 builds with bounds checks and assertions; KVPS_SANITIZE=1 with the address and undefined behaviour
sanitizers (tests/sanitize.py); KVPS_ANNOTATE=1 writes the HTML for the annotate check.
"""
import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("KVPS_CYTHON_DEBUG") == "1"
SANITIZE = os.environ.get("KVPS_SANITIZE") == "1"
ANNOTATE = os.environ.get("KVPS_ANNOTATE") == "1"
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

# No -march=native: a wheel must run on every machine of its platform. No products and sums in one: what two kernels add up is
# equal to the last bit on all of them.
COMPILE = ["-ffp-contract=off", *(["-O0", "-g"] if DEBUG else ["-O3", "-g0", "-fno-plt"])]
LINK = []
if SANITIZE:
    # Stack frames as they are written, so that a report names its line.
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    COMPILE, LINK = ["-ffp-contract=off", "-O1", "-g", "-fno-omit-frame-pointer", *sanitizers], sanitizers

# What Cython needs for typed memory views stands here once, not in each kernel: two fifths of the time to compile, and of the size.
SHARED = "kvps._cython"

extensions = [
    Extension(SHARED, ["ext/kvps/_cython.c"], extra_compile_args=COMPILE, extra_link_args=LINK),   # made by Cython
    *(Extension(
        f"kvps.{path.stem}",
        [str(path)],
        language="c++",
        include_dirs=["ext/kvps"],
        depends=sorted(str(header) for header in Path("ext/kvps").glob("*.hpp")),
        extra_compile_args=["-std=c++17", *COMPILE],
        extra_link_args=LINK,
    ) for path in sorted(Path("ext/kvps").glob("_*.pyx"))),
]

if __name__ == "__main__":         # not in the processes that Cython starts
    setup(
        options={"build_ext": {"parallel": CPUS}},
        ext_modules=cythonize(
            extensions,
            nthreads=CPUS,
            include_path=["ext"],
            build_dir="build/cython",
            annotate=ANNOTATE,
            shared_utility_qualified_name=SHARED,
            language_level=3,
            compiler_directives={
                "boundscheck": DEBUG,
                "wraparound": False,
                "initializedcheck": DEBUG,
                "cdivision": True,
                "embedsignature": True,
            },
        )
    )
