"""Dropout that sets its own rate as `flax.nnx` modules: concrete dropout, and standout."""

from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._dropout.adaptive import init_concrete_dropout, init_standout
from jaxnorm._noise_modules import apply_concrete_dropout, apply_standout
from jaxnorm._types import ConcreteDropoutParams, StandoutParams
from jaxnorm.nnx._noise_layer import Keys, NoiseModule, NoiseOptions


class ConcreteDropout(NoiseModule):
    """Dropout whose rate is learned: `jaxnorm.concrete_dropout`.

    Training: `y = x (1 - z) / (1 - rate)` with a z that is nearly 0 or 1, and the regularizer:
    `loss = mean(nll) + (sum of the regularizers) / N`, with N examples in the training set. Inference (`deterministic`): the
    identity, or training's y several times. The parameter is `logit`, that of the rate.

    Args:
      rate: the probability of dropping to begin with, between 0 and 1.
      temperature: of the decisions, above 0; a number or a traced scalar.
      broadcast_dims: axes along which all elements share one draw.
      length_scale: of the prior of the weights that y meets.
      param_dtype: type of the parameter.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `GaussianDropout`.

    References:
      Gal, Hron, Kendall, "Concrete dropout", NIPS 2017, https://arxiv.org/abs/1705.07832.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> layer = jaxnorm.nnx.ConcreteDropout(rate=0.5, rngs=nnx.Rngs(0))
      >>> y, regularizer = layer(jnp.ones((2, 3)))
      >>> print(y.shape, f"{regularizer:.3f}")
      (2, 3) -2.079
    """

    def __init__(
        self,
        *,
        rate: float = 0.1,
        temperature: float | jax.Array = 0.1,
        broadcast_dims: Sequence[int] = (),
        length_scale: float = 0.01,
        param_dtype: Any = jnp.float32,
        **options: Unpack[NoiseOptions],
    ):
        """Makes the parameter and forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.logit = nnx.Param(init_concrete_dropout(rate=rate, param_dtype=param_dtype).logit)
        self.temperature = temperature
        self.broadcast_dims = broadcast_dims
        self.length_scale = length_scale

    def __call__(
        self,
        inputs: jax.Array,
        *,
        deterministic: bool | jax.Array | None = None,
        rngs: Keys | None = None,
        kernel: Any = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Makes the inputs noisy.

        Args:
          inputs: array of floating point numbers, `[..., C]`.
          deterministic: goes before the attribute of this name.
          rngs: a key, a stream or streams, to draw with instead of the layer's own.
          kernel: the weights of the layer that takes y, an array or a tree of them; None leaves them out of the regularizer.

        Returns:
          Array of the shape and dtype of the inputs, and the regularizer.

        Raises:
          ValueError: if `deterministic` is given nowhere, or nothing to draw with is; if an attribute does not fit.
          TypeError: if the inputs do not hold floating point numbers, or if rngs is nothing to draw with.
        """
        params = ConcreteDropoutParams(self.logit[...])
        return apply_concrete_dropout(params, inputs, kernel, self, **self._drawing(deterministic, rngs))


class Standout(NoiseModule):
    """Keeps a unit with a probability that its own input sets: `jaxnorm.standout`.

    Training: `y = x` with probability `sigmoid(alpha preactivation + beta)`, else 0. Inference (`deterministic`):
    `jaxnorm.standout_mean`, the expectation of that. The parameters are `alpha` and `beta`, into which no gradient flows in
    training: leave them out of weight decay.

    Args:
      alpha_init: the factor of the preactivation to begin with.
      beta_init: what is added, to begin with.
      param_dtype: type of the parameters.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`.

    References:
      Ba, Frey, "Adaptive dropout for training deep neural networks", NIPS 2013,
      https://papers.nips.cc/paper/5032-adaptive-dropout-for-training-deep-neural-networks.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> layer, preactivation = jaxnorm.nnx.Standout(rngs=nnx.Rngs(0)), jnp.array([-9.0, 0.0, 9.0])
      >>> layer(preactivation, jax.nn.relu(preactivation))
      Array([0., 0., 9.], dtype=float32)
    """

    def __init__(
        self,
        *,
        alpha_init: float = 1.0,
        beta_init: float = 0.0,
        param_dtype: Any = jnp.float32,
        **options: Unpack[NoiseOptions],
    ):
        """Makes the parameters and forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        made = init_standout(alpha=alpha_init, beta=beta_init, param_dtype=param_dtype)
        self.alpha, self.beta = nnx.Param(made.alpha), nnx.Param(made.beta)

    def __call__(
        self,
        preactivation: jax.Array,
        x: jax.Array,
        *,
        deterministic: bool | jax.Array | None = None,
        rngs: Keys | None = None,
    ) -> jax.Array:
        """Keeps some of x.

        Args:
          preactivation: array of floating point numbers, of x's shape.
          x: array of floating point numbers, any shape: what the layer makes of the preactivation.
          deterministic: goes before the attribute of this name.
          rngs: a key, a stream or streams, to draw with instead of the layer's own.

        Returns:
          Array of x's shape and dtype.

        Raises:
          ValueError: if `deterministic` is given nowhere, or nothing to draw with is; if an attribute does not fit.
          TypeError: if an array does not hold floating point numbers, or if rngs is nothing to draw with.
        """
        params = StandoutParams(self.alpha[...], self.beta[...])
        return apply_standout(params, preactivation, x, self, **self._drawing(deterministic, rngs))
