"""Directories that are written whole, and files in a directory of others."""

import json
import os
from pathlib import Path

import pytest

from robustness.errors import Refusal
from robustness.files import directory as directories
from robustness.files import exchange, manifest
from robustness.files.directory import WRITING, write_directory, write_into
from robustness.files.manifest import MANIFEST, describe

MARK = {"kind": "export", "made_of": {"of": "one"}}


@pytest.fixture(params=[True, False], ids=["swapped", "in turns"])
def swapping(request, monkeypatch) -> bool:
    """Whether the system can swap two directories in one step."""
    if not request.param:
        monkeypatch.setattr(exchange, "_exchange", lambda *_: False)
    return request.param


def files(**contents: str):
    def write(where: Path) -> None:
        for name, content in contents.items():
            path = where / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)

    return write


def tree(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in directory.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def test_a_swap_is_one_step_where_the_system_can(tmp_path):
    """Without it the tests below would say nothing of it."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("no renameat2 here")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["other"]
    with pytest.raises(FileNotFoundError):
        exchange._exchange(tmp_path / "one", tmp_path / "nothing")


def test_what_was_written_is_replaced_and_nothing_is_left(tmp_path, swapping):
    path = tmp_path / "out"
    assert write_directory(path, files(a="1", sub__b="2"), **MARK)
    path.chmod(0o750)
    assert not write_directory(path, files(a="other"), **MARK), "it is made of the same"
    assert tree(path) == {"a": "1", "sub/b": "2"}
    assert write_directory(path, files(c="3"), **MARK, fresh=True)
    assert tree(path) == {"c": "3"} and path.stat().st_mode & 0o777 == 0o750
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("notes.md", "notes.md in it is not of what stages wrote there"),
        ("sub/notes.txt", "sub/notes.txt in it is not of what stages wrote there"),
        ("mine/", "mine in it is not of what stages wrote there"),
        ("a", "a in it was changed since"),
        ("link", "link in it is not of what stages wrote there"),
    ],
)
@pytest.mark.parametrize("when", ["before", "while it is written"])
def test_files_of_others_are_not_replaced(tmp_path, swapping, name, how, when):
    path, outside = tmp_path / "out", tmp_path / "outside"
    outside.write_text("outside")
    write_directory(path, files(a="1", sub__b="2"), **MARK)

    def put() -> None:
        if name.endswith("/"):
            (path / name).mkdir()
        elif name == "link":
            (path / name).symlink_to(outside)
        else:
            (path / name).write_text("mine")

    def write(where: Path) -> None:
        if when != "before":
            put()
        (where / "c").write_text("3")

    if when == "before":
        put()
    with pytest.raises(Refusal, match=f"{how}; move it, or choose another place"):
        write_directory(path, write, **MARK, fresh=True)
    mine = {"link": {"link": "outside"}, "mine/": {}}.get(name, {name: "mine"})
    assert tree(path) == {"a": "1", "sub/b": "2"} | mine
    assert os.path.lexists(path / name)
    assert {each.name for each in tmp_path.iterdir()} == {"out", "outside"}
    assert outside.read_text() == "outside"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "damaged or changed"),
        ("[" * 100_000, "damaged or changed"),
        ("[]", "does not say which version of stages"),
        ('{"stages": 2, "kind": "export"}', "a later version of stages wrote it: 2"),
        ({"files": {"../victim": "0" * 64}}, "names files in a way that stages does not"),
        ({"files": {"/etc/passwd": "0" * 64}}, "names files in a way that stages does not"),
        ({"files": {"a\0b": "0" * 64}}, "names files in a way that stages does not"),
        ({"files": {"\ud800": "0" * 64}}, "damaged or changed"),
        ({"files": {"a": "12"}}, "names files in a way that stages does not"),
        ({"files": ["a"]}, "names no files"),
        ({"kind": 1}, "names no files"),
    ],
)
def test_a_mark_that_is_none_is_refused_and_nothing_is_touched(tmp_path, content, problem):
    path = tmp_path / "out"
    path.mkdir()
    (tmp_path / "victim").write_text("mine")
    if isinstance(content, dict):
        content = json.dumps({"stages": 1, "kind": "export", "made_of": {}, "files": {}} | content)
    (path / MANIFEST).write_text(content)
    with pytest.raises(Refusal, match=problem) as refused:
        write_directory(path, files(a="1"), **MARK, fresh=True)
    assert "\n" not in str(refused.value) and (path / MANIFEST).read_text() == content
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_mark_names_nothing_behind_a_link(tmp_path):
    path, victim = tmp_path / "out", tmp_path / "victim"
    write_directory(path, files(sub__b="2"), **MARK)
    (path / "sub").rename(victim)
    (path / "sub").symlink_to(victim)
    with pytest.raises(Refusal, match="sub in it is not of what stages wrote there"):
        write_directory(path, files(a="1"), **MARK, fresh=True)
    assert (victim / "b").read_text() == "2"


@pytest.mark.parametrize("kind", ["pipe", "file", "loop"])
def test_what_is_no_directory_is_refused(tmp_path, kind):
    path = tmp_path / "out"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(path)
    before = os.lstat(path).st_ino
    with pytest.raises(Refusal, match="choose another place"):
        write_directory(path, files(a="1"), **MARK)
    assert os.lstat(path).st_ino == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_directory_stays_one(tmp_path, there):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    if there:
        (tmp_path / "target").mkdir()
    write_directory(tmp_path / "link", files(a="1"), **MARK)
    assert (tmp_path / "link").is_symlink() and tree(tmp_path / "target") == {"a": "1"}
    assert {each.name for each in tmp_path.iterdir()} == {"link", "target"}


@pytest.mark.parametrize("place", ["/", "..", "x" * 300, "\udcff", "\udcff/out"])
def test_places_that_cannot_be_are_refused(tmp_path, monkeypatch, place):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(Refusal, match=r"choose (another|a) place"):
        write_directory(Path(place), files(a="1"), **MARK)
    assert not list((tmp_path / "here").iterdir())


def test_what_only_looks_like_a_temporary_directory_stays(tmp_path):
    mine = tmp_path / ".out.writing-notes"
    mine.mkdir()
    (mine / "text").write_text("mine")
    (tmp_path / ".out.writing-link").symlink_to(mine)
    write_directory(tmp_path / "out", files(a="1"), **MARK)
    assert tree(mine) == {"text": "mine"} and (tmp_path / ".out.writing-link").is_symlink()


def test_what_a_kill_leaves_between_two_renames_is_put_back(tmp_path, monkeypatch):
    path = tmp_path / "out"
    write_directory(path, files(a="1"), **MARK)
    monkeypatch.setattr(exchange, "_exchange", lambda *_: False)
    monkeypatch.setattr(directories, "discard", lambda _: None)
    monkeypatch.setattr(exchange, "discard", lambda _: None)
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            write_directory(path, files(c="3"), **MARK, fresh=True)
    assert not path.exists()
    monkeypatch.undo()
    assert not write_directory(path, files(a="other"), **MARK), "it is there again"
    assert tree(path) == {"a": "1"} and len(list(tmp_path.iterdir())) == 1


def test_files_of_others_stay_beside_those_that_are_written(tmp_path):
    (tmp_path / "notes").write_text("mine")
    write_into(tmp_path, files(a="1", sub__b="2"), **MARK)
    write_into(tmp_path, files(a="3"), **MARK)
    assert tree(tmp_path) == {"notes": "mine", "a": "3"}
    with pytest.raises(Refusal, match="notes is not of stages, and would be replaced: move it"):
        write_into(tmp_path, files(notes="4"), **MARK)
    assert tree(tmp_path) == {"notes": "mine"} and not (tmp_path / WRITING).exists()


def test_a_mark_names_what_is_in_the_files(tmp_path):
    files(a="1", sub__b="2")(tmp_path)
    found = describe(tmp_path, "export", {"of": "one"})
    manifest.write(found, tmp_path)
    assert manifest.read(tmp_path) == found
    assert not found.strangers(tmp_path) + found.changed(tmp_path) + found.missing(tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "sub" / "b").write_text("3")
    assert (found.missing(tmp_path), found.changed(tmp_path)) == (["a"], ["sub/b"])
    different = manifest.difference({"x": "1", "y_sha256": "1" * 64}, {"x": "2", "z": "3"})
    assert different == "with x 1, not 2"


def test_files_of_others_outlive_a_kill_and_every_call_after_it(tmp_path, swapping):
    """Killed between the swap and the look for strangers, however often it is given again."""
    place = tmp_path / "out"
    write_directory(place, files(a="old"), kind="export", made_of={"x": "1"})

    def write_and_be_joined(where: Path) -> None:
        files(a="new")(where)
        (place / "notes.txt").write_text("mine")

    child = os.fork()
    if not child:
        exchange.refuse_foreign = lambda at, *_: os._exit(9) if at != place else None
        write_directory(place, write_and_be_joined, kind="export", made_of={"x": "2"}, fresh=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    for _ in range(3):
        with pytest.raises(Refusal, match="move them"):
            write_directory(place, files(a="new"), kind="export", made_of={"x": "2"}, fresh=True)
        (notes,) = tmp_path.rglob("notes.txt")
        assert notes.read_text() == "mine"
    notes.rename(tmp_path / "notes.txt")
    write_directory(place, files(a="new"), kind="export", made_of={"x": "2"}, fresh=True)
    assert tree(place) == {"a": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "out"]
