"""``erllama cache``: what the disk tier holds, and why a prompt finds it or not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erllama_py.cli.loading import loaded, lora_option, model_option
from erllama_py.cli.output import age, columns, count, emit, json_option, size
from erllama_py.cli.reading import prompt_of

if TYPE_CHECKING:
    from erllama_py._cache.inventory import Inventory, Owner, Pruned, StoredRow
    from erllama_py.config import Lora

__all__ = ("cache",)

_KEY_CHARS = 12
_LEAST_CHARS = 6
"""Of a key or fingerprint, that somebody must give."""


@click.group()
def cache() -> None:
    """See, explain and clear the cache on disk."""


@cache.command()
@click.option("--model", help="Only of this model: known name, GGUF file, or fingerprint.")
@click.option("--limit", default=20, show_default=True, help="Most rows; 0 for all.")
@json_option
def ls(model: str | None, limit: int, as_json: bool) -> None:
    """List what is stored; loads no model and disturbs nobody."""
    path, quota = _place()
    found = _survey(path)
    names = _names()
    chosen = _owners(found, model) if model else {owner.digest for owner in found.owners}
    rows = [row for row in found.rows if row.owner in chosen]
    shown = rows[: limit or None]
    owners = [owner for owner in found.owners if owner.digest in chosen]
    by_digest = {owner.digest: owner for owner in owners}
    if as_json:
        emit(
            {
                "path": str(path),
                "quota": quota,
                "capacity": found.capacity,
                "foreign_files": found.foreign,
                "named_rows": found.named,
                "named_bytes": found.named_bytes,
                "models": [_model_facts(owner, names) for owner in owners],
                "row_count": len(rows),
                "rows": [_row_facts(row, by_digest[row.owner], names) for row in shown],
            }
        )
        return
    click.echo(f"{path}: {size(found.capacity)} of {size(quota)}, {count(len(rows), 'row')}")
    if found.named:
        click.echo(f"saved by name: {count(found.named, 'row')}, {size(found.named_bytes)}")
    if found.foreign:
        click.echo(f"not ours, or of a later version: {count(found.foreign, 'file')}")
    for owner in owners:
        click.echo(
            f"\n{_name(owner, names)}  {owner.quant_type}  {count(owner.rows, 'row')}"
            f"  {size(owner.on_disk)}  {owner.engine.get('engine', '')}"
        )
        mine = [row for row in shown if row.owner == owner.digest]
        if mine:
            heads = ("  key", "tokens", "bytes", "reason", "hits", "age")
            for line in columns([heads, *(_cells(row) for row in mine)]):
                click.echo(line)
    if len(shown) < len(rows):
        click.echo(f"\n{len(rows) - len(shown)} more with --limit 0")


@cache.command()
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--model", help="All rows of a model: known name, GGUF file, or fingerprint.")
@click.option("--all", "everything", is_flag=True, help="All rows.")
@json_option
def rm(keys: tuple[str, ...], model: str | None, everything: bool, as_json: bool) -> None:
    """Remove rows by KEY, or the beginning of one, as ls shows it.

    What a running process has open stays; end it, or clear the cache there.
    """
    if bool(keys) + bool(model) + everything != 1:
        raise click.UsageError("give either KEYs, or --model, or --all")
    path, _ = _place()
    found = _survey(path)
    if everything:
        doomed = {row.key for row in found.rows}
    elif model:
        owners = _owners(found, model)
        doomed = {row.key for row in found.rows if row.owner in owners}
    else:
        doomed = {_row(found, key).key for key in keys}
    gone = _pruned(path, lambda row: row.key in doomed, unfiled=everything)
    _tell(gone, as_json)


@cache.command()
@click.option("--older-than", "days", type=float, help="Also rows not used for so many days.")
@click.option("--unfiled", is_flag=True, help="Also blocks that belong to no row.")
@json_option
def gc(days: float | None, unfiled: bool, as_json: bool) -> None:
    """Remove leftovers: what leads nowhere, is damaged, or was left by a dead process."""
    path, _ = _place()
    limit = None if days is None else time.time() - days * 86_400
    gone = _pruned(path, lambda row: limit is not None and row.used < limit, unfiled=unfiled)
    _tell(gone, as_json)


@cache.command()
@click.argument("prompt")
@model_option
@lora_option
@click.option("--chat", is_flag=True, help="PROMPT is a chat message.")
@json_option
def why(prompt: str, model: str, loras: list[Lora], chat: bool, as_json: bool) -> None:
    """Say what PROMPT would find in the cache, and why no more.  '-' reads it."""
    from erllama_py import api
    from erllama_py.cli.streaming import chat_tokens

    text = prompt_of(prompt)
    with loaded(model, loras=loras) as one:
        message = [{"role": "user", "content": text}]
        answer = api.explain(one, chat_tokens(one, message, None) if chat else text)
    if as_json:
        emit(answer)
        return
    tiers = " and ".join(kind for kind, tokens in answer["tiers"].items() if tokens)
    where = f" from {tiers}" if tiers else ""
    click.echo(f"{answer['kind']}: {answer['prefix_len']} of {answer['prompt_tokens']}{where}")
    click.echo(answer["why"])


# -- what is meant ------------------------------------------------------------------------


def _place() -> tuple[Path, int]:
    """Return where the disk tier is, and its quota."""
    from erllama_py._machine.environment import Environment
    from erllama_py._machine.quotas import default_disk_quota

    settings = Environment().cache()
    quota = settings.disk
    return settings.disk_dir, default_disk_quota(settings.disk_dir) if quota is None else quota


def _survey(path: Path) -> Inventory:
    from erllama_py._cache.inventory import survey

    try:
        return survey(path)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}") from error


def _pruned(path: Path, doomed: Callable[[StoredRow], bool], *, unfiled: bool) -> Pruned:
    from erllama_py._cache.inventory import prune

    try:
        return prune(path, doomed, unfiled=unfiled)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be tidied: {error.strerror}") from error


def _owners(found: Inventory, model: str) -> set[bytes]:
    """Return the identities a model has rows under: its file's, or those of a fingerprint."""
    wanted = model.lower()
    if len(wanted) >= _LEAST_CHARS and not set(wanted) - set("0123456789abcdef"):
        chosen = {o.digest for o in found.owners if o.fingerprint.hex().startswith(wanted)}
        if chosen:
            return chosen
    prints = _fingerprints(model)
    return {owner.digest for owner in found.owners if owner.fingerprint in prints}


def _fingerprints(model: str) -> set[bytes]:
    """Return the fingerprints a model may have been loaded under.

    :raises ErllamaError: no such file.
    """
    from erllama_py import api
    from erllama_py._machine.digests import Digests
    from erllama_py._machine.fingerprint import facts_of, identify
    from erllama_py.errors import ErllamaError

    _, path = api.resolve_model(model)
    try:
        facts = facts_of(path)
        digests = Digests()
        made = identify(facts, None, digests)
    except OSError as error:
        raise ErllamaError(
            "load_failed",
            f"{path} cannot be read: {error.strerror}",
            "give a GGUF file, a known name, or a fingerprint as erllama cache ls shows it",
        ) from error
    known = set(digests.read(facts).made.values())
    return known if made is None else known | {made.digest}


def _names() -> dict[bytes, str]:
    """Return the models on this machine by fingerprint, as far as those are known."""
    from erllama_py import api
    from erllama_py._machine.digests import Digests
    from erllama_py._machine.fingerprint import facts_of

    names: dict[bytes, str] = {}
    digests = Digests()
    for found in api.find_models():
        try:
            known = digests.read(facts_of(found["path"]))
        except OSError:
            continue
        for digest in known.made.values():
            names.setdefault(digest, found["name"])
    return names


def _row(found: Inventory, key: str) -> StoredRow:
    wanted = key.lower()
    if len(wanted) < _LEAST_CHARS:
        raise click.UsageError(f"{key!r} is too short: give at least {_LEAST_CHARS} digits")
    fitting = [row for row in found.rows if row.key.hex().startswith(wanted)]
    if len({row.key for row in fitting}) != 1:
        what = "is the beginning of several keys" if fitting else "is no key of a row"
        raise click.ClickException(f"{key} {what}\n  hint: erllama cache ls --json has whole keys")
    return fitting[0]


# -- what is shown ------------------------------------------------------------------------


def _name(owner: Owner, names: dict[bytes, str]) -> str:
    known = names.get(owner.fingerprint)
    short = owner.fingerprint.hex()[:_KEY_CHARS] or "unknown"
    return f"{known} ({short})" if known else short


def _cells(row: StoredRow) -> tuple[str, ...]:
    return (
        f"  {row.key.hex()[:_KEY_CHARS]}",
        str(row.tokens),
        size(row.nbytes),
        row.reason if row.whole else "incomplete",
        str(row.hits),
        age(time.time() - row.used),
    )


def _model_facts(owner: Owner, names: dict[bytes, str]) -> dict[str, Any]:
    return {
        "model": names.get(owner.fingerprint),
        "fingerprint": owner.fingerprint,
        "quant_type": owner.quant_type,
        "engine": owner.engine,
        "rows": owner.rows,
        "files": owner.files,
        "bytes": owner.on_disk,
    }


def _row_facts(row: StoredRow, owner: Owner, names: dict[bytes, str]) -> dict[str, Any]:
    return {
        "key": row.key,
        "model": names.get(owner.fingerprint),
        "fingerprint": owner.fingerprint,
        "tokens": row.tokens,
        "bytes": row.nbytes,
        "complete": row.whole,
        "reason": row.reason,
        "hits": row.hits,
        "age_s": max(0, int(time.time()) - row.used),
        "created": row.created,
    }


def _tell(gone: Pruned, as_json: bool) -> None:
    if as_json:
        emit({"rows": gone.rows, "files": gone.files, "bytes": gone.freed, "busy": gone.busy})
        return
    click.echo(f"removed {count(gone.rows, 'row')}, {size(gone.freed)}")
    if gone.busy:
        click.echo(f"{count(gone.busy, 'row')} stay: a running process has them", err=True)
