"""GGUF files: written here from torch models as llama.cpp's converter does, and real ones."""

import importlib
import os
import pathlib
import sys
import weakref

import gguf
import numpy as np
import pytest
import torch
import transformers

from rstar_jax import models
from rstar_jax.models import gguf_file
from rstar_jax.settings.errors import UserError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
tiny_torch = importlib.import_module('tiny_torch')

NAMES = {  # llama.cpp's tensor names (gguf-py's tensor_mapping.py)
    'model.embed_tokens': 'token_embd',
    'model.norm': 'output_norm',
    'lm_head': 'output',
    'input_layernorm': 'attn_norm',
    'post_attention_layernorm': 'ffn_norm',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'self_attn.q_norm': 'attn_q_norm',
    'self_attn.k_norm': 'attn_k_norm',
    'self_attn.qkv_proj': 'attn_qkv',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.gate_up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
}
REAL = ('smollm2-135m-instruct', 'qwen2.5-coder-0.5b-instruct')


NAMES_OF = {
    'olmo2': {
        'post_attention_layernorm': 'post_attention_norm',
        'post_feedforward_layernorm': 'post_ffw_norm',
    }
}


def gguf_name(name, family):
    names = NAMES | NAMES_OF.get(family, {})
    stem, kind = name.rsplit('.', 1)
    if stem.startswith('model.layers.'):
        _, _, layer, rest = stem.split('.', 3)
        return f'blk.{layer}.{names[rest]}.{kind}'
    return f'{names[stem]}.{kind}'


def permute(weight, heads):
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    shape = weight.shape
    return (
        weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    )


def write(name, path, pre='qwen2', merges=(), tokenizer=True, twice=False, words=()):
    """twice: a tied table as the coarse embedding and the exact output."""
    reference = tiny_torch.model(name)
    config = reference.config
    family = config.model_type
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope['rope_theta'])
    if family == 'qwen3':
        writer.add_key_length(config.head_dim)
    if rope['rope_type'] == 'linear':  # as files that do not name the kind
        writer.add_float32(f'{family}.rope.scale_linear', rope['factor'])
    if rope['rope_type'] == 'longrope':
        writer.add_rope_scaling_orig_ctx_len(rope['original_max_position_embeddings'])
        for kind in ('short', 'long'):
            factors = np.array(rope[f'{kind}_factor'], np.float32)
            writer.add_tensor(f'rope_factors_{kind}.weight', factors)
    if family == 'phi3' and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if tokenizer:
        write_tokenizer(writer, pre, merges, words)
    for tensor_name, tensor in reference.state_dict().items():
        if tensor_name == 'lm_head.weight' and config.tie_word_embeddings and not twice:
            continue
        values = tensor.numpy()
        if tensor_name == 'model.embed_tokens.weight' and twice:
            values = values.astype(np.float16)
        if family in ('llama', 'smollm3') and '.q_proj.' in tensor_name:
            values = permute(values, config.num_attention_heads)
        if family in ('llama', 'smollm3') and '.k_proj.' in tensor_name:
            values = permute(values, config.num_key_value_heads)
        writer.add_tensor(gguf_name(tensor_name, family), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tokenizer(writer, pre, merges, words):
    known = sorted(tiny_torch.tokenizer().get_vocab().items(), key=lambda item: item[1])
    tokens = [*(token for token, _ in known), *words]
    kinds = [3, 3, 3] + [1] * (len(tokens) - 3)
    pads = range(len(tokens), 300)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens + [f'[PAD{i}]' for i in pads])
    writer.add_token_types(kinds + [5 for _ in pads])
    if merges:
        writer.add_token_merges(merges)
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    writer.add_pad_token_id(0)


@pytest.mark.parametrize(
    'name',
    [
        *('llama_tied_bias', 'llama_linear_rope', 'qwen2', 'qwen3_tied_bias'),
        *('phi3_4k', 'phi3_128k_long', 'smollm3', 'olmo2'),
    ],
)
def test_logits_of_a_written_file(name, tmp_path):
    write(name, tmp_path / 'm.gguf')
    policy = models.load(tmp_path / 'm.gguf', 'float32')
    tokens = np.random.default_rng(0).integers(3, 259, (2, 40))
    with torch.no_grad():
        expected = tiny_torch.model(name)(torch.tensor(tokens)).logits.numpy()
    ours = np.asarray(policy.logits(tokens, np.array([40, 40])))
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


def test_quantised_tensors_are_what_gguf_makes_of_them(tmp_path):
    write('qwen2', tmp_path / 'm.gguf')
    source = gguf_file.GGUFFile(tmp_path / 'm.gguf')
    writer = gguf.GGUFWriter(tmp_path / 'quantised.gguf', 'qwen2')
    rng = np.random.default_rng(0)
    for name in ('Q4_0', 'Q5_1', 'Q8_0'):
        for rows in (300, 7):
            kind = gguf.GGMLQuantizationType[name]
            packed = gguf.quants.quantize(rng.normal(size=(rows, 64)).astype(np.float32), kind)
            writer.add_tensor(f'{name}.{rows}', packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = gguf.GGUFReader(tmp_path / 'quantised.gguf').tensors
    source._tensors |= {tensor.name: tensor for tensor in tensors}
    found = dict(source.read([tensor.name for tensor in tensors]))
    assert len(found) == 6
    for tensor in tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(found[tensor.name], expected)


def test_one_tensor_is_on_the_host_at_a_time(tmp_path, monkeypatch):
    write('llama_tied_bias', tmp_path / 'm.gguf')
    values, before = gguf_file.GGUFFile._values, []

    def watched(self, name):
        assert all(one() is None for one in before)
        made = values(self, name).copy()
        before.append(weakref.ref(made))
        return made

    monkeypatch.setattr(gguf_file.GGUFFile, '_values', watched)
    models.load(tmp_path / 'm.gguf', 'bfloat16')
    assert len(before) > 10


def test_a_table_that_was_written_twice_is_one(tmp_path):
    write('llama_tied_bias', tmp_path / 'm.gguf', twice=True)
    policy = models.load(tmp_path / 'm.gguf', 'float32')
    table = tiny_torch.model('llama_tied_bias').lm_head.weight.detach().numpy()
    assert policy.config.tie_embeddings and 'output' not in policy.params
    np.testing.assert_array_equal(policy.params['embed']['weight'], table)
    write('qwen2', tmp_path / 'untied.gguf')
    assert not models.read_config(tmp_path / 'untied.gguf').tie_embeddings


def test_tokenizer_drops_padding_and_survives_export(tmp_path):
    write('qwen2', tmp_path / 'm.gguf')
    policy = models.load(tmp_path / 'm.gguf', 'float32')
    made, expected = policy.tokenizer, tiny_torch.tokenizer()
    assert made.is_fast and len(made) == len(expected) < policy.config.vocab_size == 300
    text = 'Let us say:\n\tx = 3.25 + ½  # ok<eos>\n\n   émile'
    assert made(text)['input_ids'] == expected(text)['input_ids']
    assert made.decode(made(text)['input_ids']) == text
    assert made('e\u0301')['input_ids'] == expected('\u00e9')['input_ids']  # as one letter
    assert (made.bos_token, made.eos_token, made.pad_token) == ('<bos>', '<eos>', '<pad>')
    models.save(policy, tmp_path / 'export')
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / 'export')
    assert again(text)['input_ids'] == made(text)['input_ids']
    assert again.get_vocab() == made.get_vocab() and again.eos_token == '<eos>'


@pytest.mark.parametrize(
    ('pre', 'ids'), [('llama-bpe', ['<bos>', 'ab']), ('smaug-bpe', ['a', 'b'])]
)
def test_texts_for_llama_3_begin_with_bos_and_whole_words_need_no_merges(tmp_path, pre, ids):
    write('llama_tied_bias', tmp_path / 'm.gguf', pre=pre, words=['ab'])
    made = models.load(tmp_path / 'm.gguf', 'float32').tokenizer
    assert made.convert_ids_to_tokens(made('ab')['input_ids']) == ids


@pytest.mark.parametrize(
    ('pre', 'pieces'), [('qwen2', '1 2'), ('smollm', '1 2'), ('gpt-2', '12'), ('smaug-bpe', '12')]
)
def test_a_file_says_whether_digits_stand_alone(tmp_path, pre, pieces):
    write('llama_tied_bias', tmp_path / 'm.gguf', pre=pre, words=['12'], merges=['1 2'])
    made = models.load(tmp_path / 'm.gguf', 'float32').tokenizer
    assert made.convert_ids_to_tokens(made('12')['input_ids']) == pieces.split()


def _cut(path):
    path.write_bytes(path.read_bytes()[:-5000])


def _cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:3000])


def _wrong_magic(path):
    path.write_bytes(b'XXXX' + path.read_bytes()[4:])


def _huge_count(path):
    data = path.read_bytes()
    path.write_bytes(data[:16] + b'\xff' * 8 + data[24:])


def _empty(path):
    path.write_bytes(b'')


@pytest.mark.parametrize('damage', [_cut, _cut_in_the_header, _wrong_magic, _huge_count, _empty])
def test_one_line_for_a_damaged_file(damage, tmp_path):
    path = tmp_path / 'm.gguf'
    write('qwen2', path)
    damage(path)
    with pytest.raises(UserError) as error:
        models.load(path)
    assert error.value.argument == str(path)
    assert '\n' not in str(error.value)


def test_a_file_that_is_not_supported_is_named(tmp_path):
    write('qwen2', tmp_path / 'pre.gguf', pre='falcon')
    write('qwen2', tmp_path / 'merges.gguf', merges=['a b'])  # there is no token 'ab'
    write('qwen2', tmp_path / 'bare.gguf', tokenizer=False)
    writer = gguf.GGUFWriter(tmp_path / 'mamba.gguf', 'mamba')
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name in ('pre', 'merges', 'bare', 'mamba', 'none'):
        path = tmp_path / f'{name}.gguf'
        with pytest.raises(UserError) as error:
            models.load(path)
        assert error.value.argument == str(path)


@pytest.fixture(scope='module', params=REAL)
def real(request):
    folder = pathlib.Path(os.environ.get('RSTAR_MODELS', ''))
    path = folder / f'{request.param}.gguf'
    if not os.environ.get('RSTAR_MODELS') or not path.exists():
        pytest.skip(f'no {path.name} (set RSTAR_MODELS to the folder that holds it)')
    return models.load(path, 'float32')


@pytest.fixture(scope='module')
def exported(real, tmp_path_factory):
    folder = tmp_path_factory.mktemp('export')
    models.save(real, folder)
    return folder


def test_real_tokenizer(real, exported):
    text = "It's 12345 tests:\n\n\n    x_1 = 3.25  # don't <|im_end|> naïve ½"
    ids = real.tokenizer(text)['input_ids']
    assert real.tokenizer.decode(ids) == text
    # Both models write each digit as a token of its own, and marks as one.
    digits = [real.tokenizer.decode([i]) for i in ids]
    assert [piece for piece in digits if piece.strip().isdigit()][:5] == list('12345')
    assert digits.count('<|im_end|>') == 1
    hello = {'llama': [19556, 905], 'qwen2': [9707, 1879]}[real.config.family]
    assert real.tokenizer('Hello world')['input_ids'] == hello
    again = transformers.AutoTokenizer.from_pretrained(exported)
    assert again(text)['input_ids'] == ids and len(again) == len(real.tokenizer)


def test_real_weights_choose_what_transformers_chooses(real, exported):
    """2,000 positions of real text, the same dequantised weights on both sides."""
    text = pathlib.Path(models.__file__).with_name('checkpoint.py').read_text() * 2
    tokens = np.array(real.tokenizer(text)['input_ids'][:2000]).reshape(4, 500)
    reference = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    same, worst = 0, 0.0
    for row in tokens:
        ours = np.asarray(real.logits(row[None], np.array([500])))[0]
        with torch.no_grad():
            theirs = reference(torch.tensor(row[None])).logits[0].numpy()
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        worst = max(worst, float(np.abs(ours - theirs).max()))
    print(f'{real.config.family}: {same}/2000 equal, largest logit difference {worst:.2e}')
    assert same >= 1998
    assert worst < 1e-2
