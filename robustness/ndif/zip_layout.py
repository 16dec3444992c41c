"""Zip files of which every byte has one meaning, as torch writes them.

Files without compression follow each other from the first byte on; then come their directory and
its end, once each, up to the last byte. Every reader, from the front or from the back, finds the
same files under the same names there. Anything else could show one reader tensors and another a
program.
"""

import struct
from dataclasses import dataclass

from robustness.ndif.limits import Unreadable

FILE, ENTRY = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I")
END, LOCATOR = struct.Struct("<4s4H2IH"), struct.Struct("<4sIQI")
WIDE_END = struct.Struct("<4sQ2H2I4Q")
"""Records of the format; H has 2 bytes, I has 4, Q has 8."""

NARROW, MANY = 2**32 - 1, 2**16 - 1
"""Largest numbers of 4 and of 2 bytes, which say that a number is kept elsewhere."""

DESCRIBED, UTF8 = 0x8, 0x800
"""Flags of a file whose sum and size follow it, and of one whose name is in UTF-8."""

WIDE, PADDING = 0x0001, 0x4246
"""Kinds of additional fields: sizes and places that take 8 bytes, and torch's padding."""


@dataclass(frozen=True)
class Stored:
    """A file, and where its bytes are."""

    name: str
    begin: int
    size: int
    checksum: int
    """CRC-32 of its bytes."""


@dataclass(frozen=True)
class _Entry:
    """An entry of the directory."""

    name: bytes
    flags: int
    checksum: int
    size: int
    place: int
    """Where the record of the file is."""
    wide: bytes
    """Its numbers of 8 bytes."""


def files_in(content: bytes) -> list[Stored]:
    """Return the files of a zip file, in their order.

    Raises
    ------
    Unreadable
        If it is none, or has a byte that another reader could take for something else.
    """
    count, directory, end = _find_directory(content)
    files, place, begin = [], directory, 0
    for _ in range(count):
        entry, place = _read_entry(content, place)
        _insist(entry.place == begin)
        file, begin = _read_file(content, entry)
        files.append(file)
    _insist(begin == directory and place == end)
    return files


def _insist(holds: bool) -> None:
    if not holds:
        raise Unreadable("it is an archive with something else in it")


def _read(record: struct.Struct, content: bytes, place: int, mark: bytes) -> tuple[int, ...]:
    """Return the numbers of a record after the mark that it must begin with."""
    _insist(0 <= place <= len(content) - record.size)
    found, *numbers = record.unpack_from(content, place)
    _insist(found == mark)
    return tuple(numbers)


def _find_directory(content: bytes) -> tuple[int, int, int]:
    """Return the number of entries of the directory, and where it begins and ends."""
    end = len(content) - END.size
    *disks, here, count, size, begin, comment = _read(END, content, end, b"PK\5\6")
    _insist(not any(disks) and not comment and here == count)
    if content[end - LOCATOR.size : end].startswith(b"PK\6\7"):
        first, place, number = _read(LOCATOR, content, end - LOCATOR.size, b"PK\6\7")
        end -= LOCATOR.size + WIDE_END.size
        _insist((first, place, number) == (0, end, 1))
        numbers = _read(WIDE_END, content, end, b"PK\6\6")
        length, _, _, *disks, here, wide, wide_size, wide_begin = numbers
        _insist(length == WIDE_END.size - 12 and not any(disks) and here == wide)
        _insist(count in (wide, MANY))
        _insist(size in (wide_size, NARROW) and begin in (wide_begin, NARROW))
        count, size, begin = wide, wide_size, wide_begin
    _insist(begin + size == end)
    return count, begin, end


def _read_entry(content: bytes, place: int) -> tuple[_Entry, int]:
    """Return an entry of the directory, and where the next begins."""
    numbers = _read(ENTRY, content, place, b"PK\1\2")
    _, _, flags, method, _, _, checksum, stored, size, *rest = numbers
    named, further, comment, disk, _, _, begin = rest
    if method or stored != size or flags & ~(DESCRIBED | UTF8):
        raise Unreadable("a file in it is compressed or encrypted")
    _insist(not comment and not disk)
    place += ENTRY.size
    name = content[place : place + named]
    fields = content[place + named : place + named + further]
    wide = b""
    # Twice: of the bytes in the archive, and of those without compression.
    count = 2 * (size == NARROW) + (begin == NARROW)
    if count:
        _insist(fields[:4] == struct.pack("<2H", WIDE, 8 * count))
        wide = fields[4:]
        larger = list(struct.unpack(f"<{count}Q", wide))
        if size == NARROW:
            size, stored = larger[:2]
            _insist(size == stored)
        if begin == NARROW:
            begin = larger[-1]
    else:
        _insist(not fields)
    return _Entry(name, flags, checksum, size, begin, wide), place + named + further


def _read_file(content: bytes, entry: _Entry) -> tuple[Stored, int]:
    """Return the file of an entry, and where what follows it begins."""
    numbers = _read(FILE, content, entry.place, b"PK\3\4")
    _, flags, method, _, _, *sums, named, further = numbers
    place = entry.place + FILE.size
    _insist((flags, method) == (entry.flags, 0) and content[place : place + named] == entry.name)
    narrow = [entry.checksum, *[min(entry.size, NARROW)] * 2]
    _insist(sums == narrow or (not any(sums) and (flags & DESCRIBED != 0 or narrow == [0, 0, 0])))
    place += named
    _check_fields(content[place : place + further], entry.wide)
    begin = place + further
    end = begin + entry.size
    _insist(end <= len(content))
    if flags & DESCRIBED:
        sizes = [entry.size] * 2
        described = struct.pack(
            "<4sI2Q" if entry.wide else "<4s3I", b"PK\7\x08", entry.checksum, *sizes
        )
        _insist(content[end : end + len(described)] == described)
        end += len(described)
    return Stored(entry.name.decode("ascii", "replace"), begin, entry.size, entry.checksum), end


def _check_fields(fields: bytes, wide: bytes) -> None:
    """Refuse additional fields of a file besides padding and large numbers, known or not yet."""
    place = 0
    while place < len(fields):
        _insist(place + 4 <= len(fields))
        kind, size = struct.unpack_from("<2H", fields, place)
        place += 4
        if kind == WIDE:
            # Torch writes 0 for a size that it knows only when it has written the file.
            _insist(size == len(wide) > 0)
            for number in range(0, size, 8):
                mine, theirs = (each[number : number + 8] for each in (fields[place:], wide))
                _insist(mine in (theirs, bytes(8)))
        else:
            _insist(kind == PADDING)
        place += size
    _insist(place == len(fields))
