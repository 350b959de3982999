"""Whole searches: trees a minute, what is computed twice, what waits; against a plain loop.

Without --model a tiny model is made and trained on demonstrations (a minute), and searches word
problems; with one (Hugging Face folder, hub name or .gguf), --problems names its problems. The PPM
is the policy's decoder with a random value head: its scores mean nothing, its work is the same.

    policy_tokens_per_unique   positions that the policy was run on / each tree's prompt, every
                               sampled token and every output of a kept node, each once; without
                               drafts that are wrong, of which tokens_per_slot_step tells
    ppm_tokens_per_unique      the same for the PPM / each prompt and each scored node once
    slot_use                   slots with a candidate that is being written / slot-steps
    slot_use_while_left        the same, until the last problem was begun
    tokens_per_slot_step       sampled in each slot with a candidate: one, and drafts that are right
    device_wait_share          time in which nothing is left to decode until some program has run
    tree_ops_share             time in walk, expansion and backup, by the calls with no chunk ahead
    device_memory_growth       bytes on the device at the end / after a tenth of the trees
    peak_over_plan             most bytes in use beside the weights / the memory plan's most; on
                               CPUs the process's, so what compiling takes is among them
    processor_use              processor time of this process / the time of all cores
    compiles_after_warmup      in the measured search, after one over --warmup other problems;
    compiles_beside            in its time, in a thread
    ratio_vs_plain_loop        trees a minute against `_plain_loop`, same problems, same run;
                               ..._at_least where it was ended after --plain_at_most times our time

Seconds that wait for tracing and compiling are not counted, on neither side.
"""

import collections
import contextlib
import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from rstar_jax import data, models, parallel, search, training
from rstar_jax.bench import _plain_loop
from rstar_jax.data import arithmetic
from rstar_jax.job import progress
from rstar_jax.models import tiny
from rstar_jax.parallel import compiled
from rstar_jax.search import begin, engine, loop
from rstar_jax.search import totals as totals_lib
from rstar_jax.search.budget import Budget
from rstar_jax.search.children import Judge
from rstar_jax.search.engine.compiled import COMPILED
from rstar_jax.search.share import Queue
from rstar_jax.settings.errors import UserError

# What is done before a function runs that is new to jax; the compiler proper.
COMPILER = '/jax/core/compile/backend_compile_duration'
COMPILING = ('/jax/core/compile/jaxpr_trace_duration', *compiled.COMPILING)
Span = tuple[str, float, float, str]  # event, start, end, function
# How the tiny model is trained: enough to write steps that run, and to be right now and then.
DEMONSTRATIONS = 6400
TRAINING = {'epochs': 1, 'batch_size': 32, 'length': 256, 'micro_batch': 16, 'learning_rate': 3e-3}


@dataclasses.dataclass(frozen=True)
class Settings:
    """count: problems measured, one tree each; warmup: problems searched before, the next ones of
    the file. plain: whether the plain loop runs, too; plain_at_most: the multiple of our time after
    which it is ended, 0 for never. The others are those of a search.
    """

    model: str = ''
    problems: str = ''
    count: int = 16
    warmup: int = 16
    rollouts: int = 4
    candidates: int = 8
    step_tokens: int = 256
    error_threshold: int = 2
    temperature: float = 0.7
    repetition: int = 48
    ppm: bool = True
    plain: bool = True
    plain_at_most: float = 0.0
    slots: int = 0
    drafts: int = 7
    trees_in_flight: int = 0
    dtype: str = ''
    seed: int = 0

    def __post_init__(self):
        if self.count < 1:
            raise UserError('--count', self.count, 'needs at least 1')
        if bool(self.model) != bool(self.problems):
            raise UserError('--model', self.model, 'goes with --problems', 'give both, or neither')

    @property
    def config(self) -> search.Config:
        """Of the search."""
        shared = {field.name for field in dataclasses.fields(search.Config)}
        own = {key: value for key, value in vars(self).items() if key in shared}
        return search.Config(**own, prompt='few_shot' if self.model else 'sft')


@dataclasses.dataclass(frozen=True)
class Task:
    """What both loops do: a tree of each problem, by a policy and perhaps a PPM."""

    policy: models.Policy
    ppm: models.PPM | None
    config: search.Config
    problems: Sequence[dict]
    seed: int = 0


def run(settings: Settings) -> dict[str, float]:
    """The figures of ours; with `plain` those of the plain loop, and the ratio."""
    count = settings.count
    policy, found = _given(settings)
    ppm = random_ppm(policy, settings.seed) if settings.ppm else None
    task = Task(policy, ppm, settings.config, found[:count], settings.seed)
    if settings.warmup:
        measured(Ours, dataclasses.replace(task, problems=found[count:]), 'warm-up')
    ours = measured(Ours, task, 'search')
    figures = ours.figures() | {'compiles_after_warmup': len(ours.compiled)}
    # The plain loop may take an hour: what is known is told before.
    print(f'search: {figures}; compiled after the warm-up: {ours.compiled}', flush=True)
    if settings.plain:
        most = settings.plain_at_most * ours.seconds or math.inf
        theirs = measured(_plain_loop.LockStep, task, 'plain loop', most)
        ratio = theirs.seconds / ours.seconds
        if len(theirs.records) < count:
            return figures | {'ratio_vs_plain_loop_at_least': ratio}
        figures['ratio_vs_plain_loop'] = ratio
        figures |= {f'plain_{key}': value for key, value in theirs.figures().items()}
    return figures


class Ours(loop.Loop):
    """The search as it is."""

    expander = engine.Engine


def measured(
    kind: type[loop.Loop], task: Task, label: str = '', most: float = math.inf
) -> 'Measured':
    """One search with workers of its own, as they remember what they ran.

    label: before what is told of its progress; '' tells nothing. most: seconds after which a plain
    loop is ended.
    """
    with search.Workers.start(task.config) as workers:
        return Measured(kind, task, workers, progress.Line(label) if label else None, most)


def _given(settings: Settings) -> tuple[models.Policy, list[dict]]:
    """The policy and the problems: those that are measured, then those of the warm-up."""
    count = settings.count + settings.warmup
    if settings.model:
        found = data.load_problems(settings.problems, count)
        if len(found) < count:
            needs = f'holds {len(found)} problems, and {count} are to be searched'
            raise UserError('--problems', settings.problems, needs, 'lower --count or --warmup')
        return models.load(settings.model, settings.dtype or None), found
    world = arithmetic.world(DEMONSTRATIONS, train=count, test=0)
    how = training.settings('sft', TRAINING)
    with tempfile.TemporaryDirectory() as folder:
        start = tiny.policy(arithmetic.vocabulary())
        policy, _ = training.sft(start, world.demonstrations, how, folder)
    return policy, world.train


def random_ppm(policy: models.Policy, seed: int) -> models.PPM:
    """The policy's decoder with a random value head."""
    scorer = models.init_ppm(policy, seed)
    dim = policy.config.embed_dim
    weight = np.random.default_rng(seed).standard_normal((1, dim), np.float32) / dim**0.5
    scorer.params['value_head']['weight'] = jax.numpy.asarray(weight)
    return scorer


class Measured:
    """One search that has run: its records, trees, counters and times (seconds, no compiling)."""

    def __init__(self, kind, task: Task, workers: search.Workers, line, most: float):
        """See `measured`."""
        self.task = task
        problems, config, tokenizer = task.problems, task.config, task.policy.tokenizer
        mesh = parallel.local_mesh(devices=jax.local_devices()[:1])
        COMPILED.wait()  # what the search before has left
        with compiling() as (spans, beside):
            start, busy = time.perf_counter(), time.process_time()
            how = {'seed': task.seed, 'config': config, 'tokenizer': tokenizer}
            self.trees = [begin.new_tree(problem, 0, **how) for problem in problems]
            template = begin.template(config, tokenizer)
            peak = parallel.memory.watch_peak(mesh)
            expander = kind.expander(task.policy, task.ppm, config, mesh, len(problems), template)
            show = line and (lambda now: line.show(*progress.of_search(now)))
            totals = totals_lib.Totals(len(problems), expander.counters, show)
            lease = [(tree.problem, tree.number) for tree in self.trees]
            made = {tree.key: tree for tree in self.trees}
            queue = Queue(iter([lease]), Budget(config, workers.grader.classes), totals)
            judge = Judge(config, workers, expander)
            search_loop = kind(queue, lambda of, number: made[of.index, number], expander, judge)
            search_loop.enough = lambda: time.perf_counter() - start - covered(spans) >= most
            self.calls: collections.Counter = collections.Counter()
            self.timed: dict[str, list[float]] = collections.defaultdict(list)
            self.while_left: collections.Counter = collections.Counter()
            search_loop.fill = self._until_all_are_begun(search_loop)
            forest, idle = search_loop.forest, lambda: not search_loop.chunks
            forest.advance = self._watch('trees', forest.advance, idle)
            waiting = self._watch('waiting', search_loop.await_workers)
            search_loop.await_workers = waiting
            self.records, self.held = {}, []
            for record in search_loop.run():
                self.records[record.key] = record
                self.held.append(sum(x.nbytes for x in jax.live_arrays()))
            self.seconds = time.perf_counter() - start
        self.busy = (time.process_time() - busy) / (self.seconds * (os.cpu_count() or 1))
        plan = getattr(expander, 'plan', None)
        self.over_plan = peak() / plan.most if plan else math.nan
        self.compiling = covered(spans)
        self.seconds -= self.compiling
        self.compiled, self.beside = (
            [name for event, *_, name in found if event == COMPILER] for found in (spans, beside)
        )
        self.counters, self.encode = expander.counters, expander.encode
        if line:
            line.say(f'{len(self.records)} trees in {progress.clock(self.seconds)}')

    def _watch(self, name: str, f, when=lambda: True):
        """Times calls of `f`, to their end, and counts all; `when` no call would be waited for."""

        def watched(*arguments):
            self.calls[name] += 1
            if not when():
                return f(*arguments)
            start = time.perf_counter()
            result = jax.block_until_ready(f(*arguments))
            self.timed[name].append(time.perf_counter() - start)
            return result

        return watched

    def _share(self, name: str) -> float:
        """Of the whole time, by the calls that were timed."""
        timed = self.timed[name]
        return float(np.mean(timed)) * self.calls[name] / self.seconds if timed else 0.0

    def _until_all_are_begun(self, search_loop):
        fill = search_loop.fill

        def watched():
            if search_loop.queue.lines:
                self.while_left = collections.Counter(search_loop.expander.counters)
            fill()

        return watched

    def unique(self) -> int:
        """Tokens that the policy could not do without."""
        return sum(
            tree.sampled + sum(len(node.tokens) - len(node.step.tokens) for node in tree.nodes)
            for tree in self.trees
        )

    def unique_scored(self) -> int:
        """Tokens that the PPM could not do without."""
        return sum(
            len(tokens)
            for record in self.records.values()
            for node, tokens in enumerate(record.tokens)
            if node == 0 or not math.isnan(record.score[node])
        )

    def figures(self) -> dict[str, float]:
        """By their names in the tables of this bench."""
        figures = {
            'trees_per_minute': 60 * len(self.records) / self.seconds,
            'policy_tokens_per_unique': self.counters['policy_computed'] / self.unique(),
        }
        if self.task.ppm is not None:
            computed = self.counters['ppm_computed']
            figures['ppm_tokens_per_unique'] = computed / self.unique_scored()
        if left := self.while_left['slot_steps']:
            figures['slot_use_while_left'] = self.while_left['live_slot_steps'] / left
        return figures | {
            'slot_use': self.counters['live_slot_steps'] / self.counters['slot_steps'],
            'tokens_per_slot_step': self.counters['sampled'] / self.counters['live_slot_steps'],
            'device_wait_share': self._share('waiting'),
            'tree_ops_share': self._share('trees'),
            'peak_over_plan': self.over_plan,
            'processor_use': self.busy,
            'device_memory_growth': self.held[-1] / self.held[len(self.held) // 10],
            'tokens_per_second': self.counters['sampled'] / self.seconds,
            'seconds': self.seconds,
            'sampled_tokens': self.counters['sampled'],
            'unique_tokens': self.unique(),
            'prompt_tokens': sum(len(tree.nodes[0].tokens) for tree in self.trees),
            'nodes': sum(len(record.texts) for record in self.records.values()),
            'solved': sum(record.solved for record in self.records.values()),
            'compile_seconds': self.compiling,
            'compiles_beside': len(self.beside),
        }


@contextlib.contextmanager
def compiling() -> Iterator[tuple[list[Span], list[Span]]]:
    """Collects whatever is traced or compiled in the block, and what is so beside it."""
    spans: tuple[list[Span], list[Span]] = [], []

    def heard(event: str, start: float, end: float, *, fun_name: str = '', **_: Any) -> None:
        if event in COMPILING:
            spans[not compiled.waited_for()].append((event, start, end, fun_name))

    jax.monitoring.register_event_time_span_listener(heard)
    try:
        yield spans
    finally:
        jax.monitoring.unregister_event_time_span_listener(heard)


def covered(spans: list[Span]) -> float:
    """Seconds in at least one of the spans: tracing one function traces others in it."""
    total, upto = 0.0, 0.0
    for _, start, end, _ in sorted(spans, key=lambda span: span[1]):
        total += max(0.0, end - max(start, upto))
        upto = max(upto, end)
    return total
