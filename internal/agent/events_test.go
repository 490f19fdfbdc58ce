package agent

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// A refused pod gets an Event with the reason and the message. A repetition is counted,
// not written again.
func TestEventsOfRefusals(t *testing.T) {
	const networks = "k8s.v1.cni.cncf.io/networks"
	for name, tc := range map[string]struct {
		annotation string
		reason     string
		part       string
	}{
		"annotation":    {"[null]", ReasonAnnotation, "entry 1"},
		"no definition": {"nowhere", ReasonNoNetwork, "shop/nowhere"},
		"no device":     {"kube-system/fast", ReasonNoDevice, "vendor.example/vfs"},
		"definition":    {"kube-system/broken", ReasonNetwork, "kube-system/broken"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "cl")
			n.manifest("broken", "{")
			n.conf.DefinitionManifests = n.Path("definitions")
			n.File("definitions/fast.json", `{"apiVersion":"k8s.cni.cncf.io/v1","kind":"NetworkAttachmentDefinition","metadata":{"name":"fast","namespace":"kube-system",
				"annotations":{"k8s.v1.cni.cncf.io/resourceName":"vendor.example/vfs"}},"spec":{"config":"{\"cniVersion\":\"1.0.0\",\"type\":\"host-device\"}"}}`)
			n.addPod("web", apiUID, map[string]string{networks: tc.annotation})
			a := n.agent()
			a.src.Devices = nil // no device is allocated
			for range 3 {
				if _, err := n.planPod(a, "web", apiUID); err == nil {
					t.Fatal("planned")
				}
			}
			events := n.api.Events()
			if len(events) != 1 {
				t.Fatalf("%d events: %+v", len(events), events)
			}
			e := events[0]
			if e.Reason != tc.reason || e.Type != corev1.EventTypeWarning || !strings.Contains(e.Message, tc.part) || !strings.Contains(e.Message, "shop/web") || string(e.InvolvedObject.UID) != apiUID {
				t.Errorf("%s %s about %s: %s", e.Type, e.Reason, e.InvolvedObject.UID, e.Message)
			}
		})
	}
}

// A plan that its caller has given up on is not a refusal: another agent may have
// planned.
func TestNoEventOfWhatNobodyWaitsFor(t *testing.T) {
	n := newNode(t, "cl")
	n.addPod("web", apiUID, nil)
	a := n.agent()
	req := n.request("cl")
	req.PodNamespace, req.PodName, req.PodUID = "shop", "web", apiUID
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Plan(ctx, req); err == nil {
		t.Error("planned")
	}
	if events := n.api.Events(); len(events) != 0 {
		t.Errorf("%+v", events)
	}
}

// A pod that no source knows gets no Event. A static pod's Event has the kubelet's UID,
// by which kubectl describe looks for the Events of a mirror pod.
func TestEventsGoToPodsThatExist(t *testing.T) {
	n := newNode(t, "cl")
	a := n.agent()
	if _, err := n.planPod(a, "gone", apiUID); err == nil || reasonOf(err) != ReasonNotReady {
		t.Fatalf("%v", err)
	}
	if events := n.api.Events(); len(events) != 0 {
		t.Errorf("%+v", events)
	}
	n.File("pods/web.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"shop","annotations":{"k8s.v1.cni.cncf.io/networks":"nowhere"}}}`)
	if _, err := n.planPod(a, "web-node1", kubeletUID); err == nil {
		t.Fatal("planned")
	}
	if events := n.api.Events(); len(events) != 1 || events[0].InvolvedObject.UID != kubeletUID {
		t.Errorf("%+v", events)
	}
}

func TestReasonWhileTheAPIServerIsDown(t *testing.T) {
	n := newNode(t, "cl")
	n.addPod("web", apiUID, nil)
	a := n.agent()
	n.api.Stop()
	_, err := n.planPod(a, "web", apiUID)
	if err == nil || reasonOf(err) != ReasonAPI {
		t.Errorf("%v", err)
	}
}

// The Event of a report gets its reason from the kind of the error. An older plugin
// reports no kind.
func TestEventsOfReports(t *testing.T) {
	p := &plan.Plan{Attachments: []plan.Attachment{{}}}
	for _, k := range cnierr.Kinds() {
		_, reason, message := eventOf(&plan.Report{Plan: p, Verb: "ADD", Error: "why", Operation: &plan.Operation{Failed: true, Kind: k}})
		want, known := reasons[k]
		if !known {
			want = ReasonFailed
		}
		if reason != want || message != "why" {
			t.Errorf("%s: %s %s, want %s", k, reason, message, want)
		}
	}
	for name, tc := range map[string]struct {
		report       plan.Report
		kind, reason string
	}{
		"older plugin": {plan.Report{Verb: "ADD", Error: "why"}, corev1.EventTypeWarning, ReasonFailed},
		"DEL":          {plan.Report{Verb: "DEL", Error: "why", Operation: &plan.Operation{Kind: cnierr.TeardownIncomplete}}, corev1.EventTypeWarning, ReasonRelease},
		"attached":     {plan.Report{Verb: "ADD", Outcomes: []plan.Outcome{{Name: "cl", IfName: "eth0"}}}, corev1.EventTypeNormal, ReasonAdded},
		"differs":      {plan.Report{Verb: "ADD", Outcomes: []plan.Outcome{{Name: "cl", IfName: "eth0", Findings: []string{"MTU"}}}}, corev1.EventTypeWarning, ReasonDiffers},
	} {
		tc.report.Plan = p
		if kind, reason, _ := eventOf(&tc.report); kind != tc.kind || reason != tc.reason {
			t.Errorf("%s: %s %s", name, kind, reason)
		}
	}
	all := Reasons()
	slices.Sort(all)
	if len(slices.Compact(all)) != len(Reasons()) || len(all) != 31 {
		t.Errorf("reasons are not distinct: %v", all)
	}
}

// A failure to write an Event fails nothing else.
func TestEventThatCannotBeWritten(t *testing.T) {
	n := newNode(t, "cl")
	n.addPod("web", apiUID, nil)
	n.api.FailWith(403)
	if err := n.agent().Report(context.Background(), plan.Report{Version: 1, Verb: "ADD", Error: "why", Plan: &plan.Plan{
		Pod: plan.Pod{Namespace: "shop", Name: "web", UID: apiUID}, Attachments: []plan.Attachment{{}},
	}}); err != nil {
		t.Error(err)
	}
	if len(n.api.Requests()) == 0 || len(n.api.Events()) != 0 {
		t.Errorf("%+v", n.api.Requests())
	}
}
