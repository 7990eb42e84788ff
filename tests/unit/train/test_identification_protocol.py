"""Protocol identification over lists of every kind, beside loops over the definition."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.configs.load import dump, load
from manyfaces.configs.protocols.identification import Identification as IdentificationConfig
from manyfaces.configs.schema import Config
from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.dataset.forget import forget
from manyfaces.data.store.samples import Store
from manyfaces.data.synthetic.dataset import synthesise
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.evaluation.nearest import unit
from manyfaces.train.protocols.identification import Identification
from manyfaces.train.protocols.open import open_protocols

DIM = 8


def embeddings(rows: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)


def saved(path: Path, rows: NDArray[np.float32], identities: list[str] | None = None) -> str:
    """A `.npy` with its identities beside it."""
    np.save(path, rows)
    if identities is not None:
        path.with_suffix(".txt").write_text("\n".join(identities) + "\n")
    return str(path)


class Lists:
    """A gallery of 12 people with three images each, probes of 10 of them and of 10 others, and
    distractors."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(5)
        people = embeddings(22, 1)
        self.gallery_of = np.repeat(np.arange(12), 3)
        self.probe_of = np.tile(np.arange(2, 22), 4)
        self.gallery = unit(people[self.gallery_of] + 1.2 * random.standard_normal((36, DIM)))
        self.probes = unit(people[self.probe_of] + 1.2 * random.standard_normal((80, DIM)))
        self.others = embeddings(150, 3)
        self.paths = {
            "gallery": saved(folder / "g.npy", self.gallery, [f"p{n}" for n in self.gallery_of]),
            "probes": saved(folder / "p.npy", self.probes, [f"p{n}" for n in self.probe_of]),
        }
        self.distractors = (
            saved(folder / "d.npy", self.others[:100]),
            saved(folder / "e.npy", self.others[100:]),
        )

    def ranked(self) -> list[list[tuple[float, int]]]:
        """Score and person of all entries for each probe, best first; -1 is a distractor."""
        entries = np.concatenate([self.gallery, unit(self.others)]).astype(np.float64)
        people = [*self.gallery_of.tolist(), *[-1] * len(self.others)]
        return [
            sorted(
                [(float(e @ p), who) for e, who in zip(entries, people, strict=True)],
                key=lambda each: -each[0],
            )
            for p in self.probes.astype(np.float64)
        ]


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Lists:
    return Lists(tmp_path_factory.mktemp("lists"))


def outcome(protocol: Identification, rows: NDArray[np.float32] | None = None):
    protocol.name = "made"
    return protocol.result(np.empty((0, DIM), np.float32) if rows is None else rows)


def test_ranks_and_the_open_set_are_those_of_the_definition(lists: Lists) -> None:
    protocol = Identification(**lists.paths, distractors=lists.distractors)
    result = outcome(protocol)
    ranked = lists.ranked()
    mated = [row for row in range(80) if lists.probe_of[row] < 12]
    for rank in (1, 5, 10, 20):
        hits = sum(lists.probe_of[row] in [who for _, who in ranked[row][:rank]] for row in mated)
        assert result.scalars[f"rank{rank}"] == hits / len(mated)
    others = sorted((ranked[row][0][0] for row in range(80) if row not in mated), reverse=True)
    for fpir in (1e-1, 1e-2):
        threshold = others[max(int(len(others) * fpir) - 1, 0)]
        hits = sum(
            ranked[row][0][1] == lists.probe_of[row] and ranked[row][0][0] > threshold
            for row in mated
        )
        assert result.scalars[f"tpir_at_fpir_{fpir:.0e}"] == hits / len(mated)
    assert 0 < result.scalars["tpir_at_fpir_1e-01"] < result.scalars["rank1"] < 1
    assert result.counts == {"probes": 80, "gallery": 36, "distractors": 150, "without_mate": 40}
    table = result.tables["open_set"]
    assert table["FPIR 1e-01, element of the sorted scores"]["fpir"] == 4 / 40
    assert table["FPIR 1e-02, at or above the threshold"]["tpir"] is None
    assert result.curves["cmc"].y[4] == result.scalars["rank5"]


def test_long_work_is_told_and_may_be_ended(lists: Lists) -> None:
    told: list[tuple[int, int]] = []
    for search, passes in (("exact", 1), ("ivf", 3)):
        protocol = Identification(**lists.paths, distractors=lists.distractors, search=search)
        told.clear()
        evaluate(protocol, embedder(Colours()), working=lambda *parts: told.append(parts))
        assert told[-1] == (passes * 186, passes * 186)
        assert told == sorted(told)

    def stop(images: int) -> None:
        raise UserError("stopped")

    with pytest.raises(UserError, match=r"^stopped$"):
        evaluate(protocol, embedder(Colours()), stop)


def test_a_closed_set_has_no_open_figures(lists: Lists, tmp_path: Path) -> None:
    mated = lists.probe_of < 12
    names = [f"p{n}" for n in lists.probe_of[mated]]
    probes = saved(tmp_path / "p.npy", lists.probes[mated], names)
    result = outcome(Identification(lists.paths["gallery"], probes))
    assert list(result.scalars) == ["rank1", "rank5", "rank10", "rank20"]
    assert "tpir" not in result.curves


def test_an_identity_may_be_enrolled_with_the_mean_of_its_images(lists: Lists) -> None:
    result = outcome(Identification(**lists.paths, enrol="mean"))
    entries = np.stack(
        [lists.gallery[lists.gallery_of == who].astype(float).mean(0) for who in range(12)]
    )
    entries /= np.linalg.norm(entries, axis=1, keepdims=True)
    first = (lists.probes @ entries.T).argmax(1)
    mated = lists.probe_of < 12
    assert result.scalars["rank1"] == (first == lists.probe_of)[mated].mean()
    assert result.scalars["rank20"] == 1.0


def test_search_by_inverted_lists_tells_its_recall(lists: Lists) -> None:
    exact = outcome(Identification(**lists.paths, distractors=lists.distractors))
    ivf = {"search": "ivf", "distractors": lists.distractors}
    all_probed = outcome(Identification(**lists.paths, **ivf, probed_lists=99))
    assert all_probed.scalars["recall_first"] == all_probed.scalars["recall_all"] == 1.0
    assert {k: all_probed.scalars[k] for k in exact.scalars} == pytest.approx(exact.scalars)
    one = outcome(Identification(**lists.paths, **ivf, probed_lists=1))
    assert 0 < one.scalars["recall_all"] < one.scalars["recall_first"] < 1


def test_lists_that_do_not_go_together_are_refused(lists: Lists, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.npy: not one of its identities is in the gallery"):
        Identification(lists.paths["gallery"], saved(tmp_path / "x.npy", lists.probes, ["q"] * 80))
    some = saved(tmp_path / "d.npy", lists.others[:3], ["p15", "p3", "q"])
    with pytest.raises(UserError, match=r"d\.npy: 2 identities of the distractors are in the"):
        Identification(**lists.paths, distractors=(some,))
    Identification(**lists.paths, distractors=(some,), distractors_are_others=True)
    with pytest.raises(UserError, match=r"does not tell whom .*row 0 shows; a gallery and probes"):
        Identification(lists.paths["gallery"], lists.distractors[0])
    narrow = Identification(**lists.paths, distractors=(saved(tmp_path / "n.npy", lists.others[:, :3]),))  # fmt: skip
    with pytest.raises(UserError, match=r"the numbers of an embedding differ .*npy 8, .*npy 3"):
        outcome(narrow)
    broken = saved(tmp_path / "nan.npy", lists.others * np.float32("nan"))
    with pytest.raises(UserError, match=r"nan\.npy: embeddings that are not finite from row 0"):
        outcome(Identification(**lists.paths, distractors=(broken,)))


def faces(folder: Path, *names: str) -> Path:
    """Images of one colour each, which tells who it is."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        colour = np.random.default_rng(sum(Path(name).parts[0].encode())).integers(0, 255, 3)
        cv2.imwrite(str(folder / name), np.full((32, 32, 3), colour, np.uint8))
    return folder


class Colours(nn.Module):
    """An embedding of the mean colour, that counts what it sees."""

    seen = 0

    def forward(self, images_NCHW: Tensor) -> Tensor:
        self.seen += len(images_NCHW)
        return nn.functional.pad(images_NCHW.mean((2, 3)), (0, DIM - 3))


def embedder(module: nn.Module) -> Embedder:
    return Embedder(module, MobileFaceNet(embedding_dim=DIM), (32, 32), torch.device("cpu"))


def test_images_of_folders_lists_and_csv_are_embedded_once(tmp_path: Path) -> None:
    gallery = faces(tmp_path / "gallery", "ann/1.jpg", "bob/1.jpg", "cy/1.jpg")
    faces(tmp_path / "more", "ann/2.jpg", "bob/2.jpg", "dee/2.jpg", "eve/2.jpg")
    flat = faces(tmp_path / "others", "x1.jpg", "x2.png")
    (tmp_path / "probes.csv").write_text(
        "person,file,camera\nann,more/ann/2.jpg,1\nbob,more/bob/2.jpg,1\ndee,more/dee/2.jpg,2\n"
    )
    (tmp_path / "probes.txt").write_text("more/ann/2.jpg\tann\nmore/bob/2.jpg\tbob\nmore/dee/2.jpg\tdee\n")  # fmt: skip
    for probes in ("probes.csv", "probes.txt"):
        protocol = Identification(
            str(gallery), str(tmp_path / probes), (str(flat), str(tmp_path / "more" / "eve"))
        )
        protocol.name, module = "made", Colours()
        result = evaluate(protocol, embedder(module))
        assert module.seen == 2 * (3 + 3 + 3)
        assert result.scalars["rank1"] == 1.0
        assert result.counts["distractors"] == 3
        (example,) = result.examples["wrong first entries"]
        assert "dee/2.jpg is not" in example.label
        assert example.images[0] == (tmp_path / "more/dee/2.jpg").read_bytes()
    faces(tmp_path / "twice", "ann/1.jpg")
    (tmp_path / "twice.txt").write_text("twice/ann/1.jpg\tann\n")
    with pytest.raises(UserError, match=r"1 of its images are in the gallery too .*ann/1\.jpg\)"):
        Identification(str(tmp_path / "twice"), str(tmp_path / "twice.txt"))
    (tmp_path / "more/bob/2.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"probes\.txt: more/bob/2\.jpg is not a whole, decodable"):
        evaluate(protocol, embedder(Colours()))


def test_a_dataset_is_a_list_without_what_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "made"
    synthesise(path, 4, 2, seed=1, processes=1)
    part = open_dataset(path).part
    key = part.keys(np.array([3]))[0]
    forget(part, [], [key], processes=1)
    faces(tmp_path / "probes", "synthetic-1-00000000/1.jpg", "nobody/1.jpg")
    protocol = Identification(str(path), str(tmp_path / "probes"))
    protocol.name, module = "made", Colours()
    result = evaluate(protocol, embedder(module))
    assert result.counts == {"probes": 2, "gallery": 7, "without_mate": 1}
    assert module.seen == 2 * 9
    assert protocol.lists[1].key(3) == (str(path), 4)
    blob = protocol.images()[2 + 3]
    assert bytes(blob) == Store(part).read([4])[0].tobytes()


def test_the_configuration_builds_it_and_travels(lists: Lists, tmp_path: Path) -> None:
    own = {"kind": "identification", **lists.paths, "distractors": list(lists.distractors)}
    tree = Config.model_validate({"model": "mobilefacenet", "evaluation": {"protocols": [own]}})
    (tmp_path / "again.yaml").write_text(dump(tree))
    assert load(str(tmp_path / "again.yaml")) == tree
    assert isinstance(tree.evaluation.protocols[0], IdentificationConfig)
    (protocol,) = open_protocols(tree)
    assert protocol.name == "identification"
    assert protocol.flip == "sum"
    result = evaluate(protocol, embedder(Colours()))
    assert result.scalars == outcome(Identification(**lists.paths, distractors=lists.distractors)).scalars  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,camera\n1.jpg,2\n",
            r"l\.csv:1: no column of the identity; name one of identity, id",
        ),
        ("path,id\n1.jpg\n", r"l\.csv:2: 1 columns, expected 2"),
        ("path,id\n1.jpg,\n", r"l\.csv:2: an empty cell; expected file, identity"),
        ("path,id\n", r"l\.csv: only a header line in it"),
        ("", r"l\.csv: no lines in it"),
        ('path,id\n"1.jpg,2\n', r"l\.csv:2: unexpected end of data"),
    ],
)
def test_a_broken_list_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        Identification(str(tmp_path / "l.csv"), str(tmp_path / "l.csv"))
