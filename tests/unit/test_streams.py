"""Streams of compressed files: every form that the formats allow, limits to the byte, and how far a file is read."""
import bz2
import gzip
import io
import lzma
import os
import struct
import zlib

import pytest
import zstandard

from kvps.errors import ArgumentError, DataError
from kvps.text import inputs, streams, urls
from kvps.text.corpus import Input, resolve
from kvps.text.streams import failures_named, open_stream

COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}
KINDS = list(COMPRESS)
TEXT = b"the cat sat on the mat\n" * 50


def write(path, data):
    """Write a file and return its name."""
    path.write_bytes(data)
    return str(path)


def read(path, kind, n=-1, **limits):
    """Return the text of a file, or n bytes at a time."""
    with failures_named(path, kind), open_stream(path, kind, **limits) as stream:
        return stream.read() if n < 0 else b"".join(iter(lambda: stream.read(n), b""))


@pytest.mark.parametrize("kind", KINDS)
def test_several_streams(tmp_path, kind):
    """A file of several streams, empty ones among them, is the text of all, in whichever pieces it is read."""
    pack = COMPRESS[kind]
    name = write(tmp_path / "a", pack(TEXT) + pack(b"") + pack(b"x") * 300 + pack(TEXT))

    for n in (-1, 1, 1000):
        assert read(name, kind, n) == TEXT + b"x" * 300 + TEXT


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("n_zeros", [4, 512, 40_000])
def test_padding(tmp_path, kind, n_zeros):
    """Zeros behind a stream are padding, as on a tape, and another stream may follow."""
    packed = COMPRESS[kind](TEXT)

    assert read(write(tmp_path / "a", packed + bytes(n_zeros)), kind) == TEXT
    assert read(write(tmp_path / "b", packed + bytes(n_zeros) + packed), kind) == TEXT * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [b"and so on\n", b"\0\0\0\0junk", bytes(range(1, 256))])
def test_garbage_behind_a_stream(tmp_path, kind, garbage):
    """What follows a stream and is neither padding nor a stream is refused: text may be missing."""
    name = write(tmp_path / "a", COMPRESS[kind](TEXT) + garbage)

    with pytest.raises(DataError, match="a: (damaged, or not a|the .* data ends too early)"):
        read(name, kind)


def test_skippable_frames_of_zstd(tmp_path):
    """Frames of other programs between those of a .zst file are skipped."""
    skipped = struct.pack("<II", 0x184D2A53, 9) + b"some note"
    name = write(tmp_path / "a", skipped + zstandard.compress(TEXT) + skipped + zstandard.compress(b"x"))

    assert read(name, "zst") == TEXT + b"x"


def test_header_fields_of_gzip(tmp_path):
    """A member with a name, a comment and a checksum of its header reads like any."""
    header = b"\x1f\x8b\x08\x1e\0\0\0\0\0\x03" + b"\x03\0abc" + b"name\0" + b"comment\0"
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(TEXT) + packer.flush()
    name = write(tmp_path / "a", header + body + struct.pack("<II", zlib.crc32(TEXT), len(TEXT)))

    assert read(name, "gz") == TEXT


@pytest.mark.parametrize("place", [-1, -5])
def test_trailer_of_gzip(tmp_path, place):
    """A length or checksum that does not fit the text is damage."""
    packed = bytearray(gzip.compress(TEXT))
    packed[place] ^= 1

    with pytest.raises(DataError, match="damaged"):
        read(write(tmp_path / "a", packed), "gz")


def test_old_form_of_xz(tmp_path):
    """The older .lzma form is read too."""
    assert read(write(tmp_path / "a", lzma.compress(TEXT, lzma.FORMAT_ALONE)), "xz") == TEXT


@pytest.mark.parametrize("kind", KINDS)
def test_ratio_to_the_byte(tmp_path, monkeypatch, kind):
    """Text is refused when it is more than so many times as long as the file, and longer than what is free; not before."""
    packed = COMPRESS[kind](b"a" * 1_000_000)
    name = write(tmp_path / "a", packed)
    monkeypatch.setattr(streams, "RATIO_FREE_BYTES", 100_000)
    enough = -(-1_000_000 // len(packed))

    for ratio in (enough, 0):
        assert read(name, kind, max_ratio=ratio) == b"a" * 1_000_000
    message = rf"a: its first {len(packed)} bytes .* at most {enough - 1} times.*--max-ratio N"
    with pytest.raises(DataError, match=message) as caught:
        read(name, kind, max_ratio=enough - 1)
    assert (caught.value.path, caught.value.expected) == (name, enough - 1)
    assert caught.value.found >= enough - 1
    monkeypatch.setattr(streams, "RATIO_FREE_BYTES", 1_000_000)
    assert read(name, kind, max_ratio=1) == b"a" * 1_000_000


def test_message_of_the_ratio_uses_the_name(tmp_path, monkeypatch):
    """The refusal calls the input what the user called it."""
    monkeypatch.setattr(streams, "RATIO_FREE_BYTES", 10)

    with pytest.raises(DataError, match=r"^my text: its first"):
        read(write(tmp_path / "a", gzip.compress(TEXT * 100)), "gz", name="my text", max_ratio=2)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_stay_small(tmp_path, kind):
    """However much a few bytes become, a decoder gives at most 16 MiB of it at once."""
    pack = COMPRESS[kind] if kind != "zst" else zstandard.ZstdCompressor(level=19).compress
    packed = pack(bytes(64 << 20))

    lengths = [len(piece) for piece in streams._pieces(iter([packed]), kind)]

    assert sum(lengths) == 64 << 20
    assert max(lengths) <= 16 << 20


@pytest.mark.parametrize("kind", KINDS)
def test_place_in_the_file(tmp_path, rng, kind):
    """The place in the file rises with the text up to the file's end, and is the same wherever reading began."""
    text = b"\n".join(rng.randbytes(100).hex().encode() for _ in range(5000)) + b"\n"
    packed = COMPRESS[kind](text)
    (source,) = resolve([write(tmp_path / f"a.{kind}", packed)])

    splits = list(source.splits(20_000))
    later = list(source.splits(20_000, splits[20].start))

    assert sum(split.raw for split in splits) == pytest.approx(len(packed), abs=200)
    assert sum(split.raw for split in later) == sum(split.raw for split in splits[20:])
    if kind != "bz2":              # which packs its text in blocks of 900 kB
        half = sum(split.raw for split in splits[:len(splits) // 2])
        assert half == pytest.approx(len(packed) / 2, rel=0.25)


def test_place_in_a_plain_file(tmp_path):
    """Of a plain file the text is what is read."""
    (source,) = resolve([write(tmp_path / "a", TEXT)])

    assert [split.raw for split in source.splits(100)] == [split.end - split.start for split in source.splits(100)]


# What is refused before anything is counted


@pytest.mark.parametrize("kind", KINDS)
def test_probe_refuses_a_bomb(tmp_path, monkeypatch, kind):
    """An input that shows in its beginning what it is, is refused when it is named."""
    monkeypatch.setattr(streams, "RATIO_FREE_BYTES", 50_000)
    monkeypatch.setattr(inputs, "RATIO_FREE_BYTES", 50_000)
    bomb = write(tmp_path / f"bomb.{kind}", COMPRESS[kind](b"a b\n" * 250_000))
    fine = write(tmp_path / f"fine.{kind}", COMPRESS[kind](b"a b\n" * 12_500))

    with pytest.raises(DataError, match="--max-ratio"):
        resolve([bomb])
    assert [source.options["max_ratio"] for source in resolve([bomb], max_ratio=0) + resolve([fine])] == [0, 200]


@pytest.mark.parametrize("ending", ["txt", "gz", "jsonl"])
def test_probe_refuses_a_first_line_without_an_end(tmp_path, monkeypatch, ending):
    """A first line that is too long is found when the input is named; one that just fits is not."""
    monkeypatch.setattr(inputs, "MAX_LINE_BYTES", 1000)
    for n_bytes, after in ((1000, b""), (1000, b"\n"), (1000, b"\nmore\n"), (1001, b""), (1001, b"\nmore"), (90_000, b"\n")):
        data = b"x" * n_bytes + after
        name = write(tmp_path / f"a.{ending}", gzip.compress(data) if ending == "gz" else data)
        if n_bytes == 1000:
            assert resolve([name])
        else:
            with pytest.raises(DataError, match="line 1 is longer than"):
                resolve([name])


def test_probe_reads_little(tmp_path, monkeypatch):
    """Of an ordinary file only the beginning is read to see whether it can be used."""
    lengths = []

    class Watched(io.FileIO):
        """A file that notes how much is read of it."""

        def read(self, n=-1):
            """Read."""
            lengths.append(n)
            return super().read(n)

    monkeypatch.setattr(urls, "open", lambda path, *more, **options: Watched(path), raising=False)

    resolve([write(tmp_path / "a.gz", gzip.compress(b"line\n" + os.urandom(1_000_000).hex().encode()))])

    assert 80_000 < sum(lengths) < 200_000


def test_impossible_ratio(tmp_path):
    """A ratio below 0 is refused."""
    with pytest.raises(ArgumentError, match="-1"):
        resolve([], max_ratio=-1)


def test_record_without_a_ratio(tmp_path):
    """A job record of a compressed input that an earlier version wrote has today's ratio."""
    (source,) = resolve([write(tmp_path / "a.gz", gzip.compress(TEXT))])
    record = source.to_json()
    assert record["options"].pop("max_ratio") == 200

    again = Input.from_json(record)

    assert b"".join(split.data for split in again.splits(100)) == TEXT
