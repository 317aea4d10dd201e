"""The report of a model of Flax that runs with our layers: what each layer became, or why it was left, and what will differ."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxnorm._tables import text_table

LAYERS = ("BatchNorm", "Dropout", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm", "SpectralNorm", "WeightNorm")
"""Flax's layers that have one of ours of the same name in their place."""

NOTHING = f"no layer to replace, none of {', '.join(LAYERS)} of Flax, nor attention with dropout"
ALREADY = "is jaxnorm's already"
OWN_ATTENTION = "drops weights by an attention_fn that is not Flax's"
_WIDTH = 130


@dataclasses.dataclass(frozen=True)
class AdoptedLayer:
    """A layer of a model.

    Attributes:
      path: the names that lead to it from the model, as `encoder/norm`; empty for the model itself.
      layer: its class.
      became: what runs in its place; None where it was left.
      reason: why it was left; empty where it was not.
      differs: what will differ from before, in sentences; outputs in evaluation are else equal, but for rounding.
      model: the class of the model.
    """

    path: str
    layer: str
    became: str | None = None
    reason: str = ""
    differs: tuple[str, ...] = ()
    model: str = ""


@dataclasses.dataclass(frozen=True)
class Adoption:
    """The layers of a model, or of several, by model and path. It prints as a table.

    Attributes:
      found: a layer by the class of its model and its path.
    """

    found: dict[tuple[str, str], AdoptedLayer] = dataclasses.field(default_factory=dict)

    @property
    def layers(self) -> tuple[AdoptedLayer, ...]:
        """All layers that were replaced, and those that might have been."""
        return tuple(self.found.values())

    @property
    def replaced(self) -> tuple[AdoptedLayer, ...]:
        """The layers that were replaced."""
        return tuple(layer for layer in self.layers if layer.became is not None)

    @property
    def left(self) -> tuple[AdoptedLayer, ...]:
        """The layers that were left."""
        return tuple(layer for layer in self.layers if layer.became is None)

    def add(self, layer: AdoptedLayer) -> None:
        """Adds a layer. One that was replaced stays so: what a transformation makes of its class may have been left before."""
        name = (layer.model, layer.path)
        if layer.became is not None or name not in self.found or self.found[name].became is None:
            self.found[name] = layer

    def check(self, nothing: str) -> None:
        """Raises a ValueError, which says this and what was left, if nothing was replaced."""
        if self.replaced:
            return
        reasons = dict.fromkeys(layer.reason for layer in self.left)
        left = "".join(f"; left: {self._those_left(reason)}" for reason in reasons)
        raise ValueError(f"{nothing}{left}")

    def _those_left(self, reason: str) -> str:
        first, *others = (layer for layer in self.left if layer.reason == reason)
        more = f", and so {len(others)} more" if others else ""
        return f"{first.path or 'the model'}, a {first.layer}, {reason}{more}"

    def __str__(self) -> str:
        """Returns the table with its notes."""
        several = len({layer.model for layer in self.layers}) > 1
        notes = list(dict.fromkeys(note for layer in self.layers for note in layer.differs))

        def cells(layer: AdoptedLayer) -> tuple[str, str, str, str]:
            path = layer.path or "(the model)"
            now = f"as it was: {layer.reason}" if layer.became is None else layer.became
            numbers = ", ".join(map(str, sorted(notes.index(note) + 1 for note in layer.differs)))
            return f"{layer.model}: {path}" if several else path, layer.layer, now, numbers

        title = f"{len(self.replaced)} of {len(self.layers)} layers replaced"
        table = text_table(("layer", "was", "is", "differs"), map(cells, self.layers), title=title, width=_WIDTH)
        return "\n".join((table, *(f"  {number}. {note}." for number, note in enumerate(notes, 1))))


def public_name(kind: Any) -> str:
    """Returns the name of a class or function with its package, as people import it: `flax.linen.BatchNorm`."""
    package = kind.__module__.split(".")
    known = ".".join(package[:2]) if package[0] in ("flax", "jaxnorm") else kind.__module__
    return f"{known}.{kind.__qualname__}"


def subclass_of(layer: type) -> str:
    """Returns why a layer was left whose class is derived from one of Flax's."""
    return f"is a subclass of {public_name(layer)}, on whose own code it may depend"


def new_masks(bits: int) -> tuple[str, ...]:
    """Returns what differs where random bits decide."""
    if bits == 32:
        return ()
    return (f"In training {bits} random bits an element draw other masks of the same rate (bits=32: Flax's masks)",)


def differences(module: Any, bits: int, flax: str) -> tuple[str, ...]:
    """Returns what will differ once a layer, with the attributes of Flax's of the package `flax`, is replaced.

    Where Flax's layer is right outputs in evaluation are the same, so most of this is what is right now and was not before.
    """
    kind = type(module).__name__
    if kind == "Dropout":
        return new_masks(bits)
    if kind in ("WeightNorm", "SpectralNorm"):
        return tuple(_of_weights(kind, flax))
    return tuple(_of_norms(kind, module, flax))


def _of_weights(kind: str, flax: str) -> Sequence[str]:
    if flax == "nnx":
        kept = ["The layer's kernels are never overwritten: Flax replaces them by normalized ones in every call"]
        return [*kept, *(["The scales are learned: they are of type nnx.Param"] if kind == "WeightNorm" else [])]
    if kind == "SpectralNorm":
        return ["In training a kernel that is not finite leaves the state as it was"]
    return ["What the layer keeps besides its parameters, as running statistics, is updated: Flax's is not"]


def _of_norms(kind: str, module: Any, flax: str) -> Sequence[str]:
    of_batch, found = kind == "BatchNorm", []
    if of_batch:
        found.append("In training a batch that is not finite, or not counted, leaves the running statistics as they were")
    if kind != "RMSNorm" and module.use_fast_variance:
        found.append(
            "In training the variance of channels far from 0 is exact: Flax's cancels (use_fast_variance)"
            if of_batch
            else "The variance of examples far from 0 is exact: Flax's cancels (use_fast_variance)"
        )
    found.append("With a mask, what it leaves out may be NaN: in Flax that reaches every gradient")
    if module.axis_name is not None:
        found.append("Devices are pooled by what they count: Flax averages their means, also under masks that differ")
    if not getattr(module, "force_float32_reductions", True):
        found.append("Statistics are computed and kept in float32 though force_float32_reductions is off")
    if flax == "nnx" and module.dtype is not None and jnp.finfo(module.dtype).bits < 32:
        found.append(f"Inputs{' and running statistics' if of_batch else ''} are not rounded to {jnp.dtype(module.dtype)} first")
    if flax == "nnx" and kind == "GroupNorm" and module.reduction_axes is not None:
        found.append("Statistics are of the axes asked for (reduction_axes): Flax's are of other groups and positions")
    return found
