"""Shapes of published models, as in their config.json, to plan and measure without their files."""

import pathlib

from rstar_jax.models.config import Config, Rope
from rstar_jax.settings.errors import UserError

_QWEN_7B = Config('qwen2', 152064, 3584, 18944, 28, 28, 4, 128, 10000.0, 1e-6, False, True)
_PHI3 = Config('phi3', 32064, 3072, 8192, 32, 32, 32, 96, norm_eps=1e-5)
_LONG = Rope('longrope', short=(1.0,) * 48, long=(2.0,) * 48, original=4096)  # factors: shape only

SHAPES = {
    'qwen2.5-math-7b': _QWEN_7B,
    'qwen2-math-7b': _QWEN_7B,
    'qwen2.5-math-1.5b': Config(
        'qwen2', 151936, 1536, 8960, 28, 12, 2, 128, 10000.0, 1e-6, True, True
    ),
    'phi3-mini-4k': _PHI3.replace(windows=(2047,) * 32),
    'phi3-mini-128k': _PHI3.replace(max_length=131072, rope=_LONG),
    'qwen3-1.7b': Config(
        'qwen3', 151936, 2048, 6144, 28, 16, 8, 128, 1e6, 1e-6, True, qk_norm=True
    ),
    'qwen2.5-coder-0.5b': Config(
        'qwen2', 151936, 896, 4864, 24, 14, 2, 64, 1e6, 1e-6, True, True, max_length=32768
    ),
    'smollm2-135m': Config('llama', 49152, 576, 1536, 30, 9, 3, 64, 1e5, 1e-5, True),
}
PAPER = (
    'qwen2.5-math-7b',
    'qwen2-math-7b',
    'qwen2.5-math-1.5b',
    'phi3-mini-4k',
    'phi3-mini-128k',
)


def find(name: str) -> str | None:
    """The key of `SHAPES` that a path or hub name ('Qwen/Qwen2.5-Math-7B-Instruct') means."""
    stem = pathlib.PurePath(name).name.lower().removesuffix('.gguf').removesuffix('-instruct')
    stem = stem.replace('phi-3', 'phi3')  # as the hub spells it
    return stem if stem in SHAPES else None


def shape(name: str) -> Config:
    """The shape of that name; UserError where it is not known."""
    found = find(name)
    if found is None:
        expected = f'its shape is not known; known are {", ".join(SHAPES)}'
        raise UserError(name, expected=expected)
    return SHAPES[found]
