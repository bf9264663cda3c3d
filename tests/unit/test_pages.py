"""Pages of a file and their checksums, and a compiled model that is damaged."""
import contextlib
import json
import struct
import zlib

import numpy as np
import pytest

import kvps
from kvps._pages import PAGE_BYTES, Pages, PageSums
from kvps._rows import best_rows, find_rows
from kvps.errors import CorruptionError
from kvps.lm import container
from kvps.lm.scorer import Scorer

TEXT = ["a b c d", "a b d", "b c a a", "the cat sat on the mat"] * 3


def sums_of(data):
    """Return the checksums of whole pages."""
    sums = PageSums()
    sums.add(data)
    return np.frombuffer(sums.sums, np.uint32)


@pytest.mark.parametrize("n", [0, 1, PAGE_BYTES - 1, PAGE_BYTES, 3 * PAGE_BYTES + 7])
def test_pieces_make_no_difference(rng, n):
    """Checksums depend on the bytes, not on the pieces in which they come."""
    data = rng.randbytes(n)
    sums, at = PageSums(), 0
    while at < n:
        size = rng.choice([0, 1, 10, PAGE_BYTES, 2 * PAGE_BYTES + 1])
        sums.add(data[at:at + size])
        at += size

    assert bytes(sums.sums) == sums_of(data).tobytes()
    assert len(sums.sums) == n // PAGE_BYTES * 4


def test_sound_pages(rng):
    """Sound pages compare, as often as one asks."""
    data = rng.randbytes(5 * PAGE_BYTES)
    pages = Pages(data, sums_of(data), "name")

    for _ in range(2):
        pages.compare(memoryview(data)[100:3 * PAGE_BYTES])
        pages.compare(data[:0])


def test_every_bit_counts(rng):
    """A bit that differs anywhere in a page is noticed, with the place of the page."""
    data = bytearray(rng.randbytes(2 * PAGE_BYTES))
    sums = sums_of(data)
    for place in [0, PAGE_BYTES - 1, *rng.sample(range(PAGE_BYTES), 200)]:
        data[PAGE_BYTES + place] ^= 1 << rng.randrange(8)
        pages = Pages(data, sums, "name")
        pages.compare(memoryview(data)[:PAGE_BYTES])
        with pytest.raises(CorruptionError, match="name: page 1 at offset 4096 is damaged") as caught:
            pages.compare(memoryview(data)[PAGE_BYTES:PAGE_BYTES + 1])
        assert caught.value.key == 1
        data[PAGE_BYTES + place] = 0
        sums = sums_of(data)


def test_swapped_pages(rng):
    """Two pages that changed places are noticed."""
    data = rng.randbytes(2 * PAGE_BYTES)

    swapped = data[PAGE_BYTES:] + data[:PAGE_BYTES]

    with pytest.raises(CorruptionError, match="page 0"):
        Pages(swapped, sums_of(data), "name").compare(memoryview(swapped)[:1])


def test_a_place_outside(rng):
    """Memory outside of the file is refused, whatever it holds."""
    data = rng.randbytes(PAGE_BYTES)

    with pytest.raises(CorruptionError, match="a place outside of it is damaged"):
        Pages(data, sums_of(data), "name").compare(bytes(10))


@pytest.mark.parametrize(("n_bytes", "n_sums"), [(PAGE_BYTES - 1, 1), (PAGE_BYTES, 0), (PAGE_BYTES, 2)])
def test_sums_of_another_file(n_bytes, n_sums):
    """As many checksums as the file has pages, or there is no use of them."""
    with pytest.raises(ValueError, match=f"{n_sums} checksums of pages for {n_bytes} bytes"):
        Pages(bytes(n_bytes), np.zeros(n_sums, np.uint32), "name")


@pytest.fixture(params=[{}, {"exact": True}, {"smoothing": "witten-bell"}], ids=["hashes", "exact", "raw"])
def model(request, tmp_path):
    """Return (store, options, the only compiled model in it, what it says of the text)."""
    with kvps.create(tmp_path / "store", order=3) as store:
        store.train(TEXT)
    return tmp_path / "store", request.param, *made(tmp_path / "store", request.param)


def made(store, options):
    """Return the compiled model of a store, and its scores of the text."""
    with kvps.load(store, **options) as model:
        scores = model.score(TEXT).tolist()
    path, = (store / "models").glob("*.kvm")
    return path, scores


def flip(path, offset):
    """Change one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))


def test_each_section_is_covered(model):
    """A flipped bit in any section is refused, or the model is made again with a warning; answers never change."""
    store, options, path, expected = model
    sound = path.read_bytes()
    _, arrays = container.read(path)
    sections = {name: array.nbytes for name, array in arrays.items() if array.nbytes and name != "file"}
    offset, = struct.unpack_from("<Q", sound, len(sound) - 24)
    starts = json.loads(sound[offset:-24])["sections"]
    for name, n_bytes in sections.items():
        flip(path, starts[name][0] + n_bytes // 2)
        try:
            _, found = made(store, options)
        except CorruptionError as error:
            assert error.path == str(path) and "delete this file" in str(error)
        else:
            assert found == expected
        path.write_bytes(sound)
    assert made(store, options)[1] == expected


def test_made_again(model, caplog):
    """A model whose damage shows when it is opened is made again, and a warning says so."""
    store, options, path, expected = model
    flip(path, 0)                                              # the first section, unigrams, is read as a whole

    assert made(store, options) == (path, expected)
    assert f"{path}: damaged; it is made again now" in caplog.messages


def test_damage_that_a_look_up_meets(model):
    """Text whose n-grams lie on a damaged page is not scored; the message names the file and the page."""
    _, options, path, _ = model
    scorer = Scorer(path, options.get("smoothing", "modified-kneser-ney"))
    _, arrays = container.read(path)
    name = "ngrams.2.values" if "exact" in options else "entries"
    record = path.read_bytes()
    start = record.index(arrays[name].tobytes()[:4096])
    flip(path, start + 1)

    with pytest.raises(CorruptionError, match=f"page {start // PAGE_BYTES} "):
        scorer.score_text(b"the cat sat on the mat\n")


@pytest.mark.parametrize("length", [0, 10, 24, 5000, -1])
def test_cut_short(model, length):
    """A file that was cut short is no compiled model, and is made again."""
    store, options, path, expected = model
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CorruptionError, match="is no compiled model, or damaged; delete it"):
        container.read(path)

    assert made(store, options) == (path, expected)


def test_damaged_checksums(model):
    """The checksums have a checksum themselves."""
    _, _, path, _ = model
    _, arrays = container.read(path)
    damaged = dict(arrays)
    damaged["sums"] = memoryview(bytes([*arrays["sums"].tobytes()[:-5], 77, *arrays["sums"].tobytes()[-4:]])).cast("I")

    assert zlib.crc32(arrays["sums"][:-1]) == arrays["sums"][-1]
    with pytest.raises(CorruptionError, match="is no compiled model"):
        container.pages(path, damaged)


def test_rows_that_begin_with_some_words(rng):
    """The rows of each beginning are found, of one that is missing none; a damaged page is told of, and only when it is met."""
    rows = np.array(sorted([rng.randrange(9), rng.randrange(9), rng.randrange(50), 7] for _ in range(3072)), np.uint32)
    data = bytearray(rows.tobytes())
    sums = sums_of(data)
    view = np.frombuffer(data, np.uint32).reshape(-1, 4)
    for n in (1, 2, 3):
        for _ in range(100):
            wanted = np.array([rng.randrange(11) for _ in range(n)], np.uint32)
            there = np.flatnonzero((rows[:, :n] == wanted).all(axis=1))
            first, end = find_rows(view, wanted, Pages(data, sums, "name"))
            assert list(range(first, end)) == there.tolist()
    with pytest.raises(ValueError, match="5 words of rows of 4"):
        find_rows(view, np.zeros(5, np.uint32), Pages(data, sums, "name"))
    data[-1] ^= 1
    first = np.array([0], np.uint32)
    assert find_rows(view[:2000], first, Pages(data, sums, "name"))[0] == 0
    with pytest.raises(CorruptionError, match="name"):
        find_rows(view, np.array([8], np.uint32), Pages(data, sums, "name"))


def test_best_rows():
    """The best words after contexts, and how probable others can be, are found as a plain sort finds them."""
    rng = np.random.default_rng(3)
    lists, data = [], b""
    for depth in (1, 2, 3):
        rows = np.unique(rng.integers(0, 6, (2000, depth + 1)), axis=0)
        bits = (rng.integers(0, 40, len(rows)) / 8).astype(np.float32).view(np.uint32) + 1
        lists.append(np.ascontiguousarray(np.column_stack([rows, bits]).astype(np.uint32)))
        data += lists[-1].tobytes() + bytes(-lists[-1].nbytes % PAGE_BYTES)
    sums, views, at = sums_of(data), [], 0
    for rows in lists:
        views.append(np.frombuffer(data, np.uint32, rows.size, at).reshape(rows.shape))
        at += rows.nbytes + -rows.nbytes % PAGE_BYTES
    contexts = np.array([[0, 0, 0], [5, 5, 1], [2, 3, 1], [9, 0, 0], [5, 9, 0], [1, 0, 0], [4, 4, 4]], np.uint32)
    lengths = np.array([3, 3, 3, 3, 3, 1, 0])
    weights = rng.random((len(contexts), 4))
    for m in (1, 3, 5000):
        words, which, others = best_rows(views, contexts, lengths, weights, m, Pages(data, sums, "name"))
        for i, (context, length) in enumerate(zip(contexts.tolist(), lengths.tolist(), strict=True)):
            expected, bound = [], 0.0
            for depth in range(1, length + 1):
                rows = lists[depth - 1]
                rows = rows[(rows[:, :depth] == context[:depth]).all(axis=1)]
                rows = rows[np.argsort(rows[:, -1], kind="stable")]
                expected += rows[:m, -2].tolist()
                if len(rows) > m:
                    bound = max(bound, weights[i, depth] * 10.0 ** -float((rows[m, -1:] - np.uint32(1)).view(np.float32)[0]))
            assert words[which == i].tolist() == expected
            assert others[i] == pytest.approx(bound, rel=1e-12)
    with pytest.raises(ValueError, match="contexts of 3 words"):
        best_rows(views, contexts, lengths[1:], weights, 3, Pages(data, sums, "name"))
    with pytest.raises(ValueError, match="depth 1"):
        best_rows(views[1:], contexts, lengths, weights[:, 1:].copy(), 3, Pages(data, sums, "name"))
    damaged = bytearray(data)
    damaged[0] ^= 1
    with pytest.raises(CorruptionError):
        best_rows([np.frombuffer(damaged, np.uint32, lists[0].size).reshape(lists[0].shape)], contexts, lengths,
                  weights[:, :2].copy(), 3, Pages(damaged, sums, "name"))


@pytest.fixture
def imported(tmp_path, rng):
    """The file of an imported model of some hundred pages, the words of its text, and the bytes of its n-grams in the file."""
    words = [f"w{i}" for i in range(300)]
    with kvps.create(tmp_path / "s", order=3) as store:
        store.train([" ".join(rng.choices(words, k=12)) for _ in range(1000)], threads=1)
    kvps.export(tmp_path / "s", tmp_path / "a.arpa", threads=1)
    kvps.import_arpa(tmp_path / "m", tmp_path / "a.arpa", threads=1)
    data = (tmp_path / "m").read_bytes()
    offset, length, _, _ = struct.unpack("<QII8s", data[-24:])
    start, _, n_bytes = json.loads(data[offset:offset + length])["sections"]["entries"]
    return tmp_path / "m", words, range(start, start + n_bytes)


def test_long_texts_compare_all_pages(imported):
    """Who scored more tokens than there are pages is not told of bytes that change later: all pages were compared."""
    path, words, entries = imported
    with kvps.load(path, threads=1) as model:
        model.score(["w1 w2"] * 4000)
        with open(path, "r+b") as file:
            for at in entries[100::PAGE_BYTES]:
                file.seek(at)
                file.write(b"\xff")
        assert len(model.score([f"{a} {b}" for a in words for b in words])) == len(words) ** 2
    with kvps.load(path, threads=1) as model, pytest.raises(CorruptionError, match="is damaged"):
        model.score([" ".join(words)])


def test_long_texts_where_a_page_is_damaged(imported):
    """A damaged page that a long text does not ask for is none of its business, and is told when it is asked for."""
    path, words, entries = imported
    text, all_words = ["w1 w2"] * 4000, [f"{a} {b}" for a in words for b in words]
    with kvps.load(path, threads=1) as model:
        expected = model.score(text)
    untouched = 0
    for at in entries[100::9 * PAGE_BYTES]:
        before = path.read_bytes()
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(bytes([before[at] ^ 1]))
        with kvps.load(path, threads=1) as model, contextlib.suppress(CorruptionError):
            assert np.array_equal(model.score(text), expected)
            untouched += 1
            with pytest.raises(CorruptionError, match="is damaged"):
                model.score(all_words)
        path.write_bytes(before)
    assert untouched
