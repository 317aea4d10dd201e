"""Bad batches, statistics and updates: one clear error each, and nothing changed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks_of_norms import WIDTH, network, update_of

import jaxnorm
import jaxnorm.linen
from jaxnorm.statistics import linen_update, nnx_update, precise_stats

PARAMS, STATS = network(1)
UPDATE = update_of(PARAMS)
X = jnp.ones((2, 4, WIDTH))
NET = nn.BatchNorm(use_running_average=True)


def masked(state, batch):
    params, _ = jaxnorm.init_batch_norm(WIDTH)
    return jaxnorm.batch_norm(params, state, batch["x"], train=True, momentum=0.0, where=batch["mask"])[1]


def flax_model(width: int = WIDTH):
    return NET.init(jax.random.key(0), jnp.ones((2, width)))


NOTHING = {"x": X, "mask": jnp.zeros((2, 4, 1), bool)}
STATE = STATS[0]


@pytest.mark.parametrize(
    "call, error, said",
    [
        (lambda: precise_stats(UPDATE, STATS, jnp.ones((0, 4, WIDTH))), ValueError, "at least one example"),
        (lambda: precise_stats(UPDATE, STATS, jnp.ones((3, 0, WIDTH))), ValueError, "at least one example"),
        (lambda: precise_stats(UPDATE, STATS, jnp.ones(3)), ValueError, r"batches must be an array \[batches, B, ...\]"),
        (lambda: precise_stats(UPDATE, STATS, X[0]), ValueError, r"features of examples, got shape \[4, 6\]"),
        (lambda: precise_stats(UPDATE, STATS, {}), ValueError, "batches must be an array"),
        (lambda: precise_stats(UPDATE, STATS, {"x": X, "y": X[:1]}), ValueError, "with as many batches"),
        (lambda: precise_stats(UPDATE, STATS, [X[0], X[0][:0]], progress=False), ValueError, "none in number 1"),
        (lambda: precise_stats(UPDATE, STATS, [], progress=False), ValueError, "batches must hold at least one batch"),
        (lambda: precise_stats(UPDATE, STATS, 3, progress=False), TypeError, "batches must be an array"),
        (lambda: precise_stats(UPDATE, STATS, iter([X[0]]), layer_by_layer=True, progress=False), ValueError, "again and again"),
        (lambda: precise_stats(masked, STATE, NOTHING), ValueError, "all elements are masked"),
        (lambda: precise_stats(masked, STATE, [{"x": X[0], "mask": X[0, :, :1] > 2}], progress=False), ValueError, "masked"),
        (lambda: precise_stats(UPDATE, STATS, X.at[:].set(jnp.nan)), ValueError, "not finite"),
        (lambda: precise_stats(3, STATS, X), TypeError, "update must be a function"),
        (lambda: precise_stats(lambda stats, x: stats, STATS, X), ValueError, "none of 0"),
        (lambda: precise_stats(lambda stats, x: stats[0], STATS, X), ValueError, r"0/mean of shape \[6\], got no 0/mean"),
        (lambda: precise_stats(UPDATE, [STATE._replace(mean=jnp.zeros(5))], X), ValueError, "state.mean must have shape"),
        (lambda: precise_stats(UPDATE, STATS, X, count=3), TypeError, "count must be a function"),
        (lambda: precise_stats(UPDATE, STATS, X, layer_by_layer=1), TypeError, "layer_by_layer must be True or False"),
        (lambda: precise_stats(UPDATE, {"params": jnp.ones(3)}, X), ValueError, "stats must hold running statistics"),
        (lambda: precise_stats(UPDATE, [STATE._replace(var=jnp.ones(6, int))], X), TypeError, "float32 or wider"),
        (
            lambda: precise_stats(lambda s, x: UPDATE(s, x["a"]), STATS, [{"a": X[0], "b": X[0][:2]}], progress=False),
            ValueError,
            "count",
        ),
        (lambda: linen_update(3, {}), TypeError, "module must be Module"),
        (lambda: linen_update(NET, {"params": {}}), ValueError, "batch_stats"),
        (lambda: linen_update(nn.Dense(3), flax_model()["params"]), ValueError, "batch_stats"),
        (lambda: precise_stats(linen_update(NET, flax_model()), STATE, X), None, None),
        (
            lambda: precise_stats(linen_update(NET, flax_model()), flax_model(5)["batch_stats"], X),
            ValueError,
            r"stats must have the statistics of the model: mean of shape \[6\], got mean of shape \[5\]",
        ),
        (lambda: precise_stats(linen_update(NET, flax_model()), {"a": STATE}, X), ValueError, "statistics of the model"),
        (lambda: precise_stats(linen_update(NET, flax_model()), STATE, X, count=len), ValueError, "count must be None"),
        (lambda: linen_update(NET, flax_model(), method="call"), TypeError, "method must be a function"),
        (lambda: nnx_update(3), TypeError, "model must be Module"),
        (lambda: nnx_update(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), ValueError, "model must hold running statistics"),
        (
            lambda: precise_stats(nnx_update(nnx.BatchNorm(WIDTH, rngs=nnx.Rngs(0))), {"norm": STATE}, X),
            ValueError,
            "statistics of the model",
        ),
    ],
)
def test_bad_input(call, error, said) -> None:
    if error is None:
        call()  # a container of another kind will do
        return
    before = jax.tree.map(np.asarray, (STATS, X))
    with pytest.raises(error, match=said):
        call()
    jax.tree.map(np.testing.assert_array_equal, before, (STATS, X))


def test_a_norm_that_is_never_met() -> None:
    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jaxnorm.linen.FrozenBatchNorm()(x)

    variables = Frozen().init(jax.random.key(0), X[0])
    with pytest.raises(ValueError, match="must meet a norm"):
        precise_stats(linen_update(Frozen(), variables), variables["batch_stats"], X)


def test_a_model_that_draws_by_itself_is_an_error() -> None:
    class Drawing(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jaxnorm.dropout(self.make_rng("dropout"), x, 0.5)
            return nn.BatchNorm(use_running_average=True)(x)

    variables = Drawing().init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X[0])
    with pytest.raises(Exception, match="needs PRNG"):
        precise_stats(linen_update(Drawing(), variables), variables["batch_stats"], X)


def test_what_cannot_be_known_while_tracing_keeps_the_statistics() -> None:
    found = jax.jit(lambda state, batches: precise_stats(masked, state, batches))(STATE, NOTHING)
    jax.tree.map(np.testing.assert_array_equal, found, STATE)
