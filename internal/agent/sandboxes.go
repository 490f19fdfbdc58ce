package agent

import (
	"errors"
	"os"
	"sync"

	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/internal/nodeview"
)

// sandboxes is a summary of the journals, kept between scrapes: of a node's hundreds of
// journals, only those that changed are read again. It compares files at each scrape
// instead of watching them, because other processes write each journal several times
// during an ADD.
type sandboxes struct {
	dir journal.Dir

	mu   sync.Mutex
	kept map[journal.Key]*sandbox
}

// sandbox is the summary of one journal.
type sandbox struct {
	seen     os.FileInfo
	bad      bool           // unreadable
	states   map[string]int // number of attachments by state
	attached []metrics.AttachedDevice
}

// summary adds the summary of the journals to a node's figures.
func (s *sandboxes) summary(n *metrics.Node) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys, err := s.dir.List()
	if err != nil {
		return err
	}
	now := make(map[journal.Key]*sandbox, len(keys))
	for _, k := range keys {
		fi, err := s.dir.Stat(k)
		if err != nil {
			continue // released meanwhile
		}
		last := s.kept[k]
		if last == nil || !os.SameFile(last.seen, fi) || last.seen.Size() != fi.Size() || !last.seen.ModTime().Equal(fi.ModTime()) {
			last = s.read(k, fi)
		}
		if last != nil {
			now[k] = last
		}
	}
	s.kept = now
	for _, one := range now {
		n.Journals++
		if one.bad {
			n.Unreadable++
		}
		for state, count := range one.states {
			n.Attachments[state] += count
		}
		n.Attached = append(n.Attached, one.attached...)
	}
	return nil
}

// read reads one journal. It returns nil when the journal is gone.
func (s *sandboxes) read(k journal.Key, fi os.FileInfo) *sandbox {
	out := &sandbox{seen: fi, states: map[string]int{}}
	entry, err := s.dir.Open(k)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		out.bad = true
		return out
	}
	attachments, _ := nodeview.Attachments(entry) // an unreadable result still leaves the rest to count
	for _, a := range attachments {
		out.states[a.State]++
		if a.Device == nil || a.State != nodeview.StateAttached {
			continue
		}
		out.attached = append(out.attached, metrics.AttachedDevice{
			Pod: a.Pod.Name, Namespace: a.Pod.Namespace, Container: a.Device.Container, Interface: a.Interface,
			Network: a.Network, Resource: a.Device.Resource, PCIAddress: a.Device.PCIAddress,
		})
	}
	return out
}
