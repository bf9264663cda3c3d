"""The store: shards of checksummed runs in LMDB, a root record, an owner lock.

It knows bytes, runs, ledgers and versions; nothing here knows what a language model is.
Reading order: FORMAT.md with format.py beside it, shard.py, root.py, directory.py (a whole store); DESIGN.md says why.
Import the modules themselves (`from kvps.store.directory import open_store`): this package imports nothing, so that
commands pay only for what they use.
"""
