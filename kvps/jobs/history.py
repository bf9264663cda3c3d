"""What has happened to a store: a row a version, with what its job added or took away."""
from __future__ import annotations

from kvps.store.directory import StoreDirectory


def history(store: StoreDirectory) -> list[dict]:
    """Return what `kvps history --json` prints, a row a version, oldest first.

    Returns:
        "version", "command", "label" (None without one), "gone_labels" (taken away by this version), "tokens" and
        "sentences" (added; negative when taken away), "inputs" (each "name" and "digest"), "started" and "time" (of the
        commit) [s since 1970].
    """
    return [{"version": row["version"], "command": row["command"], "label": row.get("label"),
             "gone_labels": row.get("gone_labels", []), "tokens": row["tokens"], "sentences": row["sentences"],
             "inputs": [{"name": item["name"], "digest": item["digest"]} for item in row["inputs"]],
             "started": row["started"], "time": row["time"]}
            for row in store.root.history()]
