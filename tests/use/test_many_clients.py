"""Two hundred clients at once, of which some hang up, send rubbish, or send half a request."""

import asyncio
import gc
import json
import os
import re
import socket
import sys
import threading

import pytest

from rstar_jax import search
from rstar_jax import settings as configs
from rstar_jax.use import chat, gate, serve
from tests.conftest import REPOSITORY

CLIENTS = 200
CONFIG = search.Config(rollouts=1, candidates=2, max_depth=2, use_ground_truth=False, workers=1)


def texts(question, prefix, n):
    number = int(re.search(r'\d+', question)[0])
    return [f'<answer>It is \\boxed{{{2 * number}}}.<end_of_answer>'] * n


@pytest.fixture(scope='module')
def port():
    config = configs.load(str(REPOSITORY / 'experiments' / 'serve.py'))
    config.serve.requests, config.search.trees = CLIENTS, 1
    with search.Workers.start(CONFIG) as workers, socket.create_server(('127.0.0.1', 0)) as port:
        expander = search.scripted(texts, lambda *_: 0.5, trees=8)
        live = search.Live(config=CONFIG, trees=8, workers=workers, expander=expander)
        with serve.running(live):
            server = serve.server(live, config)
            thread = threading.Thread(target=server.run, args=([port],))
            thread.start()
            yield port.getsockname()[1]
            server.should_exit = True
            thread.join()
    assert live.busy == 0


async def client(port, number):
    """What one client hears: the body of its answer, or all there is."""
    message = {'role': 'user', 'content': f'Twice {number}?'}
    asked = {'model': chat.MODEL, 'messages': [message], 'stream': number % 3 == 0}
    body = json.dumps(asked).encode()
    head = b'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n'
    whole = head + b'Content-Length: %d\r\n\r\n' % len(body) + body
    kind = number % 10
    sent = {1: whole, 2: os.urandom(400), 3: whole[: len(whole) * (number % 7 + 1) // 9]}
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    writer.write(sent.get(kind, whole))
    try:
        await writer.drain()
        heard = b'' if kind == 1 else await reader.read()
    except ConnectionError:  # of what the server does not read to its end
        heard = b''
    writer.close()
    return heard


def resident():
    gc.collect()
    with open('/proc/self/statm', encoding='ascii') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_all_who_ask_properly_are_answered_and_memory_stays(port, monkeypatch, capfd):
    monkeypatch.setattr(gate, 'HEADER_SECONDS', 2.0)
    monkeypatch.setattr(chat, 'BODY_SECONDS', 2.0)

    async def wave(start):
        return await asyncio.gather(*(client(port, start + n) for n in range(CLIENTS)))

    used = []
    for start in range(0, 4 * CLIENTS, CLIENTS):
        heard = asyncio.run(wave(start))
        for number, answer in enumerate(heard, start=start):
            if number % 10 in (1, 2, 3):
                assert b' 200 ' not in answer.partition(b'\r\n')[0]
            else:
                assert b' 200 ' in answer.partition(b'\r\n')[0], answer[:200]
                assert b'boxed{%d}' % (2 * number) in answer
        used.append(resident())
    assert max(used[1:]) - used[0] < 30 * 2**20
    assert 'Traceback' not in capfd.readouterr().err
