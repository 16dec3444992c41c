"""The command that generates text with a model's blocks in other orders."""

from textwrap import indent
from typing import TYPE_CHECKING

import click

from recipes.commands.gathering import Values, gather
from recipes.commands.opening import announce, open_model
from recipes.commands.options import SEEDS, maps_option, model_argument, model_options
from recipes.commands.parameters import Finite
from recipes.commands.progress import advise, progress, quiet_option, quoted
from recipes.commands.tables import chosen_form, say_rows, table_options
from recipes.terminal import hear, say

if TYPE_CHECKING:
    from robustness.models.settings import ModelSettings
    from robustness.reordered.settings import Sampling


def sampling_settings(values: Values) -> "Sampling":
    """Return the settings of how tokens are chosen."""
    from robustness.reordered.settings import Sampling

    return Sampling(**values)


@click.command()
@model_argument()
@click.argument("prompt")
@click.option(
    "--schedule",
    "texts",
    multiple=True,
    required=True,
    metavar="TEXT",
    help='Order of steps to run, as in "0..3-5-4-6.." or "0..3-*1.05-8.."; may be given several '
    "times.",
)
@gather(
    "sampling",
    sampling_settings,
    click.option(
        "--tokens",
        "--max-new-tokens",
        "tokens",
        type=click.IntRange(1),
        default=40,
        show_default=True,
        help="Maximum number of tokens to write.",
    ),
    click.option(
        "--temperature",
        type=Finite(0),
        default=0.0,
        show_default=True,
        help="Temperature at which tokens are drawn; 0 takes the most likely token each time.",
    ),
    click.option(
        "--seed", type=SEEDS, default=0, show_default=True, help="Seed of the tokens drawn."
    ),
)
@model_options
@maps_option
@table_options
@quiet_option
def generate(
    model: "ModelSettings", prompt: str, texts: tuple[str, ...], sampling: "Sampling"
) -> None:
    """Continue PROMPT with MODEL as it is, and with its blocks in other orders.

    A PROMPT of - is read from standard input. The tokenizer's BOS precedes it if there is one. Each
    order is printed as a line that ends in a colon, with the text that the model writes indented
    below it.

    \b
    stages generate builtin --schedule "0..3-5-4-6.." --schedule "0..5-7.." "Once upon"
    """
    announce(model)
    from robustness.reordered import generation
    from robustness.schedules import clean, from_text, to_text

    if prompt == "-":
        # The newline with which most programs end their output would be a token of the prompt.
        prompt = hear().rstrip("\n")
    opened = open_model(model)
    # The unchanged model comes first, for comparison.
    schedules = [clean(opened.layers)]
    schedules += [from_text(text, opened.layers) for text in texts]
    with progress(None, "token") as show:
        distinct = list(dict.fromkeys(schedules))
        continuations = generation.generate(opened, prompt, distinct, sampling, progress=show)
    rows = [(to_text(written.schedule), written.text) for written in continuations]
    if chosen_form() is None:
        for schedule, text in rows:
            say(f"{schedule}:\n{indent(text.strip(chr(10)), '    ')}")
    else:
        say_rows(("schedule", "text"), rows)
    last, _ = rows[-1]
    maps = f" --maps {quoted(model.maps)}" if model.maps else ""
    advise(f"export {quoted(model.source)} --schedule {quoted(last)}{maps} DIRECTORY")
