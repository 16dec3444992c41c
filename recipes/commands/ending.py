"""End of the command line: its exit status, and the line that explains an error."""

import signal
import sys
import traceback
from dataclasses import dataclass

import click

from recipes.commands.errors import explained
from recipes.terminal import Unheard, let_go, note, prepare

INTERRUPTED = 130
"""Exit status of a command that the user interrupted, by the convention of shells."""

READER_GONE = 141
"""Exit status of a command whose output nobody reads any more, by the same convention."""


@dataclass
class Invocation:
    """A call of the command line."""

    debug: bool = False
    """Whether errors are shown with their traceback."""


def run_and_exit(group: click.Group) -> None:
    """Run the command that was typed, and exit with a status.

    The status is 0 after success, 1 after a refusal, 2 after misuse, 130 after an interruption, and
    141 when the reader of standard output has gone. Every error is a line.
    """
    prepare()
    invocation = Invocation()
    try:
        group.main(prog_name="stages", standalone_mode=False, obj=invocation)
    except (KeyboardInterrupt, click.Abort):
        # From here on, impatience would only garble the end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        note("stages: interrupted: what was measured is kept, and the same command continues it")
        sys.exit(INTERRUPTED)
    except Unheard as error:
        let_go()
        if error.broken:
            sys.exit(READER_GONE)
        # A full disk or device, unlike a reader that had enough.
        note(f"stages: standard output takes no more ({error}): send it elsewhere")
        sys.exit(1)
    except Exception as error:
        if invocation.debug:
            note(traceback.format_exc())
        note(explained(error))
        let_go()
        sys.exit(error.exit_code if isinstance(error, click.ClickException) else 1)
