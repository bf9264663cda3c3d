"""Make shards again that lay on other machines, whose disks are lost: by a client of the store's servers.

STEP 1  look at each of such shards; plan, as for a store in a folder (recover_plan.py)
STEP 2  make each again beside what is left, out of sight: the newest checkpoint that helps, then the text since (remake.py)
STEP 3  let the root name it: from here on it is in force
"""
from __future__ import annotations

import contextlib
import json
from pathlib import Path

from kvps.errors import ArgumentError
from kvps.jobs.lost_text import Finder
from kvps.jobs.recover_plan import Options, Plan, Step, bases, choose
from kvps.jobs.remake import remake
from kvps.jobs.served import ServedDepot, check_store
from kvps.ps.places import Address, open_place
from kvps.store.depot import open_depot
from kvps.store.findings import DAMAGE, Finding, damage


class AwayRecovery:
    """The recovery of the shards of one store that are on other machines; has its session until it is closed. A context manager."""

    def __init__(self, place: Address, options: Options | None = None, *, wait: float = 0.0) -> None:
        """STEP 1: begin a session and make the `plan`.

        Raises:
            ArgumentError: all shards are where the root is. StoreLocked: somebody is writing.
            Unreachable: a server gives no answer.
        """
        self.place, self.options = place, options or Options()
        self._finder = Finder(Path.cwd(), self.options.inputs)
        self._store = open_place(place, writable=True, wait=wait, command="recover")
        with contextlib.ExitStack() as stack:
            stack.callback(self._store.close)
            self.plan = self._planned()
            stack.pop_all()

    def _planned(self) -> Plan:
        away = {number for number, place in enumerate(self._store.root.state()["shards"]) if place.get("away")}
        if not away:
            raise ArgumentError(f"{self.place}: no shard of it is on another machine; stop its servers, and name its folder")
        found = [json.loads(line) for line in b"".join(self._store.run(
            check_store, level="full" if self.options.full else "checksums")).splitlines()[:-1]]
        lost: dict[int, Finding] = {}
        for row in found:                      # of several findings of a shard the first says why
            if row["severity"] == DAMAGE and row.get("shard") in away:
                lost.setdefault(row["shard"], damage(row["part"], row["message"].partition("; ")[0], shard=row["shard"]))
        plan = Plan([lost[number] for number in sorted(lost)], shards=sorted(lost))
        if lost:
            places = [*([open_depot(self.options.source)] if self.options.source is not None else []), ServedDepot(self._store)]
            plan.bases = list(bases(self._store.root, places))
            best = choose(plan, self._finder)
            plan.steps = [Step("shard", f"make shard {number} again where it is served, from {best}", finding.what)
                          for number, finding in zip(plan.shards, plan.findings, strict=True)]
        if (job := self._store.root.job()) is not None:
            plan.steps.append(Step("resume", f"keep the {job['command']} that was interrupted, for kvps resume or kvps abort",
                                   "it is no damage"))
        return plan

    def run(self) -> dict:
        """Do what the plan says; as Recovery.run()."""
        plan, root = self.plan, self._store.root
        if plan.missing:
            raise self._finder.error(plan.missing)
        if plan.shards:
            remake(self._store, plan.shards, plan.bases, self._finder, self.options)
            self._store.reseal()
        return {"store": str(self.place), "version": root.state()["version"], "rebuilt": plan.shards,
                "resumable": root.job() is not None}

    def close(self) -> None:
        """Let others write."""
        self._store.close()

    def __enter__(self) -> AwayRecovery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
