"""Variational dropout as `flax.linen` modules: of activations, and dense layers with learned noise, one of which prunes itself.

Each gives y and the KL, as its function does: `loss = mean(nll) + (sum of the KLs) / N`, with N examples in the training set.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._dropout.divergence import Divergence
from jaxnorm._dropout.variational import init_variational_dropout
from jaxnorm._dropout.variational_dense import sparse_variational_dense_start, variational_dense_start
from jaxnorm._modules import feature_shape
from jaxnorm._noise_modules import apply_sparse_variational_dense, apply_variational_dense, apply_variational_dropout
from jaxnorm._types import SparseVariationalDenseParams, VariationalDenseParams, VariationalDropoutParams
from jaxnorm.linen._noise_layer import DrawingModule


class VariationalDropout(DrawingModule):
    """Gaussian noise of mean 1 whose amount is learned: `jaxnorm.variational_dropout`.

    Training: `y = x n`, `n ~ N(1, alpha)`. Inference (`deterministic`): the identity. The parameter is `log_alpha`.

    Attributes:
      rate: the noise to begin with is that of dropout at this rate, between 0 and 1.
      shared: whether all features have one alpha, instead of their own.
      divergence: how the KL is computed: "fit", "exact" or "cubic".
      param_dtype: type of the parameter.
      deterministic: whether to leave the noise out; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits an element of which a normal number is made: 16 or 32.

    References:
      Kingma, Salimans, Welling, "Variational dropout and the local reparameterization trick", NIPS 2015,
      https://arxiv.org/abs/1506.02557.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.VariationalDropout(rate=0.5)
      >>> x = jnp.ones((2, 3))
      >>> variables = layer.init(jax.random.key(0), x, deterministic=True)
      >>> y, kl = layer.apply(variables, x, deterministic=False, rngs={"dropout": jax.random.key(1)})
      >>> print(y.shape, f"{kl:.3f}")
      (2, 3) 1.294
    """

    rate: float = 0.1
    shared: bool = False
    divergence: Divergence = "fit"
    param_dtype: Any = jnp.float32
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16

    @nn.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | jax.Array | None = None, rng: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Makes the inputs noisy.

        Args:
          inputs: array of floating point numbers, `[..., C]`.
          deterministic: as the field of this name; given once, here or there.
          rng: the key to draw with, instead of one from the stream.

        Returns:
          Array of the shape and dtype of the inputs, and the KL.

        Raises:
          ValueError: if `deterministic` is given nowhere or twice; if a field does not fit.
          TypeError: if the inputs do not hold floating point numbers, or if rng is no key.
        """
        (features,) = feature_shape(inputs, -1)
        new = init_variational_dropout(features, rate=self.rate, shared=self.shared, param_dtype=self.param_dtype)
        params = VariationalDropoutParams(self.param("log_alpha", lambda _: new.log_alpha))
        return apply_variational_dropout(params, inputs, self, **self._drawing(deterministic, rng))


class VariationalDense(DrawingModule):
    """A dense layer with Gaussian noise on its weights, whose amount is learned: `jaxnorm.variational_dense`.

    Training: `y ~ N(x kernel + bias, x^2 (alpha kernel^2))`. Inference (`deterministic`): `y = x kernel + bias`. The parameters
    are those of `nn.Dense`, and `log_alpha`.

    Attributes:
      features: number of outputs.
      rate: the noise to begin with is that of Gaussian DropConnect at this rate, between 0 and 1.
      shared: whether all weights have one alpha, instead of their own.
      use_bias: whether there is a bias.
      divergence: how the KL is computed: "fit", "exact" or "cubic".
      dtype: type of the output, which alone is rounded to it; None infers it from x, kernel and bias.
      param_dtype: type of the parameters.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      deterministic: whether to leave the noise out; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits of which a normal number is made: 16 or 32.

    References:
      Kingma, Salimans, Welling, "Variational dropout and the local reparameterization trick", NIPS 2015,
      https://arxiv.org/abs/1506.02557.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.VariationalDense(3, deterministic=False)
      >>> rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
      >>> (y, kl), variables = layer.init_with_output(rngs, jnp.ones((2, 4)))
      >>> jax.tree.map(jnp.shape, variables["params"])
      {'bias': (3,), 'kernel': (4, 3), 'log_alpha': (4, 3)}
    """

    features: int
    rate: float = 0.1
    shared: bool = False
    use_bias: bool = True
    divergence: Divergence = "fit"
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Any] = nn.initializers.zeros
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16

    @nn.compact
    def __call__(
        self, x: jax.Array, deterministic: bool | jax.Array | None = None, rng: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Applies the layer.

        Args:
          x: array of floating point numbers, `[..., C]`.
          deterministic: as the field of this name; given once, here or there.
          rng: the key to draw with, instead of one from the stream.

        Returns:
          Array of shape `[..., features]`, in `dtype`, and the KL.

        Raises:
          ValueError: if `deterministic` is given nowhere or twice; if a field does not fit.
          TypeError: if x does not hold floating point numbers, or if rng is no key.
        """
        (inputs,) = feature_shape(x, -1)
        start = variational_dense_start(inputs, self.features, rate=self.rate, shared=self.shared)
        params = VariationalDenseParams(**_variables(self, start))
        return apply_variational_dense(params, x, self, **self._drawing(deterministic, rng))


class SparseVariationalDense(DrawingModule):
    """A dense layer with learned noise on its weights that prunes itself: `jaxnorm.sparse_variational_dense`.

    Training: `y ~ N(x kernel + bias, x^2 exp(log_var))`. Inference (`deterministic`): `jaxnorm.sparse_variational_dense_mean`,
    without noise and without the weights of which it has too much. The parameters are those of `nn.Dense`, and `log_var`.

    Attributes:
      features: number of outputs.
      threshold: of log alpha, above which inference leaves a weight out; a number or a traced scalar.
      log_var_init: the logarithm of the variance of every weight, to begin with.
      use_bias: whether there is a bias.
      divergence: how the KL is computed: "fit", "exact" or "cubic".
      dtype: type of the output, which alone is rounded to it; None infers it from x, kernel and bias.
      param_dtype: type of the parameters.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      deterministic: whether to prune and leave the noise out; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits of which a normal number is made: 16 or 32.

    References:
      Molchanov, Ashukha, Vetrov, "Variational dropout sparsifies deep neural networks", ICML 2017,
      https://arxiv.org/abs/1701.05369.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.SparseVariationalDense(3, deterministic=False)
      >>> rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
      >>> (y, kl), variables = layer.init_with_output(rngs, jnp.ones((2, 4)))
      >>> jax.tree.map(jnp.shape, variables["params"])
      {'bias': (3,), 'kernel': (4, 3), 'log_var': (4, 3)}
    """

    features: int
    threshold: float | jax.Array = 3.0
    log_var_init: float = -10.0
    use_bias: bool = True
    divergence: Divergence = "fit"
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Any] = nn.initializers.zeros
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16

    @nn.compact
    def __call__(
        self, x: jax.Array, deterministic: bool | jax.Array | None = None, rng: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Applies the layer.

        Args:
          x: array of floating point numbers, `[..., C]`.
          deterministic: as the field of this name; given once, here or there.
          rng: the key to draw with, instead of one from the stream.

        Returns:
          Array of shape `[..., features]`, in `dtype`, and the KL.

        Raises:
          ValueError: if `deterministic` is given nowhere or twice; if a field does not fit.
          TypeError: if x does not hold floating point numbers, or if rng is no key.
        """
        (inputs,) = feature_shape(x, -1)
        start = sparse_variational_dense_start(inputs, self.features, log_var=self.log_var_init)
        params = SparseVariationalDenseParams(**_variables(self, start))
        return apply_sparse_variational_dense(params, x, self, **self._drawing(deterministic, rng))


def _variables(module: Any, start: Any) -> dict[str, Any]:
    """Returns the parameters of a dense layer by name, made as `start` says or as a field does."""
    own = {"kernel": module.kernel_init, "bias": module.bias_init}
    made = {
        name: module.param(name, own.get(name, initializer), shape, module.param_dtype)
        for name, (initializer, shape) in start.items()
        if name != "bias" or module.use_bias
    }
    return {"bias": None, **made}
