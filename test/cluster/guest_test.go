//go:build nodelab

package cluster

// The node of these tests is a guest with SR-IOV functions.
var enter, start = EnterGuest, StartGuest

// bridged gives a pod the networks that make bridges, beside the default one: the pods
// of these tests have none.
var bridged []option
