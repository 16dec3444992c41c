"""What is not known to be ours is neither replaced nor removed, whatever the command."""

import os
import signal
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from test_execution import corpus

from robustness.errors import InUse, Refusal, Unwritable
from robustness.files import netcdf, ownership
from robustness.files.figures import save_figure
from robustness.files.lock import Lock
from robustness.sweeps import sweep


def numbers(**attrs):
    return xr.Dataset({"x": ("a", np.arange(3.0))}, attrs={"stages_schema": 1, **attrs})


def figure():
    drawn = plt.figure()
    plt.close(drawn)
    return drawn


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_figure_of_ours_is_replaced_and_one_of_matplotlib_is_not(tmp_path, suffix):
    ours, other = tmp_path / f"ours{suffix}", tmp_path / f"other{suffix}"
    for _ in range(2):
        save_figure(figure(), ours)
    assert ownership.kind(ours) == ownership.FIGURE
    # Of a user who writes about this project: neither title nor text are a mark.
    said = {".png": "Title", ".svg": "Title", ".pdf": "Title"}[suffix]
    drawn = plt.figure()
    drawn.text(0.5, 0.5, f"{ownership.MARK} {ownership.COMMENT}")
    drawn.savefig(other, metadata={said: ownership.MARK})
    plt.close(drawn)
    before = other.read_bytes()
    with pytest.raises(Unwritable, match=rf"other\{suffix} does not say that stages wrote it"):
        save_figure(figure(), other)
    assert other.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {ours.name, other.name}


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.html", '<html><head><meta name="generator" content="stages-of-inference 0.1">', "page"),
        ("a.html", '<body><meta name="generator" content="stages-of-inference">', None),
        ("a.html", '<script>"<meta name=generator content=stages-of-inference>"</script>', None),
        ("a.html", '<meta name="generator" content="Not stages-of-inference">', None),
        ("a.html", "<!-- <meta name='generator' content='stages-of-inference'> -->", None),
        ("a.md", f"# model\n{ownership.COMMENT}\n", "card"),
        ("a.md", f"It ends in `{ownership.COMMENT}`.\n", None),
        ("a.txt", f"{ownership.COMMENT}\n", None),
        ("a.svg", "<svg><!-- stages-of-inference --></svg>", None),
        ("a.svg", "<svg><g></g><metadata>stages-of-inference</metadata></svg>", None),
        ("a.png", "\x89PNG", None),
        ("a.pdf", "%PDF-1.4\n/Creator (stages-of-inference)", None),
        ("a.nc", "CDF\x01", None),
        ("a.safetensors", "\x02\0\0\0\0\0\0\0{}", None),
        ("a.safetensors", "\xff\xff\xff\xff\xff\xff\xff\x7f{}", None),
    ],
)  # fmt: skip
def test_a_mark_is_read_where_it_belongs_and_nowhere_else(tmp_path, name, text, kind):
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    assert ownership.kind(path) == (kind and f"a {kind}")


def foreign(path: Path) -> bytes:
    """Put a file of somebody else in a place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".nc":
        xr.Dataset({"rain": ("day", np.arange(9.0))}, attrs={"title": "climate"}).to_netcdf(path)
    else:
        path.write_text("notes of a year\n")
    return path.read_bytes()


OUTPUTS = {
    "sweep.nc": ("sweep", "MODEL", "--out", "sweep.nc", "--fresh"),
    "a.partial.nc": ("sweep", "MODEL", "--out", "a.nc", "--fresh"),
    "a.tokens.nc": ("sweep", "MODEL", "--out", "a.nc", "--per-token", "--fresh"),
    "a.tokens.parts/notes.nc": ("sweep", "MODEL", "--out", "a.nc", "--per-token", "--fresh"),
    "d/norms.nc": ("observe", "MODEL", "norms", "--out", "d", "--fresh"),
    "wic.nc": ("probe", "MODEL", "wic", "--out", "wic.nc", "--fresh"),
    "climate.nc": ("segment", "whole", "--out", "climate.nc"),
    "whole/stages.nc": ("segment", "whole"),
    "c.nc": ("compare", "whole", "other", "--out", "c.nc"),
    "c.html": ("compare", "whole", "other", "--out", "c.nc"),
    "notes.md": ("report", "whole", "--out", "notes.md"),
    "whole/report.html": ("report", "whole"),
    "pages/claims.nc": ("report", "whole", "--out", "pages/report.html"),
    "figures/norms-by-layer.svg": ("report", "whole", "--figures", "figures"),
    "whole/sweep.png": ("plot", "whole/sweep.nc"),
    "f.svg": ("plot", "whole/sweep.nc", "--out", "f.svg"),
    "m.nc": ("merge", "s1.nc", "s2.nc", "-o", "m.nc", "--fresh"),
    "r/report.html": ("reproduce", "MODEL", "E1", "--out", "r", "--fresh"),
    "r/claims.nc": ("reproduce", "MODEL", "E1", "--out", "r", "--fresh"),
    "r/sweep.nc": ("reproduce", "MODEL", "E1", "--out", "r", "--fresh"),
    "out/builtin/sweep.png": ("demo", "--out", "out"),
}  # fmt: skip
"""Commands, and a file that each would replace or remove."""


@pytest.fixture
def project(run, llama, stories, gpt2, tmp_path):
    """The places that the commands work in, and a function that runs one."""
    for name in ("whole", "other"):
        (tmp_path / name).mkdir()
        netcdf.save(sweep(gpt2, corpus(), ("drop", "swap")), tmp_path / name / "sweep.nc")
    text = ("--data", stories, "--context", 32, "--tokens", 100)

    def call(*words):
        if words[0] == "merge":
            for index in (1, 2):
                shard = ("--shard", f"{index}/2", "--out", f"s{index}.nc", "--batch-tokens", 32)
                assert run("sweep", llama, *text, *shard)[0] == 0
        more = text if words[0] in {"sweep", "observe", "reproduce"} else ()
        return run(*(llama if word == "MODEL" else word for word in words), *more)

    return call


def picture_names():
    from recipes.experiments.catalogue import RECIPES

    return [picture.name for recipe in RECIPES for picture in recipe.pictures]


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTPUTS)
def test_no_command_touches_a_file_that_is_not_ours(project, tmp_path, name):
    place = tmp_path / name
    if name.startswith("figures"):
        place = place.with_name(f"{picture_names()[-1]}.svg")
    before = foreign(place)
    code, printed, err = project(*OUTPUTS[name], "--quiet")
    assert (code, printed) == (1, "") and err.count("\n") == 1, err
    assert place.name in err and ("move it" in err or "must end in" in err), err
    assert place.read_bytes() == before
    assert not [path.name for path in tmp_path.rglob(".*")]


def test_a_file_of_ours_of_another_kind_stays(project, tmp_path):
    before = (tmp_path / "whole" / "sweep.nc").read_bytes()
    for words in (
        ("segment", "whole", "--out", "whole/sweep.nc"),
        ("compare", "whole", "other", "--out", "whole/sweep.nc"),
        ("report", "whole", "--out", "whole/sweep.nc"),
        ("plot", "whole/sweep.nc", "--out", "whole/sweep.nc"),
        ("probe", "MODEL", "wic", "--out", "whole/sweep.nc", "--fresh"),
    ):
        code, printed, err = project(*words)
        assert (code, printed) == (1, "") and "sweep.nc" in err, err
        assert "holds sweep, and would be lost" in err or "must end in" in err, err
        assert (tmp_path / "whole" / "sweep.nc").read_bytes() == before


@pytest.mark.slow
def test_a_users_figures_stay_where_ours_are_not_drawn(project, tmp_path):
    """Of a sweep alone most figures cannot be drawn, and their old ones are removed: ours."""
    own, ours = tmp_path / "figures" / "mine.svg", picture_names()
    foreign(own)
    assert project("report", "whole", "--figures", "figures")[0] == 0
    drawn = {path.stem for path in own.parent.iterdir()} - {"mine"}
    assert drawn and drawn < set(ours)
    old = own.with_name(next(f"{name}.svg" for name in ours if name not in drawn))
    save_figure(figure(), old)
    assert project("report", "whole", "--figures", "figures")[0] == 0
    assert own.exists() and not old.exists()


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    link, target = tmp_path / "a.nc", tmp_path / "far" / "b.nc"
    link.symlink_to("far/b.nc")
    netcdf.save_with_lock(numbers(), link)  # it leads nowhere yet
    netcdf.save_with_lock(numbers(more=1), link)
    assert link.is_symlink() and netcdf.load(target).attrs["more"] == 1
    before = foreign(target)
    with pytest.raises(Unwritable, match=r"a\.nc does not say that stages wrote it"):
        netcdf.save_with_lock(numbers(), link)
    assert target.read_bytes() == before
    (tmp_path / "loop.nc").symlink_to("loop.nc")
    with pytest.raises(Unwritable, match=r"loop\.nc cannot be written"):
        netcdf.save_with_lock(numbers(), tmp_path / "loop.nc")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"a.nc", "far", "far/b.nc", "loop.nc"}


def test_two_names_of_one_place_have_one_lock(tmp_path):
    (tmp_path / "b.nc").symlink_to("a.nc")
    with Lock(tmp_path / "a.nc"), pytest.raises(InUse):
        Lock(tmp_path / "b.nc")


def test_another_name_of_a_file_keeps_what_was_in_it(tmp_path):
    netcdf.save_with_lock(numbers(old=1), tmp_path / "a.nc")
    os.link(tmp_path / "a.nc", tmp_path / "kept.nc")
    netcdf.save_with_lock(numbers(new=1), tmp_path / "a.nc")
    assert "old" in netcdf.load(tmp_path / "kept.nc").attrs
    assert "new" in netcdf.load(tmp_path / "a.nc").attrs


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.nc")
    (tmp_path / "null.nc").symlink_to("/dev/null")
    (tmp_path / "there.nc").mkdir()
    for name in ("pipe", "null", "there"):
        with pytest.raises(Unwritable, match=f"{name}.nc is a (device or a pipe|directory)"):
            netcdf.save_with_lock(numbers(), tmp_path / f"{name}.nc")
    with pytest.raises(Refusal, match="/dev/full is no name of a page"):
        ownership.check(Path("/dev/full"), ownership.PAGE)


def test_an_empty_file_is_nobodys_loss(tmp_path):
    (tmp_path / "a.nc").touch()
    netcdf.save_with_lock(numbers(), tmp_path / "a.nc")
    assert netcdf.load(tmp_path / "a.nc").sizes["a"] == 3


def test_a_temporary_file_is_made_anew_and_through_no_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("dear")
    monkeypatch.setattr(ownership, "temporary", lambda path: tmp_path / ".a.nc.1-1.writing")
    (tmp_path / ".a.nc.1-1.writing").symlink_to(victim)
    with pytest.raises(Unwritable):
        netcdf.save_with_lock(numbers(), tmp_path / "a.nc")
    assert victim.read_text() == "dear"


def test_what_looks_like_a_leftover_and_is_none_stays(tmp_path):
    stays = {".a.nc.tex.writing", ".a.nc.writing", ".b.nc.1.writing", ".a.nc.1.writing.bak"}
    for name in {*stays, ".a.nc.1.writing", ".a.nc.22-3.writing"}:
        (tmp_path / name).write_text("half")
    netcdf.save_with_lock(numbers(), tmp_path / "a.nc")
    assert {path.name for path in tmp_path.iterdir()} == {*stays, "a.nc"}


@pytest.mark.parametrize("how", ["link", "dangling", "text", "hard link", "pipe", "directory"])
def test_what_has_the_name_of_a_lock_and_is_none_is_refused_and_stays(tmp_path, how):
    victim, place = tmp_path / "victim", tmp_path / ".a.nc.lock"
    victim.write_text("dear")
    if how == "link":
        place.symlink_to(victim)
    elif how == "dangling":
        place.symlink_to(tmp_path / "nowhere")
    elif how == "text":
        place.write_text("notes\n")
    elif how == "hard link":
        os.link(victim, place)
    elif how == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(Unwritable, match=r"\.a\.nc\.lock is not the lock of a\.nc that stages"):
        Lock(tmp_path / "a.nc")
    assert os.path.lexists(place) and victim.read_text() == "dear"
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture
def place():
    """A directory open to all, as /tmp is."""
    if os.geteuid():
        pytest.skip("takes the right to act as another user")
    place = Path("/var/tmp") / f"stages-test-{os.getpid()}"
    place.mkdir()
    place.chmod(0o1777)
    yield place
    for path in place.iterdir():
        path.unlink()
    place.rmdir()


def as_another(act):
    """Do something as another user, in a fork."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.umask(0o077)
            act()
        finally:
            os._exit(1)
    return child


def _refused(path):
    """End with status 0 if an output is in use."""
    try:
        Lock(path)
    except InUse:
        os._exit(0)


def test_a_lock_of_another_user_is_honoured_and_one_that_he_left_is_no_hindrance(place):
    read, write = os.pipe()

    def hold():
        kept = Lock(place / "a.nc")
        os.write(write, b"held" if kept.held else b"none")
        signal.pause()

    child = as_another(hold)
    try:
        assert os.read(read, 4) == b"held"
        with pytest.raises(InUse, match=f"process {child} on"):
            Lock(place / "a.nc")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert (place / ".a.nc.lock").stat().st_uid == 65534

    with Lock(place / "a.nc") as held:
        assert held.held
        assert os.waitpid(as_another(lambda: _refused(place / "a.nc")), 0)[1] == 0
    with Lock(place / "b.nc"):
        assert (place / ".b.nc.lock").stat().st_uid == 0
        assert os.waitpid(as_another(lambda: _refused(place / "b.nc")), 0)[1] == 0


def test_what_another_user_left_and_only_he_may_remove_is_no_hindrance(tmp_path, monkeypatch):
    torn = tmp_path / ".a.nc.1.writing"
    torn.write_text("half")
    unlink = Path.unlink

    def refused(self, *rest, **options):
        if self == torn:
            raise PermissionError(1, "Operation not permitted")
        return unlink(self, *rest, **options)

    monkeypatch.setattr(Path, "unlink", refused)
    netcdf.save_with_lock(numbers(), tmp_path / "a.nc")
    assert netcdf.load(tmp_path / "a.nc").sizes["a"] == 3 and torn.exists()


def test_a_link_to_a_name_of_another_ending_is_written_again(tmp_path):
    (tmp_path / "store").mkdir()
    link = tmp_path / "sweep.nc"
    link.symlink_to("store/abc")
    data = xr.Dataset({"a": ("x", [1.0])}, attrs={"stages_schema": 1, "measurement": "own"})
    for number in (1.0, 2.0):
        netcdf.save_with_lock(data.assign(a=data.a * number), link)
        assert link.is_symlink()
        assert float(xr.load_dataset(tmp_path / "store/abc", engine="netcdf4").a[0]) == number
    ownership.remove(link, "own")
    assert not (tmp_path / "store/abc").exists()
