"""From texts to what is learnt at which token, and that the losses of trajectories are learnt."""

import gc
import itertools
import os

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from tokenizers import pre_tokenizers

from rstar_jax import data, models, parallel, steps, training
from rstar_jax.settings.errors import UserError
from rstar_jax.training import corpus, examples, packing
from tests.training.words import (
    log_of,
    pair_examples,
    ppm_settings,
    same,
    sft_examples,
    sft_settings,
    trajectory_examples,
)


def test_targets_are_the_response_and_the_end_of_text(policy):
    tokenizer = policy.tokenizer
    example = {'query': 'bbb ccc', 'response': '<code>\nw3<end_of_code>'}
    (encoded,) = examples.sft([example], tokenizer, 128).take()
    (tokens,), (field,) = encoded.sequences, encoded.fields
    text = steps.prompt('bbb ccc') + example['response'] + tokenizer.eos_token
    assert tokenizer.decode(tokens) == text
    learnt = field['targets'][field['weights'] > 0]
    assert tokenizer.decode(learnt) == example['response'] + tokenizer.eos_token
    assert encoded.shareable == (len(tokenizer(steps.prompt('bbb ccc'))['input_ids']) - 1,)


def test_pairs_of_one_prefix_stay_together(policy):
    prompt = steps.prompt('bbb') + '<code>\nw3<end_of_step>'
    pairs = [
        {'prompt': prompt, 'pos': p, 'neg': n, 'pos_count': 2, 'neg_count': 2}
        for p in ('eee', 'fff ggg')
        for n in ('hhh', 'iii')
    ]
    encoded = examples.pairs([*pairs, {**pairs[0], 'prompt': 'jjj'}], policy.tokenizer, 64)
    both, bare = encoded.take()
    assert (len(both.sequences), both.count, bare.count) == (4, 4, 1)
    assert both.pair_weights.tolist() == [0.25] * 4
    texts = [policy.tokenizer.decode(s) for s in both.sequences]
    assert [[texts[i] for i in pair] for pair in both.pairs] == [
        [prompt + p['pos'], prompt + p['neg']] for p in pairs
    ]
    assert policy.tokenizer.decode(bare.sequences[0]) == steps.prompt('jjj') + 'eee'
    assert encoded.questions == [steps.prompt('bbb'), steps.prompt('jjj')]
    chosen, held = corpus.hold_out(encoded, 0.1, 0)
    assert len(held) == 1 and sorted(chosen + held) == [0, 1]
    assert corpus.hold_out(encoded, 0.0, 0) == ([0, 1], [])


def test_steps_are_judged_at_the_mark_that_they_end_in(policy):
    """There the search reads them; a general model's last tokens took newlines along."""
    prefix, end = steps.prompt('bbb') + '<code>\nw3<end_of_step>\n', steps.STEP_END
    pair = {'prompt': prefix, 'pos': f'eee{end}\n\n', 'neg': f'fff{end}'}
    texts = [f'ccc{end}\n', f'\n{end} \n', 'ddd\n', f'eee{end}\n']
    one = {'query': 'bbb', 'steps': texts, 'values': [0.1, 0.2, 0.3, 0.4]}
    mark = policy.tokenizer.convert_tokens_to_ids(end)

    def read(tokenizer):
        (pairs,) = examples.pairs([pair], tokenizer, 512).take()
        (values,) = examples.q_values([one], tokenizer, 512).take()
        (tokens,), (field,) = values.sequences, values.fields
        ends = np.nonzero(field['weights'])[0].tolist()
        decoded = [tokenizer.decode(tokens[a:b]) for a, b in itertools.pairwise(ends)]
        return [x[-1] for x in pairs.sequences], [tokens[i] for i in ends], decoded

    last, ends, between = read(policy.tokenizer)
    assert last == [mark, mark] and [x == mark for x in ends] == [True, True, False, True]
    assert [x.removeprefix(end) for x in between] == ['\n\n', ' \nddd', '\neee']
    # Where marks are text, the search reads whatever was sampled last.
    letters = {letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    plain = transformers.Qwen2Tokenizer(vocab=letters, merges=[])
    newline, close = plain('\n>')['input_ids']
    assert read(plain)[:2] == ([newline, close], [newline] * 4)


def test_the_seed_decides_which_problems_are_held_out(policy):
    encoded = examples.sft(sft_examples(12), policy.tokenizer, 128)
    held = [corpus.hold_out(encoded, 0.25, seed)[1] for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2] and len(held[0]) == len(held[2]) == 3


def test_what_is_learnt_of_a_trajectory(policy):
    trajectory = {
        'query': 'bbb',
        'steps': ['<code>\nccc', 'ddd eee<end_of_step>', 'fff'],
        'values': [0.25, -0.5, -1.0],
        'labels': [True, False, False],
        'correct': False,
    }
    ends = np.cumsum([len(policy.tokenizer(s)['input_ids']) for s in trajectory['steps']])
    start = len(policy.tokenizer(steps.prompt('bbb'))['input_ids']) - 1
    for encoder, learnt in (
        (examples.outcomes, {2: 0}),
        (examples.q_values, {0: 0.25, 1: -0.5, 2: -1}),
        (examples.step_labels, {0: 1, 1: 0, 2: 0}),
    ):
        encoded = encoder([trajectory], policy.tokenizer, 64)
        (example,) = encoded.take()
        (tokens,), (field,) = example.sequences, example.fields
        text = steps.prompt('bbb') + ''.join(trajectory['steps'])
        assert policy.tokenizer.decode(tokens) == text
        places = [start + ends[i] for i in learnt]
        assert np.nonzero(field['weights'])[0].tolist() == places
        assert field['targets'][places].tolist() == list(learnt.values())
        assert example.shareable == (places[0],) and encoded.questions == [steps.prompt('bbb')]
    for key, encoder in (
        ('steps', examples.outcomes),
        ('correct', examples.outcomes),
        ('values', examples.q_values),
        ('labels', examples.step_labels),
    ):
        lacking = {name: value for name, value in trajectory.items() if name != key}
        with pytest.raises(UserError) as error:
            encoder([lacking], policy.tokenizer, 64)
        assert error.value.argument == 'examples' and key in error.value.expected
    with pytest.raises(UserError) as error:
        examples.q_values([trajectory | {'values': [1.0]}], policy.tokenizer, 64)
    assert (error.value.argument, error.value.value) == ('examples', trajectory['query'])


def test_trajectories_of_one_question_share_a_row(policy):
    """As many as there is room for; each learns what it learns alone."""
    made = [
        {'query': query, 'steps': ['aaa ccc', f'{word} ' * 20], 'values': [0.5, value]}
        for query, words in (('bbb', 'def'), ('ccc', 'g'), ('bbb', 'hi'))
        for value, word in enumerate(words)
    ]
    encoded = examples.q_values(made, policy.tokenizer, 512)
    alone = [examples.q_values([each], policy.tokenizer, 512) for each in made]
    assert encoded.counts == [3, 1, 2]
    assert encoded.questions == [steps.prompt(query) for query in ('bbb', 'ccc', 'bbb')]
    assert encoded.sizes[0] < sum(one.sizes[0] for one in alone[:3])
    together = [
        (tokens.tolist(), field['targets'].tolist(), field['weights'].tolist(), shareable)
        for example in encoded.take()
        for tokens, field, shareable in zip(example.sequences, example.fields, example.shareable)
    ]
    assert together == [
        (tokens.tolist(), field['targets'].tolist(), field['weights'].tolist(), shareable)
        for one in alone
        for example in one.take()
        for tokens, field, shareable in zip(example.sequences, example.fields, example.shareable)
    ]
    longest = max(one.sizes[0] for one in alone)
    assert examples.q_values(made, policy.tokenizer, longest).counts == [1] * 6
    assert examples.q_values(made, policy.tokenizer, longest - 1).dropped > 0


@pytest.mark.parametrize('length', [512, 64])
def test_right_answers_are_paired_with_the_wrong_ones_of_their_problem(policy, length):
    made = [
        {'query': query, 'steps': ['aaa', f'{word} ' * 30], 'correct': correct}
        for query in ('bbb', 'ccc', 'ddd', 'eee')
        for word, correct in (('fff', True), ('ggg', True), ('hhh', False), ('iii', False))
        if query != 'eee' or correct  # has no wrong one
    ]
    asked = {steps.prompt(query) for query in ('bbb', 'ddd', 'eee')}
    encoded = examples.answer_pairs(made, asked, policy.tokenizer, length)
    found = {
        (question, *(policy.tokenizer.decode(example.sequences[i])[-4:-1] for i in pair))
        for question, example in zip(encoded.questions, encoded.take())
        for pair in example.pairs
    }
    assert found == {
        (steps.prompt(query), right, wrong)
        for query in ('bbb', 'ddd')
        for right in ('fff', 'ggg')
        for wrong in ('hhh', 'iii')
    }
    assert sum(encoded.counts) == len(found)
    assert (len(encoded) == 2) == (length == 512)


@pytest.mark.parametrize('loss', ['orm', 'pqm', 'prm'])
def test_losses_of_trajectories_learn(policy, tmp_path, loss):
    settings = ppm_settings(
        loss=loss, epochs=6, batch_size=16, learning_rate=1e-2, micro_batch=1, held_out=0.25
    )
    trajectories = trajectory_examples()
    ppm, metrics = training.ppm(policy, trajectories, settings, tmp_path, trajectories=trajectories)
    assert (metrics['examples'], metrics['held_out'], metrics['answer_pairs']) == (60, 20, 10)
    assert metrics['held_out_loss_after'] < 0.5 * metrics['held_out_loss_before']
    assert metrics['answer_accuracy_after'] == 1
    if loss != 'pqm':
        assert metrics['held_out_accuracy_after'] > 0.9
    # As the search reads it: at the end of a step.
    texts = [steps.prompt(t['query']) + ''.join(t['steps']) for t in trajectories[:2]]
    tokens = [ppm.tokenizer(text)['input_ids'] for text in texts]
    good, bad = (float(ppm.scores(jnp.asarray([ids]), jnp.array([len(ids)]))[0]) for ids in tokens)
    assert -1 <= bad < 0 < good <= 1
    loaded = models.load_ppm(tmp_path, 'float32')
    assert loaded.squash == 'tanh' and same(loaded.params, ppm.params)


def test_a_step_keeps_its_own_accuracy_beside_that_of_what_is_held_out(policy, tmp_path):
    settings = ppm_settings(loss='prm', epochs=1, measure_every=1, held_out=0.25)
    _, metrics = training.ppm(policy, trajectory_examples(), settings, tmp_path)
    lines = log_of(tmp_path)
    assert lines and all({'accuracy', 'held_out_accuracy'} <= line.keys() for line in lines)
    assert lines[-1]['held_out_accuracy'] == metrics['held_out_accuracy_after']


class Stored(data.Examples):
    """Notes which places are read."""

    places: tuple[int, ...] = ()

    def read(self, positions):
        self.places += tuple(positions)
        return super().read(positions)


def alike(a, b):
    arrays = [
        [*one.sequences, one.pairs, one.pair_weights, *(x for f in one.fields for x in f.values())]
        for one in (a, b)
    ]
    return all(map(np.array_equal, *arrays)) and (a.shareable, a.count) == (b.shareable, b.count)


@pytest.mark.parametrize(
    'kind, encode, texts, step',
    [
        ('sft', examples.sft, sft_examples(8), [5, 2]),
        ('trajectories', examples.step_labels, trajectory_examples()[:8], [0, 3]),
        ('pairs', examples.pairs, pair_examples(12), [1, 0]),
    ],
)
def test_of_stored_examples_those_of_one_step_are_in_memory(
    policy, tmp_path, monkeypatch, kind, encode, texts, step
):
    monkeypatch.setattr(corpus, 'READ', 3)
    if kind == 'pairs':
        # Pairs of one prefix lie apart; some do not fit.
        monkeypatch.setattr(examples, 'GROUP', 2)
        texts = [{**text, 'prompt': str(i % 3)} for i, text in enumerate(texts)]
        texts[4] = {**texts[4], 'neg': 'ccc ' * 200}
    data.store_examples(tmp_path, kind, texts)

    def alive():
        gc.collect()
        return sum(isinstance(x, packing.Example) for x in gc.get_objects())

    before, stored = alive(), Stored(sorted(tmp_path.glob(f'{kind}-*')))
    encoded = encode(stored, policy.tokenizer, 128)
    assert alive() == before and encoded.dropped == (kind == 'pairs')
    whole = encode(texts, policy.tokenizer, 128)
    assert encoded.digests == whole.digests and len(set(whole.digests)) == len(whole)
    stored.places = ()
    taken = encoded.take(step)
    assert len(stored.places) == sum(one.count for one in taken)
    assert kind != 'sft' or stored.places == tuple(step)
    every = whole.take()
    assert all(alike(a, every[i]) for a, i in zip(taken, step))
    assert sum(encoded.counts) == len(texts) - encoded.dropped
    micros = packing.Micros(encoded, step, sft_settings(), parallel.one_device())
    assert micros.tokens > 0 and alive() == before + len(taken) + len(every)


def test_a_text_that_comes_twice_is_tokenised_once(policy):
    """Two pairs of one question, prefix and better step: a question and three sides."""
    tokenizer, seen = policy.tokenizer, []

    def watched(texts, **options):
        seen.append(list(texts))
        return tokenizer(texts, **options)

    watched.backend_tokenizer = tokenizer.backend_tokenizer
    one = {'prompt': 'a', 'pos': 'bb', 'neg': 'c', 'pos_count': 1, 'neg_count': 2}
    made = examples.pairs([one, {**one, 'neg': 'dd'}], watched, 64)
    assert [len(texts) for texts in seen] == [1, 3] and made.counts == [2]


def test_a_long_first_pass_tells_how_far_it_is(policy, monkeypatch):
    monkeypatch.setattr(corpus, 'READ', 3)
    for encode, source, of in (
        (examples.sft, sft_examples(8), [8]),
        (examples.pairs, pair_examples(4), [8, 4]),  # prefixes first, then their groups
        (examples.step_labels, trajectory_examples()[:8], [8]),
    ):
        told: list[tuple[int, int]] = []
        encode(source, policy.tokenizer, 128, lambda *now, told=told: told.append(now))
        assert told == [(read, n) for n in of for read in (*range(0, n, 3), n)]


@pytest.mark.parametrize('before', ['false', None])
def test_all_cores_tokenise_but_for_trainings_alone(policy, monkeypatch, before):
    """A process that is forked later would wait for the threads of the others for ever."""
    if before is None:
        monkeypatch.delenv(examples.CORES, raising=False)
    else:
        monkeypatch.setenv(examples.CORES, before)
    tokenizer, seen = policy.tokenizer, []

    def watched(texts, **options):
        seen.append((os.environ[examples.CORES], len(texts)))
        return tokenizer(texts, **options)

    watched.eos_token_id = tokenizer.eos_token_id
    watched.backend_tokenizer = tokenizer.backend_tokenizer
    for encoder, source in (
        (examples.sft, sft_examples(4)),
        (examples.pairs, pair_examples(2)),
        (examples.q_values, trajectory_examples()[:4]),
    ):
        found = encoder(source, watched, 128).digests
        assert len(found) > 1 and found == encoder(source, tokenizer, 128).digests
    assert {value for value, _ in seen} == {'true'} and min(count for _, count in seen) > 1
    assert os.environ.get(examples.CORES) == before
    with pytest.raises(KeyError):
        examples.sft(sft_examples(1), _broken(tokenizer), 128)
    assert os.environ.get(examples.CORES) == before


def _broken(tokenizer):
    def broken(texts, **options):
        raise KeyError('broken')

    broken.eos_token_id = tokenizer.eos_token_id
    broken.backend_tokenizer = tokenizer.backend_tokenizer
    return broken
