"""What only a GPU can show. Skipped without one; not run by us yet."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from manyfaces.configs import schema
from manyfaces.configs.objectives.triplet import Triplet
from manyfaces.configs.transforms.blur import Blur
from manyfaces.configs.transforms.colour import Colour
from manyfaces.configs.transforms.crop import Crop
from manyfaces.configs.transforms.erase import Erase
from manyfaces.configs.transforms.flip import Flip
from manyfaces.configs.transforms.jpeg import Jpeg
from manyfaces.configs.transforms.low_resolution import LowResolution
from manyfaces.configs.transforms.mask import Mask
from manyfaces.configs.transforms.misalign import Misalign
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.feed.decode import Decoder
from manyfaces.data.feed.loader import Loader
from manyfaces.data.feed.quarantine import Quarantine
from manyfaces.data.store.samples import Store
from manyfaces.data.transforms.augmentation import Augmentation
from manyfaces.models.head.class_choice import ClassChoice
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.train.objectives.triplet_loss import triplet_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_both_devices_decode_alike(dataset: Dataset) -> None:
    """nvJPEG and libjpeg-turbo round differently: within JPEG tolerance."""
    transforms = (
        Mask(p=0.3),
        Misalign(shift_px=3, rotate_deg=5),
        Flip(),
        Crop(p=0.3),
        Colour(brightness=0.2),
        Blur(p=0.3),
        LowResolution(p=0.3),
        Jpeg(p=0.3),
        Erase(p=0.5),
    )
    size = (112, 96)
    augmentation = Augmentation(transforms, size)
    blobs, choices = Store(dataset.part).read(range(16)), augmentation.draw(0, np.arange(16))
    images = [
        Decoder(size, 16, augmentation, device=torch.device(d))(blobs, choices)[0].cpu().int()
        for d in ("cpu", "cuda:0")
    ]
    assert (images[0] - images[1]).abs().float().mean() < 2


def test_a_corrupt_image_costs_itself_only(dataset: Dataset) -> None:
    blobs = Store(dataset.part).read(range(16))
    blobs[4] = np.concatenate([blobs[4][:3], np.full(500, 7, np.uint8), blobs[4][-2:]])
    images, good = Decoder((112, 112), 16, device=torch.device("cuda:0"))(blobs)
    assert good.tolist() == [i != 4 for i in range(16)]
    assert torch.equal(images[4], images[5])


def test_batches_come_while_the_device_trains(dataset: Dataset, tmp_path: Path) -> None:
    with Loader(
        dataset,
        schema.Data(),
        seed=0,
        batch_size=16,
        rank=0,
        world_size=1,
        position=0,
        end=64,
        device=torch.device("cuda:0"),
        quarantine=Quarantine(tmp_path / "quarantine.jsonl", dataset, 0.001),
    ) as loader:
        batches = iter(loader)
        next(batches)
        torch.cuda._sleep(4_000_000_000)  # some two seconds, as a step
        busy = torch.cuda.current_stream().record_event()
        for _ in range(3):
            next(batches)
        assert not busy.query()


HEADS = [
    schema.Head(chunk_classes=128),
    schema.Head(sample_rate=0.5, chunk_classes=128, logits="store16"),
    schema.Head(
        sample_rate=0.5, chunk_classes=128, rows=schema.Rows(optimizer="rowwise", dtype="float16")
    ),
    schema.Head(sample_rate=0, rows=schema.Rows(dtype="bfloat16")),
    schema.Head(sample_rate=0.5, chunk_classes=128, rows=schema.Rows(lazy_decay=True)),
]
ADAMW = schema.Head(
    sample_rate=0.5, chunk_classes=128, rows=schema.Rows(optimizer="adamw")
)  # its first steps are signs: no limit holds


@pytest.mark.parametrize("config", HEADS, ids=range(len(HEADS)))
@pytest.mark.parametrize("kernels", [False, True])
def test_the_head_is_the_same_on_both_devices(config: schema.Head, kernels: bool) -> None:
    outcomes = []
    for device in ("cpu", "cuda:0"):
        head = PartialFC(
            config,
            1000,
            64,
            seed=0,
            weight_decay=5e-4,
            device=torch.device(device),
            kernels=kernels,
        )
        generator = torch.Generator().manual_seed(0)
        embeddings = torch.randn(32, 64, generator=generator).to(device)
        labels = torch.randint(0, 1000, (32,), generator=generator).to(device)
        weights = torch.rand(32, generator=generator).to(device)
        step = head.step(
            embeddings, labels, lr=0.1, position=0, batch_size=32, weights_N=weights, details=True
        )
        assert step.target_cosine_N is not None
        assert step.nearest_negative_N is not None
        cosines = [step.target_cosine_N, step.nearest_negative_N.nan_to_num(neginf=-1)]
        outcomes.append([step.loss, step.d_embeddings_ND, *cosines, *head.tensors().values()])
    limit = 2e-2 if kernels else 1e-3
    for ours, theirs in zip(*outcomes, strict=True):
        ours, theirs = ours.double().cpu(), theirs.double().cpu()
        assert (ours - theirs).norm() <= limit * theirs.norm()


@pytest.mark.parametrize("config", [*HEADS, ADAMW], ids=range(len(HEADS) + 1))
@pytest.mark.parametrize("kernels", [False, True])
def test_the_host_waits_for_nothing_in_the_heads_step(config: schema.Head, kernels: bool) -> None:
    head = PartialFC(
        config, 1000, 64, seed=0, weight_decay=5e-4, device=torch.device("cuda:0"), kernels=kernels
    )
    embeddings, labels = torch.randn(32, 64, device="cuda:0"), torch.arange(32, device="cuda:0")
    for position in range(3):
        torch.cuda.set_sync_debug_mode(
            "error" if position else "default"
        )  # the first step compiles
        try:
            head.step(
                embeddings,
                labels,
                lr=0.1,
                position=32 * position,
                batch_size=32,
                weights_N=torch.ones(32, device="cuda:0") if position > 1 else None,
                weight=0.5,
                details=position > 1,
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")


SOME = [config for config in HEADS if config.sample_rate < 1]


def placed(config: schema.Head, placement: str, kernels: bool) -> PartialFC:
    config = config.model_copy(update={"placement": placement})
    return PartialFC(
        config, 1000, 64, seed=0, weight_decay=5e-4, device=torch.device("cuda:0"), kernels=kernels
    )


@pytest.mark.parametrize("config", SOME, ids=range(len(SOME)))
@pytest.mark.parametrize("kernels", [False, True])
def test_rows_on_the_host_give_the_same_and_the_host_waits_for_labels_only(
    config: schema.Head, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    synchronize = torch.cuda.Event.synchronize

    def counted(event: torch.cuda.Event) -> None:
        waits.append(threading.current_thread() is threading.main_thread())
        synchronize(event)

    outcomes = []
    for placement in ("device", "host"):
        head, found = placed(config, placement, kernels), []
        generator = torch.Generator().manual_seed(0)
        for step in range(4):
            embeddings = torch.randn(32, 64, generator=generator).to("cuda:0")
            labels = torch.randint(0, 1000, (32,), generator=generator).to("cuda:0")
            with monkeypatch.context() as patch:
                patch.setattr(torch.cuda.Event, "synchronize", counted)
                torch.cuda.set_sync_debug_mode(
                    "error" if step else "default"
                )  # the first step compiles, and pins its buffers
                try:
                    head.prefetch(32 * step, 32)
                    before = sum(waits)
                    done = head.step(embeddings, labels, lr=0.01, position=32 * step, batch_size=32)
                    assert sum(waits) - before == (placement == "host")
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            found += [done.loss, done.d_embeddings_ND]
        outcomes.append([*found, *head.tensors().values()])
        assert all(tensor.is_cuda == (placement == "device") for tensor in head.tensors().values())
    for ours, theirs in zip(*outcomes, strict=True):
        ours, theirs = ours.double().cpu(), theirs.double().cpu()
        assert (ours - theirs).norm() <= (2e-2 if kernels else 1e-3) * theirs.norm()


def test_drawn_rows_come_while_the_device_is_busy() -> None:
    head = placed(SOME[0], "host", False)
    head.step(
        torch.randn(32, 64, device="cuda:0"),
        torch.arange(32, device="cuda:0"),
        lr=0.1,
        position=0,
        batch_size=32,
    )
    head.prefetch(32, 32)
    torch.cuda._sleep(4_000_000_000)  # some two seconds, as a backbone
    busy = torch.cuda.current_stream().record_event()
    assert head.staging is not None
    brought = head.staging._join_worker()
    assert brought is not None
    brought.synchronize()
    assert not busy.query()


def test_the_number_of_columns_is_known_while_the_device_is_busy() -> None:
    device, labels = torch.device("cuda:0"), torch.arange(160, device="cuda:0")
    choice = ClassChoice(
        1500, 0, 1500, rate=0.6, seed=5, chunk_classes=100, spaces=(0,), device=device
    )
    choice.look_ahead(labels, 0)
    torch.cuda._sleep(4_000_000_000)  # some two seconds, as a backbone
    busy = torch.cuda.current_stream().record_event()
    columns = choice.columns(labels, 0)
    assert not busy.query()
    assert sum(map(len, columns.chunks)) < 1500


@pytest.mark.parametrize("mining", ["batch_hard", "semi_hard"])
def test_the_triplet_loss_is_the_same_on_both_devices_and_waits_for_nothing(mining: str) -> None:
    generator = torch.Generator().manual_seed(0)
    unit_BD = torch.nn.functional.normalize(torch.randn(64, 128, generator=generator))
    labels_B = torch.randint(-1, 12, (64,), generator=generator)
    unit_BD[labels_B == -1] = 0
    config = Triplet.model_validate({"mining": mining})
    loss, d_unit_BD = triplet_loss(unit_BD, labels_B, 5, 50, config)
    there_BD, labels_there_B = unit_BD.to("cuda:0"), labels_B.to("cuda:0")
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_there, d_there_BD = triplet_loss(there_BD, labels_there_B, 5, 50, config)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert abs(loss_there.cpu() - loss) <= 1e-9 * loss
    assert (d_there_BD.cpu() - d_unit_BD).norm() <= 1e-6 * d_unit_BD.norm()
