"""Norms from and to the entries of a PyTorch `state_dict`, as NumPy arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnorm._checks import Scalar, check_scalar, check_size
from jaxnorm.interop import _kernels
from jaxnorm.interop._entries import Arrays
from jaxnorm.interop._layers import SEVERAL_AXES, arrays_of, check_state, containers, names_of, read_affine

_AFFINE = {"scale": "weight", "bias": "bias"}
_TRACKED = {**_AFFINE, "mean": "running_mean", "var": "running_var"}
_COUNT = {"count": "num_batches_tracked"}
_WEIGHT_NORM = {"gain": "parametrizations.weight.original0", "kernel": "parametrizations.weight.original1"}
_WEIGHT_NORM_HOOK = {"gain": "weight_g", "kernel": "weight_v"}
_SPECTRAL_NORM = {
    "kernel": "parametrizations.weight.original",
    "u": "parametrizations.weight.0._u",
    "v": "parametrizations.weight.0._v",
}
_SPECTRAL_NORM_HOOK = {"kernel": "weight_orig", "u": "weight_u", "v": "weight_v"}
_LAYERS = {
    "batch_norm": _TRACKED,
    "tracked_instance_norm": _TRACKED,
    "layer_norm": _AFFINE,
    "rms_norm": {"scale": "weight"},
    "group_norm": _AFFINE,
    "instance_norm": _AFFINE,
    "weight_norm": _WEIGHT_NORM,
    "spectral_norm": _SPECTRAL_NORM,
}


def from_torch(
    entries: Mapping[str, Any],
    *,
    layer: str = "batch_norm",
    use_scale: bool = True,
    use_bias: bool | None = None,
    scale_offset: Scalar = 0.0,
    elements: int | None = None,
    momentum: float | None = 0.1,
) -> Any:
    """Returns the parameters and state of a norm of PyTorch, from its entries of a `state_dict`.

    `scale = weight`, `bias = bias`, `mean = running_mean`, `var = running_var`, as they are: inference gives the same. The
    running variance averages `var n / (n - 1)`; with `elements` = n it becomes that of the biased variance, as Flax averages it,
    `start + (var - start) (n - 1) / n`, of which `start = (1 - momentum)^num_batches_tracked` is what is left of the 1 that it
    began with (0 for a tracked instance norm, whose updates PyTorch does not count).

    What the entries do not hold, `presets` gives: epsilon, the momentum, which is one minus ours, and `unbiased=True`, with which
    training goes on as in PyTorch.

    - weight norm: the direction `[out, in, ...]` becomes `[..., in, out]`, and the gain `[out, 1, ...]` `[out]`; entries of the
      older hook, `weight_g` and `weight_v`, are taken too. The kernel of a transposed convolution, whose norm PyTorch takes for
      each of its inputs, comes out with these last.
    - spectral norm: the kernel likewise; the state has `u`, and `sigma = u^T W v`. PyTorch keeps v too, and begins a step with
      it where we begin with u: the two are half a step of the power iteration apart, and one when it has converged.

    Args:
      entries: NumPy arrays by PyTorch's names, as `{name: value.numpy() for name, value in module.state_dict().items()}`: those
        of the norm alone. `num_batches_tracked` may be missing, as in old files.
      layer: which norm, by the name of our function: `"batch_norm"` (also `SyncBatchNorm`), `"layer_norm"`, `"rms_norm"`,
        `"group_norm"`, `"instance_norm"`, `"tracked_instance_norm"` (`track_running_stats=True`), `"weight_norm"` or
        `"spectral_norm"`.
      use_scale: whether there is a scale; False for `affine=False`.
      use_bias: whether there is a bias; None for what PyTorch's layer has with a scale.
      scale_offset: added to the scale: 1 where it is kept as its difference from 1. (`rms_norm` takes it as it is kept.)
      elements: how many elements of a channel were in each training batch (of a tracked instance norm: in each example); None
        leaves the running variance as it is.
      momentum: PyTorch's, for `elements`; None for cumulative averages.

    Returns:
      What the function's `init_` returns: `(AffineParams, RunningStats)`, or `AffineParams` of a layer without state;
      `WeightNormParams`; and of a spectral norm `(kernel, SpectralStats)`. Copies, in the type of the entries; running statistics
      in float32 at least. Float64 needs `jax_enable_x64`, as everywhere in jax.

    Raises:
      ValueError: if PyTorch has no such layer; if entries are missing, extra or misshapen, each by its name; if elements is below
        2, or the layer has no running variance.
      TypeError: if entries is no dict; if one is no concrete array of floating point numbers.

    Example:
      >>> import numpy as np
      >>> from jaxnorm.interop import from_torch
      >>> ones = np.ones(2, np.float32)
      >>> entries = {"weight": 2 * ones, "bias": 0 * ones, "running_mean": 3 * ones, "running_var": 5 * ones}
      >>> params, state = from_torch(entries)
      >>> print(params.scale, state.var)
      [2. 2.] [5. 5.]
      >>> from_torch({"weight": ones, "running_var": ones[:1], "mean": ones})  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: ...: 'bias' is missing; 'running_mean' is missing; 'mean' is none of them; 'running_var' has shape [1], ...
    """
    of = f"PyTorch's {layer}"
    names = names_of("PyTorch", layer, _LAYERS)
    if layer == "weight_norm":
        return _kernels.weight_norm_of(entries, _as_given(entries, names, _WEIGHT_NORM_HOOK), of)
    if layer == "spectral_norm":
        return _kernels.spectral_norm_of(entries, _as_given(entries, names, _SPECTRAL_NORM_HOOK), of)
    tracked = "mean" in names
    _check_elements(elements, tracked, of)
    if not use_scale and use_bias is None:
        use_bias = False
    arrays = read_affine(
        entries,
        names,
        of=of,
        use_scale=use_scale,
        use_bias=use_bias,
        more=_COUNT if tracked else None,
        optional=_COUNT if tracked else (),
        one_axis=layer not in SEVERAL_AXES,
    )
    if elements is not None:
        count = _count_of(layer, arrays.get("count"))
        arrays["var"] = _with_factor(arrays["var"], 1 / _bessel(elements), count, momentum)
    return containers(layer, arrays, scale_offset)


def to_torch(
    params: Any,
    state: Any = None,
    *,
    layer: str = "batch_norm",
    scale_offset: Scalar = 0.0,
    elements: int | None = None,
    momentum: float | None = 0.1,
    count: int | None = None,
) -> Arrays:
    """Returns the entries of a norm for a `state_dict` of PyTorch, from parameters and state.

    `weight = scale`, `bias = bias`, `running_mean = mean`, `running_var = var`: the inverse of `from_torch`, equal to the bit
    both ways. With `elements` = n, for a running variance of the biased one, it is `start + (var - start) n / (n - 1)`.

    A weight norm gets the names of `torch.nn.utils.parametrizations`. Of a spectral norm `v = W^T u / |W^T u|` is computed.

    Args:
      params: `AffineParams`, `WeightNormParams`, or the kernel of a spectral norm.
      state: `RunningStats` or `SpectralStats`; left out for a layer without.
      layer: which norm, as in `from_torch`.
      scale_offset: subtracted from the scale.
      elements: as in `from_torch`.
      momentum: PyTorch's, for `elements`.
      count: the updates that the averages have seen, for `num_batches_tracked`, which PyTorch uses with `momentum=None` alone;
        None gives 0 there, and for `elements` so many that nothing is left of the start.

    Returns:
      A dict of NumPy arrays; `module.load_state_dict({name: torch.from_numpy(array) for name, array in it.items()})` takes it.

    Raises:
      ValueError: if PyTorch has no such layer; if parts are misshapen, or there is a state where the layer has none; if elements
        is below 2, or count below 0.
      TypeError: if params or state are not those of the layer, or hold no concrete arrays.

    Example:
      >>> import jaxnorm
      >>> from jaxnorm.interop import to_torch
      >>> to_torch(*jaxnorm.init_batch_norm(1), count=7)["num_batches_tracked"]
      array(7)
    """
    of = f"PyTorch's {layer}"
    names = names_of("PyTorch", layer, _LAYERS)
    if layer == "weight_norm":
        check_state(state, layer)
        return _kernels.weight_norm_entries(params, names)
    if layer == "spectral_norm":
        return _kernels.spectral_norm_entries(params, state, names)
    arrays = arrays_of(params, state, layer, names, of=of, scale_offset=scale_offset, one_axis=layer not in SEVERAL_AXES)
    tracked = "mean" in names
    _check_elements(elements, tracked, of)
    if tracked:
        count = None if count is None else check_size("count", count, low=0)
        if elements is not None:
            arrays["var"] = _with_factor(arrays["var"], _bessel(elements), _count_of(layer, count), momentum)
        arrays["count"] = np.array(count or 0, np.int64)
    return {{**names, **_COUNT}[ours]: array for ours, array in arrays.items()}


def _as_given(entries: Any, names: Mapping[str, str], older: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the names of the older hook if there is one of them, else those of the parametrization."""
    return older if isinstance(entries, Mapping) and any(name in entries for name in older.values()) else names


def _check_elements(elements: Any, tracked: bool, of: str) -> None:
    if elements is None:
        return
    check_size("elements", elements, low=2)
    if not tracked:
        raise ValueError(f"elements must be left out, since {of} has no running variance, got {elements}")


def _count_of(layer: str, count: Any) -> int | None:
    """Returns how many updates the averages have seen, if that is known: PyTorch's instance norm does not count them."""
    return int(count) if count is not None and layer == "batch_norm" else None


def _bessel(elements: int) -> float:
    return elements / (elements - 1)


def _with_factor(var: np.ndarray, factor: float, count: int | None, momentum: float | None) -> np.ndarray:
    """Returns a running variance with another factor of what was averaged, which all is but for what is left of its start."""
    if momentum is not None:
        check_scalar("momentum", momentum, low=0, high=1)
    start = 0.0
    if count is not None:
        start = float(count == 0) if momentum is None else (1 - momentum) ** count
    return (start + (var.astype(np.float64) - start) * factor).astype(var.dtype)
