"""The one network of all families: a decoder-only transformer as a Flax module.

tokens -> embedding -> layers (norm, attention, norm, gated MLP, each with a residual) -> norm ->
hidden; `head` turns hidden states into logits. Families differ only by fields of `Config`.

The module brings no attention of its own: whoever calls it passes `attend`, so that training,
scoring and the search's two-part decoding share this file. Parameters are a plain nested dict,
`params['layers']['0']['attention']['q']['weight']`, dense weights [out, in]; `bind` puts them into
the module.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from rstar_jax import parallel
from rstar_jax.models import rope
from rstar_jax.models.config import Config
from rstar_jax.models.products import features_first, product, turned

Params = dict[str, Any]
# Fewer rows in bfloat16 take XLA for CPUs longer than so many; other devices pad to as many anyway.
FEW_ROWS = 8
KEPT = 'kept'
SHAPE_ONLY = jnp.float32  # modules are built from shapes; real arrays come in by `bind`


def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [..., in] times weight [out, in] -> f32[..., out], summed in float32."""
    # With more than one axis in front, XLA for CPUs copies the weight before each product.
    rows = x.reshape(-1, x.shape[-1])
    y = product('ri,oi->ro', _enough(rows), weight)[: len(rows)]
    return y.reshape(*x.shape[:-1], weight.shape[0])


def by_feature(weight: jax.Array, rows: jax.Array) -> jax.Array:
    """weight [out, in] times rows [R, in] -> f32[out, R]: features first."""
    return product('oi,ri->or', weight, _enough(rows))[:, : len(rows)]


def of_features(weight: jax.Array, columns: jax.Array) -> jax.Array:
    """weight [out, in] times columns [in, R] -> f32[out, R]."""
    return product('oi,ir->or', weight, columns)


def _enough(rows: jax.Array) -> jax.Array:
    """rows [R, D], in bfloat16 FEW_ROWS at least: zeros behind them."""
    missing = FEW_ROWS - len(rows)
    if missing <= 0 or rows.dtype != jnp.bfloat16:
        return rows
    # The barrier keeps the compiler from taking the rows away again.
    return lax.optimization_barrier(jnp.pad(rows, ((0, missing), (0, 0))))


def looked_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows [..., D] of table [V, D]; what is beyond it gets its last row."""
    if table.dtype == jnp.bfloat16 and parallel.platform() == 'cpu':
        # XLA for CPUs would widen the whole table before the loop that the rows are taken in.
        table, tokens = lax.optimization_barrier((table, tokens))
    return jnp.take(table, tokens, axis=0, mode='clip')


def bits(x: jax.Array) -> jax.Array:
    """What a training stacks x as: u16 of bfloat16 on CPUs, see training.layers."""
    narrow = x.dtype == jnp.bfloat16 and parallel.platform() == 'cpu'
    return lax.bitcast_convert_type(x, jnp.uint16) if narrow else x


def of_bits(x: jax.Array) -> jax.Array:
    """The numbers whose bits x holds, where it is u16; any other x as it is."""
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


@jax.custom_vjp
def kept(x: jax.Array) -> jax.Array:
    """x, by the name of what a training's forward pass keeps: see training.recompute."""
    return named(x)


def named(x: jax.Array) -> jax.Array:
    """`kept` for the forward pass of a jax.custom_vjp: what has no derivative."""
    return of_bits(checkpoint_name(bits(x), KEPT))


kept.defvjp(lambda x: (named(x), None), lambda _, gradient: (gradient,))


class Dense(nnx.Module):
    """y = W x + b with W [out, in]; the product in float32, the result in x's dtype.

    An int8 W stands for W times `scale` [out].
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False, int8: bool = False):
        self.weight = _parameter(outputs, inputs)
        if int8:
            self.scale = _parameter(outputs)
        if bias:
            self.bias = _parameter(outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        rows, weight = x.reshape(-1, x.shape[-1]), self.weight[...]
        if features_first(rows, weight):
            y = turned(self.features_first(by_feature, rows).astype(x.dtype))
        else:
            y = self.wide(rows)
            if hasattr(self, 'bias'):
                y += self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype).reshape(*x.shape[:-1], weight.shape[0])

    def wide(self, x: jax.Array) -> jax.Array:
        """W x, f32[..., out], without the bias."""
        y = matmul(x, self.weight[...])
        return y * self.scale[...] if hasattr(self, 'scale') else y

    def features_first(self, multiply: Callable, x: jax.Array) -> jax.Array:
        """W x + b, f32[out, R], by one of the products `by_feature` and `of_features`."""
        y = multiply(self.weight[...], x)
        if hasattr(self, 'scale'):
            y *= self.scale[...][:, None]
        if hasattr(self, 'bias'):
            y += self.bias[...].astype(jnp.float32)[:, None]
        return y


def normed(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x [..., D] over its root mean square, which is computed in float32, times weight [D]."""
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * weight


class Norm(nnx.Module):
    """Root-mean-square norm over the last axis: `normed`."""

    def __init__(self, dim: int, eps: float):
        self.weight = _parameter(dim)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return normed(x, self.weight[...], self.eps)


class Embedding(nnx.Module):
    def __init__(self, vocab: int, dim: int):
        self.weight = _parameter(vocab, dim)


class Attention(nnx.Module):
    """Projections, per-head norms and rotation around the caller's `attend`."""

    def __init__(self, config: Config):
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.dim = dim
        inward, int8 = (config.embed_dim, kv_heads * dim), config.int8
        self.q = Dense(config.embed_dim, heads * dim, config.qkv_bias, int8)
        self.k = Dense(*inward, config.qkv_bias, int8)
        self.v = Dense(*inward, config.qkv_bias, int8)
        self.o = Dense(heads * dim, config.embed_dim, config.output_bias, int8)
        if config.qk_norm:
            together = (heads, kv_heads) if config.whole_norm else (1, 1)
            self.q_norm, self.k_norm = (Norm(n * dim, config.norm_eps) for n in together)

    def __call__(self, x, cos, sin, attend, cache):
        out, cache = attend(*self.project(x, cos, sin), cache)
        return self.combine(out), cache

    def project(self, x, cos, sin):
        """q, k, v [..., T, heads, d] of x [..., T, D], q and k rotated."""
        lead = *x.shape[:-1], -1
        q, k, v = self.q(x), self.k(x), self.v(x)
        if hasattr(self, 'q_norm'):
            norms = (self.q_norm, q), (self.k_norm, k)
            q, k = (norm(y.reshape(*lead, norm.weight.shape[0])) for norm, y in norms)
        q, k, v = (y.reshape(*lead, self.dim) for y in (q, k, v))
        q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
        return kept(q), kept(k), kept(v)

    def combine(self, out):
        """[..., T, D] of what the heads have read [..., T, H, d]."""
        return self.o(out.reshape(*out.shape[:-2], -1))


class MLP(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Config):
        self.gate = Dense(config.embed_dim, config.mlp_dim, config.mlp_bias, config.int8)
        self.up = Dense(config.embed_dim, config.mlp_dim, config.mlp_bias, config.int8)
        self.down = Dense(config.mlp_dim, config.embed_dim, config.mlp_bias, config.int8)

    def __call__(self, x):
        if self._features_first(rows := x.reshape(-1, x.shape[-1])):
            parts = (dense.features_first(by_feature, rows) for dense in (self.gate, self.up))
            inner = _gated(*(part.astype(x.dtype) for part in parts))
            out = self.down.features_first(of_features, inner).astype(x.dtype)
            return turned(out).reshape(x.shape)
        return self.down(_gated(kept(self.gate(x)), kept(self.up(x))))

    def _features_first(self, rows: jax.Array) -> bool:
        """Whether what is inside stays as the products give it, turned by nobody."""
        ends = self.gate, self.down
        return all(isinstance(x, Dense) and features_first(rows, x.weight[...]) for x in ends)


def _gated(gates: jax.Array, values: jax.Array) -> jax.Array:
    """Rounded once: XLA for CPUs rounds after each operation of silu what is in bfloat16."""
    return (jax.nn.silu(gates.astype(jnp.float32)) * values).astype(values.dtype)


class Layer(nnx.Module):
    def __init__(self, config: Config):
        self.attention_norm = Norm(config.embed_dim, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = Norm(config.embed_dim, config.norm_eps)
        self.mlp = MLP(config)
        self.norm_after = config.norm_after

    def __call__(self, x, cos, sin, attend, cache):
        if self.norm_after:
            out, cache = self.attention(x, cos, sin, attend, cache)
            x = kept(x + self.attention_norm(out))
            return x + self.mlp_norm(self.mlp(x)), cache
        out, cache = self.attention(self.attention_norm(x), cos, sin, attend, cache)
        x = kept(x + out)
        return x + self.mlp(self.mlp_norm(x)), cache


class Decoder(nnx.Module):
    """The network of `config`; get one with its parameters in place by `bind`."""

    def __init__(self, config: Config, headless: bool = False):
        self.config = config
        self.embed = Embedding(config.vocab_size, config.embed_dim)
        self.layers = nnx.List([Layer(config) for _ in range(config.num_layers)])
        self.norm = Norm(config.embed_dim, config.norm_eps)
        if not (config.tie_embeddings or headless):
            self.output = Dense(config.embed_dim, config.vocab_size, int8=config.int8)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        attend: Callable,
        caches: Sequence[Any] | None = None,
        *,
        rope_length: jax.Array | int | None = None,
        each_layer: Callable[[jax.Array], None] | None = None,
    ) -> tuple[jax.Array, list[Any]]:
        """Runs the layers.

        tokens, positions: i32[..., T].
        attend: attend(q [..., T, H, d], k [..., T, K, d], v, cache) -> (out [..., T, H, d], cache);
            q and k are rotated (and normed), q is not yet scaled by d**-0.5. In layers with
            a sliding window it is also called with `window=` (see `Config.windows`). It is traced
            once for all layers alike, so it must not keep what it computes for the next one.
        caches: one pytree per layer, handed to attend; None where it needs none.
        rope_length: see `rope.angles`; matters for Phi-3's longrope alone.
        each_layer: called with every layer's output [..., T, D] (for tests).
        Returns hidden [..., T, D] after the final norm, and the list of new caches.
        """
        angles = rope.angles(self.config, positions, rope_length)
        unturned = jnp.ones_like(angles[0]), jnp.zeros_like(angles[1])
        x = looked_up(self.embed.weight[...], tokens).astype(self.norm.weight.dtype)
        caches = [None] * self.config.num_layers if caches is None else caches
        updated = []

        @functools.cache
        def traced_once(window: int | None) -> Callable:
            """Any layer with this window, as a function of its parameters."""
            seen = attend if window is None else functools.partial(attend, window=window)

            def run(params, x, cos, sin, cache):
                return bind_layer(self.config, params)(x, cos, sin, seen, cache)

            return jax.jit(run)

        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            params = nnx.to_pure_dict(nnx.state(layer))
            turn = unturned if index in self.config.unrotated else angles
            x, cache = traced_once(self.config.window(index))(params, x, *turn, cache)
            updated.append(cache)
            if each_layer is not None:
                each_layer(x)
        return self.norm(x), updated

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits f32[..., V] of hidden [..., D]."""
        if self.config.tie_embeddings:
            return matmul(hidden, self.embed.weight[...])
        return self.output.wide(hidden)

    def next_logits(self, hidden: jax.Array) -> jax.Array:
        """Logits f32[V, R] of hidden [R, D], the vocabulary first.

        So they lie as products with few rows are fastest, and sums over the vocabulary too.
        """
        if self.config.tie_embeddings:
            return by_feature(self.embed.weight[...], hidden)
        return self.output.features_first(by_feature, hidden)


def bind_layer(config: Config, params: Params) -> Layer:
    """One layer with its parameters in place."""
    return nnx.merge(_layer_graph(config), params)


@functools.lru_cache(maxsize=64)
def _layer_graph(config: Config) -> nnx.GraphDef:
    return nnx.graphdef(Layer(config))


def bind(config: Config, params: Params) -> Decoder:
    """The decoder with `params` in place: cheap, meant to be called inside jit.

    params: nested dict of arrays, tracers or ShapeDtypeStructs as `abstract_params` shapes them;
    without 'output' (a PPM's decoder) there is no `head`.
    """
    layers = {int(index): layer for index, layer in params['layers'].items()}
    return nnx.merge(_graph(config, 'output' not in params), {**params, 'layers': layers})


@functools.lru_cache(maxsize=64)
def _graph(config: Config, headless: bool) -> nnx.GraphDef:
    return nnx.graphdef(Decoder(config, headless))


@functools.lru_cache(maxsize=64)
def _shapes(config: Config, headless: bool) -> tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]:
    state = nnx.to_pure_dict(nnx.state(Decoder(config, headless)))
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    return tuple((tuple(str(key.key) for key in path), leaf.shape) for path, leaf in flat)


def abstract_params(config: Config, dtype: Any = jnp.float32, headless: bool = False) -> Params:
    """The parameters of `config` as a nested dict of ShapeDtypeStructs: what `bind` expects."""
    flat = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in _shapes(config, headless)}
    return traverse_util.unflatten_dict(flat)


def init_params(config: Config, key: jax.Array, dtype: Any = jnp.float32) -> Params:
    """Random parameters: normal(0, 0.02), norms 1, biases 0."""
    shapes = abstract_params(config, dtype)
    flat, tree = jax.tree_util.tree_flatten_with_path(shapes)
    leaves = []
    for (path, leaf), leaf_key in zip(flat, jax.random.split(key, len(flat))):
        if path[-1].key == 'bias':
            leaves.append(jnp.zeros(leaf.shape, dtype))
        elif len(leaf.shape) == 1:
            leaves.append(jnp.ones(leaf.shape, dtype))
        else:
            leaves.append(0.02 * jax.random.normal(leaf_key, leaf.shape, dtype))
    return jax.tree.unflatten(tree, leaves)


def _parameter(*shape: int) -> nnx.Param:
    return nnx.Param(jax.ShapeDtypeStruct(shape, SHAPE_ONLY))
