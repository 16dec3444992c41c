"""The command that puts the shards of a sweep together."""

from pathlib import Path

import click

from recipes.commands.command_line import command_line
from recipes.commands.errors import REMEDY
from recipes.commands.options import resume_option
from recipes.commands.parameters import Place
from recipes.commands.progress import advise, quiet_option, quoted
from recipes.terminal import say
from robustness.errors import reading


@click.command()
@click.argument("files", nargs=-1, required=True, type=Place(), metavar="FILE...")
@click.option("-o", "--out", required=True, type=Place(), help="Path of the merged file.")
@resume_option
@quiet_option
def merge(files: tuple[Path, ...], out: Path, resume: bool) -> None:
    """Merge the FILEs of all shards of a sweep into one, as if it had been run as a whole.

    \b
    stages merge outputs/gpt2/sweep.shard-*.nc -o outputs/gpt2/sweep.nc
    """
    from robustness.sweeps.merging import merge as run

    with reading("a file to be merged", REMEDY):
        run(files, out, fresh=not resume, command=command_line())
    say(out)
    advise(f"show {quoted(out)}")
