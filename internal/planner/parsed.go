package planner

import (
	"sync"

	"github.com/manifold-cni/manifold/netattach"
)

// maxParsed is how many bytes of configurations are remembered at most.
const maxParsed = 256 << 10

// Parsed remembers parsed configurations by their bytes: a node's pods select the
// same few networks again and again, and parsing is a third of planning. It is safe
// for use by several goroutines; its zero value is ready, and nil remembers nothing.
type Parsed struct {
	mu    sync.Mutex
	known map[string]*netattach.Config
	bytes int
}

// config parses a configuration, or returns what it was parsed to before.
func (p *Parsed) config(raw []byte) (*netattach.Config, error) {
	if p == nil {
		return netattach.ParseConfig(raw)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.known[string(raw)]; c != nil {
		return c, nil
	}
	c, err := netattach.ParseConfig(raw)
	if err != nil {
		return nil, err
	}
	// Forgetting all is as good as forgetting the oldest where so little is used.
	if p.known == nil || p.bytes+len(raw) > maxParsed {
		p.known, p.bytes = map[string]*netattach.Config{}, 0
	}
	p.known[string(raw)] = c
	p.bytes += len(raw)
	return c, nil
}
