"""A round's search: its passes, and what is told of them; the models of an evaluation."""

import collections
import dataclasses
import types

import pytest

from rstar_jax import configs, data, ledger, rounds, search, searching, sources
from rstar_jax.errors import UserError
from tests.data import samples
from tests.search.test_scripted import random_score, random_texts

PROBLEMS = [{'index': i, 'question': f'q{i}', 'answer': str(i % 3)} for i in range(8)]


def test_what_is_told_of_later_passes_follows_what_was_told_before(monkeypatch, tmp_path):
    """In TensorBoard, where a pass that began at 0 again would lie over the one before."""
    config = configs.default()
    config.search.rollouts, config.search.candidates, config.search.max_depth = 1, 2, 2
    config.search.more_rollouts = (2, 3)

    def searcher(*_):
        def run(problems, *models, leases, **given):
            return search.run(
                problems, expander=search.scripted(random_texts, random_score), **given
            )

        return run, None, None

    steps = []

    class Events:
        def add(self, prefix, scalars, step):
            steps.append(step)

    monkeypatch.setattr(searching, '_searcher', searcher)
    monkeypatch.setattr(sources, 'split_problems', lambda _: (PROBLEMS, {}, collections.Counter()))
    stage = ledger.Stage(tmp_path / 'round1' / 'search', {}, ())
    stage.begin()
    round_ = sources.Round(config, tmp_path, 1, Events())
    with searching.Line('search') as line:
        figures = searching.search_trees(round_, stage, line)
    with data.TreeStore(stage.folder) as store:
        assert figures['trees'] == len(store) > len(PROBLEMS)
    assert steps == sorted(steps)
    assert steps[-1] == figures['trees']


def test_a_search_does_not_go_on_with_other_problems(tmp_path):
    with data.TreeStore(tmp_path) as store:
        store.append(dataclasses.replace(samples.grown(0), problem=PROBLEMS[3]))
        searching._check_problems(PROBLEMS, store, 'some.json')
        searching._check_problems(PROBLEMS[:3], store, 'some.json')  # it is not searched any more
        other = {**PROBLEMS[3], 'question': 'another'}
        with pytest.raises(UserError, match=r'some.json: problem 3 is another than the one that'):
            searching._check_problems([*PROBLEMS[:3], other], store, 'some.json')


def test_a_ppm_of_an_older_policy_is_left_out(monkeypatch, tmp_path):
    round_ = sources.Round(configs.default(), tmp_path, 1, None)
    policy, ppm = (rounds.stage_of(round_, name) for name in ('sft', 'ppm'))
    for stage in (policy, ppm):
        stage.begin()
        ledger.write_json(stage.folder / 'model.json', {})
        stage.finish({})
    exported, told = [], []

    def export(path, folder, **_):
        assert folder.name == path.name
        exported.append(path.name)

    monkeypatch.setattr(rounds.exporting, 'export_model', export)
    stage = rounds.stage_of(round_, 'export')
    line = types.SimpleNamespace(say=told.append)
    assert searching.evaluated_paths(round_) == (policy.folder, ppm.folder)
    assert rounds.stage_of(round_, 'eval').inputs == (policy.folder, ppm.folder)
    assert rounds.export(round_, stage, line) == {'policy': 'policy', 'ppm': 'ppm'} and not told
    policy.finish({})  # anew
    assert searching.evaluated_paths(round_, False, told.append) == (policy.folder, None)
    assert rounds.stage_of(round_, 'eval').inputs == (policy.folder,)
    assert rounds.export(round_, stage, line) == {'policy': 'policy'}
    assert told == 2 * [
        f'{ppm.folder} is left out, it was trained from an older policy: --stages=ppm makes it anew'
    ]
    assert exported == ['policy', 'ppm', 'policy']


@pytest.mark.parametrize(('number', 'base'), [(0, False), (0, True), (1, False)])
def test_all_that_is_measured_is_in_8_bits_as_what_searches(monkeypatch, tmp_path, number, base):
    config = configs.default()
    config.policy.path, config.ppm.path, config.base.path = 'instruct', 'judge', 'base'
    config.policy.weights = 'int8'
    for name in ('policy', 'ppm'):
        for file in ('model.json', 'done.json'):
            ledger.write_json(tmp_path / 'round1' / name / file, {'kind': name, 'id': name})
    for name in ('load_policy', 'load_ppm'):
        monkeypatch.setattr(sources, name, lambda path, dtype, mesh: str(path))
    monkeypatch.setattr(sources.models, 'quantized', lambda model: f'{model} in 8 bits')
    round_ = sources.Round(config, tmp_path, number, None)
    policy, ppm = searching.evaluated_models(round_, base)
    assert policy.endswith(' in 8 bits') and (base or ppm.endswith(' in 8 bits'))
    stage = rounds.stage_of(round_, rounds.BASE if base else 'eval')
    assert stage.settings['policy.weights'] == 'int8'

    def job(*, weights, **_):
        raise RuntimeError(f'weights={weights}')

    monkeypatch.setattr(searching.elastic, 'Job', job)
    config.job.leases = 'ray'
    run = searching.evaluating(round_, base, print)
    given = {'config': search.Config(), 'seed': 0, 'trees': 1, 'skip': (), 'progress': None}
    with pytest.raises(RuntimeError, match='weights=int8'):
        next(run(PROBLEMS, policy, ppm, **given))
