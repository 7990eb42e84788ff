"""TinyFace, SCface and MegaFace in made folders of their layouts, beside loops over the protocols'
definitions."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.megaface import MegaFace as MegaFaceConfig
from manyfaces.train.evaluation.feature_files import write_bin
from manyfaces.train.evaluation.nearest import unit
from manyfaces.train.evaluation.result import Result
from manyfaces.train.protocols.lists import OverLists
from manyfaces.train.protocols.megaface import MegaFace
from manyfaces.train.protocols.scface import SCface
from manyfaces.train.protocols.tinyface import TinyFace

DIM = 6
Floats = NDArray[np.float32]


def files(folder: Path, names: list[str]) -> Path:
    """Files of these names; what is in them does not matter here."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def outcome(protocol: OverLists, by_name: dict[str, Floats]) -> Result:
    """The result for embeddings by the names of the files."""
    protocol.name = "made"
    blobs = [bytes(protocol.images()[row]).decode() for row in range(len(protocol.images()))]
    return protocol.result(np.stack([by_name[name] for name in blobs]))


def drawn(names: list[str], seed: int, noise: float = 1.5) -> dict[str, Floats]:
    """Embeddings around one of each person, who is the begin of the name."""
    random = np.random.default_rng(seed)
    people = {name[:3]: random.standard_normal(DIM) for name in names}
    return {
        name: (people[name[:3]] + noise * random.standard_normal(DIM)).astype(np.float32)
        for name in names
    }


def cosine(a: Floats, b: Floats) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


class TestTinyFace:
    PROBES = tuple(f"{who:03}_p{n}.jpg" for who in range(9) for n in range(2))
    GALLERY = tuple(f"{who:03}_g{n}.jpg" for who in range(9) for n in range(who % 3 + 1))
    OTHERS = tuple(f"{n:03}_d.jpg" for n in range(100, 140))

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        inner = tmp_path / "tinyface" / "Testing_Set"
        files(inner / "Probe", list(self.PROBES))
        files(inner / "Gallery_Match", list(self.GALLERY))
        files(inner / "Gallery_Distractor", list(self.OTHERS))
        for what, file, names in (
            ("probe", "probe_img_ID_pairs.mat", self.PROBES),
            ("gallery", "gallery_match_img_ID_pairs.mat", self.GALLERY),
        ):
            cells = np.empty((len(names), 1), object)
            cells[:, 0] = [np.array([name]) for name in names]
            ids = np.array([[int(name[:3])] for name in names], np.uint16)
            savemat(inner / file, {f"{what}_set": cells, f"{what}_ids": ids})
        return tmp_path / "tinyface"

    def test_a_hit_is_any_image_of_the_identity(self, folder: Path) -> None:
        by_name = drawn([*self.PROBES, *self.GALLERY, *self.OTHERS], seed=0)
        result = outcome(TinyFace(str(folder)), by_name)
        entries = [*self.GALLERY, *self.OTHERS]
        for rank in (1, 5, 20):
            hits = 0
            for probe in self.PROBES:
                ranked = sorted(entries, key=lambda n: -cosine(by_name[probe], by_name[n]))
                hits += any(name[:3] == probe[:3] for name in ranked[:rank])
            assert result.scalars[f"rank{rank}"] == hits / len(self.PROBES)
        assert 0 < result.scalars["rank1"] < result.scalars["rank5"] < 1
        assert result.counts == {"probes": 18, "gallery": 18, "distractors": 40}
        assert TinyFace(str(folder)).flip == "sum"

    def test_aligned_images_may_stand_elsewhere(self, folder: Path, tmp_path: Path) -> None:
        aligned = tmp_path / "aligned"
        (folder / "Testing_Set" / "Probe").parent.rename(tmp_path / "lists")
        for name in ("Probe", "Gallery_Match", "Gallery_Distractor"):
            (aligned / name).parent.mkdir(exist_ok=True)
            (tmp_path / "lists" / name).rename(aligned / name)
        assert len(TinyFace(str(tmp_path / "lists"), str(aligned)).images()) == 18 + 18 + 40
        with pytest.raises(UserError, match=r"lists/Gallery_Distractor: no images in it"):
            TinyFace(str(tmp_path / "lists"))

    def test_what_is_not_whole_is_told(self, folder: Path, tmp_path: Path) -> None:
        inner = folder / "Testing_Set"
        (inner / "Probe" / self.PROBES[3]).unlink()
        with pytest.raises(
            UserError, match=rf"1 of the 18 images .*\(the first: .*{self.PROBES[3]}"
        ):
            TinyFace(str(folder))
        (inner / "probe_img_ID_pairs.mat").write_bytes(b"no file of MATLAB")
        with pytest.raises(UserError, match=r"probe_img_ID_pairs\.mat: no probe_set and probe_ids"):
            TinyFace(str(folder))
        with pytest.raises(
            UserError, match=r"no probe_img_ID_pairs\.mat in it or in its Testing_S"
        ):
            TinyFace(str(tmp_path / "none"))


class TestSCface:
    PEOPLE = ("001", "002", "007", "130")
    MUGSHOTS = tuple(f"{who}_frontal.jpg" for who in PEOPLE)
    PROBES = tuple(
        f"{who}_cam{camera}_{distance}.jpg"
        for who in PEOPLE
        for camera in range(1, 6)
        for distance in (1, 2, 3)
    )

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        files(tmp_path / "set" / "mugshot_frontal_cropped_all", list(self.MUGSHOTS))
        files(tmp_path / "set" / "surveillance", [*self.PROBES, "001_cam6_1.jpg", "001_L1.jpg"])
        return tmp_path / "set"

    @pytest.mark.parametrize("tuned", [(), ("002", "130")])
    def test_rank_one_at_each_distance(
        self, folder: Path, tmp_path: Path, tuned: tuple[str, ...]
    ) -> None:
        by_name = drawn([*self.PROBES, *self.MUGSHOTS], seed=4, noise=1.0)
        out = None
        if tuned:
            (tmp_path / "tuned.txt").write_text("2\n130\n")
            out = str(tmp_path / "tuned.txt")
        result = outcome(SCface(str(folder), out), by_name)
        gallery = [name for name in self.MUGSHOTS if name[:3] not in tuned]
        for distance, metres in ((1, "4.20"), (2, "2.60"), (3, "1.00")):
            probes = [n for n in self.PROBES if n[-5] == str(distance) and n[:3] not in tuned]
            hits = 0
            for probe in probes:
                best = max(gallery, key=lambda name: cosine(by_name[probe], by_name[name]))
                hits += best[:3] == probe[:3]
            assert result.scalars[f"rank1_at_{metres.replace('.', '_')}_m"] == hits / len(probes)
            assert result.counts[f"probes_{metres}_m"] == len(probes) == 5 * len(gallery)
        people = "2 people" if tuned else "all 4 people"
        assert result.headline.label == f"rank-1 at 4.20 m (mugshot gallery, {people})"
        assert len({result.scalars[quantity.name] for quantity in result.quantities[:3]}) > 1

    def test_what_is_not_scface_is_told(self, folder: Path, tmp_path: Path) -> None:
        files(folder / "mugshot_frontal_original_all", ["001_frontal.jpg"])
        with pytest.raises(UserError, match=r"two mugshots of person 001 .* leave one version in"):
            SCface(str(folder))
        files(tmp_path / "other", ["001_cam1_1.jpg", "002_frontal.jpg"])
        with pytest.raises(UserError, match=r"no mugshot 001_frontal for 001_cam1_1\.jpg"):
            SCface(str(tmp_path / "other"))
        with pytest.raises(UserError, match=r"0 mugshots 001_frontal\.jpg and 0 images"):
            SCface(str(tmp_path / "none"))
        (tmp_path / "tuned.txt").write_text("1\nx\n")
        with pytest.raises(UserError, match=r"tuned\.txt:2: 'x' is no number of a person"):
            SCface(str(folder), str(tmp_path / "tuned.txt"))


class TestMegaFace:
    PROBES = tuple(f"{who}/{who}_{n}.png" for who in ("Ann", "Bob", "Cyd") for n in range(5))
    OTHERS = tuple(f"{n % 3}/{n % 7}/{n:03}.jpg" for n in range(120))

    @pytest.fixture
    def by_name(self) -> dict[str, Floats]:
        others = {name: drawn([name], seed)[name] for seed, name in enumerate(self.OTHERS)}
        return {**drawn(list(self.PROBES), seed=9, noise=1.0), **others}

    def written(self, tmp_path: Path, by_name: dict[str, Floats]) -> tuple[str, str]:
        """The folders of the devkit."""
        for folder, names in (("facescrub", self.PROBES), ("megaface", self.OTHERS)):
            for name in names:
                path = tmp_path / folder / f"{name}_net.bin"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bin(path, by_name[name])
        return str(tmp_path / "facescrub"), str(tmp_path / "megaface")

    def found(self, probes: dict[str, Floats], others: list[Floats], rank: int) -> float:
        """Each ordered pair in turn: the mate is put among the distractors."""
        hits = []
        for probe, own in probes.items():
            for mate, other in probes.items():
                if mate != probe and mate[:3] == probe[:3]:
                    score = cosine(own, other)
                    hits.append(sum(cosine(own, each) >= score for each in others) < rank)
        return sum(hits) / len(hits)

    def test_the_raw_set(self, tmp_path: Path, by_name: dict[str, Floats]) -> None:
        facescrub, megaface = self.written(tmp_path, by_name)
        protocol = MegaFace(facescrub, (megaface,))
        protocol.name, told = "made", list[tuple[int, int]]()
        protocol.working = lambda *parts: told.append(parts)
        result = protocol.result(np.empty((0, 512), np.float32))
        assert told[-1] == (10 + 100 + 120, 10 + 100 + 120)
        probes = {name: by_name[name] for name in self.PROBES}
        others = [by_name[name] for name in sorted(self.OTHERS)]
        assert result.scalars["rank1"] == self.found(probes, others, 1)
        assert result.scalars["rank10"] == self.found(probes, others, 10)
        assert result.tables["rank1_by_distractors"] == {
            "10": self.found(probes, others[:10], 1),
            "100": self.found(probes, others[:100], 1),
            "120": result.scalars["rank1"],
        }
        assert 0 < result.scalars["rank1"] < result.scalars["rank10"] < 1
        assert result.headline.label == "rank-1 of 120 distractors (MegaFace, raw)"
        assert result.counts["pairs"] == 3 * 5 * 4

    def test_the_refined_set(self, tmp_path: Path, by_name: dict[str, Floats]) -> None:
        """A noisy probe becomes its person's sum of the others, but for the published noise; noisy
        distractors are gone."""
        facescrub, megaface = self.written(tmp_path, by_name)
        noisy = ["Ann_1.png", "Cyd_0.png"]
        (tmp_path / "fs.txt").write_text("# noise\n" + "\n".join(noisy) + "\n")
        bad = [name for name in self.OTHERS if name.startswith("1/")]
        (tmp_path / "mf.txt").write_text("\n".join(f"{n}\t{name}" for n, name in enumerate(bad)))
        protocol = MegaFace(
            facescrub, (megaface,), str(tmp_path / "fs.txt"), str(tmp_path / "mf.txt")
        )
        protocol.name = "made"
        result = protocol.result(np.empty((0, 512), np.float32))
        clean = {name: unit(by_name[name][None])[0] for name in self.PROBES}
        replaced = {
            name: sum(clean[n] for n in clean if n[:3] == name[:3] and n[4:] not in noisy)
            if name[4:] in noisy
            else clean[name]
            for name in clean
        }
        others = [by_name[name] for name in self.OTHERS if name not in bad]
        assert result.scalars["rank1"] == pytest.approx(self.found(replaced, others, 1), abs=0.04)
        assert result.scalars["rank1"] != self.found(clean, others, 1)
        assert result.counts["noisy_probes"] == 2
        assert result.counts["noisy_distractors"] == len(bad)
        assert result.counts["distractors"] == 120 - len(bad)
        assert "(MegaFace, (R)efined)" in result.headline.label

    def test_images_are_embedded(self, tmp_path: Path, by_name: dict[str, Floats]) -> None:
        facescrub, megaface = self.written(tmp_path / "ready", by_name)
        files(tmp_path / "faces", list(self.PROBES))
        files(tmp_path / "others", list(self.OTHERS))
        ready = MegaFace(facescrub, (megaface,))
        ready.name = "made"
        protocol = MegaFace(str(tmp_path / "faces"), (str(tmp_path / "others"),))
        result = outcome(protocol, by_name)
        assert result.scalars == ready.result(np.empty((0, 512), np.float32)).scalars

    def test_what_cannot_be_is_refused(self, tmp_path: Path, by_name: dict[str, Floats]) -> None:
        facescrub, megaface = self.written(tmp_path, by_name)
        lists = tmp_path / "fs.txt", tmp_path / "mf.txt"
        lists[0].write_text("\n".join(f"Bob_{n}.png" for n in range(5)))
        lists[1].write_text("9/9/9.jpg\n")
        with pytest.raises(UserError, match=r"mf\.txt: names not one of the images of .*megaface"):
            MegaFace(facescrub, (megaface,), *map(str, lists))
        lists[1].write_text("1/1/001.jpg\n")
        with pytest.raises(UserError, match="all images of Bob are in the list of noise"):
            MegaFace(facescrub, (megaface,), *map(str, lists))
        with pytest.raises(ValueError, match="needs both probe_noise and distractor_noise"):
            MegaFaceConfig(probes="a", distractors=("b",), probe_noise="c")
        single = tmp_path / "single"
        (single / "Ann").mkdir(parents=True)
        write_bin(single / "Ann" / "1.png_net.bin", by_name["Ann/Ann_0.png"])
        with pytest.raises(UserError, match="no person has two images"):
            MegaFace(str(single), (megaface,))
