"""Sources of documents: built-in texts, local files, and data sets of the hub."""

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from robustness.errors import Refusal, first_line
from robustness.text import hub, json_values, local_file, local_text

BUILTIN = {"builtin": "prose.jsonl", "builtin-sampled": "sampled.jsonl.gz"}
"""Files of the built-in texts: original prose, and text sampled from the built-in model."""

IndexedChunks = Iterator[tuple[int, Iterator[str]]]
"""Documents with their index; the chunks of each must be read before the next is taken."""


@dataclass(frozen=True, eq=False)
class LocalSource:
    """An open file of documents."""

    name: str
    """Base name of the file, or name of the built-in text."""

    sha256: str
    """SHA-256 of the bytes of the file and of the field's name."""

    _documents: local_text.Documents

    def documents(self, seed: int | None = None) -> IndexedChunks:
        """Yield the index and the text of every document, in the order of a seed."""
        for index in self._documents.order(seed):
            yield int(index), self._documents.chunks(int(index))


@dataclass(frozen=True, eq=False)
class HubSource:
    """A data set of the hub."""

    name: str
    """Id of the data set."""

    sha256: str
    """SHA-256 of the names of the data set, of the split and of the field."""

    _field: str
    _split: str

    def documents(self, seed: int | None = None) -> IndexedChunks:
        """Yield the index and the text of every row, shuffled within a buffer if there is a seed.

        Raises
        ------
        Refusal
            If the data set cannot be read, or a row holds no text.
        """
        try:
            for index, row in hub.stream_rows(self.name, seed=seed, split=self._split):
                yield index, iter([self._text(index, row)])
        except hub.READING_ERRORS as error:
            raise Refusal(
                f"reading {self.name} stopped ({first_line(error)}): run the command again"
            ) from error

    def _text(self, index: int, row: dict[str, object]) -> str:
        if self._field not in row:
            raise Refusal(
                f"{self.name} has no field {self._field!r}; its fields are: "
                f"{', '.join(sorted(row)) or 'none'}: name one with `field`"
            )
        text = row[self._field]
        if not json_values.is_text(text):
            raise Refusal(
                f"document {index} of {self.name} has {str(text)[:20]!a} for text "
                f"in its field {self._field!r}; leave such rows out"
            )
        return text


Source = LocalSource | HubSource


def documents(
    source: str | Path, *, seed: int | None = None, field: str = "text", split: str = "train"
) -> Iterator[tuple[int, str]]:
    """Yield the documents of a source with their index in it.

    Parameters
    ----------
    source : str or path
        Built-in text (`builtin`, `builtin-sampled`), local `.txt`, `.jsonl` or `.parquet` file
        (also `.gz`), or data set of the Hugging Face hub, `owner/name` or `owner/name:config`.
    seed : int, optional
        Seed of the order; without one, documents come in the order of the source. A data set of the
        hub is streamed and shuffled within a buffer of 10,000 documents.
    field : str
        Name of the column that holds the text; a `.txt` file has none.
    split : str
        Split of a data set of the hub.

    Raises
    ------
    Refusal
        If the source does not exist, or holds no text in `field`.
    """
    with open_source(source, field=field, split=split) as text:
        for index, chunks in text.documents(seed):
            yield index, "".join(chunks)


@contextmanager
def open_source(
    source: str | Path, *, field: str = "text", split: str = "train"
) -> Iterator[Source]:
    """Open a source of documents, as `documents` takes it.

    Raises
    ------
    Refusal
        If the source does not exist, or cannot be read.
    """
    path = _local_path(source)
    if path is None:
        # Of names alone, since a streamed data set is never read as a whole.
        digest = hashlib.sha256(f"{source} {split} {field}".encode()).hexdigest()
        yield HubSource(str(source), digest, field, split)
        return
    with local_text.open_documents(path, field) as opened:
        yield LocalSource(source_name(source), opened.sha256, opened)


def source_name(source: str | Path) -> str:
    """Return the base name of a file, the id of a data set, or the name of a built-in text."""
    path = local_file.expanded(source)
    local = isinstance(source, Path) or local_file.file_kind(path) is not None
    return local_file.printable_name(path if local else str(source))


def _local_path(source: str | Path) -> Path | None:
    """Return the file that a source names, or None for a data set of the hub."""
    if source in BUILTIN:
        return Path(str(files("robustness"))) / "builtin" / "texts" / BUILTIN[str(source)]
    path, name = local_file.expanded(source), str(source)
    kind = local_file.file_kind(path)
    if kind == stat.S_IFDIR:
        raise Refusal(f"{name!a} is a directory; name one of its .txt, .jsonl or .parquet files")
    if kind is not None:
        return path
    if isinstance(source, Path) or local_text.content_of(path):
        raise Refusal(f"there is no file {name!a}: {hub.KNOWN_SOURCES}")
    hub.hub_id(name)
    return None
