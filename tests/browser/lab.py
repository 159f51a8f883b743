"""JupyterLab on a free loopback port, and a notebook in it, driven by commands."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, Locator, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
)
TOKEN = "a-token-for-tests"
START_S = 60
WAIT_MS = 60_000
SCREENSHOTS = Path(__file__).parent / "screenshots"


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Lab:
    """A running server."""

    def __init__(self, url: str, root: Path) -> None:
        self.url = url
        self.root = root

    def write(self, name: str, cells: Sequence[str]) -> None:
        """Write a notebook of code cells."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        nbformat.write(notebook, self.root / name)


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """Start JupyterLab with settings of its own."""
    root, home = folder / "root", folder / "home"
    # What is configured by flags elsewhere has no flag: no questions about news and updates.
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    root.mkdir()
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    env = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={root}",
        f"--IdentityProvider.token={TOKEN}",
        "--LabApp.expose_app_in_browser=True",
    ]
    log = folder / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            cwd=root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(f"{url}/api?token={TOKEN}", server, log)
            yield Lab(url, root)
        finally:
            server.terminate()  # ends its kernels, which end their models
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text()[-3000:]) from None
            time.sleep(0.2)


class Notebook:
    """A notebook opened in JupyterLab."""

    def __init__(self, browser: Browser, server: Lab, name: str) -> None:
        self.page: Page = browser.new_page(viewport={"width": 1000, "height": 800})
        self.complaints: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        self.page.on("requestfailed", self._failed)
        self.page.on("response", self._response)
        self.foreign: list[str] = []
        self.page.on("request", lambda request: self._request(request, server.url))
        # Without `reset`, what an earlier test had open comes back, and asks for a kernel.
        self.page.goto(f"{server.url}/lab/tree/{name}?token={TOKEN}&reset")
        self.page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady", timeout=WAIT_MS
        )
        self.page.evaluate("window.jupyterapp.shell.currentWidget.context.ready")
        self.command("application:toggle-left-area")

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(f"console: {message.text}")

    def _failed(self, request: Any) -> None:
        self.complaints.append(f"failed: {request.url} {request.failure}")

    def _response(self, response: Any) -> None:
        if response.status >= 400:
            self.complaints.append(f"{response.status}: {response.url}")

    def _request(self, request: Any, home: str) -> None:
        if not request.url.startswith((home, "data:", "blob:")):
            self.foreign.append(request.url)

    def command(self, name: str, **arguments: Any) -> None:
        """Run a command of JupyterLab."""
        self.page.evaluate(
            "([name, args]) => window.jupyterapp.commands.execute(name, args)", [name, arguments]
        )

    def select(self, index: int) -> None:
        """Make a cell the active one."""
        self.page.evaluate(
            "i => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = i }", index
        )

    def start(self, index: int) -> None:
        """Run a cell; do not wait for its end."""
        self.select(index)
        self.page.evaluate("void window.jupyterapp.commands.execute('notebook:run-cell')")

    def run(self, index: int) -> None:
        """Run a cell to its end."""
        self.start(index)
        self.wait_idle(index)

    def wait_idle(self, index: int) -> None:
        """Wait until a cell has run."""
        self.page.wait_for_function(
            "i => { const cell = window.jupyterapp.shell.currentWidget.content.widgets[i];"
            " return cell.model.executionState === 'idle' && cell.model.executionCount; }",
            arg=index,
            timeout=WAIT_MS,
        )

    def output(self, index: int) -> Locator:
        """Return the output area of a cell."""
        return self.page.locator(".jp-Notebook-cell").nth(index).locator(".jp-OutputArea").first

    def theme(self, name: str) -> None:
        """Change the theme, and wait until it is there."""
        self.command("apputils:change-theme", theme=name)
        light = "true" if "Light" in name else "false"
        self.page.wait_for_selector(f"body[data-jp-theme-light='{light}']", state="attached")
        self.page.wait_for_timeout(500)  # style sheets are exchanged after the attribute

    def picture(self, name: str) -> None:
        """Keep a picture of the notebook."""
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.locator(".jp-NotebookPanel").screenshot(path=SCREENSHOTS / f"{name}.png")
