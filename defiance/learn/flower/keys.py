"""Certificates and keys of a deployment: TLS for every server, a key by which each SuperNode is known.

Made anew for every deployment, in a folder that only its owner can enter, each file with mode 0600. The
authority that signs the certificates forgets its key as soon as it has signed them: nothing else will be.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID = datetime.timedelta(days=30)
EARLY = datetime.timedelta(hours=1)
"""Certificates are valid from so long ago on: clocks differ."""

Certificate = tuple[Path, Path]
"""Files of a certificate and of its key."""


@dataclass(frozen=True)
class Keys:
    """Where they lie.

    Attributes:
        authority: certificate that signed the others, for who connects.
        superlink: the SuperLink's certificate.
        supernodes: the SuperNodes', for their own Runtime API.
        private, public: the SuperNodes' authentication keys, OpenSSH and PEM.
    """

    authority: Path
    superlink: Certificate
    supernodes: tuple[Certificate, ...]
    private: tuple[Path, ...]
    public: tuple[bytes, ...]


def make_keys(folder: Path, nodes: int, host: str) -> Keys:
    """Replaces the folder by one with new certificates for `host`, an IP address, and keys for the nodes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    signer = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "DEFIANCE deployment")])
    root = (
        _builder(name, name, signer.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    authority = _write(folder / "authority.pem", root.public_bytes(serialization.Encoding.PEM))

    def certificate(owner: str) -> Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, owner)])
        addresses = [x509.IPAddress(ipaddress.ip_address(host)), x509.DNSName("localhost")]
        signed = (
            _builder(subject, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
            .sign(signer, hashes.SHA256())
        )
        return (
            _write(folder / f"{owner}.pem", signed.public_bytes(serialization.Encoding.PEM)),
            _write(folder / f"{owner}.key", _private(key, serialization.PrivateFormat.PKCS8)),
        )

    private, public = [], []
    for node in range(nodes):
        key = ec.generate_private_key(ec.SECP384R1())
        private.append(
            _write(folder / f"node-{node}.ssh", _private(key, serialization.PrivateFormat.OpenSSH))
        )
        public.append(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
    supernodes = tuple(certificate(f"node-{node}") for node in range(nodes))
    return Keys(authority, certificate("superlink"), supernodes, tuple(private), tuple(public))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + VALID)
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey, format_: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, format_, serialization.NoEncryption())


def _write(path: Path, content: bytes) -> Path:
    """A file that was never readable by others."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    return path
