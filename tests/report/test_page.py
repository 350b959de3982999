"""The tables, the files of a report, and how they are made of finished and of running runs."""

import base64
import collections
import html.parser
import io
import json
import re
import zlib

import pytest

from rstar_jax import data, report
from rstar_jax import settings as configs
from rstar_jax.data.record import Record
from rstar_jax.report import __main__ as command
from rstar_jax.report import drawing, learning, page, plots, run, stages, tables, terminal, trees
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import STAGES
from tests.evals.trees import tree
from tests.report import workdirs
from tests.report.grown import grown
from tests.report.workdirs import benchmark, results
from tests.stages import doing

ROUNDS = [
    results(0, sums=benchmark(0.25), only0=benchmark(0.5)),
    results(1, sums=benchmark(0.75, 0.875), only1=benchmark(0.5)),
]


class Page(html.parser.HTMLParser):
    """Collects what a page points to, and checks that its elements close in order."""

    VOID = ('meta', 'link', 'input', 'br', 'path', 'use', 'rect')

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.content = [], [], [], []
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

    def handle_data(self, text):
        if not self.open or self.open[-1] not in ('script', 'style'):
            self.content.append(text)

    @property
    def text(self):
        return ' '.join(' '.join(self.content).split())


def told(path) -> dict:
    """A tree out of its script."""
    name, packed = re.fullmatch(r'tree\("([^"]+)","([^"]+)"\)\n', path.read_text()).groups()
    assert name == path.stem
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def listed(page: str) -> list[dict]:
    """The page's list of trees, by source."""
    return json.loads(re.search(r'const SOURCES = (.*?);</script>', page)[1])


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    root = tmp_path_factory.mktemp('finished')
    workdirs.finished(root)
    report.write(root, STAGES)
    return root


# --- tables ---


def test_accuracies_of_the_rounds_follow_each_other():
    heading, start, first, *_ = tables.accuracy(ROUNDS)
    assert heading[:4] == ['benchmark', 'problems', 'policy', 'policy alone']
    assert start == ['sums', '100', 'start', '25.0 [15-35]', '96.0 %', *5 * '-', '1,234', '0.26']
    assert first[:4] == ['', '100', 'round 1', '75.0 [65-85]']
    assert '87.5 [78-98]' in first
    assert [row[0] for row in tables.accuracy(ROUNDS)] == [
        'benchmark',
        'sums',
        '',
        'only0',
        'only1',
    ]
    assert '8 trees' in ' '.join(tables.accuracy_notes(ROUNDS))
    assert tables.accuracy([]) == []


def test_rounds_are_compared_problem_by_problem():
    base, before, after, worse, lower = (
        results(number, sums=benchmark(share) | {'greedy_solved': list(solved)})
        for number, share, solved in (
            (None, 0.1, range(10)),
            (0, 0.2, range(20)),
            (1, 0.28, range(2, 30)),
            (2, 0.04, range(10, 14)),
            (3, 0.03, range(10, 13)),
        )
    )
    found = [base, before, after, worse, lower]
    text = '\n'.join(tables.accuracy_notes(found))
    assert 'sums, policy alone, round 1 against start: 10 problems won, 2 lost: better (p' in text
    assert 'round 2 against round 1: 0 problems won, 24 lost: WORSE (p = 1.2e-07' in text
    assert '0 problems won, 1 lost: no certain difference (p = 1' in text
    assert 'round 3 against start: 0 problems won, 17 lost: WORSE (p' in text
    assert text.count("McNemar's test") == 4  # the base model is no round
    policies = [row[2] for row in tables.accuracy(found)[1:]]
    assert policies == [
        *('base', 'start', 'round 1', 'round 2 WORSE than the one before', 'round 3 (lower)')
    ]


def test_only_problems_that_both_were_asked_are_compared():
    """eval.limit may differ by round, and the built-in problems do by seed."""
    asked = {str(i): 1000 + i for i in range(40)}

    def of(number, asked, solved):
        return results(number, sums=benchmark(0.5) | {'asked': asked, 'greedy_solved': solved})

    few = of(0, dict(list(asked.items())[:10]), [*range(10)])
    many, again = of(1, asked, [*range(3, 40)]), of(2, asked, [*range(2, 40)])
    other = of(3, {i: number + 1000 for i, number in asked.items()}, [0])
    (note,) = tables.compared(few, many, 'a', 'b')
    assert ', b against a: 0 problems won, 3 lost, of the 10 asked of both: no certain' in note
    (note,) = tables.compared(many, again, 'a', 'b')
    assert ', b against a: 1 problems won, 0 lost: no certain difference' in note
    assert list(tables.compared(again, other, 'a', 'b')) == []
    policies = [row[2] for row in tables.accuracy([few, many, again, other])[1:]]
    assert policies == ['start', 'round 1 (lower)', 'round 2', 'round 3']
    # An earlier version did not keep what was asked.
    before = results(0, sums=benchmark(0.5) | {'greedy_solved': [*range(10)]})
    (note,) = tables.compared(before, many, 'a', 'b')
    assert '30 problems won, 3 lost: better' in note


def test_strategies_and_judges_have_tables_of_their_own():
    greedy = {'trajectories': 1, 'greedy': 0.5, 'interval95': {'greedy': [0.4, 0.6]}, 'judge': None,
              'tokens_per_problem': 50.0, 'seconds_per_problem': 0.5,
              'flops_per_problem': None}  # fmt: skip
    judge = {'pairs': 1200, 'problems': 30, 'auc': 0.75, 'auc_likelihood': None,
             'interval95': {'auc': [0.7, 0.8]}}  # fmt: skip
    beam = greedy | {'trajectories': 4, 'majority': 0.7, 'judge': judge, 'flops_per_problem': 2e12}
    beam |= {'interval95': {'majority': [0.6, 0.8], 'greedy': [0, 1]}}
    row = benchmark(0.5) | {'strategies': {'greedy': greedy}}
    assert tables.strategies([results(1, sums=row)]) == []
    row['strategies']['beam'] = beam
    _, alone, searched = tables.strategies([results(1, sums=row)])
    assert alone == ['sums', 'round 1', 'greedy', '1', '50.0 [40-60]', *5 * '-', '50', '0.50', '-']
    assert searched[2:4] == ['beam', '4'] and '70.0 [60-80]' in searched and searched[-1] == '2 T'
    (_, judged) = tables.judges([results(1, sums=row)])
    assert judged[2:] == ['beam', '1,200 of 30 problems', '75.0 [70-80]', '-']
    assert tables.judges(ROUNDS) == []
    # One search by the PPM is in the table of accuracies already.
    told = benchmark(0.5, 0.7) | {'strategies': row['strategies']}
    assert tables.strategies([results(1, sums=told)]) == []
    told['strategies']['sampled'] = beam
    assert len(tables.strategies([results(1, sums=told)])) == 4


def test_tokens_of_an_evaluation_are_those_of_all_its_strategies(tmp_path):
    row = benchmark(0.5, 0.7, problems=10)
    told = {name: {'tokens_per_problem': x} for name, x in (('greedy', 50), ('mcts', 1234.5))}
    workdirs.done(tmp_path / 'round1' / 'eval', 37, sums=row | {'strategies': told}, old=row)
    assert stages.tokens(run.read(tmp_path, STAGES))['evaluation'] == {1: 12845 + 12345}


def test_of_one_tree_a_problem_its_best_answer_and_all_of_them_are_told(tmp_path):
    row = benchmark(0.25, 0.5) | {'flops_per_problem': 1.5e9}
    row['search']['trajectories'] = 1
    found = [results(0, sums=benchmark(0.2)), results(1, sums=row)]
    heading, _, after = tables.accuracy(found)
    assert heading[3:] == [
        *('policy alone', 'answered', 'with search', 'all answers', 'tokens', 'seconds', 'FLOPs'),
    ]
    assert after[5:] == [*2 * ['50.0 [40-60]'], '1,234', '0.26', '1.5 G']
    assert 'the search with one tree a problem.' in ' '.join(tables.accuracy_notes(found))
    made = run.Run(tmp_path, STAGES, {}, (), tuple(found), {}, {})
    _, (_, _, more), *_ = stages.headlines(made)
    assert more == 'round 1, one tree a problem'
    searched = plots.accuracy([made], tmp_path)[1]
    assert searched.note == 'Bars: 95 % intervals of "with search".'
    assert 'policy alone' in searched.svg  # what it is compared with


def test_a_mean_of_trees_is_told_in_few_digits(tmp_path):
    """Where answers agree, a problem has fewer trees than others."""
    row = benchmark(0.25, 0.5)
    row['search']['trajectories'] = 10 / 3
    figures = row | row['search'] | {'judge': None}
    found = [
        results(1, sums=row | {'strategies': dict.fromkeys(('greedy', 'mcts', 'puct'), figures)})
    ]
    assert 'the search with 3.33 trees a problem.' in tables.accuracy_notes(found)[0]
    assert tables.strategies(found)[2][2:4] == ['mcts', '3.33']
    _, (*_, more), *_ = stages.headlines(run.Run(tmp_path, STAGES, {}, (), tuple(found), {}, {}))
    assert more.startswith('round 1, majority of 3.33 trees')


def test_what_no_round_tells_has_no_column():
    heading, row = tables.accuracy([results(0, sums=benchmark(0.2))])
    assert len(row) == len(heading) == 7 and '-' not in row


def test_what_was_dropped_is_told_with_its_reason(workdir):
    rows = {row[0]: row[1:] for row in stages.found(run.read(workdir, STAGES))}
    assert rows['preference pairs'] == ['240', '480']
    assert rows['dropped: Q values too close'] == ['31', '31']
    counts = collections.Counter()
    record = grown({'index': 0, 'question': 'q', 'answer': '1'}, nodes=300)
    data.curate([record], counts=counts)
    assert counts and counts.keys() <= stages.FOUND.keys()  # none is without an explanation


def test_terminal_and_page_say_the_same(workdir):
    stream = io.StringIO()
    terminal.show(workdir, STAGES, stream)
    text = ' '.join(stream.getvalue().split())
    page = Page((workdir / 'report' / 'index.html').read_text()).text
    made = run.read(workdir, STAGES)
    for rows in (stages.table(made), tables.accuracy(made.results)):
        for row in rows:
            line = ' '.join(' '.join(row).split())
            assert line in text and line in page


# --- the page ---


def test_the_page_is_whole_and_needs_nothing_else(workdir):
    text = (workdir / 'report' / 'index.html').read_text()
    page = Page(text)
    outside = [link for link in page.links if not link.startswith(('#', 'data:'))]
    assert outside and all((workdir / 'report' / link).stat().st_size for link in outside)
    assert all(link.endswith('.png') for link in outside)
    assert page.tags.count('svg') == len(outside) == 13
    assert 'What is 0 < 1 & more?' in page.text and '<boxed' not in text
    assert len(text) < 1_000_000
    ids = re.findall(r' id="([^"]+)"', re.sub(r'<script>.*?</script>', '', text, flags=re.DOTALL))
    twice = {name for name, count in collections.Counter(ids).items() if count > 1}
    assert not twice
    for name in re.findall(r'href="#(\w+)"', text):
        assert name in ids


def test_the_list_of_very_many_trees_is_small(tmp_path):
    source = trees.Source('round1-search', 'Round 1: search', tmp_path, True, 1)
    entries = [trees.Entry('', i, 0, 1, 5000, 'x' * 90, 'why ' * 90) for i in range(30_000)]
    sample = trees.Sample(source, 30_000, entries, trees.Steps(), [])
    part = page.Part(
        run.Run(tmp_path, STAGES, {}, (), (), {}, {}), [sample, sample], [], [], [], []
    )
    listed = page._listed([part])
    made = page._list(listed)
    assert sum(len(row['trees']) for row in made) == page.MOST_LISTED
    assert [page._counted(sample) for sample in listed[0].samples] == [
        '0 of 30,000 trees',
        '20,000 of 30,000 trees',
    ]
    assert len(json.dumps(made)) < 4_500_000  # of 5 MB for the page


def test_links_to_a_run_with_odd_characters_in_its_name(tmp_path):
    source = trees.Source('round1-search', 'Round 1: search', tmp_path, True, 1)
    sample = trees.Sample(source, 0, [], trees.Steps(), [])
    plot = drawing.Plot('loss', 'Loss', '', '<svg></svg>')
    empty = run.Run(tmp_path, STAGES, {}, (), (), {}, {})
    part = page.Part(empty, [sample], [], [], [plot], [], beside='../../a #1 50%/report/')
    text = page.page([part], [])
    assert 'href="../../a%20%231%2050%25/report/loss.png"' in text
    assert '"../../a%20%231%2050%25/report/trees/round1-search"' in text


def test_sections_come_in_the_order_of_the_questions(workdir):
    text = (workdir / 'report' / 'index.html').read_text()
    places = [text.index(f'<section id="{name}"') for name in
              ('better', 'cost', 'found', 'training', 'values', 'trees')]  # fmt: skip
    assert places == sorted(places)


def test_the_same_run_gives_the_same_plots(tmp_path, workdir):
    made = run.read(workdir, STAGES)
    first, second = (learning.training(made, tmp_path / name) for name in 'ab')
    assert [plot.svg for plot in first] == [plot.svg for plot in second]
    assert {path.name for path in (tmp_path / 'a').glob('*.png')} == {
        *('sft-loss.png', 'ppm-loss.png', 'ppm-accuracy.png')
    }
    assert 'var(--' in first[0].svg and '#' not in re.sub(r'url\(#\w+\)|"#\w+"', '', first[0].svg)


def test_only_what_has_changed_is_made_again(tmp_path):
    """A page is written after every stage: neither plots nor trees of before cost anything."""
    workdirs.finished(tmp_path, rounds=1)
    first = report.write(tmp_path, STAGES).read_text()

    def written():
        folder = tmp_path / 'report'
        return {
            path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.suffix != '.html'
        }

    before = written()
    assert trim(report.write(tmp_path, STAGES).read_text()) == trim(first)
    assert len(before) > 9 and written() == before
    workdirs.done(tmp_path / 'round1' / 'export', 40_000, policy='policy')
    report.write(tmp_path, STAGES)
    assert written()[tmp_path / 'report' / 'time.png'] > before[tmp_path / 'report' / 'time.png']
    (tmp_path / 'report' / 'time.png').unlink()
    later = report.write(tmp_path, STAGES).read_text()
    assert (tmp_path / 'report' / 'time.png').exists() and 'hours' in later
    for path in (tmp_path / 'round1' / 'search').glob('*'):
        path.unlink()
    workdirs.trees(tmp_path / 'round1' / 'search', 6, seed=9)  # other trees of the same names
    report.write(tmp_path, STAGES)
    with data.TreeStore(tmp_path / 'round1' / 'search', writer=None) as store:
        record = store[3, 0]
    path = tmp_path / 'report' / 'trees' / 'round1-search-3-0.js'
    assert told(path) == trees.told(record)


def trim(page: str) -> str:
    """Without the time at which it was written."""
    return re.sub(r'Written [\d :-]+', '', page)


def test_long_curves_are_averaged():
    x, y = drawing.thinned([(i, i % 2) for i in range(10_000)])
    assert len(x) <= drawing.MOST_POINTS and x[0] > 0 and set(y) == {0.5}
    x, y = drawing.thinned([(1, 3.0), (2, 4.0)])
    assert list(x) == [1, 2] and list(y) == [3, 4]


def test_a_config_of_something_else(tmp_path):
    for content in ({'model_type': 'qwen2', 'vocab_size': 9}, ['round1']):
        workdirs.write(tmp_path / 'config.json', content)
        with pytest.raises(UserError) as error:
            report.write(tmp_path, STAGES)
        assert error.value.argument.startswith(str(tmp_path / 'config.json'))


def test_a_log_of_something_else(tmp_path):
    workdirs.finished(tmp_path, rounds=1)
    log = tmp_path / 'round1' / 'policy' / 'metrics.jsonl'
    log.write_text('3\n')
    with pytest.raises(UserError) as error:
        report.write(tmp_path, STAGES)
    assert error.value.argument == str(log)


def test_a_workdir_of_nothing_but_an_evaluation(tmp_path):
    workdirs.write(tmp_path / 'round0' / 'eval' / 'results.json', ROUNDS[0])
    page = Page(report.write(tmp_path, STAGES).read_text())
    assert 'sums: policy alone' in page.text and 'with search' not in page.text
    with pytest.raises(UserError) as error:
        report.write(tmp_path / 'none', STAGES)
    assert error.value.argument == str(tmp_path / 'none')


def test_a_run_that_goes_on(tmp_path):
    """Trees so far, a line of the log half written, the clock of the stage."""
    workdirs.write(tmp_path / 'config.json', {'round1': {'policy.path': 'tiny'}})
    workdirs.write(tmp_path / 'round1' / 'search' / 'begun.json', {'inputs': {}, 'seconds': 3725})
    page = Page(report.write(tmp_path, STAGES).read_text())
    assert 'round 1, search: 1:02:05 so far' in page.text
    assert 'What does it write?' not in page.text
    one = {'index': 7, 'question': 'What is one?', 'answer': '1'}
    folder = tmp_path / 'round1' / 'search'
    with data.TreeStore(folder, seconds=0) as store:  # a run at work holds its lock
        store.append(tree(one, 0, [('1', 0, True)]))
        page = Page(report.write(tmp_path, STAGES).read_text())
        assert 'What is one?' in page.text and '1 of 1' not in page.text
        assert (tmp_path / 'report' / 'trees' / 'round1-search-7-0.js').exists()
        store.append(tree({'index': 8, 'question': 'And two?', 'answer': '2'}, 0, []))
    assert not list((tmp_path / 'round1' / 'search').glob('.lock-None'))
    workdirs.training(tmp_path / 'round1' / 'policy', 4, 5)
    (tmp_path / 'round1' / 'policy' / 'done.json').unlink()
    workdirs.write(tmp_path / 'round1' / 'policy' / 'begun.json', {'inputs': {}, 'seconds': 3})
    with open(tmp_path / 'round1' / 'policy' / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 5, "lo')
    assert len(run.read(tmp_path, STAGES).trainings[1, 'sft']) == 4
    assert 'SFT: loss' in report.write(tmp_path, STAGES).read_text()


def test_a_run_is_complete_when_all_is_done_that_was_asked_for(tmp_path):
    keys = {'policy.path': 'tiny', 'stages': 'curate,export'}
    workdirs.write(tmp_path / 'config.json', {f'round{k}': keys for k in range(1, 11)})
    shown = []
    for folder in ('round1/curate', 'round9/export', 'round10/curate', 'round10/export'):
        workdirs.done(tmp_path / folder, 1)
        text = Page(report.write(tmp_path, STAGES).read_text()).text
        shown.append(re.search(r'(round \d+, \w+: done|complete) policy tiny', text)[1])
    assert shown == [
        *('round 1, curate: done', 'round 9, export: done', 'round 10, curate: done', 'complete')
    ]


@pytest.mark.parametrize(
    ('number', 'settings', 'last'),
    [
        (1, {'stages': 'sft, search'}, 'round1/policy'),  # in whatever order they were written
        (1, {'stages': 'curate,eval', 'eval.benchmarks': ''}, 'round1/curate'),
        (1, {'stages': 'curate,eval', 'eval.benchmarks': 'sums'}, 'round1/eval'),
        (0, {'stages': 'eval', 'base.path': 'another'}, 'round0/eval'),
        (0, {'stages': 'search,eval,export'}, 'round0/eval'),
    ],
)
def test_complete_is_a_run_with_the_last_stage_that_has_something_to_do(
    tmp_path, number, settings, last
):
    workdirs.write(tmp_path / 'config.json', {f'round{number}': settings})
    for folder in ('base/eval', f'round{number}/search'):
        workdirs.done(tmp_path / folder, 1)
    assert not run.read(tmp_path, STAGES).complete
    workdirs.done(tmp_path / last, 1)
    assert run.read(tmp_path, STAGES).complete


def test_a_run_is_complete_without_stages_that_only_a_round_names(tmp_path):
    config = configs.default()
    config.stages, config.eval.benchmarks = 'search,curate', 'sums'
    configs.schedule(config, {1: {'stages': 'search,curate,eval'}})
    settings = configs.flatten(configs.for_round(config, 1))
    rows = doing.rows(config, configs.stages_of(config.stages))
    workdirs.write(tmp_path / 'config.json', {'round1': settings})
    for number, name in rows:
        assert not run.read(tmp_path, STAGES).complete
        workdirs.done(tmp_path / f'round{number}' / name, 1)
    assert run.read(tmp_path, STAGES).complete


def test_a_broken_file_is_named(tmp_path):
    workdirs.finished(tmp_path, rounds=1)
    results = tmp_path / 'round1' / 'eval' / 'results.json'
    results.write_text('{')
    with pytest.raises(UserError) as error:
        report.write(tmp_path, STAGES)
    assert error.value.argument == str(results)
    assert str(results.with_name('done.json')) in error.value.remedy


def test_results_are_ordered_by_number_the_base_model_first(tmp_path):
    for number in (10, 0, 2):
        path = tmp_path / f'round{number}' / 'eval' / 'results.json'
        workdirs.write(path, results(number, sums=benchmark(0.5)))
    workdirs.write(tmp_path / 'base' / 'eval' / 'results.json', results(None, sums=benchmark(0.1)))
    assert [found['round'] for found in run.read_results(tmp_path)] == [None, 0, 2, 10]
    assert 'base' in tables.accuracy(run.read_results(tmp_path))[1]


def test_a_report_that_fails_stops_no_run_and_tells_a_command_that_can_be_typed(tmp_path, capsys):
    root = tmp_path / 'a run'
    workdirs.write(root / 'config.json', {'round1': {}})
    workdirs.done(root / 'round1' / 'curate', 1)
    assert (
        f"python -m rstar_jax.report '{root}'" in Page(report.write(root, STAGES).read_text()).text
    )
    workdirs.write(root / 'config.json', [])
    assert report.attempt(root, STAGES) is None
    assert f"try python -m rstar_jax.report '{root}'" in capsys.readouterr().out


# --- trees ---


def test_a_tree_is_told_whole():
    record = grown({'index': 3, 'question': 'How <many>?', 'answer': ['1', 'one']}, nodes=80)
    content = trees.told(record)
    assert json.loads(json.dumps(content)) == content
    assert content['texts'] == record.texts and content['parent'] == record.parent.tolist()
    assert content['truth'] == '1 or one' and content['score'][0] is None
    assert content['answers'][content['best']] == record.best_answer()[0]
    assert sum(right == 1 for right in content['right']) == sum(record.correct)
    again = Record.from_bytes(record.to_bytes())
    assert trees.told(again) == content


def test_trees_are_spaced_evenly_and_old_files_go(tmp_path):
    workdirs.trees(tmp_path / 'round1' / 'search', 10, nodes=20)
    workdirs.write(tmp_path / 'round1' / 'search' / 'begun.json', {'inputs': {}, 'seconds': 1})
    folder = tmp_path / 'report' / 'trees'

    def shown():
        return sorted(int(path.stem.split('-')[2]) for path in folder.glob('*.js'))

    report.write(tmp_path, STAGES, trees=None)
    assert shown() == list(range(10))
    page = Page(report.write(tmp_path, STAGES, trees=4).read_text())
    assert shown() == [0, 2, 5, 7] and 'Round 1: search: 4 of 10' in page.text
    report.write(tmp_path, STAGES, trees=2, problems=[9])
    assert shown() == [0, 5, 9]
    with pytest.raises(UserError) as error:
        report.write(tmp_path, STAGES, problems=[999, 9, 10])
    assert (error.value.argument, error.value.value) == ('problems', '10,999')


def test_trees_of_an_evaluation_are_graded(tmp_path):
    """The search was not told the truth: its records know no right answer."""
    folder = tmp_path / 'round0' / 'eval'
    workdirs.write(folder / 'results.json', ROUNDS[0])
    workdirs.done(folder, 3, sums=ROUNDS[0]['benchmarks']['sums'])
    with data.TreeStore(folder / 'sums' / 'greedy') as store:
        for index, truth in enumerate(('0.5', '2', '')):
            problem = {'index': index, 'question': f'q{index}', 'answer': truth}
            store.append(tree(problem, 0, [(r'\frac{1}{2}', 0.5, False)]))
    (source,) = listed(report.write(tmp_path, STAGES).read_text())
    solved = [solved for _, _, solved, *_ in source['trees']]
    assert solved == [trees.RIGHT, trees.WRONG, trees.UNKNOWN]
    names = [f'round0-sums-greedy-{i}-0.js' for i in range(3)]
    rights = [told(tmp_path / 'report' / 'trees' / name)['right'][2] for name in names]
    assert rights == [trees.RIGHT, trees.WRONG, trees.UNKNOWN]


def test_shown_trees_have_right_and_wrong_answers_where_there_are(tmp_path):
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
    source = trees.Source('s', 'S', tmp_path, True)
    sample = trees.sample(source, tmp_path, None)
    assert [entry.index for entry, *_ in sample.shown] == [2, 0, 1, 3]


def test_steps_are_right_where_a_right_answer_is_below():
    steps = trees.Steps()
    problem = {'index': 0, 'question': 'q', 'answer': '1'}
    steps.add(tree(problem, 0, [('1', 0.5, True), ('2', 0.25, False)]))
    steps.add(tree(problem, 1, [('2', 0.25, False)]))
    # Value 1 of 3 visits; answers are apart, and what no PPM has seen.
    (first, second) = steps.q
    assert first == ([pytest.approx(1 / 3)], [True]) and second == ([0.5], [False])
    assert [sorted(right) for _, right in steps.scores] == [[True], [False]]
    assert steps.answers == [([0.5, 0.25], [True, False]), ([0.25], [False])]
    assert steps.endings == {-1: 1, 1: 2, 0: 2}


# --- the command ---


def test_two_runs_side_by_side(tmp_path, workdir, capsys):
    other = tmp_path / 'other'
    workdirs.finished(other, rounds=1, gain=0.2)
    assert command.main([str(workdir), str(other)]) == 0
    path = workdir / 'report' / 'against-other.html'
    assert capsys.readouterr().out.strip() == str(path)
    page = Page(path.read_text())
    for link in page.links:
        assert link.startswith(('#', 'data:')) or (path.parent / link).is_file(), link
    sources = listed(path.read_text())
    assert {source['name'][:2] for source in sources} == {'a-', 'b-'}
    files = [
        f'{s["file"]}-{index}-{number}.js' for s in sources for index, number, *_ in s['trees']
    ]
    assert len(files) == 18 and all((path.parent / file).is_file() for file in files)
    assert (other / 'report' / 'index.html').exists()
    note = f'round 1: gsm8k, policy alone, other against {workdir.name}: 10 problems won, 0 lost'
    assert note in page.text  # this run has a second round


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (['a', 'b', 'c'], 'WORKDIR'),
        (['--trees=3'], 'WORKDIR'),
        (['a', '--trees=few'], '--trees=few'),
        (['a', '--trees=-1'], '--trees=-1'),
        (['a', '--tree=1'], '--tree=1'),
        (['WORKDIR', '--problems=9999'], '--problems=9999'),
        (['/nowhere'], '/nowhere'),
        (['WORKDIR', 'WORKDIR'], 'twice'),
    ],
)
def test_mistakes_are_told_in_one_line(workdir, arguments, named, capsys):
    assert command.main([a.replace('WORKDIR', str(workdir)) for a in arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith('error: ') and named in text and text.count('\n') == 1
