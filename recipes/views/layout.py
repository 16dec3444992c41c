"""Tables written out: as text for a terminal of some width, as JSON, and as CSV."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, inf, isfinite, isnan, log10

from recipes.terminal import printable
from recipes.views.tabular import Column, Table, Tables, Value

GAP = "  "
"""What stands between two columns."""

MOST_DECIMALS = 9
"""Maximum number of decimals; what is smaller is shown as 0."""

NARROWEST_TEXT = 20
"""Width below which a column of texts is not cut any further."""


def as_text(tables: Tables, width: int | None = None) -> str:
    """Write tables for a terminal, with numbers rounded as their uncertainty suggests.

    Parameters
    ----------
    tables : Tables
        What is shown.
    width : int, optional
        Width of the terminal. Where a table is wider, long texts are cut short and columns are left
        out, and a line says so. By default every table is as wide as it needs to be.
    """
    lines = list(tables.notes)
    cut_short = False
    for table in tables.tables:
        blocks = [_block(column) for column in table.columns]
        shown, left_out = _fitted(blocks, width)
        cut_short = cut_short or shown != blocks[: len(shown)]
        lines += ["", *([table.title] if table.title else []), *_aligned(shown)]
        if left_out:
            lines.append(f"not shown, for lack of width: {', '.join(left_out)}")
    if cut_short:
        lines += ["", "texts that end in … are cut to the width of the terminal"]
    return "\n".join(map(_one_line, lines)).lstrip("\n")


def as_json(tables: Tables) -> str:
    """Write tables as JSON: notes, and for each table its title, units and rows.

    Numbers are not rounded; null stands where there is none.
    """
    written = [
        {"title": table.title, "units": table.units, "rows": _finite_rows(table)}
        for table in tables.tables
    ]
    found = {"notes": list(tables.notes), "tables": written}
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)


def as_csv(tables: Tables) -> str:
    """Write tables as CSV, one below the other under the names of all of their columns.

    The first column is the title of the table where any has one. Numbers are not rounded; a cell is
    empty where there is none.
    """
    titled = any(table.title for table in tables.tables)
    names = {"table": None} if titled else {}
    for table in tables.tables:
        names |= dict.fromkeys(table.units)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    for table in tables.tables:
        title = {"table": table.title} if titled else {}
        for row in table.rows():
            writer.writerow(title | row)
    return buffer.getvalue().rstrip("\n")


@dataclass(frozen=True)
class _Block:
    """A column as text: its heading, and a cell for each row."""

    cells: Sequence[str]
    is_text: bool

    @property
    def width(self) -> int:
        return max(map(len, self.cells))

    def cut(self, width: int) -> "_Block":
        return _Block([_shortened(cell, width) for cell in self.cells], self.is_text)

    def padded(self) -> list[str]:
        width = self.width
        align = str.ljust if self.is_text else str.rjust
        return [align(cell, width) for cell in self.cells]


def _block(column: Column) -> _Block:
    cells = [_cell(column, place) for place in range(len(column.values))]
    return _Block([_one_line(cell) for cell in [column.name, *cells]], column.is_text)


def _aligned(blocks: Sequence[_Block]) -> Iterator[str]:
    for row in zip(*(block.padded() for block in blocks), strict=True):
        yield GAP.join(row).rstrip()


def _fitted(blocks: list[_Block], width: int | None) -> tuple[list[_Block], list[str]]:
    """Return columns that fit a width, and the headings of those that are left out.

    Long texts are cut first, the longest first; then columns are left out from the right.
    """
    if width is None:
        return blocks, []
    shown = _with_texts_cut(blocks, width)
    while _total(shown) > width and len(shown) > 2:
        shown.pop()
    if (excess := _total(shown) - width) > 0 and shown[-1].is_text:
        shown[-1] = shown[-1].cut(max(1, shown[-1].width - excess))
    return shown, [block.cells[0] for block in blocks[len(shown) :]]


def _with_texts_cut(blocks: list[_Block], width: int) -> list[_Block]:
    """Return columns whose long texts are cut as far as a width asks for, the longest first."""
    shown = list(blocks)
    while (excess := _total(shown) - width) > 0:
        long = [block for block in shown if block.is_text and block.width > NARROWEST_TEXT]
        if not long:
            break
        widest = max(long, key=lambda block: block.width)
        others = [block.width for block in long if block is not widest]
        # No further than to the next longest, which then shares what is left to cut.
        least = max([NARROWEST_TEXT, widest.width - excess, *others])
        least = least if least < widest.width else widest.width - 1
        shown[shown.index(widest)] = widest.cut(least)
    return shown


def _total(blocks: Sequence[_Block]) -> int:
    return sum(block.width for block in blocks) + len(GAP) * (len(blocks) - 1)


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def _cell(column: Column, place: int) -> str:
    """Write a value, with its standard error or its interval where it has one."""
    value = column.values[place]
    if isinstance(value, str | int):
        return str(value)
    if isnan(value):
        return "-"
    if column.intervals and not isnan(column.intervals[place][0]):
        low, high = column.intervals[place]
        mean, low_text, high_text = _rounded(value, low, high)
        return f"{mean} [{low_text}, {high_text}]"
    if column.errors and not isnan(column.errors[place]):
        mean, error = _rounded(value, column.errors[place])
        return f"{mean} ±{error}"
    return _rounded(value)[0]


def _rounded(*numbers: float) -> list[str]:
    """Write numbers with as many decimals as show at least two digits of the largest, 3 or more."""
    largest = max(map(abs, numbers))
    decimals = 3
    if largest not in (0, inf):
        decimals = max(decimals, 1 - floor(log10(largest)))
    # What would be a row of zeros is 0.000.
    decimals = decimals if decimals <= MOST_DECIMALS else 3
    return [f"{number:z.{decimals}f}" for number in numbers]


def _finite_rows(table: Table) -> list[dict[str, Value | None]]:
    rows = []
    for row in table.rows():
        rows.append({name: _or_null(value) for name, value in row.items()})
    return rows


def _or_null(value: Value | None) -> Value | None:
    return None if isinstance(value, float) and not isfinite(value) else value


def _one_line(text: str) -> str:
    """Return text that stays on its line: a name with a line break would look like numbers."""
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))
