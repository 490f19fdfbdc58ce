//go:build nodelab

package cluster

// The node of these tests is a guest with SR-IOV functions.
var enter, start = EnterGuest, StartGuest
