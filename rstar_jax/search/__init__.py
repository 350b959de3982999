"""Monte Carlo tree search over program steps, vectorised over trees and devices.

From a call to a sampled token, five functions in as many files:

    begin.run          problems in, records out: makes what follows
    loop.Loop.turn     a look at what ended, and what the trees do next
    engine.local.Engine.dispatch      copies, known tokens and a chunk of decoding, on the devices
    engine.decode.decode              the steps of that chunk
    engine.sampling.sample            the next token of every slot
"""

from rstar_jax.data.record import Record, Status
from rstar_jax.search.begin import run
from rstar_jax.search.children import Workers
from rstar_jax.search.config import Config, greedy, sampled, trees_for
from rstar_jax.search.endpoint import Endpoint
from rstar_jax.search.expander import Expander
from rstar_jax.search.expander import Scripted as scripted
from rstar_jax.search.live import Ended, Job, Live
from rstar_jax.search.nodes import Step
from rstar_jax.search.share import Share, items
from rstar_jax.search.snapshots import SnapshotFolder

__all__ = [
    'Config',
    'Ended',
    'Endpoint',
    'Expander',
    'Job',
    'Live',
    'Record',
    'Share',
    'SnapshotFolder',
    'Status',
    'Step',
    'Workers',
    'greedy',
    'items',
    'run',
    'sampled',
    'scripted',
    'trees_for',
]
