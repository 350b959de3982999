"""The final table, out of the done.json files of a workdir."""

import io
import pathlib

from rstar_jax.job import ledger
from rstar_jax.report import terminal
from rstar_jax.stages import STAGES


def done(folder: pathlib.Path, seconds: float, **figures) -> None:
    ledger.write_json(
        folder / 'done.json', {'id': folder.name, 'seconds': seconds, 'figures': figures}
    )


def benchmark(greedy: float, search: dict | None) -> dict:
    modes = {'greedy': greedy, **{k: v for k, v in (search or {}).items() if k != 'trajectories'}}
    return {
        'problems': 16,
        'greedy': greedy,
        'search': search,
        'interval95': {mode: [share - 0.1, share + 0.1] for mode, share in modes.items()},
        'tokens_per_problem': 100.0,
        'seconds_per_problem': 1.5,
    }


def results(root: pathlib.Path, number: int, figures: dict) -> None:
    folder = root / f'round{number}' / 'eval'
    done(folder, 5, gsm8k=figures)
    content = {'round': number, 'benchmarks': {'gsm8k': figures}}
    ledger.write_json(folder / 'results.json', content)


def shown(root: pathlib.Path) -> str:
    stream = io.StringIO()
    terminal.show(root, STAGES, stream)
    return stream.getvalue()


def test_the_table_of_a_round(tmp_path):
    training = {'loss_first': 0.9, 'loss_last': 0.25, 'steps': 12, 'tokens_per_second': 431.2}
    done(tmp_path / 'round1' / 'search', 61, trees=16, problems=16, solved=5, nodes=645,
         tokens=56003, tokens_per_second=95.3)  # fmt: skip
    done(tmp_path / 'round1' / 'curate', 2, sft=8, pairs=40, trajectories=9)
    form = {'<code>': [8, 8], '<end_of_step>': [19, 20], '<output>': [0, 8]}
    done(tmp_path / 'round1' / 'policy', 30, **training, form_after=form)
    done(tmp_path / 'round1' / 'ppm', 3600, **training, pair_accuracy_before=0.5,
         pair_accuracy_after=0.75, held_out_pairs=40, held_out_problems=4,
         answer_accuracy_before=0.25, answer_accuracy_after=0.75, answer_pairs=40,
         answer_problems=40)  # fmt: skip
    results(tmp_path, 0, benchmark(0.25, None))
    modes = {'trajectories': 8, 'best': 0.5, 'majority': 0.4375, 'weighted': 0.5, 'any': 0.75}
    results(tmp_path, 1, benchmark(0.3125, modes))
    export = tmp_path / 'round1' / 'export'
    done(export, 1, policy=str(export / 'policy'))
    lines = shown(tmp_path).splitlines()
    text = '\n'.join(' '.join(line.split()) for line in lines)
    assert (
        '1 search 1:01 16 trees, 645 nodes, 56,003 tokens generated (95/s), '
        '5 of 16 problems solved' in text
    )
    assert '1 curate 0:02 8 SFT examples, 40 preference pairs, 9 trajectories' in text
    assert '1 sft 0:30 loss 0.900 -> 0.250 in 12 steps (431 tokens/s), marks' in text
    assert 'marks likeliest where due: at least 95.0 % (<end_of_step>)' in text
    assert 'pair accuracy 50.0 % -> 75.0 % (40 pairs of 4 problems: WITHIN CHANCE), held' in text
    assert 'held-out answer accuracy 25.0 % -> 75.0 % (40 pairs of 40 problems)' in text
    assert 'all 1:01:44' in text
    for share in ('25.0', '31.2', '50.0', '43.8', '75.0'):
        assert share in text
    assert f'round 1 policy {export / "policy"}' in text
    assert 'bootstrap' not in text


def test_a_workdir_without_results_has_an_empty_table(tmp_path):
    (tmp_path / 'round1').mkdir()
    assert 'all' in shown(tmp_path)
