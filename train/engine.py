"""The backbone under DeepSpeed ZeRO: forward, backward, step, and its whole state in a form that
knows no world size or stage.

The one file that knows deepspeed. The head stays outside: DeepSpeed would broadcast rank 0's class
rows over every rank's.
"""

import logging
import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from manyfaces.configs import schema
from manyfaces.configs.schema import UserError
from manyfaces.models.backbones.backbone import checkpoint_activations, normalise

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its optional parts, at import
    import deepspeed
    from deepspeed.utils import logger as deepspeed_logger
    from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state

deepspeed_logger.setLevel(logging.ERROR)
# DeepSpeed 0.19 calls torch 2.13 by names that torch has renamed; nobody here can mend that.
warnings.filterwarnings("ignore", message=".*deprecated", module=r"(torch|deepspeed)\b")
# Without the shared-memory op a CPU machine needs no C++ build of 40 s, whose lock a killed process
# leaves behind for ever.
if deepspeed.__version__.startswith("0.19."):
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

MOMENTS = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}


class NotFiniteError(RuntimeError):
    """A gradient was not finite: the backbone did not take the step."""


class Engine:
    """Wraps `backbone`, whose weights must already be the ones to start from: DeepSpeed copies them
    when it is built.

    Call `warm_up` once and then `load_moments`, whether the run is fresh or resumed, so that both
    take the same path.
    """

    def __init__(
        self,
        backbone: nn.Module,
        train: schema.Train,
        settings: schema.Engine,
        device: torch.device,
        world_size: int,
    ) -> None:
        self.device, self.stage, self.clip_norm = device, settings.zero_stage, train.clip_norm
        self.memory_format = (
            torch.channels_last if settings.channels_last else torch.contiguous_format
        )
        self.autocast = train.precision == "bfloat16"
        self.moments = (
            () if getattr(train.optimizer, "momentum", 1) == 0 else MOMENTS[train.optimizer.kind]
        )
        if settings.activation_checkpointing:
            checkpoint_activations(backbone)
        self.module = backbone.to(
            device
        )  # the images alone make convolutions NHWC; DeepSpeed cannot broadcast NHWC weights
        if train.sync_batchnorm and world_size > 1:
            if device.type == "cpu":
                raise UserError(
                    "train.sync_batchnorm needs GPUs: torch has no SyncBatchNorm for CPU; set it "
                    "to false"
                )
            self.module = nn.SyncBatchNorm.convert_sync_batchnorm(self.module)  # type: ignore[no-untyped-call]
        trained = [p for p in self.module.parameters() if p.requires_grad]
        options = train.optimizer.model_dump(exclude={"kind"})
        optimizer = (
            torch.optim.SGD(trained, **options)
            if train.optimizer.kind == "sgd"
            else torch.optim.AdamW(trained, **options)
        )
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": -(-train.batch_size // world_size),
            "zero_optimization": {
                "stage": self.stage,
                "overlap_comm": device.type == "cuda",
                # DeepSpeed allocates its buckets whole; its default of 5e8 elements is for models
                # of billions.
                "reduce_bucket_size": min(sum(p.numel() for p in trained), 50_000_000),
                "allgather_bucket_size": min(sum(p.numel() for p in trained), 50_000_000),
            },
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": self.clip_norm
            if self.stage
            else 0.0,  # stage 0 does not tell the norm, so `step` clips
            "torch_autocast": {"enabled": self.autocast, "dtype": "bfloat16"},
        }
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self.module,
            model_parameters=trained,
            optimizer=optimizer,
            config=config,
            dist_init_required=False,
        )
        if settings.compile:
            self._engine.compile()
        self.parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def embed(self, images_NHWC: Tensor) -> Tensor:
        """uint8 RGB images [N, P, P, 3] on the device to embeddings [N, D], float32."""
        return self._engine(normalise(images_NHWC, self.memory_format)).float()  # type: ignore[no-any-return]

    def backward(self, embeddings_ND: Tensor, d_embeddings_ND: Tensor) -> None:
        """Backpropagate a gradient that was computed elsewhere, by a surrogate loss that has
        exactly that gradient."""
        self._engine.backward((embeddings_ND * d_embeddings_ND).sum())

    def step(self, lr: float) -> float:
        """Clip, update, return the gradient norm before clipping. Raises `NotFiniteError`, on every
        rank alike."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
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

    def warm_up(self, images_NHWC: Tensor) -> None:
        """One step at learning rate 0: creates the optimiser's state, and finds out-of-memory and
        compile errors before step 1."""
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        embeddings_ND = self.embed(images_NHWC)
        self.backward(embeddings_ND, torch.full_like(embeddings_ND, 1e-6))
        self.step(0.0)
        with torch.no_grad():
            for name, buffer in self.module.named_buffers():
                buffer.copy_(buffers[name])

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, float32 as trained; not copied."""
        return {name: tensor.detach() for name, tensor in self.module.state_dict().items()}

    def read_moments(self) -> dict[str, Tensor]:
        """The whole optimiser state as `KIND.PARAMETER`, and the number of steps. Collective at
        stages 1 and 2."""
        state = {
            f"{kind}.{name}": self._get(p, kind).detach()
            for kind in self.moments
            for name, p in self.parameters.items()
        }
        return state | {"step": torch.tensor(float(self._steps()))}

    def load_moments(self, state: dict[str, Tensor] | None) -> None:
        """Set the optimiser state (None: as before any step) after `warm_up`, and check that it was
        taken."""
        for kind in self.moments:
            for name, p in self.parameters.items():
                value = (
                    torch.zeros_like(p, dtype=torch.float32)
                    if state is None
                    else state[f"{kind}.{name}"].to(p.device, torch.float32)
                )
                if self.stage == 0:
                    self._optimizer.state[p][kind].copy_(value)
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
