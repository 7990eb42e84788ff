"""Embeddings by several ranks: the same rows as by one, with no image twice or left out."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from launcher import run_ranks
from rich.console import Console
from tiny_encoder import tiny_encoder

from manyfaces.configs.schema import Cluster
from manyfaces.train.embedding.embed import Request, prepare
from manyfaces.train.embedding.facts import Options
from manyfaces.train.embedding.worker import work


def _shares(folder: Path, network: Path, words: list[Path]) -> tuple[Request, dict[str, Any]]:
    """What every rank is given."""
    request = Request(
        model=str(network),
        words=tuple(map(str, words)),
        out=folder,
        options=Options(),
        cluster=Cluster(launcher="process", workers=1),
        batch_size=8,
        part_images=16,
    )
    with contextlib.ExitStack() as held:
        share = prepare(request, Console(quiet=True), held)
    return request, share.model_dump()


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_write_what_one_writes(dataset_path: Path, tmp_path: Path, world_size: int) -> None:
    network = tiny_encoder(tmp_path)
    tables: list[pa.Table] = []
    for size, gone in ((1, []), (world_size, []), (world_size, [0, 3, 7])):
        folder = tmp_path / f"by {size} {len(gone)}"
        if gone:  # another number of ranks goes on with what is missing
            shutil.copytree(tmp_path / "by 1 0", folder)
            for part in gone:
                (folder / f"part-{part:05d}.parquet").unlink()
        request, share = _shares(folder, network, [dataset_path])
        assert len(share["parts"]) == (len(gone) or 8)
        run_ranks(size, work, share)
        assert request.job.fault() is None
        parts = sorted(folder.glob("part-*.parquet"))
        assert len(parts) == 8
        tables.append(pa.concat_tables(pq.read_table(part) for part in parts))
    assert tables[0].num_rows == 120
    assert tables[0]["row"].to_pylist() == list(range(120))
    assert all(table.equals(tables[0]) for table in tables[1:])
    assert request.job.done() == (sum([16, 16, 8]), 0)


def test_a_fault_of_one_rank_stops_all_without_an_error_of_theirs(
    dataset_path: Path, tmp_path: Path
) -> None:
    network, copied = tiny_encoder(tmp_path), tmp_path / "dataset"
    shutil.copytree(dataset_path, copied)
    request, share = _shares(tmp_path / "out", network, [copied])
    shard = sorted(copied.glob("*.tar"))[-1]
    shard.write_bytes(shard.read_bytes()[:-4096])
    run_ranks(2, work, share)
    assert "expected" in (request.job.fault() or "")
