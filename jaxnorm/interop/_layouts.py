"""How an entry of a torch module is laid out in Flax: which axis comes where, forth and back."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]

COUNTER = "num_batches_tracked"
"""The entry of torch's batch norms that Flax's have no variable for."""

_RENAMED = {"weight": ("kernel", "embedding", "scale"), "running_mean": ("mean",), "running_var": ("var",)}


class Layout(NamedTuple):
    """The same numbers in torch and in Flax.

    Attributes:
      name: what is done to the axes, in words.
      torch_shape: the shape that the entry must have in torch.
      to_flax: makes the Flax array of torch's.
      to_torch: makes the torch array of Flax's.
    """

    name: str
    torch_shape: Shape
    to_flax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


def variable_of(leaf: str, variables: Mapping[str, object]) -> str | None:
    """Returns which of a Flax module's variables an entry of a torch module is, None if it is none."""
    return next((name for name in (*_RENAMED.get(leaf, ()), leaf) if name in variables), None)


def layout_of(variable: str, torch_shape: Shape, shape: Shape, *, transposed: bool) -> Layout:
    """Returns how an entry that has this shape in torch becomes a variable of that shape in Flax.

    Where the two do not fit, `layout.torch_shape` is the shape that would.
    """
    if variable != "kernel":
        flat = (math.prod(shape),)  # the bias of a dense layer with several axes of outputs
        same = Layout("as it is", shape, np.asarray, np.asarray)
        return _reshaped("flattened", flat, shape) if variable == "bias" and torch_shape == flat != shape else same
    if len(torch_shape) == 2 or len(shape) == 2:
        return _dense(torch_shape, shape)
    return _transposed_convolution(torch_shape, shape) if transposed else _convolution(shape)


def _reshaped(name: str, torch_shape: Shape, shape: Shape) -> Layout:
    return Layout(name, torch_shape, lambda a: a.reshape(shape), lambda a: a.reshape(torch_shape))


def _dense(torch_shape: Shape, shape: Shape) -> Layout:
    """[out, in] -> [in, out], either of which may be several axes in Flax, as the heads of attention are."""
    splits = [(math.prod(shape[i:]), math.prod(shape[:i])) for i in range(1, len(shape))]
    own = torch_shape if torch_shape in splits else splits[0]
    name = "[out, in] -> [in, out]" + ("" if len(shape) == 2 else ", in several axes")
    return Layout(name, own, lambda a: a.T.reshape(shape), lambda a: a.reshape(own[::-1]).T)


def _convolution(shape: Shape) -> Layout:
    """[out, in / groups, ...] -> [..., in / groups, out]."""

    def to_flax(a: np.ndarray) -> np.ndarray:
        return np.moveaxis(a, (0, 1), (-1, -2))

    def to_torch(a: np.ndarray) -> np.ndarray:
        return np.moveaxis(a, (-1, -2), (0, 1))

    return Layout("[out, in, ...] -> [..., in, out]", (shape[-1], shape[-2], *shape[:-2]), to_flax, to_torch)


def _transposed_convolution(torch_shape: Shape, shape: Shape) -> Layout:
    """[in, out / groups, ...] -> [..., in / groups, out], with the spatial axes turned around.

    torch's layer is the gradient of a convolution by its kernel, Flax's a convolution of what is spread by the strides.
    """
    *window, inputs, outputs = shape  # inputs of one group
    groups = torch_shape[0] // inputs if torch_shape and inputs and torch_shape[0] % inputs == 0 else 1
    groups = groups if groups and outputs % groups == 0 else 1
    own = (groups * inputs, outputs // groups, *window)
    turned = tuple(range(len(window)))

    def to_flax(a: np.ndarray) -> np.ndarray:
        parts = a.reshape(groups, inputs, outputs // groups, *window)
        return np.flip(np.moveaxis(parts, (1, 0, 2), (-3, -2, -1)).reshape(shape), turned)

    def to_torch(a: np.ndarray) -> np.ndarray:
        parts = np.flip(a, turned).reshape(*window, inputs, groups, outputs // groups)
        return np.moveaxis(parts, (-3, -2, -1), (1, 0, 2)).reshape(own)

    return Layout("[in, out, ...] -> [..., in, out], turned", own, to_flax, to_torch)
