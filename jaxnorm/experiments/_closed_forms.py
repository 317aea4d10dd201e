"""What multiplicative noise of mean 1 does to variances, in closed form.

Noise n multiplies x, with `E[n] = 1` and `Var[n] = noise`, independently for every element. Only the first two moments matter
here, so that dropout and Uout of the same variance of noise do the same.

References:
  Li, Chen, Hu, Yang, "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019,
  https://arxiv.org/abs/1801.05134.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def dropout_noise(rate: float) -> float:
    """Returns the variance of dropout's noise, `rate / (1 - rate)`.

    >>> dropout_noise(0.5)
    1.0
    """
    return rate / (1 - rate)


def uniform_noise(beta: float) -> float:
    """Returns the variance of Uout's noise, `beta^2 / 3`.

    >>> uniform_noise(1.0) == dropout_noise(0.25)
    True
    """
    return beta**2 / 3


def noisy_variance(mean: ArrayLike, var: ArrayLike, noise: float) -> jax.Array:
    """Returns `Var[n x] = var + (mean^2 + var) noise`, exactly.

    >>> float(noisy_variance(0.0, 1.0, dropout_noise(0.5)))
    2.0
    """
    return jnp.asarray(var + (jnp.square(mean) + var) * noise)


def noisy_dense_variance(kernel: jax.Array, second_moment: jax.Array, var: jax.Array, noise: float) -> jax.Array:
    """Returns the variance of a dense layer whose inputs the noise multiplies, exactly, however correlated they are.

    `Var[sum_i w_i n_i x_i] = Var[sum_i w_i x_i] + noise sum_i w_i^2 E[x_i^2]`.

    Args:
      kernel: `[inputs, outputs]`.
      second_moment: `E[x_i^2]`, `[inputs]`.
      var: the layer's variance without noise, `[outputs]`.
      noise: variance of the noise.
    """
    return var + noise * (second_moment @ jnp.square(kernel))


def li_ratio(mean: ArrayLike, var: ArrayLike, noise: float) -> jax.Array:
    """Returns the variance in inference over that in training, for noise right before a batch norm (Li et al., case (a)).

    `v / ((c^2 + v) / p - c^2)`, the paper's equation 8, for dropout that keeps with probability p; for other noise
    `v / (v + (c^2 + v) noise)`, equation 15 where c is 0.

    The positive part of a standard normal variable has mean 0.3989 and variance 0.3408:

    >>> round(float(li_ratio(0.3989, 0.3408, dropout_noise(0.5))), 4)
    0.4054
    >>> round(float(li_ratio(0.0, 1.0, uniform_noise(0.1))), 4)
    0.9967
    """
    return jnp.asarray(var) / noisy_variance(mean, var, noise)


def li_dense_ratio(kernel: jax.Array, mean: ArrayLike, var: ArrayLike, correlation: ArrayLike, noise: float) -> jax.Array:
    """Returns the variance in inference over that in training, for noise before a dense layer (Li et al., case (b)).

    `(v + v rho (K - 1)) / (v + (c^2 + v) noise + v rho (K - 1))` with `K = (sum_i w_i)^2 / sum_i w_i^2`: the paper's equation 14,
    where K is written `d cos^2(theta)`. It takes all inputs for alike: mean c, variance v, correlation rho of every two.

    Args:
      kernel: `[inputs, outputs]`.
      mean: c.
      var: v.
      correlation: rho.
      noise: variance of the noise.

    Returns:
      `[outputs]`. Without correlation it is `li_ratio`:

      >>> print(li_dense_ratio(jnp.array([[1.0], [2.0]]), 0.0, 1.0, 0.0, 1.0))
      [0.5]
    """
    alignment = jnp.square(jnp.sum(kernel, 0)) / jnp.sum(jnp.square(kernel), 0)
    together = jnp.asarray(var) * correlation * (alignment - 1)
    return jnp.asarray(var + together) / (noisy_variance(mean, var, noise) + together)
