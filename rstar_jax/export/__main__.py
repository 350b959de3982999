"""Models and training data as others read them, with cards, and onto the Hugging Face hub.

usage: python -m rstar_jax.export CHECKPOINT DIR [--dtype=bfloat16] [--push_to_hub=NAME] [--dry_run]

  CHECKPOINT           a policy or PPM: a folder that a training wrote, a Hugging Face directory or
                       a .gguf file; or a round of a run (WORKDIR/round1) with all that it made; or
                       a WORKDIR: its last round
  DIR                  where it is written: a model into DIR itself, a round into DIR/policy,
                       DIR/ppm and DIR/data
  --dtype=bfloat16     of the weights; float32 by default
  --license=NAME       for the cards, as the hub spells it: apache-2.0
  --push_to_hub=NAME   you/name, pushed once transformers gives the same logits; a round goes to
                       NAME, NAME-ppm and, as a dataset, NAME-data; other files there are deleted
  --private            what the push creates is visible to you only
  --dry_run            writes and checks everything and lists what would be pushed, without network
"""

import argparse
import importlib.util
import pathlib
import sys
from collections.abc import Sequence

from rstar_jax.export import hub, huggingface
from rstar_jax.job import command
from rstar_jax.job.interrupts import leave
from rstar_jax.settings import errors
from rstar_jax.settings.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (without the program's name) and returns the exit code."""
    return command.guarded(lambda: _run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog='python -m rstar_jax.export')
    parser.add_argument('checkpoint')
    parser.add_argument('directory')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--license', default='')
    parser.add_argument('--push_to_hub', default='')
    parser.add_argument('--private', action='store_true')
    parser.add_argument('--dry_run', action='store_true')
    if any(argument in ('-h', '--help') for argument in arguments):
        return command.show_help(__doc__.strip())
    parser.error = _refuse
    options = parser.parse_args(arguments)
    with errors.of_setting('export', {'directory': 'DIR', 'name': '--push_to_hub'}):
        return _export(options)


def _export(options: argparse.Namespace) -> int:
    name = options.push_to_hub
    if name:
        hub.repositories([huggingface.Exported('policy', pathlib.Path())], name)  # before the work
        without = importlib.util.find_spec('torch') is None
        if without and not options.dry_run and _has_model(pathlib.Path(options.checkpoint)):
            needs = 'needs torch, to compare what is pushed with transformers'
            raise UserError('--push_to_hub', name, needs, 'pip install torch')
    huggingface.check_target(options.checkpoint, options.directory)
    made = huggingface.export(
        options.checkpoint, options.directory, options.dtype, license_=options.license, name=name
    )
    if name or options.dry_run:
        for line in hub.check(made, whole=not options.dry_run):
            print(line, flush=True)
    for line in hub.listing(made, name):
        print(line, flush=True)
    if options.dry_run:
        print('dry run: nothing was pushed')
    elif name:
        for url in hub.push(made, name, private=options.private):
            print(f'pushed {url}', flush=True)
    return 0


def _refuse(message: str) -> None:
    raise UserError(message, remedy='python -m rstar_jax.export --help')


def _has_model(source: pathlib.Path) -> bool:
    finished = ((source / part / 'done.json').exists() for part in ('policy', 'ppm'))
    return huggingface.kind_of(source) != 'round' or any(finished)


if __name__ == '__main__':
    if code := main():
        leave(code)
