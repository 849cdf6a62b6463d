"""The router that finds peers by the EndpointSlices of a Kubernetes Service. `KubernetesRouter` is the public name."""

from peili.routers.kubernetes.router import KubernetesRouter

__all__ = ["KubernetesRouter"]
