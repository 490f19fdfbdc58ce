// Package nodestate holds the types of program probe's answers about a node.
package nodestate

// Container is a running container or sandbox.
type Container struct {
	ID      string
	Kind    string // "sandbox" or "container"
	Sandbox string // the sandbox's ID
	Pod     string // the pod's namespace/name
	UID     string // the pod's UID
	Name    string // the container's name in the pod's spec
	PID     int
	Env     map[string]string
	Links   []Link // all except loopback
}

// Link is an interface in a container's network namespace.
type Link struct {
	Name, Kind, MAC, Alias string
	Parent                 string // the device that it belongs to, if the kernel says so
	Addresses              []string
}

// Allocation is a container's devices of one resource, as the kubelet allocated them.
type Allocation struct {
	Pod       string // the pod's namespace/name; empty for devices that belong to no pod
	Container string
	Resource  string
	IDs       []string
}
