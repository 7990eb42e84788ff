"""SVG as a page holds it: elements that escape what they are given.

A chart fills whatever space it gets: places are percentages, and only its paths are stretched, in a
coordinate system of 1,000 x 1,000 inside of it. So text and lines keep their size on a phone.
"""

from collections.abc import Iterable
from xml.etree import ElementTree

from markupsafe import Markup

SIDE = 1000
"""Width and height of the coordinate system of paths."""
MARKERS = 6
"""Shapes of points, `m0` to `m5` in the page."""
STYLES = 25
"""Lines that can be told apart: five colours with five dashes, `s0` to `s24` in the style sheet."""
Element = ElementTree.Element
Points = Iterable[tuple[float, float]]


def element(tag: str, text: str = "", **attributes: str) -> Element:
    """An element with these attributes: `class_` is `class`, and `stroke_width` is
    `stroke-width`."""
    made = ElementTree.Element(tag, _named(attributes))
    made.text = text or None
    return made


def add(parent: Element, tag: str, text: str = "", **attributes: str) -> Element:
    """A new element at the end of `parent`."""
    made = element(tag, text, **attributes)
    parent.append(made)
    return made


def markup(drawn: Element) -> Markup:
    """The element as text for a page."""
    return Markup(ElementTree.tostring(drawn, encoding="unicode"))


def percent(place: float) -> str:
    """A place from 0 to 1 as SVG takes it."""
    return f"{100 * place:.2f}".rstrip("0").rstrip(".") + "%"


def path(points: Points, *, closed: bool = False) -> str:
    """The data of a path through points in [0, 1] x [0, 1], whose y goes up; the end of it says
    nothing where two points are one."""
    places = [f"{SIDE * x:.1f} {SIDE * (1 - y):.1f}" for x, y in points]
    return "M" + "L".join(places) + "Z" * closed if places else ""


def style_class(style: int) -> str:
    """The class of a line of this number."""
    return f"s{style % STYLES}"


def marker(style: int) -> str:
    """The reference to the shape of the points of a line of this number."""
    return f"#m{style % MARKERS}"


def _named(attributes: dict[str, str]) -> dict[str, str]:
    return {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
