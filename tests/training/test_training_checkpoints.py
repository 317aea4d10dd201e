import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxnorm.training import init_train_state, latest_step, load_checkpoint, load_newest, save_checkpoint

POSITION = {"epoch": 3, "batch": 17, "note": "é", "rate": 0.1, "none": None}
HISTORY = [{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": 1e-300}]


def make_state(key=None, step=4, fill=1.0):
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(fill * rng.normal(size=(5, 3)), jnp.float32),
        "half": [jnp.asarray(rng.normal(size=6), jnp.bfloat16), (jnp.asarray(fill), None)],
        "empty": jnp.zeros((0, 3)),
        "by_number": {1: jnp.arange(3) * 0.1, 10: jnp.ones(2)},
        "a/b": {"w['c']": jnp.ones(2)},
        "z": jnp.asarray([1 + 2j, np.nan, -0.0], jnp.complex64),
    }
    state = init_train_state(jax.random.key(7) if key is None else key, list(params.values()), params, optax.adam(0.1))
    return state._replace(step=jnp.asarray(step, jnp.int32))


def bits(state):
    data = [jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a for a in jax.tree.leaves(state)]
    return [(str(a.dtype), a.shape, np.asarray(a).tobytes()) for a in data]


@pytest.mark.parametrize(
    "key",
    [jax.random.key(7), jax.random.PRNGKey(7), jax.random.key(7, impl="rbg"), jax.random.key(7, impl="unsafe_rbg")],
    ids=repr,
)
def test_what_was_saved_comes_back_bit_for_bit(key, tmp_path, capfd):
    state = make_state(key)
    save_checkpoint(tmp_path / "run", state, position=POSITION, history=HISTORY)
    like = jax.tree.map(jnp.zeros_like, state._replace(key=None))._replace(key=jax.random.clone(key))
    found = load_checkpoint(str(tmp_path / "run"), like)
    assert jax.tree.structure(found.state) == jax.tree.structure(state)
    assert bits(found.state) == bits(state)
    assert found.state.key.dtype == key.dtype
    assert (found.position, found.history) == (POSITION, HISTORY)
    assert capfd.readouterr() == ("", ""), "Orbax logs nothing of its own"


def test_values_that_json_has_no_names_for(tmp_path):
    save_checkpoint(tmp_path, make_state(), position=(1, {2: "a", 10: "b"}), history=[{"loss": np.nan, "other": np.inf}])
    found = load_checkpoint(tmp_path, make_state())
    assert found.position == [1, {"2": "a", "10": "b"}]
    assert np.isnan(found.history[0]["loss"])
    assert found.history[0]["other"] == np.inf


def test_only_the_newest_are_kept(tmp_path):
    assert latest_step(tmp_path / "none") is None
    for step in (1, 5, 9, 10, 200):
        save_checkpoint(tmp_path, make_state(step=step), keep=3)
        assert latest_step(tmp_path) == step
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [9, 10, 200]
    assert load_checkpoint(tmp_path, make_state()).state.step == 200
    assert load_checkpoint(tmp_path, make_state(), step=9).state.step == 9
    with pytest.raises(ValueError, match=rf"step must be one of the checkpoints in {tmp_path}, \[9, 10, 200\], got 5"):
        load_checkpoint(tmp_path, make_state(), step=5)


@pytest.mark.parametrize("step", [3, 4])
def test_a_step_that_is_not_new(step, tmp_path):
    save_checkpoint(tmp_path, make_state(step=4))
    with pytest.raises(ValueError, match=f"folder {tmp_path} already has a checkpoint of step 4, got one of step {step} to save"):
        save_checkpoint(tmp_path, make_state(step=step, fill=2.0))
    assert bits(load_checkpoint(tmp_path, make_state()).state) == bits(make_state(step=4))


def test_remains_of_an_unfinished_checkpoint(tmp_path):
    save_checkpoint(tmp_path, make_state(step=4))
    shutil.copytree(tmp_path / "4", tmp_path / "8.unfinished")
    assert latest_step(tmp_path) == 4
    assert load_checkpoint(tmp_path, make_state()).state.step == 4
    assert load_newest(tmp_path, make_state()).state.step == 4
    assert (tmp_path / "8.unfinished").exists(), "reading changes nothing"
    save_checkpoint(tmp_path, make_state(step=9))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "9"]


def test_a_full_disk_is_said_with_the_name_of_the_checkpoint_and_older_ones_stay(tmp_path):
    save_checkpoint(tmp_path, make_state(step=1), position=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # fails where a full disk does, in a write
    try:
        with pytest.raises(OSError, match=rf"^checkpoint {tmp_path}/2 could not be written: .*[Ff]ile too large"):
            save_checkpoint(tmp_path, make_state(step=2), position=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_checkpoint(tmp_path, make_state()).position == 1
    save_checkpoint(tmp_path, make_state(step=2), position=2)
    assert load_checkpoint(tmp_path, make_state()).position == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_bad_arguments(tmp_path):
    state = make_state()
    with pytest.raises(ValueError, match=f"folder {tmp_path}/none does not exist"):
        load_checkpoint(tmp_path / "none", state)
    with pytest.raises(ValueError, match=f"folder {tmp_path} has no complete checkpoint"):
        load_checkpoint(tmp_path, state)
    (tmp_path / "file").write_text("hello")
    for call in (lambda f: save_checkpoint(f, state), lambda f: load_checkpoint(f, state)):
        with pytest.raises(ValueError, match=f"folder .*{tmp_path}/file"):
            call(tmp_path / "file")
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        save_checkpoint(tmp_path, state, keep=0)
    for wrong in ({"position": {1, 2}}, {"history": [{"loss": jnp.ones(())}]}):
        with pytest.raises(TypeError, match="position and history must be numbers, strings, lists and dicts"):
            save_checkpoint(tmp_path / "new", state, **wrong)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: s._replace(stats=s.stats | {"w": jnp.ones((5, 4))}),
            r"\.stats\['w'\] is float32\[5,3\] instead of float32\[5,4\]",
        ),
        (
            lambda s: s._replace(stats=s.stats | {"w": s.stats["w"].astype(jnp.float16)}),
            r"\.stats\['w'\] is float32\[5,3\] instead of float16\[5,3\]$",
        ),
        (lambda s: s._replace(stats=s.stats | {"new": jnp.ones(2)}), r"\.stats\['new'\] \(float32\[2\]\) is missing"),
        (
            lambda s: s._replace(opt_state=()),
            r"\.opt_state\[0\]\.count \(int32\[\]\) is unexpected(\n  \.opt.* is unexpected){16}$",
        ),
        (lambda s: s._replace(opt_state=(), params=[()]), r"\.params\[0\] \(.*\) is unexpected(\n  \..*){19}\n  and \d+ more"),
        (lambda s: s._replace(key=jax.random.PRNGKey(0)), r"\.key is key<fry>\[\] instead of uint32\[2\]"),
        (lambda s: s._replace(key=jax.random.key(0, impl="rbg")), r"\.key is key<fry>\[\] instead of key<rbg>\[\]"),
    ],
)
def test_a_checkpoint_of_another_state(change, message, tmp_path):
    save_checkpoint(tmp_path, make_state(step=4))
    for load in (load_checkpoint, load_newest):
        with pytest.raises(
            ValueError, match=rf"folder {tmp_path}/4 holds the checkpoint of another state than like:\n  {message}"
        ):
            load(tmp_path, change(make_state()))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_arrays_come_with_the_shardings_of_like(kind, tmp_path):
    def place(state, devices):
        mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(kind,), devices=devices)
        whole, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
        shared = {name: jax.device_put(state.params[name], split) for name in ("w", "keys")}
        return jax.device_put(state, whole)._replace(params=state.params | shared)

    params = {"w": jnp.arange(16.0), "keys": jax.random.split(jax.random.key(1), 8), "b": jnp.ones(3)}
    state = init_train_state(jax.random.key(0), params, (), optax.identity())
    on_all, on_two = place(state, jax.devices()), place(state, jax.devices()[2:4])
    save_checkpoint(tmp_path / "one", state)
    save_checkpoint(tmp_path / "all", on_all)
    for folder, like in (("one", on_all), ("all", on_all), ("all", on_two), ("all", state)):
        found = load_checkpoint(tmp_path / folder, like).state
        assert [a.sharding for a in jax.tree.leaves(found)] == [a.sharding for a in jax.tree.leaves(like)]
        assert [a.committed for a in jax.tree.leaves(found)] == [a.committed for a in jax.tree.leaves(like)]
        assert bits(found) == bits(state)
