"""The exception tree: exit codes, attributes, one-line messages."""
import json
import pickle
from pathlib import Path

import pytest

from kvps import errors

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.KvpsError)]


def test_exit_codes():
    """Each class ends the command line with the documented code."""
    codes = {cls.__name__: cls.exit_code for cls in CLASSES}

    assert codes == {
        "KvpsError": 1, "ArgumentError": 2, "DataError": 1, "InputGone": 4, "DiscountError": 1, "VocabularyFull": 1,
        "StoreError": 1, "StoreLocked": 5, "StoreFull": 4, "VersionMismatch": 1, "Unreachable": 4, "CorruptionError": 3,
        "Stopped": 4}


def test_tree_is_drawn():
    """The module's docstring names every class with its exit code."""
    lines = errors.__doc__.splitlines()

    for cls in CLASSES:
        assert any(f" {cls.__name__} " in line and line.endswith(f"exit {cls.exit_code}") for line in lines), cls


def test_argument_error_is_value_error():
    """Code that expects a ValueError for an impossible argument catches ours."""
    with pytest.raises(ValueError, match="order 99"):
        raise errors.ArgumentError("order 99 is not in 1..8")


@pytest.mark.parametrize("cls", CLASSES)
def test_attributes_default_to_none(cls):
    """Documented attributes exist even where the place is not known."""
    error = cls("message")

    assert all(getattr(error, name) is None for name in cls.facts)
    assert error.as_dict() == {"error": cls.__name__, "message": "message"}


def test_message_is_one_printable_line():
    """A newline, an escape sequence or a lone surrogate in a file name cannot break the line or the terminal."""
    error = errors.DataError("cannot read a\nb\x1b[2J\udcff – ü.txt")

    assert str(error) == r"cannot read a\nb\x1b[2J\udcff – ü.txt"


def test_as_dict_is_json():
    """as_dict holds what is known, in types that JSON has."""
    error = errors.CorruptionError("damaged", path=Path("/s/x\n"), key=b"\x00k\xff", found=0x1F2E, extra=(1, b"a"))

    assert json.loads(json.dumps(error.as_dict())) == {
        "error": "CorruptionError", "message": "damaged", "path": "/s/x\n", "key": r"\x00k\xff", "found": 7982,
        "extra": [1, "a"]}


def test_errors_survive_pickling():
    """An error raised in a worker process arrives with its attributes."""
    error = pickle.loads(pickle.dumps(errors.StoreFull("full", needs=10, has=3, path="/s")))

    assert (type(error), str(error), error.needs, error.has, error.path) == (errors.StoreFull, "full", 10, 3, "/s")
