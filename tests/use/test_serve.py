"""The chat endpoint: OpenAI's client against a scripted search, and the command with a real one."""

import asyncio
import contextlib
import dataclasses
import functools
import http.client
import json
import os
import pathlib
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import openai
import pytest
import uvicorn

from rstar_jax import main, search
from rstar_jax.data import arithmetic
from rstar_jax.models import save, tiny
from rstar_jax.search import live as live_search
from rstar_jax.settings import configs
from rstar_jax.settings.errors import UserError
from rstar_jax.use import chat, serve, solve
from tests.parallel import processes

REPOSITORY = pathlib.Path(__file__).parents[2]
CONFIG = search.Config(rollouts=2, candidates=3, max_depth=3, use_ground_truth=False, workers=1)
SMALL = {'rollouts': 1, 'candidates': 2, 'step_tokens': 8, 'path_tokens': 128, 'trees': 1}
slow = threading.Event()  # set: candidates come at once


def texts(question, prefix, n):
    """A program that doubles the question's number, right but for the last candidate."""
    slow.wait()
    number = int(re.search(r'\d+', question)[0])
    if 'nothing' in question:
        return [f'x = {i}\n<end_of_step>' for i in range(n)]
    if '<end_of_code>' in prefix:
        return [f'<answer>It is \\boxed{{{2 * number + i // 2}}}.<end_of_answer>' for i in range(n)]
    return [f'<code>\n# {i}\nprint({number} * 2)\n<end_of_code>' for i in range(n)]


def score(question, prefix):
    return 0.9 if f'boxed{{{2 * int(re.search(r"[0-9]+", question)[0])}}}' in prefix else 0.1


@pytest.fixture(scope='module')
def workers():
    with search.Workers.start(CONFIG) as started:
        yield started


@pytest.fixture(scope='module')
def config():
    made = configs.load(str(REPOSITORY / 'experiments' / 'serve.py'))
    made.search.trees = 2
    made.serve.trajectories = 5
    made.serve.requests = 3
    return made


@contextlib.contextmanager
def served(live, config):
    with socket.create_server(('127.0.0.1', 0)) as listening, serve.running(live):
        app = chat.Service(live, config).app()
        server = uvicorn.Server(uvicorn.Config(app, log_level='error', lifespan='off'))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f'http://127.0.0.1:{listening.getsockname()[1]}/v1'
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope='module')
def live(workers):
    slow.set()
    expander = search.scripted(texts, score, trees=4)
    return search.Live(config=CONFIG, trees=4, workers=workers, expander=expander)


@pytest.fixture(scope='module')
def address(live, config):
    with served(live, config) as url:
        yield url


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=address, api_key='-', max_retries=0, timeout=60) as made:
        yield made


def asking(question, **options):
    return {
        'model': 'rstar_jax',
        'messages': [{'role': 'user', 'content': question}],
        **options,
    }


def test_an_answer(client):
    made = client.chat.completions.create(**asking('Twice 21?'))
    text = made.choices[0].message.content
    assert '```python\n# 0\nprint(21 * 2)\n```\n\nOutput:\n```\n42\n```' in text
    assert text.endswith('**Answer:** $\\boxed{42}$ (PPM score 0.900; 4 of 4 trajectories agree)')
    assert made.choices[0].finish_reason == 'stop'
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    assert [model.id for model in client.models.list()] == ['rstar_jax']
    assert client.models.retrieve('rstar_jax') == next(iter(client.models.list()))
    with pytest.raises(openai.NotFoundError, match="model 'of/others': there is rstar_jax"):
        client.models.retrieve('of/others')


def test_the_last_message_of_the_user_is_the_question(client):
    parts = [{'type': 'text', 'text': 'Twice'}, {'type': 'text', 'text': '4?'}]
    messages = [
        {'role': 'system', 'content': 'Be brief.'},
        {'role': 'user', 'content': 'Twice 1?'},
        {'role': 'assistant', 'content': '2'},
        {'role': 'user', 'content': parts},
    ]
    made = client.chat.completions.create(model='rstar_jax', messages=messages)
    assert '\\boxed{8}' in made.choices[0].message.content


def test_a_stream_tells_each_tree_and_then_the_steps(client):
    options = {'stream': True, 'stream_options': {'include_usage': True}}
    chunks = list(
        client.chat.completions.create(
            **asking('Twice 5?', **options), extra_body={'trajectories': 3}
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    thoughts = [d.reasoning_content for d in deltas if getattr(d, 'reasoning_content', None)]
    assert thoughts == [f'tree {i} of 3: answer 10, PPM score 0.90\n' for i in (1, 2, 3)]
    contents = [delta.content for delta in deltas if delta.content]
    assert len(contents) == 3  # program, answer, what was chosen
    whole = client.chat.completions.create(**asking('Twice 5?'), extra_body={'trajectories': 3})
    assert ''.join(contents) == whole.choices[0].message.content
    assert deltas[0].role == 'assistant' and chunks[-2].choices[0].finish_reason == 'stop'
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_no_answer(client):
    plain = {'type': 'text'}  # what the answer is anyway
    made = client.chat.completions.create(**asking('nothing 1', response_format=plain))
    assert made.choices[0].message.content == 'No answer found in 2 trees.'


def test_nobody_waits_while_an_answer_is_chosen(client, monkeypatch):
    """The grader may take its time, and the first time it has to be started."""
    choose, go = solve.choose, threading.Event()

    def slowly(found):
        assert go.wait(60)
        return choose(found)

    monkeypatch.setattr(solve, 'choose', slowly)
    made = []
    asks = functools.partial(client.chat.completions.create, **asking('Twice 8?'))
    thread = threading.Thread(target=lambda: made.append(asks()))
    thread.start()
    others = list(client.chat.completions.create(**asking('nothing 2', stream=True)))
    assert others and not made
    go.set()
    thread.join(60)
    assert '\\boxed{16}' in made[0].choices[0].message.content


def test_two_requests_at_once_and_one_too_many(client, live):
    slow.clear()
    answers, refused = {}, []

    def ask(number):
        try:
            made = client.chat.completions.create(**asking(f'Twice {number}?'))
            answers[number] = made.choices[0].message.content
        except openai.RateLimitError as error:
            refused.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in (3, 4, 5)]
    for thread in threads:
        thread.start()
    while live.busy < 3:
        time.sleep(0.01)
    ask(6)
    slow.set()
    for thread in threads:
        thread.join(60)
    assert {n: f'\\boxed{{{2 * n}}}' in text for n, text in answers.items()} == {
        3: True,
        4: True,
        5: True,
    }
    assert len(refused) == 1 and '3 requests are being answered' in refused[0].message


def test_what_a_client_leaves_behind_does_not_fill_the_queue(address, client):
    slow.clear()
    host = re.search(r'//(.*):(\d+)', address)
    for _ in range(3):
        connection = http.client.HTTPConnection(host[1], int(host[2]))
        body = json.dumps(asking('Twice 2?', trajectories=5, stream=True))
        connection.request('POST', '/v1/chat/completions', body)
        connection.sock.close()
    time.sleep(0.5)
    slow.set()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            made = client.chat.completions.create(**asking('Twice 7?'))
            break
        except openai.RateLimitError:
            time.sleep(0.2)
    assert '\\boxed{14}' in made.choices[0].message.content


def test_a_stream_that_nobody_reads_is_given_up():
    told = []

    class Silent:
        def submit(self, question, trees, done, seed):
            self.job = live_search.Job(question, trees, seed, 0, done)
            told.append(done)
            return self.job

    service = chat.Service(Silent(), None)

    async def left():
        chat.Answer(service, chat.Asked('Twice 1?', 1, 0, True, False)).stream()

    asyncio.run(left())
    assert service.live.job.cancelled and told


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        ({'model': 'gpt-5'}, openai.NotFoundError, "model 'gpt-5': there is rstar_jax"),
        ({'messages': []}, openai.BadRequestError, 'messages: expected a list'),
        (
            {'messages': [{'role': 'system', 'content': 'x'}]},
            openai.BadRequestError,
            "expected a message of role 'user'",
        ),
        ({'n': 2}, openai.BadRequestError, 'n: expected 1'),
        (
            {'extra_body': {'trajectories': 9}},
            openai.BadRequestError,
            'trajectories=9: expected 1 to 5',
        ),
        ({'extra_body': {'seed': 'x'}}, openai.BadRequestError, "seed='x': expected int"),
        (
            {'tools': [{'type': 'function', 'function': {'name': 'f'}}]},
            openai.BadRequestError,
            'tools: not supported',
        ),
        (
            {'response_format': {'type': 'json_object'}},
            openai.BadRequestError,
            'response_format: not supported',
        ),
    ],
)
def test_wrong_requests(client, change, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        client.chat.completions.create(**{**asking('Twice 1?'), **change})
    assert caught.value.body['type'] == 'invalid_request_error'


def test_requests_that_are_none(address):
    host = re.search(r'//(.*):(\d+)', address)
    connection = http.client.HTTPConnection(host[1], int(host[2]))
    for method, path, body, status, text in [
        ('POST', '/v1/chat/completions', 'no', 400, 'not JSON'),
        ('POST', '/v1/chat/completions', '[]', 400, 'expected a JSON object'),
        ('POST', '/v1/chat/completions', '[' * 100_000, 400, 'not JSON'),
        ('POST', '/v1/chat/completions', json.dumps(asking('2 \ud800?')), 400, 'surrogate'),
        ('POST', '/v1/chat/completions', ' ' * (chat.BODY_BYTES + 1), 413, 'more than'),
        ('GET', '/v1/chat/completions', '', 405, 'Method Not Allowed'),
        ('GET', '/nowhere', '', 404, 'Not Found'),
    ]:
        connection.request(method, path, body)
        response = connection.getresponse()
        error = json.loads(response.read())['error']
        assert response.status == status and text in error['message']


def test_a_failure_of_the_server_is_told_in_the_same_form(client, live, monkeypatch):
    def broken(*_):
        raise ValueError('broken')

    monkeypatch.setattr(live, 'submit', broken)
    with pytest.raises(openai.InternalServerError, match='ValueError: broken') as caught:
        client.chat.completions.create(**asking('Twice 1?'))
    assert caught.value.body['type'] == 'server_error'


def test_trees_are_those_of_a_search_of_its_own(workers):
    found = {}
    expander = search.scripted(texts, score, trees=4)
    live = search.Live(config=CONFIG, trees=4, workers=workers, expander=expander)
    both = threading.Semaphore(0)

    def keep(name, event):
        found.setdefault(name, []).append(event)
        both.release()

    with serve.running(live):
        for number in (1, 2):
            live.submit(f'Twice {number}?', 2, functools.partial(keep, number))
        for _ in range(4):
            assert both.acquire(timeout=60)
    for number in (1, 2):
        problem = {'index': 0, 'question': f'Twice {number}?', 'answer': ''}
        alone = list(
            search.run(
                [problem],
                config=CONFIG,
                expander=search.scripted(texts, score),
                trees=2,
                workers=workers,
            )
        )
        assert [r.texts for r in found[number][:2]] == [r.texts for r in alone]
        assert [r.visits.tolist() for r in found[number][:2]] == [r.visits.tolist() for r in alone]


def test_trees_that_nobody_waits_for_end_as_they_are(workers):
    asked, events, submitted = [], queue.SimpleQueue(), threading.Event()

    def endless(question, prefix, n):
        assert submitted.wait(60)
        asked.append(prefix)
        if len(asked) == 3:
            job.cancel()
        return [f'x = {len(prefix)} + {i}\n<end_of_step>' for i in range(n)]

    config = dataclasses.replace(CONFIG, rollouts=40, candidates=2, max_depth=16)
    live = search.Live(
        config=config, trees=2, workers=workers, expander=search.scripted(endless, trees=2)
    )
    with serve.running(live):
        job = live.submit('Twice 1?', 1, events.put)
        submitted.set()
        record, end = (events.get(timeout=60) for _ in range(2))
        assert end is None and live.busy == 0
    assert len(record.texts) == 1 + 2 * len(asked) and len(asked) < 6


def test_a_search_that_fails_tells_who_waits(workers, config):
    def broken(question, prefix, n):
        raise ValueError('broken')

    expander = search.scripted(broken, score, trees=4)
    live = search.Live(config=CONFIG, trees=4, workers=workers, expander=expander)
    with served(live, config) as url, openai.OpenAI(base_url=url, api_key='-', max_retries=0) as c:
        with pytest.raises(openai.InternalServerError, match='the search has ended: broken'):
            c.chat.completions.create(**asking('Twice 1?'))
        with pytest.raises(openai.APIStatusError, match='the search has ended'):
            c.chat.completions.create(**asking('Twice 1?'))
    with pytest.raises(UserError, match='the search has ended'):
        live.submit('Twice 1?', 1, print)


def test_answers_that_agree_end_a_request(workers, config):
    """Two of five trees are grown; who waits is told that there will be no more."""
    settings = dataclasses.replace(CONFIG, agree=2)

    def two(question, prefix, n):
        return ['<answer>\\boxed{2}.<end_of_answer>'] * n

    expander = search.scripted(two, trees=4)
    live = search.Live(config=settings, trees=4, workers=workers, expander=expander)
    with served(live, config) as url, openai.OpenAI(base_url=url, api_key='-', timeout=60) as c:
        for stream in (False, True):
            asked = asking('Twice 1?', stream=stream, extra_body={'trajectories': 5})
            made = c.chat.completions.create(**asked)
            if stream:
                told = [x.choices[0].delta for x in made if x.choices]
                reasons = [getattr(x, 'reasoning_content', None) for x in told]
                assert len([x for x in reasons if x]) == 2
                assert 'boxed{2}' in told[-2].content
            else:
                assert '2 of 2 trajectories agree' in made.choices[0].message.content
        assert live.busy == 0
        assert not live.spending._tokens and not live.spending._answers


@pytest.mark.skipif(not pathlib.Path('/proc/net/if_inet6').exists(), reason='no IPv6 here')
def test_an_address_of_ipv6():
    with serve._listen('::1', 0) as listening:
        assert listening.getsockname()[0] == '::1'


def test_a_port_that_is_taken(capsys):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        code = main.main(
            [f'--config={REPOSITORY / "experiments" / "serve.py"}', f'--config.serve.port={port}']
        )
    err = capsys.readouterr().err
    assert code == 2 and err.count('\n') == 1
    assert f'--config.serve.port={port}: cannot listen at 127.0.0.1' in err


def test_the_command_serves_a_model_and_stops_in_order(tmp_path):
    save(tiny.policy(arithmetic.vocabulary(), num_layers=1), tmp_path / 'policy')
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, '-m', 'rstar_jax.main', '--config=experiments/serve.py']
    command += [f'--config.policy.path={tmp_path / "policy"}', f'--config.serve.port={port}']
    command += ['--config.policy.dtype=float32', '--config.execution.workers=1']
    for key, value in SMALL.items():
        command.append(f'--config.search.{key}={value}')
    environment = {**processes.environment_of(1), 'PYTHONUNBUFFERED': '1'}
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith('serving'):
                break
        assert lines[-1] == f'serving rstar_jax at http://127.0.0.1:{port}/v1\n', ''.join(lines)
        url = f'http://127.0.0.1:{port}/v1'
        with openai.OpenAI(base_url=url, api_key='-', max_retries=0, timeout=120) as client:
            made = client.chat.completions.create(**asking('Twice 3?'))
            assert made.choices[0].message.content == 'No answer found in 1 trees.'
            assert made.usage.prompt_tokens > 10 and made.usage.completion_tokens > 0
            with pytest.raises(openai.BadRequestError, match='tokens with its prompt, at most 120'):
                client.chat.completions.create(**asking('apples ' * 200))
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == 0 and rest.splitlines()[-1] == 'stopped', rest
