"""Options that say how a model is changed: by interventions at layers, or by schedules."""

from dataclasses import dataclass

import click

from recipes.commands.gathering import Values, gather
from robustness.schedules.built_in import FORMS, PAIRS

FLAGS = ("drop", "swap", "attention-drop", "mlp-drop")
"""Names of interventions that are options of their own."""

FURTHER = [name for name in FORMS if name not in FLAGS]
"""Forms of the names of all others at single layers."""


@dataclass(frozen=True)
class Changes:
    """Changes of a model: interventions at layers, or schedules."""

    interventions: tuple[str, ...]
    schedules: tuple[str, ...]
    layers: str | None
    """Layers as text, which is parsed when the model's number of layers is known."""

    def chosen_layers(self, count: int) -> tuple[int, ...] | None:
        """Return the layers to change in a model of `count` layers, or None for all."""
        from robustness.schedules import layers_from_text

        return None if self.layers is None else tuple(layers_from_text(self.layers, count))


def changes(values: Values) -> Changes:
    """Return the changes that the options give."""
    names = [flag for flag in FLAGS if values[flag.replace("-", "_")]]
    names += [f"repeat-{length}" for length in values["repeat"]]
    names += values["named"]
    layers = values["layers"]
    # Checked here, since settings get their layers only when the model is open.
    if values["texts"] and (names or layers is not None):
        raise click.UsageError(
            "--schedule goes without interventions, such as --drop, and without --layers"
        )
    return Changes(tuple(names), tuple(values["texts"]), layers)


change_options = gather(
    "changes",
    changes,
    click.option("--drop", is_flag=True, help="Drop each block (layer ablation)."),
    click.option("--swap", is_flag=True, help="Swap each block with the next."),
    click.option(
        "--attention-drop", is_flag=True, help="Drop the attention of each block, keep its MLP."
    ),
    click.option(
        "--mlp-drop", is_flag=True, help="Drop the MLP of each block, keep its attention."
    ),
    click.option(
        "--repeat",
        type=click.IntRange(1),
        multiple=True,
        metavar="B",
        help="Run each of B consecutive blocks twice in a row (4-4-5-5), starting at each layer.",
    ),
    click.option(
        "--intervention",
        "named",
        multiple=True,
        metavar="NAME",
        help=f"Another intervention at each layer: {', '.join(FURTHER)}; or one for each pair of "
        f"layers: {', '.join(PAIRS)}. Letters stand for numbers, as in reverse-3.",
    ),
    click.option(
        "--schedule",
        "texts",
        multiple=True,
        metavar="TEXT",
        help='Order of steps to run instead of interventions, as in "0..3-5-4-6.." or '
        '"0..2-a3-m3-(4+5)-6..".',
    ),
    click.option(
        "--layers",
        metavar="TEXT",
        help='Layers at which interventions are made, as in "0..3-7".  [default: all]',
    ),
)
"""The options that say how the model is changed."""
