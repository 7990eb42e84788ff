"""The plan in lines for people, and what other settings of the head would cost."""

from dataclasses import replace

from manyfaces.configs.amounts import count, size
from manyfaces.configs.head_cost import alternatives, describe, head_cost, scored_columns
from manyfaces.configs.machines import Machine
from manyfaces.configs.objectives.objective import ObjectiveCost, Sizes
from manyfaces.configs.plan import Plan
from manyfaces.configs.schema import Config

SAMPLED_AT = (1, 8, 64, 512)
"""Numbers of workers for which the work of a sampling head is shown."""
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
        told.append(("head", f"{count(found.whole_objective.parameters)} parameters"))
    told.append(("steps", f"{found.num_steps:,} of {found.batch_size:,} images ({passes}{warmup})"))
    return [*told, ("workers", f"{found.world_size}, {each}")]


def _backbone(found: Plan) -> str:
    parameters, multiply_adds = found.network.parameters, found.network.multiply_adds
    unknown = "unknown and not in the figures below"
    parameters_told = count(parameters) if parameters else f"{unknown} (model.num_parameters)"
    told = count(multiply_adds) if multiply_adds else f"{unknown} (model.multiply_adds)"
    trained = found.network.trained
    trained_told = count(trained) if trained else unknown
    only = f", of them trained {trained_told}" if trained != parameters else ""
    return f"{parameters_told} parameters{only}, {told} multiply-adds an image"


def _memory_lines(found: Plan) -> Lines:
    network, objective, memory = found.network, found.objective, found.memory
    told = [
        ("memory a worker", f"about {size(found.memory_bytes)}"),
        ("  libraries", f"about {size(memory.process)}"),
        ("  weights", size(network.weight_bytes)),
        ("  gradients", size(network.gradient_bytes)),
        ("  optimizer", size(network.optimizer_bytes)),
    ]
    if network.gathered_bytes:
        told.append(("  gathered weights", size(network.gathered_bytes)))
    if network.buffer_bytes:
        told.append(("  DeepSpeed's buckets", size(network.buffer_bytes)))
    if found.has_head:
        told.append(("  head rows and state", size(objective.device_bytes)))
    told.append((f"  {_objective(found)} workspace", size(objective.workspace_bytes)))
    told.append(("  activations", f"about {size(network.activation_bytes)}"))
    if memory.heap:
        told.append(("  heap between them", f"about {size(memory.heap)}"))
    told.append(("  decoded batches", size(memory.input)))
    snapshot = found.snapshot_bytes(objective)
    if snapshot and not found.has_gpus:
        told.append(("  checkpoint snapshot", size(snapshot)))
    held = {"head rows and state": objective.host_bytes}
    if found.has_gpus:
        held |= {"checkpoint snapshot": snapshot, "process": memory.host}
    if host := [f"{name}, {size(taken)}" for name, taken in held.items() if taken]:
        told.append(("host memory a worker", "; ".join(host)))
    return told


def _step_lines(found: Plan) -> Lines:
    network, objective, name = found.network, found.objective, _objective(found)
    told = [
        ("read a step", f"about {size(found.read_bytes)} over all workers"),
        ("upload a step", f"{size(found.upload_bytes)} a worker"),
    ]
    if objective.travel_bytes:
        travel = f"{size(objective.travel_bytes)} to the device and back a worker"
        told.append(("chosen rows a step", f"{travel}, beside the backbone"))
    sent = f"gradients {size(network.wire_bytes)}, {name} {size(objective.wire_bytes)} a worker"
    flops = f"backbone {count(network.flops)}FLOP"
    if found.has_head:
        flops += f", head {count(found.world_size * found.objective.flops)}FLOP"
    kept = size(found.kept_checkpoints * found.checkpoint_bytes)
    waits = "" if found.copies_state else "; without a copy in memory: training waits for it"
    return [
        *told,
        ("sent a step", sent),
        ("arithmetic a step", flops),
        ("checkpoint", f"{size(found.checkpoint_bytes)}, {kept} in all{waits}"),
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
    fitting: list[tuple[float, float, int, str]] = []  # of equals, the first
    for head in alternatives(
        config.head,
        kernels=machine.is_gpu and config.engine.head_kernels == "auto",
        is_gpu=machine.is_gpu,
        world_size=found.world_size,
    ):
        cost = head_cost(head, _sizes(config, found, machine))
        total, seconds = _with_head(found, own, cost).memory_bytes, machine.seconds(cost)
        remarks = ["this recipe"] if head == config.head else []
        if total <= machine.memory_bytes:
            fitting.append((seconds, total, len(fitting), describe(head)))
        else:
            remarks.append("does not fit")
        moved = " ".join(f"{size(n):>9}" for n in (total, cost.traffic_bytes, cost.wire_bytes))
        figures = f"{moved} {count(cost.flops):>7}FLOP {1e3 * seconds:>8.3g} ms"
        told.append((f"  {describe(head)}", f"{figures}  {', '.join(remarks)}".rstrip()))
    best = "none: more workers, a lower head.sample_rate, a smaller batch or "
    best += "head.placement=host" if found.has_gpus else "checkpoint.background=false"
    if fitting:
        best = min(fitting)[-1]
    return [*told, (f"cheapest in {size(machine.memory_bytes)}", best)]


def _with_head(found: Plan, own: ObjectiveCost, other: ObjectiveCost) -> Plan:
    """The plan with a head of another cost in place of its own."""
    changed = {
        name: getattr(found.objective, name) - getattr(own, name) + getattr(other, name)
        for name in ("state_bytes", "device_bytes", "host_bytes", "workspace_bytes")
    }
    return replace(found, objective=replace(found.objective, **changed))


def sampling_lines(config: Config, found: Plan, machine: Machine) -> Lines:
    """How much of the full softmax a head that samples its classes computes, by the number of
    workers: the batch's own classes come to those that are drawn."""
    if not config.has_head or config.head.sample_rate >= 1:
        return []
    told: Lines = [
        (
            f"head.sample_rate {config.head.sample_rate:g}",
            "columns that a worker scores, arithmetic of all workers, share of all classes'",
        )
    ]
    full = config.head.model_copy(update={"sample_rate": 1.0})
    for workers in SAMPLED_AT:
        if workers > found.batch_size:
            continue
        sizes = replace(_sizes(config, found, machine), world_size=workers)
        columns, rows = scored_columns(config.head, sizes), scored_columns(full, sizes)
        flops = head_cost(config.head, sizes).flops
        told.append(
            (
                f"  {workers} worker{'s' * (workers > 1)}",
                f"{columns:>11,} of {rows:>11,} {count(workers * flops):>7}FLOP a step "
                f"{flops / head_cost(full, sizes).flops:>6.1%}",
            )
        )
    return told


def _sizes(config: Config, found: Plan, machine: Machine) -> Sizes:
    return Sizes(
        found.num_identities,
        config.model.embedding_dim,
        found.batch_size,
        found.world_size,
        machine.is_gpu,
    )
