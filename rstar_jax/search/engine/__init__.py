"""Local models as an expander: nodes to expand come in, candidate steps and their scores go out.

    local      Engine, the expander: one turn is dispatch (all below), then collect
    model      policy or PPM on the devices: its paths, and the calls that the ledger asks for
    ledger     which tokens of which tree lie where, and what is to be copied and computed; lists
               and numbers, no array of a device
    board      the cells as the host knows them: to be opened, decoded, or over
    batch      the padded arguments of one call that computes known tokens
    state      the arrays of one device (paths, cells, slots), and copies among them
    decode     a chunk of decoding; layers, attention to prefix, path and own step; drafts, guesses
               that are computed ahead; sampling, the next token by keys
    prefill    known tokens behind paths: become part of them, or are scored
    programs   every function that is compiled, once; devices maps them over the local mesh
    sizes      which sizes are compiled, and what a kind of device is fast with
    compiled   which of them the next chunk takes, and which are compiled beside the search
    memory     how many trees and slots a device has room for

Others of the package count and compile with `memory`, `programs`, `sizes` and `state` (plans,
benches), place trees with `devices`, and make keys with `sampling`.
"""

from rstar_jax.search.engine.local import Engine

__all__ = ['Engine']
