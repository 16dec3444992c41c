"""Text to seeded token sequences with provenance."""

import hashlib
import re
import stat
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from datasets import IterableDataset, load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from numpy.typing import NDArray

from robustness.errors import Refusal, first_line
from robustness.text import encoding, local_file, local_text
from robustness.text.settings import (
    DEFAULT_CONTEXT,
    PAPER_CONTEXT,
    PAPER_DOCUMENTS,
    SHORTEST_SEQUENCE,
    TextSettings,
)

HUB_ID = re.compile(r"(?![.~-])[\w.-]+(/[\w.-]+)?(:[^/]*)?")
"""Data sets of the hub, `owner/name` or `owner/name:config`."""

SOURCES = "name a .txt, .jsonl or .parquet file, builtin, or a data set, owner/name:config"
"""What would do where a source is not there."""

BUILTIN = {"builtin": "prose.jsonl", "builtin-sampled": "sampled.jsonl.gz"}
"""The texts shipped with the project: original prose, and text sampled from `builtin`."""

SEPARATOR = local_text.SEPARATOR
"""Divides the documents of a `.txt` file that holds several."""

DEFAULT_TOKENS = 100_000
"""How many tokens are taken where none are asked for, if there are that many."""

SHUFFLE_BUFFER = 10_000


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token sequences cut from documents.

    Attributes
    ----------
    tokens : int64 array of shape (sequence, token)
        Token ids; a row shorter than the widest is filled up on the right with its last token.
    lengths : int64 array of shape (sequence,)
        How many tokens of each row are real.
    document : int64 array of shape (sequence,)
        Index of the document a sequence was cut from (of the window itself when packed).
    name : str
        Base name of the file, id of the data set, or name of the built-in text.
    rule : str
        How sequences were cut.
    bos : str
        What stands first in a sequence.
    seed : int
        Seed of the document order.
    authors_alignment : bool
        Whether readouts take the positions that the paper's authors took.
    source_sha256 : str
        Of the file, or of the name of the data set, and of the column and split that were read:
        equal where indices of documents mean the same.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    document: NDArray[np.int64]
    name: str
    rule: str
    bos: str
    seed: int
    authors_alignment: bool = False
    source_sha256: str = ""

    @property
    def context(self) -> int:
        """Tokens in the widest sequence."""
        return int(self.tokens.shape[1])

    def sha256(self) -> str:
        """Hash of the token ids, their order and their division into sequences."""
        digest = hashlib.sha256(repr(self.lengths.tolist()).encode())
        for row, length in zip(self.tokens, self.lengths, strict=True):
            digest.update(np.ascontiguousarray(row[:length], dtype="<i8").tobytes())
        return digest.hexdigest()

    def batches(self, batch_tokens: int) -> list[slice]:
        """Slices of as many sequences as `batch_tokens` tokens hold, but at least one."""
        size, count = max(1, batch_tokens // self.context), len(self.tokens)
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def settings(self) -> dict[str, Any]:
        """Return what a file records of the corpus."""
        return {
            "corpus": self.name,
            "corpus_sha256": self.sha256(),
            "source_sha256": self.source_sha256 or None,
            "context": self.context,
            "sequences": len(self.tokens),
            "tokens": int(self.lengths.sum()),
            "windows": self.rule,
            "bos": self.bos,
            "seed": self.seed,
            "alignment": "as the paper's authors" if self.authors_alignment else "same prediction",
        }

    def counted(self, before: int = 0) -> NDArray[np.int64] | None:
        """Return over how many tokens of each sequence means are, or None if over as many of all.

        Of documents, all but one position; `before` of them are left out besides.
        """
        return self.lengths - 1 - before if self.authors_alignment else None

    def take(self, sequences: int) -> "Corpus":
        """Return the corpus of the first `sequences` sequences."""
        return self.part(slice(0, sequences))

    def part(self, rows: slice) -> "Corpus":
        """Return the corpus of some of the sequences, as wide as the whole."""
        return replace(
            self,
            tokens=self.tokens[rows],
            lengths=self.lengths[rows],
            document=self.document[rows],
        )


def documents(
    source: str | Path, *, seed: int | None = None, field: str = "text", split: str = "train"
) -> Iterator[tuple[int, str]]:
    """Yield the documents of a source with their index in it.

    Parameters
    ----------
    source : str or path
        A built-in text (`builtin`, `builtin-sampled`), a local `.txt`, `.jsonl` or `.parquet` file
        (also `.gz`), or a data set of the Hugging Face hub, `owner/name` or `owner/name:config`.
    seed : int, optional
        Seed of the order; without one, documents come in the order of the source. A data set of the
        hub is streamed and shuffled within a buffer of 10,000 documents.
    field : str
        The column that holds the text (a `.txt` file has none).
    split : str
        The split of a hub data set.

    Raises
    ------
    Refusal
        If there is no such source, or it holds no text in `field`.
    """
    with opened(source, field=field, split=split) as text:
        for index, chunks in text.documents(seed):
            yield index, "".join(chunks)


@dataclass(frozen=True, eq=False)
class Source:
    """A source of documents, opened.

    Attributes
    ----------
    name : str
        Base name of the file, id of the data set, or name of the built-in text.
    sha256 : str
        Of the bytes of the file that is read, or of the name of the data set, and of the column and
        split.
    """

    name: str
    sha256: str
    _local: local_text.Documents | None
    _field: str
    _split: str

    def documents(self, seed: int | None = None) -> Iterator[tuple[int, Iterator[str]]]:
        """Yield the index of every document, and its text in parts, to be read before the next.

        The order is that of `robustness.text.corpus.documents`.
        """
        if self._local is None:
            yield from self._of_hub(seed)
            return
        for index in self._local.order(seed):
            yield int(index), self._local.chunks(int(index))

    def _of_hub(self, seed: int | None) -> Iterator[tuple[int, Iterator[str]]]:
        field = self._field
        try:
            for index, row in _stream(self.name, seed=seed, split=self._split):
                if field not in row:
                    raise Refusal(
                        f"{self.name} has no field {field!r}; its fields are: "
                        f"{', '.join(sorted(row)) or 'none'}: name one with --field"
                    )
                if not local_file.is_text(row[field]):
                    raise Refusal(
                        f"document {index} of {self.name} has {str(row[field])[:20]!a} for text "
                        f"in its field {field!r}; leave such rows out"
                    )
                yield index, iter([row[field]])
        except (HfHubHTTPError, ConnectionError, OfflineModeIsEnabled) as error:
            raise Refusal(
                f"reading {self.name} stopped ({first_line(error)}): run the command again"
            ) from error


@contextmanager
def opened(source: str | Path, *, field: str = "text", split: str = "train") -> Iterator[Source]:
    """Open a source of documents, as `documents` takes it.

    Raises
    ------
    Refusal
        If there is no such source, or it cannot be read.
    """
    path = _local_path(source)
    if path is None:
        digest = hashlib.sha256(f"{source} {split} {field}".encode()).hexdigest()
        yield Source(str(source), digest, None, field, split)
        return
    with local_text.open_documents(path, field) as found:
        yield Source(source_name(source), found.sha256, found, field, split)


class TokenizedModel(Protocol):
    """What `read_text` asks of a model."""

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of transformers."""

    @property
    def context(self) -> int | None:
        """Largest number of tokens in a sequence, or None where the model has no limit."""

    @property
    def name(self) -> str:
        """Name of the model, for messages."""


def read_text(settings: TextSettings, model: TokenizedModel) -> Corpus:
    """Read a text as settings say, cut into sequences that a model takes.

    Raises
    ------
    Refusal
        If the source cannot be read or holds too little, or the context is longer than the model
        takes.
    """
    default = PAPER_CONTEXT if settings.paper_compat else DEFAULT_CONTEXT
    context = settings.context or min(default, model.context or default)
    if model.context is not None and context > model.context:
        raise Refusal(
            f"a context of {context} is longer than {model.name} takes: {model.context} tokens"
        )
    read = _first_documents if settings.paper_compat else _cut
    return read(settings, model.tokenizer, context)


def cut(
    source: str | Path,
    tokenizer: Any,
    *,
    context: int,
    tokens: int | None = None,
    seed: int = 0,
    pack: bool = False,
    field: str = "text",
    split: str = "train",
) -> Corpus:
    """Cut a source into windows of exactly `context` tokens, in a seeded order of documents.

    The tokenizer's BOS stands first in every window where it has one. A window never crosses from
    one document into the next, and what is left at a document's end is dropped; with `pack`,
    documents are joined by the tokenizer's EOS and cut through instead.

    Parameters
    ----------
    source, field, split
        As for `documents`.
    tokenizer
        A transformers tokenizer.
    context : int
        Tokens in a window, BOS included.
    tokens : int, optional
        Tokens wanted, rounded down to whole windows; all of them must be there. Without it, up to
        `DEFAULT_TOKENS` of what is there.
    seed : int
        Seed of the document order.
    pack : bool
        Whether documents are joined.

    Returns
    -------
    Corpus
        All rows of length `context`.

    Raises
    ------
    Refusal
        If the source cannot be read, or holds too few tokens.
    """
    settings = TextSettings(
        source=source,
        field=field,
        split=split,
        tokens=tokens,
        context=context,
        pack=pack,
        seed=seed,
    )
    return _cut(settings, tokenizer, context)


def _cut(settings: TextSettings, tokenizer: Any, context: int) -> Corpus:
    tokens, pack = settings.tokens, settings.pack
    if tokens is not None and tokens < context:
        raise Refusal(f"{tokens} tokens were asked for, fewer than one sequence of {context}")
    bos, rule = _bos(tokenizer)
    width = context - len(bos)
    wanted = max(1, (DEFAULT_TOKENS if tokens is None else tokens) // context)
    windows = _Windows(bos, width, wanted)
    sizes = array("q")
    with opened(settings.source, field=settings.field, split=settings.split) as text:
        for index, chunks in text.documents(settings.seed):
            sizes.append(0)
            for piece in encoding.encode(tokenizer, chunks):
                sizes[-1] += len(piece)
                windows.add(piece.ids, index)
                if windows.full:
                    break
            windows.end(_end(tokenizer) if pack else None, index)
            if windows.full:
                break
    count = min(wanted, len(windows.found))
    if not count or (tokens is not None and count < wanted):
        raise Refusal(_too_few(text.name, tokens or context, context, sizes, count, len(bos), pack))
    return Corpus(
        tokens=np.array(windows.found[:count], dtype=np.int64),
        lengths=np.full(count, context, dtype=np.int64),
        document=np.arange(count) if pack else np.array(windows.documents[:count], dtype=np.int64),
        name=text.name,
        rule="packed windows" if pack else "windows within documents",
        bos=rule,
        seed=settings.seed,
        source_sha256=text.sha256,
    )


class _Windows:
    """Windows as they are cut, until there are enough.

    Parameters
    ----------
    bos : list of int
        What stands first in each.
    width : int
        Tokens of text in each.
    wanted : int
        How many are enough.
    """

    def __init__(self, bos: Sequence[int], width: int, wanted: int) -> None:
        self.found: list[NDArray[np.int64]] = []
        self.documents = array("q")
        self._bos, self._width, self._wanted = np.array(bos, dtype=np.int64), width, wanted
        self._rest = self._bos[:0]

    @property
    def full(self) -> bool:
        """Whether there are enough."""
        return len(self.found) >= self._wanted

    def add(self, ids: NDArray[np.int64], document: int) -> None:
        """Cut tokens that follow those before, of a document."""
        rest = np.concatenate([self._rest, ids])
        whole = len(rest) // self._width * self._width
        for start in range(0, whole, self._width):
            if self.full:
                break
            self.found.append(np.concatenate([self._bos, rest[start : start + self._width]]))
            self.documents.append(document)
        self._rest = rest[whole:]

    def end(self, mark: Sequence[int] | None, document: int) -> None:
        """End a document: by a mark, so that the next goes on, or by dropping what is left."""
        if mark is None:
            self._rest = self._rest[:0]
        else:
            self.add(np.array(mark, dtype=np.int64), document)


def first_documents(
    source: str | Path,
    tokenizer: Any,
    *,
    context: int,
    count: int = PAPER_DOCUMENTS,
    field: str = "text",
    split: str = "train",
) -> Corpus:
    """Take the first documents of a source, one a sequence, cut off at `context`: the paper's way.

    The defaults and the alignment of tokens are those of the authors' released code, in which KL,
    agreement and entropy cover all query positions but the first, and loss all but the last.

    Parameters
    ----------
    source, tokenizer, field, split
        As for `cut`.
    context : int
        The longest sequence, BOS included.
    count : int
        Documents to take. Those of fewer than three tokens are passed over.

    Raises
    ------
    Refusal
        If the source cannot be read, or holds fewer documents.
    """
    settings = TextSettings(
        source=source,
        field=field,
        split=split,
        context=context,
        paper_compat=True,
        documents=count,
    )
    return _first_documents(settings, tokenizer, context)


def _first_documents(settings: TextSettings, tokenizer: Any, context: int) -> Corpus:
    count = settings.documents or PAPER_DOCUMENTS
    bos, rule = _bos(tokenizer)
    found: list[tuple[int, list[int]]] = []
    with opened(settings.source, field=settings.field, split=settings.split) as text:
        for index, chunks in text.documents():
            ids = bos + encoding.first_tokens(tokenizer, chunks, context - len(bos))
            if len(ids) >= SHORTEST_SEQUENCE:
                found.append((index, ids))
            if len(found) >= count:
                break
    if len(found) < count:
        raise Refusal(
            f"{count} documents were asked for, {text.name} has {len(found)} of at least "
            f"{SHORTEST_SEQUENCE} tokens; "
            + (f"ask for --documents {len(found)}" if found else "read a longer text")
        )
    widest = max(len(ids) for _, ids in found)
    return Corpus(
        tokens=np.array([ids + ids[-1:] * (widest - len(ids)) for _, ids in found], dtype=np.int64),
        lengths=np.array([len(ids) for _, ids in found], dtype=np.int64),
        document=np.array([index for index, _ in found], dtype=np.int64),
        name=text.name,
        rule="first documents, one a sequence",
        bos=rule,
        seed=0,
        authors_alignment=True,
        source_sha256=text.sha256,
    )


def source_name(source: str | Path) -> str:
    """Return the base name of a file, the id of a data set, or the name of a built-in text."""
    path = local_file.expanded(source)
    local = isinstance(source, Path) or local_file.kind(path) is not None
    return local_file.shown(path if local else str(source))


def _local_path(source: str | Path) -> Path | None:
    """Return the file that a source names, or None for a data set of the hub."""
    if source in BUILTIN:
        return Path(str(files("robustness"))) / "builtin" / "texts" / BUILTIN[str(source)]
    path, name = local_file.expanded(source), str(source)
    found = local_file.kind(path)
    if found == stat.S_IFDIR:
        raise Refusal(f"{name!a} is a directory; name one of its .txt, .jsonl or .parquet files")
    if found is not None:
        return path
    if isinstance(source, Path) or local_text.content_of(path):
        raise Refusal(f"there is no file {name!a}: {SOURCES}")
    hub_id(name)
    return None


def hub_id(source: str) -> tuple[str, str | None]:
    """Return the name of a data set of the hub and its configuration.

    Raises
    ------
    Refusal
        If it cannot be one, or stands for what is on this machine.
    """
    name, _, config = source.partition(":")
    if not HUB_ID.fullmatch(source):
        raise Refusal(f"there is no file {source!a}: {SOURCES}")
    # The library would read what is here, and through its cache: its loaders have such names too.
    loader = name.isidentifier() and find_spec(f"datasets.packaged_modules.{name}") is not None
    if loader or local_file.kind(Path(name)) is not None:
        raise Refusal(f"{source!a} is no data set of the hub: {SOURCES}")
    return name, config or None


def not_opened(source: str, error: BaseException) -> Refusal:
    """Return the refusal of a data set of the hub that cannot be opened."""
    if isinstance(error, (DatasetNotFoundError, HFValidationError)):
        return Refusal(
            f"there is no file and no data set {source!a}: {SOURCES} ({first_line(error)})"
        )
    remedy = "check the connection and the name"
    if isinstance(error, OSError) and error.errno is not None:
        remedy = f"its files are kept in {HF_HOME}; set HF_HOME to a directory that can be written"
    return Refusal(f"the data set {source!a} cannot be opened ({first_line(error)}): {remedy}")


HUB_ERRORS = (
    DatasetNotFoundError,
    HFValidationError,
    HfHubHTTPError,
    OSError,
    OfflineModeIsEnabled,
    RuntimeError,
    ValueError,
)
"""What the hub's clients raise over a data set that cannot be opened."""


def _stream(source: str, *, seed: int | None, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    name, config = hub_id(source)
    try:
        rows: IterableDataset = load_dataset(name, config, split=split, streaming=True)
    except HUB_ERRORS as error:
        raise not_opened(source, error) from error
    numbered = rows.map(
        lambda row, index: {"index": index, "row": row},
        with_indices=True,
        remove_columns=rows.column_names,
    )
    if seed is not None:
        numbered = numbered.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    for item in numbered:
        yield item["index"], item["row"]


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text, the tokenizer's BOS first where it has one."""
    return _bos(tokenizer)[0] + _encode(tokenizer, text)


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _bos(tokenizer: Any) -> tuple[list[int], str]:
    if tokenizer.bos_token_id is None:
        return [], "none: the tokenizer has no BOS"
    return [int(tokenizer.bos_token_id)], f"{tokenizer.bos_token} first"


def _end(tokenizer: Any) -> list[int]:
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    return [] if end is None else [int(end)]


def _too_few(
    name: str, tokens: int, context: int, sizes: Sequence[int], windows: int, bos: int, pack: bool
) -> str:
    """Say how many tokens there are at this context, and at which there would be enough."""
    lengths = np.array([sum(sizes) + len(sizes) if pack else 0, *([] if pack else sizes)])
    enough = (
        shorter
        for shorter in range(context - 1, SHORTEST_SEQUENCE - 1, -1)
        if (lengths // (shorter - bos)).sum() >= max(1, tokens // shorter)
    )
    remedy = next((f"--context {shorter} would be enough" for shorter in enough), None)
    if remedy is None and not pack and (sum(sizes) // max(1, context - bos)) * context >= tokens:
        remedy = "--pack would be enough"
    if remedy is None and windows:
        remedy = f"ask for --tokens {windows * context}, or read a longer text"
    elif remedy is None:
        remedy = f"all of it is {sum(sizes)} tokens long: read a longer text"
    return (
        f"{tokens} tokens were asked for, {name} has {windows * context} "
        f"in sequences of {context}; {remedy}"
    )
