"""The command line: parses, calls one function, prints."""

import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from textwrap import indent
from time import monotonic
from typing import Any

import click

from recipes.commands.command_line import command_line
from recipes.commands.errors import as_options, explained
from recipes.commands.parameters import Finite, Host, Named, Place
from recipes.terminal import Forgiving, Unheard, hear, let_go, note, prepare, say
from robustness.errors import InUse, OtherSettings, Refusal, Unwritable, reading

OUTPUTS = Path("outputs")

DEMONSTRATED = ("E1", "E2", "E3", "E5", "E7", "E10")
"""The experiments of the demonstration, which take seconds."""

AGAIN = "remove it, or run the command that made it again with --fresh"
"""What to do about a file that cannot be used."""

LINE_EVERY = 60.0
"""Seconds between two lines of progress where there is no terminal."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("stages-of-inference"), prog_name="stages")
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
@click.pass_obj
def stages(invocation: "Invocation | None", debug: bool) -> None:
    """Rewire the order in which a language model's blocks run, and measure what changes.

    \b
    stages demo                              the built-in model, offline, within a minute
    stages sweep openai-community/gpt2       drop and swap every block, one NetCDF file
    stages observe openai-community/gpt2     lens, CKA, attention, norms, similarity, neurons
    stages probe openai-community/gpt2 ing   what can be read out of activations
    stages tasks openai-community/gpt2       HellaSwag, ARC-Easy, LAMBADA under every schedule
    stages reproduce openai-community/gpt2   the paper's experiments, and a report
    stages segment outputs/gpt2              the stages' boundaries, with intervals
    stages generate builtin --schedule ..    what it writes when its blocks run in another order
    stages export builtin --schedule .. DIR  that order as a checkpoint, for transformers
    stages compare outputs/gpt2 outputs/phi  models side by side
    stages merge outputs/gpt2/sweep.shard-*  -o outputs/gpt2/sweep.nc, shards into one
    stages show outputs/gpt2/sweep.nc        the numbers, with standard errors
    stages plot outputs/gpt2/sweep.nc        the figure
    """
    if invocation is not None:
        invocation.debug = debug


@dataclass
class Invocation:
    """A call of the command line."""

    debug: bool = False
    """Whether errors are shown with their traceback."""


def together(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Make one decorator of several options, which stay in their order."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return add


SEEDS = click.IntRange(0, 2**32 - 1)

options_of_text = together(
    click.option(
        "--data",
        type=Named(),
        default="builtin",
        show_default=True,
        help="builtin, a .txt (<|endoftext|> divides its documents), .jsonl or .parquet file, or a "
        "data set, owner/name:config.",
    ),
    click.option("--field", default="text", show_default=True, help="Column of the text."),
    click.option("--split", default="train", show_default=True, help="Split of a data set."),
    click.option(
        "--tokens",
        type=click.IntRange(1),
        help="Tokens to read, all of which must be there.  [default: up to 100000]",
    ),
    click.option(
        "--context",
        type=click.IntRange(3),
        help="Tokens in a sequence.  [default: 256, or the model's limit if lower]",
    ),
    click.option("--pack", is_flag=True, help="Join documents instead of dropping tails."),
    click.option(
        "--seed", type=SEEDS, default=0, show_default=True, help="Of the documents' order."
    ),
    click.option(
        "--paper-compat",
        is_flag=True,
        help="The first documents, one a sequence, with the authors' alignment of tokens.",
    ),
    click.option(
        "--documents",
        type=click.IntRange(1),
        help="How many documents --paper-compat takes.  [default: 1388]",
    ),
)
"""The options that say which text is read and how it is cut."""

options_of_model = together(
    click.option(
        "--dtype",
        type=click.Choice(("float32", "float64", "bfloat16", "float16", "auto")),
        default="float32",
        show_default=True,
        help="Of the weights; auto is the checkpoint's.",
    ),
    click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: a GPU if there is one]"),
    click.option(
        "--device-map",
        type=click.Choice(("auto", "balanced", "sequential", "cpu", "disk")),
        help="Where weights are kept: auto fills GPUs, then memory, then the disk.",
    ),
    click.option(
        "--offload",
        type=Place(),
        help="A directory for weights on the disk that the checkpoint has in another form.",
    ),
    click.option("--revision", help="Branch, tag or commit on the hub."),
    click.option(
        "--attention",
        type=click.Choice(("sdpa", "eager")),
        help="Implementation of attention.  [default: sdpa, or eager where there is no other]",
    ),
    click.option(
        "--trust-remote-code", is_flag=True, help="Run code that comes with the checkpoint."
    ),
    click.option("--remote", is_flag=True, help="Run the model on NDIF, where its weights are."),
    click.option(
        "--host",
        type=Host(),
        metavar="URL",
        help="The NDIF server.  [default: NDIF_HOST, or NDIF's]",
    ),
    click.option("--deploy", is_flag=True, help="Have the server load the model if need be."),
    click.option(
        "--sandbox-limit",
        type=Finite(0, min_open=True),
        metavar="GB",
        help="Most that may cross the socket of a sandboxed server.  [default: 50]",
    ),
)
"""The options that say how and where the model is loaded and run."""

options_of_interventions = together(
    click.option("--drop", is_flag=True, help="Leave out each block."),
    click.option("--swap", is_flag=True, help="Exchange each block with the next."),
    click.option("--attention-drop", is_flag=True, help="Leave out each block's attention alone."),
    click.option("--mlp-drop", is_flag=True, help="Leave out each block's MLP alone."),
    click.option(
        "--repeat",
        type=click.IntRange(1),
        multiple=True,
        metavar="B",
        help="Execute each of B blocks twice in a row, from every layer on (4-4-5-5).",
    ),
    click.option(
        "--intervention",
        "named",
        multiple=True,
        metavar="NAME",
        help="swap-D, skip-B, repeat-B, repeat-BxK, repeat-B-contiguous, middle-repeat-B, "
        "reverse-B, shuffle-B, parallel-B or looped-parallel-BxK; or at every two layers "
        "drop-pair, swap-pair, skip-span or repeat-span.",
    ),
)
"""The options that say which interventions are run at every layer."""

options_of_run = together(
    click.option(
        "--resume/--fresh",
        default=True,
        help="Go on from what an interrupted run left, or throw it away.  [default: resume]",
    ),
    click.option("--quiet", is_flag=True, help="No progress."),
)
"""The options of everything that takes long."""


@stages.command()
@click.argument("model", type=Named())
@options_of_interventions
@click.option(
    "--schedule",
    "texts",
    multiple=True,
    metavar="TEXT",
    help='A schedule of your own instead, as in "0..3-5-4-6.." or "0..2-a3-m3-(4+5)-6..".',
)
@click.option(
    "--layers", metavar="TEXT", help='The layers that are changed, as in "0..3-7".  [default: all]'
)
@click.option(
    "--readout",
    "readouts",
    type=click.Choice(("kl", "agreement", "loss", "entropy", "accuracy")),
    multiple=True,
    help="What is measured.  [default: all]",
)
@options_of_text
@options_of_model
@click.option("--batch-tokens", type=click.IntRange(1), help="Tokens of text in one trace.")
@click.option(
    "--state-cap", type=click.IntRange(1), help="Most states that go through a block together."
)
@click.option(
    "--per-token",
    is_flag=True,
    help="Keep the readouts of every token too, beside the output, in NAME.tokens.nc.",
)
@click.option(
    "--until-se",
    type=Finite(),
    metavar="X",
    help="Stop when no mean KL has a larger relative standard error, as in 0.02.",
)
@click.option("--shard", metavar="I/N", help="Run one of N parts, for stages merge.")
@click.option(
    "--dry-run", is_flag=True, help="Say what it would cost, from counts and a calibration."
)
@click.option("--out", type=Place(), help="[default: outputs/MODEL/sweep.nc]")
@options_of_run
def sweep(model: str, **options: Any) -> None:
    """Change MODEL at every layer and measure how its predictions change.

    MODEL is a hub id, a directory, or builtin. Without an intervention or --schedule, every block
    is dropped and every adjacent pair swapped. In a schedule, a3 and m3 are the attention and the
    MLP of block 3, and (4+5) is both blocks on one input, averaged. The command prints the file it
    leaves; interrupted, the same command goes on.

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
    names = _interventions(options)
    if options["texts"] and (names or options["layers"] is not None):
        raise click.UsageError(
            "--schedule goes without interventions, such as --drop, and without --layers"
        )
    for line in _sweep(model, names, options):
        say(line)


@stages.command()
@click.argument("files", nargs=-1, required=True, type=Place(), metavar="FILE...")
@click.option("-o", "--out", required=True, type=Place(), help="The whole.")
@click.option(
    "--resume/--fresh", default=True, help="Keep what is there, or replace it.  [default: resume]"
)
def merge(files: tuple[Path, ...], out: Path, resume: bool) -> None:
    """Put the FILEs of all shards of a sweep together, exactly as if it had been run in one.

    \b
    stages merge outputs/gpt2/sweep.shard-*.nc -o outputs/gpt2/sweep.nc
    """
    from robustness.sweeps.merging import merge as run

    with reading("a file that is to be merged", AGAIN):
        run(files, out, fresh=not resume, command=command_line())
    say(out)


MEASUREMENTS = ("lens", "cka", "attention", "norms", "similarity", "neurons")
"""What `observe` measures."""


@stages.command()
@click.argument("model", type=Named())
@click.argument(
    "measurements", nargs=-1, type=click.Choice(MEASUREMENTS), metavar="[MEASUREMENT]..."
)
@options_of_text
@options_of_model
@click.option("--batch-tokens", type=click.IntRange(1), help="Tokens of text in one trace.")
@click.option(
    "--real-vocabulary", is_flag=True, help="For neurons: leave out rows that no token has."
)
@click.option(
    "--kurtosis", type=Finite(), default=10.0, show_default=True, help="For neurons: threshold."
)
@click.option("--out", type=Place(), help="A directory.  [default: outputs/MODEL]")
@options_of_run
def observe(model: str, measurements: tuple[str, ...], **options: Any) -> None:
    """Measure what MODEL's clean run shows at every depth; all share one pass per batch of text.

    \b
    lens        what each residual stream predicts: entropy, KL, agreement, loss
    cka         how alike the residual streams of all depths are
    attention   weight by distance, on the first token, entropy, of every head
    norms       what attention and MLP write, block influence, angular distance
    similarity  what sublayers write when adjacent blocks are swapped
    neurons     how MLP neurons write to the vocabulary, from weights alone

    Without names, all of them but what MODEL or the text does not allow, which is told; what is
    asked for by name and cannot be measured is refused, after the rest. A file each is left in the
    directory; interrupted, the same command goes on.

    \b
    stages observe builtin
    stages observe openai-community/gpt2 lens cka --data my.jsonl --tokens 100000
    """
    wanted = list(dict.fromkeys(measurements)) or list(MEASUREMENTS)
    left_out: dict[str, str] = {}
    for path in _observe(model, wanted, left_out, options):
        say(path)
    for name, reason in left_out.items():
        if len(wanted) == 1:
            raise Refusal(reason)
        if len(left_out) == len(wanted):
            raise Refusal(f"nothing could be measured; {name}: {reason}")
        if measurements:
            raise Refusal(f"{name} was left out, the rest was measured: {reason}")


@stages.command()
@click.argument("model", type=Named())
@click.argument("task", type=click.Choice(("wic", "ing", "subjoiner")))
@click.option("--data", type=Named(), help="[default: builtin for wic, else builtin-sampled]")
@click.option("--field", default="text", show_default=True, help="Column of the text.")
@click.option("--split", default="train", show_default=True, help="Split of a data set.")
@click.option("--suffix", default="ing", show_default=True, help="For ing: what tokens end in.")
@click.option(
    "--pieces",
    type=click.IntRange(2),
    default=4,
    show_default=True,
    help="For subjoiner: a word's.",
)
@click.option("--items", type=click.IntRange(1), help="The most windows or words that are taken.")
@click.option(
    "--seed", type=SEEDS, default=0, show_default=True, help="Of all that is drawn at random."
)
@options_of_model
@click.option("--batch-tokens", type=click.IntRange(1), help="Tokens of text in one trace.")
@click.option("--out", type=Place(), help="[default: outputs/MODEL/TASK.nc]")
@options_of_run
def probe(model: str, task: str, **options: Any) -> None:
    """Fit probes on MODEL's activations, and say with intervals what can be read out of them.

    \b
    wic        whether a word means the same in two sentences, at every depth; data is a directory
               as WiC is published, or with .jsonl files, or a data set in SuperGLUE's manner
    ing        whether the next token ends in a suffix, from single neurons and from groups
    subjoiner  which heads gather the pieces of a word

    \b
    stages probe builtin wic
    stages probe openai-community/gpt2-xl ing --data my.jsonl --suffix ed
    """
    say(_probe(model, task, options))


@stages.command()
@click.argument("model", type=Named())
@click.argument("names", nargs=-1, metavar="[TASK]...")
@options_of_interventions
@click.option(
    "--task-data",
    type=Place(),
    help="A directory with TASK.jsonl files in the place of the tasks' data sets.",
)
@click.option("--limit", type=click.IntRange(1), help="Items of each task.  [default: all]")
@options_of_model
@click.option("--batch-tokens", type=click.IntRange(1), help="Tokens of text in one trace.")
@click.option(
    "--state-cap", type=click.IntRange(1), help="Most states that go through a block together."
)
@click.option("--out", type=Place(), help="[default: outputs/MODEL/tasks.nc]")
@options_of_run
def tasks(model: str, names: tuple[str, ...], **options: Any) -> None:
    """Run tasks of lm-eval on MODEL under interventions at every layer.

    TASKs are those of lm-eval that score continuations; hellaswag, arc_easy and lambada_openai
    without any. Without an intervention, every block is dropped and every adjacent pair swapped.

    \b
    stages tasks openai-community/gpt2 hellaswag arc_easy --limit 500
    stages tasks builtin arc_easy --drop --task-data my-tasks
    """
    say(_tasks(model, list(names), options))


@stages.command()
@click.argument("directory", type=Place())
@click.option(
    "--seed", type=SEEDS, default=0, show_default=True, help="Of the documents that are drawn."
)
@click.option("--out", type=Place(), help="[default: DIRECTORY/stages.nc]")
def segment(directory: Path, seed: int, out: Path | None) -> None:
    """Divide a model's layers into stages, from the files in DIRECTORY.

    The files are those that sweep and observe leave. Boundaries are drawn where the signatures of
    stages change, for as many segments as a criterion chooses (perhaps none) and for four, with
    intervals over documents. The command prints the file it leaves.

    \b
    stages segment outputs/builtin
    """
    from recipes.evidence.stages import stages as run

    path = out or directory / "stages.nc"
    with reading(f"a file in {directory}", AGAIN):
        run(directory, seed=seed, out=path, command=command_line())
    say(path)


@stages.command()
@click.argument("model", type=Named(), required=False)
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...")
@click.option("--list", "listed", is_flag=True, help="List the experiments instead.")
@options_of_text
@click.option(
    "--wic-data",
    type=Named(),
    default="builtin",
    show_default=True,
    help="Word-in-context pairs, as for probe.",
)
@click.option(
    "--task-data",
    type=Place(),
    help="A directory with TASK.jsonl files in the place of the tasks' data sets.",
)
@click.option("--limit", type=click.IntRange(1), help="Items of each task.  [default: all]")
@options_of_model
@click.option("--batch-tokens", type=click.IntRange(1), help="Tokens of text in one trace.")
@click.option(
    "--state-cap", type=click.IntRange(1), help="Most states that go through a block together."
)
@click.option("--out", type=Place(), help="A directory.  [default: outputs/MODEL]")
@options_of_run
def reproduce(
    model: str | None, experiments: tuple[str, ...], listed: bool, **options: Any
) -> None:
    """Run the paper's EXPERIMENTs on MODEL: files, figures, verdicts on its claims, and a report.

    Without names, all that fit the model and the data. Interrupted, the same command goes on; when
    all is there, it does nothing. Built-in models stay offline. The command prints the report's
    path.

    \b
    stages reproduce --list
    stages reproduce builtin
    stages reproduce openai-community/gpt2 E1 E3 --data my.jsonl --tokens 1000000
    """
    if listed:
        _list_experiments()
        return
    if model is None:
        raise click.UsageError("give a MODEL, or --list")
    say(_reproduce(model, experiments, options))


@stages.command()
@click.argument("directory", type=Place())
@click.option("--out", type=Place(), help="A page.  [default: DIRECTORY/report.html]")
@click.option("--figures", type=Place(), help="A directory for the figures as .svg, too.")
@click.option("--quiet", is_flag=True, help="No progress.")
def report(directory: Path, out: Path | None, figures: Path | None, quiet: bool) -> None:
    """Judge the paper's claims on the files in DIRECTORY, draw its figures, and make one HTML page.

    The files are those that reproduce, sweep, observe, probe, tasks and segment leave; what is not
    there is said. Verdicts are saved beside the page in claims.nc.

    \b
    stages report outputs/builtin
    """
    from recipes.report.page import report as run

    page = out or directory / "report.html"
    with (
        reading(f"a file in {directory}", AGAIN),
        _progress(None, quiet=quiet, unit="figure") as progress,
    ):
        run(
            [directory],
            page,
            claims=page.parent / "claims.nc",
            figures=figures,
            command=command_line(),
            progress=progress,
        )
    say(page)


@stages.command()
@click.argument("directories", nargs=-1, required=True, type=Place(), metavar="DIRECTORY...")
@click.option(
    "--out",
    type=Place(),
    default=OUTPUTS / "compare.nc",
    show_default=True,
    help="The numbers; the page is beside them.",
)
@click.option("--figures", type=Place(), help="A directory for the figures as .svg, too.")
@click.option("--quiet", is_flag=True, help="No progress.")
def compare(directories: tuple[Path, ...], out: Path, figures: Path | None, quiet: bool) -> None:
    """Set the models of several DIRECTORIES side by side: a table, a file, and an HTML page.

    Figures are drawn over relative depth; claims about several models are judged.

    \b
    stages compare outputs/builtin outputs/builtin-parallel
    """
    from recipes.evidence.files import side_by_side
    from recipes.judging.compare import KIND
    from recipes.judging.compare import compare as run
    from recipes.report.page import check_places
    from recipes.report.page import report as write
    from recipes.views import as_text, table
    from robustness.files import ownership
    from robustness.files.netcdf import save_with_lock

    if out.suffix != ".nc":
        raise click.UsageError("--out is the file of the numbers, and ends in .nc")
    page = out.with_suffix(".html")
    ownership.check(out, KIND)
    check_places(page, None, figures)
    what = f"a file in {' or '.join(map(str, directories))}"
    with reading(what, AGAIN):
        dataset = run(side_by_side(directories), command_line())
    save_with_lock(dataset, out)
    with reading(what, AGAIN), _progress(None, quiet=quiet, unit="figure") as progress:
        write(
            directories,
            page,
            comparison=dataset,
            figures=figures,
            command=command_line(),
            progress=progress,
        )
    say(as_text(table(dataset)))
    say(f"\nnumbers: {out}\nreport:  {page}")


options_of_statistics = together(
    click.option(
        "--minus",
        type=Named(),
        metavar="NAME|FILE",
        help="Paired differences: less one of its interventions, schedules, lenses or probes, less "
        "the clean model (clean), or less another file.",
    ),
    click.option(
        "--bootstrap", is_flag=True, help="Bootstrap intervals in the place of standard errors."
    ),
)


@stages.command()
@click.argument("model", type=Named())
@click.argument("prompt")
@click.option(
    "--schedule",
    "texts",
    multiple=True,
    required=True,
    metavar="TEXT",
    help='The order of the blocks, as in "0..3-5-4-6..".',
)
@click.option(
    "--tokens",
    "--max-new-tokens",
    "tokens",
    type=click.IntRange(1),
    default=40,
    show_default=True,
    help="Most tokens written.",
)
@click.option(
    "--temperature",
    type=Finite(0),
    default=0.0,
    show_default=True,
    help="0 takes the most likely token each time; above, tokens are drawn.",
)
@click.option("--seed", type=SEEDS, default=0, show_default=True, help="Of what is drawn.")
@options_of_model
@click.option("--quiet", is_flag=True, help="No progress.")
def generate(model: str, prompt: str, **options: Any) -> None:
    """Continue PROMPT with MODEL as it is, and with its blocks in other orders.

    A PROMPT of - is read from standard input; the tokenizer's BOS stands before it where it has
    one. Every order is a line that ends in a colon; what the model writes follows, indented.

    \b
    stages generate builtin --schedule "0..3-5-4-6.." --schedule "0..5-7.." "Once upon"
    """
    for schedule, text in _generate(model, prompt, options):
        say(f"{schedule}:\n{indent(text.strip(chr(10)), '    ')}")


@stages.command()
@click.argument("model", type=Named())
@click.argument("directory", type=Place())
@click.option(
    "--schedule",
    "text",
    required=True,
    metavar="TEXT",
    help='The order of the blocks, as in "0..3-5-4-6..".',
)
@click.option(
    "--dtype",
    type=click.Choice(("float32", "float64", "bfloat16", "float16", "auto")),
    default="auto",
    show_default=True,
    help="Of the weights; auto is the checkpoint's.",
)
@click.option("--device", help="Where it is tried out.  [default: a GPU if there is one]")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--fresh", is_flag=True, help="Replace what an earlier export left in DIRECTORY.")
@click.option("--quiet", is_flag=True, help="Say nothing on the way.")
def export(model: str, directory: Path, **options: Any) -> None:
    """Write MODEL with its blocks in another order to DIRECTORY, as a checkpoint for transformers.

    The configuration says the order, where it can; blocks that run twice are written twice. What is
    written is loaded by plain transformers and compared with the rewired model before it is put in
    its place. The command prints the directory, which is a MODEL for all commands.

    \b
    stages export builtin --schedule "0..5-7..9-11" outputs/pruned
    stages sweep outputs/pruned
    """
    say(_export(model, directory, options))


@stages.command()
@click.argument("file", type=Place())
@options_of_statistics
def show(file: Path, minus: str | None, bootstrap: bool) -> None:
    """Print FILE as a table: means with standard errors clustered by document.

    \b
    stages show outputs/builtin/sweep.nc
    stages show outputs/builtin/sweep.nc --minus drop
    stages show outputs/builtin/sweep.nc --minus outputs/builtin-parallel/sweep.nc --bootstrap
    """
    from recipes.views import as_text, table

    with reading(str(file), AGAIN):
        text = as_text(table(_less(file, minus), by_bootstrap=bootstrap))
    say(text)


@stages.command()
@click.argument("file", type=Place())
@options_of_statistics
@click.option("--out", type=Place(), help="A .png, .svg or .pdf file.")
def plot(file: Path, minus: str | None, bootstrap: bool, out: Path | None) -> None:
    """Draw FILE, and print where the figure is: beside FILE, unless --out says otherwise.

    \b
    stages plot outputs/builtin/sweep.nc --out sweep.svg
    stages plot outputs/builtin/sweep.nc --minus drop --bootstrap
    """
    from recipes.views import draw
    from robustness.files import ownership
    from robustness.files.figures import save_figure

    less = "" if minus is None else f"-less-{re.sub(r'[^A-Za-z0-9.]+', '-', Path(minus).stem)}"
    with reading(str(file), AGAIN):
        dataset = _less(file, minus)
        path = out or file.with_name(f"{file.stem}{less}.png")
        ownership.check(path, ownership.FIGURE)
        save_figure(draw(dataset, by_bootstrap=bootstrap), path)
    say(path)


def _less(file: Path, minus: str | None) -> Any:
    """Read a file, and take it less what was asked."""
    from robustness.files.netcdf import load
    from robustness.files.sequences import measured_sequences
    from robustness.statistics.paired import difference

    dataset = load(file)
    if minus is None:
        return dataset
    less = measured_sequences(load(Path(minus))) if Path(minus).is_file() else minus
    return difference(measured_sequences(dataset), less)


@stages.command()
@click.option("--out", type=Place(), default=OUTPUTS, show_default=True)
def demo(out: Path) -> None:
    """Drop and swap every block of the built-in model, look inside, and report, offline.

    \b
    stages demo --out outputs
    """
    from recipes.views import as_text, draw, table
    from robustness.files import ownership
    from robustness.files.figures import save_figure
    from robustness.files.netcdf import load

    directory = out / "builtin"
    ownership.check(directory / "sweep.png", ownership.FIGURE)
    words = ["builtin", *DEMONSTRATED, "--out", str(directory)]
    options = reproduce.make_context("reproduce", words).params
    page = _reproduce(options.pop("model"), options.pop("experiments"), options)
    path = directory / "sweep.nc"
    dataset = load(path)
    figure = save_figure(draw(dataset), path.with_suffix(".png"))
    say(as_text(table(dataset)))
    say(f"\nnumbers: {path}\nfigure:  {figure}\nreport:  {page}")


@stages.command()
@click.option("--remote", is_flag=True, help="What an NDIF server runs now instead.")
@click.option(
    "--host", type=Host(), metavar="URL", help="The server.  [default: NDIF_HOST, or NDIF's]"
)
def models(remote: bool, host: str | None) -> None:
    """List the built-in models and the sixteen of the paper, or what NDIF runs now.

    \b
    stages models
    stages models --remote
    """
    if remote:
        from robustness.ndif.server import deployments

        there = [each for each in deployments(host) if each.task == "text-generation"]
        say(f"{'model':44}  {'state':11}  {'dtype':9}  revision")
        for each in there:
            row = f"{each.name:44}  {each.state.lower():11}  {each.dtype:9}  {each.revision}"
            say(row.rstrip())
        return
    if host:
        raise click.UsageError("--host goes with --remote")
    from recipes.paper_models import BUILTIN, PAPER

    say(f"{'model':32}  {'family':8}  layers  blocks")
    for model in (*BUILTIN, *PAPER):
        say(f"{model.name:32}  {model.family:8}  {model.layers:6}  {model.blocks}")


@stages.command()
@click.argument("directory", type=Place())
@click.option(
    "--data", "sources", type=Named(), multiple=True, required=True, help="A corpus; as for sweep."
)
@click.option("--weight", "weights", type=Finite(), multiple=True, help="How often it is drawn.")
@click.option("--architecture", type=click.Choice(("gpt2", "gpt_neox")), default="gpt2")
@click.option("--layers", type=click.IntRange(1), default=12, show_default=True)
@click.option("--width", type=click.IntRange(1), default=128, show_default=True)
@click.option("--heads", type=click.IntRange(1), default=4, show_default=True)
@click.option("--context", type=click.IntRange(3), default=256, show_default=True)
@click.option("--vocabulary", type=click.IntRange(257), default=2048, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=12_000_000, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Sequences.")
@click.option("--learning-rate", type=Finite(), default=2e-3, show_default=True)
@click.option("--seed", type=SEEDS, default=0, show_default=True)
@click.option("--compile", is_flag=True, help="Compile the model first; needs a C++ compiler.")
@click.option("--tokenizer", type=Place(), help="A model whose tokenizer is used instead.")
@click.option("--quiet", is_flag=True, help="No progress.")
def pretrain(
    directory: Path,
    sources: tuple[str, ...],
    weights: tuple[float, ...],
    tokenizer: Path | None,
    quiet: bool,
    **settings: Any,
) -> None:
    """Train a small decoder from scratch into DIRECTORY, as the built-in models were.

    It leaves the model in float16, its tokenizer, a log and a card, in a directory of its own.
    Interrupted, the same command goes on from the last checkpoint; when all is there, it does
    nothing.

    \b
    stages pretrain my-model --data stories.jsonl --weight 2 --data speeches.jsonl --weight 1
    """
    from tqdm import tqdm

    from recipes.training import Pretraining, TrainingOptions
    from recipes.training import pretrain as run
    from recipes.training.tokenizer import open_tokenizer

    _hush()
    wanted = Pretraining(**settings)
    with tqdm(
        total=wanted.steps, unit="step", disable=quiet or None, file=Forgiving(sys.stderr)
    ) as bar:

        def progress(step: int, _steps: int, loss: float, speed: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", tokens=f"{speed:.0f}/s", refresh=False)
            bar.update(step - bar.n)

        run(
            directory,
            sources,
            wanted,
            TrainingOptions(progress=progress, tell=partial(_tell, options={"quiet": quiet})),
            weights=weights,
            tokenizer=None if tokenizer is None else open_tokenizer(tokenizer),
        )
    say(directory)


def _sweep(name: str, names: list[str], options: dict[str, Any]) -> Iterator[str]:
    """Open model and corpus, run the sweep or count its cost, and yield what is printed."""
    from robustness.runs.settings import RunOptions
    from robustness.schedules.interventions import PAIRS
    from robustness.schedules.schedule import from_text, layers_from_text
    from robustness.statistics.stopping import check_bound
    from robustness.sweeps.execution import run_sweep
    from robustness.sweeps.preparation import prepare as prepare_sweep
    from robustness.sweeps.settings import READOUT_NAMES, SweepSettings
    from robustness.sweeps.shards import parse_shard

    if options["until_se"] is not None:
        check_bound(options["until_se"])
    shard = None if options["shard"] is None else parse_shard(options["shard"])
    model = _open(name, options)
    schedules = [from_text(text, model.layers) for text in options["texts"] or ()]
    layers = options["layers"]
    settings = SweepSettings(
        interventions=names or None,
        schedules=schedules,
        layers=None if layers is None else layers_from_text(layers, model.layers),
        readouts=options["readouts"] or READOUT_NAMES,
        until_se=options["until_se"],
        per_token=options["per_token"],
        shard=shard,
    )
    corpus = _cut(model, options)
    sizes = RunOptions(
        batch_tokens=options["batch_tokens"],
        state_cap=options["state_cap"],
        command=command_line(),
    )
    if options["dry_run"]:
        from robustness.sweeps.cost import describe, estimate

        rows = describe(estimate(prepare_sweep(model, corpus, settings, sizes)))
        width = max(len(title) for title, _ in rows)
        yield from (f"{title:{width}}  {value}" for title, value in rows)
        return
    pairs = any(name in PAIRS for name in names)
    experiment = "schedules" if schedules else "pairs" if pairs else "sweep"
    whole = OUTPUTS / model.name.rpartition("/")[2] / f"{experiment}.nc"
    out = options["out"] or (shard.beside(whole) if shard else whole)
    with _progress(len(corpus.tokens), quiet=options["quiet"]) as progress:
        run_options = replace(
            sizes,
            out=Path(out),
            fresh=not options["resume"],
            progress=progress,
            tell=partial(_tell, options=options),
        )
        dataset = run_sweep(model, corpus, settings, run_options)
    bad = int(dataset["nonfinite"].sum())
    if bad:
        note(f"warning: {bad} predictions had NaN or infinite logits")
    if options["until_se"] is not None:
        _tell(_reached(dataset), options)
    yield str(out)


def _reached(dataset: Any) -> str:
    """Say where a run stopped that was to stop when it knew enough."""
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
        missed = f"no run stops before {FEWEST_DOCUMENTS} documents, and the text is of fewer"
    return f"{missed}: {text}; read more --tokens, into another --out"


def _interventions(options: dict[str, Any]) -> list[str]:
    flags = ("drop", "swap", "attention-drop", "mlp-drop")
    names = [name for name in flags if options[name.replace("-", "_")]]
    return names + [f"repeat-{length}" for length in options["repeat"]] + list(options["named"])


def _tasks(name: str, names: list[str], options: dict[str, Any]) -> Path:
    """Open the model, run tasks, and return the path of their file."""
    from robustness.runs.settings import RunOptions
    from robustness.tasks import TaskSettings, evaluate_tasks
    from robustness.tasks.settings import TASKS

    model = _open(name, options)
    out = options["out"] or OUTPUTS / model.name.rpartition("/")[2] / "tasks.nc"
    with _progress(None, quiet=options["quiet"], unit="text") as progress:
        settings = TaskSettings(
            names or TASKS,
            _interventions(options) or None,
            data=options["task_data"],
            limit=options["limit"],
        )
        asked = RunOptions(
            batch_tokens=options["batch_tokens"],
            state_cap=options["state_cap"],
            out=out,
            fresh=not options["resume"],
            command=command_line(),
            progress=progress,
            tell=partial(_tell, options=options),
        )
        evaluate_tasks(model, settings, asked)
    return Path(out)


def _observe(
    name: str, measurements: list[str], left_out: dict[str, str], options: dict[str, Any]
) -> Iterator[Path]:
    """Open model and corpus, measure, and yield the path of every file.

    What cannot be measured is left out, and why is put in `left_out`.
    """
    if "neurons" not in measurements and (options["real_vocabulary"] or options["kurtosis"] != 10):
        raise click.UsageError("--real-vocabulary and --kurtosis go with neurons")
    _check_remote(options)
    common: dict[str, Any] = {"fresh": not options["resume"], "command": command_line()}
    directory = options["out"]
    if options["remote"] and "neurons" in measurements:
        _tell("neurons: measured on this machine, from the checkpoint's weights", options)

    def leave_out(reasons: Mapping[str, str]) -> None:
        left_out.update(reasons)
        for measurement, reason in reasons.items() if len(measurements) > 1 else ():
            _tell(f"{measurement} is left out: {reason}", options)

    traced = [measurement for measurement in measurements if measurement != "neurons"]
    if traced:
        from robustness.measurements.observation import observe as run
        from robustness.measurements.requirements import unfit
        from robustness.runs.settings import RunOptions

        model = _open(name, options)
        corpus = _cut(model, options)
        directory = directory or OUTPUTS / model.name.rpartition("/")[2]
        leave_out(unfit(model, corpus, traced))
        traced = [measurement for measurement in traced if measurement not in left_out]
        if traced:
            with _progress(len(corpus.tokens), quiet=options["quiet"]) as progress:
                asked = RunOptions(
                    batch_tokens=options["batch_tokens"],
                    out=directory,
                    progress=progress,
                    tell=partial(_tell, options=options),
                    **common,
                )
                run(model, corpus, traced, asked)
        yield from (directory / f"{measurement}.nc" for measurement in traced)
    if "neurons" in measurements:
        from robustness.measurements.prediction_neurons import NeuronSettings, neurons
        from robustness.models.checkpoint import resolve
        from robustness.runs.settings import RunOptions

        _hush()
        directory = directory or OUTPUTS / resolve(name)[0].rpartition("/")[2]
        try:
            with _progress(None, quiet=options["quiet"], unit="layer") as progress:
                neurons(
                    name,
                    NeuronSettings(options["real_vocabulary"], options["kurtosis"]),
                    RunOptions(out=directory / "neurons.nc", progress=progress, **common),
                    revision=options["revision"],
                    trust_remote_code=options["trust_remote_code"],
                )
        except (InUse, OtherSettings, Unwritable):
            raise
        except Refusal as error:
            leave_out({"neurons": str(error)})
        else:
            yield directory / "neurons.nc"


def _probe(name: str, task: str, options: dict[str, Any]) -> Path:
    """Open the model, fit the probes of a task, and return the path of their file."""
    from probes.settings import SubjoinerSettings, SuffixSettings, WicSettings
    from probes.subjoiner import probe_subjoiner
    from probes.suffix import probe_suffix
    from probes.wic import probe_wic
    from robustness.models.settings import ModelSettings
    from robustness.runs.settings import RunOptions

    stem = task if options["suffix"] == "ing" else f"suffix-{options['suffix'].strip()}"
    if task != "ing" and options["suffix"] != "ing":
        raise click.UsageError("--suffix goes with ing")
    if task == "wic" and (options["items"] or options["field"] != "text"):
        raise click.UsageError("--items and --field go with ing and subjoiner")
    if not stem.replace("-", "").isalnum():
        raise click.UsageError("a suffix is of letters and digits")
    if options["remote"] and task == "ing":
        _tell("neurons: ranked on this machine, from the checkpoint's weights", options)
    model = _open(name, options)
    out = options["out"] or OUTPUTS / model.name.rpartition("/")[2] / f"{stem}.nc"
    items = {} if options["items"] is None else {"items": options["items"]}
    text = {key: options[key] for key in ("field", "split", "seed")} | items
    source = options["data"] or ("builtin" if task == "wic" else "builtin-sampled")
    with _progress(None, quiet=options["quiet"], unit="text") as progress:
        asked = RunOptions(
            batch_tokens=options["batch_tokens"],
            out=out,
            fresh=not options["resume"],
            command=command_line(),
            progress=progress,
            tell=partial(_tell, options=options),
        )
        if task == "wic":
            probe_wic(model, WicSettings(source, options["seed"]), asked)
        elif task == "ing":
            loading = {key: options[key] for key in ("revision", "trust_remote_code")}
            suffix = SuffixSettings(source, suffix=options["suffix"], **text)
            probe_suffix(model, ModelSettings(name, **loading), suffix, asked)
        else:
            settings = SubjoinerSettings(source, pieces=options["pieces"], **text)
            probe_subjoiner(model, settings, asked)
    return Path(out)


def _generate(name: str, prompt: str, options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Open the model, and yield every schedule as text with what is written under it."""
    from robustness.reordered.generation import generate as run
    from robustness.schedules.schedule import clean, from_text, to_text

    if prompt == "-":
        prompt = hear().rstrip("\n")
    model = _open(name, options)
    schedules = [clean(model.layers)]
    schedules += [from_text(text, model.layers) for text in options["texts"]]
    wanted = ("tokens", "temperature", "seed")
    with _progress(None, quiet=options["quiet"], unit="token") as progress:
        found = run(
            model,
            prompt,
            list(dict.fromkeys(schedules)),
            **{key: options[key] for key in wanted},
            progress=progress,
        )
    for each in found:
        yield to_text(each.schedule), each.text


def _export(name: str, directory: Path, options: dict[str, Any]) -> Path:
    """Open the model and write its checkpoint in another order."""
    from robustness.models.opening import open_model
    from robustness.reordered.exporting import export as run
    from robustness.schedules.schedule import from_text

    _hush()
    model = open_model(name, **{key: options[key] for key in ("dtype", "device", "revision")})
    return run(
        model,
        from_text(options["text"], model.layers),
        directory,
        fresh=options["fresh"],
        command=command_line(),
        notify=partial(_tell, options=options),
    )


def _list_experiments() -> None:
    from recipes.experiments.catalogue import RECIPES
    from recipes.paper_models import PAPER

    for recipe in RECIPES:
        figures = [name for picture in recipe.pictures for name in picture.names]
        claims = [claim.name for claim in recipe.claims]
        names = ", ".join(model.name.rpartition("/")[2] for model in recipe.models)
        models = "all sixteen models" if recipe.models == PAPER else names
        say(f"{recipe.name:4} {recipe.title}. {recipe.question}")
        say(f"     figures {', '.join(figures)}; claims {', '.join(claims)}")
        say(f"     cost: {recipe.cost}")
        say(f"     in the paper: {models}; {recipe.data or 'on how much is not said'}")


def _reproduce(name: str, experiments: Sequence[str], options: dict[str, Any]) -> Path:
    """Say what is measured on what, and have it done."""
    from recipes.reproduce import ReproduceSettings
    from recipes.reproduce import reproduce as run
    from robustness.models.checkpoint import resolve
    from robustness.models.settings import ModelSettings
    from robustness.runs.settings import RunOptions
    from robustness.text.settings import TextSettings

    _hush()
    there = _check_remote(options)
    where = ("device", "device_map", "offload", "remote")
    of_model = (*where, "dtype", "revision", "attention", "trust_remote_code")
    of_text = ("field", "split", "tokens", "context", "pack", "seed", "paper_compat", "documents")
    settings = ReproduceSettings(
        ModelSettings(name, **{key: options[key] for key in of_model}, **there),
        TextSettings(options["data"], **{key: options[key] for key in of_text}),
        tuple(experiments),
        **{key: options[key] for key in ("wic_data", "task_data", "limit")},
    )
    asked = RunOptions(
        fresh=not options["resume"],
        batch_tokens=options["batch_tokens"],
        state_cap=options["state_cap"],
        command=command_line(),
        tell=partial(_tell, options=options),
    )

    def watch(names: str, unit: str) -> Any:
        _tell(names, options)
        return _progress(None, quiet=options["quiet"], unit=unit)

    directory = options["out"] or OUTPUTS / resolve(name)[0].rpartition("/")[2]
    return run(settings, Path(directory), asked, watch)


def _open(name: str, options: dict[str, Any]) -> Any:
    from robustness.models.opening import open_model

    _hush()
    where = ("device", "device_map", "offload")
    wanted = (*where, "dtype", "revision", "attention", "trust_remote_code")
    there = _check_remote(options)
    if options["remote"]:
        there |= {"remote": True, "notify": partial(_tell, options=options)}
    if options["offload"] and not options["device_map"]:
        raise click.UsageError("--offload goes with --device-map")
    return open_model(name, **{key: options[key] for key in wanted}, **there)


def _check_remote(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a server that are given, which go with --remote."""
    there = {key: options[key] for key in ("host", "deploy", "sandbox_limit") if options[key]}
    if there and not options["remote"]:
        raise click.UsageError("--host, --deploy and --sandbox-limit go with --remote")
    return there


def _tell(text: str, options: dict[str, Any]) -> None:
    """Say something on the way, without breaking a progress bar."""
    from tqdm import tqdm

    if not options["quiet"]:
        tqdm.write(f"stages: {as_options(text)}", file=Forgiving(sys.stderr))


def _hush() -> None:
    """Keep libraries from writing bars and notes of their own."""
    import logging
    import warnings

    import datasets
    import huggingface_hub
    import transformers

    # Both are told by what is refused, if it matters.
    warnings.filterwarnings("ignore", "Module .* has a submodule named", UserWarning)
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for library in (transformers, datasets, huggingface_hub):
        library.utils.logging.set_verbosity_error()


def _cut(model: Any, options: dict[str, Any]) -> Any:
    from robustness.text.corpus import cut, first_documents

    where = {key: options[key] for key in ("field", "split")}
    limit = model.context
    if options["paper_compat"]:
        ignored = [key for key in ("tokens", "pack", "seed") if options[key]]
        if ignored:
            raise click.UsageError(f"--paper-compat goes without --{', --'.join(ignored)}")
        context = options["context"] or min(2048, limit or 2048)
        count = options["documents"] or 1388
        return first_documents(
            options["data"], model.tokenizer, context=context, count=count, **where
        )
    if options["documents"]:
        raise click.UsageError("--documents goes with --paper-compat")
    context = options["context"] or min(256, limit or 256)
    if limit is not None and context > limit:
        raise Refusal(f"a context of {context} is longer than {model.name} takes: {limit} tokens")
    wanted = ("tokens", "seed", "pack")
    return cut(
        options["data"],
        model.tokenizer,
        context=context,
        **{key: options[key] for key in wanted},
        **where,
    )


@contextmanager
def _progress(
    total: int | None, *, quiet: bool, unit: str = "seq"
) -> Iterator[Callable[[int, int], object]]:
    """Show how far long work is: as a bar in a terminal, as a line now and then in a log."""
    from tqdm import tqdm

    said, begun = monotonic(), False
    with tqdm(total=total, unit=unit, disable=quiet or None, file=Forgiving(sys.stderr)) as bar:

        def show(done: int, whole: int) -> None:
            nonlocal said, begun
            bar.total = whole
            if not begun:
                bar.initial = done  # what an earlier run did says nothing about this one's speed
                if done and bar.disable and not quiet:
                    note(f"stages: going on from {done} of {whole} {unit}")
            begun = True
            bar.update(done - bar.n)
            if bar.disable and not quiet and monotonic() - said >= LINE_EVERY:
                said = monotonic()
                note(f"stages: {done} of {whole} {unit}")

        yield show


def main() -> None:
    """Run the command line, and exit with a status.

    0 when all is done, 1 for a refusal, 2 for misuse, 130 when interrupted, 141 when the reader of
    standard output has gone. Every error is a line; `--debug` shows where it comes from.
    """
    prepare()
    invocation = Invocation()
    status = 0
    try:
        stages.main(standalone_mode=False, obj=invocation)
    except (KeyboardInterrupt, click.Abort):
        # From here on, impatience would only garble the end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        note("stages: interrupted; what was measured is kept, the same command goes on")
        status = 130
    except Unheard as error:
        let_go()
        status = 141 if error.broken else 1
        if not error.broken:
            note(f"stages: standard output takes no more ({error}): send it elsewhere")
    except Exception as error:
        if invocation.debug:
            note(traceback.format_exc())
        note(explained(error))
        status = error.exit_code if isinstance(error, click.ClickException) else 1
        let_go()
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
