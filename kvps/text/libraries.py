"""Tokenizers of other libraries: sentencepiece and Hugging Face's from a file, jieba with its own dictionary.

A store records which one, and the digest of what it is made from: only the same makes the same words again. A file is data
and is looked at only when its digest is right; no code comes from a store.
"""
from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable
from typing import Any

from kvps.errors import ArgumentError

FROM_FILE = ("sentencepiece", "hf")
PACKAGES = {"sentencepiece": "sentencepiece", "hf": "tokenizers", "jieba": "jieba"}    # what is imported

# From lines to the words of each, joined by a space; words have no newline, and what is blank in them parts them.
Function = Callable[[list[str]], list[str]]

_RESERVED = ("<s>", "</s>", "<unk>")
_BATCH = 1000                  # lines; an Encoding of tokenizers takes some 100 bytes a token


def kind_of(spec: str) -> str | None:
    """Return which library a spec names; None: none of these."""
    kind, colon, path = spec.partition(":")
    return kind if (kind in FROM_FILE and path) or (kind == "jieba" and not colon) else None


def absolute(spec: str) -> str:
    """Return a spec whose file every process finds."""
    kind, colon, path = spec.partition(":")
    return f"{kind}:{os.path.abspath(path)}" if colon else spec


def load(spec: str, digest: str | None = None) -> tuple[Function, str]:
    """Return the tokenizer that an absolute spec names, and the digest of what it is made from, hex.

    Args:
        digest: what it must be; what has another one is not looked into.

    Raises:
        ArgumentError: the library is not installed, or the file cannot be used or is another one.
    """
    kind, _, path = spec.partition(":")
    try:
        if kind == "hf" and os.path.isdir(path):
            path = os.path.join(path, "tokenizer.json")
        found = os.stat(path) if path else None
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise OSError(0, "not a file")
    except OSError as exc:
        raise ArgumentError(f"cannot read the tokenizer {spec}: {path}: {exc.strerror}; name its place with "
                            f"--tokenizer {kind}:PATH") from exc
    return _load(kind, path, digest, found and (found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=8)
def _load(kind: str, path: str, digest: str | None, seen: tuple[int, int] | None) -> tuple[Function, str]:
    """Do what load() says; what was `seen` of the file tells it from one that has taken its place."""
    import hashlib

    package = _package(kind)
    try:
        if path:
            with open(path, "rb") as file:
                content = file.read()
        else:
            with package.dt.get_dict_file() as file:
                content = package.__version__.encode() + b"\n" + file.read()
    except OSError as exc:
        raise ArgumentError(f"cannot read the tokenizer {path or kind}: {exc.strerror}") from exc
    found = hashlib.blake2b(content, digest_size=16).hexdigest()
    if digest is not None and found != digest:
        way = (f"name the place of that one with --tokenizer {kind}:PATH" if path else
               "install the version that was used then")
        raise ArgumentError(f"{path or kind}: is not what the words of the store were made with (its digest is {found}, not "
                            f"{digest}); {way}")
    try:
        return {"sentencepiece": _sentencepiece, "hf": _hugging_face, "jieba": _jieba}[kind](package, content), found
    except Exception as exc:   # each library has errors of its own
        raise ArgumentError(f"{path or kind}: {PACKAGES[kind]} cannot use it: {' '.join(str(exc).split()) or type(exc).__name__}"
                            ) from exc


def _package(kind: str) -> Any:
    import importlib
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")      # of libraries that are older than our Python
            return importlib.import_module(PACKAGES[kind])
    except ImportError as exc:
        raise ArgumentError(f'the tokenizer {kind} needs {PACKAGES[kind]}: pip install "kvps[{kind}]"') from exc


def _sentencepiece(package: Any, content: bytes) -> Function:
    encode = package.SentencePieceProcessor(model_proto=content).encode

    def words(lines: list[str]) -> list[str]:
        return [" ".join(pieces) for pieces in encode(lines, out_type=str, num_threads=1)]

    return words


def _hugging_face(package: Any, content: bytes) -> Function:
    made = package.Tokenizer.from_buffer(content)
    made.no_truncation()
    made.no_padding()
    if getattr(made.model, "dropout", None):     # it would make other words each time
        made.model.dropout = None

    def joined(line: str, found: Any) -> str:
        tokens = found.tokens
        if any(word in _RESERVED for word in tokens):      # what the tokenizer does not know is a word like any other
            tokens = [line[slice(*place)] if word in _RESERVED else word for word, place in zip(tokens, found.offsets, strict=True)]
        return " ".join(tokens)

    def words(lines: list[str]) -> list[str]:
        made_of: list[str] = []
        for start in range(0, len(lines), _BATCH):
            some = lines[start:start + _BATCH]
            made_of += map(joined, some, made.encode_batch(some, add_special_tokens=False))
        return made_of

    return words


def _jieba(package: Any, content: bytes) -> Function:
    made = package.Tokenizer()                   # of our own: dictionaries that others load into jieba's do not count
    # As its initialize() does, but without the cache in a folder that all may write to.
    made.FREQ, made.total = made.gen_pfdict(made.get_dict_file())
    made.initialized = True
    return lambda lines: [" ".join(made.cut(line)) for line in lines]
