"""The plan of a recovery: what is damaged, and from what it can be made again. Nothing is changed here."""
from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kvps.errors import CorruptionError, KvpsError
from kvps.jobs import train
from kvps.jobs.check import Check, is_damaged
from kvps.jobs.counts import look_at_counts
from kvps.jobs.job_inputs import gone_text
from kvps.jobs.lost_text import Finder, Text, text_since
from kvps.store import checkpoint, files, layout
from kvps.store.check import root_name
from kvps.store.checkpoint import Checkpoint
from kvps.store.depot import Depot, open_depot
from kvps.store.directory import StoreSnapshot
from kvps.store.findings import DAMAGE, LINK, OLDER, Finding, Report
from kvps.store.root import Root
from kvps.store.shard import Shard


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

    kind: str              # accept, seal, shard, resume, job, model, clear
    what: str
    why: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.what}: {self.why}"


@dataclasses.dataclass
class Base:
    """Where a shard begins: a checkpoint, or nothing; and what is to be counted on top of it."""

    depot: Depot | None
    checkpoint: Checkpoint | None      # None: nothing
    texts: list[Text]
    gone_labels: set[str]

    def __str__(self) -> str:
        """Return it in words."""
        parts = [f"checkpoint {self.checkpoint.name} (version {self.checkpoint.state['version']})"] if self.checkpoint else []
        if self.texts:
            names = ", ".join(text.name for text in self.texts[:3]) + (", ..." if len(self.texts) > 3 else "")
            parts.append(f"{len(self.texts)} {'texts' if len(self.texts) > 1 else 'text'} ({names})")
        return " and ".join(parts) or "nothing, for no text is counted"


@dataclasses.dataclass
class Plan:
    """What is to be done."""

    findings: list[Finding]
    steps: list[Step] = dataclasses.field(default_factory=list)
    shards: list[int] = dataclasses.field(default_factory=list)      # to be made again
    bases: list[Base] = dataclasses.field(default_factory=list)      # from what, the best first
    missing: list[Text] = dataclasses.field(default_factory=list)    # text that is needed and that nobody has named

    @property
    def damaged(self) -> bool:
        """Whether there is damage, and not only what lies about."""
        return is_damaged(self.findings)

    @property
    def kinds(self) -> set[str]:
        """The kinds of its steps."""
        return {step.kind for step in self.steps}


@contextlib.contextmanager
def sound_root(path: Path) -> Iterator[tuple[str, Root]]:
    """Give a root that was found sound, for reading, and the name of its folder."""
    name = root_name(path)
    with contextlib.closing(Root.open(path / name)) as root:
        yield name, root


def restore_command(path: Path, options: Options) -> str:
    """Say how the newest checkpoint of a store is restored."""
    found = []
    with contextlib.suppress(KvpsError):
        for depot in depots(path, options):
            found += [(known.created, known.name, depot.place) for known in checkpoint.read_all(depot)[0]]
    if not found:
        return "no checkpoint is known: name a place that has one with --from, or train again"
    _, name, place = max(found)
    return f"restore a checkpoint: kvps checkpoint restore --from {place} {name} --into {path}.restored"


def depots(path: Path, options: Options) -> Iterator[Depot]:
    """Yield the places that have checkpoints of the store in a folder."""
    if options.source is not None:
        yield open_depot(options.source)
    place = checkpoint.default_place(path)
    if files.exists(place):
        yield open_depot(place)


def bases(root: Root, places: Iterable[Depot]) -> Iterator[Base]:
    """Yield what shards can be made from, the newest checkpoint first, nothing last."""
    history, found = root.history(), []
    known = {root.identity["uuid"]: root.state()["version"]}
    if "restored_from" in root.identity:
        known[root.identity["restored_from"]["uuid"]] = root.identity["restored_from"]["version"]
    for depot in places:
        for kept in checkpoint.read_all(depot)[0]:
            version = kept.state["version"]
            # The same store, perhaps copied: the history tells whether it is also the same past.
            if version <= known.get(kept.uuid, -1) and kept.history == history[:version] \
                    and all(kept.identity.get(name) == root.identity.get(name) for name in ("order", "tokenizer")):
                found.append((version, kept.created, depot, kept))
    for version, _, depot, kept in sorted(found, key=lambda item: item[:2], reverse=True):
        yield Base(depot, kept, *text_since(history, version))
    yield Base(None, None, *text_since(history, 0))


def choose(plan: Plan, finder: Finder) -> Base:
    """Return the first base of a plan whose text is there, or else the first one that lacks some, and note what that is."""
    for base in plan.bases:
        missing = finder.missing(base.texts)
        if not missing:
            plan.missing = []
            return base
        plan.missing = plan.missing or missing
    return plan.bases[0]


def make_plan(path: Path, options: Options, finder: Finder) -> Plan:
    """Look at a store whose owner lock the caller holds, and plan.

    Raises:
        CorruptionError: only a checkpoint of the whole store helps; the message has the command.
    """
    return _Planner(path, options, finder).plan


class _Planner:
    """Makes one plan, part by part."""

    def __init__(self, path: Path, options: Options, finder: Finder) -> None:
        self.path, self.options, self.finder = path, options, finder
        level = "full" if options.full else "checksums"
        self.plan = Plan(list(Check(path, level, quiet=True, tables=False, progress=options.job.progress)))
        self.damage = [finding for finding in self.plan.findings if finding.severity == DAMAGE]
        self.older = any(finding.next == OLDER for finding in self.damage)
        self.refuse_hopeless()
        with sound_root(path) as (name, root):
            self.plan_seal(name, root.state())
            self.plan_shards(root, root.state())
            self.plan_job(root)
        self.plan_files()

    def step(self, kind: str, what: str, whys: Sequence[str]) -> None:
        """Add a step; of its reasons the first is shown."""
        more = f" (and {len(whys) - 1} more)" if len(whys) > 1 else ""
        self.plan.steps.append(Step(kind, what, whys[0] + more))

    def refuse_hopeless(self) -> None:
        """Raise CorruptionError where no step of ours helps."""
        for finding in self.damage:
            if finding.next == LINK:
                raise CorruptionError(str(finding), path=finding.path, found=finding.found, expected=finding.expected)
            if finding.part == "root" and not (finding.next == OLDER and self.options.accept_older):
                way = f"; {restore_command(self.path, self.options)}"
                if finding.next == OLDER:
                    way += ", or accept what is there with kvps recover --accept-older: what came after it is lost"
                raise CorruptionError(f"{finding.what}{way}", path=finding.path, found=finding.found, expected=finding.expected)

    def plan_seal(self, name: str, state: dict) -> None:
        """The seal is made again from the root."""
        for finding in self.damage:
            if finding.part == "seal":
                self.step("seal", f"make the seal again, from {name} (version {state['version']})", [finding.what])
            elif finding.next == OLDER:
                self.step("accept", f"go on from version {state['version']}; what came after it is lost", [finding.what])

    def plan_shards(self, root: Root, state: dict) -> None:
        """Damaged shards are made again from the first base whose text is there, or else the first one."""
        every = set(range(len(state["shards"])))
        bad = {finding.shard for finding in self.damage if finding.shard is not None}
        if any(finding.part == "counts" and finding.shard is None for finding in self.damage):
            bad = every
        if bad and "table" in root.identity:
            what = next(finding.what for finding in self.damage if finding.shard is not None)
            raise CorruptionError(f"{what}; no text can make a table again: {restore_command(self.path, self.options)}",
                                  path=str(self.path))
        if "table" not in root.identity and self.older and not bad and not self.add_up(root, state):
            bad = every
        if not bad:
            return
        self.plan.shards, self.plan.bases = sorted(bad), list(bases(root, depots(self.path, self.options)))
        best = choose(self.plan, self.finder)
        for number in self.plan.shards:
            name = layout.following(state["shards"][number]["dir"])
            whys = [finding.what for finding in self.damage if finding.shard == number]
            self.step("shard", f"make shard {number} again in {name} from {best}, and keep the damaged one in "
                      f"{layout.KEPT}", whys or ["its counts are not those of this version"])

    def add_up(self, root: Root, state: dict) -> bool:
        """Return whether the counts of an older root's version are all there: the shards may have gone on without it."""
        with contextlib.ExitStack() as stack:
            shards = [stack.enter_context(contextlib.closing(Shard.open(
                self.path / place["dir"], root.identity["uuid"], shard=number,
                map_bytes=layout.map_bytes(root.identity["shards"])))) for number, place in enumerate(state["shards"])]
            snaps = [stack.enter_context(shard.snapshot()) for shard in shards]
            store = types.SimpleNamespace(path=self.path, identity=root.identity, root=root)
            snapshot = StoreSnapshot(state["version"], state, snaps, routing=root.routing())
            return look_at_counts(store, snapshot, (), Report(), lambda *place: True, lambda *place: None,
                                  lambda done, total: None)

    def plan_job(self, root: Root) -> None:
        """A pending job is kept, or rolled back where its text is gone."""
        job = root.job()
        if job is None:
            return
        gone = gone_text(self.path, job)
        if gone is None:
            self.step("resume", f"keep the {job['command']} that was interrupted, for kvps resume or kvps abort",
                      ["its text is there"])
        else:
            self.step("job", f"roll back the {job['command']} that was interrupted", [f"{gone}: is gone or has changed"])

    def plan_files(self) -> None:
        """Damaged models go, and what dead writers left."""
        for finding in self.damage:
            if finding.part == "model" and finding.path:
                self.step("model", f"remove {finding.path}", ["damaged; it is made again when it is asked for"])
        leftovers = [finding.what for finding in self.plan.findings
                     if finding.part == "leftover" and Path(finding.path or "").name != layout.KEPT]
        if leftovers:
            self.step("clear", "clear what dead writers left", leftovers)
