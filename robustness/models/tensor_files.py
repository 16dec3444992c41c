"""Single tensors of a checkpoint, without the rest of it.

A tensor is read from the disk if its file is in a directory or in the cache of the hub's client;
otherwise it is fetched from the hub. The names, shapes and types in headers are also used to check
a checkpoint before memory is taken for it.
"""

from collections.abc import Iterable
from math import prod
from pathlib import Path

import torch
from huggingface_hub import hf_hub_url, try_to_load_from_cache
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from robustness.errors import Refusal, first_line, reading
from robustness.models.checkpoint import commit
from robustness.models.contract import REMEDY, read_object
from robustness.models.safetensors_file import (
    DTYPES,
    ERRORS,
    Entry,
    HubFile,
    LocalFile,
    TensorFile,
)

UNDIVIDED = "model.safetensors"
"""Name of the file of a checkpoint that is not divided."""

INDEX = f"{UNDIVIDED}.index.json"
"""Name of the file that maps each tensor of a divided checkpoint to its file."""

SUFFIX = ".safetensors"
"""File name suffix of weights."""

MOST_REUSED = 2
"""Maximum ratio of a model's parameters to the numbers in its checkpoint: families tie and repeat
weights."""


def check(name: str, path: str, module: PreTrainedModel, revision: str | None = None) -> None:
    """Refuse a checkpoint whose weights have other names, shapes or types than the model's.

    This is checked before memory is taken, since transformers allocates weights that are missing.
    A model on the hub is fetched. A checkpoint without safetensors is refused later, when it is
    loaded.

    Parameters
    ----------
    name : str
        Name of the model, for messages.
    path : str
        A directory, or a hub id.
    module : Module
        The model, on the meta device.
    revision : str, optional
        Branch, tag or commit on the hub.
    """
    with reading(f"the checkpoint of {name}", REMEDY):
        if Path(path).is_dir() or _fetch(path, revision):
            Tensors(path, module, revision).check(name)


def _fetch(path: str, revision: str | None) -> bool:
    """Fetch the weights of a model from the hub, and return whether it has any."""
    # All files of one commit: a branch may move in between.
    request = {
        "revision": commit(path, revision) or revision,
        "_raise_exceptions_for_missing_entries": False,
    }
    try:
        if cached_file(path, UNDIVIDED, **request) is not None:
            return True
        index = cached_file(path, INDEX, **request)
        if index is None:
            return False
        # Checked first, since transformers fetches whatever files the index names.
        _weight_map(Path(path).name, Path(index))
        get_checkpoint_shard_files(path, index, revision=request["revision"])
    except OSError as error:
        raise Refusal(f"the weights of {path} cannot be fetched: {first_line(error)}") from error
    return True


class Tensors:
    """The tensors of a checkpoint, by the names that the model has for them.

    A tensor is read when it is looked up, and no others are.

    Parameters
    ----------
    path : str
        A directory, or a hub id.
    module : Module
        The model, on the meta device; families rename tensors of older checkpoints.
    revision : str, optional
        Branch, tag or commit on the hub.

    Raises
    ------
    Refusal
        If the checkpoint has no safetensors that can be read.
    """

    def __init__(self, path: str, module: PreTrainedModel, revision: str | None = None) -> None:
        # All tensors are read from one commit: a branch may move in between.
        self._path, self._revision = path, commit(path, revision) or revision
        self._called = Path(path).name
        self._shards: dict[str, TensorFile] = {}
        self._files = self._find()
        self._module = module
        self._expected = module.state_dict()
        self._names = _names(self._files, module)
        self._keys = {name: key for key, (name, joined) in self._names.items() if not joined}

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._keys:
            raise Refusal(f"the checkpoint {self._called} has no tensor {name}: {REMEDY}")
        key = self._keys[name]
        try:
            tensor = self._shard(self._files[key]).read(key)
        except ERRORS as error:
            raise Refusal(f"{self._called}: {name} cannot be read: {first_line(error)}") from error
        if not tensor.is_floating_point():
            raise Refusal(f"{self._called} is quantised: {name} holds {tensor.dtype}")
        if name in self._expected:
            _check_shape(self._called, key, tuple(tensor.shape), self._expected[name])
        if not torch.isfinite(tensor).all():
            raise Refusal(f"{self._called}: {name} holds what is no finite number: {REMEDY}")
        return tensor

    def check(self, called: str) -> None:
        """Refuse tensors that are not of the shapes and types that the model has.

        The shapes of tensors that the family joins are not checked, but their numbers are counted.
        """
        held = 0
        for key, (name, joined) in self._names.items():
            entry = self._shard(self._files[key]).header[key]
            # Counted even if the model has no such tensor: it may be a part of one.
            held += prod(entry.shape)
            if name not in self._expected:
                continue
            if self._expected[name].is_floating_point() and entry.dtype not in DTYPES:
                raise Refusal(
                    f"{called} cannot be loaded: {key} holds numbers of type {entry.dtype}, which "
                    f"is none of {', '.join(DTYPES)}: open the checkpoint that it was made of"
                )
            if not joined:
                _check_shape(called, key, entry.shape, self._expected[name])
        numbers = sum(weight.numel() for weight in self._module.parameters())
        if numbers > MOST_REUSED * held:
            raise Refusal(
                f"{called} cannot be loaded: its config.json asks for {numbers:,} numbers, and the "
                f"checkpoint holds {held:,}: {REMEDY}"
            )

    def _find(self) -> dict[str, str]:
        """Return the file of each tensor of the checkpoint."""
        try:
            if Path(self._path).is_dir():
                return self._find_here()
            index = cached_file(
                self._path,
                INDEX,
                revision=self._revision,
                _raise_exceptions_for_missing_entries=False,
            )
            if index is not None:
                return _weight_map(self._called, Path(index))
            return dict.fromkeys(self._shard(UNDIVIDED).header, UNDIVIDED)
        except Refusal:
            raise
        except ERRORS as error:
            raise Refusal(
                f"{self._called} cannot be loaded: it has no {UNDIVIDED} to read: "
                f"{first_line(error)}"
            ) from error

    def _find_here(self) -> dict[str, str]:
        """Return the file of each tensor in a directory, read from the files' own headers."""
        directory = Path(self._path)
        if (directory / UNDIVIDED).is_file():
            return dict.fromkeys(self._header(UNDIVIDED), UNDIVIDED)
        if not (directory / INDEX).is_file():
            if any(directory.glob("*.bin")):
                raise Refusal(
                    f"{self._called} has its weights in pickles (.bin), which can run code and are "
                    "not read: load it with transformers and save_pretrained, which writes "
                    "safetensors"
                )
            raise Refusal(f"{self._called} cannot be loaded: it has no {UNDIVIDED}: {REMEDY}")
        # The index is not trusted alone: transformers loads what the files hold.
        indexed = _weight_map(self._called, directory / INDEX)
        held = self._held_by(sorted(set(indexed.values())))
        for key, file in indexed.items():
            if held.get(key) != file:
                raise Refusal(
                    f"{self._called} cannot be loaded: {key} is not in {file}, where {INDEX} has "
                    f"it: {REMEDY}"
                )
        return held

    def _held_by(self, files: Iterable[str]) -> dict[str, str]:
        """Return the file of each tensor in several files, and refuse a tensor that is in two."""
        held: dict[str, str] = {}
        for file in files:
            for key in self._header(file):
                if key in held:
                    raise Refusal(
                        f"{self._called} cannot be loaded: {key} is both in {held[key]} and in "
                        f"{file}: {REMEDY}"
                    )
                held[key] = file
        return held

    def _header(self, file: str) -> dict[str, Entry]:
        """Return the header of a file in a directory, and refuse a damaged file by name."""
        if not (Path(self._path) / file).is_file():
            raise Refusal(f"{self._called} cannot be loaded: {file} is not there: {REMEDY}")
        try:
            return self._shard(file).header
        except ERRORS as error:
            raise Refusal(
                f"{self._called} cannot be loaded: {file} is damaged ({first_line(error)}): "
                f"{REMEDY}"
            ) from error

    def _shard(self, file: str) -> TensorFile:
        """Return a file of the checkpoint; each is opened once."""
        if file not in self._shards:
            self._shards[file] = self._open(file)
        return self._shards[file]

    def _open(self, file: str) -> TensorFile:
        if Path(self._path).is_dir():
            return LocalFile(Path(self._path) / file)
        cached = try_to_load_from_cache(self._path, file, revision=self._revision)
        if isinstance(cached, (str, Path)):
            return LocalFile(Path(cached))
        return HubFile(hf_hub_url(self._path, file, revision=self._revision))


def _check_shape(called: str, key: str, shape: tuple[int, ...], expected: Tensor) -> None:
    if shape != tuple(expected.shape):
        raise Refusal(
            f"{called} cannot be loaded: {key} is of shape {shape} in the checkpoint and "
            f"{tuple(expected.shape)} by its config.json: {REMEDY}"
        )


def _weight_map(called: str, index: Path) -> dict[str, str]:
    """Read the file of each tensor from an index; the files must lie beside the index."""
    weight_map = read_object(called, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Refusal(f"{called} cannot be loaded: {INDEX} has no weight_map: {REMEDY}")
    for key, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(SUFFIX):
            raise Refusal(
                f"{called} cannot be loaded: {INDEX} has {key} in {file!r}, which is no {SUFFIX} "
                f"file beside it: {REMEDY}"
            )
    return weight_map


def _names(keys: Iterable[str], module: PreTrainedModel) -> dict[str, tuple[str, bool]]:
    """Return the model's name for each tensor of a checkpoint, and whether others are joined to it.

    Names and joins are those of transformers when it loads the checkpoint.
    """
    renamings, converters = [], []
    for conversion in get_model_conversion_mapping(module):
        if isinstance(conversion, WeightRenaming):
            renamings.append(conversion)
        elif isinstance(conversion, WeightConverter):
            converters.append(conversion)
    expected, prefix = module.state_dict(), module.base_model_prefix
    names = {}
    for key in keys:
        name, source = rename_source_key(key, renamings, converters, prefix, expected)
        # A newer checkpoint has the model's own names, which a renaming must not touch.
        if name not in expected and key in expected:
            name, source = rename_source_key(key, [], [], prefix, expected)
        names[key] = (name, source is not None)
    return names
