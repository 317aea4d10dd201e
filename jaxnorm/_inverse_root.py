"""Inverse square roots of covariance matrices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import match_sharding


def inverse_root(s: jax.Array) -> jax.Array:
    """Returns the symmetric W with `W S W = I` of symmetric positive matrices, `[..., g, g]`, or of the symmetric part of others.

    A direction along which S is 0 but for rounding is 0 in W too: that is the inverse root where there is one.

    Derivatives are those of the equation, which has them where eigenvalues are equal; those of the eigenvectors have poles there.
    """
    return _inverse_root((s + s.mT) / 2)


def newton_root(s: jax.Array, iterations: int) -> jax.Array:
    """Returns what so many steps of Newton's coupled iteration make of the inverse root of symmetric positive matrices.

    It begins with the identity over the root of the trace, and each eigenvalue of `W S W` grows towards 1.
    """
    identity = match_sharding(jnp.broadcast_to(jnp.eye(s.shape[-1], dtype=s.dtype), s.shape), s)
    trace = jnp.trace(s, axis1=-2, axis2=-1)[..., None, None]
    trace = jnp.where(trace > 0, trace, 1)
    y, z = s / trace, identity
    for _ in range(iterations):
        m = (3 * identity - _product(z, y)) / 2
        y, z = _product(y, m), _product(m, z)
    return z / jnp.sqrt(trace)


@jax.custom_jvp
def _inverse_root(s: jax.Array) -> jax.Array:
    root, vectors = _roots(s)
    inverse = jnp.where(root > 0, 1 / jnp.where(root > 0, root, 1), 0)
    return _product(vectors * inverse[..., None, :], vectors.mT)


@_inverse_root.defjvp
def _inverse_root_jvp(primals: Any, tangents: Any) -> Any:
    """With `R = S W`, the root of S, dW solves `R dW S + S dW R = -dS`.

    From `W S W = I`: `dW R + R dW = -W dS W`, on both sides times R. In the basis of S's eigenvectors the left side multiplies an
    element by `a_i a_j (a_i + a_j)`, where the a are the roots of the eigenvalues; the sum never vanishes.
    """
    (s,), (ds,) = primals, tangents
    w = _inverse_root(s)
    r = _product(s, w)
    root, vectors = jax.tree.map(lax.stop_gradient, _roots(lax.stop_gradient(s)))
    a, b = root[..., :, None], root[..., None, :]
    scale = a * b * (a + b)
    inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)

    def left_side(y: jax.Array) -> jax.Array:
        return _product(r, y, s) + _product(s, y, r)

    def solve(_: Any, right_side: jax.Array) -> jax.Array:
        return _product(vectors, inverse * _product(vectors.mT, right_side, vectors), vectors.mT)

    return w, lax.custom_linear_solve(left_side, -ds, solve, symmetric=True)


def _roots(s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the roots of the eigenvalues, 0 for those that are rounding, and the eigenvectors."""
    values, vectors = jnp.linalg.eigh(s, symmetrize_input=False)
    rounding = s.shape[-1] * np.finfo(s.dtype).eps * values[..., -1:]
    return jnp.sqrt(jnp.where(values <= rounding, jnp.zeros((), s.dtype), values)), vectors


def _product(*matrices: jax.Array) -> jax.Array:
    first, *rest = matrices
    for matrix in rest:
        first = jnp.matmul(first, matrix, precision=lax.Precision.HIGHEST)
    return first
