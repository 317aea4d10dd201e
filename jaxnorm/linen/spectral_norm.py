"""Spectral normalization as a `flax.linen` module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._modules import apply_spectral_norm, is_spectral
from jaxnorm.linen._weight_layer import call_with


class SpectralNorm(nn.Module):
    """Spectral normalization of a layer: `jaxnorm.spectral_norm` in place of `flax.linen.SpectralNorm`, with its variables.

    The layer is called with `kernel / sigma` for each of its parameters that is a matrix or more, where sigma is the largest
    singular value as steps of the power iteration find it.

    For each parameter `layer/kernel/u` and `layer/kernel/sigma` are in the collection `batch_stats`, as Flax's: checkpoints load
    both ways. A parameter that is 0 in training, as a new bias of several axes, is left alone from then on, as in Flax. Unlike
    there the state is not lost where a kernel is not finite once, products are exact on accelerators too, and only the kernel
    that the layer takes is rounded.

    Attributes:
      layer_instance: the layer.
      n_steps: steps of the power iteration in a call; with fewer than 1 nothing is normalized.
      epsilon: added to squares of lengths, a number or a traced scalar.
      dtype: type of the kernel that the layer takes; None infers it from the kernel and the state.
      param_dtype: type of the state.
      error_on_non_matrix: whether a parameter of more than two axes is an error, and no matrix of its last axis and the others.
      collection_name: the collection of the state.

    References:
      Miyato, Kataoka, Koyama, Yoshida, "Spectral normalization for generative adversarial networks", ICLR 2018,
      https://arxiv.org/abs/1802.05957.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.SpectralNorm(nn.Dense(2))
      >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 3)), update_stats=False)
      >>> y, updates = layer.apply(variables, jnp.ones((1, 3)), update_stats=True, mutable=["batch_stats"])
      >>> updates["batch_stats"]["layer_instance/kernel/u"].shape
      (1, 2)
    """

    layer_instance: nn.Module
    n_steps: int = 1
    epsilon: float | jax.Array = 1e-12
    dtype: Any = None
    param_dtype: Any = jnp.float32
    error_on_non_matrix: bool = False
    collection_name: str = "batch_stats"

    @nn.compact
    def __call__(self, *args: Any, update_stats: bool | jax.Array, **kwargs: Any) -> Any:
        """Calls the layer with its normalized kernels.

        Args:
          *args: as for the layer.
          update_stats: whether the state that was found is kept, as in training.
          **kwargs: as for the layer.

        Returns:
          What the layer returns.

        Raises:
          ValueError: if a parameter has more than two axes and must not; if epsilon is out of range.
        """
        names = self.collection_name

        def kernel_of(path: str, value: jax.Array, _: bool) -> jax.Array:
            if not is_spectral(value, self.n_steps, self.error_on_non_matrix, "Input"):
                return value
            key = None if self.has_variable(names, f"{path}/u") else self.make_rng("params")
            u = self.variable(names, f"{path}/u", jax.random.normal, key, (1, value.shape[-1]), self.param_dtype)
            sigma = self.variable(names, f"{path}/sigma", jnp.ones, (), self.param_dtype)
            options = {"steps": self.n_steps, "epsilon": self.epsilon, "dtype": self.dtype}
            y, new_u, new_sigma = apply_spectral_norm(value, u.value, sigma.value, update=update_stats, **options)
            if update_stats is not False:
                u.value, sigma.value = new_u, new_sigma
            return y

        return call_with(self, kernel_of, *args, **kwargs)
