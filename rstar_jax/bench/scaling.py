"""Weak scaling: the same work for each of 1, 2, ... processes of this machine, a core each.

Each process is bound to a core of its own and has one device; training batches, demonstrations and
problems grow with the number of processes. Every count runs twice, so that what the measured run
needs is compiled before.

    search_tokens_per_second_N, sft_tokens_per_second_N    of N processes together
    search_efficiency_N, sft_efficiency_N                  tokens a second of a process / those of
                                                           the fewest

It tells what dealing trees, meeting between stages and exchanging gradients cost, and whether a
process waits for another. It cannot tell what a network does, nor how a larger model behaves: cores
share memory and its bandwidth, gradients cross no wire, and a tiny model computes little between
two exchanges, so that the training's figure is a lower limit.
"""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile

from rstar_jax.settings.errors import UserError


def run(
    *, counts: str = '1,2', problems: int = 24, demonstrations: int = 960, seed: int = 0
) -> dict[str, float]:
    """Settings: counts, numbers of processes; problems, demonstrations of each process."""
    from rstar_jax.job import ledger

    numbers = [int(count) for count in counts.split(',') if count.isdigit()]
    if not hasattr(os, 'sched_setaffinity'):
        raise UserError(f'bench scaling: {sys.platform} keeps no process on one core: use Linux')
    cores = sorted(os.sched_getaffinity(0))
    if not numbers or max(numbers) > len(cores):
        raise UserError(f'--counts={counts}: expected numbers, none above {len(cores)} (cores)')
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in numbers:
            settings = {
                'seed': seed,
                'last_round': 1,
                'data.limit': problems * count,
                'bootstrap.demonstrations': demonstrations * count,
                'training.bootstrap.batch_size': 16 * count,
                'training.bootstrap.form': 0.0,
                'execution.workers': 1,
            }
            for name in ('compile', 'measure'):
                workdir = pathlib.Path(folder) / f'{name}{count}'
                _job(cores[:count], workdir, settings, pathlib.Path(folder) / f'compiled{count}')
            for kind, place in (('search', 'round1/search'), ('sft', 'round0/policy')):
                found = ledger.read_json(workdir / place / 'done.json')['figures']
                figures[f'{kind}_tokens_per_second_{count}'] = found['tokens_per_second']
    fewest = min(numbers)
    for kind in ('search', 'sft'):
        each = {n: figures[f'{kind}_tokens_per_second_{n}'] / n for n in numbers}
        for count in numbers:
            if count != fewest:
                figures[f'{kind}_efficiency_{count}'] = each[count] / each[fewest]
    return figures | {'load': os.getloadavg()[0]}


def _job(cores: list[int], workdir: pathlib.Path, settings: dict, compiled: pathlib.Path) -> None:
    """Runs a first policy and a search by one process for each of the cores."""
    command = [sys.executable, '-m', 'rstar_jax.main', f'--workdir={workdir}']
    command += ['--config=experiments/quickstart.py', '--stages=bootstrap,search']
    command += [f'--config.{key}={value}' for key, value in settings.items()]
    environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(compiled)}
    if len(cores) > 1:
        from rstar_jax.job.roll import free_port

        environment |= {
            'JAX_COORDINATOR_ADDRESS': f'localhost:{free_port()}',
            'JAX_NUM_PROCESSES': str(len(cores)),
        }
    with contextlib.ExitStack() as stack:
        started = []
        for number, core in enumerate(cores):
            if len(cores) > 1:
                environment['JAX_PROCESS_ID'] = str(number)
            log = stack.enter_context(tempfile.TemporaryFile('w+'))
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=pathlib.Path(__file__).parents[2],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            os.sched_setaffinity(process.pid, {core})  # before it makes threads
            stack.callback(process.kill)
            started.append((process, log))
        for process, log in started:
            if process.wait():
                log.seek(0)
                raise UserError(f'bench scaling: a process failed: {log.read()[-500:]}')
