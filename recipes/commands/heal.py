"""The command that trains a pruned model towards the one it was made of."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from recipes.commands.gathering import Values, gather
from recipes.commands.opening import announce, silence_libraries
from recipes.commands.options import SEEDS, Corpora, corpora_options
from recipes.commands.parameters import Finite, Named, Place
from recipes.commands.progress import advise, progress, quiet_option, quoted, show_steps, tell
from recipes.terminal import say
from robustness.errors import Refusal

if TYPE_CHECKING:
    from recipes.training import Distillation


def distillation(values: Values) -> "Distillation":
    """Return the settings of the training."""
    # The package of the settings imports PyTorch, which takes seconds.
    tell("loading PyTorch")
    from recipes.training import Distillation

    return Distillation(highest_rate=values.pop("learning_rate"), **values)


@click.command()
@click.argument("directory", type=Place())
@click.option(
    "--teacher",
    type=Named(),
    required=True,
    help="Model whose predictions are learned: the one that DIRECTORY was made of.",
)
@corpora_options
@click.option("--out", type=Place(), help="Directory to write.  [default: DIRECTORY-healed]")
@gather(
    "settings",
    distillation,
    click.option(
        "--lora",
        type=click.IntRange(1),
        metavar="RANK",
        help="Train adapters of this rank, and add them to the weights.  [default: all weights]",
    ),
    click.option(
        "--steps", type=click.IntRange(1), default=300, show_default=True, help="Number of steps."
    ),
    click.option(
        "--batch",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        help="Number of sequences in a step.",
    ),
    click.option(
        "--context",
        type=click.IntRange(3),
        default=256,
        show_default=True,
        help="Number of tokens in a sequence.",
    ),
    click.option(
        "--kl-weight",
        type=Finite(0),
        default=0.9,
        show_default=True,
        help="Weight of the divergence from the teacher; the rest is the loss of next tokens.",
    ),
    click.option(
        "--temperature",
        type=Finite(0, min_open=True),
        default=1.0,
        show_default=True,
        help="Temperature of the distributions in the divergence.",
    ),
    click.option(
        "--learning-rate",
        type=Finite(),
        help="Learning rate after the warm-up.  [default: 5e-4, or 2e-3 with --lora]",
    ),
    click.option(
        "--seed",
        type=SEEDS,
        default=0,
        show_default=True,
        help="Seed of adapters, held-out documents and batches.",
    ),
)
@click.option("--device", help="Device that computes.  [default: the first GPU, or cpu]")
@quiet_option
def heal(
    directory: Path,
    teacher: str,
    corpora: Corpora,
    out: Path | None,
    settings: "Distillation",
    device: str | None,
) -> None:
    """Train the model in DIRECTORY towards the model that it was made of (distillation).

    DIRECTORY is a checkpoint, such as export writes; it stays as it is. The trained model is
    written to another directory in the same type of numbers, with a log and a card that has its
    held-out loss and divergence before and after. An interrupted training continues from its last
    checkpoint when the command is given again; a finished one is left as it is. --lora needs peft:
    pip install -e ".[heal]".

    \b
    stages export builtin pruned --schedule "0..1-3..4-6..7-10.."
    stages heal pruned --teacher builtin --data builtin --steps 100
    """
    from recipes.training import TrainingOptions, distill
    from robustness.models.settings import ModelSettings

    place = _neighbour(directory) if out is None else out
    announce(ModelSettings(teacher))
    silence_libraries()
    with progress(settings.steps, "step") as meter:
        log = distill(
            directory,
            teacher,
            corpora.sources,
            place,
            settings,
            TrainingOptions(checkpoint_every=50, progress=show_steps(meter), tell=tell),
            weights=corpora.weights,
            device=device,
        )
    for name, what in (("held_out_loss", "loss"), ("held_out_kl", "KL from the teacher")):
        before, after = log[name].mean("source").values[[0, -1]]
        tell(f"held-out {what}: {before:.3f} before, {after:.3f} after, nats a token")
    say(place)
    advise(f"sweep {quoted(place)}")


def _neighbour(directory: Path) -> Path:
    """Return the directory beside another one that the trained model is written to."""
    # A path such as `.` or `models/..` does not end in the name of its directory.
    named = directory.resolve() if directory.name in ("", "..") else directory
    if not named.name:
        raise Refusal(f"nothing can be written beside {named}: say where with `out`")
    return named.with_name(f"{named.name}-healed")
