// Package nodestate is what program probe tells of a node.
package nodestate

// Container is a container or sandbox that runs.
type Container struct {
	ID      string
	Kind    string // "sandbox" or "container"
	Sandbox string // the sandbox's ID
	Pod     string // namespace/name
	UID     string // the pod's
	Name    string // the container's in the pod's spec
	PID     int
	Env     map[string]string
	Links   []Link // but loopback
}

// Link is an interface in a container's network namespace.
type Link struct {
	Name, Kind, MAC, Alias string
	Parent                 string // the device that it is on, where the kernel says so
	Addresses              []string
}

// Allocation are devices that the kubelet has given to a container.
type Allocation struct {
	Pod       string // namespace/name
	Container string
	Resource  string
	IDs       []string
}
