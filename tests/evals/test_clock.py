"""Seconds of an evaluation, kept on disk as they pass."""

import json

from rstar_jax.evals import clock


def test_seconds_are_kept_while_trees_end(tmp_path, monkeypatch):
    """Once in a while, for who is killed without notice; of what is not kept, those of before."""
    now, path = [0.0], tmp_path / 'seconds.json'
    monkeypatch.setattr(clock.Clock, '_now', staticmethod(lambda: now[0]))
    both = clock.Clock([path, None], [1.0, 5.0])
    assert both.seconds == [1.0, 5.0]
    for at, kept in ((0.5, None), (1.25, 2.25), (2.0, 2.25)):
        now[0] = at
        both.tick(0, 3)
        assert (json.loads(path.read_text())['seconds'] if path.exists() else None) == kept
    both.tick(1, 3)
    assert both.seconds == [1.0 + 2.0 * 9 / 12, 5.0 + 2.0 * 3 / 12]
    assert clock.Clock([path], [1.0]).seconds == [2.25]
