"""Write everything that the parties of a deployed run need: one folder for the server, one for each client.

Nobody's examples stand in another client's folder, nor in the server's.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotune import build_audits, data, misfits, parties, plugins
from cotune import config as configs
from cotune.choices import client_folder
from cotune.config import Config
from cotune.data import Dataset
from cotune.deploy_party import LINK_SECRET
from cotune.errors import ConfigError
from cotune.guarded import SERVER
from cotune.protocols import SLM

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

DEPLOYMENT = "deployment.json"
DAYS = 90
"""How long the certificate of a trial is valid."""
SECRET_MODE, FOLDER_MODE = 0o600, 0o700


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is: its name as clients know it, and a port. Ports above it are for the clients'
    own use on their machines, so that a trial fits on one."""

    host: str = "localhost"
    port: int = 9191

    def __post_init__(self) -> None:
        if not 0 < self.port < 1 << 16:
            raise ConfigError(f"port {self.port}: expected 1 to 65535")

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class _Template(string.Template):
    """`@{name}` is filled in; shell and Markdown keep their own signs."""

    delimiter = "@"


def init(
    config: Config, folder: Path, address: Address | None = None, note: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Write a deployment.

    Args:
        config: a checked configuration; all data is read here, and dealt to the clients.
        folder: it must be new or empty.
        address: of the server.
        note: told what is being done.

    Returns:
        What stands in `deployment.json`.

    Raises:
        ConfigError: the folder is in use, or the configuration cannot be deployed.
        DataError: data cannot be used.
    """
    address = address or Address()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: in use. Give the name of a folder that is new or empty.")
    misfits.refuse(config)
    if SLM not in plugins.module("strategy", config.strategy.name).TRAINS:
        raise ConfigError(
            f"strategy {config.strategy.name!r}: its clients train nothing, they hand over their examples. "
            "Take another one to deploy, e.g. fedavg or fedcollm."
        )
    note("reading data")
    dataset = build_audits.planted(config, data.load(config.data, config.seed), note)
    _refuse_names(dataset)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(FOLDER_MODE)
    homes = {SERVER: folder / SERVER}
    homes |= {client: client_folder(folder / "clients", client) for client in dataset.clients}
    for home in homes.values():
        home.mkdir(parents=True, mode=FOLDER_MODE)
    note("making keys and a certificate")
    registry = _keys(homes)
    certificate = _certificate(homes[SERVER], address.host)
    for number, (name, home) in enumerate(homes.items()):
        _common(home, name, (config, registry, certificate))
        settings = _settings(name, address, number)
        (home / parties.PARTY).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    note("writing data")
    parties.write_server(homes[SERVER], dataset)
    for client in dataset.clients:
        parties.write_client(homes[client], dataset, client)
    _app(homes[SERVER], config)
    found = {
        "fingerprint": configs.fingerprint(config),
        "server": str(address),
        "clients": {name: str(home.relative_to(folder)) for name, home in homes.items() if name != SERVER},
    }
    (folder / DEPLOYMENT).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _readme(folder, found, address)
    return found


def _refuse_names(dataset: Dataset) -> None:
    if SERVER in dataset.clients:
        raise ConfigError(f"data: a client is called {SERVER!r}, as the server is. Give it another name.")


def _settings(name: str, address: Address, number: int) -> dict[str, Any]:
    """What a machine may change for itself."""
    found: dict[str, Any] = {"name": name, "server": str(address), "device": "auto"}
    if name == SERVER:
        bind = "127.0.0.1" if address.host in ("localhost", "127.0.0.1") else "0.0.0.0"
        return {**found, "bind": bind, "port": address.port, "wait_s": 600}
    return {**found, "runtime_port": address.port + number}


def _common(home: Path, name: str, shared: tuple[Config, Mapping[str, Any], Certificate]) -> None:
    """What every party has: the configuration, who takes part, whom to trust, its own secrets, a script."""
    from cryptography.hazmat.primitives.serialization import Encoding

    config, registry, certificate = shared
    (home / parties.CONFIG).write_text(configs.dump(config), encoding="utf-8")
    text = json.dumps(registry, indent=2, ensure_ascii=False)
    (home / parties.REGISTRY).write_text(text + "\n", encoding="utf-8")
    (home / "ca.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    _secret(home / parties.SECRET, secrets.token_bytes(parties.KEY_BYTES))
    _secret(home / LINK_SECRET, secrets.token_bytes(parties.KEY_BYTES))
    _script(home / "start.sh", "start.sh", party=json.dumps(name))


def _keys(homes: Mapping[str, Path]) -> dict[str, Any]:
    """Each party's Ed25519 key and each client's key for its node; returns the public ones."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from cotune.identity_keys import write_identity

    identities, nodes = {}, {}
    (homes[SERVER] / "nodes").mkdir()
    for number, (name, home) in enumerate(homes.items()):
        identities[name] = write_identity(home / parties.IDENTITY).hex()
        if name == SERVER:
            continue
        node = ec.generate_private_key(ec.SECP384R1())
        _secret(home / "node.key", _pem(node, "OpenSSH"))
        public = node.public_key()
        nodes[name] = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        (homes[SERVER] / "nodes" / f"{number:05d}.pub").write_bytes(line)
    return {"identities": identities, "nodes": nodes}


def _certificate(home: Path, host: str) -> Certificate:
    """A certificate for the server, of an authority whose key is not kept; returns the authority's own."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer, subject = _called("cotune trial authority"), _called(host[:64])
    now = datetime.datetime.now(datetime.UTC)

    def builder(name: Any, public: Any) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(public)
        made = made.serial_number(x509.random_serial_number())
        made = made.not_valid_before(now - datetime.timedelta(hours=1))
        return made.not_valid_after(now + datetime.timedelta(days=DAYS))

    signs = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    own = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    top = builder(issuer, authority.public_key()).add_extension(x509.BasicConstraints(True, 0), True)
    root = top.add_extension(signs, True).add_extension(own, False).sign(authority, hashes.SHA256())
    hosts = dict.fromkeys((host, "localhost", "127.0.0.1"))
    names = x509.SubjectAlternativeName([_alternative(each) for each in hosts])
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    leaf = builder(subject, key.public_key()).add_extension(names, False).add_extension(issued_by, False)
    leaf = leaf.add_extension(x509.BasicConstraints(False, None), True)
    (home / "server.crt").write_bytes(leaf.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM))
    _secret(home / "server.key", _pem(key, "PKCS8"))
    return root


def _called(name: str) -> Any:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: Any, form: str) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    found: bytes = key.private_bytes(Encoding.PEM, getattr(PrivateFormat, form), NoEncryption())
    return found


def _secret(path: Path, value: bytes) -> None:
    """Never readable by others, not even for a moment."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_MODE), "wb") as file:
        file.write(value)


def _app(home: Path, config: Config) -> None:
    """What Flower is asked to run."""
    app = home / "app"
    package = app / "cotune_run"
    package.mkdir(parents=True)
    fingerprint = configs.fingerprint(config)
    (app / "pyproject.toml").write_text(_filled("pyproject.toml", fingerprint=fingerprint), encoding="utf-8")
    (package / "__init__.py").write_text('"""A run of cotune."""\n', encoding="utf-8")
    for side in ("server_app", "client_app"):
        (package / f"{side}.py").write_text(_filled(f"{side}.txt"), encoding="utf-8")
    (package / "run.yaml").write_text(configs.dump(config), encoding="utf-8")
    _script(home / "submit.sh", "submit.sh")


def _readme(folder: Path, found: Mapping[str, Any], address: Address) -> None:
    table = "\n".join(f"* `{home}`: {name}" for name, home in found["clients"].items())
    words = {"count": len(found["clients"]), "fingerprint": found["fingerprint"], "table": table}
    text = _filled("README.md", **words, days=DAYS, host=address.host, port=address.port)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _script(path: Path, template: str, **words: Any) -> None:
    path.write_text(_filled(template, **words), encoding="utf-8")
    path.chmod(0o755)


def _filled(template: str, **words: Any) -> str:
    text = (resources.files("cotune") / "deploy_files" / template).read_text(encoding="utf-8")
    return _Template(text).substitute(words)
