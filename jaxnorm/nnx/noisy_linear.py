"""Noisy linear layers as a `flax.nnx` module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._dropout.noisy_linear import init_noisy_linear
from jaxnorm._noise_modules import apply_noisy_linear
from jaxnorm._types import NoisyLinearParams
from jaxnorm.nnx._noise_layer import Keys, NoiseModule


class NoisyLinear(NoiseModule):
    """A dense layer with learned Gaussian noise on its weights (NoisyNet): `jaxnorm.noisy_linear`.

    Training: `y = x (kernel + kernel_std e) + bias + bias_std d`. Inference (`deterministic`): `y = x kernel + bias`. The
    parameters are `kernel`, `bias`, `kernel_std` and `bias_std`, with the paper's first values.

    Args:
      in_features: number of inputs.
      out_features: number of outputs.
      factorised: whether a weight's noise is the product of one for its input and one for its output.
      use_bias: whether there is a bias.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters.
      param_dtype: type of the parameters.
      deterministic: whether to leave the noise out; set by `train()` and `eval()`.
      rng_collection: name of the stream of keys.
      rngs: the streams, of which `params` gives the key of the parameters, and that of the noise is forked.
      bits: random bits of which a normal number is made: 16 or 32.

    References:
      Fortunato, Azar, Piot, Menick, Osband, Graves, Mnih, Munos, Hassabis, Pietquin, Blundell, Legg, "Noisy networks for
      exploration", ICLR 2018, https://arxiv.org/abs/1706.10295.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> layer = jaxnorm.nnx.NoisyLinear(4, 3, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 4))).shape, layer.kernel_std.shape
      ((2, 3), (4, 3))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        factorised: bool = True,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        deterministic: bool | jax.Array | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
        bits: int = 16,
    ):
        """Makes the parameters and forks the stream of keys; the arguments are those of the class."""
        super().__init__(deterministic=deterministic, rng_collection=rng_collection, rngs=rngs, bits=bits)
        made = init_noisy_linear(
            rngs.params(), in_features, out_features, factorised=factorised, use_bias=use_bias, param_dtype=param_dtype
        )
        self.kernel, self.kernel_std = nnx.Param(made.kernel), nnx.Param(made.kernel_std)
        self.bias, self.bias_std = (nnx.data(None if part is None else nnx.Param(part)) for part in (made.bias, made.bias_std))
        self.factorised = factorised
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, deterministic: bool | jax.Array | None = None, rngs: Keys | None = None) -> jax.Array:
        """Applies the layer.

        Args:
          x: array of floating point numbers, `[..., in_features]`.
          deterministic: goes before the attribute of this name.
          rngs: a key, a stream or streams, to draw with instead of the layer's own.

        Returns:
          Array of shape `[..., out_features]`, in `dtype`.

        Raises:
          ValueError: if `deterministic` is given nowhere, or nothing to draw with is; if an attribute does not fit.
          TypeError: if x does not hold floating point numbers, or if rngs is nothing to draw with.
        """
        bias, bias_std = (None if part is None else part[...] for part in (self.bias, self.bias_std))
        params = NoisyLinearParams(self.kernel[...], bias, self.kernel_std[...], bias_std)
        return apply_noisy_linear(params, x, self, **self._drawing(deterministic, rngs))
