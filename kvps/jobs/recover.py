"""Make a damaged store sound again: a plan first, then its steps; never in place over the only copy.

    STEP 1  look at everything (check.py), and plan: what is damaged, and from what it can be made again
    STEP 2  the seal, from the root
    STEP 3  each damaged shard, in a new folder: the newest checkpoint that helps, then the text recorded since (rebuild.py)
    STEP 4  an interrupted job is kept, for kvps resume, or rolled back where its text is gone
    STEP 5  clear what dead writers left, and damaged compiled models
    STEP 6  look at everything again

What text a shard lacks is told by the history: every input since the checkpoint, as often as it was added and not taken
away again, less what labels took with them. So text that was forgotten since it was added is not needed.
"""
from __future__ import annotations

import contextlib
import dataclasses
import os
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kvps.errors import CorruptionError, InputGone, KvpsError, StoreError
from kvps.jobs import train
from kvps.jobs.check import Check, is_damaged
from kvps.jobs.counting import count_splits, split_bytes
from kvps.lm.cache import FOLDER as MODELS
from kvps.ps.merging import tidy
from kvps.store import check as looks
from kvps.store import directory, files, lock, rebuild
from kvps.store.check import DAMAGE, Finding, Report
from kvps.store.directory import StoreDirectory, StoreSnapshot
from kvps.store.root import Root
from kvps.store.shard import Shard
from kvps.text.corpus import Input, resolve
from kvps.text.tokenize import Tokenizer, store_tokenizer
from kvps.text.vocabulary import Vocabulary


@dataclasses.dataclass
class Options:
    """What helps to recover a store."""

    source: str | Path | None = None           # checkpoints, besides STORE/checkpoints: a folder or a URL
    inputs: Sequence[str | Path] = ()          # files that hold recorded text which is not where it was
    accept_older: bool = False                 # take a root that went back in time for what it is
    full: bool = False                         # look at every count, before as well as after
    tokenizer: str | None = None               # names the store's MODULE:FUNC again
    job: train.Options = dataclasses.field(default_factory=train.Options)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a plan."""

    kind: str              # accept, seal, shard, job, model, clear
    what: str
    why: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.what}: {self.why}"


@dataclasses.dataclass(frozen=True)
class Text:
    """Text that a shard lacks: an input as it was counted, and how often; below 0: it is to be taken away."""

    digest: str
    name: str
    label: str | None
    reserved: str
    encoding_errors: str
    recorded: Input | None     # None in the history of a store that was once of format 1
    times: int

    @property
    def key(self) -> tuple:
        """What must be the same for two of them to cancel out."""
        how = self.recorded and (self.recorded.kind, {**self.recorded.options, "max_ratio": None})
        return self.digest, self.label, self.reserved, self.encoding_errors, repr(how)

    @property
    def shown(self) -> str:
        """What a user is told."""
        return f"{self.name} (BLAKE2b-256 {self.digest[:16]}...)"


@dataclasses.dataclass
class Base:
    """Where a shard begins: a checkpoint, or nothing; and what is to be counted on top of it."""

    depot: Any
    checkpoint: Any                    # None: nothing
    texts: list[Text]
    gone_labels: set[str]

    def __str__(self) -> str:
        """Return it in words."""
        parts = [f"checkpoint {self.checkpoint.name} (version {self.checkpoint.state['version']})"] if self.checkpoint else []
        if self.texts:
            names = ", ".join(text.name for text in self.texts[:3]) + (", ..." if len(self.texts) > 3 else "")
            parts.append(f"{len(self.texts)} {'texts' if len(self.texts) > 1 else 'text'} ({names})")
        return " and ".join(parts) or "nothing, for no text is counted"


class _UnknownWords(StoreError):
    """A text has words that the root does not know: they were purged."""


class Recovery:
    """The recovery of one store; holds its owner lock until it is closed. A context manager."""

    def __init__(self, path: str | Path, options: Options | None = None, *, wait: float = 0.0) -> None:
        """Take the lock and plan.

        Raises:
            CorruptionError: only a checkpoint of the whole store helps; the message has the command.
            StoreError: no store. StoreLocked: somebody is writing.
        """
        self.path, self.options = Path(os.path.abspath(path)), options or Options()
        looks.refuse_other(self.path)
        self._lock: lock.OwnerLock | None = lock.OwnerLock(self.path, wait_s=wait, command="recover")
        self.steps: list[Step] = []
        self.missing: list[Text] = []          # text that a plan needs and nobody has named
        self.findings: list[Finding] = []
        self._shards: list[int] = []
        self._bases: list[Base] = []
        self._places: dict[str, Input] = {}    # of text that was found, by digest
        try:
            self._plan()
        except BaseException:
            self.close()
            raise

    @property
    def damaged(self) -> bool:
        """Whether there is damage, and not only what lies about."""
        return is_damaged(self.findings)

    def close(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Recovery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # STEP 1

    def _plan(self) -> None:
        level = "full" if self.options.full else "checksums"
        self.findings = list(Check(self.path, level, quiet=True, tables=False, progress=self.options.job.progress))
        damage = [finding for finding in self.findings if finding.severity == DAMAGE]
        self._refuse_hopeless(damage)
        with self._root() as (name, root):
            state = root.state()
            self._plan_seal(name, state, damage)
            bad = {finding.shard for finding in damage if finding.shard is not None}
            if any(finding.part == "counts" and finding.shard is None for finding in damage):
                bad = set(range(len(state["shards"])))
            if bad and "table" in root.identity:
                what = next(finding.what for finding in damage if finding.shard is not None)
                raise CorruptionError(f"{what}; no text can make a table again: {self._restore()}", path=str(self.path))
            if "table" not in root.identity and self._older(damage) and not bad and not self._add_up(root, state):
                bad = set(range(len(state["shards"])))
            self._shards = sorted(bad)
            if bad:
                self._plan_shards(root, state, damage)
            self._plan_job(root)
        for finding in damage:
            if finding.part == "model" and finding.path:
                self.steps.append(Step("model", f"remove {finding.path}", "damaged; it is made again when it is asked for"))
        leftovers = [finding for finding in self.findings
                     if finding.part == "leftover" and Path(finding.path or "").name != looks.KEPT]
        if leftovers:
            more = f" (and {len(leftovers) - 1} more)" if len(leftovers) > 1 else ""
            self.steps.append(Step("clear", "clear what dead writers left", leftovers[0].what + more))

    @staticmethod
    def _older(damage: list[Finding]) -> bool:
        return any(finding.next == looks.OLDER for finding in damage)

    def _refuse_hopeless(self, damage: list[Finding]) -> None:
        """Raise CorruptionError where no step of ours helps."""
        for finding in damage:
            if finding.next == looks.LINK:
                raise CorruptionError(str(finding), path=finding.path, found=finding.found, expected=finding.expected)
            if finding.part == "root" and not (finding.next == looks.OLDER and self.options.accept_older):
                way = f"; {self._restore()}"
                if finding.next == looks.OLDER:
                    way += ", or accept what is there with kvps recover --accept-older: what came after it is lost"
                raise CorruptionError(f"{finding.what}{way}", path=finding.path, found=finding.found, expected=finding.expected)

    def _restore(self) -> str:
        """Say how the newest checkpoint is restored."""
        found = []
        with contextlib.suppress(KvpsError):
            for depot in self._depots():
                from kvps.store import checkpoint

                sound, _ = checkpoint._all(depot)
                found += [(known.created, known.name, depot.place) for known in sound]
        if not found:
            return "no checkpoint is known: name a place that has one with --from, or train again"
        _, name, place = max(found)
        return f"restore a checkpoint: kvps checkpoint restore --from {place} {name} --into {self.path}.restored"

    @contextlib.contextmanager
    def _root(self) -> Iterator[tuple[str, Root]]:
        """Give the root, which was found sound, for reading."""
        name = looks.root_name(self.path)
        with contextlib.closing(Root.open(self.path / name)) as root:
            yield name, root

    def _plan_seal(self, name: str, state: dict, damage: list[Finding]) -> None:
        for finding in damage:
            if finding.part == "seal":
                self.steps.append(Step("seal", f"make the seal again, from {name} (version {state['version']})", finding.what))
            elif finding.next == looks.OLDER:
                what = f"go on from version {state['version']}; what came after it is lost"
                self.steps.append(Step("accept", what, finding.what))

    def _add_up(self, root: Root, state: dict) -> bool:
        """Return whether the counts of an older root's version are all there: the shards may have gone on without it."""
        from kvps.jobs.counts import look_at_counts

        report = Report()
        with contextlib.ExitStack() as stack:
            shards = [stack.enter_context(contextlib.closing(Shard.open(
                self.path / place["dir"], root.identity["uuid"], shard=number,
                map_bytes=directory.map_bytes(root.identity["shards"])))) for number, place in enumerate(state["shards"])]
            snaps = [stack.enter_context(shard.snapshot()) for shard in shards]
            store = types.SimpleNamespace(path=self.path, identity=root.identity, root=root)
            return look_at_counts(store, StoreSnapshot(state["version"], state, snaps), (), report, lambda *place: True,
                                  lambda *place: None, lambda done, total: None)

    def _plan_shards(self, root: Root, state: dict, damage: list[Finding]) -> None:
        self._bases = list(self._candidates(root, state))
        for base in self._bases:
            missing = [text for text in base.texts if self._find(text) is None]
            if not missing:
                self.missing, chosen = [], base
                break
            if not self.missing:
                self.missing, chosen = missing, base
        for number in self._shards:
            place = state["shards"][number]
            whys = [finding.what for finding in damage if finding.shard == number] or ["its counts are not those of this version"]
            more = f" (and {len(whys) - 1} more)" if len(whys) > 1 else ""
            self.steps.append(Step("shard", f"make shard {number} again in {rebuild.new_name(place)} from {chosen}, and keep the "
                                   f"damaged one in {looks.KEPT}", whys[0] + more))

    def _plan_job(self, root: Root) -> None:
        job = root.job()
        if job is None:
            return
        gone = self._gone_text(job)
        if gone is None:
            self.steps.append(Step("resume", f"keep the {job['command']} that was interrupted, for kvps resume or kvps abort",
                                   "its text is there"))
        else:
            what = f"roll back the {job['command']} that was interrupted"
            self.steps.append(Step("job", what, f"{gone}: is gone or has changed"))

    @staticmethod
    def _gone_text(job: dict) -> str | None:
        """Return the name of an input of a job that is not there any more."""
        for row in job["inputs"]:
            item = Input.from_json(row["input"])
            try:
                there = item.fingerprint() == row["fingerprint"] or item.digest() == row["digest"]
            except (KvpsError, OSError, LookupError):
                there = False
            if not there:
                return item.name
        return None

    # what a shard can be made from

    def _depots(self) -> Iterator[Any]:
        from kvps.store import checkpoint
        from kvps.store.depot import open_depot

        if self.options.source is not None:
            yield open_depot(self.options.source)
        place = checkpoint.default_place(self.path)
        if files.exists(place):
            yield open_depot(place)

    def _candidates(self, root: Root, state: dict) -> Iterator[Base]:
        """Yield what the shards can be made from, the newest checkpoint first, nothing last."""
        history, found = root.history(), []
        known = {root.identity["uuid"]: state["version"]}
        if "restored_from" in root.identity:
            known[root.identity["restored_from"]["uuid"]] = root.identity["restored_from"]["version"]
        for depot in self._depots():
            from kvps.store import checkpoint

            for kept in checkpoint._all(depot)[0]:
                version = kept.state["version"]
                # The same store, perhaps copied: the history tells whether it is also the same past.
                if version <= known.get(kept.uuid, -1) and kept.history == history[:version] \
                        and all(kept.identity.get(name) == root.identity.get(name) for name in ("order", "shards", "tokenizer")):
                    found.append((version, kept.created, depot, kept))
        for _, _, depot, kept in sorted(found, key=lambda item: item[:2], reverse=True):
            yield Base(depot, kept, *text_since(history, kept.state["version"]))
        yield Base(None, None, *text_since(history, 0))

    def _find(self, text: Text) -> Input | None:
        """Return the input that holds a text, found by its digest at its recorded place or among those given."""
        if text.digest not in self._places:
            for item in self._named(text):
                try:
                    same = item.digest() == text.digest
                except (KvpsError, OSError, LookupError):
                    continue
                if same:
                    self._places[text.digest] = item
                    break
        return self._places.get(text.digest)

    def _named(self, text: Text) -> Iterator[Input]:
        if text.recorded is not None:
            yield text.recorded
            for path in (text.name, *self.options.inputs):
                yield dataclasses.replace(text.recorded, path=os.path.abspath(path))
            return
        for path in (text.name, *self.options.inputs):
            try:
                for item in resolve([path], max_ratio=0):
                    yield item
                    yield dataclasses.replace(item, kind="words")
            except (KvpsError, OSError):
                continue

    # STEPS 2 to 6

    def run(self) -> dict:
        """Do what the plan says.

        Returns:
            {"store", "version", "rebuilt": shards, "resumable": whether a job is pending}.

        Raises:
            InputGone: text is missing, each named; nothing has changed.
            CorruptionError: the store is not sound afterwards.
        """
        if self.missing:
            raise _missing(self.path, self.missing)
        kinds = {step.kind for step in self.steps}
        if kinds & {"seal", "accept"}:
            with self._root() as (name, root):
                directory.seal_store(self.path, name, root)
        store = StoreDirectory(self.path, True, self._lock)
        self._lock = None                      # the store's from now on
        with store:
            if self._shards:
                store.root.claim()
                self._rebuild(store)
            with store.snapshot() as snapshot:
                version = snapshot.version
            store.sweep_directories()
            job = store.root.job()
            if job is not None and "job" in kinds:
                train.roll_back(store, job)
                job = None
            store.root.claim()
            for shard in store.shards:
                shard.sweep(version, job and job["id"])
            self._remove_files(keep_spool=job is not None)
            store.reseal()
            level = "full" if self._shards or self.options.full else "checksums"
            left = list(Check(self.path, level, quiet=True, tables=False, progress=self.options.job.progress))
        # A damaged checkpoint says so, and is no part of the store.
        worst = next((finding for finding in left if finding.severity == DAMAGE and finding.part != "checkpoint"), None)
        if worst is not None:
            raise CorruptionError(f"{worst.what}: not sound after the recovery either; {self._restore()}", path=worst.path,
                                  found=worst.found, expected=worst.expected)
        return {"store": str(self.path), "version": version, "rebuilt": self._shards, "resumable": job is not None}

    def _remove_files(self, *, keep_spool: bool) -> None:
        """STEP 5 for what does not lie in LMDB."""
        spool = self.path / directory.SPOOL
        if not keep_spool and spool.is_dir() and not spool.is_symlink():
            files.remove_tree(spool)
        doomed = [Path(finding.path) for finding in self.findings if finding.part == "model" and finding.severity == DAMAGE]
        for path in (*self.path.glob("*.tmp-*"), *(path for path in doomed if path.parent == self.path / MODELS)):
            if not path.is_dir():
                with files.reporting(path):
                    path.unlink(missing_ok=True)

    def _rebuild(self, store: StoreDirectory) -> None:
        """STEP 3: try one base after another; each begins anew."""
        words = None
        reason: KvpsError | None = None
        for base in self._bases:
            missing = [text for text in base.texts if self._find(text) is None]
            if missing:
                reason = reason or _missing(self.path, missing)
                continue
            if base.texts and words is None:
                words = store_tokenizer(store.path, store.identity["tokenizer"], self.options.tokenizer)
            try:
                with base.depot.locked("recover", 60.0, shared=True) if base.depot else contextlib.nullcontext():
                    self._make(store, base, words)
                return
            except (CorruptionError, _UnknownWords) as exc:
                reason = exc
        raise reason

    def _make(self, store: StoreDirectory, base: Base, words: Tokenizer | None) -> None:
        version, order = store.root.state()["version"], store.identity["order"]
        vocabulary = Vocabulary(store.root.words())
        made: dict[int, Shard] = {}
        try:
            for number in self._shards:
                made[number] = rebuild.begin(self.path, store.root, number)
                if base.checkpoint is not None:
                    rebuild.fill(made[number], base.depot, base.checkpoint, base.gone_labels)
            self._count(store, base.texts, words, vocabulary, made, version)
            for shard in made.values():
                tidy(shard, order, len(vocabulary), version=version, job=None)
                shard.sweep(version, None)
            for number in self._shards:
                rebuild.finish(self.path, store.root, made.pop(number))
        finally:
            for shard in made.values():
                shard.close()

    def _count(self, store: StoreDirectory, texts: list[Text], words: Tokenizer | None, vocabulary: Vocabulary,
               made: dict[int, Shard], version: int) -> None:
        """Count text into the new shards alone."""
        options = self.options.job
        target = types.SimpleNamespace(
            identity=store.identity, root=_KnownWords(self.path),
            shards=[made.get(number) or _Nowhere(number) for number in range(store.identity["shards"])])
        total, done = sum(abs(text.times) * self._find(text).size for text in texts), 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            options.progress("counting", done, total)

        for number, text in enumerate(texts):
            inputs = [self._find(text)] * abs(text.times)
            job = {"id": f"recover-{number}", "version": version, "command": "forget" if text.times < 0 else "update",
                   "label": text.label, "reserved": text.reserved, "encoding_errors": text.encoding_errors,
                   "split_bytes": split_bytes(options.memory, options.threads, words.spec, inputs[0].size)}
            count_splits(target, vocabulary, words, job, inputs, threads=options.threads, progress=advance)


class _Nowhere:
    """Stands for a shard that is sound: it takes nothing."""

    def __init__(self, number: int) -> None:
        self.shard = number

    def splits(self, job: str) -> dict[int, dict]:
        return {}

    def apply(self, *_: object, **__: object) -> bool:
        return True

    def runs(self) -> list:
        return []


class _KnownWords:
    """Stands for a root that takes no word: text that was counted has none that it does not know."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add_words(self, first_id: int, blob: bytes) -> None:
        raise _UnknownWords(f"{self._path}: text that was taken away since the checkpoint has words that were purged since, so "
                            "its counts cannot be told; give the text that is counted now with --input", path=str(self._path))


def _missing(path: Path, texts: list[Text]) -> InputGone:
    names = ", ".join(text.shown for text in texts)
    return InputGone(f"{path}: needs text that is not where it was, or has changed: {names}; give each with --input FILE (it is "
                     "told by its content), or a newer checkpoint with --from", path=texts[0].name,
                     missing=[{"name": text.name, "digest": text.digest} for text in texts])


def text_since(history: list[dict], version: int) -> tuple[list[Text], set[str]]:
    """Return the text that came after a version and is still counted, and the labels of its runs that are gone.

    What was counted as often as it was taken away again, in the same way, is left out. Negative: text of that version or
    an earlier one that was taken away later.
    """
    net: dict[tuple, Text] = {}
    gone: set[str] = set()
    for row in history[version:]:
        for label in row.get("gone_labels") or ():
            gone.add(label)
            net = {key: text for key, text in net.items() if text.label != label}
        for item in row["inputs"]:
            recorded = Input.from_json(item["input"]) if "input" in item else None
            # Rows of format 1 do not say how: what was not skipped or replaced was not there.
            text = Text(item["digest"], item["name"], row.get("label"), row.get("reserved", "skip"),
                        row.get("encoding_errors", "replace"), recorded, 0)
            before = net[text.key].times if text.key in net else 0
            net[text.key] = dataclasses.replace(text, times=before + (-1 if row["command"] == "forget" else 1))
    return [text for text in net.values() if text.times], gone
