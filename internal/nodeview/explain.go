package nodeview

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// Explanation is the plan of one pod, made as for an ADD but not executed, with each
// step that led to it.
type Explanation struct {
	Version int        `json:"version"` // as in View
	Node    string     `json:"node,omitempty"`
	Pod     plan.Pod   `json:"pod"`
	Steps   []Step     `json:"steps"`
	Plan    *plan.Plan `json:"plan,omitempty"`    // nil when the pod is refused
	Refusal *Refusal   `json:"refusal,omitempty"` // why there is no plan
}

// Refusal is why a pod gets no plan, in the words of its Event.
type Refusal struct {
	Code uint   `json:"code"` // of the CNI error object
	Kind string `json:"kind"` // for example no-device
	cnierr.Subject
	Text string `json:"text"`
	Fix  string `json:"fix,omitempty"` // what to do
}

// Step is one thing that planning found or decided.
type Step struct {
	About string `json:"about"` // for example "definition default/fast"
	Text  string `json:"text"`
	Wrong bool   `json:"wrong,omitempty"` // an ADD fails here, although there is a plan
}

// Say adds a step. It does nothing on a nil explanation, so that planning does not
// depend on whether somebody listens.
func (e *Explanation) Say(about, format string, args ...any) {
	if e != nil {
		e.Steps = append(e.Steps, Step{About: about, Text: fmt.Sprintf(format, args...)})
	}
}

// Object adds a step at which an ADD fails although there is a plan.
func (e *Explanation) Object(about, format string, args ...any) {
	e.Say(about, format, args...)
	e.Steps[len(e.Steps)-1].Wrong = true
}

// Wrong reports whether an ADD fails: the pod is refused, or the node lacks something
// that its plan needs.
func (e *Explanation) Wrong() bool {
	return e.Refusal != nil || slices.ContainsFunc(e.Steps, func(s Step) bool { return s.Wrong })
}

// Conclude records the result of planning.
func (e *Explanation) Conclude(p *plan.Plan, err error) {
	var refusal *cnierr.Error
	if errors.As(cnierr.Annotate(err, cnierr.Subject{Pod: e.Pod.String()}), &refusal) {
		bare := *refusal
		bare.Subject, bare.Fix = cnierr.Subject{}, ""
		e.Refusal = &Refusal{Code: refusal.Kind.Code(), Kind: refusal.Kind.String(), Subject: refusal.Subject, Text: bare.Error(), Fix: refusal.Fix}
		return
	}
	e.Plan = p
	for _, a := range p.Attachments {
		e.Say("interface "+a.IfName, "%s, %s", a.Name, a.Reason)
		e.sayDevice(&a)
	}
	for _, w := range p.Warnings {
		e.Say("warning", "%s", w)
	}
}

// sayDevice says where an attachment's device is, and which driver it has. A device for
// a userspace program has no interface, which surprises users who expect one.
func (e *Explanation) sayDevice(a *plan.Attachment) {
	d := a.Device
	if d == nil || d.PF == "" {
		return
	}
	text := fmt.Sprintf("VF %d of %s, ", d.VFIndex, d.PF)
	switch {
	case d.Userspace:
		text += fmt.Sprintf("bound to %s: there will be no %s, a program in the pod drives it; for an interface bind it to its kernel driver", d.Driver, a.IfName)
	case d.Driver == "":
		text += "without a driver: bind it to its kernel driver, or to vfio-pci for a program"
	default:
		text += "driver " + d.Driver
	}
	e.Say("device "+d.ID, "%s", text)
}

// DecodeExplanation reads what an agent of this release or an older one wrote.
func DecodeExplanation(raw []byte) (*Explanation, error) {
	e := &Explanation{}
	if err := json.Unmarshal(raw, e); err != nil {
		return nil, fmt.Errorf("read the explanation: %w", err)
	}
	return e, checkVersion(e.Version)
}

// checkVersion refuses a document of a newer agent.
func checkVersion(version int) error {
	if version < 1 || version > Version {
		return fmt.Errorf("the agent's answer has version %d, this program reads 1 to %d: use the kubectl-manifold of the agent's release", version, Version)
	}
	return nil
}
