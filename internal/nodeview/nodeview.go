// Package nodeview is what is attached on a node, and to what, as data: one
// versioned document that the agent answers with, that kubectl-manifold prints,
// and that programs may read.
//
// [Read] joins four sources, each of which knows a part:
//
//   - the journals: pod, network, container, device, interface, result, and what
//     was verified when;
//   - sysfs: every virtual function with its PF, driver and NUMA node;
//   - the kubelet: which device it has given to which container;
//   - the reconciler: what does not fit together.
//
// A source that fails is named in [View.Problems], and the others are shown: a
// node is looked at when something is broken. Nothing is changed, and no journal
// is locked: journals only grow, and a torn last line is expected.
package nodeview

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/reconcile"
)

// Version is the version of [View] as written by this code. Fields are only ever
// added; a reader accepts the versions from 1 up to its own.
const Version = 1

// View is one node at one moment.
type View struct {
	Version     int                 `json:"version"`
	Node        string              `json:"node"`
	Time        time.Time           `json:"time"`
	Attachments []Attachment        `json:"attachments,omitempty"` // by pod, then in order of attachment
	Devices     []Device            `json:"devices,omitempty"`     // every VF, by PCI address
	Findings    []reconcile.Finding `json:"findings,omitempty"`    // what is wrong with VFs
	// Proposals has each of the findings with what a repair would do about it.
	Proposals []reconcile.Proposal `json:"proposals,omitempty"`
	Problems  []string             `json:"problems,omitempty"` // what could not be read
}

// States of an [Attachment].
const (
	StateTrying        = "trying"         // its ADD is under way, or was killed
	StateAttached      = "attached"       // the delegate succeeded
	StateReleasing     = "releasing"      // its DEL is under way, or was killed
	StateReleaseFailed = "release-failed" // its DEL failed and will be tried again
	StateWaiting       = "waiting"        // its turn has not come
)

// States returns every state of an attachment.
func States() []string {
	return []string{StateWaiting, StateTrying, StateAttached, StateReleasing, StateReleaseFailed}
}

// Attachment is one interface of one sandbox, as its journal has it.
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
	Since     time.Time    `json:"since"`            // when it came into this state
	Error     string       `json:"error,omitempty"`  // of StateReleaseFailed
	Reason    string       `json:"reason,omitempty"` // how it came about
	// VerifyMode is enforce, warn or off. Verified lists what was compared and
	// found equal, Differs what differed and was let pass, one sentence each, at
	// VerifiedAt; nil where the comparison has not happened.
	VerifyMode string     `json:"verifyMode"`
	Verified   []string   `json:"verified,omitempty"`
	Differs    []string   `json:"differs,omitempty"`
	VerifiedAt *time.Time `json:"verifiedAt,omitempty"`
	// Gone says why the sandbox does not live any more; empty while it does.
	Gone string `json:"gone,omitempty"`
}

// Uses of a [Device].
const (
	UseAttached  = "attached"  // a sandbox has it
	UseAllocated = "allocated" // the kubelet has given it to a pod, and no sandbox has it
	UseFree      = "free"
	UseUnknown   = "unknown" // no sandbox has it, and the kubelet cannot be asked
)

// Device is one virtual function and who has it.
type Device struct {
	Address    string              `json:"address"` // PCI
	PF         string              `json:"pf"`      // PCI address of the physical function
	PFNetDev   string              `json:"pfNetDev,omitempty"`
	VFIndex    int                 `json:"vfIndex"`
	NUMANode   int                 `json:"numaNode"` // -1 where the platform does not say
	Driver     string              `json:"driver,omitempty"`
	IOMMUGroup string              `json:"iommuGroup,omitempty"`
	NetDevs    []string            `json:"netDevs,omitempty"` // on the host
	Use        string              `json:"use"`               // one of the Use constants
	Holder     *Holder             `json:"holder,omitempty"`
	Sandbox    string              `json:"sandbox,omitempty"` // container ID
	Network    string              `json:"network,omitempty"`
	Interface  string              `json:"interface,omitempty"`
	Findings   []reconcile.Finding `json:"findings,omitempty"` // what is wrong with it
}

// Holder is the container that a device is given to. A source may know only the
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
