"""Figures as SVG: by themselves, and within a page whose colours they take."""

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
"""Points of a figure that are as wide as one em of the page."""


def to_svg(figure: Figure) -> str:
    """Write a figure as SVG, with nothing behind it."""
    buffer = io.StringIO()
    figure = with_plain_texts(figure)
    said = {"Creator": ownership.MARK, "Date": None, "Format": None, "Type": None}
    with svg_style():
        figure.savefig(buffer, format="svg", transparent=True, metadata=said)
    return buffer.getvalue()


def on_white(svg: str) -> str:
    """Return SVG with a white ground, to be looked at by itself."""
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return re.sub(r"(<svg [^>]*>)", rf"\1\n {ground}", svg, count=1)


def inline(svg: str, name: str, alt: str) -> Markup:
    """Return SVG that stands in a page among others and takes the page's colours.

    Black becomes the colour of the text. Of the names within the figure those that nothing refers
    to go, and the others get its own in front: otherwise they would clash with those of the next.
    """
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>f-{name}-", text)
    text = re.sub(r' (xmlns|xmlns:xlink|version)="[^"]*"', "", text)
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace("#000000", "currentColor")
    for index in range(len(LIGHT_ON_DARK)):
        ours = COLOURS[index].lower()
        text = text.replace(ours, f"var(--c{index}, {ours})")
    size = re.compile(r'width="([\d.]+)pt" height="[\d.]+pt"')
    width = f"width: {float(size.search(text)[1]) / POINTS_TO_AN_EM:.0f}em"  # type: ignore[index]
    opening = f'<svg role="img" aria-label="{Markup.escape(printable(alt))}" style="{width}" '
    return Markup(size.sub("", text, count=1).replace("<svg ", opening, 1))
