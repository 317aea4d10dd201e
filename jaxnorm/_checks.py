"""Checks of arguments: the only place that raises about arrays.

Every check looks at shapes, dtypes and concrete values only, so that it works while a function is traced: a traced value is
left to the function's own documented behavior.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.export import is_symbolic_dim

from jaxnorm._types import AffineParams, wide_dtype

Scalar = Any
"""A number, or an array of them, concrete or traced."""

DECISION_BITS = (8, 16, 32)
"""How many random bits something can be decided by."""

NOISE_BITS = (16, 32)
"""How many random bits a number of noise can be made of."""


def is_concrete(value: Any) -> bool:
    """Whether the numbers in `value` are known now, and not only when the traced program runs."""
    return not isinstance(value, Tracer)


def is_known_to_be(number: float, amount: Scalar) -> bool:
    """Whether the amount is this one number, also while a program is traced, in which `==` would be of the program."""
    return is_concrete(amount) and np.ndim(amount) == 0 and np.asarray(amount).item() == number


def check_float(name: str, x: Any, *, allow_complex: bool = False) -> jax.Array:
    """Returns `x` as an array, or raises a TypeError unless it is an array of floating point numbers."""
    if not hasattr(x, "dtype") or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        raise TypeError(f"{name} must be an array of floating point numbers, got {_show(x)}")
    if jnp.issubdtype(x.dtype, jnp.complexfloating) and not allow_complex:
        raise TypeError(f"{name} must be real, got {x.dtype}{list(x.shape)}")
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"{name} must be an array of floating point numbers, got {x.dtype}{list(x.shape)}; convert it first")
    return jnp.asarray(x)


def check_integers(name: str, x: Any) -> jax.Array:
    """Returns `x` as an array, or raises a TypeError unless it is an array of integers."""
    if not jnp.issubdtype(getattr(x, "dtype", bool), jnp.integer):
        raise TypeError(f"{name} must be an array of integers, got {_show(x)}")
    return jnp.asarray(x)


def check_integer_of(name: str, value: Any, dtype: np.dtype) -> int:
    """Returns `value`, or raises unless it is a Python int that this type of integers holds."""
    limits = jnp.iinfo(dtype)
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an int, got {_show(value)}")
    if not limits.min <= value <= limits.max:
        raise ValueError(f"{name} must be in [{limits.min}, {limits.max}], as {dtype} is, got {value}")
    return int(value)


def check_number(
    name: str, value: Scalar, *, low: float, high: float = np.inf, open_high: bool = False, infinite: bool = False
) -> Scalar:
    """Returns `value`, or raises unless it is a number in `[low, high]`; in `[low, high)` if `open_high` or not `infinite`."""
    open_high = open_high or (high == np.inf and not infinite)
    interval = f"[{low:g}, {high:g}{')' if open_high else ']'}"
    dtype = value.dtype if hasattr(value, "dtype") else None
    if dtype is None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{name} must be a number in {interval}, got {_show(value)}")
    if dtype is not None and not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{name} must be a real number in {interval}, got {_show(value)}")
    if is_concrete(value):
        number = np.asarray(value, np.float64)
        inside = (number >= low) & ((number < high) if open_high else (number <= high))  # False for NaN
        if not inside.all():
            raise ValueError(f"{name} must be in {interval}, got {_show(value)}")
    return value


def check_scalar(name: str, value: Scalar, *, low: float, high: float = np.inf, infinite: bool = False) -> Scalar:
    """Returns `value`, or raises unless it is one number in `[low, high]`; infinity must be allowed."""
    check_number(name, value, low=low, high=high, infinite=infinite)
    check_shape(name, value, (), "a scalar")
    return value


def check_amount_shape(name: str, amount: Scalar, shape: tuple[int, ...]) -> None:
    """Raises unless `amount` is a scalar or has one entry, or one for all, along every axis of a draw of this shape."""
    got = np.shape(amount)
    if got and (len(got) != len(shape) or any(a not in (1, s) for a, s in zip(got, shape, strict=True))):
        raise ValueError(f"{name} must be a scalar or have a shape like {list(shape)} (1 on any axis), got shape {list(got)}")


def check_shape(name: str, x: Any, shape: tuple[int, ...], why: str) -> None:
    """Raises unless `x` has exactly this shape: nothing broadcasts by accident."""
    if np.shape(x) != shape:
        raise ValueError(f"{name} must have shape {list(shape)} ({why}), got {list(np.shape(x))}")


def check_affine(
    params: Any,
    shape: tuple[int, ...],
    *,
    like: jax.Array,
    of: str = "channels",
    kind: Any = AffineParams,
    others: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> None:
    """Raises unless `params` are scale and bias of this shape, or None, for an x like this, whose channels they are of.

    A kind of parameters may have others too, of the same shape or of those named; each must be there unless its default is None.
    """
    check_type("params", params, kind)
    for name, part in params._asdict().items():
        if part is not None or name not in (*AffineParams._fields, *kind._field_defaults):
            check_float(f"params.{name}", part, allow_complex=jnp.iscomplexobj(like))
            own = others.get(name, shape)
            check_shape(f"params.{name}", part, own, f"the {of} of x" if own == shape else "whatever x is")


def check_where(where: Any, x: jax.Array, name: str = "where", of: str = "x") -> jax.Array:
    """Returns the mask `where` as an array, or raises unless it is boolean with x's rank and broadcasts to x."""
    if getattr(where, "dtype", None) != jnp.bool_:
        raise TypeError(f"{name} must be an array of bool, got {_show(where)}")
    if where.ndim != x.ndim or any(w not in (1, s) for w, s in zip(where.shape, x.shape, strict=True)):
        raise ValueError(
            f"{name} must have the rank of {of} and broadcast to its shape {list(x.shape)}, got shape {list(where.shape)}"
        )
    return jnp.asarray(where)


def check_dtype(name: str, dtype: Any) -> np.dtype:
    """Returns `dtype`, or raises a TypeError unless it is a type of real or complex floating point numbers."""
    try:
        known = jax.dtypes.canonicalize_dtype(dtype) if dtype is not None else None
    except TypeError:
        known = None
    if known is None or not jnp.issubdtype(known, jnp.inexact):
        raise TypeError(f"{name} must be a type of floating point numbers, got {dtype!r}")
    return known


def check_output_dtype(dtype: Any, x: jax.Array) -> np.dtype:
    """Returns the type of y: `dtype`, or that of x if it is None; raises where x is complex and y would not be."""
    known = np.dtype(x.dtype) if dtype is None else check_dtype("dtype", dtype)
    if jnp.iscomplexobj(x) and not jnp.issubdtype(known, jnp.complexfloating):
        raise TypeError(f"dtype must be complex or None for an x of {x.dtype}, got {known}")
    return known


def check_stats_dtype(name: str, dtype: Any, *, like: Any = None) -> np.dtype:
    """Returns `dtype`, or raises unless running statistics can be kept in it: float32 or wider, complex if `like` is."""
    known = check_dtype(name, dtype)
    if known not in (jnp.float32, jnp.float64, jnp.complex64, jnp.complex128):
        raise TypeError(f"{name} must be kept in float32 or wider, since narrower types lose small updates, got {known}")
    if like is not None and jnp.issubdtype(known, jnp.complexfloating) != jnp.issubdtype(like, jnp.complexfloating):
        kind = "complex" if jnp.issubdtype(like, jnp.complexfloating) else "real"
        raise TypeError(f"{name} must be {kind} for this x, got {known}")
    return known


def check_finite(name: str, x: Any, *, low: float = -np.inf) -> None:
    """Raises a ValueError that names the first entry of a concrete `x` that is not finite, or that is below `low`."""
    if not is_concrete(x):
        return
    values = np.asarray(x)
    wrong = ~np.isfinite(values) if low == -np.inf else ~(np.isfinite(values) & (values >= low))
    if wrong.any():
        place = tuple(map(int, np.argwhere(wrong)[0]))
        wanted = "finite" if low == -np.inf else f"finite and at least {low:g}"
        raise ValueError(f"{name} must be {wanted}, got {values[place]} at {list(place)}")


def check_type(name: str, value: Any, kind: type) -> None:
    """Raises a TypeError unless `value` is of this kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, got {_show(value)}")


def check_activation(activation: Any, x: jax.Array, *, optional: bool = True) -> None:
    """Raises unless `activation` is a function that maps what is computed of x to an array alike; or None, if that is allowed."""
    if optional and activation is None:
        return
    if not callable(activation):
        raise TypeError(f"activation must be a function of an array, got {_show(activation)}")
    shape, dtype = x.shape, wide_dtype(x.dtype)
    got = jax.eval_shape(activation, jax.ShapeDtypeStruct(shape, dtype))
    if getattr(got, "dtype", None) != dtype:
        raise TypeError(f"activation must map {dtype}{list(shape)} to an array of the same dtype, got {_show(got)}")
    if got.shape != shape:
        raise ValueError(f"activation must map {dtype}{list(shape)} to an array of the same shape, got {list(got.shape)}")


def check_axis_name(axis_name: Any, groups: Any) -> tuple[Any, tuple[tuple[int, ...], ...] | None]:
    """Returns names of mapped axes and groups of indices along them as hashable values, or raises unless they are such."""
    if isinstance(axis_name, list):
        axis_name = tuple(axis_name)
    if axis_name is not None:
        names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
        if not names or not all(isinstance(name, str) for name in names):
            raise TypeError(f"axis_name must be a name or a sequence of names, got {_show(axis_name)}")
    if groups is None:
        return axis_name, None
    if axis_name is None:
        raise ValueError(f"axis_index_groups needs an axis_name, got {groups!r} without one")
    try:
        return axis_name, tuple(tuple(int(i) for i in group) for group in groups)
    except TypeError as error:
        raise TypeError(f"axis_index_groups must be a sequence of sequences of ints, got {_show(groups)}") from error


def check_flag(name: str, value: Any) -> Any:
    """Returns `value`, or raises unless it is a bool, concrete or a traced scalar."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if getattr(value, "dtype", None) == jnp.bool_ and np.shape(value) == ():
        return bool(value) if is_concrete(value) else value
    raise TypeError(f"{name} must be True or False, or a traced bool scalar, got {_show(value)}")


def check_known_flag(name: str, value: Any) -> bool:
    """Returns `value`, or raises unless it is a bool that is known when the function is traced."""
    if not isinstance(flag := check_flag(name, value), bool):
        raise TypeError(f"{name} must be known when the function is traced, got a traced bool")
    return flag


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises unless `value` is one of these words."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {_show(value)}")


def check_size(name: str, value: Any, *, low: int = 1) -> int:
    """Returns `value`, or raises unless it is a Python int of at least 1, or `low`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an int of at least {low}, got {_show(value)}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    return int(value)


def check_sizes(name: str, value: Any) -> tuple[int, ...]:
    """Returns a size, or several, as a tuple, or raises unless each is a Python int of at least 1."""
    return tuple(check_size(name, size) for size in (value if isinstance(value, Sequence) else (value,)))


def check_sizes_along(name: str, value: Any, axes: Sequence[int]) -> tuple[int, ...]:
    """Returns a size for each of the spatial axes, or raises unless there is one for all, or one for each, of at least 1."""
    sizes = check_sizes(name, value)
    if isinstance(value, Sequence) and len(sizes) != len(axes):
        raise ValueError(f"{name} must be an int, or one for each of the {len(axes)} spatial dimensions of x, got {value!r}")
    return sizes if isinstance(value, Sequence) else sizes * len(axes)


def check_array_shape(name: str, shape: Any) -> tuple[int, ...]:
    """Returns a shape as a tuple, or raises unless it is a sequence of ints of at least 0; symbols are sizes too."""
    wanted = f"{name} must be a sequence of ints of at least 0, got {_show(shape)}"
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(wanted)
    known = [size for size in shape if not is_symbolic_dim(size)]
    if any(isinstance(size, bool) or not isinstance(size, int | np.integer) for size in known):
        raise TypeError(wanted)
    if any(size < 0 for size in known):
        raise ValueError(wanted)
    return tuple(shape)


def check_indices(name: str, indices: Any) -> Any:
    """Returns indices as an array, of NumPy if it is none of jax, or raises unless they are ints; concrete ones at least 0."""
    wanted = f"ints of at least 0 and below 2^64, got {_show(indices)}"
    if isinstance(indices, int) and not isinstance(indices, bool):
        if not 0 <= indices < 2**64:
            raise ValueError(f"{name} must be {wanted}")
        return np.asarray(indices, np.uint64)
    if not jnp.issubdtype(getattr(indices, "dtype", bool), jnp.integer):
        raise TypeError(f"{name} must be an array of {wanted}")
    if is_concrete(indices) and np.any(np.asarray(indices) < 0):
        raise ValueError(f"{name} must be {wanted}")
    return indices


def check_groups(channels: Any, *, num_groups: Any = None, group_size: Any = None) -> tuple[int, int]:
    """Returns how many groups the channels are in, and of how many; raises unless one of the two is given and divides them."""
    if (num_groups is None) == (group_size is None):
        raise ValueError(f"num_groups or group_size must be given, and not both, got {num_groups!r} and {group_size!r}")
    name, value = ("num_groups", num_groups) if group_size is None else ("group_size", group_size)
    check_size(name, value)
    if not isinstance(channels, int | np.integer) or channels % value:
        raise ValueError(f"{name} must divide the number of channels, {channels}, got {value}")
    value = int(value)
    other = int(channels // value)
    return (value, other) if group_size is None else (other, value)


def check_kinds(name: str, kinds: Any, batch: Any, *, scalar: bool = False) -> jax.Array:
    """Returns the kinds of the examples as an array, or raises unless they are ints, one an example, or one for all if allowed.

    Which numbers they are is not looked at, but of a Python int.
    """
    wanted = f"an array of ints of shape [{batch}], the batch's" + (", or an int" if scalar else "")
    if scalar and isinstance(kinds, int) and not isinstance(kinds, bool):
        if kinds < 0:
            raise ValueError(f"{name} must be at least 0, got {kinds}")
        return jnp.asarray(kinds)
    if not jnp.issubdtype(getattr(kinds, "dtype", bool), jnp.integer):
        raise TypeError(f"{name} must be {wanted}, got {_show(kinds)}")
    shape = np.shape(kinds)
    if shape != (batch,) and not (scalar and not shape):
        raise ValueError(f"{name} must be {wanted}, got shape {list(shape)}")
    return jnp.asarray(kinds)


def check_residual(residual: Any, x: jax.Array) -> jax.Array | None:
    """Returns what is added to a normalized x, or raises unless it is None or an array like x."""
    return None if residual is None else check_like("residual", residual, x, allow_complex=jnp.iscomplexobj(x))


def check_like(name: str, value: Any, x: jax.Array, of: str = "x", *, allow_complex: bool = False) -> jax.Array:
    """Returns `value` as an array, or raises unless it is one of floating point numbers of the shape of x."""
    value = check_float(name, value, allow_complex=allow_complex)
    check_shape(name, value, x.shape, f"that of {of}")
    return value


def check_bits(bits: Any, choices: tuple[int, ...]) -> int:
    """Returns `bits`, or raises unless they are one of these numbers."""
    wanted = f"{', '.join(map(str, choices[:-1]))} or {choices[-1]}"
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"bits must be {wanted}, got {_show(bits)}")
    if bits not in choices:
        raise ValueError(f"bits must be {wanted}, got {bits}")
    return bits


def check_decision_bits(bits: Any, rate: Scalar, *, of: str = "a rate") -> int:
    """Returns how many random bits an element decide about dropping, or raises unless so many can.

    A concrete rate of which 8 bits would miss the probability to drop or to keep by more than 5 % raises; one below 2^-12, or so
    near to 1, is drawn with 32 bits where 16 are asked for. A traced rate gets the bits asked for.
    """
    check_bits(bits, DECISION_BITS)
    if bits == 32 or not is_concrete(rate):
        return bits
    drop = np.atleast_1d(np.asarray(rate, np.float64))
    less_likely = np.minimum(drop, 1 - drop)
    if bits == 16:
        return 32 if np.any((less_likely > 0) & (less_likely < 2**-12)) else 16
    missed = np.abs(np.round(drop * 256) / 256 - drop) > 0.05 * less_likely
    if missed.any():
        raise ValueError(f"bits must be 16 or 32 for {of} of {drop[missed][0]:g}, which 8 bits do not hold to 5 %, got 8")
    return bits


def check_key(key: Any, name: str = "key") -> jax.Array:
    """Returns `key` as one typed key; takes typed keys and legacy `uint32` ones."""
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        typed = key
    elif dtype == jnp.uint32 and np.ndim(key) >= 1:
        try:
            typed = jax.random.wrap_key_data(key)
        except TypeError as error:
            raise TypeError(f"{name} must be one key, as from jax.random.PRNGKey, got {_show(key)}") from error
    else:
        raise TypeError(f"{name} must be one key, as from jax.random.key or jax.random.PRNGKey, got {_show(key)}")
    if typed.shape != ():
        raise ValueError(f"{name} must be one key, got {_show(key)}: give each call its own, as with jax.vmap")
    return typed


def _show(value: Any) -> str:
    """What an error says of a value: an array's type and shape if it is large or traced, else the value itself."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        text = repr(value)
        return f"{text if len(text) <= 100 else text[:97] + '...'} ({type(value).__name__})"
    if not is_concrete(value) or value.size > 8 or jnp.issubdtype(dtype, jax.dtypes.extended):
        return f"an array {dtype}{list(value.shape)}"
    return f"{np.asarray(value).tolist()!r} ({dtype}{list(value.shape) or ''})"
