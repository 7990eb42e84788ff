"""Shared fixtures: a small dataset of made identities, and memory that shows where it is read
before it is written."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["TRITON_INTERPRET"] = (
        "1"  # before anything imports Triton, whose own functions too are then interpreted
    )

import pytest
import torch
from hypothesis import settings

from manyfaces.data.dataset.dataset import Dataset, open_dataset
from manyfaces.data.synthetic.dataset import synthesise

if TYPE_CHECKING:
    from store_server import Proxy

settings.register_profile("manyfaces", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("manyfaces")


@pytest.fixture(scope="session")
def dataset_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 identities x 6 images in 4 shards; tests must not change it."""
    path = tmp_path_factory.mktemp("dataset") / "made"
    synthesise(path, 20, 6, seed=7, processes=2, shard_images=32)
    return path


@pytest.fixture(scope="session")
def dataset(dataset_path: Path) -> Dataset:
    return open_dataset(dataset_path)


@pytest.fixture(scope="module")
def store() -> "Iterator[Proxy]":
    """An S3 server behind a proxy of faults, for the module's time in this process's environment
    too."""
    from store_server import faulty_store

    with faulty_store() as proxy:
        yield proxy


@pytest.fixture
def proxy(store: "Proxy") -> "Proxy":
    """The store without a fault."""
    store.forget()
    return store


@pytest.fixture(autouse=True)
def _nan_in_fresh_memory():
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=False)
    yield
    torch.use_deterministic_algorithms(False)
