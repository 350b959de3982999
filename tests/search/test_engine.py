"""The engine against full forward passes, and what must not change its trees."""

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest
import transformers
from tokenizers import pre_tokenizers

from rstar_jax import models, parallel, search
from rstar_jax.data.problem import Problem
from rstar_jax.search import begin
from rstar_jax.search.children import Judge
from rstar_jax.search.engine import Engine, devices, local, memory, sizes, state
from rstar_jax.settings.errors import UserError
from tests.search import favoured
from tests.search.naive import Naive

CONFIG = search.Config(
    rollouts=4,
    candidates=3,
    max_depth=3,
    error_threshold=3,
    step_tokens=12,
    slots=4,
    trees_in_flight=2,
    chunk=3,
)
PROBLEMS = [
    Problem(i, question, '3')
    for i, question in enumerate(['Tom has 2 apples.', 'Anna and Tom', '7 boxes of 5'])
]


def one_device():
    return parallel.local_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope='module', autouse=True)
def _sizes_of_few_slots():
    """So that searches of a few slots go through several sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, 'FEWEST_SLOTS', 1)
        yield


@pytest.fixture(scope='module')
def workers():
    with search.Workers.start(CONFIG) as started:
        yield started


@pytest.fixture(scope='module')
def policy():
    return favoured.policy()


@pytest.fixture(scope='module')
def ppm(policy):
    made = models.init_ppm(policy, seed=1)
    head = {'weight': 0.3 * jax.random.normal(jax.random.key(0), (1, 128)), 'bias': np.zeros(1)}
    return dataclasses.replace(made, params={**made.params, 'value_head': head})


def grow(policy, ppm, workers, problems=PROBLEMS, config=CONFIG, seed=0, trees=1, **share):
    share = search.Share(workers=workers, **{'mesh': one_device(), **share})
    records = search.run(problems, policy, ppm, config=config, seed=seed, trees=trees, share=share)
    return {record.key: record for record in records}


@pytest.fixture(scope='module')
def grown(policy, ppm, workers):
    """The trees of PROBLEMS that the others are compared with."""
    return grow(policy, ppm, workers)


@pytest.fixture(scope='module')
def grown_without_ppm(policy, workers):
    return grow(policy, None, workers)


def assert_same(ours, theirs, exact=True):
    assert ours.keys() == theirs.keys()
    for key, record in ours.items():
        other = theirs[key]
        assert record.texts == other.texts
        assert record.tokens == other.tokens
        for name in ('parent', 'visits', 'status', 'errors', 'depth'):
            np.testing.assert_array_equal(getattr(record, name), getattr(other, name))
        compare = np.testing.assert_array_equal if exact else _close
        compare(record.score, other.score)
        compare(record.value_sum, other.value_sum)
        _close(record.likelihood, other.likelihood)  # sums of what shapes may round


def _close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('scored', [False, True])
def test_equal_to_full_forward_passes(policy, ppm, workers, grown, grown_without_ppm, scored):
    ppm, ours = (ppm, grown) if scored else (None, grown_without_ppm)
    naive = Naive(policy, ppm, CONFIG)
    theirs = search.run(
        PROBLEMS, expander=naive, config=CONFIG, policy=None, share=search.Share(workers=workers)
    )
    theirs = {record.key: record for record in theirs}
    assert_same(ours, theirs, exact=False)
    kinds = {int(s) for record in ours.values() for s in record.status}
    assert len(kinds) >= 3, kinds
    assert sum(len(record.texts) for record in ours.values()) > 20
    if scored:
        assert sum(np.isfinite(record.score).sum() for record in ours.values()) > 3


def test_a_shared_prefix_and_sliding_windows(policy, ppm, workers, monkeypatch):
    """Prompts that begin alike have that part computed once; windows reach across all parts."""
    config = dataclasses.replace(policy.config, windows=(None, 9))
    policy = dataclasses.replace(policy, config=config)
    ppm = dataclasses.replace(ppm, config=config)
    naive = search.run(
        PROBLEMS,
        expander=Naive(policy, ppm, CONFIG),
        config=CONFIG,
        share=search.Share(workers=workers),
    )
    naive = {record.key: record for record in naive}
    assert_same(grow(policy, ppm, workers), naive, exact=False)
    monkeypatch.setattr(local, 'SHARED_PREFIX', 1)
    monkeypatch.setattr(local, 'MERGED', 0)
    monkeypatch.setattr(local, 'PREFIX_UNIT', 1)
    totals = []
    assert_same(grow(policy, ppm, workers, progress=totals.append), naive, exact=False)
    prompts = sum(len(record.tokens[0]) for record in naive.values())
    assert totals[-1]['policy_computed'] - totals[-1]['sampled'] < 2 * prompts


@pytest.mark.parametrize('path_tokens', [256, 96])
def test_longrope_has_one_choice_of_factors(policy, ppm, workers, path_tokens):
    """Where paths may grow beyond `original`, the long factors from the first token on."""
    rope = models.Rope('longrope', short=(1.0,) * 16, long=(1.0, 3.0) * 8, original=96)
    config = dataclasses.replace(CONFIG, path_tokens=path_tokens)

    def scaled(rope):
        shape = policy.config.replace(rope=rope)
        return dataclasses.replace(policy, config=shape), dataclasses.replace(ppm, config=shape)

    ours = grow(*scaled(rope), workers, problems=PROBLEMS[:1], config=config)
    is_long = path_tokens > rope.original
    expected = dataclasses.replace(rope, short=rope.long) if is_long else rope
    naive = Naive(*scaled(expected), config)
    theirs = search.run(
        PROBLEMS[:1], expander=naive, config=config, share=search.Share(workers=workers)
    )
    assert_same(ours, {record.key: record for record in theirs}, exact=False)
    (record,) = ours.values()
    ends = np.zeros(len(record.tokens), int)  # of each node's path
    for node, (parent, tokens) in enumerate(zip(record.parent, record.tokens)):
        ends[node] = len(tokens) + (ends[parent] if node else 0)
    assert ends[0] < rope.original
    assert is_long == any(ends[record.parent[1:]] > rope.original)


def test_other_problems_order_and_devices_change_nothing(policy, ppm, workers, grown):
    reordered = grow(policy, ppm, workers, problems=PROBLEMS[::-1])
    assert_same(grown, reordered, exact=False)  # shapes follow what is searched together
    alone = grow(policy, ppm, workers, skip={(0, 0), (1, 0)})
    assert_same({(2, 0): grown[2, 0]}, alone, exact=False)
    several = parallel.local_mesh(devices=jax.devices()[:4])
    config = dataclasses.replace(CONFIG, trees_in_flight=1)
    assert_same(grown, grow(policy, ppm, workers, config=config, mesh=several), exact=False)
    moved = [dataclasses.replace(p, index=90 - p.index, sampled_as=p.index) for p in PROBLEMS]
    renamed = grow(policy, ppm, workers, problems=moved)
    back = {(90 - index, tree): record for (index, tree), record in renamed.items()}
    assert_same(grown, back, exact=False)


def test_with_one_size_no_bit_changes(policy, ppm, workers):
    """Killed and gone on (some trees skipped), in another order, among other problems."""
    config = dataclasses.replace(CONFIG, one_size=True, path_tokens=256)
    more = [*PROBLEMS, Problem(7, 'Anna has 9', '9')]
    more.append(Problem(8, 'Tom has 2 apples. ' * 40, '2'))
    whole = grow(policy, ppm, workers, config=config, problems=more)

    def bits(records, keys):
        return [dataclasses.replace(records[key], counters={}).to_bytes() for key in keys]

    for changes in (
        {'problems': more[::-1]},
        {'problems': more, 'skip': {(0, 0), (2, 0)}},
        {'problems': PROBLEMS},
    ):
        again = grow(policy, ppm, workers, config=config, **changes)
        assert bits(again, again) == bits(whole, again)
    long = whole[8, 0]  # is longer than paths may be: it ends at once, and makes none longer
    assert len(long.tokens[0]) > config.path_tokens
    assert len(long.texts) == 1


def test_a_prompt_that_leaves_no_room_for_a_step_is_told(policy, workers, capsys):
    """Before the search, where there is room behind none; else how many there were."""
    with pytest.raises(UserError, match=r'^path_tokens=80: a prompt has \d+ tokens.*raise path'):
        grow(policy, None, workers, config=dataclasses.replace(CONFIG, path_tokens=80))
    whole = dataclasses.replace(CONFIG, prompt='whole')  # no step comes behind the first
    assert whole.prompt_tokens == CONFIG.path_tokens
    config = dataclasses.replace(CONFIG, path_tokens=256, rollouts=1)
    long = Problem(8, 'Tom has 2 apples. ' * 40, '2')
    grow(policy, None, workers, config=config, problems=[*PROBLEMS, long])
    told = 'search: in 1 of 4 trees the prompt leaves no room for a step in path_tokens=256: raise'
    assert told in capsys.readouterr().out


@pytest.mark.parametrize('windows', [(), (None, 9)])
def test_a_prompt_that_begins_otherwise(policy, ppm, workers, monkeypatch, windows):
    """It is searched as it is, beside those that begin as the template does."""
    shape = dataclasses.replace(policy.config, windows=windows)
    policy, ppm = (dataclasses.replace(model, config=shape) for model in (policy, ppm))
    monkeypatch.setattr(local, 'SHARED_PREFIX', 1)
    monkeypatch.setattr(local, 'MERGED', 0)
    monkeypatch.setattr(local, 'PREFIX_UNIT', 1)
    monkeypatch.setattr(begin, 'QUESTIONS', ('Tom has 2 apples', 'Tom has 3 apples'))
    ours = grow(policy, ppm, workers)
    naive = search.run(
        PROBLEMS,
        expander=Naive(policy, ppm, CONFIG),
        config=CONFIG,
        share=search.Share(workers=workers),
    )
    assert_same(ours, {record.key: record for record in naive}, exact=False)


def test_behind_an_output_goes_what_the_policy_has_learnt_there(policy, workers):
    """Where the marks are text, their last token took the newline along; whatever the prompt."""
    letters = {letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    text = transformers.Qwen2Tokenizer(vocab=letters, merges=[])
    for tokenizer, behind in ((policy.tokenizer, ''), (text, '\n')):
        made = dataclasses.replace(policy, tokenizer=tokenizer)
        expander = begin.make_expander(made, None, CONFIG, one_device(), 1)
        expander.close()
        assert Judge(CONFIG, workers, expander).behind_output == behind


def test_a_long_prompt_makes_no_path_longer(policy, workers, monkeypatch):
    rooms, room = [], sizes.path_room
    monkeypatch.setattr(sizes, 'path_room', lambda *x: rooms.append(room(*x)) or rooms[-1])
    config = dataclasses.replace(CONFIG, path_tokens=300)
    long = Problem(8, 'Tom has 2 apples. ' * 400, '2')
    records = grow(policy, None, workers, [PROBLEMS[0], long], search.greedy(config))
    assert len(records[8, 0].texts) == 1
    assert max(rooms) <= 300 + state.COPIED


def test_stores_wider_than_a_head_change_nothing(policy, ppm, workers, grown, monkeypatch):
    """As on TPUs: keys and values of 32 dimensions in rows of 48, also of what is kept."""
    monkeypatch.setattr(devices, 'LANES', {'cpu': 24})
    devices._maker.cache_clear()
    made = devices.shapes(one_device(), state.empty_kv, policy.config, 1, 8, 'float32')
    assert made[0][0].shape == (1, 2, 8, 48)
    assert_same(grown, grow(policy, ppm, workers), exact=False)
    devices._maker.cache_clear()


def test_trees_of_one_problem_compute_its_prompt_once(policy, ppm, workers):
    config = dataclasses.replace(CONFIG, trees_in_flight=3)
    naive = search.run(
        PROBLEMS[:2],
        trees=4,
        expander=Naive(policy, ppm, config),
        config=config,
        share=search.Share(workers=workers),
    )
    naive = {record.key: record for record in naive}

    def computed(records):
        prompts = [len(record.tokens[0]) for record in records.values()]
        assert_same(records, naive, exact=False)
        names = ('policy_computed', 'ppm_computed')
        return [sum(r.counters[name] for r in records.values()) for name in names], sum(prompts)

    once, prompts = computed(grow(policy, ppm, workers, PROBLEMS[:2], config, trees=4))
    alone = {}
    for key in naive:
        alone |= grow(policy, ppm, workers, PROBLEMS[:2], config, trees=4, skip={*naive} - {key})
    each, _ = computed(alone)
    for less, more in zip(once, each, strict=True):
        assert more - less > 0.6 * prompts  # six of eight, and of them all but the last token


@pytest.mark.parametrize('near', [1, 5])
def test_long_steps_read_apart_change_nothing(policy, ppm, workers, grown, monkeypatch, near):
    """What lies behind the first positions of a step, for one slot of four at a time."""
    monkeypatch.setattr(sizes, 'CPU', dataclasses.replace(sizes.CPU, near=near))
    assert max(len(tokens) for record in grown.values() for tokens in record.tokens[1:]) > near + 1
    assert_same(grown, grow(policy, ppm, workers), exact=False)


@pytest.mark.parametrize(('rows', 'tensor'), [(2, 2), (1, 4)])  # there are 2 key heads
def test_devices_that_share_the_weights_change_nothing(policy, ppm, workers, grown, rows, tensor):
    mesh = parallel.local_mesh(tensor, jax.devices()[: rows * tensor])
    assert_same(grow(policy, ppm, workers, mesh=mesh), grown, exact=False)


def test_seeds_and_tree_numbers_differ(policy, workers):
    first = grow(policy, None, workers, problems=PROBLEMS[:2], trees=2)
    other = grow(policy, None, workers, problems=PROBLEMS[:2], seed=1)
    assert first[0, 0].texts != first[0, 1].texts
    assert first[0, 0].texts != other[0, 0].texts
    assert (first[0, 0].seed, other[0, 0].seed) == (0, 1)


def test_tokens_are_counted(policy, ppm, workers):
    totals = []
    records = grow(policy, ppm, workers, progress=totals.append)
    last = totals[-1]
    assert last['trees_done'] == last['trees_total'] == len(PROBLEMS)
    assert last['nodes'] == sum(len(record.texts) for record in records.values())
    assert last['sampled'] == sum(r.counters['sampled_tokens'] for r in records.values())
    prompts = sum(len(record.tokens[0]) for record in records.values())
    # All that was sampled and all prompts were computed; jumps computed some tokens again.
    assert last['policy_computed'] >= last['sampled'] + prompts
    assert last['live_slot_steps'] <= last['slot_steps']
    for name in ('policy_computed', 'ppm_computed'):
        assert last[name] == sum(r.counters[name] for r in records.values()) > 0


def test_a_chunk_goes_on_while_every_slot_has_work(policy, workers, monkeypatch):
    """And that changes no tree."""
    config = dataclasses.replace(CONFIG, slots=2)
    collect, chunks = Engine.collect, []

    def watched(self, running):
        if running is not None:
            _, slots, sending = running
            stats = np.asarray(sending.result().stats)
            chunks.append((*stats[0, :2].tolist(), slots))
        return collect(self, running)

    monkeypatch.setattr(Engine, 'collect', watched)
    short = grow(policy, None, workers, config=config)
    assert max(done for done, *_ in chunks) == config.chunk
    chunks.clear()
    monkeypatch.setattr(sizes, 'CPU', dataclasses.replace(sizes.CPU, longer=7))
    assert_same(grow(policy, None, workers, config=config), short, exact=False)
    longer = [chunk for chunk in chunks if chunk[0] > config.chunk]
    assert longer and max(done for done, *_ in longer) <= 21
    # The last step of a chunk may be the one in which a slot found no work.
    assert all(computed >= (done - config.chunk - 1) * slots for done, computed, slots in longer)
    assert any(done < 21 and computed == done * slots - 1 for done, computed, slots in longer)


def test_kept_steps_are_not_computed_again(policy, ppm, workers, monkeypatch):
    """And whether any are does not matter for the trees."""
    config = dataclasses.replace(CONFIG, rollouts=8)
    naive = search.run(
        PROBLEMS,
        expander=Naive(policy, ppm, config),
        config=config,
        share=search.Share(workers=workers),
    )
    naive = {record.key: record for record in naive}
    prompts = sum(len(record.tokens[0]) for record in naive.values())
    scored = sum(
        len(record.tokens[node])
        for record in naive.values()
        for node in np.nonzero(np.isfinite(record.score))[0]
    )
    again, policy_computed = [], []
    for share in (memory.KEPT, 0.0):
        monkeypatch.setattr(memory, 'KEPT', share)
        totals = []
        assert_same(grow(policy, ppm, workers, config=config, progress=totals.append), naive, False)
        again.append(totals[-1]['ppm_computed'] - prompts - scored)
        policy_computed.append(totals[-1]['policy_computed'])
    # The last token of a path that is jumped to, no other.
    expansions = sum(len(set(record.parent[1:].tolist())) for record in naive.values())
    assert 0 < again[0] <= expansions < again[1], (again, expansions)
    assert policy_computed[0] < policy_computed[1]


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_what_is_kept_comes_back(policy, dtype):
    """In any dtype, to the last bit: positions 1..39 of a row, by way of another offset."""
    made = devices.shapes(one_device(), state.empty_kv, policy.config, 1, 8, dtype)
    stored = made[0][0].dtype
    assert stored == ('uint16' if dtype == 'bfloat16' else dtype)
    row, target = (
        state.as_stored(jax.numpy.asarray(made, dtype), stored)
        for made in np.random.default_rng(0).standard_normal((2, 2, 2, 80, 32))
    )
    source = [(row, row[::-1])]
    kept = jax.numpy.zeros((2, 2, 100, 32), stored)
    places = [jax.numpy.array([x, 0]) for x in (1, 0, 17, 1, 39)]
    store = state.copy([(kept, kept)], source, *places)
    places = [jax.numpy.array([x, 0]) for x in (0, 1, 5, 17, 39)]
    ((keys, values),) = state.copy([(target, target)], store, *places)
    np.testing.assert_array_equal(keys[0, :, 5:44], row[0, :, 1:40])
    np.testing.assert_array_equal(values[0, :, 5:44], row[1, :, 1:40])
    np.testing.assert_array_equal(keys[1], target[1])
    np.testing.assert_array_equal(keys[0, :, :5], target[0, :, :5])
    assert models.decoder.of_bits(row).dtype == dtype
    np.testing.assert_array_equal(state.as_stored(models.decoder.of_bits(row), stored), row)


def test_in_bfloat16_steps_are_as_likely_as_full_forward_passes_say(policy, workers):
    params = jax.tree.map(lambda x: x.astype('bfloat16'), policy.params)
    narrow = dataclasses.replace(policy, params=params)
    exact = dataclasses.replace(policy, params=jax.tree.map(lambda x: x.astype('float32'), params))
    config = dataclasses.replace(CONFIG, temperature=1.0)
    vocab, ours, theirs = len(policy.tokenizer), [], []
    for record in grow(narrow, None, workers, config=config).values():
        paths = {0: list(record.tokens[0])}
        for node in range(1, len(record.tokens)):
            before = paths[record.parent[node]]
            tokens = [*before, *record.tokens[node]]
            paths[node] = tokens
            own = np.arange(len(before), len(tokens))
            if len(own) == config.step_tokens:  # cut: all its tokens were sampled, and no mark
                logits = exact.logits(np.array([tokens]), np.array([len(tokens)]))[0, own - 1]
                logs = jax.nn.log_softmax(logits[:, :vocab])
                theirs.append(float(logs[np.arange(len(own)), np.array(tokens)[own]].sum()))
                ours.append(record.likelihood[node])
    assert len(ours) > 5
    np.testing.assert_allclose(ours, theirs, atol=0.2)
    assert np.ptp(theirs) > 5


@pytest.mark.parametrize('slots', [1, 4])  # with one, the paths of the other trees are left out
def test_greedy_is_one_branch_of_the_likeliest_tokens(policy, workers, slots):
    config = dataclasses.replace(search.greedy(CONFIG), slots=slots, trees_in_flight=3)
    records = grow(policy, None, workers, config=config)
    naive = search.run(
        PROBLEMS,
        expander=Naive(policy, None, config),
        config=config,
        share=search.Share(workers=workers),
    )
    assert_same(records, {r.key: r for r in naive}, exact=False)
    for record in records.values():
        assert all(record.parent == np.arange(-1, len(record.texts) - 1))


def test_a_step_that_repeats_itself_is_stopped(policy, workers):
    """After as many tokens as the setting says, and the record tells."""
    config = dataclasses.replace(CONFIG, repetition=3, temperature=0.6)
    ours = grow(policy, None, workers, config=config)
    naive = search.run(
        PROBLEMS,
        expander=Naive(policy, None, config),
        config=config,
        share=search.Share(workers=workers),
    )
    assert_same(ours, {record.key: record for record in naive}, exact=False)
    cut = [
        tokens[:12]
        for record in ours.values()
        for tokens, is_cut in zip(record.tokens, record.cut)
        if is_cut
    ]
    assert any(len(tokens) < CONFIG.step_tokens for tokens in cut), cut
    long = grow(policy, None, workers, config=dataclasses.replace(config, repetition=0))
    cut = [
        tokens
        for record in long.values()
        for tokens, is_cut in zip(record.tokens, record.cut)
        if is_cut
    ]
    assert cut and all(len(tokens) >= CONFIG.step_tokens for tokens in cut)
    again = search.Record.from_bytes(ours[0, 0].to_bytes())
    np.testing.assert_array_equal(again.cut, ours[0, 0].cut)


def test_a_search_that_has_ended_gives_its_memory_back_at_once(policy, ppm):
    """Not when Python next looks for cycles: the following search plans with what is free."""
    gc.disable()
    try:
        expander = begin.make_expander(policy, ppm, CONFIG, one_device(), 4)
        held = [weakref.ref(model) for model in expander.models]
        expander.close()
        del expander
        assert [model() for model in held] == [None, None]
    finally:
        gc.enable()


def test_every_device_gets_a_tree_before_one_gets_two(policy, workers, monkeypatch):
    rows = []
    start = Engine.start

    def started(self, row, tree):
        rows.append(row // self.width)
        start(self, row, tree)

    monkeypatch.setattr(Engine, 'start', started)
    mesh = parallel.local_mesh(devices=jax.local_devices()[:2])
    config = dataclasses.replace(CONFIG, trees_in_flight=3)
    grow(policy, None, workers, config=config, mesh=mesh)
    count = len(PROBLEMS)
    assert sorted(rows[:count]) == sorted(i % 2 for i in range(count))


def test_a_budget_of_tokens_is_spent_tree_by_tree(policy, workers):
    """However many problems are searched at once, and wherever a run was stopped."""
    config = dataclasses.replace(CONFIG, tokens=150)
    whole = grow(policy, None, workers, config=config, trees=9)
    plain = grow(policy, None, workers, trees=2)
    for problem in PROBLEMS:
        trees = sorted(key[1] for key in whole if key[0] == problem.index)
        assert trees == list(range(len(trees))) and len(trees) < 9
        spent = [whole[problem.index, t].counters['spent_tokens'] for t in trees]
        assert sum(spent[:-1]) < 150 <= sum(spent)
        # No further than the expansion that went beyond it.
        assert sum(spent) < 150 + CONFIG.candidates * CONFIG.step_tokens
        first = plain[problem.index, 0]
        if first.counters['spent_tokens'] < 150:
            assert whole[problem.index, 0].texts == first.texts
    done = {key: record for key, record in whole.items() if key[1] == 0}
    rest = grow(
        policy,
        None,
        workers,
        problems=PROBLEMS[::-1],
        config=config,
        trees=9,
        skip=frozenset(done),
        earlier=done.values(),
    )
    assert_same({**done, **rest}, whole)
