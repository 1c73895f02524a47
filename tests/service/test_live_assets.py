"""The page's files are sent under names that change with what is in them."""

import re

import pytest

from service.live.assets import PAGE, Page, PageError

INDEX = """<!doctype html>
<link rel="stylesheet" href="assets/style.css">
<link rel="icon" href='assets/pictures/icon.svg'>
<script type="module" src="assets/app.js"></script>
<p>assets/app.js</p>
"""
APP = """/**
 * @import {Row} from "./types.js"
 * @typedef {import("./app.js").Row} Own
 */
import {
  draw,
  line,
} from "./charts.js";
import { Plot } from './vendor/plot.js'
import "./style-less.js";
export { draw as default } from "./charts.js";
const place = "./charts.js is no import";
"""
FILES = {
    "index.html": INDEX,
    "app.js": APP,
    "charts.js": 'import { Plot } from "./vendor/plot.js";\nexport const draw = Plot;\n',
    "style-less.js": "export {};\n",
    "style.css": "p { background: url(pictures/icon.svg#a), url('data:image/png;base64,AA'); }\n",
    "vendor/plot.js": "export const Plot = 1;\n",
    "vendor/LICENSE": "MIT\n",
    "pictures/icon.svg": "<svg/>\n",
}


@pytest.fixture
def folder(tmp_path):
    def make(**changed):
        for name, text in (FILES | changed).items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def sent_as(page, name):
    stem, _, ending = name.rpartition(".")
    (found,) = (each for each in page.assets if re.fullmatch(rf"{stem}\.\w{{12}}\.{ending}", each))
    return found


def test_each_file_is_named_by_its_hash_wherever_it_is_named(folder):
    """In the page, in modules that import it, in style sheets; what only looks like it stays."""
    page = Page(folder())
    name = {each: sent_as(page, each) for each in ("app.js", "charts.js", "plot.js", "icon.svg")}
    text = page.content.decode()
    assert f'src="assets/{name["app.js"]}"' in text
    assert f"href='assets/{name['icon.svg']}'" in text
    assert "<p>assets/app.js</p>" in text
    app = page.assets[name["app.js"]].content.decode()
    assert f'line,\n}} from "./{name["charts.js"]}";' in app
    assert f"from './{name['plot.js']}'" in app
    assert f'import "./{sent_as(page, "style-less.js")}";' in app
    assert f'export {{ draw as default }} from "./{name["charts.js"]}";' in app
    assert '"./types.js"' in app  # a type's import, which no browser sees
    assert '"./charts.js is no import"' in app
    style = page.assets[sent_as(page, "style.css")].content.decode()
    assert f"url(./{name['icon.svg']}#a), url('data:image" in style
    assert page.assets[name["app.js"]].media_type == "text/javascript"
    assert not any("LICENSE" in each for each in page.assets)


def test_a_hash_changes_with_the_file_and_with_what_it_imports(folder):
    """So that a browser that keeps files for ever never runs two versions together."""
    before = Page(folder())
    after = Page(folder(**{"vendor/plot.js": "export const Plot = 2;\n"}))
    for name, stays in (
        ("plot.js", False),
        ("charts.js", False),
        ("app.js", False),
        ("style.css", True),
        ("icon.svg", True),
        ("style-less.js", True),
    ):
        assert (sent_as(before, name) == sent_as(after, name)) is stays, name
    assert before.tag != after.tag
    assert before.tag == Page(folder()).tag


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"app.js": 'import "./lost.js";\n'}, "lost.js: No such file"),
        ({"index.html": '<script src="assets/lost.js"></script>'}, "lost.js: No such file"),
        ({"charts.js": 'import "./app.js";\n'}, "app.js → charts.js → app.js"),
        ({"app.js": 'import "../../outside.js";\n'}, "none of its files"),
        ({"index.html": '<a href="assets/vendor/LICENSE">'}, "none of its files"),
    ],
)
def test_a_page_that_is_not_whole_is_told_at_the_start(folder, changed, says):
    """Not by a browser that shows nothing."""
    with pytest.raises(PageError, match=says):
        Page(folder(**changed))


def test_a_page_that_is_not_installed_is_told_at_the_start(tmp_path):
    """A wheel that lacks it."""
    with pytest.raises(PageError, match=r"index.html: No such file.*Install the service anew"):
        Page(tmp_path / "page")


def test_the_page_has_words_for_every_event():
    """An operator reads sentences, not names of fields."""
    source = "\n".join(path.read_text() for path in PAGE.parent.rglob("*.py"))
    # What is noted in the log of changes is no event.
    noted = set(re.findall(r"(?<!changes\.)(?:note|note_repeated|_tell)\(\s*\"([a-z_]+)\"", source))
    assert {"guard", "silent", "back", "evicted", "started"} <= noted
    words = (PAGE / "happenings.js").read_text().partition("const WORDS = {")[2]
    assert noted - set(re.findall(r"^  (\w+): ", words, re.MULTILINE)) == set()


def test_the_page_of_the_package_is_whole():
    """All that it names is there, and nothing is written into it that its policy forbids."""
    page = Page(PAGE)
    text = page.content.decode()
    for name in re.findall(r"=\s*[\"']assets/([^\"']+)", text):
        assert name in page.assets
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|https?://", text)
