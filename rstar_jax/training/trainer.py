"""One trainer for all losses.

    examples -> the examples of every step, in an order fixed by the seed     packing.batches
    a step   -> micro batches of few shapes                                   packing.plan, fill
             -> gradients, summed over the micro batches, AdamW               Compiled.accumulate,
                                                                              update; step for one

Whatever a step does is a function of the settings, the examples and the step's number alone, and a
checkpoint holds what is trained and the optimiser's state: so a training that was killed and goes
on ends with the very same parameters. Ctrl-C and SIGTERM end it behind the step in progress, with a
state.
"""

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rstar_jax import parallel
from rstar_jax.job import hosts, interrupts
from rstar_jax.models.weights import to_host
from rstar_jax.parallel.memory import GIB
from rstar_jax.settings.errors import UserError
from rstar_jax.training import checkpoints, flops, layers, packing
from rstar_jax.training.dtypes import compute_dtype, fast_dtype, lacks
from rstar_jax.training.examples import Encoded
from rstar_jax.training.log import Log, Progress
from rstar_jax.training.step import Compiled

Begin = Callable[[Compiled, Any], Any]
Measure = Callable[[Compiled, Any], dict[str, Any]]

MOST_LEFT_OUT = 30  # steps in a row whose gradients are not finite in float16
LOOKED = 64  # steps whose shapes are compiled before the first, and see _Run.prepare

MEANS = ('loss', 'accuracy', 'margin', 'level')  # metric sums that are divided by the weight
# Settings that do not change what is learnt: a training may go on with others.
FREE = ('checkpoint_minutes', 'form', 'attention')
LAYOUT = 'stacked layers'  # of the arrays in a state


class Micros:
    """The micro batches of one step.

    Attributes:
      batches: what packing.fill makes, one for each.
      tokens: of all of them.
      places: of tokens, padding included.
      alone: tokens, had every sequence been run by itself.
      weight: sum of the weights of all that is learnt.
    """

    def __init__(self, encoded: Encoded, indices: Sequence[int], settings, mesh):
        chosen = encoded.take(indices)
        items = packing.merge(chosen, encoded.length)
        sizes = [len(laid.tokens) for _, laid in items]
        pairs = [len(example.pairs) for example, _ in items]
        lengths = packing.row_lengths(encoded.length, encoded.row, settings.one_size)
        multiple = mesh.shape['data'] * mesh.shape['fsdp']
        budget = settings.micro_batch * encoded.length * multiple
        micros = packing.plan(sizes, pairs, lengths, budget, multiple)
        self.batches = [packing.fill(micro, items, encoded.fields) for micro in micros]
        self.tokens = sum(sizes)
        self.places = sum(micro.places for micro in micros)
        self.alone = sum(example.alone for example in chosen)
        self.weight = float(sum(example.weight for example in chosen))


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


def train(
    config,
    params,
    encoded: Encoded,
    indices: Sequence[int],
    loss: str,
    settings,
    directory: str | os.PathLike,
    *,
    name: str,
    mesh=None,
    progress: Progress | None = None,
    begin: Begin | None = None,
    measure: Measure | None = None,
    new_rows: Sequence[int] = (),
    release: bool = False,
) -> tuple[Any, Any, dict[str, float]]:
    """Trains, from the newest state in `directory` if there is one.

    Args:
      config: the decoder's.
      params: a policy's or a PPM's; stay as they are, but for `release`.
      encoded, indices: the examples, and which of them to learn from.
      loss: a name in losses.BY_NAME.
      settings: as of training.settings.
      directory: gets `state/`, with keep='best' `best/`, and `metrics.jsonl`, one line a step.
      name: the fingerprint of this training.
      mesh: with axes (data, fsdp, tensor); None = the first device.
      progress: called with a dict of numbers after every micro batch.
      begin: (compiled, params) -> the params to train, in the same places; called once, before all.
      measure: (compiled, params) -> further metrics, called before and after training, where their
        names get `_before` and `_after`, and every `settings.measure_every` steps, for the step's
        line in `metrics.jsonl`. With keep='best', `held_out_loss` has to be among them.
      new_rows: see optimiser.optimiser.
      release: the training takes `params` over, instead of copying them.

    Returns:
      (float32 parameters, what of them was trained as in lora.split or None without LoRA,
      metrics): of the last step, or with keep='best' of the measured step with the least held-out
      loss, `best_step`, 0 where that is what it began with. The states are left for the caller to
      remove, when the model is on disk.

    Raises:
      UserError: no examples; a loss that is not finite; states of another training.
      Stopped: asked to end, in a block of interrupts.held; the state is on disk.
    """
    steps = order(encoded, indices, settings)
    if not steps:
        raise UserError(
            f'training: no example fits into length={settings.length}, {encoded.dropped} are longer'
            if encoded.dropped
            else 'training: there are no examples to learn from'
        )
    mesh = mesh or parallel.one_device()
    compiled = Compiled(config, settings, loss, mesh, len(steps), new_rows)
    dtype = compute_dtype(settings)
    own = {'fingerprint': name, 'layout': LAYOUT, 'dtype': str(dtype)}
    if lacks(dtype) and hosts.is_first():
        print(
            f'training: dtype={dtype}: the device has no instructions for it and uses float32; '
            f'dtype={fast_dtype()} is what it is fast at',
            flush=True,
        )
    with contextlib.ExitStack() as stack:
        states = stack.enter_context(checkpoints.States(directory))
        best = None
        if settings.keep == 'best':
            kept = stack.enter_context(checkpoints.States(directory, 'best'))
            best = _Best(kept, own, directory)
        work = flops.work(config, loss, settings.lora)
        sizes = [len(chosen) for _, chosen in steps]
        log = Log(directory, sizes, compiled, settings, work, progress)
        stack.callback(log.flush)
        run = _Run(compiled, encoded, steps, settings, log, measure, best)
        state, found = compiled.init(params, release), states.newest()
        parallel.give_memory_back()  # what loading has left
        if found is None:
            run.prepare(state, 0)  # nothing is on disk yet: another micro_batch may be chosen
            parallel.give_memory_back()  # what compiling has left
            if begin is not None:
                state['params'] = begin(compiled, state['params'])
            before = measure(compiled, state['params']) if measure else {}
            start, about = 0, own | {'metrics': _named(before, 'before')}
            if best is not None:
                best.offer(start, state['params'], before)
        else:
            start, about = found
            _check_own(about, own, directory)
            like = checkpoints.abstract(state)
            del state  # no two states in memory
            state = states.restore(start, like)
            run.prepare(state, start)
        parallel.give_memory_back()  # what measuring or compiling has left
        trained = run.steps(state, start, states, about)['params']
        del state
        after, more = run.measured, {}
        if best is not None:
            more['best_step'], trained, after = best.choose(len(steps), trained, after)
    metrics = log.summary() | about['metrics'] | _named(after, 'after') | more
    low_rank = layers.unstack(trained) if settings.lora else None
    return compiled.whole(trained), low_rank, metrics


def _check_own(about: dict[str, Any], own: dict[str, str], directory) -> None:
    if about['fingerprint'] != own['fingerprint']:
        dtype = about.get('dtype', own['dtype'])
        differs = f'; in {dtype}, here in {own["dtype"]}' if dtype != own['dtype'] else ''
        raise UserError(
            f'{directory}: holds the state of another training (other settings, examples or start'
            f'{differs}); remove it or choose another directory'
        )
    if about.get('layout') != own['layout']:
        raise UserError(
            f'{directory}: holds the state of a training by another version of rstar_jax; go on '
            'with that one, or remove it to begin anew'
        )


def _named(found: dict[str, Any], suffix: str) -> dict[str, Any]:
    return {f'{name}_{suffix}': value for name, value in found.items()}


class _Best:
    """The parameters of the least held-out loss before the last step: on disk, with their step.

    Step 0 are those that the training begins with.
    """

    def __init__(self, states: checkpoints.States, own: dict[str, str], directory):
        self._states, self._own = states, own
        self._step, about = states.newest() or (-1, None)
        if about is not None:
            _check_own(about, own, directory)
        self._found = about['found'] if about else {'held_out_loss': math.inf}

    def offer(self, step: int, params, found: dict[str, Any]) -> None:
        """Writes what was measured after `step` if it is better.

        A step that is taken again after a kill may have been written by the run before.
        """
        if step > self._step and found['held_out_loss'] < self._found['held_out_loss']:
            self._step, self._found = step, found
            self._states.save(step, params, self._own | {'found': found})

    def wait(self) -> None:
        """Returns when all that was offered is on disk."""
        self._states.wait()

    def choose(self, step: int, params, found: dict[str, Any]) -> tuple[int, Any, dict[str, Any]]:
        """(step, parameters, what was measured) of the best, the last step's given."""
        if found['held_out_loss'] < self._found['held_out_loss'] or self._step < 0:
            return step, params, found
        self.wait()
        params = self._states.restore(self._step, checkpoints.abstract(params))
        return self._step, params, self._found


def order(encoded: Encoded, indices: Sequence[int], settings) -> list[tuple[int, np.ndarray]]:
    """(epoch, examples) of every step."""
    counts = [encoded.counts[i] for i in indices]
    indices = np.asarray(indices, np.int64)
    return [
        (epoch, indices[part])
        for epoch in range(settings.epochs if counts else 0)
        for part in packing.batches(counts, settings.batch_size, settings.seed, epoch)
    ]


def fingerprint(params, encoded: Encoded, indices: Sequence[int], loss: str, settings) -> str:
    """Identifies a training: its settings, its examples and what it starts from."""
    digest = hashlib.sha256(loss.encode())
    kept = {key: settings[key] for key in sorted(settings) if key not in FREE}
    if compute_dtype(settings) == 'float16':  # by default, too: its states are others (loss_scale)
        kept['dtype'] = 'float16'
    digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for i in indices:
        digest.update(encoded.digests[i])
    for leaf in jax.tree.leaves(params):
        # A few numbers of each array tell models apart; all of them would take minutes.
        digest.update(f'{leaf.shape}'.encode())
        few = to_host(leaf[(0,) * (leaf.ndim - 1)][:16])
        digest.update(few.astype(np.float32).tobytes())
    return digest.hexdigest()[:16]


class _Run:
    """The loop over steps; `measured` is what was found after the last one."""

    def __init__(
        self, compiled: Compiled, encoded: Encoded, steps, settings, log: Log, measure, best
    ):
        """steps: as of `order`. measure: as of `train`. best: a _Best, or None: not kept."""
        self._compiled, self._encoded, self._steps = compiled, encoded, steps
        self._settings, self._log, self._measure, self._best = settings, log, measure, best
        self.measured: dict[str, Any] = {}
        self._saved = time.monotonic()
        self._left_out = 0  # steps so far that are none to the optimiser: see `loss_scale`

    def prepare(self, state, start: int) -> None:
        """Compiles what the first steps need, and tells the memory that they will take.

        The first row that is longer than `length` takes more than all others, and may come late:
        its step is looked at, too.
        """
        if start == len(self._steps):
            return
        longer = np.array(self._encoded.sizes) > self._encoded.length
        left = range(start, len(self._steps))
        late = next((number for number in left if longer[self._steps[number][1]].any()), start)
        calls = {}
        for number in sorted({*left[:LOOKED], late}):
            batches = self._micros(number).batches
            name = 'step' if len(batches) == 1 else 'accumulate'
            calls |= {(name, batch['tokens'].shape): (name, batch) for batch in batches}
        compiled = self._compiled
        most, held = compiled.prepare(state, list(calls.values())), compiled.held(state)
        free = compiled.free()
        room = 'GiB' if free is None else f'of {free / GIB:.2f} GiB free'
        if hosts.is_first():
            print(
                f'training: {held / GIB:.2f} GiB of parameters and moments on each device, at most '
                f'{(most - held) / GIB:.2f} {room} beside them; attention by '
                + compiled.attention([batch['tokens'].shape[1] for _, batch in calls.values()]),
                flush=True,
            )
        compiled.check_room('a micro batch takes', most - held)

    def steps(self, state, start: int, states: checkpoints.States, about: dict[str, Any]):
        """Takes the steps from `start` on; returns the last state."""
        done = start
        try:
            self._log.resume(start)
            self._left_out = sum('left_out' in line for line in self._log.lines)
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
                    self._save(states, done, state, about)
                    self._saved = time.monotonic()
        except interrupts.Stopped as stopped:
            self._save(states, done, state, about)
            where = f' at step {done} of {len(self._steps)}: state saved'
            raise interrupts.Stopped(stopped.number, where) from None
        return state

    def _save(self, states: checkpoints.States, done: int, state, about: dict[str, Any]) -> None:
        # First: who goes on from a state reads the lines before it, and measures nothing again.
        self._log.flush()
        if self._best is not None:
            self._best.wait()
        states.save(done, state, about)

    def _measure_if_due(self, step: int, params) -> None:
        """Measures where that is due after `step` steps, and adds it to the step's line."""
        every, last = self._settings.measure_every, step == len(self._steps)
        due = every and step and step % every == 0 and 'held_out_loss' not in self._log.lines[-1]
        if self._measure is None or not (due or last):
            return
        with self._log.aside():
            found = self._measure(self._compiled, params)
        self._log.amend(found)
        if last:
            self.measured = found
        elif self._best is not None:
            self._best.offer(step, params, found)

    def _micros(self, number: int) -> Micros | None:
        if number >= len(self._steps):
            return None
        return Micros(self._encoded, self._steps[number][1], self._settings, self._compiled.mesh)

    def _step(self, state, number: int, micros: Micros):
        """Starts one step on the device -> (state, metric sums, gradient norm)."""
        compiled, params = self._compiled, state['params']
        scale = 1 / max(micros.weight, 1e-9)
        if len(micros.batches) == 1:
            self._log.count(micros.batches[0])
            self._log.tell(number)
            return compiled.step(state, micros.batches[0], scale, (number, 0))
        grads, sums, last = compiled.zeros(params), {}, None
        scale = compiled.scale_of(state, scale)
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
        sums, norm = jax.device_get((sums, norm))
        taken = number - self._left_out
        found = {name: float(value) for name, value in sums.items()}
        found = {n: v / max(micros.weight, 1e-9) if n in MEANS else v for n, v in found.items()}
        found |= self._norm(float(norm))
        for name in ('loss', 'grad_norm'):
            if not math.isfinite(found.get(name, 0.0)):
                raise UserError(
                    f'step {number + 1} of {len(self._steps)}: {name} is {found[name]}; lower '
                    f'learning_rate (now {self._settings.learning_rate:g}), and look for the cause '
                    f'in {self._log.path}'
                )
        line = {'step': number + 1, 'epoch': self._steps[number][0]}
        line |= {'learning_rate': self._compiled.learning_rate(taken)} | found
        line |= {'tokens': micros.tokens, 'micro_batches': len(micros.batches)}
        self._log.add(line, micros.alone, micros.places)

    def _norm(self, norm: float) -> dict[str, float | bool]:
        """What the log says of the gradients' norm: where the loss is scaled, a step without a
        finite one was left out."""
        if math.isfinite(norm) or not self._compiled.scales:
            return {'grad_norm': norm}
        latest = [line.get('left_out') for line in self._log.lines[-MOST_LEFT_OUT:]]
        if latest.count(True) == MOST_LEFT_OUT:
            raise UserError(
                f'training: the gradients of {MOST_LEFT_OUT} steps in a row are not finite in '
                'float16: train with dtype=float32'
            )
        self._left_out += 1
        return {'left_out': True}
