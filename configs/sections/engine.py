"""Section `engine`: how the network runs; it may change when a run is resumed."""

from typing import ClassVar, Literal

from manyfaces.configs.node import NOTHING, Decides, Node


class Engine(Node):
    """How the network runs; may change when a run is resumed."""

    decides: ClassVar[Decides] = NOTHING

    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed's ZeRO stage: 0 replicates, 1 shards optimiser state, 2 gradients too, 3 weights
    too, which are gathered layer by layer and stand whole on each worker only while a protocol is
    evaluated. They resume into each other."""
    activation_checkpointing: bool = False
    """Recompute each block in backward: less memory, a third more time."""
    channels_last: bool = True
    """Run convolutions in the memory order NHWC."""
    compile: bool = False
    """Compile the network with torch.compile, which needs a C++ compiler."""
    head_kernels: Literal["auto", "torch"] = "auto"
    """The head's passes on a GPU: Triton's kernels, or torch's own operations (slower; exact to
    1e-6 where those are to 1e-3). The kernels have been run in Triton's interpreter and compiled
    for A100, L40 and H100, and on no card."""
