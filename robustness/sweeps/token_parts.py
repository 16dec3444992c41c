"""Parts of a file of single tokens: one file for each batch, in a directory beside the run's file.

The name of a part is the index of its first sequence. Parts are removed at once, by renaming their
directory first: if the process is killed while it deletes them, those that remain must not be taken
for all parts of a run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal, reading
from robustness.files import netcdf, ownership
from robustness.files.damage import REMEDY
from robustness.files.schema import SCHEMA
from robustness.sweeps.token_layout import beside

KIND = ownership.kind_of({"measurement": "part"}, ("token",))
"""Kind of file that a part is."""


class TokenParts:
    """Directory of the parts of a run.

    Parameters
    ----------
    path : path
        Path of the run's file.
    """

    def __init__(self, path: Path) -> None:
        tokens = beside(path)
        self.directory = tokens.with_name(f"{tokens.stem}.parts")
        self._removed = tokens.with_name(f".{self.directory.name}.removed")

    def check(self) -> None:
        """Finish a removal that was interrupted, and refuse a directory with files of others."""
        self.finish_removal()
        ownership.check_directory(self.directory, KIND)

    def exist(self) -> bool:
        """Whether the run has parts."""
        return self.directory.is_dir()

    def files(self) -> list[Path]:
        """Return the parts in the order of their sequences."""
        return sorted(part for part in self.directory.glob("*.nc") if part.stem.isdecimal())

    def check_complete(self, sequences: int) -> None:
        """Refuse parts that do not hold all of the first `sequences` sequences."""
        end = 0
        for part in self.files():
            if int(part.stem) != end:
                break
            with netcdf.opened_part(part) as file, reading(str(part), REMEDY):
                end += len(file.dimensions["sequence"])
        if end < sequences:
            raise Refusal(
                f"{self.directory} has lost what was measured of sequence {end}: measure anew with "
                "`fresh`"
            )

    def remove_from(self, sequence: int) -> None:
        """Remove the parts that begin with a sequence or after it."""
        for part in self.files():
            if int(part.stem) >= sequence:
                part.unlink()

    def add(
        self, first: int, variables: Mapping[str, tuple[tuple[str, ...], NDArray[Any]]]
    ) -> None:
        """Save what a batch yielded, as dimensions and values, under its first sequence."""
        attrs = {"stages_schema": SCHEMA, "measurement": "part"}
        netcdf.save(xr.Dataset(variables, attrs=attrs), self.directory / f"{first:012}.nc")

    def remove(self) -> None:
        """Remove all parts at once."""
        if self.exist():
            ownership.check_directory(self.directory, KIND)
            self.directory.rename(self._removed)
            self.finish_removal()

    def finish_removal(self) -> None:
        """Remove what an interrupted removal has left."""
        ownership.remove_directory(self._removed, KIND)
