"""An nnx model of Flax's layers as one with ours."""

import functools
import inspect
import math
from typing import Any, TypeVar

from flax import nnx

from jaxnorm._adoption import (
    ALREADY,
    NOTHING,
    OWN_ATTENTION,
    AdoptedLayer,
    Adoption,
    differences,
    new_masks,
    public_name,
    subclass_of,
)
from jaxnorm._checks import DECISION_BITS, check_bits, check_type
from jaxnorm.nnx.attention import dot_product_attention
from jaxnorm.nnx.batch_norm import BatchNorm
from jaxnorm.nnx.dropout import Dropout
from jaxnorm.nnx.group_norm import GroupNorm
from jaxnorm.nnx.instance_norm import InstanceNorm
from jaxnorm.nnx.layer_norm import LayerNorm
from jaxnorm.nnx.rms_norm import RMSNorm
from jaxnorm.nnx.spectral_norm import SpectralNorm
from jaxnorm.nnx.weight_norm import WeightNorm

Model = TypeVar("Model", bound=nnx.Module)

_OURS = (BatchNorm, Dropout, GroupNorm, InstanceNorm, LayerNorm, RMSNorm, SpectralNorm, WeightNorm)
_IN_PLACE_OF: dict[type, type] = {getattr(nnx, ours.__name__): ours for ours in _OURS}

# Arguments that make variables, and are no attributes.
_NO_ATTRIBUTES = ("bias_init", "scale_init", "bias_metadata", "scale_metadata", "update_stats", "rngs")
_LINEN = "is a linen module: call the model within jaxnorm.linen.replacing_layers"


def replace_layers(model: Model, *, bits: int = 16) -> tuple[Model, Adoption]:
    """Returns a copy of an nnx model that has our layers in the place of Flax's; the given one stays as it is.

    A module whose class is `BatchNorm`, `LayerNorm`, `GroupNorm`, `RMSNorm`, `InstanceNorm`, `WeightNorm`, `SpectralNorm` or
    `Dropout` of `flax.nnx` is of the class of this name of `jaxnorm.nnx` in the copy, wherever it is: in lists, dicts and
    sequences, stacked for `nnx.scan` or `nnx.vmap`, used in several places. `nnx.MultiHeadAttention` that drops weights by Flax's
    `dot_product_attention` does so by ours. All else is that of the model: classes, code, paths and values of variables, their
    types and metadata, what is shared and tied, counters and keys of random streams, flags of `train()` and `eval()`; so
    states and checkpoints load both ways, and outputs in evaluation are equal, but for rounding, where Flax's are right. With
    `bits=32` the masks are equal too. Only the scales of `WeightNorm` become of type `nnx.Param` where they are bare arrays.

    A subclass of these layers is left as it is, since it may depend on what its parent does; so is attention by another
    `attention_fn`. The report says so, and what will differ. Code that asks whether a layer is a `flax.nnx.BatchNorm` no longer
    finds it to be one. What our layers refuse and Flax's take, as integers or a rate above 1, raises.

    Args:
      model: an nnx module. Its arrays may be abstract, as of `nnx.eval_shape`.
      bits: random bits an element that decide in dropout: 8, 16 or 32, as in `jaxnorm.dropout`.

    Returns:
      The copy, with variables of its own, and a report: `report.layers`, with the `path`, `layer`, `became`, `reason` and
      `differs` of each, `report.replaced` and `report.left`; `print(report)` shows it as a table. A layer that is used in several
      places is there once.

    Raises:
      ValueError: if the model has no layer to replace; if bits are not 8, 16 or 32.
      TypeError: if model is no nnx module, or bits no number.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
      >>> adopted, report = jaxnorm.nnx.replace_layers(model)
      >>> [(layer.path, layer.became) for layer in report.replaced]
      [('layers/1', 'jaxnorm.nnx.BatchNorm'), ('layers/2', 'jaxnorm.nnx.Dropout')]
      >>> model.eval(), adopted.eval()
      (None, None)
      >>> bool(jnp.allclose(adopted(jnp.eye(3)), model(jnp.eye(3))))
      True
    """
    check_type("model", model, nnx.Module)
    check_bits(bits, DECISION_BITS)
    copy, report = nnx.clone(model), Adoption()
    for path, module in nnx.iter_modules(copy):
        found = _replaced(module, bits)
        if found is not None:
            path = "/".join(map(str, path))
            report.add(AdoptedLayer(path, **found, model=type(model).__name__))
    report.check(f"model holds {NOTHING}")
    return copy, report


def _replaced(module: Any, bits: int) -> dict[str, Any] | None:
    """Replaces a layer where it stands, and returns what the report says of it; None for what is no layer to replace."""
    kind = type(module)
    said: dict[str, Any] = {"layer": public_name(kind)}
    if kind in _IN_PLACE_OF:
        differs = differences(module, bits, "nnx")
        _adopt(module, _IN_PLACE_OF[kind], bits)
        return {**said, "became": public_name(type(module)), "differs": differs}
    if kind is nnx.MultiHeadAttention and module.dropout_rate > 0.0:
        function: Any = module.attention_fn
        if getattr(function, "func", function) is dot_product_attention:
            return None
        if function is not nnx.dot_product_attention:
            return {**said, "reason": OWN_ATTENTION}
        module.attention_fn = functools.partial(dot_product_attention, bits=bits)
        return {**said, "became": f"{public_name(kind)} by {public_name(dot_product_attention)}", "differs": new_masks(bits)}
    if isinstance(module, nnx.bridge.ToNNX):
        return {**said, "reason": _LINEN}
    if kind in _OURS:
        return {**said, "reason": ALREADY}
    if parent := next((layer for layer in _IN_PLACE_OF if isinstance(module, layer)), None):
        return {**said, "reason": subclass_of(parent)}
    return None


def become(module: Any, ours: type) -> None:
    """Makes a layer one of our class: whatever refers to it still does, and its variables are the same objects."""
    object.__setattr__(module, "__class__", ours)
    for name, argument in inspect.signature(ours.__init__).parameters.items():
        if argument.default is not inspect.Parameter.empty and name not in _NO_ATTRIBUTES and not hasattr(module, name):
            setattr(module, name, argument.default)


def _adopt(module: Any, ours: type, bits: int) -> None:
    """Makes a layer of Flax one of ours, with what ours has besides."""
    become(module, ours)
    if isinstance(module, RMSNorm):
        module.bias, module.use_bias = nnx.data(None), False
    if isinstance(module, GroupNorm):
        module.num_features = math.prod((module.num_groups, module.group_size))
    if isinstance(module, Dropout):
        module.bits = bits
    if isinstance(module, WeightNorm) and module.scales is not None:
        for path, scale in module.scales.items():
            module.scales[path] = scale if isinstance(scale, nnx.Variable) else nnx.Param(scale)
