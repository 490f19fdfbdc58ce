//go:build nodelab

package cluster

// The node of these tests is a guest with SR-IOV functions.
var enter, start = EnterGuest, StartGuest

// bridged gives a pod the networks that create bridges, apart from the default one. The
// pods of these tests use none.
var bridged []option
