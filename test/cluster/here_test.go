//go:build clusterlab

package cluster

// The node of these tests is a set of namespaces.
var enter, start = Enter, Start
