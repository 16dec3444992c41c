"""Files of every kind, changed in every way: a line or a result, never a traceback.

STAGES_FUZZ of the environment says which share of the cases runs: 1 is all of them.
"""

import faulthandler
import os
import random
import re
import shutil
import sys
import warnings
from pathlib import Path
from time import monotonic

import netCDF4
import numpy as np
import pytest
import xarray as xr
from planted import plant
from searches import finished, planted_search

from robustness.files.kinds import KINDS
from robustness.files.netcdf import load, load_tally, save
from robustness.measurements.measurement import MEASUREMENTS, local_attention
from robustness.measurements.observation import observe
from robustness.runs.settings import RunOptions
from robustness.sweeps import sweep
from robustness.sweeps.shards import Shard

CASES = 340
SHARE = float(os.environ.get("STAGES_FUZZ", "0.03"))
CHOSEN = range(0, CASES, max(1, round(1 / SHARE))) if SHARE > 0 else ()
SECONDS = 20

ODD = (
    "two", "", "x" * 2000, "a\x1b[2Jb", "$a$", "\u202efdp", -1, 0, 10**12, np.int8(-5), 1.5,
    np.nan, np.inf, np.array([1, 2, 3]), np.array([1.5, np.nan]), ["a", "b"], "{", "[]", "1/0",
)  # fmt: skip
"""Values of attributes."""


@pytest.fixture(scope="module")
def files(tmp_path_factory, gpt2):
    """A file of every kind, and what an unfinished run and shards leave."""
    from recipes.evidence.files import Files, side_by_side
    from recipes.evidence.stages import stages
    from recipes.judging.compare import compare
    from recipes.judging.verdicts import judge, to_dataset

    place = tmp_path_factory.mktemp("whole")
    ours, theirs = (plant(place / name, name=name, documents=12) for name in ("one", "two"))
    stages(ours, out=ours / "stages.nc")
    save(to_dataset(judge([Files(ours)]), [Files(ours)]), ours / "claims.nc")
    save(compare(side_by_side([ours, theirs])), ours / "compare.nc")
    corpus = text(gpt2)
    real = place / "real"
    observe(
        gpt2,
        corpus,
        ["lens", local_attention(8), "norms", "similarity"],
        RunOptions(out=real),
    )
    sweep(gpt2, corpus, out=real / "sweep.nc")
    sweep(gpt2, corpus, ["drop-pair"], out=real / "pairs.nc")
    sweep(gpt2, corpus, schedules=["0-2-3", "0-1-1-2-3"], out=real / "schedules.nc")
    for index in (1, 2):
        sweep(
            gpt2, corpus, ["drop"], shard=Shard(index, 2), per_token=True, batch_tokens=64,
            out=real / f"shard-{index}.nc",
        )  # fmt: skip
    save(finished(planted_search(texts=("stories", "news"))), real / "search.nc")
    partial = load(real / "sweep.nc").assign_attrs(sequences_done=3)
    save(partial, real / "sweep.partial.nc", np.ones((7, gpt2.vocabulary), np.int32))
    return place


def text(model):
    from robustness.text.corpus import Corpus

    ids = np.random.default_rng(0).integers(0, model.vocabulary, (24, 16))
    return Corpus(ids, np.full(24, 16), np.arange(24) // 2, "random", "windows", "none", 0)


def names(files):
    return sorted(str(path.relative_to(files)) for path in files.rglob("*.nc"))


def change_attribute(path, at):
    with netCDF4.Dataset(path, "a") as file:
        name = at.choice(file.ncattrs())
        if at.random() < 0.3:
            file.delncattr(name)
        else:
            file.setncattr(name, at.choice(ODD))


def describe_otherwise(path, at):
    """Attributes of a variable by which readers change its numbers, or what it is called."""
    with netCDF4.Dataset(path, "a") as file:
        name = at.choice(sorted(file.variables))
        attribute, value = at.choice(
            [
                ("scale_factor", 2.0), ("add_offset", 1.0), ("missing_value", 0.0),
                ("units", "days since 2000-01-01"), ("units", "seconds"), ("dtype", "bool"),
                ("coordinates", "kl document"), ("long_name", "x\x1b[31m$$"), ("_Unsigned", "true"),
                ("valid_range", np.array([0.0, 0.1])), ("calendar", "none"), ("units", 3),
            ]
        )  # fmt: skip
        file[name].setncattr(attribute, value)


def rename(path, at):
    with netCDF4.Dataset(path, "a") as file:
        if at.random() < 0.5:
            file.renameDimension(at.choice(sorted(file.dimensions)), "other")
        else:
            file.renameVariable(at.choice(sorted(file.variables)), at.choice(["other", "a\u202eb"]))


def add(path, at):
    """Something that no file has."""
    with netCDF4.Dataset(path, "a") as file:
        kind = at.choice(["group", "huge", "compound", "characters", "unlimited", "deep"])
        if kind == "group":
            file.createGroup("more").createDimension("a", 2)
        elif kind == "deep":
            file.createGroup("tally/more/and/more")
        elif kind == "huge":
            for dim in ("big", "bigger"):
                file.createDimension(dim, 10**6)
            file.createVariable("large", "f8", ("big", "bigger"), zlib=True, chunksizes=(100, 100))
        elif kind == "compound":
            file.createCompoundType(np.dtype([("a", "f4"), ("b", "i4")]), "both")
        elif kind == "characters":
            file.createDimension("letters", 3)
            file.createVariable("word", "S1", ("letters",))
        else:
            file.createDimension("endless", None)
            file.createVariable("more", "f8", ("endless",))[:] = range(3)


def change_numbers(path, at):
    with netCDF4.Dataset(path, "a") as file:
        file.set_auto_mask(False)
        there = [name for name, each in file.variables.items() if each.size]
        variable = file[at.choice(there)]
        values = variable[...]
        if variable.dtype is str:
            odd = ["", "$x$", "a\nb", "\x1b[2J", "x" * 999]
        elif variable.dtype.kind == "f":
            odd = [-5, 0, 2, 99, np.nan, np.inf, -np.inf, 1e300]
        else:
            odd = [-5, 0, 2, 99]
        if values.size:
            with np.errstate(over="ignore"):
                values.flat[at.randrange(values.size)] = at.choice(odd)
        variable[...] = values


def rebuild(path, at):
    """The same file with its datasets put together in another way."""
    with xr.open_dataset(path, engine="netcdf4", decode_times=False) as file:
        data = file.load()
    name = at.choice(sorted(map(str, data.variables)))
    dim = at.choice(sorted(map(str, data.sizes)))
    kind = at.choice(["less", "no label", "none", "twice", "back", "turned", "kind", "scalar"])
    if kind == "less":
        data = data.drop_vars(name)
    elif kind == "no label":
        data = data.drop_vars(dim, errors="ignore")
    elif kind == "none":
        data = data.isel({dim: slice(0, 0)})
    elif kind == "twice":
        data = data.isel({dim: [0, 0, *range(data.sizes[dim])]})
    elif kind == "back":
        data = data.isel({dim: slice(None, None, -1)})
    elif kind == "turned":
        data = data.transpose()
    elif kind == "scalar":
        data = data.isel({dim: 0})
    elif data[name].dtype.kind == "f":
        data[name] = data[name].astype(at.choice(["int8", "float64", "str"]))
    else:
        data[name] = data[name].astype("str")
    tally = None if "tokens" in path.name else load_tally(path)
    path.unlink()
    for each in data.variables.values():
        each.encoding.clear()
    save(data, path, tally)


def damage(path, at):
    """Bytes that are others, or not there."""
    data = bytearray(path.read_bytes())
    marks = [each.start() for each in re.finditer(rb"OHDR|OCHK|FRHP|FHDB|BTHD|GCOL|TREE|HDF", data)]

    def place():
        if at.random() < 0.2:
            return at.randrange(len(data))
        return min(len(data) - 1, at.choice(marks) + at.randrange(300))

    kind = at.choice(["bit", "bytes", "zeros", "cut", "empty", "swap"])
    if kind == "bit":
        data[place()] ^= 1 << at.randrange(8)
    elif kind == "bytes":
        for _ in range(8):
            data[place()] = at.randrange(256)
    elif kind == "zeros":
        begin = place()
        data[begin : begin + 64] = bytes(len(data[begin : begin + 64]))
    elif kind == "cut":
        del data[at.randrange(len(data)) :]
    elif kind == "empty":
        data.clear()
    else:
        one, other = place(), place()
        data[one : one + 9], data[other : other + 9] = data[other : other + 9], data[one : one + 9]
    path.write_bytes(data)


CHANGES = (
    change_attribute, change_attribute, describe_otherwise, rename, add, change_numbers, rebuild,
    rebuild, damage, damage,
)  # fmt: skip


def commands(path, other, at):
    """The command lines that read a file, of which two are tried."""
    name = path.stem
    found = [["show", path], ["plot", path, "--out", "figure.svg"]]
    if name.startswith("shard") and "tokens" not in name:
        found = [["merge", path.parent / "shard-1.nc", path.parent / "shard-2.nc", "-o", "all.nc"]]
        found += [["show", path]]
    elif name.startswith("shard"):
        found += [["merge", path.parent / "shard-1.nc", path.parent / "shard-2.nc", "-o", "all.nc"]]
    elif at.random() < 0.5:
        whole = path.parent
        found += [
            ["segment", whole, "--out", "stages.nc"],
            ["report", whole, "--out", "report.html", "--quiet"],
            ["compare", whole, other, "--quiet", "--out", "compare.nc"],
        ]
    else:
        found += [["show", path, "--minus", path], ["show", path, "--bootstrap"]]
    return at.sample(found, 2)


@pytest.mark.parametrize("case", CHOSEN)
def test_a_file_that_was_changed_is_refused_by_name_or_read(case, files, run, tmp_path):
    at = random.Random(case)
    change = CHANGES[case % len(CHANGES)]
    there = names(files)
    name = there[(case * 7) % len(there)]
    path = tmp_path / "copy" / Path(name).name
    path.parent.mkdir()
    beside = {path.name, "sweep.nc", "lens.nc", "norms.nc"}  # enough to divide, quick to judge
    for each in sorted((files / name).parent.glob("*.nc")):
        if each.name in beside or name.startswith("real/shard"):
            shutil.copy(each, path.parent)
    few = tmp_path / "two"
    few.mkdir()
    for each in ("sweep.nc", "lens.nc"):
        shutil.copy(files / "two" / each, few)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            change(path, at)
    except (OSError, RuntimeError, ValueError, IndexError, AttributeError, TypeError) as error:
        pytest.skip(f"the library does not write that: {error}")
    for words in commands(path, few, at):
        begun = monotonic()
        faulthandler.dump_traceback_later(3 * SECONDS, exit=True, file=sys.__stderr__)
        try:
            code, out, err = run(*words)
        finally:
            faulthandler.cancel_dump_traceback_later()
        what = f"{case}: {change.__name__} of {name}: {words[0]}: {err}"
        assert code in (0, 1, 2), what
        assert "Traceback" not in err + out and "a fault of stages" not in err, what
        assert "\x1b" not in out + err, what
        assert monotonic() - begun < SECONDS, what
        if code:
            line = err.strip().splitlines()[-1]
            assert line.startswith("stages: ") and len(line) > 40, what


@pytest.mark.slow
def test_every_kind_of_file_passes_and_is_known(files):
    kinds = {load(files / name).attrs["measurement"] for name in names(files)}
    # Of the dimensions of a sweep's and of a free schedule's file.
    others = {"tasks-schedules", "tasks-clean"}
    assert kinds == set(KINDS) - others


def test_the_contract_of_a_measurement_is_its_record():
    for name, measurement in MEASUREMENTS.items():
        for metric, dims in measurement.variables.items():
            assert {*KINDS[name].variables[metric.name].dims} == {*dims}, metric.name
