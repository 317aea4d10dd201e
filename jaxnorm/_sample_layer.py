"""What every norm of the example does alike: it has no state, and training is inference.

Each is normalized by itself: `y = scale (x - mean) / sqrt(var + epsilon) + bias`. The norms differ in what the mean and the
variance are taken over, and in whether a mean is subtracted at all.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._checks import (
    Scalar,
    check_affine,
    check_axis_name,
    check_output_dtype,
    check_scalar,
    check_where,
)
from jaxnorm._moments import AxisName, MeanSquare, Moments, mean_square, moments
from jaxnorm._normalize import normalize
from jaxnorm._types import AffineParams

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SampleCall:
    """A call of a norm of the example, whose arguments are checked.

    Attributes:
      params: scale and bias.
      x: the input.
      where: which elements count, or None.
      epsilon: added to the variance.
      reduced: the axes over which the statistics are taken.
      features: the axes along which scale and bias vary.
      axis_name: mapped axes over which statistics are pooled.
      axis_index_groups: groups along them that are pooled separately.
      dtype: type of the output.
    """

    params: AffineParams
    x: jax.Array
    where: jax.Array | None
    epsilon: Scalar
    reduced: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    features: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    axis_name: AxisName = dataclasses.field(metadata=_STATIC)
    axis_index_groups: tuple[tuple[int, ...], ...] | None = dataclasses.field(metadata=_STATIC)
    dtype: np.dtype = dataclasses.field(metadata=_STATIC)

    def moments(self, wide: jax.Array) -> Moments:
        """Returns the moments of every example, through whose `widened` x gradients flow."""
        return moments(self.x, self.reduced, wide=wide, **self._pooling)

    def mean_square(self, wide: jax.Array) -> MeanSquare:
        """Returns the mean square of every example, through whose `widened` x gradients flow."""
        return mean_square(self.x, self.reduced, wide=wide, **self._pooling)

    @property
    def _pooling(self) -> dict[str, Any]:
        return {"where": self.where, "axis_name": self.axis_name, "axis_index_groups": self.axis_index_groups}

    def normalize(self, wide: jax.Array, mean: jax.Array | None, var: jax.Array, n: jax.Array, **then: Any) -> jax.Array:
        """Returns x normalized by statistics of n elements; by none, what nothing is known of gives the bias."""
        if self.where is not None:
            var = jnp.where(n > 0, var, jnp.inf)  # 1 / sqrt(inf) = 0
        return normalize(
            self.x,
            mean,
            var,
            *self.params,
            epsilon=self.epsilon,
            axes=self.reduced,
            wide=wide,
            feature_axes=self.features,
            where=self.where,
            dtype=self.dtype,
            **then,
        )


def checked_sample_call(
    params: AffineParams,
    x: jax.Array,
    *,
    epsilon: Scalar,
    reduced: tuple[int, ...],
    features: tuple[int, ...],
    where: jax.Array | None,
    axis_name: AxisName,
    axis_index_groups: Sequence[Sequence[int]] | None,
    dtype: Any,
    of: str = "features",
) -> SampleCall:
    """Checks the arguments that all norms have in common.

    Args:
      params: as given to the layer, like all that are not named here.
      x: its input, known to be an array of floating point numbers.
      epsilon: added to the variance.
      reduced: the axes over which the statistics are taken, counted from the front.
      features: the axes along which scale and bias vary, likewise.
      where: which elements count.
      axis_name: mapped axes.
      axis_index_groups: groups along them.
      dtype: type of the output; None for x's.
      of: what an error calls the sizes of x along the features.
    """
    check_scalar("epsilon", epsilon, low=0)
    check_affine(params, tuple(x.shape[a] for a in features), like=x, of=of)
    axis_name, axis_index_groups = check_axis_name(axis_name, axis_index_groups)
    return SampleCall(
        params=params,
        x=x,
        where=None if where is None else check_where(where, x),
        epsilon=epsilon,
        reduced=reduced,
        features=features,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=check_output_dtype(dtype, x),
    )
