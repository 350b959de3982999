"""The trainings: of a policy on solutions (SFT), of a reward model on pairs or trajectories.

    examples -> encoded, some held out -> trainer.train -> adapter, model, training.json

A directory that has training.json is not trained in again: that file is written last.
"""

import copy
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Iterable
from typing import Any

import jax

from rstar_jax import models, steps
from rstar_jax.job import atomic, hosts, interrupts
from rstar_jax.models import trained
from rstar_jax.settings import bounds
from rstar_jax.settings.errors import UserError
from rstar_jax.training import checkpoints, dtypes, head, kernels, lora, trainer
from rstar_jax.training import examples as encoding
from rstar_jax.training.defaults import LOSSES

HELD_OUT = 128  # problems that an SFT measures, at most
PPM_HELD_OUT = 2000  # and a PPM's training
SHORT = 3.0  # seconds in which nobody needs to be told how far it is
# The question in a chat template: what the user said last.
QUESTION = "{{ (messages | selectattr('role', 'equalto', 'user') | list | last)['content'] }}"


def start_dtype(config) -> str:
    """The dtype to load the policy in that a training starts from: with LoRA the network's.

    For one in float16 it is float32, as models are not loaded in float16; the training narrows it.
    """
    narrow = config.lora and dtypes.compute_dtype(config) == 'bfloat16'
    return 'bfloat16' if narrow else 'float32'


def sft(
    policy: models.Policy,
    examples: Iterable[dict[str, Any]],
    config,
    directory: str | os.PathLike,
    *,
    mesh=None,
    progress=None,
    release: bool = False,
) -> tuple[models.Policy, dict[str, Any]]:
    """Trains a policy on {query, response}: next token, on the response only.

    Args:
      policy: where to start; stays as it is. The tokens of the step language are added, and its
        chat template becomes the prompt that is trained.
      config: as of `defaults.settings`.
      directory: gets the states while training, then the model (trained.load_policy), and
        metrics.jsonl: loss, learning rate, norm of the gradients and tokens of each step, and what
        the held-out gave after it where it was measured. With config.lora it gets the adapter in
        PEFT's form in adapter/ (lora.save) as well.
      mesh: with axes (data, fsdp, tensor), see models.sharding; None = the first device.
      progress: called with a dict of numbers after each micro batch: step, steps, loss,
        tokens_per_second, mfu, seconds, seconds_left; after a step with the line of metrics.jsonl,
        and after a measurement with what it gave. Before that, while many examples are read: read,
        to_read, seconds, seconds_left.
      release: takes the arrays of `policy` over: memory for a model less.

    Returns:
      (policy with float32 parameters, low-rank parts merged into them, metrics): steps, loss_first,
      loss_last (means over the first and last tenth of the steps), examples, dropped, tokens,
      tokens_per_second, mfu (share of the devices' peak, see training.flops), padding_share,
      shared_prefix_tokens_share (tokens computed by tokens of the sequences one by one), seconds,
      compiles, compile_seconds. On held-out problems (on the examples themselves where none is held
      out): held_out, held_out_loss_before and _after, and form_before and _after, {mark: [places
      where it is likeliest, places where it is due]}, counted in the mark's tokens;
      examples.MARKS are the names. With keep='best', best_step and, in `_after`, what was measured
      there.

    Raises:
      UserError: a setting out of its bounds, no usable example, a loss that is not finite (names
        the step), or `directory` has another training; or the form was not learnt (config.form):
        the policy is in `directory`.
      Stopped: by Ctrl-C or SIGTERM in a block of interrupts.Interrupts, when the step in progress
        has ended and its state is on disk.
    """
    check('sft', config)
    new = []
    if config.marks == 'tokens':
        new, start = models.new_tokens(policy, steps.SFT_TOKENS), policy
        policy = models.add_tokens(start, new)
        if release:
            _delete_all_but(start.params, policy.params)
    encoded = encoding.sft(examples, policy.tokenizer, config.length, _telling(progress))
    # It learns to end its texts by this token, whatever ended those of its start.
    ends = dict.fromkeys((*policy.config.eos_ids, policy.tokenizer.eos_token_id))
    policy = dataclasses.replace(policy, config=policy.config.replace(eos_ids=tuple(ends)))
    policy = _asked_as_trained(policy)
    chosen, held_out = encoding.hold_out(encoded, config.held_out, config.seed, HELD_OUT)
    _check_keep(config, held_out)

    def measure(compiled, params) -> dict[str, Any]:
        found = trainer.evaluate(compiled, params, encoded, held_out or chosen[:HELD_OUT], config)
        counts = zip(found['marks_first'].tolist(), found['marks_due'].tolist())
        form = dict(zip((None, *encoding.MARKS), counts))
        form = {mark: [int(n) for n in form[mark]] for mark in encoding.MARKS if form[mark][1]}
        return {'held_out_loss': found['loss'], 'form': form}

    rows = policy.tokenizer.convert_tokens_to_ids(new)
    how = {'mesh': mesh, 'progress': progress, 'measure': measure, 'release': release}
    policy, metrics = _finished(policy, encoded, chosen, 'sft', config, directory, rows, **how)
    _check_form(metrics['form_after'], config.form, directory)
    return policy, metrics | {'held_out': len(held_out)}


def _asked_as_trained(policy: models.Policy) -> models.Policy:
    """`policy` for servers: a chat asks by the trained prompt, and nothing says how to sample.

    What its start was given for chats, template and temperature, is not what it learns here.
    """
    tokenizer = copy.deepcopy(policy.tokenizer)
    # Of a chat's text no tokenizer begins with BOS by itself.
    begins = tokenizer('')['input_ids'][:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = '{{ bos_token }}' * begins + steps.prompt(QUESTION)
    ids = {key: ends for key, ends in policy.generation.items() if key.endswith('_token_id')}
    return dataclasses.replace(policy, tokenizer=tokenizer, generation=ids)


def _telling(progress):
    """What tells of the first pass over the examples."""
    began = 0.0

    def tell(read: int, of: int) -> None:
        nonlocal began
        now = time.monotonic()
        if not read:
            began = now
        elif progress is not None and read < of and now - began > SHORT:
            left = (now - began) / read * (of - read)
            progress({'read': read, 'to_read': of, 'seconds': now - began, 'seconds_left': left})

    return tell


def check(kind: str, config) -> None:
    """Raises UserError, beginning with the setting's name: out of its bounds, or not for this host.

    kind: as of `defaults.settings`.
    """
    for key, value in config.items():
        if key != 'checkpoint_minutes':  # 0: after every step
            bounds.check(f'training.{kind}.{key}', value, key)
    kernels.check(config.attention, dtypes.compute_dtype(config))


def _check_keep(config, held_out: list[int]) -> None:
    """Raises UserError where there is nothing to tell the best parameters by."""
    if config.keep == 'best' and config.measure_every < 1:
        raise UserError('keep=best: needs measure_every, the steps between two measurements')
    if config.keep == 'best' and not held_out:
        raise UserError('keep=best: no problem is held out to measure: raise held_out')


def _check_form(form: dict[str, list[int]], least: float, directory: str | os.PathLike) -> None:
    """Raises UserError where some mark that the policy has to write was not learnt."""
    shares = {mark: n / due for mark, (n, due) in form.items() if mark not in steps.OUTPUT_MARKS}
    mark = min(shares, key=shares.get)
    if shares[mark] < least:
        raise UserError(
            f'{directory}: this policy has not learnt the step form: {mark} is its likeliest token '
            f'in {form[mark][0]} of the {form[mark][1]} measured places where it is due; form='
            f'{least:g} asks for more: raise epochs, learning_rate or marks_rate of the training '
            'and delete the folder, or go on with it by form=0'
        )


def ppm(
    policy: models.Policy,
    examples: Iterable[dict[str, Any]],
    config,
    directory: str | os.PathLike,
    *,
    trajectories: Iterable[dict[str, Any]] = (),
    mesh=None,
    progress=None,
    release: bool = False,
) -> tuple[models.PPM, dict[str, float]]:
    """Trains a reward model that starts as `policy` with a scalar head.

    Args:
      examples: what config.loss learns from: 'pairwise', {prompt, pos, neg, pos_count, neg_count};
        'orm', {query, steps, correct}; 'pqm', {query, steps, values}; 'prm', {query, steps,
        labels}. An ORM in the ranking form is 'pairwise' on pairs of whole trajectories.
      config: as of `defaults.settings`. With 'pairwise' a step's line in metrics.jsonl tells of its
        pairs accuracy, the share ranked rightly, margin, the mean of r(pos) - r(neg), and level,
        the mean value in use.
      trajectories: {query, steps, correct}; those of held-out problems give answer_accuracy.
      The others are those of `sft`.

    Returns:
      (PPM with float32 parameters, metrics): those of `sft`, and on held-out problems, each with
      _before and _after:
      held_out_loss;
      answer_accuracy, by which judges of all losses can be compared: of all pairs of a right and a
        wrong trajectory of the same problem (answer_pairs, their number; no figure without any) the
        share in which the right one has the higher value at its last token;
      pair_accuracy (pairwise), the share of the pairs (held_out_pairs, their number) whose better
        side has the higher value;
      held_out_accuracy (orm, prm), the share of targets on whose side of 0 the value is (held_out,
        the number of trajectories; of pqm as well).
      held_out_problems and answer_problems are those that these are of.

    Raises:
      UserError: as `sft`.
    """
    check('ppm', config)
    kind, encoder = LOSSES[config.loss]
    model = models.init_ppm(policy, config.seed, config.squash)
    if release:
        _delete_all_but(policy.params, model.params)
    encode, tell = getattr(encoding, encoder), _telling(progress)
    encoded = encode(examples, model.tokenizer, config.length, tell)
    chosen, held_out = encoding.hold_out(encoded, config.held_out, config.seed, PPM_HELD_OUT)
    _check_keep(config, held_out)
    answers = encoding.answer_pairs(
        trajectories if held_out else (),
        {encoded.questions[i] for i in held_out},
        model.tokenizer,
        config.length,
    )

    def begin(compiled, params):
        if config.head == 'random':
            return params
        found = head.fitted(compiled, params, encoded, chosen, config.loss, config, tell)
        return compiled.with_head(params, found)

    def measure(compiled, params) -> dict[str, float]:
        if not held_out:
            return {}
        found = trainer.evaluate(compiled, params, encoded, held_out, config)
        named = {'held_out_loss': found['loss']}
        if 'pairs' in found:
            named['pair_accuracy'] = found['pairs_right'] / found['pairs']
        elif 'accuracy' in found:
            named['held_out_accuracy'] = found['accuracy']  # a step's line has its own besides
        if len(answers):
            every = range(len(answers))
            found = trainer.evaluate(compiled, params, answers, every, config, 'pairwise')
            named['answer_accuracy'] = found['pairs_right'] / found['pairs']
        return named

    held = sum(encoded.counts[i] for i in held_out)
    name = 'held_out_pairs' if kind == 'pairs' else 'held_out'
    how = {'mesh': mesh, 'progress': progress, 'measure': measure, 'release': release}
    how['begin'] = begin
    model, metrics = _finished(model, encoded, chosen, config.loss, config, directory, **how)
    return model, metrics | {
        name: held,
        'held_out_problems': len({encoded.questions[i] for i in held_out}),
        'answer_pairs': sum(answers.counts),
        'answer_problems': len(set(answers.questions)),
    }


@interrupts.held()  # what was begun is saved first
def _finished(
    model, encoded, chosen, loss: str, config, directory, new_rows=(), **how
) -> tuple[Any, dict[str, Any]]:
    """Trains `model` and puts the result on disk; or reads it where that was done before.

    Arguments are those of `trainer.train`.
    """
    directory = pathlib.Path(directory)
    done = directory / 'training.json'  # written last
    name = trainer.fingerprint(model.params, encoded, chosen, loss, config)
    if done.exists():
        about = json.loads(done.read_text(encoding='utf-8'))
        if about['fingerprint'] != name:
            raise UserError(
                f'{directory}: holds what another training made (other settings, examples or start)'
                '; remove it or choose another directory'
            )
        checkpoints.delete_states(directory)  # where it was killed before that
        load = models.load_ppm if isinstance(model, models.PPM) else models.load
        return load(directory, 'float32', mesh=how['mesh']), about['metrics']
    start, how = (model.config, model.params), {'name': name, 'new_rows': new_rows} | how
    params, low_rank, metrics = trainer.train(
        *start, encoded, chosen, loss, config, directory, **how
    )
    metrics |= {'examples': sum(encoded.counts[i] for i in chosen), 'dropped': encoded.dropped}
    model = dataclasses.replace(model, params=params)
    if low_rank is not None:
        lora.save(model, low_rank, config.lora, new_rows, directory / 'adapter')
    trained.save_model(model, directory)
    if hosts.is_first():
        about = {'fingerprint': name, 'metrics': metrics}
        atomic.write_json(done, about, 1)
    checkpoints.delete_states(directory)
    hosts.barrier('the model is on disk')
    return model, metrics


def _delete_all_but(params, kept) -> None:
    kept = {id(leaf) for leaf in jax.tree.leaves(kept)}
    for leaf in jax.tree.leaves(params):
        if id(leaf) not in kept:
            leaf.delete()
