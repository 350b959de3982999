"""What a training takes on its devices is counted, told, and refused where it does not fit; what a
chat asks the policy that it makes."""

import copy
import dataclasses
import json

import jax
import pytest
import tokenizers
import transformers

from rstar_jax import models, parallel, steps, training
from rstar_jax.job import hosts, ledger
from rstar_jax.settings.errors import UserError
from rstar_jax.training import examples, packing, recompute, step, trainer
from tests.training import test_trainer
from tests.training.words import pair_examples, ppm_settings, sft_examples, sft_settings


@pytest.mark.parametrize(('moments', 'bytes_of_one'), [('float32', 8), ('bfloat16', 6)])
def test_moments_take_the_bytes_that_they_should(policy, moments, bytes_of_one):
    settings = sft_settings(moments=moments)
    compiled = step.Compiled(policy.config, settings, 'sft', parallel.one_device(), 2)
    state = compiled.init(policy.params)
    count = sum(leaf.size for leaf in jax.tree.leaves(policy.params))
    counters = 4 * 4  # of Adam; of the schedule with its steps and rate
    assert parallel.bytes_on_a_device(state['optimiser']) == bytes_of_one * count + counters


@pytest.mark.parametrize(
    'changes', [{}, {'keep': 'best', 'measure_every': 1, 'held_out': 0.4}], ids=str
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    policy, tmp_path, monkeypatch, changes
):
    """So that another micro batch may be chosen: a stage's settings bind where it has files."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(policy.params))
    for room, message in ((size, 'the moments of AdamW take'), (3 * size, 'a micro batch takes')):
        monkeypatch.setattr(parallel, 'free_bytes', lambda mesh, room=room: room)
        with pytest.raises(UserError) as error:
            training.sft(policy, sft_examples(), sft_settings(**changes), tmp_path / str(room))
        assert message in error.value.expected and 'lower length' in error.value.remedy
        assert not ledger.Stage(tmp_path / str(room)).binding


@pytest.mark.parametrize('late', [False, True])
def test_a_long_row_that_comes_late_is_looked_at_before_the_first_step(
    policy, tmp_path, monkeypatch, late
):
    data = pair_examples(12)
    prompt = steps.prompt('bbb')
    long = {side: f'{word} ' * 45 for side, word in (('pos', 'bbb'), ('neg', 'ccc'))}
    data += [{'prompt': prompt, **long, 'pos_count': 1, 'neg_count': 1}] * late
    settings = ppm_settings(batch_size=2, micro_batch=1, held_out=0.0, dropout=0.0, epochs=1)
    encoded = examples.pairs(data, policy.tokenizer, settings.length)
    assert (max(encoded.sizes) > settings.length) == late
    seen, real = [], step.Compiled.prepare

    def prepare(self, state, batches):
        seen.append({batch['tokens'].shape for _, batch in batches})
        return real(self, state, batches)

    monkeypatch.setattr(step.Compiled, 'prepare', prepare)
    monkeypatch.setattr(trainer, 'LOOKED', 1)
    every = [
        {batch['tokens'].shape for batch in packing.Micros(
            encoded, chosen, settings, parallel.one_device()
        ).batches}
        for _, chosen in packing.order(encoded, range(len(encoded)), settings)
    ]  # fmt: skip
    training.ppm(policy, data, settings, tmp_path)
    longest = (1, 2 * settings.length)
    assert (longest in set.union(*every)) == late and longest not in every[0]
    own = next((shapes for shapes in every if longest in shapes), set())
    assert seen == [every[0] | own]


def test_memory_that_a_device_does_not_tell_is_not_checked(policy, tmp_path, monkeypatch, capsys):
    for name in ('device_bytes', 'free_bytes'):
        monkeypatch.setattr(parallel, name, lambda mesh: 0)
    training.sft(policy, sft_examples(4), sft_settings(epochs=1), tmp_path)
    assert ' GiB beside them; attention by loop\n' in capsys.readouterr().out
    compiled, state = test_trainer.compiled_with_state(policy, sft_settings())
    assert compiled.for_activations(state['params'], {}) == recompute.ROOM


def test_of_several_processes_the_one_with_the_least_memory_decides(policy, monkeypatch):
    mib, settings = 2**20, sft_settings()
    params = jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]), policy.params)
    rooms = []
    for here, there in ((4096, 300), (300, 4096)):
        with monkeypatch.context() as two:
            two.setattr(jax, 'process_count', lambda: 2)
            two.setattr(hosts, 'greatest', lambda number, there=there: max(number, -there))
            for name in ('device_bytes', 'free_bytes'):
                two.setattr(parallel, name, lambda mesh, here=here: here * mib + 1000)
            mesh = parallel.one_device()
            compiled = step.Compiled(policy.config, settings, 'sft', mesh, 2)
            rooms.append(compiled.for_activations(params, {}))
            compiled.room.check('it takes', 300 * mib)
            with pytest.raises(UserError):
                compiled.room.check('it takes', 300 * mib + 1)
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    assert rooms[0] == rooms[1] and 145 * mib < rooms[0] <= 150 * mib - 2 * size


@pytest.mark.parametrize('kind', ['sft', 'ppm'])
def test_a_setting_that_there_is_not_is_named(kind):
    assert training.settings(kind, {'learning_rate': 1e-3}).learning_rate == 1e-3
    with pytest.raises(UserError) as error:
        training.settings(kind, {'lerning_rate': 1e-3})
    assert error.value.argument == 'lerning_rate'


@pytest.mark.parametrize('marks', ['tokens', 'text'])
@pytest.mark.parametrize('begins', [False, True])
def test_a_chat_asks_by_the_prompt_that_was_trained(policy, tmp_path, marks, begins):
    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.chat_template = theirs = "{{ '<|im_start|>' + messages[0].content }}"
    tokenizer.bos_token = 'aaa'
    if begins:
        tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single='aaa $A', special_tokens=[('aaa', tokenizer.bos_token_id)]
        )
    said = {'do_sample': True, 'temperature': 0.7, 'top_p': 0.8, 'repetition_penalty': 1.1}
    said['eos_token_id'] = [tokenizer.eos_token_id]
    start = dataclasses.replace(policy, tokenizer=tokenizer, generation=said)
    settings = sft_settings(epochs=1, marks=marks)
    trained, _ = training.sft(start, sft_examples(4), settings, tmp_path / 'made')
    again = models.load(tmp_path / 'made', 'float32')
    models.save(again, tmp_path / 'export')
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / 'export')
    question = 'Is {{ \'bbb\' }}\n < 3 & "ccc"?\n'
    chat = [{'role': 'user', 'content': question}]
    earlier = [
        {'role': 'system', 'content': 'ddd'},
        {'role': 'user', 'content': 'eee'},
        {'role': 'assistant', 'content': 'fff'},
    ]
    for made in (trained.tokenizer, again.tokenizer, exported):
        for messages in (chat, earlier + chat):
            text = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert text == 'aaa' * begins + steps.prompt(question)
            ids = made.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            assert ids == made(steps.prompt(question))['input_ids']
    written = json.loads((tmp_path / 'export' / 'generation_config.json').read_text())
    assert {key for key in written if not key.endswith('_token_id')} == set()
    assert written['eos_token_id'] == tokenizer.eos_token_id
    # What is only loaded and saved keeps its own.
    assert (start.tokenizer.chat_template, start.generation) == (theirs, said)
    models.save(start, tmp_path / 'start')
    kept = transformers.AutoTokenizer.from_pretrained(tmp_path / 'start')
    assert kept.chat_template == theirs
    written = json.loads((tmp_path / 'start' / 'generation_config.json').read_text())
    assert said.keys() <= written.keys()
