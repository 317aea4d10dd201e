"""Models of Flax's layers, as they are and adopted: equal variables, outputs in evaluation and masks, and losses close."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from existing_models import LINEN, NNX
from flax import nnx

import jaxnorm.linen
import jaxnorm.nnx

pytestmark = pytest.mark.jax_defaults  # Flax's own layers need them
STEPS, RATE = 10, 0.05


def example(like):
    if jnp.issubdtype(like.dtype, jnp.integer):
        return jax.random.randint(jax.random.key(1), like.shape, 0, 5)
    return jax.random.normal(jax.random.key(1), like.shape, like.dtype)


def loss_of(outputs):
    return jnp.mean(jnp.square(outputs - jnp.linspace(-1.0, 1.0, outputs.size).reshape(outputs.shape)))


def linen_run(model, x):
    """Returns the variables, outputs in evaluation and of a first training step, and the losses and variables of more."""
    keys = {"params": jax.random.key(2), "latent": jax.random.key(3), "dropout": jax.random.key(4)}
    variables = jax.jit(lambda: model.init(keys, x, train=True))()

    @jax.jit
    def step(variables, number):
        def loss(params):
            streams = {name: jax.random.fold_in(keys[name], number) for name in ("latent", "dropout")}
            given = {**variables, "params": params}
            y, updates = model.apply(given, x, train=True, rngs=streams, mutable=["batch_stats"])
            return loss_of(y), (y, updates)

        evaluated = model.apply(variables, x, train=False)
        (value, (y, updates)), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - RATE * g, variables["params"], gradients)
        return {"params": params, **updates}, value, evaluated, y

    return run(step, variables)


def nnx_run(model, x):
    """Returns the same of an nnx model."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def step(variables, _):
        params, rest = variables

        def loss(params):
            copy = nnx.merge(graphdef, params, rest, copy=True)
            copy.train()
            y = copy(x)
            return loss_of(y), (y, nnx.split(copy, nnx.Param, ...)[2])

        copy = nnx.merge(graphdef, params, rest, copy=True)
        copy.eval()
        (value, (y, rest)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, gradients)
        return (params, rest), value, copy(x), y

    return run(step, (params, rest))


def run(step, variables):
    first = variables
    variables, loss, evaluated, y = step(variables, 0)
    losses = [loss]
    for number in range(1, STEPS):
        variables, loss, *_ = step(variables, number)
        losses.append(loss)
    return first, evaluated, y, np.array(losses), variables


def numbers(tree):
    def array(leaf):
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    return {jax.tree_util.keystr(path): array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def check(as_it_is, adopted, *, bits):
    for before, after in zip(as_it_is, adopted, strict=True):
        assert jax.tree.structure(before) == jax.tree.structure(after)
        assert {k: v.dtype for k, v in numbers(before).items()} == {k: v.dtype for k, v in numbers(after).items()}
    first, evaluated, y, losses, variables = zip(as_it_is, adopted, strict=True)
    for name, value in numbers(first[0]).items():
        np.testing.assert_array_equal(numbers(first[1])[name], value, err_msg=name)
    np.testing.assert_allclose(evaluated[1], evaluated[0], rtol=1e-5, atol=1e-5)
    if bits == 32:
        np.testing.assert_allclose(y[1], y[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
        for name, value in numbers(variables[0]).items():
            np.testing.assert_allclose(numbers(variables[1])[name], value, rtol=1e-2, atol=1e-3, err_msg=name)
    np.testing.assert_allclose(losses[1].mean(), losses[0].mean(), rtol=0.5)  # whatever the masks
    assert all(run[-1] < run[0] for run in losses)


def cases(models, first):
    """The models at 32 bits, of which the first tier has one, and at 16."""
    slow = pytest.mark.slow
    at_32 = [pytest.param(name, 32, marks=[] if name == first else slow) for name in models]
    return [*at_32, *(pytest.param(name, 16, marks=slow) for name in models)]


@pytest.mark.parametrize(("name", "bits"), cases(LINEN, "vae"))
def test_linen_models(name, bits):
    model, like, count = LINEN[name]
    runs = []
    for context in (nullcontext(), jaxnorm.linen.replacing_layers(bits=bits)):
        with context as report:
            runs.append(linen_run(model, example(like)))
    assert (len(report.replaced), len(report.left)) == (count, 0)
    check(*runs, bits=bits)


@pytest.mark.parametrize(("name", "bits"), cases(NNX, "resnet"))
def test_nnx_models(name, bits):
    build, like, count = NNX[name]
    model = build(nnx.Rngs(5))
    adopted, report = jaxnorm.nnx.replace_layers(model, bits=bits)
    assert (len(report.replaced), len(report.left)) == (count, 0)
    check(nnx_run(model, example(like)), nnx_run(adopted, example(like)), bits=bits)
