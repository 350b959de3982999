"""Texts that go on where others end, in tokenizers that put a space before each text."""

import copy
import json

import pytest
import transformers
from tokenizers import normalizers, pre_tokenizers

from rstar_jax import steps
from rstar_jax.models import tiny
from rstar_jax.models import tokenizer as tokenizers
from rstar_jax.training import examples

RESPONSE = (
    '<code>\n# Step 1: a cab\nb = 2\n<end_of_step>\nprint(b)\n<end_of_code>\n'
    '<output>2<end_of_output>'
)


def sentencepiece(kind, **more):
    """One with byte fallback, as of Llama 2 and Phi-3, that knows the marks."""
    pieces = ['\u2581', *'abcdefghijklmnopqrstuvwxyz', '\u2581a', 'ab', '\u2581cab', 'ca']
    whole = ['<unk>', '<s>', '</s>']
    fields = {
        'tokenizer.ggml.model': 'llama',
        'tokenizer.ggml.tokens': [*whole, *(f'<0x{i:02X}>' for i in range(256)), *pieces],
        'tokenizer.ggml.token_type': [tokenizers.CONTROL] * 3 + [6] * 256 + [1] * len(pieces),
        'tokenizer.ggml.scores': [0.0] * 259 + [-float(i) for i in range(len(pieces))],
        'tokenizer.ggml.bos_token_id': 1,
        'tokenizer.ggml.eos_token_id': 2,
    }
    fields |= {f'tokenizer.ggml.{name}': value for name, value in more.items()}
    made = tokenizers.from_gguf(fields, 'here')
    backend = made.backend_tokenizer
    if kind == 'metaspace':  # as transformers writes those that are not "legacy"
        backend.normalizer = normalizers.Sequence([])
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
    made.add_special_tokens({'additional_special_tokens': list(steps.TEMPLATE_MARKS)})
    return made


@pytest.mark.parametrize('kind', ['prepend', 'metaspace'])
def test_what_goes_on_is_read_as_it_was_written(kind):
    tokenizer = sentencepiece(kind)
    table = steps.token_bytes(tokenizer, len(tokenizer))

    def text(ids):
        return b''.join(table[i] for i in ids).decode()

    before = copy.deepcopy(tokenizer)
    assert text(tokenizer('cab')['input_ids']) == '<s> cab'  # the space is there where texts begin
    (encoded,) = examples.sft([{'query': 'a', 'response': RESPONSE}], tokenizer, 1024).take()
    (ids,), (field,) = encoded.sequences, encoded.fields
    prompt = tokenizer(steps.prompt('a'))['input_ids']
    assert ids[: len(prompt)].tolist() == prompt
    assert text(ids[len(prompt) :]) == RESPONSE + '</s>'
    assert text(field['targets'][field['weights'] > 0]) == RESPONSE + '</s>'
    pair = {'prompt': steps.prompt('a'), 'pos': RESPONSE, 'neg': '<code>\nab'}
    (encoded,) = examples.pairs([pair], tokenizer, 1024).take()
    assert {text(side[len(prompt) :]) for side in encoded.sequences} == {RESPONSE, '<code>\nab'}
    one = {'query': 'a', 'steps': [RESPONSE[:31], RESPONSE[31:]], 'correct': True}
    (judged,) = examples.outcomes([one], tokenizer, 1024).take()
    assert judged.sequences[0][: len(prompt)].tolist() == prompt
    assert text(judged.sequences[0][len(prompt) :]) == RESPONSE
    going_on = tokenizers.continuing(tokenizer)
    assert text(going_on.encode('<output>', add_special_tokens=False)) == '<output>'
    assert text(going_on.encode('ab', add_special_tokens=False)) == 'ab'
    again = tokenizer('cab<code>ab')['input_ids']
    assert again == before('cab<code>ab')['input_ids']  # it is left as it was


@pytest.mark.parametrize(
    ('more', 'tokens'),
    [
        ({}, ['<s>', '\u2581', 'c', 'ab']),
        ({'add_bos_token': False}, ['\u2581', 'c', 'ab']),
        ({'add_space_prefix': False}, ['<s>', 'c', 'ab']),
    ],
)
def test_a_file_says_what_stands_before_a_text(more, tokens):
    tokenizer = sentencepiece('prepend', **more)
    assert tokenizer.convert_ids_to_tokens(tokenizer('cab')['input_ids']) == tokens
    assert tokenizer.decode(tokenizer('cab')['input_ids'], skip_special_tokens=True) == 'cab'


def test_one_that_puts_no_space_is_taken_as_it_is():
    made = tiny.tokenizer(['a b'])
    assert tokenizers.continuing(made) is made


@pytest.mark.parametrize('kind', ['GPT2Tokenizer', 'PreTrainedTokenizerFast'])
def test_a_text_is_cut_as_the_file_says(tmp_path, kind):
    """SmolLM2's folder names a class that does not cut digits off, its file does."""
    fields = {
        'tokenizer.ggml.model': 'gpt2',
        'tokenizer.ggml.pre': 'smollm',
        'tokenizer.ggml.tokens': ['<eos>', *'x=0123456789\u0120', '\u0120\u0120'],
        'tokenizer.ggml.merges': ['\u0120 \u0120'],
        'tokenizer.ggml.token_type': [tokenizers.CONTROL] + [tokenizers.NORMAL] * 14,
        'tokenizer.ggml.eos_token_id': 0,
    }
    made = tokenizers.from_gguf(fields, 'here')
    made.add_tokens([transformers.AddedToken('<s>', lstrip=True, rstrip=True)])
    text = 'x =  40'
    expected = made(text)['input_ids']
    assert made.convert_ids_to_tokens(expected) == [*'x\u0120=', '\u0120\u0120', *'40']
    tokenizers.save(made, tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type": "llama"}')
    values = json.loads((tmp_path / 'tokenizer_config.json').read_text())
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(values | {'tokenizer_class': kind}))
    read = tokenizers.load(tmp_path)
    assert read(text)['input_ids'] == expected and read.eos_token == '<eos>'
    assert read('x <s> 4')['input_ids'] == made('x <s> 4')['input_ids'] == [1, 15, 7]
    tokenizers.save(read, tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(text)['input_ids'] == expected
