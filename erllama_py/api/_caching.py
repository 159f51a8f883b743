"""The cache: why a prompt hits what it hits, rows as files, and proof."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from erllama_py._cache.kvcfile import KvcDirectory
from erllama_py._engine import exactness, exchange
from erllama_py._engine.exchange import TIMEOUT_S
from erllama_py._engine.explain import explain_prompt, explain_request
from erllama_py._engine.registry import core
from erllama_py._engine.request import Request
from erllama_py._engine.stream import Stream
from erllama_py.api._asking import ModelArg, Options, Tokens, answered, checked_tokens, prompt_bytes
from erllama_py.api._text import tokenize
from erllama_py.config import invalid, parse_request
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Event, Ref

__all__ = ("explain", "export_row", "flush", "import_rows", "verify_exact")

VERIFIED_TOKENS: Final = 32
"""Tokens that verify_exact generates where it is not told how many."""


def explain(model: ModelArg, what: Any = None, options: Options | None = None) -> dict[str, Any]:
    """Return what a request hit, and why it hit no more.

    Of requests the latest 64 are remembered, as they were answered: what was stored since
    does not count.  Asking about a prompt is no use of the cache: nothing is counted,
    pinned, or kept longer for it.

    ====================  =================================================================
    key                   value
    ====================  =================================================================
    ``reason``            what weighs most, an atom: see below
    ``why``               all reasons in words, one line
    ``kind``              ``exact``, ``partial``, ``sticky`` or ``cold``, as admitted
    ``via``               how it was found: ``exact``, ``resume``, ``longest_prefix``,
                          ``cold``; ``None`` where nothing was looked up
    ``prompt_tokens``     length of the prompt
    ``prefix_len``        tokens of it that were found, as admitted
    ``exactness``         ``bit``, ``stream`` or ``token``; ``None`` for a cold one
    ``tiers``             kind of tier to tokens found there: ``ram``, ``ram_file``, ``disk``
    ``lookup_ms``         time of the lookup; ``None`` where there was none
    ``restore_ms``        time of reading, verifying and unpacking, most of it beside other
                          work; ``None`` where nothing was restored, or not yet
    ``nearest_row``       the row that shares most with the prompt: its ``key``, how many
                          ``tokens`` it has, how many are ``shared``; ``None`` for an exact
                          hit, and where no row shares one
    ``first_difference``  where the prompt leaves all that is cached under its key:
                          ``index``, ``prompt_token`` and ``prompt_text`` there,
                          ``cached_token`` and ``cached_text`` of the nearest context
                          (``None`` where that ends), and ``before``, the text of up to four
                          tokens before; ``None`` where all of the prompt is cached
    ``evicted_row``       the longest row that the prompt begins with and that was evicted,
                          where that had more: ``key`` and ``tokens``; else ``None``
    ``other_keys``        where more of the prompt is cached under another key, the most
                          first: ``shared`` tokens, and what ``differs``: field to (value
                          here, value there); ``None`` where a request is too long ago to
                          tell
    ====================  =================================================================

    ========================  =============================================================
    ``reason``                meaning
    ========================  =============================================================
    ``exact``                 a row of exactly these tokens is cached
    ``sticky``                it went on in its session's sequence; nothing was looked up
    ``restore_failed``        what was found was damaged, and computed instead
    ``cancelled``             it was cancelled before what was found was restored
    ``quicker_to_compute``    more is cached, but computing it takes less time
    ``below_min_tokens``      less is cached than the policy's ``min_tokens``
    ``not_bit_exact``         more is cached, but not bit for bit, as was asked for
    ``computed_differently``  more is cached, computed in another chunk or thread count
    ``whole_rows``            more is cached, but this model restores rows only as a whole
    ``no_row``                all tokens are cached, but no row of exactly these
    ``evicted``               a row with more of it was cached, and has been evicted
    ``other_key``             more is cached under another key
    ``diverged``              another token follows in the nearest cached context
    ``ended``                 the nearest cached context ends there
    ``unknown``               nothing that is cached begins with its first token
    ``not_cached``            nothing is cached for the model, or of the request
    ``waiting``               nothing is looked up for it yet
    ``not_looked_up``         it ended before that
    ========================  =============================================================

    Texts are ``bytes`` where a character is cut; a token without a text of its own, such
    as a control token, is shown as ``<token 2>``.

    :param what: a prompt, as text or tokens, for what the next admission would find; or a
        request: a :class:`~erllama_py.types.Ref`, a :class:`Stream`, the result of a
        completion, its ``stats``, or a ``done`` event; nothing for the latest admitted.
    :param options: of the request that the prompt would be: ``exactness``,
        ``parent_key`` and ``session_id`` count.
    :raises ErllamaError: ``not_found``: the request is not remembered, or there was none;
        for a prompt as :func:`infer`.
    :raises ModelGone: unknown model.
    """
    host = core().host(model)
    request = what
    if isinstance(what, (Stream, Event)):
        request = what.ref
    if request is None or isinstance(request, (Ref, Mapping)):
        return explain_request(host, request)
    parsed = parse_request({} if options is None else options, host.config.exactness, None)
    tokens = tokenize(model, what) if isinstance(what, (str, bytes)) else what
    prompt = checked_tokens(host, "prefill_only", tokens)
    return explain_prompt(host, prompt.tobytes(), parsed)


def flush(timeout_s: float | None = None) -> bool:
    """Wait until what is cached is in its file tier too; False if the time ran out.

    Nothing needs this: saving goes on by itself, also for the last moments of the process.
    It is for who wants to be sure, such as before a machine is switched off.
    """
    done: bool = core().cache.flush(timeout_s)
    return done


def export_row(key: bytes, directory: str | Path, *, timeout_s: float = TIMEOUT_S) -> str:
    """Write a row of the cache into a KVC file; return its path.

    Not in erllama, whose rows are such files from the start; ours are blocks until they
    are exported.  *Export*, since the row stays in the cache as it is; one *row*, since
    that is what a ``finish_key`` names.  The file is called ``<key in hex>.kvc``, so a
    directory of them is what the original calls a disk tier.  It is the KV alone, without
    logits.

    :param key: 32 bytes, such as a ``finish_key``.
    :param directory: made where it is not there.
    :param timeout_s: how long to wait for a free slot of the model.
    :raises ErllamaError: ``not_found``: no such row; ``model_not_loaded``: the model that
        computed it is not loaded; ``busy``: no slot was free in time; ``window``: it ends
        inside a longer row, where the cells that a sliding window looks at are gone;
        ``damaged``; ``{cannot_create_dir, Dir, Reason}``, or why it cannot be written.
    """
    if not isinstance(key, bytes):
        raise BadCall("function_clause", f"a key is 32 bytes, not {key!r}")
    rows = KvcDirectory(Path(directory))
    return str(rows.save(*exchange.export(key, timeout_s)).path)


def import_rows(
    path: str | Path, *, trust: bool = False, timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """Take the row of a KVC file into the cache, or those of a directory.

    Not in erllama, which finds rows in its directories by itself.  Afterwards they serve
    at exactness ``token``: a repeat is ``exact`` and decodes its last token again, any
    prompt that begins alike is ``partial``.  Rows of models that keep states, and rows
    longer than a sliding window, cannot be cut: they serve prompts that go on from their
    very end.  The files stay; what is there already stays as it is.

    Each goes through a loaded model with the row's fingerprint, ``quant_type`` and
    ``ctx_params_hash``, which checks it piece by piece: one that the engine does not take
    is refused, and counted in ``corrupt_files``.

    :param path: a file, or a directory whose ``*.kvc`` are meant.
    :param trust: also take files that do not say which engine computed them, as the
        original's.  Then it is you who says so: the same llama.cpp build, KV types, flash
        attention and rope settings.  Another engine's KV of the same size cannot be told
        from the right one, and the replies from it would be wrong.
    :param timeout_s: how long each waits for a free slot.
    :return: ``imported``, a list of keys, and ``refused``, a list of (path, error) of the
        files of a directory that were not taken.
    :raises ErllamaError: why the one file was not taken: ``model_not_loaded``, ``foreign``,
        ``untrusted``, ``damaged``, ``rejected``, ``busy``, ``quota_exceeded``,
        ``context_overflow``, or what is wrong with the file.
    """
    where = Path(path)
    if not where.is_dir():
        return {
            "imported": [exchange.import_file(where, trust=trust, timeout_s=timeout_s)],
            "refused": [],
        }
    imported, refused = [], []
    for file in sorted(where.glob("*.kvc")):
        try:
            imported.append(exchange.import_file(file, trust=trust, timeout_s=timeout_s))
        except ErllamaError as error:
            refused.append((str(file), error))
    return {"imported": imported, "refused": refused}


def verify_exact(
    model: ModelArg,
    prompt: str | bytes | Tokens,
    options: Options | None = None,
    *,
    tokens: int | None = None,
) -> dict[str, Any]:
    """Run a prompt cold and warm, and compare the logits of every token.

    The cold run takes nothing from the cache, adds nothing to it, and is computed alone.
    The warm run is the request as it is; where it finds nothing, it is made once more,
    and finds what it has left.  Both wait their turn; nobody else's rows are touched.

    ======================  =============================================================
    key                     value
    ======================  =============================================================
    ``equal``               whether tokens and logits are the same, bit for bit
    ``same_tokens``         whether the tokens are
    ``largest_difference``  of two logits, over all positions compared
    ``first_difference``    the generated token, counted from 0, at which logits differ
    ``positions``           tokens whose logits were compared: to the first other token
    ``kind``                of the warm run's hit: ``exact``, ``partial``, ``cold``
    ``prefix_len``          tokens of the prompt that it found
    ``exactness``           what that hit promised: ``bit``, ``stream``, ``token``; ``None``: cold
    ``tier``                the slowest tier it was in: ``ram``, ``ram_file``, ``disk``
    ======================  =============================================================

    Not in erllama.  At exactness ``bit`` it is always equal.  At ``token``, the default,
    other cuts and company may move logits by about 1, where the largest are some 20.

    :param prompt: a text, or token ids.
    :param options: as those of :func:`complete`.
    :param tokens: how many to generate; otherwise ``response_tokens``, or 32.  Each
        takes 4 bytes of memory for every token of the vocabulary, in each run.
    :raises ErllamaError: as :func:`complete`; ``{invalid, tokens, Value}`` below 1.
    :raises ModelGone: as :func:`complete`.
    """
    host = core().host(model)
    parsed = parse_request(
        {} if options is None else options, host.config.exactness, VERIFIED_TOKENS
    )
    count = parsed.generate.response_tokens if tokens is None else tokens
    if type(count) is not int or count < 1:
        raise invalid("tokens", count, "how many to compare, from 1")
    if isinstance(prompt, (str, bytes)):
        asked: dict[str, Any] = {"text": prompt_bytes(prompt)}
    else:
        asked = {"tokens": checked_tokens(host, "complete", prompt)}

    def run(**changes: bool) -> Request:
        generate = msgspec.structs.replace(
            parsed.generate, response_tokens=count, trace=True, **changes
        )
        request = Request("complete", generate, parent_key=parsed.parent_key, **asked)
        answered(host, request)
        return request

    cold, warm = run(cached=False, bit=True), run()
    if warm.kind == "cold":
        warm = run()
    return exactness.compare(cold, warm)
