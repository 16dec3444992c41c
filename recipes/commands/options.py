"""Options that several commands share, and the settings that they give."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from recipes.commands.command_line import command_line
from recipes.commands.gathering import Decorator, Values, gather, given, together
from recipes.commands.parameters import Finite, Host, Named, Place
from recipes.commands.progress import is_quiet, quiet_option, tell
from robustness.models.settings import ATTENTION, DEVICE_MAPS, DTYPES, ModelSettings

if TYPE_CHECKING:
    from robustness.runs.settings import RunOptions
    from robustness.text.settings import TextSettings

SEEDS = click.IntRange(0, 2**32 - 1)


def model_settings(values: Values) -> ModelSettings | None:
    """Return the settings of the model, or None where no model was given."""
    source = values.pop("model")
    return None if source is None else ModelSettings(source, **given(values))


def dtype_option(default: str | None, shown: str) -> Decorator:
    """Return the option of the weights' type, with its default and how the help shows it."""
    return click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default=default,
        help=f"Number format of the weights; auto keeps the checkpoint's.  [default: {shown}]",
    )


revision_option = click.option("--revision", help="Branch, tag or commit of the model on the hub.")

model_options = gather(
    "model",
    model_settings,
    dtype_option(None, "auto on a GPU, float32 on the CPU"),
    click.option(
        "--device",
        help="Device that computes: cpu, cuda, cuda:1, mps.  [default: the first GPU, or cpu]",
    ),
    click.option(
        "--device-map",
        type=click.Choice(DEVICE_MAPS),
        help="Placement of weights that do not fit on one device: auto fills GPUs, then memory, "
        "then the disk.",
    ),
    click.option(
        "--offload",
        type=Place(),
        help="Directory for weights on the disk that the checkpoint has in another form.",
    ),
    revision_option,
    click.option(
        "--attention",
        type=click.Choice(ATTENTION),
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
        help="Address of the NDIF server.  [default: NDIF_HOST, or NDIF's]",
    ),
    click.option("--deploy", is_flag=True, help="Have the server load the model if need be."),
    click.option(
        "--sandbox-limit",
        type=Finite(0, min_open=True),
        metavar="GB",
        help="Maximum traffic through the socket of a sandboxed server.  [default: 50]",
    ),
    click.option(
        "--request-seconds",
        type=Finite(0, min_open=True),
        metavar="SECONDS",
        help="Maximum duration of a request to a server.  [default: what suits the server]",
    ),
    click.option(
        "--request-gb",
        type=Finite(0, min_open=True),
        metavar="GB",
        help="Maximum memory of a request on a server's GPU.  [default: what suits the server]",
    ),
    click.option(
        "--patience",
        type=Finite(0),
        metavar="MINUTES",
        help="Time for which a server that does not answer is asked again.  [default: 10]",
    ),
    uses=("model",),
)
"""The options that say how and where the argument MODEL is loaded; they give ModelSettings."""


def compiling_settings(values: Values) -> ModelSettings | None:
    """Return the settings of the model, with or without compiled blocks."""
    settings: ModelSettings | None = values["model"]
    return replace(settings, compile=True) if settings and values["compile"] else settings


compile_option = gather(
    "model",
    compiling_settings,
    click.option(
        "--compile",
        is_flag=True,
        help="Compile blocks for schedules, which run faster after up to a minute.",
    ),
    uses=("model",),
)
"""The option of commands that run schedules; it goes below `model_options`, and adds to them."""


def mapped_settings(values: Values) -> ModelSettings | None:
    """Return the settings of the model, with or without fitted maps."""
    settings: ModelSettings | None = values["model"]
    return replace(settings, maps=values["maps"]) if settings and values["maps"] else settings


maps_option = gather(
    "model",
    mapped_settings,
    click.option(
        "--maps",
        type=Place(),
        metavar="FILE",
        help="Fitted maps of the model, for schedules such as 0..3-~4..7-8..",
    ),
    uses=("model",),
)
"""The option of commands that run schedules; it goes below `model_options`, and adds to them."""


field_option = click.option(
    "--field", default="text", show_default=True, help="Column that holds the text."
)

split_option = click.option(
    "--split", default="train", show_default=True, help="Split of a data set on the hub."
)


def text_settings(values: Values) -> "TextSettings":
    """Return the settings of the text."""
    from robustness.text.settings import TextSettings

    return TextSettings(values.pop("data"), **given(values))


def texts_settings(values: Values) -> "tuple[TextSettings, ...]":
    """Return the settings of one text or several, cut alike."""
    from robustness.text.settings import TextSettings

    cut = given(values)
    return tuple(TextSettings(source, **cut) for source in cut.pop("data"))


def _data_option(*, multiple: bool) -> Decorator:
    """Return the option of a text, which may be given several times."""
    often = " May be given several times." if multiple else ""
    return click.option(
        "--data",
        type=Named(),
        default=["builtin"] if multiple else "builtin",
        show_default=True,
        multiple=multiple,
        help="Text to read: builtin, a .txt (documents divided by <|endoftext|>), .jsonl or "
        f".parquet file, or a data set on the hub, owner/name:config.{often}",
    )


CUTTING = (
    field_option,
    split_option,
    click.option(
        "--tokens",
        type=click.IntRange(1),
        help="Number of tokens to read; the text must have that many.  [default: up to 100000]",
    ),
    click.option(
        "--context",
        type=click.IntRange(3),
        help="Number of tokens in a sequence.  [default: 256, or the model's limit if lower]",
    ),
    click.option(
        "--pack", is_flag=True, help="Join documents, instead of dropping the rest of each."
    ),
    click.option(
        "--seed", type=SEEDS, default=0, show_default=True, help="Seed of the documents' order."
    ),
    click.option(
        "--paper-compat",
        is_flag=True,
        help="Read the first documents, one a sequence, with the authors' alignment of tokens.",
    ),
    click.option(
        "--documents",
        type=click.IntRange(1),
        help="Number of documents that --paper-compat reads.  [default: 1388]",
    ),
)
"""Options that say how a text is cut."""

text_options = gather("text", text_settings, _data_option(multiple=False), *CUTTING)
"""The options that say which text is read and how it is cut; they give TextSettings."""

texts_options = gather("texts", texts_settings, _data_option(multiple=True), *CUTTING)
"""The same options for several texts; they give a tuple of TextSettings."""


@dataclass(frozen=True)
class Corpora:
    """Corpora to train on."""

    sources: tuple[str, ...]
    weights: tuple[float, ...]
    """Relative frequencies with which they are drawn; equal without any."""


def _corpora(values: Values) -> Corpora:
    return Corpora(**values)


corpora_options = gather(
    "corpora",
    _corpora,
    click.option(
        "--data",
        "sources",
        type=Named(),
        multiple=True,
        required=True,
        help="Corpus to train on, as for sweep; may be given several times.",
    ),
    click.option(
        "--weight",
        "weights",
        type=Finite(),
        multiple=True,
        help="Weight with which each --data is drawn, in the same order.  [default: equal]",
    ),
)
"""The options that say which texts are trained on; they give Corpora."""

task_data_option = click.option(
    "--task-data",
    type=Place(),
    help="Directory with a TASK.jsonl file for each task, in place of the tasks' own data sets.",
)

limit_option = click.option(
    "--limit", type=click.IntRange(1), help="Maximum number of items of each task.  [default: all]"
)


def run_settings(values: Values) -> "RunOptions":
    """Return the options of a run, which prints messages unless --quiet was given."""
    from robustness.runs.settings import RunOptions, silent

    # One flag with two names at the command line, of which the library has the second.
    fresh = not values.pop("resume")
    told = silent if is_quiet() else tell
    return RunOptions(fresh=fresh, command=command_line(), tell=told, **given(values))


resume_option = click.option(
    "--resume/--fresh",
    default=True,
    help="Continue an interrupted run, or discard it and start anew.  [default: resume]",
)

batch_option = click.option(
    "--batch-tokens",
    type=click.IntRange(1),
    help="Number of tokens of text in one trace.  [default: what suits the device and its memory]",
)

cap_option = click.option(
    "--state-cap",
    type=click.IntRange(1),
    help="Maximum number of states that go through a block together.  [default: what suits them]",
)


def run_options(out: str, *others: Decorator) -> Decorator:
    """Return the options of a long run, which give RunOptions.

    Parameters
    ----------
    out : str
        Help of --out.
    *others : callable
        Options that come first, for other fields of RunOptions.
    """
    place = click.option("--out", type=Place(), help=out)
    return together(gather("run", run_settings, *others, place, resume_option), quiet_option)


def model_argument(*, required: bool = True) -> Decorator:
    """Return the argument MODEL, which `model_options` make part of the settings."""
    return click.argument("model", type=Named(), required=required)
