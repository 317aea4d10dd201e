"""Running all experiments, some at a time, with a summary of their verdicts."""

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from jaxnorm._progress import progress_bar
from jaxnorm.experiments import experiment_names, load_experiment
from jaxnorm.experiments._claims_page import claims_page
from jaxnorm.experiments._report import Results, Table, WriteError, make_folder, print_tables
from jaxnorm.experiments._run import Interrupted, run_experiment


class Ended(NamedTuple):
    """What an experiment ended with: its verdict, how many parts of its claim hold, of how many, and how long it took."""

    verdict: str
    holding: int
    parts: int
    seconds: float


def run_all(*, out: str | Path, quick: bool = False, jobs: int = 2) -> dict[str, Ended]:
    """Runs all experiments, each with a folder of its own, prints a summary, and writes `CLAIMS.md`.

    Args:
      out: the folder to write to.
      quick: whether each has the options of a first look.
      jobs: how many run at a time, each in a process of its own: most of the time is the compiler's, which uses one core.

    Returns:
      What each ended with, by its name.

    Raises:
      ValueError: if the folder cannot be written to.
      WriteError: if a file cannot be written; the others are.
      Interrupted: by Ctrl-C; what is finished is written and named.
    """
    folder, names = make_folder(Path(out)), experiment_names()
    ended: dict[str, Ended] = {}
    failed: list[str] = []
    with (
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start) as pool,
        progress_bar(total=len(names), unit="experiment") as bar,
    ):
        futures = {pool.submit(_run, name, folder, quick): name for name in names}
        try:
            for future in as_completed(futures):
                name = futures[future]
                try:
                    ended[name] = future.result()
                    bar.write(f"{name}: {load_experiment(name).claim}: {ended[name].verdict} ({ended[name].seconds:.0f} s)")
                except WriteError as error:
                    failed.append(f"{name}: {error}")
                bar.update()
        except KeyboardInterrupt as error:
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise Interrupted(f"interrupted; finished and written to {folder}: {', '.join(ended) or 'none'}") from error
    results = Results(folder)
    if ended:
        results.write("CLAIMS.md", lambda path: path.write_text(claims_page(folder), encoding="utf-8"))
        print_tables([_summary({name: ended[name] for name in names if name in ended})])
    if failed:
        raise WriteError("; ".join(failed))
    print(results.summary())
    return ended


def _start() -> None:
    """Prepares a process: Ctrl-C is for the one that started it, and devices' memory is shared with others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def _run(name: str, folder: Path, quick: bool) -> Ended:
    import jax

    start = time.perf_counter()
    outcome = run_experiment(name, load_experiment(name), out=folder / name, quick=quick, progress=False)
    jax.clear_caches()  # no experiment runs what another has compiled, and all of it together takes memory
    holding = sum(each.holds for each in outcome.decisions)
    return Ended(outcome.verdict, holding, len(outcome.decisions), time.perf_counter() - start)


def _summary(ended: Mapping[str, Ended]) -> Table:
    rows = [(name, one.verdict, f"{one.holding} of {one.parts}", f"{one.seconds:.0f}") for name, one in ended.items()]
    return Table("Verdicts", ("experiment", "verdict", "parts that hold", "seconds"), rows)
