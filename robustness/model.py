"""Opening decoders: the only file that knows architectures.

A model is opened through nnsight and its parts are found by structure: the blocks are the list as
long as the configuration says there are layers, the final norm follows them in their parent, the
head is what transformers calls the output embeddings. Whether that was right is not assumed but
measured: run block by block, the clean schedule must give the model's own logits.
"""

import hashlib
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import nnsight
import torch
from nnsight import TransformersModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn import Linear, Module, ModuleList
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from robustness import interpreter, kernels
from robustness.refusal import Refusal

BUILTIN = {"builtin": "sequential", "builtin-parallel": "parallel"}
"""Models shipped with the project, and their directories."""

DTYPES = ("float32", "float64", "bfloat16", "float16", "auto")
"""What weights can be loaded as; `auto` is what the checkpoint holds."""

ATTENTION = ("sdpa", "eager")
"""Implementations of attention that every family has."""

# What a trace body reaches is sent to a server by value, but only if its package is registered.
for _package in ("robustness", "probes", "recipes"):
    nnsight.register(_package)


@dataclass(frozen=True, eq=False)
class Model:
    """An opened decoder.

    Attributes
    ----------
    traced : TransformersModel
        The nnsight model.
    blocks, attentions, mlps : tuple of Envoy
        Every block and its sublayers; the latter empty where a block has no such part.
    norms : tuple of Envoy
        What is applied to the last residual stream before the head: one norm, or nothing.
    head : Envoy
        From states to logits.
    tokenizer
        The tokenizer, or None for a module that was given without one.
    identity : dict of str to str
        Name, revision, hash of the weights, architecture, dtype, device, attention.
    request : dict
        Keyword arguments of every trace: where and how it runs. Empty on this machine.
    """

    traced: TransformersModel
    blocks: tuple[Any, ...]
    attentions: tuple[Any, ...]
    mlps: tuple[Any, ...]
    norms: tuple[Any, ...]
    head: Any
    tokenizer: Any
    identity: dict[str, str]
    request: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Hub id, base name of a directory, name of a built-in model, or class of a module."""
        return self.identity["model"]

    @property
    def config(self) -> Any:
        """The configuration of the language model."""
        return self.traced._module.config.get_text_config()

    @property
    def layers(self) -> int:
        """How many blocks the model has."""
        return len(self.blocks)

    @property
    def vocabulary(self) -> int:
        """How many logits a token has."""
        return int(self.config.vocab_size)

    @property
    def context(self) -> int | None:
        """The most tokens a sequence may have, or None where the model sets no limit."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def device(self) -> torch.device:
        """Where tokens are sent."""
        device: torch.device = self.traced._module.device
        return device

    def unembedding(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the head's matrix (vocabulary, width) and bias (vocabulary,), float32 or wider.

        The first is None where it cannot be read, or where logits are more than its product; then
        logits come from calling the head.
        """
        head = self.head._module
        if self.request or not isinstance(head, Linear):
            return None, None
        bias = None if head.bias is None else kernels.precise(head.bias.detach())
        return kernels.precise(head.weight.detach()), bias


def open_model(
    source: str | Path | Module,
    *,
    dtype: str = "float32",
    device: str | None = None,
    revision: str | None = None,
    attention: str = "sdpa",
    tokenizer: Any = None,
    trust_remote_code: bool = False,
) -> Model:
    """Open a decoder and check that it is understood.

    Parameters
    ----------
    source : str, path or Module
        A built-in model (`builtin`, `builtin-parallel`), a local directory in Hugging Face format,
        an id on the Hugging Face hub, or a causal language model of transformers, which is put
        into evaluation mode and used as it is.
    dtype : str
        One of `DTYPES`.
    device : str, optional
        As torch names it; the first GPU where there is one.
    revision : str, optional
        Branch, tag or commit on the hub.
    attention : str
        One of `ATTENTION`.
    tokenizer : optional
        For a module: its tokenizer.
    trust_remote_code : bool
        Whether code that comes with a checkpoint may be run.

    Returns
    -------
    Model

    Raises
    ------
    Refusal
        If there is no such model, it is not a decoder, or run block by block it does not give its
        own logits.
    """
    if isinstance(source, Module):
        if not getattr(source, "can_generate", bool)():
            raise Refusal(f"{type(source).__name__} is not a causal language model of transformers")
        traced = TransformersModel(
            source.eval(), task="text-generation", tokenizer=tokenizer or _no_tokenizer()
        )
        identity = {"model": type(source).__name__, "weights_sha256": _hash_module(source)}
    else:
        name, path = _resolve(source)
        config = _read_config(name, path, revision, trust_remote_code)
        if dtype not in DTYPES:
            raise Refusal(f"no dtype {dtype!r}; there are: {', '.join(DTYPES)}")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        traced = _load(
            name,
            path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device=_check_device(device),
            revision=revision,
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
        )
        tokenizer = traced.tokenizer
        identity = {"model": name, "revision": str(getattr(config, "_commit_hash", None) or "")}
        if Path(path).is_dir():
            identity["weights_sha256"] = _hash_directory(Path(path))
    module = traced._module
    identity |= {
        "architecture": type(module).__name__,
        "dtype": str(module.dtype).removeprefix("torch."),
        "device": module.device.type,
        "attention": str(module.config._attn_implementation),
    }
    model = Model(traced=traced, tokenizer=tokenizer, identity=identity, **_find_parts(traced))
    _check_itself(model)
    return model


def _resolve(source: str | Path) -> tuple[str, str]:
    """Return the name of a model, and the directory or hub id it is loaded from."""
    if source in BUILTIN:
        directory = Path(str(files("robustness"))) / "builtin" / BUILTIN[str(source)]
        return str(source), str(directory)
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise Refusal(f"the directory {source} has no config.json: it is not a model")
        return path.resolve().name, str(path)
    if path.exists():
        raise Refusal(f"{source} is a file; a model is a directory with a config.json")
    if isinstance(source, Path) or str(source).startswith((".", "/", "~")):
        raise Refusal(f"there is no directory {source}")
    return str(source), str(source)


def _read_config(name: str, path: str, revision: str | None, trust: bool) -> Any:
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise Refusal(
            f"there is no model {name!r} to open: give {' or '.join(BUILTIN)}, a directory with a "
            f"config.json, or a hub id that can be reached ({_first_line(error)})"
        ) from error
    kind = getattr(config, "model_type", "") or type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise Refusal(f"{name} ({kind}) is an encoder-decoder; only decoders can be opened")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not trust:
        raise Refusal(f"{name} ({kind}) is not a decoder that transformers can load")
    # Families that fill in masks, as BERT does, decode only where their configuration says so.
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise Refusal(f"{name} ({kind}) is an encoder; only decoders can be opened")
    return config


def _load(name: str, path: str, **options: Any) -> TransformersModel:
    try:
        return TransformersModel(
            path, task="text-generation", dispatch=True, use_safetensors=True, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise Refusal(f"{name} cannot be loaded: {_first_line(error)}") from error


def _check_device(device: str) -> str:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise Refusal(f"device {device!r} cannot be used: {_first_line(error)}") from error
    return device


def _find_parts(traced: TransformersModel) -> dict[str, Any]:
    """Find blocks, sublayers, final norm and head, and return their envoys."""
    module = traced._module
    name, layers = type(module).__name__, module.config.get_text_config().num_hidden_layers
    lists = [
        path
        for path, part in module.named_modules()
        if isinstance(part, ModuleList) and len(part) == layers
    ]
    head = module.get_output_embeddings()
    if not lists or head is None:
        missing = "an output head" if lists else f"a list of {layers} blocks"
        raise Refusal(f"{name} cannot be opened: {missing} was not found in it")
    path = lists[0]
    parent = module.get_submodule(path.rpartition(".")[0])
    blocks = module.get_submodule(path)
    children = list(parent.named_children())
    after = children[[child for _, child in children].index(blocks) + 1 :]
    norms = [child for child, part in after if "norm" in type(part).__name__.lower()]
    prefix = path.rpartition(".")[0]

    def sublayers(kind: str) -> tuple[Any, ...]:
        names = [
            next((n for n, part in block.named_children() if kind in type(part).__name__), None)
            for block in blocks
        ]
        return tuple(
            _envoy(traced, f"{path}.{index}.{child}")
            for index, child in enumerate(names)
            if child is not None
        )

    return {
        "blocks": tuple(_envoy(traced, f"{path}.{index}") for index in range(layers)),
        "attentions": sublayers("Attention"),
        "mlps": sublayers("MLP"),
        "norms": tuple(_envoy(traced, f"{prefix}.{norms[-1]}") for _ in norms[-1:]),
        "head": _envoy(traced, next(path for path, part in module.named_modules() if part is head)),
    }


def _envoy(traced: TransformersModel, path: str) -> Any:
    found: Any = traced
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found


def _check_itself(model: Model) -> None:
    """Refuse a model whose blocks, called one by one, do not give its own logits.

    Two sequences that differ in the last token alone are stacked twice, as in a sweep; where their
    earlier logits differ, the model looks ahead and is no decoder.
    """
    length = min(7, model.context or 7)
    first = [(5 * token + 1) % model.vocabulary for token in range(length)]
    second = [*first[:-1], (first[-1] + 1) % model.vocabulary]
    tokens = torch.tensor([first, second], device=model.device)
    blocks, norms, head, traced = model.blocks, model.norms, model.head, model.traced
    with torch.no_grad(), traced.trace(tokens, use_cache=False, **model.request):
        states, contexts = interpreter.enter(blocks)
        stacked = torch.cat([states[0], states[0]])
        for block, context in zip(blocks, contexts):
            stacked = interpreter.call(block, stacked, interpreter.widen(context, 2, 2))
        for norm in norms:
            stacked = norm(stacked)
        ours = nnsight.save(kernels.precise(head(stacked)))
        own = nnsight.save(kernels.precise(traced.output.logits))
    scale = float((own - own.mean(-1, keepdim=True)).abs().max())
    tolerance = 32 * torch.finfo(model.traced._module.dtype).eps * max(1.0, scale)
    ahead = float((own[0, :-1] - own[1, :-1]).abs().max())
    if not ahead <= tolerance:
        raise Refusal(
            f"{model.name} ({model.identity['architecture']}) is not a decoder: a later token "
            f"changes earlier logits by {ahead:.2g}"
        )
    difference = float((ours - torch.cat([own, own])).abs().max())
    if not difference <= tolerance:
        raise Refusal(
            f"{model.name} ({model.identity['architecture']}) cannot be rewired: run block by "
            f"block its logits are off by {difference:.2g}, more than {tolerance:.2g}"
        )


def _no_tokenizer() -> PreTrainedTokenizerFast:
    """Stand in for the tokenizer that nnsight wants even where only token ids are used."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"": 0}, unk_token="")))


def _hash_directory(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _hash_module(module: Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
