"""`jaxnorm.nnx.replace_layers`: what it replaces, what it leaves, and that all else stays as it was."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxnorm.nnx
from jaxnorm._adoption import LAYERS
from jaxnorm.nnx import replace_layers

pytestmark = pytest.mark.jax_defaults  # Flax's own layers need them

MAKE = {  # a layer of a class, of 4 features
    **{name: lambda layer, rngs: layer(4, rngs=rngs) for name in ("BatchNorm", "InstanceNorm", "LayerNorm", "RMSNorm")},
    "GroupNorm": lambda layer, rngs: layer(4, num_groups=2, rngs=rngs),
    "Dropout": lambda layer, rngs: layer(0.5, rngs=rngs),
    "SpectralNorm": lambda layer, rngs: layer(nnx.Linear(4, 4, rngs=rngs), rngs=rngs),
    "WeightNorm": lambda layer, rngs: layer(nnx.Linear(4, 4, rngs=rngs), rngs=rngs),
}
X = jax.random.normal(jax.random.key(0), (3, 5, 4))


class DerivedNorm(nnx.LayerNorm):
    pass


class Row(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.drop = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(x))


@nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
def through_rows(row, x):
    return row(x)


class Everything(nnx.Module):
    """Every layer, in attributes, lists, dicts, sequences and stacked, with shared modules and a tied variable."""

    def __init__(self, rngs):
        self.layers = nnx.List([MAKE[name](getattr(nnx, name), rngs) for name in ("BatchNorm", "GroupNorm", "RMSNorm")])
        self.named = nnx.Dict(drop=nnx.Dropout(0.3, rngs=rngs), instance=nnx.InstanceNorm(4, use_bias=False, rngs=rngs))
        self.weights = nnx.Sequential(MAKE["WeightNorm"](nnx.WeightNorm, rngs), MAKE["SpectralNorm"](nnx.SpectralNorm, rngs))
        self.one = self.other = nnx.LayerNorm(4, rngs=rngs)
        self.tied = DerivedNorm(4, rngs=rngs)
        self.tied.scale = self.one.scale
        self.attention = nnx.MultiHeadAttention(2, 4, dropout_rate=0.3, decode=False, rngs=rngs)
        self.rows = nnx.split_rngs(splits=2)(nnx.vmap(Row))(rngs)

    def __call__(self, x):
        for layer in (*self.layers, *self.named.values(), self.weights, self.one, self.attention, self.other, self.tied):
            x = layer(x)
        return through_rows(self.rows, x)


PATHS = [
    *("attention", "layers/0", "layers/1", "layers/2", "named/drop", "named/instance", "one", "rows/drop", "rows/norm", "tied"),
    *("weights/layers/0", "weights/layers/1"),
]


def numbers(model):
    """Returns type, metadata and value of each variable, by path."""
    return {
        path: (type(variable), variable.get_metadata(), np.asarray(jax.random.key_data(value) if is_key(value) else value))
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Variable))
        for value in [variable[...]]
    }


def is_key(value):
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def assert_same_numbers(before, after, but=()):
    extra = {path for path in after if path not in before}
    assert extra == set(but)
    for path, (kind, metadata, value) in before.items():
        assert after[path][:2] == (kind, metadata)
        np.testing.assert_array_equal(after[path][2], value, err_msg=path)


@pytest.fixture(scope="module")
def model():
    return Everything(nnx.Rngs(0))


def test_every_layer_wherever_it_is(model):
    before, kinds = numbers(model), [type(module) for _, module in nnx.iter_modules(model)]
    adopted, report = replace_layers(model, bits=32)
    assert [layer.path for layer in report.layers] == PATHS
    assert [layer.path for layer in report.left] == ["tied"]
    assert {layer.became for layer in report.replaced} == {
        *(f"jaxnorm.nnx.{name}" for name in LAYERS),
        "flax.nnx.MultiHeadAttention by jaxnorm.nnx.dot_product_attention",
    }
    scales = [path for path in numbers(adopted) if "scales" in path and path not in before]  # bare arrays in flax 0.12.8
    assert_same_numbers(before, numbers(adopted), but=scales)
    assert_same_numbers(numbers(model), before)
    assert [type(module) for _, module in nnx.iter_modules(model)] == kinds


def test_what_is_shared_and_tied_stays_so_and_nothing_is_shared_with_the_given_model(model):
    adopted, _ = replace_layers(model)
    assert adopted.one is adopted.other
    assert adopted.tied.scale is adopted.one.scale
    given = {id(node) for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable | nnx.Module)}
    assert not [node for _, node in nnx.iter_graph(adopted) if id(node) in given]


def test_flags_and_states_go_both_ways(model):
    given = nnx.clone(model)
    given.eval()
    adopted, _ = replace_layers(given)

    def flags():
        return adopted.layers[0].use_running_average, adopted.named.drop.deterministic, adopted.attention.deterministic

    assert flags() == (True, True, True)
    adopted.train()
    assert flags() == (False, False, False)
    values = nnx.to_pure_dict(nnx.state(adopted))
    assert jax.tree.structure(values) == jax.tree.structure(nnx.to_pure_dict(nnx.state(given)))
    state = nnx.state(adopted)
    nnx.replace_by_pure_dict(state, nnx.to_pure_dict(nnx.state(given)))
    nnx.update(adopted, state)


@pytest.mark.slow
def test_outputs_and_masks_are_those_of_before(model):
    adopted, _ = replace_layers(model, bits=32)

    @nnx.jit
    def run(model):
        copy = nnx.clone(model)
        copy.eval()
        evaluated = copy(X)
        copy = nnx.clone(model)
        copy.train()
        return evaluated, copy(X), nnx.state(copy, nnx.BatchStat)

    for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(run(model)), jax.tree.leaves(run(adopted)), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", LAYERS)
def test_a_replaced_layer_has_every_attribute_of_ours(name):
    """In our constructor's place."""
    make = MAKE[name]
    layer, report = replace_layers(make(getattr(nnx, name), nnx.Rngs(0)))
    new = make(getattr(jaxnorm.nnx, name), nnx.Rngs(0))
    assert type(layer) is type(new)
    assert set(vars(new)) <= set(vars(layer))
    named = {key: value for key, value in vars(new).items() if isinstance(value, int | float | str | tuple)}
    assert {key: getattr(layer, key) for key in named} == named
    assert jax.tree.structure(nnx.state(layer)) == jax.tree.structure(nnx.state(new))
    assert (report.layers[0].path, report.layers[0].layer) == ("", f"flax.nnx.{name}")


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_bits_are_those_of_dropout_and_attention(bits):
    rngs = nnx.Rngs(0)
    given = nnx.Sequential(nnx.MultiHeadAttention(2, 4, dropout_rate=0.5, decode=False, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
    adopted, report = replace_layers(given, bits=bits)
    assert adopted.layers[0].attention_fn.keywords == {"bits": bits}
    assert adopted.layers[1].bits == bits
    assert [bool(layer.differs) for layer in report.layers] == [bits != 32] * 2


def test_kernels_are_not_overwritten_and_scales_are_learned():
    given = nnx.Sequential(MAKE["WeightNorm"](nnx.WeightNorm, nnx.Rngs(0)), MAKE["SpectralNorm"](nnx.SpectralNorm, nnx.Rngs(1)))
    adopted, _ = replace_layers(given)
    given.eval()
    adopted.eval()
    kernels = [layer.layer_instance.kernel[...] for layer in adopted.layers]
    np.testing.assert_allclose(adopted(X), given(X), rtol=1e-5, atol=1e-6)
    for layer, kernel in zip(adopted.layers, kernels, strict=True):
        np.testing.assert_array_equal(layer.layer_instance.kernel[...], kernel)
    assert ("layers", 0, "scales", ("kernel",)) in dict(nnx.to_flat_state(nnx.state(adopted, nnx.Param)))


def test_abstract_models_and_metadata():
    def build():
        return nnx.LayerNorm(4, scale_metadata={"role": "scale"}, bias_metadata={"role": "shift"}, rngs=nnx.Rngs(0))

    abstract, _ = replace_layers(nnx.eval_shape(build))
    assert type(abstract) is jaxnorm.nnx.LayerNorm
    assert abstract.scale.shape == (4,)
    adopted, _ = replace_layers(build())
    assert (adopted.scale.get_metadata()["role"], adopted.bias.get_metadata()["role"]) == ("scale", "shift")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (
            functools.partial(nnx.dot_product_attention, precision="highest"),
            "drops weights by an attention_fn that is not Flax's",
        ),
        (jaxnorm.nnx.dot_product_attention, ""),
        (functools.partial(jaxnorm.nnx.dot_product_attention, bits=8), ""),
    ],
)
def test_attention_that_is_left(function, reason):
    rngs = nnx.Rngs(0)
    attention = nnx.MultiHeadAttention(2, 4, dropout_rate=0.5, attention_fn=function, rngs=rngs)
    adopted, report = replace_layers(nnx.Sequential(attention, nnx.Dropout(0.5, rngs=rngs)))
    assert [layer.reason for layer in report.left] == [reason] * bool(reason)
    assert adopted.layers[0].attention_fn is function


def test_nothing_to_replace():
    rngs = nnx.Rngs(0)
    none = "^model holds no layer to replace, none of BatchNorm, .*, nor attention with dropout"
    with pytest.raises(ValueError, match=f"{none}$"):
        replace_layers(nnx.Linear(3, 4, rngs=rngs))
    with pytest.raises(
        ValueError, match=rf"{none}; left: the model, a .*DerivedNorm, is a subclass of flax.nnx.LayerNorm, on whose"
    ):
        replace_layers(DerivedNorm(4, rngs=rngs))
    ours = nnx.Sequential(*(jaxnorm.nnx.RMSNorm(4, rngs=rngs) for _ in range(3)))
    with pytest.raises(ValueError, match=rf"{none}; left: layers/0, a jaxnorm.nnx.RMSNorm, is jaxnorm's already, and so 2 more$"):
        replace_layers(ours)
    with pytest.raises(ValueError, match=r"ToNNX, is a linen module: call the model within jaxnorm.linen.replacing_layers"):
        replace_layers(nnx.bridge.ToNNX(linen.LayerNorm(), rngs=rngs))


def test_bad_input():
    with pytest.raises(TypeError, match=r"model must be Module, got .*LayerNorm"):
        replace_layers(linen.LayerNorm())
    model = nnx.Dropout(0.5)
    with pytest.raises(ValueError, match="bits must be 8, 16 or 32, got 4"):
        replace_layers(model, bits=4)
    with pytest.raises(TypeError, match="bits must be 8, 16 or 32, got True"):
        replace_layers(model, bits=True)
    assert type(model) is nnx.Dropout
