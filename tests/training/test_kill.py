"""A process that is really killed, and the run that goes on with what it left: the same bits as an unbroken run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segattn.training.checkpoints import STAGING, checkpoints_in, fault
from training import killed_runs

QUICK = ["within a step", "optimizer half written", "rotating", "model half saved"]
SLOW = [moment for moment in killed_runs.MOMENTS if moment not in ("unbroken", *QUICK)]
TESTS = Path(__file__).parents[1]


def run(tiny, folder, kind, moments):
    """Kill a run at each moment and go on with it; returns what was left at each."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, killed_runs.__file__, tiny, str(folder), kind, "unbroken", *moments]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    logs = "\n".join(f"{log.name}\n{log.read_text()[-3000:]}" for log in folder.glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    ends = json.loads(done.stdout.splitlines()[-1])
    assert ends.pop("unbroken") == [0], logs
    for moment, end in ends.items():
        assert (end[0], end[2]) == (-signal.SIGKILL, 0), f"{moment}: {end}\n{logs}"
    return {moment: end[1] for moment, end in ends.items()}


def assert_the_same(folder, moment):
    whole, cut = folder / "unbroken", folder / moment.replace(" ", "_")
    for name in ("adapter_model.safetensors", "model.safetensors"):
        assert (whole / name).is_file() == (cut / name).is_file()
        if (whole / name).is_file():
            assert (whole / name).read_bytes() == (cut / name).read_bytes(), f"other weights after {moment}"
    # Losses to the last bit: the same rows in the same order, under the same dropout and the same opening bias.
    told = [json.loads(one.with_suffix(".json").read_text()) for one in (whole, cut)]
    assert told[0] == told[1], moment
    assert told[0]["train_losses"]
    assert told[0]["curve"]
    for checkpoint in checkpoints_in(cut):
        assert fault(checkpoint) is None
    assert not (cut / STAGING).exists()


def test_a_killed_run_goes_on_to_the_same_bits(tiny, tmp_path):
    left = run(tiny, tmp_path / "runs", "adapter", QUICK)
    assert left == {
        "within a step": ["checkpoint-4"],
        "optimizer half written": ["checkpoint-2"],
        "rotating": ["checkpoint-4"],
        "model half saved": ["checkpoint-6"],
    }
    for moment in QUICK:
        assert_the_same(tmp_path / "runs", moment)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["adapter", "full", "packed", "adapt"])
def test_at_every_moment(tiny, tmp_path, kind):
    moments = SLOW if kind == "adapter" else [moment for moment in (*QUICK, *SLOW) if moment != "model half saved"]
    run(tiny, tmp_path / "runs", kind, moments)
    for moment in moments:
        assert_the_same(tmp_path / "runs", moment)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_from_outside_at_any_time(tiny, tmp_path):
    moments = [f"after {milliseconds} ms" for milliseconds in range(0, 600, 40)]
    run(tiny, tmp_path / "runs", "adapter", moments)
    for moment in moments:
        assert_the_same(tmp_path / "runs", moment)
