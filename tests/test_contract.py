"""What a file must hold, and what must not be opened at all."""

import ctypes
import os
import re
import socket
from pathlib import Path
from xml.etree import ElementTree

import netCDF4
import numpy as np
import pytest
import xarray as xr
from planted import plant

from robustness.errors import Refusal
from robustness.files import hdf5_bytes, netcdf, resumable, structure
from robustness.files.labels import layer_coords
from robustness.files.netcdf import load, load_tally, save
from robustness.files.provenance import file_attributes
from robustness.files.sequences import sequence_coords
from robustness.files.structure import DECODING_ATTRIBUTES
from robustness.sweeps import token_layout

SETTINGS = {
    "model": "planted",
    "architecture": "GPT2LMHeadModel",
    "measurement": "sweep",
    "corpus": "planted",
    "context": 16,
    "sequences": 6,
    "tokens": 96,
}


def planted(**settings):
    """A sweep of two interventions over four layers, on six sequences of three documents."""
    random = np.random.default_rng(0)
    dims = ("intervention", "layer", "sequence")
    return xr.Dataset(
        {
            "kl": (dims, random.random((2, 4, 6), np.float32)),
            "agreement": (dims, random.random((2, 4, 6), np.float32)),
            "clean_loss": ("sequence", random.random(6, np.float32)),
        },
        coords={
            "intervention": ["drop", "swap"],
            **layer_coords(4),
            **sequence_coords(np.arange(6) // 2),
        },
        attrs=file_attributes({**SETTINGS, **settings}),
    )


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "sweep.nc"
    save(planted(), file)
    return file


CHANGES = {
    "schema is 'two'": lambda data: data.assign_attrs(stages_schema="two"),
    "which document a sequence is of": lambda data: data.drop_vars("document"),
    "document is of type float": lambda data: data.assign_coords(
        document=("sequence", np.full(6, 0.5))
    ),
    "has the dimensions": lambda data: data.rename(layer="block"),
    "dimension layer has no labels": lambda data: data.drop_vars(["layer", "relative_depth"]),
    "layer twice": lambda data: data.assign_coords(layer=[0, 1, 1, 2]),
    "not in order": lambda data: data.assign_coords(layer=[3, 2, 1, 0]),
    "intervention twice": lambda data: data.assign_coords(intervention=["drop", "drop"]),
    "'many', not a whole": lambda data: data.assign_attrs(sequences_done="many"),
    "-1, not a whole": lambda data: data.assign_attrs(sequences_done=-1),
    "10 sequences of 6 are done": lambda data: data.assign_attrs(sequences_done=10),
    r"context is \[1, 2\]": lambda data: data.assign_attrs(context=np.array([1, 2])),
    "no attribute model": lambda data: data.drop_attrs().assign_attrs(
        {name: value for name, value in data.attrs.items() if name != "model"}
    ),
    "a name of 1000 letters": lambda data: data.assign_attrs(model="m" * 1001),
    "shard is '3 of 4'": lambda data: data.assign_attrs(shard="3 of 4"),
    "dimension layer is empty": lambda data: data.isel(layer=[]),
    "kl is of type int8": lambda data: data.assign(kl=data.kl.astype(np.int8)),
    "kl is of type": lambda data: data.assign(kl=data.kl.astype(str)),
    "agreement has 2,": lambda data: data.assign(agreement=data.agreement + 2 - data.agreement),
    "kl has -5,": lambda data: data.assign(kl=data.kl * 0 - 5),
    "agreement has inf,": lambda data: data.assign(agreement=data.agreement * 0 + np.inf),
    "none of the variables of its kind": lambda data: data.assign_attrs(measurement="similarity"),
    "its kl is a coordinate": lambda data: data.set_coords("kl"),
    "relative_depth has 7,": lambda data: data.assign_coords(
        relative_depth=("layer", [0, 1, 2, 7.0])
    ),
}


@pytest.mark.parametrize("fault", CHANGES)
def test_a_file_with_a_fault_is_refused_by_its_name_and_fault(fault, path):
    path.unlink()
    save(CHANGES[fault](planted()), path)
    with pytest.raises(Refusal, match=rf"sweep.nc is damaged or changed: .*{fault}.*; remove it"):
        load(path)


def test_a_part_of_a_file_and_numbers_that_are_none_are_read(path):
    data = planted()
    data["kl"][0, 0] = np.nan
    save(data.isel(layer=slice(1, 3), sequence=[0, 1, 4]), path)
    assert load(path).sizes == {"intervention": 2, "layer": 2, "sequence": 3}


def test_a_measurement_of_ones_own_and_a_file_of_none_are_read(path):
    path.unlink()
    own = planted(measurement="mine").rename(kl="largest", intervention="part")
    save(own.assign(largest=own.largest - 1000), path)
    assert float(load(path).largest.min()) < -900
    path.unlink()
    save(xr.Dataset({"loss": ("step", [3.0, 2.0])}, attrs={"stages_schema": 1}), path)
    assert load(path).loss.size == 2


@pytest.mark.parametrize("name", sorted(DECODING_ATTRIBUTES))
def test_nothing_in_a_file_says_how_its_numbers_are_to_be_changed(name, path):
    with netCDF4.Dataset(path, "a") as file:
        file["kl"].setncattr(name, 2.0)
    with pytest.raises(Refusal, match=f"its kl has {name}, which would change"):
        load(path)


def test_units_do_not_make_numbers_into_times(path):
    before = load(path).kl.values
    with netCDF4.Dataset(path, "a") as file:
        file["kl"].units = "days since 2000-01-01"
        file["clean_loss"].units = "seconds"
    np.testing.assert_array_equal(load(path).kl.values, before)
    assert load(path).clean_loss.dtype == np.float32


def test_a_small_file_that_declares_much_is_not_read(path, monkeypatch):
    with netCDF4.Dataset(path, "a") as file:
        for dim in ("many", "more"):
            file.createDimension(dim, 10**6)
        file.createVariable("large", "f8", ("many", "more"), zlib=True, chunksizes=(10, 10))
    monkeypatch.setattr(xr, "load_dataset", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(Refusal, match=r"its large takes 8e\+03 GB, more than half of the memory"):
        load(path)
    with netCDF4.Dataset(path.with_name("small.nc"), "w") as file:
        file.stages_schema = 1
        file.createDimension("many", 10**7)
        file.createVariable("large", "f8", ("many",), zlib=True, chunksizes=(1000,))
    with pytest.raises(Refusal, match=r"holds more than its .* bytes can"):
        load(path.with_name("small.nc"))


@pytest.mark.parametrize("kind", ["group", "compound", "deep", "name"])
def test_what_no_file_has_is_refused(kind, path):
    with netCDF4.Dataset(path, "a") as file:
        if kind == "group":
            file.createGroup("more")
        elif kind == "deep":
            file.createGroup("tally/more")
        elif kind == "compound":
            file.createCompoundType(np.dtype([("a", "f4"), ("b", "i4")]), "both")
        else:
            file.createVariable("a\u202eb", "f4", ("layer",))[:] = 0
    with pytest.raises(Refusal, match="damaged or changed: it has "):
        load(path)


def test_counts_that_are_none_are_refused(path):
    def with_counts(entries, counts, shape):
        save(planted(), path, np.eye(3, dtype=np.int32))
        with netCDF4.Dataset(path, "a") as file:
            group = file["tally"]
            group.shape = shape
            group["entry"][:], group["count"][:] = entries, counts

    with_counts([0, 4, 8], [1, 1, 1], [3, 3])
    np.testing.assert_array_equal(load_tally(path), np.eye(3))
    ones, whole = [1, 1, 1], [3, 3]
    for fault in (
        ([0, 4, 9], ones, whole),
        ([0, 4, 4], ones, whole),
        ([0, 4, -1], ones, whole),
        ([0, 4, 8], [1, 1, -1], whole),
        ([0, 4, 8], ones, [9]),
        ([0, 4, 8], ones, [3, 10**12]),
        ([0, 4, 8], ones, "three"),
    ):
        with_counts(*fault)
        with pytest.raises(Refusal, match=r"sweep.nc is damaged or changed: .*its counts"):
            load_tally(path)


def test_what_is_no_regular_file_is_refused_before_it_is_opened(tmp_path, run):
    os.mkfifo(tmp_path / "pipe.nc")
    (tmp_path / "folder.nc").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.nc"))
    for name in ("pipe.nc", "socket.nc", "/dev/zero"):
        for words in (["show", name], ["plot", name], ["merge", name, "-o", "all.nc"]):
            code, _, err = run(*words)
            assert code == 1 and f"{name} is no regular file: copy" in err
    assert "is a directory: name a file in it" in run("plot", "folder.nc")[2]


def test_a_file_named_like_an_address_is_a_file_of_this_machine(path, run):
    place = path.with_name("http:")
    place.mkdir()
    path.rename(place / "sweep.nc#mode=bytes")
    code, out, _ = run("show", "http://sweep.nc#mode=bytes")
    assert code == 0 and out.startswith("planted")
    assert run("show", "http://127.0.0.1:9/sweep.nc")[2].startswith("stages: there is no file")


def test_files_of_other_forms_and_torn_ones_are_told_apart(path):
    whole = path.read_bytes()
    for data, message in (
        (b"", "is not a NetCDF file"),
        (b"CDF\x01" + bytes(200), "of an older form"),
        (whole[:3000], r"it is cut off: 3000 bytes of \d+ are there"),
        (whole[:20], "is not a NetCDF file"),
        (b"x" * 5000, "is not a NetCDF file"),
    ):
        path.write_bytes(data)
        with pytest.raises(Refusal, match=message):
            load(path)


def test_a_heap_of_texts_that_has_no_end_is_not_read(path):
    """The HDF5 library would search it for ever."""
    data = path.read_bytes()
    begin = data.index(hdf5_bytes.TEXT_HEAP)
    path.write_bytes(data[: begin + 40] + bytes(40) + data[begin + 80 :])
    with pytest.raises(Refusal, match="its texts are damaged"):
        load(path)


def hdf5():
    """The library under netCDF4, with which to write what that does not."""
    found = sorted(Path(netCDF4.__file__).parents[1].glob("netcdf4.libs/libhdf5-*"))
    if not found:
        pytest.skip("the HDF5 library is not beside netCDF4")
    return ctypes.CDLL(str(found[0]))


IDENTIFIER = ctypes.c_int64


def make_external(library, file, other):
    library.H5Lcreate_external(other, b"/kl", file, b"leak", IDENTIFIER(0), IDENTIFIER(0))


def make_soft(library, file, other):
    library.H5Lcreate_soft(b"/kl", file, b"leak", IDENTIFIER(0), IDENTIFIER(0))


def make_circle(library, file, other):
    group = IDENTIFIER(library.H5Gcreate2(file, b"in", *[IDENTIFIER(0)] * 3))
    library.H5Lcreate_hard(file, b"/", group, b"out", IDENTIFIER(0), IDENTIFIER(0))
    library.H5Gclose(group)


def make_dataset(library, file, describe):
    size = (ctypes.c_uint64 * 1)(6)
    space = IDENTIFIER(library.H5Screate_simple(ctypes.c_int(1), size, None))
    kind = IDENTIFIER.in_dll(library, "H5P_CLS_DATASET_CREATE_ID_g")
    layout = IDENTIFIER(library.H5Pcreate(kind))
    describe(layout, space)
    number = IDENTIFIER.in_dll(library, "H5T_NATIVE_INT_g")
    none = IDENTIFIER(0)
    made = library.H5Dcreate2(file, b"leak", number, space, none, layout, none)
    library.H5Dclose(IDENTIFIER(made))


def make_outside(library, file, other):
    def describe(layout, _):
        library.H5Pset_external(layout, other, ctypes.c_int64(0), ctypes.c_uint64(24))

    make_dataset(library, file, describe)


def make_virtual(library, file, other):
    def describe(layout, space):
        library.H5Pset_virtual(layout, space, other, b"/clean_loss", space)

    make_dataset(library, file, describe)


@pytest.mark.parametrize(
    "make", [make_external, make_soft, make_circle, make_outside, make_virtual]
)
def test_a_file_does_not_have_the_library_read_other_files_or_for_ever(make, path, monkeypatch):
    library = hdf5()
    for name in ("H5Fopen", "H5Pcreate", "H5Screate_simple", "H5Dcreate2", "H5Gcreate2"):
        getattr(library, name).restype = IDENTIFIER
    load(path)
    other = path.with_name("secret.nc")
    save(planted(), other)
    file = IDENTIFIER(library.H5Fopen(bytes(path), ctypes.c_uint(1), IDENTIFIER(0)))
    make(library, file, bytes(other))
    library.H5Fclose(file)
    monkeypatch.setattr(netCDF4, "Dataset", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(Refusal, match=r"refer to other files|refers to other files|its own part"):
        load(path)


def test_going_on_takes_numbers_by_their_labels_alone(path):
    """What an unfinished run left in another order is put in its own, and other labels refused."""
    data = planted()
    partial = path.with_name("sweep.partial.nc")
    path.unlink()

    def go_on(left):
        save(left.assign_attrs(sequences_done=4), partial)
        with resumable.Run(planted(), path=path) as run:
            return run.done, run.dataset.copy(deep=True)

    done, found = go_on(data.transpose("sequence", "layer", "intervention"))
    assert done == 4
    np.testing.assert_array_equal(found.kl.values, data.kl.values)
    for changed, what in (
        (data.assign_coords(intervention=["swap", "drop"]), "another intervention"),
        (data.assign_coords(document=("sequence", np.zeros(6, int))), "another document"),
        (data.assign(kl=data.kl.astype(np.float64)), "holds kl as float64, not float32"),
    ):
        with pytest.raises(Refusal, match=f"{what}.*`fresh`"):
            go_on(changed)


NAMES = ("a$b$c", r"\$x$", "a\x1b[2Jb\u202e", "a\nb\tc\r", "e\u0301\U0001f980", "m" * 1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_and_drawn_as_text_whatever_it_holds(name, path, run):
    data = planted(model=name, corpus=name)
    save(data.assign_coords(intervention=["drop", name]), path)
    code, out, err = run("show", path)
    assert code == 0, err
    assert all(letter == "\n" or letter.isprintable() for letter in out)
    plain = re.sub(r"[^ -~]+", "", name.splitlines()[0])[:20]
    assert plain[:1] in out
    # What a font lacks, and how wide a name is, the other back end asks in its own way.
    for kind in ("svg", "png")[: 1 + (name in NAMES[-2:])]:
        code, _, err = run("plot", path, "--out", f"figure.{kind}")
        assert code == 0, err
    text = ElementTree.fromstring(path.with_name("figure.svg").read_bytes())
    assert "\x1b" not in "".join(text.itertext())


@pytest.mark.slow
def test_a_report_of_names_that_are_no_text_is_well_formed(tmp_path, run):
    plant(tmp_path / "one", name="x/a$b$\x1b[2J<i>\x07", documents=10)
    # Enough for a figure of every kind that shows the name, and for verdicts.
    for file in ("ing", "wic", "subjoiner", "cka", "tasks", "tasks-repeat", "repeat", "norms"):
        (tmp_path / "one" / f"{file}.nc").unlink()
    code, _, err = run("report", "one", "--quiet", "--figures", "figures")
    assert code == 0, err
    page = (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    assert "\x1b" not in page and "\x07" not in page and "<i>" not in page
    assert r"a$b$\x1b[2J&lt;i&gt;\x07" in page
    figures = list((tmp_path / "figures").glob("*.svg"))
    assert figures
    for figure in figures:
        ElementTree.fromstring(figure.read_bytes())


def test_ids_of_tokens_that_look_like_a_link_are_read(tmp_path):
    """Vocabularies above 65,536 have ids whose bytes, one after the other, are those of a link."""
    frame = xr.Dataset(
        coords={"sequence": [0], "document": ("sequence", [0]), "schedule": ["0"]},
        attrs={"stages_schema": 1},
    )
    known = {name: np.zeros((1, 64), np.int64) for name in token_layout.COLUMNS}
    known["token_id"][0, 10:13] = 71681, 0x14101, 0x41
    path = tmp_path / "x.tokens.nc"
    token_layout.frame(frame, ("schedule",), known).to_netcdf(path, engine="netcdf4")
    hdf5_bytes.check_bytes(path)
    raw = known["token_id"].astype(np.int32).tobytes()
    assert hdf5_bytes.LINK.search(raw) and raw not in path.read_bytes()


def test_what_is_read_in_parts_may_be_larger_than_memory(tmp_path, monkeypatch):
    path = tmp_path / "x.nc"
    save(xr.Dataset({"a": ("x", np.arange(100_000.0))}, attrs=file_attributes({})), path)
    memory = type("Memory", (), {"available": 1_000_000})
    monkeypatch.setattr(structure.psutil, "virtual_memory", memory)
    with pytest.raises(Refusal, match="half of the memory"):
        load(path)
    with netcdf.opened(path, whole=False) as file:
        assert file["a"].shape == (100_000,)
