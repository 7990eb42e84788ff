"""What a worker runs on: named GPUs by their data sheets, or threads of this computer's CPU, and
the shares of those figures that a plan assumes to be reached."""

from dataclasses import dataclass
from typing import Literal

from manyfaces.configs.objectives.objective import ObjectiveCost

Card = Literal["v100", "a100", "a100-40gb", "h100", "h200", "b200", "l40s", "l4", "a10", "rtx4090"]
"""Names of the GPUs that a plan can be made for."""
DEFAULT_CARD: Card = "h100"
WORKERS_PER_NODE = 8
PRODUCT_SHARE = 0.4
"""The share of a card's peak that the head's matrix products are taken to reach. Not measured by
us."""
NETWORK_SHARE = 0.16
"""The share of a card's peak that a backbone's training step is taken to reach: convolutions,
normalisations and activations that wait for memory. Not measured by us. InsightFace's log of ViT-B
on WebFace42M has, from memory, 216 images a second and GPU, with activation checkpointing 20
TFLOP/s: 16 % of the peak of a V100, 6 % of an A100's; it does not name the card."""
MEMORY_SHARE = 0.9
"""The share of a card's memory bandwidth that rows are moved with. Not measured by us."""
CPU_PRODUCTS, CPU_NETWORK, CPU_BANDWIDTH = 2e11, 8e10, 1e10
"""Operations and bytes a second of one CPU thread: products of the head, a step of MobileFaceNet in
bfloat16 as `configs/faces/small_cpu.yaml` runs on an AMD EPYC, and rows that are moved."""


@dataclass(frozen=True)
class Machine:
    """What a worker has: figures to compare settings by and to plan hours with, not to promise
    times."""

    name: str
    is_gpu: bool
    memory_bytes: float
    """Memory of the worker's device, or what a worker without one has of the host's."""
    memory_told: str
    """Where that memory is known from, for people."""
    known: bool
    """Whether the machine is that of the workers: stated, or this computer."""
    shares_memory: bool
    """Whether the memory is a share of one computer's, so that fewer workers have more each."""
    flops: float
    """Operations of the head's matrix products in a second."""
    network_flops: float
    """Operations of the network's training step in a second."""
    bandwidth: float
    """Bytes that come from memory in a second."""
    link: float
    """Bytes that a worker sends to another one of its node in a second."""
    network: float
    """Bytes that a worker sends to another node in a second."""
    workers_per_node: int
    assumed: str
    """Where the rates come from, for people."""

    def seconds(self, cost: ObjectiveCost) -> float:
        """About the time of a step of this cost, but for what it sends."""
        return cost.flops / self.flops + cost.traffic_bytes / self.bandwidth

    def sending(self, num_bytes: int, world_size: int) -> float:
        """About the time in which a worker sends so much, if nothing else goes on meanwhile."""
        return num_bytes / self.link_of(world_size)[0]

    def link_of(self, world_size: int) -> tuple[float, str]:
        """Bytes that a worker sends to another one in a second, and where, for people."""
        if world_size <= self.workers_per_node:
            return self.link, "in a node"
        return self.network, "between nodes"


@dataclass(frozen=True)
class _Card:
    """A GPU by its data sheet, dense rates without sparsity."""

    title: str
    memory_gb: float
    bf16_tflops: float
    """bfloat16 on tensor cores; of a card that has none, float16."""
    fp32_tflops: float
    """float32 outside of tensor cores."""
    bandwidth_gb_s: float
    link_gb_s: float
    """Between two cards of a node, one way."""
    network_gb_s: float
    """The usual share of a node's network that a card has, one way."""


# From memory of the documents that are named; of A100, H100, L40S and B200 the rates and bandwidths
# were found to agree with what public pages repeat of them.
_CARDS: dict[Card, _Card] = {
    # NVIDIA V100 data sheet (January 2020), SXM2 32 GB: NVLink 300 GB/s both ways; DGX-1: 4 x 100
    # Gb/s for 8 GPUs.
    "v100": _Card("V100 SXM2", 32, 125, 15.7, 900, 150, 6.25),
    # NVIDIA A100 data sheet (June 2021), SXM: NVLink 600 GB/s both ways; DGX A100: 8 x 200 Gb/s.
    "a100": _Card("A100 SXM 80 GB", 80, 312, 19.5, 2039, 300, 25),
    "a100-40gb": _Card("A100 SXM 40 GB", 40, 312, 19.5, 1555, 300, 25),
    # NVIDIA H100 data sheet, SXM: 1,979 TFLOP/s with sparsity, NVLink 900 GB/s both ways; DGX H100:
    # 8 x 400 Gb/s.
    "h100": _Card("H100 SXM", 80, 989, 67, 3350, 450, 50),
    # NVIDIA H200 data sheet, SXM: the rates of an H100 with more and faster memory.
    "h200": _Card("H200 SXM", 141, 989, 67, 4800, 450, 50),
    # NVIDIA DGX B200 data sheet, an eighth of 1,440 GB, 64 TB/s, 36 PFLOP/s with sparsity and 14.4
    # TB/s of NVLink both ways. It does not state float32, which others give as 75 or 80 TFLOP/s.
    "b200": _Card("B200", 180, 2250, 75, 8000, 900, 50),
    # NVIDIA L40S data sheet: 362.05 TFLOP/s; PCIe 4.0 x16, 64 GB/s both ways; two ports
    # of 100 Gb/s for 8 cards are usual.
    "l40s": _Card("L40S", 48, 362, 91.6, 864, 32, 3.1),
    # NVIDIA L4 data sheet: 242 TFLOP/s with sparsity; PCIe 4.0 x16; 100 Gb/s for 8 cards.
    "l4": _Card("L4", 24, 121, 30.3, 300, 32, 1.6),
    # NVIDIA A10 data sheet (without sparsity); PCIe 4.0 x16; 100 Gb/s for 8 cards.
    "a10": _Card("A10", 24, 125, 31.2, 600, 32, 1.6),
    # NVIDIA Ada GPU architecture whitepaper, appendix A, bfloat16 with float32 accumulation; PCIe
    # 4.0 x16; 10 Gb/s for a computer of 4.
    "rtx4090": _Card("RTX 4090", 24, 165.2, 82.6, 1008, 32, 0.3),
}


def gpu(
    name: Card,
    precision: str,
    memory_bytes: float | None = None,
    memory_told: str = "by its data sheet",
    *,
    known: bool,
) -> Machine:
    """A worker with this GPU at the precision `float32` or `bfloat16`, and with other memory where
    that is given."""
    card = _CARDS[name]
    is_16_bit = precision == "bfloat16"
    tflops = card.bf16_tflops if is_16_bit else card.fp32_tflops
    peak = f"{tflops:,.4g} TFLOP/s in {'16 bits' if is_16_bit else 'float32'}"
    return Machine(
        name=card.title,
        is_gpu=True,
        memory_bytes=memory_bytes or card.memory_gb * 1e9,
        memory_told=memory_told,
        known=known,
        shares_memory=False,
        flops=PRODUCT_SHARE * tflops * 1e12,
        network_flops=NETWORK_SHARE * tflops * 1e12,
        bandwidth=MEMORY_SHARE * card.bandwidth_gb_s * 1e9,
        link=card.link_gb_s * 1e9,
        network=card.network_gb_s * 1e9,
        workers_per_node=WORKERS_PER_NODE,
        assumed=(
            f"{peak} by the data sheet of {card.title}, of which the backbone reaches "
            f"{NETWORK_SHARE:.0%} and the head {PRODUCT_SHARE:.0%}; assumed, not measured"
        ),
    )


def cpu(
    threads: int, memory_bytes: float, memory_told: str, *, known: bool, shares_memory: bool = False
) -> Machine:
    """A worker with so many threads of a CPU."""
    return Machine(
        name=f"{threads} CPU thread{'s' * (threads > 1)}",
        is_gpu=False,
        memory_bytes=memory_bytes,
        memory_told=memory_told,
        known=known,
        shares_memory=shares_memory,
        flops=CPU_PRODUCTS * threads,
        network_flops=CPU_NETWORK * threads,
        bandwidth=CPU_BANDWIDTH * threads,
        link=CPU_BANDWIDTH,
        network=1e9,
        workers_per_node=WORKERS_PER_NODE,
        assumed=(
            f"{CPU_NETWORK / 1e9:.0f} GFLOP/s a thread for the backbone and "
            f"{CPU_PRODUCTS / 1e9:.0f} for the head; assumed, not measured here"
        ),
    )
