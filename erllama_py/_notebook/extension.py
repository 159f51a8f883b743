"""``%load_ext erllama_py`` and back: what is added to a shell, and removed again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from erllama_py._notebook.magics import LAST_REPLY, ErllamaMagics

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ("load", "unload")

_NAME: Final = ErllamaMagics.__name__
_MAGIC: Final = "%%erllama"


def load(shell: InteractiveShell) -> None:
    """Add the magics, their completions, and what makes an empty cell reach them."""
    if _NAME in shell.magics_manager.registry:
        return
    magics = ErllamaMagics(shell)
    shell.register_magics(magics)
    shell.input_transformers_cleanup.append(keep_empty_cell)
    shell.Completer.custom_matchers.append(magics.matcher)


def unload(shell: InteractiveShell) -> None:
    """Take everything away again; IPython has no call for that.

    Models stay loaded: they are the process's, and Python code may be using them.
    """
    manager: Any = shell.magics_manager
    magics = manager.registry.pop(_NAME, None)
    if magics is None:
        return
    magics.close()
    for kind in ("line", "cell"):
        manager.magics[kind].pop("erllama", None)
    shell.configurables.remove(magics)
    shell.input_transformers_cleanup.remove(keep_empty_cell)
    shell.Completer.custom_matchers.remove(magics.matcher)
    shell.user_ns.pop(LAST_REPLY, None)


def keep_empty_cell(lines: list[str]) -> list[str]:
    """Give a ``%%erllama`` cell without a body an empty line as its body.

    IPython answers a cell magic without a body with a ``UsageError`` of its own, which
    counts as success; and with ``-i`` there need not be a body.
    """
    if len(lines) == 1 and lines[0].split(maxsplit=1)[:1] == [_MAGIC]:
        return [lines[0].rstrip("\n") + "\n", "\n"]
    return lines


# In a terminal, a cell magic is complete at an empty line: this must not put one there.
keep_empty_cell.has_side_effects = True  # type: ignore[attr-defined]  # IPython looks for it
