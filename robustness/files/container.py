"""The bytes of a NetCDF file, which are looked at before the HDF5 library opens it.

That library follows whatever a file says. A file can have it read other files of the machine (by
external links, raw data kept outside, virtual data sets), and a damaged heap of texts has it turn
in a circle for ever, in C, where nothing interrupts it. No file that is written here has any of
this, so that its traces in the bytes are enough to refuse a file. What is searched for is as the
HDF5 File Format Specification lays it out, version 4.0.
"""

import mmap
import re
import stat
import struct
from pathlib import Path
from typing import Any

from robustness.errors import Refusal

SIGNATURE = b"\x89HDF\r\n\x1a\n"
CLASSIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
"""How files of the older forms of NetCDF begin."""

ROOT = {0: 64, 1: 68, 2: 36, 3: 36}
"""Where the superblock says where the root group is, by its version."""

END = {0: 40, 1: 44, 2: 28, 3: 28}
"""Where it says how long the file is."""

BASE = {0: 24, 1: 28, 2: 12, 3: 12}
SIZES = {0: 13, 1: 13, 2: 9, 3: 9}

HEAP = b"GCOL\x01\x00\x00\x00"
"""How a heap of texts begins; see `_walk`."""

LOCAL_HEAP = b"HEAP\x00\x00\x00\x00"
"""What names of raw data outside of the file are in, and groups of a form that is never written."""

LINK = re.compile(rb"\x01[\x08-\x0f\x18-\x1f][\x01\x40]")
"""How a link begins that is to a path, in this file or in another."""

NAME = 2**16
"""Bytes that the name of a link has at most."""

OWN_LINK = re.compile(
    rb"\x01(?=(\x00|\x10[\x00\x01]|\x04.{8}|\x14.{8}[\x00\x01])([\x01-\xff])[\x20-\xf4])",
    re.DOTALL,
)
"""How a link to an object of this file begins, up to its name."""

HEADER = b"OHDR\x02"
"""How the header of an object begins."""

LINKS = 2
"""The kind of message in an object's header that says how a group's links are kept."""

FILTERED = re.compile(rb"FRHP\x00..(?!\x00\x00)..", re.DOTALL)
"""A compressed heap, in which links could not be seen."""

VIRTUAL = re.compile(rb"[\x04\x05]\x03(?=(.{8}))", re.DOTALL)
"""How the layout of a virtual data set begins, with the place of the names of other files."""


def check(path: Path) -> None:
    """Refuse a file that must not be opened.

    Raises
    ------
    Refusal
        If there is no such file, it is no regular file, no NetCDF-4 file, cut off, or may make
        the library read other files or read for ever.
    """
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Refusal(f"there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise Refusal(f"{path} cannot be read ({error}): have reading permitted") from error
    if stat.S_ISDIR(kind):
        raise Refusal(f"{path} is a directory: name a file in it, as {path / 'sweep.nc'}")
    if not stat.S_ISREG(kind):
        # Opening a pipe would wait for ever.
        raise Refusal(f"{path} is no regular file: copy what comes out of it into one")
    unreadable = (
        f"{path} is not a NetCDF file that can be read: if it is damaged, remove it, and the "
        "command that made it makes it anew"
    )
    try:
        with path.open("rb") as file:
            if file.read(len(SIGNATURE)) != SIGNATURE:
                file.seek(0)
                if file.read(4) in CLASSIC:
                    raise Refusal(
                        f"{path} is a NetCDF file of an older form, which stages does not write"
                    )
                raise Refusal(unreadable)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                found = _fault(data)
    except (OSError, struct.error, IndexError) as error:
        raise Refusal(unreadable) from error
    if found:
        raise Refusal(
            f"{path} is not a NetCDF file that can be read ({found}): if it is damaged, remove "
            "it, and the command that made it makes it anew"
        )


def _fault(data: Any) -> str:
    """Return why a file of HDF5 must not be opened, or nothing."""
    version = data[8]
    if version not in ROOT or data[SIZES[version] : SIZES[version] + 2] != b"\x08\x08":
        return "its form is not one that stages writes"
    base, end = (_number(data, place[version]) for place in (BASE, END))
    if base:
        return "its form is not one that stages writes"
    if end > len(data):
        return f"it is cut off: {len(data)} bytes of {end} are there"
    if data.find(LOCAL_HEAP) >= 0 or FILTERED.search(data):
        return "it may refer to other files"
    if any(_is_link(data, match.start()) for match in LINK.finditer(data)):
        return "it refers to other files, or has a link"
    if _is_circular(data, _number(data, ROOT[version])):
        return "a part of it is its own part"
    for match in VIRTUAL.finditer(data):
        (place,) = struct.unpack("<Q", match[1])
        if data[place : place + 4] == HEAP[:4]:
            return "it refers to other files"
    place = data.find(HEAP)
    while place >= 0:
        if not _walk(data, place):
            return "its texts are damaged"
        place = data.find(HEAP, place + 1)
    return ""


def _number(data: Any, place: int) -> int:
    (number,) = struct.unpack_from("<Q", data, place)
    return int(number)


def _is_link(data: Any, place: int) -> bool:
    """Whether a link to a path is there, all of it."""
    flags, kind = data[place + 1], data[place + 2]
    place += 3 + 8 * bool(flags & 4)
    if flags & 16:
        if data[place : place + 1] not in (b"\x00", b"\x01"):
            return False
        place += 1
    width = 1 << (flags & 3)
    length = int.from_bytes(data[place : place + width], "little")
    place += width
    name, place = data[place : min(place + length, place + NAME)], place + length
    size = int.from_bytes(data[place : place + 2], "little")
    told = data[place + 2 : place + 2 + size]
    if not name or len(name) < length or len(told) < size or not _is_text(name):
        return False
    if kind == 1:  # to a path in this file
        return _is_text(told)
    parts = told.split(b"\x00")  # a version, to a file, and to a path in it
    return len(parts) == 4 and not parts[0] and not parts[3] and all(map(_is_text, parts[1:3]))


def _is_circular(data: Any, root: int) -> bool:
    """Whether a group is in two places, as one that is in itself must be.

    What was a link stays among the bytes when links are moved, and is then there twice.
    """
    found: dict[int, bytes] = {}
    for match in OWN_LINK.finditer(data):
        begin = match.end(2)
        end = begin + match[2][0]
        target, link = int.from_bytes(data[end : end + 8], "little"), data[match.start() : end]
        if not _is_text(data[begin:end]) or data[target : target + 5] != HEADER:
            continue
        if target == root or (_is_group(data, target) and found.setdefault(target, link) != link):
            return True
    return False


def _is_group(data: Any, place: int) -> bool:
    """Whether an object's header is of a group: one of its messages says how its links are kept."""
    flags, place = data[place + 5], place + 6
    place += 16 * bool(flags & 32) + 4 * bool(flags & 16)
    width = 1 << (flags & 3)
    left, place = int.from_bytes(data[place : place + width], "little"), place + width
    while left >= 4:
        if data[place] == LINKS:
            return True
        needed = 4 + 2 * bool(flags & 4) + int.from_bytes(data[place + 1 : place + 3], "little")
        place, left = place + needed, left - needed
    return False


def _is_text(data: bytes) -> bool:
    try:
        return bool(data) and data.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False


def _walk(data: Any, place: int) -> bool:
    """Whether a heap of texts is whole: every object in it has a size, and free room is last."""
    left = _number(data, place + 8) - 16
    place += 16
    while left >= 16:
        index, size = data[place : place + 2], _number(data, place + 8)
        if index == b"\x00\x00":
            return size == left
        needed = 16 + (size + 7) // 8 * 8
        if needed > left:
            return False
        place, left = place + needed, left - needed
    return left >= 0
