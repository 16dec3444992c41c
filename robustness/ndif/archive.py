"""Archives as torch writes them: zip files without compression, whose files do not overlap."""

import io
import re
import zipfile

import zstandard

from robustness.ndif.limits import Unreadable, check_size

MOST_ENTRIES = 100_000
"""Maximum number of files in an archive; nearly all hold the bytes of a tensor."""

BYTES_AT_ONCE = 2**20
"""Number of bytes that are decompressed at once."""

FILE_NAMES = re.compile(
    r"data\.pkl|byteorder|version|\.format_version|\.storage_alignment|"
    r"\.data/serialization_id|data/\d{1,9}"
)
"""Names of the files that torch writes into an archive."""


def unpack(content: bytes, most: float) -> bytes:
    """Decompress an answer, up to a maximum number of bytes.

    Raises
    ------
    Unreadable
        If it has more.
    """
    # Piece by piece, since a few bytes can decompress to more than the memory holds.
    unpacked = bytearray()
    with zstandard.ZstdDecompressor().stream_reader(content) as reader:
        while piece := reader.read(BYTES_AT_ONCE):
            unpacked += piece
            check_size(len(unpacked), most)
    return bytes(unpacked)


class Archive:
    """The files of an archive, by name; `zipfile` alone reads it.

    Raises
    ------
    Unreadable
        If it holds anything that torch does not write, or that another reader could take for
        something else.
    """

    def __init__(self, content: bytes) -> None:
        # Counted before `zipfile` reads the entries, each of which takes more memory than bytes.
        if content[:4] != b"PK\3\4" or content.count(b"PK\1\2") > MOST_ENTRIES:
            raise Unreadable("it is no archive of tensors")
        self._file = zipfile.ZipFile(io.BytesIO(content))
        self._check_surroundings()
        self._entries = self._read_entries()
        # Overlapping files would make a small archive large: shared bytes are read for each file.
        if sum(info.file_size for info in self._entries.values()) > len(content):
            raise Unreadable("its files are larger than all of it")
        if self.read("byteorder", b"little") != b"little":
            raise Unreadable("its bytes are in another order")

    def read(self, name: str, default: bytes | None = None) -> bytes:
        """Return the bytes of a file, or the default where there is none."""
        if name in self._entries:
            return self._file.read(self._entries[name])
        if default is None:
            raise Unreadable(f"it has no {name!r}")
        return default

    def _check_surroundings(self) -> None:
        """Refuse bytes before the archive, and comments, which could hide another archive."""
        infos = self._file.infolist()
        begin = min((info.header_offset for info in infos), default=0)
        if begin or self._file.comment or any(info.comment for info in infos):
            raise Unreadable("it is an archive with something else in it")

    def _read_entries(self) -> dict[str, zipfile.ZipInfo]:
        """Return the entries of all files, by name within the one folder that they are in."""
        entries: dict[str, zipfile.ZipInfo] = {}
        folders = set()
        for info in self._file.infolist():
            folder, _, name = info.filename.partition("/")
            folders.add(folder)
            if name in entries or not FILE_NAMES.fullmatch(name) or len(folders) > 1:
                raise Unreadable(f"it holds {info.filename!r:.60}, which is no part of a result")
            # Bits 0, 6 and 13 of the flags say in three ways that a file is encrypted.
            encrypted = info.flag_bits & 0x2041
            if encrypted or info.compress_type or info.file_size != info.compress_size:
                raise Unreadable(f"{name!r} is compressed or encrypted")
            entries[name] = info
        return entries
