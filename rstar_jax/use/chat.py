"""OpenAI's chat endpoint, answered by a search that runs in another thread.

POST /v1/chat/completions -> Asked -> search.Live (a thread, one engine for all requests)
    -> Records as trees end -> the best trajectory, as Markdown, whole or as a stream
GET  /v1/models, /v1/models/rstar_jax
"""

import asyncio
import contextlib
import dataclasses
import json
import time
import uuid
import weakref
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rstar_jax import search, steps
from rstar_jax.search import Record
from rstar_jax.settings.errors import UserError
from rstar_jax.use import solve

MODEL = 'rstar_jax'
ABOUT = {'id': MODEL, 'object': 'model', 'created': 0, 'owned_by': MODEL}
TEXT = {'type': 'text'}  # OpenAI's default of response_format
BODY_BYTES = 1 << 20
POLL_SECONDS = 1.0  # between two looks whether the client is still there
ALIVE_SECONDS = 10.0  # between two signs of life in a stream


class Refused(Exception):
    """What is wrong with a request: goes back to the client as OpenAI's error object."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code=None):
        super().__init__(message)
        kind = 'server_error' if status >= 500 else 'invalid_request_error'
        self.status = status
        self.body = {'error': {'message': message, 'type': kind, 'param': param, 'code': code}}


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request that can be answered.

    Attributes:
      question: the user's last message.
      trajectories: trees to search.
      seed: of the sampling.
      stream: whether the answer is sent as it comes.
      usage: whether a stream ends with the numbers of tokens.
    """

    question: str
    trajectories: int
    seed: int
    stream: bool
    usage: bool

    @classmethod
    def read(cls, body: Any, config: ConfigDict) -> 'Asked':
        """Reads a request's JSON; raises Refused."""
        if not isinstance(body, dict):
            raise Refused('expected a JSON object')
        _check_model(body.get('model'))
        for name in ('tools', 'functions', 'response_format'):
            if body.get(name) and body[name] != TEXT:
                raise Refused(f'{name}: not supported', name)
        most = config.serve.trajectories
        stream = _typed(body, 'stream', bool, False)
        options = _typed(body, 'stream_options', dict, {})
        trees = _typed(body, 'trajectories', int, min(config.search.trees, most))
        if not 1 <= trees <= most:
            raise Refused(f'trajectories={trees}: expected 1 to {most}', 'trajectories')
        if _typed(body, 'n', int, 1) != 1:
            raise Refused('n: expected 1; trajectories says how many solutions are tried', 'n')
        seed = _typed(body, 'seed', int, config.seed)
        usage = bool(options.get('include_usage'))
        return cls(_question(body.get('messages')), trees, seed, stream, usage)


def _check_model(name: Any) -> None:
    if name != MODEL:
        message = f'model {name!r}: there is {MODEL}'
        raise Refused(message, 'model', 404, 'model_not_found')


def _typed(body: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Refused(f'{name}={value!r}: expected {kind.__name__}', name)
    return value


def _question(messages: Any) -> str:
    if not isinstance(messages, list) or not messages:
        raise Refused('messages: expected a list of {role, content}', 'messages')
    asked = [m for m in messages if isinstance(m, dict) and m.get('role') == 'user']
    content = asked[-1].get('content') if asked else None
    if isinstance(content, list):
        parts = [part.get('text') for part in content if isinstance(part, dict)]
        content = '\n'.join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(content, str) or not content.strip():
        raise Refused("messages: expected a message of role 'user' with text", 'messages')
    try:
        content.encode()
    except UnicodeEncodeError:
        raise Refused('messages: half of a surrogate pair is no text', 'messages') from None
    return content.strip()


class Service:
    """The endpoint over a running search.

    Attributes:
      live: the search; its `run` is another thread's.
      config: serve.*, search.trees and seed are read.
    """

    def __init__(self, live: search.Live, config: ConfigDict):
        self.live, self.config = live, config

    def app(self) -> Any:
        """The ASGI application."""
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        async def refused(_, error: Refused) -> JSONResponse:
            return JSONResponse(error.body, error.status)

        async def missed(request, error: HTTPException) -> JSONResponse:
            message = f'{request.method} {request.url.path}: {error.detail}'
            return JSONResponse(Refused(message).body, error.status_code)

        async def failed(_, error: Exception) -> JSONResponse:
            message = f'{type(error).__name__}: {error}'
            return JSONResponse(Refused(message, status=500).body, 500)

        return Starlette(
            routes=[
                Route('/v1/chat/completions', self.chat, methods=['POST']),
                Route('/v1/models', self.models),
                Route('/v1/models/{name:path}', self.model),
            ],
            exception_handlers={Refused: refused, HTTPException: missed, Exception: failed},
        )

    async def models(self, _) -> Any:
        """The one model."""
        from starlette.responses import JSONResponse

        return JSONResponse({'object': 'list', 'data': [ABOUT]})

    async def model(self, request) -> Any:
        """What is known of a model by its name."""
        from starlette.responses import JSONResponse

        _check_model(request.path_params['name'])
        return JSONResponse(ABOUT)

    async def chat(self, request) -> Any:
        """Answers one question."""
        from starlette.responses import JSONResponse, StreamingResponse

        asked = Asked.read(await _body(request), self.config)
        if self.live.busy >= self.config.serve.requests:
            message = f'{self.live.busy} requests are being answered; try again later'
            raise Refused(message, status=429, code='rate_limit_exceeded')
        answer = Answer(self, asked)
        if asked.stream:
            return StreamingResponse(answer.stream(), media_type='text/event-stream')
        return JSONResponse(await answer.whole(request))


async def _body(request) -> Any:
    body = b''
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES:
            raise Refused(f'the request has more than {BODY_BYTES} bytes', status=413)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(f'the request is not JSON ({error})') from None


class Answer:
    """One request on its way: a job of the search, and what goes back to the client."""

    def __init__(self, service: Service, asked: Asked):
        self.asked = asked
        self.records: list[Record] = []
        self.about = {
            'id': f'chatcmpl-{uuid.uuid4().hex}',
            'created': int(time.time()),
            'model': MODEL,
        }
        self._complete = False
        events: asyncio.Queue[Record | BaseException | None] = asyncio.Queue()
        self._events, loop = events, asyncio.get_running_loop()

        def done(event: Record | BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the server has been stopped meanwhile
                loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            self._job = service.live.submit(asked.question, asked.trajectories, done, asked.seed)
        except UserError as error:
            raise Refused(str(error), 'messages', code='context_length_exceeded') from None
        # A client may go before its stream has begun.
        weakref.finalize(self, self._job.cancel).atexit = False

    async def whole(self, request) -> dict[str, Any]:
        """The response, when all trees have ended."""
        try:
            while not self._complete:
                if await self._next(POLL_SECONDS) is None and await request.is_disconnected():
                    raise Refused('the client has gone', status=499)
            content = '\n\n'.join(await asyncio.to_thread(self._solution))
        finally:
            self._job.cancel()
        message = {'role': 'assistant', 'content': content}
        choice = {'index': 0, 'message': message, 'finish_reason': 'stop', 'logprobs': None}
        return {
            **self.about,
            'object': 'chat.completion',
            'choices': [choice],
            'usage': self._usage(),
        }

    async def stream(self) -> AsyncIterator[str]:
        """The response as server-sent events."""
        try:
            yield self._chunk({'role': 'assistant', 'content': ''})
            while not self._complete:
                if record := await self._next(ALIVE_SECONDS):
                    yield self._chunk({'reasoning_content': self._told(record)})
                elif not self._complete:
                    yield ': searching\n\n'  # a comment, which keeps the connection open
            for number, part in enumerate(await asyncio.to_thread(self._solution)):
                yield self._chunk({'content': ('\n\n' if number else '') + part})
            yield self._chunk({}, 'stop')
            if self.asked.usage:
                about = {**self.about, 'object': 'chat.completion.chunk', 'choices': []}
                yield _event({**about, 'usage': self._usage()})
        except Refused as refused:
            yield _event(refused.body)
        finally:
            self._job.cancel()
        yield 'data: [DONE]\n\n'

    async def _next(self, seconds: float) -> Record | None:
        """The next tree; None where none has ended in that time, or all have: then `_complete`."""
        try:
            event = await asyncio.wait_for(self._events.get(), seconds)
        except TimeoutError:
            return None
        if isinstance(event, BaseException):
            raise Refused(f'the search has ended: {event}', status=500)
        if event is None:
            self._complete = True
        else:
            self.records.append(event)
        return event

    def _told(self, record: Record) -> str:
        answer, score = record.best_answer()
        found = f'answer {answer}' if answer else 'no answer'
        if answer and not np.isnan(record.score).all():
            found += f', PPM score {score:.2f}'
        return f'tree {len(self.records)} of {self.asked.trajectories}: {found}\n'

    def _solution(self) -> list[str]:
        """The best trajectory's steps as Markdown, and why it was chosen; waits for the grader."""
        found = solve.answers_of(self.records)
        if not found:
            return [f'No answer found in {len(self.records)} trees.']
        chosen, why = solve.choose(found)
        record, last = found[chosen]
        parts = [markdown(record.texts[node]) for node in record.trajectory(last)]
        return [*parts, f'**Answer:** $\\boxed{{{record.answers[last]}}}$ ({why})']

    def _usage(self) -> dict[str, int]:
        prompt = self._job.prompt_tokens
        sampled = int(sum(record.counters['sampled_tokens'] for record in self.records))
        return {
            'prompt_tokens': prompt,
            'completion_tokens': sampled,
            'total_tokens': prompt + sampled,
        }

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {'index': 0, 'delta': delta, 'finish_reason': reason, 'logprobs': None}
        return _event({**self.about, 'object': 'chat.completion.chunk', 'choices': [choice]})


def _event(value: dict[str, Any]) -> str:
    return f'data: {json.dumps(value, ensure_ascii=False)}\n\n'


def markdown(step: str) -> str:
    """A step's text for people: its code in a block, then what it printed."""
    if steps.ANSWER in step:
        return step.partition(steps.ANSWER)[2].replace(steps.ANSWER_END, '').strip()
    code, _, output = step.partition(steps.OUTPUT)
    for mark in (steps.CODE, steps.STEP_END, steps.CODE_END):
        code = code.replace(mark, '')
    parts = [f'```python\n{code.strip()}\n```'] if code.strip() else []
    if output := output.replace(steps.OUTPUT_END, '').strip():
        parts.append(f'Output:\n```\n{output}\n```')
    return '\n\n'.join(parts)
