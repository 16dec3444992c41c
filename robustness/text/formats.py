"""Formats of local texts: the documents of a file, each of which is fetched by its index."""

import codecs
import io
import os
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robustness.errors import Refusal
from robustness.text.json_values import (
    NotJson,
    decode_line,
    describe_value,
    is_text,
    numbered_lines,
    parse_values,
)
from robustness.text.local_file import BLOCK_BYTES, UNPACKED_IN_MEMORY, Unpacking

SEPARATOR = "<|endoftext|>"
"""Separator of the documents of a `.txt` file that holds several."""

LONGEST_JSON = 2**28
"""Maximum number of bytes of a line, and of a JSON file without an object on each line."""

MOST_FIELDS = 1000
"""Maximum number of field names that are remembered for a message."""


class DocumentIndex(Protocol):
    """Documents of a file, each of which can be fetched by its index."""

    def __len__(self) -> int:
        """Return the number of documents."""

    def chunks(self, index: int) -> Iterator[str]:
        """Yield the text of a document in chunks."""


class PlainText:
    """Documents of a `.txt` file, divided by the separator; blank ones are left out.

    Line ends of all systems are read as one character.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._starts, self._ends = array("q"), array("q")
        unknown = []
        for start, end, blank in _divide(file, name):
            if blank is None:
                unknown.append(len(self._starts))
            # One of unknown content is kept for now, and looked at when all are noted.
            if not blank:
                self._starts.append(start)
                self._ends.append(end)
        # From the last, so that the indices before one that is deleted stay.
        for index in reversed(unknown):
            if self._is_blank(index):
                del self._starts[index], self._ends[index]

    def __len__(self) -> int:
        return len(self._starts)

    def _is_blank(self, index: int) -> bool:
        return not any(chunk.strip() for chunk in self.chunks(index))

    def chunks(self, index: int) -> Iterator[str]:
        """Yield the text of a document in chunks."""
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), True)
        at, end = self._starts[index], self._ends[index]
        while at < end:
            # Every time, since another document may have been read between two chunks.
            self._file.seek(at)
            block = self._file.read(min(BLOCK_BYTES, end - at))
            at = at + len(block) if block else end
            yield decoder.decode(block, final=at >= end)


def _divide(file: IO[bytes], name: str) -> Iterator[tuple[int, int, bool | None]]:
    """Yield the first byte of each document, the one after its last, and whether it is blank.

    The last is None for a document that was never in memory as a whole. A file that is not UTF-8 is
    refused.
    """
    mark = SEPARATOR.encode()
    decoder = codecs.getincrementaldecoder("utf-8")()
    start, seen, tail = 0, 0, b""
    while True:
        block = file.read(BLOCK_BYTES)
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise Refusal(
                f"{name} cannot be read as UTF-8 text ({error.reason} near byte {seen}): "
                "save it as UTF-8"
            ) from error
        if not block:
            break
        data, base, at = tail + block, seen - len(tail), 0
        while (end := data.find(mark, at)) >= 0:
            blank = not data[start - base : end].decode().strip() if start >= base else None
            yield start, base + end, blank
            at = end + len(mark)
            start = base + at
        # A separator may lie across two blocks.
        tail = data[max(at, len(data) - len(mark) + 1) :]
        seen += len(block)
    yield start, seen, None


class JsonRows:
    """Documents of a JSON file: an object a line, or a file that is one list or several values."""

    def __init__(self, file: IO[bytes], name: str, field: str) -> None:
        self._file, self._name, self._field = file, name, field
        # Arrays, since a list of Python integers would take several times the memory.
        self._starts, self._places = array("q"), array("I")
        self._numbers = array("q")
        self._held: list[Any] | None = None
        self._fields: set[str] = set()
        try:
            self._read_lines()
        except NotJson:
            if len(self._starts):
                raise
            self._read_whole()
        if len(self) and field not in self._fields:
            raise Refusal(
                f"{name} has no field {field!r}; its fields are: "
                f"{', '.join(sorted(self._fields))[:300] or 'none'}: name one with `field`"
            )

    def __len__(self) -> int:
        return len(self._starts) if self._held is None else len(self._held)

    def chunks(self, index: int) -> Iterator[str]:
        """Yield the text of a document."""
        if self._held is None:
            self._file.seek(self._starts[index])
            number = self._numbers[index]
            line = decode_line(self._file.readline(LONGEST_JSON + 1), self._name, number)
            row = parse_values(line, self._name, number)[self._places[index]]
            where = f" (line {number})"
        else:
            row, where = self._held[index], ""
        text = row.get(self._field) if isinstance(row, dict) else None
        if not is_text(text):
            raise Refusal(
                f"document {index} of {self._name} has {describe_value(text)} for text in its "
                f"field {self._field!r}{where}; leave such rows out"
            )
        yield text

    def _read_lines(self) -> None:
        for number, start, line in numbered_lines(self._file, self._name, LONGEST_JSON):
            rows = parse_values(decode_line(line, self._name, number), self._name, number)
            for place, row in enumerate(rows):
                self._note_fields(row, number)
                self._starts.append(start)
                self._places.append(place)
                self._numbers.append(number)

    def _read_whole(self) -> None:
        """Read a file that is one list, or whose objects stand on several lines."""
        self._file.seek(0)
        content = self._file.read(LONGEST_JSON + 1)
        if len(content) > LONGEST_JSON:
            raise Refusal(
                f"{self._name} holds no object a line, and is larger than "
                f"{LONGEST_JSON >> 20} MiB: write an object a line, as jq -c '.[]' does"
            )
        rows = parse_values(decode_line(content, self._name, 1), self._name)
        if len(rows) == 1 and isinstance(rows[0], list):
            rows = [{"text": row} if isinstance(row, str) else row for row in rows[0]]
        self._held = []
        for number, row in enumerate(rows, 1):
            self._note_fields(row, number)
            # Its other fields are not needed any more.
            self._held.append({self._field: row[self._field]} if self._field in row else {})

    def _note_fields(self, row: Any, number: int) -> None:
        """Remember the names of a row's fields, and refuse one that is no object."""
        if not isinstance(row, dict):
            raise NotJson(
                f"{self._name} cannot be read as json (row {number} is {describe_value(row)}): "
                "write an object a line"
            )
        if len(self._fields) < MOST_FIELDS:
            self._fields.update(row)


class ParquetColumn:
    """Documents of a column of a `.parquet` file, unpacked so that each can be fetched alone."""

    def __init__(self, file: IO[bytes], name: str, field: str, opened: ExitStack) -> None:
        self._name, self._field = name, field
        self._sizes = array("q")
        self._file = opened.enter_context(tempfile.SpooledTemporaryFile(UNPACKED_IN_MEMORY))
        try:
            self._unpack(file, field)
        except (pa.ArrowException, OSError) as error:
            # Arrow raises a lack of memory here as well, over the sizes that a damaged file gives.
            cause = " ".join(str(error).split())[:200]
            raise Refusal(
                f"{name} cannot be read as parquet ({cause}): write it again, without encryption"
            ) from error
        sizes = np.maximum(np.frombuffer(self._sizes, dtype=np.int64), 0)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    def _unpack(self, file: IO[bytes], field: str) -> None:
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=BLOCK_BYTES)
        schema = table.schema_arrow
        if schema.names.count(field) != 1:
            raise Refusal(
                f"{self._name} has no field {field!r}; its fields are: "
                f"{', '.join(map(str, schema.names))[:300] or 'none'}: name one with `field`"
            )
        held = schema.field(field).type
        texts = held.value_type if pa.types.is_dictionary(held) else held
        if not (pa.types.is_string(texts) or pa.types.is_large_string(texts)):
            raise Refusal(
                f"{self._name} has {str(held)[:60]} for text in its field {field!r}: name another "
                "`field`"
            )
        out = Unpacking(self._file, self._name, file.seek(0, os.SEEK_END))
        for batch in table.iter_batches(batch_size=64, columns=[field], use_threads=False):
            column = batch.column(batch.schema.names.index(field))
            column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
            for value in column.cast(pa.large_binary()).to_pylist():
                self._sizes.append(-1 if value is None else len(value))
                out.write(value or b"")

    def __len__(self) -> int:
        return len(self._sizes)

    def chunks(self, index: int) -> Iterator[str]:
        """Yield the text of a document."""
        if self._sizes[index] < 0:
            raise Refusal(
                f"document {index} of {self._name} has None for text in its field "
                f"{self._field!r}; leave such rows out"
            )
        self._file.seek(int(self._starts[index]))
        try:
            yield self._file.read(self._sizes[index]).decode()
        except UnicodeDecodeError as error:
            raise Refusal(
                f"document {index} of {self._name} is not UTF-8: write the file again"
            ) from error
