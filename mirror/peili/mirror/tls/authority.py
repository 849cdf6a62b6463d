"""The certificate authority that hosts derive from a shared key, and the certificates that it issues.

Every host derives the same authority, byte for byte: HKDF-SHA256 (RFC 5869) makes an Ed25519 key from the shared key,
and Ed25519 signs without randomness. Do not change what is derived: hosts of different versions must derive the same.

issuing.py runs this module as a program. Therefore it imports nothing of peili.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

try:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise ImportError("shared keys need cryptography: pip install 'peili[keys]'") from error

_INFO = b"peili peer authority v1 ed25519"
_SERIAL = 1
_NOT_BEFORE = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_NOT_AFTER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
"""How RFC 5280 writes that there is no end."""
_PATH_LENGTH = 1
"""Below an old authority stands the certificate that it gave to the new one, and below that one the host's."""


@dataclass(frozen=True, slots=True)
class HostCertificate:
    """The certificate of a host, as PEM texts.

    Attributes:
        chain: The certificate, and those that link it to other authorities.
        key: Its private key.
        trusted: The certificates of the authorities.
    """

    chain: str
    key: str
    trusted: str


class Authority:
    """The authority of one shared key.

    Args:
        shared_key: 32 random bytes.

    Attributes:
        certificate: Its own certificate. The same on every host.
    """

    def __init__(self, shared_key: bytes) -> None:
        seed = HKDF(algorithm=SHA256(), length=32, salt=None, info=_INFO).derive(shared_key)
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public_key = self._key.public_key()
        digest = hashlib.sha256(self._public_key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()
        # The name contains a part of the digest, so that a verifier sees which of several authorities has signed.
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"peili {digest[:16]}")])
        self.certificate = self.certify(self)

    def certify(self, other: Authority) -> x509.Certificate:
        """Return a certificate that makes `other` an authority for all who trust this one."""
        builder = self._builder(other._name, other._public_key, _SERIAL, _NOT_BEFORE, _NOT_AFTER)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=_PATH_LENGTH), critical=True)
        builder = builder.add_extension(_key_usage(is_authority=True), critical=True)
        return builder.sign(self._key, algorithm=None)

    def issue(
        self, names: Sequence[x509.GeneralName], begin: float, end: float
    ) -> tuple[x509.Certificate, Ed25519PrivateKey]:
        """Issue a certificate to a new private key. See `issue_for_host`."""
        key = Ed25519PrivateKey.generate()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "peili host")])
        times = (dt.datetime.fromtimestamp(each, dt.UTC) for each in (begin, end))
        builder = self._builder(subject, key.public_key(), x509.random_serial_number(), *times)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(is_authority=False), critical=True)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, algorithm=None), key

    def _builder(
        self,
        subject: x509.Name,
        public_key: Ed25519PublicKey,
        serial: int,
        begin: dt.datetime,
        end: dt.datetime,
    ) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().issuer_name(self._name).subject_name(subject).public_key(public_key)
        builder = builder.serial_number(serial).not_valid_before(begin).not_valid_after(end)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._public_key)
        return builder.add_extension(issuer, critical=False)


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def issue_for_host(keys: Sequence[bytes], uri: str, dns_name: str, begin: float, end: float) -> HostCertificate:
    """Issue the certificate of a host, signed by the authority of the first of `keys`.

    The other authorities certify the first one, so that hosts which trust only one of them verify the certificate, too.

    Args:
        keys: The shared keys.
        uri: The URI that the certificate shows.
        dns_name: The DNS name that it shows.
        begin: From when it is valid, in seconds since 1970.
        end: Until when it is valid.
    """
    first, *others = authorities = [Authority(key) for key in keys]
    names = [x509.UniformResourceIdentifier(uri), x509.DNSName(dns_name)]
    certificate, key = first.issue(names, begin, end)
    return HostCertificate(
        chain=_pem([certificate, *(other.certify(first) for other in others)]),
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii"),
        trusted=_pem(each.certificate for each in authorities),
    )


def _pem(certificates: Iterable[x509.Certificate]) -> str:
    return "".join(each.public_bytes(Encoding.PEM).decode("ascii") for each in certificates)


def main() -> None:
    """Issue one certificate as a program: the arguments come as JSON from stdin, and the result goes to stdout."""
    keys, *arguments = json.load(sys.stdin)
    json.dump(asdict(issue_for_host([bytes.fromhex(key) for key in keys], *arguments)), sys.stdout)


if __name__ == "__main__":
    main()
