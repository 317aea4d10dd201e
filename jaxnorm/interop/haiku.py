"""Norms from and to the parameters and states of a haiku module, as NumPy arrays."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxnorm._axes import canonical_axes
from jaxnorm._checks import Scalar, check_size
from jaxnorm.interop import _kernels
from jaxnorm.interop._averages import UPDATES, check_decay, share_of_updates
from jaxnorm.interop._entries import Arrays, read_entries
from jaxnorm.interop._layers import arrays_of, containers, names_of, read_affine

_AFFINE = {"scale": "scale", "bias": "offset"}
_AVERAGES = {"mean": "mean_ema/average", "var": "var_ema/average"}
_HIDDEN = {"mean_hidden": "mean_ema/hidden", "var_hidden": "var_ema/hidden"}
_COUNTERS = {"mean_counter": "mean_ema/counter", "var_counter": "var_ema/counter"}
_LAYERS = {
    "batch_norm": {**_AFFINE, **_AVERAGES, **_HIDDEN},
    "layer_norm": _AFFINE,
    "rms_norm": {"scale": "scale"},
    "group_norm": _AFFINE,
    "instance_norm": _AFFINE,
    "spectral_norm": {"u": "u0", "sigma": "sigma"},
}


def from_haiku(
    entries: Mapping[str, Any],
    *,
    layer: str = "batch_norm",
    use_scale: bool = True,
    use_bias: bool | None = None,
    scale_offset: Scalar = 0.0,
    channel_axis: int | Sequence[int] = -1,
) -> Any:
    """Returns the parameters and state of a norm of haiku, from its entries of haiku's parameters and states.

    `scale = scale`, `bias = offset`, `mean = mean_ema/average`, `var = var_ema/average`, without the axes of size 1 that haiku
    keeps. `average` is what inference uses: `hidden / (1 - decay_rate^counter)`, the average without its start of 0. The next one
    is `momentum average + (1 - momentum) batch` with
    `momentum = decay_rate (1 - decay_rate^counter) / (1 - decay_rate^(counter + 1))`, so that `hidden` is not needed, and
    `presets("haiku", decay_rate=..., count=...)` gives the momentum from a count that begins with `counter`.

    A module that was never updated has averages of 0, in haiku's inference too, and its first update, with a count and so a
    momentum of 0, sets them to the statistics of the batch.

    Args:
      entries: NumPy arrays by haiku's names, of a batch norm
        `{**params["batch_norm"], "mean_ema": state["batch_norm/~/mean_ema"], "var_ema": state["batch_norm/~/var_ema"]}`.
      layer: which norm, by the name of our function: `"batch_norm"`, `"layer_norm"`, `"rms_norm"`, `"group_norm"`,
        `"instance_norm"` or `"spectral_norm"`.
      use_scale: whether there is a scale, haiku's `create_scale`.
      use_bias: whether there is a bias, haiku's `create_offset`; None for what haiku's layer can have.
      scale_offset: added to the scale: 1 where it is kept as its difference from 1. (`rms_norm` takes it as it is kept.)
      channel_axis: the axis of x, or axes, along which the entries vary, as 1 for `data_format="channels_first"`.

    Returns:
      What the function's `init_` returns: `(AffineParams, RunningStats)`, `AffineParams` of a layer without state, and
      `SpectralStats` of a spectral norm, which has no kernel in haiku. Types are as in `from_torch`.

    Raises:
      ValueError: if haiku has no such layer; if entries are missing, extra or misshapen, each by its name; if the counters of
        both averages differ.
      TypeError: if entries is no dict; if one is no concrete array of floating point numbers, or a counter no integer.

    Example:
      >>> import numpy as np
      >>> from jaxnorm.interop import from_haiku
      >>> ones = np.ones((1, 2), np.float32)
      >>> average = {"hidden": 0.1 * ones, "average": ones, "counter": np.array(1)}
      >>> params, state = from_haiku({"scale": ones, "offset": 0 * ones, "mean_ema": average, "var_ema": average})
      >>> print(params.bias, state.mean)
      [0. 0.] [1. 1.]
    """
    of = f"haiku's {layer}"
    names = names_of("haiku", layer, _LAYERS)
    if layer == "spectral_norm":
        arrays = read_entries(entries, names, of=of, faults=_spectral_faults)
        return _kernels.spectral_state(arrays["u"], arrays["sigma"])
    counters = _COUNTERS if layer == "batch_norm" else None
    arrays = read_affine(entries, names, of=of, use_scale=use_scale, use_bias=use_bias, more=counters, one_axis=False)
    if counters and arrays["mean_counter"] != arrays["var_counter"]:
        raise ValueError(
            f"entries of {of}: 'mean_ema/counter' and 'var_ema/counter' must be equal, got {arrays['mean_counter']} and "
            f"{arrays['var_counter']}"
        )
    squeezed = {
        ours: array if ours in _COUNTERS else _without_ones(array, layer, channel_axis, f"entries[{names[ours]!r}]")
        for ours, array in arrays.items()
    }
    return containers(layer, squeezed, scale_offset)


def to_haiku(
    params: Any,
    state: Any = None,
    *,
    layer: str = "batch_norm",
    scale_offset: Scalar = 0.0,
    ndim: int | None = None,
    channel_axis: int | Sequence[int] = -1,
    decay_rate: float | None = None,
    count: int | None = None,
) -> dict[str, Any]:
    """Returns the entries of a norm of haiku, from parameters and state.

    `scale = scale`, `offset = bias`, `average = mean` and `var`, and `hidden = average (1 - decay_rate^count)`: the inverse of
    `from_haiku`, equal to the bit from here to haiku and back, and from haiku and back but for the rounding of `hidden`. Without
    a count `hidden = average`, and the counter is one after which nothing is left of the start: plain averages from then on.

    Args:
      params: `AffineParams`, or the `SpectralStats` of a spectral norm.
      state: `RunningStats`; left out for a layer without.
      layer: which norm, as in `from_haiku`.
      scale_offset: subtracted from the scale.
      ndim: rank of x, for the axes of size 1 that haiku keeps: of a batch norm, and where channel_axis is not the last.
      channel_axis: the axis of x, or axes, of the channels.
      decay_rate: haiku's, in [0, 1), for a count.
      count: the updates that the averages have seen; None for so many that nothing is left of the start.

    Returns:
      A dict of NumPy arrays, and of a batch norm of the dicts `mean_ema` and `var_ema`.

    Raises:
      ValueError: if haiku has no such layer; if parts are misshapen, or there is a state where the layer has none; if ndim is
        needed and not given, or does not have the axes; if a count comes without a decay_rate, or one is out of range.
      TypeError: if params or state are not those of the layer, or hold no concrete arrays.

    Example:
      >>> import jaxnorm
      >>> from jaxnorm.interop import to_haiku
      >>> entries = to_haiku(*jaxnorm.init_batch_norm(3), ndim=4, decay_rate=0.9, count=1)
      >>> print(entries["scale"].shape, entries["var_ema"]["hidden"].round(2).ravel())
      (1, 1, 1, 3) [0.1 0.1 0.1]
    """
    names = names_of("haiku", layer, _LAYERS)
    if layer == "spectral_norm":
        u, sigma = _kernels.spectral_state_arrays(params)
        return {"u0": u[None], "sigma": sigma}
    arrays = arrays_of(params, state, layer, names, of=f"haiku's {layer}", scale_offset=scale_offset, one_axis=False)
    arrays = {ours: _with_ones(array, layer, ndim, channel_axis) for ours, array in arrays.items()}
    entries: dict[str, Any] = {names[ours]: array for ours, array in arrays.items() if ours in _AFFINE}
    if layer == "batch_norm":
        if count is not None and decay_rate is None:
            raise ValueError(f"decay_rate must be given with a count, got {decay_rate!r} and {count!r}")
        share, counter = 1.0, UPDATES
        if count is not None:
            counter = check_size("count", count, low=0)
            share = share_of_updates(check_decay("decay_rate", decay_rate), counter)
        for ours, name in (("mean", "mean_ema"), ("var", "var_ema")):
            average = arrays[ours]
            hidden = average * np.asarray(share, average.dtype)
            entries[name] = {"hidden": hidden, "average": average, "counter": np.array(counter, np.int32)}
    return entries


def _without_ones(array: np.ndarray, layer: str, channel_axis: Any, name: str) -> np.ndarray:
    axes = (channel_axis,) if isinstance(channel_axis, int) else tuple(channel_axis)
    if array.ndim == len(axes):  # as haiku keeps what varies along the last axis
        return array
    if layer == "group_norm":  # which keeps no axis for the batch
        array = array[None]
    kept = canonical_axes("channel_axis", channel_axis, array.ndim)
    wrong = [axis for axis, size in enumerate(array.shape) if size != 1 and axis not in kept]
    if wrong:
        raise ValueError(
            f"{name} must have size 1 along every axis but channel_axis, {channel_axis!r}, got shape {list(array.shape)}"
        )
    return array.reshape(tuple(array.shape[axis] for axis in kept))


def _with_ones(array: np.ndarray, layer: str, ndim: int | None, channel_axis: Any) -> np.ndarray:
    axes = (channel_axis,) if isinstance(channel_axis, int) else tuple(channel_axis)
    if len(axes) != array.ndim:
        raise ValueError(f"channel_axis must name the {array.ndim} axes of the scale and bias, got {channel_axis!r}")
    if ndim is None and (layer == "batch_norm" or axes != (-1,)):
        raise ValueError(f"ndim must be given for haiku's {layer} with channel_axis {channel_axis!r}: the rank of x")
    if ndim is None:
        return array
    kept = canonical_axes("channel_axis", channel_axis, check_size("ndim", ndim))
    if layer != "batch_norm" and kept == (ndim - 1,):
        return array
    sizes = dict(zip(kept, array.shape, strict=True))
    shape = tuple(sizes.get(axis, 1) for axis in range(ndim))
    return array.reshape(shape[1:] if layer == "group_norm" else shape)


def _spectral_faults(arrays: Arrays) -> Iterator[str]:
    u, sigma = arrays.get("u"), arrays.get("sigma")
    if u is not None and (u.ndim != 2 or u.shape[0] != 1):
        yield f"'u0' must have shape [1, F], got {list(u.shape)}"
    if sigma is not None and sigma.shape:
        yield f"'sigma' must have shape [], got {list(sigma.shape)}"
