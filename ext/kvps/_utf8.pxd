# The bytes of text.
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)


cdef inline const char* utf8(text, Py_ssize_t* n) except NULL:
    """Return the bytes of a str or bytes, borrowed from it, and how many. A str that is not ASCII keeps them for good."""
    if isinstance(text, str):
        return PyUnicode_AsUTF8AndSize(text, n)
    if isinstance(text, bytes):
        n[0] = PyBytes_GET_SIZE(text)
        return PyBytes_AS_STRING(text)
    raise TypeError(f"Cannot convert {type(text)} to string")


cdef inline object plain(line):
    """Return a str for utf8(), as bytes where it would keep them; None if it is no str, or cannot be UTF-8."""
    if not isinstance(line, str):
        return None
    if PyUnicode_IS_ASCII(line):
        return line
    try:
        return (<str>line).encode()
    except UnicodeEncodeError:
        return None
