"""The folder of a room: an authority, a certificate and a token for each participant, access rules for both relays."""

import datetime
import hashlib
import ipaddress
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.robot.network.topics import ROLES, Topics

VALID_DAYS = 400


def create_room(
    folder: str | Path,
    room: str,
    members: Mapping[str, str],
    hosts: Sequence[str] = ("localhost", "127.0.0.1"),
    owners: Mapping[str, str] | None = None,
    authority_of: str | Path | None = None,
) -> Path:
    """Make the folder of a room.

    Writes ``ca.pem``, ``ca.key`` (keep it secret), ``relay/``, ``relay.json``, ``zenoh_relay.json5`` and
    ``members/<name>/``, which is what each participant gets and nobody else.

    Args:
        folder: new or empty.
        room: its name.
        members: name -> role ("robot", "operator", "instructor" or "observer").
        hosts: names and addresses under which the relay is reached.
        owners: robot -> the member whose own it is; a classroom lets that one drive it alone.
        authority_of: folder of another room whose authority signs here too; None makes a new one.
    Raises:
        ConfigError: if a name or role is wrong, the folder holds something, or the authority cannot be read.
        MissingExtraError: if cryptography is not installed.
    """
    folder = Path(folder)
    for name, role in members.items():
        Topics(room, name)
        if role not in ROLES or name in ("relay", "authority"):
            raise ConfigError(
                f"robot: member={name}:{role} is not allowed; expected a role of {', '.join(ROLES)}. Correct it."
            )
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            f"robot: folder={folder} is not empty; expected a new one. Choose another name: nothing is overwritten."
        )
    authority = _Authority(room) if authority_of is None else _Authority.load(Path(authority_of))
    (folder / "members").mkdir(parents=True, exist_ok=True)
    _write(folder / "ca.pem", authority.certificate_pem)
    _write_secret(folder / "ca.key", authority.key_pem)
    _write_pair(folder / "relay", authority, "relay", hosts)
    tokens = {}
    for name, role in members.items():
        own = folder / "members" / name
        _write_pair(own, authority, name, (name,))
        _write(own / "ca.pem", authority.certificate_pem)
        token = secrets.token_urlsafe(32)
        _write_secret(own / "token", token.encode() + b"\n")
        _write(own / "member.json", json.dumps({"name": name, "role": role, "room": room}, indent=2).encode() + b"\n")
        tokens[name] = {"role": role, "token_sha256": hashlib.sha256(token.encode()).hexdigest()}
        if owners and name in owners:
            tokens[name]["owner"] = owners[name]
    _write(folder / "relay.json", json.dumps({"room": room, "members": tokens}, indent=2).encode() + b"\n")
    rules = {"access_control": access_control(room, members)}
    _write(folder / "zenoh_relay.json5", json.dumps(rules, indent=2).encode() + b"\n")
    return folder


def access_control(room: str, members: Mapping[str, str]) -> dict[str, Any]:
    """Return zenoh's access rules of a room: everything is denied that is not named here."""
    both, reading = ["ingress", "egress"], ["declare_subscriber", "liveliness_query", "declare_liveliness_subscriber"]
    rules: list[dict[str, Any]] = []
    policies: list[dict[str, Any]] = []

    def rule(name: str, messages: list[str], keys: list[str], flows: list[str]) -> str:
        rules.append({"id": name, "permission": "allow", "flows": flows, "messages": messages, "key_exprs": keys})
        return name

    said = [f"fw/{room}/*/{kind}" for kind in ("state", "status", "cam/**")]
    steered = ["cmd", "ctl", "ctl-instructor"]
    rule("read", ["put"], said, ["egress"])
    rule("subscribe", ["declare_subscriber"], said, both)
    alive = f"fw/{room}/*/alive"
    rule("roster", ["liveliness_token", *reading[1:]], [alive], both)
    rule("lead", ["put"], [f"fw/{room}/*/{kind}" for kind in steered[:2]], both)
    rule("instruct", ["put"], [f"fw/{room}/*/{kind}" for kind in steered], both)
    # A relay tells a publisher about subscribers of what it publishes, which is a declaration on its way out.
    rule("interest", ["declare_subscriber"], [f"fw/{room}/*/{kind}" for kind in steered], ["egress"])
    for name, role in members.items():
        allowed = ["roster"]
        if role == "robot":
            own = f"fw/{room}/{name}"
            allowed.append(
                rule(f"{name}-says", ["put"], [f"{own}/{kind}" for kind in ("state", "status", "cam/**")], both)
            )
            allowed.append(rule(f"{name}-hears", ["put"], [f"{own}/{kind}" for kind in steered], ["egress"]))
            allowed.append(
                rule(f"{name}-subscribes", ["declare_subscriber"], [f"{own}/{kind}" for kind in steered], both)
            )
            allowed.append("interest-of-robots")
        else:
            allowed += ["read", "subscribe"]
            allowed += {"operator": ["lead", "interest"], "instructor": ["instruct", "interest"]}.get(role, [])
        policies.append({"rules": allowed, "subjects": [name]})
    rule("interest-of-robots", ["declare_subscriber"], said, ["egress"])
    return {
        "enabled": True,
        "default_permission": "deny",
        "rules": rules,
        "subjects": [{"id": name, "cert_common_names": [name]} for name in members],
        "policies": policies,
    }


class _Authority:
    """Signs the certificates of one room, or of several."""

    def __init__(self, room: str) -> None:
        self._import()
        x509, hashes = self._x509, self._hashes
        self._key: Any = self._ec.generate_private_key(self._ec.SECP256R1())
        self._name = self._subject(f"{room} authority")
        builder = self._builder(self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        usage = dict.fromkeys(
            (
                *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
                *("key_agreement", "encipher_only", "decipher_only"),
            ),
            False,
        )
        builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
        )
        self.certificate_pem: bytes = self._pem(builder.sign(self._key, hashes.SHA256()))
        self.key_pem = self._key_pem(self._key)

    @classmethod
    def load(cls, folder: Path) -> "_Authority":
        """Read the authority of a room."""
        authority = cls.__new__(cls)
        authority._import()
        try:
            authority.certificate_pem = (folder / "ca.pem").read_bytes()
            authority.key_pem = (folder / "ca.key").read_bytes()
            authority._key = authority._serialization.load_pem_private_key(authority.key_pem, None)
            authority._name = authority._x509.load_pem_x509_certificate(authority.certificate_pem).subject
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"robot: authority={folder} cannot be read ({error}); expected the folder of a room with ca.pem and "
                "ca.key. Make one with fw robot class init."
            ) from error
        return authority

    def _import(self) -> None:
        try:
            from cryptography import x509
            from cryptography.hazmat.primitives import hashes, serialization
            from cryptography.hazmat.primitives.asymmetric import ec
        except ImportError as error:
            raise MissingExtraError(
                "robot: package=cryptography is not installed; expected it for certificates. Run pip install "
                "featherweight[robot]."
            ) from error
        self._x509: Any = x509
        self._hashes: Any = hashes
        self._serialization: Any = serialization
        self._ec: Any = ec

    def issue(self, name: str, hosts: Sequence[str]) -> tuple[bytes, bytes]:
        """Return certificate and key as PEM, for servers and clients."""
        x509 = self._x509
        key = self._ec.generate_private_key(self._ec.SECP256R1())
        usages = [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH, x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = self._builder(self._subject(name), key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([self._host(host) for host in hosts]), critical=False
        )
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
        )
        return self._pem(builder.sign(self._key, self._hashes.SHA256())), self._key_pem(key)

    def _builder(self, subject: Any, public_key: Any) -> Any:
        now = datetime.datetime.now(datetime.UTC)
        return (
            self._x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(self._x509.random_serial_number())
            # An hour back, for computers whose clocks are a little wrong.
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        )

    def _subject(self, name: str) -> Any:
        return self._x509.Name([self._x509.NameAttribute(self._x509.oid.NameOID.COMMON_NAME, name)])

    def _host(self, host: str) -> Any:
        try:
            return self._x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            return self._x509.DNSName(host)

    def _pem(self, certificate: Any) -> bytes:
        result: bytes = certificate.public_bytes(self._serialization.Encoding.PEM)
        return result

    def _key_pem(self, key: Any) -> bytes:
        kinds = self._serialization
        result: bytes = key.private_bytes(kinds.Encoding.PEM, kinds.PrivateFormat.PKCS8, kinds.NoEncryption())
        return result


def _write_pair(folder: Path, authority: _Authority, name: str, hosts: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = authority.issue(name, hosts)
    _write(folder / "cert.pem", certificate)
    _write_secret(folder / "key.pem", key)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
