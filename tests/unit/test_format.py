"""FORMAT.md and format.py agree, and bytes that are not what they should be are refused."""
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

import kvps.store
from kvps._runs import pack
from kvps.errors import CorruptionError, VersionMismatch
from kvps.ps.router import Router
from kvps.store import format as fmt
from kvps.store import seal

DOCUMENT = Path(kvps.store.__file__).with_name("FORMAT.md")
KEY = b"l" + b"job" + bytes(8)
row_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(),
                          lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def example(name):
    """Return the bytes of one ```hex block of FORMAT.md: what stands before two blanks on each line."""
    text = DOCUMENT.read_text(encoding="utf-8")
    block = re.search(rf"```hex {name}\n(.*?)```", text, re.DOTALL).group(1)
    return b"".join(bytes.fromhex(line.split("  ")[0]) for line in block.splitlines())


def decode_payload(payload, order):
    """Return [(words, count)] of a chunk payload, read as FORMAT.md's grammar says."""
    n_restarts, = struct.unpack_from("<I", payload, len(payload) - 4)
    entries = payload[:len(payload) - 4 - 4 * n_restarts]
    position, found, words = 0, [], [0] * order

    def varint():
        nonlocal position
        value = shift = 0
        while True:
            byte = entries[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(entries):
        shared, count = entries[position] >> 4, entries[position] & 15
        position += 1
        if not count:
            zigzag = varint()
            count = zigzag >> 1 ^ -(zigzag & 1)
        if len(found) % 1024 == 0:
            words = [0] * order
        rest = [varint() for _ in range(order - shared)]
        words = [*words[:shared], words[shared] + rest[0], *rest[1:]]
        found.append((tuple(words), count))
    return found


def test_format_ledger_example():
    """The ledger example of FORMAT.md has the key and the row that the text says."""
    key, value = example("ledger"), example("ledger-value")

    assert key == fmt.ledger_key("j", 2)
    assert fmt.unpack_row(key, value) == {"words": 7}
    assert fmt.pack_row(key, {"words": 7}) == value


def test_format_words_example():
    """The words example of FORMAT.md holds a, of and é from id 3 on."""
    key, value = example("words"), example("words-value")

    assert key == fmt.numbered_key(fmt.WORDS, 3)
    assert fmt.unpack_words(bytes(fmt.unpack_blob(key, value))) == [b"a", b"of", "é".encode()]


def test_format_routing_example():
    """The routing table of FORMAT.md, and the shards that it names, are those of the code and of the twin."""
    key, value = example("routing"), example("routing-value")
    table = {"words": [[3, 2]], "split": [5]}

    assert key == fmt.ROUTING
    assert fmt.check_routing(fmt.unpack_row(key, value), 4, 8) == table
    assert fmt.pack_row(key, table) == value
    assert Router(4).homes(8)[3] == reference.shard_of_word(3, 4) == 1
    assert Router(4, {"split": [3]}).shards(pack(np.array([[3, 7, 4]], np.uint32), 3), 3, 3, 8) == [0]
    assert reference.shard_of_pair(3, 7, 4) == 0
    assert Router(4, table).homes(8)[[3, 5]].tolist() == [2, 4]


@pytest.mark.parametrize("table", [
    {}, {"words": []}, {"words": [[3, 4]], "split": []}, {"words": [[8, 0]], "split": []}, {"words": [[3, 0]], "split": [3]},
    {"words": [[3, 0], [3, 1]], "split": []}, {"words": [[3]], "split": []}, {"words": [[3, "0"]], "split": []},
    {"words": 3, "split": []}, {"words": [[3, -1]], "split": []}, {"words": [], "split": [[3]]}, {"words": [], "split": None}])
def test_impossible_routing_tables(table):
    """Tables with words or shards that there are not, with words twice, and what is no table, are refused."""
    with pytest.raises(CorruptionError, match="routing table: contents"):
        fmt.check_routing(table, 4, 8)


def test_format_seal_example():
    """The example of a seal decodes to what the document says."""
    assert fmt.unpack_row(example("seal"), example("seal-value")) == {"files": {}}
    assert example("seal") == seal.KEY


def test_format_chunk_example():
    """The chunk example of FORMAT.md decodes to the two keys and counts that the text says."""
    key, value = example("chunk"), example("chunk-value")
    payload, n_keys, order = fmt.unpack_chunk(key, value)

    assert key == fmt.chunk_key(1, 0)
    assert (n_keys, order) == (2, 3)
    assert decode_payload(bytes(payload), order) == [((1, 3, 4), 2), ((1, 3, 7), -1)]
    assert fmt.pack_chunk(key, order, n_keys, bytes(payload)) == value


def test_format_document_names_every_kind_of_key():
    """Each first byte of a key that format.py has is in the grammar of FORMAT.md."""
    text = DOCUMENT.read_text(encoding="utf-8")

    for kind in (fmt.IDENTITY, fmt.MANIFEST, fmt.LEDGER, fmt.CHUNK, fmt.STATE, fmt.JOB, fmt.HISTORY, fmt.INPUT,
                 fmt.WORDS):
        assert f'"{kind.decode()}"' in text


@given(st.dictionaries(st.text(), row_values))
def test_row_round_trip(row):
    """A row comes back as it was, whatever JSON can hold."""
    assert fmt.unpack_row(KEY, fmt.pack_row(KEY, row)) == row


def test_row_file_name_that_is_not_utf8():
    """A file name with a stray byte, as Python shows it, survives in a row."""
    row = {"path": b"caf\xe9.txt".decode("utf-8", "surrogateescape")}

    assert fmt.unpack_row(KEY, fmt.pack_row(KEY, row)) == row


@given(st.binary(max_size=200), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_chunk_round_trip(payload, order, n_keys):
    """A chunk gives back its payload without a copy, its order and its number of keys."""
    value = fmt.pack_chunk(KEY, order, n_keys, payload)
    view, keys, found_order = fmt.unpack_chunk(KEY, value)

    assert (bytes(view), keys, found_order) == (payload, n_keys, order)
    assert view.obj is value
    assert len(value) == fmt.CHUNK_HEADER_BYTES + len(payload)


@given(st.lists(st.binary(), min_size=1))
def test_words_round_trip(words):
    """A segment gives back its words, empty ones and any bytes too."""
    assert fmt.unpack_words(fmt.pack_words(words)) == words


@pytest.mark.parametrize("segment", [b"", b"\0\0\0\0", b"\1\0\0\0", b"\1\0\0\0\2\0\0\0a",
                                     b"\1\0\0\0\0\0\0\0a", b"\xff" * 8])
def test_words_of_wrong_length(segment):
    """A segment whose lengths do not fill it exactly is refused."""
    with pytest.raises(ValueError, match="segment"):
        fmt.check_words(segment)


def test_every_bit_is_covered():
    """Flipping any one bit of a chunk or a row is noticed."""
    for value, unpack in ((fmt.pack_chunk(KEY, 3, 1, b"payload"), fmt.unpack_chunk),
                          (fmt.pack_row(KEY, {"a": 1}), fmt.unpack_row)):
        for bit in range(8 * len(value)):
            flipped = bytearray(value)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(CorruptionError):
                unpack(KEY, bytes(flipped))


def test_record_under_another_key():
    """A sound record that turns up under another key is damage."""
    with pytest.raises(CorruptionError, match=r"ledger entry of job job, split 1: checksum .* expected"):
        fmt.unpack_row(fmt.ledger_key("job", 1), fmt.pack_row(KEY, {}))
    with pytest.raises(CorruptionError, match="run 7 chunk 2: checksum"):
        fmt.unpack_chunk(fmt.chunk_key(7, 2), fmt.pack_chunk(fmt.chunk_key(7, 1), 3, 1, b"x"))


@given(st.binary(max_size=64))
def test_unpack_any_bytes(data):
    """Decoding any bytes raises CorruptionError; it never crashes."""
    for unpack in (fmt.unpack_row, fmt.unpack_chunk):
        with pytest.raises(CorruptionError):
            unpack(KEY, data)


def test_chunk_of_a_newer_format():
    """An intact chunk of another format asks for a newer kvps and is not called damaged."""
    key = fmt.chunk_key(1, 0)
    header = fmt.CHUNK_HEADER.pack(fmt.CHUNK_MAGIC, 9, 3, 0, 1, 1, 0, 0)[:-4]
    crc = fmt.zlib.crc32(header + b"x", fmt.zlib.crc32(key))

    with pytest.raises(VersionMismatch) as caught:
        fmt.unpack_chunk(key, header + struct.pack("<I", crc) + b"x")
    assert (caught.value.found, caught.value.expected) == (9, 1)


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40), st.integers(0, 2**64 - 1),
       st.integers(0, 2**64 - 1))
def test_ledger_keys_are_distinct(job_a, job_b, split_a, split_b):
    """Two splits have the same key only if job and number are the same."""
    same = (job_a, split_a) == (job_b, split_b)

    assert (fmt.ledger_key(job_a, split_a) == fmt.ledger_key(job_b, split_b)) == same


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_name_of_impossible_length(name):
    """A job name of no bytes, or of more than a key can hold, is refused."""
    with pytest.raises(ValueError, match="expected 1 to 255"):
        fmt.ledger_key(name, 0)


def test_chunk_keys_are_ordered():
    """Keys of chunks sort as (run, index) do."""
    places = [(0, 0), (0, 255), (0, 256), (1, 0), (255, 2**32 - 1), (256, 0), (2**64 - 1, 0)]

    assert sorted(fmt.chunk_key(*place) for place in places) == [fmt.chunk_key(*place) for place in places]
