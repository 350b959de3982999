"""What a search has done so far, told about once a second."""

import collections
import time
from collections.abc import Callable, Collection, Iterable

from rstar_jax.data.record import Record
from rstar_jax.search.config import Config
from rstar_jax.search.nodes import HostTree

# Nothing is said of the time left before so much is done: of the trees; in trees, of a few; or, of
# those that grow beside one another, and so get far at the same time, a rollout of each; but with
# this share of all it is told whatever grows.
FIRST_SHARE = 0.02
FIRST_TREES = 1.0
LAST_SHARE = 0.25
NEARLY = 0.9  # of a tree is done at most while it grows, where its end is not known
RECENT = 30  # times of telling, by which the present speed is known


class Totals:
    """Counts finished trees, and hands the totals to a callback.

    The time left goes by the speed since the first step was done: what came before, compiling and
    prompts, does not come again. The last trees end one by one, and fewer tokens are sampled at a
    time: it is at least what these take for theirs at the present speed, each having as many to
    come for what is left of it as it had for what is done.
    """

    def __init__(self, total: int, counters, callback: Callable[[dict[str, float]], None] | None):
        """Args:
        total: trees to search.
        counters: of the expander.
        callback: gets the totals; None, they are not told.
        """
        self.total, self.counters, self.callback = total, counters, callback
        self.started = self.last = time.monotonic()
        self.done = self.solved = self.nodes = 0
        self._sampled = 0.0  # tokens of finished trees
        # When something was first done, and how much.
        self._begun: tuple[float, float] | None = None
        # The last times of telling, and how many tokens had been sampled.
        self._recent: collections.deque[tuple[float, int]] = collections.deque(maxlen=RECENT)

    def finished(self, record: Record) -> None:
        self.done += 1
        self.solved += record.solved
        self.nodes += len(record.texts)
        self._sampled += record.counters.get('sampled_tokens', 0.0)

    def look(
        self, growing: Collection[HostTree], config: Config, ending: bool, final: bool = False
    ) -> None:
        """Tells, by the trees that are growing; ending: no other will follow them."""
        most = config.rollouts
        # Of a first rollout nobody knows how far it has come: it has as much to come as it had.
        last = [(tree.sampled, max(tree.rollouts, 0.5) / most) for tree in growing]
        under_way, one_each = sum(tree.rollouts for tree in growing) / most, len(growing) / most
        if config.by_level:  # without rollouts: by the tokens of the trees that have ended
            usual, one_each = self._sampled / max(self.done, 1), len(growing)
            sampled = [max(tree.sampled, 1) for tree in growing] if usual else ()
            last = [(count, min(count / usual, NEARLY)) for count in sampled]
            under_way = sum(share for _, share in last)
        self.tick(under_way, final, last if ending else (), one_each)

    def tick(
        self,
        under_way: float,
        final: bool = False,
        last: Iterable[tuple[float, float]] = (),
        one_each: float = 0.0,
    ) -> None:
        """under_way: what is done of the trees in flight, in trees. last: of those that no other
        will follow, the tokens of each and what share of it is done, above 0. one_each: what a
        rollout of every tree in flight comes to, in trees.

        Where others search too, a process may get more than its share of all, or less; one that has
        got nothing tells nothing at its end.
        """
        self.total = self.done if final else max(self.total, self.done)
        now = time.monotonic()
        if self.callback is None or not self.total or (now - self.last < 1.0 and not final):
            return
        self.last = now
        self._recent.append((now, self.counters['sampled']))
        seconds = now - self.started
        sampled, steps = self.counters['sampled'], self.counters['slot_steps']
        self.callback(
            {
                **self.counters,
                'trees_done': self.done,
                'trees_total': self.total,
                'solved': self.solved,
                'nodes': self.nodes,
                'tokens': sampled,
                'tokens_per_second': sampled / max(seconds, 1e-9),
                'slot_use': self.counters['live_slot_steps'] / steps if steps else float('nan'),
                'seconds': seconds,
                'seconds_left': self._left(now, self.done + under_way, last, one_each),
            }
        )

    def _left(
        self, now: float, done: float, last: Iterable[tuple[float, float]], one_each: float
    ) -> float:
        """Seconds; nan while nobody can tell."""
        if self._begun is None and done:
            self._begun = now, done
        latest = LAST_SHARE * self.total
        enough = max(min(max(FIRST_TREES, one_each), latest), FIRST_SHARE * self.total)
        if done >= self.total:
            return 0.0
        if self._begun is None or done < enough or done <= self._begun[1]:
            return float('nan')
        begun, before = self._begun
        every = (self.total - done) * (now - begun) / (done - before)
        (then, first), (_, sampled) = self._recent[0], self._recent[-1]
        if sampled == first:
            return max(every, 0.0)
        to_come = sum(tokens * (1 / share - 1) for tokens, share in last)
        return max(every, to_come * (now - then) / (sampled - first))
