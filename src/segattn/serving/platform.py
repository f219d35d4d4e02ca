"""vLLM's platform with segments: a subclass of the platform that vLLM would choose without us."""

from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMValidationError
from vllm.platforms import builtin_platform_plugins
from vllm.utils.import_utils import resolve_obj_by_qualname

from segattn.errors import SegmentError
from segattn.serving.configure import configure
from segattn.serving.errors import ServingError
from segattn.serving.requests import RequestChecker

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
    """Sets up configs that ask for segments, and refuses requests that cannot be served; nothing else."""

    serves_segments = True

    # Front ends check requests before the engine sees them, and vLLM hands a platform no config then: the last one
    # that was set up in this process. The engine's own copy decides what is computed.
    _checker: RequestChecker | None = None

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """Let vLLM's platform set up the config, then add segments where they are asked for."""
        super().check_and_update_config(vllm_config)
        settings = configure(vllm_config)
        if vllm_config.model_config is not None:
            cls._checker = None if settings is None else RequestChecker(settings)

    @classmethod
    def validate_request(cls, processed_inputs: Any, params: Any) -> None:
        """Refuse a request that cannot be served with segments; over HTTP the client gets a 400 with the reason."""
        super().validate_request(processed_inputs, params)
        if cls._checker is None:
            return
        try:
            cls._checker.check(processed_inputs, params)
        except SegmentError as error:
            raise VLLMValidationError(str(error), parameter="vllm_xargs") from error
