"""How much disk a job will need, before it begins: an estimate by the length of its text, with what it assumes."""
from __future__ import annotations

import logging

from kvps.store.directory import StoreDirectory
from kvps.text.corpus import Input
from kvps.units import format_bytes

log = logging.getLogger("kvps")

# Bytes of disk per byte of text, for order 1 to 8: of the counts before anything is merged, of the compiled model, and of
# its scratch files while it is made. Measured on the first 8 MB of English novels; 78 MB of them need in all a fifth
# (order 5) to two thirds (order 1) less, since a longer text repeats itself more.
COUNTS = (0.11, 0.23, 0.51, 0.83, 1.13, 1.43, 1.69, 2.0)
MODEL = (0.18, 0.59, 1.74, 3.24, 4.75, 6.19, 7.52, 8.77)
SCRATCH = (0.0, 0.59, 2.29, 4.6, 6.93, 9.12, 11.2, 13.1)
COMPRESSED = 4                 # bytes of text per byte of a compressed file; gz and xz make novels 2.8 and 3.8 times shorter
# An empty store has so much for each shard: its first pages and its lock file.
SHARD_BYTES = 64 << 10
# The words that any text has, which weigh most in a short one.
WORDS_BYTES = 512 << 10
# A job on less text takes seconds, and the disk itself says whether it has room.
WORTH_A_WARNING_BYTES = 64 << 20


def estimate(inputs: list[Input], order: int, shards: int, free_bytes: int, before: int = 0) -> dict:
    """Return what counting the inputs will need.

    Args:
        inputs: all taken for text that is not counted yet.
        order, shards: of the store.
        free_bytes: where the store lies or will lie.
        before: bytes of counts that the store has already.

    Returns:
        "inputs" (how many), "input_bytes" (as they lie on disk), "text_bytes" (unpacked), "counts_bytes" (what the store
        grows by), "merge_bytes" (room for a merge, free again after it), "model_bytes" (of the compiled model of all
        text), "scratch_bytes" (while it is made), "needs_bytes" (of the counts, and then of the merge or of the model with
        its scratch, whichever is more), "free_bytes", "enough", "assumptions" (sentences).
    """
    sizes = [(item.size, COMPRESSED if "compression" in item.options else 1) for item in inputs]
    text = sum(size * ratio for size, ratio in sizes)
    counts_per_byte, model_per_byte, scratch_per_byte = (table[order - 1] for table in (COUNTS, MODEL, SCRATCH))
    counts = round(text * counts_per_byte) + (0 if before else shards * SHARD_BYTES)
    merge = before + counts    # in the end of a long job nearly all runs are merged into one, beside the old ones
    whole = text + before / counts_per_byte
    model, scratch = round(whole * model_per_byte) + WORDS_BYTES, round(whole * scratch_per_byte)
    needs = counts + max(merge, model + scratch)
    assumptions = [
        f"a byte of text takes {counts_per_byte:g} bytes of counts of order {order} and {model_per_byte:g} of compiled model, "
        "as in 8 MB of English novels; longer texts take less, texts that repeat themselves much less",
        f"merging counts takes as much again for a while, and making the model {scratch_per_byte:g} bytes a byte of text"]
    if any(ratio != 1 for _, ratio in sizes):
        assumptions.append(f"compressed inputs unpack to {COMPRESSED} times their size")
    if before:
        assumptions.append("inputs that are counted already are taken for new ones")
    return {"inputs": len(inputs), "input_bytes": sum(size for size, _ in sizes), "text_bytes": text, "counts_bytes": counts,
            "merge_bytes": merge, "model_bytes": model, "scratch_bytes": scratch, "needs_bytes": needs, "free_bytes": free_bytes,
            "enough": needs <= free_bytes, "assumptions": assumptions}


def announce(store: StoreDirectory, inputs: list[Input]) -> None:
    """Log what a job on these inputs will need of the disk; a warning if that does not seem to be there: it is not refused."""
    found = estimate(inputs, store.identity["order"], store.identity["shards"], store.free_bytes(), store.bytes()["live"])
    if not found["enough"] and found["text_bytes"] >= WORTH_A_WARNING_BYTES:
        log.warning(f"{store.path}: {in_words(found)}; should the disk fill up, make room and run kvps resume")
    else:
        log.info(f"{store.path}: {in_words(found)}")


def in_words(found: dict) -> str:
    """Return an estimate as one sentence."""
    names = ("text", "counts", "merge", "model", "scratch", "needs", "free")
    size = {name: format_bytes(found[f"{name}_bytes"]) for name in names}
    return (f"{size['text']} of text need about {size['needs']} of disk: counts {size['counts']} and, one after the other, "
            f"{size['merge']} to merge them, {size['model']} for the compiled model with {size['scratch']} of scratch; "
            f"{size['free']} are free: {'enough' if found['enough'] else 'perhaps not enough'}")
