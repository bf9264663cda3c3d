"""Rows in a transaction, read with their place in the message where one is damaged (FORMAT.md, "Blobs and rows")."""
from __future__ import annotations

from collections.abc import Iterator

from kvps.store import format as fmt
from kvps.store.transaction import Txn


def row(txn: Txn, key: bytes) -> dict | None:
    """Return a row that may be missing."""
    value = txn.get(key)
    return None if value is None else fmt.unpack_row(key, value, txn.where)


def required(txn: Txn, key: bytes) -> dict:
    """Return a row that must be there."""
    found = row(txn, key)
    if found is None:
        raise fmt.damaged(txn.where, key, "value", "none", "a record")
    return found


def current(txn: Txn, key: bytes, txn_id: int | None = None) -> dict:
    """Return the row that each commit writes: the one read, if not that of transaction `txn_id`, must have written it."""
    found, expected = required(txn, key), txn.id if txn_id is None else txn_id
    if found.get("txn") != expected:
        raise fmt.damaged(txn.where, key, "transaction id", found.get("txn"), expected)
    return found


def rows(txn: Txn, prefix: bytes) -> Iterator[tuple[bytes, dict]]:
    """Yield (key, row) of each row with this prefix, in key order; the transaction may not write meanwhile."""
    for key, value in txn.scan(prefix):
        yield key, fmt.unpack_row(key, value, txn.where)


def put(txn: Txn, key: bytes, row: dict) -> None:
    """Write a row."""
    txn.put(key, fmt.pack_row(key, row))


def put_current(txn: Txn, key: bytes, row: dict) -> None:
    """Write the row that each commit writes, once, with the number of this transaction and the next generation."""
    put(txn, key, {**row, "txn": txn.id, "generation": row["generation"] + 1})
