"""`jaxnorm.linen.replacing_layers`: what it reaches, what it leaves, and under what it holds."""

import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import ScopeCollectionNotFound

import jaxnorm.linen
from jaxnorm._adoption import LAYERS
from jaxnorm.linen import replacing_layers
from jaxnorm.uncertainty import mc_predict

pytestmark = pytest.mark.jax_defaults  # Flax's own layers need them


class DerivedNorm(nn.BatchNorm):
    pass


class Block(nn.Module):
    train: bool

    def setup(self):
        self.norm = nn.BatchNorm(use_running_average=not self.train)
        self.attention = nn.SelfAttention(2, dropout_rate=0.3, deterministic=not self.train)

    def __call__(self, x, _):
        return self.attention(self.norm(x)), None


class Everything(nn.Module):
    """Every layer, and every way that leads to one."""

    @nn.compact
    def __call__(self, x, train):
        flag = {"use_running_average": not train}
        x = functools.partial(nn.BatchNorm, **flag)(scale_init=nn.initializers.normal())(x)
        x = nn.remat(nn.BatchNorm)(**flag)(DerivedNorm(**flag)(x))
        x = nn.SpectralNorm(nn.Dense(8))(nn.WeightNorm(nn.Dense(8))(x), update_stats=train)
        x = nn.InstanceNorm()(nn.RMSNorm()(nn.LayerNorm()(nn.GroupNorm(2)(x))))
        axes = {"params": 0, "batch_stats": 0}
        blocks = nn.scan(nn.remat(Block), variable_axes=axes, split_rngs={"params": True, "dropout": True}, length=2)
        x, _ = blocks(train, name="blocks")(x, None)
        shared = {"variable_axes": {"params": None, "batch_stats": None}, "split_rngs": {"params": False}}
        x = nn.vmap(nn.BatchNorm, axis_name="rows", **shared)(**flag, axis_name="rows", name="mapped")(x)
        drop = functools.partial(nn.Dropout, deterministic=not train)
        return nn.Sequential([nn.jit(nn.Dropout)(0.5, deterministic=not train), nn.Dense(4), drop(0.5)])(x)


PATHS = [
    *("BatchNorm_0", "DerivedNorm_0", "CheckpointBatchNorm_0", "WeightNorm_0", "SpectralNorm_0", "GroupNorm_0", "LayerNorm_0"),
    *("RMSNorm_0", "InstanceNorm_0", "blocks/norm", "blocks/attention", "mapped", "JitDropout_0", "Dropout_0"),
]


class Small(nn.Module):
    """A batch norm, that tells near from far means, and a dropout."""

    train: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.train, momentum=0.5)(x)
        return nn.Dropout(0.5, deterministic=not self.train)(x)


# Far from 0 for its spread: of the squares' mean float32 leaves multiples of 2, of which Flax's layers take the variance of 0.01.
X = np.asarray(4096 + 0.1 * jax.random.normal(jax.random.key(0), (8, 3)))
KEYS = {"dropout": jax.random.key(1)}
VARIABLES = {
    "params": {"BatchNorm_0": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}},
    "batch_stats": {"BatchNorm_0": {"mean": jnp.zeros(3), "var": jnp.ones(3)}},
}


def outputs(variables=VARIABLES):
    return Small().apply(variables, X, rngs=KEYS, mutable=["batch_stats"])[0]


def is_ours(y):
    """Whether y is of our batch norm: what dropout keeps is twice a standardized x."""
    return 1 < float(jnp.abs(y).max()) < 8


def assert_equal(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(other, one, err_msg=jax.tree_util.keystr(path), **tolerance)


@pytest.mark.filterwarnings("ignore:SelfAttention")
def test_every_layer_wherever_it_is():
    """Names, scopes, variables, captured intermediates and outputs in evaluation are those of before."""
    model, x = Everything(), jax.random.normal(jax.random.key(0), (2, 5, 8))
    streams = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    collect = {"mutable": ["batch_stats", "intermediates"], "capture_intermediates": True, "rngs": streams}
    variables = jax.jit(lambda: model.init(streams, x, False))()

    def evaluate(variables):
        return model.apply(variables, x, False)

    def shapes():
        collected = jax.eval_shape(lambda variables: model.apply(variables, x, True, **collect), variables)
        return jax.eval_shape(lambda: model.init(streams, x, True)), collected

    before = jax.jit(evaluate)(variables)
    before_made, (_, before_collected) = shapes()
    with replacing_layers(bits=32) as report:
        after = jax.jit(evaluate)(variables)
        made, (_, collected) = shapes()
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    assert made == before_made
    del collected["intermediates"]["Dense_1"]  # what a layer in Flax's weight norm keeps besides its parameters is lost
    assert collected == before_collected
    assert [layer.path for layer in report.layers] == PATHS
    assert [layer.path for layer in report.left] == ["DerivedNorm_0"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:SelfAttention")
def test_every_layer_in_initialization_and_training():
    """Values are those of before too, also those of random initializers, and with 32 bits the masks, and so the gradients."""
    model, x = Everything(), jax.random.normal(jax.random.key(0), (2, 5, 8))
    streams = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

    @jax.jit
    def train():
        def loss(params):
            given = {**variables, "params": params}
            y, updates = model.apply(given, x, True, rngs={"dropout": jax.random.key(2)}, mutable=["batch_stats"])
            return (y**2).sum(), (y, updates)

        variables = model.init(streams, x, True)
        return variables, jax.value_and_grad(loss, has_aux=True)(variables["params"])

    before = train()
    with replacing_layers(bits=32):
        after = train()
    assert_equal(before, after, rtol=1e-3, atol=2e-2)
    dropped = [one[0][1][0] == 0 for one in (before[1], after[1])]
    np.testing.assert_array_equal(*dropped)
    assert 0 < dropped[0].sum() < dropped[0].size


def test_layers_are_ours_in_the_context_alone():
    assert not is_ours(outputs())
    with replacing_layers() as report:
        assert is_ours(outputs())
    assert not is_ours(outputs())
    assert [(layer.path, layer.layer, layer.became) for layer in report.layers] == [
        ("BatchNorm_0", "flax.linen.BatchNorm", "jaxnorm.linen.BatchNorm"),
        ("Dropout_0", "flax.linen.Dropout", "jaxnorm.linen.Dropout"),
    ]


def on_one_device(function):
    mapped = jax.pmap(lambda variables, _: function(variables), in_axes=(None, 0))
    return lambda variables: mapped(variables, jnp.zeros(1))


@pytest.mark.parametrize("transform", [jax.jit, on_one_device], ids=["jit", "pmap"])
def test_compiled_functions_are_of_where_they_are_called(transform):
    """Both ways round, and what was compiled for a context is found again in another of the same options."""
    traces = []

    @transform
    def compiled(variables):
        traces.append(1)
        return outputs(variables)

    outside = compiled(VARIABLES)
    with replacing_layers() as report:
        inside = compiled(VARIABLES)
    assert (is_ours(outside), is_ours(inside), len(traces), len(report.replaced)) == (False, True, 2, 2)
    with replacing_layers() as again:
        assert is_ours(compiled(VARIABLES))
    assert len(traces) == 2
    assert not again.layers  # nothing was traced in it, which is no error
    with replacing_layers(bits=32):
        assert is_ours(compiled(VARIABLES))
    np.testing.assert_array_equal(compiled(VARIABLES), outside)
    assert len(traces) == 3


def test_a_lifted_jit_is_of_where_it_is_called():
    model = nn.jit(Small)()
    call = functools.partial(model.apply, VARIABLES, X, rngs=KEYS, mutable=["batch_stats"])
    with replacing_layers():
        assert is_ours(call()[0])
    assert not is_ours(call()[0])


def test_of_contexts_in_each_other_the_innermost_holds():
    with replacing_layers(bits=32):
        thirty_two = outputs()
    with replacing_layers() as outer:
        with replacing_layers(bits=32) as inner:
            np.testing.assert_array_equal(outputs(), thirty_two)
        assert not outer.layers
        assert (outputs() != thirty_two).any()
    assert len(inner.replaced) == len(outer.replaced) == 2


def test_other_threads_are_not_touched():
    results = {}

    def work(name, context=None):
        if context is None:
            results[name] = outputs()
        else:
            with context:
                results[name] = outputs()

    with replacing_layers() as report:
        threads = [threading.Thread(target=work, args=("bare",)), threading.Thread(target=work, args=("own", replacing_layers()))]
        for thread in threads:
            thread.start()
            thread.join()
        assert not report.layers
        outputs()
    assert not is_ours(results["bare"])
    assert is_ours(results["own"])


def test_an_exception_ends_the_context_and_is_not_hidden():
    with pytest.raises(ScopeCollectionNotFound), replacing_layers():
        Small().apply({}, X)
    assert not is_ours(outputs())
    with replacing_layers():
        assert is_ours(outputs())


def test_interceptors_of_others_come_before_ours_and_see_each_call_once():
    calls = []

    def watch(call, args, kwargs, context):
        calls.append(type(context.module).__name__)
        return call(*args, **kwargs)

    def to_evaluation(call, args, kwargs, context):
        if type(context.module) is nn.BatchNorm:
            return args[0]
        return call(*args, **kwargs)

    with nn.intercept_methods(watch), replacing_layers(), nn.intercept_methods(to_evaluation):
        y = outputs()
    assert calls == ["Small", "BatchNorm", "Dropout"]
    np.testing.assert_allclose(y[y != 0], 2 * X[y != 0], rtol=1e-6)


def test_tools_that_intercept_work_within():
    model = Small().bind(VARIABLES)
    samples = mc_predict(jax.random.key(0), model, X, 3)
    with replacing_layers(bits=32) as report:
        ours = mc_predict(jax.random.key(0), model, X, 3)
    np.testing.assert_allclose(ours, samples, rtol=1e-5)
    assert len(report.replaced) == 2


def test_tables_of_layers_are_the_same():
    def table():
        return nn.tabulate(Small(), KEYS | {"params": KEYS["dropout"]}, console_kwargs={"width": 120})(X)

    before = table()
    with replacing_layers():
        assert table() == before


def test_parts_of_a_bound_model_and_several_models():
    class Other(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(x)

    with replacing_layers() as report:
        outputs()
        Other().apply(VARIABLES, X)
        nn.BatchNorm(use_running_average=True).apply({name: tree["BatchNorm_0"] for name, tree in VARIABLES.items()}, X)
    assert [(layer.model, layer.path) for layer in report.replaced] == [
        ("Small", "BatchNorm_0"),
        ("Small", "Dropout_0"),
        ("Other", "BatchNorm_0"),
        ("BatchNorm", ""),
    ]


def test_variables_keep_their_metadata():
    scale_init = nn.with_partitioning(nn.initializers.normal(), ("features",))
    norm = nn.LayerNorm(scale_init=scale_init)
    before = norm.init(jax.random.key(0), X)
    with replacing_layers():
        after = norm.init(jax.random.key(0), X)
    assert_equal(before, after)
    assert after["params"]["scale"].names == ("features",)


class Attention(nn.Module):
    options: tuple = ()

    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(1, deterministic=False, **dict(self.options))(x)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"attention_fn": functools.partial(nn.dot_product_attention, precision=None)}, "attention_fn that is not Flax's"),
        ({"attention_fn": jaxnorm.linen.dot_product_attention}, ""),
        ({"attention_fn": functools.partial(jaxnorm.linen.dot_product_attention, bits=8)}, ""),
        ({"dropout_rate": 0.0}, ""),
    ],
)
def test_attention_that_is_left(options, reason):
    model, keys = (
        Attention(tuple(({"dropout_rate": 0.5} | options).items())),
        dict.fromkeys(("params", "dropout"), jax.random.key(0)),
    )
    with pytest.raises(ValueError, match=f"no layer to replace.*{reason}"), replacing_layers() as report:
        jax.eval_shape(model.init, keys, X)
    assert len(report.left) == bool(reason)


def test_a_subclass_is_left_also_within_a_transformation():
    flag = {"use_running_average": False}
    with (
        pytest.raises(ValueError, match=r"subclass of flax.linen.BatchNorm, on whose own code it may depend$"),
        replacing_layers() as report,
    ):
        nn.remat(DerivedNorm)(**flag).init(jax.random.key(0), X)
    assert [layer.layer.rpartition(".")[2] for layer in report.layers] == ["DerivedNorm"]


def test_nothing_to_replace():
    with (
        pytest.raises(ValueError, match=r"^replacing_layers: the models that ran .* hold no layer to replace, none of BatchNorm"),
        replacing_layers(),
    ):
        nn.Dense(3).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"BatchNorm, is jaxnorm's already$"), replacing_layers():
        jaxnorm.linen.BatchNorm(use_running_average=True).init(jax.random.key(0), X)
    with replacing_layers():
        pass


@pytest.mark.parametrize(("bits", "error"), [(7, ValueError), (True, TypeError), ("32", TypeError), (None, TypeError)])
def test_bad_bits(bits, error):
    with pytest.raises(error, match=f"bits must be 8, 16 or 32, got .*{bits}"), replacing_layers(bits=bits):
        pass


@pytest.mark.parametrize("name", LAYERS)
def test_fields_of_flax_are_fields_of_ours(name):
    """A module of Flax's class is called as one of ours, with its own fields and the defaults of those that it lacks."""
    flax, ours = ({field.name: field for field in dataclasses.fields(getattr(p, name))} for p in (nn, jaxnorm.linen))
    assert set(flax) <= set(ours)
    assert all(ours[field].default is not dataclasses.MISSING for field in set(ours) - set(flax))
