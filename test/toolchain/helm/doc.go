// Package helm pins the Helm that the tests of the manifests run.
package helm
