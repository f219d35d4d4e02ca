"""Run the cells of a sweep: here, in several processes that share the work, or on a Ray cluster."""

import fcntl
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segattn.data import DataError
from segattn.reproduction.cell import CellNames, cell_settings, run_cell
from segattn.reproduction.processes import agreed, write_json
from segattn.reproduction.samples import SweepData, load_sweep_data
from segattn.reproduction.settings import UNTUNED, SweepSettings

__all__ = ["missing_cells", "plan", "run_on_ray", "run_sweep"]

Tell = Callable[[str], None]


def plan(sweep: SweepSettings) -> list[CellNames]:
    """Return the cells of a sweep, seed by seed: whenever it ends, arms can be compared on the seeds that are in."""
    cells = itertools.product(sweep.seeds, sweep.data, sweep.models, sweep.arms)
    first = sweep.seeds[0]
    return [CellNames(model, data, arm, seed) for seed, data, model, arm in cells if arm != UNTUNED or seed == first]


def missing_cells(sweep: SweepSettings, output: Path) -> list[CellNames]:
    """Return the cells that are not finished.

    Raises:
        DataError: the folder holds a cell of the same name that was run with other settings.
    """
    missing = []
    for names in plan(sweep):
        file = _cell_file(output, names)
        if not file.exists():
            missing.append(names)
            continue
        there, now = json.loads(file.read_text(encoding="utf-8"))["settings"], cell_settings(sweep, names)
        odd = [name for name in sorted({*there, *now}) if there.get(name) != now.get(name)]
        if odd:
            changes = ", ".join(f"{name} {there.get(name)!r} there, {now.get(name)!r} now" for name in odd)
            raise DataError(
                f"{file} was run with other settings ({changes}); name another --output, or remove the file"
            )
    return missing


def run_sweep(
    sweep: SweepSettings, output: Path, *, data_folder: Path | None = None, tell: Tell = print
) -> list[CellNames]:
    """Run the cells that are missing, one after the other.

    Several processes, also on machines that share the folder, may run one sweep: a cell that another one is at is left
    to it. Under `accelerate launch` all processes train each cell together, and the first one scores it.

    Args:
        sweep: what to run.
        output: the folder of the sweep.
        data_folder: where relative paths of data are looked up.
        tell: takes lines of progress.

    Returns:
        The cells that are still missing, because other processes are at them.

    Raises:
        SegmentAttentionError: settings or data that cannot be used.
        KeyboardInterrupt: a cell was interrupted; a later call goes on with it.
    """
    (output / "cells").mkdir(parents=True, exist_ok=True)
    loaded: dict[str, SweepData] = {}
    todo = agreed(lambda: missing_cells(sweep, output))
    for number, names in enumerate(todo, 1):
        if names.data not in loaded:
            loaded[names.data] = load_sweep_data(sweep.data[names.data], data_folder)
        with _claimed(output, names) as ours:
            if ours:
                tell(f"cell {number} of {len(todo)}: {', '.join(map(str, names))}")
                write_json(_cell_file(output, names), _run(sweep, names, loaded[names.data], output, tell))
    return agreed(lambda: missing_cells(sweep, output))


def run_on_ray(
    sweep: SweepSettings,
    output: Path,
    *,
    data_folder: Path | None = None,
    tell: Tell = print,
    cpus: float = 1,
    gpus: float = 0,
    address: str | None = None,
) -> list[CellNames]:
    """Run the cells that are missing as tasks of a Ray cluster; its machines must share the folders.

    Args:
        sweep: what to run.
        output: the folder of the sweep.
        data_folder: where relative paths of data are looked up.
        tell: takes lines of progress.
        cpus: that each cell is given.
        gpus: that each cell is given.
        address: of the cluster, e.g. "auto"; None starts Ray on this machine.

    Raises:
        DataError: Ray is not installed; `run_sweep` lists the other ones.
    """
    try:
        import ray
    except ImportError as error:
        raise DataError("ray is not installed: pip install ray") from error

    (output / "cells").mkdir(parents=True, exist_ok=True)
    todo = missing_cells(sweep, output)
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    run_one = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_ray_cell)
    pending = {
        run_one.remote(sweep, names, output.absolute(), None if data_folder is None else data_folder.absolute()): names
        for names in todo
    }
    try:
        while pending:
            finished, _ = ray.wait(list(pending), num_returns=1)
            for task in finished:
                names = pending.pop(task)
                ray.get(task)
                tell(f"{len(todo) - len(pending)} of {len(todo)} cells: {', '.join(map(str, names))}")
    finally:
        ray.shutdown()
    return missing_cells(sweep, output)


def _ray_cell(sweep: SweepSettings, names: CellNames, output: Path, data_folder: Path | None) -> None:
    with _claimed(output, names) as ours:
        if ours:
            data = load_sweep_data(sweep.data[names.data], data_folder)
            write_json(_cell_file(output, names), _run(sweep, names, data, output, print))


def _run(sweep: SweepSettings, names: CellNames, data: SweepData, output: Path, tell: Tell) -> dict[str, Any]:
    return run_cell(sweep, names, data, output / "models" / names.file_name, tell=tell)


def _cell_file(output: Path, names: CellNames) -> Path:
    return output / "cells" / f"{names.file_name}.json"


@contextmanager
def _claimed(output: Path, names: CellNames) -> Iterator[bool]:
    """Whether the cell is ours and still missing; the lock of a process that died is free."""
    with (output / "cells" / f".{names.file_name}.lock").open("w") as lock:

        def ours() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return not _cell_file(output, names).exists()

        yield agreed(ours)
