"""Documents of a local file, each fetched from the file by its index.

A first pass hashes the file, checks it and notes where each document begins, and a document is read
from there. Memory holds these notes and one document, or a chunk of it in a `.txt` file.
"""

import io
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from robustness.errors import Refusal, reading
from robustness.text.formats import DocumentIndex, JsonRows, ParquetColumn, PlainText
from robustness.text.local_file import (
    expanded,
    file_kind,
    file_state,
    hash_file,
    open_file,
    printable_name,
    unpacked,
)

ENDINGS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""Formats of corpora by the endings of their files, which may have `.gz` after them."""


class Documents:
    """Documents of an open file, by index.

    Attributes
    ----------
    name : str
        Base name of the file.
    sha256 : str
        SHA-256 of the bytes of the file and of the field's name.
    """

    def __init__(self, path: Path, file: io.BufferedReader, field: str, opened: ExitStack) -> None:
        self.name = printable_name(path)
        self._file, self._state = file, file_state(file)
        digest = hash_file(file)
        # The same index is another text in another column.
        digest.update(field.encode("utf-8", "surrogateescape"))
        self.sha256: str = digest.hexdigest()
        content: IO[bytes] = file
        if path.suffix.lower() == ".gz":
            content = opened.enter_context(unpacked(file, self.name))
        self._index = self._indexed(content_of(path), content, field, opened)
        # The file may have been written to between the hash and the index.
        self._check()

    def _indexed(
        self, kind: str | None, content: IO[bytes], field: str, opened: ExitStack
    ) -> DocumentIndex:
        if kind == "parquet":
            return ParquetColumn(content, self.name, field, opened)
        if kind == "text":
            return PlainText(content, self.name)
        return JsonRows(content, self.name, field)

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._index)

    def chunks(self, index: int) -> Iterator[str]:
        """Yield the text of a document, in several chunks if it is long.

        Raises
        ------
        Refusal
            If the document has no text, or the file was changed since it was opened.
        """
        for chunk in self._index.chunks(index):
            self._check()
            yield chunk

    def order(self, seed: int | None) -> NDArray[np.int64]:
        """Return the indices in an order that depends on their number and the seed alone."""
        order = np.arange(len(self))
        if seed is not None:
            np.random.default_rng(seed).shuffle(order)
        return order

    def _check(self) -> None:
        if file_state(self._file) != self._state:
            raise Refusal(f"{self.name} was changed while it was read: run the command again")


def content_of(path: Path) -> str | None:
    """Return the format of a corpus by its ending: text, json, parquet, or None for no corpus."""
    ending = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    return ENDINGS.get(ending.lower())


@contextmanager
def open_documents(path: Path, field: str = "text") -> Iterator[Documents]:
    """Open a local corpus.

    Parameters
    ----------
    path : path
        Path of a `.txt`, `.jsonl`, `.json` or `.parquet` file, which may also end in `.gz`.
    field : str
        Name of the column that holds the text; a `.txt` file has none.

    Raises
    ------
    Refusal
        If it cannot be read, is damaged, or holds no text.
    """
    path = expanded(path)
    name = printable_name(path)
    if file_kind(path) == stat.S_IFREG and content_of(path) is None:
        raise Refusal(f"{name} is not a corpus: it must end in {', '.join(ENDINGS)}")
    with ExitStack() as opened:
        file = opened.enter_context(open_file(path))
        if not file.read(1):
            raise Refusal(f"{name} is empty: name a file with text")
        with reading(name, f"write it again, as {', '.join(ENDINGS)}"):
            documents = Documents(path, file, field, opened)
        if not len(documents):
            raise Refusal(f"{name} holds no text: name a file with text")
        yield documents
