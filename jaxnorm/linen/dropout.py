"""Multiplicative noise as `flax.linen` modules: Bernoulli, Gaussian and uniform dropout."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from jaxnorm._modules import DrawKey, apply_dropout, apply_gaussian_dropout, apply_uniform_dropout


class Dropout(nn.Module):
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

    rate: float | jax.Array
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16

    @nn.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | jax.Array | None = None, rng: jax.Array | None = None
    ) -> jax.Array:
        """Drops elements of the inputs.

        Args:
          inputs: array of floating point numbers, any shape.
          deterministic: as the field of this name; given once, here or there.
          rng: the key to draw with, instead of one from the stream.

        Returns:
          Array of the shape and dtype of the inputs.

        Raises:
          ValueError: if `deterministic` is given nowhere or twice; if rate, broadcast_dims or bits do not fit.
          TypeError: if the inputs do not hold floating point numbers, or if rng is no key.
        """
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        return apply_dropout(
            _key_from(self, rng),
            inputs,
            self.rate,
            deterministic=deterministic,
            broadcast_dims=self.broadcast_dims,
            bits=self.bits,
        )


class GaussianDropout(nn.Module):
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

    rate: float | jax.Array
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16

    @nn.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | jax.Array | None = None, rng: jax.Array | None = None
    ) -> jax.Array:
        """Multiplies the inputs by noise; arguments and errors as in `Dropout`."""
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        return apply_gaussian_dropout(
            _key_from(self, rng),
            inputs,
            self.rate,
            deterministic=deterministic,
            broadcast_dims=self.broadcast_dims,
            bits=self.bits,
        )


class UniformDropout(nn.Module):
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

    beta: float | jax.Array
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16

    @nn.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | jax.Array | None = None, rng: jax.Array | None = None
    ) -> jax.Array:
        """Multiplies the inputs by noise; arguments and errors as in `Dropout`."""
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        return apply_uniform_dropout(
            _key_from(self, rng),
            inputs,
            self.beta,
            deterministic=deterministic,
            broadcast_dims=self.broadcast_dims,
            bits=self.bits,
        )


def _key_from(module: Any, rng: jax.Array | None) -> DrawKey:
    """Returns what gives the key: `rng`, or the next one of the module's stream."""
    return lambda: module.make_rng(module.rng_collection) if rng is None else rng
