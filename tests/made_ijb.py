"""A made set of IJB's shape, in the layout that InsightFace ships: made faces, turned and shrunk
in larger pictures, with landmarks that say how."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from manyfaces.data.conversion.align import TEMPLATE
from manyfaces.data.synthetic.faces import render

PICTURE_PX = 160


class MadeIJB(NamedTuple):
    """What was written, in plain lists: the tests' own loops go over them."""

    root: Path
    names: list[str]
    scores: list[float]
    memberships: list[tuple[str, int, int]]
    """Name, template and media of each line."""
    pairs: list[tuple[int, int, int]]
    galleries: dict[str, list[tuple[int, int]]]
    probes: list[tuple[int, int]]


def placed(face_HWC: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture with the face somewhere in it, and the landmarks (x, y) in the picture."""
    angle, scale = np.deg2rad(random.uniform(-20, 20)), random.uniform(0.7, 1.1)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.full(2, face_HWC.shape[0] / 2)
    shift = PICTURE_PX / 2 + random.uniform(-8, 8, 2) - matrix @ centre
    picture = cv2.warpAffine(
        face_HWC,
        np.column_stack((matrix, shift)),
        (PICTURE_PX, PICTURE_PX),
        borderValue=(90, 60, 30),
    )
    return picture, TEMPLATE @ matrix.T + shift


def write_ijb(root: Path, subjects: int = 6, prefix: str = "ijbc", seed: int = 0) -> MadeIJB:
    """Two templates for each subject: one of the gallery, of a picture or two, and one of the
    probes, of two pictures and a video of three frames. The first half of the subjects are in the
    first gallery. All pairs of a gallery's template and a probe."""
    random = np.random.default_rng(seed)
    (root / "loose_crop").mkdir(parents=True)
    (root / "meta").mkdir()
    names, scores, memberships, lines = [], [], [], []
    galleries: dict[str, list[tuple[int, int]]] = {"1": [], "2": []}
    probes = []
    number = media = 0
    for subject in range(subjects):
        gallery, probe = 10 + subject, 100 + subject
        frames = [(gallery, 1)] * (1 + subject % 2) + [(probe, 1), (probe, 1), (probe, 3)]
        image = 0
        for template, count in frames:
            media += 1
            for _ in range(count):
                number, image = number + 1, image + 1
                name = f"{number}.jpg"
                picture, points = placed(render(seed, subject, image, 112), random)
                cv2.imwrite(str(root / "loose_crop" / name), picture[:, :, ::-1])
                score = round(float(random.uniform(0.3, 1)), 3)
                numbers = " ".join(f"{value:.3f}" for value in points.ravel())
                lines.append(f"{name} {numbers} {score}")
                names.append(name)
                scores.append(score)
                memberships.append((name, template, media))
        galleries["1" if subject < subjects / 2 else "2"].append((gallery, 500 + subject))
        probes.append((probe, 500 + subject))
    pairs = [
        (template, probe, int(subject == other))
        for template, subject in [*galleries["1"], *galleries["2"]]
        for probe, other in probes
    ]
    letter = "G" if prefix == "ijbc" else "S"
    meta = root / "meta" / f"{prefix}_"
    _write(f"{meta}name_5pts_score.txt", lines)
    _write(f"{meta}face_tid_mid.txt", [f"{n} {t} {m}" for n, t, m in memberships])
    _write(f"{meta}template_pair_label.txt", [f"{a} {b} {c}" for a, b, c in pairs])
    for which, rows in galleries.items():
        _write(f"{meta}1N_gallery_{letter}{which}.csv", _csv(rows))
    _write(f"{meta}1N_probe_mixed.csv", _csv(probes))
    return MadeIJB(root, names, scores, memberships, pairs, galleries, probes)


def _csv(rows: list[tuple[int, int]]) -> list[str]:
    return ["TEMPLATE_ID,SUBJECT_ID", *(f"{template},{subject}" for template, subject in rows)]


def _write(path: str, lines: list[str]) -> None:
    Path(path).write_text("".join(f"{line}\n" for line in lines))
