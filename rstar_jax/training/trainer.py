"""One trainer for all losses.

    examples -> the examples of every step, in an order fixed by the seed     packing.order
    a step   -> micro batches of few shapes                                   packing.Micros
             -> gradients, summed over the micro batches, AdamW               Compiled.accumulate,
                                                                              update; step for one

Whatever a step does is a function of the settings, the examples and the step's number alone, and a
checkpoint holds what is trained and the optimiser's state: so a training that was killed and goes
on ends with the very same parameters. Ctrl-C and SIGTERM end it behind the step in progress, with a
state.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rstar_jax import models, parallel
from rstar_jax.job import hosts, interrupts
from rstar_jax.models.weights import to_host
from rstar_jax.parallel.memory import GIB
from rstar_jax.settings.errors import UserError
from rstar_jax.training import attention, checkpoints, flops, layers, packing
from rstar_jax.training.corpus import Encoded
from rstar_jax.training.defaults import compute_dtype
from rstar_jax.training.log import Log, Progress
from rstar_jax.training.optimiser import learning_rate
from rstar_jax.training.packing import Micros
from rstar_jax.training.step import Compiled

LOOKED = 64  # steps whose shapes are compiled before the first, and see _Run._prepare

MEANS = ('loss', 'accuracy', 'margin', 'level')  # metric sums that are divided by the weight
# Settings that do not change what is learnt: a training may go on with others.
FREE = ('checkpoint_minutes', 'form', 'attention')
LAYOUT = 'stacked layers'  # of the arrays in a state


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learnt from what.

    Attributes:
      model: what it starts from.
      loss: a name in losses.BY_NAME.
      settings: as of training.settings.
      encoded, indices: the examples, and which of them to learn from.
      measure: (compiled, params) -> further metrics, called before and after training, where their
        names get `_before` and `_after`, and every `settings.measure_every` steps, for the step's
        line in `metrics.jsonl`. With keep='best', `held_out_loss` has to be among them.
      begin: (compiled, params) -> the params to train, in the same places; called once, before all.
      new_rows: see optimiser.optimiser.
    """

    model: models.Policy | models.PPM
    loss: str
    settings: Any
    encoded: Encoded
    indices: Sequence[int]
    measure: Callable[[Compiled, Any], dict[str, Any]] = lambda compiled, params: {}
    begin: Callable[[Compiled, Any], Any] = lambda compiled, params: params
    new_rows: Sequence[int] = ()

    def fingerprint(self) -> str:
        """Identifies the training: its settings, its examples and what it starts from."""
        digest = hashlib.sha256(self.loss.encode())
        kept = {key: self.settings[key] for key in sorted(self.settings) if key not in FREE}
        digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
        for i in self.indices:
            digest.update(self.encoded.digests[i])
        for leaf in jax.tree.leaves(self.model.params):
            # A few numbers of each array tell models apart; all of them would take minutes.
            digest.update(f'{leaf.shape}'.encode())
            few = to_host(leaf[(0,) * (leaf.ndim - 1)][:16])
            digest.update(few.astype(np.float32).tobytes())
        return digest.hexdigest()[:16]


def train(
    task: Task,
    fingerprint: str,
    directory: str | os.PathLike,
    mesh=None,
    progress: Progress | None = None,
    release: bool = False,
) -> tuple[Any, Any, dict[str, float]]:
    """Trains, from the newest state in `directory` if there is one.

    Args:
      fingerprint: the task's.
      directory: gets `state/`, with keep='best' `best/`, and `metrics.jsonl`, one line a step.
      mesh: with axes (data, fsdp, tensor); None = the first device.
      progress: called with a dict of numbers after every micro batch.
      release: the training takes the model's arrays over, instead of copying them.

    Returns:
      (float32 parameters, what of them was trained as in lora.split or None without LoRA,
      metrics): of the last step, or with keep='best' of the measured step with the least held-out
      loss, `best_step`, 0 where that is what it began with. The states are left for the caller to
      remove, when the model is on disk.

    Raises:
      UserError: no examples; a loss that is not finite; states of another training.
      Stopped: asked to end, in a block of interrupts.held; the state is on disk.
    """
    settings, config = task.settings, task.model.config
    steps = packing.order(task.encoded, task.indices, settings)
    _check_any(steps, task)
    compiled = Compiled(
        config, settings, task.loss, mesh or parallel.one_device(), len(steps), task.new_rows
    )
    own = {'fingerprint': fingerprint, 'layout': LAYOUT, 'dtype': str(compute_dtype(settings))}
    with contextlib.ExitStack() as stack:
        states, best = stack.enter_context(checkpoints.States(directory)), None
        if settings.keep == 'best':
            kept = stack.enter_context(checkpoints.States(directory, 'best'))
            best = checkpoints.Best(kept, own)
        work = flops.work(config, task.loss, settings.lora)
        sizes = [len(chosen) for _, chosen in steps]
        log = Log(directory, sizes, compiled, settings, work, progress)
        stack.callback(log.flush)
        run = _Run(task, compiled, steps, log, states, best)
        start, state = run.begin(own, release)
        parallel.give_memory_back()  # what measuring or compiling has left
        trained, after, more = run.steps(start, state)['params'], run.measured, {}
        del state
        if best is not None:
            more['best_step'], trained, after = best.choose(len(steps), trained, after)
    metrics = log.summary() | run.before | _named(after, 'after') | more
    low_rank = layers.unstack(trained) if settings.lora else None
    return compiled.whole(trained), low_rank, metrics


def evaluate(
    compiled: Compiled, params, encoded: Encoded, indices, settings, loss: str | None = None
) -> dict[str, Any]:
    """A loss (mean by weight; None: the training's own) and its metric sums, without dropout."""
    sums: dict[str, Any] = {}
    weight = 0.0
    for start in range(0, len(indices), settings.batch_size):
        part = indices[start : start + settings.batch_size]
        micros = Micros(encoded, part, settings, compiled.mesh)
        weight += micros.weight
        for batch in micros.batches:
            agreed()
            for name, value in compiled.evaluate(params, batch, loss).items():
                sums[name] = sums.get(name, 0) + np.asarray(value, np.float64)
    return {name: value / weight if name in MEANS else value for name, value in sums.items()}


def agreed(save: bool = False) -> bool:
    """Whether the first process wants to save; Stopped if any was asked to end. For all at once."""
    number = hosts.greatest(interrupts.asked() or int(save and hosts.is_first()))
    if number > 1:  # a signal
        interrupts.ask(number)
        raise interrupts.Stopped(number)
    return bool(number)


def _check_any(steps: Sequence, task: Task) -> None:
    if not steps and (dropped := task.encoded.dropped):
        expected = f'no example fits, {dropped} are longer'
        raise UserError('length', task.settings.length, expected, 'raise it')
    if not steps:
        raise UserError('examples', expected='there are none to learn from')


def _named(found: dict[str, Any], suffix: str) -> dict[str, Any]:
    return {f'{name}_{suffix}': value for name, value in found.items()}


class _Run:
    """The loop over steps.

    Attributes:
      before: what was measured before the first step, by the names that metrics have.
      measured: what was found after the last one.
    """

    def __init__(
        self,
        task: Task,
        compiled: Compiled,
        steps: list[tuple[int, np.ndarray]],
        log: Log,
        states: checkpoints.States,
        best: checkpoints.Best | None,
    ):
        """steps: as of packing.order."""
        self._task, self._compiled, self._steps = task, compiled, steps
        self._settings, self._log, self._states, self._best = task.settings, log, states, best
        self.before: dict[str, Any] = {}
        self.measured: dict[str, Any] = {}
        self._about: dict[str, Any] = {}  # what lies beside each state
        self._saved = time.monotonic()

    def begin(self, own: dict[str, str], release: bool) -> tuple[int, Any]:
        """(steps that are done, the state behind them): the newest on disk, or the first.

        own: as of checkpoints.check_own. Compiles what the first steps need.
        """
        compiled, task = self._compiled, self._task
        state, found = compiled.init(task.model.params, release), self._states.newest()
        parallel.give_memory_back()  # what loading has left
        if found is not None:
            start, self._about = found
            checkpoints.check_own(self._about, own, self._states.directory)
            self.before = self._about['metrics']
            like = checkpoints.abstract(state)
            del state  # no two states in memory
            state = self._states.restore(start, like)
            self._prepare(start, state)
            return start, state
        self._prepare(0, state)  # nothing is on disk yet: another micro_batch may be chosen
        parallel.give_memory_back()  # what compiling has left
        state['params'] = task.begin(compiled, state['params'])
        before = task.measure(compiled, state['params'])
        self.before = _named(before, 'before')
        self._about = own | {'metrics': self.before}
        if self._best is not None:
            self._best.offer(0, state['params'], before)
        return 0, state

    def _prepare(self, start: int, state) -> None:
        """Compiles what the first steps need, and tells the memory that they will take.

        The first row that is longer than `length` takes more than all others, and may come late:
        its step is looked at, too.
        """
        if start == len(self._steps):
            return
        encoded, compiled = self._task.encoded, self._compiled
        longer = np.array(encoded.sizes) > encoded.length
        left = range(start, len(self._steps))
        late = next((number for number in left if longer[self._steps[number][1]].any()), start)
        calls = {}
        for number in sorted({*left[:LOOKED], late}):
            batches = self._micros(number).batches
            name = 'step' if len(batches) == 1 else 'accumulate'
            calls |= {(name, batch['tokens'].shape): (name, batch) for batch in batches}
        most, held = compiled.prepare(state, list(calls.values())), compiled.held(state)
        lengths = {batch['tokens'].shape[1] for _, batch in calls.values()}
        self._tell(held, most - held, lengths)
        compiled.room.check('a micro batch takes', most - held)

    def _tell(self, held: int, beside: int, lengths: set[int]) -> None:
        """Prints the memory and the arithmetic of the training."""
        settings, dtype = self._settings, compute_dtype(self._settings)
        with jax.set_mesh(self._compiled.mesh):
            by = attention.told(settings.attention, self._task.model.config, lengths, dtype)
        free = self._compiled.room.free()
        if not hosts.is_first():
            return
        if (fast := parallel.fast_dtype()) != dtype and dtype != np.float32:
            print(
                f'training: dtype={dtype}: the device has no instructions for it and uses float32; '
                f'dtype={fast} is what it is fast at',
                flush=True,
            )
        room = 'GiB' if free is None else f'of {free / GIB:.2f} GiB free'
        print(
            f'training: {held / GIB:.2f} GiB of parameters and moments on each device, at most '
            f'{beside / GIB:.2f} {room} beside them; attention by {by}',
            flush=True,
        )

    def steps(self, start: int, state):
        """Takes the steps from `start` on; returns the last state."""
        done = start
        try:
            self._log.resume(start)
            self._measure_if_due(start, state['params'])  # where it was stopped before that
            upcoming = self._micros(start)
            for number in range(start, len(self._steps)):
                micros = upcoming
                state, sums, norm = self._step(state, number, micros)
                upcoming = self._micros(number + 1)  # while the device is still busy
                self._finish(number, micros, sums, norm)
                done = number + 1
                self._measure_if_due(done, state['params'])
                due = time.monotonic() - self._saved >= 60 * self._settings.checkpoint_minutes
                if agreed(due) and done < len(self._steps):
                    self._save(done, state)
        except interrupts.Stopped as stopped:
            self._save(done, state)
            where = f' at step {done} of {len(self._steps)}: state saved'
            raise interrupts.Stopped(stopped.number, where) from None
        return state

    def _save(self, done: int, state) -> None:
        # First: who goes on from a state reads the lines before it, and measures nothing again.
        self._log.flush()
        if self._best is not None:
            self._best.wait()
        self._states.save(done, state, self._about)
        self._saved = time.monotonic()

    def _measure_if_due(self, step: int, params) -> None:
        """Measures where that is due after `step` steps, and adds it to the step's line."""
        every, last = self._settings.measure_every, step == len(self._steps)
        due = every and step and step % every == 0 and 'held_out_loss' not in self._log.lines[-1]
        if not (due or last):
            return
        with self._log.aside():
            found = self._task.measure(self._compiled, params)
        self._log.amend(found)
        if last:
            self.measured = found
        elif self._best is not None:
            self._best.offer(step, params, found)

    def _micros(self, number: int) -> Micros | None:
        if number >= len(self._steps):
            return None
        chosen = self._steps[number][1]
        return Micros(self._task.encoded, chosen, self._settings, self._compiled.mesh)

    def _step(self, state, number: int, micros: Micros):
        """Starts one step on the device -> (state, metric sums, gradient norm)."""
        compiled, params = self._compiled, state['params']
        scale = 1 / max(micros.weight, 1e-9)
        if len(micros.batches) == 1:
            self._log.count(micros.batches[0])
            self._log.tell(number)
            return compiled.step(state, micros.batches[0], scale, (number, 0))
        grads, sums, last = compiled.zeros(params), {}, None
        for i, batch in enumerate(micros.batches):
            grads, new = compiled.accumulate(grads, params, batch, scale, (number, i))
            sums = {name: sums.get(name, 0) + value for name, value in new.items()}
            # One micro batch waits in the device's queue while another is computed, no more.
            jax.block_until_ready(last)
            last = new
            self._log.count(batch)
            self._log.tell(number, i / len(micros.batches))
        state, norm = compiled.update(state, grads)
        return state, sums, norm

    def _finish(self, number: int, micros: Micros, sums, norm) -> None:
        """Waits for a step; checks, writes and tells its metrics."""
        settings, count = self._settings, len(self._steps)
        sums, norm = jax.device_get((sums, norm))
        found = {name: float(value) for name, value in sums.items()}
        found = {n: v / max(micros.weight, 1e-9) if n in MEANS else v for n, v in found.items()}
        found['grad_norm'] = float(norm)
        for name in ('loss', 'grad_norm'):
            if not math.isfinite(found[name]):
                expected = f'{name} is {found[name]} at step {number + 1} of {count}'
                remedy = f'lower it, and look for the cause in {self._log.path}'
                raise UserError('learning_rate', settings.learning_rate, expected, remedy)
        line = {'step': number + 1, 'epoch': self._steps[number][0]}
        line |= {'learning_rate': learning_rate(settings, number, count)} | found
        line |= {'tokens': micros.tokens, 'micro_batches': len(micros.batches)}
        self._log.add(line, micros.alone, micros.places)
