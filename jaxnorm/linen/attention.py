"""Attention with our dropout, to be given to `flax.linen.MultiHeadDotProductAttention`, and DropKey as a `flax.linen` module."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
from flax.linen.attention import dot_product_attention_weights
from flax.linen.dtypes import promote_dtype

from jaxnorm._attention import Combination, WeightsFunction, attend, weights_noise
from jaxnorm._noise_modules import DROP_KEY
from jaxnorm.linen._noise_layer import NoiseLayer


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
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: Callable[..., jax.Array] | None = None,
    qk_attn_weights_einsum: Callable[..., jax.Array] | None = None,
    attn_weights_value_einsum: Callable[..., jax.Array] | None = None,
    *,
    is_causal: bool = False,
    broadcast_dims: Sequence[int] | None = None,
    bits: int = 16,
    block_size: int | None = None,
) -> jax.Array:
    """Attention with dropout of its weights, in the place of `flax.linen.dot_product_attention`.

    Training: `y = (m softmax(query key / sqrt(D)) / (1 - dropout_rate)) value` with `m = 1` with probability
    `1 - dropout_rate`, else 0. Inference (`deterministic`), or a rate of 0: without `m` and the division, as in Flax.

    The weights are those of Flax's own function, and its arguments are all there, with Flax's meaning and defaults. For the
    gradient the weights are kept as they were before dropout, and the key: no mask. What is kept is divided by the probability
    that the bits realise, in float32. With `bits=32` the mask is Flax's for the same key, with and without `broadcast_dropout`,
    as jax draws by default (`jax_threefry_partitionable`); so are y and the gradients, but for rounding.

    With `block_size` the queries are worked through so many at a time, and each block is computed again for the gradient: neither
    weights nor mask are ever there for more than one block, in any mode of differentiation. The mask is the same to the bit, and
    y, and the gradients, but for rounding. It takes a product more of queries and keys.

    Args:
      query: array of floating point numbers, `[..., T, H, D]`.
      key: array `[..., K, H, D]`.
      value: array `[..., K, H, E]`.
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
      force_fp32_for_softmax: whether the softmax is computed in float32.
      einsum_dot_general: computes the products, instead of `jax.lax.dot_general`.
      qk_attn_weights_einsum: instead of `jnp.einsum`, for queries and keys; together with the next one.
      attn_weights_value_einsum: instead of `jnp.einsum`, for weights and values.
      is_causal: whether a query sees no keys behind its own position; with `block_size` no mask is built for more than a block.
      broadcast_dims: axes of the weights, `[..., H, T, K]`, along which all elements share one draw, as `(-2,)` to drop a key for
        all queries; instead of what `broadcast_dropout` says.
      bits: random bits a weight that decide: 8, 16 or 32, as in `jaxnorm.dropout`.
      block_size: how many queries are worked through at a time; None for all at once.

    Returns:
      Array `[..., T, H, E]`.

    Raises:
      ValueError: if shapes do not fit each other; if a concrete rate is outside [0, 1]; if there is a rate but no key, while not
        `deterministic`; if bits or axes do not fit; if one of the two einsums is given without the other, or with `precision` or
        `einsum_dot_general`; if `block_size` is given with `module` or einsums, or with 32 bits and a key of another generator
        than threefry.
      TypeError: if dropout_rng is no key, dropout_rate no number, or a flag not known.

    References:
      Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin, "Attention is all you need", NIPS 2017,
      https://arxiv.org/abs/1706.03762.

    Example:
      >>> import functools, jax, jax.numpy as jnp, jaxnorm.linen
      >>> from flax import linen as nn
      >>> attention = functools.partial(jaxnorm.linen.dot_product_attention, block_size=128)
      >>> layer = nn.MultiHeadDotProductAttention(
      ...     2, dropout_rate=0.1, broadcast_dropout=False, deterministic=False, attention_fn=attention
      ... )
      >>> keys = dict(zip(("params", "dropout"), jax.random.split(jax.random.key(0))))
      >>> layer.init_with_output(keys, jnp.ones((1, 300, 8)))[0].shape
      (1, 300, 8)
    """
    if (qk_attn_weights_einsum is None) != (attn_weights_value_einsum is None):
        raise ValueError("qk_attn_weights_einsum and attn_weights_value_einsum must be given together, got one of them")
    query, key, value = promote_dtype(query, key, value, dtype=dtype)
    options = {
        "dtype": query.dtype,
        "precision": precision,
        "module": module,
        "force_fp32_for_softmax": force_fp32_for_softmax,
        "einsum_dot_general": einsum_dot_general,
        "einsum": qk_attn_weights_einsum,
    }
    combine = Combination(precision, einsum_dot_general)
    if attn_weights_value_einsum is not None:
        combine = functools.partial(attn_weights_value_einsum, "...hqk,...khd->...qhd")
    noise = weights_noise(dropout_rng, dropout_rate, deterministic, broadcast_dropout, broadcast_dims, bits, like=query)
    return attend(
        query,
        key,
        value,
        bias,
        mask,
        weights_of=WeightsFunction(dot_product_attention_weights, tuple(options.items())),
        combine=combine,
        noise=noise,
        is_causal=is_causal,
        block_size=block_size,
    )


class DropKey(NoiseLayer):
    """DropKey: `jaxnorm.drop_key` with the rng stream and call of `Dropout`.

    Training: `y = inputs` with probability `1 - rate`, else -2^15, of which a softmax makes 0. Inference (`deterministic`): the
    identity.

    Attributes:
      rate: the probability of hiding a key from a query, in [0, 1]; a number or a traced scalar.
      broadcast_dims: axes of the logits, `[..., T, K]`, along which all elements share one draw.
      deterministic: whether to return the inputs as they are; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits an element that decide: 8, 16 or 32.

    References:
      Li, Hu, Nie, Han, Jiang, Guo, Liu, "DropKey for Vision Transformer", CVPR 2023, https://arxiv.org/abs/2208.02646.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> hide = jaxnorm.linen.DropKey(0.5, deterministic=False)
      >>> logits = hide.apply({}, jnp.zeros((2, 4)), rngs={"dropout": jax.random.key(0)})
      >>> print(jax.nn.softmax(logits))
      [[0.  0.5 0.5 0. ]
       [0.  0.5 0.  0.5]]
    """

    noise: ClassVar = DROP_KEY

    rate: float | jax.Array
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16
