"""Gated RMS normalization as a `flax.linen` module."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._modules import apply_sample_layer, feature_shape
from jaxnorm._norm.rms import gated_rms_norm
from jaxnorm.linen._norm_layer import affine_params, options_here


class GatedRMSNorm(nn.Module):
    """RMS normalization multiplied by the silu of a gate: `jaxnorm.gated_rms_norm`, with the fields of `RMSNorm`.

    `y = rms_norm(x) silu(gate)`; with `gate_first` it is `y = rms_norm(x silu(gate))`, as in Mamba-2.

    Attributes:
      epsilon: added to the mean square, a number or a traced scalar.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters.
      param_dtype: type of the scale.
      use_scale: whether there is a scale.
      scale_init: initializer of the scale.
      reduction_axes: the axis, or axes, over which the mean square is taken.
      feature_axes: the axis, or axes, of the scale; their sizes in ascending order are the shape of it.
      axis_name: name or names of mapped axes over which the features are divided, and the statistics pooled.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      gate_first: whether x is gated before the norm.
      activation: function of single elements that makes a factor of the gate.
      scale_offset: added to the scale; 1 where it is kept as its difference from 1, with a `scale_init` of zeros.
      use_fast_variance: accepted and without effect: there is no other.
      force_float32_reductions: accepted and without effect: statistics are always computed in float32 or wider.

    References:
      Dao, Gu, "Transformers are SSMs: generalized models and efficient algorithms through structured state space duality", ICML
      2024, https://arxiv.org/abs/2405.21060.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.GatedRMSNorm()
      >>> x, gate = jnp.array([[-3.0, 3.0]]), jnp.array([[0.0, 50.0]])
      >>> print(norm.apply(norm.init(jax.random.key(0), x, gate), x, gate).round(1))
      [[-0. 50.]]
    """

    epsilon: float | jax.Array = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_scale: bool = True
    scale_init: Callable[..., Any] = nn.initializers.ones
    reduction_axes: int | Sequence[int] = -1
    feature_axes: int | Sequence[int] = -1
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    gate_first: bool = False
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu
    scale_offset: float | jax.Array = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, gate: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes x.

        Args:
          x: array of real numbers, `[..., C]` or with the features on `feature_axes`.
          gate: array of x's shape.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if a field or the mask does not fit; if axis_name is not bound where the module is applied.
          TypeError: if x holds integers or bools.
        """
        params = affine_params(self, feature_shape(x, self.feature_axes, "feature_axes"))
        return apply_sample_layer(
            gated_rms_norm, params, x, mask=mask, dtype=self.dtype, gate=gate, **options_here(gated_rms_norm, self)
        )
