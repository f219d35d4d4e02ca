"""Print what a wheel of vLLM requires, without torch and its companions: `make test-serve` brings torch before.

The wheel asks for torchaudio, torchvision and torchcodec, which text models do not import, and which would replace the
CPU build of torch where an index offers them for GPUs only.
"""

import email
import re
import sys
import zipfile
from pathlib import Path

_LEFT_OUT = re.compile(r"(torch|torchaudio|torchvision|torchcodec)\b(?!-)")


def requirements(wheel: Path) -> list[str]:
    """Return the requirements of a wheel that belong to no extra."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        declared = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    return [line for line in declared if "extra ==" not in line and not _LEFT_OUT.match(line)]


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]))))
