"""A round's search: its passes, and what is told of them."""

import collections

from rstar_jax import configs, data, ledger, search, searching, sources
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
                problems, expander=search.Scripted(random_texts, random_score), **given
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
