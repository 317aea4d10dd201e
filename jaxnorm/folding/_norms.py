"""The batch norms of a model: what stands in their places while it is traced, and after they are folded."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxnorm._axes import canonical_axes, match_sharding, other_axes
from jaxnorm._checks import check_shape
from jaxnorm._modules import output_dtype, promoted_dtype
from jaxnorm._types import AffineParams, wide_dtype
from jaxnorm.folding._search import mark


class Norm(NamedTuple):
    """What is known of a batch norm before the model runs.

    Attributes:
      axis: its axis of channels, or several.
      dtype: the type that it gives y in, or None.
      param_dtype: to which its parameters promote; None if it has none.
      activation: what follows in it, or None.
    """

    axis: Any
    dtype: Any
    param_dtype: Any
    activation: Any = None

    @classmethod
    def of(cls, module: Any, params: AffineParams) -> "Norm":
        """Returns what is known of a module with these parameters."""
        axis = module.axis if isinstance(module.axis, int) else tuple(module.axis)
        return cls(axis, module.dtype, promoted_dtype(*params), getattr(module, "activation", None))

    def add(self, x: jax.Array, shift: jax.Array | None, residual: jax.Array | None = None) -> jax.Array:
        """Returns what a folded norm does: `activation(x + shift + residual)`, in the type that the norm gave y in."""
        promoted: tuple[Any, ...] = () if self.param_dtype is None else (self.param_dtype,)
        dtype = output_dtype(self.dtype, x, *promoted)
        if shift is None and residual is None and self.activation is None:
            return x.astype(dtype)
        wide = wide_dtype(np.promote_types(x.dtype, dtype))
        y = x.astype(wide)
        if shift is not None:
            (axis,) = canonical_axes("axis", self.axis, x.ndim)
            y = y + match_sharding(jnp.expand_dims(shift.astype(wide), other_axes((axis,), x.ndim)), y)
        y = y if residual is None else y + residual.astype(wide)
        y = y if self.activation is None else self.activation(y)
        return y.astype(dtype)


class Call(NamedTuple):
    """A call of a norm while the model is traced."""

    path: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    linear: bool


class Recorder:
    """Stands in the place of the batch norms of a model that is traced, and notes their calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def call(
        self, path: str, norm: Norm, x: jax.Array, *, mean: jax.Array, running: Any, residual: jax.Array | None = None
    ) -> jax.Array:
        """Notes a call, and returns x with the mark of the norm's place; raises unless running statistics that fit are used."""
        check_running(path, running)
        axes = canonical_axes("axis", norm.axis, x.ndim)
        check_shape(f"the running mean of the batch norm {path}", mean, tuple(x.shape[a] for a in axes), "the channels of x")
        y = norm.add(checkpoint_name(x, mark(len(self.calls))), None, residual)
        self.calls.append(Call(path, axes, x.shape, y.dtype, linear=residual is None and norm.activation is None))
        return y


def check_running(path: str, running: Any) -> None:
    """Raises unless a norm is in inference."""
    if not isinstance(running, bool | np.bool_) or not running:
        raise ValueError(
            f"the batch norm {path} must use its running statistics, got use_running_average={running!r}: a model is folded, and "
            "then run, in inference"
        )


def split_arguments(args: Any, kwargs: Any) -> tuple[list[Any], Callable[[Sequence[Any]], tuple[Any, Any]]]:
    """Returns the arrays among the arguments of a model's call, or their shapes, and what puts others in their places."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    places = [place for place, leaf in enumerate(leaves) if hasattr(leaf, "shape")]

    def filled(arrays: Sequence[Any]) -> tuple[Any, Any]:
        new = dict(enumerate(leaves)) | dict(zip(places, arrays, strict=True))
        return jax.tree.unflatten(tree, new.values())

    return [leaves[place] for place in places], filled
