"""`manyfaces export` and `manyfaces latency`: a trained network as a file for other programs, and
how fast it is."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from manyfaces.configs.errors import UserError
from manyfaces.train.cli.output import console, note, progress, say
from manyfaces.train.cli.verbs import positive

if TYPE_CHECKING:
    from manyfaces.train.exporters.export import Exported
    from manyfaces.train.exporters.exporter import Exporter
    from manyfaces.train.exporters.latency import Latency

_SOURCE = (
    "runs/NAME for its newest checkpoint, runs/NAME@best for its best, a checkpoint's folder, the "
    "URL of a run or a checkpoint, an exported file, or weights that others have published."
)
Source = Annotated[Path, typer.Argument(metavar="RUN", help=_SOURCE)]
Out = Annotated[
    Path | None,
    typer.Argument(
        metavar="OUT",
        help="A new file, whose ending tells the format: .safetensors, .pth, .onnx or .pt2; or a "
        "new folder, with --to. Default: RUN-step-N in this folder.",
    ),
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="PATH", help="OUT, as an option.")]
To = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        help="safetensors, state_dict (.pth), onnx, torch_export (.pt2), folder (as models on "
        "Hugging Face's hub are) or mlflow. Default: by the ending of OUT.",
    ),
]
Precision = Annotated[
    Literal["float32", "float16", "int8"],
    typer.Option(help="Of the weights; int8 is for onnx, and needs --calibrate."),
]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Real faces that int8 is calibrated on: a folder of images, a dataset or a .bin.",
    ),
]
Check = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Images that the file is checked on, as for --calibrate. Default: those of "
        "--calibrate, of the run's verification sets or of its dataset.",
    ),
]
Images = Annotated[
    int, typer.Option(parser=positive, metavar="N", help="How many of them at most.")
]
Pairs = Annotated[
    Path | None,
    typer.Option(metavar="BIN", help="A verification set to score before and after."),
]
WithLatency = Annotated[
    bool, typer.Option("--latency", help="Measure one face on one core; on the card too.")
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="YAML",
        help="The network of published weights, as in a recipe: '{kind: iresnet, depth: 50}'. "
        "Default: the one that they fit.",
    ),
]
Channels = Annotated[
    Literal["rgb", "bgr"] | None,
    typer.Option(help="What published weights were trained on. Default: as the file says, or rgb."),
]
Licence = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="The licence of the weights, for the card."),
]
IntendedUse = Annotated[
    str | None, typer.Option(metavar="TEXT", help="What they are for, for the card.")
]
Limits = Annotated[
    str | None, typer.Option(metavar="TEXT", help="What they are not for, for the card.")
]
Register = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="With --to mlflow: register it under this name at MLFLOW_TRACKING_URI, or where the "
        "run is recorded.",
    ),
]


def export(
    run: Source,
    out: Out = None,
    to: To = None,
    out_option: OutOption = None,
    precision: Precision = "float32",
    calibrate: Calibrate = None,
    check: Check = None,
    images: Images = 128,
    pairs: Pairs = None,
    latency: WithLatency = False,
    model: Model = None,
    channels: Channels = None,
    licence: Licence = None,
    intended_use: IntendedUse = None,
    limits: Limits = None,
    register: Register = None,
) -> None:
    """Write a run's backbone for other programs.

    With its adapters merged, a card beside it, and for graphs (onnx, torch_export) with the
    normalisation of pixels inside. What was written is opened again and compared with the network
    in training: a float32 file is not kept where the cosine of an embedding is below 0.9999. A
    backbone of one's own needs its Python file besides, except in a graph.

    \b
      manyfaces export runs/first face.safetensors
      manyfaces export runs/first face.onnx --precision int8 --calibrate DATASET --pairs lfw.bin
      manyfaces export backbone.pth --to onnx
    """
    from manyfaces.train.evaluation.encoders import parse_backbone
    from manyfaces.train.exporters.card import Said
    from manyfaces.train.exporters.export import Request
    from manyfaces.train.exporters.export import export as write
    from manyfaces.train.exporters.register import Registry
    from manyfaces.train.exporters.source import open_source

    if out is not None and out_option is not None:
        raise UserError(f"both {out} and --out {out_option}; give one of them")
    given = out or out_option
    exporter = _exporter(to, given, register)
    with _phases("export") as tell:
        tell("opening the network")
        source = open_source(run, parse_backbone(model), channels)
        registry = None if register is None else Registry.of(register, source.config)
        request = Request(
            exporter,
            given or Path(source.name + exporter.ending),
            precision,
            check=check,
            calibrate=calibrate,
            num_images=images,
            pairs=pairs,
            latency=latency,
            said=Said(licence, intended_use, limits),
        )
        done = write(source, request, tell)
    _tell(done, source.path)
    if registry is not None:
        say(f"registered  {registry.take(done.out)}")


def _exporter(to: str | None, out: Path | None, register: str | None) -> "Exporter":
    """The format that is asked for. Raises `UserError`."""
    from manyfaces.train.exporters.exporter import exporter_of

    if out is None and to is None:
        raise UserError("give OUT, a new file such as face.onnx, or --to FORMAT")
    exporter = exporter_of(to, out)
    if register is not None and exporter.word != "mlflow":
        raise UserError("--register: only --to mlflow is registered; add it")
    return exporter


def _tell(done: "Exported", source: Path) -> None:
    """What was written, and what was found out about it."""
    say(f"exported    {done.out}\ncard        {done.card}\nfrom        {source}")
    say(f"SHA-256     {done.sha256}")
    say(f"checked     {done.agreement}")
    if not done.is_checked_on_faces:
        note("it was checked on made faces; --check PATH checks it on real ones")
    if done.scores is not None:
        for line in done.scores.lines():
            say(f"{done.scores.name}: {line}")
    if done.latency is not None:
        _show(done.latency)


OfModel = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A run, a checkpoint or an exported file.")
]


def latency(model: OfModel) -> None:
    """Measure one face on one core.

    Decoding, aligning by given landmarks, embedding, and comparing with a million others, in
    milliseconds on this machine, and which of FRUITS' time tracks (100, 500 and 1,000 ms a face)
    that fits. Finding faces in an image is not part of manyfaces.
    """
    import torch

    from manyfaces.train.evaluation.encoders import open_encoder
    from manyfaces.train.exporters.latency import measured

    with _phases("latency") as tell:
        tell("measuring, some ten seconds")
        found = measured(lambda: open_encoder(model, torch.device("cpu")))
    _show(found)


@contextlib.contextmanager
def _phases(verb: str) -> Iterator[Callable[[str], None]]:
    """Show what goes on: on a terminal in one line that changes, elsewhere a line each."""
    with progress(verb) as shown:

        def tell(what: str) -> None:
            shown(what)
            if not console.is_terminal:
                note(f"{verb}: {what}")

        yield tell


def _show(found: "Latency") -> None:
    from rich.table import Table

    table = Table("stage", "median", "95 % within")
    for stage in found.stages:
        table.add_row(stage.name, f"{stage.median_ms:.2f} ms", f"{stage.slowest_ms:.2f} ms")
    table.add_row("together", "", f"{found.total_ms:.2f} ms")
    console.print(table)
    for line in found.lines():
        say(line)
