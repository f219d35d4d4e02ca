"""vLLM's worker on a CPU, with a model runner that knows segments."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from segattn.serving.runner import SegmentRunner

__all__ = ["SegmentCPUWorker"]


class _SegmentCPUModelRunner(SegmentRunner, CPUModelRunner):
    """vLLM's model runner on a CPU, with segments."""

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Sample as vLLM does, but draw nothing from the seeds of requests whose prompt is not finished.

        vLLM draws a token for them too, discards it and sets their generators back by an offset, which generators on a
        CPU do not have: a request with a seed ends the engine as soon as its prompt takes two steps (0.32.0).
        """
        with self._unfinished_without_seeds():
            return super().sample_tokens(*args, **kwargs)

    @contextmanager
    def _unfinished_without_seeds(self) -> Iterator[None]:
        generators = self.input_batch.generators
        unfinished = self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0].tolist()
        held = {index: generators.pop(index) for index in unfinished if index in generators}
        try:
            yield
        finally:
            generators.update(held)


class SegmentCPUWorker(CPUWorker):
    """Runs segments on a CPU."""

    def init_device(self) -> None:
        """Set up the device as vLLM does, with our model runner in place of its own, which has loaded nothing yet."""
        super().init_device()
        self.model_runner = _SegmentCPUModelRunner(self.vllm_config, self.device)
