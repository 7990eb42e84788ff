"""A trained run in a program of one's own: three lines, whatever its weights lie in."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import forked, recipe
from safetensors import safe_open

from manyfaces.configs.backbones.custom import CustomBackbone
from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.store.samples import Stores
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train import __version__, load_model
from manyfaces.train.evaluation.exported import write_exported
from manyfaces.train.evaluation.model import Model
from manyfaces.train.evaluation.trained import open_trained


@pytest.fixture(scope="module")
def run(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = recipe(
        folder,
        dataset_path,
        train={"epochs": 1, "precision": "auto"},
        cluster={"workers": 1, "launcher": "process"},
    )
    done = forked("train", config)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "run"


@pytest.fixture(scope="module")
def jpegs(dataset_path: Path) -> list[bytes]:
    return [bytes(blob) for blob in Stores(open_dataset(dataset_path)).read(np.arange(8))]


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return load_model(run)


def test_embeddings_are_those_of_evaluation(model: Model, run: Path, jpegs: list[bytes]) -> None:
    found = model.embed(jpegs, batch_size=3)
    embedder = open_trained(run).embedder(batch_size=8)
    expected = torch.nn.functional.normalize(embedder.embed(jpegs, flip="sum"))
    # Sizes of batches change sums in bfloat16.
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-2)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    assert model.verify(jpegs[0], jpegs[1]) == pytest.approx(float(found[0] @ found[1]), abs=2e-2)
    assert model.verify(jpegs[0], jpegs[0]) == pytest.approx(1, abs=1e-3)


def test_paths_arrays_and_other_encodings(model: Model, jpegs: list[bytes], tmp_path: Path) -> None:
    pixels = [cv2.imdecode(np.frombuffer(each, np.uint8), cv2.IMREAD_COLOR_RGB) for each in jpegs]
    (tmp_path / "a.jpg").write_bytes(jpegs[0])
    cv2.imwrite(str(tmp_path / "b.png"), pixels[1][:, :, ::-1])
    larger = cv2.resize(pixels[3], None, fx=2, fy=2)
    given = [tmp_path / "a.jpg", str(tmp_path / "b.png"), pixels[2], larger, jpegs[4]]
    found = model.embed(given)
    expected = model.embed(jpegs[:5])
    assert (found * expected).sum(1) == pytest.approx(1, abs=2e-2)
    assert model.embed([]).shape == (0, model.embedding_dim)

    height, width = model.image_hw
    prepared = model.preprocess(given)
    assert prepared.shape == (5, 3, height, width)
    assert float(prepared.abs().max()) <= 1 + 1e-6
    with torch.no_grad():
        plain = model.module(prepared)
    assert plain.shape == (5, model.embedding_dim)
    unmirrored = model.embed(given, mirrored=False)
    cosines = (torch.nn.functional.normalize(plain).numpy() * unmirrored).sum(1)
    assert cosines == pytest.approx(1, abs=2e-2)
    assert not any(p.requires_grad for p in model.module.parameters())


def test_an_exported_file_is_the_same_model(
    model: Model, run: Path, jpegs: list[bytes], tmp_path: Path
) -> None:
    file = tmp_path / "face.safetensors"
    done = forked("export", run, file)
    assert done.returncode == 0, done.stderr
    with safe_open(file, "pt") as opened:
        assert "run, step 8" in opened.metadata()["manyfaces"]
        assert str(run.parent) not in opened.metadata()["manyfaces"]
    np.testing.assert_array_equal(load_model(file).embed(jpegs), model.embed(jpegs))
    newest = max((run / "checkpoints").glob("step-*"))
    np.testing.assert_array_equal(load_model(str(newest)).embed(jpegs), model.embed(jpegs))
    assert "exists" in forked("export", run, file).stderr
    assert "ends in one of .onnx, .safetensors" in forked("export", run, tmp_path / "a.tfl").stderr
    names = ["face.safetensors", "face.safetensors.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    card = (tmp_path / "face.safetensors.md").read_text()
    assert "run, step 8" in card
    assert str(run.parent) not in card


def test_an_exported_file_is_evaluated_as_its_run_is(
    run: Path, dataset_path: Path, tmp_path: Path
) -> None:
    pairs, file = tmp_path / "pairs.bin", tmp_path / "face.safetensors"
    for words in (
        ("data", "pairs", dataset_path, pairs, "--count", "40"),
        ("export", run, file),
        ("evaluate", file, "--pairs", pairs),
        ("evaluate", run, "--pairs", pairs),
    ):
        done = forked(*words)
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "face.safetensors.evaluation"
    theirs = json.loads((folder / "evaluation.json").read_text())["sets"]["pairs"]
    step = run / "evaluation" / "step-00000008" / "evaluation.json"
    ours = json.loads(step.read_text())["sets"]["pairs"]
    assert theirs["auc"] == pytest.approx(ours["auc"], abs=0.02)
    again = forked("evaluate", file)
    assert again.returncode == 2
    assert "face.safetensors: its configuration has no evaluation; give --pairs" in again.stderr


def test_an_onnx_file_is_the_same_model(
    model: Model, run: Path, jpegs: list[bytes], dataset_path: Path, tmp_path: Path
) -> None:
    file = tmp_path / "face.onnx"
    words = ["--check", dataset_path, "--images", 8, "--latency"]
    done = forked("export", run, "--to", "onnx", "--out", file, *words)
    assert done.returncode == 0, done.stderr
    assert "checked     cosine 1.0000" in done.stdout
    assert "embed " in done.stdout
    # Where the run was trained in bfloat16, load_model embeds in it; the graph is in float32.
    cosines = (load_model(file).embed(jpegs) * model.embed(jpegs)).sum(1)
    assert cosines == pytest.approx(1, abs=2e-2)
    assert load_model(file).verify(jpegs[0], jpegs[0]) == pytest.approx(1, abs=1e-5)


def test_torch_reads_the_backbone_that_goes_with_the_class_centres(
    model: Model, run: Path, tmp_path: Path
) -> None:
    centres, backbone = tmp_path / "centres.npy", tmp_path / "backbone.pth"
    done = forked("checkpoint", "export", run, centres, "--unit", "--backbone", backbone)
    assert done.returncode == 0, done.stderr
    weights = torch.load(backbone, weights_only=True)
    expected = model.encoder.backbone.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    rows = np.load(centres, mmap_mode="r")
    assert rows.shape[1] == model.embedding_dim
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    assert len((tmp_path / "centres.identities.txt").read_text().splitlines()) == len(rows)


OWN = """
from torch import nn

class Tied(nn.Module):
    def __init__(self, embedding_dim, image_hw):
        super().__init__()
        self.first = nn.Linear(3, embedding_dim)
        self.second = nn.Linear(3, embedding_dim)
        self.second.weight = self.first.weight

    def forward(self, images):
        return self.second(images.mean((2, 3))) + self.first(images.amax((2, 3)))
"""


def test_a_backbone_of_ones_own_is_exported_with_the_digest_of_its_file(tmp_path: Path) -> None:
    own = tmp_path / "tied.py"
    own.write_text(OWN)
    settings = CustomBackbone(file=str(own), name="Tied", embedding_dim=4)
    backbone = settings.build(image_hw=(8, 8))
    encoder = Encoder(backbone, settings, (8, 8), torch.device("cpu"), autocast=False)
    write_exported(encoder, tmp_path / "out.safetensors", "a test")
    images = [np.full((8, 8, 3), 9, np.uint8)]
    found = load_model(tmp_path / "out.safetensors").embed(images)
    np.testing.assert_allclose(found, Model(encoder).embed(images), rtol=1e-6)
    own.write_text(OWN + "# changed")
    with pytest.raises(UserError, match=r"a class of one's own in .*tied\.py, which is not there"):
        load_model(tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ("a.jpg", "give a list of images"),
        ([np.zeros((4, 4), np.uint8)], r"image 0 is uint8 \[4, 4\]; give uint8 RGB"),
        ([np.zeros((4, 4, 3))], r"image 0 is float64"),
        ([b"\xff\xd8 no image"], "image 0 is not a whole, decodable JPEG"),
        ([b"no image"], "image 0 is not a whole, decodable image"),
        ([b""], "image 0 is not a whole, decodable image"),
        (["nowhere.jpg"], "nowhere.jpg: cannot be read"),
        ([3], "image 0 is a int; give an array"),
    ],
)
def test_what_is_no_image_is_told(model: Model, images, told: str) -> None:
    with pytest.raises(UserError, match=told):
        model.embed(images)


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="device gpu: cannot be used"):
        load_model(tmp_path, device="gpu")
    with pytest.raises(UserError, match="no trained network there"):
        load_model(tmp_path / "nowhere")
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"text")
    with pytest.raises(UserError, match="is no whole safetensors file"):
        load_model(file)


def test_the_import_is_fast_and_starts_nothing() -> None:
    code = (
        "import sys, threading\n"
        "from manyfaces.train import __version__, load_model\n"
        "heavy = {'torch', 'ray', 'deepspeed', 'mlflow', 'nvidia', 'cv2', 'numpy'}\n"
        "print(sorted(heavy & sys.modules.keys()), threading.active_count(), __version__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"[] 1 {__version__}\n"
