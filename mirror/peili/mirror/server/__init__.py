"""What uvicorn lacks: its own accept loop, a protocol with limits, and a way to send files without copying."""
