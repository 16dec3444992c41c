"""Answers of servers, read by one reader: all that is honest, and nothing else."""

import copy
import io
import json
import os
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import zstandard
from answers import archive, name, program, saved, storage, tensor, two_faced, value
from nnsight.schema.response import ResponseModel, Status

from robustness.ndif import messages, pickle_reader, plain_values
from robustness.ndif.archive import unpack
from robustness.ndif.limits import Unreadable

ROOM = 1e6


def honest(protocol):
    """Everything that traces hand back."""
    big = torch.randn(10, 12)
    kinds = [dtype for dtype in pickle_reader.STORAGES.values() if dtype is not torch.bool]
    found = {
        "of every type": [torch.arange(5).to(dtype) for dtype in kinds],
        "truth": torch.tensor([True, False]),
        "a part of another": big[::2, 1:5].T,
        "the other": big,
        "of one number": torch.tensor(3.5),
        "empty": [torch.empty(0), torch.empty(0, 3), torch.empty(2, 0, 5)[1:]],
        "repeated": torch.ones(3, 1).expand(3, 7),
        "plain": (1, -5, 2**62, 2.5, float("inf"), None, True, "wörter", b"bytes", [], {}),
        ("a", ("key", 1)): {1: {2.5: [(), {None: "deep"}]}},
        "ordered": OrderedDict(b=1, a=2),
        "shape": torch.Size([1, 2]),
        "set": {1, "two", (3,)},
    }
    if protocol >= 4:
        found["frozen"] = frozenset([1, 2])
    return found


def assert_same(found, expected):
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert found.stride() == expected.stride() and torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert type(found) is type(expected) and list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert type(found) is type(expected) and found == expected


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_saves_is_read_as_torch_reads_it(protocol):
    content = saved(honest(protocol), protocol)
    found = pickle_reader.load(content, ROOM)
    assert_same(found, torch.load(io.BytesIO(content), weights_only=False))
    part, whole = found["a part of another"], found["the other"]
    whole.zero_()
    assert not part.any(), "tensors that share their bytes no longer do"


@pytest.mark.parametrize(("status", "data"), [("COMPLETED", "http://link"), ("RUNNING", None)])
def test_messages_are_read_as_nnsight_writes_them(status, data):
    meta = {"runtime": 1.5}
    message = ResponseModel(id="1", status=Status(status), description="done", data=data, meta=meta)
    body = message.model_dump_json().encode()
    assert messages.read_message(body) == messages.Message("1", status, "done", data, meta)


DONE = {"id": "1", "status": "COMPLETED", "data": "http://link"}


@pytest.mark.parametrize(
    "message",
    [
        [], {}, DONE | {"status": []}, DONE | {"status": "\x1b"}, DONE | {"status": "LOG"},
        DONE | {"data": []}, DONE | {"data": None}, DONE | {"id": None}, DONE | {"id": "../1"},
        DONE | {"description": 1}, DONE | {"status": {"x": 1}}, "text", None, 1,
    ],
)  # fmt: skip
def test_a_message_that_is_none_is_refused(message):
    assert messages.read_message(json.dumps(DONE).encode()).link == "http://link"
    with pytest.raises(Unreadable):
        messages.read_message(json.dumps(message).encode())


def flag(file):
    file.infolist()[0].flag_bits |= 1


def overlap(file):
    """Let a hundred entries name the bytes of one."""
    first = file.infolist()[0]
    for number in range(1, 100):
        again = copy.copy(first)
        again.filename = f"archive/data/{number}"
        file.filelist.append(again)


def note(file):
    file.comment = b"more"


def nested(depth, opening=b"]", closing=b"a"):
    return opening * depth + closing * (depth - 1)


LAUGHS = value("ha") + b"q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(25))
"""A pair of a pair of …, twenty-five deep: 33 million values in a hundred steps."""

REFUSED = {
    "a function": (name("os", "system") + value(("touch owned",)) + b"R", "os.system"),
    "a function of torch": (name("torch", "load") + value(("x",)) + b"R", "torch.load"),
    "a name alone": (name("torch", "FloatStorage"), "holds a Name"),
    "bytes alone": (storage(), "holds a Storage"),
    "a change of a class": (
        name("torch", "FloatStorage") + value((None, {"changed": 1})) + b"b",
        "does BUILD",
    ),
    "an object": (name("collections", "OrderedDict") + b")\x81", "does NEWOBJ"),
    "a name made up": (b"Vos\nVsystem\n\x93", "does UNICODE"),
    "a name on the stack": (value("os") + value("system") + b"\x93" + b")R", "os.system"),
    "a name that is none": (value(1) + value(2) + b"\x93", "no name"),
    "an extension": (b"\x82\x01", "does EXT1|code"),
    "a call of a value": (value("x") + b")R", "cannot be called"),
    "a call by a value": (name("collections", "OrderedDict") + value(1) + b"R", "cannot be called"),
    "a storage called": (name("torch", "FloatStorage") + value((9,)) + b"R", "by itself"),
    "a status that is none": (name("nnsight.schema.response", "Status") + b")R", "status"),
    "a shape of text": (name("torch", "Size") + value((("a",),)) + b"R", "shape"),
    "bytes in another code": (name("_codecs", "encode") + value(("a", "rot13")) + b"R", "bytes"),
    "a set of lists": (name("builtins", "set") + value(([[]],)) + b"R", "a list is used as a key"),
    "a list as a key": (value({}) + value([]) + value(1) + b"s", "a list is used as a key"),
    "a tensor as a key": (value({}) + tensor() + value(1) + b"s", "a Tensor is used as a key"),
    "a deep key": (value({}) + b")" + b"\x85" * 9_000 + value(1) + b"s", "key"),
    "a large key": (value({}) + value(tuple(range(100))) + value(1) + b"s", "key is too large"),
    "an odd dictionary": (b"}(" + value(1) + b"u", "no container"),
    "values of no list": (value(1) + value(2) + b"a", "no container"),
    "too little": (b"a", "takes more than there is"),
    "no mark": (b"t", "takes more than there is"),
    "nothing kept": (b"h\x07", "takes more than there is"),
    "too much": (value(1) + value(2), "ends in the middle"),
    "deep": (nested(1000), "within values"),
    "very deep": (nested(4_000), "within values"),
    "within itself": (b"]q\x00h\x00a", "within values"),
    "laughs": (b"(" + LAUGHS + b"t", "within values"),
    "many values": (b"]" * 10_100, "more than 10000 values"),
    "a huge number": (b"\x8b" + struct.pack("<i", 10_000) + b"\x7f" * 10_000, "does LONG4"),
    "a large number": (b"\x8a\xf0" + b"\x7f" * 240, "too large"),
    "text without end": (b"X\xff\xff\xff\x7fabc", None),
    "before its bytes": (tensor(offset=-1), "a shape that is none"),
    "beyond its bytes": (tensor(offset=1), "beyond its bytes"),
    "too long": (tensor(size=(5,)), "beyond its bytes"),
    "too far": (tensor(size=(2,), stride=(4,)), "beyond its bytes"),
    "back": (tensor(offset=3, stride=(-1,)), "a shape that is none"),
    "less than nothing": (tensor(size=(-1,)), "a shape that is none"),
    "more than a number": (tensor(size=(2**62,), stride=(0,)), "a shape that is none"),
    "around the corner": (tensor(size=(2**33, 2**33), stride=(0, 0)), "larger than"),
    "repeated": (tensor(size=(2**40,), stride=(0,)), "larger than"),
    "a shape of truth": (tensor(size=(True,)), "a shape that is none"),
    "a shape of fractions": (tensor(size=(1.5,)), "a shape that is none"),
    "two shapes": (tensor(size=(2, 2)), "a shape that is none"),
    "many dimensions": (tensor(size=(1,) * 99, stride=(1,) * 99), "a shape that is none"),
    "more bytes than are there": (tensor(of=storage(5)), "16 bytes where it says 5"),
    "fewer bytes": (tensor(of=storage(3)), "16 bytes where it says 3"),
    "bytes elsewhere": (tensor(of=storage(key="../0")), "refers to what is not"),
    "bytes that are missing": (tensor(of=storage(key="7")), "has no 'data/7'"),
    "a number as a key of bytes": (tensor(of=storage(key=0)), "refers to what is not"),
    "no storage": (tensor(of=value(3)), "not made as torch"),
    "another type": (
        b"(" + tensor() + tensor(of=storage(4, "IntStorage")) + b"t",
        "as different numbers",
    ),
    "a tensor of nothing": (name("torch._utils", "_rebuild_tensor_v2") + b")R", "not made as"),
    "half truths": (tensor(of=storage(16, "BoolStorage"), size=(1,)), "neither true nor false"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_pickle_of_anything_else_is_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (pickle_reader, plain_values):
        monkeypatch.setattr(module, "MOST_VALUES", 10_000)
    steps, expected = REFUSED[case]
    with pytest.raises((Unreadable, ValueError), match=expected):
        pickle_reader.load(archive(steps), 1e7)
    assert not hasattr(torch.FloatStorage, "changed") and not os.listdir()


ARCHIVES = {
    "no archive": lambda: b"garbage",
    "nothing": lambda: b"",
    "half": lambda: archive(tensor())[:200],
    "one that is bent": lambda: archive(tensor()).replace(struct.pack("<f", 3), b"\1\2\3\4", 1),
    "no pickle": lambda: archive(tensor(), files={"data.pkl": None}),
    "a program": lambda: archive(tensor(), files={"constants.pkl": b"\x80\x02).", "code/x": b""}),
    "another file": lambda: archive(tensor(), files={"../../owned": b"x"}),
    "two folders": lambda: archive(tensor(), change=lambda file: file.writestr("b/data/1", b"x")),
    "one file twice": lambda: archive(
        tensor(), change=lambda file: file.writestr("archive/data/0", b"x" * 16)
    ),
    "compressed": lambda: archive(tensor(), method=zipfile.ZIP_DEFLATED),
    "encrypted": lambda: archive(tensor(), change=flag),
    "files over each other": lambda: archive(tensor(), change=overlap),
    "a comment": lambda: archive(tensor(), change=note),
    "something before it": lambda: archive(tensor(), before=b"#!/bin/sh\n"),
    "another before it": lambda: archive(tensor(), before=archive(tensor())),
    "the other order": lambda: archive(tensor(), files={"byteorder": b"big"}),
    "too many files": lambda: b"PK\3\4" + b"PK\1\2" * 200_000,
    "torch's older form": lambda: _older(),
    "its oldest form": lambda: Path(__file__).read_bytes(),
}


def _older():
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_of_anything_else_is_refused(case):
    with pytest.raises(Unreadable):
        pickle_reader.load(ARCHIVES[case](), 1e7)


def test_a_program_is_not_run_however_it_is_hidden(tmp_path):
    """A file that `zipfile` takes for tensors and torch's own reader for a program."""
    owned = tmp_path / "owned"
    hidden = program(str(owned))
    content = two_faced(hidden, tensor())
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    assert not any(each.endswith("constants.pkl") for each in names)
    assert "constants.pkl" in torch._C.PyTorchFileReader(io.BytesIO(content)).get_all_records()
    for each in (hidden, content):
        with pytest.raises(Unreadable):
            pickle_reader.load(each, ROOM)
    assert not owned.exists()


def test_what_is_decompressed_is_no_more_than_was_asked_for():
    bomb = zstandard.ZstdCompressor().compress(bytes(2**28))
    assert len(bomb) < 2**16
    tracemalloc.start()
    with pytest.raises(Unreadable, match="larger than the 16 MB"):
        unpack(bomb, 16e6)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 64e6
    whole = bytes(range(256)) * 1000
    unsized = zstandard.ZstdCompressor().compressobj()
    for packed in (
        zstandard.ZstdCompressor().compress(whole),
        unsized.compress(whole) + unsized.flush(),
    ):
        assert unpack(packed, len(whole)) == whole
        with pytest.raises(Unreadable):
            unpack(packed, len(whole) - 1)
