"""JupyterLab in a real Chromium, for tests and benchmarks: `with lab_page(folder) as page: page.open("x.ipynb")`."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path


def find_chromium() -> str | None:
    """A Chromium of the machine, the one that $CHROMIUM names, or Playwright's own."""
    found = next(
        filter(
            None,
            map(
                shutil.which,
                ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
            ),
        ),
        None,
    )
    if found or os.environ.get("CHROMIUM"):
        return os.environ.get("CHROMIUM") or found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        own = play.chromium.executable_path
    return own if Path(own).exists() else None


CHROMIUM = find_chromium()
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: Messages of JupyterLab itself, not of a notebook's widgets.
NOT_OURS = (
    "favicon",
    "Failed to load resource: the server responded with a status of 404",
    "/lsp/",
    "Download the React DevTools",
)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def server(folder: Path, **environment):
    """A JupyterLab over the folder; gives its address."""
    port = free_port()
    quiet = {
        "JUPYTER_CONFIG_DIR": str(folder / ".config"),
        "JUPYTER_DATA_DIR": str(folder / ".data"),
        "OMP_NUM_THREADS": "1",
        "JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter"),
        "HF_HUB_OFFLINE": "1",
    }
    pages = folder / ".config" / "labconfig"
    pages.mkdir(parents=True, exist_ok=True)
    (pages / "page_config.json").write_text(
        '{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}'
    )
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ip=127.0.0.1",
        "--IdentityProvider.token=",
        "--LabApp.expose_app_in_browser=True",
        f"--ServerApp.root_dir={folder}",
    ]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **quiet, **environment}
        )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=1)
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


class Page:
    """A browser page on a JupyterLab; `errors` is what its console complained of."""

    def __init__(self, page, address: str):
        self.page, self.address, self.errors = page, address, []
        page.set_default_timeout(60_000)
        page.on(
            "console",
            lambda m: (
                m.type == "error" and self._heard(m.text + " " + str(m.location.get("url", "")))
            ),
        )
        page.on("pageerror", lambda error: self._heard(str(error)))
        page.on(
            "dialog",
            lambda dialog: (
                self._heard("a dialog: " + dialog.message) if dialog.type == "alert" else None,
                dialog.accept(),
            ),
        )

    def _heard(self, text: str) -> None:
        if not any(word in text for word in NOT_OURS):
            self.errors.append(text)

    def open(self, name: str) -> None:
        """Open a notebook and wait for its kernel."""
        self.page.goto(f"{self.address}/lab/tree/{name}?reset")
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_function(
            "window.jupyterapp && jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
        )

    def run_all(self, seconds: float = 240) -> None:
        self.page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        self.idle(seconds)

    def idle(self, seconds: float = 60) -> None:
        """Wait until every cell that was started has an execution count."""
        self.page.wait_for_timeout(300)
        self.page.wait_for_function(
            """() => ![...document.querySelectorAll('.jp-InputPrompt')].some(p => p.textContent.includes('*')) &&
            jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'""",
            timeout=seconds * 1000,
        )

    def run_cell(self, number: int) -> None:
        """Run the cell of this number (of all cells, from 0) without waiting."""
        self.page.evaluate(f"jupyterapp.shell.currentWidget.content.activeCellIndex = {number}")
        self.page.evaluate("jupyterapp.commands.execute('notebook:run-cell')")

    def scroll(self, number: int) -> None:
        self.page.evaluate(
            f"jupyterapp.shell.currentWidget.content.scrollToItem({number}, 'start')"
        )
        self.page.wait_for_timeout(400)

    def buttons(self, name: str):
        """All buttons of a widget with just this text (beside an icon)."""
        return self.page.locator("button.jupyter-button, .widget-toggle-buttons button").filter(
            has_text=re.compile(rf"^\s*{re.escape(name)}\s*$")
        )

    def pixels(self, selector: str = ".ccl-cells", number: int = 0) -> str:
        """A digest of a canvas."""
        return self.page.locator(selector).nth(number).evaluate("canvas => canvas.toDataURL()")

    def shot(self, name: str, folder: Path = Path("/tmp/shots")) -> None:
        folder = Path(os.environ.get("SCREENSHOTS", folder))
        folder.mkdir(exist_ok=True)
        self.page.screenshot(path=folder / f"{name}.png")


@contextmanager
def browser(address: str, width: int = 1400, height: int = 1100):
    """A page on the server, of a browser that has seen the lab's tour."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = chromium.new_page(viewport=dict(width=width, height=height))
            page.add_init_script(
                "try { localStorage.setItem('contaccum_lite.tour', '1') } catch {}"
            )
            yield Page(page, address)
        finally:
            chromium.close()
