"""The entry points that vLLM calls in every process, whatever it serves. They must cost nothing and break nothing."""

from collections.abc import Mapping
from importlib import metadata

from segattn.serving.errors import ServingError
from segattn.serving.switch import is_off, is_required

__all__ = ["check_active", "check_environment", "is_active", "platform"]

_GROUP = "vllm.platform_plugins"
_PLATFORM = "segattn.serving.platform.SegmentPlatform"


def platform() -> str | None:
    """Return the platform class for vLLM, None to stay out (entry point `vllm.platform_plugins`).

    The class is that of vLLM's own platform; it acts only for models and flags that ask for segments. vLLM takes one
    foreign platform at most, so where another one is installed ours stays out unless SEGATTN_VLLM=1 asks for it.
    """
    if is_off():
        return None
    others = [point for point in metadata.entry_points(group=_GROUP) if not point.value.startswith("segattn.")]
    return _PLATFORM if is_required() or not others else None


def check_active() -> None:
    """Refuse to run when segments are required and another platform is in place (entry point `vllm.general_plugins`).

    VLLM_TARGET_DEVICE=cpu passes over every platform plugin, and VLLM_PLUGINS may leave ours out: the model would run
    causally in silence.

    Raises:
        ServingError: says which variable to unset.
    """
    if is_required() and not is_active():
        raise ServingError(
            "SEGATTN_VLLM=1 asks for segments, but vLLM has not taken segattn's platform plugin, so it would run "
            "causally. Unset VLLM_TARGET_DEVICE, let VLLM_PLUGINS include 'segattn' (or unset it), and check that "
            "segattn is installed in the environment of vLLM"
        )


def check_environment(variables: Mapping[str, str]) -> None:
    """Refuse environment variables by which vLLM passes over our plugin.

    Raises:
        ServingError: names the variable.
    """
    if variables.get("VLLM_TARGET_DEVICE") == "cpu":
        raise ServingError(
            "VLLM_TARGET_DEVICE is cpu, for which vLLM passes over every platform plugin and would run causally; unset "
            "it (a CPU build of vLLM needs it not)"
        )
    plugins = variables.get("VLLM_PLUGINS")
    if plugins is not None and "segattn" not in plugins.split(","):
        raise ServingError(f"VLLM_PLUGINS is {plugins!r}, which leaves out segattn; add it, or unset the variable")


def is_active() -> bool:
    """Return whether vLLM's platform in this process is ours."""
    from vllm.platforms import current_platform

    return bool(getattr(type(current_platform), "serves_segments", False))
