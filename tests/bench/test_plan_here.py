"""The plan against what happens: which problems are searched when, and what is divided by what."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from rstar_jax import parallel, rounds
from rstar_jax.bench import plan_here
from rstar_jax.job import ledger
from rstar_jax.parallel import chips
from rstar_jax.plan import topology, whole_job
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.kinds import KINDS
from tests.test_whole_job import FOUND

SECONDS = {'search': 130.0, 'curate': 1.0, 'sft': 50.0, 'ppm': 50.0}


def test_a_small_run_is_the_plan_of_other_problems(monkeypatch, tmp_path):
    problems = [{'index': i, 'question': f'q{i}', 'answer': '1'} for i in range(9)]
    (tmp_path / 'problems.json').write_text(json.dumps(problems))
    ran, compiled = [], [0.0]

    def run(config, workdir, stages):
        (name,) = stages
        given = json.loads(pathlib.Path(config.data.problems).read_text())
        ran.append((name, [problem['index'] for problem in given]))
        compiled[0] += 10
        folder = pathlib.Path(workdir) / 'round1' / KINDS[name].folder
        figures = {'tokens': 4000, 'tokens_per_second': 200.0}
        ledger.write_json(folder / 'done.json', {'seconds': SECONDS[name], 'figures': figures})

    chip = chips.Chip(memory=2**34, flops=2e11, bandwidth=1e10)
    speed = whole_job.Speed(decoded=200.0, read=400.0, steps={'sft': 3.0})
    monkeypatch.setattr(rounds, 'run', run)
    monkeypatch.setattr(parallel, 'compile_seconds', lambda: compiled[0])
    monkeypatch.setattr(chips, 'here', lambda dtype: chip)
    monkeypatch.setattr(topology, 'models_of', lambda path: {'model': None})
    known = {'small': FOUND, 'large': dataclasses.replace(FOUND, sampled=3000.0)}
    monkeypatch.setattr(whole_job, 'statistics', lambda workdir: (1, known[workdir.parent.name]))
    monkeypatch.setattr(whole_job, 'compiled', lambda *_: whole_job.Plans(None, {}, 1))
    monkeypatch.setattr(whole_job, 'limits', lambda *_: speed)
    monkeypatch.setattr(whole_job, 'PROCESSOR', whole_job.Assumed(1.0, 0.5, 0.5, 0.0, 7.0))
    settings = {'model': 'm', 'problems': str(tmp_path / 'problems.json')}
    found = plan_here.run(**settings, small=3, count=6, batch_size=5, trees='')
    drawn = np.random.default_rng(0).permutation(9).tolist()
    assert ran == [(name, part) for part in (drawn[:3], drawn[3:]) for name in plan_here.STAGES]
    # 6 trees of 1000 tokens at 200 a second, and 1000 at half of 400; compiling is left out.
    assert found['search_planned'] == pytest.approx(6 * (5 + 5))
    assert found['search_seconds'] == 130 - 10
    assert found['search_ratio'] == pytest.approx(60 / 120)
    assert found['search_knowing'] == pytest.approx(6 * (15 + 5) / 120)
    # 12 examples in batches of 5: 2.4 steps that take twice 3 s; 4000 tokens at 200 a second.
    assert (found['sft_planned'], found['sft_seconds']) == (pytest.approx(14.4), 20)
    assert 'ppm_ratio' not in found  # nothing was planned
    assert (found['gflops'], found['gb_per_second']) == (200, 10)
    assert found['compile_seconds'] == 40
    with pytest.raises(UserError, match='--small=5 --count=6: the files hold fewer'):
        plan_here.run(**settings, small=5, count=6)
