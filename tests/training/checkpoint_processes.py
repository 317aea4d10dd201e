"""What one of several processes does for the tests of checkpoints: `python checkpoint_processes.py FOLDER PORT COUNT INDEX`.

Each process has two devices. In FOLDER/one is a checkpoint that one process wrote. All read it, with one array shared by all
devices, write it to FOLDER/many, and try what goes wrong in one process alone.
"""

import os
import resource
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxnorm.training import CheckpointWriter, init_train_state, latest_step, load_checkpoint, load_newest, save_checkpoint
from jaxnorm.training._agreement import agree

SHARED, ROWS = {"w", "keys"}, 16


def make_state(step=4):
    """The state that all write and read: arrays that are shared, one that is not, keys, and an empty one."""
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(ROWS, 3)), jnp.float32),
        "keys": jax.random.split(jax.random.key(5), ROWS),
        "half": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
        "empty": jnp.zeros((0, 3)),
    }
    state = init_train_state(jax.random.key(7), params, (), optax.identity())
    return state._replace(step=jnp.asarray(step, jnp.int32))


def place(state, mesh):
    """Puts a state that all processes have on a mesh of the devices of all, and shares some of its arrays among them."""

    def put(leaf, name=None):
        sharding = NamedSharding(mesh, PartitionSpec("all") if name in SHARED else PartitionSpec())
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: np.asarray(leaf[index]))

    def put_any(leaf, name=None):
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return put(leaf, name)
        return jax.random.wrap_key_data(put(jax.random.key_data(leaf), name), impl=jax.random.key_impl(leaf))

    params = {name: put_any(leaf, name) for name, leaf in state.params.items()}
    return jax.tree.map(put_any, state._replace(params=None))._replace(params=params)


def assert_equal(state, expected):
    """Compares the parts of arrays that are here with those of whole ones, bit by bit."""
    for found, whole in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
            found, whole = jax.random.key_data(found), jax.random.key_data(whole)
        assert (found.shape, found.dtype) == (whole.shape, whole.dtype)
        for part in found.addressable_shards:
            assert np.asarray(part.data).tobytes() == np.asarray(whole[part.index]).tobytes()


def error_of(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def main() -> None:
    folder, (port, count, index) = Path(sys.argv[1]), map(int, sys.argv[2:])
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index, heartbeat_timeout_seconds=10, shutdown_timeout_seconds=10)
    mesh = jax.make_mesh((2 * count,), ("all",))
    one, many = folder / "one", folder / "many"
    like = place(make_state(), mesh)

    found = load_checkpoint(one, jax.tree.map(lambda leaf: leaf, like))
    assert [leaf.sharding for leaf in jax.tree.leaves(found.state)] == [leaf.sharding for leaf in jax.tree.leaves(like)]
    assert_equal(found.state, make_state())
    assert found.position == {"by": "one"}

    with CheckpointWriter(many) as writer:
        writer.save(found.state, position={"by": "many"}, history=[{"loss": 0.5}])
        writer.save(place(make_state(step=5), mesh), position=5)
        writer.wait()
        assert latest_step(many) == 5
        writer.save(place(make_state(step=6), mesh))

    # One process sees damage that is in its own part of the files, and all set the checkpoint aside.
    if index == 0:
        files = (many / "6/state" / f"ocdbt.process_{count - 1}").glob("d/*")
        data = max(files, key=lambda file: file.stat().st_size)
        data.write_bytes(data.read_bytes()[:-1])
    agree(None)
    message = error_of(load_checkpoint, many, like)
    assert f"folder {many}/6 is a damaged checkpoint" in message, message
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_newest(many, like).position == 5
    assert [f"{many}/6 is damaged and was set aside" in str(warning.message) for warning in caught] == [True]
    assert sorted(path.name for path in many.iterdir()) == ["4", "5", "6.damaged"]

    # One process cannot write, and all say so; the checkpoints before stay, and the next one is written.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if index == count - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    message = error_of(save_checkpoint, many, place(make_state(step=7), mesh))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"OSError: checkpoint {many}/7 could not be written: " in message, message
    assert ("File too large" in message) == (index == count - 1), message
    assert sorted(path.name for path in many.iterdir()) == ["4", "5", "6.damaged"]
    agree(None)
    save_checkpoint(many, place(make_state(step=7), mesh))
    assert latest_step(many) == 7

    message = error_of(save_checkpoint, many, place(make_state(step=8), mesh), position=index)
    assert ("position must be the same in all processes" in message) == (index == 0), message
    message = error_of(save_checkpoint, many, place(make_state(step=9), mesh)._replace(step=jnp.int32(9)))
    assert f"ValueError: state must have arrays that all {count} processes share" in message, message
    assert ".step is of one process" in message, message
    message = error_of(load_checkpoint, folder / f"own{index}", like)
    assert "does not exist" in message, message
    os.makedirs(folder / f"own{index}" / str(index))
    message = error_of(load_checkpoint, folder / f"own{index}", like)
    assert "must be one that all processes share, got newest steps" in message, message
    print("done")


if __name__ == "__main__":
    main()
