"""What is chosen and made on a GPU, against fakes of vLLM: neither vLLM nor a GPU is needed."""

import importlib
import sys
from types import ModuleType
from types import SimpleNamespace as Fake

import pytest

from segattn.serving.configure import _choose_mode
from segattn.serving.errors import ServingError
from segattn.serving.limits import StepLimits
from segattn.serving.runner import SegmentRunner
from segattn.serving.settings import KEY, ServingSettings

BACKENDS = ("TRITON_ATTN", "FLASH_ATTN", "FLASHINFER", "FLEX_ATTENTION", "FLASHMLA")


@pytest.fixture
def vllm(monkeypatch):
    """Puts modules with these attributes in the place of vLLM's."""

    def put(**modules):
        for name, attributes in {"vllm": {}, **modules}.items():
            module = ModuleType(name)
            vars(module).update(attributes)
            monkeypatch.setitem(sys.modules, name, module)

    return put


@pytest.fixture
def gpu(vllm):
    """Makes a config of vLLM on a GPU of a compute capability."""

    def make(capability, backend=None, version=None, device="cuda"):
        names = {name: Fake(name=name) for name in BACKENDS}
        found = None if capability is None else Fake(major=capability[0], minor=capability[1])
        vllm(
            **{
                "vllm.platforms": {"current_platform": Fake(get_device_capability=lambda: found)},
                "vllm.v1.attention.backends.registry": {"AttentionBackendEnum": names},
            }
        )
        attention = Fake(backend=None if backend is None else names[backend], flash_attn_version=version)
        return Fake(attention_config=attention, device_config=Fake(device_type=device))

    return make


@pytest.mark.parametrize(
    ("capability", "backend", "version", "per_request"),
    [
        ((8, 0), "FLASH_ATTN", 2, False),
        ((9, 0), "FLASH_ATTN", 3, False),
        ((9, 0), "FLASH_ATTN", 4, True),
        ((10, 0), "FLASH_ATTN", 4, False),
        ((9, 0), "FLASH_ATTN", None, False),
        ((9, 0), "FLASHINFER", None, False),
        (None, "FLEX_ATTENTION", None, False),
        ((9, 0), "TRITON_ATTN", None, True),
    ],
)
def test_a_backend_that_the_user_names_is_kept_and_told_as_its_kernels_take_it(
    gpu, capability, backend, version, per_request
):
    config = gpu(capability, backend, version)
    assert _choose_mode(config, {}).per_request is per_request
    assert config.attention_config.backend.name == backend
    assert not _choose_mode(config, {"per_request": False}).per_request


def test_without_a_name_triton_is_taken(gpu):
    config = gpu((9, 0))
    assert _choose_mode(config, {}).per_request
    assert config.attention_config.backend.name == "TRITON_ATTN"


def test_a_backend_that_computes_no_segments_is_refused(gpu):
    with pytest.raises(ServingError, match=r"FLASHMLA.*--attention-backend TRITON_ATTN"):
        _choose_mode(gpu((9, 0), "FLASHMLA"), {})


def test_on_a_cpu_no_backend_is_chosen(gpu):
    config = gpu(None, device="cpu")
    assert _choose_mode(config, {}).per_request
    assert config.attention_config.backend is None


class StockRunner:
    def __init__(self, vllm_config, device):
        self.vllm_config, self.device = vllm_config, device


class StockWorker:
    """As much of vLLM 0.33's worker as is overridden."""

    def __init__(self, vllm_config):
        self.vllm_config, self.device = vllm_config, "cuda:0"

    def init_device(self):
        self.model_runner = self._make_model_runner()


class ChangedWorker(StockWorker):
    """One that makes its runner elsewhere."""

    def init_device(self):
        self.model_runner = StockRunner(self.vllm_config, self.device)


@pytest.fixture
def worker(vllm, monkeypatch):
    def make(stock):
        vllm(
            **{
                "vllm.v1.worker.gpu_model_runner": {"GPUModelRunner": StockRunner},
                "vllm.v1.worker.gpu_worker": {"Worker": stock},
            }
        )
        monkeypatch.delitem(sys.modules, "segattn.serving.gpu_worker", raising=False)
        module = importlib.import_module("segattn.serving.gpu_worker")
        monkeypatch.delitem(sys.modules, "segattn.serving.gpu_worker")
        settings = ServingSettings(None, StepLimits(64, 4))
        return module.SegmentGPUWorker(Fake(additional_config={KEY: settings.to_dict()}))

    return make


def test_the_worker_makes_our_runner_over_vllms(worker):
    made = worker(StockWorker)
    made.init_device()
    classes = type(made.model_runner).__mro__
    assert classes.index(SegmentRunner) < classes.index(StockRunner)
    assert made.model_runner.device == "cuda:0"


def test_a_worker_that_makes_its_runner_elsewhere_does_not_start(worker):
    with pytest.raises(ServingError, match="StockRunner"):
        worker(ChangedWorker).init_device()
