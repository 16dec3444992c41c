"""A plain model of transformers that executes a schedule, sharing its weights with the original.

Its list of blocks is the schedule, and its configuration says so. Where a configuration can say
it, such a model has what a rewired one has not: a cache of keys and values, and a checkpoint. Where
it cannot, the model is refused: every block must be built as it was in its old place, and the
logits must be those of the rewired model.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from robustness.errors import Refusal, first_line
from robustness.models.model import Model
from robustness.schedules import Schedule, check, to_text
from robustness.sweeps.rewiring import rewire

INDICES = ("moe_layers", "mlp_only_layers")
"""Lists in a configuration that name layers; others that are as long as there are layers have an
entry for each."""

NOT_OF_LAYERS = ("architectures", "bos_token_id", "eos_token_id", "pad_token_id")
"""Lists that may be as long as there are layers, and say nothing of them."""

WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
"""What configurations call the number of tokens that some blocks attend to."""

LONGEST = 1024
"""The longest window that is looked beyond where two models are compared."""


def rebuild(model: Model, schedule: Schedule | str) -> Module:
    """Return a plain module whose blocks are a schedule; the original is left as it is.

    Parameters
    ----------
    model : Model
        An opened model with its weights in memory.
    schedule : tuple of int, or str
        Whole blocks.

    Returns
    -------
    Module
        Of the model's class, in evaluation mode. All its tensors are the model's own: a block that
        is executed twice takes no memory twice.

    Raises
    ------
    Refusal
        If weights are elsewhere, a step is no whole block, or no configuration of this class
        executes the schedule.
    """
    schedule = check(schedule, model.layers)
    blocks = whole_blocks(schedule)
    module = model.traced._module
    if model.request:
        raise Refusal(f"the weights of {model.name} are on a server: open it on this machine")
    if model.offloaded:
        raise Refusal(f"weights of {model.name} are offloaded: open it without a device map")
    if len({tensor.device for tensor in module.parameters()}) > 1:
        raise Refusal(f"weights of {model.name} are on several devices: open it on one")
    try:
        net = _build(model, blocks, f"{model.name} has no checkpoint of {to_text(schedule)}")
        compare(model, schedule, net)
    except Refusal:
        raise
    except (ValueError, RuntimeError, LookupError, AttributeError, TypeError) as error:
        raise Refusal(
            f"{model.name} ({type(module).__name__}) cannot be rebuilt: {first_line(error)}"
        ) from error
    return net


def whole_blocks(schedule: Schedule) -> tuple[int, ...]:
    """Return a schedule of whole blocks, and refuse one with other steps."""
    parts = [step for step in schedule if not isinstance(step, int)]
    if parts:
        raise Refusal(
            f"{to_text((parts[0],))} is no whole block: a checkpoint is made of whole blocks alone"
        )
    return tuple(step for step in schedule if isinstance(step, int))


def reorder(config: Any, schedule: tuple[int, ...]) -> Any:
    """Return a configuration of a model whose blocks are a schedule.

    The number of layers, and what there is a list of with an entry for every layer.
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
    if getattr(text, "attention_types", None):  # GPT-Neo counts how often a pattern follows itself
        new["attention_layers"] = [text.attention_layers[step] for step in schedule]
        new["attention_types"] = [[new["attention_layers"], 1]]
    for name, value in new.items():
        setattr(text, name, value)
    return changed


def compare(model: Model, schedule: Schedule, net: Any) -> None:
    """Refuse a plain model whose logits are not those of the rewired one, but for rounding."""
    config = model.config
    windows = [getattr(config, name, None) or 0 for name in WINDOWS]
    beyond = 16 + max(window for window in (0, *windows) if window <= LONGEST)
    length = min(beyond, model.context or beyond)
    tokens = torch.tensor(
        [[(5 * at + 1) % model.vocabulary for at in range(length)]], device=model.device
    )
    with (
        model.lock,
        torch.no_grad(),
        rewire(model, schedule).trace(tokens, use_cache=False) as tracer,
    ):
        logits = tracer.result.logits.save()
    with torch.no_grad():
        own = net(input_ids=tokens, use_cache=False).logits
    largest = float(logits.abs().max())
    tolerance = 4 * torch.finfo(own.dtype).eps * max(1.0, largest)
    difference = float((own - logits).abs().max())
    if not difference <= tolerance:
        raise Refusal(
            f"{model.name} ({type(net).__name__}) has no checkpoint of {to_text(schedule)}: its "
            f"logits would be off by {difference:.2g}, more than {tolerance:.2g}"
        )


def _build(model: Model, schedule: tuple[int, ...], none: str) -> Any:
    """Build the changed configuration without weights, and give it those of the model."""
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
        # The very tensors: what is tied in the module is tied here.
        part._parameters = dict(twin._parameters)
        part._buffers = {name: twin._buffers[name] for name in part._buffers}
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                setattr(part, name, getattr(twin, name))
    return net


def _difference(part: Any, twin: Any, place: int, step: int) -> str:
    """Return in what a part of a block in its new place differs from what it was, if anything.

    What is the block's number in both is no difference.
    """
    if type(part) is not type(twin):
        return f"a {type(part).__name__} instead of a {type(twin).__name__}"
    for name in part._parameters.keys() | twin._parameters.keys():
        weights = [each._parameters.get(name) for each in (part, twin)]
        if len({None if weight is None else weight.shape for weight in weights}) > 1:
            return f"another {name}"
    for name, value in vars(part).items():
        there = vars(twin).get(name)
        plain = isinstance(value, (int, float, str, bool, type(None)))
        if name.startswith("_") or not plain or value == there or (value, there) == (place, step):
            continue
        return f"another {name}"
    return ""
