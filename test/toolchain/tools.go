// Package toolchain pins the third-party programs that tests and checks build:
// the CNI reference plugins, as delegates, and the linter. It is a module of its
// own so that their dependencies stay out of Manifold's.
package toolchain
