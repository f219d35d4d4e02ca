import pytest

from segattn.serving.backends import BACKENDS, DEFAULT_ON_GPU, mode_of
from segattn.serving.errors import ServingError


@pytest.mark.parametrize(
    ("backend", "version", "capability", "per_request"),
    [
        ("CPU_ATTN", None, None, True),
        ("TRITON_ATTN", None, (8, 0), True),
        ("TRITON_ATTN", None, (9, 0), True),
        ("FLASH_ATTN", 2, (8, 0), False),
        ("FLASH_ATTN", 3, (9, 0), False),
        ("FLASH_ATTN", None, (9, 0), False),
        ("FLASH_ATTN", 4, (9, 0), True),
        ("FLASH_ATTN", 4, (10, 0), False),
        ("FLASHINFER", None, (10, 0), False),
        ("FLEX_ATTENTION", None, (8, 0), False),
    ],
)
def test_each_backend_is_told_in_its_own_way(backend, version, capability, per_request):
    assert mode_of(backend, flash_attn_version=version, capability=capability).per_request is per_request


@pytest.mark.parametrize("backend", ["TRITON_MLA", "TREE_ATTN", "ROCM_AITER_FA", "TURBOQUANT", "XFORMERS"])
def test_other_backends_are_refused_by_name(backend):
    with pytest.raises(ServingError, match=f"{backend}.*{DEFAULT_ON_GPU}"):
        mode_of(backend)


def test_the_default_takes_a_flag_per_request():
    assert BACKENDS[DEFAULT_ON_GPU].per_request
