"""One question, solved by the search without knowing the answer, and told step by step."""

import pathlib

from ml_collections import ConfigDict

from rstar_jax import configs, grading, search, sources, steps
from rstar_jax.progress import Events, Line
from rstar_jax.search import Record, Status

MARKS = (
    steps.CODE,
    steps.STEP_END,
    steps.CODE_END,
    steps.OUTPUT,
    steps.OUTPUT_END,
    steps.ANSWER,
    steps.ANSWER_END,
)


def solve(config: ConfigDict, workdir: str = '') -> str:
    """Searches `config.question` and returns the chosen solution as text.

    Chosen is the trajectory with the highest PPM score; without a PPM, the first of those whose
    answer is the commonest.

    Args:
      config: policy.path, ppm.path, search.* and question are read.
      workdir: where "previous" models are looked for.
    """
    number = max(1, config.first_round)
    round_ = sources.Round(
        configs.for_round(config, number), pathlib.Path(workdir), number, Events(None)
    )
    problem = {'index': 0, 'question': config.question, 'answer': ''}
    line = Line('searching')
    records = list(
        search.run(
            [problem],
            sources.searching_policy(round_),
            sources.searching_ppm(round_),
            config=sources.search_config(round_.config, use_ground_truth=False),
            seed=config.seed,
            trees=config.search.trees,
            progress=lambda now: line.show(
                f'{now["tokens"]:,} tokens, {now["tokens_per_second"]:.0f}/s'
            ),
        )
    )
    found = [
        (record, int(node))
        for record in sorted(records, key=lambda record: record.tree)
        for node in (record.status == Status.ANSWER).nonzero()[0]
    ]
    if not found:
        return (
            f'No answer found in {len(records)} trees. Raise --config.search.rollouts or '
            '--config.search.trees.'
        )
    return _told(config.question, found, *choose(found))


def choose(found: list[tuple[Record, int]]) -> tuple[int, str]:
    """(which of `found`, a list of records and ANSWER nodes, is the best; why)."""
    answers = [record.answers[node] for record, node in found]
    groups = grading.classes(answers)
    scores = [float(record.score[node]) for record, node in found]
    if scores[0] == scores[0]:  # not nan: there is a PPM
        chosen = max(range(len(found)), key=scores.__getitem__)
        why = f'PPM score {scores[chosen]:.3f}'
    else:
        chosen = groups.index(max(dict.fromkeys(groups), key=groups.count))
        why = 'the commonest answer'
    agree = groups.count(groups[chosen])
    return chosen, f'{why}; {agree} of {len(found)} trajectories agree'


def _told(question: str, found: list[tuple[Record, int]], chosen: int, why: str) -> str:
    record, last = found[chosen]
    lines = [f'Question: {question}', '']
    for number, node in enumerate(record.trajectory(last), start=1):
        text = record.texts[node]
        for mark in MARKS:
            text = text.replace(mark, '\nOutput: ' if mark == steps.OUTPUT else '')
        lines.append(f'Step {number}')
        lines += [f'    {line}' for line in text.splitlines() if line.strip()]
        lines.append('')
    lines.append(f'Answer: {record.answers[last]}   ({why})')
    return '\n'.join(lines)
