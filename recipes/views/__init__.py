"""Tables and figures of files: a module for every kind of file, and its row in `registry`."""

from recipes.views.layout import as_csv, as_json, as_text
from recipes.views.registry import draw, table
from recipes.views.sections import Section
from recipes.views.tabular import Column, Table, Tables, plain_table

__all__ = [
    "Column",
    "Section",
    "Table",
    "Tables",
    "as_csv",
    "as_json",
    "as_text",
    "draw",
    "plain_table",
    "table",
]
