"""Documents that the package writes are jinja2 templates, so that their prose can be read as prose."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


@functools.cache
def _environment(folder: Path | None, escape: bool) -> "jinja2.Environment":
    """What all templates share: a name without a value is an error, and a line of tags alone leaves no line."""
    import jinja2  # here, so that a process whose memory is measured does not load it

    return jinja2.Environment(
        loader=None if folder is None else jinja2.FileSystemLoader(folder),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(path: Path, **values: object) -> str:
    """A template file with its values. Files named *.html.j2 escape what they are given.

    Raises:
        jinja2.UndefinedError: if the template names a value that was not given.
    """
    escape = path.name.endswith(".html.j2")
    return _environment(path.parent, escape).get_template(path.name).render(**values)


def render_paragraph(template: str, **values: object) -> str:
    """A paragraph that is written over several lines, as one line with its values.

    Raises:
        jinja2.UndefinedError: if the template names a value that was not given.
    """
    return _environment(None, False).from_string(" ".join(template.split())).render(**values)
