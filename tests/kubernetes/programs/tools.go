//go:build tools

// Package tools names the programs, so that go.mod and go.sum have what they are built from (`go mod tidy`).
package tools

import (
	_ "helm.sh/helm/v3/cmd/helm"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kubectl"
)
