"""Settings of benchmark tasks: which tasks are run, on which items, and under which schedules."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustness.errors import Refusal
from robustness.schedules import Schedule
from robustness.sweeps.settings import SweepSettings

TASKS = ("hellaswag", "arc_easy", "lambada_openai")
"""Tasks of the paper."""


@dataclass(frozen=True)
class TaskSettings:
    """Settings of a run of benchmark tasks that change the content of its file.

    Raises
    ------
    Refusal
        If settings exclude each other.
    """

    tasks: Sequence[str] = TASKS
    """Names of lm-eval tasks that score continuations or generate text."""
    interventions: Sequence[str] | None = None
    """Names as in `robustness.schedules.built_in.FORMS`; by default drop and swap, unless
    schedules are given."""
    schedules: Sequence[Schedule | str] = ()
    """Free schedules, run instead of interventions."""
    layers: Sequence[int] | None = None
    """Layers at which interventions are made; by default every layer."""
    clean_only: bool = False
    """Whether the clean model alone is run."""
    data: str | Path | None = None
    """Path of a directory with `TASK.jsonl` files that take the place of the tasks' data sets:
    lines of `query`, `choices` and `gold`, of `context` and `continuation`, or with the fields of
    the original."""
    limit: int | None = None
    """Maximum number of items of each task; by default all items."""

    def __post_init__(self) -> None:
        """Refuse settings that exclude each other."""
        if isinstance(self.tasks, str):
            raise Refusal(f"tasks are a list of names: [{self.tasks!r}]")
        if not self.tasks:
            raise Refusal(f"no task was asked for; the paper's are: {', '.join(TASKS)}")
        for name in self.tasks:
            if list(self.tasks).count(name) > 1:
                raise Refusal(f"task {name!r} was asked for twice")
        if self.limit is not None and self.limit < 1:
            raise Refusal(f"`limit` must be 1 or more, not {self.limit}")
        edited = self.interventions or self.schedules or self.layers is not None
        if self.clean_only and edited:
            raise Refusal("`clean_only` goes without interventions, schedules and `layers`")
        # Built for its own checks, so that wrong schedules are refused here and not in a run.
        _ = self.sweep

    @property
    def sweep(self) -> SweepSettings:
        """The schedules, as settings of a sweep."""
        return SweepSettings(self.interventions, self.schedules, self.layers)
