package netattach_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/netattach"
)

// Plugins accept a key in any spelling, so a key left beside that of the allocated
// device could override it.
func TestDevicesThatAConfigurationNames(t *testing.T) {
	const conf = `{"name":"n","plugins":[
		{"type":"a","DEVICEID":"0000:21:10.0","pcibusid":"0000:21:10.2","device":"eth3","master":"eth4"},
		{"type":"b","deviceID":7,"HWAddr":"02:00:00:00:00:01","kernelpath":"/sys/devices/x","runtimeConfig":{"deviceid":"0000:21:10.4"}},
		{"type":"c","device":"eth3"}]}`
	c, err := netattach.ParseConfig([]byte(conf))
	if err != nil {
		t.Fatal(err)
	}
	rest := []string{"/sys/devices/x", "0000:21:10.4", "02:00:00:00:00:01", "eth3"}
	if got := c.Devices(true); !slices.Equal(got, rest) {
		t.Errorf("besides the allocated one %q, want %q", got, rest)
	}
	all := append([]string{"0000:21:10.0", "0000:21:10.2"}, rest...)
	slices.Sort(all)
	if got := c.Devices(false); !slices.Equal(got, all) {
		t.Errorf("%q, want %q", got, all)
	}
	out, _, err := c.Render(netattach.RenderOptions{DeviceID: "0000:21:11.0"})
	if err != nil || strings.Contains(strings.ToLower(string(out)), `"deviceid":"0000:21:10.0"`) || strings.Contains(string(out), "0000:21:10.2") {
		t.Errorf("rendered %s, %v", out, err)
	}
}
