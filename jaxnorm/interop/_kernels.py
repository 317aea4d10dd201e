"""Kernels of weight and spectral norm: other orders of the axes, and vectors of the power iteration."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._checks import check_type
from jaxnorm._types import SpectralStats, WeightNormParams, wide_dtype
from jaxnorm.interop._entries import Arrays, Faults, check_array, read_entries


def outputs_last(kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel `[F, C, ...]`, as PyTorch and equinox have it, as `[..., C, F]`."""
    return np.transpose(kernel, (*range(2, kernel.ndim), 1, 0))


def outputs_first(kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel `[..., C, F]` as `[F, C, ...]`."""
    return np.transpose(kernel, (kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2)))


def kernel_faults(names: Mapping[str, str], *, first: bool = False, gain_axes: bool = False, row: bool = False) -> Faults:
    """Returns what tells of a kernel that is no matrix or more, and of vectors that are not of its sizes.

    Args:
      names: the names of `kernel`, and of `gain`, `u` or `v`, those that there are.
      first: whether the kernel's outputs are on its first axis, or on the last.
      gain_axes: whether the gain has the kernel's axes, of size 1 but for the outputs.
      row: whether u is a row, `[1, F]`, as in the modules of Flax, haiku and Keras.
    """

    def faults(arrays: Arrays) -> Iterator[str]:
        if "kernel" not in arrays:
            return
        shape = arrays["kernel"].shape
        if len(shape) < 2:
            yield f"{names['kernel']!r} must have two axes or more, got shape {list(shape)}"
            return
        outputs = shape[0 if first else -1]
        gain = (outputs, *(1 for _ in shape[1:])) if gain_axes else (outputs,)
        inputs = (arrays["kernel"].size // max(outputs, 1),)
        wanted = {"gain": gain, "u": (1, outputs) if row else (outputs,), "v": inputs, "sigma": ()}
        for ours, array in arrays.items():
            if ours in wanted and array.shape != wanted[ours]:
                yield f"{names[ours]!r} must have shape {list(wanted[ours])}, got {list(array.shape)}"

    return faults


def spectral_state(u: np.ndarray, sigma: Any) -> SpectralStats:
    """Returns the state as copies, in float32 or wider."""
    dtype = wide_dtype(u.dtype)
    return SpectralStats(jnp.array(u.reshape(-1).astype(dtype)), jnp.array(np.asarray(sigma).astype(dtype)))


def image(kernel: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns what a kernel `[F, C, ...]` makes of a vector of its outputs, `[C ...]` with length 1, and its length."""
    found = kernel.reshape(kernel.shape[0], -1).astype(np.float64).T @ u.astype(np.float64)
    length = float(np.linalg.norm(found))
    return found / (length or 1), length


def weight_norm_of(entries: Any, names: Mapping[str, str], of: str) -> WeightNormParams:
    """Returns direction and gain of a weight norm whose kernel has its outputs first."""
    arrays = read_entries(entries, names, of=of, faults=kernel_faults(names, first=True, gain_axes=True))
    return WeightNormParams(jnp.array(outputs_last(arrays["kernel"])), jnp.array(arrays["gain"].reshape(-1)))


def weight_norm_entries(params: Any, names: Mapping[str, str]) -> Arrays:
    """Returns the entries of such a weight norm, with a gain of 1 where there is none."""
    direction, gain = weight_norm_arrays(params)
    gain = np.ones(direction.shape[-1:], direction.dtype) if gain is None else gain
    gain = gain.reshape(-1, *(1 for _ in direction.shape[1:]))
    return {names["gain"]: gain, names["kernel"]: np.ascontiguousarray(outputs_first(direction))}


def spectral_norm_of(entries: Any, names: Mapping[str, str], of: str) -> tuple[jax.Array, SpectralStats]:
    """Returns kernel and state of a spectral norm that keeps u and v, and whose kernel has its outputs first."""
    arrays = read_entries(entries, names, of=of, faults=kernel_faults(names, first=True))
    kernel, u, v = (arrays[name].astype(np.float64) for name in ("kernel", "u", "v"))
    sigma = u @ kernel.reshape(len(u), -1) @ v
    return jnp.array(outputs_last(arrays["kernel"])), spectral_state(arrays["u"], sigma)


def spectral_norm_entries(kernel: Any, state: Any, names: Mapping[str, str]) -> Arrays:
    """Returns the entries of such a spectral norm, of which v is what the kernel makes of u."""
    kernel, u, _ = spectral_norm_arrays(kernel, state)
    first, u = np.ascontiguousarray(outputs_first(kernel)), u.astype(kernel.dtype)
    v, _ = image(first, u)
    return {names["kernel"]: first, names["u"]: u, names["v"]: v.astype(kernel.dtype)}


def weight_norm_arrays(params: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns copies of direction and gain, or raises if they do not fit each other."""
    check_type("params", params, WeightNormParams)
    parts = {"kernel": params.direction, "gain": params.gain}
    names = {"kernel": "params.direction", "gain": "params.gain"}
    arrays = _checked({name: part for name, part in parts.items() if part is not None}, names)
    return arrays["kernel"], arrays.get("gain")


def spectral_norm_arrays(kernel: Any, state: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns copies of a kernel `[..., F]`, of u, `[F]`, and of sigma, or raises if they do not fit each other."""
    u, sigma = spectral_state_arrays(state)
    arrays = _checked({"kernel": kernel, "u": u}, {"kernel": "params", "u": "state.u"})
    return arrays["kernel"], u, sigma


def spectral_state_arrays(state: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns copies of u and sigma, or raises if they are not such."""
    check_type("state", state, SpectralStats)
    for name, part, rank in (("u", state.u, 1), ("sigma", state.sigma, 0)):
        check_array(f"state.{name}", part)
        if np.ndim(part) != rank:
            raise ValueError(f"state.{name} must have {rank} axes, got shape {list(np.shape(part))}")
    return np.array(state.u), np.array(state.sigma)


def _checked(parts: Mapping[str, Any], names: Mapping[str, str]) -> Arrays:
    for ours, part in parts.items():
        check_array(names[ours], part)
    arrays = {ours: np.array(part) for ours, part in parts.items()}
    if wrong := list(kernel_faults(names)(arrays)):
        raise ValueError("; ".join(wrong))
    return arrays
