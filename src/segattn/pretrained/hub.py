"""A model from the Hugging Face hub, where one answers."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from segattn.pretrained.errors import FetchError

__all__ = ["HUB_TIMEOUT", "download_snapshot", "hub_is_offline", "hub_revision"]

HUB_TIMEOUT = 5.0
"""Seconds after which a hub that has not answered counts as out of reach."""

# What transformers loads; a repository may hold other formats of the same weights.
_NEEDED = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
]
_UNNEEDED = ["*/*"]


def hub_is_offline() -> bool:
    """Tell whether the user has switched the hub off (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)."""
    return any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def hub_revision(model: str, timeout: float = HUB_TIMEOUT) -> str:
    """Ask the hub for the newest commit of a model.

    Args:
        model: a hub id.
        timeout: seconds to wait for the connection and for each part of the answer.

    Returns:
        The commit hash.

    Raises:
        FetchError: no hub answers in time, or it knows no such model, or it may not be read.
    """
    if hub_is_offline():
        raise FetchError("the hub is switched off (HF_HUB_OFFLINE)")
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        revision = HfApi().model_info(model, timeout=timeout).sha
    except GatedRepoError as error:
        raise FetchError(
            f"{model} may only be read after its license is accepted: do so on {constants.ENDPOINT}/{model}, then "
            "`hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise FetchError(
            f"{constants.ENDPOINT} has no model {model}; check the name (owner/name), or `hf auth login` if it is "
            "private"
        ) from error
    # Whatever else goes wrong on the way (names, sockets, TLS, proxies, captive portals) is a hub out of reach.
    except Exception as error:
        raise FetchError(f"{constants.ENDPOINT} does not answer ({type(error).__name__}: {error})") from error
    return str(revision)


def download_snapshot(model: str, revision: str, folder: Path, tell: Callable[[str], None]) -> None:
    """Download what transformers needs of one commit into `folder`; a second call goes on where the first stopped.

    Raises:
        FetchError: the download stopped, or the model has no safetensors weights.
    """
    from huggingface_hub import snapshot_download

    tell(f"Downloading {model} from the hub, commit {revision[:10]}")
    try:
        with _progress_bars_only_on_terminals():
            snapshot_download(
                model,
                revision=revision,
                local_dir=folder,
                allow_patterns=_NEEDED,
                ignore_patterns=_UNNEEDED,
                etag_timeout=HUB_TIMEOUT,
            )
    except Exception as error:
        raise FetchError(
            f"the download of {model} stopped ({type(error).__name__}: {error}); what has come is kept: fetch again "
            "to go on"
        ) from error
    if not list(folder.glob("*.safetensors")):
        raise FetchError(f"{model} has no safetensors weights; choose a repository that has them")
    # The downloader's own notes are of no use once it has finished.
    shutil.rmtree(folder / ".cache", ignore_errors=True)


@contextmanager
def _progress_bars_only_on_terminals() -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
