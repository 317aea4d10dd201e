"""Norms from and to the variables of a Keras layer, as NumPy arrays."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnorm._checks import Scalar, check_scalar
from jaxnorm.interop import _kernels
from jaxnorm.interop._entries import Arrays, read_entries
from jaxnorm.interop._layers import SEVERAL_AXES, arrays_of, containers, names_of, read_affine

_AFFINE = {"scale": "gamma", "bias": "beta"}
_RENORM = {"mean": "moving_mean", "std": "moving_stddev"}
# What Keras keeps besides: the averages for the corrections, which with one momentum are the others, and std^2 - epsilon.
_RENORM_TWICE = {"renorm_mean": "renorm_mean", "renorm_std": "renorm_stddev", "var": "moving_variance"}
_LAYERS = {
    "batch_norm": {**_AFFINE, "mean": "moving_mean", "var": "moving_variance"},
    "batch_renorm": {**_AFFINE, **_RENORM, **_RENORM_TWICE},
    "layer_norm": _AFFINE,
    "rms_norm": {"scale": "scale"},
    "group_norm": _AFFINE,
    "instance_norm": _AFFINE,
    "spectral_norm": {"kernel": "kernel", "u": "vector_u"},
}


def from_keras(
    entries: Mapping[str, Any],
    *,
    layer: str = "batch_norm",
    use_scale: bool = True,
    use_bias: bool | None = None,
    scale_offset: Scalar = 0.0,
) -> Any:
    """Returns the parameters and state of a norm of Keras, from its variables.

    `scale = gamma`, `bias = beta`, `mean = moving_mean`, `var = moving_variance`, as they are: momentum and variance mean what
    they mean here. What the variables do not hold, `presets` gives: Keras's epsilon is 1e-3.

    - batch renorm, `BatchNormalization(renorm=True)`: `std = moving_stddev`. Keras keeps a second pair of averages for the
      corrections, which is the first where `renorm_momentum` is `momentum`, as by default; where it is not, no layer here goes
      on as Keras, and it is an error. `moving_variance` is not needed.
    - spectral norm: the kernel, and a state of `u = vector_u` and `sigma = |W u|`. Keras overwrites the kernel in each call of
      training, so that it is divided by its norm already.

    Args:
      entries: NumPy arrays by Keras's names, as `{v.name: numpy.asarray(v) for v in layer.weights}`: those of the norm alone.
      layer: which norm, by the name of our function: `"batch_norm"`, `"batch_renorm"`, `"layer_norm"`, `"rms_norm"`,
        `"group_norm"`, `"instance_norm"` (`GroupNormalization(-1)`) or `"spectral_norm"`.
      use_scale: whether there is a scale, Keras's `scale`.
      use_bias: whether there is a bias, Keras's `center`; None for what Keras's layer has by default.
      scale_offset: added to the scale: 1 where it is kept as its difference from 1. (`rms_norm` takes it as it is kept.)

    Returns:
      What the function's `init_` returns: `(AffineParams, RunningStats)`, of a batch renorm `(AffineParams, RenormStats)`, of a
      layer without state `AffineParams`; of a spectral norm `(kernel, SpectralStats)`. Types are as in `from_torch`.

    Raises:
      ValueError: if Keras has no such layer; if entries are missing, extra or misshapen, each by its name; if averages for
        renorm's corrections are others than the moving ones.
      TypeError: if entries is no dict; if one is no concrete array of floating point numbers.

    Example:
      >>> import numpy as np
      >>> from jaxnorm.interop import from_keras
      >>> ones = np.ones(2, np.float32)
      >>> params, state = from_keras({"gamma": ones, "beta": ones, "moving_mean": 3 * ones, "moving_variance": ones})
      >>> print(params.bias, state.mean)
      [1. 1.] [3. 3.]
    """
    of = f"Keras's {layer}"
    names = names_of("Keras", layer, _LAYERS)
    if layer == "spectral_norm":
        arrays = read_entries(entries, names, of=of, faults=_kernels.kernel_faults(names, row=True))
        first = _kernels.outputs_first(arrays["kernel"])
        _, sigma = _kernels.image(first, arrays["u"].reshape(-1))
        return jnp.array(arrays["kernel"]), _kernels.spectral_state(arrays["u"], sigma)
    arrays = read_affine(entries, names, of=of, use_scale=use_scale, use_bias=use_bias, one_axis=layer not in SEVERAL_AXES)
    if layer == "batch_renorm":
        for ours, own in (("mean", "renorm_mean"), ("std", "renorm_std")):
            if not np.array_equal(arrays[ours], arrays[own], equal_nan=True):
                raise ValueError(
                    f"entries of {of}: {names[own]!r} must be {names[ours]!r}, since one average serves both here, but "
                    f"differs by up to {np.abs(arrays[ours] - arrays[own]).max():g}, as after a renorm_momentum of its own"
                )
    return containers(layer, arrays, scale_offset)


def to_keras(
    params: Any, state: Any = None, *, layer: str = "batch_norm", scale_offset: Scalar = 0.0, epsilon: float = 1e-3
) -> Arrays:
    """Returns the variables of a norm of Keras, from parameters and state.

    `gamma = scale`, `beta = bias`, `moving_mean = mean`, `moving_variance = var`: the inverse of `from_keras`, equal to the bit
    both ways. A batch renorm's averages are given twice, and `moving_variance = std^2 - epsilon`, which Keras's inference uses.

    Args:
      params: `AffineParams`, or the kernel of a spectral norm.
      state: `RunningStats`, `RenormStats` or `SpectralStats`; left out for a layer without.
      layer: which norm, as in `from_keras`.
      scale_offset: subtracted from the scale.
      epsilon: Keras's, for a batch renorm.

    Returns:
      A dict of NumPy arrays; `for v in layer.weights: v.assign(it[v.name])` takes it.

    Raises:
      ValueError: if Keras has no such layer; if parts are misshapen, or there is a state where the layer has none.
      TypeError: if params or state are not those of the layer, or hold no concrete arrays.

    Example:
      >>> import jaxnorm
      >>> from jaxnorm.interop import to_keras
      >>> sorted(to_keras(*jaxnorm.init_batch_norm(1)))
      ['beta', 'gamma', 'moving_mean', 'moving_variance']
    """
    names = names_of("Keras", layer, _LAYERS)
    if layer == "spectral_norm":
        kernel, u, _ = _kernels.spectral_norm_arrays(params, state)
        return {"kernel": kernel, "vector_u": u[None].astype(kernel.dtype)}
    arrays = arrays_of(
        params, state, layer, names, of=f"Keras's {layer}", scale_offset=scale_offset, one_axis=layer not in SEVERAL_AXES
    )
    if layer == "batch_renorm":
        check_scalar("epsilon", epsilon, low=0)
        var = np.maximum(arrays["std"] ** 2 - np.asarray(epsilon, arrays["std"].dtype), 0)
        arrays |= {"var": var, "renorm_mean": arrays["mean"].copy(), "renorm_std": arrays["std"].copy()}
    return {names[ours]: array for ours, array in arrays.items()}
