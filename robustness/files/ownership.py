"""Ownership of files: only files that say that stages wrote them are replaced or removed.

Every file that stages writes has a mark: the attribute `stages_schema` in NetCDF, the generator in
a page, the program in a figure, a comment in a card, and an entry of the metadata in a checkpoint.
A mark counts only in its place: a text about this project is not taken for one of its files. A file
without a mark or of another kind is never replaced; an empty file may be.
"""

import errno
import json
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import netCDF4

from robustness.errors import Refusal, Unwritable, reading
from robustness.files import hdf5_bytes

MARK = "stages-of-inference"
"""Program name that marks a page, a figure or a card."""

COMMENT = f"<!-- written by {MARK} -->"
"""Comment that marks a card."""

PAGE, FIGURE, CARD, CHECKPOINT = "a page", "a figure", "a card", "a checkpoint"
MAPS = "fitted maps"
"""Kinds of files that are not NetCDF."""

FIGURES = (".png", ".svg", ".pdf")
"""File name suffixes of figures."""

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    PAGE: (".html", ".htm"),
    FIGURE: FIGURES,
    CARD: (".md",),
    CHECKPOINT: (".safetensors",),
    MAPS: (".safetensors",),
}
"""File name suffixes by the kind of file; NetCDF files end in `.nc`."""

SWEEPS = {"sweep", "schedules", "pairs"}
"""Kinds of files that `sweep` writes, each of which may replace another."""

MARKED_BYTES = 2**20
"""Number of bytes at the beginning or the end of a file that are searched for its mark."""

ELSEWHERE = "choose another place"
"""Remedy for every file in the place of an output."""

_numbers = count()


def kind_of(attributes: Mapping[Any, Any], dimensions: Any = ()) -> str:
    """Return the kind of a NetCDF file: its measurement, and whether it is of single tokens."""
    name = str(attributes.get("measurement", "numbers"))
    name = "sweep" if name in SWEEPS else name
    return f"tokens of {name}" if "token" in dimensions else name


def kind(path: Path, suffix: str | None = None) -> str | None:
    """Return the kind of a file that stages wrote, or None for any other file.

    `suffix` is that of the file's future name, where it still has another.
    """
    suffix = (path.suffix if suffix is None else suffix).lower()
    read = READERS.get(suffix)
    marked = None
    # A file that cannot be read counts as somebody else's, whatever the reason.
    with suppress(Refusal), reading(str(path), ""):
        if read is not None and stat.S_ISREG(path.stat().st_mode):
            marked = read(path)
    return marked


def check(path: Path, wanted: str | None) -> None:
    """Refuse a path at which a file of some kind would replace anything but a file like itself.

    Raises
    ------
    Unwritable
        If the name does not fit the kind, or if the path holds anything but an empty file, a file
        of the same kind that stages wrote, or a link to either.
    """
    ends = (".nc",) if wanted is None else SUFFIXES.get(wanted, (".nc",))
    if wanted is not None and path.suffix.lower() not in ends:
        what = "a NetCDF file, as numbers are kept in" if ends == (".nc",) else wanted
        raise Unwritable(f"{path} is no name of {what}: it must end in {', '.join(ends)}")
    try:
        status = follow(path).stat()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.ENOTDIR:  # refused with a better reason when it is written
            return
        raise Unwritable(f"{path} cannot be written ({error.strerror}): {ELSEWHERE}") from error
    if stat.S_ISDIR(status.st_mode):
        example = {PAGE: "report.html", FIGURE: "figure.png"}.get(str(wanted), "sweep.nc")
        raise Unwritable(f"{path} is a directory: name the file in it, as {path / example}")
    if not stat.S_ISREG(status.st_mode):
        raise Unwritable(f"{path} is a device or a pipe, not a file: {ELSEWHERE}")
    if not status.st_size:
        return
    present = kind(path)
    if present is None:
        raise Unwritable(
            f"{path} does not say that stages wrote it, and would be lost: move it, or {ELSEWHERE}"
        )
    if present != wanted:
        raise Unwritable(f"{path} holds {present}, and would be lost: {ELSEWHERE}")


def remove(path: Path, wanted: str) -> None:
    """Remove a file if stages wrote it and it is of the wanted kind; anything else stays."""
    if kind(path) == wanted:
        follow(path).unlink(missing_ok=True)


def check_directory(directory: Path, wanted: str) -> None:
    """Refuse a directory that holds anything but files of the wanted kind that stages wrote.

    Raises
    ------
    Unwritable
        If it does, or is not a directory.
    """
    if not os.path.lexists(directory):
        return
    if directory.is_symlink() or not directory.is_dir():
        raise Unwritable(f"{directory} is in the way: move it, or {ELSEWHERE}")
    for path in sorted(directory.iterdir()):
        if not _is_leftover(path) and kind(path) != wanted:
            raise Unwritable(
                f"{path} does not say that stages wrote it, and would be lost: move it, or "
                f"{ELSEWHERE}"
            )


def remove_directory(directory: Path, wanted: str) -> None:
    """Remove a directory that holds nothing but files of the wanted kind that stages wrote.

    Raises
    ------
    Unwritable
        As from `check_directory`.
    """
    # All files are checked before the first is removed.
    check_directory(directory, wanted)
    if directory.is_dir():
        for path in sorted(directory.iterdir()):
            path.unlink(missing_ok=True)
        directory.rmdir()


def follow(path: Path) -> Path:
    """Return the target of a link, and any other path itself.

    Raises
    ------
    Unwritable
        If links form a loop.
    """
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "its links lead in a circle"
        raise Unwritable(f"{path} cannot be written ({reason}): {ELSEWHERE}") from error


def temporary(path: Path) -> Path:
    """Return a hidden path beside a file that no other process and no other call uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_numbers)}.writing")


def leftovers(path: Path) -> Iterator[Path]:
    """Yield the temporary files of processes that were killed while they wrote a file."""
    place = follow(path)
    with suppress(OSError):
        for sibling in sorted(place.parent.iterdir()):
            if _is_leftover(sibling, place.name):
                yield sibling


def _is_leftover(path: Path, name: str | None = None) -> bool:
    pattern = r".+" if name is None else re.escape(name)
    match = re.fullmatch(rf"\.{pattern}\.\d+(-\d+)?\.writing", path.name, re.DOTALL)
    return match is not None and not path.is_symlink() and path.is_file()


def _netcdf(path: Path) -> str | None:
    hdf5_bytes.check_bytes(path)
    with netCDF4.Dataset(os.path.abspath(path)) as file:
        attributes = {name: file.getncattr(name) for name in file.ncattrs()}
        return kind_of(attributes, file.dimensions) if "stages_schema" in attributes else None


def _page(path: Path) -> str | None:
    class Head(HTMLParser):
        ours, over = False, False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.over |= tag == "body"
            values = dict(attrs)
            if tag == "meta" and not self.over and values.get("name") == "generator":
                self.ours |= is_ours(values.get("content") or "")

    head = Head()
    with path.open("rb") as file:
        head.feed(file.read(MARKED_BYTES).decode(errors="replace"))
    return PAGE if head.ours else None


def _svg(path: Path) -> str | None:
    about = "{http://purl.org/dc/elements/1.1/}"
    with path.open("rb") as file:
        for event, element in ElementTree.iterparse(file, ("start", "end")):
            name = element.tag.rpartition("}")[2]
            if event == "end" and element.tag == f"{about}creator":
                return FIGURE if is_ours("".join(element.itertext()).strip()) else None
            # matplotlib writes metadata first; what is drawn after it may be of any size.
            if (event == "end" and name == "metadata") or name in {"g", "defs", "path"}:
                return None
    return None


def _png(path: Path) -> str | None:
    with path.open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return None
        while len(head := file.read(8)) == 8:
            size, name = struct.unpack(">I4s", head)
            if name == b"IDAT" or size > MARKED_BYTES:
                return None
            key, _, value = file.read(size).partition(b"\0")
            file.read(4)  # the chunk's checksum
            if name == b"tEXt" and key == b"Software":
                return FIGURE if is_ours(value.decode("latin-1")) else None
    return None


def _pdf(path: Path) -> str | None:
    """Look for the program in the object that the trailer names as the file's information."""
    with path.open("rb") as file:
        data = file.read(16 * MARKED_BYTES)
    named = re.search(rb"/Info (\d+) 0 R\b[^%]*startxref\s+\d+\s+%%EOF\s*$", data[-1024:])
    if not data.startswith(b"%PDF-") or named is None:
        return None
    information = re.search(rb"\n%s 0 obj\s*<<(.*?)>>\s*endobj" % named[1], data, re.DOTALL)
    program = information and re.search(rb"/Creator \(([^()\\]*)\)", information[1])
    return FIGURE if program and is_ours(program[1].decode("latin-1")) else None


def _card(path: Path) -> str | None:
    with path.open("rb") as file:
        lines = file.read(MARKED_BYTES).decode(errors="replace").splitlines()
    return CARD if COMMENT in lines else None


def _safetensors(path: Path) -> str | None:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size)) if size <= 100 * MARKED_BYTES else {}
    metadata = header.get("__metadata__", {})
    if str(metadata.get("stages")).startswith("maps "):
        return MAPS
    return CHECKPOINT if "stages" in metadata else None


def is_ours(program: str) -> bool:
    """Whether a program's name, with or without a version, is this project's."""
    return re.fullmatch(rf"{MARK}( [\w.+-]+)?", program) is not None


READERS: Mapping[str, Callable[[Path], str | None]] = {
    ".nc": _netcdf,
    ".html": _page,
    ".htm": _page,
    ".svg": _svg,
    ".png": _png,
    ".pdf": _pdf,
    ".md": _card,
    ".safetensors": _safetensors,
}
"""Functions that return the kind of a file that stages wrote, by the suffix of its name."""
