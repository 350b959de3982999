"""Frames, and programs of any text."""

import json
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rstar_jax import execution
from rstar_jax.execution import wire

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(st.lists(ANYTHING, max_size=4), st.integers(1, 9))
def test_messages_come_as_they_were_sent_however_they_are_cut(messages, size):
    reading, writing = os.pipe()
    data = b''.join(map(wire.frame, messages))

    def write():
        for start in range(0, len(data), size):
            wire.write_all(writing, data[start : start + size])
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert [json.loads(wire.read_frame(reading)) for _ in messages] == messages
        assert wire.read_frame(reading) is None
    finally:
        thread.join()
        os.close(reading)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(ANYTHING, st.data())
def test_a_frame_that_is_cut_off_is_none(message, data):
    whole = wire.frame(message)
    reading, writing = os.pipe()
    wire.write_all(writing, whole[: data.draw(st.integers(0, len(whole) - 1))])
    os.close(writing)
    try:
        assert wire.read_frame(reading) is None
    finally:
        os.close(reading)


@pytest.fixture(scope='module')
def pool():
    with execution.Pool(workers=1, limits=execution.Limits(seconds=2)) as pool:
        yield pool


LINES = st.sampled_from(
    ['x = 1', 'print(x)', 'for i in range(3):', '    print(i)', 'raise', "'''", ')', 'def f(', '\\']
)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.lists(st.text(max_size=20) | LINES, min_size=1, max_size=4), st.booleans())
def test_any_text_is_a_program_that_ends_in_a_result(pool, cells, whole):
    result = pool.submit(cells, whole=whole).result(60)
    assert result.ok != bool(result.error) and '\n' not in result.error
    assert result.ok or not result.error.startswith('RuntimeError: the worker')
    assert pool.submit('print(7)').result(60).output == '7'
