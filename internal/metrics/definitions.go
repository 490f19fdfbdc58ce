package metrics

import "github.com/prometheus/client_golang/prometheus"

// Types of metrics, as the exposition names them.
const (
	Gauge     = "gauge"
	Counter   = "counter"
	Histogram = "histogram"
)

// Definition is one metric: its full name, type, help text and labels.
type Definition struct {
	Name   string
	Type   string
	Help   string
	Labels []string
}

// desc returns the definition in the client library's form.
func (d *Definition) desc() *prometheus.Desc {
	return prometheus.NewDesc(d.Name, d.Help, d.Labels, nil)
}

// The metrics.
var (
	operationDuration = Definition{
		"manifold_operation_duration_seconds", Histogram,
		"Duration of calls of the plugin, by CNI verb and outcome, success or failure.",
		[]string{"verb", "outcome"},
	}
	operationFailures = Definition{
		"manifold_operation_failures_total", Counter, "Calls of the plugin that failed, by kind of error.", []string{"verb", "kind"},
	}
	stepDuration = Definition{
		"manifold_step_duration_seconds", Histogram,
		"Duration of the steps of calls: lock, plan, version, journal, delegate, verify, carrier, undo.", []string{"verb", "step"},
	}
	delegateDuration = Definition{
		"manifold_delegate_duration_seconds", Histogram,
		"Duration of single runs of delegates, by the verb that they were called with.", []string{"verb", "plugin", "outcome"},
	}
	planDuration = Definition{
		"manifold_plan_duration_seconds", Histogram, "Time that the agent took to make or refuse a plan.", []string{"outcome"},
	}
	verificationFailures = Definition{
		"manifold_verification_failures_total", Counter,
		"Fields of interfaces that differed from the plan, the request or the delegate's result, whether or not that failed the call.", []string{"verb", "field"},
	}
	publishFailures = Definition{
		"manifold_publish_failures_total", Counter, "Failed writes to the API server: network-status or event.", []string{"what"},
	}
	kubeletCalls = Definition{
		"manifold_podresources_calls_total", Counter,
		"Calls of the kubelet's PodResources API, by outcome: success, rate-limited, not-found, unimplemented, unavailable.", []string{"method", "outcome"},
	}
	plannedDevices = Definition{
		"manifold_planned_devices_total", Counter, "Devices in plans, by the sources that agreed on them.", []string{"source"},
	}
	sourceFailing = Definition{
		"manifold_source_failing_seconds", Gauge,
		"Time since the API server last answered about a source that the agent follows, which bounds the age of the agent's data; 0 while it answers.", []string{"source"},
	}
	devices = Definition{
		"manifold_devices", Gauge,
		"Devices by resource: registered by their device plugin, allocated by the kubelet to a container, attached to a sandbox; a device can be all of these.",
		[]string{"resource", "state"},
	}
	attachedDevice = Definition{
		"manifold_attached_device_info", Gauge, "A device that a pod's interface uses, for joins with other exporters' counters; always 1.",
		[]string{"pod", "namespace", "container", "interface", "network", "resource", "pciAddr"},
	}
	journals    = Definition{"manifold_journals", Gauge, "Sandboxes with a journal.", nil}
	unreadable  = Definition{"manifold_journals_unreadable", Gauge, "Sandboxes whose journal cannot be read.", nil}
	attachments = Definition{
		"manifold_attachments", Gauge, "Attachments in journals: waiting, trying, attached, releasing, release-failed.", []string{"state"},
	}
	findings = Definition{
		"manifold_device_findings", Gauge,
		"VFs that are not as they should be, at the last check: stranded, vanished, replaced, drifted, unreleased, orphaned, leftover, quarantined; absent without a reconciler.", []string{"kind"},
	}
	repairs = Definition{
		"manifold_device_repairs_total", Counter, "Repairs that the running agent has tried, by kind of finding and outcome.", []string{"kind", "outcome"},
	}
	connectionsClosed = Definition{
		"manifold_connections_closed_total", Counter,
		"Connections to the agent that it closed or refused because their source, or all sources together, had too many, by listener: http, view.", []string{"listener"},
	}
	ready = Definition{
		"manifold_ready", Gauge, "1 if the check of readiness succeeds, see /readyz; otherwise 0.", []string{"check"},
	}
	buildInfo = Definition{"manifold_build_info", Gauge, "The agent's release; always 1.", []string{"release"}}
)

// Definitions returns every metric of Manifold, in the order of the reference page. The
// agent also exports those of the Go runtime and of the process.
func Definitions() []Definition {
	return []Definition{
		operationDuration, operationFailures, stepDuration, delegateDuration, planDuration, verificationFailures,
		devices, attachedDevice, attachments, journals, unreadable, findings, repairs, plannedDevices, kubeletCalls, sourceFailing, publishFailures,
		connectionsClosed, ready, buildInfo,
	}
}
