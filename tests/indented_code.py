"""The examples of docstrings, so that they can be run."""

import inspect
import textwrap
from types import ModuleType


def indented_code(module: ModuleType) -> str:
    """The indented lines of a module's docstring, as a file of their own."""
    lines = (inspect.getdoc(module) or "").splitlines()
    code = [line for line in lines if not line or line.startswith("    ")]
    return textwrap.dedent("\n".join(code))
