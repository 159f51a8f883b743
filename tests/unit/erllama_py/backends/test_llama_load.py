"""Loading: what is refused, with which reason, and what stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from erllama_py._backends import open_backend
from erllama_py._backends.base import (
    BackendConfig,
    BackendError,
    ContextOptions,
    ModelOptions,
    Row,
    SamplerOptions,
    StepFailed,
)
from tests.models import smollm2_path

pytestmark = pytest.mark.model


def refusal(config: BackendConfig) -> BackendError:
    with pytest.raises(BackendError) as refused:
        open_backend(config)
    return refused.value


def small(**options: object) -> BackendConfig:
    context = ContextOptions(**{"n_ctx": 256, **options})  # type: ignore[arg-type]
    return BackendConfig("llama", model_path=smollm2_path(), context=context)


def test_files_that_are_no_model_are_named_with_the_cause(tmp_path: Path) -> None:
    model = Path(smollm2_path())
    with model.open("rb") as file:
        head = file.read(3_000_000)
    cases = {
        "missing.gguf": (None, "No such file"),
        "text.gguf": (b"hello", "not a GGUF file"),
        "empty.gguf": (b"", "not a GGUF file"),
        "noise.gguf": (b"GGUF" + bytes(range(256)) * 20, "version"),
        "short.gguf": (head[:40], "key-value"),
        "cut.gguf": (head, "not within the file bounds"),
    }
    for name, (content, cause) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        error = refusal(BackendConfig("llama", model_path=str(path)))
        assert error.reason == "load_failed", name
        assert str(path) in error.detail
        assert cause in error.detail, name
    assert refusal(BackendConfig("llama", model_path=str(tmp_path))).reason == "load_failed"


@pytest.mark.parametrize("path", ["", "x" * 4097, "a\0b"])
def test_impossible_paths_are_bad_arguments(path: str) -> None:
    assert refusal(BackendConfig("llama", model_path=path)).reason == "badarg"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (ContextOptions(n_seq_max=0), "n_seq_max"),
        (ContextOptions(n_seq_max=256), "n_seq_max"),
        (ContextOptions(n_ctx=2**31), "n_ctx"),
        (ContextOptions(n_ctx=256, n_batch=-1), "n_batch"),
        (ContextOptions(n_ctx=256, n_threads=0), "n_threads"),
        (ContextOptions(n_ctx=256, type_k="q4_1"), "type_k"),
        (ContextOptions(n_ctx=256, flash_attn="maybe"), "flash_attn"),
    ],
)
def test_context_options_out_of_range_are_named(options: ContextOptions, named: str) -> None:
    error = refusal(BackendConfig("llama", model_path=smollm2_path(), context=options))
    assert error.reason == "badarg"
    assert named in error.detail


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (ModelOptions(split_mode="column"), "split_mode"),
        (ModelOptions(tensor_split=(1.0,) * 17), "tensor_split"),
        (ModelOptions(main_gpu=-1), "main_gpu"),
    ],
)
def test_model_options_out_of_range_are_named(options: ModelOptions, named: str) -> None:
    error = refusal(BackendConfig("llama", model_path=smollm2_path(), model=options))
    assert error.reason == "badarg"
    assert named in error.detail


def test_an_unknown_backend_is_undefined() -> None:
    assert refusal(BackendConfig("vllm")).reason == "undef"


def test_sizes_are_clamped_and_rounded() -> None:
    backend = open_backend(small(n_ctx=300, n_batch=2048, n_ubatch=0, n_seq_max=255))
    info = backend.info
    backend.close()
    assert (info.n_ctx, info.n_batch, info.n_ubatch, info.n_seq_max) == (512, 300, 300, 255)
    backend = open_backend(small(n_batch=3, n_ubatch=512))
    assert (backend.info.n_batch, backend.info.n_ubatch) == (3, 3)
    assert backend.info.blocks
    backend.close()


def test_flash_attention_is_resolved_and_part_of_the_identity() -> None:
    identities = {}
    for choice in ("auto", "true", "false"):
        backend = open_backend(small(flash_attn=choice))
        identities[choice] = backend.info.identity
        backend.close()
    assert identities["auto"] == identities["true"]
    assert identities["true"]["flash_attn"] == "on"
    assert identities["false"] == {**identities["true"], "flash_attn": "off"}


def test_identity_leaves_out_what_blocks_do_not_depend_on() -> None:
    identities = []
    for options in ({"n_seq_max": 3, "n_batch": 64}, {"n_ctx": 512, "n_threads": 2}):
        backend = open_backend(small(**options))
        identities.append(backend.info.identity)
        backend.close()
    assert identities[0] == identities[1]
    assert all(type(v) is str and v for v in identities[0].values())


def test_quantised_v_needs_flash_attention() -> None:
    error = refusal(small(type_v="q8_0", flash_attn="false"))
    assert error.reason == "context_failed"
    assert "flash_attn" in error.detail
    backend = open_backend(small(type_k="q8_0", type_v="q8_0"))
    assert backend.info.blocks
    assert backend.info.identity["type_v"] == "q8_0"
    backend.close()


def test_the_vocabulary_alone_serves_text_and_refuses_steps() -> None:
    backend = open_backend(
        BackendConfig("llama", model_path=smollm2_path(), model=ModelOptions(vocab_only=True))
    )
    assert backend.tokenize(b"hello", special=True, parse_special=False) == [28120]
    assert not backend.info.blocks
    assert "vocabulary" in backend.info.blocks_why_not
    with pytest.raises(StepFailed, match="vocabulary"):
        backend.step([Row(0, 0, [1], True)])
    backend.close()


def test_a_closed_backend_refuses_everything_quietly() -> None:
    backend = open_backend(small())
    sampler = backend.new_sampler(SamplerOptions(grammar=b'root ::= "a"'))
    backend.step([Row(0, 0, [1], True)])
    backend.close()
    backend.close()
    sampler.close()
    for call in (
        lambda: backend.tokenize(b"x", special=True, parse_special=False),
        lambda: backend.piece(5),
        lambda: backend.step([Row(0, 0, [1], True)]),
        lambda: backend.length(0),
        lambda: backend.new_sampler(SamplerOptions()),
    ):
        with pytest.raises(BackendError) as refused:
            call()
        assert refused.value.reason == "released"


def test_memory_of_devices_is_a_pair_of_sizes() -> None:
    backend = open_backend(small())
    total, free = backend.device_memory()
    assert total >= free >= 0
    if backend.info.identity["devices"] == "none":
        assert total == 0
    backend.close()


QUIET = """
import resource, sys
from erllama_py._backends import open_backend
from erllama_py._backends.base import *
path = sys.argv[1]
backend = open_backend(BackendConfig("llama", model_path=path, context=ContextOptions(n_ctx=256)))
backend.step([Row(0, 0, [1, 2, 3], True)])
backend.close()
for bad in (
    BackendConfig("llama", model_path=path + ".missing"),
    BackendConfig("llama", model_path=path, context=ContextOptions(n_ctx=256, n_seq_max=999)),
):
    try:
        open_backend(bad)
    except BackendError:
        pass
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    open_backend(BackendConfig("llama", model_path=path, context=ContextOptions(n_ctx=1_000_000)))
except BackendError as error:
    assert error.reason == "oom", error
else:
    raise SystemExit("a context of 23 GB fitted into 4")
"""


def test_nothing_reaches_standard_output_and_out_of_memory_is_told(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", QUIET, smollm2_path()],
        cwd=tmp_path,
        env={**os.environ},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")
