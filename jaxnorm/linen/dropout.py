"""Noise of single elements as `flax.linen` modules: Bernoulli, Gaussian and uniform dropout, and additive Gaussian noise."""

from collections.abc import Sequence
from typing import ClassVar

import jax

from jaxnorm._noise_modules import DROPOUT, GAUSSIAN_DROPOUT, GAUSSIAN_NOISE, UNIFORM_DROPOUT
from jaxnorm.linen._noise_layer import NoiseLayer


class Dropout(NoiseLayer):
    """Dropout: `jaxnorm.dropout` with Flax's fields, rng stream and call, in place of `flax.linen.Dropout`.

    Training: `y = x / (1 - rate)` with probability `1 - rate`, else 0. Inference (`deterministic`): the identity. A key is
    drawn where Flax draws one, and with `bits=32` the mask is Flax's for that key. Unlike Flax's the rate and the flag may be
    traced, and a rate outside [0, 1] is an error.

    Attributes:
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar.
      broadcast_dims: axes along which all elements share one draw.
      deterministic: whether to return the inputs as they are; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits an element that decide: 8, 16 or 32. A probability is a multiple of 2^-8 or 2^-16, and what is kept is
        divided by it, so that the expectation is exact; `jaxnorm.dropout` says more.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15, 2014, https://jmlr.org/papers/v15/srivastava14a.html.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> drop = jaxnorm.linen.Dropout(0.5)
      >>> drop.apply({}, jnp.ones(6), deterministic=False, rngs={"dropout": jax.random.key(11)})
      Array([2., 0., 2., 0., 0., 2.], dtype=float32)
      >>> drop.apply({}, jnp.ones(3), deterministic=True)
      Array([1., 1., 1.], dtype=float32)
    """

    noise: ClassVar = DROPOUT

    rate: float | jax.Array
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16


class GaussianDropout(NoiseLayer):
    """Gaussian dropout: `jaxnorm.gaussian_dropout` with the fields, rng stream and call of `Dropout`.

    Training: `y = x n`, `n ~ N(1, rate / (1 - rate))`. Inference (`deterministic`): the identity.

    Attributes:
      rate: the amount of noise, in [0, 1); a number or a traced scalar.
      broadcast_dims: axes along which all elements share one draw.
      deterministic: whether to return the inputs as they are; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits an element of which a number of the noise is made: 16 or 32.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15, 2014, section 10, https://jmlr.org/papers/v15/srivastava14a.html.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> noise = jaxnorm.linen.GaussianDropout(0.2, deterministic=False)
      >>> y = noise.apply({}, jnp.ones(100_000), rngs={"dropout": jax.random.key(0)})
      >>> print(f"mean {y.mean():.2f}, variance {y.var():.2f}")
      mean 1.00, variance 0.25
    """

    noise: ClassVar = GAUSSIAN_DROPOUT

    rate: float | jax.Array
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16


class UniformDropout(NoiseLayer):
    """Uniform dropout (Uout): `jaxnorm.uniform_dropout` with the fields, rng stream and call of `Dropout`.

    Training: `y = x n`, `n ~ U(1 - beta, 1 + beta)`. Inference (`deterministic`): the identity.

    Attributes:
      beta: the half width of the noise, in [0, 1]; a number or a traced scalar.
      broadcast_dims: axes along which all elements share one draw.
      deterministic: whether to return the inputs as they are; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits an element of which a number of the noise is made: 16 or 32.

    References:
      Li, Chen, Hu, Yang, "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019,
      https://arxiv.org/abs/1801.05134.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> noise = jaxnorm.linen.UniformDropout(0.5, deterministic=False)
      >>> y = noise.apply({}, jnp.ones(10_000), rngs={"dropout": jax.random.key(0)})
      >>> print(f"from {y.min():.2f} to {y.max():.2f}")
      from 0.50 to 1.50
    """

    noise: ClassVar = UNIFORM_DROPOUT

    beta: float | jax.Array
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16


class GaussianNoise(NoiseLayer):
    """Additive Gaussian noise: `jaxnorm.gaussian_noise` with the rng stream and call of `Dropout`.

    Training: `y = x + n`, `n ~ N(0, std^2)`. Inference (`deterministic`): the identity.

    Attributes:
      std: the standard deviation of the noise, at least 0; a number or a traced scalar.
      broadcast_dims: axes along which all elements share one draw.
      deterministic: whether to return the inputs as they are; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits an element of which a number of the noise is made: 16 or 32.

    References:
      Bishop, "Training with noise is equivalent to Tikhonov regularization", Neural Computation 7, 1995,
      https://doi.org/10.1162/neco.1995.7.1.108.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> noise = jaxnorm.linen.GaussianNoise(0.5, deterministic=False)
      >>> y = noise.apply({}, jnp.full(100_000, 3.0), rngs={"dropout": jax.random.key(0)})
      >>> print(f"mean {y.mean():.2f}, variance {y.var():.2f}")
      mean 3.00, variance 0.25
    """

    noise: ClassVar = GAUSSIAN_NOISE

    std: float | jax.Array
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16
