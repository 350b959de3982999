"""Kills writing processes at random moments: `python kill_writers.py DIRECTORY TIMES`.

Each round forks a writer that appends trees, writes one or several at a time (merging where files
hold 4) and tells a pipe what is stored; kills it with SIGKILL; and lets a forked reader check that
everything told is there, whole, and once. Prints figures as JSON. Not a test by itself:
test_trees.py runs it.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from rstar_jax import data
from rstar_jax.data import files
from rstar_jax.job import atomic
from tests.data import samples


def write(directory, pipe):
    store = data.TreeStore(directory, shard_trees=4, seconds=1e9)
    merge = store.merge
    store.merge = lambda: (os.write(pipe, b'm'), merge(), os.write(pipe, b'e'))
    rng, waiting = random.Random(len(store)), 0
    for key in ((i, t) for i in range(10**6) for t in range(2)):
        if key not in store:
            store.append(samples.grown(key[0] * 2 + key[1], *key, size=8))
            waiting += 1
            if rng.random() < 0.6:
                store.flush()
                os.write(pipe, b'a' * waiting)
                waiting = 0


def read(directory, at_least):
    store = data.TreeStore(directory)
    records = list(store)
    assert len(records) == len({r.key for r in records}) == len(store) >= at_least
    for record in records:
        index, tree = record.key
        assert samples.same(record, samples.grown(index * 2 + tree, index, tree, size=8))
    assert not list(pathlib.Path(directory).glob(f'{atomic.TEMPORARY}*'))
    stored = [
        samples.Record.from_bytes(content).key
        for path in pathlib.Path(directory).glob('*.array_record')
        for content in files.RecordReader(path)
    ]
    assert len(stored) == len(set(stored)) == len(records)
    return len(records)


def forked(function, *arguments):
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def main(directory, times):
    rng = random.Random(0)
    stored = merging = leftovers = 0
    for _ in range(times):
        read_end, write_end = os.pipe()
        writer = forked(write, directory, write_end)
        os.close(write_end)
        told = b''
        while told.count(b'a') < 1:  # every writer gets somewhere
            told += os.read(read_end, 1)
        time.sleep(rng.random() * 0.03)
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        while chunk := os.read(read_end, 4096):
            told += chunk
        os.close(read_end)
        stored += told.count(b'a')
        merging += told.count(b'm') > told.count(b'e')
        leftovers += len(list(pathlib.Path(directory).glob(f'{atomic.TEMPORARY}*')))
        reader = forked(read, directory, stored)
        assert os.waitpid(reader, 0)[1] == 0, 'what was read back is not what was stored'
    total = read(directory, stored)
    print(
        json.dumps(
            {
                'killed': times,
                'trees': total,
                'killed_while_merging': merging,
                'leftovers': leftovers,
            }
        )
    )


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
