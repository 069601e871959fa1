"""What mkdocs does not do by itself: pages and files of this repository that are outside docs/.

README.md, CONTRIBUTING.md and CHANGELOG.md become pages, and a file that a page links to (a result of a benchmark, a
licence) is copied into the site, so that the pages need no other place than the site itself.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Place of the page in the site: file in the repository.
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(\[[^\]]*\])\(((?![a-z]+:|#)[^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config) -> Files:
    """Add the pages of PAGES and the files outside docs/ that pages link to."""
    for place, source in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for page in [file for file in files if file.is_documentation_page()]:
        for _, target, _ in LINK.findall(Path(page.abs_src_path).read_text(encoding="utf-8")):
            source = _in_repository(page.src_uri, target)
            place = _in_site(source)
            if (ROOT / source).is_file() and files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Let links lead to the places in the site; a link to a folder, which has no page, becomes its text."""

    def place(match: re.Match) -> str:
        text, target, anchor = match.groups()
        source = _in_repository(page.file.src_uri, target)
        if (ROOT / source).is_dir():
            return text[1:-1]
        here = posixpath.dirname(page.file.src_uri) or "."
        return f"{text}({posixpath.relpath(_in_site(source), here)}{anchor or ''})"

    return LINK.sub(place, markdown)


def _in_repository(page: str, target: str) -> str:
    """The file in the repository that `target`, a link of the page at this place of the site, means."""
    folder = posixpath.dirname(PAGES.get(page, posixpath.join("docs", page)))
    return posixpath.normpath(posixpath.join(folder, target))


def _in_site(source: str) -> str:
    """The place in the site of a file of the repository."""
    for place, page in PAGES.items():
        if source == page:
            return place
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    # Markdown outside docs/ is shown as it is: as a page it would need links of its own mended.
    return f"repository/{source.removesuffix('.md')}.txt" if source.endswith(".md") else f"repository/{source}"
