"""vLLM's worker on an NVIDIA GPU, with a model runner that knows segments. Written from vLLM 0.33; not run yet."""

from typing import Any

from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from segattn.serving.errors import ServingError
from segattn.serving.runner import SegmentRunner

__all__ = ["SegmentGPUWorker"]


class _SegmentGPUModelRunner(SegmentRunner, GPUModelRunner):
    """vLLM's model runner on a GPU, with segments."""


class SegmentGPUWorker(Worker):
    """Runs segments on an NVIDIA GPU."""

    def init_device(self) -> None:
        """Set up the device as vLLM does.

        Raises:
            ServingError: vLLM has made a model runner of its own, which would run causally.
        """
        super().init_device()
        if not isinstance(self.model_runner, SegmentRunner):
            raise ServingError(
                f"vLLM's worker made the model runner {type(self.model_runner).__qualname__}; expected segattn's, "
                "made by its method _make_model_runner. Install vllm 0.33, and set VLLM_USE_V2_MODEL_RUNNER=0"
            )

    def _make_model_runner(self) -> Any:
        return _SegmentGPUModelRunner(self.vllm_config, self.device)
