"""Text to seeded token sequences with provenance."""

import codecs
import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset, disable_progress_bars, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from numpy.typing import NDArray

from robustness.refusal import Refusal, first_line

BUILTIN = {"builtin": "prose.jsonl", "builtin-sampled": "sampled.jsonl.gz"}
"""The texts shipped with the project: original prose, and text sampled from `builtin`."""

LOADERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""File endings that are read as a local corpus, and the `datasets` loader of each."""

SEPARATOR = "<|endoftext|>"
"""Divides the documents of a `.txt` file that holds several."""

DEFAULT_TOKENS = 100_000
"""How many tokens are taken where none are asked for, if there are that many."""

SHORTEST = 3
"""Tokens a sequence needs: the first and the last query position are left out of all metrics."""

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
    path = _local_path(source)
    if path is None:
        rows: Iterator[tuple[int, dict[str, Any]]] = _stream(str(source), seed=seed, split=split)
    else:
        rows = _read(path, seed=seed, field=field)
    try:
        for index, row in rows:
            if field not in row:
                raise Refusal(
                    f"{source_name(source)} has no field {field!r}; its fields are: "
                    f"{', '.join(sorted(row)) or 'none'}"
                )
            if not isinstance(row[field], str):
                raise Refusal(
                    f"document {index} of {source_name(source)} has {str(row[field])[:20]} for "
                    f"text in its field {field!r}; leave such rows out"
                )
            yield index, row[field]
    except (HfHubHTTPError, ConnectionError, OfflineModeIsEnabled) as error:
        raise Refusal(f"reading {source} stopped: {first_line(error)}") from error


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

    Returns
    -------
    Corpus
        All rows of length `context`.

    Raises
    ------
    Refusal
        If the source cannot be read, or holds too few tokens.
    """
    if context < SHORTEST:
        raise Refusal(f"a context of {context} is too short: it takes at least {SHORTEST} tokens")
    if tokens is not None and tokens < context:
        raise Refusal(f"{tokens} tokens were asked for, fewer than one sequence of {context}")
    bos, rule = _bos(tokenizer)
    width = context - len(bos)
    wanted = max(1, (DEFAULT_TOKENS if tokens is None else tokens) // context)
    windows: list[list[int]] = []
    sources: list[int] = []
    sizes: list[int] = []
    joined: list[int] = []
    for index, text in documents(source, seed=seed, field=field, split=split):
        ids = _encode(tokenizer, text)
        sizes.append(len(ids))
        if pack:
            joined += ids + _end(tokenizer)
            ids, joined = joined, joined[len(joined) // width * width :]
        for start in range(0, len(ids) - width + 1, width):
            sources.append(len(windows) if pack else index)
            windows.append(bos + ids[start : start + width])
        if len(windows) >= wanted:
            break
    if not windows or (tokens is not None and len(windows) < wanted):
        raise Refusal(
            _too_few(
                source_name(source), tokens or context, context, sizes, len(windows), len(bos), pack
            )
        )
    return Corpus(
        tokens=np.array(windows[:wanted], dtype=np.int64),
        lengths=np.full(len(windows[:wanted]), context, dtype=np.int64),
        document=np.array(sources[:wanted], dtype=np.int64),
        name=source_name(source),
        rule="packed windows" if pack else "windows within documents",
        bos=rule,
        seed=seed,
        source_sha256=_hash(source, field, split),
    )


def first_documents(
    source: str | Path,
    tokenizer: Any,
    *,
    context: int,
    count: int = 1388,
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
    bos, rule = _bos(tokenizer)
    encoded = (
        (index, (bos + _encode(tokenizer, text))[:context])
        for index, text in documents(source, field=field, split=split)
    )
    found = list(islice(((i, ids) for i, ids in encoded if len(ids) >= SHORTEST), count))
    if len(found) < count:
        raise Refusal(
            f"{count} documents were asked for, {source_name(source)} has {len(found)} "
            f"of at least {SHORTEST} tokens; ask for --documents {len(found)}"
        )
    widest = max(len(ids) for _, ids in found)
    return Corpus(
        tokens=np.array([ids + ids[-1:] * (widest - len(ids)) for _, ids in found], dtype=np.int64),
        lengths=np.array([len(ids) for _, ids in found], dtype=np.int64),
        document=np.array([index for index, _ in found], dtype=np.int64),
        name=source_name(source),
        rule="first documents, one a sequence",
        bos=rule,
        seed=0,
        authors_alignment=True,
        source_sha256=_hash(source, field, split),
    )


def source_name(source: str | Path) -> str:
    """Return the base name of a file, the id of a data set, or the name of a built-in text."""
    path = Path(source).expanduser()
    return path.name if isinstance(source, Path) or path.exists() else str(source)


def _hash(source: str | Path, field: str, split: str) -> str:
    path = _local_path(source)
    if path is None:
        return hashlib.sha256(f"{source} {split} {field}".encode()).hexdigest()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(field.encode())
    return digest.hexdigest()


def _local_path(source: str | Path) -> Path | None:
    """Return the file that a source names, or None for a data set of the hub."""
    if source in BUILTIN:
        return Path(str(files("robustness"))) / "builtin" / "texts" / BUILTIN[str(source)]
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise Refusal(f"{source} is a directory; name one of its .txt, .jsonl or .parquet files")
    looks_local = isinstance(source, Path) or _kind(path) or str(source).startswith((".", "/", "~"))
    if looks_local or str(source).count("/") > 1:
        raise Refusal(f"there is no file {source}")
    return None


def _kind(path: Path) -> str | None:
    ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return LOADERS.get(ending.lower())


def _read(path: Path, *, seed: int | None, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    kind = _kind(path)
    if kind is None:
        raise Refusal(f"{path.name} is not a corpus: it must end in {', '.join(LOADERS)}")
    if path.stat().st_size == 0:
        raise Refusal(f"{path.name} is empty")
    if kind != "parquet":
        _check_encoding(path)
    disable_progress_bars()
    options = {"sample_by": "document"} if kind == "text" else {}
    try:
        rows: Dataset = load_dataset(kind, data_files=str(path), split="train", **options)
    except (DatasetGenerationError, UnicodeDecodeError, ValueError) as error:
        cause = first_line(error.__cause__ or error)
        raise Refusal(f"{path.name} cannot be read as {kind}: {cause}") from error
    if kind == "text":
        pieces = [piece for row in rows for piece in row["text"].split(SEPARATOR)]
        rows = Dataset.from_dict({field: [piece for piece in pieces if piece.strip()]})
    if not len(rows):
        raise Refusal(f"{path.name} holds no text")
    order = np.arange(len(rows))
    if seed is not None:
        np.random.default_rng(seed).shuffle(order)
    for index in order.tolist():
        yield index, rows[index]


def _check_encoding(path: Path) -> None:
    """Refuse a file that is not UTF-8, which the JSON loader would mend without a word."""
    reader = gzip.open if path.suffix == ".gz" else open
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with reader(path, "rb") as file:
            while block := file.read(2**20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Refusal(f"{path.name} cannot be read as UTF-8 text: {error}") from error


def _stream(source: str, *, seed: int | None, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    name, _, config = source.partition(":")
    try:
        rows: IterableDataset = load_dataset(name, config or None, split=split, streaming=True)
    except (DatasetNotFoundError, HFValidationError) as error:
        raise Refusal(
            f"there is no file and no data set {name!r}: give {', '.join(BUILTIN)}, "
            f"a {', '.join(LOADERS)} file or a hub id ({first_line(error)})"
        ) from error
    except (HfHubHTTPError, OSError, OfflineModeIsEnabled, RuntimeError, ValueError) as error:
        raise Refusal(f"the data set {source!r} cannot be opened: {first_line(error)}") from error
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
    name: str, tokens: int, context: int, sizes: list[int], windows: int, bos: int, pack: bool
) -> str:
    """Say how many tokens there are at this context, and at which there would be enough."""
    lengths = np.array([sum(sizes) + len(sizes) if pack else 0, *([] if pack else sizes)])
    enough = (
        shorter
        for shorter in range(context - 1, SHORTEST - 1, -1)
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
