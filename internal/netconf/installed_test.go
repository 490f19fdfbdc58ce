package netconf

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// ours is a configuration as it is installed.
const ours = `{"cniVersion":"1.1.0","name":"manifold","plugins":[{"type":"manifold","clusterNetwork":"net","cniDir":"/state"}]}`

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// ReleaseOnly returns the primary network's configuration, whatever its form, with the
// plugin last. Renewed from itself, it stays unchanged.
func TestReleaseOnly(t *testing.T) {
	for name, c := range map[string]struct{ primary, plugins string }{
		"primary.conflist": {`{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"a"},{"type":"b"}]}`, " a b manifold"},
		"primary.conf":     {`{"cniVersion":"0.3.1","name":"net","type":"a"}`, " a manifold"},
	} {
		dir := t.TempDir()
		conf := filepath.Join(dir, "00-manifold.conflist")
		put(t, conf, ours)
		put(t, filepath.Join(dir, name), c.primary)
		primary, _ := First(dir, "manifold")
		raw, err := ReleaseOnly(conf, primary)
		if err != nil {
			t.Fatal(err)
		}
		var list struct {
			Name    string `json:"name"`
			Plugins []Conf `json:"plugins"`
			Inline  bool   `json:"loadOnlyInlinedPlugins"`
		}
		if err := json.Unmarshal(raw, &list); err != nil {
			t.Fatal(err)
		}
		types := ""
		for _, p := range list.Plugins {
			types += " " + p.Type
		}
		last := list.Plugins[len(list.Plugins)-1]
		if types != c.plugins || list.Name != "net" || !list.Inline || last.CNIDir != "/state" || last.ReleaseOnly != conf {
			t.Errorf("%s: %s", name, raw)
		}
		put(t, conf, string(raw))
		if again, err := ReleaseOnly(conf, primary); err != nil || string(again) != string(raw) {
			t.Errorf("%s again: %v\n%s", name, err, again)
		}
	}
}

func TestRemoveReleaseOnly(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "00-manifold.conflist")
	put(t, conf, ours)
	releases, err := ReleaseOnly(conf, &File{Raw: json.RawMessage(`{"name":"net","type":"a"}`)})
	if err != nil {
		t.Fatal(err)
	}
	for content, stays := range map[string]bool{string(releases): false, ours: true} { // ours: installed again in the meantime
		put(t, conf, content)
		if err := RemoveReleaseOnly(conf); err != nil || there(conf) != stays {
			t.Errorf("%v; it is there: %t\n%s", err, !stays, content)
		}
	}
	if err := RemoveReleaseOnly(conf + ".gone"); err != nil {
		t.Error(err)
	}
}

func TestReleaseOnlyOfAnothersFile(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "00-manifold.conflist")
	for _, content := range []string{`{"plugins":[{"type":"other"}]}`, `{`, `[]`, `{"plugins":1}`, `{"plugins":[1]}`} {
		put(t, conf, content)
		if _, err := ReleaseOnly(conf, &File{Raw: json.RawMessage(`{}`)}); !cnierr.Is(err, cnierr.InvalidConfig) {
			t.Errorf("%s: %v", content, err)
		}
		if err := RemoveReleaseOnly(conf); err != nil || !there(conf) {
			t.Errorf("%s: %v, or it was removed", content, err)
		}
	}
}
