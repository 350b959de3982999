"""A decode loop talks to nobody but the devices that share its weights."""

import re

import jax
import numpy as np
import pytest

from rstar_jax import models, parallel, search
from rstar_jax.plan import collectives, compiled_search

SHAPE = models.Config(
    family='qwen2',
    vocab_size=320,
    embed_dim=64,
    mlp_dim=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=16,
    max_length=512,
)
COLLECTIVE = re.compile(rf' ({"|".join(collectives.KINDS)}|all-to-all|\w+-broadcast)(-start)?\(')
IOTA = re.compile(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?')
LISTED = re.compile(r'replica_groups=\{(\{[\d,{} ]+\})\}')


def groups_of(line: str) -> set[tuple[int, ...]]:
    """The groups of devices of a collective, from either way in which HLO writes them."""
    if found := IOTA.search(line):
        shape, dimensions, order = (
            [int(n) for n in part.split(',')] if part else None for part in found.groups()
        )
        devices = np.arange(np.prod(dimensions)).reshape(dimensions)
        if order:
            devices = devices.transpose(order)
        return {tuple(sorted(group)) for group in devices.reshape(shape).tolist()}
    listed = LISTED.search(line)
    assert listed, line
    groups = re.findall(r'\{([\d,]+)\}', listed[1])
    return {tuple(sorted(map(int, group.split(',')))) for group in groups}


@pytest.mark.parametrize('tensor', [1, 2, 4])
def test_no_collective_of_the_decode_loop_leaves_its_group(tensor):
    settings = search.Config(
        rollouts=2,
        candidates=4,
        max_depth=3,
        step_tokens=16,
        path_tokens=128,
        slots=8,
        trees_in_flight=2,
        tensor=tensor,
    )
    mesh = parallel.local_mesh(tensor, jax.devices())
    group = compiled_search.Group(settings, mesh, SHAPE)
    assert group.choose(2**33)
    text = group.lower_decode().compile().as_text()
    assert ' while(' in text
    found = [line for line in text.splitlines() if COLLECTIVE.search(line)]
    assert bool(found) == (tensor > 1)
    ids = np.vectorize(lambda device: device.id)(mesh.devices)
    ours = {tuple(sorted(group)) for group in ids.tolist()}
    for line in found:
        assert groups_of(line) == ours, line


def test_groups_are_read_as_they_are_written():
    assert groups_of('replica_groups=[2,2]<=[4], x') == {(0, 1), (2, 3)}
    assert groups_of('replica_groups=[2,2]<=[2,2]T(1,0), x') == {(0, 2), (1, 3)}
    assert groups_of('replica_groups={{0,3},{1,2}}, x') == {(0, 3), (1, 2)}
