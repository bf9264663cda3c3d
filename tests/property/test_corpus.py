"""Inputs and tokenizers for all texts: cutting anywhere changes nothing, and naive twins agree."""
import gzip
import json
import re
import tempfile
from pathlib import Path

import reference
from hypothesis import example, given
from hypothesis import strategies as st

from kvps._text import first_invalid_utf8
from kvps.text.corpus import Input, resolve, spool
from kvps.text.tokenize import SEPARATORS, Tokenizer

# Few letters, many newlines and separators, some of everything else.
characters = st.sampled_from("ab\n\n \t\r\0ü\u0085\u00a0\u2028ΣİΑ") | st.characters(exclude_categories=["Cs"])
texts = st.text(characters, max_size=60)
split_sizes = st.integers(1, 80)


def on_disk(name, data):
    """Return the Input of a new file with these bytes, and its folder, which the caller cleans up."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / name
    path.write_bytes(data)
    return resolve([path])[0], folder


def check_splits(source, split_bytes, whole):
    """Check that splits join to the whole, leave no gap, and can be taken up at each bound."""
    splits = list(source.splits(split_bytes))

    assert b"".join(split.data for split in splits) == whole
    assert [split.start for split in splits] == [0, *(split.end for split in splits)][:len(splits)]
    for number, split in enumerate(splits):
        assert list(source.splits(split_bytes, split.start)) == splits[number:]
        assert split.data.endswith(b"\n") or number == len(splits) - 1
    if splits:
        assert list(source.splits(split_bytes, splits[-1].end)) == []


@given(texts, split_sizes)
def test_splits_of_any_size(text, split_bytes):
    """Splits of any size join to the same text, and start= at any bound gives exactly the rest."""
    data = text.encode()
    source, folder = on_disk("a.txt", data)
    with folder:
        check_splits(source, split_bytes, data)


@given(texts, split_sizes)
def test_splits_of_compressed_text(text, split_bytes):
    """Compressed text has the same splits as the plain one, from any bound on."""
    data = text.encode()
    plain, plain_folder = on_disk("a.txt", data)
    packed, packed_folder = on_disk("a.gz", gzip.compress(data))
    with plain_folder, packed_folder:
        check_splits(packed, split_bytes, data)
        assert list(packed.splits(split_bytes)) == list(plain.splits(split_bytes))


@given(st.lists(texts, max_size=6), split_sizes, st.sampled_from(["split", "space"]), st.booleans())
def test_splits_of_json_lines(records, split_bytes, newline, ascii_only):
    """JSON lines give the same text for any size of split, each record's newlines treated as asked."""
    data = "".join(json.dumps({"text": text}, ensure_ascii=ascii_only) + "\n" for text in records).encode()
    source, folder = on_disk("a.jsonl", data)
    source = Input(source.name, source.path, "jsonl", {"field": "text", "newline": newline})
    expected = "".join(re.sub(r"\n?\Z", "\n", text, count=1) if newline == "split" else text.replace("\n", " ") + "\n"
                       for text in records)
    with folder:
        check_splits(source, split_bytes, expected.encode())


@given(texts, split_sizes)
def test_locate_agrees_with_counting(text, split_bytes):
    """A split's byte is found in the line that counting newlines gives."""
    data = text.encode()
    source, folder = on_disk("a.txt", data)
    with folder:
        for split in source.splits(split_bytes):
            for index in range(len(split.data)):
                offset = split.start + index
                assert split.locate(index) == (1 + data[:offset].count(b"\n"), offset)


@given(st.lists(st.text(characters.filter(lambda c: c != "\n"), max_size=20), max_size=8), split_sizes)
def test_spooled_sentences_come_back(sentences, split_bytes):
    """An iterable's sentences come back one a line, and its copy has the digest of its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        source = spool(iter(sentences), folder)
        check_splits(source, split_bytes, "".join(sentence + "\n" for sentence in sentences).encode())
        assert Path(source.path).stem == source.digest()


@given(st.binary(max_size=40) | texts.map(str.encode), st.integers(0, 40), st.integers(0, 255))
@example(b"\xed\xa0\x80", 0, 0xED)
def test_utf8_check_agrees_with_python(data, index, byte):
    """The kernel finds the place where bytes.decode stops, in random bytes and in text with one byte changed."""
    for tried in (data, data[:index] + bytes([byte]) + data[index + 1:], data[:index]):
        try:
            tried.decode()
            expected = -1
        except UnicodeDecodeError as error:
            expected = error.start
        assert first_invalid_utf8(tried) == expected


def words_of(line):
    """Return the words of a line as the counting kernel sees them."""
    return [word for word in re.split(f"[{SEPARATORS}]", line) if word]


@given(texts, st.booleans())
def test_tokenizers_agree_with_naive_twins(text, lowercase):
    """Line by line, each tokenizer makes the words that its definition names, lower-cased one by one."""
    twins = {
        "whitespace": words_of,
        "char": reference.characters,
    }
    for spec, twin in twins.items():
        prepared = Tokenizer.from_spec(spec, lowercase).prepare(text.encode()).decode()

        expected = [[word.lower() if lowercase else word for word in twin(line)] for line in text.split("\n")]
        assert [words_of(line) for line in prepared.split("\n")] == expected


@given(st.binary(max_size=40), split_sizes)
def test_replaced_text_keeps_its_lines(data, split_bytes):
    """Replacing ill-formed bytes split by split gives what Python gives for the whole, with as many lines."""
    tokenizer = Tokenizer.from_spec("whitespace")
    source, folder = on_disk("a.txt", data)
    with folder:
        prepared = b"".join(tokenizer.prepare(s.data, errors="replace") for s in source.splits(split_bytes))

    assert prepared == data.decode("utf-8", "replace").encode()
    assert prepared.count(b"\n") == data.count(b"\n")
