"""Attention with our dropout, to be given to `flax.nnx.MultiHeadAttention`, and DropKey as a `flax.nnx` module."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Unpack

import jax
from flax.nnx.nn import attention as flax_attention
from flax.nnx.nn.dtypes import promote_dtype as flax_promote_dtype

from jaxnorm._attention import Combination, WeightsFunction, attend, weights_noise
from jaxnorm._checks import is_known_to_be
from jaxnorm._noise_modules import DROP_KEY
from jaxnorm.nnx._noise_layer import NoiseLayer, NoiseOptions

_without_dropout = flax_attention.dot_product_attention


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: jax.Array | None = None,
    dropout_rate: Any = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    promote_dtype: Callable[..., Any] = flax_promote_dtype,
    is_causal: bool = False,
    *,
    broadcast_dims: Sequence[int] | None = None,
    bits: int = 16,
    block_size: int | None = None,
) -> jax.Array:
    """Attention with dropout of its weights, in the place of `flax.nnx.dot_product_attention`.

    Training: `y = (m softmax(query key / sqrt(D)) / (1 - dropout_rate)) value` with `m = 1` with probability
    `1 - dropout_rate`, else 0. Inference (`deterministic`), or a rate of 0: without `m` and the division, as in Flax.

    The weights are those of Flax's own function, and its arguments are all there, with Flax's meaning and defaults. What is kept
    for the gradient, the mask, and attention in blocks are those of `jaxnorm.linen.dot_product_attention`.

    Args:
      query: array of floating point numbers, `[..., T, H, D]`.
      key: array `[..., K, H, D]`, or with a number of heads that divides the queries'.
      value: array `[..., K, H, E]`, likewise.
      bias: what is added to the logits, broadcastable to `[..., H, T, K]`, or None.
      mask: True for the keys that a query sees, likewise.
      broadcast_dropout: whether examples and heads share one mask. That is Flax's default; most papers draw each its own.
      dropout_rng: the key to draw with.
      dropout_rate: the probability of dropping, in [0, 1]; a number or a traced scalar. No gradient flows into it. A traced rate
        outside [0, 1] gives NaN everywhere.
      deterministic: whether nothing is dropped, known when the function is traced.
      dtype: type of the computation; None for the one to which query, key and value promote.
      precision: of the products.
      module: the module that sows the weights, as they are before dropout, or None.
      promote_dtype: brings a tuple of arrays to one type.
      is_causal: whether a query sees no keys behind its own position; with `block_size` no mask is built for more than a block.
      broadcast_dims: axes of the weights, `[..., H, T, K]`, along which all elements share one draw, as `(-2,)` to drop a key for
        all queries; instead of what `broadcast_dropout` says.
      bits: random bits a weight that decide: 8, 16 or 32, as in `jaxnorm.dropout`.
      block_size: how many queries are worked through at a time; None for all at once.

    Returns:
      Array `[..., T, H, E]`.

    Raises:
      ValueError: if shapes do not fit each other; if a concrete rate is outside [0, 1]; if there is a rate but no key, while not
        `deterministic`; if bits or axes do not fit; if `block_size` is given with `module`, or with 32 bits and a key of another
        generator than threefry.
      TypeError: if dropout_rng is no key, dropout_rate no number, or a flag not known.

    References:
      Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin, "Attention is all you need", NIPS 2017,
      https://arxiv.org/abs/1706.03762.

    Example:
      >>> import functools, jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> layer = nnx.MultiHeadAttention(
      ...     num_heads=2, in_features=8, dropout_rate=0.1, broadcast_dropout=False, decode=False, rngs=nnx.Rngs(0),
      ...     attention_fn=functools.partial(jaxnorm.nnx.dot_product_attention, block_size=128),
      ... )
      >>> layer(jnp.ones((1, 300, 8)), is_causal=True, deterministic=False).shape
      (1, 300, 8)
    """
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    noise = weights_noise(dropout_rng, dropout_rate, deterministic, broadcast_dropout, broadcast_dims, bits, like=query)
    options = {"dtype": query.dtype, "precision": precision, "module": module, "promote_dtype": promote_dtype}
    if noise is None and block_size is None and is_known_to_be(0, dropout_rate):
        return _without_dropout(query, key, value, bias, mask, deterministic=True, is_causal=is_causal, **options)
    return attend(
        query,
        key,
        value,
        bias,
        mask,
        weights_of=WeightsFunction(flax_attention.dot_product_attention_weights, tuple(options.items())),
        combine=Combination(precision),
        noise=noise,
        is_causal=is_causal,
        block_size=block_size,
    )


class DropKey(NoiseLayer):
    """DropKey: `jaxnorm.drop_key` with the rng stream and call of `Dropout`.

    Training: `y = inputs` with probability `1 - rate`, else -2^15, of which a softmax makes 0. Inference (`deterministic`): the
    identity.

    Args:
      rate: the probability of hiding a key from a query, in [0, 1]; a number or a traced scalar.
      broadcast_dims: axes of the logits, `[..., T, K]`, along which all elements share one draw.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`.

    References:
      Li, Hu, Nie, Han, Jiang, Guo, Liu, "DropKey for Vision Transformer", CVPR 2023, https://arxiv.org/abs/2208.02646.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> logits = jaxnorm.nnx.DropKey(0.5, rngs=nnx.Rngs(2))(jnp.zeros((2, 4)))
      >>> print(jax.nn.softmax(logits))
      [[0. 1. 0. 0.]
       [1. 0. 0. 0.]]
    """

    noise: ClassVar = DROP_KEY

    def __init__(self, rate: float | jax.Array, *, broadcast_dims: Sequence[int] = (), **options: Unpack[NoiseOptions]):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.rate = rate
        self.broadcast_dims = broadcast_dims
