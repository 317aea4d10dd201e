"""Layers of keras, on jax."""

import functools
import importlib
import os
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.benchmarks._layer import EPSILON, GROUPS, MOMENTUM, RATE, STD, Layer, with_relu


def _noise(x: jax.ShapeDtypeStruct, *, name: str, amount: float = RATE) -> Layer:
    return _as_layer(getattr(_keras().layers, name)(amount, seed=0, dtype=_policy(x)), x, training=True)


def _batch_norm(x: jax.ShapeDtypeStruct, *, train: bool = True, **options: Any) -> Layer:
    layer = _keras().layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON, dtype=_policy(x), **options)
    return _as_layer(layer, x, training=train)


def _layer_norm(x: jax.ShapeDtypeStruct) -> Layer:
    return _as_layer(_keras().layers.LayerNormalization(epsilon=EPSILON, dtype=_policy(x)), x)


def _rms_norm(x: jax.ShapeDtypeStruct) -> Layer:
    return _as_layer(_keras().layers.RMSNormalization(epsilon=EPSILON, dtype=_policy(x)), x)


def _group_norm(x: jax.ShapeDtypeStruct, *, groups: int = GROUPS) -> Layer:
    return _as_layer(_keras().layers.GroupNormalization(groups, epsilon=EPSILON, dtype=_policy(x)), x)


def _unit_norm(x: jax.ShapeDtypeStruct) -> Layer:
    return _as_layer(_keras().layers.UnitNormalization(dtype=_policy(x)), x)


_RENORM = {"renorm": True, "renorm_momentum": MOMENTUM, "renorm_clipping": {"rmin": 1 / 3, "rmax": 3.0, "dmax": 5.0}}


def _keras() -> Any:
    os.environ["KERAS_BACKEND"] = "jax"  # keras reads it when it is imported
    return importlib.import_module("keras")


def _policy(x: jax.ShapeDtypeStruct) -> str:
    """Returns the policy of layers that compute in x's type and keep their variables in float32."""
    return "mixed_bfloat16" if x.dtype == jnp.bfloat16 else "float32"


def _as_layer(layer: Any, x: jax.ShapeDtypeStruct, **mode: bool) -> Layer:
    layer.build(x.shape)

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return layer.stateless_call(params, state, x, **mode)

    params, state = ([v.value for v in part] for part in (layer.trainable_variables, layer.non_trainable_variables))
    return Layer(apply, params, state)


LAYERS = {
    "dropout": {"keras": functools.partial(_noise, name="Dropout")},
    "gaussian_dropout": {"keras": functools.partial(_noise, name="GaussianDropout")},
    "gaussian_noise": {"keras": functools.partial(_noise, name="GaussianNoise", amount=STD)},
    "alpha_dropout": {"keras": functools.partial(_noise, name="AlphaDropout")},
    "spatial_dropout": {"keras": functools.partial(_noise, name="SpatialDropout2D")},
    "batch_norm": {"keras": _batch_norm},
    "batch_norm_inference": {"keras": functools.partial(_batch_norm, train=False)},
    "batch_renorm": {"keras": functools.partial(_batch_norm, **_RENORM)},
    "layer_norm": {"keras": _layer_norm},
    "rms_norm": {"keras": _rms_norm},
    "group_norm": {"keras": _group_norm},
    "instance_norm": {"keras": functools.partial(_group_norm, groups=-1)},
    "unit_norm": {"keras": _unit_norm},
    "batch_norm_relu": {"keras": with_relu(_batch_norm)},
}
