"""``erllama doctor``: what is wrong with this machine, and what to do."""

from __future__ import annotations

import click

from erllama_py.cli.output import count, emit, json_option

__all__ = ("doctor",)

_MARKS = {"ok": ("ok   ", "green"), "note": ("note ", "yellow"), "wrong": ("WRONG", "red")}


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is wrong with this machine, and what to do.

    Exit status 1 where something is wrong.
    """
    from erllama_py.cli.checks import CHECKS

    found = [finding for check in CHECKS for finding in check()]
    wrong = sum(one.status == "wrong" for one in found)
    if as_json:
        emit({"ok": not wrong, "findings": [one._asdict() for one in found]})
    else:
        for one in found:
            mark, colour = _MARKS[one.status]
            click.echo(f"{click.style(mark, fg=colour)}  {one.check}: {one.found}")
            if one.mend:
                click.echo(f"         mend: {one.mend}")
        click.echo(f"\n{count(wrong, 'thing')} wrong" if wrong else "\nnothing is wrong")
    if wrong:
        raise SystemExit(1)
