"""Check of the bytes of a NetCDF file before the HDF5 library opens it.

That library trusts the file. External links, external raw data and virtual data sets make it read
other files of the machine, and a damaged heap of texts makes it loop forever, in C, where nothing
interrupts it. Files that stages writes have none of these, so a file is refused for their traces in
its bytes. The patterns follow the HDF5 File Format Specification, version 4.0.
"""

import mmap
import re
import stat
import struct
from pathlib import Path
from typing import Any

from robustness.errors import Refusal
from robustness.files.damage import REMEDY

SIGNATURE = b"\x89HDF\r\n\x1a\n"
CLASSIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
"""First bytes of a file in an older form of NetCDF."""

ROOT_FIELD = {0: 64, 1: 68, 2: 36, 3: 36}
"""Offset of the root group's address in the superblock, by the version of the superblock."""

END_FIELD = {0: 40, 1: 44, 2: 28, 3: 28}
"""Offset of the end of file address, by version."""

BASE_FIELD = {0: 24, 1: 28, 2: 12, 3: 12}
"""Offset of the base address, by version."""

WIDTHS_FIELD = {0: 13, 1: 13, 2: 9, 3: 9}
"""Offset of the widths of addresses and lengths, by version."""

TEXT_HEAP = b"GCOL\x01\x00\x00\x00"
"""First bytes of a global heap, in which texts are."""

LOCAL_HEAP = b"HEAP\x00\x00\x00\x00"
"""First bytes of a heap with names of external raw data, or of a group in a form never written."""

LINK = re.compile(rb"\x01[\x08-\x0f\x18-\x1f][\x01\x40]")
"""First bytes of a link to a path, in this file or in another."""

LONGEST_LINK_NAME = 2**16
"""Most bytes of a link's name."""

OWN_LINK = re.compile(
    rb"\x01(?=(\x00|\x10[\x00\x01]|\x04.{8}|\x14.{8}[\x00\x01])([\x01-\xff])[\x20-\xf4])",
    re.DOTALL,
)
"""First bytes of a link to an object of this file, up to its name."""

OBJECT_HEADER = b"OHDR\x02"
"""First bytes of the header of an object."""

LINK_INFO = 2
"""Type of the message in an object's header that says how a group's links are stored."""

FILTERED_HEAP = re.compile(rb"FRHP\x00..(?!\x00\x00)..", re.DOTALL)
"""First bytes of a compressed heap, in which links could not be seen."""

VIRTUAL_LAYOUT = re.compile(rb"[\x04\x05]\x03(?=(.{8}))", re.DOTALL)
"""First bytes of the layout of a virtual data set, and the address of the names of other files."""

IF_DAMAGED = f"if it is damaged, {REMEDY}"

OTHER_FORM = "its form is not one that stages writes"


def check_bytes(path: Path) -> None:
    """Refuse a file that the HDF5 library must not open.

    Raises
    ------
    Refusal
        If the file does not exist, is not a regular file, is not NetCDF-4, is truncated, or may
        make the library read other files or loop forever.
    """
    _check_regular(path)
    unreadable = f"{path} is not a NetCDF file that can be read"
    try:
        with path.open("rb") as file:
            signature = file.read(len(SIGNATURE))
            if signature[:4] in CLASSIC:
                raise Refusal(
                    f"{path} is a NetCDF file of an older form, which stages does not write"
                )
            if signature != SIGNATURE:
                raise Refusal(f"{unreadable}: {IF_DAMAGED}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                fault = _fault(data)
    except (OSError, struct.error, IndexError) as error:
        raise Refusal(f"{unreadable}: {IF_DAMAGED}") from error
    if fault:
        raise Refusal(f"{unreadable} ({fault}): {IF_DAMAGED}")


def _check_regular(path: Path) -> None:
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Refusal(f"there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise Refusal(f"{path} cannot be read ({error}): have reading permitted") from error
    if stat.S_ISDIR(kind):
        raise Refusal(f"{path} is a directory: name a file in it, as {path / 'sweep.nc'}")
    if not stat.S_ISREG(kind):
        # Opening a pipe would wait for a writer.
        raise Refusal(f"{path} is no regular file: copy what comes out of it into one")


def _fault(data: Any) -> str:
    """Return why an HDF5 file must not be opened, or nothing."""
    version = data[8]
    if version not in ROOT_FIELD:
        return OTHER_FORM
    widths = WIDTHS_FIELD[version]
    if data[widths : widths + 2] != b"\x08\x08" or _number(data, BASE_FIELD[version]):
        return OTHER_FORM
    end = _number(data, END_FIELD[version])
    if end > len(data):
        return f"it is cut off: {len(data)} bytes of {end} are there"
    if data.find(LOCAL_HEAP) >= 0 or FILTERED_HEAP.search(data):
        return "it may refer to other files"
    if any(_is_link(data, match.start()) for match in LINK.finditer(data)):
        return "it refers to other files, or has a link"
    if _is_circular(data, _number(data, ROOT_FIELD[version])):
        return "a part of it is its own part"
    for match in VIRTUAL_LAYOUT.finditer(data):
        (address,) = struct.unpack("<Q", match[1])
        if data[address : address + 4] == TEXT_HEAP[:4]:
            return "it refers to other files"
    return "its texts are damaged" if _has_damaged_heap(data) else ""


def _has_damaged_heap(data: Any) -> bool:
    address = data.find(TEXT_HEAP)
    while address >= 0:
        if not _is_whole_heap(data, address):
            return True
        address = data.find(TEXT_HEAP, address + 1)
    return False


def _number(data: Any, place: int) -> int:
    (number,) = struct.unpack_from("<Q", data, place)
    return int(number)


def _is_link(data: Any, place: int) -> bool:
    """Whether a complete link to a path begins at an address."""
    # Flag 4 adds the order of creation, flag 16 the character set; the lowest two bits give the
    # width of the name's length.
    flags, link_type = data[place + 1], data[place + 2]
    place += 3 + 8 * bool(flags & 4)
    if flags & 16:
        if data[place : place + 1] not in (b"\x00", b"\x01"):
            return False
        place += 1
    width = 1 << (flags & 3)
    length = int.from_bytes(data[place : place + width], "little")
    place += width
    name, place = data[place : min(place + length, place + LONGEST_LINK_NAME)], place + length
    size = int.from_bytes(data[place : place + 2], "little")
    target = data[place + 2 : place + 2 + size]
    if not name or len(name) < length or len(target) < size or not _is_text(name):
        return False
    if link_type == 1:  # a path in this file
        return _is_text(target)
    # A version, the name of a file, a path in it, and nothing, each ended by a zero.
    fields = target.split(b"\x00")
    return len(fields) == 4 and not fields[0] and not fields[3] and all(map(_is_text, fields[1:3]))


def _is_circular(data: Any, root: int) -> bool:
    """Whether two links lead to one group, as they must where a group contains itself.

    Equal links count as one, since a link that the library moves leaves its old bytes behind.
    """
    links: dict[int, bytes] = {}
    for match in OWN_LINK.finditer(data):
        begin = match.end(2)
        end = begin + match[2][0]
        target, link = int.from_bytes(data[end : end + 8], "little"), data[match.start() : end]
        if not _is_text(data[begin:end]) or data[target : target + 5] != OBJECT_HEADER:
            continue
        if target == root or (_is_group(data, target) and links.setdefault(target, link) != link):
            return True
    return False


def _is_group(data: Any, place: int) -> bool:
    """Whether an object is a group: a message in its header says how its links are stored."""
    # Flag 32 adds four timestamps to the header and flag 16 two limits; flag 4 adds a number to
    # each message.
    flags, place = data[place + 5], place + 6
    place += 16 * bool(flags & 32) + 4 * bool(flags & 16)
    width = 1 << (flags & 3)
    left, place = int.from_bytes(data[place : place + width], "little"), place + width
    while left >= 4:
        if data[place] == LINK_INFO:
            return True
        needed = 4 + 2 * bool(flags & 4) + int.from_bytes(data[place + 1 : place + 3], "little")
        place, left = place + needed, left - needed
    return False


def _is_text(data: bytes) -> bool:
    try:
        return bool(data) and data.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False


def _is_whole_heap(data: Any, place: int) -> bool:
    """Whether a heap of texts is whole: every object in it has a size, and free space is last."""
    left = _number(data, place + 8) - 16
    place += 16
    while left >= 16:
        index, size = data[place : place + 2], _number(data, place + 8)
        # Object 0 is the free space, whose size includes its own header.
        if index == b"\x00\x00":
            return size == left
        needed = 16 + (size + 7) // 8 * 8
        if needed > left:
            return False
        place, left = place + needed, left - needed
    return left >= 0
