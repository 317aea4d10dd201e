"""Dropout that sets its own rate as `flax.linen` modules: concrete dropout, and standout."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._dropout.adaptive import init_concrete_dropout, init_standout
from jaxnorm._noise_modules import apply_concrete_dropout, apply_standout
from jaxnorm._types import ConcreteDropoutParams, StandoutParams
from jaxnorm.linen._noise_layer import DrawingModule


class ConcreteDropout(DrawingModule):
    """Dropout whose rate is learned: `jaxnorm.concrete_dropout`.

    Training: `y = x (1 - z) / (1 - rate)` with a z that is nearly 0 or 1, and the regularizer:
    `loss = mean(nll) + (sum of the regularizers) / N`, with N examples in the training set. Inference (`deterministic`): the
    identity, or training's y several times. The parameter is `logit`, that of the rate.

    Attributes:
      rate: the probability of dropping to begin with, between 0 and 1.
      temperature: of the decisions, above 0; a number or a traced scalar.
      broadcast_dims: axes along which all elements share one draw.
      length_scale: of the prior of the weights that y meets.
      param_dtype: type of the parameter.
      deterministic: whether to leave the noise out; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits an element: 16 or 32.

    References:
      Gal, Hron, Kendall, "Concrete dropout", NIPS 2017, https://arxiv.org/abs/1705.07832.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.ConcreteDropout(rate=0.5)
      >>> x = jnp.ones((2, 3))
      >>> variables = layer.init(jax.random.key(0), x, deterministic=True)
      >>> y, regularizer = layer.apply(variables, x, deterministic=False, rngs={"dropout": jax.random.key(1)})
      >>> print(y.shape, f"{regularizer:.3f}")
      (2, 3) -2.079
    """

    rate: float = 0.1
    temperature: float | jax.Array = 0.1
    broadcast_dims: Sequence[int] = ()
    length_scale: float = 0.01
    param_dtype: Any = jnp.float32
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        deterministic: bool | jax.Array | None = None,
        rng: jax.Array | None = None,
        *,
        kernel: Any = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Makes the inputs noisy.

        Args:
          inputs: array of floating point numbers, `[..., C]`.
          deterministic: as the field of this name; given once, here or there.
          rng: the key to draw with, instead of one from the stream.
          kernel: the weights of the layer that takes y, an array or a tree of them; None leaves them out of the regularizer.

        Returns:
          Array of the shape and dtype of the inputs, and the regularizer.

        Raises:
          ValueError: if `deterministic` is given nowhere or twice; if a field does not fit.
          TypeError: if the inputs do not hold floating point numbers, or if rng is no key.
        """
        new = init_concrete_dropout(rate=self.rate, param_dtype=self.param_dtype)
        params = ConcreteDropoutParams(self.param("logit", lambda _: new.logit))
        return apply_concrete_dropout(params, inputs, kernel, self, **self._drawing(deterministic, rng))


class Standout(DrawingModule):
    """Keeps a unit with a probability that its own input sets: `jaxnorm.standout`.

    Training: `y = x` with probability `sigmoid(alpha preactivation + beta)`, else 0. Inference (`deterministic`):
    `jaxnorm.standout_mean`, the expectation of that. The parameters are `alpha` and `beta`, into which no gradient flows in
    training: leave them out of weight decay.

    Attributes:
      alpha_init: the factor of the preactivation to begin with.
      beta_init: what is added, to begin with.
      param_dtype: type of the parameters.
      deterministic: whether to give the expectation; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits an element that decide: 8, 16 or 32.

    References:
      Ba, Frey, "Adaptive dropout for training deep neural networks", NIPS 2013,
      https://papers.nips.cc/paper/5032-adaptive-dropout-for-training-deep-neural-networks.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer, preactivation = jaxnorm.linen.Standout(), jnp.array([-9.0, 0.0, 9.0])
      >>> x = jax.nn.relu(preactivation)
      >>> variables = layer.init(jax.random.key(0), preactivation, x, deterministic=True)
      >>> layer.apply(variables, preactivation, x, deterministic=False, rngs={"dropout": jax.random.key(1)})
      Array([0., 0., 9.], dtype=float32)
    """

    alpha_init: float = 1.0
    beta_init: float = 0.0
    param_dtype: Any = jnp.float32
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16

    @nn.compact
    def __call__(
        self,
        preactivation: jax.Array,
        x: jax.Array,
        deterministic: bool | jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Keeps some of x.

        Args:
          preactivation: array of floating point numbers, of x's shape.
          x: array of floating point numbers, any shape: what the layer makes of the preactivation.
          deterministic: as the field of this name; given once, here or there.
          rng: the key to draw with, instead of one from the stream.

        Returns:
          Array of x's shape and dtype.

        Raises:
          ValueError: if `deterministic` is given nowhere or twice; if a field does not fit.
          TypeError: if an array does not hold floating point numbers, or if rng is no key.
        """
        new = init_standout(alpha=self.alpha_init, beta=self.beta_init, param_dtype=self.param_dtype)
        params = StandoutParams(self.param("alpha", lambda _: new.alpha), self.param("beta", lambda _: new.beta))
        return apply_standout(params, preactivation, x, self, **self._drawing(deterministic, rng))
