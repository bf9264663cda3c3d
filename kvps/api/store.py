"""A Store: text goes in and out of it, counts and models come out."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, NotRequired, Self, TypedDict, Unpack

from kvps.api.model import DEFAULT_SMOOTHING, Model, load
from kvps.api.words import LocalVocabulary, Ngram, Sentence, Vocabulary, listed, words_of
from kvps.errors import ArgumentError, StoreError
from kvps.jobs import check as checking
from kvps.jobs import compact as compacting
from kvps.jobs import history as versions
from kvps.jobs import job_inputs
from kvps.jobs import train as jobs
from kvps.jobs.train import DEFAULT_ORDER, DEFAULT_SHARDS, Options, Progress
from kvps.lm import cache, container, listing
from kvps.lm.model import CompiledModel
from kvps.lm.statistics import Statistics
from kvps.ps import tables
from kvps.ps.table import CountTable
from kvps.store import checkpoint as checkpoints
from kvps.store import files
from kvps.store.creation import create_store
from kvps.store.directory import StoreDirectory, open_store
from kvps.store.findings import Finding
from kvps.text.corpus import Input, resolve, spool
from kvps.text.tokenize import Spec, Tokenizer, store_tokenizer
from kvps.units import check_labels, thread_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvps.api.remote import RemoteStore
    from kvps.jobs.audit import Audit

Path_ = str | PathLike[str]


class JobOptions(TypedDict, total=False):
    """What every call that counts text understands; see kvps.jobs.train.Options for meanings and defaults."""

    reserved: NotRequired[str]
    encoding_errors: NotRequired[str]
    field: NotRequired[str]
    newline: NotRequired[str]
    count_field: NotRequired[str | None]
    max_ratio: NotRequired[int]
    threads: NotRequired[int | None]
    memory: NotRequired[str | int]
    label: NotRequired[str | None]
    keep_labels: NotRequired[int | None]
    wait: NotRequired[float]
    temp: NotRequired[str | Path | None]
    progress: NotRequired[Progress]


class Change(TypedDict):
    """What a job did. Tokens are without </s>; those of forget() are negative, and so are its sentences."""

    command: str
    version: int                                 # of the store now
    tokens: int
    sentences: int
    inputs: int
    already: dict[str, int]                      # name of an input that was counted before: in which version
    labels: NotRequired[list[str]]               # that were taken away, of forget_labels()


def create(path: Path_, order: int = DEFAULT_ORDER, shards: int = DEFAULT_SHARDS, tokenizer: Spec = "whitespace",
           lowercase: bool = False, normalize: str | None = None, split_sentences: bool = False) -> Store:
    """Make an empty store and open it.

    Args:
        path: must not exist, or be an empty directory.
        order: of the n-grams, 1 to 8; lower orders come with it.
        shards: into how many parts the counts are split; reshard() changes it.
        tokenizer: "whitespace", "char", "wordpunct", "jieba", "sentencepiece:FILE", "hf:PATH", or "MODULE:FUNC", a function
            from a line to a list of words; or that function itself, if it can be imported by its name.
        lowercase: lower-case the words.
        normalize: "NFC" or "NFKC", the Unicode form that text is brought into.
        split_sentences: a line, or a str, is parted where a sentence ends: at 。！？ and . ! ?

    Raises:
        ArgumentError: an order, number of shards or tokenizer that is not possible.
        StoreError: something is at `path` already, or cannot be made there.
    """
    jobs.check_shape(order, shards)
    words = Tokenizer.from_spec(tokenizer, lowercase, normalize=normalize, split_sentences=split_sentences, trusted=True)
    create_store(path, order, shards, words.to_json())
    return open(path, tokenizer=tokenizer)


def open(path: Path_, writable: bool = False, *, wait: float = 0.0, tokenizer: Spec | None = None) -> Store:
    """Open a store.

    Args:
        path: of its directory.
        writable: keep other writers away until it is closed; without it, only while a call writes.
        wait: how long to wait for another writer [s], if `writable`.
        tokenizer: names the store's own MODULE:FUNC again, or is that function; it is imported only then. Or names the file of
            its sentencepiece:FILE or hf:PATH, which lies elsewhere now.

    Raises:
        StoreError: `path` is no store, or may not be read. StoreLocked: `writable`, and another process is writing.
        CorruptionError, VersionMismatch: it cannot be read. ArgumentError: the store has another tokenizer.
    """
    return Store(open_store(path, writable, wait, command="open"), tokenizer)


def from_counts(path: Path_, files: Iterable[Path_], *, shards: int = DEFAULT_SHARDS, tokenizer: str = "whitespace",
                lowercase: bool = False, threads: int | None = None, progress: Progress = jobs.no_progress) -> Store:
    """Make a store of counts of n-grams in Google's text format, which `kvps export --counts` writes, and open it.

    Text can be added and forgotten as always. It has the order of the files; where they have `<unk>`, a closed vocabulary.

    Args:
        path: must not exist, or be an empty directory.
        files: folders that `kvps export --counts` made, or files of lines "w1 ... wk TAB count", of all orders from 1 on.
        shards, tokenizer, lowercase: as in create().
        progress: of (stage, done, total) [n-grams].

    Raises:
        DataError: they are not the counts of any text; `path` and `line` tell where that shows, and there is no store.
        StoreError: something is at `path` already, or cannot be made there.
    """
    from kvps.jobs.from_counts import train_from_counts

    if isinstance(files, (str, bytes, PathLike)):
        raise ArgumentError(f"expected an iterable of paths, not one {type(files).__name__}; put it in a list")
    train_from_counts(path, list(files), shards=shards, tokenizer=tokenizer, lowercase=lowercase, threads=threads,
                      progress=progress)
    return open(path, tokenizer=tokenizer)


def merge(out: Path_, stores: Iterable[Path_], weights: Iterable[int] | None = None, *, shards: int = DEFAULT_SHARDS,
          tokenizer: Spec | None = None, threads: int | None = None, progress: Progress = jobs.no_progress) -> Store:
    """Make a store whose counts are the sums of those of others, exactly, and open it; the others stay as they are.

    It is what counting the texts of all into one store would have made, with their labels, and knows which text was counted.
    Needs room for three times the counts.

    Args:
        out: must not exist, or be an empty directory.
        stores: directories of stores of one order, tokenizer and kind of vocabulary; the same one may come twice.
        weights: whole numbers from 1 on, one for each store: its counts are added so often. By default 1.
        shards: of the new store.
        tokenizer: as in open(), for the new store.
        progress: of (stage, done, total) [n-grams].

    Raises:
        ArgumentError: stores that do not fit together, weights that are not possible, an address.
        StoreError: something is at `out` already, or cannot be made there; otherwise as open(). DataError: a count too large.
    """
    from kvps.jobs.merge import merge

    if isinstance(stores, (str, bytes, PathLike)):
        raise ArgumentError(f"expected an iterable of stores, not one {type(stores).__name__}; put it in a list")
    merge(out, list(stores), weights=None if weights is None else list(weights), shards=shards, threads=threads, progress=progress)
    return open(out, tokenizer=tokenizer)


def connect(address: str, *, keys: Path_ | None = None, tokenizer: Spec | None = None, retry_s: float = 2.0,
            patience_s: float = 60.0) -> RemoteStore:
    """Connect to the server of a store (kvps serve), or its actors on Ray; what is returned has the interface of a Store.

    A server that is not there is noticed by the first call.

    Args:
        address: kvps://HOST:PORT, or kvps:///FOLDER/SOCKET; or ray://[RESOURCE@][HOST:PORT]/FOLDER, in a Ray cluster.
        keys: our folder of keys, made by kvps keygen, for a server that has some.
        tokenizer: as in open(); text is made words here, and the server never runs code that a client names.
        retry_s: how long a call waits for its answer before it asks again [s].
        patience_s: how long it asks again before it raises Unreachable [s].

    Raises:
        ArgumentError: no such address. StoreError: keys that cannot be read, or pyzmq or ray is missing.
        Unreachable: there is no such cluster.
    """
    from kvps.api.remote import RemoteStore

    return RemoteStore(address, keys=keys, tokenizer=tokenizer, retry_s=retry_s, patience_s=patience_s)


def restore(place: Path_, into: Path_, name: str | None = None, *, version: int | None = None, wait: float = 0.0,
            tokenizer: Spec | None = None, progress: Callable[[int, int], None] = lambda done, total: None) -> Store:
    """Make a store of a checkpoint and open it; it can be updated and forgotten from as the old one.

    Args:
        place: where checkpoints were put: a directory or URL.
        into: a folder that does not exist, or is empty.
        name: of the checkpoint.
        version: instead of a name; the newest checkpoint of that version.
        wait: for another process that deletes checkpoints at this place [s].
        tokenizer: as in open().
        progress: of (done, total) [bytes].

    Raises:
        ArgumentError: neither a name nor a version. StoreError: no such checkpoint, or `into` is something already.
        CorruptionError: the checkpoint is damaged.
    """
    depot, _ = checkpoints.depot_of(None, source=place)
    found = checkpoints.restore(depot, into, name, version, wait=wait, progress=progress)
    return open(found["path"], tokenizer=tokenizer)


def check(path: Path_, level: str = "checksums") -> list[Finding]:
    """Look for damage in a store, in a process of its own, and change nothing; sound if no finding has severity "damage".

    Args:
        path: of the store, which may be damaged in any way, somebody else's, or at work.
        level: "fast" (the structure), "checksums" (and every byte of the counts) or "full" (and every count).

    Raises:
        StoreError: `path` is no store. VersionMismatch: one of another format.
    """
    return checking.check(path, level)


def audit(path: Path_, smoothing: str = DEFAULT_SMOOTHING, order: int | None = None, *, contexts: int = 20, seed: int = 0,
          full: bool = False, threads: int | None = None) -> Audit:
    """Verify a model on itself: contexts sum to 1, counts agree over orders, and counts of counts with the counts.

    Args:
        path: of a store's folder, of an imported model, or of an ARPA file.
        smoothing, order: of the model, as in load().
        contexts: of each length, how many to add the probabilities of all words up after.
        seed: chooses them.
        full: compare the count of every n-gram in the model with the store's, and add every context up.

    Raises:
        ArgumentError: stupid back-off; `full` for a smoothing without back-offs, or an imported model without lists; a mixture.
            StoreError: `path` is no model, or changed meanwhile.
    """
    from kvps.jobs.audit import audit

    return audit(path, smoothing=smoothing, order=order, contexts=contexts, seed=seed, full=full, threads=thread_count(threads))


class Store:
    """A store of n-gram counts. Made by create() and open(); a context manager."""

    def __init__(self, directory: StoreDirectory, tokenizer: Spec | None = None) -> None:
        """Take over an open directory; `tokenizer` as in open()."""
        self._directory: StoreDirectory | None = directory
        self._named = tokenizer
        self._vocabulary: Vocabulary | None = None
        self._tables: dict[str, CountTable] = {}     # those that are open
        self.path: Path = directory.path
        self.order: int = directory.identity["order"]
        if tokenizer is not None:
            try:
                store_tokenizer(directory.path, directory.identity["tokenizer"], tokenizer)
            except BaseException:
                self.close()
                raise

    # writing

    def train(self, sentences: Iterable[Sentence], *, again: bool = False, **options: Unpack[JobOptions]) -> Change:
        """Count the first text of a store; StoreError if it has some: then update() adds to it. As update()."""
        return self._count("train", sentences, again, options)

    def update(self, sentences: Iterable[Sentence], *, again: bool = False, **options: Unpack[JobOptions]) -> Change:
        """Add sentences, all or none of them.

        Args:
            sentences: each a str, that the store's tokenizer makes words of, or each a list of words.
            again: count the same text once more; otherwise text that is counted already changes nothing.
            options: see JobOptions.

        Raises:
            ArgumentError: a bare str; a sentence with a newline, or a word that is empty or contains a separator.
            DataError: no text, or a reserved word (<s>, </s>, <unk>) in it.
            StoreLocked: another process is writing, and `wait` seconds were not enough.
            StoreError: an interrupted job is pending: resume() or abort() it.
        """
        return self._count("update", sentences, again, options)

    def forget(self, sentences: Iterable[Sentence], **options: Unpack[JobOptions]) -> Change:
        """Take sentences away again, exactly; DataError if they were never added, and the store is as before."""
        return self._count("forget", sentences, False, options)

    def forget_labels(self, labels: Iterable[str] = (), **options: Unpack[JobOptions]) -> Change:
        """Take all text of some labels away, and that of the oldest ones beyond `keep_labels`; needs no text.

        Raises:
            StoreError: a label has no text.
        """
        named = check_labels(labels) or []
        made = Options(**options)
        with self._writer("forget", made.wait) as directory:
            return jobs.run_forget_labels(directory, named, made)

    def purge(self, *, wait: float = 0.0, threads: int | None = None) -> dict[str, Any]:
        """Leave no byte of forgotten text in the store's files; they are all written anew. Checkpoints stay.

        Returns:
            {"words": how many lost their letters, "bytes": {"before", "after"}}.

        Raises:
            StoreError: an interrupted job is pending: resume() or abort() it.
        """
        from kvps.jobs import purge

        with self._writer("purge", wait) as directory:
            return purge.purge(directory, threads=threads)

    def train_files(self, paths: Iterable[Path_], *, again: bool = False, **options: Unpack[JobOptions]) -> Change:
        """Count the first text of a store from files; as update_files()."""
        return self._count_files("train", paths, again, options)

    def update_files(self, paths: Iterable[Path_], *, again: bool = False, **options: Unpack[JobOptions]) -> Change:
        """Add the text of files; raises what update() raises, and InputGone where a file vanishes meanwhile.

        paths: files with one sentence a line (plain, .gz, .bz2, .xz, .zst), folders, globs, FILE.jsonl[.gz|.zst],
            nltk:NAME.
        """
        return self._count_files("update", paths, again, options)

    def forget_files(self, paths: Iterable[Path_], **options: Unpack[JobOptions]) -> Change:
        """Take the text of files away again; as forget()."""
        return self._count_files("forget", paths, False, options)

    def resume(self, **options: Unpack[JobOptions]) -> Change | None:
        """Go on with the job that was interrupted; None when there is none."""
        made = Options(**options)
        with self._writer("resume", made.wait) as directory:
            return jobs.resume_job(directory, self._named, made)

    def abort(self, *, wait: float = 0.0) -> dict[str, Any] | None:
        """Roll back the job that was interrupted; return its command and the version, None when there is no job."""
        with self._writer("abort", wait) as directory:
            return jobs.abort_job(directory)

    def compact(self, *, vacuum: bool = False, wait: float = 0.0, threads: int | None = None,
                progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
        """Merge the runs of every shard; with `vacuum`, also give free pages back to the file system.

        Returns:
            {"version", "merged_runs", "bytes_before", "bytes"}, the last two with "file" and "live" [bytes].
        """
        with self._writer("compact", wait) as directory:
            return compacting.compact(directory, threads=thread_count(threads), vacuum=vacuum, progress=progress)

    def reshard(self, shards: int, *, wait: float = 0.0, threads: int | None = None,
                progress: Progress = jobs.no_progress) -> dict[str, Any]:
        """Give the store another number of shards, and deal the n-grams of heavy words evenly; no count changes.

        Needs room for three times the counts. Killed at any instant, the store has the old shards or the new ones.

        Args:
            shards: 1 to 1024.
            wait: for another writer [s].
            progress: of (stage, done, total) [n-grams].

        Returns:
            {"version", "shards_before", "shards", "ngrams" (distinct ones), "largest" (the largest shard over the mean)}.

        Raises:
            ArgumentError: an impossible number. StoreError: an interrupted job is pending: resume() or abort() it.
        """
        from kvps.jobs.reshard import reshard

        with self._writer("reshard", wait) as directory:
            return reshard(directory, shards, threads=thread_count(threads), progress=progress)

    def limit(self, into: Path_, *, words: Iterable[str] | None = None, min_count: int | None = None, shards: int | None = None,
              threads: int | None = None, progress: Progress = jobs.no_progress) -> Store:
        """Make a new store of the last version in which other words are `<unk>`, and open it; this one stays as it is.

        The new one is what counting the text with `<unk>` in the place of these words would have made, and its vocabulary is
        closed: words that it does not have are `<unk>` in text that is added or forgotten later, too.

        Args:
            into: a folder that does not exist, or is empty.
            words: that stay, whether the text has them or not; or
            min_count: words that occur so often stay.
            shards: of the new store; as many as of this one by default.
            progress: of (stage, done, total) [n-grams].

        Raises:
            ArgumentError: not one of words and min_count, or what is no word. StoreError: something is at `into` already.
        """
        from kvps.jobs.limit import limit

        self._reader()
        limit(into, self.path, words=words, min_count=min_count, shards=shards, threads=threads, progress=progress)
        return open(into, tokenizer=self._named)

    # tables

    def table(self, name: str, *, kind: str | None = None, key_bytes: int | None = None, shards: int = 1,
              wait: float = 0.0) -> CountTable:
        """Return a table of this store, which is made if it is not there and the store is open for writing.

        A table lies in the store and has writers and checkpoints of its own. Opened from a store that is open for writing
        it keeps other writers away until it is closed, as the store does; otherwise only while a push writes.

        Args:
            name: 1 to 64 letters, digits, _, . and -.
            kind: "count": int64 sums. Needed to make one; otherwise what is expected.
            key_bytes: width of the keys, 1 to 32. Needed to make one; otherwise what is expected.
            shards: of a new table, 1 to 64; a push is all or nothing in each of them.
            wait: how long to wait for another writer [s].

        Returns:
            The table, open; the same one as long as it is not closed. Closed with the store.

        Raises:
            ArgumentError: a name, kind, width or number of shards that is not possible.
            StoreError: no such table, and the store is open for reading; or the table is of another kind or width.
            StoreLocked: another process is writing to the table.
        """
        directory = self._reader()
        path = tables.table_path(self.path, name)
        known = self._tables.get(name)
        if known is not None and not known.closed:
            tables.refuse_other(path, {"kind": known.kind, "key_bytes": known.key_bytes}, kind, key_bytes)
            return known
        if directory.writable and not tables.exists(self.path, name):
            if kind is None or key_bytes is None:
                raise StoreError(f"{self.path}: has no table {name}; to make one, give kind and key_bytes", path=str(path))
            tables.create(self.path, name, kind, key_bytes, shards)
        opened = tables.open_table(self.path, name, kind=kind, key_bytes=key_bytes, writable=directory.writable, wait=wait)
        self._tables[name] = opened
        return opened

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return what CountTable.stats() says of each table, by name."""
        self._reader()
        return tables.listed(self.path)

    def create_table(self, name: str, kind: str, key_bytes: int, shards: int = 1) -> None:
        """Make an empty table; StoreError if there is one of this name. See table()."""
        self._reader()
        tables.create(self.path, name, kind, key_bytes, shards)

    def drop_table(self, name: str, *, wait: float = 0.0) -> None:
        """Delete a table and everything in it; StoreLocked while another process is writing to it."""
        self._reader()
        known = self._tables.pop(name, None)
        if known is not None:
            known.close()
        tables.drop(self.path, name, wait=wait)

    # checkpoints

    def checkpoint(self, name: str | None = None, *, to: Path_ | None = None, keep: int | None = None, wait: float = 0.0,
                   progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
        """Make a checkpoint of the last version, sending only what its place does not have yet; writers go on meanwhile.

        Args:
            name: "v" and the version in six digits by default.
            to: a directory, or a URL that fsspec knows; the folder `checkpoints` in the store by default.
            keep: delete the oldest checkpoints of this store beyond so many.
            wait: for another process that makes or deletes checkpoints at this place [s].
            progress: of (done, total) [bytes].

        Returns:
            {"name", "version", "created", "store", "tokens", "sentences", "bytes", "new_bytes", "place", "existed", "deleted"}.

        Raises:
            StoreFull: there is none; make room and call again. StoreLocked: the place is in use.
            StoreError: another checkpoint has this name, or the place cannot be used.
        """
        return checkpoints.create(self._reader(), name, to=to, keep=keep, wait=wait, progress=progress)

    def checkpoints(self, to: Path_ | None = None) -> list[dict[str, Any]]:
        """Return the checkpoints of this store, oldest first; {"name", "damaged": why} of one that cannot be read."""
        return checkpoints.listed(*checkpoints.depot_of(self.path, to))

    def verify_checkpoints(self, name: str | None = None, *, to: Path_ | None = None, wait: float = 0.0,
                           progress: Callable[[int, int], None] = lambda done, total: None) -> list[dict[str, Any]]:
        """Read one checkpoint or all as a whole; return for each {"name", "objects", "bytes", "findings"}."""
        depot, only = checkpoints.depot_of(self.path, to)
        return checkpoints.verify(depot, name, only=only, wait=wait, progress=progress)

    def delete_checkpoint(self, name: str, *, to: Path_ | None = None, wait: float = 0.0) -> dict[str, Any]:
        """Delete a checkpoint and what no other one needs; return {"name", "freed_bytes", "blocked_by"}."""
        depot, only = checkpoints.depot_of(self.path, to)
        return checkpoints.delete(depot, name, only=only, wait=wait)

    # reading

    @property
    def version(self) -> int:
        """The last committed version; 0 in a new store."""
        return self._reader().root.state()["version"]

    @property
    def labels(self) -> dict[str, dict[str, int]]:
        """Every label that has text: {name: {"tokens", "sentences", "first", "last" (versions)}}, oldest first."""
        return self._reader().root.labels()

    @property
    def statistics(self) -> Statistics:
        """Sizes and counts of counts of the last version, which is compiled first if it has not been."""
        meta, _ = cache.load(self._reader(), container.read)
        return Statistics.from_json(meta["statistics"])

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of the last version and their counts."""
        directory = self._reader()
        kept = self._vocabulary
        if kept is None or kept.version != directory.root.state()["version"]:
            compiled = cache.load(directory, lambda path: CompiledModel(path, "kneser-ney"), top=1)
            kept = self._vocabulary = LocalVocabulary(compiled, self.path)
        return kept

    def count(self, ngram: Ngram) -> int:
        """Return how often an n-gram of any order occurs, `<s>` and `</s>` being words of it; see counts()."""
        return self.counts([ngram])[0]

    def counts(self, ngrams: Iterable[Ngram]) -> list[int]:
        """Return the raw counts of n-grams in their order; see kvps.lm.listing.counts() for what is read.

        ngrams: each words between blanks, or a list of words; never tokenised. A bare str is refused.
        """
        if isinstance(ngrams, (str, bytes)):
            raise ArgumentError("expected an iterable of n-grams, not one text; use count() for a single one")
        rows = [words_of(ngram, number) for number, ngram in enumerate(listed(ngrams, "n-grams"), 1)]
        return [found["raw"] for found in self._reader().run(listing.counts, ngrams=rows)]

    def dump(self, k: int, *, in_order: bool = False,
             threads: int | None = None) -> Iterator[tuple[tuple[str, ...], int]]:
        """Yield every n-gram of k words with its raw count, of one version.

        in_order: in byte order of the lines that `kvps dump` prints; otherwise in no order that means anything.
        """
        with contextlib.closing(self._reader().run(listing.dump, k=k, in_order=in_order, here={"threads": threads})) as blocks:
            for block in blocks:
                for line in block.decode().split("\n")[:-1]:
                    words, _, count = line.rpartition("\t")
                    yield tuple(words.split(" ")), int(count)

    def model(self, smoothing: str = DEFAULT_SMOOTHING, order: int | None = None, exact: bool = False,
              stale: str = "wait", *, labels: Iterable[str] | None = None, threads: int | None = None) -> Model:
        """Return the last version as a model, which stays open when the store is closed; as load()."""
        self._reader()
        return load(self.path, smoothing, order, exact, stale, labels=labels, tokenizer=self._named, threads=threads)

    def status(self) -> dict[str, Any]:
        """Return what `kvps status --json` prints: idle, running or interrupted, pid, version, done of total."""
        from kvps.jobs.status import status

        return status(self.path)

    def history(self) -> list[dict[str, Any]]:
        """Return what happened to the store, a row a version, oldest first.

        Each has "version", "command", "label", "gone_labels", "tokens" and "sentences" (added; below 0: taken away), "inputs"
        (each "name" and "digest"), "started" and "time" [s since 1970].
        """
        return self._reader().run(versions.history)

    def close(self) -> None:
        """Close the store, and let the next writer in if it was writable."""
        directory, self._directory = self._directory, None
        with contextlib.ExitStack() as stack:
            if directory is not None:
                stack.callback(directory.close)
            for table in self._tables.values():
                stack.callback(table.close)
        self._tables.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<kvps.Store {str(self.path)!r}, order {self.order}{', closed' if self._directory is None else ''}>"

    def _reader(self) -> StoreDirectory:
        if self._directory is None:
            raise StoreError(f"{self.path}: is closed", path=str(self.path))
        return self._directory

    @contextlib.contextmanager
    def _writer(self, command: str, wait: float) -> Iterator[StoreDirectory]:
        """Give the store open for writing, under its owner lock."""
        directory = self._reader()
        if directory.writable:
            yield directory
            return
        with open_store(self.path, writable=True, wait=wait, command=command) as directory:
            yield directory

    def _count(self, command: str, sentences: Iterable[Sentence], again: bool, options: JobOptions) -> Change:
        def inputs(spool_dir: Path) -> list[Input]:
            return [spool(sentences, spool_dir)]

        if isinstance(sentences, (str, bytes, bytearray)):       # before anything is locked
            raise ArgumentError(f"expected an iterable of sentences, not one {type(sentences).__name__}; put it in a "
                                "list")
        made = Options(again=again, **options)
        if made.count_field is not None:
            raise ArgumentError(f"sentences have no field {made.count_field} to count by; it is one of .jsonl files")
        return self._run(command, inputs, made)

    def _count_files(self, command: str, paths: Iterable[Path_], again: bool, options: JobOptions) -> Change:
        made = Options(again=again, **options)
        if isinstance(paths, (str, bytes, PathLike)):
            raise ArgumentError(f"expected an iterable of paths, not one {type(paths).__name__}; put it in a list")

        def inputs(spool_dir: Path) -> list[Input]:
            return resolve(paths, **made.reading(), spool_dir=spool_dir)

        return self._run(command, inputs, made)

    def _run(self, command: str, inputs: Callable[[Path], list[Input]], options: Options) -> Change:
        with self._writer(command, options.wait) as directory:
            words = store_tokenizer(directory.path, directory.identity["tokenizer"], self._named)
            folder = job_inputs.spool_folder(directory, options.temp)
            try:
                return jobs.run_inputs(directory, command, inputs(folder), words, options)
            except BaseException:
                # A pending job needs its copies; a call that was refused leaves none.
                if directory.root.job() is None:
                    files.remove_tree(folder)
                raise
