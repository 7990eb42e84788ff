"""Credentials in URLs, hidden in all that is written, sent or shown.

A run's files, its record in MLflow, what Ray's dashboard shows and the screen have `***` in their
place; the configuration in memory keeps them, for whoever opens the URL. A text may be redacted
any number of times.
"""

import re
from typing import Any, TypeVar
from urllib.parse import unquote

from pydantic import BaseModel

T = TypeVar("T")
HIDDEN = "***"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)(?!/)")
"""How a URL begins. One that came through `Path` has lost a slash; a drive of Windows has one
letter, and `sqlite:///` names a file."""
_RUN = re.compile(r"[^\s\"<>]*")
_NO_PORT = re.compile(r":(?!\d*$)")
_PARAMETER = re.compile(r"(?<=[?&;#])([^=&;#?\s]+)=([^&#\s'\"<>]+)")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORDS = frozenset({"auth", "jwt", "key", "pass", "pwd", "sas", "sig"})
_SECRET_ENDS = re.compile(
    r"(authorization|credential|passphrase|passw(or)?d|secret|signature|token|(access|api)key)s?$"
)


def redact(text: str) -> str:
    """The text with `***` in place of the user and password, and of the values of parameters with a
    name such as `token`, `X-Amz-Signature` or `api_key`, in each URL of it. Whatever else the text
    holds stays, paths with an `@` included."""
    return _PARAMETER.sub(_without_value, _without_users(text)) if "/" in text else text


def redacted(value: T) -> T:
    """The same value with every text in it redacted: a text, a mapping of the configuration, or a
    list, tuple or dict of such at any depth."""
    return _redacted(value)  # type: ignore[no-any-return]


def is_redacted(url: str) -> bool:
    """Whether credentials were hidden in the URL, so that nothing can be opened by it."""
    return f"{HIDDEN}@" in url or f"={HIDDEN}" in url


def names_secret(name: str) -> bool:
    """Whether what has this name is a password or a token: `api_key`, `authToken`."""
    return _SECRET_ENDS.search(re.sub("[^a-z]", "", name.lower())) is not None


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, BaseModel):
        old = {name: getattr(value, name) for name in type(value).model_fields}
        changed = {name: new for name in old if (new := _redacted(old[name])) != old[name]}
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, dict):
        return {key: _redacted(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_redacted, value))
    return value


def _without_users(text: str) -> str:
    kept, end = "", 0
    for begin in _URL.finditer(text):
        if begin.start() >= end and (length := _user_length(begin, text)):
            kept += text[end : begin.end()] + HIDDEN
            end = begin.end() + length
    return kept + text[end:]


def _user_length(begin: re.Match[str], text: str) -> int:
    """Number of characters before the `@` that ends user and password; 0 where the URL that begins
    there has none."""
    run = _RUN.match(text, begin.end())
    rest = run[0] if run else ""
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    length = authority.rfind("@")
    if length < 0 and _NO_PORT.search(authority.rpartition("]")[2]):
        length = rest.find("@")  # a password with a slash that was not escaped
    is_sure = begin[2] == "//" or begin[1].lower() in ("http", "https")
    # Of `models:/NAME@ALIAS` and of a path on another host nothing is a password.
    return max(length, 0) if is_sure or ":" in rest[: max(length, 0)] else 0


def _without_value(parameter: re.Match[str]) -> str:
    name = unquote(parameter[1])
    words = {word.lower() for word in _WORDS.findall(name)}
    is_secret = words & _SECRET_WORDS or names_secret(name)
    return f"{parameter[1]}={HIDDEN}" if is_secret else parameter[0]
