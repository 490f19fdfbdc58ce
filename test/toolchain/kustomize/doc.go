// Package kustomize pins the kustomize that the tests of the manifests run.
package kustomize
