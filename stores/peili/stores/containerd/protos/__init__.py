"""The messages of containerd's API: `api.proto` is written by hand, `api_pb2` is generated from it, typed by a stub.

In the project's root, after a change, with grpcio-tools 1.63 (``pip install 'grpcio-tools==1.63.*'``)::

    python -m grpc_tools.protoc --proto_path=stores --python_out=stores --pyi_out=stores \
        peili/stores/containerd/protos/api.proto

Code that a newer one generates refuses to run on protobuf older than itself; from this one it runs on every release
since 5.26. A test compares what is committed with what the grpcio-tools at hand makes of `api.proto`.
"""
