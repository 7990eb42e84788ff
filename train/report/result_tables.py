"""Tables of results: with intervals as dots, and the rest as it is."""

from collections.abc import Mapping, Sequence

from manyfaces.train.evaluation.result import Quantity
from manyfaces.train.report.course import Listing
from manyfaces.train.report.dot_table import Dot, DotTable, dot_table
from manyfaces.train.report.scales import number_text

_LOW, _HIGH = "low", "high"
_ABBREVIATIONS = {"auc", "cmc", "eer", "far", "fmr", "fnmr", "fpir", "frr", "map", "tar", "tpir"}

Rows = Mapping[str, Mapping[str, float | None]]


def rows_of(table: Mapping[str, float | Mapping[str, float | None] | None]) -> Rows:
    """The cells of each row by column; a row that has one value has it in column `value`."""
    return {
        row: cells if isinstance(cells, Mapping) else {"value": cells}
        for row, cells in table.items()
    }


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(column for cells in rows.values() for column in cells))


def _with_intervals(rows: Rows) -> dict[str, tuple[str, str]]:
    """The columns of which the table has intervals, and where it has them: in `NAME_low` and
    `NAME_high`; `low` and `high` are of the first column."""
    columns = _columns(rows)
    ends = {each: (f"{each}_{_LOW}", f"{each}_{_HIGH}") for each in columns}
    if {_LOW, _HIGH} <= {*columns}:
        ends[columns[0]] = _LOW, _HIGH
    return {each: ends[each] for each in columns if {*ends[each]} <= {*columns}}


def dot_plots(name: str, rows: Rows, quantities: Sequence[Quantity]) -> list[DotTable]:
    """A plot for each column with intervals."""
    forms = {quantity.name: quantity.format for quantity in quantities}
    return [
        dot_table(
            capital(f"{spaced(name)}: {spaced(column)}"),
            spaced(column),
            [
                Dot(row, cells.get(column), cells.get(low), cells.get(high))
                for row, cells in rows.items()
            ],
            forms.get(column, ""),
            "The lines are 95 % intervals.",
        )
        for column, (low, high) in _with_intervals(rows).items()
    ]


def cells_listing(rows: Rows) -> Listing:
    """The columns that are not drawn as dots."""
    drawn = {each for column, ends in _with_intervals(rows).items() for each in (column, *ends)}
    columns = [column for column in _columns(rows) if column not in drawn]
    told = [[row, *(_cell(cells.get(column)) for column in columns)] for row, cells in rows.items()]
    return Listing(["", *map(spaced, columns)], told, len(told))


def _cell(value: float | None) -> str:
    return "not known" if value is None else number_text(value)


def spaced(name: str) -> str:
    """The name in words: `tar_at_far` is `TAR at FAR`."""
    words = name.replace("_", " ").split(" ")
    return " ".join(word.upper() if word in _ABBREVIATIONS else word for word in words)


def capital(text: str) -> str:
    """The text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]
