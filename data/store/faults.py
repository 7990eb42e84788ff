"""What went wrong at a store, told from the errors of any fsspec driver: whether it may pass, and
what to do where it does not."""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# By name, over an error's ancestors: the drivers are optional. aiohttp's, botocore's, google's.
_TRANSPORT = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "FlexibleChecksumError",
    "HTTPClientError",
}
_TRANSPORT |= {"IncompleteReadError", "ResponseParserError", "TimeoutError", "TransportError"}


class WrongBytesError(Exception):
    """Raised for bytes that are not what the manifest says; `lasting` where the same come again and
    again."""

    def __init__(self, message: str, lasting: bool) -> None:
        super().__init__(message)
        self.lasting = lasting


@dataclass(frozen=True)
class Advice:
    """What a person can do about faults of a store, in the words for what is kept there."""

    subject: str
    """What the URL is of."""
    patience: str
    """The key that says how long a store may be away."""
    wrong_bytes: str
    """About bytes that the store holds and that are not the right ones."""
    missing: str
    """About a file or a bucket that is not there."""
    forbidden: str
    """About credentials."""
    no_room: str
    """About a full disk of this machine."""
    then: str
    """What comes after it, with what parts it from the advice."""


DATASET = Advice(
    subject="dataset",
    patience="data.store_patience_s",
    wrong_bytes="the store holds it so: put the right file there, or run `manyfaces data index` to "
    "accept it",
    missing="restore it, or run `manyfaces data index` to do without it",
    forbidden="set credentials that may read and list there (AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, gcloud's login)",
    no_room="make room or set another data.cache_dir",
    then="; the same command then resumes",
)


def remedy(error: BaseException, local: Path | None = None, advice: Advice = DATASET) -> str | None:
    """What to do about an error that waiting does not mend; None for one that may pass. `local` is
    the file that was written to."""
    if isinstance(error, WrongBytesError):
        return advice.wrong_bytes if error.lasting else None
    if isinstance(error, OSError) and (
        error.errno in _LOCAL or (local is not None and error.filename == str(local))
    ):
        return advice.no_room if local is None else f"{advice.no_room} (it was written to {local})"
    # This is asked before the status, as aiohttp gives a torn body the status 400.
    if any(_TRANSPORT & {c.__name__ for c in type(e).__mro__} for e in _chain(error)):
        return None
    told = status(error)
    if told in (404, 410):
        return advice.missing
    if (
        told in (401, 403)
        or isinstance(error, PermissionError)
        or any("Credential" in type(e).__name__ for e in _chain(error))
    ):
        return advice.forbidden
    if told is not None:
        return (
            None
            if told >= 500 or told in (408, 425, 429)
            else "correct the URL or the store's settings"
        )
    return (
        None
        if any(isinstance(e, OSError) for e in _chain(error))
        else "correct the URL, the endpoint or the driver's settings"
    )


def status(error: BaseException) -> int | None:
    """The HTTP status behind an error; 404 for a file that is not there where there is no HTTP."""
    for each in _chain(error):
        response = getattr(each, "response", None)  # botocore's
        if isinstance(response, dict) and "HTTPStatusCode" in (
            facts := response.get("ResponseMetadata", {})
        ):
            return int(facts["HTTPStatusCode"])
        for name in ("status", "code"):  # aiohttp's, gcsfs's
            if isinstance(number := getattr(each, name, None), int):
                return number
    # fsspec's HTTP calls a refused connection "not found" as well, but names the cause. The cause
    # of what is not in the memory's store is a mapping's KeyError.
    causes = [each for each in _chain(error) if not isinstance(each, KeyError)]
    return 404 if causes and isinstance(causes[-1], FileNotFoundError) else None


def words(error: BaseException) -> str:
    """The kind of error and what it says, in one line; a driver's empty wrapper gives way to its
    cause."""
    says = next((" ".join(str(e).split()) for e in _chain(error) if str(e).strip()), "")
    kind = type(error).__name__
    return f"{kind}: {says[:200]}" if says else kind


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
