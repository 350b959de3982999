"""The processes of a job keep in touch: who is there, and who is gone.

JAX's own service tells neither which process has not come nor which one has died: it ends them all,
by an abort. So, beside it, each process holds one connection to the first:

    call    the first waits until all have come, or names those that have not
    beats   both ends of a connection that is closed, or silent for SILENT seconds, name the other
    leave   a process that ends before its time says why, and the first tells all others

One line of JSON a message, over TCP, from process to first process and back. Like JAX's service it
trusts the network between the machines; a stranger can neither end a job that has begun nor have it
keep long lines.
"""

import contextlib
import errno
import ipaddress
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from rstar_jax.settings.errors import Later, UserError

BEAT = 5.0  # seconds between two signs of life
SILENT = 90.0  # seconds without one after which a process is taken for gone; JAX waits for 100
RETRY = 0.5  # seconds between two attempts to reach the first process
LINGER = 15.0  # seconds that the first, ending for a reason, waits for the others to end as well
FLUSH = 3.0  # seconds that a process that ends waits for the first to have told the others

OWN_NUMBER = 'each process needs a number of its own, and each job an address of its own'
LONGEST = 1 << 16  # bytes of a message
WHY = 4_000  # characters of a reason
PORTS = 20_000, 32_000  # below those that systems give to connections

Message = dict[str, Any]
Lost = Callable[[int, str, int], None]
GONE = -1  # in place of the exit code of a process that has told none


def free_port() -> int:
    """A coordinator's port for a job on this machine; the next, the roll's, is free too."""
    while True:
        port = random.SystemRandom().randrange(*PORTS, 2)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(('', port))
            other.bind(('', port + 1))
            return port


class _Line:
    """One end of a connection: messages in, messages out."""

    def __init__(self, connection: socket.socket):
        connection.settimeout(SILENT)
        self._connection = connection
        self._file = connection.makefile('r', encoding='utf-8')
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Sends, or does nothing where nobody is at the other end: its reader finds out."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall((json.dumps(message) + '\n').encode())

    def receive(self) -> Message | None:
        """The next message; None when the other end is gone. Raises TimeoutError in silence."""
        try:
            found = json.loads(self._file.readline(LONGEST))
            return found if isinstance(found, dict) else None
        except TimeoutError:
            raise
        except (OSError, ValueError):  # closed, or what is no message
            return None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class _Desk:
    """What the first process does for all: a thread for each connection."""

    def __init__(self, host: str, port: int, count: int):
        self._count = count
        self._lines: dict[int, _Line] = {}
        self._names: dict[int, str] = {}
        self._lock = threading.Lock()
        self._all_here = threading.Event()
        self._socket = _listening(host, port, count)
        self.host = self._socket.getsockname()[0].replace('0.0.0.0', 'localhost')
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(_Line(connection),), daemon=True).start()

    def _serve(self, line: _Line) -> None:
        hello = None
        with contextlib.suppress(TimeoutError):
            hello = line.receive()
        number, count = ((hello or {}).get(key) for key in ('process', 'count'))
        if type(number) is not int or type(count) is not int or not 0 <= number < count:
            return line.close()
        with self._lock:
            before = self._lines.get(number)
            refused = self._refused(number, count)
            if not refused:
                self._lines[number] = line
                self._names[number] = f'process {number} ({hello.get("host")})'
                if len(self._lines) == self._count:
                    self._all_here.set()
        if refused:
            line.send({'refused': refused})
            return line.close()
        if before is not None:  # its machine was lost without a word and has come back
            before.send({'refused': f'another one has come with its number: {OWN_NUMBER}'})
            before.close()
        why = self._talk(number, line)
        with self._lock:
            if self._lines.get(number) is not line:
                return None
            del self._lines[number]
        if why and self._all_here.is_set():
            self._tell(number, f'{self._names[number]} {why}', GONE)
        line.close()
        return None

    def _refused(self, number: int, count: int) -> str:
        """Why a process cannot be one of this job's; '' where it can."""
        if count != self._count:
            return (
                f'was started as one of {count}, the first as one of {self._count}: start all with '
                'the same number of processes'
            )
        if self._all_here.is_set():
            return f'runs already: {OWN_NUMBER}'
        return ''

    def _talk(self, number: int, line: _Line) -> str:
        """Answers until the process leaves; returns how it was lost, '' where it said good-bye."""
        try:
            while (message := line.receive()) is not None:
                if 'leave' in message:
                    code, why = message['leave'], message['why']
                    if code:
                        self._tell(number, f'{self._names[number]} {why}', code)
                    elif number == 0:
                        self._send_all(0, {'closing': True})
                    line.send({'bye': True})
                    with contextlib.suppress(TimeoutError):
                        while number and line.receive() is not None:
                            pass  # it is there until its process has ended
                    return ''
                else:
                    line.send({'beat': True})
        except TimeoutError:
            return f'has been silent for {SILENT:.0f} s'
        return 'is gone'

    def _tell(self, number: int, text: str, code: int) -> None:
        self._send_all(number, {'lost': number, 'text': text, 'code': code})

    def _send_all(self, but: int, message: Message) -> None:
        with self._lock:
            lines = [line for number, line in self._lines.items() if number != but]
        for line in lines:
            line.send(message)

    def wait(self, seconds: float) -> list[int]:
        """Waits for all; returns those that have not come, and tells the others."""
        self._all_here.wait(seconds)
        with self._lock:
            missing = [number for number in range(self._count) if number not in self._lines]
        self._send_all(-1, {'missing': missing} if missing else {'go': True})
        return missing

    def wait_for_others(self, seconds: float) -> None:
        """Returns when all have left, or after so many seconds."""
        end = time.monotonic() + seconds
        while self._lines and time.monotonic() < end:
            time.sleep(0.1)

    def close(self) -> None:
        self._socket.close()


def _listening(host: str, port: int, count: int) -> socket.socket:
    """On the address that the others were given, where it is one; of a name any may be meant."""
    own = '' if host != 'localhost' else host
    with contextlib.suppress(ValueError):
        own = str(ipaddress.IPv4Address(host))
    try:
        return socket.create_server((own, port), backlog=count)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:  # as behind a translated address
            raise
    return socket.create_server(('', port), backlog=count)


class Roll:
    """This process's line to the first; see the module's text.

    Args:
      host, port: of the first process.
      number, count: which process this is, of how many.
      lost: lost(number, sentence, exit code) is called, in a thread, when another process is gone
        (GONE) or has left for a reason.
    """

    def __init__(self, host: str, port: int, number: int, count: int, lost: Lost):
        self.number, self.count = number, count
        self._where = host, port
        self._lost, self._leaving = lost, False
        self._desk: _Desk | None = None
        self._line: _Line | None = None
        self._bye = threading.Event()

    def call(self, seconds: float) -> None:
        """Returns when every process has come.

        Raises:
          Later: after so many seconds some have not; their numbers are named.
          UserError: this process is none of the job, as another one has its number.
        """
        host, port = self._where
        end = time.monotonic() + seconds
        if self.number == 0:
            try:
                self._desk = _Desk(host, port, self.count)
            except OSError as error:
                raise UserError(
                    f'port {port}',
                    expected=f'cannot be listened on ({error.strerror}); it is the one after the '
                    "coordinator's",
                    remedy='give the job another coordinator address',
                ) from None
            host = self._desk.host
        self._line = self._reach(host, port, end, seconds)
        about = {'process': self.number, 'count': self.count, 'host': socket.gethostname()}
        self._line.send(about)
        threading.Thread(target=self._beat, daemon=True).start()
        if self._desk is not None:
            missing = self._desk.wait(end - time.monotonic())
            answer = {'missing': missing} if missing else {'go': True}
        else:
            answer = self._until_called(end)
        if missing := answer.get('missing'):
            names = ', '.join(map(str, missing))
            raise Later(
                f'process {names} of {self.count}',
                expected=f'did not come within {seconds:.0f} s',
                remedy=f'look at its log, and whether its machine reaches {self._where[0]}:{port}',
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def _reach(self, host: str, port: int, end: float, seconds: float) -> _Line:
        while True:
            try:
                return _Line(socket.create_connection((host, port), timeout=5.0))
            except OSError as error:
                if time.monotonic() > end:
                    raise Later(
                        f'process 0 of {self.count}',
                        expected=f'{host}:{port} was not reached within {seconds:.0f} s ({error})',
                        remedy='look at its log, and whether machines reach each other on this '
                        'port, the one after the coordinator',
                    ) from None
                time.sleep(RETRY)

    def _until_called(self, end: float) -> Message:
        """The first process's word of who has come; it may be a little behind this one's clock."""
        # A line that was silent for too long is of no use any more: it gives nothing but errors.
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < end + SILENT and (message := self._line.receive()):
                if 'go' in message or 'missing' in message:
                    return message
                if 'refused' in message:
                    raise UserError(
                        f'process {self.number} of {self.count}', expected=message['refused']
                    )
        raise Later(
            f'process 0 of {self.count}',
            expected='is gone before all had come',
            remedy='look at its log',
        )

    def _beat(self) -> None:
        while not self._leaving:
            self._line.send({'beat': True})
            time.sleep(BEAT)

    def _listen(self) -> None:
        why = 'is gone'
        try:
            while (message := self._line.receive()) is not None:
                if 'bye' in message:
                    self._bye.set()
                    return
                elif 'closing' in message:  # the first is done, and so is every other
                    self._leaving = True
                elif 'lost' in message and not self._leaving:
                    self._lost(message['lost'], message['text'], message['code'])
        except TimeoutError:
            why = f'has been silent for {SILENT:.0f} s'
        if not self._leaving:
            self._lost(0, f'process 0 ({self._where[0]}) {why}', GONE)

    def leave(self, code: int, why: str) -> None:
        """Says good-bye, and with a code other than 0 lets the others know why.

        The others' lines stay open until their processes have ended.
        """
        if self._line is None or (self._leaving and not code):
            return
        self._leaving = True
        self._line.send({'leave': code, 'why': why[:WHY]})
        self._bye.wait(FLUSH)
        if self._desk is not None:
            if code:  # JAX takes the others down with the first, before they have saved
                self._desk.wait_for_others(LINGER)
            self._desk.close()
