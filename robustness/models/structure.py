"""Structure of a decoder: the paths of its blocks, sublayers, matrices, norms and head.

Nothing is looked up by family. The blocks are a list with as many members as the configuration has
layers, the head is the module that transformers calls the output embeddings, and everything else
follows from the calls of one forward pass. `robustness.models.self_check` measures whether the
result is right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch.nn import Module, ModuleList
from transformers import PreTrainedModel

from robustness.errors import Refusal, first_line, is_out_of_memory
from robustness.models import call_record, matrices
from robustness.models.call_record import Call
from robustness.models.norms import is_called_norm

Sublayer = tuple[tuple[str, ...], str, tuple[str, ...], int | None]
"""Paths of a sublayer: modules before its main part, mostly a norm; the main part; norms after it.
The number is the position of the residual stream among the main part's further arguments, if it
adds to the stream itself."""


@dataclass(frozen=True)
class Paths:
    """Paths of the parts of a decoder, as names of submodules."""

    blocks: tuple[str, ...]
    """All blocks, in order."""
    attentions: tuple[str, ...]
    """The attention of every block that has one."""
    sublayers: tuple[tuple[Sublayer, Sublayer], ...]
    """Attention and MLP of every block that has two sublayers, one of them an attention."""
    readers: tuple[tuple[str, ...], ...]
    """The matrices of every MLP that read its input."""
    writers: tuple[str, ...]
    """The matrix of every MLP that reads its neurons and writes to the residual stream."""
    norms: tuple[str, ...]
    """Modules between the last block and the head: mostly one norm."""
    head: str
    """The module that makes logits of states."""

    @property
    def block_list(self) -> str:
        """Path of the list that holds the blocks."""
        return self.blocks[0].rpartition(".")[0]


@dataclass(frozen=True, eq=False)
class _ForwardPass:
    """The modules of a model and their calls in one forward pass."""

    name: str
    """The class of the model, for messages."""
    modules: dict[str, Module]
    """All submodules, by path."""
    calls: list[Call]
    """All calls, in the order in which they end."""
    calls_of: dict[str, list[Call]]
    """The calls of each module, in the order in which they begin."""


def find_paths(module: PreTrainedModel) -> Paths:
    """Find blocks, their parts, the final norm and the head of a decoder by its structure.

    The blocks are the first list with as many members as the configuration has layers whose members
    are called once each, in order. Modules between the last block and the head read the last
    residual stream. In a block, modules of which each reads the output of the one before are a
    sublayer.

    Raises
    ------
    Refusal
        If there is no such list, or no head, or the model cannot be run.
    """
    lists, head = _find_block_lists(module)
    run = _run(module)
    blocks = _find_blocks(run, lists, head)
    tail = _find_tail(run, blocks[-1], head)
    attentions = _find_attentions(run, blocks)
    sublayers = _find_sublayers(run, blocks, attentions)
    readers, writers = _find_mlp_matrices(run, sublayers)
    return Paths(
        blocks=tuple(block.path for block in blocks),
        attentions=tuple(attentions),
        sublayers=tuple(sublayers),
        readers=tuple(readers),
        writers=tuple(writers),
        norms=tuple(tail),
        head=head,
    )


def _find_block_lists(module: PreTrainedModel) -> tuple[list[list[str]], str]:
    """Return the lists of modules that may be the blocks, and the path of the head."""
    config = module.config.get_text_config(decoder=True)
    # In configurations of encoder-decoders, `num_hidden_layers` counts the encoder's.
    layers = getattr(config, "decoder_layers", None) or config.num_hidden_layers
    lists, head = [], None
    for path, part in module.named_modules():
        if isinstance(part, ModuleList) and len(part) == layers:
            lists.append([f"{path}.{index}" for index in range(layers)])
        if head is None and part is module.get_output_embeddings():
            head = path
    if not lists or head is None:
        missing = "an output head" if lists else f"a list of {layers} blocks"
        raise _refuse(type(module).__name__, f"{missing} was not found in it")
    return lists, head


def _run(module: PreTrainedModel) -> _ForwardPass:
    """Run the model once, and return the calls of its modules."""
    name, config = type(module).__name__, module.config.get_text_config(decoder=True)
    try:
        calls = call_record.record(module, call_record.trial_text(config))
    except Exception as error:  # whatever its code raises
        if is_out_of_memory(error):
            raise
        raise _refuse(name, first_line(error)) from error
    # Calls are recorded as they end; what is called first is known by its beginning alone.
    calls_of: dict[str, list[Call]] = {}
    for call in sorted(calls, key=lambda call: call.began):
        calls_of.setdefault(call.path, []).append(call)
    return _ForwardPass(name, dict(module.named_modules()), calls, calls_of)


def _find_blocks(run: _ForwardPass, lists: Sequence[Sequence[str]], head: str) -> list[Call]:
    """Return the calls of the first list whose members are called once each, in order."""
    for members in lists:
        calls = [run.calls_of.get(path, []) for path in members]
        if _are_in_order(calls):
            break
    else:
        raise _refuse(run.name, "its blocks are not called once each, in order")
    if head not in run.calls_of:
        raise _refuse(run.name, "its head is not called")
    return [once for (once,) in calls]


def _are_in_order(calls: Sequence[Sequence[Call]]) -> bool:
    """Whether each was called once, after the one before had ended."""
    if set(map(len, calls)) != {1}:
        return False
    return all(before[0].ended < after[0].began for before, after in pairwise(calls))


def _find_tail(run: _ForwardPass, last: Call, head: str) -> list[str]:
    """Return the modules between the last block and the head, without those that they call."""
    begin, end = last.ended, run.calls_of[head][-1].began
    outer = []
    for call in sorted(run.calls, key=lambda call: call.began):
        between = begin < call.began < end
        # A module that contains the head begins before the head, and is no part of the tail.
        if between and not head.startswith(f"{call.path}."):
            outer.append(call)
    called = {call.path for call in outer}
    tail = [call.path for call in outer if call.caller not in called]
    for path in (*tail, head):
        if len(run.calls_of[path]) > 1:
            raise _refuse(
                run.name, f"{path}, which reads the last residual stream, is called elsewhere too"
            )
    return tail


def _find_attentions(run: _ForwardPass, blocks: Sequence[Call]) -> list[str]:
    """Return the path of the attention of every block that calls one.

    In transformers, the class of an attention has `Attention` in its name.
    """
    attentions = []
    for block in blocks:
        for call in _calls_in(run, block):
            if "Attention" in type(run.modules[call.path]).__name__:
                attentions.append(call.path)
                break
    return attentions


def _find_sublayers(
    run: _ForwardPass, blocks: Sequence[Call], attentions: Sequence[str]
) -> list[tuple[Sublayer, Sublayer]]:
    """Return attention and MLP of every block that is made of one of each."""
    sublayers = []
    for block in blocks:
        attending: list[list[Call]] = []
        others: list[list[Call]] = []
        for chain in call_record.chains(_calls_in(run, block)):
            attends = any(call.path in attentions for call in chain)
            (attending if attends else others).append(chain)
        # With more than two chains, the block is no sum of attention and MLP.
        if len(attending) == len(others) == 1:
            attention = _divide(run, attending[0], attentions)
            sublayers.append((attention, _divide(run, others[0], attentions)))
    return sublayers


def _find_mlp_matrices(
    run: _ForwardPass, sublayers: Sequence[tuple[Sublayer, Sublayer]]
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the matrices of every MLP: those that read its input, and the one called last."""
    readers, writers = [], []
    for _, (before, main, *_) in sublayers:
        inside: list[str] = []
        for path in (*before, main):
            inside += _matrices_at(run, path)
        # Modules that are not called, such as experts that no token chose, have no order.
        if len(inside) > 1 and run.calls_of.keys() >= set(inside):
            *reading, writing = sorted(inside, key=lambda path: run.calls_of[path][0].began)
            readers.append(tuple(reading))
            writers.append(writing)
    return readers, writers


def _calls_in(run: _ForwardPass, block: Call) -> list[Call]:
    """Return the calls that a block makes itself, in the order in which they end."""
    return [call for call in run.calls if call.caller == block.path]


def _divide(run: _ForwardPass, chain: Sequence[Call], attentions: Sequence[str]) -> Sublayer:
    """Divide a chain of calls into the parts of a sublayer."""
    paths = [call.path for call in chain]
    others, attending = [0], []
    for at, path in enumerate(paths):
        if not is_called_norm(run.modules[path]):
            others.append(at)
            if path in attentions:
                attending.append(at)
    # The last of several is the main part: those before it prepare its input.
    main = (attending or others)[-1]
    return tuple(paths[:main]), paths[main], tuple(paths[main + 1 :]), chain[main].handed


def _matrices_at(run: _ForwardPass, path: str) -> list[str]:
    """Return the paths of a part's matrices, or its own path if it is a matrix."""
    if matrices.is_matrix(run.modules[path]):
        return [path]
    return [f"{path}.{name}" for name in matrices.names_in(run.modules[path])]


def _refuse(name: str, reason: str) -> Refusal:
    return Refusal(f"{name} cannot be opened: {reason}")
