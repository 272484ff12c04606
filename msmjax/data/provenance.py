"""Provenance: which records are in which rows, and so what a stage reads.

In: a rows artifact, the corpus it was packed from, and a mixture. Out: records and tokens by a field of the records, over any
number of rows, and the documents in the batch of a step.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from msmjax import artifact
from msmjax.data import mixture as mixtures
from msmjax.data import rows
from msmjax.data.mixture import Mixture

CONTENT = ("text", "messages", "tools")  # of a record; its other fields say where it comes from
NONE = "(none)"  # stands for the value of records that have no such field


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """What rows were packed from: the fields of each record, its content apart, and the SEGMENTs of the rows.

    A record that has no `id` is called by its place.
    """

    name: str
    records: list[dict]
    segments: np.ndarray


class Read(NamedTuple):
    """What was read of the records that share a value: how many of how many, and tokens; `in_rows` is what one epoch has."""

    value: str
    records: int
    of_records: int
    tokens: int
    supervised: int
    in_rows: int

    @property
    def epochs(self) -> float:
        return self.tokens / max(self.in_rows, 1)  # all of them may have been dropped


class Document(NamedTuple):
    """What a row of a batch has of a record: the number of the row in the batch, the SEGMENT, the record's fields, the tokens."""

    row: int
    corpus: str
    segment: np.void
    record: dict
    ids: np.ndarray


def open_corpus(name: str, rows_directory: Path, directory: Path) -> Corpus:
    """The corpus in `directory`, and where its records are in the rows that were made from it."""
    records = []
    for path in sorted(directory.glob("*.jsonl")):  # the order that they were packed in
        for line, record in enumerate(artifact.read_jsonl(path), 1):
            called = (record.get("id"), record.get("read_from"), f"{path.stem}:{line}")
            identity = show(next(value for value in called if value not in (None, "")))
            records.append({**{key: value for key, value in record.items() if key not in CONTENT}, "id": identity})
    return Corpus(name, records, rows.read_segments(rows_directory))


def show(value: object) -> str:
    """The value of a field as text."""
    if value is None:
        return NONE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def count(corpus: Corpus, times: np.ndarray, field: str) -> list[Read]:
    """What is read of a corpus where each of its rows is read `times` [rows] times, by the values of a field, most tokens first."""
    numbers: dict[str, int] = {}
    value_of = np.array([numbers.setdefault(show(record.get(field)), len(numbers)) for record in corpus.records])
    record, repeats = corpus.segments["record"], times[corpus.segments["row"]]

    def total(of_each: np.ndarray, values: np.ndarray) -> list[int]:
        return np.bincount(values, weights=of_each, minlength=len(numbers)).astype(int).tolist()

    was_read = np.zeros(len(corpus.records), bool)
    was_read[record[repeats > 0]] = True
    columns = (
        numbers,
        total(was_read, value_of),
        total(np.ones(len(value_of)), value_of),
        total(corpus.segments["tokens"] * repeats, value_of[record]),
        total(corpus.segments["supervised"] * repeats, value_of[record]),
        total(corpus.segments["tokens"], value_of[record]),
    )
    return sorted(map(Read, *columns), key=lambda read: -read.tokens)


def together(value: str, reads: Sequence[Read]) -> Read:
    """The sum of some, under another name."""
    return Read(value, *map(sum, list(zip(*reads, strict=True))[1:]))


def documents(corpora: Sequence[Corpus], mixture: Mixture, step: int, batch_rows: int) -> Iterator[Document]:
    """The segments of the global batch of `step`, in order; `corpora` are those of the mixture's sources."""
    for row in range(batch_rows):
        source, corpus_row = mixtures.locate(mixture, step * batch_rows + row)
        corpus, arrays = corpora[source], mixture.sources[source][corpus_row]
        first, last = np.searchsorted(corpus.segments["row"], [corpus_row, corpus_row + 1])
        for segment in corpus.segments[first:last]:
            ids = arrays["tokens"][arrays["segment_ids"] == segment["segment"]]
            yield Document(row, corpus.name, segment, corpus.records[segment["record"]], ids)
