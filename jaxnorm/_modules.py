"""What the Flax modules do besides keeping variables: the one place for it, so that `jaxnorm.linen` and `jaxnorm.nnx` agree."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._axes import canonical_axes
from jaxnorm._checks import Scalar, check_flag, check_float, check_output_dtype
from jaxnorm._norm.batch import frozen_batch_norm
from jaxnorm._norm.deviation import lp_batch_norm, mean_only_batch_norm
from jaxnorm._norm.evonorm import evonorm_b0, evonorm_b1, evonorm_b2, evonorm_s0, evonorm_s1, evonorm_s2
from jaxnorm._norm.mixtures import batch_instance_norm, switchable_norm, tracked_instance_norm, virtual_batch_norm
from jaxnorm._norm.modulation import dynamic_tanh
from jaxnorm._norm.noisy import noisy_batch_norm
from jaxnorm._norm.response import filter_response_norm
from jaxnorm._norm.weights import spectral_norm, weight_norm
from jaxnorm._norm.whitening import identity_covariance, iterative_norm
from jaxnorm._types import (
    AffineParams,
    CovarianceStats,
    DynamicTanhParams,
    EvoNormParams,
    FilterResponseParams,
    GatedParams,
    LpStats,
    RunningMean,
    RunningStats,
    RunningVar,
    SpectralStats,
    SwitchableParams,
    WeightNormParams,
    real_dtype,
    wide_dtype,
)

DrawKey = Callable[[], jax.Array]
"""Gives a key; called at most once, and only where something is drawn, so that counters of keys advance as in Flax."""


def feature_shape(x: jax.Array, axes: int | Sequence[int], name: str = "axis") -> tuple[int, ...]:
    """Returns the sizes of x along the feature axes, in ascending order of the axes; `name` is what the module calls them."""
    x = check_float("x", x, allow_complex=True)
    return tuple(x.shape[a] for a in canonical_axes(name, axes, x.ndim))


def output_dtype(dtype: Any, x: jax.Array, *params: jax.Array | None) -> np.dtype:
    """Returns `dtype`, or where it is None the type to which x and those parameters that exist promote."""
    return _promoted(x, *(p for p in params if p is not None)) if dtype is None else check_output_dtype(dtype, x)


def compute_dtype(dtype: Any, x: jax.Array, *params: jax.Array | None) -> np.dtype:
    """Returns the type in which x enters the layer: never narrower than x, so that only the output is rounded."""
    return _promoted(x.dtype, output_dtype(dtype, x, *params))


def promoted_dtype(*params: jax.Array | None) -> np.dtype | None:
    """Returns the type to which those parameters that exist promote; None if there are none."""
    found = [p for p in params if p is not None]
    return _promoted(*found) if found else None


def _promoted(*arrays_and_dtypes: Any) -> np.dtype:
    """Returns what these promote to; they are converted explicitly, so that it is right under strict promotion too."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*arrays_and_dtypes)


def _ones(_: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.ones(shape, dtype)


class Extra(NamedTuple):
    """A parameter besides scale and bias.

    Attributes:
      name: its name among the function's parameters.
      start: gives its first value, from the module; None where the module goes without.
      shape: its shape, where that is not the channels'.
      variable: its name as a variable of a module, where that is another.
    """

    name: str
    start: Callable[[Any], float | None] = lambda _: 1.0
    shape: tuple[int, ...] | None = None
    variable: str = ""


def extra_variables(layer: Any, module: Any, shape: tuple[int, ...]) -> dict[str, tuple[str, Callable[..., jax.Array]] | None]:
    """Returns for each parameter besides scale and bias its name as a variable, and what makes it; None for one left out."""

    def made(extra: Extra) -> tuple[str, Callable[..., jax.Array]] | None:
        start = extra.start(module)
        if start is None:
            return None
        own = shape if extra.shape is None else extra.shape
        return extra.variable or extra.name, lambda *_: jnp.full(own, start, module.param_dtype)

    return {extra.name: made(extra) for extra in layer.extras}


class SampleFunction(NamedTuple):
    """A norm of the example, or another layer without a state.

    Attributes:
      function: its function.
      params: the function's parameters: scale, bias, and the extras.
      extras: parameters besides scale and bias.
    """

    function: Callable[..., jax.Array]
    params: Any = AffineParams
    extras: tuple[Extra, ...] = ()


class BatchFunction(NamedTuple):
    """A layer with statistics of the batch.

    Attributes:
      function: its function.
      state: the function's state, of which the mean begins with 0.
      new_spread: makes the other statistic of a new module, from the module, the shape of the channels and a dtype.
      rows: gives the sizes of the parameters, and of the statistics, before those of the channels, from the module.
      params: the function's parameters: scale, bias, and the extras.
      extras: parameters besides scale and bias.
      names: what modules call a statistic whose name a parameter has.
    """

    function: Callable[..., Any]
    state: Any
    new_spread: Callable[[Any, tuple[int, ...], Any], jax.Array] = _ones
    rows: Callable[[Any], tuple[tuple[int, ...], tuple[int, ...]]] = lambda _: ((), ())
    params: Any = AffineParams
    extras: tuple[Extra, ...] = ()
    names: Mapping[str, str] = MappingProxyType({})

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names of the statistics as variables."""
        return tuple(self.names.get(name, name) for name in self.state._fields)

    def new_statistics(self, module: Any, shape: tuple[int, ...], mean_dtype: Any) -> dict[str, Callable[[], jax.Array]]:
        """Returns what makes each statistic of a new module, by its name."""
        spread = functools.partial(self.new_spread, module, shape, real_dtype(mean_dtype))
        return {name: functools.partial(jnp.zeros, shape, mean_dtype) if name == "mean" else spread for name in self.statistics}


FILTER_RESPONSE_NORM = SampleFunction(
    filter_response_norm,
    FilterResponseParams,
    (
        Extra("threshold", lambda module: 0.0 if module.use_threshold else None),
        Extra("epsilon", lambda module: module.learned_epsilon, shape=(), variable="epsilon_offset"),
    ),
)
DYNAMIC_TANH = SampleFunction(dynamic_tanh, DynamicTanhParams, (Extra("alpha", lambda module: module.alpha_init, shape=()),))

# Arguments of functions that modules name otherwise, or make.
_OWN = ("key", "params", "state", "kernel", "x", "train", "channel_axis", "where", "dtype")


def uncorrelated(module: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns the covariances that a new module begins with."""
    return identity_covariance(shape[0], module.group_size, dtype)


def options_of(function: Callable[..., Any], module: Any) -> dict[str, Any]:
    """Returns the arguments of a layer's function that its module has as attributes of the same name."""
    return {name: getattr(module, name) for name in _option_names(function) if hasattr(module, name)}


@functools.cache
def _option_names(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(function).parameters if name not in _OWN)


BATCH_INSTANCE_NORM = BatchFunction(batch_instance_norm, RunningStats, params=GatedParams, extras=(Extra("gate"),))
SWITCHABLE_NORM = BatchFunction(
    switchable_norm,
    RunningStats,
    params=SwitchableParams,
    extras=(Extra("mean_logits", shape=(3,)), Extra("var_logits", shape=(3,))),
)
TRACKED_INSTANCE_NORM = BatchFunction(tracked_instance_norm, RunningStats)
NOISY_BATCH_NORM = BatchFunction(noisy_batch_norm, RunningStats)
MEAN_ONLY_BATCH_NORM = BatchFunction(mean_only_batch_norm, RunningMean)
LP_BATCH_NORM = BatchFunction(lp_batch_norm, LpStats, names={"scale": "deviation"})
ITERATIVE_NORM = BatchFunction(iterative_norm, CovarianceStats, uncorrelated)
EVONORM_B0 = BatchFunction(evonorm_b0, RunningVar, params=EvoNormParams, extras=(Extra("v"),))
EVONORM_B1 = BatchFunction(evonorm_b1, RunningVar)
EVONORM_B2 = BatchFunction(evonorm_b2, RunningVar)
EVONORM_S0 = SampleFunction(evonorm_s0, EvoNormParams, (Extra("v"),))
EVONORM_S1 = SampleFunction(evonorm_s1)
EVONORM_S2 = SampleFunction(evonorm_s2)
VIRTUAL_BATCH_NORM = SampleFunction(virtual_batch_norm)


def apply_batch_layer(
    layer: BatchFunction,
    params: Any,
    state: Sequence[jax.Array],
    x: jax.Array,
    *,
    use_running_average: bool | jax.Array,
    mask: Any,
    axis: int | Sequence[int],
    dtype: Any,
    draw_key: DrawKey | None = None,
    **options: Any,
) -> tuple[jax.Array, Any]:
    """Returns y, and the new running statistics or None where `use_running_average` says now that they stay.

    A layer that draws gets a key for it; where it is known not to draw, none is taken from a stream.
    """
    canonical_axes("axis", axis, check_float("x", x, allow_complex=True).ndim)  # the function says `channel_axis`
    frozen = check_flag("use_running_average", use_running_average)
    drawn = () if draw_key is None else (jax.random.key(0) if frozen is True else draw_key(),)
    y, new_state = layer.function(
        *drawn,
        params,
        layer.state(*state),
        train=not frozen if isinstance(frozen, bool) else jnp.logical_not(frozen),
        channel_axis=axis,
        **_in_types_of_flax(params, x, mask, dtype),
        **options,
    )
    return y, None if frozen is True else new_state


def apply_sample_layer(
    function: Callable[..., jax.Array], params: Any, x: jax.Array, *, mask: Any = None, dtype: Any, **options: Any
) -> jax.Array:
    """Returns y of a norm of the example, or of another layer without a state; params are None where it has none."""
    given = () if params is None else (params,)
    return function(*given, **_in_types_of_flax(params or (), x, mask, dtype), **options)


def _in_types_of_flax(params: Sequence[jax.Array | None], x: jax.Array, mask: Any, dtype: Any) -> dict[str, Any]:
    """Returns x, `where` and `dtype` for a function that gives y in the type that a module of Flax gives it in."""
    x = check_float("x", x, allow_complex=True)
    wide = wide_dtype(compute_dtype(dtype, x, *params))
    return {
        # A half x is computed with in float32 as it is, and kept as it is for the gradient.
        "x": x if wide_dtype(x.dtype) == wide else x.astype(wide),
        "dtype": output_dtype(dtype, x, *params),
        **({} if mask is None else {"where": _where(mask, x)}),
    }


def apply_frozen_layer(
    params: AffineParams, state: RunningStats, x: jax.Array, *, axis: int | Sequence[int], epsilon: Scalar, dtype: Any
) -> jax.Array:
    """Returns y of a frozen batch norm."""
    options = _in_types_of_flax(params, x, None, dtype)
    return frozen_batch_norm(params, state, epsilon=epsilon, channel_axis=axis, **options)


def apply_weight_norm(
    kernel: jax.Array, gain: jax.Array | None, *, feature_axes: int | Sequence[int] | None, epsilon: Scalar, dtype: Any
) -> jax.Array:
    """Returns the kernel that weight norm makes of one; as in Flax, a weight that is an output of its own gives its sign."""
    axes = canonical_axes("feature_axes", () if feature_axes is None else feature_axes, kernel.ndim)
    dtype = output_dtype(dtype, kernel, gain)
    if len(axes) < kernel.ndim:
        return weight_norm(WeightNormParams(kernel, gain), channel_axis=axes, epsilon=epsilon, dtype=dtype)
    shifted = tuple(axis + 1 for axis in axes)
    return weight_norm(WeightNormParams(kernel[None], gain), channel_axis=shifted, epsilon=epsilon, dtype=dtype)[0]


def is_spectral(kernel: jax.Array, steps: int, matrix_only: bool, what: str) -> bool:
    """Whether a parameter has singular values to be normalized by, or raises where it has none of a matrix's but must."""
    if kernel.ndim > 2 and steps > 0 and matrix_only:
        raise ValueError(f"{what} is {kernel.ndim}D but error_on_non_matrix is True, got shape {list(kernel.shape)}")
    return kernel.ndim > 1 and steps > 0


def apply_spectral_norm(
    kernel: jax.Array, u: jax.Array, sigma: jax.Array, *, update: bool | jax.Array, steps: int, epsilon: Scalar, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the kernel that spectral norm makes of one, and the new `u`, with Flax's shape `[1, F]`, and `sigma`.

    As in Flax, a parameter that is 0, as a new bias of several axes, gets a `u` of 0, which leaves it alone from then on: its
    first step would else take it to a norm of 1.
    """
    dtype = output_dtype(dtype, kernel, u)
    state = SpectralStats(u[0], sigma)
    y, state = spectral_norm(state, kernel, train=update, steps=steps, epsilon=epsilon, dtype=dtype)
    return y, jnp.where(jnp.any(kernel != 0), state.u, jnp.zeros((), u.dtype))[None], state.sigma


def _where(mask: Any, x: jax.Array) -> jax.Array:
    """Returns a mask of any type and of any rank up to x's as bools of x's rank, or raises unless it broadcasts to x."""
    mask = jnp.asarray(mask, bool)
    missing = x.ndim - mask.ndim
    if missing < 0 or any(m not in (1, n) for m, n in zip(mask.shape, x.shape[missing:], strict=True)):
        raise ValueError(f"mask must broadcast to the shape of x, {list(x.shape)}, got shape {list(mask.shape)}")
    return jnp.expand_dims(mask, tuple(range(missing)))
