// Package plan holds the plan of a pod's attachments as data, the [Planner] interface
// that makes plans, and its transports.
//
// A plan is complete: whoever executes, stores, prints or undoes it looks nothing up
// again. The exceptions are known only in the host's network namespace: the meaning of a
// netdev name, and which namespace is the sandbox's. The shim fills them in before it
// journals the plan. The agent makes plans; the shim journals and executes them. The
// same Planner is reached over the agent's unix socket ([Client], [Serve]), by running
// the agent's program with the request on stdin ([Command]), or in process.
package plan

import (
	"context"
	"encoding/json"
	"slices"
	"time"
)

// Version is the version of [Request], [Plan] and [Report] that this code writes. A
// reader accepts versions from 1 up to its own. Fields are only ever added.
const Version = 1

// Planner is what the shim needs from the agent.
type Planner interface {
	// Plan returns the complete plan for one sandbox, or a *cnierr.Error.
	Plan(ctx context.Context, req Request) (*Plan, error)
	// Report publishes the outcome of a plan: the pod's network-status and one Event.
	// It never changes what is attached.
	Report(ctx context.Context, r Report) error
	// Status returns nil when Plan can be served now (CNI verb STATUS).
	Status(ctx context.Context, q StatusQuery) (json.RawMessage, error)
}

// StatusQuery is an additional question in Status. Namespace and Name ask for the
// definition of the cluster default network: the answer is its configuration, or none
// when the definition leaves that to a file. Config asks whether that configuration can
// be planned; an older agent ignores it. A broken definition is
// [cnierr.InvalidDefinition]; an older agent reports it as missing.
type StatusQuery struct {
	Namespace string          `json:"namespace,omitempty"`
	Name      string          `json:"name,omitempty"`   // of the definition; empty: not asked
	Config    json.RawMessage `json:"config,omitempty"` // the default network's; empty: not asked
	Type      string          `json:"type,omitempty"`   // Manifold's own plugin type, which cannot be the default network's
}

// Inspector answers the questions of people's programs. The agent implements it besides
// Planner. Its answers are documents whose form the asker knows.
type Inspector interface {
	Inspect(ctx context.Context, q Question) (json.RawMessage, error)
}

// What a [Question] is about.
const (
	AboutNode = "node" // the node's view: attachments and devices
	AboutPod  = "pod"  // the plan of one pod as a dry run, every step with its reason
)

// Question is what a person's program asks the agent. No answer changes anything.
type Question struct {
	About     string `json:"about"`               // one of the About constants
	Namespace string `json:"namespace,omitempty"` // of AboutPod
	Name      string `json:"name,omitempty"`      // of AboutPod
}

// Request asks for the plan of one sandbox. It holds what the runtime passed, decoded.
type Request struct {
	Version      int             `json:"version"`
	PodNamespace string          `json:"podNamespace,omitempty"` // K8S_POD_NAMESPACE; empty outside Kubernetes
	PodName      string          `json:"podName,omitempty"`      // K8S_POD_NAME
	PodUID       string          `json:"podUID,omitempty"`       // K8S_POD_UID; empty with old runtimes
	ContainerID  string          `json:"containerID"`            // CNI_CONTAINERID, the sandbox
	NetNS        string          `json:"netns"`                  // CNI_NETNS, a path
	IfName       string          `json:"ifName"`                 // CNI_IFNAME, the default network's interface
	Args         [][2]string     `json:"args,omitempty"`         // CNI_ARGS, in order
	Config       json.RawMessage `json:"config"`                 // the plugin's configuration, as on stdin
	ID           string          `json:"id,omitempty"`           // of the call, see Operation
}

// Plan is everything that an ADD, CHECK or DEL of one sandbox needs.
type Plan struct {
	Version     int    `json:"version"`
	Pod         Pod    `json:"pod"`
	ContainerID string `json:"containerID"`
	NetNS       string `json:"netns"`
	// NetNSCookie identifies the network namespace that NetNS led to at ADD, see
	// package sriov/rtnl: by the time of DEL the path may lead to another. NetNSFile
	// identifies the file that NetNS was then, "INODE@SECONDS.NANOSECONDS" with the time
	// of its last change. If that is the same, so is the namespace; if not, only the
	// cookie tells. The shim fills in both; 0 and "" mean unknown.
	NetNSCookie uint64       `json:"netnsCookie,omitempty"`
	NetNSFile   string       `json:"netnsFile,omitempty"`
	Attachments []Attachment `json:"attachments"`        // in order of attachment; the first is the cluster default network
	Notes       []string     `json:"notes,omitempty"`    // decisions about devices, for people
	Warnings    []string     `json:"warnings,omitempty"` // what has no effect or was overridden
	// Ignored says what the pod selects but does not get because of the node's
	// configuration. Warnings holds it too.
	Ignored string `json:"ignored,omitempty"`
}

// Digest returns the plan without what only its execution needs. It is for reports: the
// agent made the plan and knows the rest.
func (p *Plan) Digest() *Plan {
	d := *p
	d.Notes, d.Warnings = nil, nil
	d.Attachments = slices.Clone(p.Attachments)
	for i := range d.Attachments {
		a := &d.Attachments[i]
		a.Config, a.Capabilities, a.Args, a.Reason = nil, nil, nil, ""
	}
	return &d
}

// Pod identifies the pod that a plan is for.
type Pod struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"` // as the runtime gave it
	// Static reports that the pod comes from the kubelet's own files; the API server
	// knows it under another UID.
	Static bool `json:"static,omitempty"`
}

// String returns namespace/name, or the empty string outside Kubernetes.
func (p Pod) String() string {
	if p.Name == "" {
		return ""
	}
	return p.Namespace + "/" + p.Name
}

// Attachment is one interface that the pod gets from one delegate chain.
type Attachment struct {
	// Name is the name in network-status: namespace/name of the definition, or the
	// default network's name.
	Name string `json:"name"`
	// Network is the "name" inside Config. With the container ID and IfName it is the
	// tuple that ADD, CHECK and DEL share (CNI specification, section 2).
	Network string `json:"network"`
	IfName  string `json:"ifName"`
	Default bool   `json:"default,omitempty"`
	// Config is the rendered configuration list (always a list) given to libcni.
	Config json.RawMessage `json:"config"`
	// Capabilities is libcni's CapabilityArgs: runtimeConfig by capability.
	Capabilities map[string]json.RawMessage `json:"capabilities,omitempty"`
	// Args is CNI_ARGS for the delegate, in order.
	Args [][2]string `json:"args,omitempty"`
	// Device is the hardware that the attachment stands on; nil for none.
	Device *Device `json:"device,omitempty"`
	// Written are the devices that the configuration itself names, besides Device,
	// spelled as there. The node tells which of them are VFs.
	Written []string `json:"written,omitempty"`
	// Want is what verification compares the interface with.
	Want Want `json:"want"`
	// DefaultRoute, when not nil, lists the gateways of the pod's only default routes;
	// an empty list removes all (multi-network specification 4.1.2.1.10).
	DefaultRoute *[]string `json:"defaultRoute,omitempty"`
	// DropDefaultRoute reports that another attachment owns the default route.
	DropDefaultRoute bool `json:"dropDefaultRoute,omitempty"`
	// DeviceInfo is the device-info object for network-status in case the delegate
	// writes none (device information specification); nil for none.
	DeviceInfo json.RawMessage `json:"deviceInfo,omitempty"`
	// DeviceInfoFile is the CNI device-info file that the attachment may write; DEL
	// removes it. Empty for none.
	DeviceInfoFile string `json:"deviceInfoFile,omitempty"`
	// Reason says how this attachment and its device were chosen, for people.
	Reason string `json:"reason,omitempty"`
}

// Device is an allocated device and where the knowledge about it comes from.
type Device struct {
	Resource   string  `json:"resource"`             // for example vendor.example/vfs
	ID         string  `json:"id"`                   // the device plugin's ID, verbatim
	PCIAddress string  `json:"pciAddress,omitempty"` // dddd:bb:dd.f when the ID is one or names a VF's netdev; else empty
	Container  string  `json:"container,omitempty"`  // the container that it is allocated to
	NUMANodes  []int64 `json:"numaNodes,omitempty"`
	Driver     string  `json:"driver,omitempty"` // at the time of planning
	PF         string  `json:"pf,omitempty"`     // PCI address of the physical function; empty unless a VF
	VFIndex    int     `json:"vfIndex,omitempty"`
	Userspace  bool    `json:"userspace,omitempty"`  // bound to vfio-pci or uio: no netdev is expected
	IOMMUGroup string  `json:"iommuGroup,omitempty"` // at the time of planning; empty without an IOMMU
	Source     string  `json:"source"`               // the sources that agree on it
	Reason     string  `json:"reason,omitempty"`     // why this device for this attachment
	Claim      *Claim  `json:"claim,omitempty"`      // the resource claim that allocates it; nil for a device plugin's
	Written    bool    `json:"written,omitempty"`    // nobody allocated it: the configuration names it
}

// plainDevice is a Device without methods. encoding/json prepares a type that has
// methods only when it meets a value of it, which saves the work for pods without
// devices.
type plainDevice Device

// MarshalJSON implements json.Marshaler.
func (d *Device) MarshalJSON() ([]byte, error) { return json.Marshal((*plainDevice)(d)) }

// UnmarshalJSON implements json.Unmarshaler.
func (d *Device) UnmarshalJSON(raw []byte) error { return json.Unmarshal(raw, (*plainDevice)(d)) }

// Name returns the device's name in messages: its ID, and its PCI address when that is
// known and spelled differently.
func (d *Device) Name() string {
	if d.PCIAddress == "" || d.PCIAddress == d.ID {
		return d.ID
	}
	return d.ID + " (" + d.PCIAddress + ")"
}

// Claim names the resource claim that a device belongs to, and the device as its driver
// names it.
type Claim struct {
	Name     string   `json:"name"`               // of the ResourceClaim, in the pod's namespace
	PodClaim string   `json:"podClaim,omitempty"` // the pod's own name for it; empty with extended resources
	Requests []string `json:"requests,omitempty"` // the requests that the device serves
	Driver   string   `json:"driver"`
	Pool     string   `json:"pool"`
	Device   string   `json:"device"`
	ShareID  string   `json:"shareID,omitempty"` // of a device that is allocated several times
}

// Modes of verification.
const (
	VerifyEnforce = "enforce" // undo and refuse
	VerifyWarn    = "warn"    // report only
	VerifyOff     = "off"     // do not look
)

// Policies for the interface of a device that has no carrier.
const (
	CarrierWarn    = "warn"    // report only
	CarrierRequire = "require" // a finding, see Want.Verify
	CarrierIgnore  = "ignore"  // do not look
)

// Want is what an attachment's interface must be like. Empty fields are not compared.
type Want struct {
	Verify string   `json:"verify"`        // VerifyEnforce, VerifyWarn or VerifyOff
	MAC    string   `json:"mac,omitempty"` // as requested by the selection
	MTU    int      `json:"mtu,omitempty"` // as set by the configuration
	IPs    []string `json:"ips,omitempty"` // as requested by the selection, CIDR or bare address
	VF     *VF      `json:"vf,omitempty"`  // PF-side state that the configuration asks for
	// Carrier is CarrierWarn, CarrierRequire or CarrierIgnore; empty when no carrier is
	// expected.
	Carrier string `json:"carrier,omitempty"`
}

// VF is the PF-side state of a virtual function that a configuration asks for. Nil and
// empty fields are not compared. The keys are those of the SR-IOV CNI.
type VF struct {
	VLAN      *int   `json:"vlan,omitempty"`
	VLANQoS   *int   `json:"vlanQoS,omitempty"`
	VLANProto string `json:"vlanProto,omitempty"` // 802.1q or 802.1ad
	MAC       string `json:"mac,omitempty"`
	SpoofChk  string `json:"spoofchk,omitempty"`  // on or off
	Trust     string `json:"trust,omitempty"`     // on or off
	LinkState string `json:"linkState,omitempty"` // auto, enable or disable
	MinTxRate *int   `json:"minTxRate,omitempty"` // Mbit/s
	MaxTxRate *int   `json:"maxTxRate,omitempty"` // Mbit/s
	GUID      string `json:"guid,omitempty"`      // of an InfiniBand VF, for both its node and its port
}

// plainVF is a VF without methods, for the same reason as plainDevice.
type plainVF VF

// MarshalJSON implements json.Marshaler.
func (v *VF) MarshalJSON() ([]byte, error) { return json.Marshal((*plainVF)(v)) }

// UnmarshalJSON implements json.Unmarshaler.
func (v *VF) UnmarshalJSON(raw []byte) error { return json.Unmarshal(raw, (*plainVF)(v)) }

// Outcome is the outcome of one attachment.
type Outcome struct {
	Name   string          `json:"name"`
	IfName string          `json:"ifName"`
	Result json.RawMessage `json:"result,omitempty"` // the delegate's result, in its own version
	// Verified lists what was compared and found equal. Findings lists what differed
	// without refusing the pod, one sentence each.
	Verified []string `json:"verified,omitempty"`
	Findings []string `json:"findings,omitempty"`
	// MTU and MAC are as found in the network namespace; zero when not verified.
	MTU int    `json:"mtu,omitempty"`
	MAC string `json:"mac,omitempty"`
	// DeviceInfo is the content of the attachment's device-information file after ADD;
	// empty for none.
	DeviceInfo json.RawMessage `json:"deviceInfo,omitempty"`
}

// Report tells the agent the outcome of a plan.
type Report struct {
	Version  int           `json:"version"`
	Plan     *Plan         `json:"plan"` // may be a [Plan.Digest]
	Verb     string        `json:"verb"` // ADD or DEL
	Outcomes []Outcome     `json:"outcomes,omitempty"`
	Error    string        `json:"error,omitempty"`    // why the verb failed; empty on success
	Problems []string      `json:"problems,omitempty"` // what is left behind or was only warned about
	Took     time.Duration `json:"took,omitempty"`
	// Made is when the report was made. Older callers do not set it.
	Made time.Time `json:"made,omitzero"`
	// Later asks the agent to answer before it publishes anything.
	Later bool `json:"later,omitempty"`
	// Operation has the times and the kind of failure. Older callers do not set it.
	Operation *Operation `json:"operation,omitempty"`
}
