"""Archives that different readers would take for different things are refused."""

import io
import struct
import zipfile

import pytest
import torch
from answers import archive, program, saved, tensor, two_faced

from robustness.ndif import zip_layout
from robustness.ndif.archive import Archive
from robustness.ndif.limits import Unreadable

SHOWN = archive(tensor())


@pytest.fixture(scope="module")
def hidden():
    return program("owned")


def named(content):
    """The names that torch's own reader finds."""
    return set(torch._C.PyTorchFileReader(io.BytesIO(content)).get_all_records())


def end_of(content):
    """Numbers of the end record: count, size and place of the directory."""
    return struct.unpack("<H2I", content[-12:-2])


def with_end(content, count, size, place, comment=0):
    ended = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, place, comment)
    return content[:-22] + ended


def moved(content, by):
    """An archive's directory, and where it is, if other bytes come before the archive."""
    count, size, place = end_of(content)
    directory, at = bytearray(content[place : place + size]), 0
    while at < size:
        named, further, comment = struct.unpack_from("<3H", directory, at + 28)
        (offset,) = struct.unpack_from("<I", directory, at + 42)
        struct.pack_into("<I", directory, at + 42, offset + by)
        at += 46 + named + further + comment
    return bytes(directory), count


def behind(hidden):
    """One archive after another, both of them right: the first is found from the front only."""
    directory, count = moved(hidden, len(SHOWN))
    _, size, place = end_of(hidden)
    both = SHOWN + hidden[:place] + directory + bytes(22)
    return with_end(both, count, size, len(SHOWN) + place)


def two_directories(hidden):
    """Files of both, and a directory of each; the end names the hidden one."""
    _, size, place = end_of(SHOWN)
    _, hidden_size, hidden_place = end_of(hidden)
    directory, hidden_count = moved(hidden, place)
    front = SHOWN[:place] + hidden[:hidden_place]
    both = front + directory + SHOWN[place : place + size] + bytes(22)
    return with_end(both, hidden_count, hidden_size, len(front))


def two_ends(hidden):
    """The wide end record names the hidden directory, the other one that of the tensors."""
    count, size, place = end_of(SHOWN)
    directory, hidden_count = moved(hidden, place)
    front = SHOWN[:place] + hidden[: end_of(hidden)[2]]
    at = len(front) + len(directory)
    content = front + directory + SHOWN[place : place + size]
    wide = struct.pack(
        "<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, hidden_count, hidden_count,
        len(directory), len(front),
    )  # fmt: skip
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(content), 1)
    return with_end(content + wide + locator + bytes(22), count, size, at)


def other_names(hidden):
    """Files with a second name each, in the field for names in Unicode, which some readers take."""
    count, _, place = end_of(hidden)
    directory, at = b"", place
    for number in range(count):
        entry = bytearray(hidden[at : at + 46])
        length, further, _ = struct.unpack_from("<3H", entry, 28)
        name = hidden[at + 46 : at + 46 + length]
        other = b"archive/data/%d" % number if number else b"archive/data.pkl"
        field = struct.pack("<2HBI", 0x7075, 5 + len(other), 1, zip_crc(name)) + other
        struct.pack_into("<H", entry, 30, len(field))
        directory += bytes(entry) + name + field
        at += 46 + length + further
    return with_end(hidden[:place] + directory + bytes(22), count, len(directory), place)


def zip_crc(name):
    return zipfile.crc32(name)


MISLEADING = {
    "a locator in a comment": lambda hidden: two_faced(hidden, tensor()),
    "one behind the other": behind,
    "two directories": two_directories,
    "two ends": two_ends,
    "second names": other_names,
}


@pytest.mark.parametrize("case", MISLEADING)
def test_a_program_that_only_torch_finds_is_refused_before_anything_is_read(
    case, hidden, monkeypatch
):
    content = MISLEADING[case](hidden)
    assert "constants.pkl" in named(content)
    assert "constants.pkl" not in named(SHOWN) and Archive(SHOWN)
    monkeypatch.setattr(Archive, "read", lambda *_: pytest.fail("something is read"))
    with pytest.raises(Unreadable, match="something else in it"):
        Archive(content)


def patched(place, new):
    """The shown archive with some bytes changed, from the front or from the back."""
    place %= len(SHOWN)
    return SHOWN[:place] + new + SHOWN[place + len(new) :]


COUNT, SIZE, PLACE = end_of(SHOWN)

OTHER = {
    "a byte after it": SHOWN + b"x",
    "a comment that is not there": patched(-2, b"\1\0"),
    "another end after it": SHOWN + SHOWN[-22:],
    "a file less in the end": with_end(SHOWN, COUNT - 1, SIZE, PLACE),
    "a file more in the end": with_end(SHOWN, COUNT + 1, SIZE, PLACE),
    "a directory that begins later": with_end(SHOWN, COUNT, SIZE - 4, PLACE + 4),
    "another disk": patched(-18, b"\1\0"),
    "another name before the file": patched(SHOWN.index(b"data/0"), b"data/1"),
    "another name in the directory": patched(SHOWN.rindex(b"data/0"), b"data/1"),
    "a size that is another in the directory": patched(PLACE + 20, b"\5\0\0\0\5\0\0\0"),
    "a sum that is another before the file": patched(14, b"\1\2\3\4"),
    "a file that is described later": patched(6, b"\x08\0"),
    "a file that begins elsewhere": patched(PLACE + 42, b"\1\0\0\0"),
    "one that is compressed before the file": patched(8, b"\x08\0"),
    "one that is compressed in the directory": patched(PLACE + 10, b"\x08\0"),
    "one that is encrypted": patched(PLACE + 8, b"\1\0"),
    "large numbers that are not there": patched(PLACE + 20, b"\xff" * 8),
    "between two files": SHOWN[:PLACE] + b"gap" + with_end(SHOWN[PLACE:], COUNT, SIZE, PLACE + 3),
    "nothing but an end": with_end(bytes(22), 0, 0, 0),
    "an end alone": SHOWN[-22:],
    "no end": SHOWN[:-22],
    "nothing": b"",
}


@pytest.mark.parametrize("case", OTHER)
def test_whatever_is_not_as_torch_writes_it_is_refused(case):
    with pytest.raises(Unreadable):
        Archive(OTHER[case])
        # What is refused only when it is read, of all files.
        for file in zip_layout.files_in(OTHER[case]):
            Archive(OTHER[case]).read(file.name.partition("/")[2])


def test_files_are_those_that_zipfile_and_torch_find():
    content = saved({"a": torch.arange(300.0), "b": torch.empty(0), "c": [torch.ones(3), "x"]})
    with zipfile.ZipFile(io.BytesIO(content)) as reader:
        expected = {info.filename: reader.read(info) for info in reader.infolist()}
    found = zip_layout.files_in(content)
    assert {each.name: content[each.begin :][: each.size] for each in found} == expected
    assert {each.name.partition("/")[2] for each in found} == named(content)


def test_numbers_of_8_bytes_are_read_as_torch_writes_them():
    """Torch writes them from 4 GB on; the sizes here are small, but in the same places."""
    content = SHOWN
    first = content[: content.index(b"PK\3\4", 30)]
    length = len(first) - 30 - len(b"archive/data.pkl")
    field = struct.pack("<2H2Q", 1, 16, 0, 0)
    wide = struct.pack("<2H2Q", 1, 16, length, length)
    record = bytearray(first[:30])
    struct.pack_into("<2H", record, 26, 16, len(field))
    struct.pack_into("<H", record, 6, 8)
    struct.pack_into("<3I", record, 14, 0, 0, 0)
    name, data = first[30:46], first[46:]
    described = struct.pack("<4sI2Q", b"PK\7\10", zipfile.crc32(data), length, length)
    file = bytes(record) + name + field + data + described
    entry = bytearray(content[PLACE : PLACE + 46])
    struct.pack_into("<H", entry, 8, 8)
    struct.pack_into("<2I", entry, 20, 2**32 - 1, 2**32 - 1)
    struct.pack_into("<H", entry, 30, len(wide))
    directory = bytes(entry) + name + wide
    whole = with_end(file + directory + bytes(22), 1, len(directory), len(file))
    (found,) = zip_layout.files_in(whole)
    assert found.name == "archive/data.pkl" and found.size == length
    assert whole[found.begin :][: found.size] == data
    for wrong in (length + 1, 1):
        bent = file.replace(field, struct.pack("<2H2Q", 1, 16, wrong, 0))
        with pytest.raises(Unreadable):
            zip_layout.files_in(
                with_end(bent + directory + bytes(22), 1, len(directory), len(bent))
            )
