"""Export: a checkpoint of a model whose blocks are in another order, for plain transformers."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM

from robustness.errors import Refusal, first_line, is_out_of_memory
from robustness.files.directory import unwritable, write_directory
from robustness.files.provenance import file_digest, project_version
from robustness.models.checkpoint import LOADING_ERRORS
from robustness.models.contract import REMEDY
from robustness.models.hashes import ORIGIN
from robustness.models.model import Model
from robustness.reordered.folding import folded_blocks
from robustness.reordered.other_tools import describe
from robustness.reordered.rebuilding import compare, rebuild
from robustness.schedules import Schedule, check, to_text
from robustness.schedules.steps import is_block
from robustness.schedules.steps import maps as maps_of

VOLATILE = ("version", "command", "created")
"""Entries of the origin that may differ between two equal exports."""

UNWRITTEN = ("auto_map", "is_local", "local_files_only")
"""Entries of configurations that name code to run, or say how the original was opened."""

BESIDES = 2**24
"""Maximum number of bytes of a checkpoint besides its weights, mostly of the tokenizer."""


def export(  # noqa: PLR0913 - its keywords are the settings
    model: Model,
    schedule: Schedule | str,
    directory: str | Path,
    *,
    also: Sequence[str] = (),
    fresh: bool = False,
    command: str = "",
    notify: Callable[[str], object] = lambda text: None,
) -> Path:
    """Write a checkpoint that executes a schedule when transformers loads it.

    Plain transformers then loads the checkpoint, and its logits are compared with those of the
    rewired model, before the directory is put in its place.

    Parameters
    ----------
    model : Model
        An opened model with its weights in memory, which are written in their own dtype.
    schedule : tuple or str
        Whole blocks, and what can be folded into their output matrices; see `reordered.folding`. A
        block that is executed twice is written twice.
    directory : str or path
        Path of the directory to write, which must not exist or be empty. A directory that holds
        this very export already stays as it is.
    also : sequence of str
        Tools of `other_tools.TOOLS` for which the order is written into the directory too.
    fresh : bool
        Whether to replace a directory that holds an earlier export and nothing else.
    command : str
        Command line that is recorded in the checkpoint.
    notify : callable, optional
        Callback for messages: which blocks are written more than once, which tools cannot make
        the model, and whether nothing is written.

    Returns
    -------
    path
        Path of the directory, with configuration, safetensors, tokenizer, and a card, `README.md`.
        The entry `stages` of the configuration names the original model and the schedule, and
        `stages.json` lists the files of the export.

    Raises
    ------
    Refusal
        If no checkpoint of the model's class executes the schedule, or the directory cannot be
        written.
    """
    schedule, place = check(schedule, model.layers), Path(directory)
    others = describe(model, schedule, also, notify)
    net: Any = rebuild(model, schedule)
    refuse_code(model, net)
    origin = _origin(model, schedule, command)
    setattr(net.config, ORIGIN, origin)
    size = sum(part.nbytes for part in net.parameters())
    blocks = tuple(one.block for one in folded_blocks(model, schedule))
    copies = _copies(model, net, blocks)
    if copies:
        more = sum(net.state_dict()[name].nbytes for name in copies)
        size += more
        steps = sorted(step for step, times in Counter(blocks).items() if times > 1)
        notify(
            f"{_blocks(steps)} executed and written more than once: {more / 1e6:,.1f} MB of "
            f"{size / 1e6:,.1f} MB"
        )

    def write(where: Path) -> None:
        weights = net.state_dict()
        for name in copies:
            # Files hold no tensor under two names, unless it is tied.
            weights[name] = weights[name].clone()
        save_checkpoint(model, net, where, state_dict=weights)
        del weights
        folded = not all(map(is_block, schedule))
        card = _card(place.name, origin, model.tokenizer, folded=folded)
        for name, text in {"README.md": card, **others}.items():
            (where / name).write_text(text, encoding="utf-8")
        _check(model, schedule, where)

    made_of = {key: value for key, value in origin.items() if key not in VOLATILE}
    made_of["besides_sha256"] = _hash_besides(model, net)
    if others:
        made_of["also"] = ", ".join(others)
    written = write_directory(
        place, write, kind="export", made_of=made_of, size=size + BESIDES, fresh=fresh
    )
    if not written:
        notify(f"{place} holds this export already: nothing is written")
    return place


def save_checkpoint(model: Model, net: Any, where: Path, **weights: Any) -> None:
    """Write a checkpoint, or, without weights, its files besides weights and configuration."""
    try:
        if weights:
            net.save_pretrained(where, **weights)
        elif net.can_generate():
            net.generation_config.save_pretrained(where)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(where)
    except OSError:
        raise
    except (*LOADING_ERRORS, StrictDataclassError) as error:
        if is_out_of_memory(error):
            raise
        raise Refusal(f"{model.name} cannot be written ({first_line(error)}): {REMEDY}") from error
    for path in where.glob("*config.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        written = {key: value for key, value in content.items() if key not in UNWRITTEN}
        path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _hash_besides(model: Model, net: Any) -> str:
    """Return the hash of the files of a checkpoint besides its weights and configuration."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        with unwritable(where):
            save_checkpoint(model, net, where)
        for path in sorted(filter(Path.is_file, where.rglob("*"))):
            digest.update(f"{path.relative_to(where)} {file_digest(path)}".encode())
    return digest.hexdigest()


def refuse_code(model: Model, net: Any) -> None:
    """Refuse a model whose module, configuration or tokenizer is code of its own."""
    for part in (net, net.config, model.tokenizer):
        if getattr(part, "_auto_class", None) is not None:
            raise Refusal(
                f"{model.name} runs code of its own ({type(part).__name__}), which no checkpoint "
                "for plain transformers has: export a model of a class in transformers"
            )


def _copies(model: Model, net: Any, schedule: tuple[int, ...]) -> list[str]:
    """Return the names of the tensors of blocks that a schedule has executed before."""
    executed = set[int]()
    copies: list[str] = []
    for number, step in enumerate(schedule):
        path = f"{model.paths.block_list}.{number}"
        if step in executed:
            copies += [f"{path}.{name}" for name in net.get_submodule(path).state_dict()]
        executed.add(step)
    return copies


def _blocks(steps: Sequence[int]) -> str:
    names = ", ".join(map(str, steps))
    return f"block {names} is" if len(steps) == 1 else f"blocks {names} are"


def _origin(model: Model, schedule: Schedule, command: str) -> dict[str, str]:
    """Return what the checkpoint records of the original model and the export."""
    facts = ["model", "made_from", "revision", "weights_sha256", "config_sha256", "architecture"]
    facts += ["maps_sha256"] if any(map(maps_of, schedule)) else []
    return {
        **{name: model.identity[name] for name in facts if model.identity.get(name)},
        "dtype": model.identity["dtype"],
        "schedule": to_text(schedule),
        "layers": str(model.layers),
        "version": project_version(),
        "command": command or "python",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _check(model: Model, schedule: Schedule, directory: Path) -> None:
    """Refuse a checkpoint that plain transformers does not load, or loads as another model."""
    try:
        net, info = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype="auto",
            attn_implementation=model.identity["attention"],
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (*LOADING_ERRORS, ImportError) as error:
        raise Refusal(
            f"{model.name} has no checkpoint of {to_text(schedule)} that transformers loads: "
            f"{first_line(error)}"
        ) from error
    wrong = sorted(info["missing_keys"]) + sorted(map(str, info["unexpected_keys"]))
    if wrong:
        raise Refusal(
            f"{model.name} has no checkpoint of {to_text(schedule)}: {wrong[0]} is not in its place"
        )
    compare(model, schedule, net.eval().to(model.device))


def _card(name: str, origin: dict[str, str], tokenizer: Any, *, folded: bool) -> str:
    """Return the text of the checkpoint's card."""
    rows = "\n".join(f"| {key} | `{value}` |" for key, value in origin.items())
    source = f"`{origin['model']}` ({origin['architecture']}, {origin['layers']} blocks)"
    changed = ", but for output matrices that scales or maps are folded into" if folded else ""
    classes, use, path = "AutoModelForCausalLM", "", json.dumps(name)
    if tokenizer is not None:
        classes += ", AutoTokenizer"
        prompt = '"Once upon a time"'
        prompt = prompt if tokenizer.bos_token is None else f"tokenizer.bos_token + {prompt}"
        use = f"""tokenizer = AutoTokenizer.from_pretrained({path})
inputs = tokenizer({prompt}, add_special_tokens=False, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))
"""
    return f"""# {name}

{source} with its blocks in the order `{origin["schedule"]}`, written by stages-of-inference.
Nothing was trained: the weights are those of `{origin["model"]}`, under its licence{changed}.

```python
from transformers import {classes}

model = AutoModelForCausalLM.from_pretrained({path}, dtype="auto")
{use}```

| | |
|---|---|
{rows}
"""
