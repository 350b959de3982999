"""What a small run tells of its trees and examples."""

import dataclasses

import pytest

from rstar_jax import data
from rstar_jax.job import ledger
from rstar_jax.plan import small_run
from rstar_jax.settings.errors import UserError
from tests.evals.trees import tree


def test_a_small_run_tells_what_trees_are_like(tmp_path):
    round_ = tmp_path / 'round2'
    with data.TreeStore(round_ / 'search') as store:
        for index, counters in enumerate([(100.0, 130.0, 90.0), (300.0, 310.0, 110.0)]):
            names = 'sampled_tokens', 'policy_computed', 'ppm_computed'
            problem = {'index': index, 'question': 'q', 'answer': '1'}
            record = tree(problem, 0, [('1', 0.5, index == 1)])
            # The prompts begin alike; the longest path is 2 + 2 * 3 more.
            tokens = [[1, 2, 3, 10 + index, 20], *[[7] * (2 + index)] * (len(record.texts) - 1)]
            about = {'counters': dict(zip(names, counters)), 'tokens': tokens}
            store.append(dataclasses.replace(record, **about))
    ledger.write_json(round_ / 'search' / 'done.json', {'figures': {'slot_use': 0.8}})
    figures = {'problems': 2, 'sft': 4, 'pairs': 0}
    ledger.write_json(round_ / 'curate' / 'done.json', {'seconds': 5.0, 'figures': figures})
    trained = {'figures': {'tokens': 900, 'examples': 3, 'held_out': 1}}
    ledger.write_json(round_ / 'policy' / 'done.json', trained)
    ledger.write_json(tmp_path / 'config.json', {'round2': {'training.sft.epochs': 3}})
    strategies = {'greedy': 7.0, 'mcts': 60.0, 'dvts': 3.0}  # of the last one no trees are left
    row = {
        'problems': 10,
        'strategies': {name: {'tokens_per_problem': n} for name, n in strategies.items()},
    }
    ledger.write_json(round_ / 'eval' / 'results.json', {'benchmarks': {'sums': row}})
    for name, told in {'greedy': (35.0, 42.0, 0.0), 'mcts': (150.0, 160.0, 290.0)}.items():
        with data.TreeStore(round_ / 'eval' / 'sums' / name) as store:
            for index in range(2):
                problem = {'index': index, 'question': 'q', 'answer': '1'}
                counters = dict(zip(('sampled_tokens', 'policy_computed', 'ppm_computed'), told))
                record = tree(problem, 0, [('1', 0.5, True)])
                store.append(dataclasses.replace(record, counters=counters))
    ledger.write_json(tmp_path / 'round3-old' / 'curate' / 'done.json', {})  # no round
    number, found = small_run.statistics(tmp_path)
    assert number == 2
    assert found == small_run.Statistics(
        sampled=200.0,
        path=8,
        read=20.0,
        scored=100.0,
        solved=0.5,
        examples={'sft': 1.5},
        tokens={'sft': 100.0},
        curate=2.5,
        evaluated=700.0,
        trees=2,
        slot_use=0.8,
        # 7 for each 35 that greedy samples; 10 read and 290 scored for each 150.
        evaluated_read=70 * 0.2 + 600 * 2.0,
    )


@pytest.mark.parametrize(
    ('asked', 'trees', 'solved', 'sampled'),
    [
        ({}, 10, 0.6, 1000.0),
        ({'search.trees': 2}, 14, 0.8, (10 * 1000 + 4 * 4000) / 14),
        ({'search.mean_tokens': 2100}, 14, 0.8, (10 * 1000 + 4 * 4000) / 14),
    ],
)
def test_further_trees_of_unsolved_problems_are_no_part_of_the_means(
    tmp_path, asked, trees, solved, sampled
):
    round_ = tmp_path / 'round4'
    longer = [(range(10), 1000, 6), (range(6, 10), 4000, 8), (range(8, 10), 8000, 8)]
    with data.TreeStore(round_ / 'search') as store:
        for number, (indices, tokens, right) in enumerate(longer):
            for index in indices:
                problem = {'index': index, 'question': 'q', 'answer': '1'}
                answers = [('1', 0.5, index < right)]
                store.append(tree(problem, number, answers, tokens=float(tokens)))
    figures = {'problems': 10, 'sft': 8, 'pairs': 0}
    ledger.write_json(round_ / 'curate' / 'done.json', {'seconds': 1.0, 'figures': figures})
    ledger.write_json(tmp_path / 'config.json', {'round4': asked})
    _, found = small_run.statistics(tmp_path)
    assert (found.trees, found.solved, found.sampled) == (trees, solved, pytest.approx(sampled))


def test_without_a_round_that_has_curated_the_folder_is_named(tmp_path):
    with pytest.raises(UserError) as error:
        small_run.statistics(tmp_path)
    assert error.value.argument == str(tmp_path)
