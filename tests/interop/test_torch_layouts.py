"""Single layers from torch: they give what torch's give, and go back to the bit."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm.linen
from jaxnorm.interop import from_torch_model, to_torch_model

random = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return random.normal(size=shape).astype(np.float32)


def transposed_by_hand(x: np.ndarray, weight: np.ndarray, stride: int, groups: int = 1) -> np.ndarray:
    """What torch's transposed convolution along one axis gives: every input adds its kernel where it stands."""
    batch, inputs, length = x.shape
    _, of_group, window = weight.shape
    y = np.zeros((batch, of_group * groups, (length - 1) * stride + window))
    for i in range(inputs):
        first = i // (inputs // groups) * of_group
        for place in range(length):
            y[:, first : first + of_group, place * stride : place * stride + window] += x[:, i, place, None, None] * weight[i]
    return y


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_moves_its_axes(groups: int) -> None:
    weight = numbers(8, 4 // groups, 3, 2)
    variables = {"params": {"kernel": np.zeros((3, 2, 4 // groups, 8), np.float32)}}
    new, report = from_torch_model({"weight": weight}, variables)
    for h, w, i, o in np.ndindex(3, 2, 4 // groups, 8):
        assert new["params"]["kernel"][h, w, i, o] == weight[o, i, h, w]
    assert report.matches[0].layout == "[out, in, ...] -> [..., in, out]"


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_turned_around(groups: int) -> None:
    """In groups it is a convolution with `input_dilation`: Flax's transposed one has none."""
    weight, x, stride = numbers(4, 6 // groups, 3), numbers(2, 4, 5), 2
    if groups == 1:
        net: Any = nn.ConvTranspose(6, (3,), (stride,), "VALID", use_bias=False)
    else:
        net = nn.Conv(6, (3,), padding=2, input_dilation=stride, feature_group_count=groups, use_bias=False)
    variables = net.init(jax.random.key(0), x.transpose(0, 2, 1))
    new, _ = from_torch_model({"weight": weight}, variables, transposed=[""])
    y = net.apply(new, jnp.asarray(x.transpose(0, 2, 1)))
    assert_allclose(y.transpose(0, 2, 1), transposed_by_hand(x, weight, stride, groups), atol=1e-5)
    assert_array_equal(to_torch_model(new, {"weight": np.zeros_like(weight)}, transposed=[""])["weight"], weight)


def test_where_transposed_convolutions_are_known() -> None:
    """By their type in an nnx model, by linen's name; one with `transpose_kernel` has torch's kernel as it is."""
    weight = numbers(4, 4, 3)
    turned, moved = np.flip(weight.transpose(2, 0, 1), 0), weight.transpose(2, 1, 0)
    for known, expected in ((True, moved), (False, turned)):
        layer = nnx.ConvTranspose(4, 4, (3,), transpose_kernel=known, use_bias=False, rngs=nnx.Rngs(0))
        assert_array_equal(from_torch_model({"weight": weight}, layer)[0].kernel[...], expected)
        assert_array_equal(from_torch_model({"weight": weight}, nnx.state(layer))[0]["kernel"][...], moved)
    for name, expected in (("ConvTranspose_0", turned), ("up", moved)):
        new, _ = from_torch_model({"up.weight": weight}, {"params": {name: {"kernel": np.zeros((3, 4, 4), np.float32)}}})
        assert_array_equal(new["params"][name]["kernel"], expected)


def test_dense_layers_of_several_axes() -> None:
    """The projections of attention, beside torch's with one axis."""
    net = nn.MultiHeadDotProductAttention(2, qkv_features=6, out_features=5)
    x = numbers(2, 3, 4)
    variables = net.init(jax.random.key(0), x)
    parts = {"query": (6, 4), "key": (6, 4), "value": (6, 4), "out": (5, 6)}
    state = {f"{name}.weight": numbers(*shape) for name, shape in parts.items()}
    state |= {f"{name}.bias": numbers(shape[0]) for name, shape in parts.items()}
    new, report = from_torch_model(state, variables)
    q, k, v = (x @ state[f"{name}.weight"].T + state[f"{name}.bias"] for name in ("query", "key", "value"))
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        scores = np.exp(q[..., head] @ k[..., head].transpose(0, 2, 1) / np.sqrt(3))
        heads.append(scores / scores.sum(-1, keepdims=True) @ v[..., head])
    expected = np.concatenate(heads, -1) @ state["out.weight"].T + state["out.bias"]
    assert_allclose(net.apply(new, jnp.asarray(x)), expected, atol=1e-5)
    assert {match.layout for match in report.matches} == {
        "[out, in] -> [in, out], in several axes", "flattened", "as it is"
    }  # fmt: skip
    back = to_torch_model(new, {name: np.zeros_like(array) for name, array in state.items()})
    for name, array in state.items():
        assert_array_equal(back[name], array)


def test_a_dense_layer_of_several_axes_is_no_other_split() -> None:
    with pytest.raises(ValueError, match=r"query\.weight must be \[6, 4\].*got \[4, 6\]"):
        from_torch_model({"query.weight": numbers(4, 6)}, {"params": {"query": {"kernel": np.zeros((4, 2, 3), np.float32)}}})


TORCH = {  # torch's layer, Flax's, and the shape of x with the channels first
    "conv 1d": (lambda nn: nn.Conv1d(4, 6, 3), nn.Conv(6, (3,), padding="VALID"), (2, 4, 9)),
    "conv 3d": (lambda nn: nn.Conv3d(2, 4, (3, 2, 1)), nn.Conv(4, (3, 2, 1), padding="VALID"), (1, 2, 4, 3, 2)),
    "grouped": (
        lambda nn: nn.Conv2d(4, 6, 3, 2, padding=1, groups=2),
        nn.Conv(6, (3, 3), 2, padding=1, feature_group_count=2),
        (2, 4, 5, 6),
    ),
    "depthwise": (
        lambda nn: nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv(8, (3, 3), padding="VALID", feature_group_count=4),
        (2, 4, 5, 6),
    ),
    "transposed": (lambda nn: nn.ConvTranspose2d(4, 4, 3, 2), nn.ConvTranspose(4, (3, 3), (2, 2), "VALID"), (2, 4, 3, 5)),
    "dense": (lambda nn: nn.Linear(4, 6), nn.Dense(6), (3, 4)),
    "layer norm": (lambda nn: nn.LayerNorm(4), jaxnorm.linen.LayerNorm(epsilon=1e-5), (3, 4)),
    "rms norm": (lambda nn: nn.RMSNorm(4, eps=1e-6), jaxnorm.linen.RMSNorm(), (3, 4)),
    "group norm": (lambda nn: nn.GroupNorm(2, 4), jaxnorm.linen.GroupNorm(2, epsilon=1e-5), (2, 4, 3)),
    "batch norm": (lambda nn: nn.BatchNorm1d(4).eval(), jaxnorm.linen.BatchNorm(True), (3, 4)),
    "batch norm without scale": (
        lambda nn: nn.BatchNorm1d(4, affine=False).eval(),
        jaxnorm.linen.BatchNorm(True, use_scale=False, use_bias=False),
        (3, 4),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCH)
def test_layers_give_what_torch_s_give(name: str) -> None:
    torch = pytest.importorskip("torch")
    make, module, shape = TORCH[name]
    layer = make(torch.nn)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.2, 1.5)
    x = numbers(*shape)
    here = jnp.asarray(np.moveaxis(x, 1, -1))
    blank = jax.eval_shape(module.init, jax.random.key(0), here)
    state = {f"layer.{key}": tensor.numpy() for key, tensor in layer.state_dict().items()}
    variables, _ = from_torch_model(state, blank, transposed=[""] if name == "transposed" else None)
    expected = np.moveaxis(layer(torch.from_numpy(x)).detach().numpy(), 1, -1)
    assert_allclose(module.apply(variables, here), expected, atol=2e-5)
    back = to_torch_model(variables, state, transposed=[""] if name == "transposed" else None)
    for key, array in state.items():
        assert_array_equal(back[key], array)


def test_an_embedding_is_as_it_is() -> None:
    table = numbers(7, 3)
    new, _ = from_torch_model({"tokens.weight": table}, nnx.Embed(7, 3, rngs=nnx.Rngs(0)))
    assert_array_equal(new.embedding[...], table)
