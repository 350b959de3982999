"""One question, solved by the search without knowing the answer, and told step by step."""

import dataclasses
import pathlib
import sys

from ml_collections import ConfigDict

from rstar_jax import data, execution, report, search, stages, steps
from rstar_jax.grading import votes
from rstar_jax.job import ledger
from rstar_jax.job.progress import Line
from rstar_jax.report import trees
from rstar_jax.search import Record
from rstar_jax.settings.errors import UserError, of_setting, one_line
from rstar_jax.stages import checkpoints, searches
from rstar_jax.stages.stage import Ahead


def solve(config: ConfigDict, workdir: str = '') -> str:
    """Searches `config.question` and returns the chosen solution as text.

    Chosen is the trajectory with the highest PPM score; without a PPM, the first of those whose
    answer is the commonest.

    Args:
      config: policy.path, ppm.path, search.* and question are read.
      workdir: where "previous" models are looked for; the trees stay there, to be looked at.

    Raises:
      UserError: the question is too long, or the workdir cannot be written.
    """
    if workdir:
        ledger.check_writable(pathlib.Path(workdir))
    round_ = stages.asked(config, workdir)
    checkpoints.check_searching(round_, Ahead())
    with of_setting('execution'):
        execution.check(searches.isolation(round_.config))
    problem = data.Problem(0, config.question, '')
    with Line('searching') as line, searches.of_settings():
        records = list(
            search.run(
                [problem],
                checkpoints.searching_model(round_, 'policy'),
                checkpoints.searching_model(round_, 'ppm'),
                config=searches.search_config(round_.config, use_ground_truth=False),
                seed=config.seed,
                trees=config.search.trees,
                share=search.Share(
                    progress=lambda now: line.show(
                        f'{now["tokens"]:,} tokens, {now["tokens_per_second"]:.0f}/s'
                    )
                ),
            )
        )
    records.sort(key=lambda record: record.tree)
    tokens, room = len(records[0].tokens[0]), round_.config.search.path_tokens
    if tokens > room:
        raise UserError(
            'question',
            expected=f'{tokens} tokens with its prompt, which have no room in path_tokens={room}',
            remedy='raise search.path_tokens',
        )
    found = answers_of(records)
    text = (
        f'No answer found in {len(records)} trees. Raise --config.search.rollouts or '
        '--config.search.trees.'
    )
    shown = records[0].tree
    if found:
        chosen, why = choose(found)
        text, shown = _told(config.question, found, chosen, why), found[chosen][0].tree
    if not workdir:
        return text
    try:
        where = _keep(records, round_.root, shown)
    except (UserError, OSError, RuntimeError) as error:  # the last is array_record's of a disk
        where = f'Tree: not kept ({one_line(error)})'
    return f'{text}\n\n{where}'


def _keep(records: list[Record], root: pathlib.Path, shown: int) -> str:
    """Puts the trees beside those of earlier questions, and into the page; tells where one is."""
    with data.TreeStore(root / trees.SOLVE) as store:
        earlier = store.keys()
        number = 1 + max((index for index, _ in earlier), default=-1)
        for record in records:
            problem = dataclasses.replace(record.problem, index=number)
            store.append(dataclasses.replace(record, problem=problem))
    page = report.attempt(root, stages.STAGES, [number])
    where = f'{page}#tree={trees.SOLVE}-{number}-{shown}' if page else store.directory
    return f'Tree: {where}'


def answers_of(records: list[Record]) -> list[tuple[Record, int]]:
    """(tree, node) of every answer, in the order of the trees."""
    return [
        (record, node)
        for record in sorted(records, key=lambda record: record.tree)
        for node in record.answer_nodes
    ]


def choose(found: list[tuple[Record, int]]) -> tuple[int, str]:
    """(which of `found`, a list of records and ANSWER nodes, is the best; why)."""
    voted = votes.count([record.answers[node] for record, node in found])
    scores = [float(record.score[node]) for record, node in found]
    if scores[0] == scores[0]:  # not nan: there is a PPM
        chosen = max(range(len(found)), key=scores.__getitem__)
        why = f'PPM score {scores[chosen]:.3f}'
    else:
        chosen = voted.winner
        why = 'the commonest answer'
    return chosen, f'{why}; {voted.of(chosen)} of {len(found)} trajectories agree'


def _told(question: str, found: list[tuple[Record, int]], chosen: int, why: str) -> str:
    record, last = found[chosen]
    lines = [f'Question: {question}', '']
    for number, node in enumerate(record.trajectory(last), start=1):
        text = record.texts[node]
        for mark in steps.TEMPLATE_MARKS:
            text = text.replace(mark, '\nOutput: ' if mark == steps.OUTPUT else '')
        lines.append(f'Step {number}')
        lines += [f'    {line}' for line in text.splitlines() if line.strip()]
        lines.append('')
    lines.append(f'Answer: {record.answers[last]}   ({why})')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit('use python -m rstar_jax.main --config=experiments/solve.py (--help: its settings)')
