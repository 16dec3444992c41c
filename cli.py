"""Command line of stages: its commands by name, and its entry point."""

import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent


def check_package(name: str) -> None:
    """Exit if another package of this name comes first, such as one in the working directory."""
    # This finds a package without importing it.
    spec = find_spec(name)
    if spec is None:
        return
    places = spec.submodule_search_locations or [str(spec.origin)]
    if HERE / name not in [Path(place).resolve() for place in places]:
        sys.exit(
            f"stages: {next(iter(places))} hides {HERE / name}, the package of stages: rename it,"
            " take it out of PYTHONPATH, or install stages in an environment of its own"
        )


# Before anything of ours is imported, which would fail in words of another package.
for package in ("robustness", "probes", "recipes"):
    check_package(package)

from recipes.commands.ending import Invocation, run_and_exit  # noqa: E402
from recipes.commands.lazy_group import LazyGroup  # noqa: E402

COMMANDS = {
    "demo": ("reproduce:demo", "Measure the built-in model, offline, within a minute."),
    "sweep": ("sweep:sweep", "Drop and swap every block, or change it otherwise (ablation)."),
    "observe": ("observe:observe", "Measure the unchanged model: lens, CKA, attention, norms …"),
    "probe": ("probe:probe", "Fit probes on activations."),
    "tasks": ("tasks:tasks", "Run HellaSwag, ARC-Easy, LAMBADA … with layers changed."),
    "prune": ("prune:prune", "Find the blocks that a model can lose, and how sure that is."),
    "reproduce": ("reproduce:reproduce", "Run the paper's experiments, and write a report."),
    "segment": ("report:segment", "Find the boundaries of a model's stages, with intervals."),
    "report": ("report:report", "Judge the paper's claims on files, and draw its figures."),
    "compare": ("report:compare", "Compare models by their files."),
    "show": ("show:show", "Print a file as a table with standard errors, or list a directory."),
    "plot": ("show:plot", "Draw a file as a figure."),
    "merge": ("merge:merge", "Merge the shards of a sweep."),
    "generate": ("generate:generate", "Write text with blocks in another order."),
    "export": ("export:export", "Write a checkpoint with blocks in another order (pruning)."),
    "heal": ("heal:heal", "Train a pruned model towards the one it was made of (distillation)."),
    "models": ("models:models", "List the built-in models, and the paper's sixteen."),
    "pretrain": ("pretrain:pretrain", "Train a small model from scratch."),
}
"""Place of every command in recipes.commands, as module:function, and its short help."""


@click.group(
    cls=LazyGroup,
    entries=COMMANDS,
    package="recipes.commands",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Shell completion: eval "$(_STAGES_COMPLETE=bash_source stages)", or zsh_source, or '
    "fish_source.",
)
@click.version_option(version("stages-of-inference"), prog_name="stages")
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
@click.pass_obj
def stages(invocation: Invocation | None, debug: bool) -> None:
    """Rewire the order in which a language model's blocks run, and measure what changes.

    Interpretability by interventions on layers (ablation, swapping, repetition, pruning), and by
    measurements at every depth.

    \b
    stages demo
    stages sweep openai-community/gpt2
    stages show outputs/gpt2/sweep.nc
    """
    if invocation is not None:
        invocation.debug = debug


def main() -> None:
    """Run the command that was typed, and exit with a status."""
    run_and_exit(stages)


if __name__ == "__main__":
    main()
