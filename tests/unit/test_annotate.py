"""The annotate check finds what it should: Python inside a nogil function, and nothing else."""
import annotate_check
import pytest

SOURCE = '''\
def boundary(n):                       # 1
    cdef long total = f(n) + (1)       # 2
    with nogil:                        # 3
        total = f(total)               # 4
    return total                       # 5


cdef long f(                           # 8
    long n,                            # 9
) noexcept nogil:                      # 10
    """Return more."""
    cdef long i = g(n) + 1             # 12

    # A comment.
    return i                           # 15


cdef object g(long n):                 # 18
    return n                           # 19


cdef class C:                          # 22
    cdef void run(self) noexcept nogil:  # 23
        with gil:                      # 24
            print("Python")            # 25

    def stop(self):                    # 27
        return None                    # 28
'''


def test_lines_without_the_gil():
    """Bodies of nogil functions, methods and blocks are found by their indentation, and no other lines."""
    assert [number for number, _ in annotate_check.nogil_lines(SOURCE)] == [4, 11, 12, 15, 24, 25]


def test_python_is_found(tmp_path):
    """A line that Cython scores above 0 is reported if it runs without the GIL."""
    from Cython.Build import cythonize
    source = SOURCE.replace("cdef object g(long n):", "cdef long g(long n) noexcept nogil:")
    (tmp_path / "sample.pyx").write_text(source)

    cythonize([str(tmp_path / "sample.pyx")], annotate=True, quiet=True, language_level=3, build_dir=str(tmp_path))

    html = next(tmp_path.rglob("sample.html")).read_text()
    assert [number for number, _ in annotate_check.python_lines(source, html)] == [24, 25]


def test_another_format_is_noticed():
    """Where the annotation cannot be read, the check fails rather than finding nothing."""
    with pytest.raises(ValueError, match="changed its format"):
        annotate_check.python_lines(SOURCE, "<html></html>")


@pytest.mark.slow
def test_kernels(capsys):
    """No kernel touches Python without the GIL; .ci/run checks this too."""
    assert annotate_check.main() == 0, capsys.readouterr().out
