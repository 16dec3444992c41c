"""Folding: factors and fitted maps of schedules, moved into the output matrices of plain models.

What an attention or an MLP adds to the residual stream is x W + c, where W is its output matrix. A
factor f makes it x (f W) + f c, and a fitted matrix T makes it x (W T) + c T: both are exact. A
block as a whole can be changed where its attention and its MLP read the same stream (parallel
blocks). In a sequential block the MLP reads what the attention has added, so that the MLP alone, or
each of the two, can be changed, but not their sum.

A stream that is scaled by s is kept as it is, and all that is added later is divided by s: norms
give the same for h and s h, but for the number that they add to the mean square, and everything
that reads the stream begins with a norm. A map of the stream is in no matrix of a model, since the
stream is carried past all of them.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from robustness.errors import Refusal
from robustness.models.block_structure import examine
from robustness.models.maps import Maps
from robustness.models.matrices import oriented
from robustness.models.model import Model
from robustness.models.norms import is_called_norm
from robustness.models.output_matrices import output_matrices
from robustness.schedules import (
    Attention,
    Mapped,
    Mlp,
    Scaled,
    Schedule,
    Step,
    StreamMap,
    StreamScale,
    to_text,
)
from robustness.schedules.steps import Leaf, is_block


@dataclass(frozen=True)
class FoldedBlock:
    """One block of a plain model, and what is made of its output matrices."""

    block: int
    attention: Step | None = None
    """The scaled or mapped step of which the attention's output matrix takes the change."""
    mlp: Step | None = None
    """The same of the MLP's output matrix."""
    scale: float = 1.0
    """Scale of the stream, by which what the block adds is divided."""

    @property
    def changes(self) -> bool:
        """Whether an output matrix is changed."""
        return self.attention is not None or self.mlp is not None or self.scale != 1.0


def folded_blocks(model: Model, schedule: Schedule) -> tuple[FoldedBlock, ...]:
    """Return the blocks of a plain model that executes a schedule.

    Parameters
    ----------
    model : Model
        An opened model.
    schedule : tuple
        Blocks; blocks as their attention and MLP, of which what they add may be scaled or mapped;
        parallel blocks of which what they add is; and scales of the stream.

    Raises
    ------
    Refusal
        If a step is nothing of these.
    """
    found: list[FoldedBlock] = []
    at, scale = 0, 1.0
    while at < len(schedule):
        step = schedule[at]
        if isinstance(step, StreamScale):
            scale *= step.factor
            at += 1
            continue
        block, attention, mlp = _block(model, schedule[at : at + 2])
        found.append(FoldedBlock(block, attention, mlp, scale))
        at += 1 if is_block(step) or _is_whole(step) else 2
    if not found:
        raise Refusal(f"{to_text(schedule)} has no block: a checkpoint takes at least one")
    if any(isinstance(step, StreamScale) for step in schedule):
        _check_scales(model, schedule)
    return tuple(found)


def fold(model: Model, written: tuple[FoldedBlock, ...], net: Any) -> None:
    """Change the output matrices of a plain model that has these blocks.

    Its other tensors may be those of the model, which stay as they are.
    """
    if not any(one.changes for one in written):
        return
    matrices, blocks = output_matrices(model), model.paths.block_list
    for number, one in enumerate(written):
        for which, step in enumerate((one.attention, one.mlp)):
            if step is None and one.scale == 1.0:
                continue
            _, _, after, _ = model.paths.sublayers[one.block][which]
            if after:
                raise Refusal(
                    f"{model.name} has a norm between the output matrices of block {one.block} "
                    "and the residual stream: no factor or map can be folded into them"
                )
            path = matrices[one.block][which].removeprefix(f"{blocks}.{one.block}.")
            _change(model, net.get_submodule(f"{blocks}.{number}.{path}"), step, one.scale)


def _block(model: Model, steps: Schedule) -> tuple[int, Step | None, Step | None]:
    """Return the block that the first of some steps, or the first two, are, and its changes."""
    first = steps[0]
    if is_block(first):
        return first, None, None
    if isinstance(first, StreamMap):
        raise Refusal(
            f"{first} maps the residual stream, which no matrix of a model carries: export a map "
            "of what the MLP before the cut adds, as m3~4..7"
        )
    if _is_whole(first):
        leaf = _leaf(first)
        if examine(model).parallel and isinstance(leaf, int):
            return leaf, first, first
        raise Refusal(
            f"{to_text((first,))} changes a sum that no matrix makes: the MLP of block {leaf} "
            f"reads what its attention has added, so write a{leaf} and m{leaf} by themselves"
        )
    pair = [_leaf(step) for step in steps]
    if len(pair) == 2 and not examine(model).parallel:
        attention, mlp = pair
        if isinstance(attention, Attention) and mlp == Mlp(attention.block):
            changes = [None if isinstance(step, (Attention, Mlp)) else step for step in steps]
            return attention.block, changes[0], changes[1]
    raise Refusal(
        f"{to_text((first,))} is no whole block: a checkpoint is made of whole blocks alone"
    )


def _is_whole(step: Step) -> bool:
    """Whether a step is a whole block of which what it adds is changed."""
    return isinstance(step, (Scaled, Mapped)) and is_block(step.step)


def _leaf(step: Step) -> Leaf | None:
    """Return the block or sublayer of a step, or None where it is none."""
    if isinstance(step, (Scaled, Mapped)):
        return step.step
    return step if isinstance(step, (Attention, Mlp)) else None


def _check_scales(model: Model, schedule: Schedule) -> None:
    """Refuse scales of the stream in a model that does not read it through norms alone."""
    if any(isinstance(step, StreamScale) and step.factor < 0 for step in schedule):
        raise Refusal("a stream times a negative number has norms of another sign: export others")
    normed = model.normed
    for pair in model.sublayers:
        for before, _, after, _ in pair:
            reads = bool(before) and is_called_norm(before[0]._module)
            normed = normed and reads and not after
    if not normed:
        raise Refusal(
            f"{model.name} does not read the residual stream through norms alone, so that a scale "
            "of it cannot be folded into matrices"
        )


def _change(model: Model, part: Any, step: Step | None, scale: float) -> None:
    """Give an output matrix, and its bias, the change of a step."""
    # Not every device has float64.
    weight = oriented(part, part.weight.detach()).cpu().double()
    bias = None if part.bias is None else part.bias.detach().cpu().double()
    factor = (step.factor if isinstance(step, Scaled) else 1.0) / scale
    if isinstance(step, Mapped):
        matrix = (model.maps or Maps({})).matrices[step].cpu()
        weight = matrix.T @ weight
        bias = None if bias is None else bias @ matrix
    part.weight = _like(part.weight, oriented(part, factor * weight))
    if bias is not None:
        part.bias = _like(part.bias, factor * bias)


def _like(old: Parameter, new: Tensor) -> Parameter:
    """Return a tensor as a parameter of the type and on the device of another."""
    moved = new.to(device=old.device, dtype=old.dtype).contiguous()
    return Parameter(moved, requires_grad=old.requires_grad)
