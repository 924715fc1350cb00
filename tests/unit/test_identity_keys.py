"""Keys in files, and simulated ones: the same each time, one for each seed and name."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cotune.errors import ConfigError
from cotune.identity_keys import (
    public_of,
    read_identity,
    simulated_identity,
    simulated_registry,
    write_identity,
)
from cotune.secure_messages import sign, verify


def test_simulated_keys_follow_from_the_seed_and_the_name():
    one, other = simulated_registry(1, ["a", "b"]), simulated_registry(2, ["a", "b"])
    assert len({*one.values(), *other.values()}) == 4
    assert public_of(simulated_identity(1, "a")) == one["a"]
    verify(one, "a", sign(simulated_identity(1, "a"), b"statement"), b"statement", "a statement")


def test_a_key_is_read_as_it_was_written_and_only_its_user_may(tmp_path):
    path = tmp_path / "identity.key"
    public = write_identity(path)
    assert public_of(read_identity(path)) == public
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write_identity(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.chmod(0o640), "others may read this key"),
        (lambda path: path.write_text("no key"), "not a private key in PEM form"),
        (lambda path: path.write_bytes(of_another_kind()), "expected an Ed25519 key"),
    ],
)
def test_a_file_that_is_no_key_of_ours_is_refused(tmp_path, change, problem):
    path = tmp_path / "identity.key"
    write_identity(path)
    change(path)
    with pytest.raises(ConfigError, match=problem):
        read_identity(path)


def of_another_kind() -> bytes:
    key = X25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
