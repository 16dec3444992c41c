"""The command that trains a small model from scratch."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from recipes.commands.gathering import Values, gather
from recipes.commands.opening import silence_libraries
from recipes.commands.options import SEEDS, Corpora, corpora_options
from recipes.commands.parameters import Finite, Place
from recipes.commands.progress import advise, progress, quiet_option, quoted, show_steps, tell
from recipes.terminal import say

if TYPE_CHECKING:
    from recipes.training import Pretraining


def pretraining(values: Values) -> "Pretraining":
    """Return the settings of the training."""
    # The package of the settings imports PyTorch, which takes seconds.
    tell("loading PyTorch")
    from recipes.training import Pretraining

    return Pretraining(**values)


@click.command()
@click.argument("directory", type=Place())
@corpora_options
@gather(
    "settings",
    pretraining,
    click.option(
        "--architecture",
        type=click.Choice(("gpt2", "gpt_neox")),
        default="gpt2",
        show_default=True,
        help="Architecture: blocks are sequential in gpt2, parallel in gpt_neox.",
    ),
    click.option(
        "--layers", type=click.IntRange(1), default=12, show_default=True, help="Number of blocks."
    ),
    click.option(
        "--width",
        type=click.IntRange(1),
        default=128,
        show_default=True,
        help="Width of the residual stream.",
    ),
    click.option(
        "--heads",
        type=click.IntRange(1),
        default=4,
        show_default=True,
        help="Number of attention heads in a block.",
    ),
    click.option(
        "--context",
        type=click.IntRange(3),
        default=256,
        show_default=True,
        help="Number of tokens in a sequence.",
    ),
    click.option(
        "--vocabulary",
        type=click.IntRange(257),
        default=2048,
        show_default=True,
        help="Number of tokens in the vocabulary.",
    ),
    click.option(
        "--tokens",
        type=click.IntRange(1),
        default=12_000_000,
        show_default=True,
        help="Number of tokens to train on.",
    ),
    click.option(
        "--batch",
        type=click.IntRange(1),
        default=16,
        show_default=True,
        help="Number of sequences in a step.",
    ),
    click.option(
        "--learning-rate",
        type=Finite(),
        default=2e-3,
        show_default=True,
        help="Learning rate after the warm-up.",
    ),
    click.option(
        "--seed",
        type=SEEDS,
        default=0,
        show_default=True,
        help="Seed of weights, held-out documents and batches.",
    ),
    click.option("--compile", is_flag=True, help="Compile the model first; needs a C++ compiler."),
)
@click.option(
    "--tokenizer", type=Place(), help="Directory of a model whose tokenizer is used instead."
)
@quiet_option
def pretrain(
    directory: Path,
    corpora: Corpora,
    settings: "Pretraining",
    tokenizer: Path | None,
) -> None:
    """Train a small decoder from scratch into DIRECTORY, as the built-in models were.

    The command leaves the model in float16, its tokenizer, a log and a card, in a directory of its
    own. An interrupted training continues from its last checkpoint when the command is given again;
    a finished one is left as it is.

    \b
    stages pretrain my-model --data stories.jsonl --weight 2 --data speeches.jsonl --weight 1
    """
    from recipes.training import TrainingOptions
    from recipes.training import pretrain as run
    from recipes.training.tokenizer import open_tokenizer

    silence_libraries()
    with progress(settings.steps, "step") as meter:
        run(
            directory,
            corpora.sources,
            settings,
            TrainingOptions(progress=show_steps(meter), tell=tell),
            weights=corpora.weights,
            tokenizer=None if tokenizer is None else open_tokenizer(tokenizer),
        )
    say(directory)
    advise(f"sweep {quoted(directory)}")
