"""Norms from and to the variables of a linen or nnx module, Flax's or ours, as NumPy arrays."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnorm._types import WeightNormParams
from jaxnorm.interop import _kernels
from jaxnorm.interop._entries import read_entries
from jaxnorm.interop._layers import STATES, arrays_of, check_state, containers, names_of, read_affine

_AFFINE = {"scale": "scale", "bias": "bias"}
_PLAIN = ("layer_norm", "rms_norm", "group_norm", "instance_norm")
_NNX = {
    **{layer: {**_AFFINE, **{name: name for name in kind._fields}} for layer, kind in STATES.items()},
    **dict.fromkeys(_PLAIN, _AFFINE),
    "weight_norm": {"kernel": "layer_instance/kernel", "gain": "scales/kernel"},
    "spectral_norm": {"kernel": "layer_instance/kernel", "u": "batch_stats/kernel/u", "sigma": "batch_stats/kernel/sigma"},
}
_LINEN = {
    **{
        layer: {ours: f"{'params' if ours in _AFFINE else 'batch_stats'}/{ours}" for ours in names}
        for layer, names in _NNX.items()
        if "kernel" not in names
    },
    "weight_norm": {"kernel": "params/layer_instance/kernel", "gain": "params/layer_instance/kernel/scale"},
    "spectral_norm": {
        "kernel": "params/layer_instance/kernel",
        "u": "batch_stats/layer_instance/kernel/u",
        "sigma": "batch_stats/layer_instance/kernel/sigma",
    },
}


def from_linen(
    variables: Mapping[str, Any], *, layer: str = "batch_norm", use_scale: bool = True, use_bias: bool | None = None
) -> Any:
    """Returns the parameters and state of a norm from the variables of its linen module, Flax's or ours.

    `scale` and `bias` are those of `params`, `mean` and `var` those of `batch_stats`, as they are. What the variables do not
    hold, `presets("flax")` gives: Flax's epsilon is 1e-6 but for batch norm.

    Args:
      variables: arrays by collection and name, as `{"params": {"scale": ..., "bias": ...}, "batch_stats": {"mean": ..., "var":
        ...}}`, without boxes of metadata (`flax.linen.meta.unbox`). Of a weight or spectral norm the kernel and its own, and not
        the wrapped layer's bias.
      layer: which norm, by the name of our function: `"batch_norm"`, `"batch_renorm"`, `"tracked_instance_norm"`,
        `"layer_norm"`, `"rms_norm"`, `"group_norm"`, `"instance_norm"`, `"weight_norm"` or `"spectral_norm"`.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias; None for yes, but of an RMS norm.

    Returns:
      What the function's `init_` returns: `(AffineParams, RunningStats)`, of a batch renorm `(AffineParams, RenormStats)`, of a
      layer without state `AffineParams` or `WeightNormParams`; of a spectral norm `(kernel, SpectralStats)`. Types are as in
      `from_torch`.

    Raises:
      ValueError: if there is no such layer; if variables are missing, extra or misshapen, each by its name.
      TypeError: if variables is no dict; if one is no concrete array of floating point numbers.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> from jaxnorm.interop import from_linen
      >>> norm = jaxnorm.linen.BatchNorm(use_running_average=True)
      >>> params, state = from_linen(norm.init(jax.random.key(0), jnp.ones((4, 2))))
      >>> print(params.scale, state.mean)
      [1. 1.] [0. 0.]
    """
    return _from(variables, layer, use_scale, use_bias, _LINEN, "linen")


def to_linen(params: Any, state: Any = None, *, layer: str = "batch_norm") -> dict[str, Any]:
    """Returns the variables of a norm's linen module, from parameters and state.

    `scale` and `bias` in `params`, `mean` and `var` in `batch_stats`: the inverse of `from_linen`, equal to the bit both ways.

    Args:
      params: `AffineParams`, `WeightNormParams`, or the kernel of a spectral norm.
      state: `RunningStats`, `RenormStats` or `SpectralStats`; left out for a layer without.
      layer: which norm, as in `from_linen`.

    Returns:
      NumPy arrays by collection and name, which `module.apply` takes.

    Raises:
      ValueError: if there is no such layer; if parts are misshapen, or there is a state where the layer has none.
      TypeError: if params or state are not those of the layer, or hold no concrete arrays.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.linen
      >>> from jaxnorm.interop import presets, to_linen
      >>> params, state = jaxnorm.init_batch_norm(1)
      >>> norm = jaxnorm.linen.BatchNorm(use_running_average=True, **presets("torch"))
      >>> print(norm.apply(to_linen(params, state), jnp.array([[3.0]])).round(2))
      [[3.]]
    """
    arrays = _arrays(params, state, layer, _LINEN, "linen")
    if layer == "weight_norm":
        gain = {"layer_instance/kernel/scale": arrays["gain"]} if "gain" in arrays else {}
        return {"params": {"layer_instance": {"kernel": arrays["kernel"]}, **gain}}
    if layer == "spectral_norm":
        stats = {f"layer_instance/kernel/{name}": arrays[name] for name in ("u", "sigma")}
        return {"params": {"layer_instance": {"kernel": arrays["kernel"]}}, "batch_stats": stats}
    variables: dict[str, Any] = {}
    for ours, array in arrays.items():
        collection, _, name = _LINEN[layer][ours].partition("/")
        variables.setdefault(collection, {})[name] = array
    return variables


def from_nnx(
    variables: Mapping[Any, Any], *, layer: str = "batch_norm", use_scale: bool = True, use_bias: bool | None = None
) -> Any:
    """Returns the parameters and state of a norm from the variables of its nnx module, Flax's or ours.

    `scale`, `bias`, `mean` and `var` as they are, as in `from_linen`.

    Args:
      variables: arrays by name, as `nnx.to_pure_dict(nnx.state(norm))`. Of a weight or spectral norm the kernel and its own, and
        not the wrapped layer's bias.
      layer: which norm, as in `from_linen`.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias; None for yes, but of an RMS norm.

    Returns:
      What `from_linen` returns.

    Raises:
      ValueError: as `from_linen`.
      TypeError: as `from_linen`.

    Example:
      >>> import jaxnorm.nnx
      >>> from flax import nnx
      >>> from jaxnorm.interop import from_nnx
      >>> norm = jaxnorm.nnx.BatchNorm(2, rngs=nnx.Rngs(0))
      >>> params, state = from_nnx(nnx.to_pure_dict(nnx.state(norm)))
      >>> print(params.scale, state.mean)
      [1. 1.] [0. 0.]
    """
    return _from(variables, layer, use_scale, use_bias, _NNX, "nnx")


def to_nnx(params: Any, state: Any = None, *, layer: str = "batch_norm") -> dict[str, Any]:
    """Returns the variables of a norm's nnx module, from parameters and state.

    The inverse of `from_nnx`, equal to the bit both ways.

    Args:
      params: `AffineParams`, `WeightNormParams`, or the kernel of a spectral norm.
      state: `RunningStats`, `RenormStats` or `SpectralStats`; left out for a layer without.
      layer: which norm, as in `from_linen`.

    Returns:
      NumPy arrays by name, which `nnx.update(norm, ...)` takes.

    Raises:
      ValueError: as `to_linen`.
      TypeError: as `to_linen`.

    Example:
      >>> import jaxnorm.nnx
      >>> from flax import nnx
      >>> from jaxnorm.interop import presets, to_nnx
      >>> params, state = jaxnorm.init_batch_norm(1)
      >>> norm = jaxnorm.nnx.BatchNorm(1, rngs=nnx.Rngs(0), **presets("torch"))
      >>> nnx.update(norm, to_nnx(params, state._replace(mean=state.mean + 5)))
      >>> print(norm.mean[...])
      [5.]
    """
    arrays = _arrays(params, state, layer, _NNX, "nnx")
    if layer == "weight_norm":
        gain = {"scales": {("kernel",): arrays["gain"]}} if "gain" in arrays else {}
        return {"layer_instance": {"kernel": arrays["kernel"]}, **gain}
    if layer == "spectral_norm":
        stats = {("kernel", name): arrays[name] for name in ("u", "sigma")}
        return {"layer_instance": {"kernel": arrays["kernel"]}, "batch_stats": stats}
    return dict(arrays)


def _from(variables: Any, layer: str, use_scale: bool, use_bias: bool | None, layers: Mapping[str, Any], flax: str) -> Any:
    of = f"{flax}'s {layer}"
    names = names_of(flax, layer, layers)
    if layer == "weight_norm":
        own = names if use_scale else {"kernel": names["kernel"]}
        arrays = read_entries(variables, own, of=of, faults=_kernels.kernel_faults(names, row=True))
        gain = jnp.array(arrays["gain"]) if use_scale else None
        return WeightNormParams(jnp.array(arrays["kernel"]), gain)
    if layer == "spectral_norm":
        arrays = read_entries(variables, names, of=of, faults=_kernels.kernel_faults(names, row=True))
        return jnp.array(arrays["kernel"]), _kernels.spectral_state(arrays["u"], arrays["sigma"])
    use_bias = layer != "rms_norm" if use_bias is None else use_bias
    arrays = read_affine(variables, names, of=of, use_scale=use_scale, use_bias=use_bias, one_axis=layer == "group_norm")
    return containers(layer, arrays, 0.0)


def _arrays(params: Any, state: Any, layer: str, layers: Mapping[str, Any], flax: str) -> dict[str, np.ndarray]:
    names = names_of(flax, layer, layers)
    if layer == "weight_norm":
        check_state(state, layer)
        kernel, gain = _kernels.weight_norm_arrays(params)
        return {"kernel": kernel} if gain is None else {"kernel": kernel, "gain": gain}
    if layer == "spectral_norm":
        kernel, u, sigma = _kernels.spectral_norm_arrays(params, state)
        return {"kernel": kernel, "u": u[None], "sigma": sigma}
    return arrays_of(params, state, layer, names, of=f"{flax}'s {layer}", scale_offset=0.0, one_axis=layer == "group_norm")
