"""Work of a training, as the model asks for it: what the share of the devices' peak is taken of.

Counted are the products with weight matrices, 2 FLOPs a weight and token forward, 2 for the
gradient of the activations and 2 for that of the weight, which a frozen weight has not, and those
of attention, of each token with what it may see. Not counted are the look-up in the embedding,
padding, tokens of shared prefixes beyond the first, what attention masks, and what is computed a
second time in the backward pass: the share of the peak that results is the MFU of arXiv 2204.02311
(appendix B, which takes a token to see all of its row), and no HFU.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from rstar_jax.training import lora


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of forward and backward pass.

    Attributes:
      token: of each token.
      target: of each token whose successor is learnt, besides: the vocabulary's products.
      pair: of a token and one that it sees, itself included, in a layer's attention.
      windows: of the layers: a token sees so many, as of models.Config, or all (None).
    """

    token: int
    target: int
    pair: int
    windows: tuple[int | None, ...]

    def of(self, positions: np.ndarray, targets: int) -> int:
        """FLOPs of tokens at these positions i32[...] of their sequences, with so many targets."""
        tokens = self.token * positions.size + self.target * targets
        return tokens + self.pair * self.seen(positions)

    def of_batch(self, batch: Mapping[str, np.ndarray]) -> int:
        """FLOPs of a micro batch, as packing.fill makes it."""
        positions = batch['positions'][batch['end'] > 0]  # 0: padding
        return self.of(positions, np.count_nonzero(batch.get('weights', 0)))

    def seen(self, positions: np.ndarray) -> int:
        """Tokens that those at these positions see, in all layers."""
        found = positions + 1
        of_windows = {w: found if w is None else np.minimum(found, w) for w in set(self.windows)}
        return sum(int(of_windows[window].sum()) for window in self.windows)


def work(config, loss: str, rank: int = 0) -> Work:
    """The work of a loss (losses.BY_NAME) on a decoder of `config`.

    rank: of LoRA; then each weight is frozen and has two low-rank factors beside it. The value
    head and the rows of new tokens, a thousandth of all, are left out.
    """
    each = 4 if rank else 6
    shapes = lora.dense(config).values()
    return Work(
        token=sum(each * math.prod(shape) + 6 * rank * sum(shape) for shape in shapes),
        target=each * config.vocab_size * config.embed_dim if loss == 'sft' else 0,
        pair=12 * config.num_heads * config.head_dim,
        windows=tuple(config.window(layer) for layer in range(config.num_layers)),
    )
