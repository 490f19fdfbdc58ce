package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Node is the state of a node at one moment.
type Node struct {
	Devices     map[DeviceState]int
	Attached    []AttachedDevice
	Journals    int            // sandboxes with a journal
	Unreadable  int            // of these, the ones with an unreadable journal
	Attachments map[string]int // by state
	Findings    map[string]int // VFs that are not as they should be, by kind; nil without a reconciler
	// Failing is the time since the API server last answered about each followed source, by name.
	Failing map[string]time.Duration
	Err     error // why the journals could not be listed
}

// DeviceState is the label values by which devices are counted.
type DeviceState struct{ Resource, State string }

// States of devices. A device can have several.
const (
	DeviceRegistered = "registered" // advertised by its device plugin
	DeviceAllocated  = "allocated"  // allocated to a container by the kubelet
	DeviceAttached   = "attached"   // held by a sandbox, through Manifold
)

// AttachedDevice is a device that a sandbox holds.
type AttachedDevice struct{ Pod, Namespace, Container, Interface, Network, Resource, PCIAddress string }

// Node adds the metrics of the node; read is called at each scrape.
func (m *Metrics) Node(read func() Node) { m.registry.MustRegister(newNode(read)) }

// node reads the node at each scrape.
type node struct {
	read                                                            func() Node
	devices, info, journals, unreadable, attachments, findings, age *prometheus.Desc
}

func newNode(read func() Node) *node {
	return &node{
		read: read, devices: devices.desc(), info: attachedDevice.desc(), journals: journals.desc(), unreadable: unreadable.desc(),
		attachments: attachments.desc(), findings: findings.desc(), age: sourceFailing.desc(),
	}
}

// Describe implements prometheus.Collector.
func (n *node) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{n.devices, n.info, n.journals, n.unreadable, n.attachments, n.findings, n.age} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (n *node) Collect(out chan<- prometheus.Metric) {
	now := n.read()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for d, count := range now.Devices {
		gauge(n.devices, float64(count), d.Resource, d.State)
	}
	for kind, count := range now.Findings {
		gauge(n.findings, float64(count), kind)
	}
	for source, d := range now.Failing {
		gauge(n.age, d.Seconds(), source)
	}
	if now.Err != nil {
		out <- prometheus.NewInvalidMetric(n.journals, now.Err)
		return
	}
	for _, a := range now.Attached {
		gauge(n.info, 1, a.Pod, a.Namespace, a.Container, a.Interface, a.Network, a.Resource, a.PCIAddress)
	}
	gauge(n.journals, float64(now.Journals))
	gauge(n.unreadable, float64(now.Unreadable))
	for state, count := range now.Attachments {
		gauge(n.attachments, float64(count), state)
	}
}
