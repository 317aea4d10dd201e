"""One of several processes: `python process_run.py WHAT FOLDER COORDINATOR PROCESSES PROCESS`.

WHAT is what it does once it is connected: `checks` goes through the errors that all processes raise together; `raise`, `exit` and
`kill` end process 1 while the others wait for it, `sleep` while they do not; `rows` gives process 1 a smaller batch, and `steps`
one less, which the other waits for; `experiment` runs one by the command line; `slurm`
is started as SLURM does.
"""

import os
import re
import signal
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from experiments.test_frame import EXAMPLE

from jaxnorm import __main__ as command_line
from jaxnorm.training import (
    Layout,
    _agreement,
    check_keys_differ,
    check_replicas,
    connect,
    fit,
    init_train_state,
    make_train_step,
    shard_batch,
    shard_state,
)
from jaxnorm.training.processes import gather


def refused(words: str) -> Any:
    return pytest.raises(ValueError, match=re.escape(words))


def checks(own: int) -> None:
    assert gather({"own": [own] * own}) == [{"own": []}, {"own": [1]}]
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    layout, backwards = Layout(mesh), Layout(jax.sharding.Mesh(mesh.devices[::-1], ("data",)))
    state = init_train_state(jax.random.key(0), {"w": jnp.ones((4, 2)), "b": jnp.zeros(2)}, (), optax.adam(0.1))
    other = state._replace(params=state.params | {"b": jnp.full(2, 0.5 * own)})
    split = shard_state(state, layout._replace(rules=[("w", jax.P("data"))]))
    assert [shard.data.shape for shard in split.params["w"].addressable_shards] == [(1, 2)] * 2
    check_replicas((split, shard_state(split, layout)))
    with refused(".params['b'] must be the same on all devices that hold the same part of it"):
        shard_state(other, layout)
    check_keys_differ(jax.random.split(jax.random.key(own), 2))
    with refused("keys must all differ, got the same as number 0 and number 2 (from 0) of 4"):
        check_keys_differ(jax.random.split(jax.random.key(5), 2))
    rows = np.arange(8.0)[4 * own :][:4]
    batch = shard_batch(rows, layout)
    assert [float(shard.data.sum()) for shard in batch.addressable_shards] == [[1, 5], [9, 13]][own]
    assert float(jax.jit(jnp.sum)(batch)) == 28
    with refused("batch must have as many rows in each process, got 3 in process 0, 2 in process 1"):
        shard_batch(rows[: 3 - own], layout)
    with refused("batch must have a number of examples that the mesh divides, a multiple of the 4 devices along 'data', got 6"):
        shard_batch(rows[:3], layout)
    with refused(f"mesh must put rows {4 * own} to {4 * own + 3} of a batch of 8 on devices of process {own}, got rows"):
        shard_batch(rows, backwards)


def astray(what: str, own: int) -> None:
    """Trains on batches of which those of process 1 are not like the others'."""
    optimizer = optax.sgd(0.1)
    state = init_train_state(jax.random.key(0), jnp.ones((3, 2)), (), optimizer)
    step = make_train_step(lambda key, params, stats, x, *, train: (x @ params, stats), optimizer)
    sizes = [4, 4, 4] if own == 0 else [4, 2, 4] if what == "rows" else [4, 4]
    batches = [(np.ones((size, 3), np.float32), np.zeros(size, np.int32)) for size in sizes]
    fit(state, step, lambda epoch: batches, epochs=2, layout=Layout(jax.make_mesh((4,), ("data",))), progress=False)


def main() -> None:
    what, folder, coordinator, processes, process = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    if what == "experiment":
        command_line.load_experiment = lambda name: EXAMPLE
        place = ["--coordinator", coordinator, "--processes", processes, "--process", process]
        command_line.main(["run", "variance_shift", "--out", folder, *place])
        return
    if what == "slurm":
        names = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")
        values = (coordinator.split(":")[1], "localhost", processes, process, process)
        os.environ |= {f"SLURM_{name}": value for name, value in zip(names, values, strict=True)}
        with connect():
            assert gather(jax.process_index()) == list(range(int(processes)))
            assert jax.process_index() == int(process)
        return
    with connect(coordinator, int(processes), int(process), timeout=30, heartbeat=10):
        own = jax.process_index()
        gather(own)
        if what == "checks":
            checks(own)
        elif what in ("rows", "steps"):
            _agreement.PATIENCE = 2
            astray(what, own)
        elif own == 1:
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "exit":
                sys.exit("all is over")
            raise ValueError("all is over")
        elif what == "sleep":
            time.sleep(60)
        gather(own)
    print("the end")


if __name__ == "__main__":
    main()
