// Modules from which no program is built: tests install the CRDs that they contain.
module github.com/manifold-cni/manifold/test/toolchain/crds

go 1.26.6

require (
	github.com/cert-manager/cert-manager v1.21.2
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
