//go:build clusterlab

package cluster

// The node of these tests is a set of namespaces.
var enter, start = Enter, Start

// bridged gives a pod the networks that create bridges, apart from the default one.
var bridged = []option{networks(plain)}
