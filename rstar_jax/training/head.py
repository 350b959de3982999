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

from rstar_jax.job import hosts
from rstar_jax.training import losses, packing, trainer
from rstar_jax.training.corpus import Encoded, Tell
from rstar_jax.training.defaults import HEAD_MOST
from rstar_jax.training.step import Compiled

MARGIN = 1.0
FOLDS = 5
STRENGTHS = 10.0 ** np.arange(-2, 2.5, 0.5)  # of the penalty, by the mean eigenvalue
LEAST_SPREAD = 1e-3  # of a dimension, as a share of the largest
CONSTANT = 1e-12  # less of a dimension's mean square is rounding, not spread


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
    count, done, found = sum(encoded.counts[i] for fold in folds for i in fold), 0, []
    middle, rows = 0.0, 0  # of pairs: the sum of both sides' means, and its number of rows
    for fold in folds:
        found.append(0.0)
        for start in range(0, len(fold), settings.batch_size):
            tell(done, count)
            part = fold[start : start + settings.batch_size]
            read = _read(compiled, params, encoded, part, loss, settings)
            inputs, targets, weights, *middles = map(np.concatenate, zip(*read))
            found[-1] += sums(inputs, targets, weights)
            if middles:
                middle, rows = middle + middles[0].sum(axis=0), rows + len(inputs)
            done += sum(encoded.counts[i] for i in part)
    tell(count, count)
    head = least_squares(found, centred=loss != 'pairwise')
    if loss == 'pairwise':  # which tells of differences alone: values around 0
        head['bias'] = -(head['weight'] @ (middle / rows)).astype(np.float32)
    return hosts.of_first(head)  # other hosts may round otherwise


def sums(inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """All that a fit by least squares needs of inputs [N, D]: Z'WZ [D + 2, D + 2] of Z = X, 1, y.

    Those of more rows are added.
    """
    rows = np.concatenate([inputs, np.ones((len(inputs), 1)), targets[:, None]], axis=1)
    return (rows * weights[:, None]).T @ rows


def least_squares(folds: Sequence[np.ndarray], centred: bool) -> dict[str, np.ndarray]:
    """The head that gives the targets of `folds`, each as of `sums`.

    Dimensions are brought to one spread before they are penalised. centred: apart from a bias,
    which the head has then.
    """
    total = sum(folds)
    total /= total[-2, -2]
    mean = total[-2] * centred
    mean[-2] = 0.0  # the ones stay
    squares = np.diag(total)
    apart = squares - np.square(mean)
    spread = np.sqrt(np.where(apart > CONSTANT * squares, apart, 0.0))[:-2]
    spread = np.maximum(spread, LEAST_SPREAD * spread.max() or 1.0)
    scaled = [_moved(fold, mean, spread) for fold in folds]
    weight = _solved(*_total(scaled), _strength(scaled)) / spread
    bias = mean[-1] - weight @ mean[:-2]
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
    """Of each micro batch inputs [N, D], targets [N], weights [N], as of `sums`; and of pairs the
    means of both sides' states [N, D]."""
    for batch in packing.Micros(encoded, indices, settings, compiled.mesh).batches:
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


def _moved(fold: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> tuple:
    """X'WX, X'Wy, y'Wy of `sums`, had (x - mean) / spread and y - mean been in them."""
    ones = fold[-2]
    fold = fold - np.outer(ones - ones[-2] * mean, mean) - np.outer(mean, ones)
    return fold[:-2, :-2] / np.outer(spread, spread), fold[:-2, -1] / spread, fold[-1, -1]


def _total(folds: Sequence[tuple]) -> tuple[np.ndarray, np.ndarray]:
    return sum(gram for gram, *_ in folds), sum(right for _, right, _ in folds)


def _strength(folds: Sequence[tuple]) -> float:
    """Of least squared error in the folds that the others are fitted without."""
    if len(folds) == 1:
        return 1.0
    gram, right = _total(folds)
    errors = np.zeros(len(STRENGTHS))
    for own_gram, own_right, squares in folds:
        for number, strength in enumerate(STRENGTHS):
            found = _solved(gram - own_gram, right - own_right, strength)
            errors[number] += squares - 2 * found @ own_right + found @ own_gram @ found
    return float(STRENGTHS[errors.argmin()])


def _solved(gram: np.ndarray, right: np.ndarray, strength: float) -> np.ndarray:
    penalty = strength * (np.trace(gram) / len(gram) or 1.0)
    return np.linalg.solve(gram + penalty * np.eye(len(gram)), right)
