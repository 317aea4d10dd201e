"""Dropout of the weights of a layer as `flax.linen` modules: DropConnect of a batch and of each example, and of embeddings."""

from collections.abc import Callable, Collection
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._modules import feature_shape
from jaxnorm._noise_modules import DROP_CONNECT, EMBEDDING_DROPOUT, NoiseFunction, apply_drop_connect_dense, drop_weights
from jaxnorm.linen._noise_layer import DrawingModule
from jaxnorm.linen._weight_layer import call_with


class _WeightDropout(DrawingModule):
    """A layer that is called with other parameters: those whose path has one of the names in `variable_filter`."""

    noise: ClassVar[NoiseFunction]

    @nn.compact
    def __call__(
        self, *args: Any, deterministic: bool | jax.Array | None = None, rng: jax.Array | None = None, **kwargs: Any
    ) -> Any:
        """Calls the layer with weights dropped.

        Args:
          *args: as for the layer.
          deterministic: as the field of this name; given once, here or there.
          rng: the key to draw with, instead of one from the stream.
          **kwargs: as for the layer.

        Returns:
          What the layer returns.

        Raises:
          ValueError: if `deterministic` is given nowhere or twice; if rate or bits do not fit.
          TypeError: if rng is no key.
        """
        fields: Any = self
        drop = drop_weights(self.noise, self, **self._drawing(deterministic, rng))

        def dropped(path: str, value: jax.Array, _: bool) -> jax.Array:
            return drop(path, value) if any(name in path for name in fields.variable_filter) else value

        return call_with(fields, dropped, *args, **kwargs)


class DropConnect(_WeightDropout):
    """Dropout of the weights of a layer: `jaxnorm.drop_connect` of each of its kernels.

    Training: the layer is called with `kernel / (1 - rate)` with probability `1 - rate`, else 0, for every weight; one draw
    serves the batch. Inference (`deterministic`): with its kernels. The parameters are those of the layer.

    Around an `nn.RNN`, with the names of its cell's hidden-to-hidden kernels, it is weight drop: one draw for all steps.

    Attributes:
      layer_instance: the layer.
      rate: the probability of dropping a weight, in [0, 1]; a number or a traced scalar.
      variable_filter: names, of which one must be in the path of a parameter that is dropped from.
      deterministic: whether to leave the weights as they are; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits a weight that decide: 8, 16 or 32.

    References:
      Wan, Zeiler, Zhang, LeCun, Fergus, "Regularization of neural networks using DropConnect", ICML 2013,
      https://proceedings.mlr.press/v28/wan13.html. Merity, Keskar, Socher, "Regularizing and optimizing LSTM language models",
      ICLR 2018, https://arxiv.org/abs/1708.02182.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.DropConnect(nn.Dense(6, kernel_init=nn.initializers.ones), 0.5)
      >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 1)), deterministic=True)
      >>> layer.apply(variables, jnp.ones((1, 1)), deterministic=False, rngs={"dropout": jax.random.key(1)})
      Array([[0., 0., 2., 0., 0., 2.]], dtype=float32)
    """

    noise: ClassVar = DROP_CONNECT

    layer_instance: nn.Module
    rate: float | jax.Array
    variable_filter: Collection[str] = ("kernel",)
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16


class EmbeddingDropout(_WeightDropout):
    """Dropout of whole words of an embedding, wherever they occur in the batch: `jaxnorm.embedding_dropout` of its table.

    Training: the layer is called with a table of which each row is 0 with probability `rate`, else divided by `1 - rate`.
    Inference (`deterministic`): with its table. The parameters are those of the layer. A tied output layer takes the table
    itself: call `attend` of the layer, not of this.

    Attributes:
      layer_instance: the layer, as an `nn.Embed`.
      rate: the probability of dropping a word, in [0, 1]; a number or a traced scalar, or an array `[V, 1]`.
      variable_filter: names, of which one must be in the path of a parameter that is dropped from.
      deterministic: whether to leave the table as it is; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits a row that decide: 8, 16 or 32.

    References:
      Gal, Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", NIPS 2016,
      https://arxiv.org/abs/1512.05287.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.EmbeddingDropout(nn.Embed(5, 1, embedding_init=nn.initializers.ones), 0.5)
      >>> tokens = jnp.array([0, 1, 2, 3, 4, 1])
      >>> variables = layer.init(jax.random.key(0), tokens, deterministic=True)
      >>> layer.apply(variables, tokens, deterministic=False, rngs={"dropout": jax.random.key(1)}).T
      Array([[2., 0., 0., 0., 0., 0.]], dtype=float32)
    """

    noise: ClassVar = EMBEDDING_DROPOUT

    layer_instance: nn.Module
    rate: float | jax.Array
    variable_filter: Collection[str] = ("embedding",)
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16


class DropConnectDense(DrawingModule):
    """A dense layer whose weights are dropped anew for every example: `jaxnorm.drop_connect_dense`.

    Training: `y = sum(m kernel x) / (1 - rate) + n bias / (1 - rate)` with masks of every example. Inference (`deterministic`):
    `y = x kernel + bias`. The parameters are those of `nn.Dense`.

    Attributes:
      features: number of outputs.
      rate: the probability of dropping a weight, in [0, 1]; a number or a traced scalar.
      use_bias: whether there is a bias.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters.
      param_dtype: type of the parameters.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      deterministic: whether to keep all weights; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits a weight that decide: 8, 16 or 32.

    References:
      Wan, Zeiler, Zhang, LeCun, Fergus, "Regularization of neural networks using DropConnect", ICML 2013,
      https://proceedings.mlr.press/v28/wan13.html.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.DropConnectDense(1, 0.5, kernel_init=nn.initializers.ones, deterministic=False)
      >>> rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
      >>> layer.init_with_output(rngs, jnp.ones((6, 2)))[0].T
      Array([[4., 4., 2., 4., 2., 2.]], dtype=float32)
    """

    features: int
    rate: float | jax.Array
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Any] = nn.initializers.zeros
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool | jax.Array | None = None, rng: jax.Array | None = None) -> jax.Array:
        """Applies the layer.

        Args:
          x: array of floating point numbers, `[..., C]`.
          deterministic: as the field of this name; given once, here or there.
          rng: the key to draw with, instead of one from the stream.

        Returns:
          Array of shape `[..., features]`, in `dtype`.

        Raises:
          ValueError: if `deterministic` is given nowhere or twice; if a field does not fit.
          TypeError: if x does not hold floating point numbers, or if rng is no key.
        """
        kernel = self.param("kernel", self.kernel_init, (*feature_shape(x, -1), self.features), self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        return apply_drop_connect_dense(kernel, bias, x, self, **self._drawing(deterministic, rng))
