"""Serves a policy with its search as a chat model (`chat`): experiments/serve.py."""

import asyncio
import contextlib
import ipaddress
import os
import socket
import sys
import threading

from ml_collections import ConfigDict

from rstar_jax import execution, search, stages
from rstar_jax.job.interrupts import Stopped
from rstar_jax.search import Record
from rstar_jax.settings.errors import UserError, of_setting
from rstar_jax.stages import checkpoints, searches
from rstar_jax.stages.stage import Ahead

KEY = 'RSTAR_SERVE_KEY'
STOP_SECONDS = 5  # that running requests have to end when the server is stopped
WATCH_SECONDS = 1.0  # between two looks whether the search has failed


def serve(config: ConfigDict, workdir: str = '') -> None:
    """Answers requests until Ctrl-C or SIGTERM.

    Args:
      config: policy.path, ppm.path, search.*, execution.* and serve.* are read.
      workdir: where "previous" models are looked for.

    Raises:
      UserError: a package is missing, the port is taken, the address asks for more safety than
        there is, or the search ended by a mistake.
    """
    key = config.serve.key or os.environ.get(KEY, '')
    isolation = _isolation(config, key)
    listening = _listen(config.serve.host, config.serve.port)
    round_ = stages.asked(config, workdir)
    checkpoints.check_searching(round_, Ahead())
    settings = searches.search_config(round_.config, use_ground_truth=False, isolation=isolation)
    with listening, search.Workers.start(settings) as workers:
        live = search.Live(
            checkpoints.searching_model(round_, 'policy'),
            checkpoints.searching_model(round_, 'ppm'),
            config=settings,
            trees=config.serve.requests * config.search.trees,
            workers=workers,
        )
        with running(live) as failure:
            print('compiling', flush=True)
            warm_up(live)
            _serve_on(live, config, key, listening, failure)
    print('stopped', flush=True)


def _isolation(config: ConfigDict, key: str) -> str:
    """What programs run in: all layers, as anybody may have them written, unless told otherwise.

    Raises UserError where that is not to be had, or another is not safe.
    """
    host, isolation = config.serve.host, config.execution.isolation
    if not _loopback(host):
        if not key:
            raise UserError(
                'serve.host',
                host,
                'reachable from outside: needs a key',
                f'set ${KEY}, or --config.serve.key',
            )
        if isolation not in ('auto', 'strict'):
            raise UserError(
                'execution.isolation',
                isolation,
                f'needs strict where serve.host={host} is reachable from outside',
            )
    isolation = 'strict' if isolation == 'auto' else isolation
    with of_setting('execution'):
        execution.check(isolation)
    return isolation


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def _listen(host: str, port: int) -> socket.socket:
    """The port, taken before the models are loaded."""
    try:
        import pydantic  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UserError(
            'serve.port',
            port,
            'needs packages',
            "pip install 'rstar_jax[serve]' (pydantic, starlette, uvicorn)",
        ) from None
    try:
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            'serve.port', port, f'cannot listen at {host} ({error})', 'choose another'
        ) from None


@contextlib.contextmanager
def running(live: search.Live):
    """Runs a search in a thread of its own; gives a list that holds its exception, if it fails."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            live.run()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name='search')
    thread.start()
    try:
        yield failure
    finally:
        live.close()
        thread.join()


def warm_up(live: search.Live) -> None:
    """Searches one question, so that the first request finds everything compiled."""
    ended = threading.Event()
    events: list[Record | BaseException] = []

    def done(event: Record | BaseException) -> None:
        events.append(event)
        ended.set()

    live.submit(search.begin.QUESTIONS[0], 1, done)
    ended.wait()
    if isinstance(events[0], BaseException):
        raise events[0]


def server(live: search.Live, config: ConfigDict, key: str = ''):
    """The uvicorn.Server, which bounds what a client may take."""
    import uvicorn

    from rstar_jax.use import chat, gate

    hosts = [*gate.LOOPBACK, config.serve.host] if _loopback(config.serve.host) else ['*']
    return uvicorn.Server(
        uvicorn.Config(
            chat.Service(live, config).app(key, hosts),
            http=gate.Connection,
            ws='none',
            log_level='error',
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=gate.HEADER_BYTES,
            limit_concurrency=gate.CONNECTIONS,
            timeout_graceful_shutdown=STOP_SECONDS,
            lifespan='off',
        )
    )


def _serve_on(
    live: search.Live,
    config: ConfigDict,
    key: str,
    listening: socket.socket,
    failure: list[BaseException],
) -> None:
    running_server = server(live, config, key)
    host, port = listening.getsockname()[:2]
    at = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
    print(f'serving rstar_jax at http://{at}/v1', flush=True)

    async def watch() -> None:
        while not (failure or running_server.should_exit):
            await asyncio.sleep(WATCH_SECONDS)
        running_server.should_exit = True

    async def both() -> None:
        watching = asyncio.create_task(watch())
        await running_server.serve(sockets=[listening])
        watching.cancel()

    # Uvicorn stops in order at a signal, and then raises it anew.
    with contextlib.suppress(Stopped):
        asyncio.run(both())
    if failure:
        raise failure[0]


if __name__ == '__main__':
    sys.exit('use python -m rstar_jax.main --config=experiments/serve.py (--help: its settings)')
