"""Options with which layers here do what those of other libraries do.

Each function below is a layer of a library, with the arguments and defaults that it has there, and returns the options of ours.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnorm._checks import Scalar, check_choice, check_dtype, check_scalar
from jaxnorm._types import real_dtype, wide_dtype
from jaxnorm.interop._averages import check_decay, cumulative_momentum, debiased_momentum

Options = dict[str, Any]

_OF_MODULES = {"use_scale": None, "use_bias": None, "n_steps": "steps"}  # what the functions lack, or call otherwise


def presets(peer: str, layer: str = "batch_norm", *, module: bool = False, **arguments: Any) -> Options:
    """Returns the options with which a layer here does what another library's layer does by default, or with these arguments.

    Outputs, running statistics and gradients are then those of the other library, but for what the README lists as wrong there,
    for parameters and state that `from_torch` and its like give. PyTorch's `momentum` is one minus ours, and its running variance
    averages `var n / (n - 1)`; epsilon is 1e-3 in Keras and 1e-6 or 1e-5 elsewhere.

    Averages that forget their start have a momentum that grows with the updates that they have seen:
    `decay (1 - decay^count) / (1 - decay^(count + 1))` in haiku and equinox, `count / (count + 1)` in PyTorch with
    `momentum=None`. For these give the `count` of each step, which may be traced; without it haiku's and equinox's momentum is
    the plain decay, as after many updates.

    Axes are ours: channels last, unless `channel_axis` (of modules `axis` or `feature_axes`) is given besides. What differs:

    - torch: `rms_norm` has the smallest step of x's type at 1 as its epsilon, of float32 for narrower types: give `dtype`.
      `instance_norm` has neither scale nor bias by default. Weight norm divides by the length, without an epsilon.
    - keras: `batch_renorm` limits nothing by default, and `renorm_clipping` must have `rmin = 1 / rmax`.
    - equinox: mode "batch" is meant; "ema", which is its default with a warning, normalizes by the running averages in training,
      which no layer here does. Its RMS norm has a bias.
    - spectral norm: PyTorch and equinox begin a step with v where we begin with u, and take none in inference, as Keras: the two
      are half a step apart, and the same once the iteration has converged. Keras overwrites the kernel.

    Args:
      peer: `"torch"`, `"keras"`, `"haiku"`, `"equinox"` or `"flax"`.
      layer: which layer, by the name of our function, as in `from_torch` and its like.
      module: whether the options are for a class of `jaxnorm.linen` or `jaxnorm.nnx`, which has `use_scale`, `use_bias` and
        `n_steps`, and not for the function.
      **arguments: those of the other library's layer, by its names, as `eps`; and `count` and `dtype` as above.

    Returns:
      A dict of keyword arguments.

    Raises:
      ValueError: if there is no such peer, or it has no such layer; if an argument is out of range, must be given, or asks for
        what no layer here does.
      TypeError: if the layer has no such argument.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> from jaxnorm.interop import presets
      >>> presets("torch")
      {'momentum': 0.9, 'epsilon': 1e-05, 'unbiased': True}
      >>> presets("torch", "instance_norm", module=True)
      {'epsilon': 1e-05, 'use_scale': False, 'use_bias': False}
      >>> params, state = jaxnorm.init_batch_norm(1)
      >>> x = jnp.array([[1.0], [3.0]])
      >>> _, state = jaxnorm.batch_norm(params, state, x, train=True, **presets("haiku", decay_rate=0.9, count=0))
      >>> print(state.mean)  # haiku's first update sets the averages
      [2.]
    """
    check_choice("peer", peer, tuple(_PEERS))
    layers = _PEERS[peer]
    if not isinstance(layer, str) or layer not in layers:
        raise ValueError(f"layer must be one that {peer} has, {', '.join(map(repr, layers))}, got {layer!r}")
    known = inspect.signature(layers[layer]).parameters
    if unknown := [name for name in arguments if name not in known]:
        raise TypeError(f"arguments of {peer}'s {layer} are {', '.join(known) or 'none'}, got {', '.join(unknown)}")
    lacking = [name for name, p in known.items() if p.default is p.empty and name not in arguments]
    if lacking:
        raise ValueError(f"{', '.join(lacking)} must be given for {peer}'s {layer}, which has no default")
    options = layers[layer](**arguments)
    if module:
        return options
    return {_OF_MODULES.get(name, name): value for name, value in options.items() if _OF_MODULES.get(name, name)}


def _with_parts(options: Options, scale: bool = True, bias: bool = True, *, bias_by_default: bool = True) -> Options:
    """Adds whether there are scale and bias, where modules here have by default what the other layer has not."""
    parts = {} if scale else {"use_scale": False}
    return options | parts | ({} if bias == bias_by_default else {"use_bias": bool(bias)})


def _torch_batch_norm(
    eps: Scalar = 1e-5, momentum: Any = 0.1, affine: bool = True, bias: bool = True, count: Scalar | None = None
) -> Options:
    if momentum is not None:
        old = 1 - check_scalar("momentum", momentum, low=0, high=1)
    elif count is None:
        raise ValueError("count must be given with a momentum of None: the updates that the averages have seen")
    else:
        old = cumulative_momentum(check_scalar("count", count, low=0))
    return _with_parts({"momentum": old, "epsilon": eps, "unbiased": True}, affine, affine and bias)


def _torch_tracked(eps: Scalar = 1e-5, momentum: Any = 0.1, affine: bool = False, bias: bool = True) -> Options:
    return _torch_batch_norm(eps, 0.0 if momentum is None else momentum, affine, bias)  # without one nothing is averaged there


def _torch_instance_norm(eps: Scalar = 1e-5, affine: bool = False, bias: bool = True) -> Options:
    return _with_parts({"epsilon": eps}, affine, affine and bias)


def _torch_layer_norm(eps: Scalar = 1e-5, elementwise_affine: bool = True, bias: bool = True) -> Options:
    return _with_parts({"epsilon": eps}, elementwise_affine, elementwise_affine and bias)


def _torch_rms_norm(eps: Scalar | None = None, elementwise_affine: bool = True, dtype: Any = jnp.float32) -> Options:
    wide = real_dtype(wide_dtype(check_dtype("dtype", dtype)))
    return _with_parts({"epsilon": float(jnp.finfo(wide).eps) if eps is None else eps}, elementwise_affine)


def _torch_group_norm(num_groups: int, eps: Scalar = 1e-5, affine: bool = True, bias: bool = True) -> Options:
    return _with_parts({"num_groups": num_groups, "epsilon": eps}, affine, affine and bias)


def _no_epsilon() -> Options:
    return {"epsilon": 0.0}


def _torch_spectral_norm(n_power_iterations: int = 1, eps: float = 1e-12) -> Options:
    return {"n_steps": n_power_iterations, "epsilon": eps**2}  # the least length there, added to the square of it here


def _keras_batch_norm(momentum: Scalar = 0.99, epsilon: Scalar = 1e-3, center: bool = True, scale: bool = True) -> Options:
    return _with_parts({"momentum": momentum, "epsilon": epsilon}, scale, center)


def _keras_batch_renorm(
    momentum: Scalar = 0.99,
    epsilon: Scalar = 1e-3,
    center: bool = True,
    scale: bool = True,
    renorm_clipping: Mapping[str, float] | None = None,
    renorm_momentum: Scalar = 0.99,
) -> Options:
    if renorm_momentum != momentum:
        raise ValueError(
            f"renorm_momentum must be the momentum, since one average serves both here, got {renorm_momentum!r} and {momentum!r}"
        )
    limits = {"rmin": None, "rmax": np.inf, "dmax": np.inf} | dict(renorm_clipping or {})
    least = 1 / limits["rmax"]
    if set(limits) > {"rmin", "rmax", "dmax"} or not np.isclose(limits["rmin"] or 0.0, least, rtol=1e-6, atol=0):
        raise ValueError(f"renorm_clipping must have rmin = 1 / rmax, and rmax and dmax or neither, got {renorm_clipping!r}")
    options = {"momentum": momentum, "epsilon": epsilon, "r_max": limits["rmax"], "d_max": limits["dmax"]}
    return _with_parts(options, scale, center)


def _keras_layer_norm(epsilon: Scalar = 1e-3, center: bool = True, scale: bool = True) -> Options:
    return _with_parts({"epsilon": epsilon}, scale, center)


def _keras_rms_norm(epsilon: Scalar = 1e-6) -> Options:
    return {"epsilon": epsilon}


def _keras_group_norm(groups: int = 32, epsilon: Scalar = 1e-3, center: bool = True, scale: bool = True) -> Options:
    return _with_parts({"num_groups": groups, "epsilon": epsilon}, scale, center)


def _keras_spectral_norm(power_iterations: int = 1) -> Options:
    return {"n_steps": power_iterations, "epsilon": 0.0}


def _haiku_batch_norm(
    decay_rate: float,
    eps: Scalar = 1e-5,
    create_scale: bool = True,
    create_offset: bool = True,
    count: Scalar | None = None,
) -> Options:
    return _with_parts({"momentum": _debiased("decay_rate", decay_rate, count), "epsilon": eps}, create_scale, create_offset)


def _haiku_norm(eps: Scalar = 1e-5, create_scale: bool = True, create_offset: bool = True) -> Options:
    return _with_parts({"epsilon": eps}, create_scale, create_offset)


def _haiku_rms_norm(eps: Scalar = 1e-5, create_scale: bool = True) -> Options:
    return _with_parts({"epsilon": eps}, create_scale)


def _haiku_group_norm(groups: int, eps: Scalar = 1e-5, create_scale: bool = True, create_offset: bool = True) -> Options:
    return _with_parts({"num_groups": groups, "epsilon": eps}, create_scale, create_offset)


def _haiku_spectral_norm(eps: Scalar = 1e-4, n_steps: int = 1) -> Options:
    return {"n_steps": n_steps, "epsilon": eps}


def _equinox_batch_norm(
    eps: Scalar = 1e-5,
    channelwise_affine: bool = True,
    momentum: float = 0.99,
    mode: str = "batch",
    count: Scalar | None = None,
) -> Options:
    if mode != "batch":
        raise ValueError(f"mode must be 'batch': no layer here normalizes by running averages in training, got {mode!r}")
    options = {"momentum": _debiased("momentum", momentum, count), "epsilon": eps}
    return _with_parts(options, channelwise_affine, channelwise_affine)


def _equinox_layer_norm(eps: Scalar = 1e-5, use_weight: bool = True, use_bias: bool = True) -> Options:
    return _with_parts({"epsilon": eps}, use_weight, use_bias)


def _equinox_rms_norm(eps: Scalar = 1e-5, use_weight: bool = True, use_bias: bool = True) -> Options:
    return _with_parts({"epsilon": eps}, use_weight, use_bias, bias_by_default=False)


def _equinox_group_norm(groups: int, eps: Scalar = 1e-5, channelwise_affine: bool = True) -> Options:
    return _with_parts({"num_groups": groups, "epsilon": eps}, channelwise_affine, channelwise_affine)


def _equinox_spectral_norm(num_power_iterations: int = 1, eps: float = 1e-12) -> Options:
    return _torch_spectral_norm(num_power_iterations, eps)


def _flax_batch_norm(momentum: Scalar = 0.99, epsilon: Scalar = 1e-5, use_scale: bool = True, use_bias: bool = True) -> Options:
    return _with_parts({"momentum": momentum, "epsilon": epsilon}, use_scale, use_bias)


def _flax_norm(epsilon: Scalar = 1e-6, use_scale: bool = True, use_bias: bool = True) -> Options:
    return _with_parts({"epsilon": epsilon}, use_scale, use_bias)


def _flax_rms_norm(epsilon: Scalar = 1e-6, use_scale: bool = True) -> Options:
    return _with_parts({"epsilon": epsilon}, use_scale)


def _flax_group_norm(num_groups: int = 32, epsilon: Scalar = 1e-6, use_scale: bool = True, use_bias: bool = True) -> Options:
    return _with_parts({"num_groups": num_groups, "epsilon": epsilon}, use_scale, use_bias)


def _flax_weight_norm(epsilon: Scalar = 1e-12) -> Options:
    return {"epsilon": epsilon}


def _flax_spectral_norm(n_steps: int = 1, epsilon: Scalar = 1e-12) -> Options:
    return {"n_steps": n_steps, "epsilon": epsilon}


def _debiased(name: str, decay: Any, count: Scalar | None) -> Scalar:
    number = check_decay(name, decay)
    return number if count is None else debiased_momentum(number, check_scalar("count", count, low=0))


_PEERS: dict[str, dict[str, Callable[..., Options]]] = {
    "torch": {
        "batch_norm": _torch_batch_norm,
        "tracked_instance_norm": _torch_tracked,
        "layer_norm": _torch_layer_norm,
        "rms_norm": _torch_rms_norm,
        "group_norm": _torch_group_norm,
        "instance_norm": _torch_instance_norm,
        "weight_norm": _no_epsilon,
        "spectral_norm": _torch_spectral_norm,
    },
    "keras": {
        "batch_norm": _keras_batch_norm,
        "batch_renorm": _keras_batch_renorm,
        "layer_norm": _keras_layer_norm,
        "rms_norm": _keras_rms_norm,
        "group_norm": _keras_group_norm,
        "instance_norm": _keras_layer_norm,
        "spectral_norm": _keras_spectral_norm,
    },
    "haiku": {
        "batch_norm": _haiku_batch_norm,
        "layer_norm": _haiku_norm,
        "rms_norm": _haiku_rms_norm,
        "group_norm": _haiku_group_norm,
        "instance_norm": _haiku_norm,
        "spectral_norm": _haiku_spectral_norm,
    },
    "equinox": {
        "batch_norm": _equinox_batch_norm,
        "layer_norm": _equinox_layer_norm,
        "rms_norm": _equinox_rms_norm,
        "group_norm": _equinox_group_norm,
        "weight_norm": _no_epsilon,
        "spectral_norm": _equinox_spectral_norm,
    },
    "flax": {
        "batch_norm": _flax_batch_norm,
        "layer_norm": _flax_norm,
        "rms_norm": _flax_rms_norm,
        "group_norm": _flax_group_norm,
        "instance_norm": _flax_norm,
        "weight_norm": _flax_weight_norm,
        "spectral_norm": _flax_spectral_norm,
    },
}
