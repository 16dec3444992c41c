"""A checkpoint of a model whose blocks are in another order, for transformers alone."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM

from robustness import results
from robustness.checkpoint import LOADING_ERRORS, ORIGIN
from robustness.model import Model, find_paths
from robustness.rebuilding import compare, rebuild, whole_blocks
from robustness.refusal import Refusal, first_line
from robustness.schedule import Schedule, check, to_text

WRITTEN = (".json", ".safetensors", ".md", ".jinja", ".model", ".txt")
"""How the names end of what is written."""

BESIDES = 2**24
"""Bytes of what a checkpoint has besides weights, at most: a tokenizer mostly."""


def export(
    model: Model,
    schedule: Schedule | str,
    directory: str | Path,
    *,
    fresh: bool = False,
    command: str = "",
    notify: Callable[[str], object] = lambda text: None,
) -> Path:
    """Write a checkpoint that executes a schedule, as transformers loads it.

    What is written is loaded again by plain transformers, and its logits are compared with those of
    the rewired model, before the directory is put in its place.

    Parameters
    ----------
    model : Model
        An opened model with its weights in memory; they are written in the dtype that they have.
    schedule : tuple of int
        Whole blocks. One that is executed twice is written twice.
    directory : str or path
        One that is not there, or empty.
    fresh : bool
        Whether to replace a directory that holds what an earlier export left, and nothing else.
    command : str
        The command line, for the record.
    notify : callable, optional
        Told of what is written more than once.

    Returns
    -------
    path
        The directory: configuration, safetensors, tokenizer, and a card, `README.md`. The entry
        `stages` of the configuration says which model it is made of, and how.

    Raises
    ------
    Refusal
        If no checkpoint of the model's class executes the schedule, or the directory cannot be
        written.
    """
    schedule = check(schedule, model.layers)
    net: Any = rebuild(model, schedule)
    origin = _origin(model, schedule, command)
    setattr(net.config, ORIGIN, origin)
    size = sum(part.nbytes for part in net.parameters())
    blocks = whole_blocks(schedule)
    copies = _copies(net, blocks)
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
        try:
            net.save_pretrained(where, state_dict=weights)
            if model.tokenizer is not None:
                model.tokenizer.save_pretrained(where)
        except (
            ValueError,
            LookupError,
            AttributeError,
            TypeError,
            StrictDataclassError,
        ) as error:
            raise Refusal(f"{model.name} cannot be written: {first_line(error)}") from error
        del weights
        (where / "README.md").write_text(
            _card(Path(directory).name, origin, model.tokenizer), encoding="utf-8"
        )
        _check(model, schedule, where)

    results.write_directory(
        Path(directory),
        write,
        size=size + BESIDES,
        replaceable=lambda there: fresh and _is_export(there),
    )
    return Path(directory)


def _copies(net: Any, schedule: tuple[int, ...]) -> list[str]:
    """Return the names of the tensors of blocks that a schedule has executed before."""
    blocks, again = find_paths(net).blocks, Counter[int]()
    found: list[str] = []
    for path, step in zip(blocks, schedule, strict=True):
        if again[step]:
            found += [f"{path}.{name}" for name in net.get_submodule(path).state_dict()]
        again[step] += 1
    return found


def _blocks(steps: Sequence[int]) -> str:
    names = ", ".join(map(str, steps))
    return f"block {names} is" if len(steps) == 1 else f"blocks {names} are"


def _origin(model: Model, schedule: Schedule, command: str) -> dict[str, str]:
    kept = ("model", "made_from", "revision", "weights_sha256", "config_sha256", "architecture")
    return {
        **{name: model.identity[name] for name in kept if model.identity.get(name)},
        "dtype": model.identity["dtype"],
        "schedule": to_text(schedule),
        "layers": str(model.layers),
        "version": results.version_of_project(),
        "command": command or "python",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _check(model: Model, schedule: Schedule, directory: Path) -> None:
    """Refuse what plain transformers does not load, or loads as another model."""
    try:
        net, info = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype="auto",
            attn_implementation=model.identity["attention"],
            output_loading_info=True,
            local_files_only=True,
            # Where it is not said, transformers asks on standard input.
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


def _is_export(directory: Path) -> bool:
    """Return whether a directory holds what an export wrote, and nothing besides."""
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return ORIGIN in config and all(file.suffix in WRITTEN for file in directory.iterdir())


def _card(name: str, origin: dict[str, str], tokenizer: Any) -> str:
    rows = "\n".join(f"| {key} | `{value}` |" for key, value in origin.items())
    source = f"`{origin['model']}` ({origin['architecture']}, {origin['layers']} blocks)"
    classes, use = "AutoModelForCausalLM", ""
    if tokenizer is not None:
        classes += ", AutoTokenizer"
        prompt = '"Once upon a time"'
        prompt = prompt if tokenizer.bos_token is None else f"tokenizer.bos_token + {prompt}"
        use = f"""tokenizer = AutoTokenizer.from_pretrained("{name}")
inputs = tokenizer({prompt}, add_special_tokens=False, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))
"""
    return f"""# {name}

{source} with its blocks in the order `{origin["schedule"]}`, written by stages-of-inference.
Nothing was trained: the weights are those of `{origin["model"]}`, under its licence.

```python
from transformers import {classes}

model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")
{use}```

| | |
|---|---|
{rows}
"""
