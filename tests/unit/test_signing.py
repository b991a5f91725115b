"""Keys: what openssl makes is read, what is signed openssl checks, what is wrong is told."""

import json
import re
import subprocess  # openssl is the judge
from base64 import b64decode, b64encode

import pytest

from obuilder.cli.main import run
from obuilder.errors import UsageError
from obuilder.oci.signing import ALGORITHMS, PrivateKey, generate, load_private, load_public

_OPENSSL = {
    "ecdsa-p256": ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "ed25519": ("genpkey", "-algorithm", "ed25519"),
}


def openssl(*argv):
    return subprocess.run(["openssl", *argv], capture_output=True, check=False)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_openssl_and_we_read_and_check_each_others(tmp_path, algorithm):
    theirs = str(tmp_path / "theirs.pem")
    assert openssl(*_OPENSSL[algorithm], "-out", theirs).returncode == 0
    key = load_private(theirs)
    assert key.algorithm == algorithm
    public, data, signature = (tmp_path / name for name in ("public.pem", "data", "signature"))
    assert openssl("pkey", "-in", theirs, "-pubout", "-out", str(public)).returncode == 0
    assert public.read_bytes() == key.public.pem
    assert load_public(str(public)).id == key.public.id
    data.write_bytes(b"what is signed")
    signature.write_bytes(key.sign(data.read_bytes()))
    files = ("-sigfile", str(signature), "-in", str(data))
    form = ("-rawin",) if algorithm == "ed25519" else ("-rawin", "-digest", "sha256")
    check = ("pkeyutl", "-verify", "-pubin", "-inkey", str(public), *form, *files)
    assert openssl(*check).returncode == 0
    data.write_bytes(b"something else")
    assert openssl(*check).returncode != 0
    assert not key.public.verify(signature.read_bytes(), data.read_bytes())
    assert not key.public.verify(b"no signature", data.read_bytes())
    assert key.public.verify(signature.read_bytes(), b"what is signed")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_sealed_key_is_cosigns_and_opens_with_its_password_alone(tmp_path, algorithm):
    path, key = tmp_path / "sealed.key", generate(algorithm)
    path.write_bytes(key.sealed(b"word"))
    body = re.sub(rb"-----.*-----\n", b"", path.read_bytes())
    said = json.loads(b64decode(body))
    assert said["kdf"]["name"] == "scrypt"
    assert said["kdf"]["params"] == {"N": 65536, "r": 8, "p": 1}
    assert said["cipher"]["name"] == "nacl/secretbox"
    found = load_private(str(path), lambda: b"word")
    assert found.public.id == key.public.id
    assert found.sign(b"data") == key.sign(b"data")
    for word in (b"", b"other"):
        with pytest.raises(UsageError, match="another password"):
            load_private(str(path), lambda word=word: word)


def test_what_is_no_key_is_told(tmp_path):
    path = tmp_path / "key"
    argv = ("genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:word", "-out", str(path))
    assert openssl(*argv).returncode == 0
    assert isinstance(load_private(str(path), lambda: b"word"), PrivateKey)
    for word in (b"", b"other"):
        with pytest.raises(UsageError, match="another password"):
            load_private(str(path), lambda word=word: word)
    assert openssl("genpkey", "-algorithm", "RSA", "-out", str(path)).returncode == 0
    with pytest.raises(UsageError, match="of another kind"):
        load_private(str(path))
    curve = ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384")
    assert openssl(*curve, "-out", str(path)).returncode == 0
    with pytest.raises(UsageError, match="of another kind"):
        load_private(str(path))
    kind = b"ENCRYPTED SIGSTORE PRIVATE KEY"
    costly = generate().sealed(b"")
    body = b64decode(re.sub(rb"-----.*-----\n", b"", costly)).replace(b"65536", b"1073741824")
    for data in (
        b"", b"no key", generate().public.pem, b"-----BEGIN %s-----\nYQ==\n-----END %s-----" % (kind, kind),
        b"-----BEGIN %s-----\n%s\n-----END %s-----" % (kind, b64encode(body), kind),
    ):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(UsageError, match="no private key"):
            load_private(str(path))
    path.write_bytes(bytes(1 << 17))
    with pytest.raises(UsageError, match="too large"):
        load_private(str(path))
    with pytest.raises(UsageError, match="no public key"):
        load_public(__file__)
    with pytest.raises(UsageError, match="No such file"):
        load_private(str(tmp_path / "none"))


def test_a_pair_is_made_and_its_public_key_printed(tmp_path, monkeypatch, capfdbinary):
    monkeypatch.setenv("COSIGN_PASSWORD", "word")
    name = str(tmp_path / "release")
    assert run(["key", "new", name]) == 0
    assert (tmp_path / "release.key").stat().st_mode & 0o777 == 0o600
    capfdbinary.readouterr()
    assert run(["key", "public", f"{name}.key"]) == 0
    assert capfdbinary.readouterr().out == (tmp_path / "release.pub").read_bytes()
    with pytest.raises(UsageError, match="there already"):
        run(["key", "new", name])
