"""N-best lists with the model's opinion: a feature more for each hypothesis, its score, and the best first.

Two formats, told apart by each line:
    Moses        id ||| text ||| features ||| score [||| more]      features: NAME= value [value ...] NAME= ...
    JSON lines   {"id": ..., "text": ..., "score": ...}             the feature becomes a field
A list is what comes in a row with the same id. The feature is the natural logarithm of the probability of the text with its
</s>, as decoders have it. The new score is the old one plus weight times the feature; where the feature is there already, plus
weight times what it changed by. What has no score gets weight times the feature.
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from kvps.errors import DataError
from kvps.lm.evaluate import document_scores
from kvps.lm.pools import windowed
from kvps.text.corpus import Input
from kvps.text.documents import record_of, text_of
from kvps.text.piped import numbered_lines
from kvps.text.tokenize import Tokenizer

if TYPE_CHECKING:
    from kvps.lm.model import CompiledModel

# Text that is read at once, and scored in one call of the kernel.
BATCH_BYTES = 1 << 19
LN10 = math.log(10)


@dataclasses.dataclass
class Hypothesis:
    """One line of an n-best list."""

    group: object                              # the id
    text: bytes                                # one line
    score: float                               # 0 where there is none
    feature: float                             # what the list says already, 0 where it does not
    line: Callable[[float, float], bytes]      # of feature and score, with these
    place: str = ""                            # for messages


def rescore(model: CompiledModel, inputs: list[Input], tokenizer: Tokenizer, *, name: str, weight: float, field: str = "text",
            threads: int = 1, encoding_errors: str = "strict") -> Iterator[bytes]:
    """Yield the lines of n-best lists with the feature `name` and new scores, each list's best hypothesis first.

    Hypotheses of equal score stay in their order. Memory is bounded by some lists.

    Args:
        inputs: of plain lines (kvps.text.piped.passing).
        field: of a JSON record, the one that holds the text.

    Raises:
        DataError: a line that is neither; it names the line.
    """
    def work(batch: list[Hypothesis]) -> list[bytes]:
        texts = [tokenizer.prepare(found.text, errors=encoding_errors, name=found.place) for found in batch]
        scored = []
        for found, sums in zip(batch, document_scores(model, texts), strict=True):
            feature = -math.inf if sums.zero_probability_tokens else LN10 * sums.log10_probability
            scored.append((found.group, found.score + weight * (feature - found.feature), feature, found))
        lines, start = [], 0
        for i in range(1, len(scored) + 1):
            if i == len(scored) or scored[i][0] != scored[start][0]:
                best_first = sorted(scored[start:i], key=lambda row: -row[1])
                lines += [found.line(feature, score) for _, score, feature, found in best_first]
                start = i
        return lines

    with ThreadPoolExecutor(threads) as pool:
        for lines in windowed(pool, work, _batches(_hypotheses(inputs, name, field)), 2 * threads):
            yield from lines


def _batches(hypotheses: Iterable[Hypothesis]) -> Iterator[list[Hypothesis]]:
    """Yield whole lists together, until they are worth a call."""
    batch: list[Hypothesis] = []
    n_bytes = 0
    for found in hypotheses:
        if n_bytes >= BATCH_BYTES and found.group != batch[-1].group:
            yield batch
            batch, n_bytes = [], 0
        batch.append(found)
        n_bytes += len(found.text)
    if batch:
        yield batch


def _hypotheses(inputs: list[Input], name: str, field: str) -> Iterator[Hypothesis]:
    for source in inputs:
        for number, line in numbered_lines(source, BATCH_BYTES):
            try:
                found = _json(line, name, field) if line.lstrip(b" \t\xef\xbb\xbf").startswith(b"{") else _moses(line, name)
            except ValueError as error:
                raise DataError(f"{source.name}: line {number}: {error}", path=source.name, line=number) from error
            if found is not None:
                found.place = f"{source.name}: line {number}"
                yield found


def _moses(line: bytes, name: str) -> Hypothesis | None:
    if not line.strip():
        return None
    fields = [part.strip(b" \t\r") for part in line.split(b"|||")]
    if len(fields) < 2:
        raise ValueError("neither a JSON object nor id ||| text ||| features ||| score")
    fields += [b""] * (3 - len(fields))
    key, features, old = f"{name}=".encode(), fields[2].split(), 0.0
    start = features.index(key) if key in features else len(features)
    end = next((i for i in range(start + 1, len(features)) if features[i].endswith(b"=")), len(features))
    if start < len(features):
        if end != start + 2:
            raise ValueError(f"the feature {name} has {end - start - 1} values, expected 1")
        old = float(features[start + 1])
    score = float(fields[3]) if len(fields) > 3 else 0.0

    def write(feature: float, score: float) -> bytes:
        written = b" ".join([*features[:start], key, f"{feature:.6f}".encode(), *features[end:]])
        return b" ||| ".join([*fields[:2], written, f"{score:.6f}".encode(), *fields[4:]])

    return Hypothesis(fields[0], fields[1] + b"\n", score, old, write)


def _json(line: bytes, name: str, field: str) -> Hypothesis | None:
    import json

    record = record_of(line)
    if record is None:
        return None
    if "id" not in record:
        raise ValueError('no field "id", which tells the lists apart')
    numbers = [record.get(key) or 0.0 for key in ("score", name)]
    if not all(isinstance(number, float) for number in numbers):
        raise ValueError(f'"score" and "{name}" are numbers or null')

    def write(feature: float, score: float) -> bytes:
        # Read again, since whole numbers have become float. Infinite is null.
        whole = json.loads(line.decode("utf-8", "surrogateescape").removeprefix("\ufeff"))
        whole |= {key: x if math.isfinite(x) else None for key, x in ((name, feature), ("score", score))}
        return json.dumps(whole, ensure_ascii=False).encode("utf-8", "surrogateescape")

    return Hypothesis(json.dumps(record["id"]), text_of(record, field, "space"), *numbers, write)
