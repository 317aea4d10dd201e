"""Mixed precision: a model that computes in a narrow type, while parameters, gradients and statistics stay wide."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._checks import Scalar, check_dtype, check_scalar
from jaxnorm.training.state import PyTree
from jaxnorm.training.steps import Apply


def mixed_precision(
    apply: Apply,
    *,
    compute: Any = jnp.bfloat16,
    output: Any = jnp.float32,
    keep: str | None = None,
    loss_scale: Scalar | None = None,
) -> Apply:
    """Returns a model that computes in a narrow type.

    Parameters and inputs are cast to `compute` on the way in, outputs to `output` on the way out. What is trained stays as wide
    as it is: gradients come in the types of the parameters, which the optimizer updates. Running statistics are not cast, and
    batch norms compute them in float32 of inputs of any type. Integers, bools, keys and complex numbers stay as they are.

    A Flax layer with `dtype=None` computes in the type that its input and its parameters have together, one with a `dtype` in
    that. So a norm of Flax whose scale is kept in float32 gives float32, and what comes after computes in it, unless the norm
    has `dtype=jnp.bfloat16`; `jaxnorm.batch_norm` and its kin give the type of x whatever their parameters have.

    float16 has a small range: gradients below 6e-8 vanish and values above 65504 overflow. It takes a `loss_scale`, and steps
    whose gradients are not finite have to be skipped, as `make_train_step(skip_not_finite=True)` does. bfloat16 has the range of
    float32 and needs neither.

    Args:
      apply: the model, `apply(key, params, stats, x, *, train) -> (outputs, stats)`; of a Flax model, `linen_apply` or
        `nnx_apply`.
      compute: the type of real floating point numbers to compute in.
      output: that of the outputs, and so of the loss.
      keep: regular expression that is searched for in the paths of parameters, as `Dense_0/kernel`, of which those that have it
        are not cast: `r"(scale|bias)$"`.
      loss_scale: a factor of the gradients inside the model, a power of two, as `2.0**12`: it is multiplied with what enters at
        the outputs and taken out again of the gradients of parameters and x, in their own types. The loss and the gradients
        stay what they are, but for what would have vanished. None: no factor.

    Returns:
      The model, to be given to the steps in the place of `apply`; in evaluation it computes alike.

    Raises:
      ValueError: if keep is no regular expression, or loss_scale is below 1 or not finite; when the model is called: if no
        parameter's path has `keep`.
      TypeError: if compute or output are no types of real floating point numbers, or loss_scale is no number.

    References:
      Micikevicius, Narang, Alben, Diamos, Elsen, Garcia, Ginsburg, Houston, Kuchaiev, Venkatesh, Wu, "Mixed precision training",
      ICLR 2018, https://arxiv.org/abs/1710.03740.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnorm.training import mixed_precision
      >>> def apply(key, params, stats, x, *, train):
      ...     y = x @ params["w"]
      ...     print("computes in", y.dtype)
      ...     return y, stats
      >>> mixed = mixed_precision(apply)
      >>> loss = lambda params: mixed(None, params, (), jnp.ones((4, 3)), train=True)[0].sum()
      >>> jax.grad(loss)({"w": jnp.ones((3, 2))})["w"].dtype
      computes in bfloat16
      dtype('float32')
    """
    compute, output = _check_real("compute", compute), _check_real("output", output)
    if loss_scale is not None:
        check_scalar("loss_scale", loss_scale, low=1)
    try:
        kept = None if keep is None else re.compile(keep)
    except (re.error, TypeError) as error:
        raise ValueError(f"keep must be a regular expression, got {keep!r}: {error}") from error

    def mixed(key: Any, params: PyTree, stats: PyTree, x: PyTree, /, **arguments: Any) -> tuple[Any, PyTree]:
        if loss_scale is not None:
            params, x = _scale_gradients((params, x), 1 / loss_scale)
        outputs, stats = apply(key, _cast_params(params, compute, kept), stats, _cast(x, compute), **arguments)
        outputs = _cast(outputs, output)
        return (outputs if loss_scale is None else _scale_gradients(outputs, loss_scale)), stats

    return mixed


def _cast_params(params: PyTree, dtype: Any, kept: re.Pattern[str] | None) -> PyTree:
    if kept is None:
        return _cast(params, dtype)
    leaves, structure = jax.tree.flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    if not any(map(kept.search, paths)):
        raise ValueError(f"keep must be in a path of {', '.join(paths)}, got {kept.pattern!r}")
    cast = [leaf if kept.search(path) else _cast(leaf, dtype) for path, (_, leaf) in zip(paths, leaves, strict=True)]
    return jax.tree.unflatten(structure, cast)


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    """Returns a tree with its real floating point numbers in another type."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype) if _is_real(leaf) else leaf, tree)


def _is_real(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _scale_gradients(tree: PyTree, factor: Scalar) -> PyTree:
    """Returns a tree as it is; derivatives by it are multiplied by a factor."""
    return jax.tree.map(lambda leaf: _with_gradient_times(leaf, factor) if _is_real(leaf) else leaf, tree)


@jax.custom_jvp
def _with_gradient_times(x: jax.Array, factor: Scalar) -> jax.Array:
    del factor
    return x


@_with_gradient_times.defjvp
def _scaled_tangent(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    x, factor = primals
    return x, tangents[0] * jnp.asarray(factor, x.dtype)


def _check_real(name: str, dtype: Any) -> np.dtype:
    known = check_dtype(name, dtype)
    if not jnp.issubdtype(known, jnp.floating):
        raise TypeError(f"{name} must be a type of real floating point numbers, got {known}")
    return known
