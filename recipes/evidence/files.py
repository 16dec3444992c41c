"""Files of a model's directory, as recipes read them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from recipes.recipe import SOURCES, STAGES, Source
from robustness.errors import Refusal
from robustness.files.netcdf import load
from robustness.files.provenance import project_version, value_digest
from robustness.schedules.built_in import intervention


class Absent(Refusal):
    """A figure or a claim needs a file that is missing, or that has too few values."""


class Files:
    """Files of one model.

    Parameters
    ----------
    directory : str or path
        Path of a directory that `stages reproduce` or single commands wrote.
    left_out : mapping of str to str, optional
        Reasons why files are missing, by their names; by default those in `claims.nc`.

    Raises
    ------
    Refusal
        If the directory does not exist, or holds files of no model or of different models.
    """

    def __init__(self, directory: str | Path, left_out: Mapping[str, str] | None = None) -> None:
        self.directory = Path(directory)
        self._read: dict[str, xr.Dataset] = {}
        self.sources: Sequence[Source] = list(filter(self._readable, SOURCES))
        """Files of the directory, in the order in which they are made."""
        if not self.sources:
            raise Refusal(
                f"{self.directory.name} has no file of a model (such as sweep.nc): give the "
                "directory that `stages reproduce` left"
            )
        if left_out is None:
            left_out = self._recorded()
        self.left_out = dict(left_out)
        """Reasons why files are missing, by their names."""
        # Stages of another model do not matter: `missing` has them made again.
        measured = [source for source in self.sources if source != STAGES] or self.sources
        for name in ("model", "weights_sha256", "revision"):
            self._check_equal(name, measured)
        attrs = self._load(measured[0].file).attrs
        self.model = str(attrs["model"])
        self.architecture = str(attrs.get("architecture", ""))
        self.label = self.name
        """Name of the model in comparisons, where two models may share a name."""

    def _check_equal(self, attribute: str, sources: Sequence[Source]) -> None:
        """Refuse files of different models, which have different values of an attribute."""
        values = set()
        for source in sources:
            attrs = self._load(source.file).attrs
            if attribute in attrs:
                values.add(str(attrs[attribute]))
        if len(values) > 1:
            raise Refusal(
                f"the files in {self.directory.name} are of different models: "
                f"{', '.join(sorted(values))}; keep a directory for each"
            )

    @property
    def name(self) -> str:
        """Name of the model without its owner."""
        return self.model.rpartition("/")[2]

    @property
    def layers(self) -> int:
        """Number of blocks of the model."""
        for source in self.sources:
            dataset = self._load(source.file)
            if "layers" in dataset.attrs:
                continue  # a sweep of some of them
            if "depth" in dataset.dims:
                return dataset.sizes["depth"] - 1
            if "layer" in dataset.dims:
                return dataset.sizes["layer"]
        raise Absent("no file says how many layers the model has")

    def has(self, *sources: Source) -> bool:
        """Whether files exist and have enough values."""
        return not any(self.missing(source) for source in sources)

    def missing(self, source: Source) -> str:
        """Return the reason why a file cannot be used, or an empty text."""
        if source not in self.sources:
            return self.left_out.get(source.file, f"not measured yet: run `{source.made_by}`")
        dataset = self._load(source.file)
        if "sequences_done" in dataset.attrs:
            return f"{source.file}.nc is not finished"
        if "shard" in dataset.attrs:
            return f"{source.file}.nc is shard {dataset.attrs['shard']}: merge all of them"
        if dataset.attrs.get("measurement") != source.kind:
            return f"{source.file}.nc holds {dataset.attrs.get('measurement')}, not {source.kind}"
        if source == STAGES and dataset.attrs.get("sources") != self.stamp(STAGES):
            return "stages.nc was made from other files: run `stages segment` again"
        if "layers" in dataset.attrs:
            return f"{source.file}.nc has layers {dataset.attrs['layers']}, and all are needed"
        for name in source.arguments if source.command == "sweep" else source.interventions:
            fits = intervention(name).span <= dataset.sizes["layer"]
            if fits and name not in dataset["intervention"]:
                return f"{source.file}.nc has no {name}"
        count = _count(dataset, source)
        if count < source.least:
            return f"{source.file}.nc has {count} {source.unit}, and {source.least} are needed"
        return ""

    def __getitem__(self, source: Source) -> xr.Dataset:
        """Return a file's dataset.

        Raises
        ------
        Absent
            If the file is missing, or has too few values.
        """
        reason = self.missing(source)
        if reason:
            raise Absent(reason)
        return self._load(source.file)

    def get(self, source: Source) -> xr.Dataset | None:
        """Return a file's dataset, even if it has few values, or None if it is missing."""
        if source not in self.sources:
            return None
        dataset = self._load(source.file)
        # A run that is not finished is as good as missing.
        return None if "sequences_done" in dataset.attrs else dataset

    def search(self) -> xr.Dataset | None:
        """Return the finished search for a smaller model, `search.nc`, if there is one.

        No experiment of the paper needs it, so it is none of the sources.

        Raises
        ------
        Refusal
            If it is of another model.
        """
        if not (self.directory / "search.nc").exists():
            return None
        dataset, beside = self._load("search"), self._load(self.sources[0].file)
        for name in ("model", "weights_sha256", "revision"):
            if dataset.attrs.get(name) != beside.attrs.get(name):
                raise Refusal(
                    f"{self.directory.name}/search.nc is of another model than the files beside "
                    "it: keep a directory for each"
                )
        return dataset if "chosen" in dataset else None

    def stamp(self, *but: Source) -> str:
        """Return a digest of the files' times of creation and of the project's version.

        A file that records it was made from the present files if the digest is still the same.
        """
        times = []
        for source in self.sources:
            if source not in but:
                times.append((source.file, self._load(source.file).attrs["created"]))
        return value_digest((project_version(), self.model, times))

    def _recorded(self) -> dict[str, str]:
        try:
            attrs = load(self.directory / "claims.nc").attrs
        except Refusal:  # there is none, or a damaged one, which is written anew
            return {}
        left_out: dict[str, str] = json.loads(attrs.get("left_out", "{}"))
        return left_out

    def _readable(self, source: Source) -> bool:
        """Whether a file exists; a damaged one is refused, except the stages, made in seconds."""
        if not (self.directory / f"{source.file}.nc").exists():
            return False
        try:
            self._load(source.file)
        except Refusal:
            if source != STAGES:
                raise
            return False
        return True

    def _load(self, name: str) -> xr.Dataset:
        if name not in self._read:
            path = self.directory / f"{name}.nc"
            self._read[name] = load(path)
            if "measurement" not in self._read[name].attrs:
                raise Refusal(f"{path} is no measurement of a model: move it elsewhere")
        return self._read[name]


def side_by_side(directories: Sequence[str | Path]) -> list[Files]:
    """Read the files of several models, and label models of the same name by their directories.

    Raises
    ------
    Refusal
        If a directory is given twice.
    """
    paths = [Path(directory).resolve() for directory in directories]
    for path in paths:
        if paths.count(path) > 1:
            raise Refusal(f"{path.name} is given twice: give every directory once")
    models = list(map(Files, directories))
    names = [files.name for files in models]
    for files, path in zip(models, paths, strict=True):
        if names.count(files.name) > 1:
            files.label = f"{files.name} ({path.name})"
    if len({files.label for files in models}) < len(models):
        for files, path in zip(models, paths, strict=True):
            files.label = f"{files.name} ({path.parent.name}/{path.name})"
    return models


def best_head(dataset: xr.Dataset) -> tuple[int, int]:
    """Return layer and index of the head with the highest score on the words that select heads."""
    layer, head = divmod(int(dataset["finding_score"].values.argmax()), dataset.sizes["head"])
    return layer, head


def task_metric(dataset: xr.Dataset, task: str) -> str:
    """Return the metric that a task is usually reported in.

    It is accuracy, normalised by length or plain; for a task that generates text, exact match, of
    answers that were extracted in the strict way if there are several.
    """
    values = dataset["clean_value"].sel(task=task)
    matches = []
    for metric in map(str, dataset["metric"].values):
        if metric.partition(",")[0] == "exact_match" and bool(values.sel(metric=metric).notnull()):
            matches.append(metric)
    if matches:
        # `strict-match` comes after `flexible-extract`.
        return matches[-1]
    # ARC's easy half is reported in plain accuracy, though the harness has both.
    if task == "arc_easy" or "acc_norm" not in dataset["metric"]:
        return "acc"
    normed = dataset["clean_value"].sel(task=task, metric="acc_norm")
    return "acc_norm" if bool(normed.notnull()) else "acc"


def _count(dataset: xr.Dataset, source: Source) -> int:
    """Return the number of independent values of a file, in the unit of its source."""
    if source.unit == "documents":
        return int(np.unique(dataset["document"]).size)
    if source.unit == "batches":
        return int(dataset.sizes["batch"])
    if source.unit == "words":
        return int(min(dataset.attrs["words_in_pieces"], dataset.attrs["whole_words"]))
    return int(dataset.sizes["item"]) if source.unit == "items" else 0
