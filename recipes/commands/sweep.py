"""The command that changes a model at every layer, and measures how its predictions change."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recipes.commands.changes import Changes, change_options
from recipes.commands.dry_run import say_nothing_was_run
from recipes.commands.gathering import Values, gather, misuse
from recipes.commands.opening import announce, directory_of, open_model
from recipes.commands.options import (
    batch_option,
    cap_option,
    compile_option,
    maps_option,
    model_argument,
    model_options,
    run_options,
    text_options,
)
from recipes.commands.parameters import Finite, LazyChoice
from recipes.commands.progress import advise, progress, quoted, tell
from recipes.commands.tables import say_rows, table_options
from recipes.terminal import note, say

if TYPE_CHECKING:
    import xarray as xr

    from robustness.models.settings import ModelSettings
    from robustness.runs.settings import RunOptions
    from robustness.sweeps.preparation import PreparedSweep
    from robustness.sweeps.settings import SweepSettings
    from robustness.sweeps.shards import Shard
    from robustness.text.settings import TextSettings


@dataclass(frozen=True)
class SweepOptions:
    """Options that say what a sweep measures."""

    readouts: tuple[str, ...]
    per_token: bool
    until_se: float | None
    shard: str | None

    def settings(self, changes: Changes) -> "SweepSettings":
        """Return the settings of the sweep without its layers, whose range the model decides."""
        from robustness.files.metrics import DEFAULT_READOUTS
        from robustness.sweeps.settings import SweepSettings
        from robustness.sweeps.shards import parse_shard

        return SweepSettings(
            interventions=changes.interventions or None,
            schedules=changes.schedules,
            readouts=self.readouts or DEFAULT_READOUTS,
            until_se=self.until_se,
            shard=None if self.shard is None else parse_shard(self.shard),
            per_token=self.per_token,
        )


def readout_names() -> tuple[str, ...]:
    """Return the names of the readouts."""
    from robustness.files.metrics import READOUTS

    return tuple(metric.name for metric in READOUTS)


def sweep_options(values: Values) -> SweepOptions:
    """Return the options that say what a sweep measures."""
    return SweepOptions(**values)


@click.command()
@model_argument()
@change_options
@gather(
    "options",
    sweep_options,
    click.option(
        "--readout",
        "readouts",
        type=LazyChoice(readout_names),
        multiple=True,
        help="Readout to measure.  [default: all]",
    ),
    click.option(
        "--per-token",
        is_flag=True,
        help="Keep the readouts of every token too, in NAME.tokens.nc beside the output.",
    ),
    click.option(
        "--until-se",
        type=Finite(),
        metavar="X",
        help="Stop when the relative standard error of every mean KL is X or less, as in 0.02.",
    ),
    click.option("--shard", metavar="I/N", help="Run part I of N, for stages merge."),
)
@text_options
@model_options
@compile_option
@maps_option
@run_options(
    "Path of the file to write.  [default: outputs/MODEL/sweep.nc]", batch_option, cap_option
)
@click.option("--dry-run", is_flag=True, help="Print what the sweep would cost, and run nothing.")
@table_options
def sweep(
    model: "ModelSettings",
    changes: Changes,
    options: SweepOptions,
    text: "TextSettings",
    run: "RunOptions",
    dry_run: bool,
) -> None:
    """Change MODEL at every layer and measure how its predictions change.

    MODEL is an id on the hub, a directory, or builtin. Without an intervention or --schedule, every
    block is dropped (layer ablation) and every adjacent pair swapped. In a schedule, a3 and m3 are
    the attention and the MLP of block 3, and (4+5) runs both blocks on one input and averages them;
    5*0.5 halves what block 5 adds, *1.05 scales the residual stream, and ~4..7 and m3~4..7 put maps
    that --maps has in the place of blocks 4 to 7. The command prints the path of the file. An
    interrupted sweep continues when the same command is given again.

    \b
    stages sweep builtin
    stages sweep openai-community/gpt2 --repeat 5 --data my.jsonl --tokens 100000
    stages sweep builtin --attention-drop --mlp-drop --intervention parallel-3
    stages sweep builtin --intervention drop-pair --intervention repeat-span --layers 4..8
    stages sweep builtin --schedule "0..3-5-4-6.." --schedule "0..2-a3-m3-(4+5)-6.."
    stages sweep openai-community/gpt2 --until-se 0.02 --tokens 1000000 --data my.jsonl
    stages sweep openai-community/gpt2 --shard 1/4 --data my.jsonl
    stages sweep openai-community/gpt2 --dry-run
    stages sweep meta-llama/Llama-3.1-70B --remote --layers 0..7 --tokens 20000
    """
    announce(model)  # first of all, since what follows loads libraries for seconds
    from robustness.sweeps.execution import run_sweep
    from robustness.text.corpus import read_text

    # Before the model is opened, which may take minutes.
    with misuse():
        settings = options.settings(changes)
    # What costs are estimated from needs no compiled blocks.
    opened = open_model(replace(model, compile=model.compile and not dry_run))
    settings = replace(settings, layers=changes.chosen_layers(opened.layers))
    corpus = read_text(text, opened)
    if dry_run:
        from robustness.sweeps.preparation import prepare

        say_rows(("what", "cost"), _costs(prepare(opened, corpus, settings, run)))
        say_nothing_was_run()
        return
    out = run.out or _default_out(opened.name, settings)
    with progress(len(corpus.tokens), "sequence") as show:
        dataset = run_sweep(opened, corpus, settings, replace(run, out=out, progress=show))
    _warn_of_nonfinite(dataset)
    _warn_of_floor(dataset)
    if settings.until_se is not None:
        tell(_reached(dataset))
    say(out)
    _advise(Path(out), settings.shard)


def _costs(prepared: "PreparedSweep") -> list[tuple[str, str]]:
    """Return rows with the cost of a sweep: what is counted, and its number."""
    from robustness.runs.foresight import describe_traces
    from robustness.sweeps.cost import describe, estimate
    from robustness.sweeps.requests import foresee

    rows = describe(estimate(prepared))
    if prepared.model.request:
        rows += describe_traces(foresee(prepared, prepared.batches))
    return rows


def _default_out(name: str, settings: "SweepSettings") -> Path:
    """Return the default path of a sweep; pairs of layers and schedules have paths of their own."""
    from robustness.schedules.built_in import PAIRS

    stem = "sweep"
    if settings.schedules:
        stem = "schedules"
    elif set(settings.interventions or ()) & set(PAIRS):
        stem = "pairs"
    whole = directory_of(name) / f"{stem}.nc"
    return whole if settings.shard is None else settings.shard.beside(whole)


def _warn_of_nonfinite(dataset: "xr.Dataset") -> None:
    count = int(dataset["nonfinite"].sum())
    if count:
        note(f"warning: {count} predictions had NaN or infinite logits")


def _warn_of_floor(dataset: "xr.Dataset") -> None:
    from robustness.files.precision_floor import describe_near, remedy

    near = describe_near(dataset)
    if near is not None:
        note(f"warning: {near}: {remedy(dataset)}")


def _reached(dataset: "xr.Dataset") -> str:
    """Return a sentence on the standard error that a run reached, and whether it is enough."""
    from robustness.statistics.stopping import FEWEST_DOCUMENTS, is_enough

    attrs = dataset.attrs
    text = (
        f"a relative standard error of {attrs['until_se_reached']:.3g} after "
        f"{attrs['sequences']:,} sequences of {attrs['documents']:,} documents"
    )
    if is_enough(dataset, attrs["until_se"]):
        return text
    missed = f"all of the text did not reach {attrs['until_se']:g}"
    if attrs["documents"] < FEWEST_DOCUMENTS:
        missed = f"no run stops before {FEWEST_DOCUMENTS} documents, and the text has fewer"
    return f"{missed}: {text}; read more --tokens, into another --out"


def _advise(out: Path, shard: "Shard | None") -> None:
    """Print the command that plots a sweep, or that merges its shards."""
    if shard is None:
        advise(f"plot {quoted(out)}")
        return
    stem = out.name.partition(".shard-")[0]
    shards, whole = out.with_name(f"{stem}.shard-"), out.with_name(f"{stem}.nc")
    # The asterisk stays outside the quotes, where the shell expands it.
    advise(
        f"merge {quoted(shards)}*-of-{shard.count}.nc -o {quoted(whole)}  "
        f"# when all {shard.count} shards are there"
    )
