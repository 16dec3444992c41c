"""What a file keeps of the command line that made it."""

import shlex

import click
import pytest
from commands import COMMANDS
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.commands.command_line import command_line
from recipes.commands.parameters import Host, Named, Place

RUNNING = ("sweep", "merge", "observe", "probe", "tasks", "segment", "reproduce", "report",
    "compare", "export", "pretrain", "demo")  # fmt: skip
"""The commands that leave a file."""


def kept(*words: object) -> str:
    name, *rest = map(str, words)
    command = COMMANDS[name]
    with command.make_context(name, rest):
        return command_line()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("sweep org/model --drop", "sweep org/model --drop"),
        ("sweep org/model --out=runs/secret/a.nc --fresh", "sweep org/model --out a.nc --fresh"),
        ("sweep /secret/m --data=/secret/b=x/t.jsonl", "sweep m --data t.jsonl"),
        ("sweep m --data secret/t.jsonl.gz", "sweep m --data t.jsonl.gz"),
        ("sweep m --data owner/name:config", "sweep m --data owner/name:config"),
        ("merge a/b/x.nc c/y.nc -o secret/w.nc", "merge x.nc y.nc --out w.nc"),
        ("merge a/b/x.nc -osecret/w.nc", "merge x.nc --out w.nc"),
        ("report a/secret --figures secret/figures", "report secret --figures figures"),
        ("probe m wic --data ~/secret", "probe m wic --data secret"),
        ("sweep m --remote --host https://user:key@ndif.org:80/secret?key=1",
            "sweep m --remote --host ndif.org"),
        ("sweep m --host [", "sweep m --host …"),
        ("sweep m --schedule 0..2-a3-(4+5) --layers 0..3-7 --until-se 0.02",
            "sweep m --schedule 0..2-a3-(4+5) --layers 0..3-7 --until-se 0.02"),
    ],
)  # fmt: skip
def test_a_command_is_kept_without_directories(typed, expected):
    found = kept(*typed.split())
    assert set(found.split()) == {"stages", *expected.split()}


def test_a_model_in_a_directory_that_is_there_loses_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret" / "model").mkdir(parents=True)
    assert kept("sweep", "secret/model") == "stages sweep model"


FOLDERS = st.lists(st.sampled_from(["sEcReT", "sEcReT=x", "a b sEcReT", "sEcReT.d"]), min_size=1,
    max_size=3)  # fmt: skip


@st.composite
def places(draw: st.DrawFn) -> str:
    """Places that have a directory, which is told from a name on the hub."""
    begin = draw(st.sampled_from(["/", "~/", "./", "../", ""]))
    folders = draw(FOLDERS)
    name = draw(st.sampled_from(["t.jsonl", "t.txt", "a.nc", "model"]))
    if not begin and len(folders) < 2:
        name = "t.parquet"
    return begin + "/".join([*folders, name])


@st.composite
def lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A command with a value for some of its parameters, in any of the ways to give them."""
    name = draw(st.sampled_from(RUNNING))
    words: list[str] = []
    for parameter in COMMANDS[name].params:
        argument = isinstance(parameter, click.Argument)
        if not (argument or parameter.required or draw(st.booleans())):
            continue
        if isinstance(parameter.type, (Place, Named)):
            value = draw(places())
        elif isinstance(parameter.type, Host):
            value = f"https://u:sEcReT@{draw(st.sampled_from(['a.org', 'b.org:80']))}/sEcReT"
        elif parameter.required:
            value = draw(st.sampled_from(list(getattr(parameter.type, "choices", ["0..3"]))))
        else:
            continue
        if argument:
            words.append(value)
            continue
        option = draw(st.sampled_from(parameter.opts))
        glue = "=" if option.startswith("--") else ""
        words += [f"{option}{glue}{value}"] if draw(st.booleans()) else [option, value]
    return name, words


@settings(max_examples=80, deadline=None)
@given(lines())
def test_no_directory_user_or_key_is_kept(line):
    name, words = line
    found = kept(name, *words)
    assert "sEcReT" not in found, shlex.join(words)


def test_every_parameter_that_may_be_a_place_is_known_as_one():
    """By the words of its help, or of its name."""
    for name in RUNNING:
        for parameter in COMMANDS[name].params:
            help = str(getattr(parameter, "help", "") or "").lower()
            of_place = parameter.name in {"model", "directory", "directories", "files", "out"}
            of_place |= any(word in help for word in ("directory", "data set", " file", "corpus"))
            of_place &= not help.startswith(("column", "split", "keep ", "replace what"))
            if of_place and not getattr(parameter, "is_flag", False):
                assert isinstance(parameter.type, (Place, Named)), (name, parameter.name)
