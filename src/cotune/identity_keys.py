"""The Ed25519 keys that parties sign with: in a file each, or, in an embedded run, simulated."""

from __future__ import annotations

import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cotune.errors import ConfigError
from cotune.secure_messages import Registry

OWNER_ONLY = 0o600


def simulated_identity(seed: int, client: str) -> Ed25519PrivateKey:
    """The key of a client in an embedded run. Whoever knows the seed knows it: such a run is a simulation."""
    words = f"cotune simulated identity\x1f{seed}\x1f{client}"
    return Ed25519PrivateKey.from_private_bytes(sha256(words.encode()).digest())


def simulated_registry(seed: int, clients: Iterable[str]) -> Registry:
    """The public keys of all clients of an embedded run."""
    return {client: public_of(simulated_identity(seed, client)) for client in clients}


def public_of(identity: Ed25519PrivateKey) -> bytes:
    """What stands in the registry, 32 bytes."""
    return identity.public_key().public_bytes_raw()


def write_identity(path: Path) -> bytes:
    """A new key in a file that only its user may read; returns the public key, 32 bytes."""
    key = Ed25519PrivateKey.generate()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return public_of(key)


def read_identity(path: Path) -> Ed25519PrivateKey:
    """The key in a file.

    Raises:
        ConfigError: it is missing, others may read it, or it is no such key.
    """
    try:
        mode, data = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). Put back the file that `cotune deploy init` wrote."
        ) from error
    if mode & 0o077:
        raise ConfigError(f"{path}: others may read this key. Make it yours alone: chmod 600 {path}")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a private key in PEM form. Put back the file that init wrote."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: a {type(key).__name__}; expected an Ed25519 key.")
    return key
