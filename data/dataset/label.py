"""The label of a sample: the number of its identity, as a `.cls` or a `.json` member has it."""

import json
import re
from typing import Any

JSON_LABELS = ("identity", "label", "cls")
MOST_IDENTITIES = 2**32 - 1
_DIGITS = re.compile(r"[0-9]{1,20}")
"""Python's `int` takes signs, underscores and digits of other scripts too, which others read in
another way."""


def parse_cls(body: bytes) -> int:
    """The number in a `.cls` member: decimal digits, with nothing but white space around them.
    Raises `ValueError`."""
    text = body.decode("utf-8-sig").strip(" \t\r\n")
    if not _DIGITS.fullmatch(text):
        raise ValueError("no number")
    return int(text)


def parse_json(body: bytes) -> tuple[str, int] | None:
    """The label in a `.json` member: the first of "identity", "label" and "cls" under which it has
    an integer, and the integer; None where it has none. Raises `ValueError` where it is no JSON
    object, or says one of them twice."""
    try:
        told = json.loads(body, object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(told, dict):
        raise ValueError("no object")
    numbers = ((key, _number(told.get(key))) for key in JSON_LABELS)
    return next(((key, number) for key, number in numbers if number is not None), None)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key in JSON_LABELS:
        if len({repr(value) for name, value in pairs if name == key}) > 1:
            raise ValueError(f"{key} twice")
    return dict(pairs)


def _number(value: object) -> int | None:
    if isinstance(value, str) and _DIGITS.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    # A bool is an int to Python.
    return value if type(value) is int else None
