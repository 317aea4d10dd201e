"""Models with parameters that do nothing, norms of norms, and what an optimizer should leave alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxnorm
import jaxnorm.linen
from jaxnorm.diagnostics import lint
from jaxnorm.diagnostics._lint.report import Report
from jaxnorm.training import no_decay_mask
from lint_programs import program
from lint_programs.small_models import (
    LinenNorm,
    NnxNorm,
    exact,
    haiku_norm,
    init_own_norm,
    lint_equinox,
    lint_haiku,
    lint_linen,
    lint_nnx,
    lint_pure,
    normal,
    own_norm,
)


@program("useless-parameter", "jaxnorm", where="params/bias")
def jaxnorm_useless(sick: bool) -> Report:
    def body(params, stats, x, train):
        x = x @ params["kernel"]
        x = x + params["bias"] if sick else jax.nn.relu(x + params["bias"])
        return jaxnorm.batch_norm(params["norm"], stats, x, train=train, momentum=0.9)

    norm, stats = jaxnorm.init_batch_norm(8)
    return lint_pure(body, {"kernel": normal(4, 8), "bias": jnp.ones(8), "norm": norm}, stats, normal())


@program("useless-parameter", "linen", where="Conv_0/bias")
def linen_useless(sick: bool) -> Report:
    def body(x, train):
        x = nn.BatchNorm(not train, momentum=0.9)(nn.Conv(4, (3, 3), use_bias=sick)(x))
        return x.mean((1, 2))

    return lint_linen(body, normal(32, 6, 6, 3))


@program("useless-parameter", "nnx", where="dense/bias")
def nnx_useless(sick: bool) -> Report:
    rngs = nnx.Rngs(0)
    norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs) if sick else nnx.LayerNorm(8, rngs=rngs)
    return lint_nnx(normal(), 8, dense=nnx.Linear(4, 8, rngs=rngs), norm=norm)


@program("useless-parameter", "haiku", where="linear/b")
def haiku_useless(sick: bool) -> Report:
    import haiku as hk

    def body(x, train):
        return hk.BatchNorm(True, True, 0.9)(hk.Linear(8, with_bias=sick)(x), train)

    return lint_haiku(body, normal())


@program("useless-parameter", "equinox", where="bias", deep="vmap")
def equinox_useless(sick: bool) -> Report:
    import equinox as eqx

    dense = eqx.nn.Linear(4, 8, use_bias=sick, key=jax.random.key(0))
    return lint_equinox([dense, eqx.nn.BatchNorm(8, "batch", momentum=0.9, mode="batch")], 8, normal())


class _Block(nn.Module):
    """A dense layer and its batch norm, as a step of a scan."""

    use_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool):
        x = nn.BatchNorm(not train, momentum=0.9)(nn.Dense(4, use_bias=self.use_bias)(x))
        return x, None


@program("useless-parameter", "linen", where="Dense_0/bias", deep="scan")
def linen_useless_in_scan(sick: bool) -> Report:
    def body(x, train):
        kept = {"params": 0, "batch_stats": 0}
        layers = nn.scan(_Block, variable_axes=kept, split_rngs={"params": True}, in_axes=nn.broadcast, length=3)
        return layers(sick)(x, train)[0]

    return lint_linen(body, normal())


@program("useless-parameter", "linen", where="Dense_0/bias", deep="shared")
def linen_useless_in_shared_layer(sick: bool) -> Report:
    def body(x, train):
        """One dense layer, used twice: its bias is useless only if a norm follows both times."""
        dense = nn.Dense(4, bias_init=nn.initializers.ones)
        x = nn.BatchNorm(not train, momentum=0.9)(dense(x))
        return nn.BatchNorm(not train, momentum=0.9)(dense(nn.relu(x))) if sick else dense(nn.relu(x))

    return lint_linen(body, normal())


@program("useless-parameter", "jax", where="params/scale", deep="branch")
def jax_useless_scale_in_cond(sick: bool) -> Report:
    def body(params, stats, x, train):
        x = x + params["scale"] * x.mean(1, keepdims=True) if not sick else x * params["scale"]
        return jax.lax.cond(
            jnp.asarray(train),
            lambda x: own_norm(exact, params["norm"], stats, x, True, 0.0),
            lambda x: own_norm(exact, params["norm"], stats, x, False, 0.0),
            x,
        )

    norm, stats = init_own_norm(4)
    return lint_pure(body, {"scale": jnp.full(4, 1.5), "norm": norm}, stats, normal())


@program("norm-after-norm", "jaxnorm", where="norms/1")
def jaxnorm_norm_after_norm(sick: bool) -> Report:
    def body(params, stats, x, train):
        x, first = jaxnorm.batch_norm(params["norms"][0], stats[0], x, train=train, momentum=0.9)
        x, second = jaxnorm.batch_norm(params["norms"][1], stats[1], x if sick else jax.nn.gelu(x), train=train, momentum=0.9)
        return x, (first, second)

    norm, stats = jaxnorm.init_batch_norm(4)
    return lint_pure(body, {"norms": (norm, norm)}, (stats, stats), normal())


@program("norm-after-norm", "linen", where="LayerNorm_1")
def linen_norm_after_norm(sick: bool) -> Report:
    def body(x, train):
        x = nn.LayerNorm()(nn.Dense(8)(x))
        return nn.LayerNorm()(x if sick else nn.Dense(8)(x))

    return lint_linen(body, normal())


@program("norm-after-norm", "nnx", where="second")
def nnx_norm_after_norm(sick: bool) -> Report:
    rngs = nnx.Rngs(0)
    first, second = (nnx.BatchNorm(4, momentum=0.9, rngs=rngs) for _ in range(2))
    return lint_nnx(normal(), 4, first=first, between=lambda x: 2 * x if sick else jnp.square(x), second=second)


@program("norm-after-norm", "haiku", where="batch_norm_1")
def haiku_norm_after_norm(sick: bool) -> Report:
    import haiku as hk

    def body(x, train):
        first = hk.BatchNorm(True, True, 0.9) if sick else hk.LayerNorm(-1, True, True)
        x = first(x, train) if sick else first(x)
        return hk.BatchNorm(True, True, 0.9, name="batch_norm_1")(x, train)

    return lint_haiku(body, normal())


@program("norm-after-norm", "equinox", where="layers/1", deep="vmap")
def equinox_norm_after_norm(sick: bool) -> Report:
    import equinox as eqx

    first, second = (eqx.nn.BatchNorm(4, "batch", momentum=0.9, mode="batch") for _ in range(2))
    between = eqx.nn.Lambda(jax.nn.softplus)
    return lint_equinox([first, second] if sick else [first, between, second], 4, normal())


@program("norm-after-norm", "linen", where="BatchNorm_0", deep="remat")
def linen_norm_after_norm_in_remat(sick: bool) -> Report:
    class Block(nn.Module):
        train: bool

        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(not self.train, momentum=0.9)(x if sick else jnp.sin(x))

    def body(x, train):
        x = nn.remat(Block)(train, name="first")(nn.Dense(4, use_bias=False)(x))
        return nn.remat(Block)(train, name="second")(x)

    return lint_linen(body, normal())


def _adamw(sick: bool) -> optax.GradientTransformation:
    return optax.adamw(1e-3, mask=None if sick else no_decay_mask)


@program("decay-on-norm", "jaxnorm", where="params/norm/")
def jaxnorm_decay(sick: bool) -> Report:
    def body(params, stats, x, train):
        return jaxnorm.batch_norm(params["norm"], stats, x, train=train, momentum=0.9)

    params, stats = jaxnorm.init_batch_norm(4)
    return lint_pure(body, {"norm": params}, stats, normal(), _adamw(sick))


@program("decay-on-norm", "linen", where="BatchNorm_0/")
def linen_decay(sick: bool) -> Report:
    def body(x, train):
        return nn.BatchNorm(not train, momentum=0.9)(nn.Dense(8, use_bias=False)(x))

    return lint_linen(body, normal(), _adamw(sick))


@program("decay-on-norm", "nnx", where="norm/")
def nnx_decay(sick: bool) -> Report:
    decay = optax.add_decayed_weights(1e-2, mask=None if sick else no_decay_mask)
    norm = nnx.LayerNorm(4, rngs=nnx.Rngs(0))
    return lint_nnx(normal(), 4, optax.chain(decay, optax.sgd(0.1, momentum=0.9)), norm=norm)


@program("decay-on-norm", "haiku", where="batch_norm/")
def haiku_decay(sick: bool) -> Report:
    import haiku as hk

    optimizer = optax.lamb(1e-3, weight_decay=0.1, mask=None if sick else no_decay_mask)
    return lint_haiku(lambda x, train: hk.BatchNorm(True, True, 0.9)(x, train), normal(), optimizer)


@program("decay-on-norm", "equinox", where="layers/0", deep="vmap")
def equinox_decay(sick: bool) -> Report:
    import equinox as eqx

    norm = eqx.nn.BatchNorm(4, "batch", momentum=0.9, mode="batch")
    return lint_equinox([norm], 4, normal(), _adamw(sick))


@program("decay-on-norm", "jaxnorm.linen", where="BatchNorm_0/", deep="scan")
def linen_decay_in_scan(sick: bool) -> Report:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return jaxnorm.linen.BatchNorm(not train, momentum=0.9)(nn.Dense(4, use_bias=False)(nn.tanh(x))), None

    def two_axes_or_more(params):
        return jax.tree.map(lambda param: param.ndim > 1, params)

    def body(x, train):
        kept = {"params": 0, "batch_stats": 0}
        layers = nn.scan(Block, variable_axes=kept, split_rngs={"params": True}, in_axes=nn.broadcast, length=3)
        return layers()(x, train)[0]

    # Stacked scales have two axes: a mask by the number of axes alone does not spare them.
    return lint_linen(body, normal(), optax.adamw(1e-3, mask=two_axes_or_more if sick else no_decay_mask))


@program("averages-in-optimizer", "jaxnorm", where="params/averages")
def jaxnorm_averages_in_optimizer(sick: bool) -> Report:
    def body(params, stats, x, train):
        averages = params["averages"] if sick else stats
        y, averages = jaxnorm.batch_norm(params["norm"], averages, x, train=train, momentum=0.9)
        return y, () if sick else averages

    norm, averages = jaxnorm.init_batch_norm(4)
    params = {"norm": norm, "averages": averages} if sick else {"norm": norm}
    return lint_pure(body, params, () if sick else averages, normal(), optax.sgd(0.1))


@program("averages-in-optimizer", "linen", where="LinenNorm_0")
def linen_averages_in_optimizer(sick: bool) -> Report:
    return lint_linen(lambda x, train: LinenNorm(averages_in_params=sick)(x, train), normal(), _adamw(False))


@program("averages-in-optimizer", "nnx", where="norm")
def nnx_averages_in_optimizer(sick: bool) -> Report:
    return lint_nnx(normal(), 4, norm=NnxNorm(4, kind=nnx.Param if sick else nnx.BatchStat))


@program("averages-in-optimizer", "haiku", where="var")
def haiku_averages_in_optimizer(sick: bool) -> Report:
    return lint_haiku(lambda x, train: haiku_norm(x, train, averages_in_params=sick), normal(), optax.sgd(0.1))


@program("averages-in-optimizer", "linen", where="batch_stats", deep="remat")
def all_variables_in_optimizer(sick: bool) -> Report:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.remat(nn.BatchNorm)(not train, momentum=0.9, name="norm")(nn.Dense(8, use_bias=False)(x))
            return nn.Dense(2)(nn.relu(x))

    variables = Net().init(jax.random.key(1), normal(), False)

    def apply(key, params, stats, x, *, train):
        outputs, updates = Net().apply(params if sick else {"params": params, **stats}, x, train, mutable=["batch_stats"])
        return outputs, {} if sick else updates

    params, stats = (variables, {}) if sick else (variables["params"], {"batch_stats": variables["batch_stats"]})
    return lint(apply, params, stats, normal(), optimizer=optax.adam(1e-3))
