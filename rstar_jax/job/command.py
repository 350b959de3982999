"""How a command begins and ends: what its terminal shows, its exit code, the other processes."""

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable

# Before jax and transformers are imported: a run's terminal is for its own lines.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
os.environ.setdefault('HF_HUB_VERBOSITY', 'error')  # else each try without network takes four lines
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
# Of a GPU's memory; JAX takes three quarters by itself. Both names at once are an error.
if 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in os.environ:
    os.environ.setdefault('XLA_CLIENT_MEM_FRACTION', '0.9')

from rstar_jax.job.interrupts import Interrupts, Stopped
from rstar_jax.settings import errors, is_setting
from rstar_jax.settings.errors import UserError

DISK = {
    errno.ENOSPC: 'free some',
    errno.EDQUOT: 'free some',
    errno.EROFS: 'mount it to be written to',
    errno.EACCES: 'give this user the right to it',
    errno.EFBIG: 'raise the limit that `ulimit -f` tells',
    errno.EIO: 'see whether the disk is sound',
    errno.ENAMETOOLONG: 'shorten it',
    errno.ENOTDIR: 'move away the file that lies in its place',
}
STOPPED = str(Stopped(signal.SIGINT))


def guarded(run: Callable[[], int]) -> int:
    """Runs a command and returns the exit code; the other processes of the job end with it.

    0: done; 1: failed, by an error of the program's, as another process of the job is gone or has
    not come, or as the workdir is in use; 2: a mistake of the user, told in one line; 130: stopped
    by Ctrl-C; 143: preempted by SIGTERM, what was done is saved; 141: nobody reads the output any
    more. A process that ends for another one's mistake or error has its code.
    """
    for name in ('stdout', 'stderr'):  # closed (`>&-`), and else the number of a file opened later
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, 'w'))  # noqa: SIM115 (open to the end)
        with contextlib.suppress(AttributeError):  # what stands in for it is no text file
            getattr(sys, name).reconfigure(errors='backslashreplace')  # an encoding may lack signs
    with Interrupts():
        try:
            code = run()
        except UserError as error:
            text = error.told(f'--config.{error.argument}' if is_setting(error.argument) else None)
            errors.tell(text)
            code = 1 if isinstance(error, errors.Later) else 2
            _tell_others(code, f'has ended: {text}')
            return code
        except Stopped as stopped:
            print(f'\n{stopped}', file=sys.stderr)
            _tell_others(stopped.code)
            return stopped.code
        except BrokenPipeError:
            if not _output_is_closed():
                raise
            with contextlib.suppress(BrokenPipeError):
                print(f'nobody reads the output; {STOPPED}', file=sys.stderr)
            return 141
        except Exception as error:
            if reason := _of_the_disk(error):
                errors.tell(f'{reason}; what was stored before is whole')
                _tell_others(2, f'has ended: {reason}')
                return 2
            if not _tell_others(1, f'has failed: {type(error).__name__}: {error}'.splitlines()[0]):
                raise
            traceback.print_exc()
            return 1
        _tell_others(code)
        return code


def _of_the_disk(error: BaseException | None) -> str:
    """What is wrong with the disk, where that is why something failed; else ''."""
    while error is not None:
        where = f'{error.filename}: ' if isinstance(error, OSError) and error.filename else ''
        for number, remedy in DISK.items():
            # Libraries that write in C++ tell it in their messages only.
            if getattr(error, 'errno', None) == number or os.strerror(number) in str(error):
                return f'{where}{os.strerror(number)}: {remedy}, or write elsewhere'
        error = error.__cause__ or error.__context__
    return ''


def _tell_others(code: int, why: str = '') -> bool:
    """Tells the other processes of the job how this one ends; False where it is alone."""
    hosts = sys.modules.get('rstar_jax.job.hosts')
    return hosts is not None and hosts.end(code, why)


def _output_is_closed() -> bool:
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def show_help(text: str) -> int:
    """Prints a text of which a reader may want no more than the beginning; returns 0."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # what is left is not tried again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
