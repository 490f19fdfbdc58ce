package planner

import (
	"encoding/json"
	"sync"

	"github.com/containernetworking/cni/pkg/utils"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/netattach"
)

// maxParsed is how many bytes of configurations are remembered at most.
const maxParsed = 256 << 10

// Parsed remembers parsed configurations by their bytes. The pods of a node select the
// same few networks again and again, and parsing is a third of planning. Parsed is safe
// for concurrent use. Its zero value is ready, and a nil *Parsed remembers nothing.
type Parsed struct {
	mu    sync.Mutex
	known map[string]*netattach.Config
	bytes int
}

// config parses a configuration, or returns the remembered result.
func (p *Parsed) config(raw []byte) (*netattach.Config, error) {
	if p == nil {
		return netattach.ParseConfig(raw)
	}
	p.mu.Lock()
	c := p.known[string(raw)]
	p.mu.Unlock()
	if c != nil {
		return c, nil
	}
	// Parse without the lock, so that nobody waits for another's large configuration.
	// Two callers that parse the same bytes get equal results.
	c, err := netattach.ParseConfig(raw)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.known[string(raw)]; known != nil {
		return known, nil
	}
	// With so little in use, forgetting everything is as good as forgetting the oldest.
	if p.known == nil || p.bytes+len(raw) > maxParsed {
		p.known, p.bytes = map[string]*netattach.Config{}, 0
	}
	p.known[string(raw)] = c
	p.bytes += len(raw)
	return c, nil
}

// runnable is config for a configuration that is to be run. It refuses one that
// delegates to Manifold, whose type is own.
func (p *Parsed) runnable(raw []byte, own string) (*netattach.Config, error) {
	const op = "read network configuration"
	c, err := p.config(raw)
	if err != nil {
		return nil, cnierr.New(op, cnierr.InvalidDefinition, "%w", err).WithFix("correct the definition's spec.config")
	}
	for _, plugin := range c.Plugins() {
		if plugin.Type == own || plugin.IPAMType == own {
			return nil, cnierr.New(op, cnierr.InvalidDefinition, "it delegates to %s itself, without end", own).WithFix("name another plugin")
		}
	}
	return c, nil
}

// Check returns why the cluster default network's configuration refuses every pod: it
// cannot be parsed, delegates to Manifold (whose type is own), has an invalid name, or
// asks for something invalid.
func (p *Parsed) Check(raw json.RawMessage, own string) error {
	const op = "read network configuration"
	c, err := p.runnable(raw, own)
	if err != nil {
		return err
	}
	if name := c.Name(); name != "" {
		if err := utils.ValidateNetworkName(name); err != nil {
			return cnierr.New(op, cnierr.InvalidDefinition, "name %.64q: %w", name, err)
		}
	}
	if _, err := c.Asked(nil); err != nil {
		return cnierr.New(op, cnierr.InvalidDefinition, "%w", err)
	}
	return nil
}
