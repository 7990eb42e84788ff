"""The network under DeepSpeed ZeRO: forward, backward, step, and its whole state in a form that
knows no world size or stage.

The one file that knows deepspeed. The head stays outside: DeepSpeed would broadcast rank 0's class
rows over every rank's.
"""

import contextlib
import copy
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from manyfaces.cluster.device import count_gpus
from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.activation_checkpoint import checkpoint_activations
from manyfaces.models.backbones.output import Output, as_output
from manyfaces.models.backbones.pixels import to_input
from manyfaces.models.backbones.sync_batchnorm import synchronise_batchnorm
from manyfaces.train.parameter_groups import ParamGroup


@contextlib.contextmanager
def left_out(module: str) -> Iterator[None]:
    """While the block runs, to import this module fails as if it were not installed, unless it was
    imported before: for what DeepSpeed tries to import, does without and takes seconds."""
    is_new = module not in sys.modules
    if is_new:
        sys.modules[module] = None  # type: ignore[assignment]  # as `import` defines it
    try:
        yield
    finally:
        if is_new:
            del sys.modules[module]


os.environ.setdefault("DS_ACCELERATOR", "cuda" if count_gpus() else "cpu")
with warnings.catch_warnings(), left_out("mlflow"):  # which its autotuner reports to
    warnings.simplefilter("ignore")  # of its optional parts, at import
    import deepspeed
    from deepspeed.utils import logger as deepspeed_logger
    from deepspeed.utils import (
        safe_get_full_optimizer_state,
        safe_set_full_optimizer_state,
        safe_set_local_optimizer_state,
    )

deepspeed_logger.setLevel(logging.ERROR)
# DeepSpeed 0.19 calls torch 2.13 by names that torch has renamed; nobody here can mend that.
warnings.filterwarnings("ignore", message=".*deprecated", module=r"(torch|deepspeed)\b")
# Without the shared-memory op a CPU machine needs no C++ build of 40 s, whose lock a killed process
# leaves behind for ever.
if deepspeed.__version__.startswith("0.19."):
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class NotFiniteError(RuntimeError):
    """A gradient was not finite: the network did not take the step."""


def emptied(network: nn.Module) -> nn.Module:
    """A copy of the network whose parameters have shapes and no memory; it shares the buffers."""
    parts: dict[int, Any] = {id(buffer): buffer for buffer in network.buffers()}
    for parameter in network.parameters():
        parts[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    return copy.deepcopy(network, parts)


def _own_slice(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """What this rank holds of a parameter's state at stage 3, of the whole: a part of all ranks'
    equal ones, the last padded with zeros."""
    held: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]  # DeepSpeed's
    size, rank = held.numel(), dist.get_rank()
    flat = whole.flatten()[rank * size : (rank + 1) * size]
    return F.pad(flat, (0, size - len(flat)))


class Engine:
    """Wraps `network`, whose weights must already be the ones to start from: DeepSpeed copies them
    when it is built. `groups` are all weights that are trained (`parameter_groups.groups_of`),
    `model` says how images are normalised.

    Call `warm_up` once and then `load_moments`, whether the run is fresh or resumed, so that both
    take the same path.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: Sequence[ParamGroup],
        model: schema.Backbone,
        train: schema.Train,
        settings: schema.Engine,
        device: torch.device,
        world_size: int,
    ) -> None:
        self.model = model
        self.device, self.stage, self.clip_norm = device, settings.zero_stage, train.clip_norm
        self.memory_format = (
            torch.channels_last if settings.channels_last else torch.contiguous_format
        )
        self.is_first = dist.get_rank() == 0
        assert train.precision != "auto", "settled before the run is claimed"
        self.autocast = train.precision == "bfloat16"
        self.moments = train.optimizer.moments
        self.groups = tuple(groups)
        # The images alone make convolutions NHWC; DeepSpeed cannot broadcast NHWC weights.
        self.module = network.to(device)
        self._emptied = emptied(self.module) if self.stage == 3 else None
        if settings.activation_checkpointing:
            checkpoint_activations(self.module)
        if train.sync_batchnorm and world_size > 1:
            group = dist.group.WORLD
            assert group is not None
            self.module = synchronise_batchnorm(self.module, group, device)
        self.parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        trained = list(self.parameters.values())
        in_groups = [id(p) for group in self.groups for p in group.parameters.values()]
        assert sorted(in_groups) == sorted(map(id, trained)), "each trained weight is in one group"
        # Muon is an optimiser whose import loads torch's compiler; stage 3 does not do without it.
        muon = "deepspeed.runtime.zero.muon.muon_optimizer"
        with left_out(muon) if self.stage < 3 else contextlib.nullcontext():
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                # DeepSpeed would take the GPU of this LOCAL_RANK, which a worker that is shown one
                # of several does not have.
                args=SimpleNamespace(device_rank=device.index or 0),
                model=self.module,
                model_parameters=trained,
                optimizer=self._torch_optimizer_of(train.optimizer),
                config=self._deepspeed_config(train, world_size, sum(p.numel() for p in trained)),
                dist_init_required=False,
            )
        if settings.compile:
            self._engine.compile()

    def _torch_optimizer_of(self, optimizer: schema.Optimizer) -> torch.optim.Optimizer:
        """Torch's optimiser of the groups; `step` sets their learning rates."""
        params = [
            {"params": list(group.parameters.values()), "weight_decay": group.weight_decay}
            for group in self.groups
        ]
        return optimizer.build(params=params)  # type: ignore[no-any-return]

    def _deepspeed_config(
        self, train: schema.Train, world_size: int, num_trained: int
    ) -> dict[str, Any]:
        # DeepSpeed allocates its buckets whole; its default of 5e8 elements is for models of
        # billions. It refuses an odd size.
        bucket_size = min(num_trained + num_trained % 2, 50_000_000)
        return {
            "train_micro_batch_size_per_gpu": -(-train.batch_size // world_size),
            "zero_optimization": {
                "stage": self.stage,
                "overlap_comm": self.device.type == "cuda",
                "reduce_bucket_size": bucket_size,
                "allgather_bucket_size": bucket_size,
            },
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            # Stage 0 does not tell the norm, so `step` clips.
            "gradient_clipping": self.clip_norm if self.stage else 0.0,
            "torch_autocast": {"enabled": self.autocast, "dtype": "bfloat16"},
        }

    def run(self, images_NHWC: Tensor) -> Output:
        """uint8 RGB images [N, height, width, 3] on the device, normalised as the model says,
        through the network; embeddings [N, D] and scores [N] in float32. Raises `UserError` where a
        network of one's own returns anything else."""
        return self._output(self._engine, images_NHWC)

    def _output(self, network: Callable[[Tensor], object], images_NHWC: Tensor) -> Output:
        images_NCHW = to_input(images_NHWC, self.model, self.memory_format)
        output = as_output(network(images_NCHW))
        embeddings = {name: each_ND.float() for name, each_ND in output.embeddings.items()}
        found = tuple(embeddings["main"].shape)
        if found != (len(images_NHWC), self.model.embedding_dim):
            raise UserError(
                f"the network returned embeddings {list(found)} for {len(images_NHWC)} images; "
                f"model.embedding_dim is {self.model.embedding_dim}"
            )
        scores = {name: each_N.float() for name, each_N in output.scores.items()}
        return output._replace(embeddings=embeddings, scores=scores)

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """Backpropagate a scalar whose gradient is the network's. Ranks average their gradients, so
        that a gradient of the global mean has to come multiplied by the number of ranks. Of several
        scalars, whose gradients add up, only the one before `step` `is_last`."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss)

    def step(self, lr: float) -> float:
        """Clip, update with `lr` times each group's factor, return the gradient norm before
        clipping. Raises `NotFiniteError`, on every rank alike."""
        for options, group in zip(self._optimizer.param_groups, self.groups, strict=True):
            options["lr"] = lr * group.lr_scale
        norm = torch.tensor(0.0)
        if self.stage == 0:
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.clip_norm)
            if not torch.isfinite(norm):
                raise NotFiniteError(f"gradient norm {norm.item()}")
        self._engine.step()
        norm = norm if self.stage == 0 else self._engine.get_global_grad_norm()
        if not self._engine.was_step_applied():
            raise NotFiniteError(f"gradient norm {float(norm)}")
        return float(norm)

    @torch.no_grad()
    def average(self, into: nn.Module, of: nn.Module, momentum: float) -> None:
        """Move the frozen weights of one part of the network to `momentum` times themselves and
        (1 - `momentum`) times those of another part, which has the same ones. At stage 3 each rank
        moves the parts that it holds, without a collective."""
        for slow, fast in zip(into.parameters(), of.parameters(), strict=True):
            for mine, theirs in zip(self._held(slow), self._held(fast), strict=True):
                # In two operations, each of which is rounded: the same bits wherever a number
                # stands in a tensor, so that all ranks' copies and parts agree.
                mine.mul_(momentum).add_(theirs * (1 - momentum))

    def _held(self, parameter: nn.Parameter) -> list[Tensor]:
        """What this rank holds of a parameter: itself or, at stage 3, its part, and all of it where
        it is small."""
        if self.stage < 3:
            return [parameter.data]
        part: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]  # DeepSpeed's
        is_small: bool = parameter.ds_persist  # type: ignore[attr-defined]
        # With one rank both are the same memory.
        same = part.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
        return [part.data, parameter.data] if is_small and not same else [part.data]

    def warm_up(self, *losses: Callable[[], Tensor]) -> None:
        """One step at learning rate 0 with the scalars that `losses` compute, at least one, each of
        which has a backward pass: creates the optimiser's state, and finds out-of-memory and
        compile errors before step 1. Buffers are put back. Several are first computed without a
        graph, as gradient caching does, which compiles the network anew."""
        *held, last = losses
        buffers = self.copy_buffers()
        if held:
            with torch.no_grad():
                for loss in losses:
                    loss()
        for loss in held:
            self.backward(loss(), is_last=False)
        self.backward(last())
        self.step(0.0)
        if self.stage in (1, 2):
            # DeepSpeed 0.19 looks for the optimiser's state after the first group's step, when the
            # other groups have none yet.
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()
        self.put_back(buffers)

    def copy_buffers(self) -> dict[str, Tensor]:
        """Copies of the network's buffers, by name."""
        return {name: buffer.clone() for name, buffer in self.module.named_buffers()}

    def put_back(self, buffers: Mapping[str, Tensor]) -> None:
        """Set the network's buffers to what `copy_buffers` gave."""
        with torch.no_grad():
            for name, buffer in self.module.named_buffers():
                buffer.copy_(buffers[name])

    @contextlib.contextmanager
    def trial(self, images_NHWC: Tensor) -> Iterator[Output]:
        """As `run`, for images of any dtype from 0 to 255, to which gradients reach; the network's
        buffers are put back when the block is left. Below stage 3 only, where the network has whole
        weights: DeepSpeed does not learn of it, and makes no step of it."""
        assert self.stage < 3, "no rank has whole weights"
        buffers = self.copy_buffers()
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                yield self._output(self.module, images_NHWC)
        finally:
            self.put_back(buffers)

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, float32 as trained; not copied but for stage 3.

        At stage 3 collective: they are on the host of rank 0, and no other rank has any. No device
        holds more than one gathered parameter at a time.
        """
        weights = {name: tensor.detach() for name, tensor in self.module.state_dict().items()}
        if self.stage == 3:
            for name, parameter in self._gathered():
                if self.is_first:
                    weights[name] = parameter.cpu()
        return weights if self.is_first or self.stage < 3 else {}

    @contextlib.contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The network for each rank to run on its own, as often as it likes: evaluation shares
        images out unevenly.

        At stage 3, where DeepSpeed's own network runs on all ranks at once or not at all, it is a
        copy with whole weights on the device, for as long as the block runs; collective.
        """
        if self._emptied is None:
            yield self.module
            return
        whole = copy.deepcopy(self._emptied, {id(b): b for b in self._emptied.buffers()})
        for name, parameter in self._gathered():
            place, _, last = name.rpartition(".")
            setattr(whole.get_submodule(place), last, nn.Parameter(parameter, requires_grad=False))
        whole.train(self.module.training)
        yield whole

    def _gathered(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters by name, one after the other, each copied on the device; one that
        several modules share comes under each of their names. Collective."""
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            with deepspeed.zero.GatheredParameters([parameter]):
                whole = parameter.detach().clone()
            yield name, whole

    def read_moments(self) -> dict[str, Tensor]:
        """The whole optimiser state as `KIND.PARAMETER`, and the number of steps, on the host of
        rank 0; nothing on the other ranks. Collective from stage 1 on.

        No device holds more of it than one gathered tensor at a time.
        """
        state: dict[str, Tensor] = {}
        for kind in self.moments:
            for name, p in self.parameters.items():
                whole = self._get(p, kind).detach()
                if self.is_first:
                    state[f"{kind}.{name}"] = whole.cpu()
        return state | {"step": torch.tensor(float(self._steps()))} if self.is_first else {}

    def load_moments(self, state: dict[str, Tensor] | None) -> None:
        """Set the optimiser state (None: as before any step) after `warm_up`, and check that it was
        taken."""
        for kind in self.moments:
            for name, p in self.parameters.items():
                has = self._get(p, kind)
                value = (
                    torch.zeros_like(has, dtype=torch.float32)
                    if state is None
                    else state[f"{kind}.{name}"].to(has.device, torch.float32)
                )
                if self.stage == 0:
                    has.copy_(value)
                elif self.stage == 3:
                    safe_set_local_optimizer_state(p, _own_slice(p, value), kind)
                else:
                    safe_set_full_optimizer_state(p, value.contiguous(), kind)
                assert torch.equal(self._get(p, kind).to(value), value), (
                    f"DeepSpeed did not take {kind} of {name}"
                )
        for entry in self._torch_optimizer.state.values():
            if "step" in entry:  # Adam's bias correction
                entry["step"] = torch.zeros_like(entry["step"]) + (
                    0.0 if state is None else float(state["step"])
                )

    def close(self) -> None:
        """Let go of what DeepSpeed has hung on the network, for another engine in this process;
        this one is of no use any more."""
        self._engine.destroy()

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer if self.stage == 0 else self._optimizer.optimizer  # type: ignore[no-any-return]

    def _get(self, parameter: nn.Parameter, kind: str) -> Tensor:
        if self.stage == 0:
            return self._optimizer.state[parameter][kind]  # type: ignore[no-any-return]
        return safe_get_full_optimizer_state(parameter, kind)  # type: ignore[no-any-return]

    def _steps(self) -> float:
        return next(
            (
                float(entry["step"])
                for entry in self._torch_optimizer.state.values()
                if "step" in entry
            ),
            0.0,
        )
