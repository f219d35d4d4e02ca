"""vLLM's worker on an NVIDIA GPU, with a model runner that knows segments. Written from vLLM 0.33; not run yet."""

from typing import Any

from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from segattn.serving.runner import SegmentRunner

__all__ = ["SegmentGPUWorker"]


class _SegmentGPUModelRunner(SegmentRunner, GPUModelRunner):
    """vLLM's model runner on a GPU, with segments."""


class SegmentGPUWorker(Worker):
    """Runs segments on an NVIDIA GPU."""

    def _make_model_runner(self) -> Any:
        return _SegmentGPUModelRunner(self.vllm_config, self.device)
