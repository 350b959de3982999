"""rstar_jax: a small language model teaches itself mathematics by searching over program steps.

usage: python -m rstar_jax.main --config=FILE --workdir=DIR [--config.KEY=VALUE ...]

  --config=FILE            what to run: a file of experiments/ or your own (needed)
  --config.KEY=VALUE       changes one setting; --config=FILE --help lists them all
  --workdir=DIR            where everything that is made goes; the same command goes on from there
  --stages=A,B             only these stages of: bootstrap, search, curate, sft, ppm, eval, export
  --plan=TOPOLOGY[,...]    compile search and trainings for a TPU slice, for example v5e:4x8, and
                           print what they would take; runs nothing
  --help                   this text; with --config=FILE, that file's text and settings
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

# Before jax and transformers are imported: a run's terminal is for its own lines.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

from absl import flags, logging
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from rstar_jax import configs
from rstar_jax.errors import UserError
from rstar_jax.interrupts import Interrupts, Stopped, leave

STOPPED = str(Stopped(signal.SIGINT))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (without the program's name) and returns its exit code (`guarded`)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.set_verbosity(logging.ERROR)
    return guarded(lambda: _run(arguments))


def guarded(run: Callable[[], int]) -> int:
    """Runs a command and returns the exit code.

    0: done; 2: a mistake of the user, told in one line; 130: stopped by Ctrl-C; 143: preempted by
    SIGTERM; 141: nobody reads the output any more.
    """
    with Interrupts():
        try:
            return run()
        except UserError as error:
            print(f'error: {error}', file=sys.stderr)
            return 2
        except Stopped as stopped:
            print(f'\n{stopped}', file=sys.stderr)
            return stopped.code
        except BrokenPipeError:
            if not _output_is_closed():
                raise
            with contextlib.suppress(BrokenPipeError):
                print(f'nobody reads the output; {STOPPED}', file=sys.stderr)
            return 141


def _output_is_closed() -> bool:
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def _run(arguments: list[str]) -> int:
    path, rest = _config_path(arguments)
    if any(argument in ('--help', '-help', '-h', '--helpfull') for argument in rest):
        print(_help(path))
        return 0
    if path is None:
        raise UserError('--config: needs a config file, for example experiments/quickstart.py')
    config, values = parse(path, rest)
    configs.validate(config)
    stages = configs.stages_of(values.stages or config.stages)
    if values.plan:
        from rstar_jax import planning

        for line in planning.plan(config, values.plan, stages):
            print(line, flush=True)
        return 0

    if not (values.workdir or config.question or config.serve.port):
        raise UserError('--workdir: needs a folder for what the run makes')

    from rstar_jax import parallel, rounds, solve

    parallel.keep_compiled(config.compiled)
    parallel.initialise()
    if config.serve.port:
        from rstar_jax import serve

        serve.serve(config, values.workdir)
    elif config.ablations.seeds:
        from rstar_jax import ablations

        ablations.run(config, values.workdir)
    elif config.question:
        print(solve.solve(config, values.workdir))
    else:
        rounds.run(config, values.workdir, stages)
    return 0


def parse(path: str, arguments: Sequence[str]) -> tuple[ConfigDict, flags.FlagValues]:
    """Loads the config file, applies the overrides, reads the other flags.

    Args:
      path: of the config file; what follows a ':' goes to its get_config.
      arguments: the rest of the command line.

    Returns:
      The config, locked, and the values of --workdir, --stages, --plan.
    """
    config = configs.load(path)
    _check_overrides(config, arguments)
    values = flags.FlagValues()
    flags.DEFINE_string('workdir', '', 'where results go', flag_values=values)
    flags.DEFINE_string('stages', '', 'which stages to run', flag_values=values)
    flags.DEFINE_string('plan', '', 'topology to compile for', flag_values=values)
    argv = ['main', *arguments]
    config_flags.DEFINE_config_dict(
        'config', config, flag_values=values, lock_config=True, sys_argv=argv
    )
    try:
        left = values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_one_line(error)) from None
    if len(left) > 1:
        raise UserError(f'{left[1]}: expected --name=value; --help lists the flags')
    configs.command_line_wins(config, values['config'].override_values)
    return config, values


def _config_path(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes `--config=FILE` or `--config FILE` out of the arguments."""
    path, rest = None, []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition('=')
        if name in ('--config', '-config'):
            path = value if equals else next(remaining, '')
        else:
            rest.append(argument)
    return path, rest


def _check_overrides(config: ConfigDict, arguments: Sequence[str]) -> None:
    for argument in arguments:
        name = argument.partition('=')[0].lstrip('-')
        if argument.startswith('-') and name.startswith('config.'):
            configs.check_key(config, name.removeprefix('config.'))


# What the flag parsers say of a value that they cannot read, and what we say.
_UNREADABLE = {
    'invalid literal for int()': 'needs a whole number',
    'could not convert string to float': 'needs a number',
    "('Non-boolean argument": 'needs True or False',
}


def _one_line(error: Exception) -> str:
    """absl's messages without their traceback or their prefix."""
    text = ' '.join(str(error).split())
    for theirs, ours in _UNREADABLE.items():
        flag, found, _ = text.partition(theirs)
        text = flag + ours if found else text
    return text.removeprefix('flag ').replace('Unknown command line flag', 'unknown flag')


def _help(path: str | None) -> str:
    if path is None:
        lines = [__doc__.strip(), '', 'config files in experiments/:']
        lines += [f'  {name:16} {line}' for name, line in configs.experiments()]
        return '\n'.join(lines)
    return configs.describe(path)


if __name__ == '__main__':
    if code := main():
        leave(code)
