"""The trainings: of a policy on solutions (SFT), of a reward model on pairs or trajectories.

    examples -> encoded, some held out -> trainer.train -> adapter, model, training.json

A directory that has training.json is not trained in again: that file is written last.

Both return metrics: steps, loss_first, loss_last (means over the first and last tenth of them),
examples, dropped, tokens, tokens_per_second, mfu (share of the devices' peak, see training.flops),
padding_share, shared_prefix_tokens_share (tokens computed by tokens of the sequences one by one),
seconds, compiles, compile_seconds. On held-out problems, each with _before and _after:
held_out_loss; with keep='best', best_step, and in `_after` what was measured there.
"""

import copy
import dataclasses
import functools
import json
import os
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from rstar_jax import models, steps
from rstar_jax.job import atomic, hosts, interrupts
from rstar_jax.models import trained
from rstar_jax.settings import table
from rstar_jax.settings.errors import UserError
from rstar_jax.training import checkpoints, head, lora, trainer
from rstar_jax.training import examples as encoding
from rstar_jax.training.corpus import Encoded, hold_out
from rstar_jax.training.defaults import LOSSES, compute_dtype

HELD_OUT = 128  # problems that an SFT measures, at most
PPM_HELD_OUT = 2000  # and a PPM's training
SHORT = 3.0  # seconds in which nobody needs to be told how far it is
# The question in a chat template: what the user said last.
QUESTION = "{{ (messages | selectattr('role', 'equalto', 'user') | list | last)['content'] }}"


def start_dtype(config) -> str:
    """The dtype to load the policy in that a training starts from: with LoRA the network's."""
    return compute_dtype(config).name if config.lora else 'float32'


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
      directory: gets the states while training, then the model (models.load), and metrics.jsonl:
        loss, learning rate, norm of the gradients and tokens of each step, and what the held-out
        gave after it where it was measured. With config.lora it gets the adapter in PEFT's form in
        adapter/ (lora.save) as well.
      mesh: with axes (data, fsdp, tensor), see models.sharding; None = the first device.
      progress: called with a dict of numbers after each micro batch: step, steps, loss,
        tokens_per_second, mfu, seconds, seconds_left; after a step with the line of metrics.jsonl,
        and after a measurement with what it gave. Before that, while many examples are read: read,
        to_read, seconds, seconds_left.
      release: takes the arrays of `policy` over: memory for a model less.

    Returns:
      (policy with float32 parameters, low-rank parts merged into them, metrics): besides those of
      the module's docstring held_out, their number (where it is 0, the examples are measured), and
      form_before and _after, {mark: [places where it is likeliest, places where it is due]},
      counted in the mark's tokens; examples.MARKS are the names.

    Raises:
      UserError: a setting out of its bounds, no usable example, a loss that is not finite, or
        `directory` has another training; or the form was not learnt (config.form): the policy is in
        `directory`.
      Stopped: by Ctrl-C or SIGTERM in a block of interrupts.Interrupts, when the step in progress
        has ended and its state is on disk.
    """
    check('sft', config)
    new = models.new_tokens(policy, steps.SFT_TOKENS) if config.marks == 'tokens' else []
    policy, start = models.add_tokens(policy, new), policy
    if release:
        _delete_all_but(start.params, policy.params)
    encoded = encoding.sft(examples, policy.tokenizer, config.length, _telling(progress))
    chosen, held_out = _held_out(encoded, config, HELD_OUT)
    task = trainer.Task(
        _asked_as_trained(policy),
        'sft',
        config,
        encoded,
        chosen,
        functools.partial(_measure_sft, encoded, held_out or chosen[:HELD_OUT], config),
        new_rows=policy.tokenizer.convert_tokens_to_ids(new),
    )
    policy, metrics = _finished(task, directory, mesh, progress, release)
    _check_form(metrics['form_after'], config.form, directory)
    return policy, metrics | {'held_out': len(held_out)}


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
      The others are those of `sft`, and so is what is raised.

    Returns:
      (PPM with float32 parameters, metrics): those of the module's docstring, and on held-out
      problems, each with _before and _after:
      answer_accuracy, by which judges of all losses can be compared: of all pairs of a right and a
        wrong trajectory of the same problem (answer_pairs, their number; no figure without any) the
        share in which the right one has the higher value at its last token;
      pair_accuracy (pairwise), the share of the pairs (held_out_pairs, their number) whose better
        side has the higher value;
      held_out_accuracy (orm, prm), the share of targets on whose side of 0 the value is (held_out,
        the number of trajectories; of pqm as well).
      held_out_problems and answer_problems are those that these are of.
    """
    check('ppm', config)
    kind, encoder = LOSSES[config.loss]
    model = models.init_ppm(policy, config.seed, config.squash)
    if release:
        _delete_all_but(policy.params, model.params)
    tell, how = _telling(progress), (model.tokenizer, config.length)
    encoded = getattr(encoding, encoder)(examples, *how, tell)
    chosen, held_out = _held_out(encoded, config, PPM_HELD_OUT)
    problems = {encoded.questions[i] for i in held_out}
    answers = encoding.answer_pairs(trajectories if held_out else (), problems, *how)
    measure = functools.partial(_measure_ppm, encoded, held_out, answers, config)
    task = trainer.Task(model, config.loss, config, encoded, chosen, measure)
    if config.head != 'random':
        fit = functools.partial(_with_fitted_head, encoded, chosen, config, tell)
        task = dataclasses.replace(task, begin=fit)
    model, metrics = _finished(task, directory, mesh, progress, release)
    return model, metrics | {
        'held_out_pairs' if kind == 'pairs' else 'held_out': sum(
            encoded.counts[i] for i in held_out
        ),
        'held_out_problems': len(problems),
        'answer_pairs': sum(answers.counts),
        'answer_problems': len(set(answers.questions)),
    }


def check(kind: str, config) -> None:
    """Raises UserError whose argument is the setting: out of its bounds.

    kind: as of `defaults.settings`.
    """
    for key, row in table.training_rows(kind).items():
        table.check(row.name, config[key], key)


@interrupts.held()  # what was begun is saved first
def _finished(
    task: trainer.Task, directory: str | os.PathLike, mesh, progress, release: bool
) -> tuple[Any, dict[str, Any]]:
    """Trains and puts the result on disk; or reads it where that was done before."""
    directory, fingerprint = pathlib.Path(directory), task.fingerprint()
    done = directory / 'training.json'  # written last
    if done.exists():
        about = json.loads(done.read_text(encoding='utf-8'))
        if about['fingerprint'] != fingerprint:
            expected = 'holds what another training made (other settings, examples or start)'
            remedy = 'remove it or choose another directory'
            raise UserError(str(directory), expected=expected, remedy=remedy)
        checkpoints.delete_states(directory)  # where it was killed before that
        load = models.load_ppm if isinstance(task.model, models.PPM) else models.load
        return load(directory, 'float32', mesh=mesh), about['metrics']
    run = fingerprint, directory, mesh, progress, release
    params, low_rank, metrics = trainer.train(task, *run)
    counts = [task.encoded.counts[i] for i in task.indices]
    metrics |= {'examples': sum(counts), 'dropped': task.encoded.dropped}
    model = dataclasses.replace(task.model, params=params)
    if low_rank is not None:
        lora.save(model, low_rank, task.settings.lora, task.new_rows, directory / 'adapter')
    trained.save_model(model, directory)
    if hosts.is_first():
        atomic.write_json(done, {'fingerprint': fingerprint, 'metrics': metrics}, 1)
    checkpoints.delete_states(directory)
    hosts.barrier('the model is on disk')
    return model, metrics


def _held_out(encoded: Encoded, config, most: int) -> tuple[list[int], list[int]]:
    """As of corpus.hold_out; UserError where there is nothing to tell the best parameters by."""
    chosen, held_out = hold_out(encoded, config.held_out, config.seed, most)
    if config.keep == 'best' and config.measure_every < 1:
        raise UserError('keep', 'best', 'needs measure_every, the steps between two measurements')
    if config.keep == 'best' and not held_out:
        raise UserError('keep', 'best', 'no problem is held out to measure', 'raise held_out')
    return chosen, held_out


def _measure_sft(
    encoded: Encoded, indices: Sequence[int], config, compiled, params
) -> dict[str, Any]:
    found = trainer.evaluate(compiled, params, encoded, indices, config)
    counts = zip(found['marks_first'].tolist(), found['marks_due'].tolist())
    form = dict(zip((None, *encoding.MARKS), counts))
    form = {mark: [int(n) for n in form[mark]] for mark in encoding.MARKS if form[mark][1]}
    return {'held_out_loss': found['loss'], 'form': form}


def _measure_ppm(
    encoded: Encoded, held_out: Sequence[int], answers: Encoded, config, compiled, params
) -> dict[str, float]:
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


def _with_fitted_head(encoded: Encoded, indices: Sequence[int], config, tell, compiled, params):
    found = head.fitted(compiled, params, encoded, indices, config.loss, config, tell)
    return compiled.with_head(params, found)


def _asked_as_trained(policy: models.Policy) -> models.Policy:
    """`policy` for servers: a chat asks by the trained prompt, and nothing says how to sample.

    What its start was given for chats, template and temperature, is not what it learns here. And
    it learns to end its texts by the tokenizer's end of text, whatever ended those of its start.
    """
    tokenizer = copy.deepcopy(policy.tokenizer)
    # Of a chat's text no tokenizer begins with BOS by itself.
    begins = tokenizer('')['input_ids'][:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = '{{ bos_token }}' * begins + steps.prompt(QUESTION)
    ids = {key: ends for key, ends in policy.generation.items() if key.endswith('_token_id')}
    ends = dict.fromkeys((*policy.config.eos_ids, tokenizer.eos_token_id))
    config = policy.config.replace(eos_ids=tuple(ends))
    return dataclasses.replace(policy, config=config, tokenizer=tokenizer, generation=ids)


def _check_form(form: dict[str, list[int]], least: float, directory: str | os.PathLike) -> None:
    """Raises UserError where some mark that the policy has to write was not learnt."""
    shares = {mark: n / due for mark, (n, due) in form.items() if mark not in steps.OUTPUT_MARKS}
    mark = min(shares, key=shares.get)
    if shares[mark] < least:
        right, due = form[mark]
        expected = (
            f'this policy has not learnt the step form: {mark} is its likeliest token in {right} '
            f'of the {due} measured places where it is due; form={least:g} asks for more'
        )
        remedy = (
            'raise epochs, learning_rate or marks_rate of the training and delete the folder, or '
            'go on with it by form=0'
        )
        raise UserError(str(directory), expected=expected, remedy=remedy)


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


def _delete_all_but(params, kept) -> None:
    kept = {id(leaf) for leaf in jax.tree.leaves(kept)}
    for leaf in jax.tree.leaves(params):
        if id(leaf) not in kept:
            leaf.delete()
