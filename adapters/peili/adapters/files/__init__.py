"""What the adapters for containerd, k3s and Talos share: editing configuration files, comparing URLs, reading YAML."""
