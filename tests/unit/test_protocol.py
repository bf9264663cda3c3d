"""PROTOCOL.md and protocol.py agree; messages come back as they were, and what is none is refused with its reason."""
import random
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import kvps.ps
from kvps.ps import protocol
from kvps.ps.protocol import ERROR, HEADER_BYTES, REPLY, REQUEST, Message, ProtocolError, number_of, pack, unpack

DOCUMENT = Path(kvps.ps.__file__).with_name("PROTOCOL.md")
CLIENT = bytes(range(16))
values = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.text(),
                      lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
dtypes = st.sampled_from([np.dtype(name) for name in ("u1", "u2", "u4", "u8", "i4", "i8", "f4", "f8", ">u4", ">f8")])
blocks = dtypes.flatmap(lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=1, max_dims=2, min_side=0)))


def example(name):
    """Return the bytes of one ```hex block of PROTOCOL.md: what stands before two blanks on each line."""
    block = re.search(rf"```hex {name}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL).group(1)
    return b"".join(bytes.fromhex(line.split("  ")[0]) for line in block.splitlines())


def sealed(head, body):
    """Return the frames of a header and a body, with the checksum made right, so that other rules are met."""
    head = bytearray(head)
    head[-4:] = struct.pack("<I", zlib.crc32(body, zlib.crc32(bytes(head[:-4]))))
    return [bytes(head), body]


def frames(text, raw=b""):
    """Return the frames of a request whose JSON and arrays are these bytes."""
    head, _ = pack(Message(REQUEST, 1, {}))
    text += b" " * (-(len(text) + 4) % 8)
    body = struct.pack("<I", len(text)) + text + raw
    return sealed(head[:44] + struct.pack("<Q", len(body)) + head[52:], body)


def test_example_of_the_page():
    """The page's example is what pack() writes and unpack() reads."""
    message = Message(REQUEST, 7, {"call": "echo"}, {"x": np.array([1, 2], np.uint16)}, bytes(15) + b"\1")

    assert pack(message) == [example("header"), example("body")]
    found = unpack([example("header"), example("body")])
    assert (found.kind, found.number, found.call, found.client, found.sequence) == (1, 7, {"call": "echo"}, message.client, 0)
    assert found.arrays["x"].tolist() == [1, 2]


@given(st.sampled_from([REQUEST, REPLY, ERROR]), st.integers(0, 2**64 - 1), st.dictionaries(st.text(), values),
       st.dictionaries(st.text(), blocks, max_size=4), st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1),
       st.integers(0, 2**32 - 1))
def test_messages_come_back(kind, number, call, arrays, client, sequence, epoch):
    """Whatever is packed is unpacked the same, its arrays in the same order, and read-only."""
    found = unpack(pack(Message(kind, number, call, arrays, client, sequence, epoch)))

    assert (found.kind, found.number, found.call, found.client, found.sequence, found.epoch) == (
        kind, number, call, client, sequence, epoch)
    assert list(found.arrays) == list(arrays)
    for name, array in arrays.items():
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].astype(array.dtype).tobytes() == array.tobytes()
        assert not found.arrays[name].flags.writeable
        assert found.arrays[name].flags.aligned


@pytest.mark.parametrize("change", [
    lambda head, body: [head], lambda head, body: [head, body, b""], lambda head, body: [],
    lambda head, body: [head[:-1], body], lambda head, body: [head + b"x", body], lambda head, body: [b"", body],
    lambda head, body: [b"KVPS" + head[4:], body], lambda head, body: sealed(head[:4] + b"\2" + head[5:], body),
    lambda head, body: sealed(head[:5] + b"\0" + head[6:], body), lambda head, body: sealed(head[:5] + b"\5" + head[6:], body),
    lambda head, body: sealed(head[:6] + b"\1" + head[7:], body), lambda head, body: sealed(head[:52] + b"\1" + head[53:], body),
    lambda head, body: [head, body + b" "], lambda head, body: [head, body[:-1]], lambda head, body: [head, b""],
    lambda head, body: [head[:-1] + bytes([head[-1] ^ 1]), body]])
def test_broken_frames(change):
    """Missing, additional, short, long and foreign frames, unknown versions and kinds, and wrong checksums are refused."""
    head, body = pack(Message(REQUEST, 9, {"call": "x"}, {"a": np.arange(3)}, CLIENT, 4))

    with pytest.raises(ProtocolError, match="not a message of kvps"):
        unpack(change(head, body))


@pytest.mark.parametrize(("text", "raw"), [
    (b"", b""), (b"{", b""), (b"[]", b""), (b"{}", b""), (b"[{},[],1]", b""), (b"[1,[]]", b""), (b"[{},{}]", b""),
    (b'[{"x":NaN},[]]', b""), (b'[{"x":Infinity},[]]', b""), (b"\xff", b""), (b"[" * 100_000, b""), (b"[{},[]]", b"x"),
    (b'[{},[["a","<u1",[1]]]]', b""), (b'[{},[["a","<u1",[1]]]]', b"xx"), (b'[{},[["a","O",[1]]]]', b"x" * 8),
    (b'[{},[["a","<u1",[-1]]]]', b""), (b'[{},[["a","<u1",[1.0]]]]', b"x"), (b'[{},[["a","<u1",[true]]]]', b"x"),
    (b'[{},[["a","<u1",1]]]', b"x"), (b'[{},["a"]]', b"x"), (b'[{},[["a","<u1",[1]],["a","<u1",[1]]]]', b"x" * 9),
    (b'[{},[["a","<u8",[1000000,1000000]]]]', b"x"), (b'[{},[["a","<u8",[18446744073709551615,2]]]]', b"x"),
    (b'[{},[["a","<u1",[1,1,1]]]]', b"x"), (b"[{},[" + b",".join([b'["a","<u1",[0]]'] * 65) + b"]]", b"")])
def test_broken_bodies(text, raw):
    """JSON that is none or of another form, and arrays that lie about themselves, are refused, whatever they claim."""
    with pytest.raises(ProtocolError):
        unpack(frames(text, raw))


@pytest.mark.parametrize("n", [0, 4, 2**20 + 4, 2**32 - 4])
def test_length_of_the_json(n):
    """A length of JSON beyond the body, or that leaves the arrays unaligned, is refused."""
    head, body = pack(Message(REQUEST, 1, {"call": "x"}))
    lying = struct.pack("<I", n) + body[4:]

    with pytest.raises(ProtocolError, match="JSON"):
        unpack(sealed(head, lying))


def test_messages_that_cannot_be_sent():
    """Arrays of objects, text and three dimensions, and messages beyond 16 MiB, are refused before they are sent."""
    for array in (np.array(["a"]), np.array([None]), np.zeros((1, 1, 1)), np.zeros(2**21 + 1), np.zeros(1, bool)):
        with pytest.raises(ProtocolError):
            pack(Message(REQUEST, 1, {}, {"a": array}))
    with pytest.raises(ProtocolError, match="too large"):
        pack(Message(REQUEST, 1, {"text": "x" * 2**20}))
    with pytest.raises(ValueError):
        pack(Message(REQUEST, 1, {"x": float("nan")}))


def test_number_of_a_broken_message():
    """What a broken request is called is still read, so that its sender can be told; zeros where there is no header."""
    head, _ = pack(Message(REQUEST, 77, {}, client=CLIENT))

    assert number_of([head, b"?"]) == (77, CLIENT)
    assert number_of([]) == number_of([b"x"]) == (0, bytes(16))


def fuzz(seed, times):
    """Unpack that many mutated messages; nothing but ProtocolError comes of it, and equal bytes mean an equal message."""
    rng = random.Random(seed)
    sources = [pack(Message(kind, rng.getrandbits(64), {"call": "push", "table": "t", "n": [1, None, "ä"]},
                            {"keys": np.arange(rng.randrange(9), dtype=np.uint64), "m": np.zeros((2, 3), np.float32)}, CLIENT, 3))
               for kind in (REQUEST, REPLY, ERROR) for _ in range(4)]
    accepted = 0
    for _ in range(times):
        found = [bytearray(frame) for frame in rng.choice(sources)]
        for _ in range(rng.randrange(1, 4)):
            frame = rng.choice(found)
            at = rng.randrange(len(frame)) if frame else 0
            what = rng.randrange(5)
            if what == 0 and frame:
                frame[at] ^= 1 << rng.randrange(8)
            elif what == 1 and frame:
                frame[at] = rng.choice(b'\0\1\x7f\x80\xff0"[]{},:-')
            elif what == 2:
                del frame[at:at + rng.randrange(9)]
            elif what == 3:
                frame[at:at] = rng.randbytes(rng.randrange(9))
            elif what == 4 and len(frame) >= 8:
                struct.pack_into("<Q", frame, rng.randrange(len(frame) - 7), rng.choice([0, 1, 2**31, 2**63, 2**64 - 1, at]))
        if rng.random() < 0.7 and len(found[0]) == HEADER_BYTES:       # past the checksum
            struct.pack_into("<Q", found[0], 44, len(found[1]))
            found = sealed(found[0], bytes(found[1]))
        if rng.random() < 0.02:
            found.append(b"")
        try:
            message = unpack([bytes(frame) for frame in found])
        except ProtocolError as exc:
            assert str(exc)
        else:
            accepted += 1
            assert unpack(pack(message)).call == message.call
    return accepted


def test_fuzzed_messages(seed):
    """20,000 mutated messages are refused or understood."""
    assert fuzz(seed, 20_000) > 100


@pytest.mark.slow
def test_a_million_fuzzed_messages(seed):
    """So are 1,000,000."""
    assert fuzz(seed, 1_000_000) > 5000


def test_limits_are_those_of_the_page():
    """The page names the limits that the code has."""
    text = DOCUMENT.read_text(encoding="utf-8")

    assert protocol.MAX_BODY_BYTES == 16 << 20 and "at most 16 MiB" in text
    assert protocol.MAX_ARRAYS == 64 and "at most 64 arrays" in text
    assert " ".join(protocol.DTYPES) in text
