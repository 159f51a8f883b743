"""What a model process asks of an inference engine.

A backend owns one model and one context.  The split between threads is part of the
contract: **any thread** may call what only reads the vocabulary; everything that touches
the context belongs to the **engine thread**, which is the one that created the backend;
embeddings have a context of their own, and one **embedding thread** at a time, which
need not be the engine's.

Sequence ids run from 0 to ``n_seq_max - 1``; id ``n_seq_max`` is the *scratch*
sequence through which parts of a sequence are packed and restored.  KV is unified:
all sequences share the ``n_ctx`` cells, one cell a token.

A sequence's tokens are given with explicit positions, which must continue exactly at
the sequence's length.  :meth:`Backend.step` evaluates one batch; the logits it was
asked for stay readable, through :meth:`Backend.sample` and
:meth:`Backend.copy_logits`, until the next call of ``step``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from erllama_py.types import Markers

__all__ = (
    "BLOCK",
    "GUESSED_TOKENS",
    "STUB_THINKING",
    "STUB_TOOL_CALLS",
    "Backend",
    "BackendConfig",
    "BackendError",
    "BackendInfo",
    "ContextOptions",
    "ModelOptions",
    "NoSlot",
    "RestoreFailed",
    "Row",
    "Sampler",
    "SamplerOptions",
    "StepFailed",
    "StubOptions",
)

BLOCK = 64
"""Tokens of a block, the unit of capture and restore.

Measured: 64 tokens pack in 0.13 ms and restore 1024 tokens in 2.2 ms on a 135M model.
Smaller blocks mean shorter tails to store twice; 128 would save about 1 ms a restore.
"""

# Limits of the original's text functions, beyond which it answers ``too_large``.
MAX_TEXT_BYTES = 4 * 1024 * 1024
MAX_TOKENS = 1_048_576


STUB_THINKING = Markers(b"<think>", b"</think>")
STUB_TOOL_CALLS = Markers(b"<tool_call>", b"</tool_call>", b"<arg>", b"</arg>")
"""What the stub thinks and calls between, where the load config does not say."""

GUESSED_TOKENS = 16
"""Most tokens of one :meth:`Backend.guess`; a step's logits are reserved for so many."""


class BackendError(Exception):
    """The engine refused.  ``reason`` is what goes into ``{error, Reason}``."""

    def __init__(self, reason: Any, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}" if detail else str(reason))


class NoSlot(BackendError):
    """No free cells for the batch (rc 1).  Nothing was evaluated; free some and retry."""


class StepFailed(BackendError):
    """The batch failed.  Earlier cells of its sequences stand: ask for positions."""


class RestoreFailed(BackendError):
    """A packed part was not accepted.  The target sequence must be cleared."""


class ModelOptions(msgspec.Struct, frozen=True):
    """How the model file is loaded: ``model_opts``."""

    n_gpu_layers: int = -1
    """Layers to offload; negative means all the build can."""
    main_gpu: int = 0
    split_mode: str = "layer"
    """``none``, ``layer`` or ``row``."""
    tensor_split: tuple[float, ...] = ()
    """Share of each device, at most 16; missing ones count as 0, empty means unset."""
    use_mmap: bool = True
    use_mlock: bool = False
    vocab_only: bool = False
    """Load the vocabulary only.  Text functions work; every step fails."""


class ContextOptions(msgspec.Struct, frozen=True):
    """How the context is made: ``context_opts``."""

    n_ctx: int | None = None
    """Cells.  ``None`` and 0 mean the training length, but at most 4096."""
    n_batch: int = 512
    """Most tokens of a step; clamped to ``n_ctx``."""
    n_ubatch: int = 512
    """Tokens computed at once; clamped to ``n_batch``, which 0 means too."""
    n_seq_max: int = 1
    """Slots, 1 to 255."""
    n_threads: int = 1
    n_threads_batch: int = 1
    offload_kqv: bool = True
    flash_attn: str = "auto"
    """``true``, ``false`` or ``auto``: on, or off where the engine refuses it."""
    type_k: str = "f16"
    type_v: str = "f16"
    swa_full: bool = False
    """Keep all cells of a sliding window's layers, not only the window's."""


class StubOptions(msgspec.Struct, frozen=True):
    """Test hooks of the stub.  Steps count from 1; 0 leaves a hook out."""

    step_delay_ms: float = 0.0
    """Sleep of every step, to keep requests running long enough to watch them."""
    crash_at_step: int = 0
    """``os.abort()`` in this step: stands for an assertion in the engine."""
    fail_at_step: int = 0
    """This step raises :class:`StepFailed` and leaves its sequences as they were."""
    whole_rows: bool = False
    """Stand for a model whose sequences cannot be cut, only packed whole."""
    weights_bytes: int = 0
    """What it is said to weigh: it has no weights."""
    thinking: Markers | None = None
    """What a reply's first tokens think between: two, then the end; ``None``: none do."""
    tool_calls: Markers | None = None
    """What a tool call is between, of two tokens; it follows the thinking."""
    tool_payloads: bool = False
    """The call is of one token, then one between the markers of a payload."""


class BackendConfig(msgspec.Struct, frozen=True):
    """What :func:`erllama_py._backends.open_backend` needs to know.

    Types are checked by the caller; a value outside its range is ``badarg``.
    """

    backend: str
    """``llama`` or ``stub``."""
    model_path: str = ""
    model: ModelOptions = ModelOptions()
    context: ContextOptions = ContextOptions()
    stub: StubOptions = StubOptions()


class BackendInfo(msgspec.Struct, frozen=True):
    """What a loaded model is.  Sizes are in tokens unless the name says bytes."""

    backend: str
    """Erlang module name: ``erllama_model_llama`` or ``erllama_model_stub``."""
    n_ctx: int
    """Cells of the context, as the engine rounded them."""
    n_ctx_train: int
    n_batch: int
    """Most tokens of one :meth:`Backend.step`."""
    n_ubatch: int
    n_seq_max: int
    """Slots, without the scratch sequence."""
    n_threads: int
    n_threads_batch: int
    n_vocab: int
    n_embd: int
    n_swa: int
    """Sliding attention window; 0 for full attention."""
    logits_bytes: int
    """Bytes of one position's logits (float32 x vocabulary)."""
    model_size_bytes: int
    total_layers: int
    n_gpu_layers: int
    blocks: bool
    """The block self-test passed: parts of a sequence restore bit for bit."""
    blocks_why_not: str
    """Why ``blocks`` is false, in one sentence; empty where it is true."""
    block_bytes: int
    """Upper bound of :meth:`Backend.pack` for :data:`BLOCK` tokens; 0 without blocks."""
    chat_template: str | None
    bos: str
    """Text of the beginning-of-sequence token, for chat templates; may be empty."""
    eos: str
    identity: dict[str, str]
    """Everything besides the model file that changes KV content (docs/design/cache.md).

    Not n_ctx, n_batch, n_seq_max: blocks are bit-equal across them."""
    description: str
    """One line for people: family, size, quantisation."""
    chat_templates: dict[str, str] = {}
    """Further templates of the file, by name."""
    generates: bool = True
    """False for an encoder, which only embeds."""
    verifies: bool = False
    """:meth:`Backend.guess` works."""
    whole_rows: bool = False
    """Without ``blocks``: a whole sequence packs and restores bit for bit, at its exact
    length (recurrent and hybrid models)."""
    buffers: tuple[int, int, int] = (0, 0, 0)
    """Bytes of weights, of the context, and of what computes; zeros where the engine does
    not say."""

    @property
    def has_logits(self) -> bool:
        """Whether logits are numbers, one for each token of the vocabulary."""
        return self.generates and self.logits_bytes == 4 * self.n_vocab


class SamplerOptions(msgspec.Struct, frozen=True):
    """One request's sampler chain; ``None`` leaves a stage out.

    Order: repetition penalty (window 64, generated tokens only), top-k, top-p, min-p,
    then temperature with a seeded draw, or greedy where there is no temperature.  A
    grammar (GBNF, start symbol ``root``) constrains them all.
    """

    grammar: bytes | None = None
    visible: bool = False
    """With a grammar: no control tokens, which it sees and the reply does not have."""
    repetition_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    temperature: float | None = None
    seed: int = 0


class Row(NamedTuple):
    """One sequence's share of a batch."""

    seq: int
    pos: int
    """Position of the first token: the sequence's present length."""
    tokens: Sequence[int]
    logits: bool
    """Whether the last token's logits are wanted."""
    every: bool = False
    """Whether every token's are, of at most :data:`GUESSED_TOKENS` in the whole step."""


class Sampler(Protocol):
    """A request's sampler state (penalty window, grammar, random numbers)."""

    syntax: bool
    """Set while the reply is in a tool call's syntax: the likeliest token is taken, of those
    that the grammar allows.  The chain is left as it is, its penalties and draws included."""

    def close(self) -> None:
        """Free it.  Idempotent."""


class Backend(Protocol):
    """One model and its context."""

    info: BackendInfo

    # -- any thread ---------------------------------------------------------------

    def tokenize(self, text: bytes, *, special: bool, parse_special: bool) -> list[int]:
        """Tokenise.

        :param special: add BOS/EOS where the vocabulary asks for it.
        :param parse_special: read special-token syntax in the text as those tokens.
        :raises BackendError: ``too_large`` over 4 MiB of text or 1 048 576 tokens;
            ``tokenize_failed``.
        """

    def control_texts(self) -> list[bytes]:
        """Return the spellings of the vocabulary's control tokens."""

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Concatenate the tokens' pieces; control tokens render empty.

        :raises BackendError: ``invalid_token`` for an id outside the vocabulary.
        """

    def piece(self, token: int) -> bytes:
        """Text of one sampled token, as streamed; empty for control tokens."""

    def written(self, token: int) -> bytes:
        """Text of a token as templates write it: of control tokens, too."""

    def is_eog(self, token: int) -> bool:
        """Whether the token ends generation."""

    def device_memory(self) -> tuple[int, int]:
        """Return (total, free) bytes over non-CPU devices; (0, 0) where there is none."""

    # -- engine thread: generation --------------------------------------------------

    def new_sampler(self, options: SamplerOptions) -> Sampler:
        """Build a request's sampler.

        :raises BackendError: ``grammar_failed``, ``badarg``, ``oom``.
        """

    def step(self, rows: Sequence[Row]) -> None:
        """Evaluate one batch of at most ``n_batch`` tokens.

        :raises NoSlot: too few free cells; nothing changed.
        :raises StepFailed: anything else.
        """

    def sample(self, sampler: Sampler, row: int) -> int:
        """Draw a token from the logits of row number ``row`` of the last step.

        The sampler accepts it: call once per generated token, and for every row of a
        step before the next step.
        """

    def sample_stored(self, sampler: Sampler, logits: memoryview) -> int:
        """Draw as :meth:`sample` would, from logits saved by :meth:`copy_logits`."""

    def thinking_signature(self, seq: int) -> bytes | None:
        """The backend's own signature of a sequence's thinking; ``None``: the core signs."""

    def copy_logits(self, row: int, out: memoryview) -> None:
        """Copy row number ``row``'s logits, ``info.logits_bytes`` bytes, to ``out``."""

    def likeliest(self, row: int, at: int = -1) -> int:
        """Return the likeliest token by row number ``row``'s logits; of equals the lowest id.

        :param at: which of the row's tokens it would follow; others than the last need
            :attr:`Row.every`.
        """

    def digest(self, row: int) -> bytes:
        """Return a digest of row number ``row``'s logits: equal for equal bits only."""

    def rehearse(self, row: Row) -> list[bytes]:
        """Evaluate a row behind a copy of its sequence's head; nothing of it is kept.

        It may begin anywhere in its sequence.  It is a step: logits of the one before are
        gone.

        :return: :meth:`digest` of the logits after each of its tokens, at most
            :data:`GUESSED_TOKENS`.
        :raises NoSlot: as :meth:`step`.
        :raises StepFailed: as :meth:`step`.
        :raises BackendError: ``not_supported``; ``window``: the head has lost cells.
        """

    def guess(self, row: Row) -> list[int]:
        """Evaluate one row; return the likeliest token after each of its tokens.

        At most :data:`GUESSED_TOKENS` tokens, and ``info.n_ubatch``.  It is a step:
        logits of the one before are gone.

        :raises NoSlot: as :meth:`step`.
        :raises StepFailed: as :meth:`step`.
        :raises BackendError: ``not_supported``.
        """

    # -- engine thread: adapters --------------------------------------------------------

    def load_adapter(self, number: int, path: str, *, tried: bool) -> None:
        """Load a LoRA adapter, to be used by its number; the weights stay as they are.

        :param tried: compute a token with it, so that an adapter which ends the engine
            does so now and not in a request.  No sequence may have any cells.
        :raises BackendError: ``load_failed``, ``not_supported``, ``oom``, ``released``.
            Nothing is left behind.
        """

    def free_adapter(self, number: int) -> None:
        """Free a loaded adapter, which must not be in use."""

    def use_adapters(self, adapters: Sequence[tuple[int, float]]) -> None:
        """Compute with these adapters, as (number, scale), and no others, from now on.

        Cells that were computed before stay as they are.
        """

    # -- engine thread: memory --------------------------------------------------------

    def clear(self, seq: int) -> None:
        """Remove every cell of a sequence."""

    def truncate(self, seq: int, length: int) -> bool:
        """Cut a sequence to its first ``length`` tokens.

        Returns whether the sequence is now exactly those tokens and can go on.  False
        means it is unusable and must be cleared: a pruned sliding window answers
        "true" to the engine's own call, so the positions decide
        (``pos_min <= max(0, length - n_swa)`` and ``pos_max == length - 1``).
        """

    def share(self, source: int, target: int, length: int) -> bool:
        """Give an empty sequence the first ``length`` tokens of another.

        Metadata only: the cells are then both sequences', and count once.  Returns
        whether the target is exactly those tokens and can go on; else it is empty, as
        where the source's sliding window has lost cells, or parts do not work.
        """

    def length(self, seq: int) -> int:
        """The engine's own count: highest position + 1, or 0 for an empty sequence."""

    def packed_size(self, seq: int, start: int, end: int) -> int:
        """Bytes :meth:`pack` would write, 0 where the cells are gone.

        Up to :data:`BLOCK` tokens need no question: ``info.block_bytes`` holds them.
        """

    def pack(self, seq: int, start: int, end: int, out: memoryview) -> int:
        """Pack positions [start, end) of a sequence into ``out``; return bytes written.

        ``out`` must be writable.  Returns 0 where it is too small or the cells are gone
        (pruned window).  Without ``info.blocks`` only a whole sequence can be packed.
        A whole one longer than a sliding window can be gone on from, but not be cut.
        """

    def unpack(self, seq: int, start: int, end: int, data: memoryview) -> None:
        """Append a packed part [start, end) to a sequence of length ``start``.

        :raises RestoreFailed: not accepted (damaged, no free cells), or the positions
            afterwards are not those.  The scratch sequence is empty again.
        """

    # -- embedding thread -------------------------------------------------------------

    def embed(self, tokens: Sequence[int], crowded: Callable[[], bool]) -> list[float]:
        """Return one vector of ``n_embd`` numbers for the tokens; not normalised.

        Sequences of the generation are neither read nor changed: a context of its own
        is made at the first call and kept.

        :param crowded: whether something else computes just now; asked before each piece
            of the work, which then leaves most cores to that.  What it raises ends the work.
        :raises BackendError: ``too_large`` over 1 048 576 tokens; ``invalid_token`` for
            none, or one outside the vocabulary; ``context_overflow``; ``embed_failed``;
            ``not_supported``; ``released``; ``context_failed`` or ``oom``, where there
            is no memory for the context.
        """

    def drop_embedder(self) -> None:
        """Free what :meth:`embed` keeps; its next call makes it again."""

    def close(self) -> None:
        """Free contexts and model.  Idempotent; no :meth:`embed` may be running."""
