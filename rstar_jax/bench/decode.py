"""Decoding: tokens a second of the search's own loop, against transformers' generate.

B sequences share a prompt of 256 tokens, and each draws new tokens at temperature 1 from the whole
vocabulary, as the candidates of one node do. Ours is `search.engine.decode` on one device;
theirs is `generate` with the same weights, on as many threads as there are cores, from a cache of
the prompt that is computed beforehand. Neither prefill nor first runs count. The ratio is taken
against transformers in the faster of float32 and bfloat16. `products_share_bN` is the time of the
weights' products alone, in a row, over the time of a whole step: what is left is everything else.
"""

import copy
import dataclasses
import os
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from rstar_jax import models, parallel
from rstar_jax.models import decoder, published
from rstar_jax.parallel import fast_dtype
from rstar_jax.search.config import Config
from rstar_jax.search.engine import devices, programs, sampling, sizes, state
from rstar_jax.search.engine.batch import Known
from rstar_jax.search.engine.layers import Variant

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Settings:
    """model: a path, or the name of a published shape, with random weights. prompt, tokens:
    lengths. batches: numbers of sequences. dtype: of ours, empty for what the device is fast at.
    repeats: the best counts. compare: with transformers."""

    model: str = 'smollm2-135m'
    prompt: int = 256
    tokens: int = 32
    batches: str = '1,8,64'
    dtype: str = ''
    repeats: int = 3
    compare: bool = True
    seed: int = 0


def run(settings: Settings) -> dict[str, float]:
    """Tokens a second, the products' share and, with `compare`, transformers' and the ratio."""
    policy = _policy(settings)
    rng, tokens = np.random.default_rng(settings.seed), settings.tokens
    ids = rng.integers(0, policy.config.vocab_size, settings.prompt)
    kinds = DTYPES if settings.compare else ()
    others = [_Transformers(policy, kind, ids, tokens) for kind in kinds]
    figures: dict[str, float] = {}
    for batch in map(int, settings.batches.split(',')):
        ours = _Ours(policy, ids, batch, tokens)
        # In turns, so that whatever else the machine does meets all.
        rounds = [
            (ours.step(), ours.products(), *(other.step(batch) for other in others))
            for _ in range(settings.repeats + 1)
        ]
        step, products, *theirs = (min(seconds) for seconds in zip(*rounds[1:]))
        figures[f'tokens_per_second_b{batch}'] = batch / step
        figures[f'products_share_b{batch}'] = products / step
        for kind, seconds in zip(DTYPES, theirs):
            figures[f'transformers_{kind}_b{batch}'] = batch / seconds
        if theirs:
            figures[f'ratio_vs_transformers_b{batch}'] = min(theirs) / step
    return figures


def _policy(settings: Settings) -> models.Policy:
    dtype = settings.dtype or fast_dtype()
    if os.path.exists(settings.model):
        return models.load(settings.model, dtype)
    shape = published.shape(settings.model)
    make = jax.jit(models.decoder.init_params, static_argnums=(0, 2))
    return models.Policy(shape, None, make(shape, jax.random.key(settings.seed), dtype))


class _Ours:
    """One tree of which all slots decode a candidate, again and again."""

    def __init__(self, policy, ids: np.ndarray, batch: int, tokens: int):
        self._batch, self._tokens = batch, tokens
        mesh = parallel.local_mesh(devices=jax.devices()[:1])
        kind = policy.params['norm']['weight'].dtype
        shape = self._shape = policy.config
        self._params = policy.params
        self._prefix = devices.make(mesh, state.empty_kv, shape, 1, 0, kind)
        path = devices.make(mesh, state.empty_path, shape, 1, len(ids), kind)
        made = shape, batch, tokens, kind
        self._cells = devices.make(mesh, state.empty_cells, *made)
        self._slots = devices.make(mesh, state.empty_slots, *made)
        vocab = shape.vocab_size
        # No text is a mark: all run to their limit.
        self._stops = state.Stops(
            jnp.zeros((1, vocab), jnp.uint8), jnp.zeros(1, jnp.uint8), np.int32(vocab)
        )
        extend = programs.EXTEND(mesh, config=shape)
        one = np.zeros(1, np.int32)
        known = Known(one, ids[None].astype(np.int32), one + len(ids), one, one)
        self._path = extend(self._params, self._prefix, path, known)
        self._open = programs.OPEN(mesh)
        variant = Variant(shape, batch, near=sizes.of(mesh).near)
        self._decode = programs.DECODE(mesh, variant=variant)
        self._products = jax.jit(_products, static_argnums=(0, 3))
        self._sampling = sampling.Settings.of(Config(temperature=1.0), (tokens, tokens))

    def step(self) -> float:
        """Seconds of one step of all sequences."""
        batch, limit = self._batch, self._tokens
        keys = np.arange(2 * batch, dtype=np.uint32).reshape(batch, 2)
        cells = self._open(self._cells, np.ones(batch, bool), keys, np.zeros(batch, np.int32))
        state = jax.block_until_ready((cells, self._slots))
        start = time.perf_counter()
        self._cells, self._slots, done = self._decode(
            self._params,
            self._stops,
            self._prefix,
            self._path,
            *state,
            self._sampling,
        )
        computed = np.asarray(done)[0]
        seconds = time.perf_counter() - start
        if computed.tolist() != [limit, limit * batch, limit * batch]:
            raise RuntimeError(f'decoded {computed} of {limit} steps of {batch} sequences')
        return seconds / self._tokens

    def products(self) -> float:
        """Seconds of the products that a step consists of, and nothing else."""
        start = time.perf_counter()
        jax.block_until_ready(self._products(self._shape, self._params, self._tokens, self._batch))
        return (time.perf_counter() - start) / self._tokens


def _products(config, params, times, batch):
    """Multiplies [batch, in] by each weight once, `times` times, one product after another."""
    network = decoder.bind(config, params)
    dtype = params['norm']['weight'].dtype

    def weighed(layer):
        attention, mlp = layer.attention, layer.mlp
        return attention.q, attention.k, attention.v, attention.o, mlp.gate, mlp.up, mlp.down

    products = [dense for layer in network.layers for dense in weighed(layer)]

    def once(_, carry):
        for product in (*products, network.next_logits):
            weight = getattr(product, 'weight', None)
            inputs = config.embed_dim if weight is None else weight.shape[1]
            x = jnp.full((batch, inputs), carry, dtype)
            # Else the compiler computes only what is used of a product.
            y = product(jax.lax.optimization_barrier(x))
            carry = jax.lax.optimization_barrier(y)[0, 0].astype(jnp.float32)
        return carry

    return jax.lax.fori_loop(0, times, once, jnp.float32(0))


class _Transformers:
    """transformers' generate with the policy's weights in one dtype."""

    def __init__(self, policy, dtype: str, ids: np.ndarray, tokens: int):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(os.cpu_count() or 1)
        with tempfile.TemporaryDirectory() as folder:
            models.save(models.Policy(policy.config, None, policy.params), folder)
            self._network = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype)
            ).eval()
        self._ids, self._tokens = torch.tensor(ids)[None], tokens
        with torch.inference_mode():
            self._cache = self._network(self._ids[:, :-1], use_cache=True).past_key_values

    def step(self, batch: int) -> float:
        """Seconds of one step of all sequences, by the clock at the ends of the first and last."""
        import torch
        import transformers

        stamps = []

        class Clock(transformers.StoppingCriteria):
            def __call__(self, ids, scores, **_):
                stamps.append(time.perf_counter())
                return torch.zeros(len(ids), dtype=torch.bool)

        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(batch)
        with torch.inference_mode():
            self._network.generate(
                self._ids.repeat(batch, 1),
                attention_mask=torch.ones(batch, self._ids.shape[1], dtype=torch.long),
                past_key_values=cache,
                max_new_tokens=self._tokens,
                eos_token_id=None,
                pad_token_id=0,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                stopping_criteria=[Clock()],
            )
        if len(stamps) != self._tokens:
            raise RuntimeError(f'transformers generated {len(stamps)} of {self._tokens} tokens')
        return (stamps[-1] - stamps[0]) / (self._tokens - 1)
