"""The façade: erllama's functions under their Erlang names.

Shapes are the original's, with Python's values in them: ids and texts are ``str``
(``bytes`` are accepted, and returned where a text is not valid UTF-8), option maps are
dicts keyed by the atoms' names, atoms as values are
:class:`~erllama_py.types.Atom`, ``undefined`` is ``None``.  ``{ok, X}`` returns ``X``,
``{error, R}`` raises :class:`~erllama_py.errors.ErllamaError` with ``.reason``.

``model`` is a model id, a :class:`~erllama_py.types.ModelPid`, or what
:func:`load_model` returned.  Every function may be called from any thread.
"""

from __future__ import annotations

import os
import queue
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, overload

import msgspec

from erllama_py._cache.kvcfile import KvcDirectory
from erllama_py._engine import exactness, exchange
from erllama_py._engine.device_memory import device_memory
from erllama_py._engine.drafting import draft, verify_request
from erllama_py._engine.exchange import TIMEOUT_S
from erllama_py._engine.explain import explain_prompt, explain_request
from erllama_py._engine.host import ModelHost
from erllama_py._engine.prompt import refusal
from erllama_py._engine.registry import Watcher, core, id_text
from erllama_py._engine.request import Request
from erllama_py._engine.stream import Stream
from erllama_py._engine.utf8 import Utf8Assembler
from erllama_py._machine.catalogue import find_models as _find_models
from erllama_py._machine.catalogue import is_known as _is_known
from erllama_py._machine.catalogue import resolve_model as _resolve_model
from erllama_py.config import DEFAULT_INFER_TOKENS, RequestOptions, invalid, parse_request
from erllama_py.errors import BadCall, ErllamaError
from erllama_py.types import Atom, Event, ModelPid, Ref, text_of

__all__ = (
    "Model",
    "Stream",
    "apply_chat_template",
    "cache_snapshot",
    "cancel",
    "complete",
    "counters",
    "detokenize",
    "draft_tokens",
    "embed",
    "evict",
    "explain",
    "export_row",
    "find_models",
    "flush",
    "import_rows",
    "infer",
    "last_cache_hit",
    "list_adapters",
    "list_cached_prefixes",
    "list_models",
    "load_adapter",
    "load_model",
    "model_info",
    "models",
    "pending_len",
    "phase",
    "prefill_only",
    "queue_depth",
    "resolve_model",
    "set_adapter_scale",
    "shutdown",
    "start",
    "status",
    "tokenize",
    "unload",
    "unload_adapter",
    "unload_model",
    "verify",
    "verify_exact",
    "vram_info",
    "watch",
)

ModelArg = str | bytes | ModelPid
Tokens = Sequence[int] | Iterable[int]
Options = Mapping[str, Any]

VERIFIED_TOKENS: Final = 32
"""Tokens that verify_exact generates where it is not told how many."""


# -- models -----------------------------------------------------------------------------


def load_model(*args: Any) -> Model:
    """Load a model: ``load_model(config)`` or ``load_model(model_id, config)``.

    ``config["model_path"]`` is a GGUF file or a known name (``smollm2``).  See the
    reference page "load config" for all keys.

    :return: the id, a ``str`` with methods for everyday use.
    :raises ErllamaError: ``already_loaded``, ``load_failed``, ``malformed_gguf``,
        ``context_failed``, ``oom``, ``badarg``, ``{badkey, model_path}``,
        ``{invalid, Key, Value}``.  Nothing is left behind.
    :raises BadCall: the id is not a text, or the config not a mapping.
    """
    match args:
        case (config,):
            return Model(core().load(None, _mapping(config, "config")))
        case (model_id, config):
            return Model(core().load(id_text(model_id), _mapping(config, "config")))
        case _:
            raise TypeError("load_model takes a config, or an id and a config")


def unload(model: ModelArg) -> Atom:
    """End a model and free its id.

    Live streams get an ``error`` event with reason ``{unloaded, shutdown}``; calls that
    wait raise :class:`~erllama_py.errors.ModelGone`.  What they have computed is saved
    before, as :func:`shutdown` does, within the same time.

    :return: ``ok``.
    :raises ErllamaError: ``not_found``.
    """
    core().unload(model if isinstance(model, ModelPid) else id_text(model))
    return Atom("ok")


def unload_model(model: ModelArg) -> Atom:
    """Do what :func:`unload` does."""
    return unload(model)


def models() -> list[ModelPid]:
    """Return the pids of the live model processes."""
    return [pid for host in core().hosts() if (pid := host.pid) is not None]


def list_models() -> list[dict[str, Any]]:
    """Return :func:`model_info` of every model that is up; do not rely on the order."""
    return [_info(host) for host in core().hosts() if host.pid is not None]


def model_info(model: ModelArg) -> dict[str, Any]:
    """Return what a model is and does (16 keys, see the reference).

    :raises ModelGone: unknown model.
    """
    return _info(core().host(model))


def resolve_model(value: Any) -> tuple[bool, str]:
    """Return what a ``model_path`` option means: whether it is a known name, and the file.

    :raises ErllamaError: ``badarg``; ``load_failed`` for a known name not installed.
    """
    return _is_known(value), _resolve_model(value)


def find_models() -> list[dict[str, Any]]:
    """Return the model files on this machine: ``name``, ``path``, ``size`` in bytes.

    ``name`` is what ``model_path`` accepts: a known name, or the path again.
    """
    return [
        {"name": found.name, "path": str(found.path), "size": found.size}
        for found in _find_models()
    ]


def status(model: ModelArg) -> Atom:
    """Return ``idle``, ``prefilling`` or ``generating``.

    :raises ModelGone: unknown model; :func:`phase` answers ``idle`` instead.
    """
    return Atom(core().host(model).phase)


def evict(model: ModelArg) -> Atom:
    """Save what running requests have computed, and free their live KV.

    Each leaves a row with reason ``evict``, however short.  The requests go on: they are
    queued first and restored from there.  Where that is not the same, the KV stays: at
    exactness ``bit``, and where nothing could be saved.

    :return: ``ok``, always; after ``evict_save_timeout_ms`` (30 s) at the latest.
    :raises ModelGone: unknown model, or it died meanwhile.
    """
    core().save_live(model, "evict")
    return Atom("ok")


def shutdown(model: ModelArg) -> Atom:
    """Save what running requests have computed, as far as to the model's file tier.

    Each leaves a row with reason ``shutdown``, however short.  Nothing is stopped:
    that is what :func:`unload` does, which saves these rows too.

    :return: ``ok``, always; after ``evict_save_timeout_ms`` (30 s) at the latest.
    :raises ModelGone: unknown model, or it died meanwhile.
    """
    core().save_live(model, "shutdown")
    return Atom("ok")


# -- text and tokens --------------------------------------------------------------------


def tokenize(model: ModelArg, text: str | bytes) -> list[int]:
    """Tokenise a text as a prompt: BOS is added where the vocabulary asks for it.

    Special-token syntax in the text stays text.  Does not wait for running requests.

    :raises ErllamaError: ``too_large`` (4 MiB, or 1 048 576 tokens).
    """
    return _tokens_of(core().host(model).call("tokenize", _prompt(text)))


def detokenize(model: ModelArg, tokens: Tokens) -> str | bytes:
    """Return the text of tokens; control tokens render empty.

    :raises ErllamaError: ``invalid_token``.
    """
    data: bytes = core().host(model).call("detokenize", _token_array(tokens).tobytes())
    return text_of(data)


def apply_chat_template(model: ModelArg, request: Options) -> list[int]:
    """Render a chat request with the model's template and tokenise it.

    A system text and tools are what every conversation of their kind begins with: what
    is cached of them is protected from eviction from now on (docs/design/cache.md).

    :param request: ``messages`` (``role``, ``content``), optional ``system``, ``tools``.
    :raises ErllamaError: ``no_template``, ``template_failed``, ``invalid_content``.
    """
    return _tokens_of(core().host(model).chat_tokens(request))


def embed(model: ModelArg, tokens: Tokens) -> list[float]:
    """Return one vector for a list of tokens.

    Pooled as the model says; where it says nothing (models made to generate), the mean
    over all positions.  **Not normalised**: divide by the norm where cosines are wanted.
    LoRA adapters are of no effect here: the vectors are the model's own.
    The same tokens give the same numbers, whatever runs beside, and running requests
    neither wait for it nor change by it; they do share the cores.

    :raises ErllamaError: ``invalid_token`` (none, or one outside the vocabulary),
        ``context_overflow`` (as many as the context or more), ``too_large``,
        ``embed_failed``, ``not_supported`` (a model that ranks).
    """
    vector: list[float] = core().host(model).call("embed", _token_array(tokens).tobytes())
    return vector


# -- generation -------------------------------------------------------------------------


def complete(
    model: ModelArg, prompt: str | bytes, options: Options | None = None
) -> dict[str, Any]:
    """Complete a prompt and return when the reply is whole.

    :param options: ``response_tokens`` (default: what fits into the context),
        ``parent_key``, ``stop_sequences``, ``temperature``, ``top_k``, ``top_p``,
        ``min_p``, ``repetition_penalty``, ``seed``, ``grammar``; ``exactness``.
    :return: ``reply``, ``generated``, ``context_tokens``, ``committed_tokens``,
        ``finish_key``, ``cache_hit_kind``, ``finish_reason``, ``stats``, and
        ``stop_sequence`` where one fired.
    :raises ErllamaError: ``empty_prompt``, ``context_overflow``, ``grammar_failed``,
        ``badarg``, ``{invalid, Key, Value}``.
    :raises ModelGone: unknown model, or it ended while the call waited.
    """
    host = core().host(model)
    request = _request(host, "complete", options, None, text=_prompt(prompt))
    host.submit(request)
    return _wait(host, request)


def prefill_only(model: ModelArg, tokens: Tokens) -> dict[str, Any]:
    """Compute a prompt into the cache without generating.

    :return: ``context_tokens``, ``committed_tokens``, ``finish_key``,
        ``cache_hit_kind``.
    :raises ErllamaError: as :func:`complete`.
    """
    host = core().host(model)
    prompt = _checked_tokens(host, "prefill_only", tokens)
    request = _request(host, "prefill_only", None, None, tokens=prompt)
    host.submit(request)
    return _wait(host, request)


def start(
    function: str,
    model: ModelArg,
    prompt: Any,
    options: Options | None,
    on_over: Callable[[dict[str, Any] | ErllamaError], None],
) -> Ref:
    """Do :func:`complete` or :func:`prefill_only` without waiting.

    For servers, which cannot spare a thread for every caller.

    :param function: ``complete`` or ``prefill_only``; ``prompt`` is what that takes.
    :param on_over: takes the result, or the error that the function would raise, on a
        thread of ours; it must be quick and must not raise.
    :return: a ref for :func:`cancel`.
    :raises ErllamaError: what can be seen before it runs.
    """
    host = core().host(model)

    def over(request: Request) -> None:
        outcome = request.error or request.result
        assert outcome is not None
        on_over(outcome)

    if function == "prefill_only":
        tokens = _checked_tokens(host, function, prompt)
        request = _request(host, function, None, None, tokens=tokens, on_over=over)
    else:
        request = _request(host, function, options, None, text=_prompt(prompt), on_over=over)
    host.submit(request)
    return request.ref


@overload
def infer(model: ModelArg, tokens: Tokens, params: Options | None = None) -> Stream: ...
@overload
def infer(
    model: ModelArg,
    tokens: Tokens,
    params: Options | None,
    callback: Callable[[Event], None],
) -> Ref: ...
def infer(
    model: ModelArg,
    tokens: Tokens,
    params: Options | None = None,
    callback: Callable[[Event], None] | None = None,
) -> Stream | Ref:
    """Start a stream; returns at once.

    :param tokens: the prompt's token ids.
    :param params: as the options of :func:`complete`; ``response_tokens`` defaults
        to 64.
    :param callback: takes each :class:`~erllama_py.types.Event` on a thread of ours; it
        must be quick and must not raise.  Without it an iterator is returned.
    :return: a :class:`Stream`, or with a callback the stream's
        :class:`~erllama_py.types.Ref`, for :func:`cancel`.
    :raises ErllamaError: what can be seen before it runs: ``empty_prompt``,
        ``invalid_token``, ``context_overflow``, ``grammar_failed``, ``badarg``.
    """
    host = core().host(model)
    prompt = _checked_tokens(host, "infer", tokens)
    if callback is not None:
        return _start(host, prompt, params, callback).ref
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    return Stream(host, _start(host, prompt, params, events.put), events)


def cancel(ref: Ref) -> Atom:
    """Stop a stream; its ``done`` event follows with ``cancelled``.

    Queued streams too.  Unknown and finished ones are ignored.

    :return: ``ok``, always and at once.
    :raises BadCall: not a :class:`~erllama_py.types.Ref`.
    """
    if not isinstance(ref, Ref):
        raise BadCall("function_clause", f"cancel takes the ref of a stream, not {ref!r}")
    for host in core().hosts():
        request = host.request(ref.serial)
        if request is not None:
            host.cancel(request)
    return Atom("ok")


# -- speculation --------------------------------------------------------------------------


def draft_tokens(
    model_id: str | bytes, prefix: Tokens, options: Options | None = None
) -> list[int]:
    """Draft tokens for :func:`verify` on a larger model: greedily, and at once.

    :param options: ``max``, the most tokens (64 without, or where it is no positive
        whole number); all else is ignored.
    :return: the tokens; one that ends generation is the last of them.
    :raises ErllamaError: ``empty_prefix``, before anything else is looked at; as
        :func:`infer`; ``busy`` while the model verifies; ``timeout`` after 30 seconds
        without a token.  The time in the queue does not count.
    """
    prompt = _token_array(prefix)
    if not prompt:
        raise ErllamaError("empty_prefix")
    most = _mapping({} if options is None else options, "options").get("max")
    host = core().host(id_text(model_id))
    count = most if type(most) is int and most > 0 else DEFAULT_INFER_TOKENS
    return draft(host, _checked_tokens(host, "infer", prompt), count)


def verify(
    model_id: str | bytes, prefix: Tokens, candidates: Tokens, k: int
) -> tuple[int, int | Atom]:
    """Compare drafted tokens with what this model would say after ``prefix``, greedily.

    To go on: append the accepted candidates and the next token, stop at ``eos``.  The
    prefix is restored from the cache as far as it is there; of the candidates nothing
    is kept.  The same question has the same answer.

    :param k: how many of the candidates to look at, at most.
    :return: how many leading candidates are right, and the model's own next token, or
        ``eos``.  A candidate that ends generation is never accepted.
    :raises ErllamaError: ``not_supported`` (the stub, a model that only embeds),
        ``empty_prefix``, ``invalid_token``, ``context_overflow`` (prefix and candidates
        do not leave a cell free), ``busy`` (the model has requests).  :func:`infer` is
        ``busy`` while it runs; other requests wait for it.
    """
    if type(k) is not int or k <= 0:
        raise BadCall("function_clause", f"k must be a positive whole number, not {k!r}")
    host = core().host(id_text(model_id))
    request = verify_request(host.info, _token_array(prefix), _token_array(candidates)[:k])
    host.submit(request)
    verdict = _wait(host, request)
    following = verdict["following"]
    return verdict["accepted"], Atom("eos") if following is None else following


# -- observability ----------------------------------------------------------------------


def phase(model_id: str | bytes) -> Atom:
    """Return ``idle``, ``prefilling`` or ``generating``; ``idle`` if not loaded."""
    host = core().find(id_text(model_id))
    return Atom(host.phase if host else "idle")


def pending_len(model_id: str | bytes) -> int:
    """Return how many requests are queued behind the running ones; 0 if not loaded."""
    host = core().find(id_text(model_id))
    return host.pending_len if host else 0


def queue_depth(model_id: str | bytes | None = None) -> int:
    """Return the number of admitted streams, of one model or of all."""
    if model_id is None:
        return sum(host.streams for host in core().hosts())
    host = core().find(id_text(model_id))
    return host.streams if host else 0


def last_cache_hit(model_id: str | bytes) -> dict[str, Any] | None:
    """Return ``kind`` and ``prefix_len`` of the latest admission, or ``None``."""
    host = core().find(id_text(model_id))
    return dict(host.last_hit) if host and host.last_hit else None


def list_cached_prefixes(model_id: str | bytes, tokens: Tokens) -> int:
    """Return how many leading tokens of a prompt the next admission would find cached.

    :raises ErllamaError: ``model_not_loaded``.
    """
    prompt = _token_array(tokens)
    if not prompt:
        return 0
    host = core().find(id_text(model_id))
    if host is None:
        raise ErllamaError("model_not_loaded")
    return host.cache.probe(prompt.tobytes())


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
    ``kind``              ``exact``, ``partial`` or ``cold``, as admitted
    ``via``               how it was found: ``exact``, ``resume``, ``longest_prefix``,
                          ``cold``; ``None`` where nothing was looked up
    ``prompt_tokens``     length of the prompt
    ``prefix_len``        tokens of it that were found, as admitted
    ``exactness``         ``bit`` or ``token``; ``None`` for a cold one
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
    :param options: of the request that the prompt would be: ``exactness`` and
        ``parent_key`` count.
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
    prompt = _checked_tokens(host, "prefill_only", tokens)
    return explain_prompt(host, prompt.tobytes(), parsed)


def counters() -> dict[str, int]:
    """Return the cache's 20 counters, over all models of this process."""
    counts: dict[str, int] = core().cache.counters.snapshot()
    return counts


def cache_snapshot(limit: int = 100, offset: int = 0) -> dict[str, Any]:
    """Return the cache for display: tiers, block totals, and rows, last used first.

    Not in erllama: its tables were readable; this is what a view needs of ours.
    """
    snapshot: dict[str, Any] = core().cache.snapshot(limit, offset)
    return snapshot


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
    ``exactness``           what that hit promised: ``bit``, ``token``, ``None`` if cold
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
        asked: dict[str, Any] = {"text": _prompt(prompt)}
    else:
        asked = {"tokens": _checked_tokens(host, "complete", prompt)}

    def run(**changes: bool) -> Request:
        generate = msgspec.structs.replace(
            parsed.generate, response_tokens=count, trace=True, **changes
        )
        request = Request("complete", generate, parent_key=parsed.parent_key, **asked)
        host.submit(request)
        _wait(host, request)
        return request

    cold, warm = run(cached=False, bit=True), run()
    if warm.kind == "cold":
        warm = run()
    return exactness.compare(cold, warm)


def vram_info() -> dict[str, int]:
    """Return ``total_b``, ``free_b``, ``used_b`` over all non-CPU devices.

    :raises ErllamaError: ``no_gpu``.
    """
    total, free = device_memory(core().hosts())
    if not total:
        raise ErllamaError("no_gpu", "the engine sees no device but the CPU")
    return {"total_b": total, "free_b": free, "used_b": max(total - free, 0)}


def watch(watcher: Watcher) -> Callable[[], None]:
    """Call ``watcher("up" | "down", model_id, pid, reason)`` as model processes come and go.

    It runs on threads of ours and must be quick.  Returns a function that ends it.
    """
    return core().watch(watcher)


# -- LoRA adapters ----------------------------------------------------------------------


def load_adapter(model: ModelArg, path: str | bytes | os.PathLike[str]) -> Ref:
    """Attach a LoRA adapter, a GGUF file, with scale 1.0.

    Requests admitted from now on compute with it and with those attached before; running
    ones go on as they began.  What is cached is kept apart: rows belong to the adapters
    and scales they were computed with.

    :return: a handle.
    :raises ErllamaError: ``enoent``, ``eacces``, ... where the file cannot be read;
        ``load_failed`` where it is no adapter for this model; ``badarg``,
        ``not_supported``, ``oom``, ``released``, ``exception``.  Nothing has changed.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise ErllamaError("badarg", f"a path was expected, not {path!r:.60}") from None
    return core().host(model).adapters.load(text)


def unload_adapter(model: ModelArg, handle: Any) -> Atom:
    """Detach a LoRA adapter, for requests admitted from now on.

    :return: ``ok``, also for what is no handle, or was detached before.
    """
    core().host(model).adapters.unload(handle)
    return Atom("ok")


def set_adapter_scale(model: ModelArg, handle: Any, scale: float) -> Atom:
    """Change how much a LoRA adapter counts, for requests admitted from now on.

    With 0 it is of no effect, but stays attached.  The adapter moves to the end of
    :func:`list_adapters`.

    :return: ``ok``.
    :raises ErllamaError: ``not_found``; ``badarg`` for a scale from 2^31 on.
    :raises BadCall: the scale is no number.
    """
    core().host(model).adapters.scale(handle, scale)
    return Atom("ok")


def list_adapters(model: ModelArg) -> list[dict[str, Any]]:
    """Return ``handle`` and ``scale`` of the LoRA adapters, in the order of attachment."""
    return core().host(model).adapters.list()


# -- what load_model and infer return -----------------------------------------------------


class Model(str):
    """A model's id, with the functions a user would look for as methods."""

    __slots__ = ()

    def complete(self, prompt: str | bytes, **options: Any) -> dict[str, Any]:
        """Do :func:`complete` with options as keywords."""
        return complete(self, prompt, options)

    def stream(self, prompt: str | bytes, **options: Any) -> Iterator[str]:
        """Yield the reply in whole characters as it is generated.

        Leaving the loop cancels the request.

        :raises ErllamaError: as :func:`infer`, or what ended the stream early.
        """
        options.setdefault("response_tokens", None)
        assembler = Utf8Assembler()
        host = core().host(self)
        tokens = array("I", tokenize(self, prompt))
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request = _request(host, "infer", options, None, tokens=tokens, sink=events.put)
        host.submit(request)
        with Stream(host, request, events) as stream:
            for event in stream:
                if event.kind == "token" and (text := assembler.feed(event.data)):
                    yield text
        if request.error:
            raise request.error
        if rest := assembler.flush():
            yield rest

    def tokenize(self, text: str | bytes) -> list[int]:
        """Do :func:`tokenize`."""
        return tokenize(self, text)

    def detokenize(self, tokens: Tokens) -> str | bytes:
        """Do :func:`detokenize`."""
        return detokenize(self, tokens)

    def embed(self, tokens: Tokens) -> list[float]:
        """Do :func:`embed`."""
        return embed(self, tokens)

    def chat(self, messages: Sequence[Mapping[str, str]], **request: Any) -> list[int]:
        """Do :func:`apply_chat_template`; returns the prompt's tokens."""
        return apply_chat_template(self, {"messages": messages, **request})

    def explain(self, what: Any = None, **options: Any) -> dict[str, Any]:
        """Do :func:`explain` with options as keywords."""
        return explain(self, what, options)

    def prefill(self, tokens: Tokens) -> dict[str, Any]:
        """Do :func:`prefill_only`."""
        return prefill_only(self, tokens)

    def verify_exact(
        self, prompt: str | bytes | Tokens, *, tokens: int | None = None, **options: Any
    ) -> dict[str, Any]:
        """Do :func:`verify_exact` with options as keywords."""
        return verify_exact(self, prompt, options, tokens=tokens)

    @property
    def info(self) -> dict[str, Any]:
        """:func:`model_info`."""
        return model_info(self)

    def unload(self) -> Atom:
        """Do :func:`unload`."""
        return unload(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if core().find(self):
            unload(self)


# -- helpers ------------------------------------------------------------------------------


def _start(
    host: ModelHost, prompt: array[int], params: Options | None, sink: Callable[[Event], None]
) -> Request:
    request = _request(host, "infer", params, DEFAULT_INFER_TOKENS, tokens=prompt, sink=sink)
    host.submit(request)
    if request.options.sampler.grammar is not None:
        # Only the engine can tell whether a grammar parses; it answers between ticks.
        request.accepted.wait()
        if request.error and not request.admitted:
            raise request.error
    return request


def _request(
    host: ModelHost,
    mode: str,
    options: Options | None,
    default_tokens: int | None,
    *,
    text: bytes | None = None,
    tokens: array[int] | None = None,
    sink: Callable[[Event], None] | None = None,
    on_over: Callable[[Request], None] | None = None,
) -> Request:
    parsed: RequestOptions = parse_request(
        {} if options is None else options, host.config.exactness, default_tokens
    )
    return Request(
        mode,
        parsed.generate,
        text=text,
        tokens=tokens,
        parent_key=parsed.parent_key,
        sink=sink,
        on_over=on_over,
    )


def _wait(host: ModelHost, request: Request) -> dict[str, Any]:
    try:
        return request.wait()
    except BaseException:
        # Interrupted: nobody waits for this reply any more.
        if not request.over:
            host.cancel(request)
        raise


def _checked_tokens(host: ModelHost, mode: str, tokens: Tokens) -> array[int]:
    prompt = _token_array(tokens)
    if refused := refusal(prompt, host.info, mode):
        raise ErllamaError(*refused)
    return prompt


def _token_array(tokens: Tokens) -> array[int]:
    if isinstance(tokens, (str, bytes)) or not isinstance(tokens, Iterable):
        raise BadCall("function_clause", f"tokens must be a list of ids, not {tokens!r:.40}")
    try:
        return array("I", tokens)
    except OverflowError:
        raise ErllamaError("invalid_token", "token ids are whole numbers from 0") from None
    except TypeError:
        raise ErllamaError("invalid_token", "every token must be a whole number") from None


def _tokens_of(data: bytes) -> list[int]:
    tokens = array("I")
    tokens.frombytes(data)
    return tokens.tolist()


def _prompt(text: Any) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, bytes):
        return text
    raise BadCall("function_clause", f"a prompt must be a text, not {type(text).__name__}")


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadCall("function_clause", f"a {what} must be a map, not {type(value).__name__}")
    return value


def _info(host: ModelHost) -> dict[str, Any]:
    config = host.config
    return {
        "id": host.id,
        "model_id": host.id,
        "pid": host.pid,
        "status": Atom(host.phase),
        "phase": Atom(host.phase),
        "pending_len": host.pending_len,
        "last_cache_hit": dict(host.last_hit) if host.last_hit else None,
        "backend": Atom(host.info.backend),
        "context_size": config.context_size,
        "quant_type": Atom(config.quant_type),
        "quant_bits": config.quant_bits,
        "quant_tag": config.quant_type,
        "tier": Atom(config.tier),
        "fingerprint": host.cache.fingerprint,
        "loaded_at_monotonic": host.loaded_at,
        "vram_estimate_b": _vram_estimate(host),
    }


def _vram_estimate(host: ModelHost) -> int:
    """Bytes of weights on devices, in proportion to the layers offloaded."""
    size, layers = host.info.model_size_bytes, host.info.total_layers
    offloaded = host.info.n_gpu_layers
    if not size or not layers:
        return 0
    return size if offloaded < 0 or offloaded >= layers else size * offloaded // layers
