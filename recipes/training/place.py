"""Directory of a training: what may be in it, and what an earlier call left there."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.training.state import CHECKPOINT, read_made_of
from robustness.errors import Refusal
from robustness.files import manifest
from robustness.files.atomic import remove_leftovers
from robustness.files.directory import WRITING, check_name, clear, unwritable, write_into
from robustness.files.manifest import Manifest


@dataclass(frozen=True)
class Place:
    """Directory of a training, and the kind of training that may be in it."""

    directory: Path
    kind: str

    def __post_init__(self) -> None:
        """Refuse a path at which there can be no directory."""
        check_name(self.directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise Refusal(f"{self.directory} is a file: choose another place")

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint of an unfinished training."""
        return self.directory / CHECKPOINT

    def claim(self, *, alone: bool) -> Manifest | None:
        """Make the directory, or refuse it; return its manifest if there is one.

        Parameters
        ----------
        alone : bool
            Whether no other call is writing, so that what a killed one left can be removed.
        """
        with unwritable(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            earlier = self._find()
            if alone:
                remove_leftovers(self.checkpoint)
                clear(self.directory)
        return earlier

    def is_finished(self, earlier: Manifest, made_of: Mapping[str, str]) -> bool:
        """Whether the directory holds all files of the model; another model is refused.

        While there is a checkpoint, files of the model may be missing.
        """
        directory = self.directory
        wrong = [*earlier.missing(directory), *earlier.changed(directory)]
        if self.checkpoint.exists() and wrong:
            return False
        different = manifest.difference(earlier.made_of, made_of)
        if different:
            raise Refusal(
                f"{directory} holds a model that was trained {different}: choose another directory"
            )
        if wrong:
            raise Refusal(
                f"{directory} holds this model, but {wrong[0]} is not what was written: choose "
                "another directory"
            )
        self.checkpoint.unlink(missing_ok=True)
        return True

    def finish(self, write: Callable[[Path], Any], made_of: Mapping[str, str]) -> None:
        """Write the files of the model, and remove the checkpoint."""
        write_into(self.directory, write, kind=self.kind, made_of=made_of)
        # Last of all: while it is there, an interrupted call is known to be unfinished.
        with unwritable(self.directory):
            self.checkpoint.unlink()

    def _find(self) -> Manifest | None:
        """Return the manifest of the directory, and refuse one with other things."""
        directory = self.directory
        earlier = manifest.read(directory)
        if earlier is not None and earlier.kind != self.kind:
            raise Refusal(f"{directory} holds a {earlier.kind}: choose another directory")
        if os.path.lexists(self.checkpoint):
            read_made_of(self.checkpoint, self.kind)
        elif earlier is None:
            # Files that an interrupted call was writing are no reason to refuse its directory.
            ours = (f".{CHECKPOINT}.", WRITING)
            for path in sorted(directory.iterdir()):
                if not path.name.startswith(ours):
                    raise Refusal(
                        f"{directory} holds {path.name}, and no training of stages: choose another "
                        "directory"
                    )
        return earlier
