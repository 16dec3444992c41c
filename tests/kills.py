"""Kills a command before every operation on its files, and gives it again: the end must be equal.

    kills.survives(["sweep", model, "--out", "a.nc"], prepared, tmp_path)

runs the command undisturbed in a copy of the directory `prepared` (that is where it runs, so that
outputs are named relatively), and again to see that a finished command changes nothing. Then, for
every operation that it made on files there, a new copy is made, the command is ended
as by SIGKILL just before that operation, and given again: status and files must be those of the
undisturbed run, and nothing hidden may be left. Operations are opening to write, renaming,
removing, making and removing directories, links, truncation, fsync, and the beginning and end of
what the NetCDF and safetensors libraries write, which is half-written there.

`after` is called with the directory after each kill, before the command is given again: the place
to say that no result may ever be missing, half-written or without its old content. `again` names
another command that is to bring about the end (`pretrain` without `--fresh`, say). `repeats` is
False for commands that do their work again, or refuse, when it is done.

Every case is a fork of this process, in which the command has run once, so that all that is needed
is imported: a fraction of a second. By default one operation of every sort is taken, and of these
`most`; with STAGES_FUZZ=1 in the environment every operation is, with STAGES_FUZZ=0.2 a fifth.
"""

import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import netCDF4
import safetensors.torch

from robustness.sweeps import execution

KILLED = 137
"""Status of a command that was ended by a kill."""

SECONDS = 120
"""After which a case counts as hanging."""

VOLATILE = {"created", "shards_created", "sources", "seconds", "tokens_per_second"}
"""Attributes of NetCDF files that tell when they, or those that they are made of, were made."""

VOLATILE_VARIABLES = {"seconds", "tokens_per_second", "time", "milliseconds"}

MOMENT = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(\+00:00|Z)?")


def survives(
    words: Sequence[object],
    prepared: Path,
    scratch: Path,
    *,
    again: Sequence[object] | None = None,
    status: int = 0,
    repeats: bool = True,
    after: Callable[[Path], object] = lambda directory: None,
    most: int = 3,
    volatile: Iterable[str] = (),
) -> int:
    """Check that a command comes to the same end wherever it is killed; return how many kills.

    `volatile` names further files, as patterns, whose content may differ.
    """
    again = list(words if again is None else again)
    _warm_up(words, prepared, scratch / "warm")
    whole = scratch / "undisturbed"
    shutil.copytree(prepared, whole, symlinks=True)
    found, operations, printed = run(words, whole)
    assert found == status, printed
    end = state(whole, volatile)
    assert not hidden(whole), f"undisturbed, {hidden(whole)} is left"
    if repeats:
        times = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
        assert run(words, whole)[0] == status
        for path, before in times.items():
            assert path.stat().st_mtime_ns == before, f"{path.name} is written again"
        assert state(whole, volatile).keys() == end.keys()
    chosen = choose(operations, most, " ".join(map(str, words)))
    for index in chosen:
        case = scratch / f"kill-{index}"
        shutil.copytree(prepared, case, symlinks=True)
        found, _, printed = run(words, case, index)
        where = f"{_line(words)} killed before {index}, {operations[index]}"
        assert found == KILLED, f"{where}: ended with {found}\n{printed}"
        try:
            after(case)
            found, _, printed = run(again, case)
            assert found == status, f"given again it ends with {found}\n{printed}"
            assert not hidden(case), f"{hidden(case)} is left"
            reached = state(case, volatile)
            assert reached.keys() == end.keys()
            different = [name for name in end if reached[name] != end[name]]
            assert not different, f"{different} differ"
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from error
        shutil.rmtree(case)
    return len(chosen)


def choose(operations: Sequence[str], most: int, seed: str) -> list[int]:
    """Return which operations a command is killed before: see the module."""
    share = float(os.environ.get("STAGES_FUZZ") or 0)
    every = list(range(len(operations)))
    if share >= 1:
        return every
    if share:
        return sorted(random.Random(seed).sample(every, max(1, round(len(every) * share))))
    sorts: dict[str, list[int]] = {}
    for index, operation in enumerate(operations):
        sorts.setdefault(re.sub(r"\d+|[A-Za-z0-9_]{8}$", "#", operation), []).append(index)
    draw = random.Random(seed)
    return sorted(
        draw.sample([draw.choice(each) for each in sorts.values()], min(most, len(sorts)))
    )


def run(
    words: Sequence[object], directory: Path, stop: int | None = None
) -> tuple[int, list[str], str]:
    """Run a command in a fork, in a directory, and perhaps kill it before an operation.

    Returns
    -------
    status : int
    operations : list of str
        Those it made on files below the directory.
    printed : str
    """
    told = directory.with_name(f"{directory.name}.told")
    child = os.fork()
    if not child:
        try:
            _child([*map(str, words)], directory.resolve(), stop, told)
        finally:
            os._exit(70)
    begun = time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - begun > SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"{_line(words)} hangs")
        time.sleep(0.005)
    log = told.with_suffix(".log")
    printed = log.read_text(errors="replace")
    operations = json.loads(told.read_text()) if told.exists() else []
    told.unlink(missing_ok=True)
    log.unlink()
    return os.waitstatus_to_exitcode(status), operations, printed


def fork(call: Callable[[], object]) -> int:
    """Call a function in a fork, and return the status with which it ended, or minus the signal.

    What it patches is patched in the fork alone.
    """
    child = os.fork()
    if not child:
        try:
            call()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_after(batches: int) -> None:
    """Kill this process, which is a fork, as soon as a sweep has measured some batches."""
    measure, left = execution.measure_batch, batches

    def counting(*arguments: Any) -> Any:
        nonlocal left
        if not left:
            die()
        left -= 1
        return measure(*arguments)

    execution.measure_batch = counting


def die() -> None:
    """End this process as a kill does."""
    os.kill(os.getpid(), signal.SIGKILL)


def _warm_up(words: Sequence[object], prepared: Path, place: Path) -> None:
    """Run the command in this process, for what it imports."""
    shutil.copytree(prepared, place, symlinks=True)
    before, arguments, printed = Path.cwd(), sys.argv, io.StringIO()
    os.chdir(place)
    try:
        with redirect_stdout(printed), redirect_stderr(printed), suppress(SystemExit):
            _call(list(map(str, words)))
    finally:
        os.chdir(before)
        sys.argv = arguments
    shutil.rmtree(place)


def _call(words: list[str]) -> None:
    import cli

    sys.argv = ["stages", *words]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are no errors on the command line
        cli.main()


def _child(words: list[str], directory: Path, stop: int | None, told: Path) -> None:
    """Run the command line, with an eye on its operations."""
    sys.stdout = sys.stderr = told.with_suffix(".log").open("w", buffering=1)
    os.chdir(directory)
    operations: list[str] = []
    watch(directory, lambda operation: _count(operations, operation, stop))
    try:
        _call(words)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 70
    told.write_text(json.dumps(operations))
    os._exit(status)


def _count(operations: list[str], operation: str, stop: int | None) -> None:
    if len(operations) == stop:
        os._exit(KILLED)
    operations.append(operation)


def watch(directory: Path, tell: Callable[[str], object]) -> None:
    """Tell of every operation on files below a directory before it is made, from here on for ever.

    For a process that ends soon: a hook of Python's audit cannot be taken away.
    """
    top = f"{directory}{os.sep}"
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def seen(event: str, path: Any, at: Any = -1) -> None:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        name = os.fsdecode(path)
        if isinstance(at, int) and at >= 0:
            name = os.path.join(os.readlink(f"/proc/self/fd/{at}"), name)
        name = os.path.abspath(name)
        if name.startswith(top):
            tell(f"{event} {name.removeprefix(top)}")

    def hook(event: str, found: tuple[Any, ...]) -> None:
        if event == "open" and found[0] is not None and not isinstance(found[0], int):
            if (found[2] or 0) & writing:
                seen("open", found[0])
        elif event in {"os.rename", "os.link"}:
            seen(event, found[1], found[3])
        elif event in {"os.remove", "os.rmdir"}:
            seen(event, found[0], found[1])
        elif event in {"os.mkdir", "os.chmod", "os.symlink"}:
            seen(event, found[1 if event == "os.symlink" else 0], found[2])
        elif event == "os.truncate":
            seen(event, found[0])

    sys.addaudithook(hook)
    flush = os.fsync

    def fsync(file: Any) -> None:
        seen("fsync", file if isinstance(file, int) else file.fileno())
        flush(file)

    class Dataset(netCDF4.Dataset):  # type: ignore[misc]
        """Of which beginning and end are told: between them it is half-written."""

        def __init__(self, path: Any, mode: str = "r", **options: Any) -> None:
            if mode != "r":
                seen("netCDF", path)
            super().__init__(path, mode, **options)

        def close(self) -> None:
            seen("close", self.filepath())
            super().close()

    write = safetensors.torch.serialize_file

    def serialize_file(tensors: Any, path: Any, *rest: Any, **options: Any) -> None:
        seen("safetensors", path)
        write(tensors, path, *rest, **options)
        seen("written", path)

    os.fsync = fsync
    netCDF4.Dataset = Dataset
    safetensors.torch.serialize_file = serialize_file


def hidden(directory: Path) -> list[str]:
    """Return what is hidden below a directory, and temporary files with it."""
    names = (path.relative_to(directory) for path in sorted(directory.rglob("*")))
    return [str(name) for name in names if name.name.startswith(".")]


def state(directory: Path, volatile: Iterable[str] = ()) -> dict[str, str]:
    """Return of every file below a directory a hash of what is in it, whenever it was made."""
    return {
        str(path.relative_to(directory)): "" if any(map(path.match, volatile)) else content(path)
        for path in sorted(directory.rglob("*"))
        if not path.name.startswith(".")
    }


def content(path: Path) -> str:
    """Return a hash of what is in a file, less the moments at which something was made."""
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if path.is_dir():
        return "directory"
    if path.suffix == ".nc":
        with netCDF4.Dataset(path) as file:
            return hashlib.sha256("\n".join(_described(file)).encode()).hexdigest()
    return hashlib.sha256(MOMENT.sub(b"", path.read_bytes())).hexdigest()


def _described(group: Any) -> Iterable[str]:
    for name in sorted(set(group.ncattrs()) - VOLATILE):
        yield f"{name}: {group.getncattr(name)!r}"
    for name, dimension in sorted(group.dimensions.items()):
        yield f"{name}: {len(dimension)}"
    for name, variable in sorted(group.variables.items()):
        variable.set_auto_maskandscale(False)
        values = variable[...]
        shown = repr(values.tolist()) if values.dtype == object else values.tobytes()
        attributes = {key: repr(variable.getncattr(key)) for key in variable.ncattrs()}
        data = shown.encode() if isinstance(shown, str) else shown
        read = "" if name in VOLATILE_VARIABLES else hashlib.sha256(data).hexdigest()
        yield f"{name} {variable.dtype} {variable.dimensions} {sorted(attributes.items())} {read}"
    for name, below in sorted(group.groups.items()):
        yield name
        yield from _described(below)


def _line(words: Sequence[object]) -> str:
    return " ".join(["stages", *(Path(str(word)).name for word in words)])
