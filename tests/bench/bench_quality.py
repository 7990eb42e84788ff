"""How well the scores of trained networks order real faces by planted blur and occlusion, and what
they are worth when the worst pairs of a set are left out.

    python tests/bench/bench_quality.py PAIRS.bin RUN [RUN ...] [--faces 1000]

Every face of the set that no other face equals is shown at five levels of Gaussian blur and, apart
from that, with a rectangle of one random colour over five shares of its area. Printed for each run
and each of its scores (the norm of the embedding, and the quality where the run has learnt it):

- within a face: Spearman's correlation of the level and the score, mean over the faces;
- across faces: the same over all faces and levels at once;
- AUC: how well the score tells untouched faces from others of each level, mean over the levels;
- area under the false non-match rate (error versus discard) of the set as it is, and of one in
  which half the images are blurred or covered, at both thresholds; less is better.
"""

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from manyfaces.configs.protocols.error_discard import ErrorDiscard
from manyfaces.data.sources.verification_bin import Pairs, read_bin, write_bin
from manyfaces.train import load_model
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.evaluation.model import Model
from manyfaces.train.protocols.open import open_all

LEVELS = 5
BLUR_SIGMA = (0.0, 0.009, 0.018, 0.036, 0.054)
"""Of the height of the image: 0, 1, 2, 4 and 6 px of 112."""
COVERED = (0.0, 0.1, 0.2, 0.3, 0.4)
"""Shares of the area."""
FMRS = (1e-1, 1e-2)
SEED = 0

Pixels = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--faces", type=int, default=1000)
    arguments = parser.parse_args()
    pairs = read_bin(arguments.pairs)
    faces = distinct(pairs)[: arguments.faces]
    print_orders(faces, arguments.runs)
    with tempfile.TemporaryDirectory() as folder:
        degraded = Path(folder) / "degraded.bin"
        write_bin(degraded, half_degraded(pairs), pairs.same.tolist())
        print_areas({"as it is": arguments.pairs, "half degraded": degraded}, arguments.runs)


def distinct(pairs: Pairs) -> list[Pixels]:
    """The faces of a set, each once."""
    return [decoded(blob) for blob in {bytes(blob): None for blob in pairs.blobs}]


def decoded(blob: bytes | Pixels) -> Pixels:
    return np.asarray(
        cv2.imdecode(np.frombuffer(bytes(blob), np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8
    )


def blurred(face: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    sigma = BLUR_SIGMA[level] * len(face)
    return face if sigma == 0 else np.asarray(cv2.GaussianBlur(face, (0, 0), sigma), np.uint8)


def covered(face: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """A rectangle of up to twice as wide as high, or the other way, anywhere in the image."""
    if COVERED[level] == 0:
        return face
    height, width = face.shape[:2]
    aspect = np.exp(rng.uniform(-np.log(2), np.log(2)))
    high = min(height, round(np.sqrt(COVERED[level] * height * width * aspect)))
    wide = min(width, round(COVERED[level] * height * width / high))
    top, left = rng.integers(height - high + 1), rng.integers(width - wide + 1)
    shown = face.copy()
    shown[top : top + high, left : left + wide] = rng.integers(0, 256, 3)
    return shown


DEGRADATIONS = {"blur": blurred, "occlusion": covered}


def half_degraded(pairs: Pairs) -> list[bytes]:
    """The images of a set, of which every second one on average is degraded."""
    rng, blobs = np.random.default_rng(SEED), list[bytes]()
    for blob in pairs.blobs:
        if rng.random() < 0.5:
            degrade = DEGRADATIONS[str(rng.choice(list(DEGRADATIONS)))]
            face = degrade(decoded(blob), int(rng.integers(1, LEVELS)), rng)
            blobs.append(cv2.imencode(".png", face[..., ::-1])[1].tobytes())
        else:
            blobs.append(bytes(blob))
    return blobs


def print_orders(faces: list[Pixels], runs: list[Path]) -> None:
    table = Table(
        "run", "score", *(f"{kind}: {what}" for kind in DEGRADATIONS
        for what in ("within a face", "across faces", "AUC")),
        title=f"{len(faces):,} faces at {LEVELS} levels; 1 is the right order, 0 none (AUC 0.5)",
    )  # fmt: skip
    for run in runs:
        model = load_model(run)
        figures: dict[str, list[str]] = {}
        for kind in DEGRADATIONS:
            for score, scores_LN in scored(model, faces, kind).items():
                told = (within_a_face(scores_LN), across_faces(scores_LN), auc(scores_LN))
                figures.setdefault(score, []).extend(f"{each:.3f}" for each in told)
        for score, cells in figures.items():
            table.add_row(run.name, score, *cells)
    Console(width=150).print(table)


def scored(model: Model, faces: list[Pixels], kind: str) -> dict[str, NDArray[np.float32]]:
    """Each score of the faces at every level, [levels, faces]."""
    found: dict[str, list[NDArray[np.float32]]] = {}
    for level in track(range(LEVELS), description=f"faces by {kind}", transient=True):
        # The same rectangles for every run.
        rng = np.random.default_rng([SEED, level])
        shown = [DEGRADATIONS[kind](face, level, rng) for face in faces]
        for score, scores_N in model.scores(shown).items():
            found.setdefault(score, []).append(scores_N)
    return {score: np.stack(levels) for score, levels in found.items()}


def within_a_face(scores_LN: NDArray[np.float32]) -> float:
    levels = -np.arange(LEVELS)
    return float(np.mean([spearmanr(levels, scores_L)[0] for scores_L in scores_LN.T]))


def across_faces(scores_LN: NDArray[np.float32]) -> float:
    levels_LN = np.repeat(-np.arange(LEVELS), scores_LN.shape[1])
    return float(spearmanr(levels_LN, scores_LN.ravel())[0])


def auc(scores_LN: NDArray[np.float32]) -> float:
    clean_N, others_LN = scores_LN[0], scores_LN[1:]
    is_clean = np.repeat([1, 0], len(clean_N))
    return float(
        np.mean([roc_auc_score(is_clean, np.concatenate([clean_N, each])) for each in others_LN])
    )


def print_areas(sets: dict[str, Path], runs: list[Path]) -> None:
    thresholds = {"": "", "_anew": ", anew"}
    table = Table(
        "run", "set", "score", *(f"FMR {fmr:.0e}{told}" for fmr in FMRS
        for told in thresholds.values()),
        title="area under FNMR by the share of pairs left out; chance: pairs left out at random",
    )  # fmt: skip
    for run in runs:
        model = load_model(run)
        scores = ("norm", *model.encoder.score_heads)
        for name, path in sets.items():
            (protocol,) = open_all([ErrorDiscard(path=str(path), scores=scores, fmrs=FMRS)])
            result = evaluate(protocol, Embedder.of(model.encoder, 200))
            for score in scores:
                areas = [
                    result.scalars[f"{score}_area_at_fmr_{fmr:.0e}{which}"]
                    for fmr in FMRS
                    for which in thresholds
                ]
                texts = ["too few pairs" if each is None else f"{each:.4f}" for each in areas]
                table.add_row(run.name, name, score, *texts)
            of_all = [result.curves[f"fnmr_at_fmr_{fmr:.0e}_fixed"].y[0] * 0.95 for fmr in FMRS]
            table.add_row(
                run.name, name, "chance", *(text for a in of_all for text in (f"{a:.4f}", ""))
            )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
