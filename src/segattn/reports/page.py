"""The page that every report shares: one self-contained HTML file from a template and its content."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segattn.errors import SegmentAttentionError

__all__ = ["ReportError", "write_page"]


class ReportError(SegmentAttentionError, ValueError):
    """Results that a report cannot be written from."""


def write_page(template: Path, content: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Render a template and write the page; it appears when it is complete.

    Args:
        template: a file that extends page.html.jinja, which wants a `title` and a `subtitle`.
        content: what the template names; all texts are escaped, `markupsafe.Markup` is not.
        path: the HTML file.

    Returns:
        The path.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folders = [template.parent, Path(__file__).parent]
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=FileSystemLoader(folders))
    page = environment.get_template(template.name).render(content)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(target)
    return target
