"""What a file of every kind holds: dimensions, variables, attributes, and in which ranges.

Files come from elsewhere and from other versions, and a name that is right says nothing of what is
behind it. `examine` looks at a file before anything of it is read, `check` at what was read.
Measurements of a user's own have no kind here, and are asked for what all files have.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xarray as xr

from robustness.errors import Refusal
from robustness.files.metrics import CLEAN_READOUTS, MODAL_SHARE, NONFINITE, READOUTS

SCHEMA = 1
"""Version of the layout of files; a file with a higher one is refused."""

TALLY = "tally"
"""The group of a file that holds counts which the run may still be in need of."""

REMEDY = "remove it, and the command that made it makes it anew"

LONGEST = 1000
"""Letters of a model's name, an architecture or a text's name, at most."""

DENSEST = 1100
"""To how many times its size a file's compressed numbers unfold, at most: zlib allows 1032."""

TEXT_BYTES = 100
"""Bytes that a text takes in memory, at least."""

SLACK = 1e-3
"""How far rounding takes a share beyond 0 and 1, or a divergence below 0."""

DECODED = frozenset(
    "scale_factor add_offset missing_value _Unsigned valid_min valid_max valid_range".split()
)
"""Attributes of variables by which readers of NetCDF change numbers; no file here has one."""

MAY_BE_EMPTY = frozenset({"edge", "check", "cell", "claim_across"})
"""Dimensions that may have no places."""

UNLABELLED = frozenset({"check"})
"""Dimensions that may be without labels."""


@dataclass(frozen=True)
class Variable:
    """What is asked of a variable, or of labels, where it is there."""

    dims: tuple[str, ...]
    kind: str = "f"
    """`f` for numbers, `i` for whole ones, `fi` for either, `U` for texts."""
    least: float = -math.inf
    most: float = math.inf


@dataclass(frozen=True)
class Kind:
    """What a kind of file holds, by its attribute `measurement`."""

    variables: Mapping[str, Variable]
    """Of which one at least is there."""
    labels: Mapping[str, Variable]
    """Coordinates, there wherever a variable has their dimension."""
    needed: tuple[str, ...] = ()
    """Variables without which a finished file is none."""
    attrs: Mapping[str, "Attribute"] = field(default_factory=dict)
    needed_attrs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attribute:
    """What is asked of an attribute of a file, where it is there."""

    fits: Callable[[Any], bool]
    what: str
    """What it is said to be where it is not."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_object(value: Any) -> bool:
    try:
        found = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and all(isinstance(each, str) for each in found.values())


def _whole(least: int) -> Attribute:
    return Attribute(
        lambda value: _is_whole(value) and value >= least, f"a whole number from {least}"
    )


TEXT = Attribute(_is_text, "text")
NAME = Attribute(
    lambda value: _is_text(value) and len(value) <= LONGEST, f"a name of {LONGEST} letters at most"
)
NUMBER = Attribute(
    lambda value: (
        (_is_whole(value) or isinstance(value, (float, np.floating))) and math.isfinite(value)
    ),
    "a number",
)
NUMBER_OR_NAN = Attribute(
    lambda value: _is_whole(value) or isinstance(value, (float, np.floating)), "a number"
)
YES_OR_NO = Attribute(lambda value: _is_whole(value) and value in (0, 1), "0 or 1")
OBJECT = Attribute(_is_object, "a JSON object of texts")
PART = Attribute(
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"[1-9]\d*/[1-9]\d*", value)),
    "one of so many parts, as in 1/4",
)

NAMES = ("model", "architecture", "revision", "dtype", "device", "corpus", "measurement")
TEXTS = (
    "weights_sha256",
    "config_sha256",
    "corpus_sha256",
    "source_sha256",
    "measurement_sha256",
    "attention",
    "server",
    "server_versions",
    "processing",
    "windows",
    "bos",
    "alignment",
    "conventions",
    "versions",
    "command",
    "created",
    "out_of_memory",
    "difference",
)
ATTRIBUTES: Mapping[str, Attribute] = {
    **dict.fromkeys(TEXTS, TEXT),
    **dict.fromkeys(NAMES, NAME),
    **dict.fromkeys(("context", "batch_tokens", "batch_sequences"), _whole(1)),
    **dict.fromkeys(("sequences", "tokens", "seed", "sequences_done", "sequences_used"), _whole(0)),
}
"""What attributes are wherever they are, of all that is measured."""

MADE = ("model", "architecture", "conventions", "versions", "command", "created")
"""Attributes of all that is measured."""

SHARE = (-SLACK, 1 + SLACK)
WEIGHT = (-SLACK, 1.05)
"""Of attention weights, of which half precision makes a little more than a whole."""

RANGES = {
    **dict.fromkeys(("kl", "kl_reverse", "loss", "entropy"), (-0.1, math.inf)),
    **dict.fromkeys(("clean_loss", "clean_entropy"), (-0.1, math.inf)),
    **dict.fromkeys(("agreement", "accuracy", "clean_accuracy", "modal_share"), SHARE),
    "nonfinite": (0, math.inf),
}
"""Between which numbers the readouts are."""

SORTED = frozenset(
    "layer layer_to depth depth_to sequence batch head token item offset window span size key "
    "segment segments edge".split()
)
"""Dimensions whose labels ascend."""

SEQUENCES = {
    "sequence": Variable(("sequence",), "i", 0),
    "document": Variable(("sequence",), "i", 0),
}
LAYERS = {
    "layer": Variable(("layer",), "i", 0),
    "relative_depth": Variable(("layer",), "f", 0, 1),
}
COMMON = {
    **SEQUENCES,
    **LAYERS,
    **{name: Variable((name,), "i", 0) for name in ("layer_to", "depth", "depth_to", "batch")},
}
"""Labels that mean the same in a measurement of a user's own."""


def _names(*dims: str) -> dict[str, Variable]:
    return {dim: Variable((dim,), "U") for dim in dims}


def _numbers(least: float, *dims: str) -> dict[str, Variable]:
    return {dim: Variable((dim,), "i", least) for dim in dims}


def _sweep(*runs: str) -> Kind:
    """Return what a sweep holds, over interventions and layers, or over schedules."""
    rows = (*runs, "sequence")
    variables = {metric.name: Variable(rows, "f", *RANGES[metric.name]) for metric in READOUTS}
    for metric in CLEAN_READOUTS:
        variables[metric.name] = Variable(("sequence",), "f", *RANGES[metric.name])
    variables[NONFINITE.name] = Variable(rows, "i", *RANGES[NONFINITE.name])
    variables[MODAL_SHARE.name] = Variable(runs, "f", *RANGES[MODAL_SHARE.name])
    variables["token_id"] = Variable(("sequence", "token"), "i", 0)
    for name in ("compared", "predicted"):
        variables[name] = Variable(("sequence", "token"), "i", 0, 1)
    labels = {**SEQUENCES, "schedule": Variable(runs, "U"), **_numbers(0, "token")}
    if "layer" in runs:
        labels |= {**LAYERS, **_names("intervention"), **_numbers(0, *runs[1:])}
    return Kind(
        variables,
        labels,
        attrs={
            **dict.fromkeys(
                ("interventions", "schedules", "layers", "readouts", "per_token"), TEXT
            ),
            **dict.fromkeys(("corpus_sequences", "corpus_tokens", "documents"), _whole(0)),
            **dict.fromkeys(("shards_created", "shards_command"), TEXT),
            "state_cap": _whole(1),
            "until_se": NUMBER,
            "until_se_reached": NUMBER_OR_NAN,
            "shard": PART,
        },
        needed_attrs=("context",),
    )


def _bounded(name: str, *dims: str) -> dict[str, Variable]:
    ends = ("", "_low", "_high")
    return {f"{name}{end}": Variable(dims, "f", *SHARE) for end in ends}


def _probes(prefix: str, *dims: str) -> dict[str, Variable]:
    """Return what probes leave, each by itself or by what it is of."""
    return {
        f"{prefix}correct": Variable((*dims, "item"), "i", -1, 1),
        **_bounded(f"{prefix}accuracy", *dims),
        f"{prefix}dev_accuracy": Variable(dims, "f", *SHARE),
        f"{prefix}chosen": Variable(dims),
    }


_LENS = ("lens", "depth", "sequence")
_HEADS = ("layer", "head", "sequence")
_NORM = ("processing", "statistic", "sequence")
_TASK = ("task", "metric")

_CLEAN_TASK = {
    "clean_value": Variable(_TASK),
    "clean_standard_error": Variable(_TASK, "f", 0),
    "clean_correct": Variable(("metric", "item"), "f", *SHARE),
    "loglikelihood": Variable(("run", "request"), "f", -math.inf, 0.1),
    "greedy": Variable(("run", "request"), "i", 0, 1),
}
"""Variables of the clean model in a file of tasks, and those of an unfinished run."""

_TASK_LABELS = {
    **_names("task", "metric"),
    **_numbers(0, "item", "run", "request"),
    "item_task": Variable(("item",), "U"),
    "item_index": Variable(("item",), "i", 0),
}

_TASK_ATTRS = dict.fromkeys(("tasks", "task_data", "lm_eval"), TEXT)

KINDS: Mapping[str, Kind] = {
    "sweep": _sweep("intervention", "layer"),
    "pairs": _sweep("intervention", "layer", "layer_to"),
    "schedules": _sweep("schedule"),
    "lens": Kind(
        {
            name: Variable(_LENS, "f", *RANGES[name])
            for name in ("kl", "kl_reverse", "agreement", "loss", "entropy", "accuracy")
        },
        {**_names("lens"), **_numbers(0, "depth"), **SEQUENCES},
        needed_attrs=("context",),
    ),
    "cka": Kind(
        {
            "hsic": Variable(("processing", "depth", "depth_to", "batch")),
            "cka": Variable(("processing", "depth", "depth_to")),
            "cka_standard_error": Variable(("processing", "depth", "depth_to"), "f", 0),
        },
        {**_names("processing"), **_numbers(0, "depth", "depth_to", "batch")},
        needed=("hsic", "cka"),
        needed_attrs=("context", "batch_sequences"),
    ),
    "attention": Kind(
        {
            "profile": Variable(("layer", "head", "offset", "sequence"), "f", *WEIGHT),
            "first_token": Variable(_HEADS, "f", *WEIGHT),
            "entropy": Variable(_HEADS, "f", *RANGES["entropy"]),
            "previous": Variable(("window", *_HEADS), "f", *WEIGHT),
        },
        {**LAYERS, **_numbers(0, "head", "offset"), **_numbers(1, "window"), **SEQUENCES},
        needed=("profile",),
        needed_attrs=("context",),
    ),
    "norms": Kind(
        {
            "residual_norm": Variable(("depth", *_NORM), "f", 0),
            **{
                name: Variable(("layer", *_NORM), "f", 0)
                for name in (
                    "attention_norm",
                    "mlp_norm",
                    "attention_mlp_ratio",
                    "middle_norm",
                    "mlp_middle_ratio",
                )
            },
            "block_influence": Variable(("layer", "sequence"), "f", -SLACK, 2 + SLACK),
            "angular_distance": Variable(("layer", "span", "sequence"), "f", *SHARE),
        },
        {
            **LAYERS,
            **_names("processing", "statistic"),
            **_numbers(0, "depth"),
            **_numbers(1, "span"),
            **SEQUENCES,
        },
        needed_attrs=("context",),
    ),
    "similarity": Kind(
        {
            "cosine": Variable(
                ("comparison", "component", "processing", "layer", "sequence"), "f", -1.05, 1.05
            )
        },
        {**LAYERS, **_names("comparison", "component", "processing"), **SEQUENCES},
        needed=("cosine",),
        needed_attrs=("context",),
    ),
    "neurons": Kind(
        {
            "cosine_mean": Variable(("layer", "neuron"), "f", -1 - SLACK, 1 + SLACK),
            "cosine_variance": Variable(("layer", "neuron"), "f", -SLACK),
            "cosine_skewness": Variable(("layer", "neuron")),
            "cosine_kurtosis": Variable(("layer", "neuron")),
            "share": Variable(("neuron_class", "layer"), "f", *SHARE),
        },
        {**LAYERS, **_numbers(0, "neuron"), **_names("neuron_class")},
        needed=("share",),
        attrs={
            "gated": YES_OR_NO,
            "kurtosis_threshold": NUMBER,
            "variance_threshold": NUMBER,
            "vocabulary": TEXT,
        },
    ),
    "wic": Kind(
        {
            **_probes("", "probe", "depth"),
            "state": Variable(("depth", "feature", "sentence")),
        },
        {
            **_names("probe"),
            **_numbers(0, "depth", "item", "feature", "sentence"),
            "word": Variable(("item",), "U"),
            "same": Variable(("item",), "i", 0, 1),
        },
        needed=("correct", "accuracy", "accuracy_low", "accuracy_high"),
        attrs=dict.fromkeys(("train_pairs", "dev_pairs", "test_pairs"), TEXT),
    ),
    "suffix": Kind(
        {
            **_probes("", "kind", "size"),
            **_probes("single_", "neuron"),
            **_probes("model_", "reading"),
            "shift": Variable(("neuron",)),
            "effect": Variable(("neuron", "tokens", "bin"), "f", 0),
            "activation": Variable(("neuron", "window")),
            "control": Variable(("neuron", "window")),
            "top": Variable(("window",), "f", 0, 1),
            "share": Variable(("window",), "f", *SHARE),
        },
        {
            **_names("kind", "tokens", "reading"),
            **_numbers(1, "size"),
            **_numbers(0, "item", "neuron", "window"),
            "layer": Variable(("neuron",), "i", 0),
            "index": Variable(("neuron",), "i", 0),
            "bin": Variable(("bin",)),
            "label": Variable(("item",), "i", 0, 1),
            "document": Variable(("item",), "i", 0),
        },
        needed=("correct", "accuracy", "single_accuracy", "model_accuracy", "shift"),
        attrs={"suffix": NAME, "gated": YES_OR_NO, "window": _whole(1), "positives": _whole(0)},
        needed_attrs=("suffix",),
    ),
    "subjoiner": Kind(
        {
            "attention": Variable(("input_class", "layer", "head", "key"), "f", *WEIGHT),
            "attention_standard_error": Variable(("input_class", "layer", "head", "key"), "f", 0),
            **{
                name: Variable(("layer", "head"), "f", -1.05, 1.05)
                for name in ("score", "score_low", "score_high", "finding_score")
            },
            "found": Variable(("layer", "head"), "i", 0, 1),
            "threshold": Variable((), "f"),
            "monotone": Variable(("layer", "head"), "f", *SHARE),
            "weight": Variable(("layer", "head", "key", "input"), "f", *WEIGHT),
        },
        {
            **LAYERS,
            **_numbers(0, "head", "input"),
            **_numbers(-math.inf, "key"),
            **_names("input_class"),
        },
        needed=("attention", "score", "score_low", "score_high", "finding_score", "found"),
        attrs={
            "pieces": _whole(1),
            "window": _whole(1),
            "words_in_pieces": _whole(0),
            "whole_words": _whole(0),
        },
        needed_attrs=("words_in_pieces", "whole_words"),
    ),
    "tasks": Kind(
        {
            "value": Variable((*_TASK, "intervention", "layer")),
            "standard_error": Variable((*_TASK, "intervention", "layer"), "f", 0),
            "correct": Variable(("metric", "intervention", "layer", "item"), "f", *SHARE),
            **_CLEAN_TASK,
        },
        {
            **LAYERS,
            **_names("intervention"),
            "schedule": Variable(("intervention", "layer"), "U"),
            **_TASK_LABELS,
        },
        needed=("value", "standard_error", "clean_value", "clean_standard_error", "correct"),
        attrs=_TASK_ATTRS | {"interventions": TEXT},
    ),
    "tasks-schedules": Kind(
        {
            "value": Variable((*_TASK, "schedule")),
            "standard_error": Variable((*_TASK, "schedule"), "f", 0),
            "correct": Variable(("metric", "schedule", "item"), "f", *SHARE),
            **_CLEAN_TASK,
        },
        {**_names("schedule"), **_TASK_LABELS},
        needed=("value", "standard_error", "clean_value", "clean_standard_error", "correct"),
        attrs=_TASK_ATTRS | {"schedules": TEXT},
    ),
    "tasks-clean": Kind(
        _CLEAN_TASK,
        _TASK_LABELS,
        needed=("clean_value", "clean_standard_error", "clean_correct"),
        attrs=_TASK_ATTRS,
    ),
    "stages": Kind(
        {
            "signature": Variable(("signature_name", "layer")),
            "value": Variable(("signature_name", "layer")),
            "stage": Variable(("partition", "layer"), "i", 0),
            **{
                f"boundary{end}": Variable(("partition", "edge"), "f", 0)
                for end in ("", "_low", "_high")
            },
            "mean": Variable(("partition", "segment", "signature_name")),
            "cost": Variable(("segments",), "f"),
            "criterion": Variable(("segments",), "f"),
        },
        {
            **LAYERS,
            **_names("signature_name", "partition"),
            "signature_long_name": Variable(("signature_name",), "U"),
            **_numbers(0, "segment"),
            **_numbers(1, "edge", "segments"),
        },
        needed=("signature", "stage", "boundary", "boundary_low", "boundary_high", "mean"),
        attrs={
            "criterion_segments": _whole(1),
            "draws": _whole(1),
            **dict.fromkeys(("signatures", "sources"), TEXT),
        },
        needed_attrs=("criterion_segments", "sources"),
    ),
    "claims": Kind(
        {
            **dict.fromkeys(("verdict", "reason"), Variable(("claim",), "U")),
            **dict.fromkeys(("value", "low", "high", "least", "most"), Variable(("check",))),
            "check_verdict": Variable(("check",), "U"),
        },
        {
            **dict.fromkeys(("claim", "experiment", "text", "where"), Variable(("claim",), "U")),
            **dict.fromkeys(("check_claim", "check_text", "check_unit"), Variable(("check",), "U")),
        },
        needed=("verdict", "reason", "value", "low", "high", "least", "most"),
        attrs={"left_out": OBJECT, "sources": TEXT, "asked": TEXT},
    ),
    "compare": Kind(
        {
            **dict.fromkeys(("value", "low", "high"), Variable(("quantity", "model"))),
            **dict.fromkeys(("verdict", "numbers"), Variable(("claim", "model"), "U")),
            "verdict_across": Variable(("claim_across",), "U"),
        },
        {
            **_names("quantity", "model", "claim", "claim_across"),
            "layers": Variable(("model",), "i", 1),
            **dict.fromkeys(("corpus", "context", "tokens", "dtype"), Variable(("model",), "U")),
            "claim_text": Variable(("claim",), "U"),
        },
        needed=("value", "low", "high", "verdict", "verdict_across"),
        attrs={"sources": TEXT},
    ),
}
"""Every kind of file that a command leaves, by its attribute `measurement`."""

NEEDED_LABELS = {"compare": ("layers", "corpus", "context", "tokens", "dtype"), "claims": ("text",)}
"""Labels besides those of the dimensions without which a kind of file is none."""

TOGETHER = {
    "until_se_reached": ("documents", "corpus_sequences", "corpus_tokens"),
    "shard": ("corpus_sequences", "corpus_tokens", "sequences"),
    "sequences_done": ("sequences",),
}
"""Attributes that go with others."""


def examine(path: Path, file: Any, *, whole: bool = True) -> None:
    """Refuse an opened file of NetCDF whose numbers must not be read.

    Parameters
    ----------
    path : path
        Its name.
    file : netCDF4.Dataset
        Of which nothing is read but what it says of itself.

    Raises
    ------
    Refusal
        If it was not written here or by a newer version, is of types that no file has, says of
        numbers how they are to be changed, or holds more than its size or the memory allows.
    """
    if "stages_schema" not in file.ncattrs():
        raise Refusal(f"{path} is a NetCDF file, but not one that stages wrote")
    found = file.getncattr("stages_schema")
    if not _is_whole(found) or found < 1:
        raise _damaged(path, f"its schema is {_shown(found)}, which is no number from 1")
    if found > SCHEMA:
        raise Refusal(
            f"{path} has schema {found}, newer than {SCHEMA}: update stages-of-inference to read it"
        )
    if set(file.groups) - {TALLY}:
        raise _damaged(path, f"it has a group {_shown(next(iter(file.groups)))}")
    for group in file.groups.values():
        if group.groups:
            raise _damaged(path, f"it has a group {_shown(next(iter(group.groups)))}")
        examine_part(path, group, whole=whole)


def examine_part(path: Path, group: Any, *, whole: bool = True) -> None:
    """Refuse a file, or a group of one, by its types, encodings and sizes alone.

    By the memory that its variables take only where they are read whole.
    """
    if group.cmptypes or group.vltypes or group.enumtypes:
        raise _damaged(path, "it has types of its own")
    size = path.stat().st_size
    held = 0
    for name, variable in group.variables.items():
        if not name.isprintable():
            raise _damaged(path, f"it has a variable {_shown(name)}")
        if variable.dtype is not str and variable.dtype.kind not in "fiu":
            raise _damaged(path, f"its {name} is of type {variable.dtype}")
        changed = sorted(DECODED & set(variable.ncattrs()))
        if changed:
            raise _damaged(path, f"its {name} has {changed[0]}, which would change its numbers")
        if "_FillValue" in variable.ncattrs():
            fill = variable.getncattr("_FillValue")
            if not isinstance(fill, (float, np.floating)) or not math.isnan(fill):
                raise _damaged(path, f"its {name} has _FillValue {_shown(fill)}")
        width = TEXT_BYTES if variable.dtype is str else variable.dtype.itemsize
        declared = math.prod(variable.shape) * width
        chunks = variable.chunking()
        if chunks is not None and chunks != "contiguous":
            declared = max(declared, math.prod(chunks) * width)
            held += declared // DENSEST
        else:
            held += declared // (TEXT_BYTES // 8 if variable.dtype is str else 1)
        if whole and declared > psutil.virtual_memory().available // 2:
            raise Refusal(
                f"{path} says that its {name} takes {declared / 1e9:.3g} GB, more than half of the "
                "memory that is free: read a part of it with xarray.open_dataset, or, if it is "
                f"damaged, {REMEDY}"
            )
    if held > size:
        raise _damaged(path, f"it says that it holds more than its {size} bytes can")


def check(path: Path, dataset: xr.Dataset) -> None:
    """Refuse a dataset that is not what a file of its kind holds.

    Raises
    ------
    Refusal
        Which says what is not as it should be.
    """
    for fault in _faults(dataset):
        raise _damaged(path, fault)


def _faults(dataset: xr.Dataset) -> Iterator[str]:
    """Say what of a dataset is not as in the contract, the most telling first."""
    if "measurement" not in dataset.attrs:  # such as the log of a training
        return
    yield from _attributes(dataset)
    name = dataset.attrs["measurement"]
    kind = KINDS.get(name, Kind({}, COMMON))
    for dim, size in dataset.sizes.items():
        if not size and dim not in MAY_BE_EMPTY:
            yield f"its dimension {dim} is empty"
    yield from _variables(dataset, kind)
    yield from _labels(dataset, kind)
    done = dataset.attrs.get("sequences_done")
    if done is None:
        for wanted in kind.needed:
            if wanted not in dataset:
                yield f"it has no {wanted}"
    else:
        most = min(dataset.attrs["sequences"], dataset.sizes.get("sequence", math.inf))
        if done > most:
            yield f"it says that {done} sequences of {most} are done"


def _attributes(dataset: xr.Dataset) -> Iterator[str]:
    attrs = dataset.attrs
    asked = {**ATTRIBUTES}
    kind = KINDS.get(str(attrs["measurement"]))
    if kind is not None:
        asked |= kind.attrs
    yield from (f"it has no attribute {name}" for name in MADE if name not in attrs)
    for name, attribute in asked.items():
        if name in attrs and not attribute.fits(attrs[name]):
            yield f"its attribute {name} is {_shown(attrs[name])}, not {attribute.what}"
    for name in kind.needed_attrs if kind is not None else ():
        if name not in attrs:
            yield f"it has no attribute {name}"
    for name, others in TOGETHER.items():
        for other in others if name in attrs else ():
            if other not in attrs:
                yield f"it has {name}, and no attribute {other}"


def _variables(dataset: xr.Dataset, kind: Kind) -> Iterator[str]:
    known = [name for name in dataset.variables if name in kind.variables]
    if kind.variables and not known:
        yield f"it has none of the variables of its kind ({', '.join(kind.variables)})"
    ranged = "difference" not in dataset.attrs
    for name in known:
        asked, values = kind.variables[str(name)], dataset[name]
        if name in dataset.coords:
            yield f"its {name} is a coordinate"
        wanted = {*asked.dims}
        if "token" in dataset.dims and "sequence" in wanted:
            wanted |= {"token"}
        if {*values.dims} != wanted:
            yield f"its {name} has the dimensions {_listed(values.dims)}, not {_listed(asked.dims)}"
        yield from _values(str(name), values, asked, ranged)


def _labels(dataset: xr.Dataset, kind: Kind) -> Iterator[str]:
    for name in kind.labels:
        if name in dataset.variables:
            asked, values = kind.labels[name], dataset[name]
            if name not in dataset.coords:
                yield f"its {name} is no coordinate"
            if values.dims and {*values.dims} != {*asked.dims}:
                yield (
                    f"its {name} has the dimensions {_listed(values.dims)}, not "
                    f"{_listed(asked.dims)}"
                )
            yield from _values(name, values, asked, True)
    measured = dataset.attrs.get("measurement")
    dims = {dim for name in dataset.data_vars for dim in dataset[name].dims}
    for name in sorted(map(str, dims)):
        if name not in kind.labels or name in UNLABELLED:
            continue
        if name in dataset.coords:
            yield from _along(name, dataset[name])
        else:
            yield f"its dimension {name} has no labels"
    if "sequence" in dims and "document" not in dataset.coords:
        yield "it does not say which document a sequence is of"
    for name in NEEDED_LABELS.get(str(measured), ()):
        if name not in dataset.coords:
            yield f"it has no {name}"


def _along(name: str, labels: xr.DataArray) -> Iterator[str]:
    """Say what is wrong with the labels of a dimension: of which none may be there twice."""
    values = labels.values
    if values.dtype.kind in "iuf":
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            yield f"its labels along {name} are not all numbers"
        elif len(np.unique(values)) < len(values):
            yield f"it has a label along {name} twice"
        elif name in SORTED and (values[1:] < values[:-1]).any():
            yield f"its labels along {name} are not in order"
    elif len(set(values.tolist())) < len(values):
        yield f"it has a label along {name} twice"


def _values(name: str, values: xr.DataArray, asked: Variable, ranged: bool) -> Iterator[str]:
    """Say what is wrong with values: their type, or that they are out of their range."""
    if not values.size:
        return
    kind = {"O": "U", "T": "U", "u": "i"}.get(values.dtype.kind, values.dtype.kind)
    if kind not in asked.kind:
        what = {"f": "numbers with a fraction", "i": "whole numbers", "U": "texts"}
        yield f"its {name} is of type {values.dtype}, not of {what[asked.kind]}"
        return
    if kind == "U":
        if not all(isinstance(each, str) for each in values.values.ravel()):
            yield f"its {name} is not all text"
        return
    if not ranged:
        return
    there = values.values
    known = there[~np.isnan(there)] if kind == "f" else there
    if known.size and (known.min() < asked.least or known.max() > asked.most):
        strange = known.min() if known.min() < asked.least else known.max()
        least, most = _bound(asked.least), _bound(asked.most)
        yield f"its {name} has {strange:.6g}, and is from {least} to {most}"


def check_tally(path: Path, shape: Any, entries: Any, counts: Any) -> tuple[int, ...]:
    """Refuse counts that are not what is kept of a run, and return their shape (run, token)."""
    sizes = tuple(int(size) for size in np.atleast_1d(shape)) if _are_whole(shape) else ()
    if len(sizes) != 2 or min(sizes) < 1:
        raise _damaged(path, f"its counts are of the shape {_shown(shape)}")
    if 4 * math.prod(sizes) > psutil.virtual_memory().available // 2:
        raise _damaged(path, f"its counts are {_shown(sizes)}, more than memory holds")
    for name, values in (("places", entries), ("counts", counts)):
        if values.dtype.kind not in "iu" or values.ndim != 1 or len(values) != len(entries):
            raise _damaged(path, f"the {name} of its counts are not whole numbers in a row")
    if entries.size and (entries.min() < 0 or entries.max() >= math.prod(sizes)):
        raise _damaged(path, "its counts are of tokens that there are not")
    if len(np.unique(entries)) < len(entries) or (counts < 0).any():
        raise _damaged(path, "its counts are below 0, or of a token twice")
    return sizes


def _are_whole(values: Any) -> bool:
    return np.asarray(values).dtype.kind in "iu"


def _damaged(path: Path, fault: str) -> Refusal:
    return Refusal(f"{path} is damaged or changed: {fault}; {REMEDY}")


def _shown(value: Any) -> str:
    text = repr(value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(dims: Any) -> str:
    return f"({', '.join(map(str, dims))})"


def _bound(number: float) -> str:
    return f"{round(number, 2):g}"
