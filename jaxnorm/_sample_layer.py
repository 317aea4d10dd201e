"""What every norm of the example does alike: it has no state, and training is inference.

Each is normalized by itself: `y = scale (x - mean) / sqrt(var + epsilon) + bias`. The norms differ in what the mean and the
variance are taken over, and in whether a mean is subtracted at all.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._axes import canonical_axes, other_axes
from jaxnorm._checks import (
    Scalar,
    check_affine,
    check_axis_name,
    check_float,
    check_output_dtype,
    check_scalar,
    check_where,
)
from jaxnorm._moments import AxisName, MeanSquare, mean_square, moments
from jaxnorm._normalize import inverse_deviation, rescale
from jaxnorm._types import AffineParams, Moments

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SampleCall:
    """A call of a norm of the example, whose arguments are checked.

    Attributes:
      params: scale and bias, and what else there is.
      x: the input.
      where: which elements count, or None.
      epsilon: added to the variance.
      reduced: the axes over which the statistics are taken.
      features: the axes along which scale and bias vary.
      axis_name: mapped axes over which statistics are pooled.
      axis_index_groups: groups along them that are pooled separately.
      dtype: type of the output.
    """

    params: Any
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
        return self.rescale(wide, mean, self.factor(var, n), **then)

    def factor(self, var: jax.Array, n: jax.Array) -> jax.Array:
        """Returns `1 / sqrt(var + epsilon)`, but 0 where nothing is counted."""
        return inverse_deviation(var if self.where is None else jnp.where(n > 0, var, jnp.inf), self.epsilon)

    @property
    def kept(self) -> tuple[int, ...]:
        """The axes that the statistics have."""
        return other_axes(self.reduced, self.x.ndim)

    def rescale(self, wide: jax.Array, mean: jax.Array | None, factor: jax.Array, **then: Any) -> jax.Array:
        """Returns `(x - mean) factor`, with the layer's own scale and bias."""
        then = {"where": self.where, "dtype": self.dtype} | then
        return rescale(
            self.x,
            mean,
            factor,
            self.params.scale,
            self.params.bias,
            axes=self.reduced,
            wide=wide,
            feature_axes=self.features,
            **then,
        )


def checked_sample_call(
    params: Any,
    x: jax.Array,
    *,
    kind: Any = AffineParams,
    others: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
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
      kind: the NamedTuple that the parameters must be.
      others: shapes of parameters besides scale and bias, where these are not those of the features.
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
    check_affine(params, tuple(x.shape[a] for a in features), like=x, of=of, kind=kind, others=others)
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


def checked_channel_call(
    params: Any,
    x: jax.Array,
    *,
    channel_axis: int | Sequence[int],
    reduction_axes: int | Sequence[int] | None,
    takes_complex: bool = False,
    **options: Any,
) -> SampleCall:
    """Checks the arguments of a norm of each channel of each example, over its positions; options of `checked_sample_call`."""
    x = check_float("x", x, allow_complex=takes_complex)
    channels = canonical_axes("channel_axis", channel_axis, x.ndim)
    reduced = position_axes(reduction_axes, channels, x.ndim)
    if reduction_axes is not None and len(reduced) < len(canonical_axes("reduction_axes", reduction_axes, x.ndim)):
        raise ValueError(f"reduction_axes must not name an axis of the channels, {channel_axis!r}, got {reduction_axes!r}")
    return checked_sample_call(params, x, reduced=reduced, features=channels, of="channels", **options)


def position_axes(reduction_axes: int | Sequence[int] | None, channels: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Returns the axes over which the moments of a channel are taken: these, or all but the first and the channels'."""
    if reduction_axes is None:
        if 0 in channels:
            raise ValueError("channel_axis must not be the first axis, that of the batch, unless reduction_axes are given, got 0")
        reduction_axes = range(1, ndim)
    return tuple(a for a in canonical_axes("reduction_axes", reduction_axes, ndim) if a not in channels)
