"""The generated code matches `api.proto`, and does not clash with containerd's own messages in one process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message

from peili.stores.containerd.protos import api_pb2

SOURCES = Path(api_pb2.__file__).parents[4]
PROTO = "peili/stores/containerd/protos/api.proto"


def generate(*options: str) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={SOURCES}", *options, PROTO]
    subprocess.run(command, check=True, timeout=60)


def test_the_committed_code_is_what_protoc_generates(tmp_path: Path) -> None:
    # The text differs between releases of protoc, and the committed code is from an old one on purpose.
    generate(f"--descriptor_set_out={tmp_path / 'set'}")
    (expected,) = FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    committed = FileDescriptorProto()
    api_pb2.DESCRIPTOR.CopyToProto(committed)
    assert without_json_names(committed) == without_json_names(expected)


def without_json_names(file: FileDescriptorProto) -> str:
    """Return `file` as text, without the fields that only descriptor sets have."""
    return re.sub(r"\n +json_name: .*", "", str(file))


def test_the_committed_stub_is_what_protoc_generates(tmp_path: Path) -> None:
    generate(f"--pyi_out={tmp_path}")
    committed, expected = ((root / PROTO).with_name("api_pb2.pyi").read_text() for root in (SOURCES, tmp_path))
    field = re.compile(r"^(?:class \w+|    \w+: .*)", re.MULTILINE)
    assert field.findall(committed) == field.findall(expected)


def test_the_generated_code_requires_no_newer_protobuf_than_the_project() -> None:
    assert "ValidateProtobufRuntimeVersion" not in Path(api_pb2.__file__).read_text()


def test_names_do_not_clash_with_containerds_own() -> None:
    assert api_pb2.DESCRIPTOR.name == PROTO
    assert api_pb2.DESCRIPTOR.package == "peili.stores.containerd"


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        (api_pb2.Info, {"digest": 1, "size": 2}),
        (api_pb2.ReadContentRequest, {"digest": 1, "offset": 2, "size": 3}),
        (api_pb2.Status, {"ref": 3}),
        (api_pb2.Image, {"name": 1, "target": 3, "updated_at": 8}),
        (api_pb2.Envelope, {"namespace": 2, "topic": 3, "event": 4}),
        (api_pb2.Plugin, {"type": 1, "id": 2, "exports": 5, "init_err": 7}),
        (api_pb2.PluginError, {"message": 2}),
    ],
)
def test_fields_have_containerds_numbers(message: type[Message], numbers: dict[str, int]) -> None:
    assert {field.name: field.number for field in message.DESCRIPTOR.fields} == numbers
