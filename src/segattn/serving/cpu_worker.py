"""vLLM's worker on a CPU, with a model runner that knows segments."""

from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from segattn.serving.runner import SegmentRunner

__all__ = ["SegmentCPUWorker"]


class _SegmentCPUModelRunner(SegmentRunner, CPUModelRunner):
    """vLLM's model runner on a CPU, with segments."""


class SegmentCPUWorker(CPUWorker):
    """Runs segments on a CPU."""

    def init_device(self) -> None:
        """Set up the device as vLLM does, with our model runner in place of its own, which has loaded nothing yet."""
        super().init_device()
        self.model_runner = _SegmentCPUModelRunner(self.vllm_config, self.device)
