"""Settings of a reproduction, and the fingerprint by which a finished one is known."""

import stat
from dataclasses import asdict, dataclass, field, fields
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
        If there is no such experiment, or no such directory of data.
    """

    model: ModelSettings
    """Model that is measured."""
    text: TextSettings = field(default_factory=TextSettings)
    """Text for sweeps and measurements; probes read its source, too."""
    experiments: tuple[str, ...] = ()
    """Names of experiments, all of which must succeed; without any, all experiments that fit the
    model and the data."""
    wic_data: str | Path = "builtin"
    """Word-in-context pairs, as `probes.pairs.read_pairs` takes them."""
    task_data: str | Path | None = None
    """Path of a directory with `TASK.jsonl` files in the place of the tasks' data sets."""
    limit: int | None = None
    """Maximum number of items of each task; all of them without it."""

    def __post_init__(self) -> None:
        """Refuse what is not there."""
        choose(self.experiments)
        for name in ("wic_data", "task_data"):
            given = str(getattr(self, name) or "")
            if given.startswith((".", "/", "~")) and not Path(given).expanduser().exists():
                raise Refusal(f"`{name}`: there is no {given}")

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """Recipes of the experiments."""
        return choose(self.experiments)

    @property
    def probed_text(self) -> str | Path:
        """Text that probes cut their inputs from: of the built-in ones the larger."""
        return "builtin-sampled" if self.text.source == "builtin" else self.text.source

    def fingerprint(self, options: RunOptions) -> str:
        """Hash all settings, the weights and the data, without opening the model.

        Local files count by their contents, a hub id by its name.

        Parameters
        ----------
        options : RunOptions
            Of which the sizes of batches count.
        """
        described = {f"text.{key}": value for key, value in asdict(self.text).items()}
        described |= {f"model.{key}": value for key, value in _described(self.model).items()}
        described |= {"experiments": [recipe.name for recipe in self.recipes], "limit": self.limit}
        described |= {"wic_data": self.wic_data, "task_data": self.task_data}
        described |= {"batch_tokens": options.batch_tokens, "state_cap": options.state_cap}
        told = {key: str(value) for key, value in described.items()}
        for key in FILE_SETTINGS:
            contents = [file_digest(path) for path in _files(described[key])]
            told[key] = str(contents) if contents else told[key]
        _, place = checkpoint.resolve(self.model.source)
        weights = hashes.hash_directory(Path(place)) if Path(place).is_dir() else ""
        return value_digest((project_version(), weights, sorted(told.items())))


def _described(model: ModelSettings) -> dict[str, Any]:
    """Return the settings of a model by name; a mapping of devices cannot be copied deeply."""
    return {each.name: getattr(model, each.name) for each in fields(model)}


def _files(value: Any) -> list[Path]:
    """Return the files that a setting names, if it names any."""
    if not isinstance(value, (str, Path)):
        return []
    path = expanded(value)
    kind = file_kind(path)
    if kind == stat.S_IFDIR:
        return sorted(each for each in path.iterdir() if file_kind(each) == stat.S_IFREG)
    # What is no file is refused where it is read; a pipe would wait here for a writer.
    return [path] if kind == stat.S_IFREG else []
