import os
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr
from test_execution import corpus

from robustness.errors import InUse, Unwritable
from robustness.files import lock, netcdf, output
from robustness.files.atomic import write_whole
from robustness.files.lock import Lock
from robustness.sweeps import sweep


def test_a_second_holder_is_refused_with_the_first_ones_process_and_host(tmp_path):
    path = tmp_path / "a" / "run.nc"
    with Lock(path) as first:
        assert first.held
        who = re.escape(f"process {os.getpid()} on {socket.gethostname()}")
        with pytest.raises(InUse, match=rf"run\.nc is being written by {who}: wait .* place"):
            Lock(path)
        with Lock(tmp_path / "a" / "other.nc"):
            pass
    assert not list(tmp_path.iterdir())
    with Lock(path):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from robustness.files.lock import Lock
held = Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_lock_of_a_killed_process_does_not_block(tmp_path):
    path = tmp_path / "run.nc"
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(InUse, match=f"process {child.pid} on"):
            Lock(path)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert [file.name for file in tmp_path.iterdir()] == [".run.nc.lock"]
    with Lock(path) as held:
        assert held.held
    assert not list(tmp_path.iterdir())


def test_a_forked_child_does_not_take_the_lock_away(tmp_path):
    path = tmp_path / "run.nc"
    with Lock(path) as held:
        child = os.fork()
        if not child:
            held.release()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(InUse):
            Lock(path)


@pytest.mark.slow
def test_of_many_that_want_it_at_once_one_at_a_time_has_it(tmp_path):
    """Files are removed on release, so one may be locked that is no longer in its place."""
    code = """
import os, sys, time
from pathlib import Path
from robustness.files.lock import Lock
from robustness.errors import InUse
path, mark = Path(sys.argv[1]), Path(sys.argv[2])
won = 0
end = time.monotonic() + 1.0
while time.monotonic() < end:
    try:
        with Lock(path):
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))  # fails if another is in here
            mark.unlink()
            won += 1
    except InUse:
        pass
print(won)
"""
    arguments = [sys.executable, "-c", code, tmp_path / "run.nc", tmp_path / "mark"]
    several = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    found = [child.communicate() for child in several]
    assert [error for _, error in found] == [""] * 4
    assert all(int(won) > 0 for won, _ in found)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["no locks", "no fcntl"])
def test_where_there_are_no_locks_runs_go_on_without(gpt2, tmp_path, monkeypatch, how):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    if how == "no locks":
        monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    else:
        monkeypatch.setattr(lock, "fcntl", None)
    with Lock(tmp_path / "a.nc") as held, Lock(tmp_path / "a.nc"):
        assert not held.held
    sweep(gpt2, corpus(), ("drop",), out=tmp_path / "a.nc")
    assert [file.name for file in tmp_path.iterdir()] == ["a.nc"]


def test_a_run_into_an_output_in_use_is_refused_and_leaves_it_alone(gpt2, tmp_path):
    path = tmp_path / "a.nc"
    refused = []

    def meddle(done, _total):
        if done == 3:
            with pytest.raises(InUse, match=r"a\.nc is being written by process"):
                sweep(gpt2, corpus(), ("swap",), batch_tokens=12, out=path, fresh=True)
            refused.append(done)

    sweep(gpt2, corpus(), ("drop",), batch_tokens=12, out=path, progress=meddle)
    assert refused == [3] and netcdf.load(path).interventions == "drop"
    assert [file.name for file in tmp_path.iterdir()] == ["a.nc"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("sweep", "MODEL", "--data", "DATA", "--context", 32),
        ("observe", "MODEL", "norms", "--data", "DATA", "--context", 32),
        ("observe", "MODEL", "neurons"),
        ("probe", "MODEL", "wic"),
        ("tasks", "MODEL", "arc_easy", "--drop", "--task-data", "tasks"),
        ("reproduce", "MODEL", "E1", "--data", "DATA", "--context", 32),
        ("pretrain", "out", "--data", "DATA", "--layers", 1, "--width", 8, "--context", 8,
         "--vocabulary", 257, "--tokens", 300),
    ],
    ids=lambda words: "-".join(map(str, words[:1] + words[2:3])),
)  # fmt: skip
def test_every_command_that_resumes_refuses_an_output_in_use(run, llama, stories, words):
    Path("tasks").mkdir()
    Path("tasks/arc_easy.jsonl").write_text('{"query": "A", "choices": ["b", "c"], "gold": 0}\n')
    out = {
        "sweep": "sweep.nc", "observe": f"{words[2]}.nc", "probe": "wic.nc", "tasks": "tasks.nc",
        "reproduce": "report.html", "pretrain": "checkpoint.safetensors",
    }[words[0]]  # fmt: skip
    directory = Path("out") if words[0] == "pretrain" else Path("outputs/tiny-llama")
    known = {"MODEL": llama, "DATA": stories}
    with Lock(directory / out):
        before = sorted(Path().rglob("*"))
        code, printed, err = run(*(known.get(word, word) for word in words), "--quiet")
        assert (code, printed) == (1, "") and err.count("\n") == 1, err
        assert f"{directory / out} is being written by process {os.getpid()} on" in err
        assert sorted(Path().rglob("*")) == before


def test_what_a_killed_write_left_is_removed_by_the_next_run(gpt2, tmp_path):
    (tmp_path / ".a.nc.99999.writing").write_text("half")
    (tmp_path / ".a.partial.nc.99999.writing").write_text("half")
    (tmp_path / ".b.nc.99999.writing").write_text("of another")
    sweep(gpt2, corpus(), ("drop",), out=tmp_path / "a.nc")
    assert {file.name for file in tmp_path.iterdir()} == {"a.nc", ".b.nc.99999.writing"}


def test_two_processes_never_write_to_one_temporary_file(tmp_path):
    seen = []
    for _ in range(2):
        child = os.fork()
        if not child:
            write_whole(
                tmp_path / "a", lambda file: (tmp_path / str(os.getpid())).write_text(file.name)
                and file.write_text("")
            )  # fmt: skip
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        seen.append((tmp_path / str(child)).read_text())
    assert seen[0] != seen[1]


NO_ROOM = {
    28: "No space left on device.*: make room",
    13: "Permission denied.*: have writing permitted",
    30: "Read-only file system.*: mount it for writing",
    27: "File too large.*: raise the limit on the size of files",
    5: "Input/output error.*: mend that",
}


@pytest.mark.parametrize("number", NO_ROOM)
def test_an_error_of_writing_says_what_is_the_matter(tmp_path, monkeypatch, number):
    def fail(_):
        raise OSError(number, os.strerror(number))

    # Tried again without the library, it is the same.
    monkeypatch.setattr(Path, "open", lambda *_, **__: fail(0))
    expected = rf"a\.nc cannot be written \(.*{NO_ROOM[number]}, or choose another place"
    with pytest.raises(Unwritable, match=expected):
        write_whole(tmp_path / "a.nc", fail)
    assert not list(tmp_path.iterdir())


def test_what_the_library_says_of_a_full_disk_is_looked_into(tmp_path, monkeypatch):
    """NetCDF says "HDF error", whatever is the matter."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = xr.Dataset({"x": ("a", [1.0] * 200_000)}, attrs={"stages_schema": 1})
    netcdf.save(data.isel(a=slice(0, 10)), tmp_path / "a.nc")
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(Unwritable, match=r"\(File too large\): raise the limit on the size"):
            netcdf.save(data, tmp_path / "a.nc")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert netcdf.load(tmp_path / "a.nc").sizes["a"] == 10
    assert [file.name for file in tmp_path.iterdir()] == ["a.nc"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 256 KiB, where that is allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    # Lazily: HDF5 keeps a file open that it could not finish.
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_in_the_middle_of_a_run(run, llama, stories, small_disk, monkeypatch):
    monkeypatch.setattr(output, "SAVING_SHARE", float("inf"))
    words = ["sweep", llama, "--data", stories, "--context", 32, "--batch-tokens", 64]
    words += ["--tokens", 320, "--drop", "--quiet", "--out", small_disk / "a.nc"]
    write, filler = xr.Dataset.to_netcdf, small_disk / "filler"

    def filling(self, path, **options):
        if self.attrs.get("sequences_done") == 4 and not filler.exists():
            filler.write_bytes(bytes(max(0, os.statvfs(small_disk).f_bavail * 4096 - 8192)))
        return write(self, path, **options)

    monkeypatch.setattr(xr.Dataset, "to_netcdf", filling)
    code, out, err = run(*words)
    assert (code, out) == (1, "") and err.count("\n") == 1, err
    assert "(No space left on device): make room" in err
    assert {file.name for file in small_disk.iterdir()} == {"a.partial.nc", "filler"}
    assert netcdf.load(small_disk / "a.partial.nc").sequences_done == 2
    filler.unlink()
    monkeypatch.setattr(xr.Dataset, "to_netcdf", write)
    assert run(*words)[0] == 0
    assert run(*words[:-1], "whole.nc")[0] == 0
    resumed, whole = netcdf.load(small_disk / "a.nc"), netcdf.load(Path("whole.nc"))
    for name in whole.data_vars:
        assert whole[name].values.tobytes() == resumed[name].values.tobytes()
    assert [file.name for file in small_disk.iterdir()] == ["a.nc"]


def test_a_lock_of_another_user_stays_where_it_cannot_be_locked_unless_written(
    tmp_path, monkeypatch
):
    """As on a network's file system, which locks what is open for writing."""
    first = Lock(tmp_path / "x.nc")
    opening = os.open

    def deny(path, flags, *rest):
        if str(path).endswith(".lock") and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return opening(path, flags, *rest)

    def fail(*_):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(os, "open", deny)
    monkeypatch.setattr(lock.fcntl, "flock", fail)
    with pytest.raises(InUse, match="another user"):
        Lock(tmp_path / "x.nc")
    assert (tmp_path / ".x.nc.lock").exists()
    first.release()
