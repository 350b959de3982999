"""What a decoder is: one frozen, hashable description for all model families.

Families differ by these fields alone (and by the rows of `weights.py`); `families.py` reads them
from and writes them to Hugging Face's config.json.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Rope:
    """How rotary angles are scaled (Hugging Face's `rope_parameters`).

    kind: 'default'; 'linear' (angles / factor); 'llama3' (long waves / factor, smooth between);
        'yarn' (so too, but smooth from pair to pair); 'longrope' (angles / short, or / long once
        the text is longer than `original`; in a search and a training one of them for all texts,
        see `rope.for_texts_of`).
    short, long: one divisor per rotated pair of dimensions, f32[d/2]; longrope only.
    low, high: turns in `original` tokens up to which a wave is long, from which it is short.
    original: text length of the pre-training, tokens.
    attention_factor: multiplies cos and sin (longrope, yarn); None = derived from factor.
    """

    kind: str = 'default'
    factor: float | None = None
    low: float = 1.0
    high: float = 4.0
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    original: int = 0
    attention_factor: float | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape and options of a decoder; static, hashable, so it may be a static argument of jit.

    vocab_size: rows of the embedding, padding rows beyond the tokenizer's entries included.
    windows: per layer how many latest positions (itself included) a token sees, None = all;
        () = no layer has a window.
    rope_fraction: share of head_dim that is rotated.
    unrotated: layers that rotate nothing.
    qk_norm: queries and keys are normed, each head by itself or, with whole_norm, all heads as one.
    norm_after: a block's norm comes behind it, before the residual, and none in front of it.
    int8: dense weights are int8 with a scale for each output, see `quantized`.
    bos_id, eos_ids, pad_id, max_length: as in config.json; the network does not read them, but
        for max_length in longrope's scale.
    """

    family: str
    vocab_size: int
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    whole_norm: bool = False
    norm_after: bool = False
    windows: tuple[int | None, ...] = ()
    rope: Rope = Rope()
    rope_fraction: float = 1.0
    unrotated: tuple[int, ...] = ()
    int8: bool = False
    max_length: int = 4096
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def window(self, layer: int) -> int | None:
        """Positions that layer `layer` sees, its own included; None = all before it."""
        return self.windows[layer] if self.windows else None

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that are rotated."""
        return int(self.head_dim * self.rope_fraction)

    def replace(self, **changes: Any) -> 'Config':
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> 'Config':
        def plain(value):
            return tuple(value) if isinstance(value, list | tuple) else value

        values = {k: plain(v) for k, v in values.items()}
        rope = {k: plain(v) for k, v in (values.pop('rope', None) or {}).items()}
        return Config(**values, rope=Rope(**rope))
