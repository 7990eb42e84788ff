"""A training step of the backbones: images a second, and the share of the device's product rate.

    python tests/bench/bench_backbone.py [--batch 256] [--rounds 10] [--tiny]

IResNet-50 and ViT-B at 112 px. A step is uint8 images to floats, forward, backward of the sum of
the embeddings and a step of SGD: eager in float32, eager in bfloat16 (autocast), with channels
last, and compiled. The share is of what bare bfloat16 products of 8,192 x 8,192 reach there,
counting 6 operations an image for each multiply-add of the forward pass. A batch that does not fit
is halved. Each row is printed as a line of JSON; `--tiny` tries the same on any machine.
"""

import argparse
from functools import partial

import torch
from told_rows import Row, attempt, peak_gb, product_rate, step_seconds, tell

from manyfaces.cluster.device import worker_device
from manyfaces.configs.backbones.backbone import Backbone
from manyfaces.configs.backbones.iresnet import IResNet
from manyfaces.configs.backbones.vit import ViT
from manyfaces.models.backbones.output import as_output
from manyfaces.models.backbones.pixels import to_input

EAGER = [("eager, float32", False, False, False), ("eager, bfloat16", True, False, False)]
EAGER += [("eager, bfloat16, channels last", True, True, False)]
COMPILED = [("compiled, bfloat16", True, False, True)]
COMPILED += [("compiled, bfloat16, channels last", True, True, True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    device = worker_device()
    tiny: bool = arguments.tiny
    side, px = (256, 32) if tiny else (8192, 112)
    batch, rounds = (8, 1) if tiny else (arguments.batch, arguments.rounds)
    if tiny:  # the same but for the C++ compiler, which takes a minute for each
        torch.compile = partial(torch.compile, backend="aot_eager")
    models: dict[str, Backbone] = {
        "IResNet-18" if tiny else "IResNet-50": IResNet(depth=18 if tiny else 50),
        "ViT-T" if tiny else "ViT-B": ViT(size="tiny" if tiny else "base"),
    }
    rate = product_rate(device, side, torch.bfloat16)
    tell(Row(f"products of {side:,}, bfloat16", rate / 1e12, "TFLOP/s"))
    # What compiles comes last: it takes a minute or two before its first step.
    for variants in (EAGER, COMPILED):
        for name, model in models.items():
            for variant, bf16, channels_last, compiled in variants:
                if channels_last and isinstance(model, ViT):
                    continue  # its only convolution cuts the patches
                what = f"{name}, {variant}"

                def measure(
                    model: Backbone = model,
                    flags: tuple[bool, bool, bool] = (bf16, channels_last, compiled),
                    what: str = what,
                ) -> Row:
                    return measured(what, model, px, batch, rounds, flags, device, rate)

                attempt(what, measure)


def measured(
    what: str,
    model: Backbone,
    px: int,
    batch: int,
    rounds: int,
    flags: tuple[bool, bool, bool],
    device: torch.device,
    products: float,
) -> Row:
    """The row of one variant, at this batch or the largest half, quarter, .. that fits."""
    try:
        seconds, peak = step_of(model, px, batch, rounds, flags, device)
    except torch.OutOfMemoryError:
        if batch < 16:
            raise
        torch.cuda.empty_cache()
        return measured(what, model, px, batch // 2, rounds, flags, device, products)
    rate = batch / seconds
    share = 6 * model.cost((px, px)).multiply_adds * rate / products
    detail = f"{share:.1%} of the products' rate, batch {batch}, {1e3 * seconds:,.1f} ms, {peak}"
    return Row(what, rate, "images/s", detail)


def step_of(
    model: Backbone,
    px: int,
    batch: int,
    rounds: int,
    flags: tuple[bool, bool, bool],
    device: torch.device,
) -> tuple[float, str]:
    """Seconds of a step, and its memory in words."""
    bf16, channels_last, compiled = flags
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = model.build(image_hw=(px, px)).to(device).train()
    run = torch.compile(network) if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, fused=True)
    images_NHWC = torch.randint(0, 256, (batch, px, px, 3), dtype=torch.uint8, device=device)

    def step() -> None:
        images_NCHW = to_input(images_NHWC, model, layout)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            embeddings_ND = as_output(run(images_NCHW)).embeddings["main"]
        embeddings_ND.float().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step_seconds(step, device, rounds=rounds), peak_gb(device)


if __name__ == "__main__":
    main()
