"""Counts that are looked up are those that a scan finds."""
import pytest
from processes import zipf_text

import kvps
from kvps.lm import listing
from kvps.store.directory import open_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three runs in one shard, one of them a removal, and two of them of several chunks."""
    path = tmp_path_factory.mktemp("listing") / "store"
    texts = [zipf_text(seed, lines).decode().splitlines() for seed, lines in ((1, 9000), (2, 7000))]
    with kvps.create(path, order=5, shards=1) as made:
        for text in texts:
            made.update(text)
        made.forget(texts[1][:1500])
    with open_store(path) as opened, opened.snapshot() as snapshot:
        assert [run.n_chunks > 1 for run in snapshot.runs(0)] == [True, True, False]
    return path


def test_counts_by_seeking(store, rng, monkeypatch):
    """N-grams of all orders that occur, or do not, alone and together, have the counts that a scan of everything gives."""
    with open_store(store) as opened:
        grams = []
        for k in (2, 3, 4, 5):
            lines = b"".join(listing.dump(opened, k)).decode().splitlines()
            chosen = [lines[0], lines[-1], *rng.sample(lines, 8)]
            grams += [line.split("\t")[0] for line in chosen]
            grams += [" ".join(rng.choices(["w0", "w1", "w99", "never", "<s>", "</s>"], k=k)) for _ in range(5)]
            raw = {line.split("\t")[0]: int(line.split("\t")[1]) for line in chosen}
            assert {row["ngram"]: row["raw"] for row in listing.counts(opened, list(raw))} == raw
        together = listing.counts(opened, grams)
        monkeypatch.setattr(listing, "MAX_SEEKS", 0)
        assert listing.counts(opened, grams) == together


def test_seeking_reads_a_few_chunks(store, monkeypatch):
    """A look-up reads less than a scan, which reads every chunk."""
    from kvps.store.shard import Snapshot

    read, original = [], Snapshot.chunk

    def chunk(self, run, index):
        read.append((run.id, index))
        return original(self, run, index)

    monkeypatch.setattr(Snapshot, "chunk", chunk)
    with open_store(store) as opened:
        listing.counts(opened, ["w1999 w1998 w1997"])
        sought = len(set(read))
        read.clear()
        listing.counts(opened, ["w1999"])

    assert sought < len(set(read))
