"""N-best lists with the model's opinion: a feature more for each hypothesis, its score, and the best first.

Two formats, told apart by each line:
    Moses        id ||| text ||| features ||| score [||| more]      features: NAME= value [value ...] NAME= ...
    JSON lines   {"id": ..., "text": ..., "score": ...}             the feature becomes a field
A list is what comes in a row with the same id. The feature is the natural logarithm of the probability of the text with its
</s>, as decoders have it. The new score is the old one plus weight times the feature; where the feature is there already, plus
weight times what it changed by. What has no score gets weight times the feature. From Python a hypothesis may be a dict with the
fields of a JSON line, and is one again.

The feature of what has probability 0 is -inf, null in JSON. No score holds a part of that: where it is there already, it counts
as not there. Scores are finite; where one would not be, the line is refused, and a weight of 0 leaves scores as they are.
"""
from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kvps.errors import ArgumentError, DataError
from kvps.lm.evaluate import document_scores
from kvps.pools import spread
from kvps.text.corpus import Input
from kvps.text.documents import record_of, text_of, with_fields
from kvps.text.piped import numbered_lines
from kvps.text.tokenize import Tokenizer

if TYPE_CHECKING:
    from kvps.lm.model import CompiledModel

# Text that is read at once, and scored in one call of the kernel.
BATCH_BYTES = 1 << 19
LN10 = math.log(10)
FIELDS = ("id", "text", "features", "score")   # of a hypothesis


@dataclasses.dataclass
class Hypothesis:
    """One line of an n-best list."""

    group: object                              # the id
    text: bytes                                # one line
    score: float                               # 0 where there is none
    feature: float                             # what the list says already, 0 where it does not
    line: Callable[[float, float], Any]        # of feature and score, with these
    path: str = ""                             # of the input it is from, for messages
    number: int = 0                            # of its line there

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.path}: line {self.number}"


def check_feature(name: str, weight: float, field: str = "text") -> None:
    """Raise ArgumentError unless a feature can have this name and weight, where `field` of JSON records is the text."""
    if not name or not name.isprintable() or any(sign in name for sign in " |=") \
            or not isinstance(weight, numbers.Real) or not math.isfinite(weight):
        raise ArgumentError("a feature has a name without blanks, | and =, and a weight that is a number; found "
                            f'"{name}" and {weight}')
    if name in (*FIELDS, field):
        raise ArgumentError(f'a feature named "{name}" would take the place of that field; choose another name')


def rescore(model: CompiledModel, inputs: list[Input], tokenizer: Tokenizer, *, name: str, weight: float, field: str = "text",
            threads: int = 1, encoding_errors: str = "strict") -> Iterator[bytes]:
    """Yield the lines of n-best lists with the feature `name` and new scores, each list's best hypothesis first.

    Args:
        inputs: of plain lines (kvps.text.piped.passing).
        field: of a JSON record, the one that holds the text.

    Raises:
        ArgumentError: as check_feature(). DataError: as hypothesis() and rescored().
    """
    check_feature(name, weight, field)
    found = (hypothesis(line, name, field, source.name, number)
             for source in inputs for number, line in numbered_lines(source, BATCH_BYTES))
    return rescored(model, found, tokenizer, weight=weight, threads=threads, encoding_errors=encoding_errors)


def rescored(model: CompiledModel, hypotheses: Iterable[Hypothesis | None], tokenizer: Tokenizer, *, weight: float,
             threads: int = 1, encoding_errors: str | None = None) -> Iterator[Any]:
    """Yield what hypotheses become with the feature and new scores, each list's best first; None of them is passed over.

    Hypotheses of equal score stay in their order. Memory is bounded by some lists.

    Raises:
        DataError: a score would be no finite number; it names the line.
    """
    def work(batch: list[Hypothesis]) -> list[Any]:
        texts = [tokenizer.prepare(found.text, errors=encoding_errors, name=found.place) for found in batch]
        scored = []
        for found, sums in zip(batch, document_scores(model, texts), strict=True):
            feature = -math.inf if sums.zero_probability_tokens else LN10 * sums.log10_probability
            scored.append((found.group, _combined(found, feature, weight), feature, found))
        lines, start = [], 0
        for i in range(1, len(scored) + 1):
            if i == len(scored) or scored[i][0] != scored[start][0]:
                best_first = sorted(scored[start:i], key=lambda row: -row[1])
                lines += [found.line(feature, score) for _, score, feature, found in best_first]
                start = i
        return lines

    for lines in spread(work, _batches(found for found in hypotheses if found is not None), threads):
        yield from lines


def _combined(found: Hypothesis, feature: float, weight: float) -> float:
    """Return the new score of a hypothesis; DataError where it is not finite."""
    score = found.score + (weight * (feature - found.feature) if weight else 0)
    if not math.isfinite(score):
        why = ("the text has probability 0, and so no score; a smoothing such as modified-kneser-ney gives every word a share, "
               "and --weight 0 adds the feature alone" if feature == -math.inf else f"its score would be {score}")
        raise DataError(f"{found.place}: {why}", path=found.path, line=found.number)
    return score


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


def hypothesis(given: bytes | Mapping[str, Any], name: str, field: str, path: str, number: int) -> Hypothesis | None:
    """Return the hypothesis that a line is, or a record that a program gives; None for a blank line.

    path, number: where it stands, for messages.

    Raises:
        DataError: it is none, or its score or feature is no finite number.
    """
    found: Hypothesis | None
    try:
        if isinstance(given, Mapping):
            found = _record(given, name, field)
        elif given.lstrip(b" \t\xef\xbb\xbf").startswith(b"{"):
            found = _json(given, name, field)
        else:
            found = _moses(given, name)
    except (ValueError, OverflowError) as error:       # a whole number that is no float
        raise DataError(f"{path}: line {number}: {error}", path=path, line=number) from error
    if found is not None:
        found.path, found.number = path, number
    return found


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
        old = _part(_number(features[start + 1], f"feature {name}"), name)
    score = _finite(_number(fields[3], "score"), "score") if len(fields) > 3 else 0.0

    def write(feature: float, score: float) -> bytes:
        written = b" ".join([*features[:start], key, f"{feature:.6f}".encode(), *features[end:]])
        return b" ||| ".join([*fields[:2], written, f"{score:.6f}".encode(), *fields[4:]])

    return Hypothesis(fields[0], fields[1] + b"\n", score, old, write)


def _json(line: bytes, name: str, field: str) -> Hypothesis | None:
    import json

    record = record_of(line)
    if record is None:
        return None
    found = _record(record, name, field)

    def write(feature: float, score: float) -> bytes:
        return with_fields(line, record, {name: feature if math.isfinite(feature) else None, "score": score})

    return dataclasses.replace(found, group=json.dumps(found.group), line=write)


def _record(record: Mapping[str, Any], name: str, field: str) -> Hypothesis:
    """Return the hypothesis of a record, which is written as a dict."""
    if "id" not in record:
        raise ValueError('no field "id", which tells the lists apart')
    score, old = (0.0 if record.get(key) is None else record[key] for key in ("score", name))
    if not all(isinstance(found, numbers.Real) and not isinstance(found, bool) for found in (score, old)):
        raise ValueError(f'"score" and "{name}" are numbers or null')
    return Hypothesis(record["id"], text_of(record, field, "space"), _finite(float(score), "score"), _part(float(old), name),
                      lambda feature, score: {**record, name: feature, "score": score})


def _part(feature: float, name: str) -> float:
    """Return the part that a score has of a feature that is there."""
    return 0.0 if feature == -math.inf else _finite(feature, f"feature {name}")


def _number(text: bytes, what: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"the {what} is no number: {text.decode('utf-8', 'backslashreplace'):.80}") from error


def _finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"the {what} is {value}, expected a finite number")
    return value
