"""A dataset at an URL with credentials: it is told and kept without them."""

from pathlib import Path

import numpy as np
import pytest

from manyfaces.configs.errors import UserError
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
