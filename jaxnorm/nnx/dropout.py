"""Noise of single elements as `flax.nnx` modules: Bernoulli, Gaussian and uniform dropout, and additive Gaussian noise."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import jax
from flax import nnx

from jaxnorm._noise_modules import DROPOUT, GAUSSIAN_DROPOUT, GAUSSIAN_NOISE, UNIFORM_DROPOUT
from jaxnorm.nnx._noise_layer import NoiseLayer, NoiseOptions


class Dropout(NoiseLayer):
    """Dropout: `jaxnorm.dropout` with Flax's arguments, rng stream and call, in place of `flax.nnx.Dropout`.

    Training: `y = x / (1 - rate)` with probability `1 - rate`, else 0. Inference (`deterministic`): the identity. A key is
    drawn where Flax draws one, and with `bits=32` the mask is Flax's for that key. Unlike Flax's the rate and the flag may be
    traced, and a rate outside [0, 1] is an error.

    Args:
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar.
      broadcast_dims: axes along which all elements share one draw.
      deterministic: whether to return the inputs as they are; set by `train()` and `eval()`.
      rng_collection: name of the stream of keys.
      rngs: the streams, of which the layer forks its own, or None to give keys in the call.
      bits: random bits an element that decide: 8, 16 or 32. A probability is a multiple of 2^-8 or 2^-16, and what is kept is
        divided by it, so that the expectation is exact; `jaxnorm.dropout` says more.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15, 2014, https://jmlr.org/papers/v15/srivastava14a.html.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> drop = jaxnorm.nnx.Dropout(0.5, rngs=nnx.Rngs(3))
      >>> drop(jnp.ones(6))
      Array([2., 0., 0., 2., 2., 0.], dtype=float32)
      >>> drop(jnp.ones(3), deterministic=True)
      Array([1., 1., 1.], dtype=float32)
    """

    noise: ClassVar = DROPOUT

    def __init__(
        self,
        rate: float | jax.Array,
        *,
        broadcast_dims: Sequence[int] = (),
        deterministic: bool | jax.Array | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        bits: int = 16,
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(deterministic=deterministic, rng_collection=rng_collection, rngs=rngs, bits=bits)
        self.rate = rate
        self.broadcast_dims = broadcast_dims


class GaussianDropout(NoiseLayer):
    """Gaussian dropout: `jaxnorm.gaussian_dropout` with the arguments, rng stream and call of `Dropout`.

    Training: `y = x n`, `n ~ N(1, rate / (1 - rate))`. Inference (`deterministic`): the identity.

    Args:
      rate: the amount of noise, in [0, 1); a number or a traced scalar.
      broadcast_dims: axes along which all elements share one draw.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`, but of 16 or 32 bits.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15, 2014, section 10, https://jmlr.org/papers/v15/srivastava14a.html.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> y = jaxnorm.nnx.GaussianDropout(0.2, rngs=nnx.Rngs(0))(jnp.ones(100_000))
      >>> print(f"mean {y.mean():.2f}, variance {y.var():.2f}")
      mean 1.00, variance 0.25
    """

    noise: ClassVar = GAUSSIAN_DROPOUT

    def __init__(self, rate: float | jax.Array, *, broadcast_dims: Sequence[int] = (), **options: Unpack[NoiseOptions]):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.rate = rate
        self.broadcast_dims = broadcast_dims


class UniformDropout(NoiseLayer):
    """Uniform dropout (Uout): `jaxnorm.uniform_dropout` with the arguments, rng stream and call of `Dropout`.

    Training: `y = x n`, `n ~ U(1 - beta, 1 + beta)`. Inference (`deterministic`): the identity.

    Args:
      beta: the half width of the noise, in [0, 1]; a number or a traced scalar.
      broadcast_dims: axes along which all elements share one draw.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`, but of 16 or 32 bits.

    References:
      Li, Chen, Hu, Yang, "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019,
      https://arxiv.org/abs/1801.05134.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> y = jaxnorm.nnx.UniformDropout(0.5, rngs=nnx.Rngs(0))(jnp.ones(10_000))
      >>> print(f"from {y.min():.2f} to {y.max():.2f}")
      from 0.50 to 1.50
    """

    noise: ClassVar = UNIFORM_DROPOUT

    def __init__(self, beta: float | jax.Array, *, broadcast_dims: Sequence[int] = (), **options: Unpack[NoiseOptions]):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.beta = beta
        self.broadcast_dims = broadcast_dims


class GaussianNoise(NoiseLayer):
    """Additive Gaussian noise: `jaxnorm.gaussian_noise` with the rng stream and call of `Dropout`.

    Training: `y = x + n`, `n ~ N(0, std^2)`. Inference (`deterministic`): the identity.

    Args:
      std: the standard deviation of the noise, at least 0; a number or a traced scalar.
      broadcast_dims: axes along which all elements share one draw.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`, but of 16 or 32 bits.

    References:
      Bishop, "Training with noise is equivalent to Tikhonov regularization", Neural Computation 7, 1995,
      https://doi.org/10.1162/neco.1995.7.1.108.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> y = jaxnorm.nnx.GaussianNoise(0.5, rngs=nnx.Rngs(0))(jnp.full(100_000, 3.0))
      >>> print(f"mean {y.mean():.2f}, variance {y.var():.2f}")
      mean 3.00, variance 0.25
    """

    noise: ClassVar = GAUSSIAN_NOISE

    def __init__(self, std: float | jax.Array, *, broadcast_dims: Sequence[int] = (), **options: Unpack[NoiseOptions]):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.std = std
        self.broadcast_dims = broadcast_dims
