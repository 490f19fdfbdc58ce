package chain

import (
	"slices"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// TestRunnable: a configuration that libcni runs is runnable, although no plan would
// have it, and one that libcni could never run is not.
func TestRunnable(t *testing.T) {
	for config, programs := range map[string][]string{
		`{"name":"x","cniVersion":"1.0.0","plugins":[{"type":"bridge","ipam":{"type":"static"}},{"type":"tuning"}]}`: {"bridge", "static", "tuning"},
		`{"name":"x","type":"bridge","ipam":{}}`:                                              {"bridge"},
		`{"name":"x","cniVersion":"1.0.0","plugins":[{"type":"bridge","args":"of its own"}]}`: {"bridge"},
		`{"name":"x","cniVersion":"1.0.0","plugins":[{"type":"bridge","deviceID":7}]}`:        {"bridge"},
		`{"name":"x","cniVersion":"9.0.0","type":"of-another-time"}`:                          {"of-another-time"},
		``:                                   nil,
		`null`:                               nil,
		`{"name":"x"}`:                       nil,
		`{"name":"x","plugins":[]}`:          nil,
		`{"name":"x","plugins":7}`:           nil,
		`{"name":"x","type":"../../bin/sh"}`: nil,
		`{"name":"x","type":".."}`:           nil,
		`{"name":"x","cniVersion":"bogus","type":"bridge"}`:                                    nil,
		`{"name":"x","cniVersion":"1.0.0","plugins":[{"type":"bridge","ipam":{"type":".."}}]}`: nil,
	} {
		list, err := Runnable(&libcni.NetworkAttachment{Network: "x", Config: []byte(config)})
		switch {
		case programs == nil:
			if !cnierr.Is(err, cnierr.InvalidConfig) {
				t.Errorf("%s: %v", config, err)
			}
		case err != nil:
			t.Errorf("%s: %v", config, err)
		case !slices.Equal(Programs(list), programs):
			t.Errorf("%s: programs %q", config, Programs(list))
		default:
			if again, err := libcni.NetworkConfFromBytes(list.Bytes); err != nil || len(again.Plugins) != len(list.Plugins) {
				t.Errorf("%s: as a list %s: %v", config, list.Bytes, err)
			}
		}
	}
	if _, err := Runnable(&libcni.NetworkAttachment{Network: "../x", Config: []byte(`{"name":"x","type":"bridge"}`)}); !cnierr.Is(err, cnierr.InvalidConfig) {
		t.Errorf("a network that is a path: %v", err)
	}
}

// FuzzRunnable: whatever is recorded, a runnable configuration names plain programs.
func FuzzRunnable(f *testing.F) {
	f.Add("x", []byte(`{"name":"x","cniVersion":"1.0.0","plugins":[{"type":"bridge","ipam":{"type":"static"}},null]}`))
	f.Add("..", []byte(`{"type":"a/b","cniVersion":"1"}`))
	f.Fuzz(func(t *testing.T, network string, config []byte) {
		list, err := Runnable(&libcni.NetworkAttachment{Network: network, Config: config})
		if err == nil && (len(list.Plugins) == 0 || slices.Contains(Programs(list), "..")) {
			t.Errorf("%s is runnable", config)
		}
	})
}
