package inspect

import (
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/reconcile"
)

// Orphan is something on a node that is not where it belongs, or belongs to nobody.
type Orphan struct {
	Node    string `json:"node"`
	What    string `json:"what"` // "VF 0000:21:10.2" or "sandbox ID"
	Kind    string `json:"kind"` // a reconcile.Kind, "gone", or "release-failed"
	Pod     string `json:"pod,omitempty"`
	Network string `json:"network,omitempty"`
	Text    string `json:"text"`
	// Finding is the finding about a VF; nil for a sandbox.
	Finding *reconcile.Finding `json:"-"`
}

// kindGone is the kind of a sandbox that died without DEL.
const kindGone = "gone"

// Orphans returns the orphans of nodes: the reconciler's findings about VFs, and
// attachments whose sandbox has died or whose DEL has failed.
func Orphans(views []*nodeview.View) []Orphan {
	out := []Orphan{} // an empty list in JSON, not null
	for _, v := range views {
		for i := range v.Findings {
			f := &v.Findings[i]
			out = append(out, Orphan{Node: v.Node, What: "VF " + f.Device, Kind: string(f.Kind), Pod: f.Pod, Network: f.Network, Text: f.Text, Finding: f})
		}
		for i := range v.Attachments {
			a := &v.Attachments[i]
			o := Orphan{Node: v.Node, What: "sandbox " + a.Sandbox, Kind: kindGone, Pod: a.Pod.String(), Network: a.Network}
			if o.Text = leftover(a); o.Text == "" {
				continue
			}
			if a.Gone == "" {
				o.Kind = a.State
			}
			out = append(out, o)
		}
	}
	return out
}
