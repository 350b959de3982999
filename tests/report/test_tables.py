"""What the tables and plots of a run's results count."""

from rstar_jax import report
from rstar_jax.report import paper, plots, run, stages, tables
from rstar_jax.stages import STAGES
from tests.report import workdirs
from tests.report.workdirs import benchmark, results


def test_two_runs_are_compared_at_the_latest_round_that_both_have(tmp_path):
    shares = {'long': {None: 0.1, 0: 0.2, 2: 0.5, 4: 0.9}, 'short': {None: 0.1, 0: 0.2, 2: 0.6}}
    for name, rounds in shares.items():
        workdirs.write(tmp_path / name / 'config.json', {})
        for number, share in rounds.items():
            folder = 'base' if number is None else f'round{number}'
            path = tmp_path / name / folder / 'eval' / 'results.json'
            workdirs.write(path, results(number, sums=benchmark(share)))
    runs = [run.read(tmp_path / name, STAGES) for name in ('long', 'short')]
    (note,) = tables.side_by_side(*runs)
    assert note.startswith('round 2: sums, policy alone, short against long: 10 problems won, 0 lo')
    (note,) = tables.side_by_side(*runs[::-1])
    assert note.startswith('round 2: sums, policy alone, long against short: 0 problems won, 10 lo')
    workdirs.write(tmp_path / 'none' / 'config.json', {'round1': {}})
    assert not [*tables.side_by_side(runs[0], run.read(tmp_path / 'none', STAGES))]


def test_problems_are_solved_in_all_rounds_so_far_where_later_ones_leave_them_out(tmp_path):
    """The second round solves 10 of the 40 that the first has not."""
    root, keys = tmp_path / 'run', {'data.solved': 1, 'data.problems': 'arithmetic'}
    rounds = {1: ((100, 60), (100, 60)), 2: ((40, 10), (100, 70))}
    for number, (own, so_far) in rounds.items():
        figures = {'trees': 6, 'tokens': 9, 'nodes': 9, 'tokens_per_second': 1.0}
        figures |= dict(zip(('problems', 'solved'), own))
        figures['so_far'] = dict(zip(('problems', 'solved'), so_far))
        workdirs.done(root / f'round{number}' / 'search', 1, **figures)
    for solved, more in ((1, 'rounds 1 to 2'), (0, 'round 2')):
        settings = {f'round{number}': keys | {'data.solved': solved} for number in rounds}
        workdirs.write(root / 'config.json', settings)
        made = run.read(root, STAGES)
        assert stages.training_solved(made) == {1: (60, 100), 2: (70, 100)}
        tiles = {what: (part, more) for what, part, more in stages.headlines(made)}
        assert tiles['training problems solved'] == ('70.0 %', f'70 of 100, {more}')
        (plot,) = plots.found(made, [], tmp_path)
        assert ('paper' in plot.svg) == (not solved)
        assert ('searched so far' in plot.note) == bool(solved)


def test_columns_that_need_it_are_explained(tmp_path):
    judge = {'pairs': 9, 'problems': 5, 'auc': 0.9, 'auc_likelihood': 0.6}
    judge['interval95'] = dict.fromkeys(('auc', 'auc_likelihood'), (0.5, 1.0))
    row = benchmark(0.2, 0.5)
    row['strategies'] = {'mcts': {**row, 'judge': judge}}
    text = ' '.join(tables.accuracy_notes([results(1, sums=row)]))
    assert 'All answers: those of all trees vote, weighted by their PPM scores; weighted: ' in text
    assert "likelihood: how often the policy's own does" in text
    assert 'All answers' not in ' '.join(tables.accuracy_notes([results(0, sums=benchmark(0.2))]))
    for rounds in ('own', 'all'):
        for number in (1, 2):
            workdirs.done(tmp_path / f'round{number}' / 'curate', 1, trees=5)
        settings = {f'round{number}': {'curate.rounds': rounds} for number in (1, 2)}
        workdirs.write(tmp_path / 'config.json', settings)
        note = stages.found_note(run.read(tmp_path, STAGES))
        assert note.startswith('Each column is of the trees of its round and of those b') == (
            rounds == 'all'
        )


def test_tokens_of_new_problems_are_told_beside_those_of_the_search(tmp_path):
    figures = {'written': 9, 'new': 3, 'kept': 2, 'answers differ': 1, 'not ended': 6}
    for number in (1, 2):
        folder = tmp_path / f'round{number}'
        workdirs.done(folder / 'synthesize', 1, **figures, tokens=2500 * number)
        counts = {'trees': 6, 'problems': 5, 'solved': 3, 'nodes': 9, 'tokens_per_second': 1.0}
        counts['so_far'] = {'problems': 5, 'solved': 3}
        workdirs.done(folder / 'search', 1, tokens=100, **counts)
    workdirs.write(tmp_path / 'config.json', {})
    made = run.read(tmp_path, STAGES)
    used = stages.tokens(made)
    assert used == {
        'synthesize': {1: 2500, 2: 5000},
        'search': {1: 100, 2: 100},
        'training': {},
        'evaluation': {},
    }
    texts = [text for _, name, _, text in stages.table(made) if name == 'synthesize']
    dropped = '; dropped: 1 answers differ, 6 not ended'
    assert texts == [
        f'2 of 9 written problems kept, 2,500 tokens generated{dropped}',
        f'2 of 9 written problems kept, 5,000 tokens generated{dropped}',
    ]
    assert 'synthesize' in next(x for x in plots.cost(made, tmp_path) if x.name == 'tokens').svg


def test_the_papers_figures_lie_at_its_rounds():
    """As far as the run has come; that of its base model, of which no search is told, at ours."""
    assert plots._until(paper.ALONE['gsm8k'], [-1, 0, 1, 2]) == [(-1, 91.6), (1, 88.4), (2, 89.1)]
    assert plots._until(paper.SEARCH['gsm8k'], [0, 1]) == [(1, 90.9)]
    assert plots._until(None, [1]) == []
    assert {len(row) for table in (paper.ALONE, paper.SEARCH) for row in table.values()} == {5}


def test_time_and_tokens_of_all_stages_are_told(tmp_path):
    workdirs.finished(tmp_path)
    made = run.read(tmp_path, STAGES)
    seconds = sum(stage.seconds for stage in made.stages)
    assert seconds == 3 * 37 + 61 + 122 + 2 * (2 + 30 + 300 + 1)
    used = 3 * 123_450 + 2 * (56_003 + 900 * (40 + 20))
    assert sum(x for row in stages.tokens(made).values() for x in row.values()) == used
    *_, time = stages.headlines(made)
    assert time == ('time, min:s', '16:00', f'{used / 1000:.1f} thousand tokens')
    assert stages.table(made)[-1][2] == time[1]


def test_first_is_told_where_the_latest_round_is_and_where_it_began(tmp_path):
    """The search of the latest round that has one, which may be another."""
    rows = {None: benchmark(0.1), 0: benchmark(0.2), 1: benchmark(0.3, 0.5), 2: benchmark(0.4)}
    found = tuple(results(number, sums=row) for number, row in rows.items())
    alone, searched = stages.headlines(run.Run(tmp_path, STAGES, {}, (), found, {}, {}))
    assert alone == ('sums, policy alone', '40.0 %', 'round 2; base: 10.0 %')
    more = 'round 1, majority of 8 trees; any right: 90.0 %'
    assert searched == ('sums, with search', '50.0 %', more)
    (only,) = stages.headlines(run.Run(tmp_path, STAGES, {}, (), found[1:2], {}, {}))
    assert only == ('sums, policy alone', '20.0 %', 'start, 100 problems')


def test_two_runs_of_one_name_are_told_apart(tmp_path):
    roots = [tmp_path / name / 'run' for name in ('first', 'second')]
    for root, share in zip(roots, (0.25, 0.5)):
        workdirs.write(root / 'round1' / 'eval' / 'results.json', results(1, sums=benchmark(share)))
    path = report.write(roots[0], STAGES, *roots[1:])
    assert path == roots[0] / 'report' / 'against-second-run.html'
    text = path.read_text()
    assert 'round 1: sums, policy alone, second/run against first/run: 25 problems' in text
    assert text.count('first/run') > 2
