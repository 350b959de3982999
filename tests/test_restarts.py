"""Shared by processes, in a store, or killed, a run makes what one in peace makes."""

import json
import signal
import subprocess
import time

import fsspec
import numpy as np
from fsspec.implementations.memory import MemoryFileSystem

from rstar_jax import data, main
from rstar_jax.data import arithmetic, examples
from rstar_jax.job import ledger
from tests.parallel import processes
from tests.search import test_engine
from tests.worlds import REPOSITORY, command, run, trees


def test_four_processes_make_what_one_makes(world, tmp_path, monkeypatch):
    """A whole round on 4 processes of 2 devices, in a store, and on one of all 8."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    settings = ('--config.eval.strategies=greedy', '--config.base.path=')
    settings += ('--config.training.ppm.epochs=3',)
    results = []
    for count in (1, 4):
        workdir = tmp_path / str(count)
        url = workdir if count == 1 else f'file://{workdir}'
        outputs = processes.run(command(world, url, *settings), count, 8 // count)
        assert 'round 1 export: done' in outputs[0]
        results.append(workdir)
    one, four = results
    with (
        data.TreeStore(one / 'round1' / 'search') as ours,
        data.TreeStore(four / 'round1' / 'search') as theirs,
    ):
        # Shapes differ, and so does rounding; what was drawn does not.
        test_engine.assert_same(*({r.key: r for r in store} for store in (ours, theirs)), False)
        config, _ = main.parse(str(world / 'config.py'), [])
        rules = config.curate.to_dict()
        rules = {key: rules[key] for key in rules.keys() - {'rounds', 'sft', 'pairs'}}
        alone = tmp_path / 'alone'
        counts = data.curate_to(theirs, alone, **rules)
    together = four / 'round1' / 'curate'
    texts = [(folder / 'counts.json').read_text() for folder in (alone, together)]
    assert counts['pairs'] and texts[0] == texts[1]
    for kind in examples.KINDS:
        made = [list(data.load_examples(folder, kind)) for folder in (alone, together)]
        assert made[0] == made[1]
    for stage in ('policy', 'ppm'):
        losses = [
            [
                json.loads(line)['loss']
                for line in (folder / 'round1' / stage / 'metrics.jsonl').open()
            ]
            for folder in results
        ]
        assert len(losses[0]) > 2
        np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-6)
    for stage in ('round0', 'round1'):
        found = [ledger.read_json(folder / stage / 'eval' / 'results.json') for folder in results]
        assert _untimed(found[1]) == _untimed(found[0])


def test_a_round_in_an_object_store(world, tmp_path, monkeypatch, capsys):
    """From there another machine, with nothing of its own, has it complete."""
    MemoryFileSystem.store.clear()
    settings = '--config.eval.strategies=greedy', '--config.base.path='
    arguments = command(world, 'memory://bucket/run', *settings)[3:]
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'one'))
    assert main.main(arguments) == 0
    made = fsspec.filesystem('memory').find('/bucket/run')
    stages = ('search', 'curate', 'policy', 'ppm', 'eval', 'export')
    for stage in stages:
        assert f'/bucket/run/round1/{stage}/done.json' in made
    assert '/bucket/run/round1/export/policy/model.safetensors' in made
    capsys.readouterr()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'two'))
    assert main.main(arguments) == 0
    assert capsys.readouterr().out.count(': complete') == 1 + len(stages)


def stored(folder) -> dict[tuple[int, int], bytes]:
    with data.TreeStore(folder, writer=None) as store:
        return {record.key: record.to_bytes() for record in store}


def _untimed(results):
    """results.json without what a clock has measured."""
    if isinstance(results, dict):
        return {k: _untimed(v) for k, v in results.items() if k != 'seconds_per_problem'}
    return results


def test_killed_in_the_search_it_goes_on(world, tmp_path):
    """To the same trees, byte for byte, as in one go, in another order and among others."""
    problems = json.loads((world / 'problems.json').read_text())
    many = [
        {**one, 'index': i, 'question': f'{one["question"]} {i}'}
        for i, one in enumerate(8 * problems)
    ]
    more = [{**p.row, 'index': 32 + i} for i, p in enumerate(arithmetic.problems(8, seed=4))]
    (tmp_path / 'many.json').write_text(json.dumps(many))
    (tmp_path / 'more.json').write_text(json.dumps([*more[:4], *many[::-1], *more[4:]]))

    def settings(name: str) -> tuple[str, ...]:
        return (
            f'--config.data.problems={tmp_path / name}',
            '--stages=search',
            '--config.search.one_size=True',
            '--config.search.slots=5',
            '--config.search.trees_in_flight=3',
        )

    workdir = tmp_path / 'run'
    search = workdir / 'round1' / 'search'
    process = subprocess.Popen(
        command(world, workdir, *settings('many.json')),
        cwd=REPOSITORY,
        env=processes.environment_of(1),
        stdout=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 300
        while not (search.is_dir() and len(data.TreeStore(search, writer=None)) >= 8):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        process.kill()
        process.stdout.close()
    first = stored(search)
    assert 8 <= len(trees(search)) < 32
    for folder, name in ((workdir, 'many.json'), (tmp_path / 'other', 'more.json')):
        result = run(world, folder, *settings(name))
        assert result.returncode == 0, result.stderr
    assert first.items() <= stored(search).items()
    found, others = trees(search), trees(tmp_path / 'other' / 'round1' / 'search')
    assert sorted(found) == [(i, 0) for i in range(32)]
    assert len(others) == 40
    assert [key for key in found if found[key] != others[key]] == []
