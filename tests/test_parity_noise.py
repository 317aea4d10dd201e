"""Noise beside that of PyTorch, torchvision, timm, Keras and Flax: the same distribution, and for a shared draw the same values.

torchvision and timm are no extra of jaxnorm, since pip brings a build of torchvision that fits one of torch alone:
`pip install torch torchvision timm`. `python tests/test_parity_noise.py` prints the largest differences from them.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import randomness
from numpy.testing import assert_allclose, assert_array_equal
from randomness import ALPHA
from scipy import stats

import jaxnorm

pytestmark = [pytest.mark.slow, pytest.mark.jax_defaults]
os.environ["KERAS_BACKEND"] = "jax"  # keras reads it when it is imported
X = np.random.default_rng(0).normal(size=(500, 4, 3, 40)).astype(np.float32)

Peer = Callable[[], np.ndarray]


def in_torch(name: str, rate: float) -> np.ndarray:
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    x = torch.tensor(np.moveaxis(X, -1, 1).copy(), requires_grad=True)
    return np.moveaxis(getattr(torch.nn, name)(rate).train()(x).detach().numpy(), 1, -1)


def in_keras(name: str, amount: float) -> np.ndarray:
    layers = importlib.import_module("keras").layers
    return np.asarray(getattr(layers, name)(amount, seed=0)(X, training=True))


CASES: dict[str, tuple[str, Callable[..., Any], float]] = {
    "torch AlphaDropout": ("torch", jaxnorm.alpha_dropout, 0.3),
    "torch FeatureAlphaDropout": ("torch", lambda *given: jaxnorm.alpha_dropout(*given, broadcast_dims=(1, 2)), 0.3),
    "torch Dropout2d": ("torch", jaxnorm.spatial_dropout, 0.3),
    "keras AlphaDropout": ("keras", jaxnorm.alpha_dropout, 0.3),
    "keras SpatialDropout2D": ("keras", jaxnorm.spatial_dropout, 0.3),
    "keras GaussianNoise": ("keras", jaxnorm.gaussian_noise, 0.5),
}


def both(name: str) -> tuple[np.ndarray, np.ndarray]:
    package, function, amount = CASES[name]
    pytest.importorskip(package)
    theirs = (in_torch if package == "torch" else in_keras)(name.split()[1], amount)
    return np.asarray(function(jax.random.key(0), jnp.asarray(X), amount)), theirs


def numbers(y: np.ndarray) -> np.ndarray:
    """One number of every example and channel; rounded, so that what is dropped to one value is it in both."""
    return np.round(y[:, 0, 0].ravel(), 2)


@pytest.mark.parametrize("name", CASES)
def test_values_are_distributed_as_those_of_others(name: str) -> None:
    """And a control: not as those of another amount."""
    mine, theirs = (numbers(y) for y in both(name))
    assert stats.ks_2samp(mine, theirs).pvalue > ALPHA
    _, function, amount = CASES[name]
    other = np.asarray(function(jax.random.key(0), jnp.asarray(X), amount + 0.3))
    assert stats.ks_2samp(numbers(other), theirs).pvalue < ALPHA


@pytest.mark.parametrize("name", [name for name in CASES if "Noise" not in name])
def test_the_same_elements_share_a_decision(name: str) -> None:
    """Whole channels of one example, or none; of dropped ones the value is the same in both."""
    shares = "Dropout2" in name or "Feature" in name
    fallen = [0.0] * 2 if "2" in name.split()[1] else [stats.mode(y, axis=None).mode for y in both(name)]
    assert_allclose(*fallen, rtol=1e-3)
    for y, value in zip(both(name), fallen, strict=True):
        dropped = y == value
        assert (dropped == dropped[:, :1, :1]).all() == shares
        assert randomness.rate(dropped[:, 0, 0], 0.3) > ALPHA


@pytest.mark.parametrize(
    ("function", "dims"),
    [
        (lambda *given: jaxnorm.spatial_dropout(*given, bits=32), (1, 2)),
        (lambda *given: jaxnorm.locked_dropout(*given, bits=32), (1,)),
        (lambda *given: jaxnorm.head_dropout(*given, head_axis=-2, bits=32), (1, 3)),
        (lambda *given: jaxnorm.drop_path(*given, bits=32), (1, 2, 3)),
        (lambda *given: jaxnorm.drop_path(*given, mode="batch", bits=32), (0, 1, 2, 3)),
    ],
    ids=["spatial", "locked", "head", "row", "batch"],
)
def test_values_are_those_of_flax_for_its_draw(function: Callable[..., Any], dims: tuple[int, ...]) -> None:
    theirs = flax.linen.Dropout(0.3, broadcast_dims=dims, deterministic=False)
    with jax.debug_key_reuse(False):
        y = theirs.apply({}, jnp.asarray(X), rng=jax.random.key(7))
        assert_allclose(function(jax.random.key(7), jnp.asarray(X), 0.3), y, rtol=2.4e-7)


# torchvision and timm: they draw by Bernoulli, normal numbers alone; what they draw is given to them


class Shared(NamedTuple):
    """A layer of another library, and what makes it draw as ours does."""

    package: str
    make: Callable[[], Any]
    ours: Callable[[jax.Array, jax.Array], jax.Array]
    shape: tuple[int, ...]  # of x, channels last
    drawn: Callable[[jax.Array], np.ndarray]  # channels first
    probability: float | None = None  # that they draw with


def first(a: Any) -> np.ndarray:
    """The channels of images go from the last axis to the second."""
    return np.moveaxis(np.asarray(a), -1, 1)


def kept(*shape: int) -> Callable[[jax.Array], np.ndarray]:
    return lambda key: np.asarray(jaxnorm.dropout_mask(key, shape, 0.3, bits=32))


def places(shape: tuple[int, ...], block: int) -> tuple[int, ...]:
    """How many blocks fit along each spatial axis."""
    return tuple(size - block + 1 for size in shape[1:-1])


def gamma(shape: tuple[int, ...], block: int) -> float:
    sizes = shape[1:-1]
    return float(oracles.block_probability(0.3, sizes, (block,) * len(sizes)))


def begins(shape: tuple[int, ...], block: int, channels: int) -> Callable[[jax.Array], np.ndarray]:
    """Where blocks begin."""

    def drawn(key: jax.Array) -> np.ndarray:
        mask = jaxnorm.dropout_mask(key, (shape[0], *places(shape, block), channels), gamma(shape, block), bits=32)
        return first(~mask)

    return drawn


def centers(shape: tuple[int, ...], block: int) -> Callable[[jax.Array], np.ndarray]:
    """Where blocks have their centers, as timm draws them, but for those that would reach over the border."""
    before, after = block // 2, block - 1 - block // 2
    return lambda key: np.pad(begins(shape, block, 1)(key), ((0, 0), (0, 0), (before, after), (before, after)))


def in_order(key: jax.Array) -> np.ndarray:
    """Numbers that are smaller the earlier a token is chosen."""
    _, indices = jaxnorm.patch_dropout(key, jnp.ones((5, 21, 1)), 0.3)
    numbers = np.full((5, 20), 100.0)
    np.put_along_axis(numbers, np.asarray(indices), np.arange(indices.shape[1])[None], 1)
    return numbers


def torchvision_layer(name: str, *given: Any) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module("torchvision.ops"), name)(*given)


def timm_layer(name: str, **given: Any) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module("timm.layers"), name)(**given)


def block_of(**options: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda key, x: jaxnorm.drop_block(key, x, 0.3, rescale="batch", bits=32, **options)


def path_of(**options: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda key, x: jaxnorm.drop_path(key, x, 0.3, bits=32, **options)


IMAGES, VOLUMES = (6, 9, 8, 3), (4, 6, 5, 7, 3)
SHARED = {
    "torchvision StochasticDepth, row": Shared(
        "torchvision", torchvision_layer("StochasticDepth", 0.3, "row"), path_of(), IMAGES, kept(6, 1, 1, 1), 0.7
    ),
    "torchvision StochasticDepth, batch": Shared(
        "torchvision", torchvision_layer("StochasticDepth", 0.3, "batch"), path_of(mode="batch"), IMAGES, kept(1, 1, 1, 1), 0.7
    ),
    "torchvision DropBlock2d": Shared(
        "torchvision",
        torchvision_layer("DropBlock2d", 0.3, 3),
        block_of(block_size=3),
        IMAGES,
        begins(IMAGES, 3, 3),
        gamma(IMAGES, 3),
    ),
    "torchvision DropBlock3d": Shared(
        "torchvision",
        torchvision_layer("DropBlock3d", 0.3, 3),
        block_of(block_size=3),
        VOLUMES,
        begins(VOLUMES, 3, 3),
        gamma(VOLUMES, 3),
    ),
    "timm DropPath": Shared("timm", timm_layer("DropPath", drop_prob=0.3), path_of(), IMAGES, kept(6, 1, 1, 1), 0.7),
    "timm DropPath, unscaled": Shared(
        "timm", timm_layer("DropPath", drop_prob=0.3, scale_by_keep=False), path_of(scale=False), IMAGES, kept(6, 1, 1, 1), 0.7
    ),
    "timm DropBlock2d of 3": Shared(
        "timm",
        timm_layer("DropBlock2d", drop_prob=0.3, block_size=3),
        block_of(block_size=3, shared=True),
        IMAGES,
        centers(IMAGES, 3),
        gamma(IMAGES, 3),
    ),
    "timm DropBlock2d of 4": Shared(
        "timm",
        timm_layer("DropBlock2d", drop_prob=0.3, block_size=4),
        block_of(block_size=4, shared=True),
        IMAGES,
        centers(IMAGES, 4),
        gamma(IMAGES, 4),
    ),
    "timm PatchDropout": Shared(
        "timm",
        timm_layer("PatchDropout", prob=0.3),
        lambda key, x: jaxnorm.patch_dropout(key, x, 0.3)[0],
        (5, 21, 4),
        in_order,
    ),
}


def values_and_gradients(name: str, patch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Ours and theirs, for the same draw."""
    torch = importlib.import_module("torch")
    case = SHARED[name]
    x = np.random.default_rng(0).normal(2, 3, case.shape).astype(np.float32)
    drawn = case.drawn(jax.random.key(1))

    def bernoulli_(tensor: Any, probability: float) -> Any:
        assert (tuple(tensor.shape), probability) == (drawn.shape, pytest.approx(case.probability))
        return tensor.copy_(torch.tensor(drawn))

    patch.setattr(torch.Tensor, "bernoulli_", bernoulli_)
    patch.setattr(torch, "randn", lambda *shape, **_: torch.tensor(drawn).reshape(shape))
    images = case.probability is not None
    turned = first(x) if images else x
    given = torch.tensor(turned.copy(), requires_grad=True)
    theirs = case.make().train()(given)
    y, pullback = jax.vjp(lambda x: case.ours(jax.random.key(1), x), jnp.asarray(x))
    dy = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    theirs.backward(torch.tensor((first(dy) if images else dy).copy()))
    last = (lambda a: np.moveaxis(a.numpy(), 1, -1)) if images else (lambda a: a.numpy())
    return jax.device_get((y, *pullback(dy))), (last(theirs.detach()), last(given.grad))


def difference(name: str, patch: pytest.MonkeyPatch) -> float:
    """The largest one of values and gradients, beside their largest."""
    pairs = zip(*values_and_gradients(name, patch), strict=True)
    return float(max(np.abs(got - wanted).max() / np.abs(wanted).max() for got, wanted in pairs))


@pytest.mark.parametrize("name", SHARED)
def test_values_and_gradients_are_those_of_others_for_the_same_draw(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(SHARED[name].package)
    with jax.debug_key_reuse(False):
        (y, gradient), (theirs, their_gradient) = values_and_gradients(name, monkeypatch)
    assert np.any(y != 0)
    for got, wanted in ((y, theirs), (gradient, their_gradient)):
        assert_array_equal(got == 0, wanted == 0)
        assert_allclose(got, wanted, rtol=1e-6)


def test_timm_begins_blocks_where_none_fits() -> None:
    """Pitfalls 105, 106: with the paper's gamma, which is made for the places where blocks fit; so it drops more than it should.

    Of 14 x 14 with blocks of 7 and a rate of 0.1 it keeps 0.7908, where the paper, torchvision and jaxnorm keep 0.9071.
    """
    timm = pytest.importorskip("timm.layers")
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    theirs = timm.DropBlock2d(0.1, 7, scale_by_keep=False).train()(torch.ones(20_000, 1, 14, 14)).numpy()
    ours = jaxnorm.drop_block(jax.random.key(0), jnp.ones((20_000, 14, 14, 1)), 0.1, block_size=7) != 0
    clear = 1 - float(oracles.block_probability(0.1, (14, 14), (7, 7)))
    that_fit, that_reach_over = oracles.covering_blocks(14, 7), np.convolve(np.ones(14), np.ones(7), "same")
    expected = [np.mean(clear ** np.multiply.outer(n, n)) for n in (that_fit, that_reach_over)]
    assert_allclose(expected, [0.9071, 0.7908], atol=5e-5)
    for kept, right, wrong in ((ours, *expected), (theirs, *expected[::-1])):
        shares = np.asarray(kept, np.float64).reshape(20_000, -1).mean(1)
        error = shares.std() / np.sqrt(shares.size)
        assert abs(shares.mean() - right) < 4 * error
        assert abs(shares.mean() - wrong) > 4 * error


def test_timm_computes_the_number_of_patches_in_floats() -> None:
    """A tenth of 100 tokens are 9 there."""
    timm = pytest.importorskip("timm.layers")
    torch = importlib.import_module("torch")
    assert timm.PatchDropout(0.9, num_prefix_tokens=0).train()(torch.ones(1, 100, 1)).shape[1] == 9
    assert jaxnorm.patch_dropout(jax.random.key(0), jnp.ones((1, 100, 1)), 0.9, num_prefix_tokens=0)[0].shape[1] == 10


if __name__ == "__main__":
    for name in SHARED:
        with pytest.MonkeyPatch.context() as patch:
            print(name, f"{difference(name, patch):.1e}", sep=": ")
