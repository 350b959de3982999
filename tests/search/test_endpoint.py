"""A policy served over HTTP by a process of its own, which fails in every way that servers do."""

import contextlib
import dataclasses
import json
import math
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import jax
import numpy as np
import openai
import pytest

from rstar_jax import data, models, parallel, rounds, search, steps
from rstar_jax import settings as configs
from rstar_jax.data.problem import Problem
from rstar_jax.models import tiny
from rstar_jax.search import Status, endpoint
from rstar_jax.search.engine import sampling, state
from rstar_jax.settings.errors import UserError
from rstar_jax.training import examples
from rstar_jax.use import serve
from tests.search import completions

CONFIG = search.Config(rollouts=4, candidates=4, max_depth=4, error_threshold=2)
PROBLEMS = [Problem(i, f'q{i}', str(i % 3)) for i in range(12)]


class Server:
    """The process, which can be killed and started again at its port."""

    def __init__(self, key=''):
        with socket.create_server(('127.0.0.1', 0)) as taken:
            self.port = taken.getsockname()[1]
        self.key, self.process = key, None
        self.url = f'http://127.0.0.1:{self.port}/v1'
        self.start()

    def start(self):
        command = [sys.executable, completions.__file__, str(self.port), self.key]
        self.process = subprocess.Popen(command)
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                self.stats()
                return
            time.sleep(0.1)
        raise RuntimeError('the server does not start')

    def stats(self):
        with urllib.request.urlopen(f'http://127.0.0.1:{self.port}/stats') as answer:
            return json.load(answer)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope='module')
def server():
    started = Server()
    yield started
    started.kill()


@pytest.fixture(scope='module')
def workers():
    with search.Workers.start(CONFIG) as started:
        yield started


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(endpoint, 'LONGEST_PAUSE', 0.5)


def grow(policy, workers, ppm=None, problems=PROBLEMS, config=CONFIG, progress=None):
    share = search.Share(workers=workers, progress=progress)
    records = search.run(problems, policy, ppm, config=config, share=share)
    found = list(records)
    assert len({record.key for record in found}) == len(found) == len(problems)
    return {record.key: record for record in found}


@contextlib.contextmanager
def refused(argument, value):
    """A mistake of the user is told, of this argument."""
    with pytest.raises(UserError) as error:
        yield error
    assert (error.value.argument, error.value.value) == (argument, value)


def many(count):
    return [dataclasses.replace(PROBLEMS[0], index=i) for i in range(count)]


def assert_all_came(record):
    """The children of each node are the candidates of its seeds, each once, in their order."""
    for node in sorted(set(record.parent[1:].tolist())):
        prompt = record.prompt + ''.join(record.texts[i] for i in record.trajectory(node))
        texts = []
        for candidate in range(CONFIG.candidates):
            key = sampling.key_of(0, *record.key, record.tags()[node], candidate)
            texts.append(completions.text_of(prompt, int(key[0]) >> 1))
        answers = [text for text in texts if text.endswith(steps.ANSWER_END)]
        expected = answers[:1] or list(dict.fromkeys(texts))
        children = np.nonzero(record.parent == node)[0]
        assert len(children) == len(expected)
        for child, text in zip(children, expected):
            assert record.texts[child].startswith(text.removesuffix('\n<end_of_step>'))


@pytest.fixture(scope='module')
def grown(server, workers):
    return grow(search.Endpoint(server.url, 'whole'), workers)


def test_trees_are_those_of_their_seeds(grown, server):
    for record in grown.values():
        assert_all_came(record)
        assert record.tokens == [[] for _ in record.texts]
        assert record.counters['sampled_tokens'] > 0
        assert record.likelihood is not None and record.likelihood.min() < 0
    kinds = {int(status) for record in grown.values() for status in record.status}
    assert {Status.OPEN, Status.ANSWER, Status.CODE_ERRORS} <= kinds


def test_32_requests_are_in_flight(server, workers):
    """The server answers none before it has seen all."""
    grow(search.Endpoint(server.url, 'crowd'), workers, problems=PROBLEMS[:8])
    assert server.stats()['most'] == 32


def test_a_server_that_cuts_the_marks_off(grown, server, workers):
    cut = grow(search.Endpoint(server.url, 'cut', requests=4), workers)
    for key, record in grown.items():
        assert cut[key].texts == record.texts
        assert cut[key].visits.tolist() == record.visits.tolist()
        assert cut[key].likelihood is None


def test_nothing_is_left_to_the_generation_config_of_the_model(server, workers):
    """vLLM and SGLang take from it what a request does not say, at temperature 0 too."""
    keys = 'top_k', 'min_p', 'top_p', 'temperature', 'repetition_penalty'
    for change, top_k, min_p in (({}, -1, 0.0), ({'top_k': 5, 'min_p': 0.1}, 5, 0.1)):
        config = dataclasses.replace(CONFIG, temperature=0.0, **change)
        grow(search.Endpoint(server.url, 'whole'), workers, problems=PROBLEMS[:1], config=config)
        asked = server.stats()['asked']
        assert [asked.get(key) for key in keys] == [top_k, min_p, 1.0, 0.0, 1.0]


def read(server, text, prompt='sft', reason='stop', mark=None):
    """The step that an answer of a server holds."""
    config = dataclasses.replace(CONFIG, prompt=prompt)
    mesh = parallel.local_mesh(devices=jax.devices()[:1])
    remote = endpoint.Remote(search.Endpoint(server.url, 'whole'), None, config, mesh, 4)
    remote.close()
    answer = completions.completion({'model': 'whole', 'prompt': '', 'seed': 0})
    answer['choices'][0].update(text=text, finish_reason=reason, stop_reason=mark)
    completion = openai.types.Completion.construct(**answer)
    return remote._step(endpoint._Request(0, 0, '', 0, {0}), completion)


@pytest.mark.parametrize('mark', [steps.STEP_END, steps.CODE_END])
def test_few_shot_steps_go_on_behind_a_newline(server, workers, mark):
    """As in the examples, whether the server cuts the mark, what is behind it, or neither."""
    for text, named in (('x\n', mark), (f'x\n{mark}', None), (f'x\n{mark}\n\n', mark)):
        assert read(server, text, 'few_shot', mark=named).text == f'x\n{mark}\n'
        assert read(server, text, mark=named).text == f'x\n{mark}'
    answer = f'<answer>1{steps.ANSWER_END}'
    assert read(server, answer, 'few_shot').text == answer
    few = dataclasses.replace(CONFIG, prompt='few_shot', answers_kept='all')
    grown = grow(search.Endpoint(server.url, 'whole'), workers, config=few, problems=PROBLEMS[:4])
    texts = [text for record in grown.values() for text in record.texts if mark in text]
    assert texts and all(f'{mark}\n' in text for text in texts)
    assert not any('\n\n' in text for text in texts)


def test_half_a_character_at_the_end_of_a_text(server):
    assert read(server, '# \U0001f600 \ud83d', reason='length').text == '# \U0001f600 ?'


@pytest.mark.parametrize(
    'end',
    ['</s>', '<|end_of_text|>', '<\uff5cend\u2581of\u2581sentence\uff5c>', '<|EOT|>', '<eos>'],
)
def test_the_end_of_a_text_is_no_part_of_its_step(server, end):
    for text in ('print(1)', 'It is \\boxed{5}.'):
        assert read(server, text + end).text == text
    assert read(server, f'a {end} b').text == f'a {end} b'


def test_a_server_that_cuts_the_marks_off_and_does_not_name_them(server, workers):
    """No tree could hold a mark."""
    with refused('policy.path', server.url):
        grow(search.Endpoint(server.url, 'mute'), workers)


def test_a_path_ends_where_there_is_no_room_for_a_step(server, workers, capsys):
    """By the tokens that the server counts; and where its own context ends before."""
    prompt = len(steps.prompt('q1', CONFIG.prompt).split())
    whole, short = (search.Endpoint(server.url, model) for model in ('whole', 'short'))
    small = dataclasses.replace(CONFIG, step_tokens=10)
    few = dataclasses.replace(small, path_tokens=prompt + 15)
    cut = 0
    for record in grow(whole, workers, config=few).values():
        deep = record.status == Status.TOO_DEEP
        cut += (record.depth[deep] < CONFIG.max_depth).sum()
        for i in np.nonzero(record.status == Status.OPEN)[0]:
            if steps.OUTPUT not in record.texts[i]:  # which the server has not seen yet
                path = record.prompt + ''.join(record.texts[j] for j in record.trajectory(i))
                assert len(path.split()) + few.step_tokens <= few.path_tokens
    assert cut

    assert prompt + 10 <= completions.CONTEXT < prompt + 20
    empty = [
        text
        for record in grow(short, workers, config=small).values()
        for text, status in zip(record.texts, record.status)
        if status == Status.UNPARSABLE and not text
    ]
    assert empty
    capsys.readouterr()
    grow(short, workers, config=dataclasses.replace(CONFIG, step_tokens=100))
    assert 'in 12 of 12 trees the prompt leaves no room' in (told := capsys.readouterr().out)
    assert 'path_tokens=4096 or in the context of the server: raise it' in told


def test_questions_that_are_too_long_come_first_and_end_nothing(server, workers):
    """The longest are begun first, and a search that is started again begins with them again."""
    long = [
        dataclasses.replace(problem, question='q1 ' * completions.CONTEXT)
        for problem in PROBLEMS[:9]
    ]
    small = dataclasses.replace(CONFIG, step_tokens=10)
    policy = search.Endpoint(server.url, 'short', requests=4)
    found = grow(policy, workers, problems=[*long, *PROBLEMS[9:]], config=small)
    grown = [any(record.texts[1:]) for _, record in sorted(found.items())]
    assert grown == 9 * [False] + 3 * [True]
    others = [dataclasses.replace(problem, question=long[0].question) for problem in many(40)]
    with refused('policy.path', server.url):
        grow(policy, workers, problems=others, config=small)


def test_one_question_that_is_too_long_does_not_end_a_service(server, workers):
    small = dataclasses.replace(CONFIG, step_tokens=10, use_ground_truth=False)
    live = search.Live(search.Endpoint(server.url, 'short'), config=small, trees=2, workers=workers)
    with serve.running(live) as failure:
        found = {}
        for question in ('q1', 'q1 ' * completions.CONTEXT, 'q2'):
            ended, events = threading.Event(), found.setdefault(question, [])

            def done(event, events=events, ended=ended):
                events.append(event)
                if not isinstance(event, search.Record):
                    ended.set()

            live.submit(question, 1, done)
            assert ended.wait(60)
        assert not failure
    (short, _), (long, _), (other, _) = found.values()
    assert len(short.texts) > 1 and len(other.texts) > 1
    assert not long.answer_nodes and not any(long.texts)


@pytest.mark.parametrize('model', ['busy', 'torn', 'odd'])
def test_rate_limits_and_failures_are_waited_for(grown, server, workers, model):
    told = []
    tried = grow(search.Endpoint(server.url, model), workers, progress=told.append)
    for key, record in grown.items():
        assert tried[key].texts == record.texts
    assert told[-1]['retries'] > 10


def test_what_nobody_waits_for_any_more_ends_nothing(server):
    config = dataclasses.replace(CONFIG, candidates=2)
    mesh = parallel.local_mesh(devices=jax.devices()[:1])
    remote = endpoint.Remote(search.Endpoint(server.url, 'full'), None, config, mesh, 4)
    request = endpoint._Request(0, 1, '', 0, {0, 1})
    (step,) = remote._taken(request, UserError('late'))
    assert step.error.argument == 'late'
    request.waiting.add(1)
    request.waiting.discard(1)
    assert remote._taken(request, UserError('late')) == []
    assert remote._ask(request) is None  # after the first refusal
    remote.close()


def test_killed_and_started_again(grown, workers):
    """Nothing is lost, and nothing comes twice."""
    server = Server()
    records = search.run(
        PROBLEMS,
        search.Endpoint(server.url, 'whole', requests=3),
        config=CONFIG,
        share=search.Share(workers=workers),
    )
    found = [next(records)]

    def restart():
        time.sleep(1.0)
        server.start()

    server.kill()
    starting = threading.Thread(target=restart)
    starting.start()
    found += records
    starting.join()
    server.kill()
    assert sorted(record.key for record in found) == sorted(grown)
    for record in found:
        assert record.texts == grown[record.key].texts
        np.testing.assert_array_equal(record.visits, grown[record.key].visits)


def test_what_is_wrong_is_told_in_a_line(server, workers, monkeypatch):
    monkeypatch.setattr(endpoint, 'PATIENCE', 0.3)
    monkeypatch.delenv(endpoint.KEY, raising=False)
    locked = Server('right')
    behind = search.Endpoint(locked.url, 'whole')
    for ask in (behind.check, lambda: grow(behind, workers)):
        with refused('policy.path', locked.url) as error:
            ask()
        assert endpoint.KEY in error.value.remedy
    monkeypatch.setenv(endpoint.KEY, 'right')
    behind.check()
    locked.kill()
    for ask in (behind.check, lambda: grow(behind, workers)):
        with refused('policy.path', locked.url) as error:
            ask()
        assert endpoint.KEY not in error.value.remedy
    unknown = search.Endpoint(server.url, 'other')
    with refused('policy.model', 'other'):
        grow(unknown, workers)
    with refused('policy.model', 'other') as error:
        unknown.check()
    assert 'whole, cut, crowd' in error.value.expected
    elsewhere = search.Endpoint(server.url.replace('v1', 'page'), 'whole')
    for policy, ask in ((elsewhere, elsewhere.check), (search.Endpoint(server.url, 'page'), None)):
        with refused('policy.path', policy.url):
            ask() if ask else grow(policy, workers)
    with refused('policy.path', server.url):
        grow(search.Endpoint(server.url, 'long'), workers, problems=many(40))
    with refused('policy.requests', 32):
        grow(search.Endpoint(server.url, 'slow', seconds=0.5), workers)
    with refused('policy.requests', 32):
        grow(search.Endpoint(server.url, 'full'), workers)


def test_without_its_package_a_run_does_not_begin(monkeypatch):
    monkeypatch.setitem(sys.modules, 'openai', None)
    with refused('policy.path', 'http://127.0.0.1:1/v1') as error:
        search.Endpoint('http://127.0.0.1:1/v1', 'served').check()
    assert error.value.remedy == 'pip install openai'


@pytest.mark.parametrize('prompt', ['sft', 'few_shot'])
def test_a_ppm_of_this_host_scores(server, workers, prompt):
    """By the same texts, as tokens of its own tokenizer, and those that it learns of them."""
    policy = tiny.policy(['print(1)\n x = 0 1 2 \\boxed{3} and so on'], num_layers=1)
    ppm = models.init_ppm(policy, seed=1)
    weight = 0.3 * jax.random.normal(jax.random.key(0), (1, policy.config.embed_dim))
    ppm.params['value_head'] = {'weight': weight, 'bias': np.zeros(1)}
    config = dataclasses.replace(CONFIG, prompt=prompt, answers_kept='all')
    records = grow(search.Endpoint(server.url, 'whole'), workers, ppm, PROBLEMS[:4], config)
    scored = 0
    for record in records.values():
        for node in np.nonzero(np.isfinite(record.score))[0]:
            path = [0, *record.trajectory(node)]
            tokens = [token for i in path for token in record.tokens[i]]
            (score,) = ppm.scores(np.array([tokens], np.int32), np.array([len(tokens)]))
            assert math.isclose(record.score[node], score, abs_tol=1e-4)
            *before, text = (record.texts[i] for i in path[1:])
            question = steps.prompt(record.problem.question)
            pair = {'prompt': question + ''.join(before), 'pos': text, 'neg': 'x'}
            (learnt,) = examples.pairs([pair], ppm.tokenizer, 512).take()
            assert learnt.sequences[0].tolist() == tokens
            scored += 1
    assert scored > 10
    config = dataclasses.replace(CONFIG, one_size=True, path_tokens=512)
    mesh = parallel.local_mesh(devices=jax.devices()[:1])
    made = endpoint.Remote(search.Endpoint(server.url, 'whole'), ppm, config, mesh, 4)
    made.close()
    assert made.models[0].capacity == 512 + state.COPIED


def test_a_run_searches_with_it(server, tmp_path):
    """And cannot train from it: that is found out before anything is searched."""
    problems = tmp_path / 'problems.json'
    problems.write_text(json.dumps([p.to_dict() for p in PROBLEMS[:3]]))
    config = configs.default()
    config.policy.path, config.policy.model = server.url, 'whole'
    config.data.problems = str(problems)
    config.search.rollouts = config.search.candidates = 2
    with pytest.raises(UserError, match='base.path=: needs the model that every round trains from'):
        rounds.run(config, str(tmp_path / 'run'), ['search', 'curate', 'sft'])
    rounds.run(config, str(tmp_path / 'run'), ['search'])
    with data.TreeStore(tmp_path / 'run' / 'round1' / 'search') as store:
        assert sorted(store.keys()) == [(0, 0), (1, 0), (2, 0)]
    config.policy.model = 'other'
    with refused('policy.model', 'other'):
        rounds.run(config, str(tmp_path / 'another'), ['search'])
