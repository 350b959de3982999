"""Training tests compile much and compute little: quick compilation, each program once."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope='package', autouse=True)
def quick_compilation(tmp_path_factory):
    """XLA's own passes stay as they are but for the costly ones; LLVM optimises nothing."""
    values = {
        'jax_disable_most_optimizations': True,
        'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('compiled')),
        'jax_persistent_cache_min_compile_time_secs': 0,
        'jax_persistent_cache_min_entry_size_bytes': -1,
    }
    before = {name: jax.config.values[name] for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
