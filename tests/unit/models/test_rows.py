from itertools import product

import pytest
import torch
from pydantic import ValidationError

from manyfaces.configs import schema
from manyfaces.models.head import row_optimizers
from manyfaces.models.head.float8 import FLOAT8, bits, to_float32
from manyfaces.models.head.rows import Rows, StepMask

CPU = torch.device("cpu")
KINDS = [
    schema.Rows(optimizer=o, dtype=d)
    for o, d in product(["sgd", "rowwise", "adamw"], ["float32", "bfloat16", "float16"])
]
KINDS.append(schema.Rows(optimizer="rowwise", dtype="float8"))
LAZY = [schema.Rows(lazy_decay=True, dtype=d) for d in ("float32", "bfloat16", "float16")]
kinds = pytest.mark.parametrize(
    "config",
    KINDS + LAZY,
    ids=lambda config: f"{config.optimizer}{'-lazy' * config.lazy_decay}-{config.dtype}",
)


def make(config: schema.Rows, lo: int = 0, hi: int = 300, dim: int = 16) -> Rows:
    return row_optimizers.build(config, 7, lo, hi, dim, CPU)


def step(
    made: Rows,
    ids: slice | torch.Tensor,
    gradient: torch.Tensor,
    *,
    lr: float = 0.1,
    applied: bool = True,
    position: int = 0,
) -> None:
    """Step the rows `ids`, in parts of 70 if by number; the gradient is that of all rows."""
    mask = StepMask(torch.tensor(applied), lr, 5e-4, position)
    for part in ids.split(70) if isinstance(ids, torch.Tensor) else [ids]:
        made.catch_up_(part)
        rows_nD = made.take(part)
        made.update_(part, rows_nD, made.inverse_norms(part, rows_nD), gradient[part].clone(), mask)
    made.finish_step_(mask)


@kinds
def test_a_step_that_is_not_applied_changes_nothing(config: schema.Rows) -> None:
    made, gradient = make(config), torch.randn(300, 16)
    step(made, slice(0, 300), gradient)
    before = {name: tensor.clone() for name, tensor in made.tensors().items()}
    step(made, slice(0, 300), gradient, applied=False, position=1)
    for name, tensor in made.tensors().items():
        assert torch.equal(bits(tensor), bits(before[name]))


@kinds
def test_parts_and_slices_and_ranks_do_the_same(config: schema.Rows) -> None:
    gradient = torch.randn(300, 16)
    whole = make(config)
    step(whole, slice(0, 300), gradient)
    by_number, ranks = make(config), [make(config, 0, 130), make(config, 130, 300)]
    step(by_number, torch.randperm(300), gradient)
    step(ranks[0], slice(0, 130), gradient[:130])
    step(ranks[1], slice(0, 170), gradient[130:])
    for name, tensor in whole.tensors().items():
        assert torch.equal(bits(by_number.tensors()[name]), bits(tensor))
        parts = torch.cat([bits(rank.tensors()[name]) for rank in ranks])
        assert torch.equal(parts, bits(tensor))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8"])
def test_rounding_is_right_on_average_and_to_a_neighbour(dtype: str) -> None:
    made = make(schema.Rows(optimizer="rowwise", dtype=dtype), hi=64, dim=512)
    target = torch.randn(64, 512) / 20
    total, turns = torch.zeros_like(target, dtype=torch.float64), 400
    spacing = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float8": 2.0**-3}[dtype] * target.abs()
    if dtype == "float8":  # a third of the numbers are below its normal ones
        spacing.clamp_(min=2.0**-9)
    for position in range(turns):
        rounded = target.clone()
        made._round_(rounded, slice(0, 64), position)
        torch.testing.assert_close(
            rounded, rounded.to(made.dtype).float(), rtol=0, atol=2**-25
        )  # float16's smallest are coarser
        assert ((rounded - target).abs() <= spacing).all()
        total += rounded
    # A fair coin between neighbours has a standard deviation of at most half their distance.
    sigma = spacing / 2 / turns**0.5
    assert (((total / turns - target).abs() / sigma) < 6).all()
    assert abs(((total / turns - target) / sigma).mean()) < 0.05


@kinds
def test_a_row_of_zeros_stays_one(config: schema.Rows) -> None:
    made = make(config)
    for tensor in made.tensors().values():
        bits(tensor)[5:9] = 0
    gradient = torch.randn(300, 16)
    gradient[5:9] = 0  # what a class that takes no part gets
    step(made, slice(0, 300), gradient)
    for tensor in made.tensors().values():
        assert not tensor[5:9].float().any()
        assert tensor.float().isfinite().all()


def test_steps_below_the_spacing_count() -> None:
    """What rounding to nearest would lose, stochastic rounding keeps on average."""
    made = make(schema.Rows(optimizer="rowwise", dtype="float16", momentum=0), hi=1, dim=512)
    exact = make(schema.Rows(optimizer="rowwise", dtype="float32", momentum=0), hi=1, dim=512)
    gradient = torch.randn(1, 512)
    for position in range(500):
        for each in (made, exact):
            step(each, slice(0, 1), gradient, lr=2e-6, position=position)
    first, moved, should = (
        make(made.config, hi=1, dim=512).rows_CD[0].float(),
        made.rows_CD[0].float(),
        exact.rows_CD[0],
    )
    assert (should - first).norm() > 0.01
    assert (moved - should).norm() < 0.15 * (should - first).norm()


def test_8_bits_go_where_the_gradient_says_on_average() -> None:
    """A single row wanders about as much as it moves; the mean over rows does not."""
    made, exact = (
        make(schema.Rows(optimizer="rowwise", dtype=dtype, momentum=0), hi=128, dim=512)
        for dtype in ("float8", "float32")
    )
    exact.rows_CD.copy_(made.rows_CD)
    exact.refresh_norms_()
    first, gradient = exact.take(slice(0, 128)).clone(), torch.randn(128, 512)
    for position in range(200):
        for each in (made, exact):
            step(each, slice(0, 128), gradient, lr=5e-6, position=position)
    should = exact.take(slice(0, 128)) - first
    moved = made.take(slice(0, 128)) - first
    assert (should.norm(dim=1) > 0.01).all()
    assert float((moved * should).sum() / should.square().sum()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("dtype", "num_bytes"), [("float16", 1032), ("float8", 520)])
def test_how_many_bytes_a_class_has(dtype: str, num_bytes: int) -> None:
    made = make(schema.Rows(optimizer="rowwise", dtype=dtype), dim=512)
    assert sum(tensor.nbytes for tensor in made.tensors().values()) == num_bytes * 300


def test_every_number_of_8_bits_is_read_exactly() -> None:
    numbers = torch.arange(256, dtype=torch.uint8).view(FLOAT8)
    finite = numbers.float().isfinite()
    assert int(finite.sum()) == 254
    assert torch.equal(to_float32(numbers)[finite], numbers.float()[finite])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_8_bits_are_for_unit_rows(optimizer: str) -> None:
    with pytest.raises(ValidationError, match="dtype float8 needs optimizer rowwise"):
        schema.Rows(optimizer=optimizer, dtype="float8")


def test_without_momentum_no_memory_is_spent_on_it() -> None:
    made, gradient = make(schema.Rows(momentum=0)), torch.randn(300, 16)
    assert list(made.tensors()) == ["rows"]
    w = torch.nn.Parameter(made.tensors()["rows"].clone())
    w.grad = (
        gradient
        - (gradient * w.detach()).sum(1, keepdim=True)
        / w.detach().square().sum(1, keepdim=True)
        * w.detach()
    )
    torch.optim.SGD([w], lr=0.1, weight_decay=5e-4).step()
    step(made, slice(0, 300), gradient)
    torch.testing.assert_close(made.tensors()["rows"], w.detach())


def test_first_rows_of_the_small_state_are_unit_and_by_class() -> None:
    config = schema.Rows(optimizer="rowwise")
    torch.testing.assert_close(
        torch.linalg.vector_norm(make(config).tensors()["rows"], dim=1), torch.ones(300)
    )
    assert torch.equal(
        make(config, 100, 200).tensors()["rows"], make(config).tensors()["rows"][100:200]
    )


@kinds
def test_a_state_says_how_to_go_on(config: schema.Rows) -> None:
    """To the bit: what was left to be worked off is worked off when a state is asked for."""
    draws = [(torch.randperm(300)[:90], torch.randn(300, 16)) for _ in range(12)]
    first, second = make(config), make(config)
    for position, (ids, gradient) in enumerate(draws):
        if position == 7:
            for name, tensor in first.tensors().items():
                second.tensors()[name].copy_(tensor)
        for each in (first, second)[: 1 + (position >= 7)]:
            step(each, ids, gradient, position=position)
    for name, tensor in first.tensors().items():
        assert torch.equal(second.tensors()[name], tensor)


def test_rows_that_are_left_alone_wait_until_they_are_drawn() -> None:
    made = make(LAZY[0])
    step(made, torch.arange(300), torch.randn(300, 16))
    before = made.rows_CD.clone()
    for position in range(1, 4):
        step(made, torch.arange(100), torch.zeros(300, 16), position=position)
    assert torch.equal(made.rows_CD[100:], before[100:])
    made.catch_up_(torch.arange(300))
    assert (made.rows_CD[100:300] != before[100:300]).any(1).all()
    assert torch.equal(made.rows_CD[-1], torch.zeros(16))


def test_only_sgd_decays_lazily() -> None:
    with pytest.raises(
        ValidationError,
        match=r"lazy_decay needs optimizer sgd, not adamw; set head\.rows\.lazy_decay=false",
    ):
        schema.Rows(optimizer="adamw", lazy_decay=True)


def test_inverse_norms_are_of_the_rows_as_another_dtype_has_them() -> None:
    exact, rounded = (
        make(schema.Rows(optimizer="rowwise", dtype=dtype), hi=64, dim=512)
        for dtype in ("float32", "bfloat16")
    )
    for name, tensor in rounded.tensors().items():
        tensor.copy_(exact.tensors()[name])
    rounded.refresh_norms_()
    norms_C = torch.linalg.vector_norm(rounded.tensors()["rows"].double(), dim=1)
    assert torch.allclose(
        rounded.tensors()["inverse_norms"].double() * norms_C,
        torch.ones(64, dtype=torch.float64),
        atol=1e-6,
    )
