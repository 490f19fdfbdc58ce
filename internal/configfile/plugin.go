package configfile

import (
	"encoding/json"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/files"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
)

// Plugin finds the plugin's configuration in raw, a file of the runtime's directory
// that holds a single configuration or a list. It returns the configuration decoded,
// and as the runtime passes it to the plugin.
func Plugin(file string, raw []byte) (*netconf.Conf, json.RawMessage, error) {
	op := "read " + file
	doc, err := ParseDocument(op, raw)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range doc.Plugins {
		if StringValue(p["type"]) != "manifold" {
			continue
		}
		for _, key := range []string{"name", "cniVersion"} { // which libcni copies from the list
			if v, ok := doc.List[key]; ok {
				p[key] = v
			}
		}
		raw, err := json.Marshal(p)
		if err != nil {
			return nil, nil, cnierr.New(op, cnierr.Decode, "%w", err)
		}
		inv, err := netconf.FromRequest(plan.Request{Config: raw})
		if err != nil {
			return nil, nil, err
		}
		return &inv.Conf, raw, nil
	}
	return nil, nil, cnierr.New(op, cnierr.InvalidConfig, `it has no plugin of type "manifold"`)
}

// ReadPlugin reads the plugin's configuration in a file of the runtime's directory. It
// also returns the mistakes in the file that the plugin tolerates.
func ReadPlugin(file string) (*netconf.Conf, []Finding, error) {
	raw, err := files.ReadRegular(file)
	if err != nil {
		return nil, nil, cnierr.New("read "+file, cnierr.IO, "%w", err)
	}
	conf, _, err := Plugin(file, raw)
	if err != nil {
		return nil, nil, err
	}
	return conf, ValidatePlugin(raw), nil
}
