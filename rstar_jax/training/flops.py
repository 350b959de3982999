"""Work of a training, as the model asks for it: what the share of the devices' peak is taken of.

Counted are the products with weight matrices, 2 FLOPs a weight and token forward, 2 for the
gradient of the activations and 2 for that of the weight, which a frozen weight has not. Not counted
are the look-up in the embedding, attention's own products, padding, tokens of shared prefixes
beyond the first, and what is computed a second time in the backward pass: the share of the peak
that results is the MFU of arXiv 2204.02311, less attention, and no HFU.
"""

import dataclasses
import math

from rstar_jax.training import lora


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of forward and backward pass.

    Attributes:
      token: of each token.
      target: of each token whose successor is learnt, besides: the vocabulary's products.
    """

    token: int
    target: int

    def of(self, tokens: int, targets: int) -> int:
        """FLOPs of so many tokens, with so many targets among them."""
        return self.token * tokens + self.target * targets


def work(config, loss: str, rank: int = 0) -> Work:
    """The work of a loss (losses.BY_NAME) on a decoder of `config`.

    rank: of LoRA; then each weight is frozen and has two low-rank factors beside it. The value
    head and the rows of new tokens, a thousandth of all, are left out.
    """
    each = 4 if rank else 6
    shapes = lora.dense(config).values()
    token = sum(each * math.prod(shape) + 6 * rank * sum(shape) for shape in shapes)
    target = each * config.vocab_size * config.embed_dim if loss == 'sft' else 0
    return Work(token, target)
