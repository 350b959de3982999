"""A whole round by the real command, in a world small enough to be learnt by heart.

A tiny policy learns four questions, each with a right and a wrong solution. So the search finds
both, curation finds pairs, and every stage has real work to do.
"""

import dataclasses
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from ml_collections import ConfigDict

from rstar_jax import (
    configs,
    data,
    export,
    ledger,
    main,
    models,
    rounds,
    search,
    sources,
    steps,
    training,
)
from rstar_jax.data import arithmetic
from rstar_jax.errors import UserError
from rstar_jax.models import tiny
from rstar_jax.progress import Events
from rstar_jax.sources import Round
from rstar_jax.training import checkpoints
from tests import kills
from tests.evals.trees import tree as tree_of
from tests.parallel import processes
from tests.search import test_engine

REPOSITORY = pathlib.Path(__file__).parents[1]

CONFIG = """
from rstar_jax import configs

def get_config():
    config = configs.default()
    config.policy.dtype = 'float32'
    config.search.rollouts = 5
    config.search.temperature = 0.8
    config.search.candidates = 4
    config.search.max_depth = 4
    config.search.step_tokens = 40
    config.search.path_tokens = 256
    config.execution.workers = 1
    config.curate.edit_distance = 1
    for part in (config.training.sft, config.training.ppm):
        part.dtype = 'float32'
        part.length = 160
        part.batch_size = 8
        part.micro_batch = 4
        part.learning_rate = 1e-3
    config.training.sft.epochs = 3
    config.training.sft.learning_rate = 1e-4  # so that the policy goes on to err
    config.training.ppm.learning_rate = 1e-4
    config.training.ppm.dropout = 0.0  # its masks depend on the number of devices
    config.training.ppm.held_out = 0.25
    config.data.overlap = 0  # the problems are those of the benchmark
    config.eval.strategies = 'greedy,sampled,unguided,mcts'
    config.eval.max_depth = 4
    config.eval.step_tokens = 40
    config.eval.path_tokens = 256
    config.eval.prompt = 'sft'
    config.eval.samples = 6
    config.eval.trajectories = 2
    config.eval.rollouts = 1
    config.eval.candidates = 2
    return config
"""


@pytest.fixture(scope='module')
def world(tmp_path_factory) -> pathlib.Path:
    """A folder with config.py, problems.json and a policy that knows them by heart."""
    folder = tmp_path_factory.mktemp('world')
    (folder / 'config.py').write_text(CONFIG)
    # So different that a tiny model tells them apart.
    told = (
        ('How many apples has Ann?', '12'),
        ('Ben counts his books. How many are there?', '7'),
        ('Cleo sells cards, and then some more of them; how many does she sell?', '35'),
        ('What number of eggs is in the nest that Dan finds?', '4'),
    )
    problems = [{'index': i, 'question': q, 'answer': a} for i, (q, a) in enumerate(told)]
    (folder / 'problems.json').write_text(json.dumps(problems))
    examples = []
    for problem in problems:
        for comment, value in (('add it up', problem['answer']), ('wild guess here', '0')):
            examples.append({'query': problem['question'], 'response': solution(comment, value)})
    settings = training.default_sft()
    settings.update(
        {'epochs': 150, 'batch_size': 8, 'length': 128, 'micro_batch': 8, 'learning_rate': 3e-3}
        | {'dtype': 'float32'}
    )
    texts = [text for e in examples for text in e.values()]
    policy = tiny.policy(arithmetic.vocabulary() + texts)
    training.sft(policy, examples, settings, folder / 'policy')
    shutil.copytree(folder / 'policy', folder / 'base')
    return folder


def solution(comment: str, value: str) -> str:
    return (
        f'{steps.CODE}\n# Step 1: {comment}\nx = {value}\n{steps.STEP_END}\n'
        f'# Print the answer\nprint(x)\n{steps.CODE_END}\n'
        f'{steps.OUTPUT}{value}{steps.OUTPUT_END}\n'
        f'{steps.ANSWER}There are \\boxed{{{value}}}.{steps.ANSWER_END}'
    )


def command(world: pathlib.Path, workdir: pathlib.Path | str, *more: str) -> list[str]:
    return [
        sys.executable,
        '-m',
        'rstar_jax.main',
        f'--config={world / "config.py"}',
        f'--workdir={workdir}',
        f'--config.policy.path={world / "policy"}',
        f'--config.base.path={world / "base"}',
        f'--config.data.problems={world / "problems.json"}',
        f'--config.eval.benchmarks={world / "problems.json"}',
        *more,
    ]


def run(world: pathlib.Path, workdir: pathlib.Path, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(world, workdir, *more),
        cwd=REPOSITORY,
        env=processes.environment_of(1),
        capture_output=True,
        text=True,
        timeout=900,
    )


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
    stage = rounds.stage_of(round_, 'eval')
    stage.begin()
    stage.finish({})
    assert rounds.stage_of(round_, 'eval').drop_if_stale() is None
    ledger.write_json(tmp_path / 'policy' / 'done.json', {'id': 'second'})
    assert rounds.stage_of(round_, 'eval').drop_if_stale()
    assert rounds.stage_of(round_, 'eval').done is None


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
    ours = checkpoints.load_policy(workdir / 'round1' / 'policy')
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
    kept = checkpoints.load_ppm(workdir / 'round1' / 'ppm')
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
    export.export_data(made, tmp_path / 'out')
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
    monkeypatch.setattr(rounds, '_training_mesh', lambda: None)  # the real one is of 8 devices here
    flags = f'training.ppm.loss={loss}', 'training.ppm.held_out=0.5', 'training.ppm.epochs=4'
    round_, config = ppm_stage(world, finished, tmp_path, *flags)
    rounds.run_stage(round_, 'ppm')
    figures = ledger.read_json(tmp_path / 'round1' / 'ppm' / 'done.json')['figures']
    curated = ledger.read_json(finished[0] / 'round1' / 'curate' / 'done.json')['figures']
    assert figures['examples'] + figures['held_out'] == curated['trajectories'] > 4
    assert figures['loss_last'] < figures['loss_first']
    assert 0 <= figures['answer_accuracy_after'] <= 1 <= figures['answer_pairs']
    policy, ppm = sources.evaluated_models(round_)
    problems = json.loads((world / 'problems.json').read_text())[:1]
    for record in search.run(problems, policy, ppm, config=sources.search_config(config)):
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
    with pytest.raises(UserError, match='no trajectories to train on with loss=prm: raise --conf'):
        rounds.run_stage(round_, 'ppm')


def test_the_same_command_again_does_nothing(world, finished, capsys):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*.array_record')}
    assert main.main(command(world, workdir)[3:]) == 0
    assert capsys.readouterr().out.count(': complete') == 8
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob('*.array_record')}


def test_other_settings_are_refused(world, finished, capsys):
    workdir, _ = finished
    assert main.main(command(world, workdir, '--config.search.rollouts=2')[3:]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: --config.search.rollouts=2: ')
    assert 'was made with 5' in error
    assert error.count('\n') == 1


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
    writers = {path.name.split('-')[1] for path in greedy.glob('tree-*')}
    assert writers == {'0', '1'}
    tokens, lengths = np.arange(3, 43)[None], np.array([40])
    one, two = (
        models.load(folder / 'round1' / 'export' / 'policy', 'float32').logits(tokens, lengths)
        for folder in (workdir, tmp_path / 'run')
    )
    np.testing.assert_allclose(two, one, atol=1e-3)


def test_four_processes_make_what_one_makes(world, tmp_path, monkeypatch):
    """A whole round on 4 processes of 2 devices, in a store, and on one of all 8."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    settings = ('--config.eval.strategies=greedy,mcts', '--config.base.path=')
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


def _untimed(results):
    """results.json without what a clock has measured."""
    if isinstance(results, dict):
        return {k: _untimed(v) for k, v in results.items() if k != 'seconds_per_problem'}
    return results


def trees(folder: pathlib.Path) -> dict[tuple[int, int], bytes]:
    """The stored trees without their counters, which hold seconds."""
    with data.TreeStore(folder) as store:
        return {r.key: dataclasses.replace(r, counters={}).to_bytes() for r in store}


def test_killed_in_the_search_it_goes_on(world, tmp_path):
    """To the same trees, byte for byte, as in one go, in another order and among others."""
    problems = json.loads((world / 'problems.json').read_text())
    many = [
        {**one, 'index': i, 'question': f'{one["question"]} {i}'}
        for i, one in enumerate(8 * problems)
    ]
    more = [{**p, 'index': 32 + i} for i, p in enumerate(arithmetic.problems(8, seed=4))]
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
    first = {path.name: path.read_bytes() for path in search.glob('*.array_record')}
    assert 8 <= len(trees(search)) < 32
    for folder, name in ((workdir, 'many.json'), (tmp_path / 'other', 'more.json')):
        result = run(world, folder, *settings(name))
        assert result.returncode == 0, result.stderr
    for name, content in first.items():
        assert (search / name).read_bytes() == content
    found, others = trees(search), trees(tmp_path / 'other' / 'round1' / 'search')
    assert sorted(found) == [(i, 0) for i in range(32)]
    assert len(others) == 40
    assert [key for key in found if found[key] != others[key]] == []


def test_killed_at_random_moments_it_ends_the_same(world, finished, tmp_path):
    """A whole round of real processes: models bit by bit, examples, trees and results."""
    seconds = sum(ledger.read_json(path)['seconds'] for path in kills._done(finished[0]))
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


WRONG_FILES = [
    (None, 'no such file'),
    ('', 'empty'),
    ('{"question": "1+1?", "answer": "2"}\n{"question": \n', 'line 2'),
    ('{"question": "1+1?"}\n', 'without an answer'),
]


@pytest.mark.parametrize(('content', 'message'), WRONG_FILES, ids=lambda x: str(x)[:12])
def test_wrong_problem_files_are_one_line(world, tmp_path, capsys, content, message):
    path = tmp_path / 'wrong.jsonl'
    if content is not None:
        path.write_text(content)
    arguments = command(world, tmp_path / 'run', f'--config.data.problems={path}')[3:]
    assert main.main([*arguments, '--stages=search']) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    assert 'wrong.jsonl' in error
    assert message in error
    # Nothing was made, and nothing binds: the right path is taken.
    assert not (tmp_path / 'run' / 'round1').exists()
    assert main.main([*arguments[:-1], '--stages=search', '--config.data.problems=also.json']) == 2
    assert 'also.json' in capsys.readouterr().err


LATER = [
    ('eval.benchmarks=missing.json', '--config.eval.benchmarks=missing.json: no such file'),
    ('base.path=nowhere', '--config.base.path=nowhere: '),
    ('ppm.path=nowhere', '--config.ppm.path=nowhere: '),
    ('search.tensor=3', '--config.search.tensor=3: needs a divisor of the 8 devices'),
    ('eval.candidates=500000', 'candidates=500000: a tree of '),
    ('ppm.path=previous', '--config.ppm.path=previous: '),
    ('data.overlap=13', 'every problem is in a benchmark (problems): train on others'),
    ('training.sft.learning_rate=inf', 'needs a finite number'),
]


@pytest.mark.parametrize(('flag', 'message'), LATER, ids=[flag for flag, _ in LATER])
def test_what_a_later_stage_lacks_is_told_before_the_first(world, tmp_path, capsys, flag, message):
    assert main.main(command(world, tmp_path / 'run', f'--config.{flag}')[3:]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    assert message in error
    assert not list((tmp_path / 'run').glob('round*'))


def test_a_policy_is_no_ppm(world, finished, tmp_path, capsys):
    exported = finished[0] / 'round1' / 'export' / 'policy'
    arguments = command(world, tmp_path / 'run', f'--config.ppm.path={exported}')[3:]
    assert main.main(arguments) == 2
    assert 'a policy, not a PPM: has no value_head.bin' in capsys.readouterr().err


def test_stages_without_those_that_they_need_are_told_first(world, tmp_path, capsys):
    arguments = command(world, tmp_path / 'run', '--stages=search,sft')[3:]
    assert main.main(arguments) == 2
    assert 'holds no finished curate' in capsys.readouterr().err
    assert not list((tmp_path / 'run').glob('round*'))


def test_later_rounds_without_a_base_model_are_told_first(world, finished, tmp_path, capsys):
    arguments = [
        f'--config={REPOSITORY / "experiments" / "round2.py"}',
        f'--workdir={tmp_path / "run"}',
        f'--config.data.problems={world / "problems.json"}',
        f'--config.eval.benchmarks={world / "problems.json"}',
        '--config.data.overlap=0',
        '--config.last_round=4',
    ]
    for name in ('policy', 'ppm'):
        shutil.copytree(finished[0] / 'round1' / name, tmp_path / 'run' / 'round1' / name)
    assert main.main(arguments) == 2
    assert '--config.base.path=: needs the model that every round trains from' in (
        capsys.readouterr().err
    )
    assert not (tmp_path / 'run' / 'round2').exists()


def test_what_overlaps_with_a_benchmark_is_not_trained_on(world, finished, tmp_path):
    problems = json.loads((world / 'problems.json').read_text())
    (tmp_path / 'test.json').write_text(json.dumps(problems[1:2]))
    flags = [f'eval.benchmarks={tmp_path / "test.json"}', 'data.overlap=13']
    flags.append(f'data.problems={world / "problems.json"}')
    config, _ = main.parse(str(world / 'config.py'), [f'--config.{flag}' for flag in flags])
    shutil.copytree(finished[0] / 'round1' / 'search', tmp_path / 'round1' / 'search')
    round_ = Round(configs.for_round(config, 1), tmp_path, 1, Events(None))
    assert sources.problems(round_) == [problems[0], *problems[2:]]
    told = rounds.preflight._search(
        dataclasses.replace(round_, config=with_policy(round_.config, world)), set()
    )
    assert told == [
        'data: 1 of 4 problems are left out, as they overlap with test (--config.data.overlap=0 '
        'keeps them)'
    ]
    # Its trees are there, from a time when that benchmark was not evaluated.
    rounds.run_stage(round_, 'curate')
    assert ledger.read_json(tmp_path / 'round1' / 'curate' / 'done.json')['figures'][
        'overlapping'
    ] == 1  # fmt: skip
    queries = {e['query'] for e in data.load_examples(tmp_path / 'round1' / 'curate', 'sft')}
    assert queries and problems[1]['question'] not in queries


def with_policy(config: ConfigDict, world: pathlib.Path) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.policy.path = str(world / 'policy')
    return config


def test_every_round_searches_by_a_seed_of_its_own():
    config = configs.paper_schedule(configs.default())
    config.seed = 7
    seeds = [
        sources.search_seed(Round(configs.for_round(config, n), pathlib.Path(), n, Events(None)))
        for n in range(1, 5)
    ]
    assert seeds[0] == 7 and len(set(seeds)) == 4


def test_a_raised_limit_extends_the_search(world, tmp_path, monkeypatch):
    """What was searched stays, what was made from it is made again."""
    asked, curated = [], []

    def grow(problems, policy, ppm, *, skip, **_):
        for problem in problems:
            if (problem['index'], 0) not in skip:
                asked.append(problem['index'])
                yield tree_of(problem, 0, [(problem['answer'], 0.0, True)])

    def curate(trees, folder, **rules):
        curated.append(sorted(record.problem['index'] for record in trees))
        (folder / 'made').write_text('')
        return {}

    monkeypatch.setattr(rounds.search, 'run', grow)
    monkeypatch.setattr(rounds.data, 'curate_to', curate)
    monkeypatch.setattr(rounds.sources, 'searching_policy', lambda round_: None)
    monkeypatch.setattr(rounds.summary, 'show', lambda root: None)
    monkeypatch.setattr(rounds.report, 'write', lambda root: None)

    def run(limit):
        flags = [f'policy.path={world / "policy"}', f'data.problems={world / "problems.json"}']
        flags.append(f'data.limit={limit}')
        config, _ = main.parse(str(world / 'config.py'), [f'--config.{flag}' for flag in flags])
        rounds.run(config, str(tmp_path), ('search', 'curate'))

    for limit in (2, 2, 3, 0):
        run(limit)
    assert asked == [0, 1, 2, 3]
    assert curated == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]
    figures = ledger.read_json(tmp_path / 'round1' / 'search' / 'done.json')['figures']
    assert figures['trees'] == 4
    with pytest.raises(UserError, match='--config.data.limit=2: .* was made with 0'):
        run(2)


def unsupported(folder: pathlib.Path) -> str:
    (folder / 'config.json').write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    return str(folder)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda folder: str(folder / 'missing'), 'missing'),
        (unsupported, 'architecture BertModel is not supported'),
        (lambda folder: '', '--config.policy.path=: needs a model'),
        (lambda folder: 'previous', 'holds no finished policy'),
    ],
    ids=['missing', 'architecture', 'empty', 'previous'],
)
def test_wrong_models_are_one_line(world, tmp_path, capsys, make, message):
    arguments = command(world, tmp_path / 'run', f'--config.policy.path={make(tmp_path)}')[3:]
    assert main.main([*arguments, '--stages=search']) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    assert message in error
