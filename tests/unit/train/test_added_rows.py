"""Added rows start at the mean of their images, under the checkpoint's own backbone."""

import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from made_head import read_head, write_checkpoint
from safetensors.torch import save_file
from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.data.dataset.dataset import Dataset, join, open_dataset
from manyfaces.data.dataset.forget import forget
from manyfaces.data.dataset.names import Names
from manyfaces.data.store.samples import Store
from manyfaces.data.synthetic.dataset import synthesise
from manyfaces.models.backbones.pixels import normalise
from manyfaces.train.curation.head_edit import add, remap

DIM = 16
CONFIG = Config.model_validate(
    {
        "model": {"kind": "mobilefacenet", "scale": 1, "embedding_dim": DIM},
        "data": {"image_px": 112},
    }
)


@pytest.fixture(scope="module")
def backbone() -> torch.nn.Module:
    torch.manual_seed(4)
    model = CONFIG.model.build(image_hw=(112, 112))
    model.train()
    with torch.no_grad():  # so that its BatchNorm has statistics
        model(torch.rand(32, 3, 112, 112) * 2 - 1)
    return model.eval()


def checkpoint(
    path: Path,
    backbone: torch.nn.Module,
    head: dict[str, Tensor],
    names: Sequence[str] = ("old 0", "old 1", "old 2"),
) -> Path:
    save_file(backbone.state_dict(), path.with_suffix(".backbone"))
    return write_checkpoint(
        path,
        [*names],
        head,
        backbone=path.with_suffix(".backbone"),
        config=CONFIG.model_dump(mode="json"),
    )


def names_of(dataset: Dataset, classes: list[int]) -> list[str]:
    lines = (dataset.part.path / "identities.txt").read_text().splitlines()
    return [lines[number] for number in classes]


def oracle(backbone: torch.nn.Module, dataset: Dataset, samples: np.ndarray) -> Tensor:
    """The unit mean of one class's unit embeddings, its images decoded by OpenCV."""
    images = np.stack(
        [
            cv2.imdecode(np.array(blob), cv2.IMREAD_COLOR)[:, :, ::-1]
            for blob in Store(dataset.part).read(samples)
        ]
    )
    with torch.no_grad():
        output = backbone(normalise(torch.from_numpy(images)))
    embeddings = output.embeddings["main"].double()
    mean = (embeddings / embeddings.norm(dim=1, keepdim=True)).mean(0)
    return mean / mean.norm()


def test_means_of_whole_images_that_are_not_forgotten(
    dataset: Dataset, tmp_path: Path, backbone: torch.nn.Module
) -> None:
    mine = open_dataset(shutil.copytree(dataset.part.path, tmp_path / "mine"))
    wanted = [11, 4, 17]
    samples = [np.flatnonzero(mine.part.identity_N == number) for number in wanted]
    forget(mine.part, [], [mine.name(int(samples[0][2]))], processes=1)
    torn = int(samples[1][3])
    shard = mine.part.shard_path(int(mine.part.shard_N[torn]))
    body = bytearray(shard.read_bytes())
    body[int(mine.part.offset_N[torn]) : int(mine.part.offset_N[torn]) + 2] = b"XX"
    shard.write_bytes(body)

    rows = torch.tensor([[3.0] * DIM, [0.0] * DIM, [5.0] * DIM])  # a forgotten one between them
    here = checkpoint(tmp_path / "sgd", backbone, {"rows": rows, "momentum": rows + 1})
    counts = add(
        here, tmp_path / "out", Names.parse("\n".join(names_of(mine, wanted)).encode()), mine
    )
    assert counts == {"kept": 3, "added": 3, "images": 17, "undecodable": 1, "without an image": 0}
    after = read_head(tmp_path / "out", {"rows": rows, "momentum": rows})
    assert torch.equal(after["rows"][:3], rows)
    assert torch.equal(after["momentum"], torch.cat([rows + 1, torch.zeros(3, DIM)]))
    left = [np.delete(samples[0], 2), np.delete(samples[1], 3), samples[2]]
    expected = torch.stack([oracle(backbone, mine, ids) for ids in left])
    length = 4 * DIM**0.5  # the median of those of [3, 3, ..] and [5, 5, ..]
    off = (after["rows"][3:].double() / length - expected).norm(dim=1)
    wrong = torch.stack(
        [oracle(backbone, dataset, ids) for ids in (*samples[:2], samples[2][1:])]
    )  # one image more or less
    assert off.max() < (wrong - expected).norm(dim=1).min() / 3


def test_unit_rows_and_an_identity_without_an_image_left(
    dataset: Dataset, tmp_path: Path, backbone: torch.nn.Module
) -> None:
    mine = open_dataset(shutil.copytree(dataset.part.path, tmp_path / "mine"))
    for sample in np.flatnonzero(
        mine.part.identity_N == 4
    ):  # whole at both ends, and nothing between them that decodes
        shard, first, size = (
            mine.part.shard_path(int(mine.part.shard_N[sample])),
            int(mine.part.offset_N[sample]),
            int(mine.part.size_N[sample]),
        )
        body = bytearray(shard.read_bytes())
        body[first + 3 : first + size - 2] = bytes(size - 5)
        shard.write_bytes(body)
    unit = torch.eye(3, DIM).half()
    head = {"rows": unit, "lengths": torch.full((3,), 7.0), "inverse_norms": torch.ones(3)}
    here = checkpoint(tmp_path / "rowwise", backbone, head)
    counts = add(
        here, tmp_path / "out", Names.parse("\n".join(names_of(mine, [4, 11])).encode()), mine
    )
    assert counts == {"kept": 3, "added": 2, "images": 12, "undecodable": 6, "without an image": 1}
    alone = add(here, tmp_path / "alone", Names.parse(names_of(mine, [4])[0].encode()), mine)
    assert alone == {"kept": 3, "added": 1, "images": 6, "undecodable": 6, "without an image": 1}
    after = read_head(tmp_path / "out", head)
    assert torch.equal(after["lengths"], torch.tensor([7.0, 7, 7, 1, 1]))
    assert torch.allclose(
        after["inverse_norms"] * after["rows"].float().norm(dim=1), torch.ones(5), atol=1e-6
    )
    expected = oracle(backbone, mine, np.flatnonzero(mine.part.identity_N == 11))
    assert after["rows"][4].double() @ expected > 0.999
    assert after["rows"][3].double() @ expected < 0.9


def test_people_of_a_second_dataset_of_a_mixture(
    dataset: Dataset, tmp_path: Path, backbone: torch.nn.Module
) -> None:
    synthesise(tmp_path / "other", 3, 2, seed=8, processes=1)
    other = open_dataset(tmp_path / "other")
    known = [f"{dataset.part.path.name}/{name}" for name in names_of(dataset, [*range(20)])] + [
        f"other/{names_of(other, [1])[0]}"
    ]
    head = {"rows": torch.eye(21, DIM) + 1, "momentum": torch.ones(21, DIM)}
    here = checkpoint(tmp_path / "one", backbone, head, known)
    counts = remap(
        here, tmp_path / "out", join([dataset, other], [Fraction(1, 2)] * 2), fresh=False
    )
    assert counts == {
        "kept": 21,
        "added": 2,
        "dropped": 0,
        "images": 4,
        "undecodable": 0,
        "without an image": 0,
    }
    rows = read_head(tmp_path / "out", head)["rows"]
    assert torch.equal(rows[[*range(20), 21]], head["rows"])
    for number in (0, 2):
        expected = oracle(backbone, other, np.flatnonzero(other.part.identity_N == number))
        assert torch.nn.functional.normalize(rows[20 + number].double(), dim=0) @ expected > 0.9999


@pytest.mark.parametrize("with_images", [True, False])
def test_a_run_without_class_centres_is_refused(
    dataset: Dataset, tmp_path: Path, with_images: bool
) -> None:
    """The rows that triplets alone left in checkpoints of before are nothing but numbers."""
    head = {"rows": torch.ones(3, 1), "momentum": torch.ones(3, 1)}
    config = {
        "model": CONFIG.model_dump(mode="json")["model"],
        "data": {"order": "pk"},
        "head": {"margin": {"kind": "none"}, "triplet": {"margin": 0.3}},
    }
    here = write_checkpoint(tmp_path / "one", ["a", "b", "c"], head, config=config)
    wanted = Names.parse(names_of(dataset, [4])[0].encode())
    with pytest.raises(UserError, match="one: its objective triplet has no class centres"):
        add(here, tmp_path / "out", wanted, dataset if with_images else None)
    with pytest.raises(UserError, match="one: its objective triplet has no class centres"):
        remap(here, tmp_path / "out", dataset, fresh=not with_images)
    assert not (tmp_path / "out").exists()
