"""Round trips through Hugging Face folders, PPMs, added tokens, and what is wrong with a file."""

import collections
import contextlib
import importlib
import itertools
import json
import pathlib
import shutil
import sys
import weakref

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rstar_jax import models, steps
from rstar_jax.models import families, heads, torch_file, trained, weights
from rstar_jax.models import rope as ropes
from rstar_jax.settings.errors import UserError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
tiny_torch = importlib.import_module('tiny_torch')

MARKS = ['<code>', '<end_of_step>', '\n<|assistant|>']


@pytest.fixture(scope='module')
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp('qwen2')
    tiny_torch.save('qwen2', folder)
    return folder


@pytest.fixture
def broken(qwen, tmp_path):
    """A copy of a good folder, to be damaged."""
    return shutil.copytree(qwen, tmp_path / 'model')


def tensors_of(folder):
    tensors = {}
    for file in sorted(folder.glob('model*.safetensors')):
        tensors |= safetensors.numpy.load_file(file)
    return tensors


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', tiny_torch.CONFIGS)
def test_round_trip_leaves_every_byte(name, dtype, tmp_path):
    source, copy = tmp_path / 'source', tmp_path / 'copy'
    tiny_torch.save(name, source, getattr(torch, dtype), max_shard_size='40KB')
    assert len(list(source.glob('*.safetensors'))) > 1
    policy = models.load(source, dtype)
    models.save(policy, copy, shard_bytes=50_000)
    assert len(list(copy.glob('*.safetensors'))) > 1
    before, after = tensors_of(source), tensors_of(copy)
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].dtype == after[key].dtype == jnp.dtype(dtype)
        assert before[key].tobytes() == after[key].tobytes(), key
    assert models.load(copy, dtype).config == policy.config


@pytest.mark.parametrize('name', ['llama3_rope', 'qwen2_tied_window', 'qwen3', 'phi3_128k_long'])
def test_transformers_reads_the_export(name, tmp_path):
    source, copy = tmp_path / 'source', tmp_path / 'copy'
    tiny_torch.save(name, source)
    models.save(models.load(source, 'float32'), copy)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        copy, output_loading_info=True, attn_implementation='eager'
    )
    assert not report['missing_keys'] and not report['unexpected_keys']
    assert again.dtype == torch.float32
    tokens = torch.randint(3, 259, (2, 40))
    with torch.no_grad():
        expected = tiny_torch.model(name)(tokens).logits
        assert torch.equal(again(tokens).logits, expected)
    same_tokenizer(transformers.AutoTokenizer.from_pretrained(copy), tiny_torch.tokenizer())


def same_tokenizer(ours, theirs):
    text = "Let's add:\n\tx = 3.25 + ½  # ok<eos>\n\n   émile <code>\n<|assistant|>"
    assert ours(text)['input_ids'] == theirs(text)['input_ids']
    assert ours.get_vocab() == theirs.get_vocab()
    for name in ('eos_token', 'pad_token', 'bos_token'):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize('name', ['qwen2', 'llama_tied_bias'])
def test_added_tokens_take_padding_rows_then_grow(name, tmp_path):
    tiny_torch.save(name, tmp_path)
    policy = models.load(tmp_path, 'float32')
    known = len(policy.tokenizer)
    before = np.asarray(policy.params['embed']['weight'])

    more = models.add_tokens(policy, [*MARKS, '<eos>', '<code>'])
    assert more.config.vocab_size == 300 and len(more.tokenizer) == known + 3
    ids = more.tokenizer('a<code>b<end_of_step>c\n<|assistant|>')['input_ids']
    assert [i for i in ids if i >= known] == [known, known + 1, known + 2]
    tables = ['embed'] if policy.config.tie_embeddings else ['embed', 'output']
    assert ('output' in more.params) == ('output' in tables)
    for table in tables:
        old = np.asarray(policy.params[table]['weight'])
        new = np.asarray(more.params[table]['weight'])
        pieces = [policy.tokenizer(mark)['input_ids'] for mark in MARKS]
        expected = [old[np.array(ids)].mean(0) for ids in pieces]
        np.testing.assert_allclose(new[known : known + 3], expected, atol=1e-6)
        assert min(np.abs(a - b).max() for a, b in itertools.combinations(expected, 2)) > 0.01
        np.testing.assert_array_equal(
            np.delete(new, [known, known + 1, known + 2], 0)[:known], old[:known]
        )
        np.testing.assert_array_equal(new[known + 3 :], old[known + 3 :])

    many = models.add_tokens(more, [f'<mark{i}>' for i in range(60)])
    assert many.config.vocab_size == known + 63 == len(many.tokenizer)
    assert many.params['embed']['weight'].shape == (known + 63, 36)
    again = models.add_tokens(many, MARKS)
    assert again.config == many.config and len(again.tokenizer) == len(many.tokenizer)

    # The policy that it was made from is untouched.
    assert len(policy.tokenizer) == known
    np.testing.assert_array_equal(policy.params['embed']['weight'], before)

    models.save(many, tmp_path / 'more')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'more')
    assert theirs.get_input_embeddings().weight.shape[0] == known + 63
    same_tokenizer(transformers.AutoTokenizer.from_pretrained(tmp_path / 'more'), many.tokenizer)
    back = models.load(tmp_path / 'more', 'float32')
    same_tokenizer(back.tokenizer, many.tokenizer)
    jax.tree.map(np.testing.assert_array_equal, back.params, many.params)


def test_transformers_4_knows_what_the_tokenizer_is_written_as(qwen, tmp_path):
    """The words of its configuration; version 5 reads from them what it would from its own."""
    policy = models.add_tokens(models.load(qwen, 'float32'), MARKS)
    backend = policy.tokenizer.backend_tokenizer
    ends = {'bos_token': '<bos>', 'eos_token': '<eos>', 'pad_token': '<pad>'}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=MARKS, **ends
    )
    assert type(fast).__name__ == 'TokenizersBackend'
    kinds = [('Qwen2Tokenizer', policy.tokenizer), ('PreTrainedTokenizerFast', fast)]
    text = f'a<code>b = 1{MARKS[1]}{MARKS[2]}\n c<eos>'
    for name, made in kinds:
        policy.tokenizer = made
        models.save(policy, tmp_path / name)
        made.save_pretrained(shutil.copytree(tmp_path / name, tmp_path / f'{name}5'))
        written = json.loads((tmp_path / name / 'tokenizer_config.json').read_text())
        assert written['tokenizer_class'] == name
        assert written['additional_special_tokens'] == MARKS
        assert 'extra_special_tokens' not in written
        again, own = (
            transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
            for folder in (name, f'{name}5')
        )
        assert type(again) is type(own)
        assert again.extra_special_tokens == own.extra_special_tokens == MARKS
        assert again.special_tokens_map == own.special_tokens_map
        same_tokenizer(again, made)
        added = [
            {i: (str(token), token.special) for i, token in x.added_tokens_decoder.items()}
            for x in (again, own, made)
        ]
        assert added[0] == added[1] == added[2]
        ids = again(text)['input_ids']
        assert {*again.convert_tokens_to_ids(MARKS)} <= {*ids}
        for skip in (False, True):
            assert again.decode(ids, skip_special_tokens=skip) == made.decode(
                ids, skip_special_tokens=skip
            )


@pytest.mark.parametrize('more', [{}, {'attention_factor': 1.5}, {'factor': 3.0}], ids=str)
def test_longrope_is_written_with_the_keys_that_transformers_4_takes(more):
    factors = {'short': (1.0, 1.1, 1.3), 'long': (2.0, 2.5, 3.0)}
    rope = models.Rope('longrope', **factors, original=16, **more)
    config = models.Config('phi3', 97, 36, 50, 2, 6, 6, 6, rope=rope, max_length=128)
    written = families.write_config(config, 'float32')
    keys = {'type', 'short_factor', 'long_factor'} | ({'attention_factor'} if more else set())
    assert {*written['rope_scaling']} == keys
    again = families.read_config(written, '')
    theirs = transformers.Phi3Config(**json.loads(json.dumps(written)))
    scale = ropes.attention_factor(config)
    assert ropes.attention_factor(again) == pytest.approx(scale) and scale > 1
    for length in (16, 17):  # what is longer than `original` has the long factors
        expected = ropes.frequencies(config, length == 17)
        np.testing.assert_array_equal(ropes.frequencies(again, length == 17), expected)
        found, by = ROPE_INIT_FUNCTIONS['longrope'](theirs, 'cpu', seq_len=length)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
        assert by == pytest.approx(scale)
        for made in (config, ropes.for_texts_of(config, length)):
            cos, _ = ropes.angles(made, jnp.arange(length))
            np.testing.assert_allclose(cos[1], scale * np.cos(expected), rtol=1e-5)


def test_added_tokens_where_the_tokenizer_leaves_ids_out(broken):
    tokenizer = json.loads((broken / 'tokenizer.json').read_text())
    token = tokenizer['added_tokens'][-1] | {'id': 270, 'content': '<far>'}
    tokenizer['model']['vocab']['<far>'] = 270
    tokenizer['added_tokens'].append(token)
    (broken / 'tokenizer.json').write_text(json.dumps(tokenizer))
    policy = models.load(broken, 'float32')
    assert policy.tokenizer('<far>')['input_ids'] == [270] and len(policy.tokenizer) == 261
    more = models.add_tokens(policy, MARKS)
    assert more.tokenizer.convert_tokens_to_ids(MARKS) == [271, 272, 273]
    texts = steps.token_bytes(more.tokenizer, more.config.vocab_size)
    assert texts[270:274] == [text.encode() for text in ('<far>', *MARKS)]
    assert texts[265] == b'' and len(texts) == more.config.vocab_size
    for table in ('embed', 'output'):
        old, new = (np.asarray(p.params[table]['weight']) for p in (policy, more))
        changed = np.flatnonzero((old != new).any(axis=1))
        np.testing.assert_array_equal(changed, [271, 272, 273])
    many = models.add_tokens(policy, [f'<mark{i}>' for i in range(40)])
    assert many.config.vocab_size == 271 + 40 == len(many.params['embed']['weight'])
    edit_config(broken, vocab_size=265)
    with pytest.raises(UserError):
        models.load(broken)


@pytest.mark.parametrize(
    ('name', 'changes', 'of_rope'),
    [
        ('qwen2', {'attention_bias': True, 'mlp_bias': True}, {}),
        ('phi3_4k', {'attention_bias': True}, {}),
        ('phi3_4k', {'partial_rotary_factor': 0.5}, {'partial_rotary_factor': 0.5}),
        ('llama', {'partial_rotary_factor': 0.5}, {'partial_rotary_factor': 0.5}),
        ('llama_linear_rope', {}, {'attention_factor': 2.0}),
        ('llama3_rope', {}, {'attention_factor': 2.0}),
        ('qwen3_yarn', {}, {'attention_factor': 1.5}),
        ('qwen3_yarn', {}, {'mscale': 0.7, 'mscale_all_dim': 1.2}),
        ('smollm3_window_bias', {'layer_types': None}, {}),
        ('phi3_128k_long', {'original_max_position_embeddings': 100}, {}),
    ],
)
def test_settings_are_read_as_transformers_reads_them(tmp_path, name, changes, of_rope):
    tiny_torch.save(name, tmp_path)
    values = json.loads((tmp_path / 'config.json').read_text())
    edit_config(tmp_path, rope_parameters=values['rope_parameters'] | of_rope, **changes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation='eager'
    )
    tokens = np.random.default_rng(0).integers(3, 259, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    policy = models.load(tmp_path, 'float32')
    found = policy.logits(tokens, np.array([40, 40]))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    again = families.read_config(families.write_config(policy.config, 'float32'), '')
    assert again.rope_fraction == policy.config.rope_fraction


@pytest.mark.parametrize('family', sorted(families.ARCHITECTURES))
def test_settings_that_are_left_out_are_those_of_transformers(family):
    sizes = {**tiny_torch.SIZES, 'num_attention_heads': 6, 'max_position_embeddings': 8192}
    values = {'model_type': family, 'use_sliding_window': True, 'max_window_layers': 1, **sizes}
    theirs = transformers.AutoConfig.for_model(**values)
    ours = families.read_config(values, '')
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.rope_theta == theirs.rope_parameters['rope_theta']
    assert ours.head_dim == (getattr(theirs, 'head_dim', None) or 36 // 6)
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    if family in ('llama', 'olmo2', 'phi3'):  # of the others it is a number, whatever the heads
        assert ours.num_kv_heads == theirs.num_key_value_heads
    kinds = ['sliding_attention' if family == 'mistral' else 'full_attention'] * 2
    kinds = theirs.layer_types if family.startswith('qwen') else kinds
    windows = [theirs.sliding_window if kind != 'full_attention' else None for kind in kinds]
    assert [ours.window(layer) for layer in range(2)] == windows


@pytest.mark.parametrize('ends', [{'bos_token_id': 1, 'pad_token_id': 7}, {'pad_token_id': 7}])
def test_ends_that_only_the_generation_config_has_are_carried(broken, tmp_path, ends):
    edit_config(broken, bos_token_id=None, pad_token_id=None)
    (broken / 'generation_config.json').write_text(json.dumps(ends))
    models.save(models.load(broken, 'float32'), tmp_path / 'copy')
    written = json.loads((tmp_path / 'copy' / 'generation_config.json').read_text())
    assert ends.items() <= written.items()


def test_ends_and_sampling_settings_are_carried(qwen, broken, tmp_path):
    settings = {'eos_token_id': [2, 5], 'temperature': 0.7, 'do_sample': True}
    (broken / 'generation_config.json').write_text(json.dumps(settings))
    policy = models.load(broken, 'float32')
    assert policy.config.eos_ids == (2, 5)
    models.save(policy, tmp_path / 'copy')
    written = json.loads((tmp_path / 'copy' / 'generation_config.json').read_text())
    assert settings.items() <= written.items()
    config = json.loads((tmp_path / 'copy' / 'config.json').read_text())
    assert families.read_config(config, '').eos_ids == (2, 5)  # of a folder without that file


def test_ppm_round_trip(qwen, tmp_path):
    ppm = models.init_ppm(models.load(qwen, 'float32'), seed=1)
    assert 'output' not in ppm.params['decoder']
    head = ppm.params['value_head']
    drawn = heads.init_value_head(100_000, jax.random.key(0))['weight']
    assert float(drawn.mean()) == pytest.approx(5e-7, abs=2e-8)
    assert float(drawn.std()) == pytest.approx(1e-6, rel=0.02)
    assert float(head['bias'][0]) == np.float32(1e-6)
    head['weight'] = jax.random.normal(jax.random.key(0), (1, 36))

    models.save_ppm(ppm, tmp_path / 'ppm')
    tokens, lengths = np.full((2, 9), 7), np.array([9, 4])
    for remove in (None, 'value_head.safetensors'):
        if remove:
            (tmp_path / 'ppm' / remove).unlink()
        again = models.load_ppm(tmp_path / 'ppm', 'float32')
        assert again.squash == 'tanh'
        jax.tree.map(np.testing.assert_array_equal, again.params, ppm.params)
        np.testing.assert_array_equal(again.scores(tokens, lengths), ppm.scores(tokens, lengths))

    weights = torch.load(tmp_path / 'ppm' / 'value_head.bin', weights_only=True)
    assert weights.keys() == {'v_head.summary.weight', 'v_head.summary.bias'}
    np.testing.assert_array_equal(weights['v_head.summary.weight'], head['weight'])
    decoder = transformers.AutoModel.from_pretrained(tmp_path / 'ppm')
    expected = tiny_torch.model('qwen2').model.state_dict()
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, expected[name]), name

    models.save(models.load(qwen, 'float32'), tmp_path / 'ppm')  # over it
    assert not models.is_ppm(tmp_path / 'ppm')
    assert 'output' in models.load(tmp_path / 'ppm', 'float32').params


def test_ppm_of_the_released_code(qwen, tmp_path):
    """A causal model's folder with its language head, and value_head.bin written by torch."""
    folder = shutil.copytree(qwen, tmp_path / 'ppm')
    head = torch.nn.Linear(36, 1)
    tensors = {f'v_head.summary.{name}': tensor for name, tensor in head.state_dict().items()}
    torch.save(tensors, folder / 'value_head.bin')
    ppm = models.load_ppm(folder, 'float32')
    assert ppm.squash == 'tanh5'
    np.testing.assert_array_equal(ppm.params['value_head']['weight'], head.weight.detach())


def test_torch_files_of_other_dtypes(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        narrow = whole.to(dtype)
        tensors = {'a': narrow.T, 'b': torch.nn.Parameter(narrow[1:])}
        torch.save(tensors, tmp_path / 'x.bin')
        read = torch_file.load(tmp_path / 'x.bin')
        np.testing.assert_array_equal(read['a'].astype(np.float32), whole.T)
        np.testing.assert_array_equal(read['b'].astype(np.float32), whole[1:])


def test_a_torch_file_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ('run',))

    torch.save({'a': Evil()}, tmp_path / 'x.bin')
    with pytest.raises(UserError) as error:
        torch_file.load(tmp_path / 'x.bin')
    assert error.value.argument == str(tmp_path / 'x.bin')


def test_a_torch_file_of_which_any_byte_is_damaged(tmp_path):
    path, whole = tmp_path / 'x.bin', {'a': np.arange(3, dtype=np.float32)}
    torch_file.save(whole, path)
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        with contextlib.suppress(UserError):
            torch_file.load(path)


@pytest.mark.parametrize(
    ('offset', 'size', 'stride'),
    [(0, 5, 1), (0, 3, 2), (1, 4, 1), (0, 9, -1), (3, 4, -1), (-2, 1, 1)],
)
def test_a_torch_file_shows_no_other_memory(tmp_path, offset, size, stride):
    class Reaching:
        def __reduce__(self):
            storage = torch.arange(4.0)._typed_storage()
            place = offset, (size,), (stride,), False, collections.OrderedDict()
            return torch._utils._rebuild_tensor_v2, (storage, *place)

    torch.save({'a': Reaching()}, tmp_path / 'x.bin')
    with pytest.raises(UserError) as error:
        torch_file.load(tmp_path / 'x.bin')
    assert error.value.argument == str(tmp_path / 'x.bin')


@pytest.mark.parametrize('with_mesh', [False, True])
def test_one_tensor_of_a_file_is_on_the_host_at_a_time(qwen, monkeypatch, with_mesh):
    alive, most, read = 0, 0, weights.SafetensorsFolder.read

    def forget():
        nonlocal alive
        alive -= 1

    def counted(self, names):
        nonlocal alive, most
        for name in names:
            # As `read` itself does, no name here holds the tensor that was handed out.
            ((_, tensor),) = read(self, [name])
            alive, most = alive + 1, max(most, alive + 1)
            weakref.finalize(tensor, forget)
            pair = [(name, tensor)]
            del tensor
            yield pair.pop()

    monkeypatch.setattr(weights.SafetensorsFolder, 'read', counted)
    mesh = None
    if with_mesh:
        mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ('fsdp', 'tensor'))
    policy = models.load(qwen, 'bfloat16', mesh=mesh)
    assert most == 1 and alive == 0
    assert {leaf.dtype.name for leaf in jax.tree.leaves(policy.params)} == {'bfloat16'}


def test_what_several_devices_hold_is_on_the_host_once(qwen, monkeypatch):
    made, cast = 0, weights.cast

    def counted(tensor, dtype):
        nonlocal made
        made += tensor.size
        return cast(tensor, dtype)

    monkeypatch.setattr(weights, 'cast', counted)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ('data', 'tensor'))
    params = jax.tree.leaves(models.load(qwen, 'float32', mesh=mesh).params)
    assert any(not leaf.sharding.is_fully_replicated for leaf in params)
    assert made == sum(leaf.size for leaf in params)
    alone = jax.tree.leaves(models.load(qwen, 'float32').params)
    for leaf, whole in zip(params, alone, strict=True):
        np.testing.assert_array_equal(leaf, whole)


def test_one_written_file_is_on_the_host_at_a_time(qwen, tmp_path, monkeypatch):
    policy, before = models.load(qwen, 'float32'), []
    save_file, to_host = safetensors.numpy.save_file, weights.to_host

    def saved(tensors, *rest, **more):
        save_file(tensors, *rest, **more)
        before.extend(map(weakref.ref, tensors.values()))

    def gathered(array):
        assert all(one() is None for one in before)
        return to_host(array)

    monkeypatch.setattr(safetensors.numpy, 'save_file', saved)
    monkeypatch.setattr(weights, 'to_host', gathered)
    models.save(policy, tmp_path / 'copy', shard_bytes=50_000)
    assert len(list((tmp_path / 'copy').glob('*.safetensors'))) > 2


def edit_config(folder, **changes):
    values = json.loads((folder / 'config.json').read_text()) | changes
    (folder / 'config.json').write_text(json.dumps(values))


def edit_tensors(folder, **changes):
    file = folder / 'model.safetensors'
    tensors = safetensors.numpy.load_file(file)
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    safetensors.numpy.save_file(tensors, file)


def test_all_faults_of_the_weights_in_one_error(broken):
    norm = 'model.layers.1.input_layernorm.weight'
    edit_tensors(
        broken,
        **{
            'model.norm.weight': None,
            'model.layers.0.mlp.up_proj.weight': np.zeros((3, 36), np.float32),
            'model.extra.weight': np.zeros(3, np.float32),
            norm: np.zeros(36, np.int32),
        },
    )
    with pytest.raises(UserError) as caught:
        models.load(broken)
    message = str(caught.value)
    assert '\n' not in message and str(broken) in message
    assert 'model.norm.weight is missing' in message
    assert 'up_proj.weight has shape [3, 36], expected [50, 36]' in message
    assert 'model.extra.weight is unknown to qwen2' in message
    assert f'{norm} has dtype I32, expected one of float32' in message


def _truncate(folder):
    file = folder / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:-1000])


def _lose_shard(folder):
    models.save(models.load(folder, 'float32'), folder, shard_bytes=50_000)
    next(iter(sorted(folder.glob('model-*.safetensors')))).unlink()


def _damage_index(folder):
    models.save(models.load(folder, 'float32'), folder, shard_bytes=50_000)
    (folder / 'model.safetensors.index.json').write_text('{"weight_map": ')


def _no_tokenizer(folder):
    for file in folder.glob('tokenizer*'):
        file.unlink()


def _bin_only(folder):
    (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')


# What is damaged, and the file or folder that the error names.
@pytest.mark.parametrize(
    ('damage', 'named'),
    [
        (_truncate, ''),
        (_lose_shard, ''),
        (_damage_index, 'model.safetensors.index.json'),
        (_no_tokenizer, ''),
        (_bin_only, ''),
        (
            lambda f: edit_config(f, model_type='mamba', architectures=['MambaForCausalLM']),
            'config.json',
        ),
        (lambda f: edit_config(f, hidden_act='gelu', hidden_size=None), 'config.json'),
        (
            lambda f: edit_config(f, rope_parameters={'rope_type': 'dynamic', 'factor': 4.0}),
            'config.json',
        ),
        (
            lambda f: edit_config(f, rope_parameters={'rope_type': 'yarn', 'truncate': False}),
            'config.json',
        ),
        (
            lambda f: edit_config(
                f,
                rope_parameters={'rope_type': 'longrope', 'short_factor': None},
                sliding_window=64,
                max_position_embeddings=None,
            ),
            'config.json',
        ),
        (lambda f: edit_config(f, vocab_size=200), ''),
        (lambda f: (f / 'config.json').write_text('{'), 'config.json'),
        (lambda f: (f / 'config.json').unlink(), ''),
        (lambda f: (f / 'tokenizer.json').write_text('{'), ''),
    ],
)
def test_one_line_for_a_damaged_folder(broken, damage, named):
    damage(broken)
    with pytest.raises(UserError) as error:
        models.load(broken)
    assert error.value.argument == str(broken / named)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('tensors', 'named'),
    [
        ({'weight': torch.zeros(1, 35)}, ''),
        ({'bias': None}, 'value_head.bin'),
        ('cut', 'value_head.bin'),
    ],
)
def test_one_line_for_a_damaged_value_head(broken, tensors, named):
    file = broken / 'value_head.bin'
    head = {'weight': torch.zeros(1, 36), 'bias': torch.zeros(1)}
    changes = {} if tensors == 'cut' else tensors
    kept = {k: v for k, v in (head | changes).items() if v is not None}
    torch.save({f'v_head.summary.{name}': tensor for name, tensor in kept.items()}, file)
    if tensors == 'cut':
        file.write_bytes(file.read_bytes()[:-100])
    for read in (models.load_ppm, lambda folder: models.check(folder, ppm=True)):
        with pytest.raises(UserError) as error:
            read(broken)
        assert error.value.argument == str(broken / named)
        assert '\n' not in str(error.value)


def test_weights_are_had_from_the_hub_once(qwen, monkeypatch):
    """Some repositories (Mistral) hold them a second time, in a form of their own."""
    asked = []
    had = lambda name, **how: asked.append(how) or str(qwen)  # noqa: E731
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', had)
    models.load('somebody/model', 'float32')
    read = ['model-00001-of-00002.safetensors', 'model.safetensors', 'value_head.safetensors']
    files = [*read, 'consolidated.safetensors', 'original/consolidated.00.pth']
    assert list(huggingface_hub.utils.filter_repo_objects(files, **asked[0])) == read


def test_wrong_arguments(qwen, tmp_path):
    policy = models.load(qwen, 'float32')
    ppm = models.init_ppm(policy)
    judge = shutil.copytree(qwen, tmp_path / 'judge')
    (judge / 'value_head.bin').write_bytes(b'')
    file = qwen / 'config.json'
    for argument, call in (
        ('/none/such', lambda: models.load('/none/such')),
        ('nobody/none-such', lambda: models.load('nobody/none-such')),
        ('dtype', lambda: models.load(qwen, 'int8')),
        (str(qwen), lambda: models.load_ppm(qwen)),
        (str(judge), lambda: models.load(judge)),
        (str(file), lambda: models.load(file)),
        (str(file), lambda: models.save(policy, file)),
        ('model', lambda: models.save(ppm, tmp_path)),
        ('model', lambda: models.save_ppm(policy, tmp_path)),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert error.value.argument == argument


def test_the_folder_that_a_training_wrote_is_read_like_any_other(qwen, tmp_path):
    policy = models.load(qwen, 'float32')
    judge = models.init_ppm(policy, squash='tanh5')
    trained.save_model(policy, tmp_path / 'policy')
    trained.save_model(judge, tmp_path / 'ppm')
    for model, load, other in (
        (policy, models.load, models.load_ppm),
        (judge, models.load_ppm, models.load),
    ):
        is_ppm = model is judge
        folder = tmp_path / ('ppm' if is_ppm else 'policy')
        again = load(folder, 'float32')
        jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
        assert again.config == model.config == models.read_config(folder)
        assert models.is_ppm(folder) == is_ppm
        checked = models.check(folder, ppm=is_ppm)
        assert checked.get_vocab() == model.tokenizer.get_vocab()
        for call in (other, lambda folder, is_ppm=is_ppm: models.check(folder, ppm=not is_ppm)):
            with pytest.raises(UserError) as error:
                call(folder)
            assert error.value.argument == str(folder)
    assert models.load_ppm(tmp_path / 'ppm', 'float32').squash == 'tanh5'
