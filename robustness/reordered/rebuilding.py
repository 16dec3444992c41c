"""Rebuilding: a plain model of transformers that executes a schedule with the original's weights.

Its list of blocks is the schedule, and its configuration says so. Unlike a rewired model it has a
cache of keys and values, and it can be saved as a checkpoint. A schedule that no configuration can
describe is refused: every block must be built as it was in its old place, and the logits must be
those of the rewired model.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from robustness.errors import Refusal, first_line
from robustness.models.model import Model
from robustness.models.sublayer_calls import check_schedules
from robustness.reordered.folding import fold, folded_blocks
from robustness.schedules import Schedule, StreamScale, check, to_text
from robustness.schedules.steps import is_block
from robustness.sweeps.rewiring import rewire

INDICES = ("moe_layers", "mlp_only_layers")
"""Lists in a configuration that name layers; others that are as long as there are layers have an
entry for each."""

NOT_OF_LAYERS = ("architectures", "bos_token_id", "eos_token_id", "pad_token_id")
"""Lists that may be as long as there are layers, and say nothing of them."""

WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
"""Names in configurations of the number of tokens that some blocks attend to."""

ROUNDED, FOLDED = 4, 16
"""Largest difference of logits from those of the rewired model, in units of the last digit of the
largest: of a model with the original's weights, and of one with weights that were rounded anew."""

SCALED = 1e-4
"""Largest difference besides, as a share of the largest logit, where a scale of the stream was
folded: norms add a small number to the mean square, which is not scaled."""

LONGEST = 1024
"""Longest window that the text of a comparison of two models exceeds."""


def rebuild(model: Model, schedule: Schedule | str) -> Module:
    """Return a plain module whose blocks are a schedule; the original stays as it is.

    Parameters
    ----------
    model : Model
        An opened model with its weights in memory.
    schedule : tuple of int, or str
        Whole blocks, and what can be folded into their output matrices; see `reordered.folding`.

    Returns
    -------
    Module
        Module of the model's class, in evaluation mode. Its tensors are those of the model, but for
        matrices that something was folded into, so that it takes little further memory.

    Raises
    ------
    Refusal
        If the weights are not all on one device of this machine, a step is no whole block, or no
        configuration of this class executes the schedule.
    """
    schedule = check(schedule, model.layers)
    module = model.traced._module
    if model.request:
        raise Refusal(f"the weights of {model.name} are on a server: open it on this machine")
    if model.offloaded:
        raise Refusal(f"weights of {model.name} are offloaded: open it without a device map")
    if len({tensor.device for tensor in module.parameters()}) > 1:
        raise Refusal(f"weights of {model.name} are on several devices: open it on one")
    try:
        # Before its parts are looked for, since maps may be missing.
        check_schedules(model, [schedule])
        written = folded_blocks(model, schedule)
        blocks = tuple(one.block for one in written)
        net = _build(model, blocks, f"{model.name} has no checkpoint of {to_text(schedule)}")
        fold(model, written, net)
        compare(model, schedule, net)
    except Refusal:
        raise
    except (ValueError, RuntimeError, LookupError, AttributeError, TypeError) as error:
        raise Refusal(
            f"{model.name} ({type(module).__name__}) cannot be rebuilt: {first_line(error)}"
        ) from error
    return net


def reorder(config: Any, schedule: tuple[int, ...]) -> Any:
    """Return the configuration of a model whose blocks are a schedule.

    The number of layers changes, and so do lists with an entry for every layer or of layers.
    """
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    layers = text.num_hidden_layers
    new: dict[str, Any] = {"num_hidden_layers": len(schedule)}
    for name, value in text.to_dict().items():
        if not isinstance(value, (list, tuple)) or name in NOT_OF_LAYERS:
            continue
        if name in INDICES:
            new[name] = [place for place, step in enumerate(schedule) if step in value]
        elif len(value) == layers:
            new[name] = [value[step] for step in schedule]
    # GPT-Neo has a pattern and how often it is repeated: here the whole list, once.
    if getattr(text, "attention_types", None):
        new["attention_layers"] = [text.attention_layers[step] for step in schedule]
        new["attention_types"] = [[new["attention_layers"], 1]]
    for name, value in new.items():
        setattr(text, name, value)
    return changed


def compare(model: Model, schedule: Schedule, net: Any) -> None:
    """Refuse a plain model whose logits are not those of the rewired one, but for rounding."""
    config = model.config
    # A text within the window of a block cannot tell a block with the window from one without.
    windows = [getattr(config, name, None) or 0 for name in WINDOWS]
    beyond = 16 + max(window for window in (0, *windows) if window <= LONGEST)
    length = min(beyond, model.context or beyond)
    tokens = (5 * torch.arange(length, device=model.device)[None] + 1) % model.vocabulary
    with model.computing(), rewire(model, schedule).trace(tokens, use_cache=False) as tracer:
        logits = tracer.result.logits.save()
    with model.computing():
        own = net(input_ids=tokens, use_cache=False).logits
    largest = float(logits.abs().max())
    digits = FOLDED if not all(map(is_block, schedule)) else ROUNDED
    share = digits * torch.finfo(own.dtype).eps
    if any(isinstance(step, StreamScale) for step in schedule):
        share += SCALED
    tolerance = share * max(1.0, largest)
    difference = float((own - logits).abs().max())
    # Asked this way round, so that NaN is refused too.
    if not difference <= tolerance:
        raise Refusal(
            f"{model.name} ({type(net).__name__}) has no checkpoint of {to_text(schedule)}: its "
            f"logits would be off by {difference:.2g}, more than {tolerance:.2g}"
        )


def _build(model: Model, schedule: tuple[int, ...], none: str) -> Any:
    """Build a module of the changed configuration, and give it the tensors of the model."""
    module, blocks = model.traced._module, model.paths.block_list
    with torch.device("meta"):
        net = type(module)._from_config(
            reorder(module.config, schedule),
            dtype=module.dtype,
            attn_implementation=module.config._attn_implementation,
        )
    net.eval()
    if module.can_generate():
        net.generation_config = copy.deepcopy(module.generation_config)
    for path, part in net.named_modules():
        place = step = 0
        within = path.startswith(f"{blocks}.")
        if within:
            number, dot, rest = path.removeprefix(f"{blocks}.").partition(".")
            place, step = int(number), schedule[int(number)]
            path = f"{blocks}.{step}{dot}{rest}"
        twin = module.get_submodule(path)
        if within:
            odd = _difference(part, twin, place, step)
            if odd:
                raise Refusal(
                    f"{none}: in place {place} block {step} would have {odd}, and no setting of "
                    f"{type(module).__name__} says otherwise"
                )
        # The same tensors, not copies: those tied in the model are tied here too.
        part._parameters = dict(twin._parameters)
        part._buffers = {name: twin._buffers[name] for name in part._buffers}
        # Some modules keep tensors as plain attributes, which would stay on the meta device.
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                setattr(part, name, getattr(twin, name))
    return net


def _difference(part: Any, twin: Any, place: int, step: int) -> str:
    """Return what differs between a module of a block in its new place and in its old one, if any.

    The index of the block is no difference.
    """
    if type(part) is not type(twin):
        return f"a {type(part).__name__} instead of a {type(twin).__name__}"
    for name in part._parameters.keys() | twin._parameters.keys():
        new, old = part._parameters.get(name), twin._parameters.get(name)
        if getattr(new, "shape", None) != getattr(old, "shape", None):
            return f"another {name}"
    for name, value in vars(part).items():
        old = vars(twin).get(name)
        # Settings such as the window of a block are plain values. Tensors are not compared: those
        # of the new module have no values yet.
        if name.startswith("_") or not isinstance(value, (int, float, str, bool, type(None))):
            continue
        if value != old and (value, old) != (place, step):
            return f"another {name}"
    return ""
