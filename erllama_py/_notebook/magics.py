"""``%erllama`` manages models and shows the cache; ``%%erllama`` sends its cell to a model."""

from __future__ import annotations

import argparse
import contextlib
import json
import keyword
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import traitlets
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand

import erllama_py
from erllama_py._notebook import report
from erllama_py._notebook.args import (
    COMMANDS,
    DEFAULT_MAX_TOKENS,
    PROMPT,
    BadUsage,
    nearest,
    parse,
    split,
)
from erllama_py._notebook.completer import make_matcher
from erllama_py._notebook.generate import generate, prompt_text, prompt_tokens, schema_of
from erllama_py._notebook.lora import attach, detach, lora_report
from erllama_py._notebook.models import Models
from erllama_py._notebook.render import MODES, in_kernel, note, surface
from erllama_py._notebook.reply import Reply
from erllama_py._notebook.talks import Talks
from erllama_py._notebook.text import escape
from erllama_py._notebook.why import why_report
from erllama_py.errors import ErllamaError

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from erllama_py._notebook.widgets.cache_view import CacheView

__all__ = ("LAST_REPLY", "ErllamaMagics")

_HELP: Final = frozenset(("-h", "--help"))

LAST_REPLY: Final = "_erllama"
"""The one name that is bound without being asked for."""


@magics_class
class ErllamaMagics(Magics):
    """The magics; their settings are ``%config ErllamaMagics.NAME = VALUE``."""

    render = traitlets.Enum(
        MODES,
        "auto",
        help="live: replies grow in their cell; final: they appear when whole",
    ).tag(config=True)
    max_tokens = traitlets.Int(
        DEFAULT_MAX_TOKENS, min=1, help="most tokens of a reply whose cell does not say"
    ).tag(config=True)

    def __init__(self, shell: InteractiveShell, **kwargs: Any) -> None:
        super().__init__(shell, **kwargs)
        self._shell = shell
        self.models = Models()
        self.talks = Talks()
        self.matcher = make_matcher(self.models, self.talks, shell)
        self._view: CacheView | None = None

    @no_var_expand
    @line_magic("erllama")  # type: ignore[arg-type]  # IPython types its bare form only
    def line(self, line: str) -> None:
        """Run a command."""
        name, *words = split(line) or ["help"]
        if name in _HELP:
            name, words = "help", []
        if name not in COMMANDS:
            hint = nearest(name, list(COMMANDS)) or "%erllama help lists the commands"
            raise BadUsage(f"there is no command {name!r}", hint)
        if not _HELP.isdisjoint(words):
            name, words = "help", [name]
        getattr(self, f"_{name}")(parse(COMMANDS[name], words))

    @no_var_expand
    @cell_magic("erllama")  # type: ignore[arg-type]
    def cell(self, line: str, cell: str) -> None:
        """Send the cell."""
        words = split(line)
        if not _HELP.isdisjoint(words):
            note(report.help_text(None))  # whoever asks for help sends nothing
            return
        arguments = parse(PROMPT, words)
        with self._short_errors(whole=arguments.traceback):
            _check_name(arguments.output)
            text, system = prompt_text(
                arguments, cell, self._shell.user_ns, typed=not in_kernel(self._shell)
            )
            schema = schema_of(arguments.json_schema, self._shell.user_ns)
            talk = None if arguments.session is None else self.talks.get(arguments.session)
            where = surface(self._shell, self.render)
            model = self.models.find(arguments.model)
            tokens = prompt_tokens(model, arguments, text, system, talk)

            def keep(reply: Reply) -> None:
                self._shell.user_ns[LAST_REPLY] = reply
                # Under a schema the name is for what the reply says, once it is whole.
                if arguments.output and schema is None:
                    self._shell.user_ns[arguments.output] = reply
                if reply.stats or reply.interrupted:
                    if talk is not None:
                        talk.add(text, reply)
                        self.talks.keep(talk)
                    note(reply.summary, f"<small>{escape(reply.summary)}</small>")

            limit = arguments.max or self.max_tokens
            generate(
                model, tokens, arguments, where, limit=limit, keep=keep, schema=schema, talk=talk
            )
            if arguments.output and schema is not None:
                self._shell.user_ns[arguments.output] = _said(self._shell.user_ns[LAST_REPLY])

    def close(self) -> None:
        """Stop what runs for the front end; models stay loaded."""
        if self._view is not None:
            self._view.close()
            self._view = None

    # -- commands: each takes its parsed line -------------------------------------------------

    def _load(self, arguments: argparse.Namespace) -> None:
        # The configuration brings in what a model is made of; %load_ext must not wait for it.
        from erllama_py.config import parse_loras  # noqa: PLC0415

        loras = parse_loras(arguments.lora)
        model, fresh = self.models.load(arguments)
        try:
            words = [attach(model, path, scale) for path, scale in loras]
        except ErllamaError:
            if fresh:  # a cell that failed leaves nothing behind
                self.models.unload(model)
            raise
        if fresh:
            size = erllama_py.api.model_info(model)["context_size"]
            note(f"{model} is ready, with a context of {size} tokens.")
        else:
            note(f"{model} is loaded already.")
        for line in words:
            note(line)

    def _unload(self, arguments: argparse.Namespace) -> None:
        note(f"{self.models.unload(arguments.argument)} is unloaded.")

    def _use(self, arguments: argparse.Namespace) -> None:
        note(f"Cells talk to {self.models.use(arguments.argument)} now.")

    def _lora(self, arguments: argparse.Namespace) -> None:
        path, scale = arguments.argument, arguments.scale
        if scale is not None and (path is None or arguments.unload):
            other = "--unload" if arguments.unload else "no PATH"
            raise BadUsage(f"--scale with {other} means nothing", "%erllama lora PATH --scale 0.5")
        model = self.models.find(arguments.model)
        if arguments.unload:
            note(detach(model, path))
        elif path is not None:
            note(attach(model, path, 1.0 if scale is None else scale))
        else:
            note(*lora_report(model))

    def _session(self, arguments: argparse.Namespace) -> None:
        name, models = arguments.argument, self.models.loaded()
        if arguments.end:
            note(self.talks.end(name, models))
        elif name is not None:
            note(self.talks.show(name))
        else:
            note(*self.talks.report(models))

    def _models(self, _: argparse.Namespace) -> None:
        note(*report.model_report(self.models.loaded(), self.models.current))

    def _status(self, _: argparse.Namespace) -> None:
        note(*report.status_report(self.models.loaded(), self.models.current))

    def _cache(self, arguments: argparse.Namespace) -> None:
        if arguments.stop:
            self.close()
            note("The live view has ended.")
        elif arguments.live and in_kernel(self._shell):
            self._show_view()
        else:
            note(*report.cache_report())
            if arguments.live:
                note("A live view needs a notebook: this is what the cache is now.")

    def _why(self, arguments: argparse.Namespace) -> None:
        name = arguments.argument or LAST_REPLY
        found = self._shell.user_ns.get(name)
        if not isinstance(found, Reply):
            if arguments.argument is None:
                raise BadUsage("no cell has been sent yet", "send one with %%erllama")
            raise BadUsage(f"{name!r} is no reply", "%%erllama -o NAME binds one")
        note(*why_report(erllama_py.api.explain(found.model, found.ref), found.model))

    def _verify(self, arguments: argparse.Namespace) -> None:
        model = self.models.find(arguments.model)
        options = {"exactness": arguments.exactness}
        text = arguments.argument
        found = erllama_py.api.verify_exact(model, text, options, tokens=arguments.max)
        note(report.verify_words(found))

    def _version(self, _: argparse.Namespace) -> None:
        note(report.version_text())

    def _help(self, arguments: argparse.Namespace) -> None:
        note(report.help_text(arguments.argument))

    # -- helpers ------------------------------------------------------------------------------

    def _show_view(self) -> None:
        """Display the live view; there is one, however often it is shown."""
        if self._view is None or self._view.closed:
            self._view = _open_view()
        self._shell.display_pub.publish(*self._view.bundle())

    @contextlib.contextmanager
    def _short_errors(self, *, whole: bool) -> Iterator[None]:
        """Show an interrupt in a line, and everything whole where that was asked for."""
        try:
            yield
        except BaseException as error:
            if whole:
                self._show_whole(error)
            elif isinstance(error, KeyboardInterrupt):
                _set_traceback(error, lambda: ["KeyboardInterrupt: the cell was interrupted"])
            raise

    def _show_whole(self, error: BaseException) -> None:
        def lines() -> list[str]:
            whole: list[str] = self._shell.InteractiveTB.structured_traceback(
                type(error), error, error.__traceback__
            )
            return whole

        _set_traceback(error, lines)


# Who asks %erllama? or %%erllama? wants what %erllama help says.
for _magic in ("line", "cell"):
    vars(ErllamaMagics)[_magic].__doc__ = report.help_text()


def _check_name(name: str | None) -> None:
    if name is not None and (not name.isidentifier() or keyword.iskeyword(name)):
        raise BadUsage(f"{name!r} cannot be the name of a variable", "give -o a name like answer")


def _said(reply: Reply) -> Any:
    """Return the JSON that a reply is.

    :raises ErllamaError: it was cut; the reply stays what the latest one is.
    """
    if reply.finish_reason != "stop" or "stop_sequence" in reply.stats:
        limit = f"after {len(reply.tokens)} tokens"
        raise ErllamaError(
            "length",
            f"the reply was cut {limit}: it is no JSON, and nothing was bound",
            f"raise --max; {LAST_REPLY}.text has what there is",
        )
    return json.loads(reply.text)


def _set_traceback(error: BaseException, lines: Callable[[], list[str]]) -> None:
    """Set what IPython shows instead of the stack."""
    error.__dict__["_render_traceback_"] = lines


def _open_view() -> CacheView:
    """Start the live view.

    :raises ErllamaError: the widget library is not installed.
    """
    try:
        # Half of what %load_ext would cost; most notebooks show no widget.
        from erllama_py._notebook.widgets.cache_view import CacheView  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ErllamaError(
            "not_supported",
            f"the live view needs {error.name}",
            "pip install 'erllama-py[notebook]', then restart the kernel",
        ) from None
    return CacheView()
