"""A dataset at a URL with credentials: it is told and kept without them."""

from pathlib import Path

import numpy as np
import pytest
from test_scan import shard_of

from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Data
from manyfaces.data.dataset.index_url import index_url
from manyfaces.data.dataset.part import Part
from manyfaces.data.store.cache import RemoteSource
from manyfaces.data.store.remote import Remote


def source(password: str) -> RemoteSource:
    return RemoteSource(f"https://user:{password}@host/faces", Path("cache"), 1, 1)


def test_it_is_told_without_them(dataset) -> None:
    none = np.empty(0, np.uint32)
    columns = (none, none.astype(np.uint64), none, none)
    part = Part(Path("x"), dataset.manifest, *columns, remote=source("PLANTED"))
    assert part.where == "https://***@host/faces"


def test_with_another_password_it_is_the_same_copy_in_the_cache() -> None:
    assert source("first").dataset("0" * 64) == source("second").dataset("0" * 64)


def test_what_a_run_keeps_of_it_opens_nothing() -> None:
    with pytest.raises(UserError, match="does not tell credentials; give the URL with them, or"):
        Remote("https://***@host/faces", 1)


def test_an_index_that_others_read_holds_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^https://\*\*\*@host/faces: --out keeps the URL"):
        index_url("https://user:PLANTED@host/faces", tmp_path / "index")
    assert not (tmp_path / "index").exists()


class FullStore:
    """A store of one shard that takes nothing more."""

    read_only = False

    def __init__(self, url: str, patience_s: float) -> None: ...

    def listing(self, suffix: str) -> dict[str, int | None]:
        return {f"x{suffix}": 1}

    def sizes(self, names: list[str]) -> dict[str, int]:
        return {}

    def fetch(self, name: str, path: Path, size: int | None, progress: None) -> None:
        shard_of([("0.jpg", b"x"), ("0.cls", b"0")], path)

    def upload(self, name: str, path: Path) -> None:
        raise UserError("faces: no space left; make some")


@pytest.mark.parametrize("credentials", ["", "user:PLANTED@"])
def test_an_index_that_cannot_be_put_there_is_usable_where_it_says_so(
    credentials: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index on this node has the URL without them, and opens nothing."""
    monkeypatch.setattr("manyfaces.data.dataset.index_url.Remote", FullStore)
    config = Data(cache_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"no space left; make some") as error:
        index_url(f"https://{credentials}host/faces", config=config, processes=1)
    assert ("which is a data.path as it is" in str(error.value)) == (credentials == "")
