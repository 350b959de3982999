"""Processes that keep in touch: who is missing, who is gone, and the count that all share."""

import contextlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from rstar_jax.job import roll as rolls
from rstar_jax.job.roll import GONE, Roll
from rstar_jax.settings.errors import Later, UserError


@pytest.fixture
def port():
    return rolls.free_port()


class Lost(list):
    """What a process was told of others."""

    def __init__(self):
        super().__init__()
        self.event = threading.Event()

    def __call__(self, number, text, code):
        self.append((number, text, code))
        self.event.set()


def called(port, count, come=None, seconds=20.0):
    """The Rolls of those that come, and the errors that they met."""
    made = [Roll('localhost', port, number, count, Lost()) for number in come or range(count)]
    errors = []

    def call(roll):
        try:
            roll.call(seconds)
        except UserError as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(roll,)) for roll in made[::-1]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made, errors


def end(roll, code=0, why=''):
    """What a process does at its end, and what becomes of its line then."""
    roll.leave(code, why)
    roll._line.close()


def test_all_come_and_none_is_missed_at_the_end(port):
    made, errors = called(port, 4)
    assert errors == []
    for roll in made[::-1]:
        end(roll)
    assert not any(roll._lost for roll in made)


def test_those_that_have_not_come_are_named_by_all_others(port):
    made, errors = called(port, 5, come=(0, 1, 3), seconds=1.0)
    assert len(errors) == len(made) == 3
    assert {type(error) for error in errors} == {Later}
    for error in errors:
        assert error.argument == 'process 2, 4 of 5'


def test_the_first_is_named_where_nobody_answers(port):
    _, errors = called(port, 2, come=(1,), seconds=1.0)
    assert len(errors) == 1
    assert isinstance(errors[0], Later)
    assert errors[0].argument == 'process 0 of 2'


_PROCESS = """
import sys, time
from rstar_jax.job.roll import Roll
port, number, count = map(int, sys.argv[1:])
Roll('localhost', port, number, count, print).call(60.0)
time.sleep(600)
"""


@pytest.mark.parametrize('dead', [0, 1])
def test_one_that_is_gone_is_named(port, dead):
    process = subprocess.Popen([sys.executable, '-c', _PROCESS, str(port), str(dead), '3'])
    made, errors = called(port, 3, come=[n for n in range(3) if n != dead], seconds=60.0)
    process.kill()
    process.wait()
    assert errors == []
    for roll in made:
        assert roll._lost.event.wait(10)
        number, text, code = roll._lost[0]
        assert (number, code) == (dead, GONE)
        assert text.startswith(f'process {dead} (') and text.endswith(') is gone')


def test_one_that_is_silent_is_named(port, monkeypatch):
    monkeypatch.setattr(rolls, 'BEAT', 0.1)
    monkeypatch.setattr(rolls, 'SILENT', 1.0)
    made, _ = called(port, 3)
    monkeypatch.setattr(made[2]._line, 'send', lambda message: None)
    assert made[1]._lost.event.wait(10)
    assert made[1]._lost[0][1].endswith(') has been silent for 1 s')
    assert made[1]._lost[0][0] == 2


def test_a_machine_that_was_lost_before_all_had_come_may_come_back(port, monkeypatch):
    """What is left of its first connection, which was never closed, does not end the job."""
    monkeypatch.setattr(rolls, 'BEAT', 0.2)
    monkeypatch.setattr(rolls, 'SILENT', 3.0)
    made, errors, threads = [], [], []

    def come(number):
        rolls_, errors_ = called(port, 3, come=(number,))
        made.extend(rolls_)
        errors.extend(errors_)

    for number in (0, 2, 1):
        threads.append(threading.Thread(target=come, args=(number,)))
        threads[-1].start()
        if number == 0:
            end = time.monotonic() + 20
            lost = Roll('localhost', port, 2, 3, Lost())._reach('localhost', port, end, 20)
            lost.send({'process': 2, 'count': 3, 'host': 'h'})
        time.sleep(0.5)
    for thread in threads:
        thread.join()
    assert errors == []
    time.sleep(3.5)
    assert [roll._lost for roll in made] == 3 * [[]]
    assert 'each process needs a number of its own' in lost.receive()['refused']


@pytest.mark.parametrize(('number', 'count'), [(1, 2), (2, 3)])
def test_who_does_not_belong_to_a_job_is_told_and_does_not_end_it(port, monkeypatch, number, count):
    monkeypatch.setattr(rolls, 'LINGER', 0.5)
    made, _ = called(port, 2)
    _, errors = called(port, count, come=(number,), seconds=5.0)
    assert [error.argument for error in errors] == [f'process {number} of {count}']
    time.sleep(0.3)
    assert [roll._lost for roll in made] == [[], []]
    made[0].leave(1, 'has failed')
    assert made[1]._lost.event.wait(10)


def test_one_that_leaves_for_a_reason_tells_all_others(port):
    made, _ = called(port, 3)
    made[1].leave(143, 'was preempted')
    for number in (0, 2):
        assert made[number]._lost.event.wait(10)
        assert made[number]._lost[0][1].endswith(') was preempted')
        assert made[number]._lost[0][2] == 143
    made[0]._lost.event.clear()
    made[2].leave(2, 'has ended: no such file')
    assert made[0]._lost.event.wait(10)
    assert made[0]._lost[-1][1].endswith('has ended: no such file')


def test_the_first_ends_last_where_it_ends_for_a_reason(port):
    made, _ = called(port, 2)
    ends = threading.Thread(target=made[0].leave, args=(143, 'was preempted'))
    ends.start()
    assert made[1]._lost.event.wait(10)
    assert made[1]._lost[0][2] == 143
    time.sleep(0.5)
    assert ends.is_alive()
    made[1].leave(143, 'was preempted')
    time.sleep(0.5)
    assert ends.is_alive()  # the other has said good-bye and not yet ended
    made[1]._line.close()
    ends.join(5)
    assert not ends.is_alive()


def test_a_port_that_is_taken_is_one_line(port):
    with socket.create_server(('', port)), pytest.raises(UserError) as taken:
        Roll('localhost', port, 0, 2, Lost()).call(1.0)
    assert taken.value.argument == f'port {port}'


def reached(port):
    """A connection to the first process, once it listens."""
    for _ in range(100):
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(('localhost', port), timeout=10.0)
        time.sleep(0.1)
    raise TimeoutError


@pytest.mark.parametrize('said', ['', 'x' * (rolls.LONGEST + 1), '[1]\n', '{"process": "1"}\n'])
def test_a_stranger_is_hung_up_on(port, monkeypatch, said):
    """What it sends is not kept, however long it is; a job can still begin."""
    monkeypatch.setattr(rolls, 'BEAT', 0.1)
    monkeypatch.setattr(rolls, 'SILENT', 2.0)
    first = threading.Thread(target=called, args=(port, 2, (0,), 20.0))
    first.start()
    with reached(port) as stranger:
        stranger.sendall(said.encode())
        with contextlib.suppress(ConnectionResetError):  # what it sent was not read to its end
            assert stranger.recv(1) == b''
    made, errors = called(port, 2, (1,))
    first.join()
    assert errors == [] and len(made) == 1


def test_a_job_of_one_machine_is_not_reached_from_others(port):
    made, _ = called(port, 2)
    own = [x[4][0] for x in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)]
    for address in own:
        if not address.startswith('127.'):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=5.0)
    for roll in made[::-1]:
        end(roll)
