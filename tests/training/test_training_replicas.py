"""Copies of arrays that must be equal on all devices, and keys that must not be."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnorm.training import check_keys_differ, check_replicas


def array_of(sharding, shape, values):
    """A global array whose devices hold these values, whatever they are."""
    local = [jax.device_put(value, device) for value, device in zip(values, sharding.mesh.devices.flat, strict=True)]
    return jax.make_array_from_single_device_arrays(shape, sharding, local)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 2), ("data", "model"), devices=jax.devices()[:4])


def test_equal_copies_pass(mesh):
    whole, half = (NamedSharding(mesh, spec) for spec in (P(), P("data")))
    tree = {
        "w": jax.device_put(jnp.array([jnp.nan, 1.0]), whole),
        "half": jax.device_put(jnp.arange(6.0).reshape(2, 3), half),
        "key": jax.device_put(jax.random.key(0), whole),
        "empty": jnp.ones((0, 2)),
        "numpy": np.ones(3),
        "number": 2.0,
    }
    check_replicas(tree)
    check_replicas(jax.random.key(1))


def test_a_copy_that_differs_in_a_bit_is_named_with_its_devices(mesh):
    values = [np.zeros(3, np.float32)] * 3 + [np.array([0, 0, -0.0], np.float32)]
    tree = {"params": [jnp.ones(2), array_of(NamedSharding(mesh, P()), (3,), values)]}
    words = "['params'][1] must be the same on all devices that hold the same part of it, got for [...] other bits on "
    with pytest.raises(ValueError, match=re.escape(words) + r"\S+0 of process 0 than on \S+3 of process 0"):
        check_replicas(tree)


def test_only_devices_that_hold_the_same_part_are_compared(mesh):
    split = NamedSharding(mesh, P("data"))
    first, second = np.zeros((1, 2)), np.ones((1, 2))
    check_replicas(array_of(split, (2, 2), [first, first, second, second]))
    with pytest.raises(ValueError, match=r"tree must .* got for \[1:2, 0:2\] other bits on \S+2 of .* than on \S+3"):
        check_replicas(array_of(split, (2, 2), [first, first, second, second + 1e-3]))


def test_a_key_that_differs_is_seen(mesh):
    keys = [np.array([0, 1], np.uint32)] * 3 + [np.array([0, 2], np.uint32)]
    data = array_of(NamedSharding(mesh, P()), (2,), keys)
    with pytest.raises(ValueError, match=re.escape("['key'] must be the same")):
        check_replicas({"key": jax.random.wrap_key_data(data)})


def test_keys_of_devices_that_differ_and_that_do_not(mesh):
    def keys(fold):
        own = lambda key: (jax.random.fold_in(key, jax.lax.axis_index("data")) if fold else key)[None]  # noqa: E731
        mapped = jax.shard_map(own, mesh=mesh, in_specs=P(), out_specs=P("data"), check_vma=False)
        return jax.jit(mapped)(jax.random.key(0))

    check_keys_differ(keys(True))
    with pytest.raises(ValueError, match=re.escape("keys must all differ, got the same as number 0 and number 1 (from 0) of 2")):
        check_keys_differ(keys(False))


def test_keys_of_any_shape_and_kind():
    keys = jax.random.split(jax.random.key(0), (2, 3))
    check_keys_differ(keys)
    check_keys_differ(jax.random.key(0))
    check_keys_differ(jax.random.key_data(keys))
    with pytest.raises(ValueError, match="number 2 and number 4"):
        check_keys_differ(keys.reshape(6)[jnp.array([0, 1, 2, 3, 2, 5])])
    for wrong in (jnp.ones(3), 3, None):
        with pytest.raises(TypeError, match="keys must be an array of keys, got"):
            check_keys_differ(wrong)  # pyright: ignore[reportArgumentType]
