"""The documents of a local file, each fetched by its index from the file as it stands.

A first pass hashes the file, checks it and notes where documents begin; a document is then read
from there. Memory is that of the notes and of one document, or of a part of it in a `.txt` file.
"""

import codecs
import io
import os
import stat
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robustness.errors import Refusal, reading
from robustness.text.local_file import (
    BLOCK,
    IN_MEMORY,
    LONGEST,
    NotJson,
    Unpacking,
    decode,
    expanded,
    hash_of,
    identity,
    is_text,
    kind,
    lines,
    open_file,
    shown,
    unpacked,
    values,
    what_is,
)

SEPARATOR = "<|endoftext|>"
"""Divides the documents of a `.txt` file that holds several."""

ENDINGS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""File endings that are read as a corpus, also with `.gz` after them, and what they hold."""

MOST_FIELDS = 1000
"""Names of fields that are remembered for a message."""


class Documents:
    """The documents of an open file, by index.

    Attributes
    ----------
    name : str
        Base name of the file.
    sha256 : str
        Of the very bytes that are read, and of the field.
    """

    def __init__(self, path: Path, file: io.BufferedReader, field: str, opened: ExitStack) -> None:
        self.name = shown(path)
        self._file, self._identity = file, identity(file)
        digest = hash_of(file)
        digest.update(field.encode("utf-8", "surrogateescape"))
        self.sha256: str = digest.hexdigest()
        content: IO[bytes] = file
        if path.suffix.lower() == ".gz":
            content = opened.enter_context(unpacked(file, self.name))
        kind = content_of(path)
        self._index: _Text | _Rows | _Columns
        if kind == "parquet":
            self._index = _Columns(content, self.name, field, opened)
        else:
            self._index = (
                _Text(content, self.name) if kind == "text" else _Rows(content, self.name, field)
            )
        self._check()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._index)

    def chunks(self, index: int) -> Iterator[str]:
        """Yield a document, in several parts if it is long.

        Raises
        ------
        Refusal
            If it has no text, or the file has been written to since it was opened.
        """
        for chunk in self._index.chunks(index):
            self._check()
            yield chunk

    def order(self, seed: int | None) -> Any:
        """Return the indices in an order that depends on their number and the seed alone."""
        order = np.arange(len(self))
        if seed is not None:
            np.random.default_rng(seed).shuffle(order)
        return order

    def _check(self) -> None:
        if identity(self._file) != self._identity:
            raise Refusal(f"{self.name} was changed while it was read: run the command again")


def content_of(path: Path) -> str | None:
    """Return what a file holds by its ending: text, json, parquet, or None for something else."""
    ending = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    return ENDINGS.get(ending.lower())


@contextmanager
def open_documents(path: Path, field: str = "text") -> Iterator[Documents]:
    """Open a local corpus.

    Parameters
    ----------
    path : path
        A `.txt`, `.jsonl`, `.json` or `.parquet` file, also `.gz`.
    field : str
        The column that holds the text (a `.txt` file has none).

    Raises
    ------
    Refusal
        If it cannot be read, is damaged, or holds no text.
    """
    path = expanded(path)
    name = shown(path)
    if kind(path) == stat.S_IFREG and content_of(path) is None:
        raise Refusal(f"{name} is not a corpus: it must end in {', '.join(ENDINGS)}")
    with ExitStack() as opened:
        file = opened.enter_context(open_file(path))
        if not file.read(1):
            raise Refusal(f"{name} is empty: name a file with text")
        with reading(name, f"write it again, as {', '.join(ENDINGS)}"):
            found = Documents(path, file, field, opened)
        if not len(found):
            raise Refusal(f"{name} holds no text: name a file with text")
        yield found


class _Text:
    """Documents of a `.txt` file, divided by the separator; those of blanks alone are no documents.

    Line ends of all systems are read as one character.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._starts, self._ends = array("q"), array("q")
        unknown = []
        for start, end, blank in _divide(file, name):
            if blank is None:
                unknown.append(len(self._starts))
            if not blank:
                self._starts.append(start)
                self._ends.append(end)
        for at in reversed([at for at in unknown if self._is_blank(at)]):
            del self._starts[at], self._ends[at]

    def __len__(self) -> int:
        return len(self._starts)

    def _is_blank(self, at: int) -> bool:
        return all(not chunk or chunk.isspace() for chunk in self.chunks(at))

    def chunks(self, index: int) -> Iterator[str]:
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), True)
        at, end = self._starts[index], self._ends[index]
        while at < end:
            # Sought each time: another document may have been read between two parts.
            self._file.seek(at)
            block = self._file.read(min(BLOCK, end - at))
            at = at + len(block) if block else end
            yield decoder.decode(block, final=at >= end)


def _divide(file: IO[bytes], name: str) -> Iterator[tuple[int, int, bool | None]]:
    """Yield where the pieces between separators begin and end, and refuse what is not UTF-8.

    And whether a piece is blank, or None where it was not read in one go.
    """
    mark = SEPARATOR.encode()
    decoder = codecs.getincrementaldecoder("utf-8")()
    start, seen, tail = 0, 0, b""
    while True:
        block = file.read(BLOCK)
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
        while (found := data.find(mark, at)) >= 0:
            piece = data[start - base : found] if start >= base else None
            yield start, base + found, piece if piece is None else not piece.decode().strip()
            at = found + len(mark)
            start = base + at
        tail = data[max(at, len(data) - len(mark) + 1) :]
        seen += len(block)
    yield start, seen, None


class _Rows:
    """Documents of lines of JSON, an object each; or of a whole file of JSON, if it is no lines."""

    def __init__(self, file: IO[bytes], name: str, field: str) -> None:
        self._file, self._name, self._field = file, name, field
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
                f"{', '.join(sorted(self._fields))[:300] or 'none'}: name one with --field"
            )

    def __len__(self) -> int:
        return len(self._starts) if self._held is None else len(self._held)

    def chunks(self, index: int) -> Iterator[str]:
        if self._held is None:
            self._file.seek(self._starts[index])
            number = self._numbers[index]
            line = decode(self._file.readline(LONGEST + 1), self._name, number)
            row = values(line, self._name, number)[self._places[index]]
            where = f" (line {number})"
        else:
            row, where = self._held[index], ""
        found = row.get(self._field) if isinstance(row, dict) else None
        if not is_text(found):
            raise Refusal(
                f"document {index} of {self._name} has {what_is(found)} for text in its "
                f"field {self._field!r}{where}; leave such rows out"
            )
        yield found

    def _read_lines(self) -> None:
        for number, start, line in lines(self._file, self._name, LONGEST):
            for place, row in enumerate(
                values(decode(line, self._name, number), self._name, number)
            ):
                self._meet(row, number)
                self._starts.append(start)
                self._places.append(place)
                self._numbers.append(number)

    def _read_whole(self) -> None:
        """Read a file that is one list, or whose objects stand on several lines."""
        self._file.seek(0)
        content = self._file.read(LONGEST + 1)
        if len(content) > LONGEST:
            raise Refusal(
                f"{self._name} holds no object a line, and is larger than {LONGEST >> 20} MiB: "
                "write an object a line, as jq -c '.[]' does"
            )
        rows = values(decode(content, self._name, 1), self._name)
        if len(rows) == 1 and isinstance(rows[0], list):
            rows = [{"text": row} if isinstance(row, str) else row for row in rows[0]]
        for number, row in enumerate(rows, 1):
            self._meet(row, number)
        self._held = [{self._field: row[self._field]} if self._field in row else {} for row in rows]

    def _meet(self, row: Any, number: int) -> None:
        if not isinstance(row, dict):
            raise NotJson(
                f"{self._name} cannot be read as json (row {number} is {what_is(row)}): "
                "write an object a line"
            )
        if len(self._fields) < MOST_FIELDS:
            self._fields.update(row)


class _Columns:
    """Documents of a column of a `.parquet` file, unpacked, so that each can be fetched alone."""

    def __init__(self, file: IO[bytes], name: str, field: str, opened: ExitStack) -> None:
        self._name, self._field = name, field
        self._sizes = array("q")
        self._file = opened.enter_context(tempfile.SpooledTemporaryFile(IN_MEMORY))
        try:
            self._unpack(file, field)
        except (pa.ArrowException, OSError) as error:
            # Arrow's own lack of memory too: it believes the sizes that a damaged file gives.
            cause = " ".join(str(error).split())[:200]
            raise Refusal(
                f"{name} cannot be read as parquet ({cause}): write it again, without encryption"
            ) from error
        sizes = np.maximum(np.frombuffer(self._sizes, dtype=np.int64), 0)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    def _unpack(self, file: IO[bytes], field: str) -> None:
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=BLOCK)
        schema = table.schema_arrow
        if schema.names.count(field) != 1:
            raise Refusal(
                f"{self._name} has no field {field!r}; its fields are: "
                f"{', '.join(map(str, schema.names))[:300] or 'none'}: name one with --field"
            )
        held = schema.field(field).type
        texts = held.value_type if pa.types.is_dictionary(held) else held
        if not (pa.types.is_string(texts) or pa.types.is_large_string(texts)):
            raise Refusal(
                f"{self._name} has {str(held)[:60]} for text in its field {field!r}: name another "
                "--field"
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
