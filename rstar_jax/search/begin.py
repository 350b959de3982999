"""Problems in, finished trees out: what a search needs is made here, and `loop` runs it."""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rstar_jax import parallel, steps
from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record
from rstar_jax.search.budget import Budget
from rstar_jax.search.children import Judge, Workers, announce
from rstar_jax.search.config import Config
from rstar_jax.search.endpoint import Endpoint, Remote
from rstar_jax.search.engine import Engine, sampling
from rstar_jax.search.expander import Expander
from rstar_jax.search.loop import Loop
from rstar_jax.search.nodes import HostTree, Node
from rstar_jax.search.share import ALL, Queue, Share
from rstar_jax.search.totals import Totals
from rstar_jax.settings.errors import UserError

QUESTIONS = ('What is 2 + 3?', 'How many primes are below 100?')  # of no common beginning


def run(
    problems: Iterable[Problem | Mapping[str, Any]],
    policy=None,
    ppm=None,
    *,
    config: Config,
    expander: Expander | None = None,
    seed: int = 0,
    trees: int = 1,
    share: Share = ALL,
) -> Iterator[Record]:
    """Searches and yields each tree as it is finished, in no fixed order.

    Args:
      problems: {'index', 'question', 'answer', ...} each.
      policy: models.Policy that writes the steps, or an Endpoint; or give `expander`.
      ppm: models.PPM that scores them, or None.
      config: what is searched.
      expander: writes the steps in place of models, such as `scripted(...)`.
      seed: of the sampling. A tree is the same for the same seed, problem index and tree number,
        whatever else is searched beside it.
      trees: trees to grow for each problem, numbered from 0.
      share: which of them are searched here, and with what; all, by default.

    Raises:
      UserError: neither policy nor expander is given, a problem has no index or question, or no
        answer where config.use_ground_truth asks for one, or a setting is out of range.
    """
    if (policy is None) == (expander is None):
        raise UserError('policy', expected='search.run needs either a policy or an expander')
    problems = _checked(problems, config)
    wanted = [(p, t) for p in problems for t in range(trees) if (p.index, t) not in share.skip]
    total = share.count(wanted)
    if not total:
        return
    make = functools.partial(
        new_tree, seed=seed, config=config, tokenizer=tokenizer_of(policy, ppm)
    )
    with contextlib.ExitStack() as stack:
        if expander is None:
            expander = make_expander(policy, ppm, config, share.mesh, total)
            stack.callback(expander.close)
            announce(f'search: {expander.plan}')
        workers = share.workers or stack.enter_context(Workers.start(config))
        budget = Budget(config, workers.grader.classes)
        for record in share.earlier if config.in_order else ():
            budget.add(record)
        totals = Totals(total, expander.counters, share.progress)
        queue = Queue(share.wanted(wanted, trees, config.in_order), budget, totals)
        snapshots = None if config.one_size else share.snapshots
        loop = Loop(queue, make, expander, Judge(config, workers, expander), snapshots)
        yield from loop.run()


def _checked(problems: Iterable[Problem | Mapping[str, Any]], config: Config) -> list[Problem]:
    """The problems; raises UserError where one lacks what a search goes by."""
    problems = list(map(Problem.of, problems))
    needed = ('index', 'question', 'answer') if config.use_ground_truth else ('index', 'question')
    for problem in problems:
        if any(getattr(problem, key) is None for key in needed):
            unless = ', and an answer unless use_ground_truth=False' * config.use_ground_truth
            raise UserError(
                'problems',
                f'{problem.to_dict()!s:.99}',
                f'needs an index and a question, as of data.load_problems{unless}',
            )
    return problems


def tokenizer_of(policy, ppm):
    """Of the tokens that a tree holds: the policy's; the PPM's where the policy is elsewhere."""
    owner = ppm if isinstance(policy, Endpoint) else policy
    return owner.tokenizer if owner is not None else None


def make_expander(policy, ppm, config: Config, mesh, total: int) -> Expander:
    """What writes the steps for a policy; mesh: as of `Share`; total: trees to search in all.

    Raises UserError: see `template`.
    """
    mesh = mesh or parallel.local_mesh(tensor=config.tensor)
    if isinstance(policy, Endpoint):
        return Remote(policy, ppm, config, mesh, total)
    prompts = template(config, policy.tokenizer)
    if config.path_tokens > policy.config.max_length:
        announce(
            f'search: path_tokens={config.path_tokens}, but the policy was made for texts of up to '
            f'{policy.config.max_length} tokens: what it writes behind them is worth little'
        )
    return Engine(policy, ppm, config, mesh, total, prompts)


def template(config: Config, tokenizer) -> list[list[int]]:
    """Token ids of prompts that have nothing in common but how the template begins.

    Raises:
      UserError: paths are so short that no step fits behind any prompt.
    """
    orders = range(steps.ORDERS) if config.examples == 'shuffled' else (0,)
    prompts = [steps.prompt(q, config.prompt, order) for q in QUESTIONS for order in orders]
    found = [tokenizer(prompt)['input_ids'] for prompt in prompts]
    shortest = min(map(len, found))
    if shortest > config.prompt_tokens:
        raise UserError(
            'path_tokens',
            config.path_tokens,
            f'a prompt has {shortest} tokens, more with a longer question, which leaves no room '
            f'for a step of step_tokens={config.step_tokens}',
            'raise path_tokens of search or eval, or lower step_tokens',
        )
    return found


def new_tree(problem: Problem, number: int, *, seed: int, config: Config, tokenizer) -> HostTree:
    """A tree of its root alone."""
    tree = HostTree(problem, number, seed, '', [])
    order = 0
    if config.examples == 'shuffled':
        order = int(sampling.key_of(*tree.seeds, 'examples')[0])
    tree.prompt = steps.prompt(problem.question, config.prompt, order)
    tree.nodes.append(Node(tokens=tokenizer(tree.prompt)['input_ids'] if tokenizer else []))
    return tree
