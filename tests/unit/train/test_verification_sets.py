"""Verification sets as people's own scripts write them: scored as what they are, or refused."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.draw_pairs import draw_pairs
from manyfaces.data.feed.decode import Decoder
from manyfaces.data.sources.verification_bin import write_bin
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.protocols.open import check_images
from manyfaces.train.protocols.verification import Verification

HW = (32, 32)


class Pixels(nn.Module):
    """An embedding of an image's mean colours, times `factor`."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.mean(2).flatten(1) * self.factor


def embedder(module: nn.Module) -> Embedder:
    return Embedder(module, MobileFaceNet(embedding_dim=96), HW, torch.device("cpu"))


@pytest.fixture(scope="module")
def drawn(dataset: Dataset) -> tuple[list[bytes], list[bool]]:
    return draw_pairs(dataset.part, 40, seed=3)


def written(path: Path, blobs: list[bytes], same: list[bool]) -> Verification:
    write_bin(path, blobs, same)
    protocol = Verification(str(path))
    protocol.name = path.stem
    return protocol


def as_png(blob: bytes) -> bytes:
    pixels = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".png", pixels)[1].tobytes()


def test_a_set_of_pngs_is_scored_as_that_of_jpegs(
    drawn: tuple[list[bytes], list[bool]], tmp_path: Path
) -> None:
    blobs, same = drawn
    mixed = [as_png(blob) if number % 3 else blob for number, blob in enumerate(blobs)]
    theirs = evaluate(written(tmp_path / "a.bin", blobs, same), embedder(Pixels()))
    ours = written(tmp_path / "a.bin", mixed, same)
    check_images([ours], HW)
    assert evaluate(ours, embedder(Pixels())).scalars == pytest.approx(theirs.scalars, abs=0.03)
    cut = written(tmp_path / "cut.bin", [mixed[0], mixed[1][:-20], *mixed[2:]], same)
    with pytest.raises(UserError, match=r"cut\.bin: image 1 is not a whole, decodable JPEG"):
        check_images([cut], HW)


def test_what_stands_behind_a_png_does_not_matter(drawn: tuple[list[bytes], list[bool]]) -> None:
    """As behind a JPEG; a cut image stays one, whatever was put behind it."""
    png, small = as_png(drawn[0][0]), cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
    tails = (b"", b"\r\n", bytes(700), small, b"IEND")
    cuts = (png[:-1], png[:-20], png[:-20] + small, png[:30] + bytes(90), png[:8])
    decoder = Decoder(HW, len(tails) + len(cuts), device=torch.device("cpu"), takes_png=True)
    blobs = [np.frombuffer(blob, np.uint8) for blob in (*(png + tail for tail in tails), *cuts)]
    images_NHWC, good_N = decoder(blobs)
    assert good_N.tolist() == [True] * len(tails) + [False] * len(cuts)
    assert all(torch.equal(images_NHWC[0], images_NHWC[row]) for row in range(len(tails)))


def test_training_takes_no_png(drawn: tuple[list[bytes], list[bool]]) -> None:
    blobs = [np.frombuffer(blob, np.uint8) for blob in (drawn[0][0], as_png(drawn[0][0]))]
    _, good = Decoder(HW, 2, device=torch.device("cpu"))(blobs)
    assert good.tolist() == [True, False]


@pytest.mark.parametrize("pairs", [1, 4, 9])
def test_fewer_pairs_than_folds_are_refused(
    drawn: tuple[list[bytes], list[bool]], tmp_path: Path, pairs: int
) -> None:
    """The accuracy of a fold without a pair is NaN."""
    write_bin(tmp_path / "few.bin", drawn[0][: 2 * pairs], drawn[1][:pairs])
    with pytest.raises(
        UserError,
        match=rf"few\.bin: {pairs} pairs are too few pairs for 10 folds; give 10 at least",
    ):
        Verification(str(tmp_path / "few.bin"))


def test_ten_pairs_are_scored(drawn: tuple[list[bytes], list[bool]], tmp_path: Path) -> None:
    blobs, same = drawn
    result = evaluate(written(tmp_path / "ten.bin", blobs[:20], same[:10]), embedder(Pixels()))
    accuracy = result.scalars["accuracy"]
    assert accuracy is not None
    assert 0 <= accuracy <= 1


def test_a_set_that_is_not_in_the_order_of_its_folds_is_refused(tmp_path: Path) -> None:
    """CALFW's and CPLFW's files of pairs hold all positives, then all negatives."""
    write_bin(tmp_path / "joined.bin", [b"x"] * 2000, [True] * 500 + [False] * 500)
    with pytest.raises(
        UserError,
        match=r"joined\.bin: all 100 pairs of fold 1 of 10 show one identity; write both.*interleave",
    ):
        Verification(str(tmp_path / "joined.bin"))
    dealt = Verification(str(tmp_path / "joined.bin"), interleave=True)
    assert dealt.pairs.same_N.tolist() == ([True] * 50 + [False] * 50) * 10
    by_turns = ([True] * 50 + [False] * 50) * 10
    write_bin(tmp_path / "right.bin", [b"x"] * 2000, by_turns)
    assert Verification(str(tmp_path / "right.bin")).pairs.same_N.tolist() == by_turns
    write_bin(tmp_path / "one.bin", [b"x"] * 2000, [True] * 1000)
    assert Verification(str(tmp_path / "one.bin")).pairs.same_N.all()


def test_a_list_of_pairs_is_scored_as_the_file_that_holds_them(
    drawn: tuple[list[bytes], list[bool]], tmp_path: Path
) -> None:
    """LFW's pairs.txt over folders, each image of which is read when its batch is embedded."""
    blobs, same = drawn
    files = {
        blob: f"P{number}/P{number}_0001.jpg" for number, blob in enumerate(dict.fromkeys(blobs))
    }
    for blob, name in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(blob)
    pairs = [(files[blobs[2 * i]], files[blobs[2 * i + 1]], int(same[i])) for i in range(len(same))]
    (tmp_path / "pairs.txt").write_text("".join(f"{a} {b} {label}\n" for a, b, label in pairs))
    theirs = evaluate(written(tmp_path / "a.bin", blobs, same), embedder(Pixels()))
    listed = Verification(str(tmp_path / "pairs.txt"))
    listed.name = "a"
    check_images([listed], HW)
    assert len(listed.distinct.images) == len(files)
    ours = evaluate(listed, embedder(Pixels()))
    assert ours.scalars == theirs.scalars
    assert ours.intervals == theirs.intervals
    label = ours.examples["hardest genuine pairs"][0].label
    assert re.fullmatch(r"P\d+_0001\.jpg, P\d+_0001\.jpg", label)
    first = tmp_path / pairs[0][0]
    first.write_bytes(first.read_bytes()[:200])
    with pytest.raises(UserError, match=rf"pairs\.txt: {first} is not a whole, decodable JPEG"):
        check_images([listed], HW)
    first.unlink()
    with pytest.raises(UserError, match=rf"{first}: cannot be read \(No such file or directory\)"):
        evaluate(listed, embedder(Pixels()))
    with pytest.raises(UserError, match=r"a\.bin: root is .*; leave root out"):
        Verification(str(tmp_path / "a.bin"), root=str(tmp_path))


def test_people_that_are_named_are_what_the_intervals_are_over(
    drawn: tuple[list[bytes], list[bool]], tmp_path: Path
) -> None:
    blobs, same = drawn
    lines, known = [], dict[bytes, tuple[str, int]]()
    for number, is_same in enumerate(same):
        pair = blobs[2 * number : 2 * number + 2]
        names = ("P0", "P0") if is_same else ("P1", "P2")
        ends = []
        for name, blob in zip(names, pair, strict=True):
            ends.append(known.setdefault(name.encode() + blob, (name, len(known) + 1)))
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{name}_{ends[-1][1]:04}.jpg").write_bytes(blob)
        fields = (names[0], ends[0][1], ends[1][1]) if is_same else (*ends[0], *ends[1])
        lines.append("\t".join(map(str, fields)))
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    listed = Verification(str(tmp_path / "pairs.txt"))
    numbers = listed.pairs.identity_numbers()
    assert numbers is not None
    assert [tuple(row) for row in numbers] == [(0, 0) if is_same else (1, 2) for is_same in same]
    listed.name = "named"
    result = evaluate(listed, embedder(Pixels()))
    packed = evaluate(written(tmp_path / "a.bin", blobs, same), embedder(Pixels()))
    assert result.scalars == packed.scalars
    # All genuine pairs are of one person: drawn or not, their share of accepts is the same.
    assert result.intervals["tar_at_far_1e-01"] != packed.intervals["tar_at_far_1e-01"]


def test_embeddings_that_are_nan_are_no_accuracy(
    drawn: tuple[list[bytes], list[bool]], tmp_path: Path
) -> None:
    protocol = written(tmp_path / "a.bin", *drawn)
    with pytest.raises(
        UserError, match=r"a: the network gives NaN or infinite embeddings for \d+ of \d+ images"
    ):
        evaluate(protocol, embedder(Pixels(float("nan"))))
