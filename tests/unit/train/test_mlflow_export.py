"""A network as a model of MLflow's: images in, embeddings out, by its signature; registered where
that is asked for."""

from pathlib import Path

import numpy as np
import pytest
from made_encoders import PX, made_encoder

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.cli.main import main
from manyfaces.train.evaluation.exported import write_exported
from manyfaces.train.evaluation.model import Model

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its own code
IMAGES_NHWC = np.random.default_rng(0).integers(0, 256, (3, PX, PX, 3), np.uint8)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return made_encoder(MobileFaceNet(scale=1, embedding_dim=16))


@pytest.fixture
def exported(encoder: Encoder, tmp_path: Path) -> Path:
    file = tmp_path / "face.safetensors"
    write_exported(encoder, file, "run r, step 3")
    return file


def test_mlflow_opens_it_by_its_signature(encoder: Encoder, exported: Path, tmp_path: Path) -> None:
    import mlflow

    words = ["export", exported, tmp_path / "model", "--to", "mlflow", "--images", "2"]
    assert main(list(map(str, words))) == 0
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    [images] = model.metadata.signature.inputs.inputs
    [embeddings] = model.metadata.signature.outputs.inputs
    assert (images.type, images.shape) == (np.uint8, (-1, PX, PX, 3))
    assert (embeddings.type, embeddings.shape) == (np.float32, (-1, 16))
    found_ND = model.predict(IMAGES_NHWC)
    np.testing.assert_allclose(found_ND, Model(encoder).embed(list(IMAGES_NHWC)), atol=1e-6)
    with pytest.raises(mlflow.exceptions.MlflowException):
        model.predict(IMAGES_NHWC.astype(np.float64))
    files = [path.name for path in (tmp_path / "model").rglob("*")]
    assert not [name for name in files if name.endswith((".pkl", ".pth", ".pt", ".py"))]
    assert "README.md" in files


@pytest.mark.slow
def test_it_is_registered_where_that_is_asked_for(
    encoder: Encoder,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import mlflow

    words = ["export", exported, "--to", "mlflow", "--images", "2", "--register", "faces"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main([*map(str, words), "--out", str(tmp_path / "0")]) == 2
    assert "set MLFLOW_TRACKING_URI to MLflow's server" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for number in (1, 2):
        assert main([*map(str, words), "--out", str(tmp_path / str(number))]) == 0
        assert f"registered  models:/faces/{number}\n" in capsys.readouterr().out
    expected_ND = Model(encoder).embed(list(IMAGES_NHWC))
    found_ND = mlflow.pyfunc.load_model("models:/faces/2").predict(IMAGES_NHWC)
    np.testing.assert_allclose(found_ND, expected_ND, atol=1e-6)
