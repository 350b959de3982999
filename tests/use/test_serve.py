"""The chat endpoint: OpenAI's client against a scripted search, and the command with a real one."""

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

from rstar_jax import search
from rstar_jax import settings as configs
from rstar_jax.data import arithmetic
from rstar_jax.models import save, tiny
from rstar_jax.settings.errors import UserError
from rstar_jax.use import chat, gate, serve
from tests.parallel import processes

REPOSITORY = pathlib.Path(__file__).parents[2]
CONFIG = search.Config(rollouts=2, candidates=3, max_depth=3, use_ground_truth=False, workers=1)
SMALL = {'rollouts': 1, 'candidates': 2, 'step_tokens': 8, 'path_tokens': 128, 'trees': 1}
OPEN = {'serve.host': '0.0.0.0', 'serve.key': 'x'}
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


def scripted():
    return search.scripted(texts, score, trees=4)


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
def served(live, config, key=''):
    with socket.create_server(('127.0.0.1', 0)) as listening, serve.running(live):
        server = serve.server(live, config, key)
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
    return search.Live(config=CONFIG, trees=4, workers=workers, expander=scripted())


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
    with pytest.raises(openai.NotFoundError):
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
    assert len(refused) == 1


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


@pytest.mark.parametrize(
    ('change', 'status', 'param'),
    [
        ({'model': 'gpt-5'}, 404, 'model'),
        ({'messages': []}, 400, 'messages'),
        ({'messages': [{'role': 'system', 'content': 'x'}]}, 400, 'messages'),
        ({'messages': [{'role': 'user', 'content': ' '}]}, 400, 'messages'),
        ({'messages': [{'role': 'user', 'content': [{'type': 'image_url'}]}]}, 400, 'messages'),
        ({'n': 2}, 400, 'n'),
        ({'trajectories': 9}, 400, 'trajectories'),
        ({'trajectories': 0}, 400, 'trajectories'),
        ({'trajectories': True}, 400, 'trajectories'),
        ({'seed': 'x'}, 400, 'seed'),
        ({'stream': 'yes'}, 400, 'stream'),
        ({'tools': [{'type': 'function', 'function': {'name': 'f'}}]}, 400, 'tools'),
        ({'response_format': {'type': 'json_object'}}, 400, 'response_format'),
    ],
)
def test_wrong_requests(address, change, status, param):
    answer = posted(address, json.dumps({**asking('Twice 1?'), **change}))
    assert answer.status == status
    error = answer.error
    assert (error['type'], error['param']) == ('invalid_request_error', param)


@dataclasses.dataclass
class Posted:
    status: int
    body: bytes

    @property
    def error(self):
        return json.loads(self.body)['error']


def posted(address, body, method='POST', path='/v1/chat/completions', **headers):
    host, port = re.search(r'//(.*):(\d+)', address).groups()
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    found = Posted(response.status, response.read())
    connection.close()
    return found


@pytest.mark.parametrize(
    ('method', 'path', 'body', 'status'),
    [
        ('POST', '/v1/chat/completions', 'no', 400),
        ('POST', '/v1/chat/completions', '[]', 400),
        ('POST', '/v1/chat/completions', '[' * 100_000, 400),
        ('POST', '/v1/chat/completions', b'\xff\xfe', 400),
        ('POST', '/v1/chat/completions', json.dumps(asking('2 \ud800?')), 400),
        ('POST', '/v1/chat/completions', ' ' * (chat.BODY_BYTES + 1), 413),
        ('GET', '/v1/chat/completions', '', 405),
        ('GET', '/nowhere', '', 404),
    ],
)
def test_requests_that_are_none(address, method, path, body, status):
    answer = posted(address, body, method, path)
    assert answer.status == status and answer.error['message']


def test_pages_of_a_browser_are_refused(address):
    """A site's own page would name its origin, and one that has rebound its name, that."""
    body = json.dumps(asking('nothing 1'))
    assert posted(address, body, Origin='https://example.org').status == 403
    assert posted(address, body, Origin='null').status == 403
    assert posted(address, body, Host='example.org').status == 400
    port = address.split(':')[-1].split('/')[0]
    for host in (f'localhost:{port}', f'[::1]:{port}', '127.0.0.1'):
        assert posted(address, body, Host=host).status == 200


def test_a_header_that_is_too_long(address):
    assert posted(address, '', 'GET', '/v1/models', X='y' * gate.HEADER_BYTES).status == 431


def test_a_key(workers, config):
    live = search.Live(config=CONFIG, trees=4, workers=workers, expander=scripted())
    with served(live, config, key='secret') as url:
        for key, page, status in [
            ('', '', 401),
            ('Bearer', '', 401),
            ('Bearer wrong', '', 401),
            ('Bearer s\xe9cret', '', 401),
            ('Bearer secret', '', 200),
            ('Bearer secret', 'https://chat.example.org', 200),
        ]:
            headers = {'Authorization': key} | ({'Origin': page} if page else {})
            assert posted(url, '', 'GET', '/v1/models', **headers).status == status
        with openai.OpenAI(base_url=url, api_key='secret', max_retries=0) as client:
            made = client.chat.completions.create(**asking('Twice 4?'))
            assert '\\boxed{8}' in made.choices[0].message.content


def test_half_requests_end(address, monkeypatch, capfd):
    monkeypatch.setattr(gate, 'HEADER_SECONDS', 0.5)
    monkeypatch.setattr(chat, 'BODY_SECONDS', 0.5)
    host, port = re.search(r'//(.*):(\d+)', address).groups()
    post = b'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n'
    for sent, told in [
        (b'', b''),
        (b'POST /v1/ch', b''),
        (post, b''),
        (post + b'Content-Length: 100\r\n\r\n{"model": "rst', b'HTTP/1.1 408'),
        (post + b'Transfer-Encoding: chunked\r\n\r\n4\r\n{"mo\r\n', b'HTTP/1.1 408'),
    ]:
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(sent)
            heard = b''
            while part := connection.recv(1 << 16):  # it ends
                heard += part
            assert heard.startswith(told) and bool(heard) == bool(told)
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)  # and hangs up
    assert posted(address, '', 'GET', '/v1/models').status == 200
    assert 'Traceback' not in capfd.readouterr().err


def test_what_fails_for_one_question_is_told_to_who_asked_it(workers, config, caplog):
    """It gets an id, the log gets the reason in one line; others are answered."""

    def some(question, prefix, n):
        if 'broken' in question:
            raise ValueError('as of\nthe script')
        return texts(question, prefix, n)

    expander = search.scripted(some, score, trees=4)
    live = search.Live(config=CONFIG, trees=4, workers=workers, expander=expander)
    with served(live, config) as url:
        answers = {}

        def ask(question):
            answers[question] = posted(url, json.dumps(asking(question)))

        questions = ['Twice 3?', 'broken 1', 'Twice 4?']
        threads = [threading.Thread(target=ask, args=[question]) for question in questions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [answers[question].status for question in questions] == [200, 500, 200]
        error = answers['broken 1'].error
        assert error['type'] == 'server_error' and 'script' not in error['message']
        name = re.search(r'req_\w+', error['message'])[0]
        (line,) = [record.getMessage() for record in caplog.records]
        assert name in line and 'ValueError: as of the script' in line and '\n' not in line
        with openai.OpenAI(base_url=url, api_key='-', max_retries=0) as client:
            with pytest.raises(openai.APIError) as caught:
                list(client.chat.completions.create(**asking('broken 2', stream=True)))
            assert caught.value.body['type'] == 'server_error'
        assert posted(url, json.dumps(asking('Twice 5?'))).status == 200


class Breaking(search.scripted):
    """Its devices fail, so many times."""

    def __init__(self, times):
        super().__init__(texts, score, trees=4)
        self.times = times

    def dispatch(self):
        asked = super().dispatch()
        if asked and self.times:
            self.times -= 1
            raise RuntimeError('the devices are gone')
        return asked


def test_an_engine_that_fails_is_followed_by_another(workers, config):
    live = search.Live(config=CONFIG, trees=4, workers=workers, expander=Breaking(2))
    with served(live, config) as url:
        found = [posted(url, json.dumps(asking('Twice 3?'))).status for _ in range(4)]
        assert found == [500, 500, 200, 200]


def test_an_engine_that_keeps_failing_ends_the_search(workers, config):
    live = search.Live(config=CONFIG, trees=4, workers=workers, expander=Breaking(99))
    with served(live, config) as url:
        found = [posted(url, json.dumps(asking('Twice 3?'))).status for _ in range(4)]
        assert found == [500, 500, 500, 503]
    with pytest.raises(search.Ended):
        live.submit('Twice 1?', 1, print)


@pytest.mark.parametrize(
    ('settings', 'argument'),
    [
        ({'serve.host': '0.0.0.0'}, 'serve.host'),
        ({'serve.host': '::'}, 'serve.host'),
        ({'serve.host': 'example.org'}, 'serve.host'),
        (OPEN | {'execution.isolation': 'weak'}, 'execution.isolation'),
        (OPEN | {'execution.isolation': 'none'}, 'execution.isolation'),
    ],
)
def test_who_serves_others_needs_a_key_and_the_strict_sandbox(settings, argument, monkeypatch):
    monkeypatch.delenv('RSTAR_SERVE_KEY', raising=False)
    config = configs.load(str(REPOSITORY / 'experiments' / 'serve.py'))
    config.update_from_flattened_dict(settings)
    with pytest.raises(UserError) as caught:
        serve.serve(config)
    assert caught.value.argument == argument


def test_trees_are_those_of_a_search_of_its_own(workers):
    found = {}
    live = search.Live(config=CONFIG, trees=4, workers=workers, expander=scripted())
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
                share=search.Share(workers=workers),
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


def test_a_port_that_is_taken():
    config = configs.load(str(REPOSITORY / 'experiments' / 'serve.py'))
    with socket.create_server(('127.0.0.1', 0)) as taken:
        config.serve.port = taken.getsockname()[1]
        with pytest.raises(UserError) as caught:
            serve.serve(config)
    assert (caught.value.argument, caught.value.value) == ('serve.port', config.serve.port)


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
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(**asking('apples ' * 200))
            assert caught.value.code == 'context_length_exceeded'
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == 0 and rest.splitlines()[-1] == 'stopped', rest
