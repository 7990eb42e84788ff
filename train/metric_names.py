"""Names of metrics and parameters as MLflow takes them, in the groups that its pages show."""

import hashlib
import re

_NOT_TAKEN = re.compile(r"[^\w.\- ]")
_LONGEST = 250


_GROUPS = ("train", "start", "system")
"""Groups of the record; any other is the name of a protocol."""


EVALUATION_GROUP = "eval/"
"""What the names of metrics of evaluations begin with in MLflow."""


def is_evaluation(name: str) -> bool:
    """Whether a protocol has given the number that the record has under this name."""
    group, slash, _ = name.partition("/")
    return slash == "/" and group not in _GROUPS


def shown_name(name: str) -> str:
    """The name under which MLflow has a number of the record: `lfw/auc` is `eval/lfw/auc` there,
    and what has no group of its own, as `images_per_s`, is of `train/`."""
    if is_evaluation(name):
        return fit_name(f"{EVALUATION_GROUP}{name}")
    return fit_name(name if "/" in name else f"train/{name}")


def fit_name(name: str) -> str:
    """The same name where MLflow takes it; else one in which `_` stands for what it refuses, and
    each part that was changed ends with six digits of its SHA-256, so that two names stay two.

    A file that a browser saved as `lfw (1).bin` gives `lfw (1)/auc`, which is sent as
    `lfw _1_-e7f2dd/auc`.
    """
    fits = "/".join(map(_fit_part, name.split("/")))
    return fits if len(fits) <= _LONGEST else f"{fits[: _LONGEST - 7]}-{_digits(name)}"


def _fit_part(part: str) -> str:
    # MLflow may keep a metric as a file of that name.
    fits = "_" if not part.strip(".") else _NOT_TAKEN.sub("_", part)
    if fits.startswith(".."):
        fits = fits.lstrip(".")
    return part if fits == part else f"{fits}-{_digits(part)}"


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
