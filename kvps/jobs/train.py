"""Train, update and forget: one pipeline that adds the counts of some text to a store, or takes them away.

    STEP 1  find the inputs and their digests; refuse, resume, or say "already counted"
    STEP 2  if the store is new, deal heavy words to its shards; record the job in the root: from here on it is resumed or rolled
            back, never forgotten
    STEP 3  count the splits that some shard does not have yet (counting.py)
    STEP 4  forget only: check that no count fell below zero (verify.py); otherwise roll back
    STEP 5  commit: one transaction in the root makes the new version the one that readers see
    STEP 6  merge runs where they have become many

Killed anywhere before step 5, the store is at the old version and the job can be resumed or aborted; after it, at the
new one.
"""
from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from kvps.errors import ArgumentError, DataError, InputGone, StoreError
from kvps.jobs.counting import choose_routing, count_splits, split_bytes
from kvps.jobs.estimate import announce, estimate
from kvps.jobs.job_inputs import drop_spool, from_record, job_bytes, recorded, spool_folder, to_records
from kvps.jobs.verify import refuse_negative
from kvps.ps.merging import cancel, tidy
from kvps.ps.places import RAY, address, open_place
from kvps.store import files, seal
from kvps.store.creation import create_store
from kvps.store.directory import StoreDirectory
from kvps.store.layout import MAX_SHARDS
from kvps.text.corpus import DEFAULT_MAX_RATIO, Input, read_once, resolve
from kvps.text.tokenize import Spec, Tokenizer, shown, store_tokenizer
from kvps.text.vocabulary import Vocabulary
from kvps.units import check_name, cpu_count, is_whole, parse_bytes, running_system

log = logging.getLogger("kvps")

MAX_ORDER = 8
DEFAULT_ORDER = 5
DEFAULT_SHARDS = 4
DEFAULT_MEMORY = "1G"

Progress = Callable[[str, int, int | None], None]     # (stage, done, total or None)


def no_progress(stage: str, done: int, total: int | None) -> None:
    """Show nothing."""


@dataclasses.dataclass
class Options:
    """How a job reads its text and what it may use; the same for train, update, forget and resume."""

    reserved: str = "error"                    # <s>, </s>, <unk> in the text: "error" or "skip"
    encoding_errors: str = "strict"            # bytes that are not UTF-8: "strict" or "replace"
    field: str = "text"                        # of .jsonl records
    newline: str = "split"                     # within a field: "split" ends a sentence, "space" joins
    count_field: str | None = None             # of .jsonl records: how often the text counts; once by default
    max_ratio: int = DEFAULT_MAX_RATIO         # a compressed file's text may be so many times as long; 0: no limit
    again: bool = False                        # count what is counted already once more
    threads: int | None = None                 # default: the CPUs that affinity and cgroup allow, on Ray those of the cluster
    memory: str | int = DEFAULT_MEMORY         # for the batches being counted
    wait: float = 0.0                          # for another writer [s]
    label: str | None = None                   # keeps this text's counts apart, so that they can be taken away as a whole
    keep_labels: int | None = None             # take the oldest labels away until so many are left
    temp: str | Path | None = None             # where stdin and iterables are copied to; in the store by default
    progress: Progress = no_progress

    def __post_init__(self) -> None:
        if self.reserved not in ("error", "skip"):
            raise ArgumentError(f'reserved words are an "error" or "skip"ped, not "{self.reserved}"')
        if self.encoding_errors not in ("strict", "replace"):
            raise ArgumentError(f'encoding errors are "strict" or "replace", not "{self.encoding_errors}"')
        if self.label is not None:
            check_name("label", self.label)
        if self.keep_labels is not None and self.keep_labels < 1:
            raise ArgumentError(f"{self.keep_labels} labels cannot be kept, expected 1 or more")
        if self.threads is not None and self.threads < 1:
            raise ArgumentError(f"{self.threads} threads are not possible")
        self.memory = parse_bytes(self.memory)
        self.asked_threads = self.threads      # on Ray as many tasks; None: a CPU of the cluster each
        self.threads = self.threads or cpu_count()

    def reading(self) -> dict:
        """Return what resolve() is to know about the inputs."""
        return {"field": self.field, "newline": self.newline, "count_field": self.count_field, "max_ratio": self.max_ratio}


def train(path: str | Path, arguments: Sequence[str | Path], *, order: int = DEFAULT_ORDER, shards: int = DEFAULT_SHARDS,
          tokenizer: Spec = "whitespace", lowercase: bool = False, normalize: str | None = None, split_sentences: bool = False,
          options: Options | None = None, stdin: BinaryIO | None = None) -> dict:
    """Make a store and count the inputs into it; see update() for what it returns and raises."""
    options = options or Options()
    check_shape(order, shards)
    words = Tokenizer.from_spec(tokenizer, lowercase, normalize=normalize, split_sentences=split_sentences, trusted=True)
    made = False
    # Everything that can be wrong with the inputs is found before the store is made.
    early = resolve([a for a in arguments if not read_once(a)], **options.reading())
    elsewhere = address(path) is not None
    if (elsewhere or not seal.exists(Path(path))) and not any(read_once(a) for a in arguments):
        _refuse_empty(early, path)
    if not elsewhere and not seal.exists(path := Path(path)):
        create_store(path, order, shards, words.to_json())
        made = True
    try:
        shape = {"order": order, "shards": shards, "tokenizer": words.to_json()}
        with open_place(path, writable=True, wait=options.wait, command="train", make=shape) as store:
            _refuse_other_shape(store, order, shards, words)
            return _run(store, "train", arguments, words, options, stdin)
    except BaseException:
        if made:
            _remove_untouched(path)
        raise


def update(path: str | Path, arguments: Sequence[str | Path], *, tokenizer: Spec | None = None, lowercase: bool | None = None,
           options: Options | None = None, stdin: BinaryIO | None = None) -> dict:
    """Add the inputs to a store.

    Args:
        arguments: what kvps.text.corpus.resolve takes.
        tokenizer, lowercase: only to name MODULE:FUNC again, or a file that lies elsewhere now; must be the store's.

    Returns:
        {"command", "version", "tokens", "sentences", "inputs": how many were counted, "already": {name: version}}.

    Raises:
        DataError, InputGone: an input cannot be used; StoreError: the store cannot; ArgumentError: another tokenizer.
    """
    return _open_and_run(path, "update", arguments, tokenizer, lowercase, options or Options(), stdin)


def forget(path: str | Path, arguments: Sequence[str | Path], *, tokenizer: Spec | None = None, lowercase: bool | None = None,
           options: Options | None = None, stdin: BinaryIO | None = None) -> dict:
    """Take the counts of the inputs away again, exactly; as update().

    Raises:
        DataError: an n-gram of the inputs is not in the store that often; the store is as before.
    """
    return _open_and_run(path, "forget", arguments, tokenizer, lowercase, options or Options(), stdin)


def forget_labels(path: str | Path, labels: Sequence[str] = (), *, options: Options | None = None) -> dict:
    """Take away all text of some labels, and the oldest ones beyond options.keep_labels; needs no text and no count.

    Returns what update() does, and "labels": those that are gone.

    Raises:
        StoreError: a label has no text.
    """
    options = options or Options()
    with open_place(path, writable=True, wait=options.wait, command="forget") as store:
        return run_forget_labels(store, labels, options)


def run_forget_labels(store: StoreDirectory, labels: Sequence[str], options: Options) -> dict:
    """Do what forget_labels() says in a store that is open for writing."""
    there = store.root.labels()
    gone = list(dict.fromkeys(labels))
    job = store.root.job()
    if job is not None and (job["command"] != "forget" or job["inputs"] or not set(gone) <= set(job["gone_labels"])):
        raise _pending(store, job)
    if job is None:
        for label in gone:
            if label not in there:
                raise StoreError(f"{store.path}: no text has the label {label}; the labels are {', '.join(there) or '(none)'}",
                                 path=str(store.path))
        if options.keep_labels is not None:
            gone += _beyond([label for label in there if label not in gone], options.keep_labels)
        options = dataclasses.replace(options, label=None)         # no text comes under a label
        if not gone:
            return {"command": "forget", "version": store.root.state()["version"], "tokens": 0, "sentences": 0, "inputs": 0,
                    "already": {}, "labels": []}
        job = _begin(store, "forget", [], [], {}, None, options, gone)
    return _work(store, job, [], None, options)


def _beyond(labels: list[str], keep: int) -> list[str]:
    """Return the oldest of some labels, which come oldest first, that are too many."""
    return labels[:max(0, len(labels) - keep)]


def _pending(store: StoreDirectory, job: dict) -> StoreError:
    return StoreError(f"{store.path}: a {job['command']} was interrupted; go on with kvps resume, or roll it back with "
                      "kvps abort", path=str(store.path))


def resume(path: str | Path, *, tokenizer: Spec | None = None, options: Options | None = None) -> dict | None:
    """Go on with the job that was interrupted; None when there is none."""
    options = options or Options()
    with open_place(path, writable=True, wait=options.wait, command="resume") as store:
        return resume_job(store, tokenizer, options)


def resume_job(store: StoreDirectory, tokenizer: Spec | None, options: Options) -> dict | None:
    """Go on with the interrupted job of a store that is open for writing; None when there is none."""
    job = store.root.job()
    if job is None:
        return None
    words = store_tokenizer(store.path, store.identity["tokenizer"], tokenizer) if job["inputs"] else None
    return _work(store, job, [from_record(store.path, row["input"]) for row in job["inputs"]], words, options)


def abort(path: str | Path, *, wait: float = 0.0) -> dict | None:
    """Roll the interrupted job back; None when there is none."""
    with open_place(path, writable=True, wait=wait, command="abort") as store:
        return abort_job(store)


def abort_job(store: StoreDirectory) -> dict | None:
    """Roll back the interrupted job of a store that is open for writing; None when there is none."""
    job = store.root.job()
    if job is not None:
        roll_back(store, job)
    return job and {"command": job["command"], "version": store.root.state()["version"]}


def roll_back(store: StoreDirectory, job: dict) -> None:
    """Undo a job that has not committed."""
    version = store.root.state()["version"]
    store.root.claim()
    store.reseal()               # a root that does not know of this job any more is noticed
    store.fence()
    for shard in store.shards:
        shard.drop(job["id"], version)
    store.root.clear_job()
    store.fence()
    drop_spool(store, job["spool"])


def plan(path: str | Path, arguments: Sequence[str | Path], *, order: int | None = None, shards: int = DEFAULT_SHARDS,
         options: Options | None = None) -> dict:
    """Return what train (with an order) or update (without one) would need of the disk, and do nothing.

    Returns:
        estimate()'s record with "store" and "order".

    Raises:
        ArgumentError: stdin or a pipe, whose length nobody knows; an impossible order or number of shards.
        DataError, StoreError: as train() and update() for inputs and stores that cannot be used.
    """
    options = options or Options()
    before = 0
    for argument in arguments:
        if read_once(argument):
            raise ArgumentError(f"{argument}: can be read only once, so nobody knows its length before; save it to a file")
    if order is not None:
        check_shape(order, shards)
    if order is not None and address(path) is None:
        free = files.free_bytes(Path(path))
    else:
        with open_place(path) as store:
            order, shards, before = store.identity["order"], store.identity["shards"], store.bytes()["live"]
            free = store.free_bytes()
    inputs = resolve(arguments, **options.reading())
    return {"store": str(path), "order": order, **estimate(inputs, order, shards, free, before)}


def check_shape(order: int, shards: int) -> None:
    """Refuse what no store can be."""
    if not is_whole(order, 1, MAX_ORDER):
        raise ArgumentError(f"order {order!r:.40} is not possible, expected 1 to {MAX_ORDER}")
    if not is_whole(shards, 1, MAX_SHARDS):
        raise ArgumentError(f"{shards!r:.40} shards are not possible, expected 1 to {MAX_SHARDS}")


def _open_and_run(path: str | Path, command: str, arguments: Sequence[str | Path], tokenizer: Spec | None, lowercase: bool | None,
                  options: Options, stdin: BinaryIO | None) -> dict:
    with open_place(path, writable=True, wait=options.wait, command=command) as store:
        return run_arguments(store, command, arguments, tokenizer, lowercase, options, stdin)


def run_arguments(store: StoreDirectory, command: str, arguments: Sequence[str | Path], tokenizer: Spec | None,
                  lowercase: bool | None, options: Options, stdin: BinaryIO | None = None) -> dict:
    """Do what update() says in a store that is open for writing."""
    words = store_tokenizer(store.path, store.identity["tokenizer"], tokenizer, lowercase)
    return _run(store, command, arguments, words, options, stdin)


def _refuse_other_shape(store: StoreDirectory, order: int, shards: int, words: Tokenizer) -> None:
    """Refuse `train` on a store that was made with other options."""
    made = {"order": store.identity["order"], "shards": store.identity["shards"],
            "tokenizer": shown(store.identity["tokenizer"])}
    asked = {"order": order, "shards": shards, "tokenizer": shown(words.to_json())}
    other = [name for name in made if made[name] != asked[name]]
    if other:
        differences = ", ".join(f"{name} {made[name]} (asked for {asked[name]})" for name in other)
        raise StoreError(f"{store.path}: is a store already, made with {differences}; use kvps update to add text to it, "
                         "or name another folder", path=str(store.path))


def _refuse_empty(inputs: list[Input], path: Path) -> None:
    if sum(item.size for item in inputs) == 0:
        names = ", ".join(item.name for item in inputs[:3]) or "no input"
        raise DataError(f"{names}: no text to count; {path} is as before", path=inputs[0].name if inputs else None)


def _remove_untouched(path: Path) -> None:
    """Remove a store that holds nothing, no version and no job, unless somebody else has begun to write in it."""
    with contextlib.suppress(Exception), open_place(path, writable=True, command="train") as store:
        if store.root.state()["version"] == 0 and store.root.job() is None:
            files.remove_tree(path)


def _run(store: StoreDirectory, command: str, arguments: Iterable[str | Path], words: Tokenizer, options: Options,
         stdin: BinaryIO | None) -> dict:
    """Steps 1 and 2; then _work."""
    state = store.root.state()
    inputs = resolve(arguments, **options.reading(), spool_dir=spool_folder(store, options.temp), stdin=stdin)
    return run_inputs(store, command, inputs, words, options, state)


def run_inputs(store: StoreDirectory, command: str, inputs: list[Input], words: Tokenizer, options: Options,
               state: dict | None = None) -> dict:
    """Steps 1 to 6 for inputs that are resolved."""
    state = state or store.root.state()
    prints = {id(item): item.fingerprint() for item in inputs}     # before the digests: what changes meanwhile must show
    job, length = store.root.job(), None
    with ThreadPoolExecutor(options.threads) as pool:
        digested = pool.map(Input.digest, inputs)
        if job is None:
            length = _split_bytes(store, inputs, words, options)
            choose_routing(store, words, inputs, length, options.reserved == "skip")
        digests = list(digested)
    counted, already = list(zip(digests, inputs, strict=True)), {}
    named = [digests]                          # what a pending job of the same command and text was given
    if command != "forget" and not options.again:
        kept = {}
        for digest, item in counted:
            version = store.root.counted(digest)
            if version is not None or digest in kept:
                already[item.name] = version if version is not None else state["version"] + 1
            else:
                kept[digest] = item
        counted = list(kept.items())
        named.append(list(kept))
    if job is not None:
        begun = [row["digest"] for row in job["inputs"]]
        if job["command"] == command and begun in named and job["label"] == options.label:
            # They may lie elsewhere now, but are read as the job began to read them.
            places = dict(zip(digests, inputs, strict=True))
            inputs = [dataclasses.replace(places[row["digest"]], options=dict(row["input"]["options"])) for row in job["inputs"]]
            return _work(store, job, inputs, words, options)
        raise _pending(store, job)
    if already and not counted:
        drop_spool(store, spool_folder(store, options.temp))
        return {"command": command, "version": state["version"], "tokens": 0, "sentences": 0, "inputs": 0, "already": already}
    digests, inputs = [digest for digest, _ in counted], [item for _, item in counted]
    if command == "train" and state["version"] > 0:
        raise StoreError(f"{store.path}: is trained already; use kvps update to add text to it", path=str(store.path))
    _refuse_empty(inputs, store.path)
    gone = []
    if options.keep_labels is not None:
        labels = list(store.root.labels())
        if options.label is not None and options.label not in labels:
            labels.append(options.label)
        gone = [label for label in _beyond(labels, options.keep_labels) if label != options.label]
    announce(store, inputs)
    job = _begin(store, command, inputs, digests, prints, length, options, gone, already)
    return _work(store, job, inputs, words, options)


def _begin(store: StoreDirectory, command: str, inputs: list[Input], digests: list[str], prints: dict[int, dict],
           length: int | None, options: Options, gone_labels: list[str], already: dict[str, int] | None = None) -> dict:
    """Record a job as pending; from here on it is resumed or rolled back. Return its record."""
    job = {
        "id": os.urandom(8).hex(), "command": command, "version": store.root.state()["version"] + 1, "started": time.time(),
        "split_bytes": length,
        "reserved": options.reserved,
        "encoding_errors": options.encoding_errors, "already": already or {}, "tokenizer": store.identity["tokenizer"],
        "label": options.label, "gone_labels": gone_labels, "machine": running_system(), "files": [item.file() for item in inputs],
        "spool": recorded(store, spool_folder(store, options.temp)),
        "inputs": to_records(store, inputs, digests, [prints[id(item)] for item in inputs])}
    store.root.begin_job(job)
    return job


def _split_bytes(store: StoreDirectory, inputs: list[Input], words: Tokenizer, options: Options) -> int:
    """Return how long the splits of a job are."""
    tasks = _counters(store, options) if inputs else None       # each is a process of its own, with so much memory
    memory, at_once = (options.memory, options.threads) if tasks is None else (options.memory * tasks, tasks)
    at_once *= 2 if store.elsewhere else 1     # one is on its way while the next one is counted
    return split_bytes(memory, at_once, words.spec, sum(item.size for item in inputs))


def _work(store: StoreDirectory, job: dict, inputs: list[Input], words: Tokenizer | None, options: Options) -> dict:
    """Steps 3 to 6: from a recorded job to its commit; used by a first run and by every resumption."""
    state = store.root.state()
    store.root.claim()
    store.reseal()               # a root that does not know of this job any more is noticed
    for shard in store.shards:
        shard.sweep(state["version"], job["id"])
    _drop_changed(store, job, _fingerprints(inputs, job))
    vocabulary = Vocabulary(store.root.words(), store.root.share_words, closed="closed" in store.identity)
    total = job_bytes(job)
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        options.progress("counting", done, total)

    tokens = sentences = 0
    sign = -1 if job["command"] == "forget" else 1
    try:
        if inputs:
            with _others(store, job, words, options) as others:
                count_splits(store, vocabulary, words, job, inputs, threads=options.threads, progress=advance, others=others)
        _fence_complete(store, job)
        if inputs:
            if (changed := _drop_changed(store, job, _fingerprints(inputs, job))) is not None:
                name = inputs[changed].name
                raise InputGone(f"{name}: was changed while it was being counted, and is as before now; run kvps resume to "
                                "count it anew", path=name)
            rows = store.shards[0].splits(job["id"]).values()
            tokens, sentences = (sign * sum(row[name] for row in rows) for name in ("tokens", "sentences"))
            if sentences == 0:
                raise DataError(f"{', '.join(item.name for item in inputs[:3])}: no text to count; the store is as before",
                                path=inputs[0].name)
            if sign < 0:
                refuse_negative(store, job, threads=options.threads, progress=options.progress)
    except InputGone:
        raise                      # put the input back and resume
    except DataError as exc:
        # Resuming would meet the same text again, unless it could not be read: perhaps it can be another time.
        if not (isinstance(exc.__cause__, OSError) and exc.__cause__.errno is not None):
            roll_back(store, job)
        raise
    return _commit(store, job, tokens, sentences)


def _counters(store: StoreDirectory, options: Options) -> int | None:
    """Return how many tasks of a cluster count for us; None where the store is on none."""
    place = address(store.path)
    if place is None or not place.startswith(RAY):
        return None
    from kvps.jobs.on_ray import n_counters

    return n_counters(place, options.asked_threads)


@contextlib.contextmanager
def _others(store: StoreDirectory, job: dict, words: Tokenizer, options: Options) -> Iterator[Callable[[float], bool] | None]:
    """Give what waits for the tasks of a cluster that count the text of a job, if the store is on one; see count_splits()."""
    n, n_bytes = _counters(store, options), job_bytes(job)
    n_splits = n if n_bytes is None else -(-n_bytes // job["split_bytes"])
    if n is None or n_splits <= 1:             # not worth a task
        yield None
        return
    from kvps.jobs.on_ray import Counters

    with contextlib.closing(Counters(store.path, job, words.spec, min(n, n_splits))) as counters:
        yield counters.wait


def _fence_complete(store: StoreDirectory, job: dict) -> None:
    """Look whether every split is in every shard, once nothing that is on its way can change that any more."""
    store.fence()
    ledgers = [shard.splits(job["id"]).keys() for shard in store.shards]
    if any(ledger != ledgers[0] for ledger in ledgers):
        raise StoreError(f"{store.path}: a shard has lost a part of this {job['command']}; kvps resume counts it again",
                         path=str(store.path))


def _commit(store: StoreDirectory, job: dict, tokens: int, sentences: int) -> dict:
    """Steps 5 and 6."""
    gone = job["gone_labels"]
    for shard in store.shards:
        shard.mark(gone, job["version"])
    history = {key: job[key] for key in ("command", "label", "gone_labels", "reserved", "encoding_errors", "started")}
    history |= {"job": job["id"], "time": time.time(),
                "inputs": [{"name": row["input"]["name"], "digest": row["digest"], "input": row["input"]}
                           for row in job["inputs"]]}
    labels = store.root.labels()
    d_tokens, d_sentences = (added - sum(labels[label][name] for label in gone)
                             for added, name in ((tokens, "tokens"), (sentences, "sentences")))
    history |= {"tokens": d_tokens, "sentences": d_sentences}
    if gone:
        history["gone_inputs"] = [digest for digest, row in store.root.inputs().items() if not row["times"].keys().isdisjoint(gone)]
    delta: dict[str, int] = {}
    for row in job["inputs"]:
        delta[row["digest"]] = delta.get(row["digest"], 0) + (-1 if job["command"] == "forget" else 1)
    store.root.commit_job(job["version"], tokens, sentences, history, delta, generations=store.generations(),
                          label=job["label"], gone_labels=gone)
    shape = {"order": store.identity["order"], "n_words": store.root.next_word()}
    try:
        store.reseal()
        drop_spool(store, job["spool"])
        for shard in store.shards:
            if gone:
                shard.sweep(job["version"], None)
            if job["command"] == "forget" and job["inputs"]:
                shard.run(cancel, **shape, version=job["version"], label=job["label"])
            shard.run(tidy, **shape, version=job["version"], job=None)
    except (MemoryError, StoreError) as exc:
        # The version is there: saying that the job failed would have it repeated. What is left undone is done by the next.
        log.warning("version %d is committed, but merging is put off: %s", job["version"], exc)
    return {"command": job["command"], "version": job["version"], "tokens": d_tokens, "sentences": d_sentences,
            "inputs": len(job["inputs"]), "already": job["already"], **({"labels": gone} if gone else {})}


def _fingerprints(inputs: list[Input], job: dict) -> list[list[dict]]:
    """Return the fingerprints that stand for each input's own text: that of the job's begin and that of now.

    Raises:
        InputGone: an input is not what the job was begun with; time stamps are a hint only, its digest tells.
    """
    known = []
    for item, row in zip(inputs, job["inputs"], strict=True):
        known.append([row["fingerprint"], item.fingerprint()])
        if known[-1][0] != known[-1][1] and item.digest() != row["digest"]:
            raise InputGone(f"{item.name}: has changed since the {job['command']} began; put the old text back and run kvps "
                            "resume, or roll back with kvps abort", path=item.name)
    return known


def _drop_changed(store: StoreDirectory, job: dict, fingerprints: list[list[dict]]) -> int | None:
    """Take away all that a job has counted if a split was read while its input was another text; return that input.

    So it is where a split was made of words that the root has lost, which ids might be given to others.
    """
    n_words = store.root.next_word()
    changed = [row["input"] for shard in store.shards for row in shard.splits(job["id"]).values()
               if row["seen"] not in fingerprints[row["input"]] or row["words"] > n_words]
    if not changed:
        return None
    store.fence()
    for shard in store.shards:
        shard.drop(job["id"], job["version"] - 1)
    store.fence()
    return changed[0]
