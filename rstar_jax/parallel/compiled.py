"""Compiled programs on disk: what one run has compiled, no later run compiles again."""

import contextlib
import functools
import hashlib
import inspect
import os
import pathlib
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import jax

from rstar_jax.settings.errors import UserError

LEAST_SECONDS = 0.2  # what compiles faster is not kept
MOST_BYTES = 4 << 30  # what was not used for the longest time is deleted
AUTO, OFF = 'auto', 'off'
# Threads with names that begin so compile beside other work.
BESIDE = 'compile-beside'
WAITED = '/rstar_jax/compile/waited_duration'  # for such a thread, see `waiting`
# JAX's own events and ours; tracing, which they do not hold, takes little of a search's time.
COMPILING = (
    '/jax/core/compile/jaxpr_to_mlir_module_duration',
    '/jax/core/compile/backend_compile_duration',
    WAITED,
)


def keep_compiled(where: str) -> None:
    """Turns JAX's compilation cache on; comes behind `initialise`.

    JAX has the first process alone write. What others compile for their own devices, as a search's
    programs, has another name there than the first one's, so each has a folder in it. On GPUs the
    names are alike, and all read what the first has written.

    where: a folder; 'auto', one in the user's cache folder; 'off'. A folder that the environment
    gives JAX (JAX_COMPILATION_CACHE_DIR) goes before 'auto'.

    Raises:
      UserError: a folder that cannot be written to.
    """
    if where == OFF:
        jax.config.update('jax_enable_compilation_cache', False)
        return
    if where == AUTO and os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        return
    if not where:
        raise UserError('compiled', where, f'needs a folder, {AUTO} or {OFF}')
    number = jax.process_index() if jax.distributed.is_initialized() else 0
    apart = number and jax.default_backend() != 'gpu' and _writes_too()
    try:
        folder = _default_folder() if where == AUTO else pathlib.Path(where).expanduser()
        if apart:
            folder /= f'process{number}'
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:
        if where == AUTO:
            return  # no home, or one that cannot be written to, is no reason to end
        reason = getattr(error, 'strerror', error)
        expected = f'cannot be written to ({reason})'
        remedy = f'name another folder, or {OFF}'
        raise UserError('compiled', where, expected, remedy) from None
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_compilation_cache_max_size', MOST_BYTES)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', LEAST_SECONDS)


def _writes_too() -> bool:
    """Has JAX write what this process compiles; False where a later JAX hides how it does."""
    try:
        from jax._src import compilation_cache, compiler

        put = compilation_cache.put_executable_and_time
        compiler._cache_write = functools.partial(_write, put, compiler._cache_write)
    except (ImportError, AttributeError):
        return False
    return True


def _write(put: Callable, theirs: Callable, *args: object, **named: object) -> None:
    """In place of `compiler._cache_write`, `theirs`, which writes for the first process alone."""
    theirs(*args, **named)
    # What cannot be written is compiled again.
    with contextlib.suppress(Exception):
        of = inspect.signature(theirs).bind(*args, **named).arguments
        seconds = of['compile_time_secs']
        if seconds >= LEAST_SECONDS and not of.get('host_callbacks'):
            put(of['cache_key'], of['module_name'], of['executable'], of['backend'], int(seconds))


_seconds = 0.0
_generation = 0


def generation() -> int:
    """Grows as programs are forgotten."""
    return _generation


def forget_programs() -> None:
    """Frees what `jax.jit` has compiled in this process."""
    global _generation
    _generation += 1
    jax.clear_caches()


def compile_seconds() -> float:
    """Seconds that this process has spent on nothing but compiling since this module's import."""
    return _seconds


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Has JAX's listeners told of the block as one that waits for a thread that compiles."""
    start = time.time()
    yield
    end = time.time()
    jax.monitoring.record_event_duration_secs(WAITED, end - start)
    jax.monitoring.record_event_time_span(WAITED, start, end)


def waited_for() -> bool:
    """Whether what this thread compiles holds other work up."""
    return not threading.current_thread().name.startswith(BESIDE)


def _count(event: str, seconds: float, **_: object) -> None:
    global _seconds
    if event in COMPILING and waited_for():
        _seconds += seconds


jax.monitoring.register_event_duration_secs_listener(_count)


def _default_folder() -> pathlib.Path:
    """One for each kind of processor: XLA compiles for the instructions that it has, and a home
    folder may be shared by several machines."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        about = ''.join(sorted({line for line in lines if line.startswith(('flags', 'Features'))}))
    except OSError:
        about = platform.processor()
    home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    name = f'{platform.machine()}-{hashlib.sha256(about.encode()).hexdigest()[:8]}'
    return pathlib.Path(home).expanduser() / 'rstar_jax' / 'compiled' / name
