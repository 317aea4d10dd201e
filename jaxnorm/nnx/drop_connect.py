"""Dropout of the weights of a layer as `flax.nnx` modules: DropConnect of a batch and of each example, and of embeddings."""

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._checks import check_size
from jaxnorm._noise_modules import DROP_CONNECT, EMBEDDING_DROPOUT, NoiseFunction, apply_drop_connect_dense, drop_weights
from jaxnorm.nnx._noise_layer import Keys, NoiseModule, NoiseOptions
from jaxnorm.nnx._weight_layer import call_with, parameters

_KERNELS = nnx.PathContains("kernel")
_EMBEDDINGS = nnx.PathContains("embedding")
_LECUN_NORMAL = nnx.initializers.lecun_normal()


class _WeightDropout(NoiseModule):
    """A layer that is called with other parameters: those that `variable_filter` chooses."""

    noise: ClassVar[NoiseFunction]

    def __init__(
        self, layer_instance: nnx.Module, rate: float | jax.Array, variable_filter: Any, **options: Unpack[NoiseOptions]
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.layer_instance = layer_instance
        self.rate = rate
        self.variable_filter = nnx.filterlib.to_predicate(variable_filter)

    def __call__(self, *args: Any, deterministic: bool | jax.Array | None = None, rngs: Keys | None = None, **kwargs: Any) -> Any:
        """Calls the layer with weights dropped.

        Args:
          *args: as for the layer.
          deterministic: goes before the attribute of this name.
          rngs: a key, a stream or streams, to draw with instead of the layer's own.
          **kwargs: as for the layer.

        Returns:
          What the layer returns.

        Raises:
          ValueError: if `deterministic` is given nowhere, or nothing to draw with is; if rate or bits do not fit.
          TypeError: if rngs is nothing to draw with.
        """
        drop = drop_weights(self.noise, self, **self._drawing(deterministic, rngs))
        dropped = {
            path: drop("/".join(map(str, path)), variable[...])
            for path, variable in parameters(self.layer_instance).items()
            if self.variable_filter(path, variable)
        }
        return call_with(self.layer_instance, dropped, *args, **kwargs)


class DropConnect(_WeightDropout):
    """Dropout of the weights of a layer: `jaxnorm.drop_connect` of each of its kernels.

    Training: the layer is called with `kernel / (1 - rate)` with probability `1 - rate`, else 0, for every weight; one draw
    serves the batch. Inference (`deterministic`): with its kernels. The layer's own parameters are never overwritten.

    Around an `nnx.RNN`, with a filter for its cell's hidden-to-hidden kernels, it is weight drop: one draw for all steps.

    Args:
      layer_instance: the layer.
      rate: the probability of dropping a weight, in [0, 1]; a number or a traced scalar.
      variable_filter: an nnx filter of the parameters that are dropped from.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`.

    References:
      Wan, Zeiler, Zhang, LeCun, Fergus, "Regularization of neural networks using DropConnect", ICML 2013,
      https://proceedings.mlr.press/v28/wan13.html. Merity, Keskar, Socher, "Regularizing and optimizing LSTM language models",
      ICLR 2018, https://arxiv.org/abs/1708.02182.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> linear = nnx.Linear(1, 6, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
      >>> layer = jaxnorm.nnx.DropConnect(linear, 0.5, rngs=nnx.Rngs(1))
      >>> layer(jnp.ones((1, 1)))
      Array([[2., 0., 2., 0., 2., 2.]], dtype=float32)
    """

    noise: ClassVar = DROP_CONNECT

    def __init__(
        self,
        layer_instance: nnx.Module,
        rate: float | jax.Array,
        *,
        variable_filter: Any = _KERNELS,
        **options: Unpack[NoiseOptions],
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(layer_instance, rate, variable_filter, **options)


class EmbeddingDropout(_WeightDropout):
    """Dropout of whole words of an embedding, wherever they occur in the batch: `jaxnorm.embedding_dropout` of its table.

    Training: the layer is called with a table of which each row is 0 with probability `rate`, else divided by `1 - rate`.
    Inference (`deterministic`): with its table. A tied output layer takes the table itself: call `attend` of the layer.

    Args:
      layer_instance: the layer, as an `nnx.Embed`.
      rate: the probability of dropping a word, in [0, 1]; a number or a traced scalar, or an array `[V, 1]`.
      variable_filter: an nnx filter of the parameters that are dropped from.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`.

    References:
      Gal, Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", NIPS 2016,
      https://arxiv.org/abs/1512.05287.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> embed = nnx.Embed(5, 1, embedding_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
      >>> layer = jaxnorm.nnx.EmbeddingDropout(embed, 0.5, rngs=nnx.Rngs(1))
      >>> layer(jnp.array([0, 1, 2, 3, 4, 1])).T
      Array([[0., 2., 0., 2., 2., 2.]], dtype=float32)
    """

    noise: ClassVar = EMBEDDING_DROPOUT

    def __init__(
        self,
        layer_instance: nnx.Module,
        rate: float | jax.Array,
        *,
        variable_filter: Any = _EMBEDDINGS,
        **options: Unpack[NoiseOptions],
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(layer_instance, rate, variable_filter, **options)


class DropConnectDense(NoiseModule):
    """A dense layer whose weights are dropped anew for every example: `jaxnorm.drop_connect_dense`.

    Training: `y = sum(m kernel x) / (1 - rate) + n bias / (1 - rate)` with masks of every example. Inference (`deterministic`):
    `y = x kernel + bias`. The parameters are those of `nnx.Linear`.

    Args:
      in_features: number of inputs.
      out_features: number of outputs.
      rate: the probability of dropping a weight, in [0, 1]; a number or a traced scalar.
      use_bias: whether there is a bias.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters.
      param_dtype: type of the parameters.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      deterministic: whether to keep all weights; set by `train()` and `eval()`.
      rng_collection: name of the stream of keys.
      rngs: the streams, of which `params` gives the keys of the initializers, and that of the masks is forked.
      bits: random bits a weight that decide: 8, 16 or 32.

    References:
      Wan, Zeiler, Zhang, LeCun, Fergus, "Regularization of neural networks using DropConnect", ICML 2013,
      https://proceedings.mlr.press/v28/wan13.html.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> layer = jaxnorm.nnx.DropConnectDense(2, 1, 0.5, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((6, 2))).T
      Array([[0., 2., 2., 2., 0., 0.]], dtype=float32)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rate: float | jax.Array,
        *,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Callable[..., Any] = _LECUN_NORMAL,
        bias_init: Callable[..., Any] = nnx.initializers.zeros,
        deterministic: bool | jax.Array | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
        bits: int = 16,
    ):
        """Makes the parameters and forks the stream of keys; the arguments are those of the class."""
        super().__init__(deterministic=deterministic, rng_collection=rng_collection, rngs=rngs, bits=bits)
        shape = (check_size("in_features", in_features), check_size("out_features", out_features))
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.bias = nnx.data(nnx.Param(bias_init(rngs.params(), shape[1:], param_dtype)) if use_bias else None)
        self.rate = rate
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, deterministic: bool | jax.Array | None = None, rngs: Keys | None = None) -> jax.Array:
        """Applies the layer.

        Args:
          x: array of floating point numbers, `[..., in_features]`.
          deterministic: goes before the attribute of this name.
          rngs: a key, a stream or streams, to draw with instead of the layer's own.

        Returns:
          Array of shape `[..., out_features]`, in `dtype`.

        Raises:
          ValueError: if `deterministic` is given nowhere, or nothing to draw with is; if an attribute does not fit.
          TypeError: if x does not hold floating point numbers, or if rngs is nothing to draw with.
        """
        bias = None if self.bias is None else self.bias[...]
        return apply_drop_connect_dense(self.kernel[...], bias, x, self, **self._drawing(deterministic, rngs))
