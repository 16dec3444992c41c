"""Command lines made from click's own parameters: sound words, and words that a user mistypes."""

from collections.abc import Sequence

import click
from commands import COMMANDS
from hypothesis import strategies as st

WHOLE = ("0", "1", "2", "3", "7", "64", "1000", "-1", "-7", "1e3", "2.5", "nan", "", " 5", "٣", "x")
HUGE = ("1000000", "2147483648", "9223372036854775808", "1" + 40 * "0")
NUMBERS = ("0", "1e-300", "0.02", "0.5", "1", "3.7", "-1", "1e300", "inf", "nan", "", "x", "1,5")
OUTPUTS = (
    "out.nc", "out", "deep/er/out.nc", "deep/out", "out.svg", "out.pdf", "out.html", "OUT.NC",
    "notes.md", "climate.nc", "photo.svg", "climate", "model", "texts", "runs", "runs/sweep.nc",
    "runs/lens.nc", "runs/report.html", "stories.jsonl", "link.nc", "dangling.nc", "loop.nc",
    "fifo", "fifo/out.nc", "stories.jsonl/out.nc", "", ".", "..", "./", "/", "/dev/null",
    "/dev/full", "/proc/out.nc", "~/out.nc", "~nobody/out.nc", "-", "a b\tc.nc", "a\nb.nc",
    "\x1b[31m.nc", "\udcff.nc", "?*[x].nc", ".nc", "a" * 300 + ".nc", "d/" * 2000 + "out.nc",
)  # fmt: skip
FILES = (
    "runs/sweep.nc", "runs/lens.nc", "runs/norms.nc", "runs/attention.nc", "runs/shard-1.nc",
    "runs/shard-2.nc", "climate.nc", "notes.md", "empty.nc", "torn.nc", "nowhere.nc", *OUTPUTS,
)  # fmt: skip
MODELS = (
    "builtin", "builtin", "builtin-parallel", "nowhere/at-all", "gone", "texts", "empty-model",
    "stories.jsonl", "-", "a b", "x" * 300, "\udcff", "\x1b[2J", *OUTPUTS[:12],
)  # fmt: skip
DATA = (
    "stories.jsonl", "texts/plain.txt", "texts/?.txt", "texts/nested.jsonl", "empty.nc", "builtin",
    "builtin-sampled", "owner/name:config", "owner/name", "http://127.0.0.1:9/x", *OUTPUTS[6:],
)  # fmt: skip
STEPS = (
    "0..", "0..1", "1-0-2-3", "0-0-0..", "a0-m0", "(0+1)-2", "..", "0..9", "3..0", "-1", "", "x",
    "0-" * 3000 + "0", "(" * 500, "0..1000000000000", "²", "0..3-1..2", "٣", "0-1\x00",
)  # fmt: skip
NAMES = (
    "drop", "swap", "skip-2", "repeat-2", "repeat-1x3", "repeat-2-contiguous", "reverse-3",
    "middle-repeat-2", "shuffle-3", "parallel-2", "looped-parallel-2x2", "drop-pair", "skip-span",
    "repeat-0", "repeat-99", "repeat-1x1000000", "repeat-1x" + "9" * 40, "rotate-2", "swap-", "",
    "parallel-٣", "drop-pair-2", "\x1b[31m",
)  # fmt: skip
TEXTS = (
    "",
    "a",
    "Once upon a time",
    "-",
    "--",
    "\udcff",
    "\x1b[31m",
    "x" * 5000,
    "🙂",
    "ing",
    "$a$",
)

POOLS: dict[str, Sequence[str]] = {
    "model": MODELS,
    "data": DATA,
    "sources": DATA,
    "wic_data": DATA,
    "task_data": ("tasks", *DATA),
    "texts": STEPS,
    "text": STEPS,
    "schedule": STEPS,
    "layers": STEPS,
    "named": NAMES,
    "named_tasks": ("arc_easy", "hellaswag", "nonsense"),
    "names": ("arc_easy", "lambada_openai", "nonsense", ""),
    "experiments": ("E1", "E3", "E7", "E13", "T1", "e1", "E99", ""),
    "file": FILES,
    "files": FILES,
    "directory": ("runs", "out", "climate", *OUTPUTS),
    "directories": ("runs", "others", "climate", *OUTPUTS),
    "minus": ("drop", "clean", "raw", *FILES),
    "shard": ("1/2", "2/2", "1/1", "0/2", "3/2", "1/0", "-1/2", "1/1000000000", "1", "a/b", ""),
    "device": ("cpu", "cuda", "cuda:7", "mps", "meta", "nonsense", "", "cpu:3"),
    "host": ("http://127.0.0.1:9", "ftp://x", "nonsense", "", "http://user:secret@127.0.0.1:9"),
    "revision": ("main", "no-such", "", "../x"),
    "field": ("text", "title", "", "\x1b"),
    "split": ("train", "test", "nonsense", ""),
    "offload": OUTPUTS,
}
"""Words by the parameter's name, where its type does not say enough."""

SMALL = {
    "pretrain": "--data stories.jsonl --layers 2 --width 16 --heads 2 --context 24 --batch 4 "
    "--vocabulary 300 --tokens 960",
    "heal": "--teacher builtin --data stories.jsonl --steps 2 --context 24 --batch 2",
    "sweep": "--data stories.jsonl --tokens 700 --context 32",
    "observe": "--data stories.jsonl --tokens 700 --context 32",
    "probe": "--data stories.jsonl --items 40",
    "tasks": "--task-data tasks --limit 2",
    "reproduce": "E1 --data stories.jsonl --tokens 700 --context 32",
    "generate": "--tokens 3",
}
"""Words that keep a command short where nothing later on the line replaces them."""

LONG = {
    "pretrain": {"tokens", "layers", "width", "context", "batch", "vocabulary", "compile"},
    "heal": {"steps", "batch", "context", "lora"},
}
"""Parameters by command that get no huge numbers, since the work they ask for is real."""

RARE = {"demo": 40, "reproduce": 4, "pretrain": 2, "heal": 2, "compare": 2}
"""How many times rarer than the others the commands are that take long."""


def values(command: str, parameter: click.Parameter) -> st.SearchStrategy[str]:
    """Return the words that a parameter may be given."""
    kind = parameter.type
    name = str(parameter.name)
    if command == "tasks" and name == "names":
        pool: Sequence[str] = POOLS["names"]
    elif name in POOLS:
        pool = POOLS[name]
    elif isinstance(kind, click.Choice):
        pool = (*map(str, kind.choices), *map(str, kind.choices), "nonsense", "")
    elif isinstance(kind, click.types.IntParamType):
        pool = WHOLE if name in LONG.get(command, ()) else (*WHOLE, *HUGE)
    elif isinstance(kind, click.types.FloatParamType):
        pool = NUMBERS
    elif isinstance(kind, click.Path):
        pool = OUTPUTS
    else:
        pool = TEXTS
    return st.sampled_from(pool)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Draw a command line: a command, its arguments, and up to five of its options."""
    names = sorted(COMMANDS)
    weights = [name for name in names for _ in range(40 // RARE.get(name, 1))]
    name = draw(st.sampled_from(weights))
    command = COMMANDS[name]
    words = [] if draw(st.integers(0, 30)) else ["--debug"]
    words.append(name)
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            least = 0 if not parameter.required or not draw(st.integers(0, 20)) else 1
            most = 3 if parameter.nargs == -1 else 1
            words += draw(st.lists(values(name, parameter), min_size=least, max_size=most))
    if draw(st.integers(0, 9)):
        words += SMALL.get(name, "").split()
    if name in {"generate", "export"} and draw(st.integers(0, 5)):
        words += ["--schedule", "0..1-3"]
    options = [each for each in command.params if isinstance(each, click.Option)]
    if name == "pretrain":
        options = [each for each in options if each.name != "compile"]
    for option in draw(st.lists(st.sampled_from(options), max_size=5)):
        flag = draw(st.sampled_from([*option.opts, *option.secondary_opts]))
        if option.is_flag:
            words.append(flag)
        else:
            value = draw(values(name, option))
            words += [f"{flag}={value}"] if flag.startswith("--") else [flag, value]
    if not draw(st.integers(0, 40)):
        words.append(draw(st.sampled_from(["--help", "--nonsense", "-x", "extra", "--"])))
    return words
