"""Products and their derivatives, in float32 and in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rstar_jax import models
from rstar_jax.models import attention, decoder
from rstar_jax.models.products import along_rows, features_first, product

SPECS = {
    'ri,oi->ro': ((5, 3), (4, 3)),
    'oi,ri->or': ((4, 3), (5, 3)),
    'oi,ir->or': ((4, 3), (3, 5)),
    '...tkgd,...skd->...kgts': ((2, 5, 2, 3, 4), (2, 6, 2, 4)),
    '...kgts,...skd->...tkgd': ((2, 2, 3, 5, 6), (2, 6, 2, 4)),
}


@pytest.mark.parametrize('spec', SPECS)
def test_derivatives_are_jaxs_own_in_float32(spec):
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in SPECS[spec])

    def gradients(function):
        value, back = jax.vjp(function, a, b)
        return value, *back(jnp.sin(value))

    ours = gradients(lambda a, b: product(spec, a, b))
    expected = gradients(lambda a, b: jnp.einsum(spec, a, b))
    for one, other in zip(ours, expected):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('rows', [30, 32, 96, 384])
def test_gradients_of_weights_are_sums_over_all_rows(rows):
    """Rows that are moved in parts (32 and more) as those that are not."""
    rng = np.random.default_rng(rows)
    x, weight, gradient = (
        jnp.asarray(rng.integers(-8, 9, shape), dtype)  # sums are exact
        for shape, dtype in (((rows, 5), 'bfloat16'), ((7, 5), 'bfloat16'), ((rows, 7), 'float32'))
    )

    def gradients(x, weight):
        return jax.vjp(lambda x, w: product('ri,oi->ro', x, w), x, weight)[1](gradient)

    of_x, of_weight = jax.jit(gradients)(x, weight)
    wide = [np.asarray(a, np.float32) for a in (x, weight, gradient)]
    np.testing.assert_array_equal(of_x, jnp.asarray(wide[2] @ wide[1], 'bfloat16'))
    np.testing.assert_array_equal(of_weight, jnp.asarray(wide[2].T @ wide[0], 'bfloat16'))
    loops = str(jax.make_jaxpr(gradients)(x, weight)).count('dynamic_update_slice')
    assert bool(loops) == (rows >= 32)


@pytest.mark.parametrize('int8', [False, True], ids=['', 'int8'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('rows', [1, 3, 16, 31, 32, 64, 65])
def test_few_rows_are_multiplied_with_the_features_first(rows, dtype, int8):
    """What comes out, and its derivatives, are those of the plain product."""
    rng = np.random.default_rng(rows)
    ints = lambda *shape: jnp.asarray(rng.integers(-4, 5, shape), dtype)  # noqa: E731 (exact sums)
    x, weight, bias = ints(rows, 256), ints(288, 256), ints(288)
    weight = weight.astype(jnp.int8) if int8 else weight
    dense = nnx.graphdef(decoder.Dense(256, 288, bias=True, int8=int8))
    state = {'weight': weight, 'bias': bias} | ({'scale': 0.5 * jnp.ones(288)} if int8 else {})

    def run(x, bias):
        return nnx.merge(dense, {**state, 'bias': bias})(x)

    def plain(x, bias):
        y = jnp.einsum('ri,oi->ro', x.astype('float32'), weight.astype('float32'))
        return ((0.5 if int8 else 1) * y + bias.astype('float32')).astype(dtype)

    ours, back = jax.vjp(run, x, bias)
    expected, plain_back = jax.vjp(plain, x, bias)
    np.testing.assert_array_equal(ours, expected)
    gradient = ints(rows, 288)
    for one, other in zip(back(gradient), plain_back(gradient)):
        np.testing.assert_allclose(
            one.astype('float32'), other.astype('float32'), rtol=1e-2, atol=1e-6
        )
    first = (dtype == 'float32' and 1 < rows <= 64) or rows in (16, 32, 64)
    assert features_first(x, weight) == first
    np.testing.assert_array_equal(decoder.by_feature(weight, x).T, decoder.matmul(x, weight))


@pytest.mark.parametrize('int8', [False, True], ids=['', 'int8'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('rows', [16, 31, 64, 65])
@pytest.mark.parametrize('width', [256, 255])
def test_a_gated_mlp_of_few_rows_turns_its_result_alone(monkeypatch, width, rows, dtype, int8):
    """Where each of its products can come with the features first."""
    rng = np.random.default_rng(rows)
    shape = models.Config('llama', 50, width, 288, 1, 4, 4, 64, mlp_bias=True, int8=int8)
    graph, state = nnx.split(nnx.eval_shape(lambda: decoder.MLP(shape)))

    def made(path, leaf):
        if path[1] == 'weight' and int8:
            return jnp.asarray(rng.integers(-9, 10, leaf.shape), 'int8')
        kind = 'float32' if path[1] == 'scale' else dtype
        return jnp.asarray(0.01 * rng.normal(size=leaf.shape), kind)

    state = nnx.map_state(made, state)
    x = jnp.asarray(rng.normal(size=(1, rows, width)), dtype)

    def run():
        traced = jax.make_jaxpr(lambda x: nnx.merge(graph, state)(x))(x)
        y = nnx.merge(graph, state)(x).astype('float32')
        return y, str(traced).count('dynamic_update_slice')

    ours, turns = run()
    monkeypatch.setattr(decoder, 'features_first', lambda *_: False)
    plain, none = run()
    tolerance = 1e-5 if dtype == 'float32' else 1e-2
    np.testing.assert_allclose(ours, plain, atol=tolerance * float(abs(plain).max()))
    fast = rows in (16, 64) or (dtype == 'float32' and rows == 31)
    assert (turns, none) == ({256: 1, 255: 2}[width] if fast else 0, 0)


def test_what_is_cut_is_not_multiplied_in_a_loop_over_its_rows():
    mesh = jax.make_mesh((1, 2), ('data', 'tensor'), devices=jax.devices()[:2])
    shapes = (jax.ShapeDtypeStruct(shape, 'float32') for shape in ((32, 256), (256, 256)))
    x, weight = shapes
    assert features_first(x, weight)
    narrow = jax.ShapeDtypeStruct((256, 32), 'bfloat16')
    loops = lambda: 'dynamic_update_slice' in str(jax.make_jaxpr(along_rows)(narrow, narrow))  # noqa: E731
    assert loops()
    with jax.set_mesh(mesh):
        assert not features_first(x, weight) and not loops()


def test_every_product_of_a_bfloat16_network_has_bfloat16_operands():
    shape = models.Config('llama', 50, 16, 24, 2, 4, 2, 4, tie_embeddings=True)
    params = decoder.init_params(shape, jax.random.key(0), 'bfloat16')
    tokens = jnp.arange(12).reshape(1, 12)

    def loss(params):
        hidden, _ = decoder.bind(shape, params)(tokens, tokens, attention.whole_texts())
        return jnp.sum(jnp.square(hidden.astype(jnp.float32)))

    operands = _operands(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    assert len(operands) == 3 * 2 * (7 + 2)  # three of each product, two layers
    assert set(operands) == {(jnp.bfloat16, jnp.bfloat16)}


def _operands(jaxpr) -> list[tuple]:
    """Dtypes of the operands of all products inside."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'dot_general':
            found.append(tuple(x.aval.dtype.type for x in equation.invars))
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
        ):
            if hasattr(inner, 'eqns'):
                found += _operands(inner)
            elif hasattr(inner, 'jaxpr'):
                found += _operands(inner.jaxpr)
    return found
