"""The supported families: reading and writing Hugging Face's config.json.

Both forms of the rotary settings are read (`rope_theta` + `rope_scaling`, and transformers 5's
`rope_parameters`); the older one is written, which both versions of transformers read.
"""

import dataclasses
import functools
import math
from typing import Any

from rstar_jax.models.config import Config, Rope
from rstar_jax.models.rope import attention_factor
from rstar_jax.settings.errors import UserError

ARCHITECTURES = {
    'llama': 'LlamaForCausalLM',
    'mistral': 'MistralForCausalLM',
    'olmo2': 'Olmo2ForCausalLM',
    'phi3': 'Phi3ForCausalLM',
    'qwen2': 'Qwen2ForCausalLM',
    'qwen3': 'Qwen3ForCausalLM',
    'smollm3': 'SmolLM3ForCausalLM',
}
ROPE_KINDS = ('default', 'linear', 'llama3', 'longrope', 'yarn')
RENAMED_ROPE = {'su': 'longrope', None: 'default'}
# Families whose networks read attention_bias and mlp_bias; with the others nothing comes of them.
ATTENTION_BIAS, MLP_BIAS = ('llama', 'olmo2', 'qwen3', 'smollm3'), ('llama', 'smollm3')
# What transformers takes for a setting that is left out, where families differ.
NORM_EPS = {'olmo2': 1e-5, 'phi3': 1e-5}
THETA = {'smollm3': 2e6}
WINDOW = {'mistral': 4096, 'qwen2': 4096, 'qwen3': 4096}
SOME_WINDOWS = ('qwen2', 'qwen3', 'smollm3')  # in layers that a list names; others in all or none


def unsupported(name: Any, where: str) -> UserError:
    known = ', '.join(sorted(ARCHITECTURES.values()))
    return UserError(where, expected=f'architecture {name} is not supported; supported: {known}')


def read_config(values: dict[str, Any], where: str) -> Config:
    """The `Config` of a config.json's content.

    where: the file's name, for errors. Raises UserError for an unknown architecture, missing
    sizes, and options that change the network in ways that it does not have.
    """
    family = values.get('model_type')
    architecture = (values.get('architectures') or [None])[0]
    # Heads other than the language model's (a PPM's, a bare model) have the family's decoder.
    if family not in ARCHITECTURES:
        raise unsupported(architecture or family, where)
    faults: list[str] = []

    size = functools.partial(_size, values, faults)
    if values.get('hidden_act', 'silu') not in ('silu', 'swish'):
        faults.append(f'hidden_act={values["hidden_act"]!r}: expected silu')
    sizes = map(size, ('hidden_size', 'num_attention_heads', 'num_hidden_layers'))
    width, heads, layers = sizes
    theta, fraction, rope = _read_rope(family, values, faults)
    bias = family in ATTENTION_BIAS and bool(values.get('attention_bias', False))
    eos = values.get('eos_token_id')
    config = Config(
        family=family,
        vocab_size=size('vocab_size'),
        embed_dim=width,
        mlp_dim=size('intermediate_size'),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=size('num_key_value_heads', heads),
        head_dim=size('head_dim', 128 if family == 'qwen3' else max(1, width // heads)),
        rope_theta=theta,
        norm_eps=float(values.get('rms_norm_eps') or NORM_EPS.get(family, 1e-6)),
        tie_embeddings=bool(values.get('tie_word_embeddings', family == 'smollm3')),
        qkv_bias=bias or family == 'qwen2',
        output_bias=bias,
        mlp_bias=family in MLP_BIAS and bool(values.get('mlp_bias', False)),
        qk_norm=family in ('olmo2', 'qwen3'),
        whole_norm=family == 'olmo2',
        norm_after=family == 'olmo2',
        windows=_read_windows(family, values, layers),
        rope=rope,
        rope_fraction=fraction,
        unrotated=_read_unrotated(family, values, layers),
        max_length=size('max_position_embeddings', 4096),
        bos_id=values.get('bos_token_id'),
        eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        pad_id=values.get('pad_token_id'),
    )
    if heads % config.num_kv_heads:
        faults.append(f'num_attention_heads={heads}: not a multiple of num_key_value_heads')
    if rope.kind == 'longrope':
        half = config.rotary_dim // 2
        if not len(rope.short) == len(rope.long) == half or rope.original < 1:
            faults.append(f'longrope: expected {half} short and long factors and original length')
    if faults:
        raise UserError(where, expected='; '.join(faults))
    return config


def _size(values: dict[str, Any], faults: list[str], key: str, default: int | None = None) -> int:
    value = values.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        faults.append(f'{key}={value!r}: expected a positive integer')
        return 1
    return value


def _read_rope(family: str, values: dict[str, Any], faults: list[str]) -> tuple[float, float, Rope]:
    """(theta, rotated share of the head, scaling)."""
    scaling = values.get('rope_parameters') or values.get('rope_scaling') or {}
    theta = scaling.get('rope_theta') or values.get('rope_theta')
    theta = theta or THETA.get(family, 10000.0)
    fraction = scaling.get('partial_rotary_factor') or values.get('partial_rotary_factor') or 1.0
    fraction = fraction if family == 'phi3' else 1.0  # the others rotate whole heads
    kind = scaling.get('rope_type', scaling.get('type'))
    kind = RENAMED_ROPE.get(kind, kind)
    if kind not in ROPE_KINDS:
        faults.append(f'rope_type={kind!r}: expected one of {", ".join(ROPE_KINDS)}')
    original = (
        values.get('original_max_position_embeddings')
        or scaling.get('original_max_position_embeddings')
        or values.get('max_position_embeddings')
    )
    if kind == 'default':
        return float(theta), float(fraction), Rope()
    yarn = kind == 'yarn'
    low, high = ('beta_slow', 'beta_fast') if yarn else ('low_freq_factor', 'high_freq_factor')
    rope = Rope(
        kind=str(kind),
        factor=scaling.get('factor'),
        low=float(scaling.get(low) or 1),
        high=float(scaling.get(high) or (32 if yarn else 4)),
        short=tuple(scaling.get('short_factor') or ()),
        long=tuple(scaling.get('long_factor') or ()),
        original=int(original or 0),
        attention_factor=scaling.get('attention_factor') if kind in ('longrope', 'yarn') else None,
    )
    if rope.kind in ('linear', 'llama3', 'yarn') and not rope.factor:
        faults.append(f'rope_type={rope.kind}: factor is missing')
    if yarn and not scaling.get('truncate', True):
        faults.append('rope_type=yarn: truncate=false is not supported')
    if yarn and rope.attention_factor is None:
        scales = [scaling.get(name) for name in ('mscale', 'mscale_all_dim')]
        if all(scales) and not faults:
            one, other = (1 + 0.1 * scale * math.log(max(1, rope.factor)) for scale in scales)
            rope = dataclasses.replace(rope, attention_factor=one / other)
    return float(theta), float(fraction), rope


def _read_windows(family: str, values: dict[str, Any], layers: int) -> tuple[int | None, ...]:
    window = values.get('sliding_window', WINDOW.get(family))
    longest = values.get('max_position_embeddings') or 4096
    if window is None or family in ('llama', 'olmo2') or window >= longest:
        return ()
    if family not in SOME_WINDOWS:
        return (window,) * layers
    if not values.get('use_sliding_window', False):
        return ()
    kinds = values.get('layer_types')
    if kinds is None:
        first = values.get('max_window_layers', 28)
        has = range(first, layers)
        if family == 'smollm3':
            has = _read_unrotated(family, values, layers)
        kinds = ['sliding_attention' if i in has else 'full_attention' for i in range(layers)]
    windows = tuple(window if kind == 'sliding_attention' else None for kind in kinds)
    return windows if any(windows) else ()


def _read_unrotated(family: str, values: dict[str, Any], layers: int) -> tuple[int, ...]:
    if family != 'smollm3':
        return ()
    rotated = values.get('no_rope_layers')  # 1 where a layer has one
    if rotated is None:
        interval = values.get('no_rope_layer_interval', 4)
        rotated = [(i + 1) % interval for i in range(layers)]
    return tuple(i for i, rotates in enumerate(rotated[:layers]) if not rotates)


def write_config(config: Config, dtype: str) -> dict[str, Any]:
    """The content of a config.json from which transformers and `read_config` make this decoder.

    dtype: 'float32' or 'bfloat16', that of the tensors beside it.
    """
    values: dict[str, Any] = {
        'architectures': [ARCHITECTURES[config.family]],
        'model_type': config.family,
        'vocab_size': config.vocab_size,
        'hidden_size': config.embed_dim,
        'intermediate_size': config.mlp_dim,
        'num_hidden_layers': config.num_layers,
        'num_attention_heads': config.num_heads,
        'num_key_value_heads': config.num_kv_heads,
        'head_dim': config.head_dim,
        'hidden_act': 'silu',
        'max_position_embeddings': config.max_length,
        'rms_norm_eps': config.norm_eps,
        'rope_theta': config.rope_theta,
        'tie_word_embeddings': config.tie_embeddings,
        'attention_bias': config.output_bias,
        'bos_token_id': config.bos_id,
        'eos_token_id': _one_or_list(config.eos_ids),
        'pad_token_id': config.pad_id,
        'torch_dtype': dtype,
        'use_cache': True,
    }
    if config.family in MLP_BIAS:
        values['mlp_bias'] = config.mlp_bias
    if config.family == 'smollm3':
        values['no_rope_layers'] = [
            int(i not in config.unrotated) for i in range(config.num_layers)
        ]
    if config.rope_fraction != 1:
        values['partial_rotary_factor'] = config.rope_fraction
    if config.rope.kind != 'default':
        values['rope_scaling'] = _write_rope(config)
        if config.family == 'phi3':
            values['original_max_position_embeddings'] = config.rope.original
    _write_windows(config, values)
    return values


def _write_rope(config: Config) -> dict[str, Any]:
    rope = config.rope
    factors = {'short_factor': list(rope.short), 'long_factor': list(rope.long)}
    if config.family == 'phi3' and rope.kind == 'longrope':
        # No other keys: transformers 4 refuses them, and takes `factor` from the two lengths.
        attention = rope.attention_factor
        if rope.factor not in (None, config.max_length / rope.original):
            attention = attention_factor(config)
        scale = {} if attention is None else {'attention_factor': attention}
        return {'type': rope.kind, **factors, **scale}
    scaling: dict[str, Any] = {'rope_type': rope.kind, 'type': rope.kind}
    if rope.factor is not None:
        scaling['factor'] = rope.factor
    if rope.attention_factor is not None:
        scaling['attention_factor'] = rope.attention_factor
    if rope.kind == 'longrope':
        scaling |= factors
    if rope.kind == 'llama3':
        scaling |= {'low_freq_factor': rope.low, 'high_freq_factor': rope.high}
    if rope.kind == 'yarn':
        scaling |= {'beta_slow': rope.low, 'beta_fast': rope.high}
    if rope.kind != 'linear':
        scaling['original_max_position_embeddings'] = rope.original
    return scaling


def _write_windows(config: Config, values: dict[str, Any]) -> None:
    windows = [window for window in config.windows if window is not None]
    values['sliding_window'] = windows[0] if windows else None
    if config.family in SOME_WINDOWS:
        values['use_sliding_window'] = bool(windows)
        values['max_window_layers'] = config.num_layers
        kinds = [config.window(layer) for layer in range(config.num_layers)]
        values['layer_types'] = ['sliding_attention' if w else 'full_attention' for w in kinds]


def _one_or_list(ids: tuple[int, ...]) -> int | list[int] | None:
    return None if not ids else ids[0] if len(ids) == 1 else list(ids)
