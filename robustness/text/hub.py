"""Data sets of the Hugging Face hub, streamed."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import IterableDataset, load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from robustness.errors import Refusal, first_line
from robustness.text import local_file

HUB_ID = re.compile(r"(?![.~-])[\w.-]+(/[\w.-]+)?(:[^/]*)?")
"""Name of a data set, `owner/name` or `owner/name:config`."""

KNOWN_SOURCES = "name a .txt, .jsonl or .parquet file, builtin, or a data set, owner/name:config"
"""Remedy where a source does not exist."""

SHUFFLE_BUFFER = 10_000
"""Number of rows of a streamed data set that are shuffled together."""

OPENING_ERRORS = (
    DatasetNotFoundError,
    HFValidationError,
    HfHubHTTPError,
    OSError,
    OfflineModeIsEnabled,
    RuntimeError,
    ValueError,
)
"""Errors of the hub's clients over a data set that cannot be opened."""

READING_ERRORS = (HfHubHTTPError, ConnectionError, OfflineModeIsEnabled)
"""Errors of the hub's clients while rows are read."""


def hub_id(source: str) -> tuple[str, str | None]:
    """Return the name of a data set of the hub and its configuration.

    Raises
    ------
    Refusal
        If the name cannot be one of the hub, or the library would read something local for it.
    """
    name, _, config = source.partition(":")
    if not HUB_ID.fullmatch(source):
        raise Refusal(f"there is no file {source!a}: {KNOWN_SOURCES}")
    # For the name of a directory or of one of its own loaders, the library would read local files,
    # and would do so through its cache.
    loader = name.isidentifier() and find_spec(f"datasets.packaged_modules.{name}") is not None
    if loader or local_file.file_kind(Path(name)) is not None:
        raise Refusal(f"{source!a} is no data set of the hub: {KNOWN_SOURCES}")
    return name, config or None


def opening_refusal(source: str, error: BaseException) -> Refusal:
    """Return the refusal of a data set of the hub that cannot be opened."""
    if isinstance(error, (DatasetNotFoundError, HFValidationError)):
        return Refusal(
            f"there is no file and no data set {source!a}: {KNOWN_SOURCES} ({first_line(error)})"
        )
    remedy = "check the connection and the name"
    if isinstance(error, OSError) and error.errno is not None:
        remedy = f"its files are kept in {HF_HOME}; set HF_HOME to a directory that can be written"
    return Refusal(f"the data set {source!a} cannot be opened ({first_line(error)}): {remedy}")


def stream_rows(
    source: str, *, seed: int | None, split: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a data set with their index in it, shuffled if there is a seed.

    Raises
    ------
    Refusal
        If the data set cannot be opened.
    """
    name, config = hub_id(source)
    try:
        rows: IterableDataset = load_dataset(name, config, split=split, streaming=True)
    except OPENING_ERRORS as error:
        raise opening_refusal(source, error) from error
    # Rows are numbered before they are shuffled, so that an index is that of the data set.
    numbered = rows.map(
        lambda row, index: {"index": index, "row": row},
        with_indices=True,
        remove_columns=rows.column_names,
    )
    if seed is not None:
        numbered = numbered.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    for item in numbered:
        yield item["index"], item["row"]
