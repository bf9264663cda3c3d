"""Open the models of classes, and read documents to be told apart."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

from kvps.errors import DataError
from kvps.jobs.models import model_at
from kvps.lm import opening
from kvps.lm.classify import Classes, Document
from kvps.lm.model import CompiledModel
from kvps.text.corpus import Input
from kvps.text.documents import record_of, text_of
from kvps.text.piped import numbered_lines
from kvps.text.tokenize import store_tokenizer

READ_BYTES = 1 << 18           # of the input at once


@contextlib.contextmanager
def classes(models: Mapping[str, str | PathLike[str]], prior: Mapping[str, float] | str | None = None, *,
            tokenizer: str | None = None, **how: Any) -> Iterator[Classes]:
    """Give the classes of documents, of which models are named by label.

    prior: as that of Classes. tokenizer: only to name the models' MODULE:FUNC again. how: as model_at()'s.
    """
    with contextlib.ExitStack() as stack:
        opened = {}
        for label, model in models.items():
            place = stack.enter_context(opening.open_model_place(model))
            words = store_tokenizer(place.path, place.identity["tokenizer"], tokenizer)
            opened[label] = model_at(place, kind=CompiledModel, **how), words
        yield Classes(opened, prior)


def documents(inputs: Sequence[Input], *, records: bool, field: str = "text", label_field: str | None = None) -> Iterator[Document]:
    """Yield the documents of inputs of plain lines (kvps.text.piped.passing): each line is one.

    Args:
        records: the lines are JSON records, blank ones left out, whose text may have several lines.
        field: of a record, the one that holds the text. label_field: the one that says its class, a text.

    Raises:
        DataError: a line that is no such record; it names the line.
    """
    for source in inputs:
        for number, line in numbered_lines(source, READ_BYTES):
            place = f"{source.name}: line {number}"
            if not records:
                yield Document(line + b"\n", None, place)
                continue
            try:
                record = record_of(line)
                if record is None:
                    continue
                label = None if label_field is None else record.get(label_field)
                if label_field is not None and not isinstance(label, str):
                    raise ValueError(f'no field "{label_field}" that is a text; name the one that says the class with '
                                     "--label-field")
                yield Document(text_of(record, field, "split"), label, place)
            except ValueError as error:
                raise DataError(f"{place}: {error}", path=source.name, line=number) from error
