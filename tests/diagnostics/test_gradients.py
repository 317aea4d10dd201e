"""Norms of gradients by layer, and the noise of gradients of batches: closed forms, and all batches one by one."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxnorm
from jaxnorm.diagnostics import gradient_noise, gradient_norms, layer_names


class Dense(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


class Net(NamedTuple):
    first: Dense
    others: Dense
    last: jax.Array


def array(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


NET = Net(Dense(array(3, 4), array(4)), Dense(array(5, 4, 4), array(5, 4)), array(4, 2))


def linear(params: Any, slopes: Any) -> jax.Array:
    """A loss whose gradient is the slopes."""
    parts = jax.tree.leaves(jax.tree.map(lambda w, a: jnp.sum(w * a, dtype=jnp.float32), params, slopes))
    return sum(parts, jnp.zeros(()))


def norm(*arrays: Any) -> float:
    return np.sqrt(sum((np.asarray(a, np.float64) ** 2).sum() for a in arrays)).item()


def test_norms_are_those_of_each_layer_and_of_each_stacked_one() -> None:
    found = jax.jit(lambda slopes: gradient_norms(linear, NET, slopes, stacked="others"))(NET)
    others = [norm(NET.others.kernel[i], NET.others.bias[i]) for i in range(5)]
    wanted = [norm(*NET.first), *others, norm(NET.last)]
    assert_allclose(found.norms, wanted, rtol=1e-6)
    assert_allclose(found.ratio, wanted[0] / wanted[-1], rtol=1e-6)
    assert layer_names(NET, stacked="others") == ("first", *(f"others/{i}" for i in range(5)), "last")


def test_layers_are_as_they_are_named() -> None:
    layers = (("last", "first/bias"), "*s/kernel")
    found = jax.jit(lambda slopes: gradient_norms(linear, NET, slopes, layers=layers))(NET)
    assert_allclose(found.norms, [norm(NET.last, NET.first.bias), norm(NET.others.kernel)], rtol=1e-6)
    assert layer_names(NET, layers=layers) == ("last", "*s/kernel")


def test_a_gradient_keeps_its_norm_however_small_or_large() -> None:
    """Also beside another layer's, whose squares would be all that is seen; 0 is 0, and what is not finite shows."""
    params = [array(4), array(4)]
    run = jax.jit(lambda slopes: gradient_norms(linear, params, slopes).norms)
    for factor in (1e-36, 1e-22, 1e-3, 1e25):
        slopes = [params[0] * factor, params[1]]
        assert_allclose(run(slopes), [norm(slopes[0]), norm(slopes[1])], rtol=1e-5)
    assert_allclose(run([jnp.zeros(4), jnp.asarray([jnp.inf, 1, 1, 1])]), [0, jnp.inf])
    assert_allclose(run([jnp.asarray([jnp.nan, 1, 1, 1]), jnp.zeros(4)]), [jnp.nan, 0])


def test_half_precision_is_summed_in_float32() -> None:
    run = jax.jit(lambda slopes: gradient_norms(linear, [jnp.zeros(5000, jnp.bfloat16)], slopes))
    found = run([jnp.ones(5000, jnp.bfloat16)])
    assert found.norms.dtype == jnp.float32
    assert_allclose(found.norms, np.sqrt(5000), rtol=1e-6)


def test_names_in_an_order() -> None:
    """Children of a list, of a dict by their numbers, and of an only child; a dict of other names has no order."""
    numbered = {f"Dense_{i}": {"kernel": array(2, 2)} for i in range(11)}
    assert layer_names(numbered) == tuple(f"Dense_{i}" for i in range(11))
    assert layer_names({"layers": {2: array(2), 0: array(2), 10: array(2)}}) == ("layers/0", "layers/2", "layers/10")
    assert layer_names([array(2), array(2)]) == ("0", "1")
    assert layer_names(array(2)) == ("",)
    with pytest.raises(ValueError, match=r"layers must say which is the first.* without an order: hidden, last"):
        layer_names({"hidden": array(2), "last": array(2)})


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def batches(length: int, size: int) -> np.ndarray:
    return np.array(list(itertools.combinations(range(length), size)))


def square(params: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.mean((x @ params - 1) ** 2)


def batchwise(params: jax.Array, x: jax.Array) -> jax.Array:
    """A loss in which examples of a batch meet, as under batch norm."""
    return jnp.sum(jnp.mean(x @ params, 0) ** 2)


def normed(params: jax.Array, x: jax.Array) -> jax.Array:
    norm, state = jaxnorm.init_batch_norm(3)
    y, _ = jaxnorm.batch_norm(norm, state, x @ params, train=True)
    return jnp.mean(jax.nn.relu(y)[:, 0] * x[:, 0])


@pytest.mark.parametrize(("loss", "biased"), [(batchwise, True), slow(normed, True), slow(square, False)])
def test_noise_is_that_of_all_batches(loss: Any, biased: bool) -> None:
    """Within four standard errors; where examples meet it is biased, by more than these."""
    values = array(22, seed=7)
    params, data = values[:6].reshape(2, 3), values[6:].reshape(8, 2)
    gradient = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))
    of_all = gradient(params, data[None])[0]
    sizes, draws = (3,), 600
    found = jax.jit(lambda data: gradient_noise(jax.random.key(0), loss, params, data, sizes, draws))(data)
    assert_allclose(found.square_norm, jnp.sum(of_all**2), rtol=1e-5)
    for size, variance, bias in zip(sizes, found.variance, found.square_bias, strict=True):
        rows = batches(8, size)
        g = np.asarray(gradient(params, data[rows]), np.float64).reshape(len(rows), -1)
        square_distance = ((g - g.mean(0)) ** 2).sum(1)
        assert abs(variance - square_distance.mean()) < 4 * square_distance.std() / draws**0.5
        off = g.mean(0) - np.asarray(of_all).reshape(-1)
        error = 2 * np.sqrt((off @ np.cov(g.T) @ off) / draws) + square_distance.mean() / draws
        assert abs(bias - off @ off) < 4 * error
        assert (bias > 4 * error) == biased


def test_noise_falls_as_that_of_examples_drawn_without_replacement() -> None:
    x = array(40, 3)
    sigma = np.asarray(x).var(0).sum()
    mean = lambda w, x: jnp.sum(jnp.mean((w[None] - x) ** 2, 0)) / 2  # noqa: E731
    sizes = (10, 40)
    found = jax.jit(lambda x: gradient_noise(jax.random.key(0), mean, jnp.zeros(3), x, sizes, 1000))(x)
    wanted = [sigma * (40 - m) / 39 / m for m in sizes]
    assert_allclose(found.variance, wanted, rtol=0.15, atol=1e-10)
    assert_allclose(found.square_bias, 0, atol=0.01)


@pytest.mark.slow
def test_batches_of_a_size_are_the_same_whatever_the_others_are() -> None:
    params, data = array(2, 3), array(8, 2)

    @jax.jit
    def run(data: jax.Array) -> Any:
        return [gradient_noise(jax.random.key(3), square, params, data, sizes, 5).variance for sizes in ((2, 4), [4])]

    both, one = run(data)
    assert_allclose(both[1], one[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: gradient_norms(linear, NET, NET, layers=["first/kernal"]), ValueError, "did you mean 'first/kernel'"),
        (lambda: gradient_norms(linear, NET, NET, stacked="xyz"), ValueError, "stacked must .* no 'xyz': they have first, "),
        (lambda: gradient_norms(linear, NET, NET, layers=["first", "*/bias"]), ValueError, "first/bias is in first and in"),
        (lambda: gradient_norms(linear, NET, NET, stacked="others/bias"), ValueError, "arrays of others must all be stacked"),
        (lambda: gradient_norms(linear, NET, NET, layers="first"), TypeError, "layers must be a sequence .* the text 'first'"),
        (lambda: gradient_norms(linear, NET, NET, layers=[]), ValueError, "layers must have at least one entry"),
        (lambda: gradient_norms(linear, NET, NET, layers=[3]), TypeError, "layers must be Sequence"),
        (lambda: gradient_norms(linear, {}, {}), ValueError, "params must hold arrays, got none"),
        (lambda: gradient_norms(lambda w, x: w.first.bias, NET, 0), ValueError, r"loss must return a scalar, got shape \[4\]"),
        (lambda: gradient_norms(3, NET, 0), TypeError, "loss must be a function of params and a batch, got 3"),  # type: ignore
        (lambda: noise((9,), 2), ValueError, "batch_sizes must be at most 8, the length of data, got 9"),
        (lambda: noise((0,), 2), ValueError, "batch_sizes must be at least 1"),
        (lambda: noise((), 2), ValueError, "batch_sizes must have at least one entry"),
        (lambda: noise((2,), 1), ValueError, "draws must be at least 2, got 1"),
        (lambda: noise((2,), 2, key=3), TypeError, "key must be one key"),
        (lambda: noise((2,), 2, data=(array(3), array(4))), ValueError, "data must be arrays of one length"),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def noise(sizes: Any, draws: int, *, key: Any = None, data: Any = None) -> Any:
    key, data = jax.random.key(0) if key is None else key, array(8, 2) if data is None else data
    return gradient_noise(key, square, array(2, 3), data, sizes, draws)
