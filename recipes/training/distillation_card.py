"""Card of a distilled model: what it was made of, its training, and what that came to."""

import json
from collections.abc import Iterator, Mapping

import xarray as xr


def card(name: str, log: xr.Dataset, origin: Mapping[str, str]) -> str:
    """Write the card of a distilled model, in Markdown.

    Parameters
    ----------
    name : str
        Name of its directory.
    log : Dataset
        Log of its training, as `recipes.training.distill` returns it.
    origin : mapping
        What the checkpoint records of its origin.

    Returns
    -------
    str
        Original model and order of blocks, training, and loss and divergence before and after.
    """
    order = (
        f" with its blocks in the order `{origin['schedule']}`," if "schedule" in origin else ","
    )
    lines = [
        f"# {name}",
        "",
        f"`{origin['model']}`{order} trained towards `{origin['teacher']}` by stages-of-inference.",
        "",
        _training(log),
        "",
        "```python",
        "from transformers import AutoModelForCausalLM",
        "",
        f'model = AutoModelForCausalLM.from_pretrained({json.dumps(name)}, dtype="auto")',
        "```",
        "",
        "Nats per token on held-out documents, which no step saw: loss of next tokens, and "
        "divergence from the teacher, KL(teacher ‖ model).",
        "",
        *_losses(log),
        "",
        "| | |",
        "|---|---|",
        *(f"| {_plain(key)} | `{_plain(value)}` |" for key, value in origin.items()),
    ]
    return "\n".join(lines) + "\n"


def _training(log: xr.Dataset) -> str:
    attrs = log.attrs
    what = (
        "All weights were" if attrs["lora"] == "none" else f"Adapters (rank {attrs['lora']}) were"
    )
    return (
        f"{what} trained in {log.sizes['step']:,} steps of {attrs['batch']} × {attrs['context']} "
        f"tokens (AdamW, learning rate {attrs['learning_rate']:g}, seed {attrs['seed']}) on "
        f"{attrs['kl_weight']:g} of the divergence from the teacher, at temperature "
        f"{attrs['temperature']:g}, and {1 - attrs['kl_weight']:g} of the loss of next tokens. The "
        "log is `distillation.nc`."
    )


def _losses(log: xr.Dataset) -> Iterator[str]:
    yield "| source | training tokens | loss before | loss after | KL before | KL after |"
    yield "|---|--:|--:|--:|--:|--:|"
    for place, name in enumerate(log["source"].values):
        row = log.isel(source=place)
        loss, kl = row.held_out_loss.values, row.held_out_kl.values
        yield (
            f"| {_plain(str(name))} | {int(row.train_tokens):,} | {loss[0]:.3f} | {loss[-1]:.3f} "
            f"| {kl[0]:.3f} | {kl[-1]:.3f} |"
        )


def _plain(text: object) -> str:
    """Return a text as a cell of a table."""
    # A source is named by the user's file, whose name may hold anything.
    plain = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    return plain.replace("|", "\\|").replace("`", "'")
