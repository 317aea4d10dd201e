"""Noisy linear layers as a `flax.linen` module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._dropout.noisy_linear import noisy_linear_start
from jaxnorm._modules import feature_shape
from jaxnorm._noise_modules import apply_noisy_linear
from jaxnorm._types import NoisyLinearParams
from jaxnorm.linen._noise_layer import DrawingModule


class NoisyLinear(DrawingModule):
    """A dense layer with learned Gaussian noise on its weights (NoisyNet): `jaxnorm.noisy_linear`.

    Training: `y = x (kernel + kernel_std e) + bias + bias_std d`. Inference (`deterministic`): `y = x kernel + bias`. The
    parameters are `kernel`, `bias`, `kernel_std` and `bias_std`, with the paper's first values.

    Attributes:
      features: number of outputs.
      factorised: whether a weight's noise is the product of one for its input and one for its output.
      use_bias: whether there is a bias.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters.
      param_dtype: type of the parameters.
      deterministic: whether to leave the noise out; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits of which a normal number is made: 16 or 32.

    References:
      Fortunato, Azar, Piot, Menick, Osband, Graves, Mnih, Munos, Hassabis, Pietquin, Blundell, Legg, "Noisy networks for
      exploration", ICLR 2018, https://arxiv.org/abs/1706.10295.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.NoisyLinear(3, deterministic=False)
      >>> variables = layer.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, jnp.ones((2, 4)))
      >>> jax.tree.map(jnp.shape, variables["params"])
      {'bias': (3,), 'bias_std': (3,), 'kernel': (4, 3), 'kernel_std': (4, 3)}
    """

    features: int
    factorised: bool = True
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool | jax.Array | None = None, rng: jax.Array | None = None) -> jax.Array:
        """Applies the layer.

        Args:
          x: array of floating point numbers, `[..., C]`.
          deterministic: as the field of this name; given once, here or there.
          rng: the key to draw with, instead of one from the stream.

        Returns:
          Array of shape `[..., features]`, in `dtype`.

        Raises:
          ValueError: if `deterministic` is given nowhere or twice; if a field does not fit.
          TypeError: if x does not hold floating point numbers, or if rng is no key.
        """
        (inputs,) = feature_shape(x, -1)
        start = noisy_linear_start(inputs, self.features, factorised=self.factorised)
        made = {
            name: self.param(name, initializer, shape, self.param_dtype)
            for name, (initializer, shape) in start.items()
            if self.use_bias or name.startswith("kernel")
        }
        return apply_noisy_linear(
            NoisyLinearParams(**{"bias": None, "bias_std": None, **made}),
            x,
            self,
            **self._drawing(deterministic, rng),
        )
