"""TensorBoard: the curves of a run and histograms of its arrays, written by hooks of the loop."""

import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxnorm.training.hooks import Status

_BINS = 64  # of a histogram


class TensorBoardWriter:
    """Writes what TensorBoard shows of a run into a folder; a context manager whose methods are hooks of `fit`.

    `after_steps={100: board.scalars}` draws curves by steps, `after_epoch=(board.scalars, board.histograms())` those by epochs,
    and histograms. What is written is on the disk when a hook returns, so that a killed run can be looked at.

    A run that is resumed gets a writer of the same folder. With its first event it takes back what an earlier one wrote of this
    step and of later ones, and nothing is shown twice. In several processes only the first writes.

    Example:
      >>> import jax, jax.numpy as jnp, optax, tempfile
      >>> from jaxnorm.training import Status, TensorBoardWriter, init_train_state
      >>> state = init_train_state(jax.random.key(0), {"w": jnp.ones((3, 2))}, (), optax.sgd(0.1))
      >>> status = Status(state, epoch=1, step=10, metrics={"loss": 0.7}, history=[])  # as fit gives it to hooks
      >>> with TensorBoardWriter(tempfile.mkdtemp()) as board:
      ...     board.scalars(status)
      ...     board.histograms(select="/w$")(status)
    """

    def __init__(self, folder: str | Path) -> None:
        """Returns a writer, which makes its file with the first event.

        Args:
          folder: the folder of the run, in the one that TensorBoard is started with.

        Raises:
          ImportError: if the package tensorboardX is not installed.
        """
        try:
            from tensorboardX.proto import event_pb2, summary_pb2
            from tensorboardX.record_writer import RecordWriter
        except ImportError as error:
            raise ImportError("TensorBoardWriter needs the package tensorboardX: pip install 'jaxnorm[board]'") from error
        self._events: Any = event_pb2
        self._summaries: Any = summary_pb2
        self._open: Any = RecordWriter
        self._folder = Path(folder).expanduser()
        self._file: Any = None
        self._closed = False
        self._newest: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Returns the writer."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the file; what is written after it raises a ValueError."""
        self._closed = True
        if self._file is not None:
            self._file.close()

    def scalars(self, status: Status) -> None:
        """Writes the metrics of the latest step, as `step/loss`, and at the end of an epoch those of its row, as `epoch/loss`.

        Args:
          status: what `fit` gives to a hook.

        Raises:
          OSError: if they cannot be written, as on a full disk.
        """
        found = {f"step/{name}": value for name, value in status.metrics.items()}
        row = status.history[-1] if status.history else {}
        if row.get("epoch") == status.epoch:
            found |= {f"epoch/{name}": value for name, value in row.items() if name not in ("epoch", "step")}
        self._write(status.step, found, lambda value: {"simple_value": value})

    def histograms(self, *, select: str = "") -> Callable[[Status], None]:
        """Returns a hook that writes histograms of parameters and running statistics.

        Args:
          select: regular expression that is searched for in the paths, as `params/Dense_0/kernel` and
            `stats/BatchNorm_0/mean`; the default takes all arrays of real floating point numbers.

        Returns:
          The hook. Values that are not finite are left out, and arrays without any other.

        Raises:
          ValueError: if select is no regular expression; when the hook is called: if no path has it.
          OSError: when the hook is called: if they cannot be written, as on a full disk.
        """
        try:
            pattern = re.compile(select)
        except (re.error, TypeError) as error:
            raise ValueError(f"select must be a regular expression, got {select!r}: {error}") from error

        def write(status: Status) -> None:
            tree = {"params": status.state.params, "stats": status.state.stats}
            leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): a for path, a in jax.tree.leaves_with_path(tree)}
            chosen = {path: leaf for path, leaf in leaves.items() if pattern.search(path)}
            if not chosen:
                raise ValueError(f"select must be in a path of {', '.join(leaves)}, got {select!r}")
            real = {path: _gathered(leaf) for path, leaf in chosen.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
            self._write(status.step, real, self._histogram)

        return write

    def _histogram(self, leaf: Any) -> dict[str, Any]:
        values = np.asarray(leaf, np.float64)
        values = values[np.isfinite(values)]
        if not values.size:
            return {}
        counts, edges = np.histogram(values, _BINS)
        shape = {"num": values.size, "bucket_limit": edges[1:], "bucket": counts}
        sums = {"min": values.min(), "max": values.max(), "sum": values.sum(), "sum_squares": np.square(values).sum()}
        return {"histo": self._summaries.HistogramProto(**shape, **sums)}

    def _write(self, step: int, found: Mapping[str, Any], field: Callable[[Any], dict[str, Any]]) -> None:
        """Writes values by their names, but those that are written for this step already: epochs end with a step."""
        if self._closed:
            raise ValueError(f"the TensorBoardWriter of {self._folder} is closed: hooks must run inside its with block")
        if jax.process_index() != 0:
            return
        fresh = {name: value for name, value in found.items() if step > self._newest.get(name, -1)}
        self._newest |= dict.fromkeys(fresh, step)
        fields = {name: field(value) for name, value in fresh.items()}
        values = [self._summaries.Summary.Value(tag=name, **content) for name, content in fields.items() if content]
        if not values:
            return
        try:
            if self._file is None:
                self._file = self._begun(step)
            self._file.write(self._event(step=step, summary=self._summaries.Summary(value=values)))
            self._file.flush()
        except OSError as error:
            raise OSError(f"TensorBoard's folder {self._folder} could not be written: {error}") from error

    def _begun(self, step: int) -> Any:
        """Returns a new file, whose beginning takes back what others in the folder have of this step and of later ones."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        file = self._open(str(self._folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"))
        file.write(self._event(file_version="brain.Event:2"))
        file.write(self._event(step=step, session_log=self._events.SessionLog(status=self._events.SessionLog.START)))
        return file

    def _event(self, **fields: Any) -> bytes:
        return self._events.Event(wall_time=time.time(), **fields).SerializeToString()


def _gathered(leaf: jax.Array) -> Any:
    """Returns an array whose numbers this process has, all of them."""
    here = leaf.is_fully_addressable or leaf.is_fully_replicated
    return leaf if here else multihost_utils.process_allgather(leaf, tiled=True)
