"""The base class of our networks from images to embeddings."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from manyfaces.models.backbones.output import Output


class Backbone(nn.Module):
    """A network from images [N, 3, height, width], normalised floats, to an `Output`.

    It names its blocks, the repeated parts of which it is a chain. Activation checkpointing keeps
    only their inputs, and `train.optimizer.layer_decay` counts depth by them.
    """

    def list_blocks(self) -> Sequence[nn.Module]:
        """The blocks, in the order in which an image passes through them."""
        return ()

    def embedding_layers(self) -> Sequence[nn.Module]:
        """The layers that make the embedding of the features: they are trained in any case."""
        return ()

    @property
    def num_depths(self) -> int:
        """Number of depths: what comes before the blocks, each block, and what comes after."""
        return len(self.list_blocks()) + 2

    def depths(self) -> dict[str, int]:
        """The depth of every parameter by name: 0 before the first block, then 1 for the first
        block, and `num_depths` - 1 behind the last one, as BEiT counts (arXiv 2106.08254).

        Parameters outside of the blocks stand before, between or behind them in the order of
        `named_parameters`; between two blocks they have the depth of the one before.
        """
        block_of = {
            id(parameter): number
            for number, block in enumerate(self.list_blocks(), start=1)
            for parameter in block.parameters()
        }
        last_block = max(block_of.values(), default=0)
        found, depth = {}, 0
        for name, parameter in self.named_parameters():
            number = block_of.get(id(parameter))
            if number is not None:
                depth = number
            elif depth >= last_block:
                depth = self.num_depths - 1
            found[name] = depth
        return found

    def our_names(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the same network as others publish it, under the names that they have here.
        What it does not know keeps its name."""
        return dict(weights)

    def resized(self, name: str, weight: Tensor) -> Tensor | None:
        """A file's weight of another shape, interpolated to the shape that `name` has here; None
        where that makes no sense."""
        return None

    def forward(self, images_NCHW: Tensor) -> Output:
        raise NotImplementedError


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks of every backbone in `network`, each once."""
    found = {
        id(block): block
        for module in network.modules()
        if isinstance(module, Backbone)
        for block in module.list_blocks()
    }
    return list(found.values())
