"""The table and the page."""

import html.parser
import json
import re

import pytest
from tensorboardX import SummaryWriter

from rstar_jax import data
from rstar_jax.errors import UserError
from rstar_jax.evals import curves, report, tables, treeview
from tests.evals.trees import tree


def results(number, greedy, majority=None):
    found = None
    interval = {'greedy': [greedy - 0.05, greedy + 0.05]}
    if majority is not None:
        found = {'trajectories': 8, 'best': 0.5, 'majority': majority, 'weighted': 0.6, 'any': 0.9}
        interval |= {mode: [0.41, 0.93] for mode in found if mode != 'trajectories'}
    figures = {
        'problems': 100,
        'greedy': greedy,
        'answered': 0.96,
        'search': found,
        'interval95': interval,
        'tokens_per_problem': 1234.5,
        'seconds_per_problem': 0.256,
    }
    return {'round': number, 'benchmarks': {'sums': figures, f'only{number}': figures}}


ROUNDS = [results(0, 0.25), results(1, 0.75, 0.875)]


class Page(html.parser.HTMLParser):
    """Collects tags, what they point to, and checks that they close in order."""

    VOID = ('meta', 'br', 'rect', 'circle', 'polyline')

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ('src', 'href', 'xlink:href')]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_table_compares_the_rounds():
    lines = report.table(ROUNDS).split('\n')
    assert lines[0].split()[:4] == ['benchmark', 'problems', 'policy', 'policy']
    start, first = lines[2:4]
    assert start.split()[:4] == ['sums', '100', 'start', '25.0'] and '[20-30]' in start
    assert start.count(' -') == 4  # no search was done
    assert first.split()[:5] == ['100', 'round', '1', '75.0', '[70-80]']
    assert '87.5 [41-93]' in first and '1,23' in first and '0.26' in first
    assert lines[4].startswith('only0') and lines[5].startswith('only1')
    assert '8 trees' in lines[-1]
    assert max(map(len, lines)) <= 135
    assert report.table([]) == ''


def test_rounds_are_compared_problem_by_problem():
    before, after, worse = results(0, 0.25), results(1, 0.3), results(2, 0.2)
    for result, solved in ((before, range(20)), (after, range(2, 30)), (worse, range(10, 14))):
        result['benchmarks']['sums'] |= {'greedy_solved': list(solved), 'answered': 0.875}
    text = report.table([before, after, worse])
    assert 'sums, policy alone, round 1 against start: 10 problems won, 2 lost: better (p' in text
    assert 'round 2 against round 1: 0 problems won, 24 lost: WORSE (p = 1.2e-07' in text
    assert (
        text.count("McNemar's test") == 2 and text.count('87.5 %') == 6
    )  # of both benchmarks of a round
    after['benchmarks']['sums']['greedy_solved'] = list(range(22))
    assert '2 problems won, 0 lost: no certain difference (p = 0.5' in report.table([before, after])


def test_read_sorts_rounds_by_number(tmp_path):
    for number in (10, 0, 2):
        folder = tmp_path / f'round{number}' / 'eval'
        folder.mkdir(parents=True)
        (folder / 'results.json').write_text(json.dumps(results(number, 0.5)))
    assert [r['round'] for r in report.read(tmp_path)] == [0, 2, 10]
    (tmp_path / 'round2' / 'eval' / 'results.json').write_text('{')
    with pytest.raises(UserError, match='round2/eval/results.json: not the results'):
        report.read(tmp_path)


def test_page_is_well_formed_and_needs_nothing_else():
    problem = {'index': 3, 'question': 'Is 1 < 2 & 2 > 1?', 'answer': '1'}
    trees = [tree(problem, 0, [('1', 0.5, True), ('2', -0.25, False)])]
    scalars = {'sft/loss': [(0, 2.0), (1, float('nan')), (2, 1.0)], 'one': [(0, 1.0)]}
    text = report.page(ROUNDS, scalars, trees, 'A <run>')
    page = Page(text)
    assert not page.links and 'script' not in page.tags and 'http' not in text
    assert page.tags.count('svg') == 2  # accuracy of the benchmark with two rounds; the loss
    assert 'A &lt;run&gt;' in text and 'x = 1 &lt;b&gt;' in text
    assert 'Is 1 &lt; 2 &amp; 2 &gt; 1?' in text
    assert '1 (right)' in text and '2 (wrong)' in text and 'PPM -0.25' in text
    assert re.search(r'<td>87.5 \[41-93\]</td>', text)


def test_a_page_without_anything():
    assert 'Nothing was evaluated yet' in report.page([])
    Page(report.page([]))


def test_run_page_out_of_a_workdir(tmp_path):
    folder = tmp_path / 'round1' / 'eval'
    folder.mkdir(parents=True)
    (folder / 'results.json').write_text(json.dumps(ROUNDS[1]))
    problem = {'index': 0, 'question': 'What is one?', 'answer': '1'}
    with data.TreeStore(tmp_path / 'round1' / 'search') as store:
        store.append(tree(problem, 0, [('1', 0.5, True)]))
    with SummaryWriter(str(tmp_path / 'events')) as writer:
        for step in range(5):
            writer.add_scalar('round1/sft/loss', 1 / (1 + step), step)
    path = report.write_run(tmp_path)
    assert path == tmp_path / 'report' / 'index.html'
    text = path.read_text()
    Page(text)
    assert 'round1/sft/loss' in text and 'What is one?' in text and '75.0' in text


def test_events_are_read_and_a_later_run_wins(tmp_path):
    for number, values in enumerate(([3.0, 2.0, 9.0], [1.0, 0.5])):
        writer = SummaryWriter(str(tmp_path), filename_suffix=f'.{number}')
        for i, value in enumerate(values):
            writer.add_scalar('loss', value, i + 2 * number, walltime=100.0 * number + i)
        writer.close()
    assert curves.read_events(tmp_path) == {'loss': [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.5)]}
    path = sorted(tmp_path.glob('*.0'))[0]
    path.write_bytes(path.read_bytes()[:-5])  # killed while writing
    assert curves.read_events(tmp_path) == {'loss': [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.5)]}
    assert curves.read_events(tmp_path / 'none') == {}


def test_curve_keeps_its_points_within_the_frame():
    drawing = curves.line('flat', {'a': [(5, 1.0)], 'b': [(5, 1.0), (6, 1.0)]})
    points = re.findall(r'points="([^"]+)"', drawing)
    numbers = [float(n) for p in points for n in re.split('[ ,]', p)]
    assert len(numbers) == 6 and min(numbers) >= 0 and max(numbers) <= curves.WIDTH
    long = curves.line('long', {'': [(i, i % 7) for i in range(5000)]})
    assert long.count(',') < 2 * curves.MOST_POINTS
    assert curves.line('none', {'': [(0, float('inf'))]}) == ''


def test_choose_prefers_trees_with_right_and_wrong_answers(tmp_path):
    answers = [
        [('1', 0.5, True)],
        [('2', 0.5, False)],
        [('1', 0.5, True), ('2', 0.1, False)],
        [('3', 0.5, False)],
        [],
    ]
    with data.TreeStore(tmp_path) as store:
        for index, found in enumerate(answers):
            problem = {'index': index, 'question': f'q{index}', 'answer': '1'}
            store.append(tree(problem, 0, found))
            store.append(tree(problem, 1, found))
    assert [t.key for t in treeview.choose(tmp_path)] == [(2, 0), (0, 0), (1, 0), (3, 0)]


def test_large_trees_lose_their_least_visited_branches():
    problem = {'index': 0, 'question': 'q', 'answer': '1'}
    many = [(str(i), 0.0, i == 900) for i in range(1000)]
    text = treeview.render(tree(problem, 0, many))
    assert text.count('class="leaf"') == treeview.MOST_NODES - 2
    assert '900 (right)' in text and '602 little visited nodes are not shown' in text
    Page(text)


def test_a_policy_that_solves_less_than_the_one_before_says_so():
    solved = {None: [], 0: range(40), 1: range(20), 2: range(19), 3: range(30)}
    rounds = [results(number, len(found) / 100) for number, found in solved.items()]
    for result, found in zip(rounds, solved.values()):
        for figures in result['benchmarks'].values():
            figures['greedy_solved'] = list(found)
    cells = [row[2] for row in report.rows(rounds) if row[0] in ('sums', '')]
    worse = 'round 1 WORSE than the one before'
    assert cells == ['base', 'start', worse, 'round 2 (lower)', 'round 3']
    text = report.table(rounds)
    assert 'round 1 against start: 0 problems won, 20 lost: WORSE' in text
    assert 'start against base' not in text
    assert 'base' not in str(report._by_round(rounds))


def test_the_base_model_is_read_and_comes_first(tmp_path):
    for folder, number in (('round0', 0), ('base', None)):
        path = tmp_path / folder / 'eval' / 'results.json'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(results(number, 0.5)))
    assert [result['round'] for result in report.read(tmp_path)] == [None, 0]


def test_tables_of_strategies_and_judges():
    figures = results(1, 0.5)
    greedy = {
        'trajectories': 1, 'greedy': 0.5, 'interval95': {'greedy': [0.4, 0.6]}, 'judge': None,
        'tokens_per_problem': 50.0, 'seconds_per_problem': 0.5, 'flops_per_problem': 2.5e12,
    }  # fmt: skip
    judge = {
        'answers': 90, 'pairs': 1200, 'problems': 30, 'auc': 0.8, 'auc_likelihood': None,
        'interval95': {'auc': [0.7, 0.9]},
    }  # fmt: skip
    sampled = {
        **greedy, 'trajectories': 8, 'best': 0.6, 'majority': 0.625, 'any': 0.9, 'judge': judge,
        'interval95': {mode: [0.55, 0.95] for mode in ('best', 'majority', 'any')},
        'flops_per_problem': None,
    }  # fmt: skip
    del sampled['greedy']
    figures['benchmarks'] = {'sums': {'strategies': {'greedy': greedy}}}
    assert tables.strategies([figures]) == tables.judges([figures]) == []
    figures['benchmarks']['sums']['strategies']['sampled'] = sampled
    assert tables.strategies([figures])[1:] == [
        ('sums', 'round 1', 'greedy', '1', '50.0 [40-60]', *'----', '50', '0.50', '2.5'),
        (
            *('sums', 'round 1', 'sampled', '8', '-', '60.0 [55-95]', '62.5 [55-95]', '-'),
            *('90.0 [55-95]', '50', '0.50', '-'),
        ),
    ]
    assert tables.judges([figures])[1:] == [
        ('sums', 'round 1', 'sampled', '1,200 of 30 problems', '80.0 [70-90]', '-')
    ]
