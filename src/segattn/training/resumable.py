"""A trainer for runs that survive: whole checkpoints, an exact return, a stop at the first NaN."""

import logging
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from segattn.training import checkpoints
from segattn.training.disk_space import checkpoint_size, require_space, told_if_full
from segattn.training.fingerprint import compare_settings, differences, settings_of, versions_of
from segattn.training.not_finite import FiniteWatch

__all__ = ["ResumableTrainer"]

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from trl import SFTTrainer as _Trainer
else:
    _Trainer = object


class ResumableTrainer(_Trainer):
    """Mixed into a TRL trainer, before it: a run can be killed at any moment and goes on to an unbroken run's weights.

    Checkpoints are written aside, sealed by a manifest and renamed (`segattn.training.checkpoints`); those that make
    room for a new one go after it stands. `train(resume_from_checkpoint=...)` takes what `chosen_checkpoint` takes, and
    refuses a checkpoint that is damaged or of a run with other settings. A loss or gradient that is not finite ends the
    run before the weights have changed.

    Attributes:
        run_settings: what else decides the weights, by name; compared when a run goes on.

    Raises:
        CheckpointError: from `train`; nothing to go on with, or nothing that fits.
        DiskFullError: no room for a checkpoint; those from before stay.
        NotFiniteError: a loss or gradient is NaN or infinite.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.run_settings: dict[str, Any] = {}
        self._settings: dict[str, Any] | None = None
        self._staging: Path | None = None
        self._saved: Path | None = None
        self._before: checkpoints.Manifest | None = None
        self._watch = FiniteWatch()
        self._steps = _Steps(self)
        self.add_callback(self._steps)

    @property
    def _output(self) -> Path:
        return Path(self.args.output_dir or ".")

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train from the beginning, or from a checkpoint on."""
        self.args.logging_nan_inf_filter = False  # it would hide them, and waits for the device at every batch
        self._settings = settings_of(self)
        checkpoint = self._agreed(resume_from_checkpoint)
        if checkpoint is None:
            if found := checkpoints.checkpoints_in(self._output):
                logger.warning("%s is of an earlier run; this one begins anew (--resume goes on with it)", found[0])
            return super().train(None, *args, **kwargs)
        self._before = self._compared(checkpoint)
        self._saved = checkpoint
        logger.warning("going on with %s", checkpoint)
        if self._is_finished(checkpoint):
            return self._load_finished(checkpoint)
        self.args.eval_on_start = False  # it was scored then
        return super().train(str(checkpoint), *args, **kwargs)

    def _agreed(self, wanted: str | bool | None) -> Path | None:
        """The checkpoint that all processes go on with; the first one reads them."""
        answer: list[Any] = [None, None]
        if self.is_world_process_zero():
            try:
                answer[0] = checkpoints.chosen_checkpoint(wanted, self._output)
                shutil.rmtree(self._output / checkpoints.STAGING, ignore_errors=True)
            except Exception as error:
                answer[1] = error
        if self.args.world_size > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def _compared(self, checkpoint: Path) -> checkpoints.Manifest | None:
        manifest = checkpoints.read_manifest(checkpoint)
        if manifest is None:
            logger.warning("%s does not record its settings; they must be those of this run", checkpoint)
            return None
        for line in compare_settings(manifest.settings, self._settings or {}, str(checkpoint)):
            logger.warning("%s, which changes what the run would have become", line)
        for line in differences(manifest.versions, versions_of(self)).values():
            logger.warning("%s: weights may differ in their last digits from those of an unbroken run", line)
        return manifest

    def _is_finished(self, checkpoint: Path) -> bool:
        """Whether no step is left; transformers would do one more."""
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return False
        if self.args.max_steps > 0:
            return state.global_step >= self.args.max_steps
        return state.num_train_epochs == self.args.num_train_epochs and state.global_step >= state.max_steps

    def _load_finished(self, checkpoint: Path) -> TrainOutput:
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        return TrainOutput(self.state.global_step, 0.0, {})

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Do TRL's step, and remember batch and loss until the optimizer's step."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._watch.add(inputs, loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        self._watch.check(self, norm)
        return norm

    def _get_output_dir(self, *args: Any, **kwargs: Any) -> str:
        return str(self._staging or super()._get_output_dir(*args, **kwargs))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._write_checkpoint(model, trial, self._steps.sums(), rotate=True)

    def _write_checkpoint(self, model: Any, trial: Any, sums: dict[str, Any], *, rotate: bool) -> Path:
        run = Path(self._get_output_dir(trial=trial))
        staging, name = run / checkpoints.STAGING, f"checkpoint-{self.state.global_step}"
        needed = checkpoint_size(self._saved, self) if self.args.should_save else 0
        what = f"checkpoint {self.state.global_step}"
        if self.args.should_save:
            with told_if_full(run, what, needed):
                shutil.rmtree(staging, ignore_errors=True)
                run.mkdir(parents=True, exist_ok=True)
                require_space(run, needed, what)
                staging.mkdir()
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            with told_if_full(run, what, needed):  # before the room is made again, below
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    self._seal(staging / name, run / name, sums)
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._saved = run / name
        if rotate and self.args.should_save:
            best = [Path(self.state.best_model_checkpoint)] if self.state.best_model_checkpoint else []
            checkpoints.rotate(run, self.args.save_total_limit, [run / name, *best])
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / name))
        return run / name

    def _seal(self, staged: Path, target: Path, sums: dict[str, Any]) -> None:
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(target)
            self.state.save_to_json(str(staged / "trainer_state.json"))
        checkpoints.seal(
            staged,
            step=self.state.global_step,
            settings=self._settings or {},
            versions=versions_of(self),
            sums=sums,
        )
        checkpoints.publish(staged, target)

    def save_now(self) -> Path | None:
        """Save the last finished step, to go on with, and delete nothing for it.

        Returns:
            The checkpoint's folder; None where no step was finished, where weights and step number do not belong
            together or weights are not finite, and with several processes, of which only one may be here.
        """
        if self.state.global_step == 0 or self._steps.between or self.args.world_size > 1:
            return None
        if not all(bool(weight.isfinite().all()) for weight in self.model.parameters() if weight.requires_grad):
            return None
        folder = self._output / f"checkpoint-{self.state.global_step}"
        if self._saved is not None and self._saved.resolve() == folder.resolve():
            return folder
        return self._write_checkpoint(self.model, None, self._steps.restore(), rotate=False)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        # With a limit of 1 and a best checkpoint, transformers deletes the last one here, before the model is saved.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit


class _Steps(TrainerCallback):
    """Where a run is within its steps: what an exact return needs and transformers does not save.

    Attributes:
        between: whether the optimizer has moved the weights, but the step is not counted yet.
    """

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer
        self.between = False
        self._random: tuple[Any, ...] | None = None
        self._noted: tuple[Any, ...] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Take the sums of the checkpoint up again."""
        sums = self.trainer._before.sums if self.trainer._before is not None else {}
        if sums and state.global_step == self.trainer._before.step:  # type: ignore[union-attr]
            self.trainer._tr_loss += sums["loss"]
            self.trainer._total_loss_scalar -= sums["loss"]  # that of this process alone
            self.trainer._globalstep_last_logged = sums["logged_step"]
            for name, values in sums["metrics"].items():
                self.trainer._metrics["train"][name].extend(values)
            self.trainer._total_train_tokens = sums["tokens"]

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Note the state of the random numbers."""
        self._random = _random_state()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Note the random numbers, but not after the draw with which an epoch begins; and the sums."""
        if not float(state.epoch or 0).is_integer():
            self._random = _random_state()
        trainer = self.trainer
        self._noted = (trainer._tr_loss.clone(), trainer._globalstep_last_logged, *_metrics(trainer))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The weights are about to change."""
        self.between = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The step is counted."""
        self.between = False

    def restore(self) -> dict[str, Any]:
        """Put the random numbers back to where the last finished step's checkpoint finds them; return its sums."""
        if self._random is not None:
            python, numpy, cpu, cuda = self._random
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state_all(cuda)
        return self.sums() if self._noted is None else self._as_sums(*self._noted)

    def sums(self) -> dict[str, Any]:
        """Return what was added up since the last line of the log."""
        trainer = self.trainer
        return self._as_sums(trainer._tr_loss, trainer._globalstep_last_logged, *_metrics(trainer))

    def _as_sums(self, loss: Tensor, logged_step: int, metrics: dict[str, list[float]], tokens: int) -> dict[str, Any]:
        mean = self.trainer.accelerator.reduce(loss.clone(), reduction="mean")  # over processes, as in the log
        return {"loss": float(mean), "logged_step": logged_step, "metrics": metrics, "tokens": tokens}


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _metrics(trainer: Any) -> tuple[dict[str, list[float]], int]:
    return {name: list(values) for name, values in trainer._metrics["train"].items()}, trainer._total_train_tokens
