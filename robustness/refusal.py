"""The one exception for an input that cannot be used."""


class Refusal(ValueError):
    """An input that cannot be used; the message says what was asked, what is there, what would do.

    The command line prints it as one line and exits with status 1.
    """


class OtherSettings(Refusal):
    """A file of other settings stands where a run would save."""


class Unwritable(Refusal):
    """A file that cannot be written."""


class InUse(Refusal):
    """Another run writes where a run would save."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its name if it has none.

    With the next where the first ends in a colon.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
