"""A whole round by the real command, in the small world of `worlds`."""

import dataclasses
import json
import pathlib
import random
import re
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from rstar_jax import data, main, models, search, steps
from rstar_jax import settings as configs
from rstar_jax.export import huggingface
from rstar_jax.job import ledger
from rstar_jax.job.progress import Events
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import BY_NAME, Round, searches
from rstar_jax.stages import problems as own_problems
from rstar_jax.stages.stage import Ahead
from tests import kills
from tests.parallel import processes
from tests.stages import doing
from tests.worlds import command, run, solution


@pytest.fixture(scope='module')
def finished(world) -> tuple[pathlib.Path, str]:
    """(workdir, what the command printed) of one whole round."""
    workdir = world / 'run'
    result = run(world, workdir)
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def test_every_stage_is_done_and_timed(finished):
    workdir, _ = finished
    for name in ('search', 'curate', 'policy', 'ppm', 'eval', 'export'):
        done = ledger.read_json(workdir / 'round1' / name / 'done.json')
        assert done['seconds'] > 0, name
    assert ledger.read_json(workdir / 'round0' / 'eval' / 'done.json')
    assert ledger.read_json(workdir / 'base' / 'eval' / 'done.json')


def test_the_search_found_right_and_wrong_answers(finished):
    workdir, _ = finished
    with data.TreeStore(workdir / 'round1' / 'search') as store:
        records = list(store)
    assert sorted(record.key for record in records) == [(i, 0) for i in range(4)]
    figures = ledger.read_json(workdir / 'round1' / 'search' / 'done.json')['figures']
    assert figures['trees'] == figures['problems'] == 4
    assert figures['solved'] == sum(record.solved for record in records) >= 3
    assert figures['nodes'] == sum(len(record.texts) for record in records)
    assert figures['tokens'] > 100
    assert any(not right for r in records for right, a in zip(r.correct, r.answers) if a)


def test_the_trainings_learnt(finished):
    workdir, _ = finished
    sft = ledger.read_json(workdir / 'round1' / 'policy' / 'done.json')['figures']
    assert sft['loss_last'] < sft['loss_first']
    ppm = ledger.read_json(workdir / 'round1' / 'ppm' / 'done.json')['figures']
    assert ppm['held_out_pairs'] >= 1
    assert 0 <= ppm['pair_accuracy_after'] <= 1


def test_results_json_has_policy_and_search_apart(finished):
    workdir, _ = finished
    start = ledger.read_json(workdir / 'round0' / 'eval' / 'results.json')
    after = ledger.read_json(workdir / 'round1' / 'eval' / 'results.json')
    assert (start['round'], after['round']) == (0, 1)
    row = after['benchmarks']['problems']
    assert row['problems'] == 4
    assert 0 <= row['greedy'] <= 1
    assert {'trajectories', 'best', 'majority', 'weighted', 'any'} <= row['search'].keys()
    assert row['interval95']['greedy'][0] <= row['greedy'] <= row['interval95']['greedy'][1]
    assert start['benchmarks']['problems']['search'] is None  # there was no PPM yet


def test_results_json_has_every_strategy_with_its_cost(finished):
    workdir, text = finished
    start, base, after = (
        ledger.read_json(workdir / name / 'eval' / 'results.json')['benchmarks']['problems']
        for name in ('round0', 'base', 'round1')
    )
    assert list(start['strategies']) == ['greedy', 'sampled', 'unguided']
    assert list(after['strategies']) == ['greedy', 'sampled', 'unguided', 'mcts']
    for figures in after['strategies'].values():
        assert figures['tokens_per_problem'] > 10 and figures['seconds_per_problem'] > 0
        # A tiny model of 0.8M weights reads a prompt and writes what was sampled, at least.
        assert figures['flops_per_problem'] > 1e6 * figures['tokens_per_problem']
    sampled = after['strategies']['sampled']
    assert sampled['trajectories'] == 6 and {'best', 'majority', 'any'} <= sampled.keys()
    assert after['judge'] == after['strategies']['mcts']['judge']
    judge = sampled['judge']
    assert judge['pairs'] > 0 and 0 <= judge['auc'] <= 1 and 0 <= judge['auc_likelihood'] <= 1
    # The base model is the one that round 0 starts from, by another name.
    assert base['greedy_solved'] == start['greedy_solved']
    assert ledger.read_json(workdir / 'base' / 'eval' / 'results.json')['round'] is None
    lines = [line for line in text.splitlines() if ' [' in line]
    assert [name for name in ('base', 'start', 'round 1') if any(name in x for x in lines)] == [
        'base', 'start', 'round 1',
    ]  # fmt: skip
    assert re.search(r'problems +round 1 +unguided +2 ', text)
    assert 'PPM ranks rightly' in text


def test_a_moved_workdir_is_complete_where_it_is(world, finished, tmp_path, capsys):
    workdir, _ = finished
    shutil.copytree(workdir, tmp_path / 'moved')
    for path in (tmp_path / 'moved').rglob('*.json'):
        assert str(workdir) not in path.read_text(), path
    assert main.main(command(world, tmp_path / 'moved')[3:]) == 0
    text = capsys.readouterr().out
    assert text.count(': complete') == 8
    assert str(tmp_path / 'moved' / 'round1' / 'export' / 'policy') in text
    assert str(workdir) not in text


def test_an_evaluation_belongs_to_its_models(world, finished, tmp_path, capsys):
    workdir, _ = finished
    flags = '--stages=eval', f'--config.policy.path={world / "base"}'
    assert main.main(command(world, workdir, *flags)[3:]) == 2
    error = capsys.readouterr().err
    assert f'policy.path={world / "base"}: {workdir} was made with {world / "policy"}' in error
    # The same path, and another model in it.
    shutil.copytree(world / 'policy', tmp_path / 'policy')
    ledger.write_json(tmp_path / 'policy' / 'done.json', {'id': 'first'})
    config, _ = main.parse(
        str(world / 'config.py'), [f'--config.policy.path={tmp_path / "policy"}']
    )
    round_ = Round(configs.for_round(config, 0), tmp_path / 'run', 0, Events(None))
    stage = doing.kept(round_, 'eval')
    stage.begin()
    stage.finish({})
    assert doing.kept(round_, 'eval').drop_if_stale() is None
    ledger.write_json(tmp_path / 'policy' / 'done.json', {'id': 'second'})
    assert doing.kept(round_, 'eval').drop_if_stale()
    assert doing.kept(round_, 'eval').done is None


def test_the_table_and_the_paths_are_printed(finished):
    workdir, text = finished
    assert re.search(r'1\s+search\s+[\d:]+\s+4 trees, \d+ nodes, [\d,]+ tokens generated', text)
    assert re.search(r'1\s+sft\s+[\d:]+\s+loss [\d.]+ -> [\d.]+', text)
    assert 'held-out pair accuracy' in text
    for path in ('round1/export/policy', 'round1/export/ppm', 'report/index.html', 'events'):
        assert str(workdir / path) in text, path
        assert (workdir / path).exists(), path
    assert (workdir / 'config.json').exists()


def test_the_export_is_the_policy(finished):
    """transformers continues a prompt greedily as our own policy does."""
    import torch
    import transformers

    workdir, _ = finished
    folder = workdir / 'round1' / 'export' / 'policy'
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = models.load(workdir / 'round1' / 'policy', 'float32')
    problem = json.loads((workdir.parent / 'problems.json').read_text())[0]
    prompt = tokenizer(steps.prompt(problem['question']))['input_ids']
    assert prompt == ours.tokenizer(steps.prompt(problem['question']))['input_ids']
    with torch.no_grad():
        generated = theirs.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
    generated = generated[0].tolist()
    logits = np.asarray(
        ours.logits(np.array([generated], np.int32), np.array([len(generated)], np.int32))
    )[0]
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == generated[len(prompt) :]
    ppm = models.load_ppm(workdir / 'round1' / 'export' / 'ppm', 'float32')
    kept = models.load_ppm(workdir / 'round1' / 'ppm', 'float32')
    arguments = np.array([prompt], np.int32), np.array([len(prompt)], np.int32)
    np.testing.assert_allclose(ppm.scores(*arguments), kept.scores(*arguments), atol=1e-6)


def test_examples_of_others_train_and_are_written_again_unchanged(world, tmp_path):
    """The released project's files, in place of a search: no trees, no problems."""
    problems = json.loads((world / 'problems.json').read_text())
    sft, pairs = [], []
    for problem in problems:
        right, wrong = solution('add it up', problem['answer']), solution('wild guess', '0')
        sft.append({'query': problem['question'], 'response': right})
        prompt = steps.prompt(problem['question'])
        first = right.index(steps.STEP_END) + len(steps.STEP_END)
        other = wrong.index(steps.STEP_END) + len(steps.STEP_END)
        step = {'prompt': prompt, 'pos': right[:first], 'neg': wrong[:other]}
        pairs += [{**step, 'pos_count': 1, 'neg_count': 2}] * 2
    (tmp_path / 'sft.json').write_text(json.dumps(sft, indent=4))
    (tmp_path / 'pairs.json').write_text(json.dumps(pairs, indent=4))
    result = run(
        world,
        tmp_path / 'run',
        '--stages=curate,sft,ppm',
        f'--config.curate.sft={tmp_path / "sft.json"}',
        f'--config.curate.pairs={tmp_path / "pairs.json"}',
        '--config.training.sft.form=0',  # of a few steps nobody expects it
    )
    assert result.returncode == 0, result.stderr
    made = tmp_path / 'run' / 'round1'
    for name in ('policy', 'ppm'):
        lines = (made / name / 'metrics.jsonl').read_text().splitlines()
        losses = [row['loss'] for row in map(json.loads, lines) if 'loss' in row]
        assert losses and all(map(np.isfinite, losses)), name
    huggingface.export_data(made, tmp_path / 'out')
    assert json.loads((tmp_path / 'out' / 'sft.json').read_text()) == sft
    assert json.loads((tmp_path / 'out' / 'pairs.json').read_text()) == pairs


def ppm_stage(world, finished, root: pathlib.Path, *flags: str) -> tuple[Round, ConfigDict]:
    """Round 1 of another workdir, with curated data and policy of the finished one; its config."""
    for name in ('curate', 'policy'):
        shutil.copytree(finished[0] / 'round1' / name, root / 'round1' / name)
    config, _ = main.parse(str(world / 'config.py'), [f'--config.{flag}' for flag in flags])
    return Round(configs.for_round(config, 1), root, 1, Events(None)), config


@pytest.mark.parametrize('loss', ['orm', 'pqm', 'prm'])
def test_a_ppm_of_any_loss_guides_the_search(world, finished, tmp_path, monkeypatch, loss):
    monkeypatch.setattr(type(BY_NAME['ppm']), 'mesh', lambda *_: None)  # the real one has 8 devices
    flags = f'training.ppm.loss={loss}', 'training.ppm.held_out=0.5', 'training.ppm.epochs=4'
    round_, config = ppm_stage(world, finished, tmp_path, *flags)
    doing.run(round_, 'ppm')
    figures = ledger.read_json(tmp_path / 'round1' / 'ppm' / 'done.json')['figures']
    curated = ledger.read_json(finished[0] / 'round1' / 'curate' / 'done.json')['figures']
    assert figures['examples'] + figures['held_out'] == curated['trajectories'] > 4
    assert figures['loss_last'] < figures['loss_first']
    assert 0 <= figures['answer_accuracy_after'] <= 1 <= figures['answer_pairs']
    policy, ppm = BY_NAME['eval'].models(round_)
    problems = json.loads((world / 'problems.json').read_text())[:1]
    for record in search.run(problems, policy, ppm, config=searches.search_config(config)):
        scored = np.nonzero(~np.isnan(record.score))[0]
        assert len(scored) > 1 and np.all(np.abs(record.score[scored]) <= 1)
        for node in scored[[0, -1]]:
            tokens = policy.tokenizer(record.prompt)['input_ids']
            tokens = sum((record.tokens[i] for i in record.trajectory(node)), tokens)
            score = ppm.scores(np.array([tokens], np.int32), np.array([len(tokens)], np.int32))
            assert record.score[node] == pytest.approx(float(score[0]), abs=1e-4)


def test_a_loss_without_examples_is_named(world, finished, tmp_path):
    round_, _ = ppm_stage(world, finished, tmp_path, 'training.ppm.loss=prm')
    data.store_examples(tmp_path / 'round1' / 'curate', 'trajectories', [])
    with pytest.raises(UserError) as error:
        doing.run(round_, 'ppm')
    assert error.value.argument.endswith('curate') and 'loss=prm' in error.value.expected


def test_what_killed_runs_left_half_written_goes_with_the_next(tmp_path, monkeypatch):
    round_ = Round(configs.default(), tmp_path, 1, Events(None))
    folder = BY_NAME['curate'].place(round_)
    left = [folder / '.writing-77-sft-00000.part', folder / 'part00001' / '.writing-1a-x.part']
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'half')
    found = []
    look = lambda *_: found.extend(p for p in left if p.exists()) or {}  # noqa: E731
    monkeypatch.setattr(type(BY_NAME['curate']), 'run', look)
    doing.run(round_, 'curate')
    assert found == [] and ledger.Stage(folder).done is not None


def test_the_same_command_again_does_nothing(world, finished, capsys):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*.array_record')}
    assert main.main(command(world, workdir)[3:]) == 0
    assert capsys.readouterr().out.count(': complete') == 8
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob('*.array_record')}


@pytest.mark.parametrize(
    'key, value, made, stage',
    [
        ('search.rollouts', 2, 5, 'search'),
        ('curate.trajectories', 3, 2, 'curate'),
        ('training.sft.epochs', 4, 3, 'sft'),
        ('training.ppm.learning_rate', 0.1, 0.0001, 'ppm'),
        ('eval.candidates', 3, 2, 'eval'),
        ('eval.strategies', 'mcts', 'greedy,sampled,unguided,mcts', 'eval'),
    ],
)
def test_other_settings_are_refused(world, finished, capsys, key, value, made, stage):
    """Again and again, by the stage that they bind, also where it is not the round's first."""
    workdir, _ = finished
    for _ in range(2):
        assert main.main(command(world, workdir, f'--config.{key}={value}')[3:]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f'error: --config.{key}={value}: ')
        number = 0 if stage == 'eval' else 1
        assert f'was made with {made} (round{number}, ' in error
        assert error.count('\n') == 1


def test_an_evaluation_goes_on_with_further_strategies(world, finished, tmp_path, capsys):
    workdir, _ = finished
    shutil.copytree(workdir, tmp_path / 'run')
    before = ledger.read_json(tmp_path / 'run' / 'round1' / 'eval' / 'results.json')
    trees = {f: f.read_bytes() for f in (tmp_path / 'run').rglob('eval/**/*.array_record')}
    assert len(trees) > 4
    more = '--config.eval.strategies=greedy,sampled,unguided,mcts,beam'
    assert main.main(command(world, tmp_path / 'run', more)[3:]) == 0
    assert capsys.readouterr().out.count(': complete') == 8 - 3  # one for each model
    after = ledger.read_json(tmp_path / 'run' / 'round1' / 'eval' / 'results.json')
    (before,), (after,) = before['benchmarks'].values(), after['benchmarks'].values()
    assert list(after['strategies']) == [*before['strategies'], 'beam']
    for name in before['strategies']:
        assert after['strategies'][name] == before['strategies'][name]
    assert {file: file.read_bytes() for file in trees} == trees


def test_two_processes_go_on_where_one_stopped(world, finished, tmp_path):
    """The stages behind the curation, on two processes of two devices each."""
    workdir, _ = finished
    for name in ('base', 'round0', 'round1/search', 'round1/curate'):
        shutil.copytree(workdir / name, tmp_path / 'run' / name)
    shutil.copy(workdir / 'config.json', tmp_path / 'run')
    static = '--config.job.leases=static'
    outputs = processes.run(command(world, tmp_path / 'run', static), 2, 2)
    assert 'round 1 export: done' in outputs[0]
    for stage in ('policy', 'ppm'):
        one, two = (
            ledger.read_json(folder / 'round1' / stage / 'training.json')['metrics']
            for folder in (workdir, tmp_path / 'run')
        )
        for key in ('loss_first', 'held_out_loss_after'):
            assert two[key] == pytest.approx(one[key], rel=1e-5)
    one, two = (
        ledger.read_json(folder / 'round1' / 'eval' / 'results.json')['benchmarks']['problems']
        for folder in (workdir, tmp_path / 'run')
    )
    assert two['greedy_solved'] == one['greedy_solved']
    assert two['search'].keys() == one['search'].keys()
    greedy = tmp_path / 'run' / 'round1' / 'eval' / 'problems' / 'greedy'
    writers = {path.name.split('-')[1] for path in greedy.glob('*.array_record')}
    assert writers == {'0', '1'}
    tokens, lengths = np.arange(3, 43)[None], np.array([40])
    one, two = (
        models.load(folder / 'round1' / 'export' / 'policy', 'float32').logits(tokens, lengths)
        for folder in (workdir, tmp_path / 'run')
    )
    np.testing.assert_allclose(two, one, atol=1e-3)


def test_killed_at_random_moments_it_ends_the_same(world, finished, tmp_path):
    """A whole round of real processes: models bit by bit, examples, trees and results."""
    # Half of what was measured: the machine may have had other work then.
    seconds = sum(ledger.read_json(path)['seconds'] for path in kills._done(finished[0])) / 2
    moments, parts = random.Random(3), tmp_path / 'parts'
    lines = kills.killed(command(world, parts), 3, seconds, moments, processes.environment_of(1))
    assert len(lines) >= 2, lines
    assert list(kills.differences(finished[0], parts)) == []
    # It would tell.
    with data.TreeStore(parts / 'round1' / 'search') as store:
        first = next(iter(store))
    data.store_examples(parts / 'round1' / 'curate', 'sft', [])
    shutil.rmtree(parts / 'round1' / 'search')
    with data.TreeStore(parts / 'round1' / 'search') as store:
        store.append(dataclasses.replace(first, visits=first.visits + 1))
    ledger.write_json(parts / 'round1' / 'search' / 'done.json', {})
    shutil.rmtree(parts / 'round1' / 'policy')
    shutil.copytree(world / 'base', parts / 'round1' / 'policy')
    ledger.write_json(parts / 'round1' / 'policy' / 'done.json', {})
    shutil.rmtree(parts / 'round1' / 'export')
    told = list(kills.differences(finished[0], parts))
    assert [line.partition(' ')[0] for line in told] == [
        'stages:', 'round1/curate:', 'round1/policy:', 'round1/search:', 'round1/search:',
    ], told  # fmt: skip


def test_what_overlaps_with_a_benchmark_is_not_trained_on(world, finished, tmp_path):
    problems = json.loads((world / 'problems.json').read_text())
    known = [data.Problem.of(row) for row in problems]
    first = {'index': 0, 'question': 'Who reads this far?', 'answer': '0'}
    (tmp_path / 'test.json').write_text(json.dumps([first, *problems[1:2]]))
    flags = [f'eval.benchmarks={tmp_path / "test.json"}', 'data.overlap=13']
    flags.append('eval.limit=1')  # the others may be evaluated later
    flags.append(f'data.problems={world / "problems.json"}')
    config, _ = main.parse(str(world / 'config.py'), [f'--config.{flag}' for flag in flags])
    shutil.copytree(finished[0] / 'round1' / 'search', tmp_path / 'round1' / 'search')
    round_ = Round(configs.for_round(config, 1), tmp_path, 1, Events(None))
    assert own_problems.problems(round_) == [known[0], *known[2:]]
    told = BY_NAME['search'].check(
        dataclasses.replace(round_, config=with_policy(round_.config, world)), Ahead()
    )
    assert told == [
        'data: 1 of 4 problems are left out, as they overlap with test (--config.data.overlap=0 '
        'keeps them)'
    ]
    # Its trees are there, from a time when that benchmark was not evaluated.
    assert BY_NAME['eval'].check(round_, Ahead()) == [
        'round 1 eval: of the problems that were searched, and may have been trained on, 1 overlap '
        'with test'
    ]
    assert BY_NAME['eval'].check(round_, Ahead({round_.folder / 'search'})) == []
    doing.run(round_, 'curate')
    assert ledger.read_json(tmp_path / 'round1' / 'curate' / 'done.json')['figures'][
        'overlapping'
    ] == 1  # fmt: skip
    queries = {e['query'] for e in data.load_examples(tmp_path / 'round1' / 'curate', 'sft')}
    assert queries and problems[1]['question'] not in queries


def with_policy(config: ConfigDict, world: pathlib.Path) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.policy.path = str(world / 'policy')
    return config
