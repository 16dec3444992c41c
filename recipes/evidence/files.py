"""The files of a model's directory, as recipes read them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from recipes.recipe import SOURCES, STAGES, Source
from robustness.errors import Refusal
from robustness.files.netcdf import load
from robustness.files.provenance import project_version, value_digest
from robustness.schedules.interventions import intervention


class Absent(Refusal):
    """A figure or a claim needs a file that is missing, or that has too little in it."""


class Files:
    """The files of one model, each read when it is first wanted.

    Parameters
    ----------
    directory : str or path
        As `stages reproduce` or single commands leave it.
    left_out : mapping of str to str, optional
        Reasons why files are missing, by the file's name; by default those in `claims.nc`.

    Raises
    ------
    Refusal
        If there is no such directory, it has no file of a model, or files of different models.
    """

    def __init__(self, directory: str | Path, left_out: Mapping[str, str] | None = None) -> None:
        self.directory = Path(directory)
        self._read: dict[str, xr.Dataset] = {}
        there = [each for each in SOURCES if self._readable(each)]
        self.sources: Sequence[Source] = there
        """Files of the directory, in the order in which they are made."""
        if not there:
            raise Refusal(
                f"{self.directory.name} has no file of a model (such as sweep.nc): give the "
                "directory that `stages reproduce` left"
            )
        if left_out is None:
            left_out = self._recorded()
        self.left_out = dict(left_out)
        """Reasons why files are missing, by the file's name."""
        # Boundaries are drawn anew where they are of other files: see `missing`.
        attrs = [self._load(each.file).attrs for each in there if each != STAGES or len(there) < 2]
        for name in ("model", "weights_sha256", "revision"):
            names = sorted({str(each[name]) for each in attrs if name in each})
            if len(names) > 1:
                raise Refusal(
                    f"the files in {self.directory.name} are of different models: "
                    f"{', '.join(names)}; keep a directory for each"
                )
        self.model = str(attrs[0]["model"])
        self.architecture = str(attrs[0].get("architecture", ""))
        self.label = self.name
        """Name of the model among others."""

    @property
    def name(self) -> str:
        """The model's name without its owner."""
        return self.model.rpartition("/")[2]

    @property
    def layers(self) -> int:
        """How many blocks the model has."""
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
        """Whether files are there, with enough in them."""
        return not any(self.missing(source) for source in sources)

    def missing(self, source: Source) -> str:
        """Return why a file cannot be used, or nothing if it can."""
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
            If the file is missing, or has too little in it.
        """
        reason = self.missing(source)
        if reason:
            raise Absent(reason)
        return self._load(source.file)

    def get(self, source: Source) -> xr.Dataset | None:
        """Return a file's dataset, however little is in it, or None if it is missing."""
        there = source in self.sources and "sequences_done" not in self._load(source.file).attrs
        return self._load(source.file) if there else None

    def stamp(self, *but: Source) -> str:
        """Return what tells whether something was made from these very files, by this version."""
        made = [
            (each.file, self._load(each.file).attrs["created"])
            for each in self.sources
            if each not in but
        ]
        return value_digest((project_version(), self.model, made))

    def _recorded(self) -> dict[str, str]:
        try:
            attrs = load(self.directory / "claims.nc").attrs
        except Refusal:  # there is none, or a damaged one, which is written anew
            return {}
        found: dict[str, str] = json.loads(attrs.get("left_out", "{}"))
        return found

    def _readable(self, source: Source) -> bool:
        """Whether a file is there; a damaged one is refused, but for what is drawn anew."""
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
    """Read the files of several models; those of one name are told apart by their directories.

    Raises
    ------
    Refusal
        If a directory is given twice.
    """
    paths = [Path(directory).resolve() for directory in directories]
    for path in paths:
        if paths.count(path) > 1:
            raise Refusal(f"{path.name} is there twice: give every directory once")
    models = [Files(directory) for directory in directories]
    names = [files.name for files in models]
    for files, path in zip(models, paths, strict=True):
        if names.count(files.name) > 1:
            files.label = f"{files.name} ({path.name})"
    if len({files.label for files in models}) < len(models):
        for files, path in zip(models, paths, strict=True):
            files.label = f"{files.name} ({path.parent.name}/{path.name})"
    return models


def best_head(dataset: xr.Dataset) -> tuple[int, int]:
    """Return layer and index of the head that stands out on the words that heads are found by."""
    layer, head = divmod(int(dataset["finding_score"].values.argmax()), dataset.sizes["head"])
    return layer, head


def task_metric(dataset: xr.Dataset, task: str) -> str:
    """Return by which metric a task is usually reported: normalised by length, or plain."""
    if task == "arc_easy" or "acc_norm" not in dataset["metric"]:
        return "acc"
    normed = dataset["clean_value"].sel(task=task, metric="acc_norm")
    return "acc_norm" if bool(normed.notnull()) else "acc"


def _count(dataset: xr.Dataset, source: Source) -> int:
    """Return how many independent units a file has."""
    if source.unit == "documents":
        return int(np.unique(dataset["document"]).size)
    if source.unit == "batches":
        return int(dataset.sizes["batch"])
    if source.unit == "words":
        return int(min(dataset.attrs["words_in_pieces"], dataset.attrs["whole_words"]))
    return int(dataset.sizes["item"]) if source.unit == "items" else 0
