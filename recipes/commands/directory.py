"""List of the results in a directory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipes.commands.progress import advise, quoted
from recipes.commands.tables import say_rows
from robustness.errors import Refusal

COLUMNS = ("file", "what", "model", "state", "made")


def say_directory(directory: Path) -> None:
    """Print a list of the results in a directory and in its subdirectories.

    Raises
    ------
    Refusal
        If there are no results.
    """
    rows = list(_results(directory))
    for below in sorted(filter(Path.is_dir, directory.iterdir())):
        rows += _results(below)
    if not rows:
        raise Refusal(
            f"{directory} has no result of stages: run, for instance, stages sweep builtin --out "
            f"{quoted(directory / 'sweep.nc')}"
        )
    say_rows(COLUMNS, [[str(path), *cells] for path, *cells in rows])
    # A name that cannot be printed cannot be typed either.
    readable = [path for path, _, _, state, _ in rows if state and str(path).isprintable()]
    if readable:
        advise(f"show {quoted(readable[0])}")


def _results(directory: Path) -> Iterator[tuple[Path, str, str, str, str]]:
    """Yield a row for each file of ours in a directory."""
    from robustness.files import ownership

    for path in sorted(directory.iterdir()):
        # Hidden files are locks and temporary files of runs that are under way.
        if path.name.startswith("."):
            continue
        if path.suffix.lower() == ".nc":
            yield path, *_described(path)
        elif kind := ownership.kind(path):
            yield path, kind.removeprefix("a "), "", "", ""


def _described(path: Path) -> tuple[str, str, str, str]:
    """Return what a NetCDF file holds, its model, whether it is complete, and its date."""
    from robustness.files.netcdf import opened

    try:
        with opened(path, whole=False) as file:
            attrs = {name: file.getncattr(name) for name in file.ncattrs()}
    except Refusal as error:
        # A damaged file must not hide the others.
        return str(error).removeprefix(f"{path} ").partition(":")[0], "", "", ""
    made = str(attrs.get("created", ""))[:16].replace("T", " ")
    return str(attrs.get("measurement")), str(attrs.get("model", "")), _state(attrs), made


def _state(attrs: dict[str, Any]) -> str:
    if "sequences_done" in attrs:
        return f"unfinished, {attrs['sequences_done']} of {attrs.get('sequences', '?')} sequences"
    if "requests_done" in attrs:
        return "unfinished"
    return f"shard {attrs['shard']}" if "shard" in attrs else "complete"
