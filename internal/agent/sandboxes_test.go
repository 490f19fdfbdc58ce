package agent

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/plan"
)

func summed(t *testing.T, s *sandboxes) metrics.Node {
	t.Helper()
	n := metrics.Node{Attachments: map[string]int{}}
	if err := s.summary(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// begun returns a journal of two attachments, the second with a device.
func begun(t *testing.T) (*sandboxes, *journal.Entry) {
	t.Helper()
	dir := journal.Dir{Path: t.TempDir()}
	e, err := dir.Begin(context.Background(), journal.Key{ContainerID: "c1", IfName: "eth0"}, &plan.Plan{
		Version: plan.Version, Pod: plan.Pod{Namespace: "shop", Name: "web"}, ContainerID: "c1",
		Attachments: []plan.Attachment{{Name: "cl", IfName: "eth0"}, {Name: "shop/fast", IfName: "net1", Device: &plan.Device{Resource: "r/x", ID: "d", Container: "rx"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &sandboxes{dir: dir}, e
}

// A journal is read when it is new and when it has changed.
func TestJournalsBetweenScrapes(t *testing.T) {
	s, e := begun(t)
	if n := summed(t, s); n.Journals != 1 || n.Attachments[nodeview.StateWaiting] != 2 || len(n.Attached) != 0 {
		t.Errorf("begun: %+v", n)
	}
	for i := range 2 {
		if err := e.Append(journal.Step{Attachment: i, Phase: journal.Attached, Result: json.RawMessage(`{"cniVersion":"1.0.0"}`)}); err != nil {
			t.Fatal(err)
		}
	}
	n := summed(t, s)
	if n.Attachments[nodeview.StateAttached] != 2 || len(n.Attached) != 1 || n.Attached[0].Pod != "web" || n.Attached[0].Container != "rx" {
		t.Errorf("attached: %+v", n)
	}
	last := s.kept[e.Key]
	summed(t, s)
	if s.kept[e.Key] != last {
		t.Error("an unchanged journal was read again")
	}
}

// A damaged journal is counted, and a removed one is forgotten.
func TestJournalsThatGo(t *testing.T) {
	s, e := begun(t)
	file := filepath.Join(s.dir.Path, e.Key.String()+".journal")
	if err := os.WriteFile(file, []byte("garbage\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := summed(t, s); n.Journals != 1 || n.Unreadable != 1 || len(n.Attached) != 0 {
		t.Errorf("damaged: %+v", n)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if n := summed(t, s); n.Journals != 0 || len(s.kept) != 0 {
		t.Errorf("closed: %+v", n)
	}
	s.dir.Path += "/absent"
	if n := summed(t, s); n.Journals != 0 {
		t.Errorf("no directory: %+v", n)
	}
}
