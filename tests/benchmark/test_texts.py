"""benchmark/data/novel.py and mt_bench.py: what a registry's package is turned into, without downloading one."""

import hashlib
import struct
import zlib

import pytest

from benchmark.data import mt_bench, novel
from support.benchmark_helpers import refused, run_script

LINES = ["EMMA", "", "Emma Woodhouse, handsome, clever – and rich", "FINIS"]


def r_object(strings):
    """A character vector as R 4 serialises it."""
    data = b"X\n" + struct.pack(">iii", 3, 0x040201, 0x030500) + struct.pack(">i", 5) + b"UTF-8"
    data += struct.pack(">ii", 16, len(strings))
    for string in strings:
        kind = 0x00040009 if string.isascii() else 0x00008009  # a string marked as ASCII, or as UTF-8
        data += struct.pack(">ii", kind, len(string.encode())) + string.encode()
    return data


def lazy_load_file(*objects):
    return b"".join(struct.pack(">i", len(data)) + zlib.compress(data) for data in objects)


@pytest.fixture
def package(monkeypatch):
    """A package that holds two texts, the wanted one second; counts downloads."""
    downloads = []
    data = lazy_load_file(r_object(["OTHER", "text"]), r_object(LINES))
    monkeypatch.setattr(novel, "download", lambda folder: downloads.append(folder) or data)
    digest = hashlib.sha256("\n".join(LINES).encode()).hexdigest()
    monkeypatch.setattr(novel, "NOVELS", {"emma": ("EMMA", digest)})
    return downloads


def test_the_novel_is_found_in_the_package_and_fetched_once(package, tmp_path):
    output = tmp_path / "new" / "emma.txt"
    for _ in range(2):
        assert run_script("data/novel", "--output", output).output.strip() == str(output)
    assert output.read_text(encoding="utf-8").split("\n") == LINES
    assert len(package) == 1


def test_another_text_than_the_figures_were_made_with_is_refused(package, tmp_path, monkeypatch):
    monkeypatch.setattr(novel, "NOVELS", {"emma": ("EMMA", "0" * 64)})
    refused(run_script("data/novel", "--output", tmp_path / "emma.txt"), "emma", "figures")
    monkeypatch.setattr(novel, "NOVELS", {"emma": ("PERSUASION", "")})
    refused(run_script("data/novel", "--output", tmp_path / "emma.txt"), "PERSUASION")
    assert not list(tmp_path.iterdir())


def test_without_apt_the_cure_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(run_script("data/novel", "--output", tmp_path / "emma.txt"), "apt-get", "perplexity.py")


@pytest.mark.parametrize("data", [b"X\n" + b"\0" * 40, r_object(LINES).replace(b"X\n", b"A\n", 1)])
def test_other_objects_of_r_are_not_taken_for_text(data):
    with pytest.raises(ValueError, match="character vector"):
        novel.character_vector(data)


def test_questions_are_verified_and_fetched_once(monkeypatch, tmp_path):
    downloads, data = [], b'{"turns": ["a", "b"]}\n'
    monkeypatch.setattr(mt_bench, "download", lambda folder: downloads.append(folder) or data)
    output = tmp_path / "questions.jsonl"
    refused(run_script("data/mt_bench", "--output", output), "figures")
    assert not output.exists()
    monkeypatch.setattr(mt_bench, "SHA256", hashlib.sha256(data).hexdigest())
    for _ in range(2):
        assert run_script("data/mt_bench", "--output", output).output.strip() == str(output)
    assert output.read_bytes() == data and len(downloads) == 2
