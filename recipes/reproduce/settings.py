"""Settings of a reproduction, and the fingerprint that identifies a finished one."""

import stat
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from recipes.experiments.catalogue import choose
from recipes.recipe import Recipe
from robustness.errors import Refusal
from robustness.files.provenance import file_digest, project_version, value_digest
from robustness.models import checkpoint, hashes
from robustness.models.settings import ModelSettings
from robustness.runs.settings import RunOptions
from robustness.text.local_file import expanded, file_kind
from robustness.text.settings import TextSettings

FILE_SETTINGS = ("text.source", "wic_data", "task_data")
"""Settings that may name local files, which count by their contents."""


@dataclass(frozen=True)
class ReproduceSettings:
    """Settings of a reproduction: the experiments, the model, and all data.

    Raises
    ------
    Refusal
        If an experiment or a path of data does not exist.
    """

    model: ModelSettings
    """Model that is measured."""
    text: TextSettings = field(default_factory=TextSettings)
    """Text for sweeps and measurements; probes read its source, too."""
    experiments: tuple[str, ...] = ()
    """Names of experiments, which must all succeed. By default all experiments that fit the model
    and the data."""
    wic_data: str | Path = "builtin"
    """Word-in-context pairs, as `probes.pairs.read_pairs` takes them."""
    task_data: str | Path | None = None
    """Path of a directory with `TASK.jsonl` files that replace the tasks' data sets."""
    limit: int | None = None
    """Maximum number of items of each task; by default all of them."""

    def __post_init__(self) -> None:
        """Check experiments and paths before hours are spent on measuring."""
        choose(self.experiments)
        for name in ("wic_data", "task_data"):
            path = str(getattr(self, name) or "")
            # Anything else may be the name of a data set.
            if path.startswith((".", "/", "~")) and not Path(path).expanduser().exists():
                raise Refusal(f"`{name}`: there is no {path}")

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """Recipes of the experiments."""
        return choose(self.experiments)

    @property
    def probed_text(self) -> str | Path:
        """Text that probes cut their inputs from."""
        # The small built-in text has too few of the words that probes look for.
        return "builtin-sampled" if self.text.source == "builtin" else self.text.source

    def fingerprint(self, options: RunOptions) -> str:
        """Hash all settings, the weights and the data, without opening the model.

        Local files count by their contents, a hub id by its name.

        Parameters
        ----------
        options : RunOptions
            Options of the run, of which the sizes of batches count.
        """
        values: dict[str, Any] = {
            **_by_name("text", self.text),
            **_by_name("model", self.model),
            "experiments": [recipe.name for recipe in self.recipes],
            "limit": self.limit,
            "wic_data": self.wic_data,
            "task_data": self.task_data,
            "batch_tokens": options.batch_tokens,
            "state_cap": options.state_cap,
        }
        texts = {name: str(value) for name, value in values.items()}
        for name in FILE_SETTINGS:
            digests = list(map(file_digest, _files(values[name])))
            if digests:
                texts[name] = str(digests)
        _, path = checkpoint.resolve(self.model.source)
        weights = hashes.hash_directory(Path(path)) if Path(path).is_dir() else ""
        return value_digest((project_version(), weights, sorted(texts.items())))


def _by_name(prefix: str, settings: ModelSettings | TextSettings) -> dict[str, Any]:
    """Return the values of settings by their names, after a prefix and a dot."""
    # Not by `asdict`, which copies deeply: a mapping of devices cannot be copied so.
    return {f"{prefix}.{item.name}": getattr(settings, item.name) for item in fields(settings)}


def _files(value: Any) -> list[Path]:
    """Return the regular files that a setting names, directly or by their directory."""
    if not isinstance(value, (str, Path)):
        return []
    path = expanded(value)
    kind = file_kind(path)
    if kind == stat.S_IFDIR:
        return sorted(entry for entry in path.iterdir() if file_kind(entry) == stat.S_IFREG)
    # A path of another kind is refused where it is read; opening a pipe would wait for a writer.
    return [path] if kind == stat.S_IFREG else []
