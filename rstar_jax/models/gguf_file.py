"""GGUF files: configuration, tokenizer and (dequantised) tensors of one file.

The metadata is llama.cpp's. Files of Llama and SmolLM3 hold the rows of Q and K in another order
(pairs of a rotation side by side), which is undone here; the other families' do not. Nothing in a
file says that embedding and output are one table; converters write it once, or twice and quantised
in two ways: then the finer one is both.
"""

import pathlib
from typing import Any

import numpy as np

from rstar_jax.models.config import Config, Rope
from rstar_jax.models.families import ARCHITECTURES, unsupported
from rstar_jax.settings.errors import UserError, one_line

EMBEDDING, OUTPUT = 'token_embd.weight', 'output.weight'
PAIRED = ('llama', 'smollm3')
SAMPLED_ROWS = 256
TOGETHER = 4  # rows: gguf dequantises sixteen at a time, and takes half as long with longer ones
# Distance of tables by the size of one: quantisation to 4 bits makes 0.1, two tables 1.4.
ALIKE = 0.3


def _reader(path: pathlib.Path):
    """gguf's, which reads a vocabulary piece by piece: of a `numpy.memmap` each is slow to make."""
    import gguf

    class Reader(gguf.GGUFReader):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == 'data' else value)

    return Reader(path)


class GGUFFile:
    """A GGUF file as a source of weights (see `weights.Source`)."""

    key = 'gguf'

    def __init__(self, path: pathlib.Path):
        self.where = str(path)
        try:
            reader = _reader(path)
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        except Exception as error:  # a damaged header shows as almost any exception
            expected = f'cut off or no GGUF file ({one_line(error)})'
            raise UserError(str(path), expected=expected) from None
        self.family = self.fields.get('general.architecture')
        if self.family not in ARCHITECTURES:
            raise unsupported(self.family, self.where)
        if self.family == 'olmo2' and self.get('attention.sliding_window'):
            raise unsupported('olmo3', self.where)  # its files call themselves olmo2
        self.config = self._read_config()
        self._table = EMBEDDING
        if self.config.tie_embeddings and OUTPUT in self._tensors:
            self._table = max(EMBEDDING, OUTPUT, key=lambda name: self._tensors[name].n_bytes)

    def get(self, key: str, default: Any = None) -> Any:
        """The architecture's value `key` ('block_count')."""
        return self.fields.get(f'{self.family}.{key}', default)

    def _read_config(self) -> Config:
        needed = (
            'embedding_length',
            'feed_forward_length',
            'block_count',
            'attention.head_count',
        )
        missing = [key for key in needed if self.get(key) is None]
        missing += [name for name in (EMBEDDING,) if name not in self._tensors]
        if missing:
            expected = f'{", ".join(missing)} missing: not a whole GGUF model'
            raise UserError(self.where, expected=expected)
        heads, width = self.get('attention.head_count'), self.get('embedding_length')
        head_dim = self.get('attention.key_length') or width // heads
        layers, length = self.get('block_count'), self.get('context_length', 4096)
        window = self.get('attention.sliding_window') if self.family == 'phi3' else None
        eos = self.fields.get('tokenizer.ggml.eos_token_id')
        return Config(
            family=self.family,
            vocab_size=int(self._tensors[EMBEDDING].shape[1]),
            embed_dim=width,
            mlp_dim=self.get('feed_forward_length'),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=self.get('attention.head_count_kv', heads),
            head_dim=head_dim,
            rope_theta=float(self.get('rope.freq_base', 10000.0)),
            norm_eps=float(self.get('attention.layer_norm_rms_epsilon', 1e-6)),
            tie_embeddings=OUTPUT not in self._tensors or self._written_twice(),
            qkv_bias='blk.0.attn_q.bias' in self._tensors,
            output_bias='blk.0.attn_output.bias' in self._tensors,
            mlp_bias='blk.0.ffn_gate.bias' in self._tensors,
            qk_norm=self.family in ('olmo2', 'qwen3'),
            whole_norm=self.family == 'olmo2',
            norm_after=self.family == 'olmo2',
            windows=(window,) * layers if window and window < length else (),
            rope=self._read_rope(length),
            rope_fraction=self.get('rope.dimension_count', head_dim) / head_dim,
            unrotated=tuple(range(3, layers, 4)) if self.family == 'smollm3' else (),
            max_length=length,
            bos_id=self.fields.get('tokenizer.ggml.bos_token_id'),
            eos_ids=() if eos is None else (eos,),
            pad_id=self.fields.get('tokenizer.ggml.padding_token_id'),
        )

    def _read_rope(self, length: int) -> Rope:
        # llama.cpp's defaults; the second key is the older one.
        kind = self.get('rope.scaling.type', 'linear')
        factor = self.get('rope.scaling.factor', self.get('rope.scale_linear', 0))
        original = self.get('rope.scaling.original_context_length', length)
        factors = {
            name: tuple(float(x) for x in self._tensors[tensor].data)
            for name, tensor in (
                ('one', 'rope_freqs.weight'),
                ('short', 'rope_factors_short.weight'),
                ('long', 'rope_factors_long.weight'),
            )
            if tensor in self._tensors
        }
        if 'one' in factors:  # llama3's smoothing, stored as what it comes to
            one = factors['one']
            return Rope('longrope', short=one, long=one, original=original, attention_factor=1.0)
        if len(factors) == 1:
            raise UserError(self.where, expected=f'has rope_factors_{next(iter(factors))} alone')
        if 'long' in factors:
            scale = self.get('rope.scaling.attn_factor')
            return Rope(
                'longrope',
                short=factors['short'],
                long=factors['long'],
                original=original,
                attention_factor=scale,
            )
        if kind == 'linear':
            return Rope('linear', factor=float(factor)) if factor else Rope()
        if kind not in ('none', 'longrope'):
            expected = f'rope scaling {kind!r}: expected none, linear, longrope'
            raise UserError(self.where, expected=expected)
        return Rope()

    def shapes(self):
        return {
            name: (tuple(int(n) for n in reversed(tensor.shape)), 'float32')
            for name, tensor in self._tensors.items()
        }

    def _written_twice(self) -> bool:
        """Whether output and embedding are the same table but for quantisation."""
        if self._tensors[EMBEDDING].shape.tolist() != self._tensors[OUTPUT].shape.tolist():
            return False
        some = slice(None, None, max(1, int(self._tensors[OUTPUT].shape[1]) // SAMPLED_ROWS))
        one, other = (self._values(name, some) for name in (EMBEDDING, OUTPUT))
        return bool(np.linalg.norm(one - other) < ALIKE * np.linalg.norm(other))

    def _values(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        import gguf

        tensor = self._tensors[name]
        packed = tensor.data[rows]
        wide = packed.ndim == 2 and len(packed) % TOGETHER == 0
        try:
            values = gguf.quants.dequantize(
                packed.reshape(len(packed) // TOGETHER, -1) if wide else packed, tensor.tensor_type
            )
            return values.reshape(len(packed), -1) if wide else values
        except (NotImplementedError, ValueError) as error:
            kind = tensor.tensor_type.name
            expected = f'{name} of type {kind}: {error}'
            raise UserError(self.where, expected=expected) from None

    def read(self, names):
        for name in names:
            yield name, self._read(name)  # held by no name here, or the next would be beside it

    def _read(self, name: str) -> np.ndarray:
        values = self._values(self._table if name == EMBEDDING else name)
        if self.family in PAIRED and '.attn_q.' in name:
            return unpermute(values, self.config.num_heads)
        if self.family in PAIRED and '.attn_k.' in name:
            return unpermute(values, self.config.num_kv_heads)
        return values


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in pairs (0, 1), (2, 3), ... of a rotation -> first halves, then second halves."""
    half = weight.shape[0] // heads // 2
    pairs = weight.reshape(heads, half, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)
