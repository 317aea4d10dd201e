"""What dropout adds to stored variances, taken back: against its own closed forms and against draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm import RunningMean, RunningStats
from jaxnorm.statistics import correct_variance_shift

STATS = RunningStats(jnp.array([1.0, 0.0]), jnp.array([5.0, 2.0]))


def test_right_before_the_norm() -> None:
    """`(v + c^2) / q - c^2` of v = 2, c = 1 and q = 0.5 is 5."""
    found = correct_variance_shift({"a": STATS, "b": {"mean": STATS.mean, "var": STATS.var}}, 0.5)
    np.testing.assert_allclose(found["a"].var, [2.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found["b"]["var"], [2.0, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(found["a"].mean, STATS.mean)
    np.testing.assert_array_equal(correct_variance_shift(STATS, 0.0).var, STATS.var)
    np.testing.assert_array_equal(correct_variance_shift(STATS._replace(mean=jnp.full(2, 9.0)), 0.5).var, 0.0)
    np.testing.assert_allclose(jax.jit(correct_variance_shift)(STATS, jnp.array([0.5, 0.0])).var, [2.0, 2.0], rtol=1e-6)


def test_before_a_linear_layer_in_closed_form() -> None:
    """`sum_i w_i^2 E[x_i^2]` over taps and the inputs of the channel's group, times 0.2 / 0.8."""
    kernel = np.arange(1.0, 9.0).reshape(2, 1, 4)  # two taps, of two groups of one input
    stats = RunningStats(jnp.zeros(4), jnp.full(4, 100.0))
    found = correct_variance_shift(stats, 0.2, kernel=jnp.asarray(kernel, jnp.float32), second_moment=jnp.array([3.0, 2.0]))
    added = (kernel**2).sum((0, 1)) * np.array([3.0, 3.0, 2.0, 2.0])
    np.testing.assert_allclose(found.var, np.maximum(100 - 0.25 * added, 0), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shape, groups", [((6, 4), 1), ((3, 3, 4), 2)])
def test_before_a_linear_layer(shape: tuple[int, ...], groups: int) -> None:
    """Drawn on one position of correlated inputs, where a convolution is a dense layer of its taps."""
    keys = jax.random.split(jax.random.key(0), 4)
    kernel = jax.random.normal(keys[0], shape)
    taps, inputs, outputs = int(np.prod(shape[:-2])), shape[-2] * groups, shape[-1]
    mixing = jax.random.normal(keys[1], (inputs, inputs)) / 2
    x = jax.random.normal(keys[2], (20_000, taps, inputs)) @ mixing + 1.0
    noisy = jaxnorm.dropout(keys[3], x, 0.5)
    parts = kernel.reshape(taps, shape[-2], groups, outputs // groups)

    def layer(x: jax.Array) -> jax.Array:
        x = x.reshape(-1, taps, groups, shape[-2])
        return jnp.einsum("btgc,tcgo->bgo", x, parts).reshape(-1, outputs)

    stored = RunningStats(layer(noisy).mean(0), layer(noisy).var(0))
    found = correct_variance_shift(stored, 0.5, kernel=kernel, second_moment=jnp.square(x).mean((0, 1)))
    np.testing.assert_allclose(found.var, layer(x).var(0), rtol=0.08)
    assert (stored.var / found.var).max() > 1.3


KERNEL, SECOND = jnp.ones((3, 2)), jnp.ones(3)


@pytest.mark.parametrize(
    "call, error, said",
    [
        (lambda: correct_variance_shift(STATS, 1.0), ValueError, r"rate must be in \[0, 1\)"),
        (lambda: correct_variance_shift(STATS, "half"), TypeError, "rate must be a number"),
        (lambda: correct_variance_shift(STATS, jnp.full(3, 0.5)), ValueError, "rate must broadcast to the channels"),
        (lambda: correct_variance_shift(RunningMean(jnp.ones(2)), 0.5), ValueError, "mean and var of each layer"),
        (lambda: correct_variance_shift(STATS, 0.5, kernel=KERNEL), ValueError, "no second_moment"),
        (lambda: correct_variance_shift(STATS, 0.5, second_moment=SECOND), ValueError, "no kernel"),
        (lambda: correct_variance_shift([STATS, STATS], 0.5, kernel=KERNEL, second_moment=SECOND), ValueError, "2 layers"),
        (lambda: correct_variance_shift(STATS, 0.5, kernel=KERNEL.T, second_moment=SECOND), ValueError, "kernel must be"),
        (lambda: correct_variance_shift(STATS, 0.5, kernel=KERNEL, second_moment=jnp.ones(4)), ValueError, "second_moment must"),
    ],
)
def test_bad_input(call, error, said) -> None:
    with pytest.raises(error, match=said):
        call()
