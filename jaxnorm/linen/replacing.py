"""A linen model of Flax's layers that runs with ours, without a change to its code."""

import functools
from contextlib import AbstractContextManager
from typing import Any

from flax import linen as nn

from jaxnorm._adoption import ALREADY, NOTHING, OWN_ATTENTION, Adoption, differences, new_masks, public_name, subclass_of
from jaxnorm._checks import DECISION_BITS, check_bits
from jaxnorm.linen._interception import Stand, call_as, calling_others
from jaxnorm.linen.attention import dot_product_attention
from jaxnorm.linen.batch_norm import BatchNorm
from jaxnorm.linen.dropout import Dropout
from jaxnorm.linen.group_norm import GroupNorm
from jaxnorm.linen.instance_norm import InstanceNorm
from jaxnorm.linen.layer_norm import LayerNorm
from jaxnorm.linen.rms_norm import RMSNorm
from jaxnorm.linen.spectral_norm import SpectralNorm
from jaxnorm.linen.weight_norm import WeightNorm

_OURS = (BatchNorm, Dropout, GroupNorm, InstanceNorm, LayerNorm, RMSNorm, SpectralNorm, WeightNorm)
_IN_PLACE_OF: dict[type, type] = {getattr(nn, ours.__name__): ours for ours in _OURS}
_ATTENTION = (nn.MultiHeadDotProductAttention, nn.MultiHeadAttention, nn.SelfAttention)


def replacing_layers(*, bits: int = 16) -> AbstractContextManager[Adoption]:
    """Runs linen models with our layers in the place of Flax's, while the context lasts: their code stays as it is.

    A module whose class is `BatchNorm`, `LayerNorm`, `GroupNorm`, `RMSNorm`, `InstanceNorm`, `WeightNorm`, `SpectralNorm` or
    `Dropout` of `flax.linen` is called as the class of this name of `jaxnorm.linen`, wherever it is: set up or inline, under
    `nn.scan`, `nn.remat`, `nn.vmap`, `nn.jit`, in `nn.Sequential`, by `functools.partial`. Flax's attention layers that drop
    weights by Flax's `dot_product_attention` do so by ours. Names, scopes, variables, metadata and random streams are those of
    before: `init` gives the same variables, checkpoints load both ways, and outputs in evaluation are equal, but for rounding,
    where Flax's are right. With `bits=32` the masks are equal too.

    A subclass of these layers is left as it is, since it may depend on what its parent does; so is attention by another
    `attention_fn`. The report says so, and what will differ. What a model calls that is no module, as `nn.dot_product_attention`
    itself, is not seen. What our layers refuse and Flax's take, as integers or a rate above 1, raises.

    What a function that `jax.jit` compiled outside the context does stays as it is there; called inside, it is traced again, and
    has our layers, and the other way round. Contexts of the same options share what was compiled. Only what was compiled ahead,
    by `lower` and `compile`, stays as it was when it was traced. Of contexts in each other the innermost holds. Other threads are
    not touched: each enters a context of its own.

    Args:
      bits: random bits an element that decide in dropout: 8, 16 or 32, as in `jaxnorm.dropout`.

    Returns:
      A context that gives a report, which grows as models run: `report.layers`, with the `path`, `layer`, `became`, `reason` and
      `differs` of each, `report.replaced` and `report.left`; `print(report)` shows it as a table. A function that was compiled in
      an earlier context is not traced again, and so is not in the report.

    Raises:
      ValueError: if bits are not 8, 16 or 32; at the end of the context, if linen modules ran in it and none was replaced.
      TypeError: if bits is no number.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> from flax import linen as nn
      >>> model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=False), nn.Dropout(0.5, deterministic=True)])
      >>> variables = model.init(jax.random.key(0), jnp.ones((2, 3)))
      >>> with jaxnorm.linen.replacing_layers() as report:
      ...     y, updates = model.apply(variables, 1e4 + jnp.eye(2, 3), mutable=["batch_stats"])
      >>> [(layer.path, layer.became) for layer in report.replaced]
      [('layers_1', 'jaxnorm.linen.BatchNorm'), ('layers_2', 'jaxnorm.linen.Dropout')]
    """
    check_bits(bits, DECISION_BITS)
    what = f"replacing_layers: the models that ran (of which none was compiled in an earlier context) hold {NOTHING}"
    return calling_others(functools.partial(_stand_for, bits), ("replacing", bits), what)


def _stand_for(bits: int, module: Any, path: str) -> Stand | None:
    """Returns what is called in the place of a layer, if it is one to replace."""
    kind = type(module)
    if kind in _IN_PLACE_OF:
        ours = _IN_PLACE_OF[kind]
        call = call_as(ours, module, **({"bits": bits} if ours is Dropout else {}))
        return Stand(call, became=public_name(ours), differs=differences(module, bits, "linen"))
    if kind in _ATTENTION and module.dropout_rate > 0.0:
        return _attention_stand(bits, module)
    if kind in _OURS:
        return Stand(reason=ALREADY)
    parent = next((layer for layer in _IN_PLACE_OF if isinstance(module, layer)), None)
    return None if parent is None else Stand(reason=subclass_of(parent))


def _attention_stand(bits: int, module: Any) -> Stand | None:
    kind, function = type(module), module.attention_fn
    if getattr(function, "func", function) is dot_product_attention:
        return None
    if function is not nn.dot_product_attention:
        return Stand(reason=OWN_ATTENTION)
    call = call_as(kind, module, attention_fn=functools.partial(dot_product_attention, bits=bits))
    return Stand(call, became=f"{public_name(kind)} by {public_name(dot_product_attention)}", differs=new_masks(bits))
