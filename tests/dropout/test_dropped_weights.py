"""Noise in weights: values by the oracle's masks, moments in closed form (methods.md 4.6, 4.12, 5.12, S2.13), limits."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import randomness
from cases import data
from numpy.testing import assert_allclose, assert_array_equal
from randomness import ALPHA

from jaxnorm import (
    NoisyLinearParams,
    drop_connect,
    drop_connect_dense,
    drop_connect_moments,
    dropout,
    embedding_dropout,
    init_noisy_linear,
    maxout,
    mixout,
    noisy_linear,
    noisy_linear_mean,
)

KERNEL, BIAS, X = data((5, 3)), data((3,)), data((7, 5), seed=2)
DRAWS = 20_000


def new_key(seed: int = 11) -> jax.Array:
    return jax.random.key(seed)


def split(count: int, key: jax.Array | None = None) -> list[jax.Array]:
    return list(jax.random.split(new_key() if key is None else key, count))


def words(key: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def within_four_sigma(values: np.ndarray, mean: Any) -> bool:
    sigma = values.std(0) / np.sqrt(len(values))
    return bool((np.abs(values.mean(0) - mean) <= 4 * sigma + 1e-6).all())


# Trees of weights


def test_every_array_of_a_tree_has_a_mask_of_its_own() -> None:
    """Pitfall 101."""
    ones = jnp.ones((100, 40))
    tree = {"a": ones, "b": [ones.astype(jnp.bfloat16), 3 * ones[:, 0]], "c": None}
    dropped = drop_connect(new_key(), tree, 0.3)
    assert jax.tree.structure(dropped) == jax.tree.structure(tree)
    for key, got, leaf in zip(split(3), jax.tree.leaves(dropped), jax.tree.leaves(tree), strict=True):
        assert got.dtype == leaf.dtype
        assert_array_equal(got, dropout(key, leaf, 0.3))
    first, second = (np.asarray(a) == 0 for a in (dropped["a"], dropped["b"][0]))
    assert randomness.independence(first, second, 0.3) > ALPHA
    assert randomness.independence(first, first, 0.3) < ALPHA  # a control
    assert randomness.rate(first, float(1 - oracles.realised(0.3))) > ALPHA
    assert drop_connect(new_key(), {}, 0.3) == {}


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_rows_of_a_table_are_dropped_whole(bits: int) -> None:
    """methods.md 4.12: one draw a word. Pitfalls 78, 85, 102: NaN, the scale of the gradient, a rate for each row."""
    table = data((300, 4)).at[:, 1].set(jnp.nan)
    y, pullback = jax.vjp(lambda table: embedding_dropout(new_key(), table, 0.3, bits=bits), table)
    kept = oracles.keep_mask(words(new_key()), (300, 1), 0.3, bits)
    assert_allclose(y, np.where(kept, np.asarray(table) / oracles.realised(0.3, bits), 0), rtol=1e-6)
    assert_allclose(pullback(jnp.ones((300, 4)))[0], np.broadcast_to(kept / oracles.realised(0.3, bits), (300, 4)), rtol=1e-6)
    rates = jnp.asarray([0, 0.25, 0.5, 1]).repeat(75)[:, None]
    assert_array_equal(np.asarray(embedding_dropout(new_key(), table, rates, bits=bits))[[0, -1], 0], [table[0, 0], 0])


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("dims", [(), -1], ids=str)
def test_mixout_equals_the_oracle(bits: int, dims: Any) -> None:
    """S2.13, with the derivative of the formula (pitfall 85)."""
    w, u = np.asarray(data((40, 6)), np.float64), np.asarray(data((40, 6), seed=4), np.float64)
    kept = oracles.keep_mask(words(split(1)[0]), (40, 6 if dims == () else 1), 0.3, bits) & np.ones((40, 6), bool)
    keep = oracles.realised(0.3, bits)
    run = lambda w, u: mixout(new_key(), w, u, 0.3, broadcast_dims=dims, bits=bits)  # noqa: E731
    y, pullback = jax.vjp(run, data((40, 6)), data((40, 6), seed=4))
    assert_allclose(y, (np.where(kept, w, u) - (1 - keep) * u) / keep, rtol=1e-5, atol=1e-5)
    of_w, of_u = pullback(jnp.ones((40, 6)))
    assert_allclose(of_w, kept / keep, rtol=1e-6)
    assert_allclose(of_u, 1 - kept / keep, rtol=1e-5, atol=1e-6)


def test_limits_of_mixout() -> None:
    w, u = data((40, 6)), data((40, 6), seed=4)
    assert_array_equal(mixout(new_key(), w, u, 0), w)
    assert_array_equal(mixout(new_key(), w, u, 1), u)
    assert_array_equal(jax.jit(lambda rate: mixout(new_key(), w, u, rate))(1.0), u)
    assert_allclose(mixout(new_key(), w, 0 * u, 0.3), drop_connect(new_key(), w, 0.3), rtol=1e-6)
    dropped = np.asarray(drop_connect(new_key(), jnp.ones((40, 6)), 0.3)) == 0
    y, pullback = jax.vjp(lambda w: mixout(new_key(), w, u, 0.3), jnp.full_like(w, jnp.nan))
    assert_array_equal(np.isfinite(y), dropped)
    assert_array_equal(y[dropped], u[dropped])
    assert_array_equal(pullback(jnp.ones_like(w))[0] == 0, dropped)
    assert jnp.isnan(jax.jit(lambda rate: mixout(new_key(), w, u, rate))(1.5)).all()


def test_mixout_pulls_a_quadratic_loss_to_the_target() -> None:
    """S2.13: on average it grows by rate / (1 - rate) sum(H_ii (w_i - u_i)^2) / 2, and the weights do not move."""
    w, u, a = (np.asarray(data((4,), seed=i), np.float64) * scale for i, scale in ((1, 0.1), (2, 1), (3, 0.5)))
    hessian = np.outer(a, a) + np.diag([1, 2, 3, 4])
    keys = jax.random.split(new_key(), DRAWS)
    mixed = np.asarray(jax.vmap(lambda key: mixout(key, jnp.float32(w), jnp.float32(u), 0.3))(keys), np.float64)
    assert within_four_sigma(mixed, w)
    losses = np.einsum("ni,ij,nj->n", mixed, hessian, mixed)[:, None] / 2
    more = 0.3 / 0.7 * np.diag(hessian) @ (w - u) ** 2 / 2
    assert within_four_sigma(losses, w @ hessian @ w / 2 + more)
    assert not within_four_sigma(losses, w @ hessian @ w / 2 + 1.2 * more)  # a control


# DropConnect


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("with_bias", [True, False])
def test_drop_connect_of_each_example_equals_the_oracle(bits: int, with_bias: bool) -> None:
    """A key for the kernel, and of it one for each unit, and one for the bias."""
    of_kernel, of_bias = split(2) if with_bias else (new_key(), new_key())
    kept = np.stack([oracles.keep_mask(words(key), X.shape, 0.3, bits) for key in split(3, of_kernel)], -1)
    kernel, bias, x = (np.asarray(a, np.float64) for a in (KERNEL, BIAS, X))
    expected = np.einsum("bi,bio,io->bo", x, kept, kernel)
    if with_bias:
        expected += oracles.keep_mask(words(of_bias), (7, 3), 0.3, bits) * bias
    y = drop_connect_dense(new_key(), KERNEL, BIAS if with_bias else None, X, 0.3, bits=bits)
    assert_allclose(y, expected / oracles.realised(0.3, bits), rtol=1e-5, atol=1e-5)


def test_moments_of_drop_connect_are_those_of_all_masks() -> None:
    """methods.md 4.6: by enumeration, and by draws."""
    kernel, bias, x = np.array([[0.5], [-2.0], [3.0]]), np.array([0.7]), np.array([1.5, 0.25, -1.0])
    parts = np.append(kernel[:, 0] * x, bias)
    masks = np.array(list(itertools.product([0, 1], repeat=4)))
    chances = np.prod(np.where(masks, 0.6, 0.4), 1)
    sums = masks @ parts / 0.6
    mean = chances @ sums
    mean_and_var = (mean, chances @ (sums - mean) ** 2)
    found = drop_connect_moments(jnp.float32(kernel), jnp.float32(bias), jnp.float32(x), 0.4)
    assert_allclose(np.ravel(found), mean_and_var, rtol=1e-5)
    many = jnp.broadcast_to(jnp.float32(x), (DRAWS, 3))
    y = np.asarray(drop_connect_dense(new_key(), jnp.float32(kernel), jnp.float32(bias), many, 0.4), np.float64)
    assert within_four_sigma(y, mean)
    assert within_four_sigma((y - y.mean()) ** 2, mean_and_var[1])
    assert not within_four_sigma((y - y.mean()) ** 2, 1.1 * mean_and_var[1])  # a control
    assert_array_equal(drop_connect_moments(KERNEL, BIAS, X, 0.0)[1], np.zeros((7, 3)))
    assert jnp.isnan(jax.jit(lambda rate: drop_connect_moments(KERNEL, BIAS, X, rate)[1])(1.0)).all()


def test_masks_of_examples_and_of_units_are_independent() -> None:
    """With an x and a kernel of powers of two, the output tells which weights were kept."""
    y = drop_connect_dense(
        new_key(), jnp.float32(2) ** jnp.arange(8.0)[:, None] * jnp.ones((8, 6)), None, jnp.ones((4000, 8)), 0.3
    )
    codes = np.round(np.asarray(y, np.float64) * oracles.realised(0.3)).astype(int)
    dropped = (codes[..., None] >> np.arange(8) & 1) == 0
    assert randomness.rate(dropped, float(1 - oracles.realised(0.3))) > ALPHA
    for a, b in ((dropped[1:], dropped[:-1]), (dropped[:, 1:], dropped[:, :-1]), (dropped[..., 1:], dropped[..., :-1])):
        assert randomness.independence(a, b, 0.3) > ALPHA
    assert randomness.independence(dropped[:1].repeat(4000, 0), dropped[:1].repeat(4000, 0), 0.3) < ALPHA  # a control


def test_limits_of_drop_connect() -> None:
    """Pitfall 78: none is dropped, or all; what is dropped is selected away."""
    dense = X @ KERNEL + BIAS[None]
    assert_allclose(drop_connect_dense(new_key(), KERNEL, BIAS, X, 0.0), dense, rtol=1e-5, atol=1e-5)
    spoiled = jnp.full_like(KERNEL, jnp.inf)
    y, pullback = jax.vjp(lambda kernel, x: drop_connect_dense(new_key(), kernel, BIAS, x, 1.0), spoiled, X)
    for got in (y, *pullback(jnp.ones_like(y))):
        assert_array_equal(got, jnp.zeros_like(got))
    assert jnp.isnan(jax.jit(lambda rate: drop_connect_dense(new_key(), KERNEL, BIAS, X, rate))(-0.1)).all()


def test_neither_masks_nor_kernels_of_examples_are_stored() -> None:
    """At no time more than a few arrays of x's size, where all would be F of them."""

    def step(key: jax.Array, kernel: jax.Array, x: jax.Array, dy: jax.Array) -> Any:
        y, pullback = jax.vjp(lambda kernel, x: drop_connect_dense(key, kernel, None, x, 0.3), kernel, x)
        return y, pullback(dy)

    kernel, x, dy = jnp.ones((64, 256)), jnp.ones((128, 64)), jnp.ones((128, 256))
    memory = jax.jit(step).lower(new_key(), kernel, x, dy).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * (x.nbytes + kernel.nbytes + dy.nbytes)
    assert memory.temp_size_in_bytes < 0.1 * 256 * x.nbytes


# Noisy linear


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("factorised", [True, False])
def test_noisy_linear_equals_the_oracle(factorised: bool, bits: int) -> None:
    params = NoisyLinearParams(KERNEL, BIAS, 0.2 * abs(KERNEL), 0.3 * abs(BIAS))
    kernel, bias, kernel_std, bias_std, x = (np.asarray(a, np.float64) for a in (*params, X))
    first, second = (
        (oracles.gaussian_noise(words(key), shape, 0.5, bits) - 1)
        for key, shape in zip(split(2), ((5,) if factorised else (5, 3), (3,)), strict=True)
    )
    if factorised:
        first, second = (np.sign(a) * np.sqrt(np.abs(a)) for a in (first, second))
        first = np.outer(first, second)
    expected = x @ (kernel + kernel_std * first) + bias + bias_std * second
    assert_allclose(noisy_linear(new_key(), params, X, factorised=factorised, bits=bits), expected, rtol=1e-4, atol=1e-4)


def noise_of_one_weight(factorised: bool) -> np.ndarray:
    """The noise of a weight and of its bias, for many keys."""
    one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
    params = NoisyLinearParams(zero, zero[0], one, one[0])
    run = jax.vmap(lambda key: noisy_linear(key, params, jnp.array([[1.0], [0.0]]), factorised=factorised)[:, 0])
    both, of_bias = np.asarray(run(jax.random.split(new_key(), DRAWS)), np.float64).T
    return np.stack([both - of_bias, of_bias], 1)


@pytest.mark.parametrize("factorised", [True, False])
def test_noise_of_noisy_linear_has_its_variances(factorised: bool) -> None:
    """methods.md 5.12: 2 / pi for a weight and its root for a bias, or 1; of mean 0, and not correlated."""
    noise = noise_of_one_weight(factorised)
    variances = np.array([2 / np.pi, np.sqrt(2 / np.pi)]) if factorised else np.ones(2)
    assert within_four_sigma(noise, 0)
    assert within_four_sigma(noise**2, variances)
    assert not within_four_sigma(noise**2, 1.1 * variances)  # a control
    assert within_four_sigma(noise[:, :1] * noise[:, 1:], 0)


def test_one_draw_serves_the_batch_and_no_noise_is_a_linear_layer() -> None:
    params = init_noisy_linear(new_key(), 5, 3)
    y = noisy_linear(new_key(), params, jnp.broadcast_to(X[:1], (4, 5)))
    assert_array_equal(y, jnp.broadcast_to(y[:1], y.shape))
    quiet = params._replace(kernel_std=0 * params.kernel_std, bias_std=0 * params.bias_std)
    for factorised in (True, False):
        assert_allclose(noisy_linear(new_key(), quiet, X, factorised=factorised), noisy_linear_mean(params, X), rtol=1e-6)
    assert_allclose(noisy_linear_mean(params, X), X @ params.kernel + params.bias[None], rtol=1e-6)
    without = init_noisy_linear(new_key(), 5, 3, use_bias=False)
    assert noisy_linear(new_key(), without, X).shape == (7, 3)


@pytest.mark.parametrize("factorised", [True, False])
def test_parameters_of_noisy_linear_start_as_in_the_paper(factorised: bool) -> None:
    params = init_noisy_linear(new_key(), 400, 100, factorised=factorised)
    bound, std = (0.05, 0.025) if factorised else (np.sqrt(3 / 400), 0.017)
    for mean in (params.kernel, params.bias):
        assert 0.9 * bound < np.abs(mean).max() <= bound
    kernel = np.asarray(params.kernel, np.float64).reshape(-1, 1)
    assert within_four_sigma(kernel, 0)
    assert within_four_sigma(kernel**2, bound**2 / 3)
    assert_allclose(params.kernel_std, np.full((400, 100), std), rtol=1e-6)
    assert_allclose(params.bias_std, np.full(100, std), rtol=1e-6)
    assert init_noisy_linear(new_key(), 4, 3, param_dtype=jnp.bfloat16).bias.dtype == jnp.bfloat16


# Maxout


def test_maxout() -> None:
    """methods.md 4.14: one piece is linear, and two with a zero are a ReLU."""
    x = data((4, 2, 6))
    assert_array_equal(maxout(x, 3), np.asarray(x).reshape(4, 2, 2, 3).max(-1))
    assert_array_equal(maxout(x, 2, channel_axis=0), np.asarray(x).reshape(2, 2, 2, 6).max(1))
    assert_array_equal(maxout(x, 1), x)
    assert_array_equal(maxout(jnp.stack([x, 0 * x], -1).reshape(4, 2, 12), 2), jax.nn.relu(x))
    gradient = jax.grad(lambda x: jnp.sum(maxout(x, 3)))(x)
    assert_array_equal(gradient, np.asarray(x) == np.repeat(maxout(x, 3), 3, -1))


PARAMS = NoisyLinearParams(KERNEL, BIAS, KERNEL, BIAS)
ERRORS = {
    "rate": (lambda: drop_connect(new_key(), KERNEL, 1.5), ValueError, r"rate must be in \[0, 1\], got 1.5"),
    "rate None": (lambda: mixout(new_key(), KERNEL, KERNEL, None), TypeError, "rate must be a number"),
    "rate of another shape": (lambda: embedding_dropout(new_key(), KERNEL, jnp.ones((5, 3))), ValueError, r"got shape \[5, 3\]"),
    "a leaf of ints": (
        lambda: drop_connect(new_key(), {"a": jnp.ones(3, int)}, 0.5),
        TypeError,
        r"kernel\['a'\] must be .*int32",
    ),
    "a leaf that is no array": (lambda: drop_connect(new_key(), [1.0], 0.5), TypeError, r"kernel\[0\] must be"),
    "no rows": (lambda: embedding_dropout(new_key(), jnp.ones(()), 0.5), ValueError, "table must have an axis"),
    "another tree": (lambda: mixout(new_key(), {"a": X}, {"b": X}, 0.5), ValueError, "target must be a tree like params"),
    "another shape": (
        lambda: mixout(new_key(), {"a": X}, {"a": X[0]}, 0.5),
        ValueError,
        r"target\['a'\] must have shape \[7, 5\]",
    ),
    "dims": (lambda: mixout(new_key(), X, X, 0.5, broadcast_dims=2), ValueError, "broadcast_dims is out of range"),
    "kernel": (lambda: drop_connect_dense(new_key(), KERNEL.T, BIAS, X, 0.5), ValueError, r"kernel must have shape \[5, 5\]"),
    "bias": (lambda: drop_connect_dense(new_key(), KERNEL, X[0], X, 0.5), ValueError, r"bias must have shape \[3\]"),
    "rates": (lambda: drop_connect_dense(new_key(), KERNEL, BIAS, X, jnp.ones(3)), ValueError, "rate must have shape"),
    "no features": (lambda: drop_connect_moments(KERNEL, BIAS, jnp.ones(()), 0.5), ValueError, "x must have an axis"),
    "moments at 1": (lambda: drop_connect_moments(KERNEL, BIAS, X, 1), ValueError, r"rate must be in \[0, 1\), got 1"),
    "no params": (
        lambda: noisy_linear(new_key(), (KERNEL, BIAS, KERNEL, BIAS), X),
        TypeError,
        "params must be NoisyLinearParams",
    ),
    "half a bias": (lambda: noisy_linear_mean(PARAMS._replace(bias=None), X), ValueError, "params.bias and params.bias_std"),
    "std": (lambda: noisy_linear_mean(PARAMS._replace(kernel_std=X), X), ValueError, "params.kernel_std must have shape"),
    "8 bits": (lambda: noisy_linear(new_key(), PARAMS, X, bits=8), ValueError, "bits must be 16 or 32, got 8"),
    "features": (lambda: init_noisy_linear(new_key(), 0, 3), ValueError, "in_features must be at least 1, got 0"),
    "pieces": (lambda: maxout(X, 2), ValueError, "pieces must divide the number of channels, 5, got 2"),
    "several axes": (lambda: maxout(X, 1, channel_axis=(0, 1)), ValueError, "channel_axis must be one axis"),
    "key": (lambda: drop_connect(None, X, 0.5), TypeError, "key must be one key"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_named(name: str) -> None:
    """Pitfalls 80, 83, 88, 103."""
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()
