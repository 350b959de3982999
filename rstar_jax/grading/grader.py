"""The main process's side: what is plain is answered here, the rest by bounded worker processes."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from rstar_jax.execution.limits import Limits
from rstar_jax.execution.workers import Workers
from rstar_jax.grading import normalise, plain

_JOBS_PER_CHILD = 2000


class Grader(contextlib.AbstractContextManager):
    """Compares answers in warm, isolated worker processes; a context manager.

    A pair that a worker cannot decide within the limits is not equivalent.

    Args:
      workers: worker processes at most; None for one a core. They start as hard pairs come.
      seconds: time of a processor for one pair (on Linux); by the clock five times as much, or 20
        more, so that a busy machine does not change verdicts.
    """

    def __init__(self, workers: int | None = None, *, seconds: float = 3.0) -> None:
        self.limits = Limits(seconds=seconds)
        self._count = workers
        self._workers: Workers | None = None
        self._keyless: set[str] = set()  # answers of which no worker found a key within the limits
        self._lock = threading.Lock()

    def _ask(self, job: dict) -> Future:
        with self._lock:
            if self._workers is None:
                self._workers = Workers(
                    'rstar_jax.grading.judge',
                    count=self._count,
                    jobs_per_child=_JOBS_PER_CHILD,
                    isolation='weak',  # what runs there is our own
                    limits=self.limits,
                    finish=_finish,
                )
        return self._workers.submit(job)

    def submit(self, answer: str, truth: str | Sequence[str]) -> Future[bool]:
        """Is the answer (LaTeX or plain, one box) equivalent to the truth, or to one of several?"""
        cleaned = _clean(answer)
        hard = []
        for one in [truth] if isinstance(truth, str) else list(truth):
            pair = plain.matched(cleaned, _clean(one))
            found = plain.verdict(*pair)
            if found:
                return _done(True)
            if found is None:
                hard.append(self._ask({'pair': list(pair)}))
        if not hard:
            return _done(False)
        return hard[0] if len(hard) == 1 else _any(hard)

    def equivalent(self, answer: str, truth: str | Sequence[str]) -> bool:
        """`submit`, waited for."""
        return self.submit(answer, truth).result()

    def classes(self, answers: Sequence[str]) -> list[int]:
        """Equivalence classes: the number of each answer's class, in order of first appearance.

        Work is linear in the number of different answers: each is reduced to a key by its values,
        and compared with the first of its key; only keys without values (relations, unparsable
        ones) are compared in pairs.
        """
        cleaned = [_clean(answer) for answer in answers]
        distinct = list(dict.fromkeys(cleaned))
        if len(distinct) < 2:
            return [0] * len(cleaned)
        short = (text for text in distinct if 0 < len(text) <= plain.LONGEST)
        asked = [text for text in short if text not in self._keyless]
        keys = {text: self._ask({'answer': text}) for text in asked}
        key_of = {text: (keys[text].result() if text in keys else None) for text in distinct}
        self._keyless |= {text for text in asked if not key_of[text]}
        groups: dict[str, list[str]] = {}
        for text in distinct:
            name = key_of[text] or f'only:{text}'
            while name in groups and not self._same(text, groups[name][0]):
                name += "'"
            groups.setdefault(name, []).append(text)
        heads: list[tuple[str, int]] = []
        class_of: dict[str, int] = {}
        for name, members in groups.items():
            found = self._joined(members[0], name, heads)
            if found is None:
                found = len({number for _, number in heads})
            heads.append((members[0], found))
            for member in members:
                class_of[member] = found
        order: dict[int, int] = {}
        return [order.setdefault(class_of[text], len(order)) for text in cleaned]

    def _same(self, one: str, other: str) -> bool:
        """Whether two cleaned answers are equivalent."""
        found = plain.verdict(one, other)
        return self._ask({'pair': [one, other]}).result() if found is None else found

    def _joined(self, head: str, name: str, heads: list[tuple[str, int]]) -> int | None:
        """The class that a group joins although its key differs from that class's."""
        if not head:
            return next((number for other, number in heads if not other), None)
        asked = []
        for other, number in heads:
            same = plain.verdict(head, other)
            if same:
                return number
            if same is None and _odd(head) and _odd(other):
                asked.append((self._ask({'pair': [head, other]}), number))
        return next((number for future, number in asked if future.result()), None)

    def close(self) -> None:
        """End the workers."""
        if self._workers is not None:
            self._workers.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _odd(text: str) -> bool:
    """Forms that may equal one of another outer form: relations, intervals, tuples, matrices."""
    marks = ('<', '>', '=', '\\le', '\\ge', '[', ']', ',', '\\infty', 'matrix', 'mathbb', '\\pm')
    return any(mark in text for mark in marks)


@functools.lru_cache(maxsize=20_000)
def _clean(text: str) -> str:
    text = str(text)
    if len(text) > 4 * plain.LONGEST:
        return text.strip()
    return normalise.clean(text)


def _finish(report: dict) -> tuple[Any, bool]:
    if 'key' in report:
        return str(report['key']), True
    return bool(report.get('equal')), 'killed' not in report


def _done(value: bool) -> Future[bool]:
    future: Future[bool] = Future()
    future.set_result(value)
    return future


def _any(futures: list[Future]) -> Future[bool]:
    """True as soon as one is, False when all are; an error as soon as there is one."""
    whole: Future[bool] = Future()
    left = [len(futures)]
    lock = threading.Lock()

    def done(one: Future) -> None:
        with lock:
            left[0] -= 1
            if whole.done():
                return
            if one.cancelled():
                answer = False
            elif one.exception() is not None:
                whole.set_exception(one.exception())
                return
            else:
                answer = one.result()
            if answer:
                whole.set_result(True)
            elif not left[0]:
                whole.set_result(False)

    for future in futures:
        future.add_done_callback(done)
    return whole


_SHARED: list[Grader] = []
_SHARED_LOCK = threading.Lock()
_workers: int | None = None


def set_workers(count: int) -> None:
    """How many worker processes `shared` has, 0: one a core; before it is first used."""
    global _workers
    _workers = count or None


def shared() -> Grader:
    """The grader of this process; its workers stay to the end."""
    with _SHARED_LOCK:
        if not _SHARED:
            _SHARED.append(Grader(_workers))
        return _SHARED[0]


def equivalent(answer: str, truth: str | Sequence[str]) -> bool:
    """Is the answer equivalent to the truth, or to one of several accepted ones?"""
    return shared().equivalent(answer, truth)


def equivalent_many(pairs: Sequence[tuple[str, str | Sequence[str]]]) -> list[bool]:
    """`equivalent` of many (answer, truth) pairs, in parallel."""
    grader = shared()
    return [future.result() for future in [grader.submit(*pair) for pair in pairs]]


def classes(answers: Sequence[str]) -> list[int]:
    """Class number of each answer, equivalent answers sharing one (for majority votes)."""
    return shared().classes(answers)
