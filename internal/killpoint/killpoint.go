//go:build !killpoints

// Package killpoint marks the places where a test kills the program.
//
// A named point follows every journal record, every claim of a device, and every call of
// a delegate or of the agent. In an ordinary build [Here] is empty and inlined away. With
// the build tag killpoints it appends the point's name to the file named by
// MANIFOLD_KILL_LOG. At the point whose ordinal is MANIFOLD_KILL_AT it kills its own
// process with SIGKILL, or its whole process group when MANIFOLD_KILL_GROUP is set. A
// test runs once to learn the points, then once for each of them, so no point can be
// forgotten.
package killpoint

// Here marks a point.
func Here(string) {}
