// Package configfile reads, validates and converts the configuration files that
// administrators write: the agent's, and the plugin's in the runtime's directory.
//
// [ReadAgent] and [ReadPlugin] read a file as the programs do. [ValidateAgent] and
// [ValidatePlugin] report every mistake in a file with its line and key, where the
// programs stop at the first. [Convert] makes both files from a configuration of
// Multus.
package configfile

import (
	"bytes"
	"encoding/json"
	"os"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/logs"
	"github.com/manifold-cni/manifold/internal/reconcile"
)

// Agent is the agent's configuration file, in JSON. Every source is optional; an empty
// one is not asked. The one-shot mode reads the same file.
type Agent struct {
	Node   string `json:"node"`   // this node's name
	Socket string `json:"socket"` // the agent's own unix socket

	// KubeletDir is the kubelet's root directory; the paths below default to places in
	// it. A path of "-" leaves a source out.
	KubeletDir   string `json:"kubeletDir"`
	PodResources string `json:"podResources"` // socket of the PodResources API
	Checkpoint   string `json:"checkpoint"`   // the device-manager checkpoint
	PodsAPI      string `json:"podsAPI"`      // socket of the Pods API

	// ClaimCheckpoint is the kubelet's checkpoint of resource claims. DeviceMetadata is
	// its directory of plugins, where DRA drivers describe the devices of claims.
	ClaimCheckpoint string `json:"claimCheckpoint"`
	DeviceMetadata  string `json:"deviceMetadata"`
	// ResourceSlices also looks the devices of claims up at the API server.
	ResourceSlices bool `json:"resourceSlices"`

	// APIServer is "in-cluster", the path of a kubeconfig, or empty for no API server.
	// The one-shot mode runs on the host, without the credential of the agent's pod:
	// there, "in-cluster" reaches no API server, and the snapshot serves alone.
	APIServer string `json:"apiServer"`
	// Snapshot is the file in which definitions outlive the API server.
	Snapshot string `json:"snapshot"`

	// CNIDir is the plugin's cniDir, which holds the journals. SysRoot is the directory
	// that holds sys/.
	CNIDir  string `json:"cniDir"`
	SysRoot string `json:"sysRoot"`
	// Reconcile is one of the Reconcile constants. ReconcileExclude lists PFs, by PCI
	// address or network device, whose VFs are never repaired; see
	// [reconcile.ParseExclude].
	Reconcile        string   `json:"reconcile"`
	ReconcileExclude []string `json:"reconcileExclude"`

	// Traces is the URL of an OpenTelemetry collector, OTLP over HTTP; empty for none.
	Traces    string `json:"traces"`
	LogFormat string `json:"logFormat"` // a format of package logs; JSON by default
	Release   string `json:"-"`         // the program's release

	// Listen is the address, "host:port", that health, readiness and metrics are served
	// on; empty for none.
	Listen string `json:"listen"`
	// View is the address, "host:port", that the node's view is served on over TLS, to
	// those whom the API server permits to see it; empty for none.
	View string `json:"view"`
	// CNIConfig is the plugin's configuration in the runtime's directory. It tells
	// readiness which default network must exist.
	CNIConfig string `json:"cniConfig"`
	// StartupTaint is the key of a taint that is removed from this node once it is
	// ready; empty for none.
	StartupTaint string `json:"startupTaint"`

	PodManifests        string `json:"podManifests"`        // directory of pods: static pods
	DefinitionManifests string `json:"definitionManifests"` // directory of definitions
}

// InCluster is the value of Agent.APIServer that uses the pod's own service account.
const InCluster = "in-cluster"

// Values of Agent.Reconcile.
const (
	ReconcileOff    = "off"    // do not examine VFs
	ReconcileReport = "report" // log and report findings
	ReconcileRepair = "repair" // also repair them
)

// DefaultCNIDir is the default directory of the journals.
const DefaultCNIDir = "/var/lib/cni/manifold"

// None is the value that leaves out a source that has a default.
const None = "-"

// maxConfig bounds the configuration file, in bytes.
const maxConfig = 1 << 20

// ReadAgent reads and completes a configuration file. It refuses unknown keys: the file
// is the administrator's, and a misspelled source would be noticed only when a pod
// needs it.
func ReadAgent(path string) (*Agent, error) {
	op := "read " + path
	fi, err := os.Stat(path)
	if err != nil {
		return nil, cnierr.New(op, cnierr.IO, "%w", err).
			WithFix("if Manifold is installed, name its manifold.d/agent.json, which is in the runtime's directory of network configurations; else run 'manifold-agent install'")
	}
	if fi.Size() > maxConfig {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%d bytes, at most %d are read", fi.Size(), maxConfig)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, cnierr.New(op, cnierr.IO, "%w", err)
	}
	return decodeAgent(op, raw)
}

// ReadableAgent returns as much as can be read of a configuration file that [ReadAgent]
// refuses, and defaults for the rest. It serves to examine a broken node.
func ReadableAgent(path string) *Agent {
	c := &Agent{}
	if fi, err := os.Stat(path); err == nil && fi.Size() <= maxConfig {
		if raw, err := os.ReadFile(path); err == nil {
			_ = json.Unmarshal(raw, c) // what it refuses is known already; the rest is filled in
		}
	}
	c.defaults()
	return c
}

// decodeAgent decodes and completes a configuration.
func decodeAgent(op string, raw []byte) (*Agent, error) {
	c := &Agent{}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	return c, c.Complete()
}

// Complete fills in defaults, and refuses values that cannot be right.
func (c *Agent) Complete() error {
	const op = "read configuration"
	c.defaults()
	if wrong := c.wrong(); len(wrong) > 0 {
		w := wrong[0]
		return cnierr.New(op, cnierr.InvalidConfig, "key %q: %w", w.key, w.err).WithFix("%s", w.fix)
	}
	for i, entry := range c.ReconcileExclude { // in the spelling that they are compared in
		var err error
		if c.ReconcileExclude[i], err = reconcile.ParseExclude(entry); err != nil {
			return cnierr.New(op, cnierr.InvalidConfig, "%w", err)
		}
	}
	if c.Node != "" {
		return nil
	}
	name, err := os.Hostname()
	if err != nil {
		return cnierr.New(op, cnierr.InvalidConfig, "node: %w", err).WithFix("set node to this node's name")
	}
	c.Node = name
	return nil
}

// defaults fills in empty values.
func (c *Agent) defaults() {
	def := func(field *string, value string) {
		switch *field {
		case "":
			*field = value
		case None:
			*field = ""
		}
	}
	def(&c.Socket, "/run/manifold/agent.sock")
	def(&c.KubeletDir, "/var/lib/kubelet")
	def(&c.PodResources, c.KubeletDir+"/pod-resources/kubelet.sock")
	def(&c.Checkpoint, c.KubeletDir+"/device-plugins/kubelet_internal_checkpoint")
	def(&c.PodsAPI, c.KubeletDir+"/pods-api/pods-api.sock")
	def(&c.ClaimCheckpoint, c.KubeletDir+"/dra_manager_state")
	def(&c.DeviceMetadata, c.KubeletDir+"/plugins")
	def(&c.PodManifests, "")
	def(&c.DefinitionManifests, "")
	def(&c.CNIDir, DefaultCNIDir)
	def(&c.SysRoot, "/")
	def(&c.Snapshot, "/var/lib/cni/manifold/definitions.snapshot")
	def(&c.CNIConfig, "/etc/cni/net.d/00-manifold.conflist")
	def(&c.Reconcile, ReconcileReport)
	def(&c.LogFormat, logs.JSON)
}
