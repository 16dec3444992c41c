"""Opening decoders: the only file that knows architectures.

A model is opened through nnsight and its parts are found by structure: the blocks are the list as
long as the configuration says there are layers, the final norm follows them in their parent, the
head is what transformers calls the output embeddings. Whether that was right is not assumed but
measured: run block by block, the clean schedule must give the model's own logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import nnsight
import torch
from accelerate.utils import align_module_device
from nnsight import TransformersModel
from torch import Tensor
from torch.nn import Linear, Module, ModuleList
from transformers.pytorch_utils import Conv1D

from robustness.errors import Refusal, first_line
from robustness.models import call_record
from robustness.ndif import answer
from robustness.trace import block_calls, numerics, unembedding

PIECE = 512
"""Rows of a matrix that are added up in a wider type at once."""

# What a trace body reaches is sent to a server by value, but only if its package is registered.
for _package in ("robustness", "probes", "recipes"):
    nnsight.register(_package)


Sublayer = tuple[tuple[str, ...], str, tuple[str, ...], int | None]
"""What is called before the main part of a sublayer, mostly a norm; that part; norms after it; and
the place among its further arguments of the residual stream, if it adds to that itself."""


@dataclass(frozen=True)
class Paths:
    """Where in a decoder its parts are, as names of submodules."""

    blocks: tuple[str, ...]
    attentions: tuple[str, ...]
    """Of every block that has one."""
    sublayers: tuple[tuple[Sublayer, Sublayer], ...]
    """Attention and MLP of every block that has two sublayers, one of them an attention."""
    readers: tuple[tuple[str, ...], ...]
    """The matrices of every MLP that read its input."""
    writers: tuple[str, ...]
    """The matrix of every MLP that reads its neurons and writes to the residual stream."""
    norms: tuple[str, ...]
    """What is called between the last block and the head: mostly a norm."""
    head: str


@dataclass(frozen=True, eq=False)
class Model:
    """An opened decoder.

    Attributes
    ----------
    traced : TransformersModel
        The nnsight model.
    blocks, attentions : tuple of Envoy
        Every block, and the attention of every block that has one.
    sublayers : tuple
        Attention and MLP of every block that has these two, as in `robustness.trace.sublayers`.
    writers : tuple of Envoy
        The matrix of every MLP that reads its neurons; empty where MLPs are not made of matrices.
    norms : tuple of Envoy
        What is applied to the last residual stream before the head: mostly one norm, or nothing;
        some models of the OPT family have a projection.
    head : Envoy
        From states to what becomes logits.
    tokenizer
        The tokenizer, or None for a module that was given without one.
    identity : dict of str to str
        Name, revision, hash of the weights, architecture, dtype, device, attention.
    grows : dict of tuple to bool
        Which parts of a block's context grow with the batch; see `interpreter.widen`.
    returns : int
        How many values a block returns in a tuple; 0 where it returns the residual stream alone.
    dissected : dict, optional
        What is known of its sublayers, where that was asked for; see `dissection.ready`.
    request : dict
        Keyword arguments of every trace: where and how it runs. Empty on this machine.
    sandboxed : bool
        Whether traces run apart from the weights, so that every call crosses a socket.
    squash : tuple
        By what logits are scaled and where they are capped; see `robustness.trace.unembedding`.
    """

    traced: TransformersModel
    blocks: tuple[Any, ...]
    attentions: tuple[Any, ...]
    sublayers: tuple[Any, ...]
    readers: tuple[tuple[Any, ...], ...]
    writers: tuple[Any, ...]
    norms: tuple[Any, ...]
    head: Any
    tokenizer: Any
    identity: dict[str, str]
    grows: dict[Any, bool] = field(default_factory=dict)
    returns: int = 0
    dissected: dict[str, Any] | None = None
    request: dict[str, Any] = field(default_factory=dict)
    sandboxed: bool = False
    squash: unembedding.Squash = (1.0, None)

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
    def width(self) -> int:
        """Features of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def heads(self) -> int:
        """Attention heads of a block, counted by their queries."""
        return int(self.config.num_attention_heads)

    @property
    def head_width(self) -> int:
        """Features of an attention head."""
        return int(getattr(self.config, "head_dim", None) or self.width // self.heads)

    @property
    def block_parameters(self) -> tuple[int, ...]:
        """How many numbers the matrices of every block hold."""
        return tuple(_matrix_numbers(block) for block in self.blocks)

    @property
    def sublayer_parameters(self) -> tuple[tuple[int, ...], ...]:
        """The same of attention and MLP of every block that has these two."""
        return tuple(
            tuple(
                sum(map(_matrix_numbers, (*before, main, *after)))
                for before, main, after, _ in pair
            )
            for pair in self.sublayers
        )

    @property
    def reads_matrix(self) -> bool:
        """Whether the head is a matrix that can be read, and need not be called."""
        plain = type(self.head._module).forward is Linear.forward
        return plain and not self.request and self.squash[1] is None

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
    def numbers(self) -> list[float]:
        """Numbers of the configuration, one of which a factor that is measured may be; 1 first."""
        values = self.config.to_dict().values()
        return [1.0, *(float(v) for v in values if type(v) in (int, float) and v)]

    @property
    def precision(self) -> str:
        """The type of measured numbers: `float32`, or `float64` where the weights are."""
        return "float64" if self.identity["dtype"] == "float64" else "float32"

    @property
    def device(self) -> torch.device:
        """Where tokens are made: with the weights, or here where those are on a server."""
        device: torch.device = self.traced._module.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def offloaded(self) -> bool:
        """Whether there are weights that are loaded for each call of their part."""
        return any(weight.is_meta for weight in self.traced._module.parameters())

    @property
    def normed(self) -> bool:
        """Whether the last residual stream is normed before the head."""
        return any(_is_norm(part._module) for part in self.norms)

    @property
    def bends(self) -> tuple[int, ...]:
        """Lengths above which rotary embeddings have other frequencies, for all tokens of a text.

        Those of the kind `longrope` do. The kind `dynamic` does above the context, which no text
        exceeds.
        """
        found = getattr(self.config, "rope_parameters", None) or {}
        kinds = [found, *(each for each in found.values() if isinstance(each, dict))]
        lengths = {
            int(kind["original_max_position_embeddings"])
            for kind in kinds
            if kind.get("rope_type") == "longrope"
        }
        return tuple(sorted(lengths))

    def asking(self, numbers: int) -> dict[str, Any]:
        """Return `request` for a trace that hands back so many numbers at most."""
        if not self.request:
            return {}
        return self.request | {"backend": self.request["backend"].expecting(numbers)}

    def unembedding(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the head's matrix (vocabulary, width) and bias (vocabulary,), float32 or wider.

        Both are centred over the vocabulary: a number added to all logits of a token changes no
        readout, but GPT-2 adds about -100, which costs float32 its last digits. A scale of the
        logits is in them. The first is None where the weights cannot be read, the head is no
        matrix, or logits are capped; then they come from calling it.
        """
        if not self.reads_matrix:
            return None, None
        head, (scale, _) = self.head._module, self.squash
        # Loaded once, where it is offloaded; it is centred out of place, and so a copy.
        with align_module_device(head):
            weight = numerics.precise(head.weight.detach())
            # In pieces: torch would copy all of the matrix into the wider type.
            wide, pieces = _widest(weight.device), weight.split(PIECE)
            mean = torch.stack([piece.sum(0, dtype=wide) for piece in pieces]).sum(0) / len(weight)
            weight = weight - mean.to(weight.dtype)
            if scale != 1.0:
                weight *= scale
            if head.bias is None:
                return weight, None
            bias = numerics.precise(head.bias.detach())
            return weight, (bias - bias.mean()) * scale


def find_paths(module: Any) -> Paths:
    """Find blocks, their parts, the final norm and the head of a decoder by its structure.

    The blocks are the list as long as the configuration says there are layers whose members are
    called once each, in order. What is called between the last of them and the head reads the last
    residual stream. In a block, modules that hand on to each other what they write are a sublayer.

    Raises
    ------
    Refusal
        If there is no such list, or no head, or the model cannot be run.
    """
    name, config = type(module).__name__, module.config.get_text_config(decoder=True)
    layers = getattr(config, "decoder_layers", None) or config.num_hidden_layers
    named = dict(module.named_modules())
    lists = [
        path for path, part in named.items() if isinstance(part, ModuleList) and len(part) == layers
    ]
    head = next((p for p, part in named.items() if part is module.get_output_embeddings()), None)
    if not lists or head is None:
        missing = "an output head" if lists else f"a list of {layers} blocks"
        raise Refusal(f"{name} cannot be opened: {missing} was not found in it")
    try:
        calls = call_record.record(module, _tokens(config))
    except Exception as error:  # whatever its code raises
        raise Refusal(f"{name} cannot be opened: {first_line(error)}") from error
    order = sorted(calls, key=lambda call: call.began)
    times: dict[str, list[call_record.Call]] = {}
    for call in order:
        times.setdefault(call.path, []).append(call)
    of_lists = [[times.get(f"{path}.{index}", []) for index in range(layers)] for path in lists]
    found = next((each for each in of_lists if _in_order(each)), None)
    if found is None or head not in times:
        what = "its blocks" if found is None else "its head"
        raise Refusal(f"{name} cannot be opened: {what} are not called once each, in order")
    blocks = [each[0] for each in found]
    after = [call for call in order if blocks[-1].ended < call.began < times[head][-1].began]
    outer = [call for call in after if not head.startswith(f"{call.path}.")]
    called = {call.path for call in outer}
    tail = [call.path for call in outer if call.caller not in called]
    twice = next((path for path in (*tail, head) if len(times[path]) > 1), None)
    if twice is not None:
        raise Refusal(
            f"{name} cannot be opened: {twice}, which reads the last residual stream, is called "
            "elsewhere too"
        )
    attentions: list[str] = []
    sublayers: list[tuple[Sublayer, Sublayer]] = []
    for block in blocks:
        inside = [call for call in calls if call.caller == block.path]
        attentions += [call.path for call in inside if _is_attention(named[call.path])][:1]
        parts = call_record.chains(inside)
        attending = [any(call.path in attentions for call in part) for part in parts]
        if sorted(attending) == [False, True]:
            attention, mlp = (
                _divide(parts[attending.index(which)], named, attentions) for which in (True, False)
            )
            sublayers.append((attention, mlp))
    matrices_of = []
    for _, (before, main, *_) in sublayers:
        inside_mlp = [path for part in (*before, main) for path in _matrices_in(part, named)]
        if len(inside_mlp) > 1 and all(path in times for path in inside_mlp):
            matrices_of.append(sorted(inside_mlp, key=lambda path: times[path][0].began))
    return Paths(
        blocks=tuple(block.path for block in blocks),
        attentions=tuple(attentions),
        sublayers=tuple(sublayers),
        readers=tuple(tuple(each[:-1]) for each in matrices_of),
        writers=tuple(each[-1] for each in matrices_of),
        norms=tuple(tail),
        head=head,
    )


def _matrix_numbers(part: Any) -> int:
    return sum(weight.numel() for weight in part._module.parameters() if weight.ndim > 1)


def _in_order(calls: Sequence[Sequence[call_record.Call]]) -> bool:
    """Whether each was called once, after the one before had ended."""
    once = all(len(each) == 1 for each in calls)
    return once and all(one[0].ended < next_one[0].began for one, next_one in pairwise(calls))


def _divide(
    chain: Sequence[call_record.Call], named: dict[str, Module], attentions: Sequence[str]
) -> Sublayer:
    """Divide a sublayer into what comes before its main part, that part, and the norms after it."""
    paths = [call.path for call in chain]
    own = [place for place, path in enumerate(paths) if not _is_norm(named[path])] or [0]
    attending = [place for place in own if paths[place] in attentions]
    main = (attending or own)[-1]
    return tuple(paths[:main]), paths[main], tuple(paths[main + 1 :]), chain[main].handed


def _is_attention(part: Module) -> bool:
    return "Attention" in type(part).__name__


def _matrices_in(path: str, named: dict[str, Module]) -> list[str]:
    """Return the paths of a part's matrices, or of the part if it is one."""
    if _is_matrix(named[path]):
        return [path]
    return [f"{path}.{name}" for name in _matrices(named[path])]


def matrices(part: Module) -> list[str]:
    """Return the names of a sublayer's matrices: all that read its input, last what writes.

    Raises
    ------
    Refusal
        If it has fewer than two.
    """
    found = _matrices(part)
    if len(found) < 2:
        raise Refusal(
            f"{type(part).__name__} is not made of matrices that read and one that writes"
        )
    return found


def affine(norm: Module, width: int) -> tuple[Tensor, Tensor, bool]:
    """Return a norm's gain and shift, both (width,), and whether it centres, by trying it out.

    On a vector of ones and minus ones, of mean 0 and mean square 1, every norm gives its gain,
    times the vector, and its shift; on ones, one that centres gives its shift alone.
    """
    kind = next((tensor for tensor in norm.state_dict().values()), torch.zeros(0))
    ones = torch.ones(1, width, dtype=kind.dtype, device=kind.device)
    signs = ones.clone()
    signs[:, ::2] = -1
    with torch.no_grad():
        shift = norm(torch.zeros_like(ones))
        # Large, so that what is added to the variance does not count.
        large = 1e6 if kind.dtype in {torch.float32, torch.float64} else 1e2
        gain = (norm(signs * large) - shift) * signs
        centres = bool((norm(ones) - shift).abs().max() < 1e-3 * gain.abs().max())
    return gain[0], shift[0], centres


def is_norm(part: Module, width: int) -> bool:
    """Whether a part divides what it is given by its size, but for a gain and a shift."""
    kind = next((tensor for tensor in part.state_dict().values()), torch.zeros(0))
    state = torch.sin(1.7 * torch.arange(width, device=kind.device, dtype=torch.float64)) + 1
    gain, shift, centres = affine(part, width)
    moved = state - state.mean() if centres else state
    expected = moved / moved.square().mean().sqrt() * gain + shift
    with torch.no_grad():
        found = part(state.to(kind.dtype)[None])[0]
    off = (found - expected).norm() / expected.norm()
    return bool(off <= 1e-3)


def _matrices(part: Module) -> list[str]:
    return [name for name, child in part.named_children() if _is_matrix(child)]


def _is_matrix(part: Module) -> bool:
    return isinstance(part, (Linear, Conv1D))


def oriented(part: Module, weight: Tensor) -> Tensor:
    """Return the weight of a matrix as (out, in); GPT-2 keeps it the other way round."""
    return weight.T if isinstance(part, Conv1D) else weight


def _find_parts(traced: TransformersModel) -> dict[str, Any]:
    """Find blocks, sublayers, norms and head, and return their envoys."""

    def envoys(paths: Any) -> Any:
        if isinstance(paths, tuple):
            return tuple(envoys(path) for path in paths)
        return _envoy(traced, paths) if isinstance(paths, str) else paths

    paths = find_paths(traced._module)
    return {each.name: envoys(getattr(paths, each.name)) for each in fields(paths)}


def _is_norm(part: Module) -> bool:
    return "norm" in type(part).__name__.lower()


def _envoy(traced: TransformersModel, path: str) -> Any:
    found: Any = traced
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found


def _check_itself(model: Model) -> Model:
    """Refuse a model that looks ahead, or whose blocks, called one by one, give other logits.

    Called on the very states of the natural pass, they must give its logits but for the rounding
    of the last digits; on states stacked as in a sweep, within what a different order of sums
    costs. What is learned on the way is added to the model: which parts of a block's context grow
    with the batch, found on batches of two and three, and what the weights are and where.
    """
    first = _tokens(model.config)
    second = [*first[:-1], (first[-1] + 1) % model.vocabulary]
    three, two = (
        torch.tensor([first, second, first][:size], device=model.device) for size in (3, 2)
    )
    blocks, norms, head, traced = model.blocks, model.norms, model.head, model.traced
    known = model.numbers
    request = model.asking(0)
    with torch.no_grad(), traced.session(**request):
        found = nnsight.save({})
        with traced.trace(three, use_cache=False):
            _, contexts = block_calls.enter(blocks)
            sizes = block_calls.sizes(contexts)
            numbers = unembedding.trial(head.input)
            head.skip(numbers)
            squash = unembedding.fit(numbers, traced.output.logits, known)
            found["squash"] = squash
        with traced.trace(two, use_cache=False):
            states, contexts = block_calls.enter(blocks)
            left = blocks[-1].output
            found["returns"] = len(left) if isinstance(left, (tuple, list)) else 0
            found["grows"] = block_calls.growing(block_calls.sizes(contexts), sizes)
            found["device"] = states[0].device.type
            found["attention"] = str(traced.config._attn_implementation)
            found["apart"] = any(weight.is_meta for weight in head.parameters())
            states.append(norms[0].input if norms else head.input)
            eps = max(torch.finfo(kind).eps for kind in (states[0].dtype, torch.float32))
            found["shape"] = list(states[0].shape[:-1])
            shared = [0.0]
            if found["shape"] == list(two.shape):
                shared = block_calls.forgetful(states, contexts, blocks)
            found["shared"] = shared
            # What keeps something that another needs cannot even be called on another batch.
            alone = found["shape"] == list(two.shape) and numerics.largest(shared) <= 32 * eps
            predict = unembedding.predictor(head, (squash["scale"], squash["cap"]))
            ours = []
            for copies in (1, 2) if alone else ():
                hidden = torch.cat([states[0]] * copies)
                for block, context in zip(blocks, contexts):
                    widened = block_calls.widen(context, 2, copies, found["grows"])
                    hidden = block_calls.call(block, hidden, widened)
                for norm in norms:
                    hidden = norm(hidden)
                ours.append(predict(hidden).cpu())
            # Of a model over several devices, these may be on another than the head.
            given = traced.output.logits
            own = numerics.precise(given).cpu()
            coarsest = max((states[0].dtype, given.dtype), key=lambda kind: torch.finfo(kind).eps)
            found["dtype"] = str(coarsest)
            found["largest"] = float(own.abs().max())
            found["finite"] = bool(torch.isfinite(own).all())
            found["ahead"] = float((own[0, :-1] - own[1, :-1]).abs().max())
            found["off"] = [
                float((mine - torch.cat([own] * copies)).abs().max())
                for mine, copies in zip(ours, (1, 2))
            ]
    answer.plain(found, _FOUND)
    answer.plain(found["squash"], {"scale": float, "cap": float | None, "off": float})
    if found["dtype"] not in {str(kind) for kind in answer.STATES}:
        raise answer.other(f"its numbers are {found['dtype']:.40}")
    dtype = found["dtype"].removeprefix("torch.")
    eps = torch.finfo(getattr(torch, dtype)).eps
    digit = eps * max(1.0, found["largest"])
    # Some parts compute in float32 whatever the weights are, and experts group tokens.
    coarse = max(eps, torch.finfo(torch.float32).eps) * max(1.0, found["largest"])
    name = f"{model.name} ({model.identity['architecture']})"
    if not found["finite"]:
        wider = "bfloat16 or float32" if dtype == "float16" else "float64, or open another"
        raise Refusal(
            f"{name} overflows: its logits of a short text are not all finite numbers in {dtype}: "
            f"use --dtype {wider}"
        )
    if found["shape"] != list(two.shape):
        raise Refusal(
            f"{name} cannot be rewired: what enters its blocks is of shape {found['shape']} and "
            "not (sequence, token, width)"
        )
    difference = numerics.largest(found["shared"])
    block = int(torch.tensor(found["shared"]).argmax())
    if not difference <= 32 * max(eps, torch.finfo(torch.float32).eps):
        raise Refusal(
            f"{name} cannot be rewired: its blocks share what they keep: what block {block} gives "
            f"depends on what others were run on (off by {difference:.2g})"
        )
    if not found["squash"]["off"] <= unembedding.ROUNDING * eps:
        raise Refusal(
            f"{name} cannot be rewired: its logits are what its head gives neither as it is nor "
            f"scaled nor softly capped (off by {found['squash']['off']:.2g})"
        )
    if not found["ahead"] <= 32 * coarse:
        raise Refusal(
            f"{name} is not a decoder: a later token changes earlier logits by {found['ahead']:.2g}"
        )
    for difference, tolerance in zip(found["off"], (4 * digit, 32 * coarse)):
        if not difference <= tolerance:
            raise Refusal(
                f"{name} cannot be rewired: something besides its blocks, its norm and its head "
                "makes its logits, which run block by block are off by "
                f"{difference:.2g}, more than {tolerance:.2g}"
            )
    placed = {key: found[key] for key in ("device", "attention")}
    return replace(
        model,
        grows=found["grows"],
        returns=found["returns"],
        identity=model.identity | {"dtype": dtype} | placed,
        # Offloaded weights look as if they were apart, too.
        sandboxed=bool(model.request) and found["apart"],
        squash=(found["squash"]["scale"], found["squash"]["cap"]),
    )


_FOUND = {
    "squash": dict, "returns": int, "grows": dict, "device": str, "attention": str, "apart": bool,
    "shape": [int], "shared": [float], "dtype": str, "largest": float, "ahead": float,
    "off": [float],
}  # fmt: skip
"""What is found out of a model by running it, and of which type it is."""


def _tokens(config: Any) -> list[int]:
    """Return a short text that any model takes."""
    length = min(7, getattr(config, "max_position_embeddings", None) or 7)
    return [(5 * token + 1) % config.vocab_size for token in range(length)]


def _widest(device: torch.device) -> torch.dtype:
    """Return float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
