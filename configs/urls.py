"""Which texts are URLs."""

import re
from pathlib import Path


def url_of(path: str | Path) -> str | None:
    """The URL that a person gave, None for a local path. A URL that came through `Path` has lost a
    slash, which is put back."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])", str(path))
    return f"{found[1]}://{str(path)[found.end() :]}".rstrip("/") if found else None
