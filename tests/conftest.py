"""Settings of all tests: eight fake CPU devices, quick compilation, no network, shared data."""

import fcntl
import gc
import importlib.metadata
import os
import pathlib

os.environ['JAX_PLATFORMS'] = 'cpu'
# Tests compile much and compute little: LLVM optimises nothing, and XLA's older emitters take a
# fifth of the time. XLA ends a process for a flag that it does not know, so by version.
_FLAGS = ['--xla_force_host_platform_device_count=8']
if importlib.metadata.version('jaxlib').startswith('0.10.'):
    _FLAGS += ['--xla_cpu_use_fusion_emitters=false', '--xla_cpu_parallel_codegen_split_count=1']
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_FLAGS])
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
# A program is compiled once, for all workers of pytest-xdist, all that they start, and later runs.
# JAX writes into the folder without a lock: what is read half written is compiled again.
_CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')
COMPILED = os.environ.get('RSTAR_TESTS_COMPILED') or str(_CACHE / 'rstar_jax' / 'tests')
os.environ['JAX_COMPILATION_CACHE_DIR'] = COMPILED
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    # The longest files first, whole rounds by real processes and trainings: at the end no worker is
    # left alone with one.
    first = [REPOSITORY / 'tests', REPOSITORY / 'tests' / 'training']
    items.sort(key=lambda item: first.index(item.path.parent) if item.path.parent in first else 2)


@pytest.fixture(scope='module', autouse=True)
def _frozen():
    # What a file leaves behind are programs, for good: no later collection needs to walk them.
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
    """Folder with problem sets and models that are not part of the project ($RSTAR_SHARED)."""
    folder = pathlib.Path(os.environ.get('RSTAR_SHARED', REPOSITORY.parent / 'shared'))
    if not folder.is_dir():
        pytest.skip(f'no shared data at {folder} (set RSTAR_SHARED)')
    return folder


@pytest.fixture(scope='session')
def world(tmp_path_factory) -> pathlib.Path:
    """The folder that `tests.worlds` makes: once, whichever worker of pytest-xdist is first."""
    from tests import worlds

    base = tmp_path_factory.getbasetemp()
    base = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
    with open(base / 'world.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / 'world').exists():
            worlds.make(base / 'making')
            (base / 'making').rename(base / 'world')
    return base / 'world'
