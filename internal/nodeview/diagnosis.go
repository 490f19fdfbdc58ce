package nodeview

import (
	"encoding/json"
	"fmt"
)

// States of a [Check].
const (
	CheckOK      = "ok"
	CheckWarning = "warning" // works, but may surprise
	CheckFailed  = "failed"
	CheckSkipped = "skipped" // not configured, or something that it needs has failed
)

// Check is the result of checking one condition that pods need to get their networks.
type Check struct {
	Name  string `json:"name"`
	State string `json:"state"` // one of the Check constants
	Text  string `json:"text"`  // what was found
	Fix   string `json:"fix,omitempty"`
}

// Diagnosis is the result of examining one node, or the cluster.
type Diagnosis struct {
	Version int     `json:"version"`        // as in View
	Node    string  `json:"node,omitempty"` // empty for checks of the cluster
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
