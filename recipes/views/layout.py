"""Tables as text for a terminal of a given width, as JSON, and as CSV."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor, inf, isfinite, isnan, log10

from recipes.terminal import printable
from recipes.views.tabular import Column, Table, Tables, Value

GAP = "  "
"""Space between two columns."""

MOST_DECIMALS = 9
"""Maximum number of decimals; smaller numbers are shown as 0."""

NARROWEST_TEXT = 20
"""Minimum width to which a column of texts is cut before columns are left out."""


def as_text(tables: Tables, width: int | None = None) -> str:
    """Return tables as text for a terminal, with numbers rounded to their uncertainty.

    Parameters
    ----------
    tables : Tables
        Tables and notes to show.
    width : int, optional
        Width of the terminal. If a table is wider, long texts are cut and columns are left out, and
        a line says so. By default every table is as wide as it needs to be.
    """
    lines = list(tables.notes)
    cut_short = False
    for table in tables.tables:
        blocks = list(map(_block, table.columns))
        shown, left_out = _fitted(blocks, width)
        cut_short = cut_short or shown != blocks[: len(shown)]
        lines.append("")
        if table.title:
            lines.append(table.title)
        lines += _aligned(shown)
        if left_out:
            lines.append(f"not shown, for lack of width: {', '.join(left_out)}")
    if cut_short:
        lines += ["", "texts that end in … are cut to the width of the terminal"]
    return "\n".join(map(_one_line, lines)).lstrip("\n")


def as_json(tables: Tables) -> str:
    """Return tables as JSON: notes, and for each table its title, units and rows.

    Numbers are not rounded. Missing and infinite numbers become null.
    """
    written = []
    for table in tables.tables:
        rows = _finite_rows(table)
        units = {name: unit for name, unit in table.units.items() if not _is_text(rows, name)}
        written.append({"title": table.title, "units": units, "rows": rows})
    document = {"notes": list(tables.notes), "tables": written}
    # Python would write NaN, which is not JSON.
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)


def _is_text(rows: Sequence[Mapping[str, Value | None]], name: str) -> bool:
    return bool(rows) and isinstance(rows[0][name], str)


def as_csv(tables: Tables) -> str:
    """Return tables as CSV, one below the other, with the columns of all of them.

    The first column holds the title of the table, if any table has a title. Numbers are not
    rounded. A missing number is an empty cell.
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


def as_rows(table: Table) -> list[list[str]]:
    """Return the rows of a table as texts, its headings first, with rounded numbers."""
    return [list(row) for row in zip(*(_block(column).cells for column in table.columns))]


@dataclass(frozen=True)
class _Block:
    """A column as text: its heading, and a cell for each row."""

    cells: Sequence[str]
    """Heading, and then the text of every row."""
    is_text: bool
    """Whether the column holds texts, which are aligned to the left and may be cut."""

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
    cells = [_one_line(column.name)]
    for row in range(len(column.values)):
        cells.append(_one_line(_cell(column, row)))
    return _Block(cells, column.is_text)


def _aligned(blocks: Sequence[_Block]) -> Iterator[str]:
    """Yield the lines of a table whose columns have one width each."""
    for cells in zip(*map(_Block.padded, blocks), strict=True):
        yield GAP.join(cells).rstrip()


def _fitted(blocks: list[_Block], width: int | None) -> tuple[list[_Block], list[str]]:
    """Return the columns that fit a width, and the headings of those that are left out.

    Long texts are cut first, the longest first. Then columns are left out from the right.
    """
    if width is None:
        return blocks, []
    shown = _with_texts_cut(blocks, width)
    # The labels and one column stay: with less than that there is no table.
    while _total(shown) > width and len(shown) > 2:
        shown.pop()
    if (excess := _total(shown) - width) > 0 and shown[-1].is_text:
        shown[-1] = shown[-1].cut(max(1, shown[-1].width - excess))
    return shown, [block.cells[0] for block in blocks[len(shown) :]]


def _with_texts_cut(blocks: list[_Block], width: int) -> list[_Block]:
    """Return columns with their long texts cut as far as a width requires, the longest first."""
    shown = list(blocks)
    while (excess := _total(shown) - width) > 0:
        long = [block for block in shown if block.is_text and block.width > NARROWEST_TEXT]
        if not long:
            break
        widest, *others = sorted(long, key=lambda block: block.width, reverse=True)
        next_width = others[0].width if others else NARROWEST_TEXT
        # No further than to the next longest, which then shares what is left to cut.
        least = max(NARROWEST_TEXT, widest.width - excess, next_width)
        # Columns of equal width are cut by a letter in turn.
        least = min(least, widest.width - 1)
        shown[shown.index(widest)] = widest.cut(least)
    return shown


def _total(blocks: Sequence[_Block]) -> int:
    return sum(block.width for block in blocks) + len(GAP) * (len(blocks) - 1)


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def _cell(column: Column, row: int) -> str:
    """Return a value as text, with its standard error or its interval if it has one."""
    value = column.values[row]
    if isinstance(value, str | int):
        return str(value)
    if isnan(value):
        return "-"
    if column.intervals and not isnan(column.intervals[row][0]):
        low, high = column.intervals[row]
        mean, low_text, high_text = _rounded(value, low, high)
        return f"{mean} [{low_text}, {high_text}]"
    if column.errors and not isnan(column.errors[row]):
        mean, error = _rounded(value, column.errors[row])
        return f"{mean} ±{error}"
    return _rounded(value)[0]


def _rounded(*numbers: float) -> list[str]:
    """Return numbers as text, with 3 decimals or as many as show two digits of the largest."""
    largest = max(map(abs, numbers))
    decimals = 3
    if largest not in (0, inf):
        decimals = max(decimals, 1 - floor(log10(largest)))
    # A number that even then would be a row of zeros is shown as 0.000.
    decimals = decimals if decimals <= MOST_DECIMALS else 3
    # The z of the format writes a rounded -0.000 as 0.000.
    return [f"{number:z.{decimals}f}" for number in numbers]


def _finite_rows(table: Table) -> list[dict[str, Value | None]]:
    rows = []
    for row in table.rows():
        rows.append({name: _or_null(value) for name, value in row.items()})
    return rows


def _or_null(value: Value | None) -> Value | None:
    return None if isinstance(value, float) and not isfinite(value) else value


def _one_line(text: str) -> str:
    """Return text on a single line: a name with a line break could pass for a row of cells."""
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))
