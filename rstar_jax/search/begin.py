"""Problems in, finished trees out: what a search needs is made here, and `loop` runs it."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from rstar_jax import parallel, steps
from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record
from rstar_jax.search import flight
from rstar_jax.search.children import Workers, announce
from rstar_jax.search.config import Config
from rstar_jax.search.endpoint import Endpoint, Remote
from rstar_jax.search.engine import Engine, sampling
from rstar_jax.search.expander import Expander
from rstar_jax.search.host import HostTree, Node
from rstar_jax.search.loop import Item, Loop
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
    skip: frozenset = frozenset(),
    earlier: Iterable[Record] = (),
    progress: Callable[[dict[str, float]], None] | None = None,
    mesh=None,
    workers: Workers | None = None,
    leases: Iterable[list[Item]] | None = None,
    total: int = 0,
    flights: flight.Flights | None = None,
) -> Iterator[Record]:
    """Searches and yields each tree as it is finished, in no fixed order.

    Args:
      problems: Problems, or their rows {'index', 'question', 'answer', ...}.
      policy: models.Policy that writes the steps; or give `expander`.
      ppm: models.PPM that scores them, or None.
      config: what is searched.
      expander: writes the steps in place of models, such as `scripted(...)`.
      seed: of the sampling. A tree is the same for the same seed, problem index and tree number,
        whatever else is searched beside it.
      trees: trees to grow for each problem, numbered from 0.
      skip: (problem index, tree number) of trees that are not wanted, such as those done before.
      earlier: trees done before; looked at with config.tokens and config.agree alone.
      progress: called about once a second with the totals so far.
      mesh: local mesh (data, tensor); all devices of this host by default.
      workers: started worker processes, to be shared by several searches; started and stopped
        here by default.
      leases: which of these trees are searched here, some at a time, each asked for when there is
        room for more; an empty one, where none is there now. All, by default. Where a problem's
        trees grow in order, one of its trees stands for all.
      total: trees to search here at most, where `problems` are known by the leases alone.
      flights: keeps trees in flight, so that a search that was killed goes on inside of them. Their
        paths are then read in, which rounds otherwise than writing them: not with `one_size`.

    Raises:
      UserError: neither policy nor expander is given, a problem has no index or question, or no
        answer where config.use_ground_truth asks for one, or a setting is out of range.
    """
    if (policy is None) == (expander is None):
        raise UserError('search.run: give either a policy or an expander')
    problems = list(map(Problem.of, problems))
    needed = ('index', 'question', 'answer') if config.use_ground_truth else ('index', 'question')
    for problem in problems:
        if any(getattr(problem, key) is None for key in needed):
            unless = ', and an answer unless use_ground_truth=False' * config.use_ground_truth
            raise UserError(
                f'problem {problem.to_dict()!s:.99}: needs an index and a question, as of '
                f'data.load_problems{unless}'
            )
    todo = [(p, t) for p in problems for t in range(trees) if (p.index, t) not in skip]
    if not todo and not total:
        return
    total = total or -(-len(todo) // (1 if leases is None else jax.process_count()))
    here = [todo] if leases is None else leases
    flights = None if config.one_size else flights
    if leases is not None and config.in_order:
        here = ([(p, t) for p, _ in lease for t in range(trees)] for lease in leases)
    wanted = ([i for i in lease if (i[0].index, i[1]) not in skip] for lease in here)
    tokenizer = tokenizer_of(policy, ppm)
    make = functools.partial(new_tree, seed=seed, config=config, tokenizer=tokenizer)
    with contextlib.ExitStack() as stack:
        if expander is None:
            expander = make_expander(policy, ppm, config, mesh, total)
            stack.callback(expander.close)
            announce(f'search: {expander.plan}')
        workers = workers or stack.enter_context(Workers.start(config))
        totals = Totals(total, expander.counters, progress)
        loop = Loop(wanted, make, expander, config, workers, totals, flights)
        if config.in_order:
            for record in earlier:
                loop.spending.add(record)
        yield from loop.run()


def items(problems: Iterable[Problem], trees: Iterable[int]) -> list[Item]:
    """(problem, number of the tree), in the order in which they are best begun.

    The trees of long questions take longer, and what begins last should end soon: longest first.
    """
    longest = sorted(problems, key=lambda problem: -len(problem.question))
    numbers = tuple(trees)
    return [(problem, tree) for problem in longest for tree in numbers]


def tokenizer_of(policy, ppm):
    """Of the tokens that a tree holds: the policy's; the PPM's where the policy is elsewhere."""
    owner = ppm if isinstance(policy, Endpoint) else policy
    return owner.tokenizer if owner is not None else None


def make_expander(policy, ppm, config: Config, mesh, total: int) -> Expander:
    """What writes the steps for a policy; mesh: as of `run`; total: trees to search in all.

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
            f'path_tokens={config.path_tokens}: a prompt has {shortest} tokens, more with a longer '
            f'question, which leaves no room for a step of step_tokens={config.step_tokens}: raise '
            'path_tokens of search or eval, or lower step_tokens'
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
