package nodeview

import (
	"encoding/json"
	"fmt"
)

// States of a [Check].
const (
	CheckOK      = "ok"
	CheckWarning = "warning" // it works, and may surprise
	CheckFailed  = "failed"
	CheckSkipped = "skipped" // it is not configured, or what it needs has failed
)

// Check is one thing that is needed so that pods get their networks, and whether
// it is there.
type Check struct {
	Name  string `json:"name"`
	State string `json:"state"` // one of the Check constants
	Text  string `json:"text"`  // what was found
	Fix   string `json:"fix,omitempty"`
}

// Diagnosis is what was found of one node, or of the cluster.
type Diagnosis struct {
	Version int     `json:"version"`        // that of a View
	Node    string  `json:"node,omitempty"` // empty for what is the cluster's
	Checks  []Check `json:"checks"`
}

// Failed reports whether something is broken.
func (d *Diagnosis) Failed() bool {
	for _, c := range d.Checks {
		if c.State == CheckFailed {
			return true
		}
	}
	return false
}

// DecodeDiagnosis reads what an agent of this release or an older one wrote.
func DecodeDiagnosis(raw []byte) (*Diagnosis, error) {
	d := &Diagnosis{}
	if err := json.Unmarshal(raw, d); err != nil {
		return nil, fmt.Errorf("read the diagnosis: %w", err)
	}
	return d, checkVersion(d.Version)
}
