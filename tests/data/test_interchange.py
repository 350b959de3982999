import json

import numpy as np
import pytest

from rstar_jax import data
from rstar_jax.data import files
from rstar_jax.data.examples import ExampleWriter
from rstar_jax.settings.errors import UserError
from tests.data import samples

PAIRS = [
    {'prompt': 'p\n', 'pos': 'good ≥', 'neg': 'bad', 'pos_count': 2, 'neg_count': 1},
    {'prompt': 'q', 'pos': 'x', 'neg': 'y', 'pos_count': 1, 'neg_count': 4},
]
SFT = [{'query': 'q?', 'response': 'a\n<end_of_step>'}, {'query': 'é', 'response': ''}]
KEYS = ['text', 'extra_info', 'action', 'action_input', 'observation', 'final_answer']
KEYS += ['value', 'q_value', 'visit_count']


def test_trees_round_trip(tmp_path):
    records = [samples.grown(s, index=s // 2, number=s % 2, ppm=s > 3) for s in range(6)]
    path = tmp_path / 'trees.jsonl'
    assert data.export_trees(records, path) == 6
    lines = path.read_text(encoding='utf-8').splitlines()
    assert len(lines) == 6
    first = json.loads(lines[0])
    assert list(first) == ['index', 'question', 'answer', 'rstar']
    assert first['rstar']['0']['extra_info'] == 'question: Question 0?'
    assert all(list(node) == KEYS for node in first['rstar'].values())
    assert list(data.import_trees(path)) == [r.to_interchange() for r in records]
    again = tmp_path / 'again.jsonl'
    data.export_trees(data.import_trees(path), again)
    assert again.read_bytes() == path.read_bytes()


def test_trees_into_a_store(tmp_path):
    records = [samples.grown(s, index=s % 3, number=s // 3) for s in range(6)]
    trees = [record.to_interchange() for record in records]
    with data.TreeStore(tmp_path) as store:
        assert data.store_trees(trees, store) == 6
        assert store.keys() == {r.key for r in records}
        assert data.curate(store) == data.curate(sorted(records, key=lambda r: r.key))
        assert data.store_trees(trees, store) == 0
    with pytest.raises(UserError, match="index 'a'"):
        data.store_trees([{**trees[0], 'index': 'a'}], store)


def test_what_was_never_visited_needs_no_value(tmp_path):
    one = samples.tree([('a', 1.0, [('b', 1.0, 'right')]), ('c', 0.0, 'open'), ('d', 0.0, 'open')])
    one['rstar']['0.2'].update(q_value=None, visit_count=None)
    del one['rstar']['0.3']['q_value']
    one['rstar']['0.3'].update(visit_count=0)
    with data.TreeStore(tmp_path) as store:
        data.store_trees([one], store)
        (record,) = store
        assert data.curate(store) == data.curate([one])
    assert np.isfinite(record.value_sum).all()


def test_verdicts_survive_wide_trees_and_ppm_scores_on_answers(tmp_path):
    one = samples.tree([(f'step {i}', 0.1, 'wrong' if i % 3 else 'right') for i in range(12)])
    for i in range(12):
        q = (-0.5 if i % 3 else 0.5) / 2  # reward, and a score of half its size against it
        one['rstar'][f'0.{i + 1}'].update(q_value=q, visit_count=2)
    with data.TreeStore(tmp_path) as store:
        data.store_trees([one], store)
        (record,) = store
    assert record.correct == [False] + [i % 3 == 0 for i in range(12)]


def test_sft_and_preference_round_trip(tmp_path):
    for name, items in [('sft', SFT), ('preference', PAIRS)]:
        path = tmp_path / f'{name}.json'
        assert data.write_json_items(iter(items), path) == 2
        assert json.loads(path.read_text(encoding='utf-8')) == items
        assert list(getattr(data, f'import_{name}')(path)) == items
    assert data.write_json_items([], tmp_path / 'empty.json') == 0
    assert json.loads((tmp_path / 'empty.json').read_text()) == []


def test_trl_preference(tmp_path):
    path = tmp_path / 'trl.jsonl'
    data.export_trl_preference(PAIRS, path)
    lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
    assert lines[0] == {'prompt': 'p\n', 'chosen': 'good ≥', 'rejected': 'bad'}
    back = list(data.import_trl_preference(path))
    assert back == [{**p, 'pos_count': 1, 'neg_count': 1} for p in PAIRS]


def test_the_form_of_pairs_is_known_from_the_first(tmp_path, monkeypatch):
    released, trl, read = tmp_path / 'pairs.json', tmp_path / 'trl.jsonl', []
    data.write_json_items(PAIRS, released)
    data.export_trl_preference(PAIRS, trl)
    monkeypatch.setattr(
        files, 'read_json_items', lambda p, f=files.read_json_items: read.append(p) or f(p)
    )
    assert list(data.import_pairs(released)) == PAIRS
    assert list(data.import_pairs(trl)) == [{**p, 'pos_count': 1, 'neg_count': 1} for p in PAIRS]
    assert len(read) == 2  # each once: a JSON list is parsed as a whole


def test_trl_stepwise(tmp_path):
    one = samples.tree(
        [
            ('a', 0.0, [('b', 1.0, 'right'), ('c', -1.0, 'wrong')]),
            ('d', -0.9, [('e', -1.0, 'wrong')]),
            ('f', 0.9, [('g', -1.0, 'code'), ('h', 0.0, 'open')]),
        ]
    )
    path = tmp_path / 'steps.jsonl'
    assert data.export_trl_stepwise([one], path) == 3
    expected = [
        {'prompt': 'How many?', 'completions': ['a', 'b'], 'labels': [True, True]},
        {'prompt': 'How many?', 'completions': ['a', 'c'], 'labels': [True, False]},
        {'prompt': 'How many?', 'completions': ['d', 'e'], 'labels': [False, False]},
    ]
    assert [json.loads(line) for line in path.read_text().splitlines()] == expected


@pytest.mark.parametrize(
    'name, text, message',
    [
        ('sft', '[{"query": "a"}]', 'item 1: no usable response'),
        ('preference', '{"prompt": "", "pos": "a", "neg": "b", "pos_count": 1}', 'neg_count'),
        (
            'preference',
            '{"prompt": "", "pos": "a", "neg": "b", "pos_count": 0, "neg_count": 1}',
            'expected at least 1',
        ),
        ('trl_preference', '{"prompt": "", "chosen": ["a"]}', 'line 1: no usable chosen'),
        ('trees', '{"index": 1}', "expected JSONL objects with a field 'rstar'"),
    ],
)
def test_wrong_files(tmp_path, name, text, message):
    path = tmp_path / 'wrong.jsonl'
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        list(getattr(data, f'import_{name}')(path))
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_failed_export_leaves_the_old_file(tmp_path):
    path = tmp_path / 'sft.json'
    data.write_json_items(SFT, path)

    def failing():
        yield SFT[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        data.write_json_items(failing(), path)
    with pytest.raises(RuntimeError):
        data.store_examples(tmp_path, 'sft', failing())
    assert list(data.import_sft(path)) == SFT
    assert [p.name for p in tmp_path.iterdir()] == ['sft.json']


def test_examples_are_a_sequence_read_on_demand(tmp_path):
    items = [{**PAIRS[0], 'pos': str(i)} for i in range(150)]
    assert data.store_examples(tmp_path, 'pairs', iter(items)) == 150
    examples = data.load_examples(tmp_path, 'pairs')
    assert len(examples) == 150 and list(examples) == items
    assert examples[7] == items[7] and examples[-1] == items[-1] and examples[3:5] == items[3:5]
    with pytest.raises(IndexError):
        examples[150]
    assert data.store_examples(tmp_path, 'sft', []) == 0
    assert list(data.load_examples(tmp_path, 'sft')) == []
    for kind, message in [('orm', 'expected one of'), ('pairs', 'no pairs')]:
        with pytest.raises(UserError, match=message):
            data.load_examples(tmp_path / 'none', kind)


def test_long_sets_are_cut_and_only_whole_sets_are_read(tmp_path):
    def store(count, size):
        with ExampleWriter(tmp_path, 'sft', size) as out:
            for i in range(count):
                out.write({'query': str(i), 'response': ''})
        return sorted(p.name[4:-13] for p in tmp_path.iterdir())

    assert store(7, 3) == ['00000-of-00003', '00001-of-00003', '00002-of-00003']
    examples = data.load_examples(tmp_path, 'sft')
    assert [int(e['query']) for e in examples] == [int(examples[i]['query']) for i in range(7)]
    assert [int(e['query']) for e in examples.read([6, 0, 3, 6, 2])] == [6, 0, 3, 6, 2]
    assert examples.read([]) == []
    for position in (7, -1):
        with pytest.raises(IndexError):
            examples.read([0, position])
    assert store(6, 3) == ['00000-of-00002', '00001-of-00002']
    (tmp_path / 'sft-00000-of-00002.array_record').unlink()
    with pytest.raises(UserError, match='not one whole set'):
        data.load_examples(tmp_path, 'sft')
    assert store(2, 3) == store(3, 3) == ['00000-of-00001']
    assert len(data.load_examples(tmp_path, 'sft')) == 3
