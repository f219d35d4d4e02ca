"""Training runs for a launcher to start: `launched_training.py FOLDER`, the same in one process or several.

FOLDER/runs.json is a list of runs, each with `settings`, `sft` and `model` (fields of TrainSettings, SFTSettings and
ModelSettings), `samples` and `held_out` (how many of training.conftest's), and `interrupt`: (rank, step) that gets
Ctrl-C. What process N saw of each is written to FOLDER/rank-N.json.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from accelerate import DistributedType, PartialState
from torch.distributed.tensor import DTensor
from trl import SFTConfig

from segattn.errors import SegmentAttentionError
from segattn.modeling import is_enabled
from segattn.training import ModelSettings, SFTSettings, TrainSettings, train
from segattn.training.trainer import SegmentSFTTrainer
from training.conftest import make_samples


def run(told):
    """Train as a run's description says; return what this process saw of it."""
    rank = int(os.environ.get("RANK", "0"))
    samples = make_samples(told["samples"] + told["held_out"], learn="all")
    noted, undo = watch(rank, told.get("interrupt"))
    try:
        result = train(
            TrainSettings(**told["settings"]),
            SFTSettings(**told["sft"]),
            ModelSettings(**told["model"]),
            samples=samples[: told["samples"]],
            held_out=samples[told["samples"] :],
        )
    except (SegmentAttentionError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        undo()
    sharded = any(isinstance(weight, DTensor) for weight in result.model.parameters())
    return {**result.to_dict(), "enabled": is_enabled(result.model), "sharded": sharded, **noted}


def pretend_that_cpus_are_gpus():
    """On CPUs accelerate takes no notice of FSDP and DeepSpeed, which shard there as anywhere."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        torch.distributed.init_process_group("gloo")
    else:
        leave_deepspeed_uncompiled()
        SFTSettings.__post_init__ = settle_without_cpu


def settle_without_cpu(self):
    """In place of SFTSettings' own, which asks for a CPU where there is no GPU: no DeepSpeed for accelerate."""
    self.bf16 = bool(self.bf16)
    SFTConfig.__post_init__(self)


def leave_deepspeed_uncompiled():
    """Its sums over shared memory would be compiled first, for minutes; without them gloo does the sums."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    deepspeed.ops.__compatible_ops__[builder.NAME] = False


def watch(rank, interrupt):
    """Note every batch's token ids and what runs it, press Ctrl-C where a run asks for it; return notes and an undo."""
    noted, training_step = {"batches": [], "wrapper": None}, SegmentSFTTrainer.training_step

    def watched(self, model, inputs, *args, **kwargs):
        noted["batches"].append((self.state.global_step, inputs["input_ids"].tolist()))
        noted["wrapper"] = type(model).__name__
        if interrupt == [rank, self.state.global_step]:
            os.kill(os.getpid(), signal.SIGINT)
        return training_step(self, model, inputs, *args, **kwargs)

    SegmentSFTTrainer.training_step = watched
    return noted, lambda: setattr(SegmentSFTTrainer, "training_step", training_step)


def main():
    """Do the runs of a folder one after another."""
    folder = Path(sys.argv[1])
    if os.environ.keys() & {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"}:
        pretend_that_cpus_are_gpus()
    seen = [run(told) for told in json.loads((folder / "runs.json").read_text())]
    (folder / f"rank-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(seen))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
