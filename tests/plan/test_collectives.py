"""What programs exchange between devices, read from their text."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rstar_jax.plan import collectives


def test_collectives_of_a_known_program():
    mesh = Mesh(jax.devices()[:4], 'x')

    def program(x, passes):
        x = jnp.sin(jax.lax.all_gather(x, 'x', tiled=True))  # f32[32,16]
        x = jnp.sin(jax.lax.psum_scatter(x, 'x', tiled=True))  # f32[8,16]
        x = jnp.sin(jax.lax.ppermute(x, 'x', [(0, 1), (1, 0)]))
        x = jnp.sin(jax.lax.all_to_all(x, 'x', 0, 1, tiled=True))  # f32[2,64]
        x = jax.lax.fori_loop(0, 7, lambda _, y: jnp.sin(jax.lax.psum(y, 'x')), x)
        return jax.lax.fori_loop(0, passes, lambda _, y: jnp.sin(jax.lax.psum(y, 'x')), x)

    mapped = jax.shard_map(
        program, mesh=mesh, in_specs=(P('x'), P()), out_specs=P('x'), check_vma=False
    )
    text = jax.jit(mapped).lower(np.zeros((32, 16), np.float32), 5).compile().as_text()
    found = collectives.exchanged(text, trips=3)
    part = 8 * 16 * 4
    assert {kind: (x.calls, x.bytes) for kind, x in found.items()} == {
        'all-gather': (1, 3 * part),
        'reduce-scatter': (1, 3 * part),
        'all-reduce': (10, 10 * 2 * part * 3 / 4),
        'all-to-all': (1, part * 3 / 4),
        'collective-permute': (1, part),
    }


# As the compiler for TPUs writes them: a chain of two for one all-gather, a loop of 4 passes.
TPU = """\
HloModule jit_f, is_scheduled=true, num_partitions=8

%all-reduce-scatter.1 (input: f32[64,128]) -> f32[8,128] {
  %input = f32[64,128]{1,0:T(8,128)} parameter(0)
  %all-reduce = f32[64,128]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %slice = f32[8,128]{1,0:T(8,128)} dynamic-slice(%all-reduce, %i, %z)
}

%fused.1 (x: bf16[8,128]) -> bf16[16,128] {
  ROOT %ag.1 = bf16[16,128]{1,0} all-gather(%x), channel_id=3, replica_groups=mesh['a'=4,'b'=2] \
{'b'}, dimensions={0}, frontend_attributes={chain_id="1"}
}

%fused.2 (x: bf16[8,128]) -> bf16[16,128] {
  ROOT %ag.2 = bf16[16,128]{1,0} all-gather(%x), channel_id=3, replica_groups=mesh['a'=4,'b'=2] \
{'b'}, dimensions={0}, frontend_attributes={chain_id="1"}
}

%condition (p: (f32[8], /*index=1*/u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(8)
  %p = (f32[8]{0}, /*index=1*/u32[]) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (p: (f32[8], /*index=1*/u32[])) -> (f32[8], /*index=1*/u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %p = (f32[8]{0}, /*index=1*/u32[]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=0
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  %cp = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%x), channel_id=4
  %y = f32[8]{0} collective-permute-done(%cp)
  %next = u32[]{:T(128)} add(%i, %two)
  ROOT %tuple = (f32[8]{0}, /*index=1*/u32[]) tuple(%y, /*index=1*/%next)
}

ENTRY %main (x: bf16[8,128]) -> f32[8,128] {
  %ag = (bf16[8,128]{1,0}, bf16[64,128]{1,0:S(1)}) all-gather-start(%x), replica_groups=[2,4]<=[8]
  %done = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%ag)
  %first = bf16[16,128]{1,0} fusion(%x), kind=kCustom, calls=%fused.1
  %second = bf16[16,128]{1,0} fusion(%x), kind=kCustom, calls=%fused.2
  %loop = (f32[8]{0}, /*index=1*/u32[]) while(%tuple), condition=%condition, body=%body
  ROOT %rs = f32[8,128]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_collectives_as_the_compiler_for_tpus_writes_them():
    found = collectives.exchanged(TPU, trips=100)
    assert {kind: (x.calls, x.bytes) for kind, x in found.items()} == {
        'all-gather': (2, 64 * 128 * 2 * 3 / 4 + 16 * 128 * 2 / 2),
        'reduce-scatter': (1, 64 * 128 * 4 * 7 / 8),
        'collective-permute': (4, 4 * 8 * 4),
    }
