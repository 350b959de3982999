"""What stands between the network and the endpoint: who may ask, how long, and what they are told.

connection -> Connection (a header within seconds) -> TrustedHostMiddleware -> Gate -> the routes
"""

import asyncio
import logging
import secrets
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from rstar_jax.settings.errors import one_line

HEADER_BYTES = 16 << 10
HEADER_SECONDS = 10.0  # until the header of a connection's next request has come
SEND_SECONDS = 30.0  # that a client may leave unread what it was sent
CONNECTIONS = 1000
LOOPBACK = ['localhost', '127.0.0.1', '[::1]']
_LOG = logging.getLogger('rstar_jax.serve')


class Refused(Exception):
    """What is wrong with a request: goes back to the client as OpenAI's error object."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code=None):
        super().__init__(message)
        kind = 'server_error' if status >= 500 else 'invalid_request_error'
        self.status = status
        self.body = {'error': {'message': message, 'type': kind, 'param': param, 'code': code}}


def failed(error: BaseException) -> Refused:
    """What a client is told of an error that is not its own; why, the log tells under that id."""
    name = f'req_{uuid.uuid4().hex}'
    _LOG.error('request %s failed: %s: %s', name, type(error).__name__, one_line(error))
    return Refused(f'the request failed; the log of the server tells why, by {name}', status=500)


def middleware(key: str, hosts: Sequence[str]) -> list[Middleware]:
    """Of the application; hosts: by which clients may call this one."""
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        Middleware(Gate, key=key),
    ]


class Gate:
    """ASGI middleware: checks origin and key, answers for what fails, lets nobody hold a response.

    A page in a browser names its origin: without the key it is refused, whatever site it is of.
    """

    def __init__(self, app: Any, key: str):
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        started = False

        async def promptly(message: Any) -> None:
            nonlocal started
            started = True
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        try:
            self._check(Headers(scope=scope))
            await self.app(scope, receive, promptly)
            return
        except Refused as refused:
            told = refused
        except TimeoutError as error:
            if started:  # nobody reads: what is left is not sent, and the connection ends
                return
            told = failed(error)
        except Exception as error:
            told = failed(error)
        if not started:
            close = {'connection': 'close'}  # the rest of the request may never come
            await JSONResponse(told.body, told.status, close)(scope, receive, promptly)

    def _check(self, headers: Headers) -> None:
        if sum(len(name) + len(value) for name, value in headers.raw) > HEADER_BYTES:
            raise Refused(f'the header has more than {HEADER_BYTES} bytes', status=431)
        given = headers.get('authorization', '').removeprefix('Bearer ').encode()
        if self.key and not secrets.compare_digest(given, self.key):
            raise Refused('the key is missing or wrong', status=401, code='invalid_api_key')
        if 'origin' in headers and not self.key:
            raise Refused('requests of a web page are refused without a key', status=403)


class Connection(H11Protocol):
    """Closes a connection whose next request does not begin, or stays half a header."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_header(None)

    def on_response_complete(self) -> None:
        ended = self.cycle
        super().on_response_complete()
        self._await_header(ended)

    def _await_header(self, ended: Any) -> None:
        """ended: the request before."""

        def look() -> None:
            if self.cycle is ended:
                self.timeout_keep_alive_handler()

        self.loop.call_later(HEADER_SECONDS, look)
