"""What hosts derive from a shared key is the same on every host, in every version."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from peili.mirror.tls.authority import Authority, issue_for_host
from peili.mirror.tls.issuing import issue_certificate
from peili.mirror.tls.key_file import create_key_file

KEY, OTHER_KEY = bytes(range(32)), bytes(32)


def fingerprint(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def test_the_authority_of_a_key_never_changes() -> None:
    """If this fails, hosts of two versions refuse each other: use a new version of the key format instead."""
    assert fingerprint(Authority(KEY).certificate) == "4d7d5d0a5ea04777bad5911df08644fb164ea3aa7e0c3973557d9603dacace78"
    assert (
        fingerprint(Authority(OTHER_KEY).certify(Authority(KEY)))
        == "f33cf64cb652f80c96824e71fd128f6b627eb84771b8e3922f2351ceeffbe847"
    )


def test_authorities_of_other_keys_differ_in_name_and_key() -> None:
    one, other = Authority(KEY).certificate, Authority(OTHER_KEY).certificate
    assert one.subject != other.subject
    assert one.public_key() != other.public_key()


def test_a_host_sends_what_links_its_authority_to_the_others() -> None:
    issued = issue_for_host([KEY, OTHER_KEY], "peili:here", "peer.example", 0.0, 3600.0)
    own, link = x509.load_pem_x509_certificates(issued.chain.encode())
    first, second = x509.load_pem_x509_certificates(issued.trusted.encode())
    assert (first, second) == (Authority(KEY).certificate, Authority(OTHER_KEY).certificate)
    own.verify_directly_issued_by(first)
    link.verify_directly_issued_by(second)
    assert link.public_key() == first.public_key()
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["peili:here"]
    assert names.get_values_for_type(x509.DNSName) == ["peer.example"]


def test_a_certificate_is_issued_to_a_new_private_key() -> None:
    issued = [issue_for_host([KEY], "peili:here", "peer.example", 0.0, 3600.0) for _ in range(2)]
    assert issued[0].key != issued[1].key
    assert issued[0].chain != issued[1].chain


def test_a_child_process_does_the_work_so_that_cryptography_takes_no_memory(tmp_path: Path) -> None:
    create_key_file(tmp_path / "key")
    program = (
        "import pathlib, sys\n"
        "from peili.mirror import PeerKeys\n"
        f"PeerKeys(pathlib.Path({str(tmp_path / 'key')!r}), 'here').contexts()\n"
        "print([name for name in sys.modules if name.startswith('cryptography')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("executable", ["", "/opt/agent/agent", "/nowhere/python3", "/bin/false"])
def test_without_a_python_to_start_the_work_is_done_in_this_process(
    executable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A frozen app must not be started again, and an executable may be gone."""
    if executable == "/bin/false":
        (tmp_path / "python3").symlink_to("/bin/false")
        executable = str(tmp_path / "python3")
    monkeypatch.setattr(sys, "executable", executable)
    issued = issue_certificate([KEY], "peili:here", "peer.example", 0.0, 3600.0)
    [own] = x509.load_pem_x509_certificates(issued.chain.encode())
    own.verify_directly_issued_by(Authority(KEY).certificate)
