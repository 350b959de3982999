"""Losses. Each is a sum over one micro batch; the trainer divides by the weight of the whole step.

    sft       next token, on the response only                                (paper, section 3.2)
    pairwise  -log sigmoid(r(x, pos) - r(x, neg)), weighted by 1/(positives x negatives)   (eq. 4)
    orm       cross-entropy of "the answer is right", at the last token
    prm       cross-entropy of "a right answer was reached through this step", at the end of every
              step                                               (Math-Shepherd, arXiv 2312.08935)
    pqm       squared error of the value against the Q value, at the end of every step

Reward models put out a raw value r; in use it is squashed, v in [-1, 1]. orm, prm and pqm train v
itself, whatever the squash: orm and prm the probability (1 + v) / 2, so that v is the expected
reward of 1 or -1, on the scale of the search's Q values. pairwise trains differences only; see
TRAINED_ON. Every squash rises with r, so all of them order texts as r does.

A loss is a function (config, params, batch, key, settings) -> (sum, {metric: sum}). `batch` is what
packing.fill makes; with `added` [R, T, D] in it, zeros which are added to what the embedding gives,
the embedding gets no gradient by its look-ups: it is theirs. `key` is None outside of training,
which switches dropout off.
"""

import functools

import jax
import jax.numpy as jnp

from rstar_jax.models import heads
from rstar_jax.models.attention import MASKED
from rstar_jax.models.products import along_rows
from rstar_jax.training import activations, attention, examples, layers, lora

CHUNK_TOKENS = 256  # tokens whose logits [tokens, V] are in a device's memory at once

# What the released code trains on, by how the value is squashed in use: it squashes by
# tanh(r / 5) in use only, the paper by tanh in both.
TRAINED_ON = {'tanh': 'tanh', 'tanh5': 'none'}
# sigmoid(LOGIT * r) is (1 + tanh(r)) / 2, (1 + tanh(r / 5)) / 2.
LOGIT = {'tanh': 2.0, 'tanh5': 0.4}


def hidden_states(config, params, batch, settings) -> jax.Array:
    """Runs the decoder of `params`, a training's, over packed rows -> [R, T, D]."""
    tokens, positions, end = batch['tokens'], batch['positions'], batch['end']
    looked_up, added = params['embed']['weight'], batch.get('added')
    if added is not None:
        looked_up = jax.lax.stop_gradient(looked_up)
    x = jnp.take(activations.whole_columns(looked_up), tokens, axis=0, mode='clip')
    x = lora.with_rows(x, params['embed'], tokens)
    if added is not None:
        x += added
    name = attention.chosen(settings.attention, config, end.shape[1], x.dtype)
    return layers.run(config, params, x, positions, attention.BY_NAME[name](end, positions))


def sft(config, params, batch, key, settings):
    """Negative log-likelihood of `targets` where `weights` is not zero; params: a policy's.

    Metrics, outside of training: marks_due and marks_first i32[1 + marks], by `mark` of the batch
    (0: no mark), how many tokens are to be predicted and how many are the arg-max there.
    """
    hidden = hidden_states(config, params, batch, settings)
    table = params['embed' if config.tie_embeddings else 'output']
    head, new = table['weight'], lora.new_rows(table)
    loss = cross_entropy(hidden, head, batch['targets'], batch['weights'], new)
    counted = key is None and 'mark' in batch
    return loss, _marks_first(hidden, head, new, batch) if counted else {}


def _marks_first(hidden, head, new, batch) -> dict[str, jax.Array]:
    chunks, steps = _compact(hidden, batch['targets'], batch['weights'], batch['mark'])
    nothing = jnp.zeros(len(examples.MARKS) + 1, jnp.int32)

    def body(i, counts):
        h, target, weight, mark = chunks(i)
        first = jnp.argmax(_logits(h, head, new), axis=0) == target
        due, found = counts
        return due.at[mark].add(weight > 0), found.at[mark].add((weight > 0) & first)

    due, first = jax.lax.fori_loop(0, steps, body, (nothing, nothing))
    return {'marks_due': due, 'marks_first': first}


def pairwise(config, params, batch, key, settings):
    """Ranking loss of the pairs; params: a PPM's.

    The paper's equation 4 is -1/(2 x 2) E[log sigmoid(r(x, pos) - r(x, neg))], an expectation over
    pairs, where a step has 2 positives and 2 negatives. Here a pair weighs 1/(positives x
    negatives) of its node, as chosen by curation, and the trainer divides the sum over an
    optimiser step by the sum of the weights of the same pairs. What that changes:

    - A node that kept all of its pairs weighs 1, be it 2 x 2, 4 x 1 or 1 x 1, so a step's loss is
      the mean over its nodes of the mean over each node's pairs. With 2 x 2 everywhere that is
      equation 4 without its factor of 1/4: dividing by the weights cancels it, and a model that
      knows nothing has the loss log 2, not log(2) / 4. AdamW's steps do not depend on the factor,
      clipping (grad_clip) does.
    - A node of which curation or `length` dropped pairs weighs the share that is left, 3/4 for 3
      pairs of 4: a pair's influence does not grow because others beside it were dropped. The
      divisor shrinks with the node, so the loss stays a weighted mean of its pairs' losses.
    - The last step of an epoch may have fewer pairs; its mean counts as much as any other step's.

    Only differences of values enter equation 4, so what all texts share is free to drift until the
    squash is saturated and no gradient is left. With settings.center c the training adds
    c (r(x, pos) + r(x, neg))^2 of raw values to each pair's loss (arXiv 2312.09244, section 2).

    Metrics: accuracy, the weight of pairs ranked rightly; margin, the weighted sum of r(x, pos) -
    r(x, neg) as in the loss; level, of the mean value in use, 1 or -1 where it is saturated; pairs
    and pairs_right, their numbers.
    """
    hidden = hidden_states(config, params['decoder'], batch, settings)
    keys = (None, None) if key is None else jax.random.split(key)
    chosen, rejected = (
        heads.value(
            params['value_head'],
            jnp.take_along_axis(hidden, batch[side][..., None], axis=1),
            dropout=settings.dropout,
            key=side_key,
        )
        for side, side_key in zip(('chosen', 'rejected'), keys)
    )
    weights = batch['pair_weights']
    better, worse = (heads.squash(TRAINED_ON[settings.squash], r) for r in (chosen, rejected))
    level = sum(heads.squash(settings.squash, r) for r in (chosen, rejected)) / 2
    loss = jnp.sum(weights * jax.nn.softplus(worse - better))
    if key is not None:  # what is measured is equation 4 alone
        loss += settings.center * jnp.sum(weights * jnp.square(chosen + rejected))
    return loss, {
        'accuracy': jnp.sum(weights * (chosen > rejected)),
        'margin': jnp.sum(weights * (better - worse)),
        'level': jnp.sum(weights * level),
        'pairs': jnp.sum(weights > 0),
        'pairs_right': jnp.sum((weights > 0) & (chosen > rejected)),
    }


def labelled(config, params, batch, key, settings):
    """Cross-entropy of `targets`, 1 or 0, where `weights` is not zero; params: a PPM's.

    The trainer divides by the number of targets: in a PRM every step of every trajectory counts
    the same. Metric: accuracy, the weight of targets on whose side of 0 the value is.
    """
    logits = LOGIT[settings.squash] * _values(config, params, batch, key, settings)
    weights, targets = batch['weights'], batch['targets']
    loss = jnp.sum(weights * (jax.nn.softplus(logits) - targets * logits))
    return loss, {'accuracy': jnp.sum(weights * ((logits > 0) == (targets > 0.5)))}


def pqm(config, params, batch, key, settings):
    """Process Q-value model: `targets` are Q values in [-1, 1] at ends of steps."""
    value = heads.squash(settings.squash, _values(config, params, batch, key, settings))
    return jnp.sum(batch['weights'] * jnp.square(value - batch['targets'])), {}


def _values(config, params, batch, key, settings) -> jax.Array:
    """Raw values f32[R, T] at every token."""
    hidden = hidden_states(config, params['decoder'], batch, settings)
    return heads.value(params['value_head'], hidden, dropout=settings.dropout, key=key)


@jax.custom_vjp
def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    new: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Weighted sum of next-token losses, without [T, V] logits ever being whole in memory.

    Tokens that have a weight are moved to the front of their row, and no more chunks are computed
    than the fullest row needs. When differentiated, gradients are made together with the loss
    chunk by chunk, so that logits are computed once, not a second time in the backward pass.

    Args:
      hidden: [R, T, D].
      head: [V, D].
      targets: i32[R, T].
      weights: f32[R, T]; not differentiated.
      new: (rows i32[n], [n, D]), what stands in these rows of `head`, which then gets no gradient.

    Returns:
      f32[].
    """
    chunks, steps = _compact(hidden, targets, weights)

    def body(i, total):
        h, target, weight = chunks(i)
        return total + _chunk_loss(_logits(h, head, new), target, weight)[0]

    return jax.lax.fori_loop(0, steps, body, jnp.float32(0))


def _forward(hidden, head, targets, weights, new=None):
    chunks, steps = _compact(hidden, targets, weights)
    rows, length, dim = hidden.shape
    size = _chunk_size(rows, length)
    learnt = head if new is None else new[1]
    # Each device has the logits of some words for all tokens of a chunk: left to the compiler, it
    # has those of all words for some tokens, and the gradients of the whole table are exchanged for
    # every chunk. A vocabulary that they do not divide is filled up with words without a chance.
    of_words = activations.vocabulary_over_mesh
    vocab_size, missing = len(head), activations.words_missing(len(head))
    head = of_words(jnp.pad(head, ((0, missing), (0, 0))) if missing else head)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def body(i, carry):
        total, grad_hidden, grad_learnt = carry
        h, target, weight = chunks(i)
        logits = of_words(_logits(h, head, new))
        if missing:
            there = jnp.arange(len(head)) < vocab_size
            logits = jnp.where(there[:, None, None], logits, MASKED)
        loss, grad_logits = _chunk_loss(logits, target, weight)
        grad_logits = grad_logits.astype(h.dtype)
        grad_h = along_rows(grad_logits.reshape(len(grad_logits), -1), head).reshape(h.shape)
        if new is not None:
            grad_logits = grad_logits[new[0]]
            grad_h += product('vrt,vd->rtd', grad_logits, learnt - head[new[0]])
        grad_h = activations.rows_over_mesh(grad_h)
        grad_hidden = jax.lax.dynamic_update_slice_in_dim(grad_hidden, grad_h, i * size, axis=1)
        grad_learnt += product('vrt,rtd->vd', grad_logits, h)
        return total + loss, grad_hidden, of_words(grad_learnt)

    padded = -(-length // size) * size
    start = (
        jnp.float32(0),
        jnp.zeros((rows, padded, dim), jnp.float32),
        of_words(jnp.zeros((head if new is None else learnt).shape, jnp.float32)),
    )
    total, grad_hidden, grad_learnt = jax.lax.fori_loop(0, steps, body, start)
    back = _places(weights)
    grad_hidden = jnp.take_along_axis(grad_hidden, back[..., None], axis=1)
    grad_learnt = grad_learnt[: len(learnt)]
    grads = (grad_learnt, None) if new is None else (None, (None, grad_learnt))
    return total, (grad_hidden, *grads, learnt)


def _backward(residuals, cotangent):
    *grads, learnt = residuals
    grads = jax.tree.map(lambda grad: (grad * cotangent).astype(learnt.dtype), grads)
    grad_hidden, grad_head, grad_new = grads
    return grad_hidden, grad_head, None, None, grad_new


cross_entropy.defvjp(_forward, _backward)


def _chunk_size(rows: int, length: int) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else mesh.shape['data'] * mesh.shape['fsdp']
    return min(length, max(1, CHUNK_TOKENS * ways // rows))


def _places(weights) -> jax.Array:
    """i32[R, T]: where each place goes, those with a weight to the front, otherwise in order.

    By sums: compilers for TPUs take longer for a sort than for all else here.
    """
    learnt = weights != 0
    before, others = (jnp.cumsum(x, axis=1, dtype=jnp.int32) - 1 for x in (learnt, ~learnt))
    return jnp.where(learnt, before, others + jnp.sum(learnt, axis=1, keepdims=True))


def _order(places) -> jax.Array:
    """i32[R, T]: the place that goes to each; the reverse of a permutation."""
    rows, length = places.shape
    here = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), places.shape)
    return (
        jnp.zeros_like(places).at[jnp.arange(rows)[:, None], places].set(here, unique_indices=True)
    )


def _compact(hidden, targets, weights, *more):
    """Returns (i -> hidden, targets, weights, more of chunk i of the compacted rows, chunks).

    targets, weights and each of `more`: [R, T]. chunks: so many hold all that has a weight.
    """
    rows, length, _ = hidden.shape
    size = _chunk_size(rows, length)
    padding = -length % size
    order = _order(_places(weights))
    moved = (
        jnp.take_along_axis(hidden, order[..., None], axis=1),
        *(jnp.take_along_axis(x, order, axis=1) for x in (targets, weights, *more)),
    )
    # The last chunk is padded with tokens of weight zero.
    moved = [jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2)) for x in moved]
    take = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=size, axis=1)
    needed = jnp.max(jnp.sum(weights != 0, axis=1))
    return lambda i: [take(x, i * size) for x in moved], (needed + size - 1) // size


def _logits(h, head, new) -> jax.Array:
    """f32[V, r, t] of h [r, t, D]; head, new: as of `cross_entropy`.

    The vocabulary comes first: with the weights as the left operand XLA's product on a CPU is up
    to twice as fast.
    """
    product = functools.partial(jnp.einsum, 'vd,rtd->vrt', preferred_element_type=jnp.float32)
    logits = product(head, h)
    return logits if new is None else logits.at[new[0]].set(product(new[1], h))


def _chunk_loss(logits, targets, weights):
    """Returns the loss sum and its gradient by the logits f32[V, r, t]."""
    most = jnp.max(logits, axis=0)
    log_total = most + jnp.log(jnp.sum(jnp.exp(logits - most), axis=0))
    right = jax.nn.one_hot(targets, logits.shape[0], dtype=jnp.bool_, axis=0)
    loss = jnp.sum(weights * (log_total - jnp.sum(jnp.where(right, logits, 0), axis=0)))
    # Computed again rather than kept: an array of the logits' size less.
    return loss, weights * (jnp.exp(logits - log_total) - right)


BY_NAME = {'sft': sft, 'pairwise': pairwise, 'orm': labelled, 'prm': labelled, 'pqm': pqm}
