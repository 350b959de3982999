"""Serves a policy with its search as a chat model (`chat`): experiments/serve.py."""

import asyncio
import contextlib
import socket
import sys
import threading

from ml_collections import ConfigDict

from rstar_jax import search, stages
from rstar_jax.job.interrupts import Stopped
from rstar_jax.search import Record
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import checkpoints, searches
from rstar_jax.stages.stage import Ahead
from rstar_jax.use import chat

STOP_SECONDS = 5  # that running requests have to end when the server is stopped
WATCH_SECONDS = 1.0  # between two looks whether the search has failed


def serve(config: ConfigDict, workdir: str = '') -> None:
    """Answers requests until Ctrl-C or SIGTERM.

    Args:
      config: policy.path, ppm.path, search.* and serve.* are read.
      workdir: where "previous" models are looked for.

    Raises:
      UserError: a package is missing, the port is taken, or the search ended by a mistake.
    """
    listening = _listen(config.serve.host, config.serve.port)
    round_ = stages.asked(config, workdir)
    checkpoints.check_searching(round_, Ahead())
    settings = searches.search_config(round_.config, use_ground_truth=False)
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
            host, port = listening.getsockname()[:2]
            at = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
            print(f'serving {chat.MODEL} at http://{at}/v1', flush=True)
            _serve_on(chat.Service(live, config), listening, failure)
    print('stopped', flush=True)


def _listen(host: str, port: int) -> socket.socket:
    """The port, taken before the models are loaded."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UserError(
            '--config.serve.port: needs packages: pip install starlette uvicorn'
        ) from None
    try:
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f'--config.serve.port={port}: cannot listen at {host} ({error}); choose another'
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


def _serve_on(
    service: chat.Service, listening: socket.socket, failure: list[BaseException]
) -> None:
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            service.app(),
            log_level='warning',
            timeout_graceful_shutdown=STOP_SECONDS,
            lifespan='off',
        )
    )

    async def watch() -> None:
        while not (failure or server.should_exit):
            await asyncio.sleep(WATCH_SECONDS)
        server.should_exit = True

    async def both() -> None:
        watching = asyncio.create_task(watch())
        await server.serve(sockets=[listening])
        watching.cancel()

    # Uvicorn stops in order at a signal, and then raises it anew.
    with contextlib.suppress(Stopped):
        asyncio.run(both())
    if failure:
        raise failure[0]


if __name__ == '__main__':
    sys.exit('use python -m rstar_jax.main --config=experiments/serve.py (--help: its settings)')
