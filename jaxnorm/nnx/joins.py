"""Joins of branches as `flax.nnx` modules: swapout, FractalNet's join, ShakeDrop and Shake-Shake."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Unpack

import jax

from jaxnorm._noise_modules import FRACTAL_JOIN, SHAKE_DROP, SHAKE_SHAKE, SWAPOUT
from jaxnorm.nnx._noise_layer import JoinLayer, NoiseOptions, StreamOptions


class Swapout(JoinLayer):
    """Swapout, in the place of the sum of shortcut and branch: `jaxnorm.swapout`.

    Training: `y = m1 x + m2 branch`, with elements of both dropped. Inference (`deterministic`): `jaxnorm.swapout_mean`.

    It is called with `(x, branch)`.

    Args:
      rate: the probability of dropping an element of x, in [0, 1]; a number or a traced scalar.
      branch_rate: that of an element of the branch; None for the same.
      broadcast_dims: axes along which all elements share one draw.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`.

    References:
      Singh, Hoiem, Forsyth, "Swapout: learning an ensemble of deep architectures", NIPS 2016, https://arxiv.org/abs/1605.06465.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> join = jaxnorm.nnx.Swapout(0.0, branch_rate=0.5)
      >>> join(jnp.ones(2), jnp.full(2, 4.0), deterministic=True)
      Array([3., 3.], dtype=float32)
    """

    noise: ClassVar = SWAPOUT

    def __init__(
        self,
        rate: float | jax.Array,
        *,
        branch_rate: float | jax.Array | None = None,
        broadcast_dims: Sequence[int] = (),
        **options: Unpack[NoiseOptions],
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.rate = rate
        self.branch_rate = branch_rate
        self.broadcast_dims = broadcast_dims


class FractalJoin(JoinLayer):
    """FractalNet's join of branches, some of which are dropped: `jaxnorm.fractal_join`.

    Training: `y = sum(m_j branch_j) / sum(m_j)`. Inference (`deterministic`): `jaxnorm.fractal_join_mean`. Global drop path needs
    the same key in all joins: give it in the call.

    It is called with `(branches)`.

    Args:
      rate: the probability of dropping a branch, in [0, 1]; a number or a traced scalar.
      mode: "local", each join for itself, or "global", one column of the network.
      per: whether each "example" has a draw of its own, or the whole "batch" one.
      columns: of the network, for the global draw; None for as many as there are branches.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`.

    References:
      Larsson, Maire, Shakhnarovich, "FractalNet: ultra-deep neural networks without residuals", ICLR 2017,
      https://arxiv.org/abs/1605.07648.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> join = jaxnorm.nnx.FractalJoin(0.15)
      >>> join([jnp.ones(2), jnp.full(2, 4.0)], deterministic=True)
      Array([2.5, 2.5], dtype=float32)
    """

    noise: ClassVar = FRACTAL_JOIN

    def __init__(
        self,
        rate: float | jax.Array,
        *,
        mode: Literal["local", "global"] = "local",
        per: Literal["example", "batch"] = "example",
        columns: int | None = None,
        **options: Unpack[NoiseOptions],
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.rate = rate
        self.mode = mode
        self.per = per
        self.columns = columns


class ShakeDrop(JoinLayer):
    """ShakeDrop, in the place of the sum of shortcut and branch: `jaxnorm.shake_drop`.

    Training: `y = x + (b + alpha - b alpha) branch`, and backward beta for alpha. Inference (`deterministic`):
    `jaxnorm.shake_drop_mean`.

    It is called with `(x, branch)`.

    Args:
      rate: the probability of `b = 0`, in [0, 1]; a number or a traced scalar.
      alpha: the lowest and the highest factor forward.
      beta: those backward.
      per: whether each "example" has an alpha and a beta, each "element", or the "batch" one of each.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`.

    References:
      Yamada, Iwamura, Akiba, Kise, "ShakeDrop regularization for deep residual learning", IEEE Access 7, 2019,
      https://arxiv.org/abs/1802.02375.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> join = jaxnorm.nnx.ShakeDrop(0.5)
      >>> join(jnp.ones(2), jnp.full(2, 4.0), deterministic=True)
      Array([3., 3.], dtype=float32)
    """

    noise: ClassVar = SHAKE_DROP

    def __init__(
        self,
        rate: float | jax.Array,
        *,
        alpha: tuple[float, float] = (-1.0, 1.0),
        beta: tuple[float, float] = (0.0, 1.0),
        per: Literal["example", "element", "batch"] = "example",
        **options: Unpack[NoiseOptions],
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.rate = rate
        self.alpha = alpha
        self.beta = beta
        self.per = per


class ShakeShake(JoinLayer):
    """Shake-Shake, a random mixture of two branches: `jaxnorm.shake_shake`.

    Training: `y = alpha first + (1 - alpha) second`, and backward beta for alpha. Inference (`deterministic`):
    `jaxnorm.shake_shake_mean`.

    It is called with `(first, second)`.

    Args:
      per: whether each "example" has an alpha and a beta, each "element", or the "batch" one of each.
      backward: what beta is: "shake", "even" or "keep".
      **options: `deterministic=False, rng_collection="dropout", rngs=None`, as in `Dropout`.

    References:
      Gastaldi, "Shake-Shake regularization", ICLR 2017 workshop, https://arxiv.org/abs/1705.07485.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> join = jaxnorm.nnx.ShakeShake()
      >>> join(jnp.ones(2), jnp.full(2, 4.0), deterministic=True)
      Array([2.5, 2.5], dtype=float32)
    """

    noise: ClassVar = SHAKE_SHAKE

    def __init__(
        self,
        *,
        per: Literal["example", "element", "batch"] = "example",
        backward: Literal["shake", "even", "keep"] = "shake",
        **options: Unpack[StreamOptions],
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(bits=16, **options)
        self.per = per
        self.backward = backward
