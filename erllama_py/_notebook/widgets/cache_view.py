"""The live view of the cache: a widget that a thread of ours keeps current.

The thread is the only one that writes the widget's state, as one value and so as one
message, and only when something has changed.  It never prints.  What the front end asks
for (a page, a pause) arrives on whatever thread the kernel likes; it is put down and the
thread woken, so the answer comes also while a cell runs.

State is in a trait, not in messages: a view that is opened later, or again after a
reload, is complete at once.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any, Final

import anywidget
import traitlets

import erllama_py
from erllama_py._notebook.report import (
    ROW_HEADS,
    cache_report,
    cache_rows,
    cache_words,
    session_count,
)
from erllama_py._notebook.text import size

__all__ = ("PAGE_ROWS", "CacheView", "view_state")

PAGE_ROWS: Final = 25
"""A table longer than a screen is not read while it moves."""

PERIOD_S: Final = 0.3
"""Between looks at the cache: it costs well under a millisecond, and more often than
three times a second nobody reads a number."""

_LAST_PAGE: Final = 1 << 30
"""Front ends send any number; beyond this one an offset is no machine word."""

_JITTER_S: Final = 1.5
_STATIC: Final = Path(__file__).parent / "static"
_VIEW_TYPE: Final = "application/vnd.jupyter.widget-view+json"


class CacheView(anywidget.AnyWidget):
    """Counters, tiers and rows of the cache, updated while it is open."""

    _esm = (_STATIC / "cache_view.js").read_text(encoding="utf-8")
    _css = (_STATIC / "cache_view.css").read_text(encoding="utf-8")

    state = traitlets.Dict().tag(sync=True)

    def __init__(self) -> None:
        self._page = 0
        self._paused = False
        self._wake = threading.Event()
        self._times: dict[str, float] = {}
        super().__init__(state=self._look())
        self.on_msg(self._asked)
        self._thread = threading.Thread(target=self._follow, name="cache-view", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether the front end can no longer be reached."""
        return self.comm is None

    def close(self) -> None:
        """End the view, here and in the front end."""
        super().close()
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def bundle(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what to display: the view, and text where there are no widgets."""
        reference = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {"text/plain": cache_report().plain, _VIEW_TYPE: reference}, {}

    def _asked(self, _: Any, content: Any, __: Any) -> None:
        """Note what a button asks for; on any thread."""
        match content:
            case {"page": int(page)}:
                self._page = page
            case {"paused": bool(paused)}:
                self._paused = paused
        self._wake.set()

    def _follow(self) -> None:
        try:
            while not self.closed:
                self._wake.wait(PERIOD_S)
                self._wake.clear()
                state = self._look()
                if state != self.state and not self.closed:
                    self.state = state
        except Exception:
            # At the end of a kernel its sockets go before its threads.
            logging.getLogger(__name__).debug("the live view has ended", exc_info=True)

    def _look(self) -> dict[str, Any]:
        if self._paused and self.state:
            return {**self.state, "paused": True}
        state = view_state(self._page)
        self._page = state["page"]
        known, self._times = self._times, {}
        now = time.time()
        for row, age in zip(state["rows"], state.pop("ages"), strict=True):
            # The same moment seen twice differs by clock noise, which is no news.
            used = now - age
            if abs(known.get(row[0], 0.0) - used) < _JITTER_S:
                used = known[row[0]]
            self._times[row[0]] = used
            row[-1] = round(used, 1)
        return {**state, "paused": False}


def view_state(page: int) -> dict[str, Any]:
    """Return what the front end draws.

    The last cell of a row is left to the caller, who knows the time: ``ages`` are the
    seconds since each was used.
    """
    api = erllama_py.api
    counters = api.counters()
    page = min(max(page, 0), _LAST_PAGE)
    snapshot = api.cache_snapshot(PAGE_ROWS, page * PAGE_ROWS)
    pages = max(1, -(-snapshot["row_count"] // PAGE_ROWS))
    if page >= pages:
        return view_state(pages - 1)
    infos = api.list_models()
    names = {info["fingerprint"].hex(): info["id"] for info in infos}
    rows = cache_rows(snapshot["rows"], names)
    return {
        "words": cache_words(counters, snapshot),
        "models": [f"{info['id']}: {info['phase']}{_kept(info['id'])}" for info in infos],
        "counters": [
            ["exact hits", counters["hits_exact"]],
            ["prefix hits", counters["hits_longest_prefix"]],
            ["resumed", counters["hits_resume"]],
            ["misses", counters["misses"]],
            ["blocks", snapshot["blocks"]["payloads"]],
            ["rows", snapshot["row_count"]],
            ["evictions", counters["evictions"]],
        ],
        "tiers": [
            {
                "name": tier["name"].upper(),
                "share": tier["bytes"] / tier["quota"] if tier["quota"] else 0.0,
                "text": f"{size(tier['bytes'])} of {size(tier['quota'])}",
            }
            for tier in snapshot["tiers"]
        ],
        "heads": list(ROW_HEADS),
        "rows": rows,
        "ages": [row["age_s"] for row in snapshot["rows"]],
        "first": page * PAGE_ROWS,
        "row_count": snapshot["row_count"],
        "page": page,
        "pages": pages,
    }


def _kept(model: str) -> str:
    """Say how many sessions have a sequence in a model's context, where any has."""
    count = session_count(model)
    return f", {count} session{'' if count == 1 else 's'}" if count else ""
