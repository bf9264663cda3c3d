"""What the servers of a store say of themselves."""
from __future__ import annotations

import time

from kvps.errors import KvpsError
from kvps.ps.connection import Connection
from kvps.ps.places import Address
from kvps.ps.remote_store import RemoteDirectory

PATIENCE_S = 3.0


def servers(place: Address) -> list[dict]:
    """Ask the server of a store's root, and those of its shards.

    Returns:
        A row each: "server" ("root" or "shard N"), "state" ("up" or "down", with "error"), and of one that is up "pid", "up_s",
        "load" (share of its life at work), "waiting" (requests), "lag_s" (mean time of a request), "rss_bytes", "requests",
        "errors", "bytes_in", "bytes_out", "bytes" (of its data file), and of a shard "runs", "keys", "generation".

    Raises:
        Unreachable: the root's server gives no answer.
    """
    with RemoteDirectory(place, keys=place.keys, retry_s=1.0, patience_s=PATIENCE_S) as store:
        rows = [{"server": "root", "state": "up", **_facts(store.connection), "bytes": store.root.bytes()["file"]}]
        for shard in store.shards:
            row = {"server": f"shard {shard.shard}"}
            try:
                own = shard.facts()
                rows.append({**row, "state": "up", **_facts(shard.connection), "bytes": own["file"],
                             **{name: own[name] for name in ("runs", "keys", "generation")}})
            except KvpsError as exc:
                rows.append({**row, "state": "down", "error": str(exc)})
    return rows


def _facts(connection: Connection) -> dict:
    found = connection.call("server").call
    done = found["requests"].values()
    total = {name: sum(row[name] for row in done) for name in ("requests", "errors", "seconds", "bytes_in", "bytes_out")}
    up_s = max(1e-3, time.time() - found["began"])
    return {"pid": found["pid"], "up_s": round(up_s, 1), "load": round(min(1.0, total["seconds"] / up_s), 4),
            "waiting": found["waiting"], "lag_s": round(total["seconds"] / max(1, total["requests"]), 6),
            "rss_bytes": found["rss_bytes"], **{name: total[name] for name in ("requests", "errors", "bytes_in", "bytes_out")}}
