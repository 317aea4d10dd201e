"""Every random function at four million draws: mean, variance and a probability within four standard errors of closed forms.

The closed forms are those of the probability that the bits realise. Controls that are rejected: draws that are moved by a
hundredth of their deviation, or spread by one percent, a probability one percent larger, and the law of an amount 2 % larger.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import integrate, special

import jaxnorm
import jaxnorm.nnx

pytestmark = pytest.mark.slow
DRAWS = 4_000_000
SQUARE = (2000, 2000)
assert np.prod(SQUARE) == DRAWS
ONES, ZEROS = jnp.ones(DRAWS), jnp.zeros(DRAWS)


class Law(NamedTuple):
    """Mean and variance of a number, and the probability that it counts."""

    mean: float
    var: float
    share: float


class Sampler(NamedTuple):
    """Draws for a key and an amount, their law for an amount, and which of them count."""

    draw: Callable[[jax.Array, Any], jax.Array]
    law: Callable[[float], Law]
    counts: Callable[[np.ndarray], np.ndarray] = lambda y: y != 0
    amount: float = 0.3


def law_of(values: Any, chances: Any, counted: Any) -> Law:
    """Of a number that has few values."""
    values, chances = np.asarray(values, np.float64), np.asarray(chances, np.float64)
    mean = chances @ values
    return Law(mean, chances @ (values - mean) ** 2, chances @ np.asarray(counted, np.float64))


def keep(rate: float, bits: int = 16) -> float:
    return float(oracles.realised(rate, bits))


def scaled(bits: int = 16) -> Callable[[float], Law]:
    """1 / q with probability q, else 0."""

    def law(rate: float) -> Law:
        q = keep(rate, bits)
        return Law(1, (1 - q) / q, q)

    return law


def unscaled(rate: float) -> Law:
    q = keep(rate)
    return Law(q, q * (1 - q), q)


def above(mean: float, var: float) -> Law:
    """Of numbers that lie as often above their mean as below."""
    return Law(mean, var, 0.5)


def over(limit: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda y: y > limit


def with_rate(function: Callable[..., jax.Array], shape: tuple[int, ...] = (DRAWS,), **options: Any) -> Callable[..., jax.Array]:
    return lambda key, rate: function(key, jnp.ones(shape), rate, **options)


# Whose numbers have a few values


def swapped(rate: float) -> Law:
    """1.5 with one probability, and -4 with another."""
    q, other = keep(rate), keep(0.6)
    pairs = list(itertools.product((0, 1), repeat=2))
    values = [1.5 * a - 4 * b for a, b in pairs]
    return law_of(values, [(q if a else 1 - q) * (other if b else 1 - other) for a, b in pairs], np.asarray(values) != 0)


def joined(rate: float) -> Law:
    """The weight of the first of three branches."""
    q, values, chances = keep(rate), [], []
    for kept in itertools.product((0, 1), repeat=3):
        chance = np.prod([q if one else 1 - q for one in kept])
        if any(kept):
            values.append(kept[0] / sum(kept))
            chances.append(chance)
        else:
            values += [1, 0]
            chances += [chance / 3, chance * 2 / 3]
    return law_of(values, chances, np.asarray(values) > 0)


def in_blocks(rate: float) -> Law:
    """The sum of a line of three, of which two blocks of two cover the first two and the last two."""
    q = keep(float(oracles.block_probability(rate, (3,), (2,))))
    expected = float(np.mean([q, q**2, q]))
    return law_of(np.array([3, 1, 0]) / expected, [q**2, 2 * q * (1 - q), (1 - q) ** 2], [1, 0, 0])


def cut_out(amount: float) -> Law:
    """The sum of a line of five, of which a hole of three around one of them is filled."""
    holes = [oracles.holes((center,), (3,), (5,)).sum() for center in range(5)]
    values = np.array([5 - n + n * amount for n in holes])
    return law_of(values, np.full(5, 0.2), np.array(holes) == 3)


def pooled(rate: float) -> Law:
    """Of 3, 1, 4, 2 the largest that is kept."""
    q = keep(rate)
    return law_of([4, 3, 2, 1, 0], [*(q * (1 - q) ** np.arange(4)), (1 - q) ** 4], [1, 0, 0, 0, 0])


def of_patches(amount: float) -> Law:
    """The sum of two of four numbers, 0 to 3 times the amount."""
    sums = amount * np.array([sum(pair) for pair in itertools.combinations(range(4), 2)])
    return law_of(sums, np.full(6, 1 / 6), np.isclose(sums, 3 * amount))


def connected(rate: float) -> Law:
    """2 m_1 - 3 m_2, with masks that are scaled."""
    q = keep(rate)
    pairs = list(itertools.product((0, 1), repeat=2))
    values = [(2 * a - 3 * b) / q for a, b in pairs]
    return law_of(values, [q ** (a + b) * (1 - q) ** (2 - a - b) for a, b in pairs], np.asarray(values) > 0)


# Others


def concrete(rate: float) -> Law:
    """What a relaxed mask keeps, by quadrature; it counts what is more kept than dropped."""
    logit = np.log(rate / (1 - rate))
    kept = lambda u: special.expit(-(logit + np.log(u / (1 - u))) / 0.4)  # noqa: E731
    first, second = (integrate.quad(lambda u, n=n: kept(u) ** n, 0, 1, limit=500)[0] for n in (1, 2))
    return Law(first / (1 - rate), (second - first**2) / (1 - rate) ** 2, 1 - rate)


def shaken(rate: float, low: float, high: float) -> Law:
    """1 with probability q, else even between two numbers."""
    q = keep(rate)
    mean = q + (1 - q) * (low + high) / 2
    square = q + (1 - q) * (high**3 - low**3) / 3 / (high - low)
    return Law(mean, square - mean**2, q)


def saturated(rate: float) -> Law:
    """Of an x of mean 0 and variance 1, which keeps both."""
    return Law(0, 1, keep(rate))


def value_of_dropped(rate: float) -> float:
    q, low = keep(rate), -1.7580993408473766
    a = (q * ((1 - q) * low**2 + 1)) ** -0.5
    return a * low * q


def branch_gradient(key: jax.Array, rate: Any) -> jax.Array:
    return jax.vjp(lambda branch: jaxnorm.shake_drop(key, ZEROS, branch, rate), ONES)[1](ONES)[0]


def second_factor(key: jax.Array, amount: Any) -> jax.Array:
    return jax.vjp(lambda first: jaxnorm.shake_shake(key, first, ZEROS), ONES)[1](amount * ONES)[0]


def of_one_weight(key: jax.Array, std: Any, factorised: bool) -> jax.Array:
    one = jnp.ones((1, 1))
    params = jaxnorm.NoisyLinearParams(0 * one, None, std * one, None)
    keys = jax.random.split(key, DRAWS)
    return jax.vmap(lambda key: jaxnorm.noisy_linear(key, params, one, factorised=factorised)[0, 0])(keys)


def of_attention(key: jax.Array, rate: Any) -> jax.Array:
    """The noise of the weights, which are all alike, by values that are rows of the unit matrix."""
    n = SQUARE[0]
    query, value = jnp.zeros((1, n, 1, 1)), n * jnp.eye(n)[None, :, None]
    return jaxnorm.nnx.dot_product_attention(
        query, query, value, dropout_rng=key, dropout_rate=rate, broadcast_dropout=False, precision="highest"
    )


def dense(key: jax.Array, params: Any) -> jax.Array:
    function = {
        jaxnorm.VariationalDenseParams: jaxnorm.variational_dense,
        jaxnorm.SparseVariationalDenseParams: jaxnorm.sparse_variational_dense,
    }[type(params)]
    return function(key, params, jnp.full((DRAWS, 1), 1.5))[0]


ONE = jnp.ones((1, 1))
SAMPLERS = {
    **{f"dropout, {bits} bits": Sampler(with_rate(jaxnorm.dropout, bits=bits), scaled(bits)) for bits in (8, 16, 32)},
    "classic_dropout": Sampler(with_rate(jaxnorm.classic_dropout), unscaled),
    "dropout_mask": Sampler(lambda key, rate: jaxnorm.dropout_mask(key, (DRAWS,), rate).astype(jnp.float32), unscaled),
    "spatial_dropout": Sampler(with_rate(jaxnorm.spatial_dropout, (2000, 1, 2000)), scaled()),
    "locked_dropout": Sampler(with_rate(jaxnorm.locked_dropout, (2000, 1, 2000)), scaled()),
    "head_dropout": Sampler(with_rate(jaxnorm.head_dropout, (2000, 1, 2000, 1), head_axis=2), scaled()),
    "drop_path": Sampler(with_rate(jaxnorm.drop_path, (DRAWS, 1)), scaled()),
    "drop_path, unscaled": Sampler(with_rate(jaxnorm.drop_path, (DRAWS, 1), scale=False), unscaled),
    "drop_connect": Sampler(with_rate(jaxnorm.drop_connect), scaled()),
    "embedding_dropout": Sampler(with_rate(jaxnorm.embedding_dropout, (DRAWS, 1)), scaled()),
    "drop_key": Sampler(lambda key, rate: jnp.exp(jaxnorm.drop_key(key, ZEROS, rate)), unscaled),
    "word_dropout": Sampler(lambda key, rate: jaxnorm.word_dropout(key, jnp.ones(DRAWS, jnp.int32), rate, unknown=0), unscaled),
    "zoneout": Sampler(lambda key, rate: jaxnorm.zoneout(key, ZEROS, ONES, rate), unscaled),
    "dot_product_attention": Sampler(of_attention, scaled(), over(0.5)),
    "mixout": Sampler(
        lambda key, rate: jaxnorm.mixout(key, 2 * ONES, ONES, rate),
        lambda rate: scaled()(rate)._replace(mean=2.0),
        over(1.5),
    ),
    "drop_connect_dense": Sampler(
        lambda key, rate: jaxnorm.drop_connect_dense(key, jnp.array([[2.0], [-3.0]]), None, jnp.ones((DRAWS, 2)), rate),
        connected,
        over(1e-3),
    ),
    "swapout": Sampler(lambda key, rate: jaxnorm.swapout(key, 1.5 * ONES, -4 * ONES, rate, branch_rate=0.6), swapped),
    "fractal_join": Sampler(lambda key, rate: jaxnorm.fractal_join(key, [ONES, ZEROS, ZEROS], rate), joined),
    "drop_block": Sampler(
        lambda key, rate: jaxnorm.drop_block(key, jnp.ones((DRAWS, 3, 1)), rate, block_size=2, rescale="expected").sum((1, 2)),
        in_blocks,
        over(2.5),
    ),
    "cutout": Sampler(
        lambda key, fill: jaxnorm.cutout(key, jnp.ones((DRAWS, 5, 1)), 3, fill=fill).sum((1, 2)),
        cut_out,
        lambda y: y < 3.5,
    ),
    "max_pool_dropout": Sampler(
        lambda key, rate: jaxnorm.max_pool_dropout(
            key, jnp.broadcast_to(jnp.array([3.0, 1, 4, 2])[None, :, None], (DRAWS, 4, 1)), rate, window=4
        ),
        pooled,
        over(3.5),
    ),
    "patch_dropout": Sampler(
        lambda key, amount: jaxnorm.patch_dropout(
            key, jnp.broadcast_to(amount * jnp.arange(4.0), (DRAWS, 4)), 0.5, num_prefix_tokens=0
        )[0].sum(1),
        of_patches,
        lambda y: np.isclose(y, 0.9),
    ),
    "alpha_dropout": Sampler(
        lambda key, rate: jaxnorm.alpha_dropout(key, jax.random.normal(jax.random.fold_in(key, 1), (DRAWS,)), rate),
        saturated,
        lambda y: ~np.isclose(y, value_of_dropped(0.3), atol=1e-6),
    ),
    **{
        f"gaussian_dropout, {bits} bits": Sampler(
            with_rate(jaxnorm.gaussian_dropout, bits=bits), lambda rate: above(1, rate / (1 - rate)), over(1)
        )
        for bits in (16, 32)
    },
    **{
        f"gaussian_noise, {bits} bits": Sampler(
            with_rate(jaxnorm.gaussian_noise, bits=bits), lambda std: above(1, std**2), over(1)
        )
        for bits in (16, 32)
    },
    **{
        f"uniform_dropout, {bits} bits": Sampler(
            with_rate(jaxnorm.uniform_dropout, bits=bits), lambda beta: above(1, beta**2 / 3), over(1)
        )
        for bits in (16, 32)
    },
    "shake_drop": Sampler(
        lambda key, rate: jaxnorm.shake_drop(key, ZEROS, ONES, rate), lambda rate: shaken(rate, -1, 1), lambda y: y == 1
    ),
    "shake_drop, derivative": Sampler(branch_gradient, lambda rate: shaken(rate, 0, 1), lambda y: y == 1),
    "shake_shake": Sampler(
        lambda key, amount: jaxnorm.shake_shake(key, amount * ONES, ZEROS),
        lambda amount: above(amount / 2, amount**2 / 12),
        over(0.15),
    ),
    "shake_shake, derivative": Sampler(second_factor, lambda amount: above(amount / 2, amount**2 / 12), over(0.15)),
    "noisy_linear": Sampler(
        lambda key, std: of_one_weight(key, std, factorised=True), lambda std: above(0, 2 / np.pi * std**2), over(0)
    ),
    "noisy_linear, independent": Sampler(
        lambda key, std: of_one_weight(key, std, factorised=False), lambda std: above(0, std**2), over(0)
    ),
    "variational_dropout": Sampler(
        lambda key, alpha: jaxnorm.variational_dropout(key, jaxnorm.VariationalDropoutParams(jnp.log(alpha)), 3 * ONES)[0],
        lambda alpha: above(3, 9 * alpha),
        over(3),
    ),
    "variational_dense": Sampler(
        lambda key, alpha: dense(key, jaxnorm.VariationalDenseParams(2 * ONE, None, jnp.log(alpha))),
        lambda alpha: above(3, 9 * alpha),
        over(3),
    ),
    "sparse_variational_dense": Sampler(
        lambda key, var: dense(key, jaxnorm.SparseVariationalDenseParams(2 * ONE, None, jnp.log(var) * ONE)),
        lambda var: above(3, 1.5**2 * var),
        over(3),
    ),
    "concrete_dropout": Sampler(
        lambda key, rate: jaxnorm.concrete_dropout(
            key, jaxnorm.ConcreteDropoutParams(jax.scipy.special.logit(rate)), ONES, temperature=0.4
        )[0],
        concrete,
        over(0.5 / 0.7),
    ),
    "standout": Sampler(
        lambda key, logit: jaxnorm.standout(key, jaxnorm.init_standout(), jnp.full(DRAWS, logit), ONES),
        lambda logit: unscaled(1 - special.expit(logit)),
    ),
}


def deviations(sampler: Sampler, y: np.ndarray, law: Law) -> np.ndarray:
    """How many standard errors mean, variance and share are away."""
    squares = (y - law.mean) ** 2
    found = np.array([y.mean(), squares.mean(), sampler.counts(y).mean()]) - law
    return np.abs(found) / np.sqrt([law.var, squares.var(), law.share * (1 - law.share)]) * np.sqrt(DRAWS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_moments_and_a_probability(name: str) -> None:
    sampler = SAMPLERS[name]
    y = np.asarray(jax.jit(sampler.draw)(jax.random.key(9), jnp.float32(sampler.amount)), np.float64).ravel()
    assert y.size == DRAWS
    law, other = (sampler.law(amount) for amount in (sampler.amount, 1.02 * sampler.amount))
    assert (deviations(sampler, y, law) < 4).all(), deviations(sampler, y, law)
    # Controls
    std = np.sqrt(law.var)
    assert deviations(sampler, y + 0.01 * std, law)[0] > 4
    assert deviations(sampler, law.mean + 1.01 * (y - law.mean), law)[1] > 4
    assert deviations(sampler, y, law._replace(share=1.01 * law.share))[2] > 4
    assert (deviations(sampler, y, other) > 4).any()
