"""Packed layers: other programs read them, and they are the same whoever packs them."""

import gzip
import hashlib
import os
import random
import subprocess  # judges

import pytest

from obuilder.oci.pack import inspected, packed, repacked

CONTENTS = {
    "nothing": b"", "a byte": b"x", "a block": b"a" * (1 << 18), "zeros": bytes(3_000_001),
    "noise": random.Random(1).randbytes(1_000_000),
    "words": b" ".join(random.Random(2).choices([b"many", b"words", b"of", b"few"], k=300_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("form", ["tar", "gzip", "zstd"])
def test_what_is_packed_is_what_others_unpack(tmp_path, name, form) -> None:
    content = CONTENTS[name]
    blob, file = packed(lambda out: out.write(content), str(tmp_path), form)
    with file:
        data = file.read()
        assert blob.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert blob.diff == f"sha256:{hashlib.sha256(content).hexdigest()}"
        assert blob.size == len(data)
        assert inspected(file) == blob
        command = {"tar": ["cat"], "gzip": ["gzip", "-dc"], "zstd": ["zstd", "-dc"]}[form]
        done = subprocess.run(command, input=data, capture_output=True, check=True)
        assert done.stdout == content
        again, other = repacked(file, str(tmp_path), "gzip")
    with other:
        assert again.diff == blob.diff
        assert gzip.decompress(other.read()) == content
    assert os.listdir(tmp_path) == []


def test_the_number_of_cores_changes_nothing(tmp_path, monkeypatch) -> None:
    content, found = CONTENTS["words"], set()

    def write(out):
        for at in range(0, len(content), 777):
            out.write(content[at : at + 777])

    for cores in (1, 7):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: range(cores))
        blob, file = packed(write, str(tmp_path), "gzip")
        file.close()
        found.add(blob)
    assert len(found) == 1


def test_a_writer_that_fails_leaves_nothing(tmp_path) -> None:
    def write(out):
        out.write(b"x" * 3_000_000)
        raise OSError(28, "full")

    with pytest.raises(Exception, match="can't pack a layer: full"):
        packed(write, str(tmp_path), "gzip")
    assert os.listdir(tmp_path) == []
