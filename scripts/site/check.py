"""Checks a built site: every link leads somewhere; in a browser, every page shows without an error.

usage: check.py SITE [--external] [--browser]
"""

import argparse
import functools
import http.server
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

SCREENS = ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark"))


class Page(HTMLParser):
    """What a page links to, the places on it that others may link to, and whether a box of code went wrong."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.is_raw = False
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect links and ids."""
        values = dict(attrs)
        if values.get("id"):
            self.places.add(str(values["id"]))
        for name in ("href", "src"):
            if (target := values.get(name)) and tag != "base":
                self.links.append(target)
        if tag in ("code", "pre"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Leave a box of code."""
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        """Notice Markdown that was not understood and stands on the page as it was written."""
        self.is_raw |= not self._open and "```" in data


def broken_links(site: Path) -> tuple[list[str], set[str]]:
    """Return the links inside the site that lead nowhere, and those that leave it.

    404.html is left out: it is shown at any depth, so that its links begin at the root of a server.
    """
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    broken, external = [], set()
    for path, page in pages.items():
        if page.is_raw:
            broken.append(f"{path.relative_to(site)}: ``` stands on the page; a box of code was not understood")
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme in ("http", "https"):
                external.add(urllib.parse.urldefrag(link).url)
                continue
            if parts.scheme or link in ("#", "."):
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            place = urllib.parse.unquote(parts.fragment)
            if not target.exists():
                broken.append(f"{path.relative_to(site)}: {link} is not there")
            elif place and not place.startswith("__") and target in pages and place not in pages[target].places:
                broken.append(f"{path.relative_to(site)}: {link} has no such place")
    return broken, external


def dead_pages(links: set[str]) -> list[str]:
    """Return the links to other sites that are answered by an error."""
    dead = []
    for link in sorted(links):
        request = urllib.request.Request(link, headers={"User-Agent": "Mozilla/5.0 (link check)"})
        try:
            with urllib.request.urlopen(request, timeout=20):
                pass
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                dead.append(f"{link}: {error.code}")
        except OSError as error:
            dead.append(f"{link}: {error}")
    return dead


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve the site on this machine while the block runs, and give its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def troubles_in_browser(site: Path, pictures: Path) -> list[str]:
    """Open every page in Chromium and return what went wrong; keep a picture of each screen of each page.

    The browser is playwright's own, or the first one that the system has.
    """
    import shutil

    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    troubles: list[str] = []
    pictures.mkdir(parents=True, exist_ok=True)
    with served(site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for width, scheme in SCREENS:
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = context.new_page()
            heard = _listen(page)
            for path in sorted(site.rglob("*.html")):
                name = path.relative_to(site).as_posix()
                page.goto(f"{address}/{name}", wait_until="networkidle")
                wide = page.evaluate("document.documentElement.scrollWidth")
                if wide > width:
                    heard.append(f"it is {wide} pixels wide")
                troubles += [f"{name} at {width}, {scheme}: {what}" for what in heard]
                heard.clear()
                page.screenshot(path=pictures / f"{name.replace('/', '_')[:-5]}-{width}-{scheme}.png")
            context.close()
        troubles += _search(browser, address)
        browser.close()
    return troubles


def _listen(page: Any) -> list[str]:
    """Return a list to which a page adds errors on its console and files that are missing."""
    heard: list[str] = []
    page.on("console", lambda message: heard.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("response", lambda one: heard.append(f"{one.url}: {one.status}") if one.status >= 400 else None)
    return heard


def _search(browser: Any, address: str) -> list[str]:
    """Type a word into the search, which has to find a page."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}/index.html", wait_until="networkidle")
    page.locator(".md-search__input").click()
    page.keyboard.type("accumulation", delay=30)
    try:
        page.locator(".md-search-result__item").first.wait_for(timeout=10_000)
    except Exception:  # playwright's own class of a timeout
        return ["search: 'accumulation' finds no page"]
    return []


def main() -> int:
    """Run the checks that are asked for; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("--external", action="store_true", help="also ask other sites")
    parser.add_argument("--browser", action="store_true", help="also open every page in Chromium")
    arguments = parser.parse_args()
    site = arguments.site.resolve()
    wrong, external = broken_links(site)
    if arguments.external:
        wrong += dead_pages(external)
    if arguments.browser:
        wrong += troubles_in_browser(site, site.parent / "screenshots")
    for line in wrong:
        print(line, file=sys.stderr)
    pages = len(list(site.rglob("*.html")))
    print(f"{site}: {pages} pages, {len(external)} links to other sites, {len(wrong)} troubles")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
