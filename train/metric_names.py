"""Names of metrics and parameters as MLflow takes them."""

import hashlib
import posixpath
import re

_NOT_TAKEN = re.compile(r"[^/\w.\- ]")
_LONGEST = 250


def fit_name(name: str) -> str:
    """The same name where MLflow takes it; else one in which `_` stands for what it refuses, ended
    by six digits of the name's SHA-256, so that two different names stay two.

    A file that a browser saved as `lfw (1).bin` gives `lfw (1)/auc`, and so `lfw _1_/auc-5f1c2e`.
    """
    fits = _NOT_TAKEN.sub("_", name)
    # MLflow may keep a metric as a file of that name.
    parts = [part for part in fits.split("/") if part not in ("", ".", "..")]
    fits = posixpath.join(*parts) if parts else "_"
    if fits == name and len(name) <= _LONGEST:
        return name
    return f"{fits[: _LONGEST - 7]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
