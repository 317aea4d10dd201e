"""Spectral normalization as a `flax.nnx` module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._modules import apply_spectral_norm, is_spectral
from jaxnorm._types import wide_dtype
from jaxnorm.nnx._weight_layer import call_with, parameters

_NORMAL = nnx.initializers.normal()


class SpectralNorm(nnx.Module):
    """Spectral normalization of a layer: `jaxnorm.spectral_norm` in place of `flax.nnx.SpectralNorm`, with its arguments.

    The layer is called with `kernel / sigma` for each of its parameters that is a matrix or more, where sigma is the largest
    singular value as steps of the power iteration find it.

    The layer's own kernels are what is learned, and are never overwritten, as Flax's module does in every call. The state, in
    `batch_stats` by the path of the parameter and `u` or `sigma`, is kept in float32 or wider.

    A parameter that is 0 in training, as a new bias of several axes, is left alone from then on, as in Flax.

    Args:
      layer_instance: the layer.
      n_steps: steps of the power iteration in a call; with fewer than 1 nothing is normalized.
      epsilon: added to squares of lengths, a number or a traced scalar.
      dtype: type of the kernel that the layer takes; None infers it from the kernel and the state.
      param_dtype: type of the state, which is float32 at least.
      error_on_non_matrix: whether a parameter of more than two axes is an error, and no matrix of its last axis and the others.
      update_stats: whether the state that was found in a call is kept, as in training; the call's argument goes before it, and
        `train()` and `eval()` of a model set it.
      rngs: the streams, of which `params` gives the keys of the state.

    References:
      Miyato, Kataoka, Koyama, Yoshida, "Spectral normalization for generative adversarial networks", ICLR 2018,
      https://arxiv.org/abs/1802.05957.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> linear = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
      >>> linear.kernel.set_value(jnp.diag(jnp.array([4.0, 1.0])))
      >>> layer = jaxnorm.nnx.SpectralNorm(linear, n_steps=20, rngs=nnx.Rngs(0))
      >>> print(layer(jnp.array([[1.0, 1.0]])).round(3))
      [[1.   0.25]]
      >>> print(linear.kernel[...])
      [[4. 0.]
       [0. 1.]]
    """

    def __init__(
        self,
        layer_instance: nnx.Module,
        *,
        n_steps: int = 1,
        epsilon: float | jax.Array = 1e-12,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        error_on_non_matrix: bool = False,
        update_stats: bool = True,
        rngs: nnx.Rngs,
    ):
        """Makes the state; the arguments are those of the class."""
        self.layer_instance = layer_instance
        self.n_steps = n_steps
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.error_on_non_matrix = error_on_non_matrix
        self.use_running_average = not update_stats  # which `train()` and `eval()` know by this name
        wide = wide_dtype(param_dtype)
        stats: dict[Any, nnx.BatchStat] = {}
        for path, value in self._normalized().items():
            stats[(*path, "u")] = nnx.BatchStat(_NORMAL(rngs.params(), (1, value.shape[-1]), wide))
            stats[(*path, "sigma")] = nnx.BatchStat(jnp.ones((), wide))
        self.batch_stats = nnx.data(stats)

    def __call__(self, x: Any, update_stats: bool | jax.Array | None = None, **kwargs: Any) -> Any:
        """Calls the layer with its normalized kernels.

        Args:
          x: as for the layer.
          update_stats: whether the state that was found is kept; goes before the attribute.
          **kwargs: as for the layer.

        Returns:
          What the layer returns.

        Raises:
          ValueError: if a parameter has more than two axes and must not; if epsilon is out of range; if the layer has other
            parameters than it had.
        """
        update = not self.use_running_average if update_stats is None else update_stats
        normalized = self._normalized()
        known = {path[:-1] for path in self.batch_stats}
        if set(normalized) != known:
            raise ValueError(f"layer_instance must have the parameters that it had, {list(known)}, got {list(normalized)}")
        options: dict[str, Any] = {"steps": self.n_steps, "epsilon": self.epsilon, "dtype": self.dtype, "update": update}
        values = {}
        for path, value in normalized.items():
            u, sigma = (self.batch_stats[(*path, name)] for name in ("u", "sigma"))
            values[path], new_u, new_sigma = apply_spectral_norm(value, u[...], sigma[...], **options)
            if update is not False:
                u[...], sigma[...] = new_u, new_sigma
        return call_with(self.layer_instance, values, x, **kwargs)

    def set_view(self, update_stats: bool | None = None, use_running_average: bool | None = None) -> None:
        """Sets the flag in a view of the module, as `nnx.view` asks for.

        Args:
          update_stats: whether the state that was found in a call is kept.
          use_running_average: the opposite, by the name that other norms have for it.
        """
        if update_stats is not None:
            self.use_running_average = not update_stats
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _normalized(self) -> dict[Any, jax.Array]:
        found = ((path, variable[...]) for path, variable in parameters(self.layer_instance).items())
        return {
            path: value
            for path, value in found
            if is_spectral(value, self.n_steps, self.error_on_non_matrix, "Layer instance parameter")
        }
