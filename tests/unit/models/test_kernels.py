"""The Triton kernels in Triton's interpreter, on the CPU, against the torch code; and compiled for
cards. No card has run them yet."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.models.head import partial_fc, row_optimizers, sampling, triton_passes
from manyfaces.models.head.passes import PassInputs, Scoring
from manyfaces.models.head.rows import StepMask
from manyfaces.models.head.sampling import Chunk
from manyfaces.models.head.triton_passes import TRITON_PASSES

CPU = torch.device("cpu")


interpreted = pytest.mark.skipif(
    "TRITON_INTERPRET" not in os.environ,
    reason="on a GPU the kernels themselves are run: tests/gpu",
)


@pytest.fixture(scope="module", autouse=True)
def small_tiles() -> Iterator[None]:
    """So that small heads have several, and programs that take more than one of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "BLOCK_B": 16,
            "BLOCK_N": 16,
            "BLOCK_BYTES": 64,
            "_PROGRAMS": 4,
        }.items():
            patch.setattr(triton_passes, name, value)
        yield


def heads(
    config: schema.Head, C: int, D: int, gone: Tensor
) -> tuple[partial_fc.PartialFC, partial_fc.PartialFC]:
    made = []
    for passes in (partial_fc.TORCH_PASSES, TRITON_PASSES):
        head = partial_fc.PartialFC(config, C, D, seed=3, weight_decay=5e-3, device=CPU)
        head.passes = passes
        head.forget(gone)
        made.append(head)
    return made[0], made[1]


def error(found: Tensor, expected: Tensor) -> float:
    return float(
        (found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    )


ROWS = [
    schema.Rows(),
    schema.Rows(momentum=0),
    schema.Rows(dtype="float16"),  # the interpreter cannot multiply bfloat16
    schema.Rows(optimizer="rowwise"),
    schema.Rows(optimizer="rowwise", dtype="float16"),
]
WITHOUT_KERNEL = [schema.Rows(optimizer="adamw"), schema.Rows(optimizer="adamw", dtype="float16")]
"""Updated by torch's operations between the kernels."""


all_nan = pytest.mark.filterwarnings("ignore:All-NaN slice")
"""numpy's warning, in which the interpreter looks for the largest."""


@interpreted
@all_nan
@settings(max_examples=10)
@given(
    C=st.integers(1, 150),
    D=st.sampled_from([16, 48, 130]),
    B=st.integers(1, 40),
    rate=st.sampled_from([1.0, 0.3, 0.0]),
    scale=st.sampled_from([30.0, 64.0, 100.0]),
    rows=st.sampled_from(ROWS),
    chunk=st.sampled_from([60, 1000]),
    forget=st.booleans(),
    weighted=st.booleans(),
)
def test_a_step_is_the_same(
    C: int,
    D: int,
    B: int,
    rate: float,
    scale: float,
    rows: schema.Rows,
    chunk: int,
    forget: bool,
    weighted: bool,
) -> None:
    config = schema.Head(scale=scale, sample_rate=rate, chunk_classes=chunk, rows=rows)
    gone = torch.arange(0, C, 3) if forget else torch.empty(0, dtype=torch.int64)
    torch_head, triton_head = heads(config, C, D, gone)
    generator = torch.Generator().manual_seed(C)
    for position in range(2):
        embeddings_BD = torch.randn(B, D, generator=generator)
        labels_B = torch.randint(-1, C, (B,), generator=generator)
        labels_B = torch.where(torch.isin(labels_B, gone), -1, labels_B)
        more: dict[str, Any] = {}
        if weighted:
            weights_B = torch.rand(B, generator=generator)
            weights_B[0] = 0
            embeddings_BD[0] = float("nan")
            more = {"weights_N": weights_B, "weight": 0.5, "details": True}
        theirs, mine = (
            head.step(embeddings_BD, labels_B, lr=0.1, position=position * B, batch_size=B, **more)
            for head in (torch_head, triton_head)
        )
        if weighted:
            for ours, expected in zip(mine[-2:], theirs[-2:], strict=True):
                torch.testing.assert_close(
                    ours[1:], expected[1:], rtol=0, atol=5e-3, equal_nan=True
                )
        assert abs(mine.loss - theirs.loss) <= 2e-2 * theirs.loss + 1e-9
        assert (
            error(mine.d_embeddings_ND, theirs.d_embeddings_ND) <= 2e-2
            or theirs.d_embeddings_ND.norm() < 1e-6
        )
        for name, tensor in triton_head.tensors().items():
            assert error(tensor, torch_head.tensors()[name]) <= 2e-2
            assert not tensor[gone].any()


@interpreted
@all_nan
@pytest.mark.parametrize(
    "rows", ROWS + WITHOUT_KERNEL, ids=lambda rows: f"{rows.optimizer}-{rows.dtype}-{rows.momentum}"
)
def test_a_step_that_is_called_off_changes_nothing(rows: schema.Rows) -> None:
    _, head = heads(
        schema.Head(rows=rows, chunk_classes=64), 100, 32, torch.empty(0, dtype=torch.int64)
    )
    embeddings_BD, labels_B = torch.randn(8, 32), torch.arange(8)
    head.step(embeddings_BD, labels_B, lr=0.1, position=0, batch_size=8)
    before = {name: tensor.clone() for name, tensor in head.tensors().items()}
    embeddings_BD[3, 3] = float("nan")
    step = head.step(embeddings_BD, labels_B, lr=0.1, position=8, batch_size=8)
    assert not step.finite
    assert not step.d_embeddings_ND.any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.tensors().items())


@interpreted
def test_rounding_uses_the_same_noise() -> None:
    """Row updates alone, from the same gradient: to the bit but for sums in another order."""
    for config in [
        *ROWS,
        *WITHOUT_KERNEL,
        schema.Rows(dtype="bfloat16"),
        schema.Rows(optimizer="rowwise", dtype="bfloat16"),
    ]:
        mine, theirs = (row_optimizers.build(config, 7, 64, 114, 32, CPU) for _ in range(2))
        mask = StepMask(torch.tensor(True), 0.1, 5e-4, 17)
        for ids in (slice(10, 40), torch.randperm(50)[:20]):
            gradient = torch.randn(len(theirs.take(ids)), 32) / 100
            rows_nD = theirs.take(ids)
            inverse_n = theirs.inverse_norms(ids, rows_nD)
            targets_B = torch.zeros(1, dtype=torch.int64)
            call = triton_passes.ChunkArguments(mine, Chunk(ids, 0), targets_B, 64.0)
            triton_passes.update_chunk_(mine, call, inverse_n.clone(), gradient.clone(), mask)
            theirs.update_(ids, rows_nD, inverse_n, gradient, mask)
        same = mine.rows_CD == theirs.rows_CD
        assert same.float().mean() > (0.5 if config.dtype == "float32" else 0.995)
        assert error(mine.rows_CD, theirs.rows_CD) < 1e-4
        for name, tensor in mine.tensors().items():
            assert error(tensor, theirs.tensors()[name]) < 1e-4


@interpreted
@pytest.mark.parametrize(
    "config", [ROWS[2], ROWS[4], WITHOUT_KERNEL[1]], ids=lambda rows: rows.optimizer
)
def test_rows_on_the_host_are_updated_alike(config: schema.Rows) -> None:
    """Copies of some rows stand elsewhere than the rows, and are rounded by the same noise."""
    states = []
    for placement in ("device", "host"):
        head = partial_fc.PartialFC(
            schema.Head(sample_rate=0.3, chunk_classes=60, rows=config, placement=placement),
            500,
            32,
            seed=3,
            weight_decay=5e-3,
            device=CPU,
        )
        head.passes = TRITON_PASSES
        generator = torch.Generator().manual_seed(0)
        for position in range(2):
            embeddings_BD, labels_B = (
                torch.randn(20, 32, generator=generator),
                torch.randint(500, (20,), generator=generator),
            )
            head.step(embeddings_BD, labels_B, lr=0.1, position=position * 20, batch_size=20)
        states.append(head.tensors())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=0, atol=0)


@interpreted
def test_columns_that_are_no_class_send_nothing() -> None:
    _, head = heads(schema.Head(), 50, 16, torch.arange(40, 50))
    columns = sampling.choose(50, 0, 50, 1.0, 0, 0, torch.tensor([3])).columns(64)
    unit_BD = torch.nn.functional.normalize(torch.randn(1, 16))
    inputs = PassInputs(head.sub_centers, unit_BD, columns, Scoring(64.0))
    every = triton_passes.sum_negatives(inputs, store=False, nearest=True)
    forgotten_C = head.choice.forgotten_C
    assert forgotten_C is not None
    chunks = [replace(c, excluded_n=forgotten_C[c.ids]) for c in columns.chunks]
    inputs = inputs._replace(columns=columns._replace(chunks=chunks))
    cosines = torch.nn.functional.normalize(head.sub_centers[0].rows_CD[:50]) @ unit_BD[0]
    keep = torch.arange(50) != 3
    torch.testing.assert_close(
        every.sum_B, (64 * cosines[keep].double()).exp().sum()[None], rtol=1e-3, atol=0
    )
    torch.testing.assert_close(every.nearest_B, cosines[keep].amax()[None], rtol=0, atol=1e-5)
    keep[40:] = False
    some = triton_passes.sum_negatives(inputs, store=False, nearest=True)
    torch.testing.assert_close(
        some.sum_B, (64 * cosines[keep].double()).exp().sum()[None], rtol=1e-3, atol=0
    )


COMPILE = """
import json, sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from manyfaces.models.head import kernels, triton_passes

sizes = {"fp32": 4, "fp16": 2, "bf16": 2}
dropped = {"fp32": 0, "fp16": 13, "bf16": 16}
shared = {}
for dtype in sizes:
    tile = {"D": 512, "HAS_IDS": True, "HAS_EXCLUDED": True, "BLOCK_B": triton_passes.BLOCK_B, "BLOCK_N": triton_passes.BLOCK_N,
            "BLOCK_D": triton_passes.BLOCK_BYTES // sizes[dtype]}
    row = {"D": 512, "HAS_IDS": True, "HAS_LOCAL_IDS": True, "HAS_MOMENTUM": True, "NOISE_ROWS": 128, "DROPPED": dropped[dtype],
           "BLOCK_D": 512}
    types = dict.fromkeys(["inverse_norms", "top_out", "sum_out", "exponent", "d_target", "gradient", "lr", "momenta", "lengths",
                           "stored_inverse"], "*fp32")
    types |= dict.fromkeys(["unit", "rows"], "*" + dtype) | dict.fromkeys(["ids", "target"], "*i64") | {"out": "*bf16", "noise": "*i32"}
    types |= {"local_ids": "*i32"} | dict.fromkeys(["excluded", "applied"], "*i8") | dict.fromkeys(["B", "n", "start", "lo"], "i32")
    types |= dict.fromkeys(["bits_per_cosine", "momentum", "weight_decay"], "fp32")
    for kernel, constants, warps in [(kernels.sum_exponentials, tile, 8), (kernels.score_gradients, tile, 8), (kernels.update_sgd, row, 4),
                                     (kernels.update_rowwise, row, 4)]:
        constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
        source = ASTSource(kernel, {name: types.get(name, "constexpr") for name in kernel.arg_names}, constexprs=constants)
        made = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": warps})
        shared[f"{kernel.__name__} {dtype}"] = made.metadata.shared
print(json.dumps(shared))
"""


@pytest.mark.parametrize(
    ("card", "kib"),
    [
        pytest.param(80, 163, id="A100", marks=pytest.mark.slow),
        pytest.param(89, 99, id="L40"),  # the one with the least
        pytest.param(90, 227, id="H100", marks=pytest.mark.slow),
    ],
)
def test_kernels_compile_and_fit_a_cards_shared_memory(card: int, kib: int, tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"
    } | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(card)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    shared = json.loads(done.stdout)
    assert len(shared) == 12
    assert max(shared.values()) <= kib * 1024, shared
