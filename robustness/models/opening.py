"""Decoders are opened here: from a checkpoint, from a module, or on a server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from robustness.errors import Refusal
from robustness.models import checkpoint, hashes, placement, remote_model, tensor_files
from robustness.models.compiled_blocks import compile_blocks
from robustness.models.maps import Maps
from robustness.models.maps_file import read_maps
from robustness.models.model import Model, find_parts
from robustness.models.self_check import check_model
from robustness.models.settings import ModelSettings
from robustness.models.structure import find_paths
from robustness.models.wrapping import Wrapped, unscale, wrap
from robustness.ndif.limits import ANSWER_LIMIT, PATIENCE, SANDBOX_LIMIT
from robustness.ndif.patience import Notify


def open_model(  # noqa: PLR0913 - its keywords are the settings
    source: str | Path | Module,
    *,
    dtype: str | None = None,
    device: str | None = None,
    device_map: str | Mapping[str, int | str] | None = None,
    offload: str | Path | None = None,
    revision: str | None = None,
    attention: str | None = None,
    compile: bool = False,
    maps: str | Path | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    remote: bool = False,
    host: str | None = None,
    deploy: bool = False,
    notify: Notify | None = None,
    sandbox_limit: float = SANDBOX_LIMIT,
    answer_limit: float = ANSWER_LIMIT,
    patience: float = PATIENCE,
    request_seconds: float | None = None,
    request_gb: float | None = None,
) -> Model:
    """Open a decoder and check that run block by block it gives its own logits.

    Parameters
    ----------
    source : str, path or Module
        A built-in model (`builtin`, `builtin-parallel`), a local directory in Hugging Face format,
        an id on the Hugging Face hub, or a causal language model of transformers, which is put
        into evaluation mode and used as it is.
    dtype : str, optional
        One of `settings.DTYPES`; by default `auto` where a GPU computes, and float32 on the CPU.
    device : str, optional
        Device, as torch names it; by default the first GPU, or the CPU if there is none.
    device_map : str or mapping of str to int or str, optional
        One of `settings.DEVICE_MAPS`, or the device, `cpu` or `disk` of each submodule, as
        accelerate takes it. Weights that do not fit on the device that computes are loaded there
        block by block.
    offload : path, optional
        Directory for weights that are kept on the disk in another form than the checkpoint's.
    revision : str, optional
        Branch, tag or commit on the hub.
    attention : str, optional
        One of `settings.ATTENTION`; by default `sdpa`, or `eager` if the family has no other.
    compile : bool
        Whether schedules run blocks that torch has compiled, which is faster and takes up to a
        minute to begin with. Numbers differ by rounding. Where blocks cannot be compiled, they run
        as they are, and `notify` is told why.
    maps : path, optional
        File of fitted maps for schedules that name some; see `robustness.healing`.
    tokenizer : optional
        The tokenizer of a module.
    trust_remote_code : bool
        Whether code that comes with a checkpoint may be run.
    remote : bool
        Whether the model runs on an NDIF server. The server then decides on dtype, device and
        attention; here the model is built without weights.
    host : str, optional
        Address of the server; by default `NDIF_HOST`, or nnsight's configuration.
    deploy : bool
        Whether the server may be asked to load the model.
    notify : callable, optional
        Function that is called with a message when the weights keep another type than float32 by
        default, when blocks are compiled or cannot be, when the server keeps the user waiting, and
        when a request is sent again.
    sandbox_limit : float
        Maximum number of gigabytes that a run passes through the socket of a server that keeps
        traces apart from the weights.
    answer_limit : float
        Maximum number of gigabytes that the user's own traces return from a server. A measurement's
        answer has a known size, and a larger one is refused whatever this limit is.
    patience : float
        Maximum number of minutes for which a server that does not answer is asked again.
    request_seconds : float, optional
        Seconds that a request to a server should take at most; by default what suits the server.
    request_gb : float, optional
        Gigabytes that a request should take at most on a GPU of the server, besides the weights;
        by default what suits the server.

    Returns
    -------
    Model

    Raises
    ------
    Refusal
        If there is no such model, it is not a decoder, or run block by block it does not give its
        own logits; for a remote model also if the server cannot be used.
    """
    settings = ModelSettings(
        source=type(source).__name__ if isinstance(source, Module) else source,
        dtype=dtype,
        device=device,
        device_map=device_map,
        offload=offload,
        revision=revision,
        attention=attention,
        compile=compile,
        maps=maps,
        trust_remote_code=trust_remote_code,
        remote=remote,
        host=host,
        deploy=deploy,
        sandbox_limit=sandbox_limit,
        answer_limit=answer_limit,
        patience=patience,
        request_seconds=request_seconds,
        request_gb=request_gb,
    )
    if isinstance(source, Module):
        fitted = _read_maps(settings)
        model = _with_maps(_make_model(_wrap_module(source, tokenizer, settings)), fitted)
        return compile_blocks(model, notify) if compile else model
    return open_settings(settings, notify)


def open_settings(settings: ModelSettings, notify: Notify | None = None) -> Model:
    """Open the decoder that settings describe, and check it as `open_model` does.

    Parameters
    ----------
    settings : ModelSettings
        Which model is opened, and how.
    notify : callable, optional
        Function that is called with a message, as for `open_model`.

    Raises
    ------
    Refusal
        As for `open_model`.
    """
    if settings.remote:
        return _make_model(remote_model.build(settings, notify))
    # Before anything is loaded, which may take minutes.
    fitted = _read_maps(settings)
    wrapped = _load(settings)
    dtype = str(wrapped.traced._module.dtype).removeprefix("torch.")
    kept = settings.dtype is None and dtype != "float32"
    if kept and notify is not None:
        notify(
            f"weights stay {dtype}, as in the checkpoint: the default where a GPU computes; with "
            "float32, numbers are exact to more digits"
        )
    try:
        model = _with_maps(_make_model(wrapped), fitted)
    except Refusal as error:
        if not kept:
            raise
        # Mamba in half precision, for one, has states that its own head does not take.
        raise Refusal(f"{error}; its weights are {dtype}: try `dtype` float32") from error
    return compile_blocks(model, notify) if settings.compile else model


def _read_maps(settings: ModelSettings) -> Maps | None:
    return None if settings.maps is None else read_maps(settings.maps)


def _with_maps(model: Model, maps: Maps | None) -> Model:
    return model if maps is None else model.with_maps(maps)


def _load(settings: ModelSettings) -> Wrapped:
    """Load a checkpoint from a directory or from the hub."""
    name, path = checkpoint.resolve(settings.source)
    revision, trust = settings.revision, settings.trust_remote_code
    config = checkpoint.read_config(name, path, revision, trust)
    device, placed = None, {}
    if settings.device_map is None:
        device = placement.choose_device(settings.device)
        dtype = settings.dtype or placement.usual_dtype(device)
        placement.check_dtype(device, dtype)
    else:
        dtype = settings.dtype or placement.usual_dtype(placement.computing(settings.device_map))
        placed = {
            "device_map": placement.resolve_map(settings.device_map),
            "offload_folder": placement.make_directory(settings.offload),
        }
    # Before any memory is taken: transformers fills weights that are missing with random numbers.
    tensor_files.check(name, path, checkpoint.sketch(name, config, trust), revision)
    module, tokenizer = checkpoint.load(
        name,
        path,
        revision=revision,
        trust_remote_code=trust,
        dtype="auto" if dtype == "auto" else getattr(torch, dtype),
        attn_implementation=settings.attention,
        **placed,
    )
    unscale(module)
    identity = {"model": name, "revision": checkpoint.commit(path, revision)}
    if settings.device_map is not None:
        placement.check_map(name, module, settings.device_map)
        identity["device_map"] = placement.describe_map(settings.device_map)
    if Path(path).is_dir():
        identity["weights_sha256"] = hashes.hash_directory(Path(path))
    if device is not None:
        module = placement.move(name, module, device)
    return Wrapped(wrap(module, tokenizer), tokenizer, identity)


def _wrap_module(module: Module, tokenizer: Any, settings: ModelSettings) -> Wrapped:
    """Wrap a causal language model that is loaded already, with its weights as they are."""
    name = type(module).__name__
    if settings.remote:
        raise Refusal("a module is on this machine; a remote model is given by its hub id")
    if not getattr(module, "can_generate", bool)():
        raise Refusal(f"{name} is not a causal language model of transformers")
    checkpoint.check_quantised(name, module.config)
    if settings.device_map is not None:
        raise Refusal("a module is used as it is: give it a device map when it is loaded")
    # Before the hash, since RWKV's halving changes the weights in place.
    unscale(module.eval())
    identity = {"model": name, "weights_sha256": hashes.hash_module(module)}
    return Wrapped(wrap(module, tokenizer), tokenizer, identity)


def _make_model(wrapped: Wrapped) -> Model:
    """Find the parts of a model, and refuse a model that computes something else than they do."""
    module = wrapped.traced._module
    if module.dtype == torch.float64:
        # The fastest implementation of experts has no float64.
        module.set_experts_implementation("eager")
    identity = wrapped.identity | {
        "config_sha256": hashes.hash_config(module.config),
        "architecture": type(module).__name__,
        "processing": "none",
    }
    origin = getattr(module.config, hashes.ORIGIN, None)
    if isinstance(origin, dict):
        identity["made_from"] = f"{origin.get('model')} {origin.get('schedule')}"
    paths = find_paths(module)
    model = Model(
        traced=wrapped.traced,
        paths=paths,
        tokenizer=wrapped.tokenizer,
        identity=identity,
        request=wrapped.request,
        **find_parts(wrapped.traced, paths),
    )
    return check_model(model)
