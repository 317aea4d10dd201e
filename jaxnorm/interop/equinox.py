"""Norms from and to the arrays of an equinox module and its state, as NumPy arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnorm._checks import Scalar, check_choice, check_size
from jaxnorm.interop import _kernels
from jaxnorm.interop._averages import UPDATES, check_decay, share_of_updates
from jaxnorm.interop._layers import SEVERAL_AXES, arrays_of, check_state, containers, names_of, read_affine

_AFFINE = {"scale": "weight", "bias": "bias"}
_COUNTER, _FIRST_TIME = {"count": "counter"}, {"first": "first_time"}
_LAYERS = {
    "batch_norm": {**_AFFINE, "mean": "mean", "var": "var"},
    "layer_norm": _AFFINE,
    "rms_norm": _AFFINE,
    "group_norm": _AFFINE,
    "weight_norm": {"gain": "g", "kernel": "weight"},
    "spectral_norm": {"kernel": "weight", "u": "u", "v": "v"},
}


def from_equinox(
    entries: Mapping[str, Any],
    *,
    layer: str = "batch_norm",
    use_scale: bool = True,
    use_bias: bool | None = None,
    scale_offset: Scalar = 0.0,
    mode: str = "batch",
    momentum: float = 0.99,
    debias_var: bool = False,
) -> Any:
    """Returns the parameters and state of a norm of equinox, from its arrays.

    `scale = weight`, `bias = bias`. In mode "batch" equinox keeps hidden averages, and inference divides them:
    `mean = mean / (1 - momentum^counter)`, `var = var / (1 - momentum^counter)`; so they come out here, and
    `presets("equinox", count=...)` gives the momentum that goes on as equinox does, from a count that begins with `counter`. But
    the hidden variance begins with 1, which equinox divides too: after few updates it infers with too large a variance, at a
    momentum of 0.99 by 99 after the first and by 0.58 after 100. With `debias_var` it is
    `(var - momentum^counter) / (1 - momentum^counter)`, the average of the batches' alone.

    In mode "ema", equinox's default, the averages are as inference uses them; equinox normalizes by them in training too, which
    no layer here does.

    - weight norm: the direction `[out, in, ...]` becomes `[..., in, out]`, and the gain `[out, 1, ...]` `[out]`.
    - spectral norm: the kernel likewise; u is the state's, with `sigma = u^T W v`, and v is not needed, as in `from_torch`.

    Args:
      entries: NumPy arrays by equinox's names; of a batch norm `mean` and `var` are `state.get(norm.batch_state_index)` and
        `counter` is `state.get(norm.batch_counter)`; in mode "ema" `state.get(norm.ema_state_index)`, and `first_time`
        `state.get(norm.ema_first_time_index)`. Of a weight norm `weight` and `g`; of a spectral norm `weight`, and `u` and `v`
        are `state.get(norm.uv_index)`.
      layer: which norm, by the name of our function: `"batch_norm"`, `"layer_norm"`, `"rms_norm"`, `"group_norm"`,
        `"weight_norm"` or `"spectral_norm"`.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias; None for what equinox's layer has by default: a bias, also of an RMS norm.
      scale_offset: added to the scale: 1 where it is kept as its difference from 1. (`rms_norm` takes it as it is kept.)
      mode: equinox's mode of the batch norm, "batch" or "ema".
      momentum: equinox's, in mode "batch".
      debias_var: whether to take out what is left of the hidden variance's start.

    Returns:
      What the function's `init_` returns: `(AffineParams, RunningStats)`, or `AffineParams` of a layer without state;
      `WeightNormParams`; and of a spectral norm `(kernel, SpectralStats)`. Types are as in `from_torch`.

    Raises:
      ValueError: if equinox has no such layer; if entries are missing, extra or misshapen, each by its name; if momentum is not
        in [0, 1); if the averages of mode "ema" were never set; if debias_var meets a counter of 0.
      TypeError: if entries is no dict; if one is no concrete array of floating point numbers, or the counter no integer.

    Example:
      >>> import numpy as np
      >>> from jaxnorm.interop import from_equinox
      >>> ones = np.ones(2, np.float32)
      >>> entries = {"weight": ones, "bias": ones, "mean": 0.19 * ones, "var": ones, "counter": np.array(2)}
      >>> params, state = from_equinox(entries, momentum=0.9, debias_var=True)
      >>> print(state.mean.round(3), state.var.round(3))
      [1. 1.] [1. 1.]
    """
    of = f"equinox's {layer}"
    names = names_of("equinox", layer, _LAYERS)
    if layer == "weight_norm":
        return _kernels.weight_norm_of(entries, names, of)
    if layer == "spectral_norm":
        return _kernels.spectral_norm_of(entries, names, of)
    check_choice("mode", mode, ("batch", "ema"))
    counter = None if layer != "batch_norm" else _COUNTER if mode == "batch" else _FIRST_TIME
    if not use_scale and use_bias is None:
        use_bias = layer == "rms_norm" or layer == "layer_norm"
    arrays = read_affine(
        entries, names, of=of, use_scale=use_scale, use_bias=use_bias, more=counter, one_axis=layer not in SEVERAL_AXES
    )
    if counter is _FIRST_TIME and arrays["first"]:
        raise ValueError(f"entries of {of}: 'first_time' must be False, since its averages were never set, got True")
    if counter is _COUNTER:
        decay, count = check_decay("momentum", momentum), check_size("counter", int(arrays["count"]), low=0)
        if debias_var and not count:
            raise ValueError(f"entries of {of}: 'counter' must be at least 1 for debias_var, got 0")
        share = share_of_updates(decay, count) or 1.0  # before the first update equinox takes them as they are
        start = 1 - share if debias_var else 0.0
        arrays["mean"] = _times(arrays["mean"], 1 / share)
        arrays["var"] = _times(arrays["var"] - np.asarray(start, arrays["var"].dtype), 1 / share)
    return containers(layer, arrays, scale_offset)


def to_equinox(
    params: Any,
    state: Any = None,
    *,
    layer: str = "batch_norm",
    scale_offset: Scalar = 0.0,
    mode: str = "batch",
    momentum: float = 0.99,
    count: int | None = None,
) -> dict[str, Any]:
    """Returns the arrays of a norm of equinox, from parameters and state.

    `weight = scale`, `bias = bias`, and of mode "batch" the hidden `mean = mean (1 - momentum^count)` and `var` likewise, which
    equinox divides again: the inverse of `from_equinox`. Without a count they are the averages themselves, and the counter is one
    after which nothing is left of the start: to the bit what comes back, and equinox goes on with plain averages.

    Args:
      params: `AffineParams`, `WeightNormParams`, or the kernel of a spectral norm.
      state: `RunningStats` or `SpectralStats`; left out for a layer without.
      layer: which norm, as in `from_equinox`.
      scale_offset: subtracted from the scale.
      mode: equinox's mode of the batch norm, "batch" or "ema".
      momentum: equinox's, in mode "batch", for a count.
      count: the updates that the averages have seen; None for so many that nothing is left of the start.

    Returns:
      A dict of NumPy arrays by the names of `from_equinox`, for `eqx.tree_at` and `state.set`, which takes `int(it["counter"])`.

    Raises:
      ValueError: if equinox has no such layer; if parts are misshapen, or there is a state where the layer has none; if momentum
        or count is out of range.
      TypeError: if params or state are not those of the layer, or hold no concrete arrays.

    Example:
      >>> import jaxnorm
      >>> from jaxnorm.interop import to_equinox
      >>> entries = to_equinox(*jaxnorm.init_batch_norm(2), momentum=0.9, count=1)
      >>> print(entries["var"].round(2), entries["counter"])
      [0.1 0.1] 1
    """
    of = f"equinox's {layer}"
    names = names_of("equinox", layer, _LAYERS)
    if layer == "weight_norm":
        check_state(state, layer)
        return _kernels.weight_norm_entries(params, names)
    if layer == "spectral_norm":
        return _kernels.spectral_norm_entries(params, state, names)
    check_choice("mode", mode, ("batch", "ema"))
    arrays = arrays_of(params, state, layer, names, of=of, scale_offset=scale_offset, one_axis=layer not in SEVERAL_AXES)
    entries: dict[str, Any] = {names[ours]: array for ours, array in arrays.items()}
    if layer == "batch_norm" and mode == "ema":
        entries["first_time"] = np.array(False)
    elif layer == "batch_norm":
        if count is not None:
            share = share_of_updates(check_decay("momentum", momentum), check_size("count", count, low=0)) or 1.0
            entries |= {name: _times(entries[name], share) for name in ("mean", "var")}
        entries["counter"] = np.array(UPDATES if count is None else count, np.int32)
    return entries


def _times(array: np.ndarray, factor: float) -> np.ndarray:
    return array if factor == 1 else array * np.asarray(factor, array.dtype)
