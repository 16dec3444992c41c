"""The command that writes a checkpoint whose blocks are in another order."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from recipes.commands.command_line import command_line
from recipes.commands.gathering import gather
from recipes.commands.opening import announce, open_model
from recipes.commands.options import (
    dtype_option,
    maps_option,
    model_argument,
    model_settings,
    revision_option,
)
from recipes.commands.parameters import Place
from recipes.commands.progress import advise, quiet_option, quoted, tell
from recipes.terminal import say

if TYPE_CHECKING:
    from robustness.models.settings import ModelSettings


@click.command()
@model_argument()
@click.argument("directory", type=Place())
@click.option(
    "--schedule",
    "text",
    required=True,
    metavar="TEXT",
    help='Order in which the blocks run, as in "0..3-5-4-6..".',
)
@gather(
    "model",
    model_settings,
    dtype_option("auto", "auto"),
    click.option(
        "--device",
        help="Device on which the checkpoint is tested.  [default: the first GPU, or cpu]",
    ),
    revision_option,
    uses=("model",),
)
@maps_option
@click.option("--fresh", is_flag=True, help="Replace an earlier export in DIRECTORY.")
@quiet_option
def export(model: "ModelSettings", directory: Path, text: str, fresh: bool) -> None:
    """Write MODEL with its blocks in another order to DIRECTORY, as a checkpoint for transformers.

    Leaving blocks out prunes the model (layer pruning); blocks that run twice are written twice. In
    "0..2-a3-m3~4..7-8..", a map that --maps has is folded into the output matrix of an MLP, and
    factors such as m3*0.5 and *1.05 are folded likewise.
    The configuration says the order where it can. Before the checkpoint is put in its place, plain
    transformers loads it and its logits are compared with those of the rewired model. The command
    prints the directory, which all commands take as a MODEL.

    \b
    stages export builtin --schedule "0..5-7..9-11" outputs/pruned
    stages sweep outputs/pruned
    """
    announce(model)
    from robustness.reordered.exporting import export as run
    from robustness.schedules import from_text

    # Without --remote: the weights of a model on a server cannot be written here.
    opened = open_model(model)
    written = run(
        opened,
        from_text(text, opened.layers),
        directory,
        fresh=fresh,
        command=command_line(),
        notify=tell,
    )
    say(written)
    advise(f"sweep {quoted(written)}")
