"""Which search finds most for the same tokens: right trajectories, pairs, problems solved.

All variants search the same problems with the same policy and seed; of each, so many trees of every
problem as make up for about --tokens sampled tokens. Figures, each with the variant's name:

    tokens     sampled in all
    solved     problems with a right trajectory
    correct    right trajectories of different texts, for 10,000 sampled tokens
    pairs      preference pairs that curation would keep, for 10,000 sampled tokens
    seconds    that the search took, compiling included

    mcts           UCT, as in the released code
    all_answers    ... and every candidate becomes a child, not only the first that answers
    errors_once    ... and the error of a failed step counts once, not again behind it
    unvisited      ... and children without a visit come first
    puct           the policy's likelihood of a step as its prior
    first_right    UCT, and a tree ends with its first right answer
    beam, dvts     by PPM score; with --ppm only
    sampled        whole solutions, no tree
"""

import dataclasses
import time

from rstar_jax import data, models, search
from rstar_jax.data.annotated import annotate
from rstar_jax.settings.errors import UserError

VARIANTS = {
    'mcts': {},
    'all_answers': {'answers_kept': 'all'},
    'errors_once': {'failed_steps': 'once'},
    'unvisited': {'unvisited_value': 10.0},  # above any UCT value
    'puct': {'strategy': 'puct'},
    'first_right': {'stop_reward': 1.0},
    'beam': {'strategy': 'beam'},
    'dvts': {'strategy': 'dvts'},
    'sampled': {},
}
BY_SCORE = ('beam', 'dvts')
PER = 10_000  # tokens, to which counts are related


def run(
    *,
    model: str = '',
    problems: str = '',
    ppm: str = '',
    variants: str = '',
    count: int = 16,
    tokens: int = 3000,
    rollouts: int = 4,
    candidates: int = 8,
    width: int = 4,
    step_tokens: int = 256,
    error_threshold: int = 2,
    temperature: float = 0.7,
    prompt: str = 'few_shot',
    dtype: str = '',
    seed: int = 0,
) -> dict[str, float]:
    """Settings: variants, names separated by commas, all by default; tokens, sampled of each
    problem; width, beams. The others are those of a search.
    """
    if not model or not problems:
        raise UserError('bench strategies: needs --model and --problems')
    names = variants.split(',') if variants else [x for x in VARIANTS if ppm or x not in BY_SCORE]
    for name in names:
        if name not in VARIANTS:
            raise UserError(f'--variants={variants}: {name!r} is none of {", ".join(VARIANTS)}')
        if name in BY_SCORE and not ppm:
            raise UserError(f'--variants={variants}: {name} goes by scores, and needs --ppm')
    policy = models.load(model, dtype or None)
    scorer = models.load_ppm(ppm, dtype or None) if ppm else None
    chosen = data.load_problems(problems, count)
    base = search.Config(
        rollouts=rollouts,
        candidates=candidates,
        width=width,
        step_tokens=step_tokens,
        error_threshold=error_threshold,
        temperature=temperature,
        prompt=prompt,
    )
    figures: dict[str, float] = {}
    with search.Workers.start(base) as workers:
        for name in names:
            config = dataclasses.replace(base, **VARIANTS[name])
            if name == 'sampled':
                config = search.sampled(config)
            start = time.perf_counter()
            records = _grow(chosen, policy, scorer, config, workers, tokens * len(chosen), seed)
            found = _found(records) | {'seconds': time.perf_counter() - start}
            print(f'{name}: ' + ', '.join(f'{k} {v:.4g}' for k, v in found.items()), flush=True)
            figures |= {f'{key}_{name}': value for key, value in found.items()}
    return figures


def _grow(problems, policy, scorer, config, workers, budget: int, seed: int) -> list[search.Record]:
    """One tree of each problem, and then as many more as bring the tokens nearest to the budget."""
    settings = {'config': config, 'workers': workers, 'seed': seed}
    records = list(search.run(problems, policy, scorer, **settings))
    more = round(budget / max(_tokens(records), 1)) - 1
    if more > 0:
        done = frozenset(record.key for record in records)
        settings |= {'trees': 1 + more, 'skip': done}
        records += search.run(problems, policy, scorer, **settings)
    return sorted(records, key=lambda record: record.key)


def _tokens(records: list[search.Record]) -> int:
    return int(sum(record.counters['sampled_tokens'] for record in records))


def _found(records: list[search.Record]) -> dict[str, float]:
    texts = set()
    for record in records:
        tree = annotate(record)
        right = (x for x in tree.trajectories() if x.correct)
        texts |= {(record.problem['index'], tree.text(x.nodes)) for x in right}
    _, pairs = data.curate(records)
    tokens = _tokens(records)
    return {
        'tokens': tokens,
        'trees': len(records),
        'solved': len({index for index, _ in texts}),
        'correct': PER * len(texts) / tokens,
        'pairs': PER * len(pairs) / tokens,
    }
