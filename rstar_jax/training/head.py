"""The scalar head of a reward model, fitted before its decoder is trained.

A new head knows nothing, and what it sends back at first changes a decoder that may hold what there
is to know: out of few problems such a training learns these problems by heart (linear probing, then
fine-tuning: arXiv 2202.10054). A fitted head begins as the best that the hidden states of the
decoder, as it is, allow: by least squares with a penalty, whose strength is the one with which the
values of left out problems are told best.

    pairwise    r(better) - r(worse) is to be MARGIN, weighted as in the loss
    others      r is to be the target, on the scale of values in use
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rstar_jax import parallel
from rstar_jax.training import losses, packing, trainer
from rstar_jax.training.defaults import HEAD_MOST
from rstar_jax.training.examples import Encoded, Tell
from rstar_jax.training.step import Compiled

MARGIN = 1.0
FOLDS = 5
STRENGTHS = 10.0 ** np.arange(-2, 2.5, 0.5)  # of the penalty, by the mean eigenvalue
LEAST_SPREAD = 1e-3  # of a dimension, as a share of the largest

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # inputs [N, D], targets [N], weights [N]


def fitted(
    compiled: Compiled,
    params: Any,
    encoded: Encoded,
    indices: Sequence[int],
    loss: str,
    settings,
    tell: Tell,
) -> dict[str, np.ndarray]:
    """The head for the decoder in `params`, a training's. All processes call this.

    Args:
      compiled: what runs the decoder.
      encoded, indices: the examples, and which of them to fit to.
      loss: a name in losses.BY_NAME, whose targets it is fitted to.
      tell: called with (examples read, their number).

    Returns:
      weight f32[1, D], bias f32[1], as of heads.init_value_head.

    Raises:
      Stopped: asked to end; there is nothing to save yet.
    """
    folds = _dealt(encoded, indices, settings.seed)
    count, done, rows = sum(encoded.counts[i] for fold in folds for i in fold), 0, []
    for fold in folds:
        parts = []
        for start in range(0, len(fold), settings.batch_size):
            tell(done, count)
            part = fold[start : start + settings.batch_size]
            parts += _read(compiled, params, encoded, part, loss, settings)
            done += sum(encoded.counts[i] for i in part)
        rows.append(tuple(map(np.concatenate, zip(*parts))))
    tell(count, count)
    head = least_squares([row[:3] for row in rows], centred=loss != 'pairwise')
    if loss == 'pairwise':  # which tells of differences alone: values around 0
        middle = np.concatenate([row[3] for row in rows]).mean(axis=0)
        head['bias'] = -(head['weight'] @ middle).astype(np.float32)
    return parallel.of_first(head)  # other hosts may round otherwise


def least_squares(folds: Sequence[Rows], centred: bool) -> dict[str, np.ndarray]:
    """The head that gives the targets of `folds`; centred: apart from a bias, which it has then.

    Dimensions are brought to one spread before they are penalised.
    """
    inputs, targets, weights = map(np.concatenate, zip(*folds))
    mean, level = np.zeros(inputs.shape[1]), 0.0
    if centred:
        mean = np.average(inputs, axis=0, weights=weights)
        level = float(np.average(targets, weights=weights))
    spread = np.sqrt(np.average(np.square(inputs - mean), axis=0, weights=weights))
    spread = np.maximum(spread, LEAST_SPREAD * spread.max() or 1.0)
    sums = [_sums((x - mean) / spread, y - level, w) for x, y, w in folds]
    weight = _solved(*_total(sums), _strength(sums)) / spread
    bias = level - weight @ mean
    return {'weight': weight[None].astype(np.float32), 'bias': np.array([bias], np.float32)}


def places(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """i32[R, P]: where a loss reads values in each row of a micro batch, the rest 0.

    P goes by the rows' length. Of pairs the preferred sides come first, then as many places for
    the others.
    """
    rows, length = batch['tokens'].shape
    found = np.zeros((rows, max(length // 4, 2 * packing.slots(length))), np.int32)
    if 'chosen' in batch:
        both = np.concatenate([batch['chosen'], batch['rejected']], axis=1)
        found[:, : both.shape[1]] = both
        return found
    for row, weights in zip(found, batch['weights']):
        read = np.nonzero(weights)[0][: len(row)]
        row[: len(read)] = read
    return found


def _dealt(encoded: Encoded, indices: Sequence[int], seed: int) -> list[list[int]]:
    """Examples by folds, those of one problem together; none is empty."""
    rng = np.random.default_rng(seed)
    mixed = rng.permutation(np.asarray(indices))
    before = np.cumsum([0, *(encoded.counts[i] for i in mixed)])[:-1]
    chosen = mixed[before < HEAD_MOST].tolist()
    questions = list(dict.fromkeys(encoded.questions[i] for i in chosen))
    fold_of = {question: number % FOLDS for number, question in enumerate(questions)}
    folds: list[list[int]] = [[] for _ in range(min(FOLDS, len(questions)))]
    for i in chosen:
        folds[fold_of[encoded.questions[i]]].append(i)
    return folds


def _read(
    compiled: Compiled, params, encoded: Encoded, indices: Sequence[int], loss: str, settings
) -> Iterator[tuple[np.ndarray, ...]]:
    """Of each micro batch Rows, and of pairs the means of both sides' states [N, D]."""
    for batch in trainer.Micros(encoded, indices, settings, compiled.mesh).batches:
        trainer.agreed()
        where = places(batch)
        states = np.asarray(compiled.read(params, batch, where), np.float64)
        if loss == 'pairwise':
            count = batch['chosen'].shape[1]
            better, worse = states[:, :count], states[:, count : 2 * count]
            states, middle = better - worse, [(better + worse) / 2]
            weights = batch['pair_weights']
            targets = np.full(weights.shape, MARGIN)
        else:
            middle = []
            count = (batch['weights'] != 0).sum(axis=1, keepdims=True)
            first = np.arange(where.shape[1]) < count
            weights = first * np.take_along_axis(batch['weights'], where, axis=1)
            targets = _raw(np.take_along_axis(batch['targets'], where, axis=1), loss, settings)
        read = weights > 0
        weights = weights.astype(np.float64)
        yield tuple(x[read] for x in (states, targets, weights, *middle))


def _raw(targets: np.ndarray, loss: str, settings) -> np.ndarray:
    """Raw values whose squashed ones are near the targets."""
    values = targets if loss == 'pqm' else 2 * targets - 1
    return values * (2 / losses.LOGIT[settings.squash])


def _sums(inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple:
    """All that a fit by least squares needs of rows: X'WX, X'Wy, y'Wy."""
    weighted = inputs * weights[:, None]
    return weighted.T @ inputs, weighted.T @ targets, weights @ np.square(targets)


def _total(sums: Sequence[tuple]) -> tuple[np.ndarray, np.ndarray]:
    return sum(gram for gram, *_ in sums), sum(right for _, right, _ in sums)


def _strength(sums: Sequence[tuple]) -> float:
    """Of least squared error in the folds that the others are fitted without."""
    if len(sums) == 1:
        return 1.0
    gram, right = _total(sums)
    errors = np.zeros(len(STRENGTHS))
    for own_gram, own_right, squares in sums:
        for number, strength in enumerate(STRENGTHS):
            found = _solved(gram - own_gram, right - own_right, strength)
            errors[number] += squares - 2 * found @ own_right + found @ own_gram @ found
    return float(STRENGTHS[errors.argmin()])


def _solved(gram: np.ndarray, right: np.ndarray, strength: float) -> np.ndarray:
    penalty = strength * (np.trace(gram) / len(gram) or 1.0)
    return np.linalg.solve(gram + penalty * np.eye(len(gram)), right)
