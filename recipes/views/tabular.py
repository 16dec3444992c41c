"""Tables as values: columns of text or of numbers with their uncertainty, and the units of both."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan

Value = str | int | float
"""What a cell holds; NaN where there is no number."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    values: Sequence[Value]
    """One for each row."""
    unit: str = "1"
    errors: Sequence[float] = ()
    """Standard error of each value, where values are means over sequences."""
    intervals: Sequence[tuple[float, float]] = ()
    """Ends of the 95 % interval of each value, in the place of standard errors."""

    @property
    def is_text(self) -> bool:
        """Whether the values are texts."""
        return any(isinstance(value, str) for value in self.values)

    def machine_columns(self) -> Iterator[tuple[str, str, Sequence[Value]]]:
        """Yield name, unit and values of the column, and of columns with its uncertainty."""
        yield self.name, self.unit, self.values
        if self.errors:
            yield f"{self.name} standard error", self.unit, self.errors
        for end, name in enumerate(("low", "high")):
            if self.intervals:
                ends = [interval[end] for interval in self.intervals]
                yield f"{self.name} {name}", self.unit, ends


@dataclass(frozen=True)
class Table:
    """Columns of the same length under a title; the first of them labels the rows."""

    title: str
    columns: Sequence[Column]

    @property
    def units(self) -> dict[str, str]:
        """The unit of every column that `rows` has, by its name."""
        return {name: unit for name, unit, _ in self._machine_columns()}

    def rows(self) -> list[dict[str, Value | None]]:
        """Return every row by the names of the columns; None where there is no number."""
        columns = list(self._machine_columns())
        rows = []
        for place in range(len(self.columns[0].values)):
            cells = ((name, values[place]) for name, _, values in columns)
            rows.append({name: _or_none(value) for name, value in cells})
        return rows

    def _machine_columns(self) -> Iterator[tuple[str, str, Sequence[Value]]]:
        for column in self.columns:
            yield from column.machine_columns()


@dataclass(frozen=True)
class Tables:
    """What is shown of a file: notes on what it is of, and tables."""

    tables: Sequence[Table]
    notes: Sequence[str] = field(default=())
    """Sentences to be read before the tables."""


def plain_table(columns: Mapping[str, Sequence[Value]], title: str = "") -> Table:
    """Return a table of values without units or uncertainty, by the names of its columns."""
    return Table(title, [Column(name, values) for name, values in columns.items()])


def _or_none(value: Value) -> Value | None:
    return None if isinstance(value, float) and isnan(value) else value
