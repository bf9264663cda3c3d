"""The kernels of tables beside their naive twins: every width of keys, one shard and several, extremes, damage."""
import numpy as np
import pytest
from reference import added_up, arranged

from kvps import _table
from kvps._runs import encode, encoded_room, unpack
from kvps.ps.keys import packed_key, words_of

WIDTHS = range(1, 33)
MOST = 1 << 62


def some_keys(rng, n, key_bytes):
    """Return n keys, uint8 (n, key_bytes), many of them equal, or equal but for their last bytes."""
    stems = [rng.randbytes(key_bytes) for _ in range(4)] + [bytes(key_bytes), b"\xff" * key_bytes]
    keys = []
    for _ in range(n):
        tail = rng.randbytes(rng.randrange(0, min(3, key_bytes) + 1))
        keys.append(rng.choice(stems)[:key_bytes - len(tail)] + tail)
    return np.frombuffer(b"".join(keys), np.uint8).reshape(n, key_bytes)


def key_bytes_of(packed, key_bytes):
    """Return packed keys as bytes objects."""
    words = unpack(packed, _table.order_of(key_bytes), 32).astype(">u4")
    return [row.tobytes()[:key_bytes] for row in words]


def run_of(packed, counts, key_bytes):
    """Return the chunks of a run with these keys."""
    room = np.empty(encoded_room(len(counts)), np.uint8)
    return encode(packed, counts, _table.order_of(key_bytes), 32, 4096, room)


@pytest.mark.parametrize("order", ["any", "sorted", "distinct", "all but the last"])
@pytest.mark.parametrize("n_shards", [1, 2, 7])
@pytest.mark.parametrize("key_bytes", WIDTHS)
def test_batch_agrees_with_counter(rng, key_bytes, n_shards, order):
    """A batch, in order or not, is sorted as its twin sorts it, and adds up to what a Counter says, shard after shard."""
    raw = some_keys(rng, 300, key_bytes)
    if order != "any":
        raw = np.array(sorted(raw.tolist()), np.uint8)
    if order == "distinct":
        raw = np.unique(raw, axis=0)
    if order == "all but the last":
        raw = np.concatenate([raw[1:], raw[:1]])
    keys = [row.tobytes() for row in raw]
    deltas = np.array([rng.randrange(-3, 4) for _ in keys], np.int64)
    packed, places, ends = _table.arrange(raw.reshape(-1), key_bytes, n_shards, native=False)

    assert (places.tolist(), ends.tolist()) == arranged(keys, n_shards)
    assert key_bytes_of(packed, key_bytes) == [keys[i] for i in places]

    counts, greatest = _table.combine(packed, places, deltas, ends, _table.order_of(key_bytes))
    width = len(packed) // len(keys)
    left = key_bytes_of(packed[:len(counts) * width], key_bytes)
    expected = added_up(keys, deltas.tolist())

    assert left == list(dict.fromkeys(keys[i] for i in places if keys[i] in expected))
    assert dict(zip(left, counts.tolist(), strict=True)) == expected
    assert greatest == max(map(abs, expected.values()), default=0)
    assert ends[-1] == len(counts)


@pytest.mark.parametrize("interval", [1, 4, 32, 1024])
@pytest.mark.parametrize("key_bytes", WIDTHS)
def test_look_up_agrees_with_dict(rng, key_bytes, interval):
    """Keys that are there get their counts, others 0, whatever the marks; equal ones are answered twice."""
    raw = some_keys(rng, 400, key_bytes)
    packed, places, ends = _table.arrange(raw.reshape(-1), key_bytes, 1, native=False)
    deltas = np.array([rng.choice([1, 15, 16, -1, MOST // 400, -MOST // 400]) for _ in raw], np.int64)
    counts, _ = _table.combine(packed, places, deltas, ends, _table.order_of(key_bytes))
    order, width = _table.order_of(key_bytes), len(packed) // len(raw)
    asked_raw = np.concatenate([raw[::2], some_keys(rng, 200, key_bytes)])
    asked, where, _ = _table.arrange(asked_raw.reshape(-1), key_bytes, 1, native=False)
    sums = np.zeros(len(asked_raw), np.int64)
    for payload, n_keys in run_of(packed[:len(counts) * width], counts, key_bytes):
        marks = _table.marks(payload, n_keys, order, interval)
        assert len(marks[1]) == -(-n_keys // interval)
        assert _table.look_up(payload, n_keys, order, interval, *marks, asked, sums) is None

    expected = added_up([row.tobytes() for row in raw], deltas.tolist())
    assert sums.tolist() == [expected.get(asked_raw[i].tobytes(), 0) for i in where]


@pytest.mark.parametrize(("dtype", "key_bytes"), [(np.uint32, 4), (np.uint64, 8)])
def test_integers_are_big_endian_bytes(rng, dtype, key_bytes):
    """Integers of this machine and their big-endian bytes are the same keys, in the order of the numbers."""
    numbers = np.array([0, 1, 255, 256, 2**31, 2**32 - 1, *([2**63, 2**64 - 1] if key_bytes == 8 else []),
                        *(rng.randrange(256**key_bytes) for _ in range(100))], dtype)
    as_bytes = numbers.astype(numbers.dtype.newbyteorder(">")).view(np.uint8)
    native = _table.arrange(numbers.view(np.uint8), key_bytes, 3, native=True)
    plain = _table.arrange(as_bytes, key_bytes, 3, native=False)
    ordered = _table.arrange(np.sort(numbers).view(np.uint8), key_bytes, 3, native=True)

    assert all((a == b).all() for a, b in zip(native, plain, strict=True))
    assert all((a == b).all() for a, b in zip(native[::2], ordered[::2], strict=True))
    start = 0
    for end in native[2].tolist():
        assert (np.diff(numbers[native[1][start:end]].astype(object)) >= 0).all()
        start = end


@pytest.mark.parametrize("key_bytes", [1, 8, 16, 32])
def test_nothing_at_all(key_bytes):
    """An empty batch has no keys, and nothing is found in no chunk."""
    packed, places, ends = _table.arrange(np.empty(0, np.uint8), key_bytes, 3, native=False)
    counts, greatest = _table.combine(packed, places, np.array([1], np.int64), ends, _table.order_of(key_bytes))

    assert (len(packed), len(places), ends.tolist(), len(counts), greatest) == (0, 0, [0, 0, 0], 0, 0)
    assert len(_table.lower_bounds(packed, packed_key(b"", key_bytes), _table.order_of(key_bytes))) == 1


@pytest.mark.parametrize("deltas", [[MOST, 1], [-MOST, -1], [2**63 - 1] * 2, [-2**63] * 2, [2**63 - 1] * 1000, [2**62 + 1]])
def test_sum_beyond_62_bits(deltas):
    """A sum beyond 62 bits is noticed, with the place of its key, however it would come round in 64 bits."""
    raw = np.array([7] + [9] * len(deltas), np.uint64)
    packed, places, ends = _table.arrange(raw.view(np.uint8), 8, 1, native=True)
    found = _table.combine(packed, places, np.array([1, *deltas], np.int64), ends, 2)

    assert found[0] is None and raw[found[1]] == 9


@pytest.mark.parametrize("deltas", [[MOST], [-MOST], [MOST, MOST, -MOST], [2**63 - 1, -2**63, 1 + MOST], [MOST, -MOST, 0]])
def test_sum_of_62_bits(deltas):
    """What a sum is on its way does not matter, only what it is in the end."""
    packed, places, ends = _table.arrange(np.array([9] * len(deltas), np.uint64).view(np.uint8), 8, 1, native=True)
    counts, greatest = _table.combine(packed, places, np.array(deltas, np.int64), ends, 2)

    assert counts.tolist() == ([sum(deltas)] if sum(deltas) else [])
    assert greatest == abs(sum(deltas))


def test_look_up_notices_overflow():
    """Counts of two runs that add up beyond 62 bits are no sum."""
    packed = packed_key(b"12345678", 8)
    (payload, n_keys), = run_of(packed, np.array([MOST], np.int64), 8)
    marks = _table.marks(payload, n_keys, 2, 32)

    assert "2**62" in _table.look_up(payload, n_keys, 2, 32, *marks, packed, np.array([1], np.int64))
    assert _table.look_up(payload, n_keys, 2, 32, *marks, packed, np.array([-1], np.int64)) is None


@pytest.mark.parametrize("key_bytes", [3, 8, 12, 16, 20, 32])
def test_damaged_chunks_never_crash(rng, key_bytes):
    """Whatever bytes a chunk has, they are refused or read as some entries; with marks of other bytes too."""
    packed, places, ends = _table.arrange(some_keys(rng, 300, key_bytes).reshape(-1), key_bytes, 1, native=False)
    counts, _ = _table.combine(packed, places, np.array([300], np.int64), ends, _table.order_of(key_bytes))
    order, width = _table.order_of(key_bytes), len(packed) // 300
    payload, n_keys = run_of(packed[:len(counts) * width], counts, key_bytes)[0]
    sound = _table.marks(payload, n_keys, order, 4)
    for _ in range(400):
        broken = bytearray(payload)
        for _ in range(rng.randrange(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        if rng.random() < 0.3:
            del broken[rng.randrange(len(broken)):]
        claimed = n_keys if rng.random() < 0.7 else rng.randrange(0, 3000)
        marks = _table.marks(broken, claimed, order, 4)
        for known, n in ((marks, claimed), (sound, n_keys)):
            if known is not None:
                found = _table.look_up(broken, n, order, 4, *known, packed[:len(counts) * width], np.zeros(len(counts), np.int64))
                assert found is None or isinstance(found, str)


def test_wrong_arguments_are_refused():
    """Lengths that do not go together never reach the kernel."""
    raw = np.arange(16, dtype=np.uint8)
    packed, places, ends = _table.arrange(raw, 8, 1, native=False)
    marks = np.empty(0, np.uint64), np.empty(0, np.uint32), np.empty(0, np.int64)
    for call in (lambda: _table.arrange(raw[:15], 8, 1, native=False), lambda: _table.arrange(raw, 33, 1, native=False),
                 lambda: _table.arrange(raw, 0, 1, native=False), lambda: _table.arrange(raw, 8, 0, native=False),
                 lambda: _table.arrange(raw, 2, 1, native=True),
                 lambda: _table.combine(packed, places, np.zeros(3, np.int64), ends, 2),
                 lambda: _table.combine(packed[:1], places, np.zeros(2, np.int64), ends, 2),
                 lambda: _table.combine(packed, places, np.zeros(2, np.int64), ends[:0], 2),
                 lambda: _table.marks(raw, 2, 2, 3), lambda: _table.marks(raw, 2, 9, 4),
                 lambda: _table.look_up(raw, 2, 2, 4, *marks, packed, np.zeros(2, np.int64))):
        with pytest.raises(ValueError):
            call()


def test_lower_bounds_agree_with_bisect(rng):
    """The number of keys below a bound is what counting gives, for every width."""
    for key_bytes in (4, 8, 16, 32):
        raw = some_keys(rng, 100, key_bytes)
        packed, _, _ = _table.arrange(raw.reshape(-1), key_bytes, 1, native=False)
        bounds, keys = some_keys(rng, 50, key_bytes), sorted(row.tobytes() for row in raw)
        asked = np.concatenate([packed_key(row.tobytes(), key_bytes) for row in bounds])

        assert _table.lower_bounds(packed, asked, _table.order_of(key_bytes)).tolist() == [
            sum(key < row.tobytes() for key in keys) for row in bounds]


def test_words_of_a_key():
    """A key is words from its first byte on, the last one filled up with NUL bytes."""
    assert words_of(b"abcdef", 6) == (0x61626364, 0x65660000)
    assert words_of(b"\x01", 9) == (0x01000000, 0, 0)
