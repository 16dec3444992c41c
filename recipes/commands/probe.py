"""The command that fits probes on activations."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from recipes.commands.dry_run import dry_run_option, rehearsal
from recipes.commands.gathering import Values, gather, given
from recipes.commands.opening import announce, directory_of, open_model
from recipes.commands.options import (
    SEEDS,
    batch_option,
    field_option,
    model_argument,
    model_options,
    run_options,
    split_option,
)
from recipes.commands.parameters import Named
from recipes.commands.progress import advise, progress, quoted, tell
from recipes.commands.tables import table_options
from recipes.terminal import say

if TYPE_CHECKING:
    from probes.settings import SubjoinerSettings, SuffixSettings, WicSettings
    from robustness.models.model import Model
    from robustness.models.settings import ModelSettings
    from robustness.runs.settings import RunOptions

    ProbeSettings = WicSettings | SuffixSettings | SubjoinerSettings


@dataclass(frozen=True)
class ProbeOptions:
    """Options of the probes: their task and their data."""

    task: str
    data: str | None
    field: str
    split: str
    suffix: str
    pieces: int
    items: int | None
    seed: int
    every: int = 1

    def __post_init__(self) -> None:
        """Refuse options that belong to another task."""
        if self.task != "ing" and self.suffix != "ing":
            raise click.UsageError("--suffix goes with ing")
        if self.task == "wic" and (self.items or self.field != "text"):
            raise click.UsageError("--items and --field go with ing and subjoiner")
        if self.task != "wic" and self.every != 1:
            raise click.UsageError("--every goes with wic")
        # The suffix becomes part of a file's name.
        if not self.stem.replace("-", "").isalnum():
            raise click.UsageError("a suffix is made of letters and digits")

    @property
    def stem(self) -> str:
        """Name of the file without its ending; every suffix has a file of its own."""
        return self.task if self.suffix == "ing" else f"suffix-{self.suffix.strip()}"

    def settings(self) -> "ProbeSettings":
        """Return the settings of the task's probes."""
        from probes.settings import SubjoinerSettings, SuffixSettings, WicSettings

        source = given({"source": self.data})
        if self.task == "wic":
            return WicSettings(seed=self.seed, every=self.every, **source)
        text: Values = {"field": self.field, "split": self.split, "seed": self.seed}
        text |= given({"items": self.items})
        if self.task == "ing":
            return SuffixSettings(suffix=self.suffix, **source, **text)
        return SubjoinerSettings(pieces=self.pieces, **source, **text)


def probe_settings(values: Values) -> "tuple[str, ProbeSettings]":
    """Return the stem of the file's name, and the settings of the probes."""
    options = ProbeOptions(**values)
    return options.stem, options.settings()


@click.command()
@model_argument()
@gather(
    "probes",
    probe_settings,
    click.argument("task", type=click.Choice(("wic", "ing", "subjoiner"))),
    click.option(
        "--data",
        type=Named(),
        help="Text as for sweep, or for wic a directory or data set of pairs.  "
        "[default: builtin for wic, else builtin-sampled]",
    ),
    field_option,
    split_option,
    click.option(
        "--suffix", default="ing", show_default=True, help="For ing: suffix that tokens end in."
    ),
    click.option(
        "--pieces",
        type=click.IntRange(2),
        default=4,
        show_default=True,
        help="For subjoiner: number of tokens that a word is made of.",
    ),
    click.option(
        "--items", type=click.IntRange(1), help="Maximum number of windows or words to take."
    ),
    click.option(
        "--every",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="For wic: probe every N-th depth, and the last.",
    ),
    click.option(
        "--seed",
        type=SEEDS,
        default=0,
        show_default=True,
        help="Seed of all random draws: items, folds, shuffled labels, bootstrap.",
    ),
)
@model_options
@run_options("Path of the file to write.  [default: outputs/MODEL/TASK.nc]", batch_option)
@dry_run_option
@table_options
def probe(
    model: "ModelSettings",
    probes: "tuple[str, ProbeSettings]",
    run: "RunOptions",
    dry_run: bool,
) -> None:
    """Fit probes on MODEL's activations, and report with intervals what they can read out.

    \b
    wic        whether a word means the same in two sentences, at every depth; --data is a directory
               as WiC is published, or with .jsonl files, or a data set in SuperGLUE's format
    ing        whether the next token ends in a suffix, from single neurons and from groups
    subjoiner  which heads gather the pieces of a word

    \b
    stages probe builtin wic
    stages probe openai-community/gpt2-xl ing --data my.jsonl --suffix ed
    stages probe meta-llama/Llama-3.1-70B wic --remote --dry-run
    """
    announce(model)
    stem, settings = probes
    opened = open_model(model)
    if dry_run:
        with rehearsal() as foresee:
            _fit(opened, model, settings, replace(run, out=None, foresee=foresee))
        return
    out = run.out or directory_of(opened.name) / f"{stem}.nc"
    with progress(None, "text") as show:
        _fit(opened, model, settings, replace(run, out=out, progress=show))
    say(out)
    advise(f"plot {quoted(out)}")


def _fit(
    opened: "Model", model: "ModelSettings", settings: "ProbeSettings", options: "RunOptions"
) -> None:
    """Fit the probes that settings describe."""
    from probes.settings import SuffixSettings, WicSettings
    from probes.subjoiner import probe_subjoiner
    from probes.suffix import probe_suffix
    from probes.wic import probe_wic

    if isinstance(settings, WicSettings):
        probe_wic(opened, settings, options)
    elif isinstance(settings, SuffixSettings):
        if model.remote:
            tell("neurons are ranked on this machine, from the checkpoint's weights")
        probe_suffix(opened, model, settings, options)
    else:
        probe_subjoiner(opened, settings, options)
