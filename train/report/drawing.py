"""What the page shows of a chart, and the frame that all charts have: grid, ticks and rules."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from manyfaces.train.report.scales import Scale, tick_texts
from manyfaces.train.report.svg import SIDE, Element, add, element, percent

_X_TICKS, _Y_TICKS = 6, 5


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    name: str
    style: int
    looks: str = "line"
    """`line`, `marked` (a line with points), `point` or `area`."""


@dataclass(frozen=True)
class Row:
    """A row of the numbers behind a chart."""

    cells: Sequence[str]
    """The x, or the name, and the value of each line; "" where a line has none there."""
    place: float | None = None
    """Where the x stands, from 0 to 1; None in a chart that has no x."""


@dataclass(frozen=True)
class Numbers:
    """The numbers of a chart as a table, for whoever cannot or will not see it."""

    columns: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Drawing:
    """A chart as the page shows it."""

    title: str
    x_label: str
    y_label: str
    svg: Markup
    numbers: Numbers
    keys: Sequence[Key] = ()
    note: str = ""
    """A sentence below the chart."""
    kind: str = "lines"
    """The class of its box in the style sheet."""
    margin_ch: int = 6
    """Room for the texts on the left, in digits."""
    height_rem: float = 15.0

    @property
    def description(self) -> str:
        """What a screen reader says of it."""
        names = ", ".join(key.name for key in self.keys)
        shows = f"; it shows {names}" if names else ""
        return f"Chart: {self.title}. {self.y_label} by {self.x_label}{shows}. Numbers below."


@dataclass(frozen=True)
class Rule:
    """A vertical line across a chart."""

    x: float
    label: str
    is_short: bool = False
    """Whether only its place is shown, and the label where it is pointed at."""


@dataclass(frozen=True)
class Frame:
    """The two axes of a chart and what stands behind its lines."""

    x: Scale
    y: Scale
    form_x: str = ""
    form_y: str = ""
    rules: Sequence[Rule] = field(default_factory=tuple)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point, both from 0 to 1."""
        return self.x.place(x), self.y.place(y)

    def begin(self) -> tuple[Element, int]:
        """The element of the chart, with grid, ticks and rules in it, and the digits of the widest
        text on its left."""
        root = element("svg", class_="chart", aria_hidden="true")
        ticks = self.y.ticks(_Y_TICKS)
        texts = tick_texts(ticks, self.y.log, self.form_y)
        for tick, text in zip(ticks, texts, strict=True):
            y = percent(1 - self.y.place(tick))
            add(root, "line", class_="grid", x1="0", x2="100%", y1=y, y2=y)
            add(root, "text", text, class_="tick", x="0", y=y, dx="-0.6em", dy="0.35em")
        self._x_axis(root)
        for rule in self.rules:
            self._rule(root, rule)
        return root, max(map(len, texts), default=1) + 1

    def _x_axis(self, root: Element) -> None:
        ticks = self.x.ticks(_X_TICKS)
        add(root, "line", class_="axis", x1="0", x2="100%", y1="100%", y2="100%")
        for tick, text in zip(ticks, tick_texts(ticks, self.x.log, self.form_x), strict=True):
            x = percent(self.x.place(tick))
            stroke = add(root, "line", class_="axis", x1=x, x2=x, y1="100%", y2="100%")
            stroke.set("transform", "translate(0 4)")
            stroke.set("class", "stub")
            add(root, "text", text, class_="tick below", x=x, y="100%", dy="1.5em")

    def _rule(self, root: Element, rule: Rule) -> None:
        place = self.x.place(rule.x)
        x, group = percent(place), add(root, "g", class_="rule")
        add(group, "title", rule.label)
        add(group, "line", x1=x, x2=x, y1="0", y2="100%")
        if not rule.is_short:
            side, dx = ("end", "-0.5em") if place > 0.6 else ("start", "0.5em")
            text = add(group, "text", rule.label, x=x, y="0", dx=dx, dy="0.9em")
            text.set("text-anchor", side)


def stretched(root: Element) -> Element:
    """A place in the chart for paths, in coordinates of `SIDE` x `SIDE`."""
    inner = add(root, "svg", class_="paths", width="100%", height="100%")
    inner.set("viewBox", f"0 0 {SIDE} {SIDE}")
    inner.set("preserveAspectRatio", "none")
    return inner
