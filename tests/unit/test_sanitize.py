"""The kernels under the address and undefined behaviour sanitizers, and the script that builds them so."""
import subprocess
import sys

import pytest
import sanitize


def test_copies_what_a_build_needs(tmp_path):
    """The copy has the sources and no kernels; copied again, what has not changed keeps its time."""
    sanitize.copy_tree(tmp_path)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    sanitize.copy_tree(tmp_path)

    assert (tmp_path / "setup.py").exists()
    assert len(list((tmp_path / "ext" / "kvps").glob("_*.pyx"))) >= 11
    assert not list(tmp_path.rglob("*.so"))
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.slow
def test_kernels_under_sanitizers(tmp_path):
    """The tests of the kernels run clean in a build with sanitizers."""
    if sanitize.libraries() is None:
        pytest.skip("gcc has no libasan.so and libubsan.so here")
    tests = ["tests/unit/test_kernels.py", "tests/unit/test_pages.py", "tests/property/test_kernels.py"]

    done = subprocess.run([sys.executable, sanitize.__file__, "--keep", str(tmp_path / "copy"), *tests], capture_output=True,
                          text=True, check=False, timeout=1800)

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
