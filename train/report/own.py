"""The page that a training leaves in its folder."""

from collections.abc import Callable

from manyfaces.train.folder import RunFolder


def report_of_run(folder: RunFolder, tell: Callable[[str], object]) -> None:
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
