"""A linen model of Flax's layers that runs with ours, without a change to its code."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn

from jaxnorm._adoption import ALREADY, OWN_ATTENTION, AdoptedLayer, Adoption, differences, new_masks, public_name, subclass_of
from jaxnorm._checks import DECISION_BITS, check_bits
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

# Of which contexts a program was traced in is part of the key by which jit finds it again.
_traced_in = jax.make_user_context(None)
_innermost = threading.local()  # as Flax's interceptors are


@contextlib.contextmanager
def replacing_layers(*, bits: int = 16) -> Iterator[Adoption]:
    """Runs linen models with our layers in the place of Flax's, while the context lasts: their code stays as it is.

    A module whose class is `BatchNorm`, `LayerNorm`, `GroupNorm`, `RMSNorm`, `InstanceNorm`, `WeightNorm`, `SpectralNorm` or
    `Dropout` of `flax.linen` is called as the class of this name of `jaxnorm.linen`, wherever it is: set up or inline, under
    `nn.scan`, `nn.remat`, `nn.vmap`, `nn.jit`, in `nn.Sequential`, by `functools.partial`. Flax's attention layers that drop
    weights by Flax's `dot_product_attention` do so by ours. Names, scopes, variables, metadata and random streams are those of
    before: `init` gives the same variables, checkpoints load both ways, and outputs in evaluation are equal, but for rounding,
    where Flax's are right. With `bits=32` the masks are equal too.

    A subclass of these layers is left as it is, since it may depend on what its parent does; so is attention by another
    `attention_fn`. The report says so, and what will differ.

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
    replacing = _Replacing(check_bits(bits, DECISION_BITS))
    outer = getattr(_innermost, "replacing", None)
    _innermost.replacing = replacing
    try:
        with _traced_in(bits), nn.intercept_methods(replacing.follow):
            yield replacing.report
    finally:
        _innermost.replacing = outer
    if replacing.has_run:
        replacing.report.check("replacing_layers: the models that ran (of which none was compiled in an earlier context) hold")


class _Replacing:
    """What a context does with the calls of modules' methods, all of which come by here."""

    def __init__(self, bits: int) -> None:
        self.report = Adoption()
        self.has_run = False
        self._bits = bits
        self._model = ""

    def follow(self, call: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], context: Any) -> Any:
        """Replaces layers within the call of a model, closest to them: interceptors that others set come before."""
        if _innermost.replacing is not self or self._model:
            return call(*args, **kwargs)
        self.has_run = True
        self._model = type(context.module).__name__
        try:
            with nn.intercept_methods(self.replace):
                return self.replace(call, args, kwargs, context)
        finally:
            self._model = ""

    def replace(self, call: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], context: Any) -> Any:
        """Calls what is in the place of a layer, or what was to be called."""
        module = context.module
        twin = self._twin(module) if context.method_name == "__call__" else None
        if twin is None:
            return call(*args, **kwargs)
        unwrapped: Any = type(twin).__call__
        return unwrapped.__wrapped__(twin, *args, **kwargs)  # what Flax wraps it in was done, for the module itself

    def _twin(self, module: nn.Module) -> nn.Module | None:
        """Returns what is in the place of a layer, if anything is."""
        kind = type(module)
        if kind in _IN_PLACE_OF:
            ours = _IN_PLACE_OF[kind]
            self._found(module, public_name(ours), differs=differences(module, self._bits, "linen"))
            return _same_module(module, ours, **({"bits": self._bits} if ours is Dropout else {}))
        if kind in _ATTENTION and module.dropout_rate > 0.0:
            return self._attention_twin(module)
        if kind in _OURS:
            self._found(module, reason=ALREADY)
        elif parent := next((layer for layer in _IN_PLACE_OF if isinstance(module, layer)), None):
            self._found(module, reason=subclass_of(parent))
        return None

    def _attention_twin(self, module: Any) -> nn.Module | None:
        function = module.attention_fn
        if getattr(function, "func", function) is dot_product_attention:
            return None
        if function is not nn.dot_product_attention:
            self._found(module, reason=OWN_ATTENTION)
            return None
        self._found(module, f"{public_name(type(module))} by {public_name(dot_product_attention)}", differs=new_masks(self._bits))
        return _same_module(module, type(module), attention_fn=functools.partial(dot_product_attention, bits=self._bits))

    def _found(self, module: nn.Module, became: str | None = None, **what: Any) -> None:
        path = "/".join(module.path)
        self.report.add(AdoptedLayer(path, public_name(type(module)), became, model=self._model, **what))


def _same_module(module: nn.Module, kind: type, **fields: Any) -> Any:
    """Returns a module as one of another class: with the same fields, scope, children and counters, which the two share."""
    twin = object.__new__(kind)
    vars(twin).update(vars(module), **fields)
    return twin
