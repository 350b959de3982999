"""Which sizes of a decode step are compiled, and which one is being compiled beside the search.

A size that has more room than is wanted gives the same steps, only later. So a search goes on with
one that is compiled, and a better one is compiled meanwhile in a thread. On a TPU that takes the
search no time; on a CPU the two share the cores; on a GPU XLA tries kernels between the chunks.
"""

import collections
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

from rstar_jax.parallel import compiled, memory

# A smaller size is compiled when it would have saved so many times what compiling takes: whatever
# comes, no more is lost than a few times the best choice.
WORTH = 1.0


class Size(NamedTuple):
    """A jitted chunk of decoding, and what its arguments' shapes follow from.

    room: positions of a path. others: a hash of all shapes that are the same in a whole search,
    and of what of a process's programs it finds. cost: by `sizes.step_cost`.
    """

    step: Any
    slots: int
    room: int
    others: int
    cost: float


class Compiler:
    """What this process has compiled, in all its searches, of several threads too.

    Attributes:
      ready: the sizes that are compiled; the longest took so many `seconds`.
      missed: of the others, the seconds that they would have saved.
      coming: the one that is being compiled. Others do not queue: a search that ends leaves no more
        than one behind.
    """

    def __init__(self):
        self.ready: set[Size] = set()
        self.seconds = 0.0
        self.missed: collections.Counter[Size] = collections.Counter()
        self.coming: tuple[Size, futures.Future] | None = None
        self._failed: set[Size] = set()
        self._lock = threading.RLock()
        self._pool = futures.ThreadPoolExecutor(1, compiled.BESIDE)

    def choose(
        self,
        possible: list[Size],
        wasted: float,
        arguments: Callable[[Size], Any],
        always: int,
    ) -> int:
        """Of sizes that will do, cheapest first, the index of one that is compiled: or `always`.

        Args:
          wasted: seconds since the chunk before was begun, if a smaller size would have done.
          arguments: gives those of a size; arrays' shapes will do.
          always: the index of the size that will do whatever comes.
        """
        with self._lock:
            self._look()
            chosen = next((i for i, size in enumerate(possible) if size in self.ready), always)
            for size in possible[:chosen]:
                self.missed[size] += wasted * (1 - size.cost / possible[chosen].cost)
                if self.missed[size] > WORTH * self.seconds:
                    self._begin(size, arguments)
            if self.coming and self.coming[0] == possible[chosen]:
                self.wait()
            return chosen

    def expect(self, possible: list[Size], arguments: Callable[[Size], Any]) -> None:
        """Has the first of some sizes compiled beside the search, unless one of them is ready."""
        with self._lock:
            self._look()
            if not self.ready.intersection(possible):
                self._begin(possible[0], arguments)

    def called(self, size: Size, seconds: float) -> None:
        """Notes that a size is compiled; its call was sent off after so many seconds."""
        with self._lock:
            if size not in self.ready:
                self.ready.add(size)
                self.seconds = max(self.seconds, seconds)

    def wait(self) -> None:
        """Waits for what is being compiled."""
        with self._lock:
            if self.coming:
                with compiled.waiting():
                    futures.wait([self.coming[1]])
                self._look()

    def _begin(self, size: Size, arguments: Callable[[Size], Any]) -> None:
        if self.coming is None and size not in self._failed:
            self.coming = size, self._pool.submit(_compile, size.step, arguments(size))

    def _look(self) -> None:
        """Takes what has been compiled since."""
        if self.coming is None or not self.coming[1].done():
            return
        (size, future), self.coming = self.coming, None
        if error := future.exception():  # whoever needs it calls it, and is told
            self._failed.add(size)
            print(f'search: no decode step of {size.slots} slots could be compiled: {error}')
        else:
            self.called(size, future.result())


def _compile(step: Any, arguments: Any) -> float:
    """Compiles a jitted function so that its first call finds it; returns the seconds it took."""
    began = time.monotonic()
    step.lower(*arguments).compile()
    seconds = time.monotonic() - began
    memory.trim()  # what compiling took lies in arenas of its threads
    return seconds


COMPILER = Compiler()
