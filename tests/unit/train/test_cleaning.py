"""The cleaning report against numpy over the whole dataset at once, from checkpoints made by
hand."""

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import yaml
from numpy.typing import NDArray

from manyfaces.configs.load import load
from manyfaces.configs.schema import Config
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.data.dataset.dataset import Dataset, open_data, open_dataset
from manyfaces.data.dataset.forget import forget
from manyfaces.data.dataset.forgotten import read_forgotten
from manyfaces.data.feed.decode import Decoder
from manyfaces.data.store.samples import Stores
from manyfaces.data.synthetic.dataset import synthesise
from manyfaces.models.backbones.pixels import normalise
from manyfaces.train.__main__ import main
from manyfaces.train.checkpoint.snapshot import Snapshot
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.checkpoint.writer import Checkpointer
from manyfaces.train.curation import cleaning, cleaning_angles
from manyfaces.train.objectives.objective import ShardedRows

PX, DIM = 32, 32
BROKEN = 17


@pytest.fixture(scope="module")
def mine(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A copy of which an identity and a sample are forgotten and another sample is broken."""
    dataset = open_dataset(
        shutil.copytree(dataset_path, tmp_path_factory.mktemp("cleaning") / "mine")
    )
    with dataset.part.shard_path(int(dataset.part.shard_N[BROKEN])).open("r+b") as file:
        file.seek(int(dataset.part.offset_N[BROKEN]))
        file.write(b"none")
    single = next(i for i in range(120) if dataset.part.identity_N[i] != 4 and i != BROKEN)
    forget(dataset.part, ["4"], dataset.part.keys(np.array([single])), processes=1)
    return dataset


def config_of(folder: Path, head: dict[str, Any] | None = None, **data: Any) -> Config:
    tree = {
        "model": {"kind": "mobilefacenet", "scale": 1, "embedding_dim": DIM},
        "data": {"image_px": PX, **data},
        "head": head or {},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return load(str(folder / "recipe.yaml"), [])


def embedded(config: Config) -> tuple[dict[str, torch.Tensor], NDArray[np.float64]]:
    """A backbone's weights, and the unit embeddings of all samples, the broken one's among them."""
    dataset = open_data(config.data)
    count = dataset.manifest.num_images
    images, _ = Decoder((PX, PX), count, device=torch.device("cpu"))(
        Stores(dataset).read(np.arange(count))
    )
    torch.manual_seed(0)
    backbone = config.model.build(image_hw=(PX, PX))
    for module in backbone.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        backbone(normalise(images))  # so that the embeddings are not all alike
        output = backbone.eval()(normalise(images))
        unit = torch.nn.functional.normalize(output.embeddings["main"].double())
    return {name: tensor.clone() for name, tensor in backbone.state_dict().items()}, unit.numpy()


def sub_centres(
    unit_ND: NDArray[np.float64], class_N: NDArray[np.int64], num_centres: int
) -> NDArray[np.float32]:
    """[K, C, D], of any length: near a sample of the class, or near nobody."""
    rng = np.random.default_rng(num_centres)
    rows = rng.normal(size=(num_centres, class_N.max() + 1, DIM))
    for c in range(rows.shape[1]):
        for k in range(num_centres):
            if rng.random() < 0.7:
                rows[k, c] = (
                    0.1 * rng.normal(size=DIM)
                    + 3 * unit_ND[rng.choice(np.flatnonzero(class_N == c))]
                )
    return rows.astype(np.float32)


def checkpoint(
    folder: Path, num_centres: int, **data: Any
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """A run of one checkpoint; the embeddings of its samples, and its sub-centres."""
    folder.mkdir()
    config = config_of(folder, **data)
    dataset = open_data(config.data)
    weights, unit_ND = embedded(config)
    rows_KCD = sub_centres(
        unit_ND, dataset.labels(np.arange(dataset.manifest.num_images)), num_centres
    )
    head = {
        "rows" if k == 0 else f"rows.{k}": torch.from_numpy(rows_CD.copy())
        for k, rows_CD in enumerate(rows_KCD)
    }
    head["momentum"] = torch.full_like(head["rows"], 1e4)
    num_classes = rows_KCD.shape[1]
    state = RunState(config, dataset.manifest.fingerprint, num_classes, seed=0, step=7)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        saver = Checkpointer(folder / "checkpoints", Checkpoint())
        saver.save(Snapshot(state, weights, {}, {"head": ShardedRows(head, num_classes)}))
        saver.wait()
    finally:
        dist.destroy_process_group()
    return unit_ND, rows_KCD


def expected(
    unit_ND: NDArray[np.float64],
    class_N: NDArray[np.int64],
    rows_KCD: NDArray[np.float32],
    good_N: NDArray[np.bool_],
):
    rows = rows_KCD / np.linalg.norm(rows_KCD, axis=2, keepdims=True)
    angles_NK = np.degrees(np.arccos(np.einsum("nd,knd->nk", unit_ND, rows[:, class_N])))
    nearest_N = angles_NK.argmin(1)
    votes = [
        [int((good_N & (class_N == c) & (nearest_N == k)).sum()) for k in range(len(rows))]
        for c in range(rows.shape[1])
    ]
    dominant_N = np.array([row.index(max(row)) for row in votes])[class_N]
    assert len(rows) == 1 or any(
        sorted(row)[-1] == sorted(row)[-2] for row in votes
    )  # some are a tie
    return nearest_N, angles_NK.min(1), dominant_N, angles_NK[np.arange(len(class_N)), dominant_N]


@pytest.fixture(scope="module")
def runs(
    mine: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, tuple[Path, NDArray[np.float64], NDArray[np.float32]]]:
    """By the number of sub-centres."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        num_centres: (
            folder / str(num_centres),
            *checkpoint(folder / str(num_centres), num_centres, path=str(mine.part.path)),
        )
        for num_centres in (1, 3)
    }


@pytest.mark.parametrize("num_centres", [3, 1])
def test_the_report_is_numpys(
    mine: Dataset,
    runs,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    num_centres: int,
) -> None:
    monkeypatch.setattr(cleaning, "_BATCH_SIZE", 32)
    monkeypatch.setattr(cleaning_angles, "_ROW_GROUP", 50)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # `data forget` starts no processes
    run, unit_ND, rows_KCD = runs[num_centres]
    ids_N, class_N = np.arange(120), mine.part.identity_N.astype(np.int64)
    good_N = ~read_forgotten(mine).mask(ids_N, class_N) & (ids_N != BROKEN)
    nearest_N, angle_N, dominant_N, dominant_angle_N = expected(unit_ND, class_N, rows_KCD, good_N)
    drop_N = dominant_angle_N > 60
    assert 5 < drop_N[good_N].sum() < 100
    assert np.abs(dominant_angle_N - 60).min() > 0.01

    out = tmp_path / "new" / "out"
    assert main(["head", "report", str(run), "--out", str(out), "--angle", "60"]) == 0
    told = capsys.readouterr().out
    assert "7 forgotten, 1 not decodable" in told
    assert f"{drop_N[good_N].sum()} ({drop_N[good_N].mean():.2%})" in told
    assert sorted(path.name for path in out.iterdir()) == [
        "cleaning.parquet",
        "cleaning.png",
        "drop.txt",
    ]
    assert cv2.imread(str(out / "cleaning.png")).shape[2] == 3

    file = pq.ParquetFile(out / "cleaning.parquet")
    assert file.num_row_groups == 2
    types = ["int64", "string", "int32", "string", "int8", "float", "bool", "float", "bool"]
    assert [str(kind) for kind in file.schema_arrow.types] == types
    table = file.read().to_pydict()
    names = (mine.part.path / "identities.txt").read_text().splitlines()
    assert table["sample"] == ids_N[good_N].tolist()
    assert table["key"] == [mine.name(i).removesuffix(".jpg") for i in ids_N[good_N].tolist()]
    assert table["identity"] == class_N[good_N].tolist()
    assert table["name"] == [names[c] for c in class_N[good_N].tolist()]
    assert table["sub_centre"] == nearest_N[good_N].tolist()
    assert table["dominant"] == (nearest_N == dominant_N)[good_N].tolist()
    assert table["drop"] == drop_N[good_N].tolist()
    np.testing.assert_allclose(table["angle_deg"], angle_N[good_N], atol=1e-3)
    np.testing.assert_allclose(table["dominant_angle_deg"], dominant_angle_N[good_N], atol=1e-3)
    assert all(table["dominant"]) == (num_centres == 1)

    copy = open_dataset(shutil.copytree(mine.part.path, tmp_path / "copy"))
    before = read_forgotten(copy).samples
    assert main(["data", "forget", str(copy.part.path), "--keys", str(out / "drop.txt")]) == 0
    assert (
        read_forgotten(copy).samples.tolist() == np.union1d(before, ids_N[good_N & drop_N]).tolist()
    )


def test_a_mixture_is_reported_as_one_and_dropped_from_by_its_parts(
    mine: Dataset, tmp_path: Path
) -> None:
    synthesise(tmp_path / "other", 5, 4, seed=9, processes=1, shard_images=8)
    (tmp_path / "other" / "identities.txt").unlink()
    paths = [str(tmp_path / "other"), str(mine.part.path)]
    config = {"order": "mixture", "mixture": [{"path": path} for path in paths]}
    unit_ND, rows_KCD = checkpoint(tmp_path / "run", 2, **config)
    dataset = open_data(config_of(tmp_path, **config).data)
    ids_N = np.arange(140)
    class_N = dataset.labels(ids_N)
    good_N = ~read_forgotten(dataset).mask(ids_N, class_N) & (ids_N != 20 + BROKEN)
    dominant_angle_N = expected(unit_ND, class_N, rows_KCD, good_N)[-1]

    assert (
        main(
            [
                "head",
                "report",
                str(tmp_path / "run" / "checkpoints" / "step-00000007"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    table = pq.read_table(tmp_path / "out" / "cleaning.parquet").to_pydict()
    assert table["sample"] == ids_N[good_N].tolist()
    told = [f"other/{number}" for number in range(5)] + [
        f"{mine.part.path.name}/{line}"
        for line in (mine.part.path / "identities.txt").read_text().split()
    ]
    assert table["name"] == [told[number] for number in class_N[good_N]]
    np.testing.assert_allclose(table["dominant_angle_deg"], dominant_angle_N[good_N], atol=1e-3)
    for number, part in enumerate(dataset.parts):
        own = part.slots(np.flatnonzero(good_N & (dominant_angle_N > 75)))
        rows = np.flatnonzero(good_N & (dominant_angle_N > 75))[own] - part.first_sample
        assert (tmp_path / "out" / f"drop-{number}.txt").read_text().splitlines() == part.keys(rows)


def test_mistakes_are_one_line(runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthesise(tmp_path / "other", 5, 4, seed=9, processes=1, shard_images=8)
    words = ["head", "report", str(runs[1][0]), "--out", str(tmp_path / "out")]
    for more, message in (
        (["--angle", "180"], "--angle 180: expected degrees between 0 and 180"),
        (["--dataset", str(tmp_path / "other")], "5 identities"),
        (["--dataset", "nowhere"], "nowhere: no such folder"),
    ):
        assert main([*words, *more]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert len(told.strip().splitlines()) == 1
    path = str(tmp_path / "other")
    checkpoint(
        tmp_path / "triplets",
        1,
        head={"margin": {"kind": "none"}, "triplet": {}},
        order="pk",
        path=path,
    )
    assert (
        main(
            [
                "head",
                "report",
                str(tmp_path / "triplets" / "checkpoints" / "step-00000007"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    told = capsys.readouterr().err
    assert "step-00000007: its objective triplet has no class centres" in told
    assert len(told.strip().splitlines()) == 1
    assert main(["head", "report", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no run there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
