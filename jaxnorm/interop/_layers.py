"""What scale, bias and running statistics are to every library: our containers from arrays, and arrays from containers."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnorm._checks import Scalar, check_scalar, check_type
from jaxnorm._types import AffineParams, RenormStats, RunningStats, wide_dtype
from jaxnorm.interop._entries import Arrays, alike, check_array, read_entries

STATES = {"batch_norm": RunningStats, "tracked_instance_norm": RunningStats, "batch_renorm": RenormStats}
"""The state of each layer that has one."""

SEVERAL_AXES = ("layer_norm", "rms_norm")
"""Layers whose scale and bias may have several axes in all libraries."""

Names = Mapping[str, str]


def names_of(peer: str, layer: Any, layers: Mapping[str, Names]) -> Names:
    """Returns the names that a peer has for the parts of a layer, or raises if it is none of these."""
    if not isinstance(layer, str) or layer not in layers:
        raise ValueError(f"layer must be one that {peer} has, {', '.join(map(repr, layers))}, got {layer!r}")
    return layers[layer]


def read_affine(
    entries: Any,
    names: Names,
    *,
    of: str,
    use_scale: bool,
    use_bias: bool | None,
    more: Names | None = None,
    optional: Iterable[str] = (),
    one_axis: bool,
) -> Arrays:
    """Returns scale, bias and statistics as arrays by our names.

    Args:
      entries: the peer's.
      names: the peer's name of each part, by ours.
      of: what the entries are of, for the errors.
      use_scale: whether there must be a scale; if not, there must be none.
      use_bias: the same of a bias; None for what the peer's layer has.
      more: names of integers and bools besides.
      optional: those of them that may be missing.
      one_axis: whether the arrays must have one axis.
    """
    if use_bias and "bias" not in names:
        raise ValueError(f"use_bias must be False, since {of} has no bias, got {use_bias!r}")
    unused = {part for part, used in (("scale", use_scale), ("bias", use_bias is not False)) if not used}
    own = {ours: name for ours, name in names.items() if ours not in unused}
    numbers = dict(more or {})
    return read_entries(
        entries,
        {**own, **numbers},
        of=of,
        faults=alike(own, one_axis=one_axis),
        optional=optional,
        numbers=numbers,
    )


def containers(layer: str, arrays: Arrays, scale_offset: Scalar) -> Any:
    """Returns what the layer's `init_` function returns: parameters, and the state if there is one, as copies."""
    scale = arrays.get("scale")
    params = AffineParams(
        scale=None if scale is None else jnp.array(_shifted(scale, scale_offset)),
        bias=jnp.array(arrays["bias"]) if "bias" in arrays else None,
    )
    if layer not in STATES:
        return params
    kind = STATES[layer]
    return params, kind(*(jnp.array(arrays[name].astype(wide_dtype(arrays[name].dtype))) for name in kind._fields))


def arrays_of(params: Any, state: Any, layer: str, names: Names, *, of: str, scale_offset: Scalar, one_axis: bool) -> Arrays:
    """Returns copies of the parts of our containers by our names, or raises if they are not those of the layer."""
    check_type("params", params, AffineParams)
    check_state(state, layer)
    parts = {f"params.{name}": part for name, part in params._asdict().items() if part is not None}
    parts |= {f"state.{name}": part for name, part in (() if state is None else state._asdict().items())}
    for name, part in parts.items():
        check_array(name, part)
    if "params.bias" in parts and "bias" not in names:
        raise ValueError(f"params.bias must be None, since {of} has no bias, got shape {list(np.shape(params.bias))}")
    arrays = {name: np.array(part) for name, part in parts.items()}
    if wrong := list(alike({name: name for name in arrays}, one_axis=one_axis)(arrays)):
        raise ValueError(f"params and state of {of}: {'; '.join(wrong)}")
    found = {name.partition(".")[2]: array for name, array in arrays.items()}
    return {name: _shifted(a, scale_offset, -1) if name == "scale" else a for name, a in found.items()}


def check_state(state: Any, layer: str) -> None:
    """Raises unless `state` is the layer's, or None where it has none."""
    kind = STATES.get(layer)
    if kind is not None:
        check_type("state", state, kind)
    elif state is not None:
        raise ValueError(f"state must be left out, since {layer} has none, got {type(state).__name__}")


def _shifted(scale: np.ndarray, offset: Scalar, sign: int = 1) -> np.ndarray:
    check_scalar("scale_offset", offset, low=-np.inf)
    return scale if offset == 0 else (scale + np.asarray(sign * offset, scale.dtype)).astype(scale.dtype)
