"""What the tables and plots of a run's results count."""

from rstar_jax.report import run, tables
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
    runs = [run.read(tmp_path / name) for name in ('long', 'short')]
    (note,) = tables.side_by_side(*runs)
    assert note.startswith('round 2: sums, policy alone, short against long: 10 problems won, 0 lo')
    (note,) = tables.side_by_side(*runs[::-1])
    assert note.startswith('round 2: sums, policy alone, long against short: 0 problems won, 10 lo')
    workdirs.write(tmp_path / 'none' / 'config.json', {'round1': {}})
    assert not [*tables.side_by_side(runs[0], run.read(tmp_path / 'none'))]
