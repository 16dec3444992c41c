"""Recipes: experiments of the paper as data, with their files, figures and claims."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.paper_models import PAPER, Checkpoint


@dataclass(frozen=True)
class Source:
    """A file that experiments need, and the command that makes it."""

    file: str
    """Name of the file in a model's directory, without `.nc`."""
    command: str
    """Command that makes the file: `sweep`, `observe`, `neurons`, `probe`, `tasks`, `segment`."""
    arguments: tuple[str, ...] = ()
    """Interventions of a sweep, or names of tasks."""
    interventions: tuple[str, ...] = ()
    """Interventions under which tasks are evaluated."""
    unit: str = "documents"
    """Independent values of the file: documents, batches, items or words; empty for weights."""
    least: int = 10
    """Minimum number of independent values for figures and claims."""
    look: str = ""
    """Line of xarray that draws a variable of the file, loaded as `data`."""

    @property
    def made_by(self) -> str:
        """Command line that makes the file."""
        # These two are not the default file of any single command.
        if self.file in {"repeat", "tasks-repeat"}:
            return "stages reproduce MODEL E11"
        if self.command == "segment":
            return "stages segment DIRECTORY"
        if self.command in {"observe", "neurons"}:
            return f"stages observe MODEL {self.file}"
        if self.command == "probe":
            return f"stages probe MODEL {self.file}"
        return f"stages {self.command} MODEL"

    @property
    def kind(self) -> str:
        """Value of the file's attribute `measurement`."""
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
"""All files of a model, in the order in which they are made."""


@dataclass(frozen=True)
class Picture:
    """A figure of the paper."""

    names: tuple[str, ...]
    """Numbers of the figure: `5a` in the second version of the paper, `v1 3` in the first."""
    draw: str
    """Name of the function that draws it, in `recipes.figures.registry`."""
    title: str
    caption: str
    """Explanation of the figure and how to read it."""
    sources: tuple[Source, ...] = ()
    """Files that the figure needs; none for a diagram of schedules."""
    options: tuple[tuple[str, Any], ...] = ()
    """Further keyword arguments of the function, in pairs so that a picture can be hashed."""
    fewest: int = 1
    """Minimum number of models."""
    most: int = 16
    """Maximum number of models."""

    @property
    def name(self) -> str:
        """File name of the figure without ending, from its first number."""
        return self.names[0].replace(" ", "-")


@dataclass(frozen=True)
class Check:
    """A number that a claim depends on, and its thresholds."""

    what: str
    """Name of the number, in words."""
    value: Callable[..., Any]
    """Function of a model's files, or of those of several models, that returns a DataArray over
    `draw` (see `bootstrap_means`), a float without uncertainty, or value, low and high."""
    least: float | None = None
    most: float | None = None
    """Thresholds that the number must be above and below; without either it is only reported."""
    unit: str = "1"
    """Unit of the number."""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, as numbers and thresholds."""

    name: str
    """Name by which files and reports refer to the claim."""
    text: str
    """Statement in plain words."""
    where: str
    """Section, figure or table of the paper."""
    checks: tuple[Check, ...] = ()
    """Numbers that must all meet their thresholds."""
    unjudged: str = ""
    """Reason why no experiment can decide the claim."""
    only: Callable[[Any], str] = lambda files: ""
    """Function of a model's files that returns why they cannot decide the claim, or an empty
    text."""
    models: int = 1
    """Minimum number of models; above one, the numbers are of several models."""


@dataclass(frozen=True)
class Recipe:
    """One experiment: files to measure, figures to draw, and claims of the paper."""

    name: str
    """Name of the experiment: `E1` to `E13`, as numbered here; `T1` for Table 1."""
    title: str
    question: str
    """Question that the experiment answers."""
    sources: tuple[Source, ...]
    pictures: tuple[Picture, ...]
    claims: tuple[Claim, ...]
    cost: str
    """Cost in forward passes over the text, or in other work."""
    models: tuple[Checkpoint, ...] = PAPER
    """Models that the paper shows it on."""
    data: str = ""
    """Text and its amount in the paper; empty where the paper does not say."""
    notes: Sequence[str] = ()
    """Choices made here where the paper leaves something open."""
