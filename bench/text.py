"""The text that is trained on: a file of the user's, the novels of the development data, or generated Zipf text."""
import functools
import itertools
import lzma
import os
import random
from pathlib import Path

from bench.env import CHECKOUT

SMALL_SENTENCES = 4_000  # every benchmark then takes a second or two
FULL_SENTENCES = 797_000  # of generated text; as many as the novels have
HELDOUT_SHARE = 65  # one sentence in so many is held out where there is no file of held-out text; as with the novels
WORDS = 100_000  # different words in generated text
MEAN_SENTENCE = 20  # words
SPACES = bytes.maketrans(b"\0\t\r\n", b"    ")  # the separators of the white-space tokenizer, newline among them here


def data():
    """Return the folder of development data ($KVPS_SHARED/data or ../shared/data), or None when it is not there."""
    folder = Path(os.environ.get("KVPS_SHARED") or CHECKOUT.parent / "shared") / "data"
    return folder if folder.is_dir() else None


def prepare(work, text, heldout, size, seed):
    """Write the training and the held-out text into `work`, unless they are there, and return (train, heldout, source).

    Args:
        work: Path of the directory that keeps texts from one call to the next.
        text: Path of a text to use, or None.
        heldout: Path of the text to score, or None; without it the end of the text is held out.
        size: "small" or "full".
        seed: of the generated text.
    """
    if text and heldout and size == "full":
        return text.absolute(), heldout.absolute(), text.name
    novels = data() / "novels.train.txt.xz" if data() else None
    limit = SMALL_SENTENCES if size == "small" else None
    if text:
        source, name = text.name, f"{_identity(text)}.{_identity(heldout) if heldout else 'end'}"
        lines = functools.partial(_open, text)
    elif novels and novels.exists():
        heldout, source, name = novels.with_name("novels.heldout.txt.xz"), "novels", "novels"
        lines = functools.partial(_open, novels)
    else:
        limit = limit or FULL_SENTENCES
        source, name, lines = f"generated, seed {seed}", f"zipf.{seed}", functools.partial(_Zipf, limit, seed)
    train, rest = work / f"{name}.{size}.train.txt", work / f"{name}.{size}.heldout.txt"
    if not train.exists() or not rest.exists():
        with lines() as stream:
            _write(train, itertools.islice(stream, limit))
        if heldout:
            with _open(heldout) as stream:
                _write(rest, itertools.islice(stream, limit and limit // 10))
        else:
            _split_end(train, rest)
    return train, rest, source


def _open(path):
    """Open a plain or .xz file for reading bytes."""
    return lzma.open(path) if path.suffix == ".xz" else open(path, "rb")


def _identity(path):
    """Return a name that changes with the file."""
    stamp = path.stat()
    return f"{path.name}.{stamp.st_size}.{stamp.st_mtime_ns}"


def _write(path, lines):
    """Write lines to `path`, which appears only when it is whole; the last line gets its newline."""
    with open(path.with_suffix(".part"), "wb") as out:
        for line in lines:
            out.write(line if line.endswith(b"\n") else line + b"\n")
    path.with_suffix(".part").rename(path)


def _split_end(train, rest):
    """Move the last lines of `train` into `rest`, without holding a large text in memory."""
    count = count_lines(train)
    keep = count - max(1, count // HELDOUT_SHARE)
    with open(train, "rb") as lines:
        head = train.with_suffix(".head")
        _write(head, itertools.islice(lines, keep))
        _write(rest, lines)
    head.rename(train)


def count_lines(path):
    """Return the number of newlines in a file."""
    with open(path, "rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))


def count_words(path):
    """Return the number of words in a file, as the white-space tokenizer has them, reading by line."""
    with open(path, "rb") as lines:
        pieces = (line.translate(SPACES).split(b" ") for line in lines)
        return sum(len(words) - words.count(b"") for words in pieces)


def cut(path, out, start, end):
    """Write the lines from the fraction `start` to the fraction `end` of a text to `out`."""
    count = count_lines(path)
    with open(path, "rb") as lines:
        _write(out, itertools.islice(lines, round(count * start), round(count * end)))


class _Zipf:
    """Generated sentences: word frequencies by Zipf's law, and half of the words chosen by the word before.

    Without the latter no n-gram would repeat as they do in language. The same seed gives the same text.
    It is read like a file opened for reading bytes.
    """

    def __init__(self, sentences, seed):
        self.sentences, self.rng = sentences, random.Random(seed)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __iter__(self):
        weights = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(WORDS)))  # 2.7: Mandelbrot's shift
        ranks, follow = range(WORDS), random.Random(self.rng.random())
        successors = {}  # of a word: five that often follow it
        for _ in range(self.sentences):
            length = min(200, 1 + int(self.rng.expovariate(1 / MEAN_SENTENCE)))
            sentence = self.rng.choices(ranks, cum_weights=weights, k=length)
            for i in range(1, length):
                if self.rng.random() < 0.5:
                    before = sentence[i - 1]
                    if before not in successors:
                        successors[before] = follow.choices(ranks, cum_weights=weights, k=5)
                    sentence[i] = successors[before][int(5 * self.rng.random() ** 2)]
            yield " ".join([f"w{rank}" for rank in sentence]).encode() + b"\n"
