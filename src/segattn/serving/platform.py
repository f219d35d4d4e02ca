"""vLLM's platform with segments: a subclass of the platform that vLLM would choose without us."""

from typing import TYPE_CHECKING, Any

from vllm.platforms import builtin_platform_plugins
from vllm.utils.import_utils import resolve_obj_by_qualname

from segattn.serving.configure import configure
from segattn.serving.errors import ServingError

__all__ = ["SegmentPlatform"]


def _own_platform() -> Any:
    """The class of the platform that vLLM finds by itself on this machine."""
    found: dict[str, str] = {}
    for name, detect in builtin_platform_plugins.items():
        try:
            path = detect()
        except Exception:  # as vLLM treats a detection that fails
            continue
        if path is not None:
            found[name] = path
    if len(found) != 1:
        raise ServingError(f"vLLM finds {len(found)} platforms on this machine ({', '.join(found)}); expected one")
    return resolve_obj_by_qualname(next(iter(found.values())))


if TYPE_CHECKING:
    from vllm.platforms.interface import Platform as _Base
else:
    _Base = _own_platform()


class SegmentPlatform(_Base):
    """Sets up configs that ask for segments, and the front end that takes their requests; nothing else."""

    serves_segments = True

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """Let vLLM's platform set up the config, then add segments where they are asked for."""
        super().check_and_update_config(vllm_config)
        if configure(vllm_config) is not None:
            # Here, because the front end imports the platform.
            from segattn.serving.front_end import patch_front_end

            patch_front_end()
