"""The tiny model: exact round trips of text, every word one token, whole after saving."""

import json
import string

import jax
import numpy as np
import pytest

from rstar_jax import models, steps
from rstar_jax.data import arithmetic
from rstar_jax.models import tiny

ODD = [
    'Traceback (most recent call last):\n  File "<step>", line 3\nNameError: name \'x\'\n',
    '# -1.5e-07\t\r\n\n\n   indented {"a": [1, 2]} \\boxed{\\frac{1}{2}}  \n ',
    'caf\u00e9 \u6f22\u5b57 \U0001f600 \u200b<|im_end|><code',
    ''.join(steps.SFT_TOKENS) + tiny.EOS,
    '',
]


@pytest.fixture(scope='module')
def policy():
    return tiny.policy(arithmetic.vocabulary(), seed=1)


@pytest.fixture(scope='module')
def texts():
    world = arithmetic.world(demonstrations=200, train=100, test=0, seed=5)
    shown = [steps.prompt(d['query']) + d['response'] for d in world.demonstrations]
    return shown + [steps.prompt(p.question) for p in world.train]


def test_text_survives_encoding_and_decoding(policy, texts):
    for text in texts + ODD:
        assert policy.tokenizer.decode(policy.tokenizer(text)['input_ids']) == text


def test_every_word_is_one_token(policy, texts):
    """No text of the quickstart's world is spelled: digits are, one by one."""
    for text in texts[::7]:
        tokens = policy.tokenizer.convert_ids_to_tokens(policy.tokenizer(text)['input_ids'])
        assert not [token for token in tokens if token in string.ascii_letters], text
    assert len(policy.tokenizer(' earns')['input_ids']) == 1
    assert len(policy.tokenizer('2024')['input_ids']) == 4


def test_marks_are_single_special_tokens(policy):
    for mark in steps.SFT_TOKENS:
        ids = policy.tokenizer(f'x{mark}y')['input_ids']
        assert policy.tokenizer.convert_ids_to_tokens(ids) == ['x', mark, 'y']
    assert models.add_tokens(policy, steps.SFT_TOKENS).config == policy.config


def test_stop_marks_are_found(policy):
    texts = steps.token_bytes(policy.tokenizer, policy.config.vocab_size)
    (end,) = policy.tokenizer(steps.STEP_END)['input_ids']
    assert texts[end] == steps.STEP_END.encode()
    (word,) = policy.tokenizer(' earns')['input_ids']
    assert texts[word] == b' earns'


def test_size_and_shape(policy):
    sizes = [leaf.size for leaf in jax.tree.leaves(policy.params)]
    assert 750_000 < sum(sizes) < 900_000
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(policy.params))
    assert policy.config.vocab_size >= len(policy.tokenizer)
    assert policy.config.eos_ids == (policy.tokenizer.eos_token_id,)
    wide = tiny.policy(['a'], embed_dim=64, num_layers=1)
    assert wide.config.embed_dim == 64 and list(wide.params['layers']) == ['0']


def test_seed_decides_the_weights_and_texts_the_tokenizer(policy):
    again = tiny.policy(arithmetic.vocabulary(), seed=1)
    other = tiny.policy(arithmetic.vocabulary(), seed=2)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), policy.params, again.params)
    assert all(jax.tree.leaves(same))
    assert (policy.params['embed']['weight'] != other.params['embed']['weight']).any()
    assert policy.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def test_starts_undecided(policy, texts):
    """Untrained, the loss is that of a guess among all tokens."""
    ids = policy.tokenizer(texts[0])['input_ids']
    logits = policy.logits(np.array([ids], np.int32), np.array([len(ids)], np.int32))[0]
    loss = -jax.nn.log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]].mean()
    assert abs(float(loss) - np.log(policy.config.vocab_size)) < 0.5


def test_saved_as_a_hugging_face_directory_that_transformers_loads(policy, texts, tmp_path):
    torch = pytest.importorskip('torch')
    import transformers

    models.save(policy, tmp_path)
    assert json.loads((tmp_path / 'config.json').read_text())['model_type'] == 'qwen2'
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = models.load(tmp_path, dtype='float32')
    chosen = [policy.tokenizer(text)['input_ids'] for text in texts[::50] + ODD[:-1]]
    for text, ids in zip(texts[::50] + ODD[:-1], chosen):
        assert words(text)['input_ids'] == ours.tokenizer(text)['input_ids'] == ids
        assert words.decode(ids) == ours.tokenizer.decode(ids) == text
    lengths = np.array([len(ids) for ids in chosen], np.int32)
    tokens = np.array([ids + [0] * (lengths.max() - len(ids)) for ids in chosen], np.int32)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    within = np.arange(tokens.shape[1]) < lengths[:, None]
    for model in (policy, ours):
        found = np.asarray(model.logits(tokens, lengths))
        np.testing.assert_allclose(found[within], expected[within], atol=2e-5)
