"""Multiplicative noise as `flax.nnx` modules: Bernoulli, Gaussian and uniform dropout."""

from collections.abc import Sequence

import jax
from flax import nnx

from jaxnorm._modules import apply_dropout, apply_gaussian_dropout, apply_uniform_dropout
from jaxnorm.nnx._flags import first_given

Keys = nnx.Rngs | nnx.RngStream | jax.Array


class _Noise(nnx.Module):
    """What the layers with noise share: the flag, the axes of one draw, and a stream of keys of their own."""

    def __init__(
        self,
        broadcast_dims: Sequence[int],
        deterministic: bool | jax.Array | None,
        rng_collection: str,
        rngs: nnx.Rngs | nnx.RngStream | None,
    ):
        self.broadcast_dims = broadcast_dims
        self.deterministic = deterministic
        self.rng_collection = rng_collection
        if rngs is None:
            self.rngs = nnx.data(None)
        elif isinstance(rngs, nnx.Rngs):
            self.rngs = rngs[rng_collection].fork()
        elif isinstance(rngs, nnx.RngStream):
            self.rngs = rngs.fork()
        else:
            raise TypeError(f"rngs must be a Rngs, RngStream or None, but got {type(rngs)}.")

    def _key(self, rngs: Keys | None) -> jax.Array:
        """Returns the key to draw with: from the call's rngs if given, else from the layer's own stream."""
        rngs = self.rngs if rngs is None else rngs
        if rngs is None:
            raise ValueError(
                f"`deterministic` is False, but no `rngs` argument was provided to {type(self).__name__}, neither to its "
                "constructor nor to its call"
            )
        if isinstance(rngs, nnx.Rngs):
            return rngs[self.rng_collection]()
        if isinstance(rngs, nnx.RngStream):
            return rngs()
        if isinstance(rngs, jax.Array):
            return rngs
        raise TypeError(f"rngs must be a Rngs, RngStream or jax.Array, but got {type(rngs)}.")

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets the flag in a view of the module, as `nnx.view` asks for.

        Args:
          deterministic: if True, the inputs are returned as they are.
        """
        if deterministic is not None:
            self.deterministic = deterministic


class Dropout(_Noise):
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
        super().__init__(broadcast_dims, deterministic, rng_collection, rngs)
        self.rate = rate
        self.bits = bits

    def __call__(
        self, inputs: jax.Array, *, deterministic: bool | jax.Array | None = None, rngs: Keys | None = None
    ) -> jax.Array:
        """Drops elements of the inputs.

        Args:
          inputs: array of floating point numbers, any shape.
          deterministic: goes before the attribute of this name.
          rngs: a key, a stream or streams, to draw with instead of the layer's own.

        Returns:
          Array of the shape and dtype of the inputs.

        Raises:
          ValueError: if `deterministic` is given nowhere, or nothing to draw with is; if rate, broadcast_dims or bits do not fit.
          TypeError: if the inputs do not hold floating point numbers, or if rngs is nothing to draw with.
        """
        return apply_dropout(
            lambda: self._key(rngs),
            inputs,
            self.rate,
            deterministic=first_given(self, "deterministic", deterministic),
            broadcast_dims=self.broadcast_dims,
            bits=self.bits,
        )


class GaussianDropout(_Noise):
    """Gaussian dropout: `jaxnorm.gaussian_dropout` with the arguments, rng stream and call of `Dropout`.

    Training: `y = x n`, `n ~ N(1, rate / (1 - rate))`. Inference (`deterministic`): the identity.

    Args:
      rate: the amount of noise, in [0, 1); a number or a traced scalar.
      broadcast_dims: axes along which all elements share one draw.
      deterministic: whether to return the inputs as they are; set by `train()` and `eval()`.
      rng_collection: name of the stream of keys.
      rngs: the streams, of which the layer forks its own, or None to give keys in the call.
      bits: random bits an element of which a number of the noise is made: 16 or 32.

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
        super().__init__(broadcast_dims, deterministic, rng_collection, rngs)
        self.rate = rate
        self.bits = bits

    def __call__(
        self, inputs: jax.Array, *, deterministic: bool | jax.Array | None = None, rngs: Keys | None = None
    ) -> jax.Array:
        """Multiplies the inputs by noise; arguments and errors as in `Dropout`."""
        return apply_gaussian_dropout(
            lambda: self._key(rngs),
            inputs,
            self.rate,
            deterministic=first_given(self, "deterministic", deterministic),
            broadcast_dims=self.broadcast_dims,
            bits=self.bits,
        )


class UniformDropout(_Noise):
    """Uniform dropout (Uout): `jaxnorm.uniform_dropout` with the arguments, rng stream and call of `Dropout`.

    Training: `y = x n`, `n ~ U(1 - beta, 1 + beta)`. Inference (`deterministic`): the identity.

    Args:
      beta: the half width of the noise, in [0, 1]; a number or a traced scalar.
      broadcast_dims: axes along which all elements share one draw.
      deterministic: whether to return the inputs as they are; set by `train()` and `eval()`.
      rng_collection: name of the stream of keys.
      rngs: the streams, of which the layer forks its own, or None to give keys in the call.
      bits: random bits an element of which a number of the noise is made: 16 or 32.

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

    def __init__(
        self,
        beta: float | jax.Array,
        *,
        broadcast_dims: Sequence[int] = (),
        deterministic: bool | jax.Array | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        bits: int = 16,
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(broadcast_dims, deterministic, rng_collection, rngs)
        self.beta = beta
        self.bits = bits

    def __call__(
        self, inputs: jax.Array, *, deterministic: bool | jax.Array | None = None, rngs: Keys | None = None
    ) -> jax.Array:
        """Multiplies the inputs by noise; arguments and errors as in `Dropout`."""
        return apply_uniform_dropout(
            lambda: self._key(rngs),
            inputs,
            self.beta,
            deterministic=first_given(self, "deterministic", deterministic),
            broadcast_dims=self.broadcast_dims,
            bits=self.bits,
        )
