// Package nodeview describes what is attached on a node, and to what, as data: one
// versioned document that the agent serves, that kubectl-manifold prints, and that
// programs may read.
//
// [Read] joins four sources, each of which knows a part:
//
//   - the journals: pod, network, container, device, interface, result, and what was
//     verified when;
//   - sysfs: every virtual function with its PF, driver and NUMA node;
//   - the kubelet: which device it has allocated to which container;
//   - the reconciler: inconsistencies between the other three.
//
// A source that fails is named in [View.Problems], and the others are still shown,
// because people look at a node when something is broken. Nothing is changed, and no
// journal is locked: journals only grow, and readers expect a torn last line.
package nodeview

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/reconcile"
)

// Version is the version of [View] as written by this code. Fields are only ever added;
// a reader accepts the versions from 1 up to its own.
const Version = 1

// View is the state of one node at one moment.
type View struct {
	Version     int                 `json:"version"`
	Node        string              `json:"node"`
	Time        time.Time           `json:"time"`
	Attachments []Attachment        `json:"attachments,omitempty"` // by pod, then in order of attachment
	Devices     []Device            `json:"devices,omitempty"`     // every VF, by PCI address
	Findings    []reconcile.Finding `json:"findings,omitempty"`    // problems of VFs
	// Proposals pairs each finding with what a repair would do about it.
	Proposals []reconcile.Proposal `json:"proposals,omitempty"`
	Problems  []string             `json:"problems,omitempty"` // what could not be read
}

// States of an [Attachment].
const (
	StateTrying        = "trying"         // ADD is under way, or was killed
	StateAttached      = "attached"       // the delegate succeeded
	StateReleasing     = "releasing"      // DEL is under way, or was killed
	StateReleaseFailed = "release-failed" // DEL failed and will be tried again
	StateWaiting       = "waiting"        // ADD has not reached it yet
)

// States returns every state of an attachment.
func States() []string {
	return []string{StateWaiting, StateTrying, StateAttached, StateReleasing, StateReleaseFailed}
}

// Attachment is one interface of one sandbox, according to its journal.
type Attachment struct {
	Pod       plan.Pod     `json:"pod"`
	Sandbox   string       `json:"sandbox"` // container ID
	Network   string       `json:"network"` // namespace/name of the definition, or the default network's name
	Default   bool         `json:"default,omitempty"`
	Interface string       `json:"interface"`
	Device    *plan.Device `json:"device,omitempty"` // resource, container, PCI address, PF, VF index, NUMA nodes
	Addresses []string     `json:"addresses,omitempty"`
	MAC       string       `json:"mac,omitempty"`
	MTU       int          `json:"mtu,omitempty"`
	State     string       `json:"state"`            // one of the State constants
	Since     time.Time    `json:"since"`            // start of this state
	Error     string       `json:"error,omitempty"`  // of StateReleaseFailed
	Reason    string       `json:"reason,omitempty"` // why the plan has this attachment
	// VerifyMode is enforce, warn or off. Verified lists what was compared at
	// VerifiedAt and found equal, Differs what differed and was tolerated, one sentence
	// each. VerifiedAt is nil if nothing was compared yet.
	VerifyMode string     `json:"verifyMode"`
	Verified   []string   `json:"verified,omitempty"`
	Differs    []string   `json:"differs,omitempty"`
	VerifiedAt *time.Time `json:"verifiedAt,omitempty"`
	// Gone says why the sandbox is dead; empty while it lives.
	Gone string `json:"gone,omitempty"`
}

// Uses of a [Device].
const (
	UseAttached  = "attached"  // held by a sandbox
	UseAllocated = "allocated" // allocated to a pod by the kubelet, and held by no sandbox
	UseFree      = "free"
	UseUnknown   = "unknown" // held by no sandbox, and the kubelet cannot be asked
)

// Device is one virtual function and its holder.
type Device struct {
	Address    string              `json:"address"` // PCI
	PF         string              `json:"pf"`      // PCI address of the physical function
	PFNetDev   string              `json:"pfNetDev,omitempty"`
	VFIndex    int                 `json:"vfIndex"`
	NUMANode   int                 `json:"numaNode"` // -1 if the platform does not say
	Driver     string              `json:"driver,omitempty"`
	IOMMUGroup string              `json:"iommuGroup,omitempty"`
	NetDevs    []string            `json:"netDevs,omitempty"` // on the host
	Use        string              `json:"use"`               // one of the Use constants
	Holder     *Holder             `json:"holder,omitempty"`
	Sandbox    string              `json:"sandbox,omitempty"` // container ID
	Network    string              `json:"network,omitempty"`
	Interface  string              `json:"interface,omitempty"`
	Findings   []reconcile.Finding `json:"findings,omitempty"` // problems of this device
}

// Holder is the container that a device is allocated to. A source may know only the
// pod's name or only its UID.
type Holder struct {
	Pod       string `json:"pod,omitempty"` // namespace/name
	PodUID    string `json:"podUID,omitempty"`
	Container string `json:"container,omitempty"`
	Resource  string `json:"resource,omitempty"`
}

// Decode reads a view that an agent of this release or an older one wrote.
func Decode(raw []byte) (*View, error) {
	v := &View{}
	if err := json.Unmarshal(raw, v); err != nil {
		return nil, fmt.Errorf("read the node's view: %w", err)
	}
	return v, checkVersion(v.Version)
}
