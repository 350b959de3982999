"""Problems written and answered by a scripted policy, and their way into a search."""

import collections
import dataclasses
import functools
import json
import types
import weakref

import pytest

from rstar_jax import data, search, steps
from rstar_jax import settings as configs
from rstar_jax.data.overlap import Overlap
from rstar_jax.data.problem import Problem
from rstar_jax.job import hosts, ledger
from rstar_jax.job.progress import Events
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import Round, checkpoints, searches, synthesize
from rstar_jax.stages import problems as own_problems
from tests.stages import doing

KNOWN = [
    Problem(i, f'Ann has {i} apples and buys 2 more of them. How many?', '1') for i in range(5)
]
TEST = Problem(0, 'Eva has 9 eggs and breaks two. How many are left?', '7')
SETTINGS = search.Config(rollouts=4, candidates=3, temperature=0.7, step_tokens=40, workers=1)
SEARCH = search.run
WORKERS: list[search.Workers] = []
# What the policy writes, one a prompt, and the answers of its ten solutions.
TEXTS = {
    'Ben sells 3 of 8 cards. How many are left?': ['5'] * 4 + ['5.0'] + ['11'] * 5,
    'Finn reads 4 books a week for 3 weeks. How many?': [*'1234567', '12', '12.0', '12'],
    'Gina loses count of all of her shells. How many?': [*'1122334455'],
    'ann has 3 apples and  buys 2 more of them. How many?': None,  # known
    'Ben sells 3 of 8 cards. How many are left? ': None,  # written twice
    'Eva has 9 eggs and breaks two. How many are left?': ['7'] * 10,  # of a benchmark
    'How many?': None,
    'What does <code> mean in a text such as this?': None,
    'Hugo walks on and on and': None,  # never ends
}


@pytest.fixture(scope='module', autouse=True)
def workers():
    """Processes that all searches of the module share."""
    with search.Workers.start(SETTINGS) as started:
        WORKERS.append(started)
        yield
        WORKERS.clear()


class Counting(search.scripted):
    """Each step is of three tokens."""

    def collect(self, running):
        return [dataclasses.replace(step, sampled=3) for step in super().collect(running)]


def run_search(problems, *, config, seed, trees, share, calls=None):
    """search.run by a policy that knows TEXTS; `calls` collects what it was asked for."""
    prompts = [p.question for p in problems]
    asked = collections.Counter()
    calls = [] if calls is None else calls
    todo = [p.index for p in problems for t in range(trees) if (p.index, t) not in share.skip]
    calls.append((config, len(todo)))

    def texts(question, prefix, n):
        assert n == 1 and prefix == ''
        if config.prompt == 'whole':
            text = list(TEXTS)[prompts.index(question)]
            return [text + (steps.ANSWER_END if not text.endswith('and') else steps.STEP_END)]
        asked[question] += 1
        answer = TEXTS[question][asked[question] - 1]
        return [f'{steps.ANSWER}It is \\boxed{{{answer}}}.{steps.ANSWER_END}']

    return SEARCH(
        problems,
        expander=Counting(texts),
        config=config,
        seed=seed,
        trees=trees,
        share=dataclasses.replace(share, workers=WORKERS[0]),
    )


def write(folder, config=None, run=run_search, settings=SETTINGS):
    config = config or synthesize.Rules(problems=len(TEXTS))
    overlap = Overlap({'training': KNOWN, 'eggs': [TEST]}, 13)
    return synthesize.Writer(overlap, config, settings, folder, run, 2, 3).write(KNOWN)


def test_kept_are_those_whose_answers_agree(tmp_path):
    calls = []
    made, counts = write(tmp_path, run=functools.partial(run_search, calls=calls))
    assert [(p.question, p.answer) for p in made] == [
        ('Ben sells 3 of 8 cards. How many are left?', '5'),
        ('Finn reads 4 books a week for 3 weeks. How many?', '12'),
    ]
    assert [p.index for p in made] == [2_000_000_000, 2_000_000_001]
    assert all(p.synthetic and p.source == 'synthetic' for p in made)
    assert counts == {
        'written': 9, 'new': 3, 'kept': 2, 'answers differ': 1, 'like one in training': 1,
        'like one in new': 1, 'like one in eggs': 1, 'no problem': 2, 'not ended': 1,
    }  # fmt: skip
    (writing, nine), (solving, thirty) = calls
    assert (writing.prompt, writing.step_tokens, nine) == ('whole', 256, 9)
    assert (solving.prompt, solving.step_tokens, thirty) == ('sft', 40, 30)
    for config in (writing, solving):
        assert not config.use_ground_truth and config.temperature == 0.7
        assert config.candidates == config.rollouts == 1


def test_a_search_that_ends_early_ends_no_problem_here(tmp_path):
    """Each answer of ten counts, whatever is enough for the round's search."""
    whole, calls = write(tmp_path / 'whole'), []
    early = dataclasses.replace(SETTINGS, tokens=1)
    run = functools.partial(run_search, calls=calls)
    assert write(tmp_path / 'early', run=run, settings=early) == whole
    assert [count for _, count in calls] == [9, 30]


def test_more_have_to_agree_for_more_certain_answers(tmp_path):
    made, _ = write(tmp_path, synthesize.Rules(problems=len(TEXTS), agree=4))
    assert [p.answer for p in made] == ['5']
    with pytest.raises(UserError) as error:
        synthesize.Rules(problems=1, agree=11)
    assert (error.value.argument, error.value.value) == ('agree', 11)


@pytest.mark.parametrize('lifetime', [4, 20])
def test_stopped_it_goes_on(tmp_path, lifetime):
    left = [lifetime]

    def dying(*arguments, **options):
        for record in run_search(*arguments, **options):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            yield record

    expected = write(tmp_path / 'whole')
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / 'parts', run=dying)
    calls = []

    def again(problems, *, share, **options):
        calls.append(len(share.skip))
        # The scripted answers go by what was asked before; a policy's go by the tree's number.
        share = dataclasses.replace(share, skip=frozenset())
        return run_search(problems, share=share, **options)

    made, counts = write(tmp_path / 'parts', run=again)
    assert calls[-1] == (lifetime - 9 if lifetime > 9 else 0) and (made, counts) == expected


def test_prompts_show_some_known_problems_and_differ():
    config = synthesize.Rules(problems=20, shown=2)
    prompts = [synthesize._prompt(KNOWN, config, f'0 1 {i}').question for i in range(20)]
    assert len(set(prompts)) > 10
    for prompt in prompts:
        assert sum(p.question + steps.ANSWER_END in prompt for p in KNOWN) == 2
        assert prompt.endswith('Problem:')
    assert prompts[3] == synthesize._prompt(KNOWN, config, '0 1 3').question


def test_each_round_and_each_seed_has_prompts_of_its_own(tmp_path):
    asked = []

    def run(problems, *, seed, **_):
        asked.append((tuple(p.question for p in problems), seed))
        raise KeyboardInterrupt

    config, overlap = synthesize.Rules(problems=9), Overlap({}, 13)
    for number, seed in ((1, 0), (2, 0), (1, 1)):
        folder = tmp_path / f'{number}-{seed}'
        with pytest.raises(KeyboardInterrupt):
            synthesize.Writer(overlap, config, SETTINGS, folder, run, number, seed).write(KNOWN)
    prompts, seeds = zip(*asked)
    assert len(set(prompts)) == 3 and seeds == (0, 0, 1)


def test_what_was_begun_under_another_seed_does_not_go_on(tmp_path):
    write(tmp_path)
    config, overlap = synthesize.Rules(problems=len(TEXTS)), Overlap({'training': KNOWN}, 13)
    message = f'^{tmp_path}: begun by an earlier version, under another seed: delete it$'
    with pytest.raises(UserError, match=message):
        writer = synthesize.Writer(overlap, config, SETTINGS, tmp_path, run_search, seed=4)
        writer.write(KNOWN)


def test_many_known_problems_are_not_copied_for_each_prompt():
    class Known(list):
        def __iter__(self):
            raise AssertionError('looked through')

    known, config = [KNOWN[i % 5] for i in range(999)], synthesize.Rules(problems=1)
    assert synthesize._prompt(Known(known), config, '0 1 0') == synthesize._prompt(
        known, config, '0 1 0'
    )


def test_what_is_read_of_the_trees_is_kept_alone(tmp_path, monkeypatch):
    alive, counts = weakref.WeakSet(), []
    read, agreed = search.Record.from_bytes, synthesize.agreed

    def reading(data):
        alive.add(record := read(data))
        counts.append(len(alive))
        return record

    monkeypatch.setattr(search.Record, 'from_bytes', reading)
    monkeypatch.setattr(
        synthesize, 'agreed', lambda said: counts.append(len(alive)) or agreed(said)
    )
    made, _ = write(tmp_path)
    assert len(made) == 2 and len(counts) > 9 + 30 and max(counts) < 4


def test_of_several_processes_the_first_one_counts_votes(tmp_path, monkeypatch):
    whole, _ = write(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(hosts, 'is_first', lambda: False)
        patch.setattr(synthesize, 'agreed', lambda answers: 1 / 0)
        made, counts = write(tmp_path)
    assert made == [] and counts['new'] == 3
    assert write(tmp_path)[0] == whole != []


def test_what_others_wrote_is_waited_for(tmp_path, monkeypatch):
    """Though the disk tells late of it."""
    whole, _ = write(tmp_path / 'whole')
    late, run = [], tmp_path / 'run'

    def elsewhere(problems, *, config, **given):
        name = 'written' if config.prompt == 'whole' else 'solved'
        late.extend((run / name, x) for x in run_search(problems, config=config, **given))
        yield from ()

    def sleep(seconds):
        while late:
            folder, record = late.pop()
            with data.TreeStore(folder, writer=1) as store:
                store.append(record)

    monkeypatch.setattr(hosts, 'gathered', lambda n: [n, n + bool(late)])
    monkeypatch.setattr(hosts, 'time', types.SimpleNamespace(sleep=sleep))
    assert write(run, run=elsewhere)[0] == whole != []


def round_of(tmp_path, number: int, **changes) -> Round:
    config = configs.default()
    config.data.problems = str(tmp_path / 'known.json')
    config.last_round = 2
    config.execution.workers = 1
    config.update_from_flattened_dict(changes)
    return Round(configs.for_round(config, number), tmp_path, number, Events(None))


def test_the_search_takes_them_beside_the_known_ones(tmp_path, monkeypatch):
    (tmp_path / 'known.json').write_text(json.dumps([problem.to_dict() for problem in KNOWN]))
    monkeypatch.setattr(checkpoints, 'searching_model', lambda round_, kind: None)

    seeds = set()

    def run(problems, policy, **options):
        del policy
        seeds.add(options['seed'])
        return run_search(problems, **options)

    monkeypatch.setattr(search, 'run', run)
    first = round_of(tmp_path, 1, **{'synthesize.problems': len(TEXTS), 'search.step_tokens': 40})
    stage = doing.kept(first, 'synthesize')
    figures = doing.work(first, 'synthesize', stage)
    assert figures['kept'] == 3 and figures['like one in training'] == 1  # there is no benchmark
    assert figures['tokens'] == 3 * (figures['written'] + 10 * figures['new'])
    assert [p.index for p in own_problems.problems(first)][:5] == [0, 1, 2, 3, 4]
    # The search does not draw again what has voted for an answer.
    assert seeds == {searches.synthesis_seed(first)} and searches.search_seed(first) not in seeds
    # Killed before it was marked complete, it makes the same of what it has sampled.
    before = (stage.folder / own_problems.WRITTEN).read_text()
    assert doing.work(first, 'synthesize', stage) == figures
    assert (stage.folder / own_problems.WRITTEN).read_text() == before
    for number in (1, 2):
        kept, _, counts = own_problems.split(round_of(tmp_path, number))
        assert len(kept) == counts['used'] == counts['rows'] == 8
        assert [p.index for p in kept[5:]] == [10**9, 10**9 + 1, 10**9 + 5]
    # A search belongs to the problems that it searches.
    search_stage = doing.kept(first, 'search')
    assert stage.folder in search_stage.inputs
    stage.begin()
    stage.finish(figures)
    search_stage.begin()
    (search_stage.folder / 'made').write_text('')
    assert search_stage.drop_if_stale() is None
    ledger.write_json(stage.folder / 'done.json', {'id': 'another'})
    with pytest.raises(UserError, match='made from an older round1/synthesize'):
        search_stage.drop_if_stale()


def test_more_problems_may_be_searched_beside_those_that_were_written(tmp_path):
    """The stage is complete: what it was shown was of fewer. Stopped half-way, it goes on."""

    def stage(limit):
        settings = {'synthesize.problems': 4, 'policy.path': 'instruct', 'data.limit': limit}
        return doing.kept(round_of(tmp_path, 1, **settings), 'synthesize')

    first = stage(3)
    first.begin()
    (first.folder / 'made').write_text('')
    with pytest.raises(UserError) as wrong:
        stage(5).grows('round1, synthesize')
    assert (wrong.value.argument, wrong.value.value) == ('data.limit', 5)
    first.finish({})
    assert not stage(5).grows('round1, synthesize') and stage(5).done is not None
    assert stage(5).drop_if_stale() is None
    other = round_of(tmp_path, 1, **{'synthesize.problems': 5, 'policy.path': 'instruct'})
    with pytest.raises(UserError) as wrong:
        doing.kept(other, 'synthesize').grows('round1, synthesize')
    assert (wrong.value.argument, wrong.value.value) == ('synthesize.problems', 5)


def test_the_stage_is_off_unless_asked_for():
    config = configs.default()
    config.policy.path, config.last_round = 'instruct', 2
    names = [row for row in doing.rows(config, configs.STAGES) if row[1] == 'synthesize']
    assert names == []
    configs.schedule(config, {2: {'synthesize.problems': 8}})
    rows = doing.rows(config, configs.STAGES)
    assert rows.index((2, 'synthesize')) == rows.index((2, 'search')) - 1
    assert (1, 'synthesize') not in rows
