"""What a training draws of itself: plots on the way, and a page at its end."""

from collections.abc import Callable

from manyfaces.train.evaluation.plots import plot_metrics
from manyfaces.train.evaluation.report import draw_reports
from manyfaces.train.evaluation.result import QuantitiesByName
from manyfaces.train.folder import RunFolder
from manyfaces.train.record import METRICS, read_rows

Tell = Callable[[str], object]


def draw_plots(folder: RunFolder, quantities: QuantitiesByName, tell: Tell) -> None:
    """Draw the run's metrics and what was evaluated. A full disk is told in a line, as the run's
    own end is what a person has to know."""
    try:
        plot_metrics(read_rows(folder.path / METRICS), quantities, folder.plots)
        draw_reports(folder.path, folder.plots)
    except OSError as error:
        tell(f"{folder.plots}: not drawn ({error.strerror})")


def write_own_page(folder: RunFolder, tell: Tell) -> None:
    """Write the page of the run to its folder. A page that cannot be made is told in a line: a
    training never fails by it."""
    try:
        # Jinja2 and what reads a run take their time, which a training has at its end alone.
        from manyfaces.train.report.page import write_page
        from manyfaces.train.report.run_data import read_run

        write_page([read_run(folder.path)], folder.report)
    except Exception as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        tell(f"{folder.report}: not written ({line}); `manyfaces report {folder.path}` tries again")
