"""Figures as SVG: as separate files, and within a page whose colours they adopt."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from markupsafe import Markup

from recipes.terminal import printable
from recipes.views.style import COLOURS, LIGHT_ON_DARK, svg_style, with_plain_texts
from robustness.files import ownership

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS_TO_AN_EM = 12
"""Number of points of a figure that are as wide as one em of the page."""


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG without a background."""
    buffer = io.StringIO()
    figure = with_plain_texts(figure)
    # Without a date, so that the same figure is the same file.
    metadata = {"Creator": ownership.MARK, "Date": None, "Format": None, "Type": None}
    with svg_style():
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return buffer.getvalue()


def on_white(svg: str) -> str:
    """Return SVG with a white background, for viewing as a separate file."""
    background = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return re.sub(r"(<svg [^>]*>)", rf"\1\n {background}", svg, count=1)


def inline(svg: str, name: str, alt: str) -> Markup:
    """Return SVG to embed in a page, in the page's colours.

    Black becomes the colour of the text. Ids that nothing refers to are removed, and the others are
    prefixed with the figure's name, because ids of all figures share the page.
    """
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>f-{name}-", text)
    text = re.sub(r' (xmlns|xmlns:xlink|version)="[^"]*"', "", text)
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace("#000000", "currentColor")
    # Variables of the style sheet, which have lighter values on a dark page.
    for index in range(len(LIGHT_ON_DARK)):
        colour = COLOURS[index].lower()
        text = text.replace(colour, f"var(--c{index}, {colour})")
    size = re.compile(r'width="([\d.]+)pt" height="[\d.]+pt"')
    width = f"width: {float(size.search(text)[1]) / POINTS_TO_AN_EM:.0f}em"  # type: ignore[index]
    opening = f'<svg role="img" aria-label="{Markup.escape(printable(alt))}" style="{width}" '
    return Markup(size.sub("", text, count=1).replace("<svg ", opening, 1))
