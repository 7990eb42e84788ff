"""Every format of an exported network: what is in the file is the network in training, for any
number of images, and a network that comes out as another leaves no file."""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from made_encoders import PX, made_encoder
from torch.nn import functional as F

from manyfaces.configs.adapters.lora import LoRA
from manyfaces.configs.backbones.backbone import Backbone
from manyfaces.configs.backbones.iresnet import IRESNET_BLOCKS, IResNet
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.backbones.timm import Timm
from manyfaces.configs.backbones.vit import VIT, ViT, ViTShape
from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.verification import Verification
from manyfaces.data.sources.verification_bin import write_bin
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.output import as_output
from manyfaces.train import load_model
from manyfaces.train.cli.main import main
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.evaluation.exported import read_facts, write_exported
from manyfaces.train.evaluation.onnx_network import read_onnx_facts
from manyfaces.train.exporters.export import Request, export
from manyfaces.train.exporters.exporter import Exporter, Job, exporter_of, exporters
from manyfaces.train.exporters.source import Source
from manyfaces.train.protocols.open import open_all

LORA = (LoRA(rank=2, targets=("q", "v")),)
SETTINGS: dict[str, Backbone] = {
    "iresnet": IResNet(depth=18, embedding_dim=16, pixel_mean=(120, 110, 100)),
    "mobilefacenet": MobileFaceNet(scale=1, embedding_dim=16),
    "vit": ViT(size="tiny", embedding_dim=16, adapters=LORA),
}
IMAGES_NHWC = np.random.default_rng(0).integers(0, 256, (5, PX, PX, 3), np.uint8)


@pytest.fixture(scope="module")
def encoders() -> Iterator[dict[str, Encoder]]:
    """One of each kind, with few blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(IRESNET_BLOCKS, 18, (1, 1, 1, 1))
        patch.setitem(VIT, "tiny", ViTShape(16, 2, heads=2, patch_px=8))
        few = "manyfaces.models.backbones.mobilefacenet.MOBILEFACENET_BLOCKS"
        patch.setattr(few, (1, 1, 0, 0))
        yield {name: made_encoder(settings) for name, settings in SETTINGS.items()}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images."""
    folder = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(1)
    for number in range(24):
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        image = cv2.resize(coarse, (PX, PX), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


def source(encoder: Encoder) -> Source:
    return Source(encoder, "run r, step 3", Path("/somewhere/r"))


def write(encoder: Encoder, out: Path, faces: Path | None, to: str = "", **more: Any) -> Any:
    exporter = exporter_of(to or None, out)
    return export(source(encoder), Request(exporter, out, check=faces, num_images=6, **more))


def plain(encoder: Encoder) -> np.ndarray:
    """What the network gives for the images, from its definition: pixels normalised by hand."""
    mean, std = (np.array(v) for v in (encoder.model.pixel_mean, encoder.model.pixel_std))
    images = ((IMAGES_NHWC - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.no_grad():
        embeddings = as_output(encoder.backbone.eval()(torch.from_numpy(images)))
    return embeddings.embeddings["main"].numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return F.cosine_similarity(torch.from_numpy(a), torch.from_numpy(b)).numpy()


@pytest.mark.parametrize("name", SETTINGS)
def test_onnx_takes_pixels_in_any_number(
    name: str, encoders: dict[str, Encoder], faces: Path, tmp_path: Path
) -> None:
    encoder, file = encoders[name], tmp_path / "face.onnx"
    done = write(encoder, file, faces)
    assert done.agreement.least > 0.99999
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    pixels_NCHW = IMAGES_NHWC.transpose(0, 3, 1, 2).astype(np.float32)
    [found] = session.run(None, {"images": pixels_NCHW})
    np.testing.assert_allclose(found, plain(encoder), rtol=1e-3, atol=1e-4)
    [alone] = session.run(["embeddings"], {"images": pixels_NCHW[:1]})
    np.testing.assert_allclose(alone, found[:1], rtol=1e-3, atol=1e-4)

    model = onnx.load(file)
    # How InsightFace's package tells that a network normalises its input itself.
    first = [node.name for node in model.graph.node[:8]]
    assert any(n.startswith(("Sub", "node_sub")) for n in first)
    assert [node.op_type for node in model.graph.node[:2]] == ["Sub", "Mul"]
    facts = read_onnx_facts(file)
    assert facts.model == SETTINGS[name].model_copy(update={"adapters": ()})
    write(encoder, tmp_path / "face.safetensors", faces)
    assert read_facts(tmp_path / "face.safetensors") == facts
    assert str(Path(__file__).parents[3]).encode() not in file.read_bytes()

    opened = load_model(file)
    np.testing.assert_allclose(
        opened.embed(list(IMAGES_NHWC)),
        load_model(tmp_path / "face.safetensors").embed(list(IMAGES_NHWC)),
        atol=1e-5,
    )
    assert opened.embedding_dim == 16
    assert opened.image_hw == (PX, PX)
    with pytest.raises(UserError, match="an ONNX file holds no network of torch's"):
        _ = opened.module


def test_each_format_holds_the_network(
    encoders: dict[str, Encoder], faces: Path, tmp_path: Path
) -> None:
    encoder = encoders["vit"]
    expected = plain(encoder)
    pixels_NCHW = torch.from_numpy(IMAGES_NHWC).permute(0, 3, 1, 2).float()

    done = write(encoder, tmp_path / "a.pt2", faces)
    program = torch.export.load(tmp_path / "a.pt2").module()
    for number in (1, 5):
        found = program(pixels_NCHW[:number]).numpy()
        np.testing.assert_allclose(found, expected[:number], rtol=1e-3, atol=1e-4)
    assert done.sha256 == hashlib.sha256((tmp_path / "a.pt2").read_bytes()).hexdigest()

    write(encoder, tmp_path / "folder", faces, to="folder")
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    found = load_model(tmp_path / "folder").embed(list(IMAGES_NHWC), mirrored=False)
    np.testing.assert_allclose(found, unit, atol=1e-5)
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["image_size"] == [PX, PX]
    pixels = json.loads((tmp_path / "folder" / "preprocessor_config.json").read_text())
    assert pixels["image_mean"] == pytest.approx([0.5] * 3)
    assert pixels["rescale_factor"] == pytest.approx(1 / 255)

    write(encoder, tmp_path / "a.pth", faces)
    weights = torch.load(tmp_path / "a.pth", weights_only=True)
    assert not [name for name in weights if "lora" in name]
    write(encoder, tmp_path / "half.safetensors", faces, precision="float16")
    write(encoder, tmp_path / "whole.safetensors", faces)
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]
    half = load_model(tmp_path / "half.safetensors").embed(list(IMAGES_NHWC), mirrored=False)
    assert (half * unit).sum(1) == pytest.approx(1, abs=1e-3)
    for name in ("a.pt2", "a.pth", "half.safetensors", "whole.safetensors"):
        card = (tmp_path / f"{name}.md").read_text()
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() in card


def test_onnx_in_16_bits(encoders: dict[str, Encoder], faces: Path, tmp_path: Path) -> None:
    encoder, file = encoders["vit"], tmp_path / "half.onnx"
    assert 0.999 < write(encoder, file, faces, precision="float16").agreement.least <= 1
    found = load_model(file).embed(list(IMAGES_NHWC), mirrored=False)
    assert min(cosines(found, plain(encoder))) > 0.999
    weights = [each for each in onnx.load(file).graph.initializer if len(each.dims) in (2, 4)]
    assert {each.data_type for each in weights} == {onnx.TensorProto.FLOAT16}
    assert read_onnx_facts(file).precision == "float16"


def test_onnx_in_8_bits(encoders: dict[str, Encoder], faces: Path, tmp_path: Path) -> None:
    encoder, file, pairs = encoders["mobilefacenet"], tmp_path / "few.onnx", tmp_path / "p.bin"
    images = [each.read_bytes() for each in sorted(faces.iterdir())]
    write_bin(pairs, [images[n % 7] for n in range(20)] + images[:20], [True, False] * 10)
    done = write(encoder, file, None, precision="int8", calibrate=faces, pairs=pairs)
    assert 0.9 < done.agreement.mean < 1
    nodes = [node.op_type for node in onnx.load(file).graph.node]
    assert nodes.count("DequantizeLinear") > nodes.count("Conv")
    assert file.stat().st_size < 0.5 * 4 * sum(w.numel() for w in encoder.backbone.parameters())
    assert read_onnx_facts(file).precision == "int8"

    told = (tmp_path / "few.onnx.md").read_text()
    assert "Calibrated on 6 images of faces" in told
    before, after = done.scores.before.scalars["accuracy"], done.scores.after.scalars["accuracy"]
    assert f"p, accuracy (10-fold) {before:.2%} -> {after:.2%} (" in told
    embedder = Embedder.of(encoder, 8)
    [protocol] = open_all([Verification(path=str(pairs))])
    assert evaluate(protocol, embedder).scalars["accuracy"] == before


@pytest.mark.slow
def test_a_network_of_timms(faces: Path, tmp_path: Path) -> None:
    small = {"depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": 8}
    settings = Timm(name="vit_tiny_patch16_224", embedding_dim=8, parameters=small)
    encoder, file = made_encoder(settings), tmp_path / "timm.onnx"
    write(encoder, file, faces)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    pixels_NCHW = IMAGES_NHWC.transpose(0, 3, 1, 2).astype(np.float32)
    [found] = session.run(None, {"images": pixels_NCHW})
    np.testing.assert_allclose(found, plain(encoder), rtol=1e-3, atol=1e-4)


def test_another_network_leaves_no_file(
    encoders: dict[str, Encoder],
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder, there = encoders["vit"], [exporter_of(w, None) for w in ("safetensors", "folder")]

    def other(self: Exporter, job: Job, path: Path) -> None:
        made = made_encoder(ViT(size="tiny", embedding_dim=16))
        originals[self.word](self, Job(made, job.facts), path)

    originals = {each.word: type(each).write for each in there}
    for each in there:
        with monkeypatch.context() as patch:
            patch.setattr(type(each), "write", other)
            with pytest.raises(
                UserError, match=r"not written: the exported network is another"
            ) as e:
                write(encoder, tmp_path / f"a{each.ending}", faces, to=each.word)
            assert "\n" not in str(e.value)
            assert list(tmp_path.iterdir()) == []

    def stopped(self: Exporter, job: Job, path: Path) -> None:
        originals["safetensors"](self, job, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(there[0]), "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        write(encoder, tmp_path / "a.safetensors", faces)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_told(
    encoders: dict[str, Encoder], faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoders["vit"]

    def refused(name: str, to: str = "", images: Path | None = faces, **more: Any) -> str:
        with pytest.raises(UserError) as caught:
            write(encoder, tmp_path / name, images, to=to, **more)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "ends in one of .onnx, .safetensors, .pth, .pt2" in refused("a.tflite")
    assert "the formats are folder, mlflow, onnx, safetensors" in refused("a", to="tflite")
    assert "expected a name that ends in .onnx" in refused("a.pt2", to="onnx")
    assert "--to torch_export has float32, float16" in refused("a.pt2", precision="int8")
    assert "give --calibrate with a folder" in refused("a.onnx", precision="int8")
    assert "no such folder; make it first" in refused("nowhere/a.pth")
    (tmp_path / "a.pth.md").write_text("somebody's")
    assert "a.pth.md: exists; give another name" in refused("a.pth")
    assert "expected a folder of images, a dataset or a .bin" in refused(
        "b.pth", images=tmp_path / "x"
    )
    (tmp_path / "empty").mkdir()
    assert "no image in it" in refused("b.pth", images=tmp_path / "empty")
    (tmp_path / "empty" / "torn.jpg").write_bytes(b"\xff\xd8")
    assert "torn.jpg is not a whole, decodable image" in refused("b.pth", images=tmp_path / "empty")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        assert "needs the package onnxscript: pip install 'manyfaces[onnx]'" in refused("a.onnx")
    monkeypatch.setattr("manyfaces.train.exporters.onnx._MOST_BYTES", 1000)
    assert "one ONNX file holds less than 2" in refused("a.onnx")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_made_faces_are_taken_where_there_are_no_real_ones(
    encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    done = write(encoders["vit"], tmp_path / "a.safetensors", None)
    assert not done.is_checked_on_faces
    assert "6 made faces, as no real ones are at hand" in done.agreement.images


def test_every_format_is_a_file_of_the_folder() -> None:
    words = [each.word for each in exporters()]
    assert words == ["folder", "mlflow", "onnx", "safetensors", "state_dict", "torch_export"]
    for each in exporters():
        assert each.described
        assert "{name}" in each.usage
        assert each.usage.format(name="x")


def test_the_verb(
    encoders: dict[str, Encoder], faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "face.safetensors"
    write_exported(encoders["mobilefacenet"], file, "run r, step 3")
    words = ["--check", faces, "--images", "3", "--licence", "CC BY 4.0", "--limits", "No doors."]
    assert main([*map(str, ["export", file, "--out", tmp_path / "face.pth", *words])]) == 0
    told = capsys.readouterr().out
    assert f"exported    {tmp_path / 'face.pth'}\n" in told
    assert "checked     cosine 1.000000 on average, 1.000000 at least (3 images of" in told
    card = (tmp_path / "face.pth.md").read_text()
    assert "## Licence\n\nCC BY 4.0" in card
    assert "- No doors." in card
    assert "Made from the file face.safetensors" in card
    for mistake, line in (
        ([file], "give OUT, a new file such as face.onnx, or --to FORMAT"),
        ([file, "a.pth", "--out", "b.pth"], "both a.pth and --out b.pth; give one of them"),
        ([file, tmp_path / "b.pth", "--register", "x"], "--register: only --to mlflow"),
        ([file, tmp_path / "b.pth", "--model", "vit"], "says itself which network it is"),
        ([file, tmp_path / "b.pth", "--model", "{kind: 3}"], "give a network such as"),
        ([tmp_path / "no", tmp_path / "b.pth"], "no trained network there"),
    ):
        assert main(["export", *map(str, mistake)]) == 2
        assert line in capsys.readouterr().err
