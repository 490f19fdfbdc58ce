// Package toolchain pins the third-party programs that tests and checks build: the CNI
// reference plugins, which serve as delegates, and the linter. It is a separate module
// so that their dependencies stay out of Manifold's.
package toolchain
