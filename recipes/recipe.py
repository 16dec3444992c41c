"""What a recipe is: one experiment of the paper as data. Making one measures nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.paper_models import PAPER, Checkpoint


@dataclass(frozen=True)
class Source:
    """A file that an experiment is read from, and what makes it."""

    file: str
    """Its name in a model's directory, without `.nc`."""
    command: str
    """`sweep`, `observe`, `neurons`, `probe` or `tasks`."""
    arguments: tuple[str, ...] = ()
    """Interventions of a sweep; tasks."""
    interventions: tuple[str, ...] = ()
    """Under which tasks are run."""
    unit: str = "documents"
    """What is counted as independent."""
    least: int = 10
    """Fewer of these are neither drawn nor judged."""
    look: str = ""
    """A line of xarray that draws something of its `data`."""

    @property
    def kind(self) -> str:
        """What the file's attribute `measurement` says."""
        kinds = {"repeat": "sweep", "ing": "suffix", "tasks-repeat": "tasks"}
        return kinds.get(self.file, self.file)


SWEEP = Source(
    "sweep", "sweep", ("drop", "swap"), look='data.kl.mean("sequence").plot.line(x="layer")'
)
REPEAT = Source(
    "repeat",
    "sweep",
    ("repeat-5", "repeat-3", "repeat-5-contiguous", "repeat-3-contiguous"),
    look='data.entropy.mean("sequence").plot.line(x="layer")',
)
LENS = Source("lens", "observe", look='data.kl.mean("sequence").plot.line(x="depth")')
ATTENTION = Source(
    "attention", "observe", look='data.previous.mean(("head", "sequence")).plot.line(x="layer")'
)
NORMS = Source(
    "norms",
    "observe",
    look='data.mlp_norm.sel(statistic="mean").mean("sequence").plot.line(x="layer")',
)
SIMILARITY = Source(
    "similarity",
    "observe",
    look='data.cosine[:, 1, 0].mean("sequence").plot.line(x="layer")',
)
CKA = Source("cka", "observe", unit="batches", least=4, look="data.cka[0].plot()")
NEURONS = Source("neurons", "neurons", unit="", least=0, look='data.share.plot.line(x="layer")')
WIC = Source("wic", "probe", unit="items", least=50, look='data.accuracy.plot.line(x="depth")')
SUFFIX = Source("ing", "probe", unit="items", least=100, look='data.accuracy.plot.line(x="size")')
SUBJOINER = Source("subjoiner", "probe", unit="words", least=50, look="data.score.plot()")
TASKS = Source(
    "tasks",
    "tasks",
    ("hellaswag", "arc_easy", "lambada_openai"),
    ("drop", "swap"),
    unit="items",
    least=100,
    look='data.value.sel(metric="acc", intervention="drop").plot.line(x="layer")',
)
TASKS_REPEAT = Source(
    "tasks-repeat",
    "tasks",
    ("hellaswag",),
    ("repeat-5",),
    unit="items",
    least=100,
    look='data.value.sel(metric="acc", intervention="repeat-5").plot.line(x="layer")',
)
STAGES = Source("stages", "segment", unit="", least=0, look='data.signature.plot(x="layer")')

SOURCES = (
    SWEEP,
    LENS,
    ATTENTION,
    NORMS,
    CKA,
    SIMILARITY,
    NEURONS,
    REPEAT,
    WIC,
    SUFFIX,
    SUBJOINER,
    TASKS,
    TASKS_REPEAT,
    STAGES,
)
"""Every file of a model, in the order in which they are made."""


@dataclass(frozen=True)
class Picture:
    """A figure of the paper."""

    names: tuple[str, ...]
    """Its numbers: `5a` in the second version of the paper, `v1 3` in the first."""
    draw: str
    """Name of the function that draws it, in `recipes.figures.registry`."""
    title: str
    caption: str
    """What is drawn, and how it is to be read."""
    sources: tuple[Source, ...] = ()
    """What it is drawn from; a diagram from nothing but schedules."""
    options: tuple[tuple[str, Any], ...] = ()
    """Further arguments of the function."""
    fewest: int = 1
    """Models that it takes at least."""
    most: int = 16
    """Models that it has room for."""

    @property
    def name(self) -> str:
        """The number by which it is known here, fit for a file's name."""
        return self.names[0].replace(" ", "-")


@dataclass(frozen=True)
class Check:
    """A number that a claim stands on, and where it must lie."""

    what: str
    """What the number is."""
    value: Callable[..., Any]
    """From a model's files, or those of several models, to the number: a DataArray over `draw` (see
    `uncertainty.drawn`), a float without uncertainty, or value, low and high."""
    least: float | None = None
    most: float | None = None
    """It must be above the one and below the other; a number without either is only reported."""
    unit: str = "1"


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, as numbers and thresholds."""

    name: str
    text: str
    where: str
    """Where the paper says so."""
    checks: tuple[Check, ...] = ()
    unjudged: str = ""
    """Why no experiment decides it."""
    only: Callable[[Any], str] = lambda files: ""
    """Why a model's files cannot decide it, or nothing: for a statement about one family."""
    models: int = 1
    """How many models it needs at least; its numbers are of several if more than one."""


@dataclass(frozen=True)
class Recipe:
    """One experiment: what is measured, what is drawn, and what the paper says of it."""

    name: str
    """`E1` to `E13`, as they are numbered here; `T1` for Table 1."""
    title: str
    question: str
    sources: tuple[Source, ...]
    pictures: tuple[Picture, ...]
    claims: tuple[Claim, ...]
    cost: str
    """In forward passes over the text, or what else it takes."""
    models: tuple[Checkpoint, ...] = PAPER
    """Which models the paper shows it on."""
    data: str = ""
    """On what and how much of it; empty where the paper does not say."""
    notes: Sequence[str] = ()
    """Where the paper leaves something open, what is chosen here."""
