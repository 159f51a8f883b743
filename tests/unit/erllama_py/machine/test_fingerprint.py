"""What identifies a model, how soon, and what is remembered of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from erllama_py._machine import digests as records
from erllama_py._machine import fingerprint
from erllama_py._machine.digests import Digests, FileFacts
from erllama_py._machine.fingerprint import Fingerprint, facts_of, identify, whole
from tests import ggufs

LONG_AGO = 1_700_000_000
TENSORS = {b"t%d" % i: bytes([i]) * 60_000 for i in range(4)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "fingerprints"


@pytest.fixture
def digests(folder: Path) -> Digests:
    return Digests(folder)


def write(path: Path, content: bytes, mtime: int = LONG_AGO) -> Path:
    path.write_bytes(content)
    os.utime(path, (mtime, mtime))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model.gguf", ggufs.gguf([], TENSORS))


def look(path: Path, mode: str | None, digests: Digests, **options: float) -> Fingerprint:
    found = identify(facts_of(path), mode, digests, **options)
    assert found is not None
    return found


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch):
    """Make every read of a model an error."""

    def refuse() -> None:
        def fail(*_: object) -> None:
            raise AssertionError("the model was read")

        monkeypatch.setattr(fingerprint, "_pieces", fail)
        monkeypatch.setattr(fingerprint, "_sampled", fail)

    return refuse


class TestModes:
    def test_safe_is_the_sha256_of_the_file(self, model, digests) -> None:
        expected = Fingerprint(hashlib.sha256(model.read_bytes()).digest(), "safe")
        assert look(model, None, digests) == expected
        assert look(model, "safe", digests) == expected

    def test_larger_files_are_sampled_unless_safe_is_named(
        self, model, digests, monkeypatch
    ) -> None:
        monkeypatch.setattr(fingerprint, "WHOLE_FILE_BYTES", model.stat().st_size - 1)
        assert look(model, None, digests).mode == "gguf_chunked"
        assert identify(facts_of(model), "safe", digests) is None

    def test_chunked_covers_size_header_and_every_tensor(self, tmp_path, digests) -> None:
        other_tensors = [{**TENSORS, name: b"\x77" * 60_000} for name in TENSORS]
        contents = [
            ggufs.gguf([], TENSORS),
            ggufs.gguf([ggufs.number(b"general.file_type", 2)], TENSORS),
            ggufs.gguf([], TENSORS) + b"\0",
            *(ggufs.gguf([], tensors) for tensors in other_tensors),
        ]
        paths = [write(tmp_path / f"{i}.gguf", content) for i, content in enumerate(contents)]
        found = [look(path, "gguf_chunked", digests) for path in paths]
        assert {one.mode for one in found} == {"gguf_chunked"}
        assert len({one.digest for one in found}) == len(contents)

    def test_chunked_depends_on_the_content_alone(self, tmp_path, model, digests) -> None:
        copy = write(tmp_path / "copy.gguf", model.read_bytes(), LONG_AGO + 5)
        assert look(copy, "gguf_chunked", digests) == look(model, "gguf_chunked", digests)

    def test_chunked_of_what_is_no_gguf(self, tmp_path, digests) -> None:
        content = bytearray(os.urandom(3 << 20))
        one = look(write(tmp_path / "one", content), "gguf_chunked", digests)
        content[-1] ^= 1
        assert look(write(tmp_path / "two", content), "gguf_chunked", digests) != one
        assert look(write(tmp_path / "none", b""), "gguf_chunked", digests).digest != one.digest

    def test_more_tensors_than_samples_are_sampled_from_end_to_end(
        self, tmp_path, digests, monkeypatch
    ) -> None:
        monkeypatch.setattr(fingerprint, "_MAX_SAMPLES", 2)
        spans = list(fingerprint._tensor_spans(((0, 10), (10, 20), (20, 30), (30, 40))))
        assert spans == [(0, 10), (20, 30)]

    def test_fast_unsafe_reads_nothing_and_follows_path_size_and_time(
        self, tmp_path, model, digests, unread
    ) -> None:
        unread()
        one = look(model, "fast_unsafe", digests)
        assert one.mode == "fast_unsafe"
        content = model.read_bytes()
        assert look(write(model, content), "fast_unsafe", digests) == one
        others = [
            write(tmp_path / "copy.gguf", content),
            write(model, content, LONG_AGO + 1),
        ]
        longer = [look(path, "fast_unsafe", digests) for path in others]
        longer.append(look(write(model, content + b"\0"), "fast_unsafe", digests))
        assert len({one, *longer}) == 4

    def test_a_model_in_parts_is_all_of_them(self, tmp_path, digests) -> None:
        parts = [write(tmp_path / f"m-0000{i}-of-00003.gguf", bytes([i]) * 99) for i in (1, 2, 3)]
        joined = b"".join(part.read_bytes() for part in parts)
        assert look(parts[0], "safe", digests).digest == hashlib.sha256(joined).digest()
        before = [look(parts[0], mode, digests) for mode in fingerprint.MODES]
        write(parts[2], b"\x09" * 99, LONG_AGO + 1)
        after = [look(parts[0], mode, digests) for mode in fingerprint.MODES]
        assert all(one != other for one, other in zip(before, after, strict=True))

    def test_a_link_is_what_it_leads_to(self, tmp_path, model) -> None:
        (tmp_path / "link.gguf").symlink_to(model)
        assert facts_of(tmp_path / "link.gguf") == facts_of(model)

    def test_a_pipe_is_refused(self, tmp_path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="not a file"):
            facts_of(tmp_path / "pipe")


class TestTime:
    def test_who_hashes_too_slowly_samples_and_stays_with_it(self, model, digests) -> None:
        slow = look(model, None, digests, patience_s=0)
        assert slow.mode == "gguf_chunked"
        assert look(model, None, digests) == slow

    def test_safe_by_name_is_never_something_else(self, model, digests) -> None:
        assert identify(facts_of(model), "safe", digests, patience_s=0) is None
        made = whole(facts_of(model), digests, lambda: False)
        assert made == (hashlib.sha256(model.read_bytes()).digest(), "safe")
        assert identify(facts_of(model), "safe", digests, patience_s=0) == made

    def test_a_digest_in_the_making_changes_no_choice(self, model, digests) -> None:
        chosen = look(model, None, digests, patience_s=0)
        whole(facts_of(model), digests, lambda: False)
        assert look(model, None, digests) == chosen

    def test_hashing_ends_when_told_to(self, model, digests) -> None:
        assert whole(facts_of(model), digests, lambda: True) is None


class TestRecords:
    def test_nothing_is_read_twice(self, model, folder, digests, unread) -> None:
        found = [look(model, mode, digests) for mode in (None, "gguf_chunked", "safe")]
        unread()
        fresh = Digests(folder)
        assert [look(model, mode, fresh) for mode in (None, "gguf_chunked", "safe")] == found

    @pytest.mark.parametrize("change", ["content", "time", "inode"])
    def test_a_changed_file_is_read_again(self, tmp_path, model, digests, change) -> None:
        before, facts = look(model, None, digests), facts_of(model)
        content = model.read_bytes()
        match change:
            case "content":
                write(model, content[:-1] + b"!", LONG_AGO + 1)
            case "time":
                write(model, content, LONG_AGO + 1)
            case "inode":
                write(tmp_path / "new", content).replace(model)
        assert facts_of(model) != facts
        assert digests.read(facts_of(model)).made == {}
        assert (look(model, None, digests) == before) == (change != "content")

    def test_what_was_just_written_may_change_yet(self, model, folder, digests) -> None:
        os.utime(model)
        assert look(model, None, digests).mode == "safe"
        assert not folder.exists()

    @pytest.mark.parametrize(
        "content",
        [
            *(b"", b"{", b"[]", b"\xff\xfe", b'{"version": 1}', b"[" * 100_000),
            b'{"version": 1, "files": [], "made": {"safe": "00"}, "chosen": "safe"}',
        ],
    )
    def test_a_damaged_record_counts_as_none(self, model, folder, digests, content) -> None:
        good = look(model, None, digests)
        (record,) = folder.glob("*.json")
        record.write_bytes(content)
        assert digests.read(facts_of(model)).made == {}
        assert look(model, None, digests) == good
        assert digests.read(facts_of(model)).made == {"safe": good.digest}

    @pytest.mark.parametrize(
        "change", [{"version": 2}, {"made": {"safe": "00"}}, {"made": {"safe": "?"}}]
    )
    def test_a_record_of_another_kind_counts_as_none(self, model, folder, digests, change) -> None:
        look(model, None, digests)
        (record,) = folder.glob("*.json")
        record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
        assert digests.read(facts_of(model)).made == {}

    def test_where_nothing_can_be_written_nothing_is_kept(self, tmp_path, model) -> None:
        (tmp_path / "file").write_text("")
        assert look(model, None, Digests(tmp_path / "file" / "below")).mode == "safe"

    def test_a_path_that_is_no_text(self, tmp_path, digests) -> None:
        path = write(tmp_path / os.fsdecode(b"\xff.gguf"), b"model")
        assert look(path, None, digests) == look(path, None, digests)

    def test_the_oldest_go(self, folder, digests, monkeypatch) -> None:
        monkeypatch.setattr(records, "MAX_RECORDS", 3)
        facts = [(FileFacts(f"/m/{i}.gguf", i, LONG_AGO, i),) for i in range(5)]
        for i, one in enumerate(facts):
            digests.add(one, "safe", bytes(32), chosen=True)
            os.utime(digests._file(one), (LONG_AGO + i, LONG_AGO + i))
        (folder / "left-behind.new").write_text("")
        digests.add(facts[4], "gguf_chunked", bytes(32), chosen=False)
        assert [bool(digests.read(one).made) for one in facts] == [False, False, True, True, True]
        assert {entry.suffix for entry in folder.iterdir()} == {"", ".json"}

    def test_the_first_choice_stands(self, model, digests) -> None:
        facts = facts_of(model)
        digests.add(facts, "gguf_chunked", b"c" * 32, chosen=True)
        known = digests.add(facts, "safe", b"s" * 32, chosen=True)
        assert known.chosen == "gguf_chunked"
        assert known.made == {"gguf_chunked": b"c" * 32, "safe": b"s" * 32}

    def test_a_lock_that_is_held_holds_nobody_up(self, model, folder, digests, monkeypatch) -> None:
        monkeypatch.setattr(records, "_TRY_S", 0.0)
        with digests._locked():
            assert look(model, None, Digests(folder)).mode == "safe"
        assert digests.read(facts_of(model)).made == {}

    def test_processes_at_once_lose_nothing(self, folder) -> None:
        code = (
            "import sys; from pathlib import Path\n"
            "from erllama_py._machine import digests\n"
            "from erllama_py._machine.digests import Digests, FileFacts\n"
            "digests._TRIES = 10_000\n"
            "facts = (FileFacts('/m.gguf', 1, 2, 3),)\n"
            "for i in range(20):\n"
            "    Digests(Path(sys.argv[1])).add(facts, sys.argv[2] + str(i), bytes(32),"
            " chosen=False)\n"
        )
        running = [
            subprocess.Popen([sys.executable, "-c", code, str(folder), name]) for name in "abc"
        ]
        assert [one.wait() for one in running] == [0, 0, 0]
        known = Digests(folder).read((FileFacts("/m.gguf", 1, 2, 3),))
        assert known.made.keys() == {f"{name}{i}" for name in "abc" for i in range(20)}
