"""What stands on the card of an exported network, which images it is checked on, and which time
tracks its latency fits."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from made_encoders import made_encoder

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.backbones.vit import VIT, ViT, ViTShape
from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.verification import Verification
from manyfaces.configs.schema import Config, Data
from manyfaces.configs.sections.evaluation import Evaluation
from manyfaces.configs.sections.run import Run
from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.sources.verification_bin import write_bin
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.exporters import latency
from manyfaces.train.exporters.card import MISSING, Said
from manyfaces.train.exporters.export import Request, export
from manyfaces.train.exporters.exporter import exporter_of
from manyfaces.train.exporters.faces import faces_of, own_faces
from manyfaces.train.exporters.latency import Latency, Stage, measured
from manyfaces.train.exporters.source import Source


@pytest.fixture(scope="module")
def encoder() -> Iterator[Encoder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VIT, "tiny", ViTShape(16, 2, heads=2, patch_px=8))
        yield made_encoder(ViT(size="tiny", embedding_dim=8))


def of_run(encoder: Encoder, dataset: Path, folder: Path, **config: Any) -> Source:
    """The source that a run's checkpoint at step 40 is."""
    settings = Config(
        run=Run(name="secret-free", dir=str(folder)),
        data=Data(path=str(dataset), image_px=32),
        model=MobileFaceNet(scale=1),
        **config,
    )
    state = RunState(
        config=settings,
        dataset=open_dataset(dataset).manifest.fingerprint,
        num_classes=20,
        seed=0,
        step=40,
        position=640,
    )
    checkpoint = folder / "secret-free" / "checkpoints" / "step-00000040"
    return Source(encoder, "run secret-free, step 40", checkpoint, state)


def carded(source: Source, out: Path, **more: Any) -> str:
    """The card of a file that is written."""
    export(source, Request(exporter_of(None, out), out, num_images=4, **more))
    return out.with_name(f"{out.name}.md").read_text()


def test_a_card_says_data_recipe_results_and_what_is_missing(
    encoder: Encoder, dataset_path: Path, tmp_path: Path
) -> None:
    source = of_run(encoder, dataset_path, tmp_path)
    text = carded(source, tmp_path / "a.safetensors")
    header, _, body = text.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(header)["license"] == "unknown"
    sections = [line for line in body.splitlines() if line.startswith("## ")]
    assert sections == [
        "## How it is used", "## Licence", "## Intended use", "## Limits", "## Training data",
        "## Results", "## Checked when it was exported", "## Recipe",
    ]  # fmt: skip
    assert body.count(MISSING) == 3
    manifest = open_dataset(dataset_path).manifest
    assert manifest.fingerprint in body
    assert f"| images | {manifest.num_images} |" in body
    assert "| images seen in training | 640, 40 steps |" in body
    assert "This checkpoint was not evaluated" in body
    assert "4 images of made)" in body
    recipe = yaml.safe_load(body.partition("```yaml\n")[2].partition("```")[0])
    assert recipe["data"]["path"] == "made"
    assert recipe["model"]["kind"] == "mobilefacenet"
    assert str(tmp_path) not in text
    assert str(dataset_path.parent) not in text

    said = Said(licence="CC BY 4.0", intended_use="Photo albums.", limits="No doors.")
    text = carded(source, tmp_path / "b.safetensors", said=said)
    assert "license: CC BY 4.0" in text
    assert (
        "## Licence\n\nCC BY 4.0\n\n## Intended use\n\nPhoto albums.\n\n## Limits\n\n- No doors."
        in text
    )
    assert text.count(MISSING) == 1  # the data's


def test_the_results_of_its_step_are_on_the_card(
    encoder: Encoder, dataset_path: Path, tmp_path: Path
) -> None:
    source = of_run(encoder, dataset_path, tmp_path)
    folder = tmp_path / "secret-free" / "evaluation"
    other = {"step": 39, "sets": {"lfw": {"pairs": 6000, "accuracy": 0.5}}}
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(other))
    assert "This checkpoint was not evaluated" in carded(source, tmp_path / "a.safetensors")
    lfw = {
        "pairs": 6000, "accuracy": 0.99123, "accuracy_std": 0.004, "auc": None,
        "tar": 0.75, "tar_interval": [0.7, 0.8], "tar_at_far": {"1e-03": 0.5},
    }  # fmt: skip
    rfw = {"gap": 0.02, "groups": {"African": {"TAR": 0.8, "FMR": 0.001}, "Asian": {"TAR": 0.9}}}
    told = {"step": 40, "sets": {"lfw": lfw, "rfw": rfw}}
    (folder / "step-00000040").mkdir()
    (folder / "step-00000040" / "evaluation.json").write_text(json.dumps(told))
    text = carded(source, tmp_path / "b.safetensors")
    assert "| accuracy | 0.9912 | ± 0.0040 (standard deviation) |" in text
    assert "| tar | 0.7500 | 0.7000 to 0.8000 (95 %) |" in text
    assert "| auc | not known |  |" in text
    assert "| pairs | 6,000 |  |" in text
    assert (
        "| | TAR | FMR |\n|---|---|---|\n| African | 0.8000 | 0.0010 |\n| Asian | 0.9000 | not known |"
        in text
    )
    (folder / "step-00000040" / "evaluation.json").write_text("{")
    assert "This checkpoint was not evaluated" in carded(source, tmp_path / "c.safetensors")


def test_images_are_spread_over_what_is_given(dataset_path: Path, tmp_path: Path) -> None:
    images = [np.full((8, 8, 3), 10 * n, np.uint8) for n in range(6)]
    for number, image in enumerate(images):
        folder = tmp_path / "faces" / str(number)
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / "a.png"), image)
    (tmp_path / "faces" / "list.txt").write_text("no image")
    found = faces_of(tmp_path / "faces", 3, (8, 8))
    assert found.images_NHWC[:, 0, 0, 0].tolist() == [0, 20, 40]
    assert found.told == "3 images of faces"
    assert faces_of(tmp_path / "faces", 99, (16, 12)).images_NHWC.shape == (6, 16, 12, 3)

    blobs = [cv2.imencode(".png", image)[1].tobytes() for image in images]
    write_bin(tmp_path / "p.bin", blobs, [True, False, True])
    assert faces_of(tmp_path / "p.bin", 2, (8, 8)).images_NHWC[:, 0, 0, 0].tolist() == [0, 30]
    of_dataset = faces_of(dataset_path, 5, (32, 32))
    assert of_dataset.images_NHWC.shape == (5, 32, 32, 3)
    assert of_dataset.images_NHWC.dtype == torch.uint8
    (tmp_path / "p.txt").write_text("")
    with pytest.raises(UserError, match="expected a folder of images, a dataset or a"):
        faces_of(tmp_path / "p.txt", 2, (8, 8))


def test_the_runs_own_images_are_taken(
    encoder: Encoder, dataset_path: Path, tmp_path: Path
) -> None:
    blobs = [cv2.imencode(".png", np.full((8, 8, 3), n, np.uint8))[1].tobytes() for n in range(4)]
    write_bin(tmp_path / "own.bin", blobs, [True, False])
    sets = Evaluation(protocols=(Verification(path=str(tmp_path / "own.bin")),))
    with_sets = of_run(encoder, dataset_path, tmp_path, evaluation=sets).config
    assert own_faces(with_sets, 4, (8, 8)).told == "4 images of own.bin"
    (tmp_path / "own.bin").unlink()
    assert own_faces(with_sets, 4, (8, 8)).told == "4 images of made"
    made = own_faces(None, 3, (8, 8))
    assert (made.real, made.images_NHWC.shape) == (False, (3, 8, 8, 3))


@pytest.mark.parametrize(
    ("total_ms", "lines"),
    [
        (40, ["100 ms here, with 60 ms left", "500 ms here, with 460", "1,000 ms here, with 960"]),
        (100, ["100 ms here, with 0 ms left", "500 ms here, with 400", "1,000 ms here, with 900"]),
        (600, ["1,000 ms here, with 400 ms left for detection"]),
        (1500, ["fits none of FRUITS' tracks here: 1500 ms a face"]),
    ],
)
def test_which_track_it_fits(total_ms: float, lines: list[str]) -> None:
    stages = (Stage("embed", total_ms / 4, total_ms / 2), Stage("match", 0, total_ms / 2))
    found = Latency(stages, "a machine")
    assert found.total_ms == total_ms
    machine, *told = found.lines()
    assert machine.startswith("measured on one core of a machine")
    assert len(told) == len(lines)
    assert all(part in line for part, line in zip(lines, told, strict=True))


def test_each_stage_is_timed_on_one_core(
    encoder: Encoder, dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_SECONDS", 0.01)
    threads, seen = torch.get_num_threads(), []

    def opened() -> Encoder:
        seen.append(torch.get_num_threads())
        return encoder

    found = measured(opened)
    assert (seen, torch.get_num_threads()) == ([1], threads)
    names = [stage.name for stage in found.stages]
    assert [name.split()[0] for name in names] == ["decode", "align", "embed", "match"]
    assert all(0 < stage.median_ms <= stage.slowest_ms for stage in found.stages)
    source = of_run(encoder, dataset_path, tmp_path)
    text = carded(source, tmp_path / "a.safetensors", latency=True)
    assert "## Latency\n\n- decode (250 px JPEG): " in text
    assert "measured on one core of " in text
