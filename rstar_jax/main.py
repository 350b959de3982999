"""rstar_jax: a small language model teaches itself mathematics by searching over program steps.

usage: python -m rstar_jax.main --config=FILE --workdir=DIR [--config.KEY=VALUE ...]

  --config=FILE            what to run: a file of experiments/ or your own (needed)
  --config.KEY=VALUE       changes one setting; --config=FILE --help lists them all
  --workdir=DIR            where everything that is made goes; the same command goes on from there;
                           a folder, or an object store's address, such as gs://BUCKET/RUN
  --stages=A,B             only these stages of: bootstrap, synthesize, search, curate, sft, ppm,
                           eval, export
  --plan=TOPOLOGY[,...]    compile search and trainings for a TPU slice, for example v5e:4x8, and
                           print what they would take; runs nothing
  --problems=N             with --plan and the --workdir of a small run: hours and chip-hours of a
                           round with so many problems; --plan=here: on this machine, as measured
  --help                   this text; with --config=FILE, that file's text and settings
"""

import contextlib
import os
import re
import resource
import sys
from collections.abc import Sequence

from rstar_jax.job import large_pages

if __name__ == '__main__':
    large_pages.take_large()

from absl import flags, logging
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from rstar_jax import settings
from rstar_jax.job import command
from rstar_jax.job.interrupts import leave
from rstar_jax.settings import errors
from rstar_jax.settings.errors import UserError

OPEN_FILES = 65536


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (without the program's name) and returns its exit code (`guarded`)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.set_verbosity(logging.ERROR)
    return command.guarded(lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    path, rest = _config_path(arguments)
    if any(argument in ('--help', '-help', '-h', '--helpfull') for argument in rest):
        return command.show_help(_help(path))
    if path is None:
        raise UserError('--config: needs a config file, for example experiments/quickstart.py')
    config, values = parse(path, rest)
    settings.validate(config)
    stages = settings.stages_of(config.stages if values.stages is None else values.stages)
    _check_text('--workdir', values.workdir)
    workdir = _at_home(values.workdir)
    if values.problems and not values.plan:
        raise UserError(f'--problems={values.problems}: goes with --plan; see --config.data.limit')
    if values.plan == '':
        raise UserError('--plan=: expected a topology, such as v5e:4x8, or here')
    if values.plan:
        return _plan(config, values, workdir, stages)
    if not (workdir or config.question or config.serve.port):
        workdir = _default_workdir(config, stages)

    from rstar_jax import grading, parallel, rounds
    from rstar_jax.execution import workers
    from rstar_jax.job import bucket, hosts
    from rstar_jax.use import solve

    if bucket.is_url(workdir):
        _check_store(config, workdir)
    if values.stages and (config.question or config.serve.port):
        raise UserError(f'--stages={values.stages}: a question is answered, no round is run')
    hosts.initialise(seconds=config.job.start_seconds)
    sharing = hosts.sharing_cores()
    workers.share(sharing)
    parallel.share_memory(sharing)
    parallel.keep_compiled(config.compiled)
    _open_many_files()
    grading.set_workers(config.execution.workers)
    if config.serve.port:
        from rstar_jax.use import serve

        serve.serve(config, workdir)
    elif config.ablations.seeds:
        from rstar_jax import study

        study.check(config, values.stages)
        study.run(config, workdir)
    elif config.question:
        print(solve.solve(config, workdir))
    else:
        _check_work(config, stages, rounds.rows(config, stages))
        rounds.run(config, workdir, stages)
    return 0


def _plan(config: ConfigDict, values: flags.FlagValues, workdir: str, stages) -> int:
    """Prints the lines of a plan; returns 0."""
    from rstar_jax import plan

    if values.problems:
        lines = plan.whole_job(config, values.plan, values.problems, workdir, stages)
    else:
        lines = plan.on_slices(config, values.plan, stages)
    flags_ = {key: f'--{key}' for key in ('problems', 'stages')} | {'topology': '--plan'}
    with errors.of_setting('search', flags_):
        for line in lines:
            print(line, flush=True)
    return 0


def _open_many_files() -> None:
    """Raises how many files may be open: the trees of a large search lie in thousands."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS allows fewer than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _default_workdir(config: ConfigDict, stages: Sequence[str]) -> str:
    """A folder for the evaluation of a model, by the model's path.

    Raises UserError: something else is to be run, which names its own; no model is named.
    """
    if config.last_round or list(stages) != ['eval']:
        raise UserError(
            '--workdir: needs a folder for what the run makes (only a question, '
            '--config.question=, is answered without one)'
        )
    if not config.policy.path:
        raise UserError('--config.policy.path=: needs the model that is evaluated')
    name = re.sub(r'[^\w.-]+', '-', config.policy.path).strip('-.')
    workdir = os.path.join('runs', 'evaluate', name)
    print(f'--workdir={workdir}', flush=True)
    return workdir


def _check_work(config: ConfigDict, stages: Sequence[str], rows: Sequence[object]) -> None:
    """Raises UserError where there is nothing to do."""
    if rows:
        return
    from rstar_jax.stages import BY_NAME

    asked = {name: BY_NAME[name].asked_by for name in stages}
    needs = [f'{name} needs --config.{key}' for name, key in asked.items() if key]
    raise UserError(
        f'--stages={",".join(stages)}: nothing to do in rounds {config.first_round} to '
        f'{config.last_round}{": " if needs else ""}{", ".join(needs)}'
    )


def _check_store(config: ConfigDict, workdir: str) -> None:
    """Raises UserError for what needs a workdir on a disk."""
    ray, ablations = config.job.leases == 'ray', config.ablations.seeds
    if ray or ablations or config.question or config.serve.port:
        what = 'workers on Ray need a disk that all see' if ray else 'needs a folder'
        raise UserError(f'--workdir={workdir}: {what}, a store is for the rounds of a run')


def parse(path: str, arguments: Sequence[str]) -> tuple[ConfigDict, flags.FlagValues]:
    """Loads the config file, applies the overrides, reads the other flags.

    Args:
      path: of the config file; what follows a ':' goes to its get_config.
      arguments: the rest of the command line.

    Returns:
      The config, locked, and the values of --workdir, --stages, --plan, --problems.
    """
    config = settings.load(path)
    _check_overrides(config, arguments)
    values = flags.FlagValues()
    flags.DEFINE_string('workdir', '', 'where results go', flag_values=values)
    flags.DEFINE_string('stages', None, 'which stages to run', flag_values=values)
    flags.DEFINE_string('plan', None, 'topology to compile for', flag_values=values)
    flags.DEFINE_integer('problems', 0, 'of the round that is planned', flag_values=values)
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
    overrides = values['config'].override_values
    if 'question' in overrides and not config.question.strip():
        raise UserError(f'--config.question={config.question}: needs a question')
    settings.command_line_wins(config, overrides)
    for name, section in settings.flatten_sections(config).items():
        for key, value in section.items():
            if isinstance(value, str):
                _check_text(f'--config.{name}.{key}'.replace('..', '.'), value)
                section[key] = _at_home(value)
    return config, values


def _check_text(flag: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(
            f'{flag}={value[:40]!a}: not UTF-8 text: use a terminal, or a locale, of UTF-8'
        ) from None


def _at_home(paths: str) -> str:
    """Paths, by commas, with the home folder for ~/, which shells leave alone behind a '='."""
    return re.sub(r'(?<![^,])~(?=/)', lambda _: os.path.expanduser('~'), paths)


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
            settings.check_key(config, name.removeprefix('config.'))
        elif argument.startswith('-') and name in settings.SETTINGS and name != 'stages':
            raise UserError(f'--{name}: no such flag; did you mean --config.{name}?')


# What the flag parsers say of a value that they cannot read, and what we say.
_UNREADABLE = {
    'invalid literal for int()': 'needs a whole number',
    'could not convert string to float': 'needs a number',
    "('Non-boolean argument": 'needs True or False',
}


def _one_line(error: Exception) -> str:
    """absl's messages without their traceback or their prefix."""
    text = errors.one_line(error, None)
    for theirs, ours in _UNREADABLE.items():
        flag, found, _ = text.partition(theirs)
        text = flag + ours if found else text
    without, found, flag = text.partition('Missing value for flag ')
    if found and not without:
        return f'{flag}: needs a value, {flag}=VALUE; --help lists the flags'
    return text.removeprefix('flag ').replace('Unknown command line flag', 'unknown flag')


def _help(path: str | None) -> str:
    if path is None:
        known = [f'  {name:16} {line}' for name, line in settings.experiments()]
        return '\n'.join([__doc__.strip(), '', 'config files in experiments/:', *known])
    return settings.describe(path)


if __name__ == '__main__':
    if code := main():
        leave(code)
