import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxnorm.training import (
    evaluate_batches,
    fit,
    init_train_state,
    latest_step,
    load_checkpoint,
    make_eval_step,
    make_train_step,
    ordered_batches,
    save_checkpoint,
)
from jaxnorm.training import shuffled_batches as shuffled

ADAM = optax.adam(0.02)


@pytest.fixture(scope="module")
def steps(net):
    """Steps that all tests share, so that they are compiled once."""
    return make_train_step(net.apply, ADAM), make_eval_step(net.apply)


@pytest.fixture
def run(net, data, steps):
    """Calls fit on the network and the data, with changes."""

    def start(**changes):
        arguments = {
            "state": init_train_state(jax.random.key(0), net.params, net.stats, ADAM),
            "train_step": steps[0],
            "batches": shuffled(jax.random.key(1), *data, batch_size=16, drop_remainder=True),
            "epochs": 3,
            "evaluate": steps[1],
            "eval_batches": ordered_batches(*data, batch_size=40),
            "progress": False,
        } | changes
        return fit(**arguments)

    return start


class Stream:
    """An endless iterator over batches that tells and takes its position, as JSON or as bytes."""

    def __init__(self, data, as_bytes=False):
        self.data, self.as_bytes, self.position = data, as_bytes, 0

    def __iter__(self):
        return self

    def __next__(self):
        rows = np.random.default_rng(self.position).integers(90, size=16)
        self.position += 1
        return self.data[0][rows], self.data[1][rows]

    def get_state(self):
        return str(self.position).encode() if self.as_bytes else {"position": self.position}

    def set_state(self, state):
        self.position = int(state) if self.as_bytes else state["position"]


class StopHere(Exception):
    """Stands for whatever ends a run."""


def stopping(batches, epoch, batch):
    """The same batches, which end the run when they are asked for this one."""

    def until(number):
        for i, item in enumerate(batches(number)):
            if (number, i) == (epoch, batch):
                raise StopHere
            yield item

    return until


def same(a, b):
    chex.assert_trees_all_equal(
        a[0]._replace(key=jax.random.key_data(a[0].key)), b[0]._replace(key=jax.random.key_data(b[0].key))
    )
    assert a[1] == b[1]


def test_equals_a_loop_by_hand(run, net, data):
    batches = shuffled(jax.random.key(1), *data, batch_size=16, drop_remainder=False)
    state, history = run(batches=batches)
    step, evaluate = jax.jit(make_train_step(net.apply, ADAM)), jax.jit(make_eval_step(net.apply))
    hand = init_train_state(jax.random.key(0), net.params, net.stats, ADAM)
    rows = []
    for epoch in range(3):
        metrics, sizes = [], []
        for batch in batches(epoch):
            hand, values = step(hand, batch)
            metrics.append(values)
            sizes.append(len(batch[1]))
        means = {name: np.average([m[name] for m in metrics], weights=sizes) for name in metrics[0]}
        rows.append({"epoch": epoch + 1, "step": 6 * (epoch + 1)} | means)
        scores = evaluate_batches(evaluate, hand, [data])
        rows[-1] |= {f"eval_{name}": value for name, value in scores.items()}
    assert sizes == [16] * 5 + [10]
    chex.assert_trees_all_equal(state._replace(key=None), hand._replace(key=None))
    assert len(history) == 3
    for row, expected in zip(history, rows, strict=True):
        assert row.keys() == expected.keys() == {"epoch", "step", "loss", "accuracy", "eval_loss", "eval_accuracy"}
        for name in row:
            np.testing.assert_allclose(row[name], expected[name], rtol=1e-6)


def test_evaluation_does_not_touch_the_training(run):
    with_evaluation, _ = run()
    without, history = run(evaluate=None, eval_batches=None)
    chex.assert_trees_all_equal(with_evaluation._replace(key=None), without._replace(key=None))
    assert history[0].keys() == {"epoch", "step", "loss", "accuracy"}


def test_learns(run):
    _, history = run(epochs=25)
    assert history[-1]["eval_accuracy"] > 0.85
    assert history[-1]["eval_loss"] < 0.5 * history[0]["eval_loss"]


def test_one_trace_and_one_compilation_for_100_steps_with_schedules(run, net):
    schedules = {"rate": optax.linear_schedule(0.0, 0.5, 100)}
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, 100))
    inner, traces = make_train_step(net.apply, optimizer, schedules=schedules), []

    def counted_step(state, batch):
        traces.append(1)
        return inner(state, batch)

    state = init_train_state(jax.random.key(0), net.params, net.stats, optimizer)
    state, history = run(state=state, train_step=counted_step, epochs=20)
    assert state.step == 100 == history[-1]["step"]
    assert len(traces) == 1
    run(state=state, train_step=counted_step, epochs=1)
    assert len(traces) == 1, "another call finds the program again"


def test_the_given_state_stays_and_the_others_are_donated(run, net):
    given = init_train_state(jax.random.key(0), net.params, net.stats, ADAM)
    shared = given._replace(stats=(given.stats, given.stats), params=net.params)
    step = make_train_step(lambda key, p, s, x, *, train: (x @ p["w"] @ p["out"], s), ADAM)
    before = jax.tree.map(np.asarray, shared._replace(key=None))
    states = []
    options = {"evaluate": None, "eval_batches": None, "after_steps": {1: lambda status: states.append(status.state)}}
    last, _ = run(state=shared, train_step=step, **options)
    chex.assert_trees_all_equal(shared._replace(key=None), before)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(states.pop()))
    assert len(states) == 14
    assert all(state.params["w"].is_deleted() for state in states)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((last, shared)))


def test_a_loss_that_is_not_finite_warns_and_shows(run, data):
    def batches(epoch):
        for i in range(3):
            rows = slice(30 * i, 30 * i + 30)
            yield (np.full((30, 5), np.nan, np.float32) if (epoch, i) == (1, 1) else data[0][rows]), data[1][rows]

    with pytest.warns(RuntimeWarning, match=r"loss of step [57] is nan") as caught:
        _, history = run(batches=batches, evaluate=None, eval_batches=None)
    assert [np.isfinite(row["loss"]) for row in history] == [True, False, False]
    assert [str(warning.message) for warning in caught] == [f"loss of step {step} is nan" for step in (5, 7)], "once an epoch"


@pytest.mark.parametrize("kind", ["list", "generator", "stream"])
def test_other_sources_of_batches_train(kind, run, data):
    batches = {
        "list": lambda: ordered_batches(*data, batch_size=18),
        "generator": lambda: (batch for _ in range(4) for batch in ordered_batches(*data, batch_size=18)),
        "stream": lambda: Stream(data),
    }[kind]()
    state, history = run(batches=batches, steps_per_epoch=None if kind == "list" else 5)
    assert state.step == 15
    assert [row["step"] for row in history] == [5, 10, 15]


def test_a_list_may_be_cut_and_a_used_up_generator_tells(run, data):
    state, _ = run(batches=ordered_batches(*data, batch_size=18), steps_per_epoch=2)
    assert state.step == 6
    with pytest.raises(ValueError, match=r"batches gave no batch in epoch 1 \(from 0\); an iterator that one pass uses up"):
        run(batches=iter(ordered_batches(*data, batch_size=18)))


@pytest.mark.parametrize("every, stop", [(None, (1, 3)), (2, (1, 2)), (5, (1, 1)), (5, (2, 0)), (7, (2, 4))])
def test_resume_of_a_function_is_exact(every, stop, run, data, tmp_path):
    batches = shuffled(jax.random.key(1), *data, batch_size=20, drop_remainder=False)
    straight = run(batches=batches, checkpoints=tmp_path / "straight", checkpoint_every=every)
    options = {"checkpoints": tmp_path / "stopped", "checkpoint_every": every}
    with pytest.raises(StopHere):
        run(batches=stopping(batches, *stop), **options)
    reached = latest_step(tmp_path / "stopped")
    assert 0 < reached <= 5 * stop[0] + stop[1]
    other = init_train_state(jax.random.key(99), *zeros(run), ADAM)
    resumed = run(state=other, batches=batches, resume=True, **options)
    same(straight, resumed)
    same(straight, run(batches=batches))
    assert latest_step(tmp_path / "stopped") == latest_step(tmp_path / "straight") == 15


def zeros(run):
    state, _ = run(epochs=1, batches=lambda epoch: [(np.ones((2, 5), np.float32), np.array([0, 1]))])
    return jax.tree.map(jnp.zeros_like, (state.params, state.stats))


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("every", [None, 3, 4])
def test_resume_of_an_iterator_is_exact(every, as_bytes, run, data, tmp_path):
    class Breaking(Stream):
        def __next__(self):
            if self.position == 10:
                raise StopHere
            return super().__next__()

    options = {"checkpoints": tmp_path, "checkpoint_every": every, "steps_per_epoch": 4, "epochs": 4}
    straight = run(batches=Stream(data), epochs=4, steps_per_epoch=4)
    with pytest.raises(StopHere):
        run(batches=Breaking(data, as_bytes), **options)
    assert latest_step(tmp_path) == {None: 8, 3: 9, 4: 8}[every]
    same(straight, run(batches=Stream(data, as_bytes), resume=True, **options))


def test_a_finished_run_resumes_to_itself_and_goes_on_with_more_epochs(run, tmp_path):
    finished = run(checkpoints=tmp_path, keep=1)
    same(finished, run(checkpoints=tmp_path, keep=1, resume=True))
    same(run(epochs=5), run(checkpoints=tmp_path, keep=1, resume=True, epochs=5))
    assert [p.name for p in tmp_path.iterdir()] == ["25"]


def test_legacy_keys_resume(run, net, tmp_path):
    state = init_train_state(jax.random.PRNGKey(0), net.params, net.stats, ADAM)
    run(state=state, epochs=1, checkpoints=tmp_path)
    last, history = run(state=state, checkpoints=tmp_path, resume=True)
    straight, expected = run(state=state)
    chex.assert_trees_all_equal(last, straight)
    assert history == expected


def test_batches_sharded_over_eight_devices(run, net, data, tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    whole, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    batches = shuffled(jax.random.key(1), *data, batch_size=16, drop_remainder=True)

    def spread(epoch):
        return [jax.device_put(batch, split) for batch in batches(epoch)]

    optimizer = optax.sgd(0.1)
    step = make_train_step(net.apply, optimizer)
    start = init_train_state(jax.random.key(0), net.params, net.stats, optimizer)
    on_mesh = jax.device_put(start, whole)
    one, _ = run(state=start, train_step=step, epochs=2)
    run(state=on_mesh, train_step=step, batches=spread, epochs=1, checkpoints=tmp_path)
    many, _ = run(state=on_mesh, train_step=step, batches=spread, epochs=2, checkpoints=tmp_path, resume=True)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(many)} == {8}
    chex.assert_trees_all_close((one.params, one.stats), (many.params, many.stats), rtol=1e-6, atol=1e-6)


def test_the_last_checkpoint_has_the_whole_history(run, tmp_path):
    state, history = run(checkpoints=tmp_path, checkpoint_every=5)
    assert load_checkpoint(tmp_path, state).history == history


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_a_plain_iterable_writes_checkpoints_but_does_not_resume(kind, run, data, tmp_path):
    def batches():
        found = ordered_batches(*data, batch_size=18)
        return found if kind == "list" else (batch for batch in found)

    run(batches=batches(), epochs=1, checkpoints=tmp_path)
    message = rf"batches must be a function batches\(epoch\) .*get_state and set_state, to resume: a plain {kind} cannot"
    with pytest.raises(ValueError, match=message):
        run(batches=batches(), checkpoints=tmp_path, resume=True)


def test_resume_with_other_batches_is_refused(run, net, data, tmp_path):
    run(batches=Stream(data), epochs=1, steps_per_epoch=4, checkpoints=tmp_path / "stream")
    with pytest.raises(ValueError, match="the checkpoint was written with an iterator that had a state"):
        run(checkpoints=tmp_path / "stream", resume=True)
    run(epochs=1, checkpoints=tmp_path / "function", checkpoint_every=4)
    with pytest.raises(ValueError, match="the checkpoint was written with batches that had no state"):
        run(batches=Stream(data), steps_per_epoch=4, checkpoints=tmp_path / "function", resume=True)
    function = shuffled(jax.random.key(1), *data, batch_size=16, drop_remainder=True)
    with pytest.raises(StopHere):
        run(batches=stopping(function, 0, 3), checkpoints=tmp_path / "middle", checkpoint_every=3)
    with pytest.raises(ValueError, match=r"batches\(0\) must give what it gave before the resume, 3 batches, got 1"):
        run(batches=lambda epoch: [data], checkpoints=tmp_path / "middle", resume=True)
    state = init_train_state(jax.random.key(0), net.params, net.stats, ADAM)
    save_checkpoint(tmp_path / "own", state)
    with pytest.raises(ValueError, match="own must have been written by fit to resume, got position None"):
        run(checkpoints=tmp_path / "own", resume=True)
    with pytest.raises(ValueError, match="steps_per_epoch must be at least 3, where the run was, got 2"):
        run(steps_per_epoch=2, checkpoints=tmp_path / "middle", resume=True)


def test_bad_arguments(run, tmp_path):
    for name in ("epochs", "steps_per_epoch", "keep", "checkpoint_every"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            run(**{"checkpoints": tmp_path, name: 0})
        with pytest.raises(TypeError, match=f"{name} must be an int of at least 1, got 1.5"):
            run(**{"checkpoints": tmp_path, name: 1.5})
    with pytest.raises(ValueError, match="evaluate and eval_batches must be given together, got eval_batches=None"):
        run(eval_batches=None)
    with pytest.raises(ValueError, match="evaluate and eval_batches must be given together, got evaluate=None"):
        run(evaluate=None)
    with pytest.raises(ValueError, match="checkpoints must be a folder"):
        run(resume=True)
    for name in ("resume", "progress"):
        with pytest.raises(TypeError, match=f"{name} must be True or False, .*, got 'yes'"):
            run(**{"checkpoints": tmp_path, name: "yes"})
    with pytest.raises(TypeError, match="batches must be a function of the epoch, an iterator or an iterable, got 3"):
        run(batches=3)
    with pytest.raises(ValueError, match=f"{tmp_path}/none does not exist"):
        run(checkpoints=tmp_path / "none", resume=True)
    with pytest.raises(ValueError, match=f"{tmp_path} has no complete checkpoint"):
        run(checkpoints=tmp_path, resume=True)
    run(epochs=1, checkpoints=tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path} has a checkpoint of step 5: resume=True goes on with it"):
        run(epochs=1, checkpoints=tmp_path)


def test_metrics_may_not_take_the_names_of_the_history(run, net):
    inner = make_train_step(net.apply, ADAM)

    def step(state, batch):
        state, metrics = inner(state, batch)
        return state, metrics | {"step": state.step}

    with pytest.raises(ValueError, match=r"columns of the history must have names of their own, got \['step'\] twice"):
        run(train_step=step)


def test_progress_shows_metrics_and_the_time_left(run, tmp_path, capfd):
    run(progress=True, checkpoints=tmp_path)
    shown = capfd.readouterr()
    first, last = shown.err.splitlines()  # a line when it begins and one when it ends, as in any log
    assert shown.out == ""
    assert first.startswith("0step")
    for text in ("epoch 3/3", "15/15", "loss=", "accuracy=", "eval_loss=", "<00:00"):
        assert text in last, text
    run(progress=False, checkpoints=tmp_path, resume=True, epochs=4)
    assert capfd.readouterr() == ("", "")
