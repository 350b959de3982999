"""What a search has done so far, told about once a second."""

import time
from collections.abc import Callable

from rstar_jax.search.record import Record


class Totals:
    """Counts finished trees, and hands the totals to a callback."""

    def __init__(self, total: int, counters, callback: Callable[[dict[str, float]], None] | None):
        """Args:
        total: trees to search.
        counters: of the expander.
        callback: gets the totals; None, they are not told.
        """
        self.total, self.counters, self.callback = total, counters, callback
        self.started = self.last = time.monotonic()
        self.done = self.solved = self.nodes = 0

    def finished(self, record: Record) -> None:
        self.done += 1
        self.solved += record.solved
        self.nodes += len(record.texts)

    def tick(self, under_way: float, final: bool = False) -> None:
        """under_way: what is done of the trees in flight, in trees."""
        now = time.monotonic()
        if self.callback is None or (now - self.last < 1.0 and not final):
            return
        self.last = now
        seconds = now - self.started
        sampled = self.counters['sampled']
        done = self.done + under_way
        left = (self.total - done) * seconds / done if done else float('nan')
        self.callback(
            {
                **self.counters,
                'trees_done': self.done,
                'trees_total': self.total,
                'solved': self.solved,
                'nodes': self.nodes,
                'tokens': sampled,
                'tokens_per_second': sampled / max(seconds, 1e-9),
                'slot_use': self.counters['live_slot_steps'] / max(self.counters['slot_steps'], 1),
                'seconds': seconds,
                'seconds_left': left,
            }
        )
