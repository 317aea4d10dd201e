"""Variational dropout: Gaussian noise of a layer's inputs whose amount is learned.

The noise is a posterior, and its divergence from a prior, the KL, is what keeps it from vanishing. The function returns it
beside y, in nats. The loss is `mean(nll) + (sum of the KLs of all layers) / N`, with N examples in the training set, of which
nll is minus the log-likelihood; of a squared error of precision tau, the sum over `N tau / 2`.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._axes import match_sharding
from jaxnorm._checks import (
    NOISE_BITS,
    check_bits,
    check_dtype,
    check_float,
    check_key,
    check_number,
    check_shape,
    check_size,
    check_type,
)
from jaxnorm._dropout.divergence import Divergence, total_divergence
from jaxnorm._noise import learned_gaussian, multiply_noise
from jaxnorm._types import VariationalDropoutParams, widest_dtype


def init_variational_dropout(
    num_features: int, *, rate: float = 0.1, shared: bool = False, param_dtype: Any = jnp.float32
) -> VariationalDropoutParams:
    """Makes the parameters of `variational_dropout`.

    The noise to begin with is that of dropout at this rate: `alpha = rate / (1 - rate)`.

    Args:
      num_features: number of features, C.
      rate: between 0 and 1, neither included.
      shared: whether all features have one alpha, instead of their own.
      param_dtype: type of the parameters.

    Returns:
      The parameters.

    Raises:
      ValueError: if num_features is below 1, or rate is not between 0 and 1.
      TypeError: if num_features is no int, rate no number, or param_dtype no type of floating point numbers.

    References:
      Kingma, Salimans, Welling, "Variational dropout and the local reparameterization trick", NIPS 2015,
      https://arxiv.org/abs/1506.02557.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_variational_dropout(2, rate=0.5)
      VariationalDropoutParams(log_alpha=Array([0., 0.], dtype=float32))
    """
    shape = () if shared else (check_size("num_features", num_features),)
    return VariationalDropoutParams(jnp.full(shape, logit_of_rate(rate), check_dtype("param_dtype", param_dtype)))


def variational_dropout(
    key: jax.Array,
    params: VariationalDropoutParams,
    x: jax.Array,
    *,
    divergence: Divergence = "fit",
    bits: int = 16,
) -> tuple[jax.Array, jax.Array]:
    """Multiplies every element by Gaussian noise of mean 1, whose amount is learned (type A, of activations).

    Training: `y = x n`, `n ~ N(1, alpha)`, so that `E[y] = x` and `Var[y] = alpha x^2`, and the divergence of n from a
    log-uniform prior, summed over the features. Inference: the identity; do not call it.

    Gradients flow into x and into alpha, through the draw that is made (reparameterization). The loss is the mean of the
    examples', and the sum of the KLs of all layers over the number N of examples in the training set:
    `loss = mean(nll) + (kl_1 + kl_2 + ...) / N`. A fixed alpha of `rate / (1 - rate)` is `gaussian_dropout`.

    The divergence of an alpha is `KL = (euler_gamma + log 2) / 2 - log(alpha) / 2 + E[log |n|]`: of little noise large, and 0 for
    infinitely much. "fit" is within 0.0094 of it, `k1 sigmoid(-(k2 + k3 log alpha)) + log(1 + 1 / alpha) / 2` with Molchanov's
    k; "exact" its series, some hundred operations for each alpha; "cubic" Kingma's
    `0.67 - log(alpha) / 2 - c1 alpha - c2 alpha^2 - c3 alpha^3`, within 0.023 for alpha from 0.02 to 1, and constant above 1,
    where the paper holds alpha.

    Whether such a posterior is Bayesian is disputed: the prior is improper.

    For the gradient alpha, x and the key are kept.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      params: the logarithm of alpha, of each feature or of all.
      x: array of floating point numbers, `[..., C]`.
      divergence: how the KL is computed: "fit", "exact" or "cubic".
      bits: random bits an element of which a normal number is made: 16 or 32, as in `gaussian_dropout`.

    Returns:
      y of x's shape and dtype, and the KL in nats, `[]`, in float32 or wider.

    Raises:
      ValueError: if x has no axis of features, or the parameter another shape than them or `[]`; if divergence or bits is none
        of those; if key is an array of several keys.
      TypeError: if params is not VariationalDropoutParams; if the parameter or x does not hold real floating point numbers; if
        bits is no int, or key no key.

    References:
      Kingma, Salimans, Welling, "Variational dropout and the local reparameterization trick", NIPS 2015,
      https://arxiv.org/abs/1506.02557. Molchanov, Ashukha, Vetrov, "Variational dropout sparsifies deep neural networks",
      ICML 2017, https://arxiv.org/abs/1701.05369. Hron, Matthews, Ghahramani, "Variational Gaussian dropout is not Bayesian",
      2017, https://arxiv.org/abs/1711.02989.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.init_variational_dropout(10, rate=0.2)
      >>> y, kl = jaxnorm.variational_dropout(jax.random.key(0), params, jnp.ones((10_000, 10)))
      >>> print(f"mean {y.mean():.2f}, variance {y.var():.2f}, KL {kl:.2f}")
      mean 1.00, variance 0.25, KL 11.52
    """
    key = check_key(key)
    x = check_float("x", x)
    kl = dropout_divergence(params, x, divergence)
    bits = check_bits(bits, NOISE_BITS)
    wide = widest_dtype(x, params.log_alpha)
    return _variational_dropout(key, jnp.asarray(params.log_alpha), x, bits=bits, wide=wide), kl


def logit_of_rate(rate: Any) -> float:
    """Returns `log(rate / (1 - rate))`, the logarithm of alpha too, or raises unless the rate is between 0 and 1."""
    check_number("rate", rate, low=0, high=1, open_high=True)
    if rate == 0:
        raise ValueError(f"rate must be above 0, got {rate}")
    return math.log(rate / (1 - rate))


def dropout_divergence(params: VariationalDropoutParams, x: jax.Array, divergence: Divergence) -> jax.Array:
    """Returns the KL of variational dropout of x, or raises unless the parameter fits."""
    check_type("params", params, VariationalDropoutParams)
    log_alpha = check_float("params.log_alpha", params.log_alpha)
    if not x.ndim:
        raise ValueError("x must have an axis of features, got shape []")
    features = x.shape[-1:]
    if log_alpha.ndim:
        check_shape("params.log_alpha", log_alpha, features, "the features of x, or [] for all")
    return total_divergence(log_alpha, features, divergence)


@functools.partial(jax.jit, static_argnames=("bits", "wide"))
def _variational_dropout(key: jax.Array, log_alpha: jax.Array, x: jax.Array, *, bits: int, wide: np.dtype) -> jax.Array:
    std = jnp.exp(log_alpha.astype(wide) / 2)
    std = match_sharding(jnp.expand_dims(std, tuple(range(x.ndim - std.ndim))), x)
    return multiply_noise(key, (x, std), np.ones((), wide), learned_gaussian, (), bits)
