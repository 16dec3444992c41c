"""Structure of a decoder: where its blocks, sublayers, matrices, norms and head are.

Nothing is looked up by family. The blocks are the list as long as the configuration says there are
layers, the head is what transformers calls the output embeddings, and everything else follows from
the calls of one forward pass. Whether it is right, `robustness.models.self_check` measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch.nn import Module, ModuleList
from transformers import PreTrainedModel

from robustness.errors import Refusal, first_line
from robustness.models import call_record, matrices
from robustness.models.call_record import Call
from robustness.models.norms import is_called_norm

Sublayer = tuple[tuple[str, ...], str, tuple[str, ...], int | None]
"""What is called before the main part of a sublayer, mostly a norm; that part; norms after it; and
the place among its further arguments of the residual stream, if it adds to that itself."""


@dataclass(frozen=True)
class Paths:
    """Where in a decoder its parts are, as names of submodules."""

    blocks: tuple[str, ...]
    attentions: tuple[str, ...]
    """The attention of every block that has one."""
    sublayers: tuple[tuple[Sublayer, Sublayer], ...]
    """Attention and MLP of every block that has two sublayers, one of them an attention."""
    readers: tuple[tuple[str, ...], ...]
    """The matrices of every MLP that read its input."""
    writers: tuple[str, ...]
    """The matrix of every MLP that reads its neurons and writes to the residual stream."""
    norms: tuple[str, ...]
    """What is called between the last block and the head: mostly a norm."""
    head: str

    @property
    def block_list(self) -> str:
        """The list whose members the blocks are."""
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

    The blocks are the list as long as the configuration says there are layers whose members are
    called once each, in order. What is called between the last of them and the head reads the last
    residual stream. In a block, modules that hand on to each other what they write are a sublayer.

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
    mlp_matrices = _find_mlp_matrices(run, sublayers)
    return Paths(
        blocks=tuple(block.path for block in blocks),
        attentions=tuple(attentions),
        sublayers=tuple(sublayers),
        readers=tuple(tuple(names[:-1]) for names in mlp_matrices),
        writers=tuple(names[-1] for names in mlp_matrices),
        norms=tuple(tail),
        head=head,
    )


def _find_block_lists(module: PreTrainedModel) -> tuple[list[list[str]], str]:
    """Return the lists of modules that may be the blocks, and the path of the head."""
    config = module.config.get_text_config(decoder=True)
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
        raise _refuse(name, first_line(error)) from error
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
    once = all(len(each) == 1 for each in calls)
    return once and all(one[0].ended < following[0].began for one, following in pairwise(calls))


def _find_tail(run: _ForwardPass, last: Call, head: str) -> list[str]:
    """Return what is called between the last block and the head, without what that calls itself."""
    begin, end = last.ended, run.calls_of[head][-1].began
    outer = []
    for call in sorted(run.calls, key=lambda call: call.began):
        between = begin < call.began < end
        # What the head is a part of is called before it, and ends after it.
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

    It is recognised by the name of its class, which has `Attention` in it in transformers.
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
        # A block of more ways than two adds up to something else than attention and MLP.
        if len(attending) == len(others) == 1:
            attention = _divide(run, attending[0], attentions)
            sublayers.append((attention, _divide(run, others[0], attentions)))
    return sublayers


def _find_mlp_matrices(
    run: _ForwardPass, sublayers: Sequence[tuple[Sublayer, Sublayer]]
) -> list[list[str]]:
    """Return the matrices of every MLP that is made of some, in the order in which they begin."""
    found = []
    for _, (before, main, *_) in sublayers:
        inside: list[str] = []
        for path in (*before, main):
            inside += _matrices_at(run, path)
        # What is not called, such as experts that no token chose, has no order.
        if len(inside) > 1 and all(path in run.calls_of for path in inside):
            found.append(sorted(inside, key=lambda path: run.calls_of[path][0].began))
    return found


def _calls_in(run: _ForwardPass, block: Call) -> list[Call]:
    """Return the calls that a block makes itself, in the order in which they end."""
    return [call for call in run.calls if call.caller == block.path]


def _divide(run: _ForwardPass, chain: Sequence[Call], attentions: Sequence[str]) -> Sublayer:
    """Divide a sublayer into what comes before its main part, that part, and the norms after it."""
    paths = [call.path for call in chain]
    others = [at for at, path in enumerate(paths) if not is_called_norm(run.modules[path])] or [0]
    attending = [at for at in others if paths[at] in attentions]
    # Of several parts the last: those before it prepare what it reads.
    main = (attending or others)[-1]
    return tuple(paths[:main]), paths[main], tuple(paths[main + 1 :]), chain[main].handed


def _matrices_at(run: _ForwardPass, path: str) -> list[str]:
    """Return the paths of a part's matrices, or of the part if it is one."""
    if matrices.is_matrix(run.modules[path]):
        return [path]
    return [f"{path}.{name}" for name in matrices.names_in(run.modules[path])]


def _refuse(name: str, reason: str) -> Refusal:
    return Refusal(f"{name} cannot be opened: {reason}")
