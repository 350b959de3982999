"""The evaluation's figures, worked out by hand, and its restart."""

import dataclasses
import json
import math
import types

import numpy as np
import pytest

from rstar_jax import evals, models, parallel, search
from rstar_jax.data import TreeStore, question_id
from rstar_jax.data.problem import Problem
from rstar_jax.evals import clock, metrics
from rstar_jax.evals.figures import Answer, Outcome, Run
from rstar_jax.job import hosts
from rstar_jax.settings.errors import UserError
from tests.evals.trees import tree

PROBLEMS = [Problem(10 + i, f'question {i}', str(i)) for i in range(4)]
CONFIG = evals.Config(search.Config(rollouts=2, candidates=3), trajectories=3)

# What each problem's trees find: (answer, score) of three trees.
FOUND = [
    [('0', 0.9), ('0', 0.8), ('7', -0.5)],  # right by all
    [('8', 0.9), ('1', 0.8), ('1.0', 0.7)],  # right by majority and weight
    [('2', 0.9), ('9', 0.1), ('9', 0.0)],  # right by best score; 0.95 against 0.55 + 0.5
    [None, ('5', 0.3), None],  # never right
]
ALONE = ['0', '8', '2', None]
# Beside each answer that a tree finds, it holds this one, which has a lower score.
ASIDE = ('77', -1.0)
# Of three samples, without a score.
SAMPLES = [['0', '0', '7'], ['8', '1', '1.0'], ['9', '9', '2'], [None, '5', None]]

SHAPE = models.Config('llama', 64, 16, 32, 2, 2, 1, 8)  # vocabulary, width, hidden, layers, heads
POLICY = PPM = types.SimpleNamespace(config=SHAPE)
# Weights by which a token is multiplied: queries and outputs, keys and values, three of the MLP.
WEIGHTS = 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32)
COMPUTED = {'policy_computed': 400.0, 'ppm_computed': 150.0}


class Searcher:
    """Stands in for search.run: gives the trees above, and dies after `lifetime` of them."""

    def __init__(self, lifetime=10**9):
        self.calls, self.made, self.lifetime = [], [], lifetime

    def __call__(self, problems, policy, ppm, *, config, seed, trees, share):
        self.calls.append((ppm, config, trees))
        for number in reversed(range(trees)):  # trees finish in any order
            for i, problem in enumerate(problems):
                if (problem.index, number) in share.skip:
                    continue
                if len(self.made) == self.lifetime:
                    raise KeyboardInterrupt
                kind = kind_of(config, ppm)
                tokens = {'greedy': 5.0, 'sampled': 30.0}.get(kind, 100.0)
                said = {'greedy': ALONE[i], 'sampled': SAMPLES[i][number]}.get(kind)
                if kind == 'unguided':
                    said = SAMPLES[i][number]
                found = FOUND[i][number] if kind == 'guided' else said and (said, float('nan'))
                if share.progress:
                    share.progress({'trees_done': len(self.made)})
                # A worse answer beside it, and flags that must not be believed.
                answers = [(*ASIDE, True), (*found, False)] if found and kind == 'guided' else []
                answers = answers or ([(*found, False)] if found else [])
                likelihoods = [LIKELIHOOD.get(a, -9.0) for a, *_ in answers]
                self.made.append((problem.index, number, kind))
                yield tree(problem, number, answers, tokens, likelihoods, **COMPUTED)


# The policy finds the right answers of the second and third problem likely, that of the first not.
LIKELIHOOD = {'0': -8.0, '7': -2.0, '1': -2.0, '1.0': -2.0, '8': -3.0, '2': -2.0, '9': -3.0}


def kind_of(config, ppm):
    if config.temperature == 0:
        return 'greedy'
    if config.candidates == 1:
        return 'sampled'
    return 'unguided' if ppm is None else 'guided'


def evaluate(searcher, directory=None, ppm=PPM, config=CONFIG, **options):
    return evals.run(
        POLICY,
        ppm,
        {'sums': PROBLEMS},
        config,
        7,
        directory=directory,
        run_search=searcher,
        **options,
    )


def test_results_are_those_worked_out_by_hand():
    searcher = Searcher()
    results = evaluate(searcher, round_number=2)
    figures = results['benchmarks']['sums']
    seconds = figures.pop('seconds_per_problem')
    strategies, judge = figures.pop('strategies'), figures.pop('judge')
    assert strategies.keys() == {'greedy', 'mcts'} and judge == strategies['mcts']['judge']
    interval = {
        right: metrics.interval95([True] * right + [False] * (4 - right)) for right in (2, 3)
    }
    assert seconds >= 0
    assert results == {
        'round': 2,
        'benchmarks': {
            'sums': {
                'problems': 4,
                'asked': {str(p.index): question_id(p.question) for p in PROBLEMS},
                'greedy': 0.5,
                'answered': 0.75,
                'greedy_solved': [10, 12],
                'search': {
                    'trajectories': 3,
                    'best': 0.5,
                    'majority': 0.5,
                    'weighted': 0.5,
                    'pooled': 0.5,
                    'any': 0.75,
                },
                'interval95': {
                    'greedy': interval[2],
                    'best': interval[2],
                    'majority': interval[2],
                    'weighted': interval[2],
                    'pooled': interval[2],
                    'any': interval[3],
                },
                'tokens_per_problem': 300.0,
                # Three trees: 400 positions of the policy's weights, 100 of its vocabulary's, 150
                # of the PPM's; 2 FLOPs each.
                'flops_per_problem': 3 * 2.0 * (550 * WEIGHTS + 100 * 64 * 16),
            }
        },
    }


def test_the_judge_is_judged_by_all_answers_of_the_trees():
    judge = evaluate(Searcher())['benchmarks']['sums']['judge']
    # Each found answer (FOUND) has '77' beside it, wrong and at the bottom. Problem by problem,
    # pairs right x wrong: 2 x 4, 2 x 4, 1 x 5; the last has no right answer.
    assert (judge['answers'], judge['pairs'], judge['problems']) == (20, 21, 3)
    # PPM: all 8; '1' and '1.0' lose to '8'; all 5.
    assert judge['auc'] == pytest.approx(19 / 21)
    assert judge['auc_mean'] == pytest.approx((1 + 6 / 8 + 1) / 3)
    # Policy: '77' has -9. 6 of 8, as '0' loses to '7' twice; all 8; all 5.
    assert judge['auc_likelihood'] == pytest.approx(19 / 21)
    assert judge['auc_likelihood_mean'] == pytest.approx((6 / 8 + 1 + 1) / 3)
    for key in ('auc', 'auc_likelihood'):
        assert judge['interval95'][key] == metrics.wilson(judge[key], 3)


def test_all_answers_of_a_tree_vote_where_they_are_pooled():
    """Its best one alone has the highest score; two others are one answer."""
    scored = [('6', 0.2), ('0.5', 0.1), ('\\frac{1}{2}', 0.0)]
    answers = tuple(Answer(text, score, 0.0) for text, score in scored)
    one = Outcome(scored[0], answers, 9.0, (9.0, 9.0))
    run = Run('mcts', [[one]], True, 1, 1.0, None)
    chosen = run.lists()
    assert chosen['majority'] == chosen['weighted'] == [['6']]
    assert chosen['pooled'] == [['0.5']]
    verdicts = {(0, text): text != '6' for text, _ in scored}
    found = run.figures([Problem(0, '')], verdicts)
    assert (found['majority'], found['pooled']) == (0.0, 1.0)
    unscored = Run('unguided', [[one]], False, 1, 1.0, None)  # where nothing ranks them, too
    assert unscored.lists()['majority'] == [['0.5']]


def test_a_trajectory_is_as_likely_as_all_of_its_steps_together():
    found = Outcome.of(tree(PROBLEMS[0], 0, [('6', 0.25, True)], likelihoods=[-4.0]))
    assert found.answers == (Answer('6', 0.25, -4.0),)


def test_an_answer_of_unknown_likelihood_is_left_out_of_that_figure_alone(monkeypatch):
    """As of a server that does not tell it of each; of none, nothing is resampled."""
    monkeypatch.setitem(LIKELIHOOD, '8', math.nan)
    judge = evaluate(Searcher())['benchmarks']['sums']['judge']
    assert (judge['answers'], judge['pairs'], judge['problems']) == (20, 21, 3)
    assert judge['auc'] == pytest.approx(19 / 21)
    # 6 of 8 and all 5 as before; of the second problem 6 pairs are left, all ranked rightly.
    assert judge['auc_likelihood'] == pytest.approx(17 / 19)
    assert judge['auc_likelihood_mean'] == pytest.approx((6 / 8 + 1 + 1) / 3)
    answers = tuple(Answer(text, score, math.nan) for text, score in (('6', 0.2), ('5', 0.1)))
    run = Run('mcts', [[Outcome(('6', 0.2), answers, 9.0, (9.0, 9.0))]], True, 1, 1.0, None)
    drawn = []
    monkeypatch.setattr(metrics, '_bootstrap', lambda won, pairs: drawn.append(won) or [0, 1])
    judge = run.figures([Problem(0, '')], {(0, '6'): True, (0, '5'): False})['judge']
    assert (judge['pairs'], judge['auc'], judge['auc_likelihood']) == (1, 1.0, None)
    assert list(judge['interval95']) == ['auc'] and len(drawn) == 1


def test_several_strategies_in_one_run():
    names = ('sampled', 'unguided', 'greedy', 'beam', 'dvts')
    settings = dataclasses.replace(CONFIG.search, strategy='puct')  # which does not count
    config = dataclasses.replace(CONFIG, search=settings, strategies=names, samples=3, top=1)
    searcher = Searcher()
    figures = evaluate(searcher, config=config)['benchmarks']['sums']
    strategies = figures['strategies']
    assert list(strategies) == ['greedy', 'sampled', 'unguided', 'beam', 'dvts']
    settings = [settings for _, settings, _ in searcher.calls]
    assert [s.strategy for s in settings] == ['mcts', 'mcts', 'mcts', 'beam', 'dvts']
    assert not any(s.use_ground_truth for s in settings)
    assert [ppm for ppm, _, _ in searcher.calls] == [None, PPM, None, PPM, PPM]
    # Without a PPM every answer votes, once; there is no best one.
    assert strategies['unguided'].keys() & {'best', 'weighted', 'pooled'} == set()
    assert strategies['unguided']['majority'] == 0.5
    assert strategies['unguided']['any'] == 0.75
    assert strategies['unguided']['solved'] == {'majority': [10, 11], 'any': [10, 11, 12]}
    assert strategies['unguided']['judge']['auc'] is None
    assert strategies['unguided']['judge']['auc_likelihood'] == pytest.approx(4 / 6)
    # `search` is the first that a PPM guides. There top=1 makes the majority the best; of samples
    # all vote.
    assert figures['search']['majority'] == figures['search']['best'] == strategies['beam']['best']
    assert strategies['sampled']['majority'] == 0.5
    assert strategies['sampled']['tokens_per_problem'] == 90.0
    assert strategies['greedy']['solved'] == {'greedy': [10, 12]}
    assert strategies['greedy']['judge'] is None
    json.dumps(figures, allow_nan=False)


def test_without_a_ppm_nothing_is_guided():
    config = dataclasses.replace(CONFIG, strategies=('mcts', 'sampled', 'beam'), samples=3)
    figures = evaluate(Searcher(), ppm=None, config=config)['benchmarks']['sums']
    assert list(figures['strategies']) == ['greedy', 'sampled']
    assert figures['search'] is None and figures['judge'] is None
    assert figures['strategies']['sampled']['answered'] == 1.0
    assert figures['tokens_per_problem'] == 5.0


def test_flops_are_not_known_of_trees_that_do_not_tell(tmp_path):
    class Forgetful(Searcher):
        def __call__(self, *arguments, **options):
            for record in super().__call__(*arguments, **options):
                yield dataclasses.replace(record, counters={'sampled_tokens': 1.0})

    figures = evaluate(Forgetful())['benchmarks']['sums']
    assert figures['flops_per_problem'] is None
    assert figures['strategies']['greedy']['flops_per_problem'] is None


def test_the_greedy_run_and_the_search_are_two_runs():
    searcher = Searcher()
    evaluate(searcher)
    (no_ppm, alone, one), (ppm, judged, three) = searcher.calls
    assert (no_ppm, one, alone) == (None, 1, search.greedy(CONFIG.search))
    assert alone.temperature == 0 and alone.candidates == alone.rollouts == 1
    assert (ppm, three) == (PPM, 3)
    assert not judged.use_ground_truth and judged.candidates == 3 and judged.rollouts == 2


@pytest.mark.parametrize('without', ['ppm', 'trajectories'])
def test_without_a_search_only_the_policy_is_reported(without):
    config = evals.Config(CONFIG.search, trajectories=0 if without == 'trajectories' else 3)
    results = evaluate(Searcher(), ppm=None if without == 'ppm' else PPM, config=config)
    figures = results['benchmarks']['sums']
    assert figures['greedy'] == 0.5 and figures['search'] is None
    assert list(figures['interval95']) == ['greedy']
    assert figures['tokens_per_problem'] == 5.0


def test_top_sets_how_many_vote():
    config = evals.Config(CONFIG.search, trajectories=3, top=1)
    found = evaluate(Searcher(), config=config)['benchmarks']['sums']['search']
    assert found['majority'] == found['best']


def test_unless_it_is_set_half_of_the_trees_vote_four_at_least(tmp_path, monkeypatch):
    """Two of the upper four are right, and above the other two; of all six a third is."""
    six = [(answer, 0.9 - 0.1 * i) for i, answer in enumerate('007777')]
    monkeypatch.setitem(globals(), 'FOUND', [six] * 4)
    monkeypatch.setitem(globals(), 'SAMPLES', [[None] * 6] * 4)
    config = evals.Config(CONFIG.search, trajectories=6)
    found = evaluate(Searcher(), tmp_path, config=config)['benchmarks']['sums']['strategies']
    read = evals.read(tmp_path, 'sums', PROBLEMS, 'mcts', 6, scored=True)
    assert found['mcts']['solved']['majority'] == read['solved']['majority'] == [10]


@pytest.mark.parametrize('lifetime', [0, 2, 4, 9, 15])
def test_a_killed_evaluation_goes_on(tmp_path, lifetime):
    expected = evaluate(Searcher())
    killed, after = Searcher(lifetime), Searcher()
    with pytest.raises(KeyboardInterrupt):
        evaluate(killed, tmp_path)
    assert not (tmp_path / 'results.json').exists()
    results = evaluate(after, tmp_path)
    assert not set(killed.made) & set(after.made)
    assert len(killed.made) + len(after.made) == 4 + 12
    for result in (expected, results):
        figures = result['benchmarks']['sums']
        for row in (figures, *figures['strategies'].values()):
            row.pop('seconds_per_problem')
    assert results == expected
    again = Searcher()
    evaluate(again, tmp_path)
    assert not again.calls
    written = json.loads((tmp_path / 'results.json').read_text())
    assert written['benchmarks']['sums']['search'] == results['benchmarks']['sums']['search']


class Scoring(Searcher):
    """Where there is a PPM it scores the samples, the first of each problem below the others."""

    def __call__(self, problems, policy, ppm, **options):
        for record in super().__call__(problems, policy, ppm, **options):
            if kind_of(options['config'], ppm) == 'sampled' and ppm is not None:
                score = np.where(np.isnan(record.score), record.tree / 4 - 0.9, record.score)
                record = dataclasses.replace(record, score=score)
            yield record


@pytest.mark.parametrize('mixed', [False, True])
def test_samples_from_before_there_was_a_ppm_are_drawn_again(tmp_path, capsys, mixed):
    """Others stay, also of a folder in which an earlier version has mixed them."""
    config = dataclasses.replace(CONFIG, strategies=('sampled', 'unguided'), samples=3)
    before = dataclasses.replace(config, samples=2) if mixed else config
    evaluate(Searcher(), tmp_path, ppm=None, config=before)
    if mixed:
        scoring = Scoring()
        with TreeStore(tmp_path / 'sums' / 'sampled') as store:
            given = {'config': search.sampled(CONFIG.search), 'trees': 3, 'seed': 0}
            given['share'] = search.Share(skip=frozenset(store.keys()))
            for record in scoring(PROBLEMS, POLICY, PPM, **given):
                store.append(record)
    place = tmp_path / 'sums' / 'sampled' / 'seconds.json'
    place.write_text('{"seconds": 40}')
    searcher = Scoring()
    found = evaluate(searcher, tmp_path, config=config)['benchmarks']['sums']['strategies']
    # Of the last problem's samples only the second has an answer.
    stay = [(i, 2) for i in range(3)] if mixed else []
    again = {(i, t, 'sampled') for i in range(4) for t in range(3) if (i, t) not in stay}
    assert len(searcher.made) == len(again) and set(searcher.made) == again
    told = f'sampled: {len(again)} trees done again, as the PPM has not scored them\n'
    assert capsys.readouterr().out == told
    seconds = found['sampled'].pop('seconds_per_problem') * 4
    assert seconds == pytest.approx(40 * len(stay) / 12, abs=0.5)
    expected = evaluate(Scoring(), config=config)['benchmarks']['sums']['strategies']
    expected['sampled'].pop('seconds_per_problem')
    assert found['sampled'] == expected['sampled'] and found['sampled']['judge']['pairs'] == 6
    evaluate(Scoring(0), tmp_path, config=config)
    assert capsys.readouterr().out == ''


def test_trees_of_other_problems_are_not_taken_for_answers(tmp_path):
    """The benchmark's file has been changed; by new answers they are graded."""
    evaluate(Searcher(), tmp_path)

    def again(**changes):
        problems = [*PROBLEMS[:2], dataclasses.replace(PROBLEMS[2], **changes), PROBLEMS[3]]
        run = {'directory': tmp_path, 'run_search': Searcher(0)}
        return evals.run(POLICY, PPM, {'sums': problems}, CONFIG, 7, **run)

    assert again(answer='4')['benchmarks']['sums']['greedy_solved'] == [10]
    message = f'benchmark sums: its problem 12 is another .*or delete {tmp_path / "sums"}$'
    with pytest.raises(UserError, match=message):
        again(question='another')


def test_seconds_of_a_killed_run_count(tmp_path):
    evaluate(Searcher(), tmp_path)
    place = tmp_path / 'sums' / 'mcts' / 'seconds.json'
    assert json.loads(place.read_text())['seconds'] > 0
    place.write_text('{"seconds": 40}')
    assert evaluate(Searcher(), tmp_path)['benchmarks']['sums']['seconds_per_problem'] == 10


@pytest.mark.parametrize('stored', [False, True])
def test_a_budget_of_tokens_buys_as_many_trees_as_come_nearest(tmp_path, stored):
    """A sample has 30 tokens, a searched tree 100; the greedy solution is one whatever it has."""
    searcher, folder = Searcher(), tmp_path if stored else None
    few = dataclasses.replace(CONFIG, strategies=('sampled', 'mcts'), mean_tokens=70)
    rows = evaluate(searcher, folder, config=few)['benchmarks']['sums']['strategies']
    assert {name: row['trajectories'] for name, row in rows.items()} == {
        'greedy': 1, 'sampled': 2, 'mcts': 1,
    }  # fmt: skip
    more = dataclasses.replace(CONFIG, mean_tokens=260)
    found = evaluate(searcher, folder, config=more)['benchmarks']['sums']['strategies']['mcts']
    assert (found['trajectories'], found['tokens_per_problem']) == (3, 300)
    plain = evaluate(Searcher())['benchmarks']['sums']['strategies']['mcts']
    for row in (plain, found):
        assert row.pop('seconds_per_problem') >= 0
    assert found == plain
    if stored:
        assert len(set(searcher.made)) == len(searcher.made) == 4 * (1 + 2 + 3)


@pytest.mark.parametrize('stored', [False, True])
@pytest.mark.parametrize('limit', [{'agree': 2}, {'tokens': 5}])
def test_trees_that_are_not_wanted_any_more_are_left_out(tmp_path, stored, limit):
    """Four samples of three tokens: two that agree are enough, and so are six tokens."""
    settings = search.Config(rollouts=1, candidates=3, use_ground_truth=False, **limit)
    config = evals.Config(settings, strategies=('sampled',), samples=4)
    made = []

    def texts(question, prefix, n):
        made.append(question)
        number = int(question.split()[-1])
        return [f'<answer>\\boxed{{{number}}}.<end_of_answer>'] * n

    class Counting(search.scripted):
        def collect(self, running):
            steps = super().collect(running)
            return [dataclasses.replace(step, sampled=3) for step in steps]

    with search.Workers.start(settings) as workers:

        def run(problems, policy, ppm, share, **given):
            share = dataclasses.replace(share, workers=workers)
            return search.run(problems, expander=Counting(texts), share=share, **given)

        folder = tmp_path if stored else None
        rows = [
            evaluate(run, folder, ppm=None, config=config)['benchmarks']['sums'] for _ in range(2)
        ]
    for row in rows:
        sampled = row['strategies']['sampled']
        assert (sampled['trajectories'], sampled['majority']) == (2, 1.0)
        assert sampled['tokens_per_problem'] == 6
    assert len(made) == 4 * (1 + 2) * (1 if stored else 2)


def test_what_fewer_trees_would_have_given(tmp_path):
    config = dataclasses.replace(CONFIG, strategies=('unguided', 'mcts'))
    evaluate(Searcher(), tmp_path, config=config)
    for name, ppm in (('unguided', None), ('mcts', PPM)):
        for trees in (1, 2, 3):
            one = dataclasses.replace(config, trajectories=trees, strategies=(name,))
            expected = evaluate(Searcher(), ppm=ppm, config=one)
            expected = expected['benchmarks']['sums']['strategies'][name]
            found = evals.read(tmp_path, 'sums', PROBLEMS, name, trees, scored=ppm is not None)
            for row in (found, expected):
                row.pop('seconds_per_problem')
                row.pop('flops_per_problem')
            assert found == expected
    with pytest.raises(KeyError):
        evals.read(tmp_path, 'sums', PROBLEMS, 'mcts', 4, scored=True)
    with TreeStore(tmp_path / 'sums' / 'mcts') as store:  # of one problem, whose answers agreed
        store.discard({(10, 2)})
    found = evals.read(tmp_path, 'sums', PROBLEMS, 'mcts', 3, scored=True)
    assert (found['trajectories'], found['tokens_per_problem']) == (11 / 4, 275)
    assert found['solved']['majority'] == [10, 11]


def test_compilation_does_not_count(tmp_path, monkeypatch):
    compiling = iter(range(0, 10**6, 100))
    monkeypatch.setattr(parallel, 'compile_seconds', lambda: next(compiling))
    assert evaluate(Searcher())['benchmarks']['sums']['seconds_per_problem'] == 0


def test_each_strategy_has_its_number_of_trees_and_all_have_the_seed():
    names = ('sampled', 'unguided', 'mcts')
    config = dataclasses.replace(CONFIG, strategies=names, samples=2)
    searcher, seeds = Searcher(), []

    def run(*arguments, **options):
        seeds.append(options['seed'])
        return searcher(*arguments, **options)

    evaluate(run, config=config)
    assert [trees for *_, trees in searcher.calls] == [1, 2, 3, 3]
    assert seeds == [7] * 4


def test_progress_names_benchmark_and_kind():
    seen = []
    evaluate(Searcher(), progress=seen.append)
    assert {(s['benchmark'], s['kind']) for s in seen} == {('sums', 'greedy'), ('sums', 'mcts')}
    assert seen[0]['trees_done'] == 0


def test_of_processes_that_share_a_directory_the_first_has_the_figures(tmp_path, monkeypatch):
    """Others read and grade nothing; how many trees a budget buys they are told."""
    config = dataclasses.replace(CONFIG, strategies=('sampled',), mean_tokens=70)
    told, other, first = [], Scoring(), Scoring()
    with monkeypatch.context() as patch:
        patch.setattr(hosts, 'is_first', lambda: False)
        patch.setattr(hosts, 'greatest', lambda n: told.append(n) or 2)
        patch.setattr(evals.evaluation, 'grade', lambda *_: 1 / 0)
        patch.setattr(TreeStore, '__getitem__', lambda self, key: 1 / 0)
        assert evaluate(other, tmp_path, config=config) == {'round': 0, 'benchmarks': {}}
    assert told == [0] and len(other.made) == 4 * (1 + 2)
    rows = evaluate(first, tmp_path, config=config)['benchmarks']['sums']['strategies']
    assert rows['sampled']['trajectories'] == 2 and not first.calls


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match='benchmark none: has no problems'):
        evals.run(POLICY, None, {'none': []}, CONFIG)
    for wrong in ({'trajectories': -1}, {'samples': 0}, {'strategies': ('best',)}):
        with pytest.raises(UserError) as error:
            evals.Config(**wrong)
        assert error.value.argument == next(iter(wrong))


# Two benchmarks of which two problems have the same index.
BOTH = {'sums': PROBLEMS[:2], 'more': [dataclasses.replace(PROBLEMS[2], index=10), PROBLEMS[3]]}


def both(searcher, directory=None, config=CONFIG, benchmarks=BOTH):
    given = {'directory': directory, 'run_search': searcher}
    found = evals.run(POLICY, PPM, benchmarks, config, 7, **given)['benchmarks']
    seconds = {name: of_each(row) for name, row in found.items()}
    return found, seconds


def of_each(row):
    """Takes the seconds out of a benchmark's figures, and returns each strategy's."""
    row.pop('seconds_per_problem')
    return {name: each.pop('seconds_per_problem') for name, each in row['strategies'].items()}


def test_a_strategy_searches_all_benchmarks_at_once(tmp_path):
    """And each gets what it would have got alone, the stand-in's places aside."""
    searcher = Searcher()
    found, _ = both(searcher, tmp_path)
    assert len(searcher.calls) == 2
    assert len(searcher.made) == 4 * (1 + 3)
    assert found['sums']['greedy_solved'] == [10] and found['more']['greedy_solved'] == [10]
    alone, _ = both(Searcher(), benchmarks={'sums': BOTH['sums']})
    assert found['sums'] == alone['sums']
    for name, problems in BOTH.items():
        with TreeStore(tmp_path / name / 'mcts') as store:
            assert store.keys() == {(p.index, tree) for p in problems for tree in range(3)}
            assert [store[p.index, 0].problem for p in problems] == problems


@pytest.mark.parametrize('lifetime', [2, 6, 11])
def test_a_killed_evaluation_of_two_goes_on_and_a_third_is_searched_alone(tmp_path, lifetime):
    expected, _ = both(Searcher())
    killed, after = Searcher(lifetime), Searcher()
    with pytest.raises(KeyboardInterrupt):
        both(killed, tmp_path)
    found, _ = both(after, tmp_path)
    assert found == expected and len(killed.made) + len(after.made) == 4 * (1 + 3)
    third = [dataclasses.replace(problem, index=i) for i, problem in enumerate(PROBLEMS)]
    searcher = Searcher()
    more, _ = both(searcher, tmp_path, benchmarks={'first': third, **BOTH})
    assert len(searcher.made) == 4 * (1 + 3) and {i for i, *_ in searcher.made} == set(range(4))
    assert {name: more[name] for name in BOTH} == expected and more['first']['problems'] == 4


def test_seconds_are_shared_out_by_tokens(tmp_path, monkeypatch):
    """The greedy solution of each is a tree of 5 tokens; `more` has twice as many problems."""
    now = iter(range(0, 10**6, 3))
    monkeypatch.setattr(clock.Clock, '_now', staticmethod(lambda: float(next(now))))
    benchmarks = {'sums': PROBLEMS[:1], 'more': PROBLEMS[1:3]}
    config = dataclasses.replace(CONFIG, strategies=('greedy',))
    _, seconds = both(Searcher(), tmp_path, config, benchmarks)
    assert seconds['sums']['greedy'] == seconds['more']['greedy'] == 3 * 3 / 3
    kept = json.loads((tmp_path / 'more' / 'greedy' / 'seconds.json').read_text())
    assert kept == {'seconds': 6.0}
    _, again = both(Searcher(0), tmp_path, config, benchmarks)
    assert again == seconds


def test_a_budget_buys_each_benchmark_its_number_of_trees(tmp_path):
    class Longer(Searcher):
        """The trees of the problems of `more` have twice as many tokens."""

        def __call__(self, *arguments, **options):
            for record in super().__call__(*arguments, **options):
                times = 2 if record.problem.question in asked else 1
                counters = record.counters | {
                    'sampled_tokens': times * record.counters['sampled_tokens']
                }
                yield dataclasses.replace(record, counters=counters)

    asked = {problem.question for problem in BOTH['more']}
    config = dataclasses.replace(CONFIG, strategies=('sampled',), mean_tokens=95)
    searcher = Longer()
    found, _ = both(searcher, tmp_path, config)
    assert [found[name]['strategies']['sampled']['trajectories'] for name in BOTH] == [3, 2]
    assert len(searcher.made) == 4 + 2 * (3 + 2)
