"""OpenAI's chat endpoint, answered by a search that runs in another thread.

POST /v1/chat/completions -> Asked -> search.Live (a thread, one engine for all requests)
    -> Records as trees end -> the best trajectory, as Markdown, whole or as a stream
GET  /v1/models, /v1/models/rstar_jax
"""

import asyncio
import contextlib
import json
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import numpy as np
import pydantic
from ml_collections import ConfigDict
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from rstar_jax import search, steps
from rstar_jax.search import Record
from rstar_jax.settings.errors import UserError
from rstar_jax.use import gate, solve
from rstar_jax.use.gate import Refused

MODEL = 'rstar_jax'
ABOUT = {'id': MODEL, 'object': 'model', 'created': 0, 'owned_by': MODEL}
BODY_BYTES = 1 << 20
BODY_SECONDS = 10.0  # until all of a request has come
POLL_SECONDS = 1.0  # between two looks whether the client is still there
ALIVE_SECONDS = 10.0  # between two signs of life in a stream


class _Read(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)  # what else there is, is ignored


class Part(_Read):
    """Of a message's content."""

    type: Literal['text']
    text: str


class Message(_Read):
    """One of the conversation."""

    role: str
    content: str | list[Part] | None = None


class StreamOptions(_Read):
    """usage: whether a stream ends with the numbers of tokens."""

    include_usage: bool | None = None


class ResponseFormat(_Read):
    """OpenAI's default."""

    type: Literal['text']


class Asked(_Read):
    """A request, as OpenAI's clients send it; `trajectories` is our own: trees to search."""

    model: str
    messages: list[Message] = pydantic.Field(min_length=1)
    trajectories: int | None = pydantic.Field(None, ge=1)
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    tools: list[Any] | None = pydantic.Field(None, max_length=0)
    functions: list[Any] | None = pydantic.Field(None, max_length=0)
    response_format: ResponseFormat | None = None

    @classmethod
    def read(cls, body: bytes, config: ConfigDict) -> 'Asked':
        """Reads a request's JSON, and fills in what it leaves to `config`; raises Refused."""
        try:
            asked = cls.model_validate_json(body)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            param = str(first['loc'][0]) if first['loc'] else None
            where = '.'.join(map(str, first['loc'])) or 'the request'
            raise Refused(f'{where}: {first["msg"]}', param) from None
        _check_model(asked.model)
        most = config.serve.trajectories
        asked.trajectories = asked.trajectories or min(config.search.trees, most)
        if asked.trajectories > most:
            raise Refused(f'trajectories: Input should be at most {most}', 'trajectories')
        asked.seed = (config.seed if asked.seed is None else asked.seed) % 2**32
        if not asked.question:
            raise Refused("messages: none of role 'user' has a text", 'messages')
        return asked

    @property
    def question(self) -> str:
        """The text of the user's last message; '' for none."""
        content = next((m.content for m in reversed(self.messages) if m.role == 'user'), None)
        if isinstance(content, list):
            content = '\n'.join(part.text for part in content)
        return (content or '').strip()

    @property
    def usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


def _check_model(name: Any) -> None:
    if name != MODEL:
        message = f'model {name!r}: there is {MODEL}'
        raise Refused(message, 'model', 404, 'model_not_found')


class Service:
    """The endpoint over a running search.

    Attributes:
      live: the search; its `run` is another thread's.
      config: serve.*, search.trees and seed are read.
    """

    def __init__(self, live: search.Live, config: ConfigDict):
        self.live, self.config = live, config

    def app(self, key: str = '', hosts: Sequence[str] = gate.LOOPBACK) -> Starlette:
        """The ASGI application; key: that clients must send, if any. hosts: as of `gate`."""

        async def refused(_, error: Refused) -> JSONResponse:
            return JSONResponse(error.body, error.status, {'connection': 'close'})

        async def missed(request, error: HTTPException) -> JSONResponse:
            message = f'{request.method} {request.url.path}: {error.detail}'
            return JSONResponse(Refused(message).body, error.status_code)

        return Starlette(
            routes=[
                Route('/v1/chat/completions', self.chat, methods=['POST']),
                Route('/v1/models', self.models),
                Route('/v1/models/{name:path}', self.model),
            ],
            middleware=gate.middleware(key, hosts),
            exception_handlers={Refused: refused, HTTPException: missed},
        )

    async def models(self, _) -> JSONResponse:
        """The one model."""
        return JSONResponse({'object': 'list', 'data': [ABOUT]})

    async def model(self, request: Request) -> JSONResponse:
        """What is known of a model by its name."""
        _check_model(request.path_params['name'])
        return JSONResponse(ABOUT)

    async def chat(self, request: Request) -> JSONResponse | StreamingResponse:
        """Answers one question."""
        asked = Asked.read(await _body(request), self.config)
        if self.live.busy >= self.config.serve.requests:
            message = f'{self.live.busy} requests are being answered; try again later'
            raise Refused(message, status=429, code='rate_limit_exceeded')
        answer = Answer(self, asked)
        if asked.stream:
            return StreamingResponse(answer.stream(), media_type='text/event-stream')
        return JSONResponse(await answer.whole(request))


async def _body(request: Request) -> bytes:
    body = b''
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > BODY_BYTES:
                    raise Refused(f'the request has more than {BODY_BYTES} bytes', status=413)
    except TimeoutError:
        raise Refused(f'not all came within {BODY_SECONDS:g} seconds', status=408) from None
    except ClientDisconnect:
        raise Refused('the client has gone', status=499) from None
    return body


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
        except search.Ended as error:
            raise Refused(str(error), status=503) from None
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
        except Exception as error:
            yield _event(gate.failed(error).body)
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
            raise gate.failed(event)
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
