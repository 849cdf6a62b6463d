"""What uvicorn lacks: an accept loop with limits, a protocol with limits, and a way to send files without copies."""
