"""The order of a model's blocks as other tools take it: mergekit, PEFT and llama.cpp.

Each tool makes the same model from the original checkpoint. All three count blocks from 0, and
mergekit and PEFT end a range before its second number.

- mergekit: `passthrough` slices, each a `layer_range` of the original.
- PEFT: `layer_replication`, ranges of blocks that are joined. PEFT takes them in any order, so
  blocks may be left out too. It looks for blocks in `model.layers` alone.
- llama.cpp: `llama-quantize --prune-layers`, which leaves out the tensors `blk.N` and renumbers
  those that follow. It repeats and exchanges nothing.

None of them changes the settings that a configuration has for each block.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from robustness.errors import Refusal
from robustness.models.model import Model
from robustness.reordered.folding import FoldedBlock, folded_blocks
from robustness.reordered.rebuilding import INDICES, NOT_OF_LAYERS
from robustness.schedules import Schedule

COUNTED = "# Blocks are counted from 0"

RANGED = f"{COUNTED}, and a range ends before its second number."

Blocks = tuple[int, ...]


@dataclass(frozen=True)
class Tool:
    """A tool, and how it is told the order of blocks."""

    file: str
    """Name of the file for it."""
    write: Callable[[Model, Blocks], str]
    """Function that returns the file's content."""
    lacks: Callable[[Model, Blocks], str]
    """Function that returns why the tool cannot make a model, or an empty text."""


def describe(
    model: Model,
    schedule: Schedule,
    tools: Sequence[str],
    notify: Callable[[str], object] = lambda text: None,
) -> dict[str, str]:
    """Return files that tell other tools which blocks of a model run in which order.

    Parameters
    ----------
    model : Model
        An opened model.
    schedule : tuple
        What an export takes.
    tools : sequence of str
        Some of `TOOLS`.
    notify : callable, optional
        Callback for a message on every tool that cannot make the model, which gets no file.

    Returns
    -------
    dict of str to str
        Content of every file, by its name.

    Raises
    ------
    Refusal
        If there is no such tool, or no plain model executes the schedule.
    """
    for name in tools:
        if name not in TOOLS:
            raise Refusal(f"no tool {name!r} is known to `also`; there are: {', '.join(TOOLS)}")
    if not tools:
        return {}
    written, files = folded_blocks(model, schedule), {}
    blocks = tuple(one.block for one in written)
    reason_for_all = _explain_unlike(model, written)
    for name in dict.fromkeys(tools):
        tool = TOOLS[name]
        reason = reason_for_all or tool.lacks(model, blocks)
        if reason:
            notify(f"no file for {name}: {reason}")
        else:
            files[tool.file] = tool.write(model, blocks)
    return files


def ranges(blocks: Blocks) -> list[list[int]]:
    """Return blocks as the fewest half-open ranges, in order.

    >>> ranges((0, 1, 2, 5, 5, 6))
    [[0, 3], [5, 6], [5, 7]]
    """
    found = [[blocks[0], blocks[0] + 1]]
    for before, block in pairwise(blocks):
        if block == before + 1:
            found[-1][1] = block + 1
        else:
            found.append([block, block + 1])
    return found


def _settings_by_block(model: Model) -> Mapping[str, Sequence[object]]:
    """Return the settings that the configuration lists for every block."""
    found: dict[str, Sequence[object]] = {}
    for name, value in model.config.to_dict().items():
        if not isinstance(value, (list, tuple)) or name in NOT_OF_LAYERS:
            continue
        if name in INDICES:
            found[name] = [layer in value for layer in range(model.layers)]
        elif len(value) == model.layers:
            found[name] = value
    return found


def _explain_unlike(model: Model, written: Sequence[FoldedBlock]) -> str:
    """Return why no order of the original's blocks is the model, or an empty text."""
    if any(one.changes for one in written):
        return "factors and maps are in no weight of the original"
    for name, values in _settings_by_block(model).items():
        if any(value != values[0] for value in values):
            return f"blocks differ in {name}, which would not follow them"
    return ""


def _mergekit(model: Model, blocks: Blocks) -> str:
    """Return the configuration of mergekit; a text in JSON is one in YAML too."""
    revision = model.identity.get("revision")
    source = f"{model.name}@{revision}" if revision else model.name
    lines = [RANGED]
    if not revision:
        lines.append("# The model is a path to the original, or its id on the hub.")
    lines += ["merge_method: passthrough", f"dtype: {model.identity['dtype']}", "slices:"]
    for first, end in ranges(blocks):
        lines.append("  - sources:")
        lines.append(f"      - model: {json.dumps(source)}")
        lines.append(f"        layer_range: [{first}, {end}]")
    return "\n".join(lines) + "\n"


def _lacks_mergekit(model: Model, blocks: Blocks) -> str:
    return _lacks_length(model, blocks) if len(blocks) != model.layers else ""


def _lacks_length(model: Model, blocks: Blocks) -> str:
    """Return the setting that is listed for every block of the original, if there is one."""
    for name in _settings_by_block(model):
        return f"the configuration lists {name} for {model.layers} blocks, not for {len(blocks)}"
    return ""


def _peft(model: Model, blocks: Blocks) -> str:
    """Return the setting of PEFT's `LoraConfig`."""
    use = "# Setting of a LoraConfig, for the original model."
    return f"{RANGED}\n{use}\nlayer_replication: {json.dumps(ranges(blocks))}\n"


def _lacks_peft(model: Model, blocks: Blocks) -> str:
    path = model.paths.block_list
    if not re.fullmatch(r"(model\.)+layers", path):
        return f"PEFT looks for blocks in model.layers, and those of {model.name} are {path}"
    return _lacks_length(model, blocks) if len(blocks) > model.layers else ""


def _llama_cpp(model: Model, blocks: Blocks) -> str:
    """Return the list for `--prune-layers`, with the command that takes it."""
    left_out = ",".join(str(block) for block in range(model.layers) if block not in blocks)
    command = f"llama-quantize --prune-layers {left_out} ORIGINAL.gguf PRUNED.gguf COPY"
    return f"{COUNTED}, as in blk.0 of a GGUF file.\n# {command}\n{left_out}\n"


def _lacks_llama_cpp(model: Model, blocks: Blocks) -> str:
    if any(block <= before for before, block in pairwise(blocks)):
        return "llama-quantize leaves blocks out, and neither repeats nor exchanges any"
    return "" if len(blocks) < model.layers else "no block is left out"


TOOLS: Mapping[str, Tool] = {
    "mergekit": Tool("mergekit.yaml", _mergekit, _lacks_mergekit),
    "peft": Tool("peft.yaml", _peft, _lacks_peft),
    "llama.cpp": Tool("llama.cpp.txt", _llama_cpp, _lacks_llama_cpp),
}
"""Tools by name."""
