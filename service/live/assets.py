"""The page's files as browsers get them: under names with a hash of what is in them.

So a browser keeps each for ever, and asks for the page alone again. The page says `assets/app.js`,
a module `import … from "./charts.js"`, a style sheet `url(icons.svg)`; here the hashes are put in.
A module's hash covers what it imports, as that's names are in it.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ttc_core.errors import UserError

PAGE = Path(__file__).parents[1] / "page"
INDEX = "index.html"
TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/vnd.microsoft.icon",
    ".woff2": "font/woff2",
}
HASH_CHARACTERS = 12
# In the page: an attribute's value. In a module: a statement at a line's beginning, so that types
# which are imported in comments count for nothing. In a style sheet: what is no data: or http:.
_IN_PAGE = re.compile(r"(?P<before>=\s*[\"'])assets/(?P<name>[^\"'?#]+)")
_IN_MODULE = re.compile(
    r"(?P<before>^(?:import|export)\b(?:[^;\"']*?\bfrom)?\s*[\"'])(?P<name>\.{1,2}/[^\"']+)", re.M
)
_IN_STYLE = re.compile(r"(?P<before>url\(\s*[\"']?)(?P<name>[^\"'():#]+)(?=[\"')#])")


class PageError(UserError, RuntimeError):
    """The page's files are not all there, or not as they should be."""


@dataclass(frozen=True)
class Asset:
    """A file as it is sent."""

    content: bytes
    media_type: str


class Page:
    """The page and all that it is made of.

    Attributes:
        content: of the page itself, UTF-8.
        tag: changes with it, and with any of its files.
        assets: by the names that they are sent under.

    Args:
        folder: has index.html; what is named in it, or by a file of it, may lie in folders below.

    Raises:
        PageError: a file is missing, or modules import one another in a circle.
    """

    def __init__(self, folder: Path = PAGE) -> None:
        self._folder = folder.resolve()
        self._sent_as: dict[Path, str] = {}
        self._in_hand: list[Path] = []
        self.assets: dict[str, Asset] = {}
        for path in sorted(self._folder.rglob("*")):
            if path.suffix in TYPES:
                self._add(path)
        index = self._read(self._folder / INDEX).decode()

        def of_page(name: str) -> str:
            return f"assets/{self._add(self._folder / name)}"

        self.content = _replace(_IN_PAGE, index, of_page).encode()
        self.tag = _hash(self.content)

    def _add(self, path: Path) -> str:
        """Have a file among the assets; return the name that it is sent under."""
        path = path.resolve()
        if path in self._sent_as:
            return self._sent_as[path]
        if path in self._in_hand:
            circle = " → ".join(each.name for each in [*self._in_hand, path])
            raise PageError(f"Files of the page name one another in a circle: {circle}.")
        self._in_hand.append(path)
        content = self._read(path)
        pattern = {".js": _IN_MODULE, ".css": _IN_STYLE}.get(path.suffix)
        if pattern is not None:

            def beside(name: str) -> str:
                return f"./{self._add(path.parent / name)}"

            content = _replace(pattern, content.decode(), beside).encode()
        self._in_hand.pop()
        name = f"{path.stem}.{_hash(content)}{path.suffix}"
        self.assets[name] = Asset(content, TYPES[path.suffix])
        self._sent_as[path] = name
        return name

    def _read(self, path: Path) -> bytes:
        if not path.is_relative_to(self._folder) or path.suffix not in {".html", *TYPES}:
            raise PageError(f"The page names {path}, which is none of its files.")
        try:
            return path.read_bytes()
        except OSError as error:
            raise PageError(
                f"The page is not whole: {path}: {error.strerror}. Install the service anew."
            ) from error


def _replace(pattern: re.Pattern[str], text: str, sent: Callable[[str], str]) -> str:
    """Put in the names under which files are sent."""
    return pattern.sub(lambda found: found["before"] + sent(found["name"].strip()), text)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:HASH_CHARACTERS]
