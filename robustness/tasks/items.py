"""Items of a benchmark task in a local file; all are checked before any is used."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustness.errors import Refusal
from robustness.text.json_values import (
    brief,
    decode_line,
    is_text,
    numbered_lines,
    parse_values,
)
from robustness.text.local_file import file_kind, open_file, printable_name

CHOICES = ("query", "choices", "gold")
"""Fields of an item that asks for one of several continuations."""

CONTINUATION = ("context", "continuation")
"""Fields of an item with one continuation."""

LONGEST_LINE = 2**20
"""Maximum number of bytes in a line."""

MOST_ITEMS = 10**6
"""Maximum number of items in a file."""

MOST_FIELDS = 100
"""Maximum number of fields of an item."""

DEEPEST = 8
"""Maximum depth of lists and objects within one another in an item."""


@dataclass(frozen=True)
class Items:
    """Items of a file.

    Attributes
    ----------
    name : str
        Name of the file.
    form : tuple of str
        `CHOICES`, `CONTINUATION`, or empty for items with the fields of the task's original.
    rows : list of dict
        The items, all with the same fields.
    numbers : list of int
        Line of each item.
    """

    name: str
    form: tuple[str, ...]
    rows: list[dict[str, Any]]
    numbers: list[int]


def read_items(path: Path) -> Items:
    """Read items from lines of JSON.

    Raises
    ------
    Refusal
        If there is no such file, or an item cannot be used; its line is named.
    """
    if file_kind(path) is None:
        raise _missing(path)
    name = printable_name(path)
    rows, numbers = _read_rows(path, name)
    if not rows:
        raise Refusal(f"{name} holds no items: write one a line")
    # The first item decides: a later one without its fields is an error, and no other form.
    form = _form(rows[0])
    for number, row in zip(numbers, rows, strict=True):
        _check_item(row, form, f"{name}, line {number}")
    return Items(name, form, _with_fields(rows, form), numbers)


def _missing(path: Path) -> Refusal:
    """Return the refusal of a file that does not exist."""
    names = sorted(map(printable_name, path.parent.glob("*.jsonl")))
    return Refusal(
        f"there is no {printable_name(path)} in {printable_name(path.parent)}, which has "
        f"{', '.join(names[:9]) or 'no .jsonl'}: give `data` with a file for each task"
    )


def _read_rows(path: Path, name: str) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the objects in a file, and the line of each."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    with open_file(path) as file:
        for number, _, line in numbered_lines(file, name, LONGEST_LINE):
            for row in parse_values(decode_line(line, name, number), name, number):
                if not isinstance(row, dict) or not 0 < len(row) <= MOST_FIELDS:
                    raise Refusal(
                        f"{name}, line {number}, is {brief(row)}: write an object with the fields "
                        f"{', '.join(CHOICES)}, or {', '.join(CONTINUATION)}"
                    )
                rows.append(row)
                numbers.append(number)
            if len(rows) > MOST_ITEMS:
                raise Refusal(f"{name} has more than {MOST_ITEMS} items: take some of them")
    return rows, numbers


def _with_fields(rows: list[dict[str, Any]], form: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return items that all have the same fields: those of the form, or those of any item."""
    # `Dataset.from_list` takes the columns of the first row, and drops what others have besides.
    fields = dict.fromkeys(form)
    if not form:
        for row in rows:
            fields |= dict.fromkeys(row)
    return [dict.fromkeys(fields) | _chosen(row, fields) for row in rows]


def _chosen(row: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in row.items() if field in fields}


def _form(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the form whose fields an item has, or nothing."""
    for form in (CHOICES, CONTINUATION):
        if set(form) <= set(row):
            return form
    return ()


def _check_item(row: Mapping[str, Any], form: tuple[str, ...], where: str) -> None:
    missing = [field for field in form if field not in row]
    if missing:
        raise Refusal(f"{where}: there is no {missing[0]}, which the first item has: add it")
    if form == CHOICES:
        _check_text(row, "query", where)
        check_choices(row["choices"], row["gold"], where)
    elif form == CONTINUATION:
        _check_text(row, "context", where)
        _check_text(row, "continuation", where)
        if not row["continuation"].strip():
            raise Refusal(f"{where}: the continuation is blank: write what is to be scored")
    else:
        _check_depth(row, where)


def _check_text(row: Mapping[str, Any], field: str, where: str) -> None:
    if not is_text(row[field]):
        raise Refusal(f"{where}: {field} is {brief(row[field])}: write a text")


def check_choices(choices: Any, gold: Any, where: str) -> None:
    """Check that choices are texts, and that `gold` is the number of one of them.

    Raises
    ------
    Refusal
        If they are not.
    """
    if not isinstance(choices, list) or len(choices) < 2:
        what = f"a list of {len(choices)}" if isinstance(choices, list) else brief(choices)
        raise Refusal(f"{where}: choices is {what}: write a list of two texts or more")
    wrong = [choice for choice in choices if not is_text(choice) or not choice.strip()]
    if wrong:
        raise Refusal(f"{where}: a choice is {brief(wrong[0])}: write texts that are not blank")
    whole = isinstance(gold, int) and not isinstance(gold, bool)
    if not whole or not 0 <= gold < len(choices):
        raise Refusal(
            f"{where}: gold is {brief(gold)}: write the number of the right choice, "
            f"0 to {len(choices) - 1}"
        )


def _check_depth(row: Mapping[str, Any], where: str) -> None:
    """Refuse values that are nested deeply, and texts that cannot be encoded."""
    # Level by level, since recursion could be exhausted by the very items to refuse.
    level: list[Any] = [row]
    for _ in range(DEEPEST):
        level = _inner(level)
        for value in level:
            if isinstance(value, str) and not is_text(value):
                raise Refusal(f"{where}: half of a surrogate pair is in a text: take it out")
    if level:
        raise Refusal(f"{where}: lists and objects are nested {DEEPEST} deep: write plain fields")


def _inner(level: list[Any]) -> list[Any]:
    """Return the members of the lists and objects among some values."""
    inner: list[Any] = []
    for value in level:
        if isinstance(value, dict):
            inner += value.values()
        elif isinstance(value, list):
            inner += value
    return inner
