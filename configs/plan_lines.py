"""The plan in lines for people, and what other settings of the head would cost."""

from manyfaces.configs.head_cost import Machine, alternatives, describe, head_cost
from manyfaces.configs.objectives.objective import ObjectiveCost, Sizes
from manyfaces.configs.plan import Plan
from manyfaces.configs.schema import Config

Lines = list[tuple[str, str]]
"""Labels and texts."""


def lines(found: Plan) -> Lines:
    """The plan for people, a line for each figure."""
    return [*_run_lines(found), *_memory_lines(found), *_step_lines(found)]


def _run_lines(found: Plan) -> Lines:
    passes = f"{found.epochs:g} epochs, {found.num_samples:,} samples"
    warmup = f", warm-up {found.warmup_samples:,}" if found.warmup_samples else ""
    each = f"{found.images_per_worker:,} images each" if found.world_size > 1 else "all images"
    told = [
        ("dataset", f"{found.num_images:,} images of {found.num_identities:,} identities"),
        ("backbone", _backbone(found)),
    ]
    if found.has_head:
        told.append(("head", f"{_count(found.whole_objective.parameters)} parameters"))
    told.append(("steps", f"{found.num_steps:,} of {found.batch_size:,} images ({passes}{warmup})"))
    return [*told, ("workers", f"{found.world_size}, {each}")]


def _backbone(found: Plan) -> str:
    parameters, multiply_adds = found.network.parameters, found.network.multiply_adds
    unknown = "unknown and not in the figures below"
    parameters_told = _count(parameters) if parameters else f"{unknown} (model.num_parameters)"
    told = _count(multiply_adds) if multiply_adds else f"{unknown} (model.multiply_adds)"
    trained = found.network.trained
    trained_told = _count(trained) if trained else unknown
    only = f", of them trained {trained_told}" if trained != parameters else ""
    return f"{parameters_told} parameters{only}, {told} multiply-adds an image"


def _memory_lines(found: Plan) -> Lines:
    network, objective = found.network, found.objective
    told = [
        ("memory a worker", f"about {_size(found.memory_bytes)}"),
        ("  weights", _size(network.weight_bytes)),
        ("  gradients", _size(network.gradient_bytes)),
        ("  optimizer", _size(network.optimizer_bytes)),
    ]
    if found.has_head:
        told.append(("  head rows and state", _size(objective.device_bytes)))
    told.append((f"  {_objective(found)} workspace", _size(objective.workspace_bytes)))
    told.append(("  activations", f"about {_size(network.activation_bytes)}"))
    snapshot = found.snapshot_bytes(objective)
    if snapshot and not found.has_gpus:
        told.append(("  checkpoint snapshot", _size(snapshot)))
    held = {"head rows and state": objective.host_bytes}
    if found.has_gpus:
        held["checkpoint snapshot"] = snapshot
    if host := [f"{name}, {_size(size)}" for name, size in held.items() if size]:
        told.append(("host memory a worker", "; ".join(host)))
    return told


def _step_lines(found: Plan) -> Lines:
    network, objective, name = found.network, found.objective, _objective(found)
    told = [
        ("read a step", f"about {_size(found.read_bytes)} over all workers"),
        ("upload a step", f"{_size(found.upload_bytes)} a worker"),
    ]
    if objective.travel_bytes:
        travel = f"{_size(objective.travel_bytes)} to the device and back a worker"
        told.append(("chosen rows a step", f"{travel}, beside the backbone"))
    sent = f"gradients {_size(network.wire_bytes)}, {name} {_size(objective.wire_bytes)} a worker"
    flops = f"backbone {_count(network.flops)}FLOP"
    if found.has_head:
        flops += f", head {_count(found.whole_objective.flops)}FLOP"
    kept = _size(found.kept_checkpoints * found.checkpoint_bytes)
    waits = "" if found.copies_state else "; without a copy in memory: training waits for it"
    return [
        *told,
        ("sent a step", sent),
        ("arithmetic a step", flops),
        ("checkpoint", f"{_size(found.checkpoint_bytes)}, {kept} in all{waits}"),
    ]


def _objective(found: Plan) -> str:
    return "head" if found.has_head else "objective"


def head_lines(config: Config, found: Plan, machine: Machine) -> Lines:
    """What each setting of the head's rows and logits would cost a worker, and the quickest that
    fits its memory; nothing where the objective has no head."""
    if not config.has_head:
        return []
    header = (
        "memory a worker, rows and logits moved a step, sent, arithmetic, about the time on "
        f"{machine.name}"
    )
    told: Lines = [("head settings", header)]
    own = head_cost(config.head, _sizes(config, found, machine))
    others = found.memory_bytes - _on_device(own, found)
    fitting: list[tuple[float, float, int, str]] = []  # of equals, the first
    for head in alternatives(
        config.head,
        kernels=machine.is_gpu and config.engine.head_kernels == "auto",
        is_gpu=machine.is_gpu,
        world_size=found.world_size,
    ):
        cost = head_cost(head, _sizes(config, found, machine))
        total, seconds = others + _on_device(cost, found), machine.seconds(cost)
        remarks = ["this recipe"] if head == config.head else []
        if total <= machine.memory_bytes:
            fitting.append((seconds, total, len(fitting), describe(head)))
        else:
            remarks.append("does not fit")
        moved = " ".join(f"{_size(n):>9}" for n in (total, cost.traffic_bytes, cost.wire_bytes))
        figures = f"{moved} {_count(cost.flops):>7}FLOP {1e3 * seconds:>8.3g} ms"
        told.append((f"  {describe(head)}", f"{figures}  {', '.join(remarks)}".rstrip()))
    best = "none: more workers, a lower head.sample_rate, a smaller batch or "
    best += "head.placement=host" if found.has_gpus else "checkpoint.background=false"
    if fitting:
        best = min(fitting)[-1]
    return [*told, (f"cheapest in {_size(machine.memory_bytes)}", best)]


def _on_device(cost: ObjectiveCost, found: Plan) -> int:
    """Memory of a worker's device that depends on the head: on a CPU, its copy for checkpoints
    too."""
    copied = cost.state_bytes if found.copies_state and not found.has_gpus else 0
    return cost.device_bytes + cost.workspace_bytes + copied


def _sizes(config: Config, found: Plan, machine: Machine) -> Sizes:
    return Sizes(
        found.num_identities,
        config.model.embedding_dim,
        found.batch_size,
        found.world_size,
        machine.is_gpu,
    )


def _count(number: float) -> str:
    for unit in ("", " k", " M", " G", " T", " P"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} E"


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} PiB"
