"""Exchange of directories: a new one is put in the place of an old one, or neither is changed."""

import ctypes
import errno
import glob
import os
import shutil
import sys
from contextlib import nullcontext, suppress
from pathlib import Path, PurePosixPath

from robustness.errors import Unwritable
from robustness.files import manifest
from robustness.files.manifest import MANIFEST, Manifest

AT_CWD, EXCHANGE = -100, 2
"""Arguments of Linux's `renameat2` that make it exchange two paths, absolute or relative."""


def refuse_foreign(directory: Path, listed: Manifest, name: str) -> None:
    """Refuse to replace a directory that has files which its manifest does not list as they are."""
    for file in (*listed.strangers(directory), *listed.changed(directory)):
        how = "was changed since" if file in listed.files else "is not of what stages wrote there"
        raise Unwritable(
            f"the directory {name} is not empty: {file} in it {how}; move it, or choose another "
            "place"
        )


def put_in_place(whole: Path, directory: Path) -> None:
    """Put a new directory in its place; the one that stages wrote there before ends beside it."""
    listed = manifest.read(directory) if directory.exists() else None
    if listed is None:
        # This also replaces a directory that exists and is empty.
        whole.rename(directory)
        sync_to_disk(directory.parent)
        return
    shutil.copymode(directory, whole)
    old = whole if _exchange(whole, directory) else _take_turns(whole, directory)
    try:
        # Checked only now: under its new name, nobody can add a file to it unnoticed.
        refuse_foreign(old, listed, directory.name)
    except Unwritable:
        if not _exchange(old, directory):
            directory.rename(whole)
            old.rename(directory)
        raise
    sync_to_disk(directory.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two directories in one step, where the system and the file system can."""
    # Python has no call of its own for this one.
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if not sys.platform.startswith("linux"):
        return False
    code = rename(AT_CWD, os.fsencode(one), AT_CWD, os.fsencode(other), EXCHANGE)
    if code and ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    return code == 0


def _take_turns(whole: Path, directory: Path) -> Path:
    """Rename the old directory, and the new one into its place; return where the old one is.

    A kill between the two leaves no directory. `recover` then puts the old one back.
    """
    old = whole.with_name("old")
    directory.rename(old)
    try:
        whole.rename(directory)
    except OSError:
        old.rename(directory)
        raise
    return old


def recover(directory: Path) -> None:
    """Put back the old directory that a killed call took away, and remove what else it left."""
    for temporary in directory.parent.glob(f"{glob.escape(temporary_prefix(directory))}*"):
        if temporary.is_symlink() or not temporary.is_dir():
            continue
        names = {path.name for path in temporary.iterdir()}
        # Other names in it show that it is somebody else's.
        if names - {"new", "old"}:
            continue
        if names == {"new", "old"} and not directory.exists():
            (temporary / "old").rename(directory)
        discard(temporary)


def discard(temporary: Path) -> None:
    """Remove a temporary directory: the new files, and the old ones that their manifest lists."""
    for place in (temporary / "old", temporary / "new"):
        listed = manifest.read(place)
        if listed is not None and (listed.strangers(place) or listed.changed(place)):
            # The manifest stays too, or the next call would take the files for new ones.
            raise Unwritable(f"{temporary} holds files that are not of stages: move them")
        if listed is not None:
            withdraw(place, listed)
        elif place.is_dir():
            shutil.rmtree(place)
    try:
        temporary.rmdir()
    except OSError:
        raise Unwritable(f"{temporary} holds files that are not of stages: move them") from None


def withdraw(directory: Path, listed: Manifest) -> None:
    """Remove the unchanged files that a manifest lists, the manifest, and empty directories."""
    changed = listed.changed(directory)
    for name in listed.files:
        if name not in changed:
            (directory / name).unlink(missing_ok=True)
    # After the files, which nobody would know for ours without it.
    (directory / MANIFEST).unlink()
    folders: set[PurePosixPath] = set()
    for name in (*listed.files, MANIFEST):
        folders |= {*PurePosixPath(name).parents}
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        with suppress(OSError):
            (directory / folder).rmdir()


def temporary_prefix(directory: Path) -> str:
    """Return the beginning of the names of a directory's temporary neighbours."""
    return f".{directory.name}.writing-"


def sync_to_disk(path: Path) -> None:
    """Force a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some file systems cannot do so with directories.
        with suppress(OSError) if path.is_dir() else nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
