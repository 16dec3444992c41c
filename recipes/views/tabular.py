"""Tables as values: columns of texts or numbers, with units and uncertainty."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan

Value = str | int | float
"""Value of a cell; NaN where a number is missing."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    """Heading of the column."""
    values: Sequence[Value]
    """Values, one for each row."""
    unit: str = "1"
    """Unit of the values; 1 for numbers without a unit and for texts."""
    errors: Sequence[float] = ()
    """Standard errors of the values, if these are means over sequences."""
    intervals: Sequence[tuple[float, float]] = ()
    """Ends of the 95 % intervals of the values, instead of standard errors."""

    @property
    def is_text(self) -> bool:
        """Whether the values are texts."""
        return any(isinstance(value, str) for value in self.values)

    def machine_columns(self) -> Iterator[tuple[str, str, Sequence[Value]]]:
        """Yield name, unit and values of the column, and of columns for its uncertainty."""
        yield self.name, self.unit, self.values
        if self.errors:
            yield f"{self.name} standard error", self.unit, self.errors
        if self.intervals:
            low, high = zip(*self.intervals, strict=True)
            yield f"{self.name} low", self.unit, low
            yield f"{self.name} high", self.unit, high


@dataclass(frozen=True)
class Table:
    """Columns of the same length under a title; the first of them labels the rows."""

    title: str
    columns: Sequence[Column]

    @property
    def units(self) -> dict[str, str]:
        """Units of the columns of `rows`, by their names."""
        return {name: unit for name, unit, _ in self._machine_columns()}

    def rows(self) -> list[dict[str, Value | None]]:
        """Return every row by the names of the columns; None where a number is missing."""
        columns = list(self._machine_columns())
        rows = []
        for index in range(len(self.columns[0].values)):
            rows.append({name: _or_none(values[index]) for name, _, values in columns})
        return rows

    def _machine_columns(self) -> Iterator[tuple[str, str, Sequence[Value]]]:
        for column in self.columns:
            yield from column.machine_columns()


@dataclass(frozen=True)
class Tables:
    """Tables of a file, and notes on its model and text."""

    tables: Sequence[Table]
    notes: Sequence[str] = field(default=())
    """Sentences to be read before the tables."""


def plain_table(columns: Mapping[str, Sequence[Value]], title: str = "") -> Table:
    """Return a table without units and uncertainty, from values by the names of columns."""
    return Table(title, [Column(name, values) for name, values in columns.items()])


def _or_none(value: Value) -> Value | None:
    return None if isinstance(value, float) and isnan(value) else value
