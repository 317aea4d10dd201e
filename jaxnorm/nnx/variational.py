"""Variational dropout as `flax.nnx` modules: of activations, and dense layers with learned noise, one of which prunes itself.

Each gives y and the KL, as its function does: `loss = mean(nll) + (sum of the KLs) / N`, with N examples in the training set.
"""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._dropout.divergence import Divergence
from jaxnorm._dropout.variational import init_variational_dropout
from jaxnorm._dropout.variational_dense import sparse_variational_dense_start, variational_dense_start
from jaxnorm._noise_modules import apply_sparse_variational_dense, apply_variational_dense, apply_variational_dropout
from jaxnorm._types import SparseVariationalDenseParams, VariationalDenseParams, VariationalDropoutParams
from jaxnorm.nnx._noise_layer import Keys, NoiseModule, NoiseOptions

_LECUN_NORMAL = nnx.initializers.lecun_normal()


class VariationalDropout(NoiseModule):
    """Gaussian noise of mean 1 whose amount is learned: `jaxnorm.variational_dropout`.

    Training: `y = x n`, `n ~ N(1, alpha)`. Inference (`deterministic`): the identity. The parameter is `log_alpha`.

    Args:
      num_features: number of features, C.
      rate: the noise to begin with is that of dropout at this rate, between 0 and 1.
      shared: whether all features have one alpha, instead of their own.
      divergence: how the KL is computed: "fit", "exact" or "cubic".
      param_dtype: type of the parameter.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `GaussianDropout`.

    References:
      Kingma, Salimans, Welling, "Variational dropout and the local reparameterization trick", NIPS 2015,
      https://arxiv.org/abs/1506.02557.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> layer = jaxnorm.nnx.VariationalDropout(3, rate=0.5, rngs=nnx.Rngs(0))
      >>> y, kl = layer(jnp.ones((2, 3)))
      >>> print(y.shape, f"{kl:.3f}")
      (2, 3) 1.294
    """

    def __init__(
        self,
        num_features: int,
        *,
        rate: float = 0.1,
        shared: bool = False,
        divergence: Divergence = "fit",
        param_dtype: Any = jnp.float32,
        **options: Unpack[NoiseOptions],
    ):
        """Makes the parameter and forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        made = init_variational_dropout(num_features, rate=rate, shared=shared, param_dtype=param_dtype)
        self.log_alpha = nnx.Param(made.log_alpha)
        self.divergence = divergence

    def __call__(
        self, inputs: jax.Array, *, deterministic: bool | jax.Array | None = None, rngs: Keys | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Makes the inputs noisy.

        Args:
          inputs: array of floating point numbers, `[..., num_features]`.
          deterministic: goes before the attribute of this name.
          rngs: a key, a stream or streams, to draw with instead of the layer's own.

        Returns:
          Array of the shape and dtype of the inputs, and the KL.

        Raises:
          ValueError: if `deterministic` is given nowhere, or nothing to draw with is; if an attribute does not fit.
          TypeError: if the inputs do not hold floating point numbers, or if rngs is nothing to draw with.
        """
        params = VariationalDropoutParams(self.log_alpha[...])
        return apply_variational_dropout(params, inputs, self, **self._drawing(deterministic, rngs))


class VariationalDense(NoiseModule):
    """A dense layer with Gaussian noise on its weights, whose amount is learned: `jaxnorm.variational_dense`.

    Training: `y ~ N(x kernel + bias, x^2 (alpha kernel^2))`. Inference (`deterministic`): `y = x kernel + bias`. The parameters
    are those of `nnx.Linear`, and `log_alpha`.

    Args:
      in_features: number of inputs.
      out_features: number of outputs.
      rate: the noise to begin with is that of Gaussian DropConnect at this rate, between 0 and 1.
      shared: whether all weights have one alpha, instead of their own.
      use_bias: whether there is a bias.
      divergence: how the KL is computed: "fit", "exact" or "cubic".
      dtype: type of the output, which alone is rounded to it; None infers it from x, kernel and bias.
      param_dtype: type of the parameters.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      deterministic: whether to leave the noise out; set by `train()` and `eval()`.
      rng_collection: name of the stream of keys.
      rngs: the streams, of which `params` gives the key of the parameters, and that of the noise is forked.
      bits: random bits of which a normal number is made: 16 or 32.

    References:
      Kingma, Salimans, Welling, "Variational dropout and the local reparameterization trick", NIPS 2015,
      https://arxiv.org/abs/1506.02557.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> layer = jaxnorm.nnx.VariationalDense(4, 3, rngs=nnx.Rngs(0))
      >>> y, kl = layer(jnp.ones((2, 4)))
      >>> y.shape, layer.log_alpha.shape
      ((2, 3), (4, 3))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rate: float = 0.1,
        shared: bool = False,
        use_bias: bool = True,
        divergence: Divergence = "fit",
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
        start = variational_dense_start(in_features, out_features, rate=rate, shared=shared)
        made = _parameters(start, kernel_init, bias_init if use_bias else None, param_dtype, rngs)
        self.kernel, self.bias, self.log_alpha = made["kernel"], made["bias"], made["log_alpha"]
        self.divergence = divergence
        self.dtype = dtype

    def __call__(
        self, x: jax.Array, *, deterministic: bool | jax.Array | None = None, rngs: Keys | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Applies the layer.

        Args:
          x: array of floating point numbers, `[..., in_features]`.
          deterministic: goes before the attribute of this name.
          rngs: a key, a stream or streams, to draw with instead of the layer's own.

        Returns:
          Array of shape `[..., out_features]`, in `dtype`, and the KL.

        Raises:
          ValueError: if `deterministic` is given nowhere, or nothing to draw with is; if an attribute does not fit.
          TypeError: if x does not hold floating point numbers, or if rngs is nothing to draw with.
        """
        params = VariationalDenseParams(self.kernel[...], None if self.bias is None else self.bias[...], self.log_alpha[...])
        return apply_variational_dense(params, x, self, **self._drawing(deterministic, rngs))


class SparseVariationalDense(NoiseModule):
    """A dense layer with learned noise on its weights that prunes itself: `jaxnorm.sparse_variational_dense`.

    Training: `y ~ N(x kernel + bias, x^2 exp(log_var))`. Inference (`deterministic`): `jaxnorm.sparse_variational_dense_mean`,
    without noise and without the weights of which it has too much. The parameters are those of `nnx.Linear`, and `log_var`.

    Args:
      in_features: number of inputs.
      out_features: number of outputs.
      threshold: of log alpha, above which inference leaves a weight out; a number or a traced scalar.
      log_var_init: the logarithm of the variance of every weight, to begin with.
      use_bias: whether there is a bias.
      divergence: how the KL is computed: "fit", "exact" or "cubic".
      dtype: type of the output, which alone is rounded to it; None infers it from x, kernel and bias.
      param_dtype: type of the parameters.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      deterministic: whether to prune and leave the noise out; set by `train()` and `eval()`.
      rng_collection: name of the stream of keys.
      rngs: the streams, of which `params` gives the key of the parameters, and that of the noise is forked.
      bits: random bits of which a normal number is made: 16 or 32.

    References:
      Molchanov, Ashukha, Vetrov, "Variational dropout sparsifies deep neural networks", ICML 2017,
      https://arxiv.org/abs/1701.05369.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> layer = jaxnorm.nnx.SparseVariationalDense(4, 3, rngs=nnx.Rngs(0))
      >>> y, kl = layer(jnp.ones((2, 4)))
      >>> y.shape, layer.log_var.shape
      ((2, 3), (4, 3))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        threshold: float | jax.Array = 3.0,
        log_var_init: float = -10.0,
        use_bias: bool = True,
        divergence: Divergence = "fit",
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
        start = sparse_variational_dense_start(in_features, out_features, log_var=log_var_init)
        made = _parameters(start, kernel_init, bias_init if use_bias else None, param_dtype, rngs)
        self.kernel, self.bias, self.log_var = made["kernel"], made["bias"], made["log_var"]
        self.threshold = threshold
        self.divergence = divergence
        self.dtype = dtype

    def __call__(
        self, x: jax.Array, *, deterministic: bool | jax.Array | None = None, rngs: Keys | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Applies the layer.

        Args:
          x: array of floating point numbers, `[..., in_features]`.
          deterministic: goes before the attribute of this name.
          rngs: a key, a stream or streams, to draw with instead of the layer's own.

        Returns:
          Array of shape `[..., out_features]`, in `dtype`, and the KL.

        Raises:
          ValueError: if `deterministic` is given nowhere, or nothing to draw with is; if an attribute does not fit.
          TypeError: if x does not hold floating point numbers, or if rngs is nothing to draw with.
        """
        bias = None if self.bias is None else self.bias[...]
        params = SparseVariationalDenseParams(self.kernel[...], bias, self.log_var[...])
        return apply_sparse_variational_dense(params, x, self, **self._drawing(deterministic, rngs))


def _parameters(
    start: Any, kernel_init: Callable[..., Any], bias_init: Callable[..., Any] | None, param_dtype: Any, rngs: nnx.Rngs
) -> dict[str, Any]:
    """Returns the parameters of a dense layer by name, made as `start` says or by an initializer; no bias without one."""
    own = {"kernel": kernel_init, "bias": bias_init}

    def made(name: str) -> Any:
        initializer, shape = start[name]
        initializer = own.get(name, initializer)
        return nnx.data(None if initializer is None else nnx.Param(initializer(rngs.params(), shape, param_dtype)))

    return {name: made(name) for name in start}
