"""Text that was counted and is needed again: what the history says of it, and where it is now.

What text a shard lacks is told by the history: every input since the checkpoint, as often as it was added and not taken
away again, less what labels took with them. So text that was forgotten since it was added is not needed.
"""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kvps.errors import InputGone, KvpsError
from kvps.text.corpus import Input, resolve


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


class Finder:
    """Finds text, by its digest alone, at its recorded place or among files that may hold it."""

    def __init__(self, path: Path, files: Sequence[str | Path]) -> None:
        """Take the store that lacks text, for messages, and the files to look at."""
        self._path, self._files = path, files
        self._found: dict[str, Input] = {}     # by digest

    def find(self, text: Text) -> Input | None:
        """Return the input that holds a text."""
        if text.digest not in self._found:
            for item in self._candidates(text):
                try:
                    same = item.digest() == text.digest
                except (KvpsError, OSError, LookupError):
                    continue
                if same:
                    self._found[text.digest] = item
                    break
        return self._found.get(text.digest)

    def missing(self, texts: Iterable[Text]) -> list[Text]:
        """Return those that are not found."""
        return [text for text in texts if self.find(text) is None]

    def error(self, missing: Sequence[Text]) -> InputGone:
        """Return the error that names missing text."""
        names = ", ".join(text.shown for text in missing)
        return InputGone(f"{self._path}: needs text that is not where it was, or has changed: {names}; give each with --input FILE "
                         "(it is told by its content), or a newer checkpoint with --from", path=missing[0].name,
                         missing=[{"name": text.name, "digest": text.digest} for text in missing])

    def _candidates(self, text: Text) -> Iterator[Input]:
        if text.recorded is not None:
            yield dataclasses.replace(text.recorded, path=os.path.join(self._path, text.recorded.path))
            for path in (text.name, *self._files):
                yield dataclasses.replace(text.recorded, path=os.path.abspath(path))
            return
        for path in (text.name, *self._files):
            try:
                for item in resolve([path], max_ratio=0):
                    yield item
                    yield dataclasses.replace(item, kind="words")
            except (KvpsError, OSError):
                continue
