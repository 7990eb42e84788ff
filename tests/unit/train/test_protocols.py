"""Protocols: opened by configuration, of one's own, their images checked and embedded once, and
shared by ranks."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest
import torch
from launcher import run_ranks
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import Tensor, nn

from manyfaces.configs.errors import UserError
from manyfaces.configs.identity import identity
from manyfaces.configs.load import dump, load
from manyfaces.configs.node import PATH
from manyfaces.configs.paths import absolute
from manyfaces.configs.protocols.protocol import Protocol as ProtocolConfig
from manyfaces.configs.protocols.verification import Verification as VerificationConfig
from manyfaces.configs.schema import Config
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.draw_pairs import draw_pairs
from manyfaces.data.sources.verification_bin import write_bin
from manyfaces.data.store.samples import Store
from manyfaces.models.backbones.output import Output
from manyfaces.train.evaluation import metrics
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.evaluation.operating_points import Roc
from manyfaces.train.evaluation.result import Quantity, Result
from manyfaces.train.protocols import open as opening
from manyfaces.train.protocols.open import check_images, names, open_all, open_protocols
from manyfaces.train.protocols.protocol import Protocol
from manyfaces.train.protocols.verification import Verification

HW = (32, 32)
CPU = torch.device("cpu")
MINE = '''
import numpy as np
from manyfaces.train.evaluation.result import Quantity, Result
from manyfaces.train.protocols.protocol import Protocol

class Spread(Protocol):
    """How far apart the images of a file lie."""
    quantities = (Quantity("spread", "mean distance", "spread", ".3f"),)

    def __init__(self, path, times=1):
        self.path, self.times = path, times

    def images(self):
        with open(self.path, "rb") as file:
            return [file.read()] * self.times

    def result(self, embeddings_ND):
        return Result(self.name, self.quantities, {"spread": float(np.ptp(embeddings_ND))})
'''


class Pixels(nn.Module):
    """An embedding that one can compute by hand, as a network with several branches gives it: sums
    over the columns of the first channel."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, images_NCHW: Tensor) -> Output:
        assert not self.training
        self.batches.append(len(images_NCHW))
        return Output({"other": images_NCHW.sum((1, 2, 3)), "main": images_NCHW[:, 0].sum(1)})


def config(**evaluation: object) -> Config:
    return Config.model_validate(
        {
            "model": {"kind": "mobilefacenet", "embedding_dim": HW[0]},
            "data": {"image_px": HW[0]},
            "evaluation": evaluation,
        }
    )


def embedder(module: nn.Module, **options: int) -> Embedder:
    return Embedder(module, config().model, HW, CPU, **options)


@pytest.fixture(scope="module")
def blobs(dataset: Dataset) -> list[bytes]:
    return [blob.tobytes() for blob in Store(dataset.part).read(range(40))]


class Listed(Protocol):
    """Images as they are given, and their embeddings as a table."""

    quantities = (Quantity("images", "images", "images", ".0f"),)

    def __init__(self, blobs: Sequence[bytes]) -> None:
        self.name, self.blobs = "listed", blobs

    def images(self) -> Sequence[bytes]:
        return self.blobs

    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        first = {str(row): float(value) for row, value in enumerate(embeddings_ND[:, 0])}
        return Result(
            self.name, self.quantities, {"images": len(embeddings_ND)}, tables={"first": first}
        )


def test_repeated_images_are_embedded_once_and_stand_wherever_they_are(blobs: list[bytes]) -> None:
    places = np.random.default_rng(0).integers(0, 23, 60)
    module = Pixels()
    done: list[int] = []
    result = evaluate(
        Listed([blobs[i] for i in places]), embedder(module, batch_size=10), done.append
    )
    alone = embedder(module).embed(blobs).numpy()
    num_distinct = len(set(places.tolist()))
    assert sum(module.batches[:-1]) == sum(done) == num_distinct < 60
    assert max(module.batches[:-1]) == 10
    assert list(result.tables["first"].values()) == alone[places, 0].tolist()


def test_an_embedding_is_that_of_the_main_branch_and_with_its_mirror_image_the_sum(
    blobs: list[bytes],
) -> None:
    mine = embedder(Pixels().train(), batch_size=7)
    alone, both = mine.embed(blobs), mine.embed(iter(blobs), flip="sum")
    assert mine.module.training  # as it was
    assert alone.shape == (40, HW[1])
    assert alone.dtype == torch.float32
    assert torch.allclose(both, alone + alone.flip(1), atol=1e-4)
    side_by_side = mine.embed(blobs, flip="concatenate")
    assert torch.allclose(side_by_side, torch.cat([alone, alone.flip(1)], 1), atol=1e-4)
    assert mine.embed([], flip="concatenate").shape == (0, 2 * HW[1])
    assert mine.embed([]).shape == (0, HW[1])
    pixels_NHWC = torch.randint(0, 256, (3, *HW, 3), dtype=torch.uint8)
    expected = ((pixels_NHWC[..., 0].float() - 127.5) / 127.5).sum(1)
    assert torch.allclose(mine.embed_pixels(pixels_NHWC), expected, atol=1e-4)


def test_parts_that_are_frozen_in_training_stay_so(blobs: list[bytes]) -> None:
    module = nn.Sequential(Pixels(), nn.Module()).train()
    module[1].eval()
    module.forward = lambda images: module[0](images)
    embedder(module).embed(blobs[:2])
    assert [module.training, module[0].training, module[1].training] == [True, True, False]


def test_a_stream_leaves_out_what_cannot_be_decoded(blobs: list[bytes]) -> None:
    torn = blobs[1][:100]
    batches = [("a", [blobs[0], torn, blobs[2]]), ("b", [torn, torn]), ("c", [blobs[3]])]
    got = dict(embedder(Pixels(), batch_size=3).stream(batches))
    assert {key: batch.rows_N.tolist() for key, batch in got.items()} == {
        "a": [0, 2],
        "b": [],
        "c": [0],
    }
    alone = embedder(Pixels()).embed([blobs[0], blobs[2]])
    assert torch.equal(got["a"].embeddings_ND, alone)
    assert got["b"].embeddings_ND.shape == (0, HW[1])
    with pytest.raises(UserError, match=r"^image 4 is not a whole, decodable JPEG; use an intact"):
        embedder(Pixels(), batch_size=3).embed([*blobs[:4], torn])


def test_verification_is_the_metrics_of_its_pairs(dataset: Dataset, tmp_path: Path) -> None:
    blobs, same = draw_pairs(dataset.part, 60, seed=3)
    write_bin(tmp_path / "faces.bin", blobs, same)
    both, alone = open_protocols(
        config(
            pairs=[str(tmp_path / "faces.bin")],
            protocols=[
                {
                    "kind": "verification",
                    "path": str(tmp_path / "faces.bin"),
                    "flip": "none",
                    "result_name": "faces-unflipped",
                }
            ],
        )
    )
    assert isinstance(both, Verification)
    for protocol in (both, alone):
        result = evaluate(protocol, embedder(Pixels(), batch_size=32))
        embeddings = embedder(Pixels()).embed(blobs, flip=protocol.flip).numpy()
        folds = metrics.kfold(metrics.squared_distances(embeddings), np.array(same))
        scores = metrics.cosine_scores(embeddings)
        assert result.scalars["accuracy"] == folds.accuracy_F.mean()
        assert result.deviations["accuracy"] == folds.accuracy_F.std()
        assert result.scalars["auc"] == Roc.of(scores, np.array(same)).auc
        assert result.scalars["threshold"] == 1 - folds.threshold_F.mean() / 2
        low, high = result.intervals["accuracy"]
        assert low <= folds.accuracy_F.mean() <= high
        for kind, worst in (("genuine", min), ("impostor", max)):
            examples = result.examples[f"hardest {kind} pairs"]
            chosen = scores[np.array(same) == (kind == "genuine")]
            assert examples[0].score == worst(chosen)
            assert len(examples) == 12
            pair = scores.tolist().index(examples[0].score)
            shown = [np.asarray(image).tobytes() for image in examples[0].images]
            assert shown == blobs[2 * pair : 2 * pair + 2]
        assert result.name == protocol.name
    assert [(each.name, each.flip) for each in (both, alone)] == [
        ("faces", "sum"),
        ("faces-unflipped", "none"),
    ]
    assert len(both.distinct.images) < 120


def test_an_image_that_is_not_whole_is_told_before_anything_is_embedded(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_BATCH_SIZE", 8)
    blobs, same = draw_pairs(dataset.part, 20, seed=3)
    twice = blobs.index(blobs[31])
    blobs = [blob if blob != blobs[31] else blob[:200] for blob in blobs]
    write_bin(tmp_path / "faces.bin", blobs, same)
    with pytest.raises(
        UserError, match=rf"faces\.bin: image {twice} is not a whole, decodable JPEG; use an intact"
    ):
        check_images(open_protocols(config(pairs=[str(tmp_path / "faces.bin")])), HW)


def test_two_results_of_one_name_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    path = str(tmp_path / "faces.bin")
    write_bin(Path(path), *draw_pairs(dataset.part, 20, seed=3))
    with pytest.raises(UserError, match="2 protocols have a result called faces; rename a file"):
        open_protocols(config(pairs=[path], protocols=[{"kind": "verification", "path": path}]))


def test_two_sets_of_one_file_name_stay_two(dataset: Dataset, tmp_path: Path) -> None:
    blobs, same = draw_pairs(dataset.part, 20, seed=3)
    paths = [tmp_path / name / "lfw.bin" for name in ("a/112", "b/112", "c")]
    for path in paths:
        path.parent.mkdir(parents=True)
        write_bin(path, blobs, same)
    every = [VerificationConfig(path=str(path)) for path in paths]
    assert names(every[:1], {}) == ["lfw"]
    assert names(every, {}) == ["a-112-lfw", "b-112-lfw", "c-lfw"]
    assert [each.name for each in open_all(every)] == ["a-112-lfw", "b-112-lfw", "c-lfw"]
    # One that is in a report keeps its name, and others are told apart from it.
    taken = {"lfw": every[0].source(), "112-lfw": "another"}
    assert names(every[:1], taken) == ["lfw"]
    assert names(every[1:], taken) == ["b-112-lfw", "c-lfw"]
    named = every[1].model_copy(update={"result_name": "lfw"})
    assert names([every[0], named], {}) == ["112-lfw", "lfw"]
    with pytest.raises(
        UserError, match=r"^lfw: a result of this name is there, and it is of other"
    ):
        names([named], taken)
    unflipped = every[0].model_copy(update={"flip": "none"})
    with pytest.raises(UserError, match="2 protocols have a result called lfw; rename a file"):
        names([every[0], unflipped], {})


class Lazy(Listed):
    """Images that are read when they are taken, told apart by their numbers."""

    reads_lazily = True

    def __init__(self, blobs: Sequence[bytes], keys: Sequence[int]) -> None:
        super().__init__(blobs)
        self.read: list[int] = []
        self.told = keys

    def images(self) -> Sequence[bytes]:
        return Reading(self.blobs, self.read)

    def keys(self) -> Sequence[int]:
        return self.told


class Reading(Sequence[bytes]):
    """Notes which images are taken."""

    def __init__(self, blobs: Sequence[bytes], read: list[int]) -> None:
        self.blobs, self.read = blobs, read

    def __len__(self) -> int:
        return len(self.blobs)

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
        self.read.append(index)
        return self.blobs[index]


def test_images_that_are_read_lazily_are_read_once_and_by_batches(blobs: list[bytes]) -> None:
    numbers = [0, 1, 2, 1, 0, *range(3, 30)]
    protocol = Lazy([blobs[number] for number in numbers], numbers)
    check_images([protocol], HW)
    assert len(protocol.distinct.images) == 30
    assert protocol.read == []  # not to tell them apart, nor to check them
    ahead: list[int] = []
    module = Pixels()
    told = lambda images: ahead.append(len(protocol.read) - sum(module.batches))  # noqa: E731
    result = evaluate(protocol, embedder(module, batch_size=5), told)
    assert protocol.read == [0, 1, 2, *range(5, 32)]
    assert max(ahead) == 5  # one batch
    alone = embedder(Pixels()).embed(blobs).numpy()
    assert list(result.tables["first"].values()) == alone[numbers, 0].tolist()
    torn = Lazy([*blobs[:3], b"no image"], range(4))
    with pytest.raises(UserError, match=r"^listed: image 3 is not a whole, decodable JPEG"):
        evaluate(torn, embedder(Pixels()))


def test_what_an_earlier_version_read_of_a_protocol_is_refused(
    blobs: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        MINE.replace("    quantities", "    mirrored = True\n    quantities")
    )
    own = {"kind": "custom", "file": str(tmp_path / "mine.py"), "name": "Spread"}
    tree = config(protocols=[{**own, "parameters": {"path": str(tmp_path / "face.jpg")}}])
    with pytest.raises(
        UserError, match=r"^Spread: Spread\.mirrored is not read any more; set flip"
    ):
        open_protocols(tree)


def test_a_protocol_of_ones_own(blobs: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "face.jpg").write_bytes(blobs[0])
    own = {"kind": "custom", "file": str(tmp_path / "mine.py"), "name": "Spread"}
    own["parameters"] = {"path": str(tmp_path / "face.jpg"), "times": 3}
    tree = config(protocols=[own])
    (tmp_path / "again.yaml").write_text(dump(tree))
    assert load(str(tmp_path / "again.yaml")) == tree
    (protocol,) = open_protocols(tree)
    module = Pixels()
    result = evaluate(protocol, embedder(module))
    assert module.batches == [1]
    assert list(result.metrics()) == ["Spread/spread"]
    assert result.scalars["spread"] == float(np.ptp(embedder(module).embed(blobs[:1]).numpy()))

    (tmp_path / "face.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^Spread: image 0 is not a whole, decodable JPEG"):
        check_images(open_protocols(tree), HW)
    (tmp_path / "face.jpg").unlink()
    with pytest.raises(
        UserError, match=r"^Spread: FileNotFoundError: .*face.jpg' \(.*mine.py, line 1[0-9]\)$"
    ):
        check_images(open_protocols(tree), HW)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ('"spread": float', '"spred": float', r"^Spread: the result has the scalars spred, "),
        ("quantities = (", "numbers = (", r"^Spread: Spread.quantities has to be a sequence of "),
        ('quantities = (Quantity("spread", "mean distance", "spread", ".3f"),)', "quantities = 3",
         r"^Spread: Spread.quantities has to be a sequence of "),
        ('(Quantity("spread", "mean distance", "spread", ".3f"),)', "['spread']",
         r"^Spread: Spread.quantities has to be a sequence of "),
        ("np.ptp(", r"self.nothing(", r"^Spread: AttributeError: 'Spread' object has no attribute "
         r"'nothing' \(.*mine.py, line 18\)$"),
        ("return Result(", r"raise ValueError('two\nlines'); (",
         r"^Spread: ValueError: two lines \(.*mine.py, line 18\)$"),
        ("return Result(", "Result(", r"^Spread: result\(\) gives NoneType; give a .*\.Result$"),
    ],
)  # fmt: skip
def test_a_fault_of_ones_own_protocol_is_one_line(
    right: str, wrong: str, message: str, blobs: list[bytes], tmp_path: Path
) -> None:
    assert MINE.replace(right, wrong) != MINE
    (tmp_path / "mine.py").write_text(MINE.replace(right, wrong))
    (tmp_path / "face.jpg").write_bytes(blobs[0])
    own = {"kind": "custom", "file": str(tmp_path / "mine.py"), "name": "Spread"}
    tree = config(protocols=[{**own, "parameters": {"path": str(tmp_path / "face.jpg")}}])
    with pytest.raises(UserError, match=message):
        evaluate(open_protocols(tree)[0], embedder(Pixels()))


class InFolder(Listed):
    """The images of a folder: a protocol with a word of its own."""

    def __init__(self, images: str, every: int) -> None:
        super().__init__([path.read_bytes() for path in sorted(Path(images).iterdir())[::every]])


class InFolderConfig(ProtocolConfig):
    """Declares the word; nothing else knows it."""

    kind: Literal["in_folder"] = "in_folder"
    target: ClassVar[str] = f"{__name__}.InFolder"

    images: Annotated[str, PATH]
    every: PositiveInt = 1


def test_a_new_kind_is_a_class_and_its_declaration(
    blobs: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, blob in enumerate(blobs[:6]):
        (tmp_path / f"{number}.jpg").write_bytes(blob)
    own = {"kind": "in_folder", "images": ".", "every": 2}
    monkeypatch.chdir(tmp_path)
    tree = config(protocols=[own])
    (protocol,) = open_protocols(tree)
    assert absolute(tree).evaluation.protocols[0].images == str(tmp_path)  # type: ignore[attr-defined]
    assert "evaluation.protocols[0].images" not in identity(tree)
    result = evaluate(protocol, embedder(Pixels()))
    assert result.name == "in_folder"
    assert result.metrics() == {"in_folder/images": 3.0}
    with pytest.raises(ValueError, match="greater than 0"):
        config(protocols=[own | {"every": 0}])


def test_results_are_called_after_their_files() -> None:
    own = [
        {"kind": "custom", "file": "mine.py", "name": "X"},
        {"kind": "verification", "path": "b.bin"},
    ]
    evaluation = config(pairs=["a.bin"], protocols=own).evaluation
    assert [protocol.called() for protocol in evaluation.all_protocols()] == ["a", "X", "b"]


def on_a_rank(folder: str) -> tuple[str, list[float]]:
    """What evaluating a broken set tells, and a whole set's embeddings."""
    import torch.distributed as dist

    blobs, torn = pickle.loads(Path(folder, "blobs").read_bytes())
    with pytest.raises(UserError) as error:
        evaluate(Listed(torn), embedder(Pixels(), batch_size=4))
    module = Pixels()
    result = evaluate(Listed(blobs), embedder(module, batch_size=4))
    assert sum(module.batches) == (10 if dist.get_rank() == 0 else 11)
    return str(error.value), list(result.tables["first"].values())


def test_ranks_share_the_images_and_a_fault_of_one_is_told_to_all(
    blobs: list[bytes], tmp_path: Path
) -> None:
    torn = [*blobs[:17], blobs[17][:150], *blobs[18:21]]
    (tmp_path / "blobs").write_bytes(pickle.dumps((blobs[:21], torn)))
    ranks = run_ranks(2, on_a_rank, str(tmp_path), timeout_s=100)
    assert ranks[0] == ranks[1]
    message = "rank 1: listed: image 17 is not a whole, decodable JPEG; use an intact copy"
    assert ranks[0][0] == message
    alone = evaluate(Listed(blobs[:21]), embedder(Pixels()))
    assert ranks[0][1] == list(alone.tables["first"].values())
