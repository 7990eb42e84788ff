"""The place of an image at a URL."""

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from manyfaces.configs.errors import UserError
from manyfaces.configs.redact import redact
from manyfaces.data.limits import MOST_BYTES
from manyfaces.data.sources.source import TOO_MANY_BYTES, Dropped

if TYPE_CHECKING:
    from manyfaces.data.store.remote import Remote

PATIENCE_S = 300.0
"""How long a store may be away."""
_GONE = (403, 404, 410)
"""What a store answers for one file that it does not give, which is no fault of the store."""


class UrlAt(NamedTuple):
    """The place of an image that has a URL of its own."""

    url: str

    def __str__(self) -> str:
        return redact(self.url)

    def read(self) -> bytes:
        """Fetch the bytes. Raises `Dropped` for what is not there, and `UserError` for a store that
        goes on failing."""
        from manyfaces.data.store.faults import status

        folder, _, name = self.url.rpartition("/")
        try:
            blob = opened(folder).read(name)
        except UserError as error:
            if (told := status(error)) in _GONE:
                raise Dropped(f"cannot be read: the store answers {told}") from error
            raise
        if len(blob) > MOST_BYTES:
            raise Dropped(TOO_MANY_BYTES)
        return blob


@lru_cache(64)
def opened(url: str) -> "Remote":
    """What reads below a URL, with patience."""
    # fsspec takes most of a second to import, which images on a disk have no use for.
    from manyfaces.data.store.faults import Advice
    from manyfaces.data.store.remote import Remote

    advice = Advice(
        subject="images at",
        patience=f"at most {PATIENCE_S:g} s",
        wrong_bytes="the store holds it so: put the right file there",
        missing="correct the URL, or put the file there",
        forbidden="set credentials that may read and list there (AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, gcloud's login)",
        no_room="make room",
        then="; the same command then goes on",
    )
    return Remote(url, PATIENCE_S, advice=advice)
