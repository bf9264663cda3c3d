"""Make a damaged store sound again: a plan first, then its steps; never in place over the only copy.

    STEP 1  look at everything (check.py), and plan: what is damaged, and from what it can be made again (recover_plan.py)
    STEP 2  the seal, from the root
    STEP 3  each damaged shard, in a new folder: the newest checkpoint that helps, then the text recorded since (remake.py)
    STEP 4  an interrupted job is kept, for kvps resume, or rolled back where its text is gone
    STEP 5  clear what dead writers left, and damaged compiled models
    STEP 6  look at everything again

Which text a shard lacks, and where it is now, is told by lost_text.py.
"""
from __future__ import annotations

import os
from pathlib import Path

from kvps.errors import CorruptionError
from kvps.jobs import train
from kvps.jobs.check import Check
from kvps.jobs.lost_text import Finder
from kvps.jobs.recover_plan import Options, make_plan, restore_command, sound_root
from kvps.jobs.remake import remake
from kvps.store import files, layout, lock, seal
from kvps.store.check import refuse_other
from kvps.store.directory import StoreDirectory
from kvps.store.findings import DAMAGE


class Recovery:
    """The recovery of one store; holds its owner lock until it is closed. A context manager."""

    def __init__(self, path: str | Path, options: Options | None = None, *, wait: float = 0.0) -> None:
        """STEP 1: take the lock and make the `plan`.

        Raises:
            CorruptionError: only a checkpoint of the whole store helps; the message has the command.
            StoreError: no store. StoreLocked: somebody is writing.
        """
        self.path, self.options = Path(os.path.abspath(path)), options or Options()
        refuse_other(self.path)
        self._finder = Finder(self.path, self.options.inputs)
        self._lock: lock.OwnerLock | None = lock.OwnerLock(self.path, wait_s=wait, command="recover")
        try:
            self.plan = make_plan(self.path, self.options, self._finder)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Recovery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self) -> dict:
        """Do what the plan says.

        Returns:
            {"store", "version", "rebuilt": shards, "resumable": whether a job is pending}.

        Raises:
            InputGone: text is missing, each named; nothing has changed.
            CorruptionError: the store is not sound afterwards.
        """
        plan = self.plan
        if plan.missing:
            raise self._finder.error(plan.missing)
        if plan.kinds & {"seal", "accept"}:
            with sound_root(self.path) as (name, root):
                seal.renew(self.path, name, root)
        store = StoreDirectory(self.path, True, self._lock)
        self._lock = None                      # the store's from now on
        with store:
            if plan.shards:
                store.root.claim()
                remake(store, plan.shards, plan.bases, self._finder, self.options)
            version, ours = store.root.state()["version"], store.follow()
            store.sweep_directories()
            job = store.root.job()
            if job is not None and "job" in plan.kinds:
                train.roll_back(store, job)
                job = None
            store.root.claim()
            for shard in ours:
                shard.sweep(version, job and job["id"])
            self._remove_files(keep_spool=job is not None)
            store.reseal()
            self._look_again()
        return {"store": str(self.path), "version": version, "rebuilt": plan.shards, "resumable": job is not None}

    def _remove_files(self, *, keep_spool: bool) -> None:
        """STEP 5 for what does not lie in LMDB."""
        spool = self.path / layout.SPOOL
        if not keep_spool and spool.is_dir() and not spool.is_symlink():
            files.remove_tree(spool)
        doomed = [Path(finding.path) for finding in self.plan.findings if finding.part == "model" and finding.severity == DAMAGE]
        for path in (*self.path.glob("*.tmp-*"), *(path for path in doomed if path.parent == self.path / layout.MODELS)):
            if not path.is_dir():
                with files.reporting(path):
                    path.unlink(missing_ok=True)

    def _look_again(self) -> None:
        """STEP 6."""
        level = "full" if self.plan.shards or self.options.full else "checksums"
        left = Check(self.path, level, quiet=True, tables=False, progress=self.options.job.progress)
        # A damaged checkpoint says so, and is no part of the store.
        damage = [finding for finding in left if finding.severity == DAMAGE and finding.part != "checkpoint"]
        if damage:
            worst = damage[0]
            raise CorruptionError(f"{worst.what}: not sound after the recovery either; "
                                  f"{restore_command(self.path, self.options)}", path=worst.path, found=worst.found,
                                  expected=worst.expected)
