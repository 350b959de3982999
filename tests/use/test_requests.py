"""Requests of any form: read, or refused in OpenAI's words."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rstar_jax import settings as configs
from rstar_jax.use import chat

CONFIG = configs.default()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ('trajectories', 'seed', 'stream', 'stream_options', 'n', 'tools', 'response_format')
MESSAGE = st.fixed_dictionaries(
    {'role': st.sampled_from(['user', 'system']) | JSON},
    optional={'content': st.text() | st.lists(st.fixed_dictionaries({'text': st.text()})) | JSON},
)
REQUEST = st.fixed_dictionaries(
    {'model': st.just(chat.MODEL) | JSON, 'messages': st.lists(MESSAGE, max_size=3) | JSON},
    optional=dict.fromkeys(FIELDS, JSON),
)


def read(body):
    """A request that can be answered, or None for one that is refused as it should be."""
    try:
        asked = chat.Asked.read(body, CONFIG)
    except chat.Refused as refused:
        assert 400 <= refused.status < 500
        assert json.loads(json.dumps(refused.body))['error']['message']
        return None
    assert asked.question.strip() and asked.question.encode()
    assert 1 <= asked.trajectories <= CONFIG.serve.trajectories and 0 <= asked.seed < 2**32
    return asked


@settings(max_examples=150, derandomize=True, deadline=None)
@given(REQUEST)
def test_requests(request_):
    read(json.dumps(request_).encode())


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.binary(max_size=200))
def test_rubbish(body):
    assert read(body) is None


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.text().filter(str.strip), st.integers(), st.integers(1, CONFIG.serve.trajectories))
def test_questions_are_read_as_they_are(question, seed, trajectories):
    message = {'role': 'user', 'content': question}
    fields = {'model': chat.MODEL, 'seed': seed, 'trajectories': trajectories}
    asked = read(json.dumps({**fields, 'messages': [message]}).encode())
    assert (asked.question, asked.trajectories) == (question.strip(), trajectories)


@pytest.mark.parametrize('depth', [10**3, 10**5])
def test_depth(depth):
    assert read(b'[' * depth) is None
    assert read(b'{"messages": ' + b'[' * depth + b']' * depth + b'}') is None
