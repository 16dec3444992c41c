"""Archives of tensors as torch writes them, and their decompression."""

import re
import zlib

import zstandard

from robustness.ndif.limits import Unreadable, check_size
from robustness.ndif.zip_layout import Stored, files_in

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
    """The files of an archive, by name.

    Raises
    ------
    Unreadable
        If it holds anything that torch does not write, or that another reader could take for
        something else.
    """

    def __init__(self, content: bytes) -> None:
        # Counted before entries are read, each of which takes more memory than bytes.
        if content[:4] != b"PK\3\4" or content.count(b"PK\1\2") > MOST_ENTRIES:
            raise Unreadable("it is no archive of tensors")
        self._content, self._files = content, _by_name(files_in(content))
        if self.read("byteorder", b"little") != b"little":
            raise Unreadable("its bytes are in another order")

    def read(self, name: str, default: bytes | None = None) -> bytes:
        """Return the bytes of a file, or the default where there is none."""
        file = self._files.get(name)
        if file is None:
            if default is None:
                raise Unreadable(f"it has no {name!r}")
            return default
        content = self._content[file.begin : file.begin + file.size]
        if zlib.crc32(content) != file.checksum:
            raise Unreadable(f"its {name!r} is damaged")
        return content


def _by_name(files: list[Stored]) -> dict[str, Stored]:
    """Return files by name within the one folder that they are in."""
    named: dict[str, Stored] = {}
    folders = set()
    for file in files:
        folder, _, name = file.name.partition("/")
        folders.add(folder)
        if name in named or not FILE_NAMES.fullmatch(name) or len(folders) > 1:
            raise Unreadable(f"it holds {file.name!r:.60}, which is no part of a result")
        named[name] = file
    return named
