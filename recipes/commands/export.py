"""The command that writes a checkpoint whose blocks are in another order."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recipes.commands.command_line import command_line
from recipes.commands.errors import REMEDY
from recipes.commands.gathering import Values, gather
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
from robustness.errors import Refusal, reading

if TYPE_CHECKING:
    import xarray as xr

    from robustness.models.model import Model
    from robustness.models.settings import ModelSettings
    from robustness.schedules import Schedule


@dataclass(frozen=True)
class Order:
    """The order of blocks: written out, or the choice of a search."""

    text: str | None
    search: Path | None
    remove: int | None
    method: str | None
    healed: str | None

    def __post_init__(self) -> None:
        """Refuse an order that is given twice, or not at all."""
        if (self.text is None) == (self.search is None):
            raise Refusal("the order is given by --schedule or by --from: one of the two")
        chosen = self.remove is not None or self.method is not None
        if self.search is None and (chosen or self.healed is not None):
            raise Refusal("`remove`, `method` and `healed` say which choice of --from is taken")
        if chosen and self.healed is not None:
            raise Refusal("what is `healed` is the last choice: leave out `remove` and `method`")

    def read(self) -> "xr.Dataset | None":
        """Read the file of the search, which takes less time than opening a model."""
        from robustness.files.netcdf import load

        if self.search is None:
            return None
        with reading(str(self.search), REMEDY):
            return load(self.search)

    def with_maps(self, model: "ModelSettings") -> "ModelSettings":
        """Return the settings of the model, with the fitted maps of the search if it heals."""
        from robustness.pruning.choice import maps_path

        if self.search is None or self.healed is None or model.maps is not None:
            return model
        path = maps_path(self.search)
        return replace(model, maps=path) if path.exists() else model

    def schedule(self, model: "Model", dataset: "xr.Dataset | None") -> "Schedule":
        """Return the schedule of an opened model."""
        from robustness.pruning.choice import schedule_of
        from robustness.schedules import from_text, to_text

        if dataset is None:
            return from_text(str(self.text), model.layers)
        with reading(str(self.search), REMEDY):
            chosen = schedule_of(
                dataset, model, remove=self.remove, method=self.method, healed=self.healed
            )
        tell(f"the search chose {to_text(chosen)}")
        return chosen


def _order(values: Values) -> Order:
    return Order(**values)


def _tools(_: object, __: object, texts: tuple[str, ...]) -> list[str]:
    names: dict[str, None] = {}
    for text in texts:
        names |= dict.fromkeys(filter(None, map(str.strip, text.split(","))))
    return list(names)


@click.command()
@model_argument()
@click.argument("directory", type=Place())
@gather(
    "order",
    _order,
    click.option(
        "--schedule",
        "text",
        metavar="TEXT",
        help='Order in which the blocks run, as in "0..3-5-4-6..".',
    ),
    click.option(
        "--from",
        "search",
        type=Place(),
        metavar="FILE",
        help="File of a search by prune, whose choice is the order.",
    ),
    click.option(
        "--remove",
        type=click.IntRange(min=1),
        metavar="N",
        help="Take the choice without N blocks.  [default: the most searched]",
    ),
    click.option(
        "--method",
        metavar="NAME",
        help="Take the choice of this method.  [default: the first searched]",
    ),
    click.option(
        "--healed",
        metavar="KIND",
        help="Take the last choice, healed: scale or fold, of a search with --heal.",
    ),
)
@click.option(
    "--also",
    multiple=True,
    callback=_tools,
    metavar="TOOLS",
    help="Tools to write the order for as well, separated by commas: mergekit, peft, llama.cpp.",
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
def export(
    model: "ModelSettings", directory: Path, order: Order, also: list[str], fresh: bool
) -> None:
    """Write MODEL with its blocks in another order to DIRECTORY, as a checkpoint for transformers.

    The order is given by --schedule, or by --from: what a search by prune chose. Leaving blocks out
    prunes the model (layer pruning); blocks that run twice are written twice. In
    "0..2-a3-m3~4..7-8..", a map that --maps has is folded into the output matrix of an MLP, and
    factors such as m3*0.5 and *1.05 are folded likewise. Blocks are counted from 0.
    The configuration says the order where it can. Before the checkpoint is put in its place, plain
    transformers loads it and its logits are compared with those of the rewired model. The command
    prints the directory, which all commands take as a MODEL.

    \b
    stages export builtin --schedule "0..5-7..9-11" outputs/pruned
    stages export builtin --from outputs/builtin/search.nc --remove 2 outputs/without-2
    stages export builtin --from outputs/builtin/search.nc --healed fold outputs/healed
    stages sweep outputs/pruned
    """
    dataset = order.read()
    announce(model)
    from robustness.reordered.exporting import export as run

    # Without --remote: the weights of a model on a server cannot be written here.
    opened = open_model(order.with_maps(model))
    written = run(
        opened,
        order.schedule(opened, dataset),
        directory,
        also=also,
        fresh=fresh,
        command=command_line(),
        notify=tell,
    )
    say(written)
    advise(f"sweep {quoted(written)}")
