"""Frames between the main process, a worker and its children: length, then JSON.

Nothing is ever unpickled: a child runs model-written code, and what it sends is only data.
"""

from __future__ import annotations

import json
import os
import struct

HEADER = struct.Struct('>I')


def frame(message: object) -> bytes:
    """Length and JSON; ASCII, so that lone surrogates printed by a program survive."""
    body = json.dumps(message).encode('ascii')
    return HEADER.pack(len(body)) + body


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_exact(fd: int, count: int) -> bytes | None:
    """`count` bytes, or None when the other end closed first."""
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b''.join(parts)


def read_frame(fd: int) -> bytes | None:
    """The body of the next frame (blocking), or None at the end of the stream."""
    header = read_exact(fd, HEADER.size)
    return None if header is None else read_exact(fd, HEADER.unpack(header)[0])
