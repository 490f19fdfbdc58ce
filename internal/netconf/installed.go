package netconf

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// Kept returns where the copy of Manifold's CNI configuration, the file conf, is kept:
// beside the agent's own configuration. While the copy exists, Manifold is installed
// and the configuration must match it.
func Kept(conf string) string {
	return filepath.Join(filepath.Dir(conf), "manifold.d", filepath.Base(conf))
}

// LockFile returns the lock file that guards changes of Manifold's CNI configuration
// and its copy.
func LockFile(conf string) string { return filepath.Join(filepath.Dir(Kept(conf)), ".lock") }

// Lock takes that lock. The error is os.ErrNotExist if Manifold was never installed,
// because the lock's directory does not exist then.
func Lock(conf string) (unlock func(), err error) {
	f, err := os.OpenFile(LockFile(conf), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil // closing unlocks
}

// ReleaseOnly returns the configuration that remains in place of Manifold's own, the
// file conf, while sandboxes hold what only Manifold releases: the primary network's
// configuration with Manifold after its plugins. If conf is such a configuration
// already, it is renewed from the present primary configuration.
func ReleaseOnly(conf string, primary *File) (json.RawMessage, error) {
	op := "withdraw " + conf
	raw, err := os.ReadFile(conf)
	if err != nil {
		return nil, cnierr.New(op, cnierr.IO, "%w", err)
	}
	own, err := ourPlugin(raw)
	if err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	list, plugins, err := asList(primary.Raw)
	if err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%s: %w", primary.Path, err)
	}
	file, err1 := json.Marshal(conf)
	own["releaseOnly"] = file
	plugin, err2 := json.Marshal(own)
	all, err3 := json.Marshal(append(plugins, plugin))
	list["plugins"] = all
	list["loadOnlyInlinedPlugins"] = json.RawMessage("true") // the plugins of its directory are in the list already
	out, err4 := json.MarshalIndent(list, "", "  ")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	return append(out, '\n'), nil
}

// ourPlugin returns the keys of the plugin manifold in a configuration.
func ourPlugin(raw json.RawMessage) (map[string]json.RawMessage, error) {
	_, plugins, err := asList(raw)
	for _, p := range plugins {
		keys := map[string]json.RawMessage{}
		if e := json.Unmarshal(p, &keys); e == nil && string(keys["type"]) == `"manifold"` {
			return keys, nil
		}
	}
	return nil, errors.Join(err, errors.New("it has no plugin manifold"))
}

// RemoveReleaseOnly removes a configuration made by [ReleaseOnly], so that the runtime
// finds the primary network's own. A file that has taken its place in the meantime
// stays.
func RemoveReleaseOnly(conf string) error {
	op := "remove " + conf
	unlock, err := Lock(conf)
	if errors.Is(err, os.ErrNotExist) { // nobody else works on it
		unlock, err = func() {}, nil
	}
	if err != nil {
		return cnierr.New(op, cnierr.IO, "%w", err)
	}
	defer unlock()
	raw, err := os.ReadFile(conf)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return cnierr.New(op, cnierr.IO, "%w", err)
	}
	if own, err := ourPlugin(raw); err != nil || own["releaseOnly"] == nil {
		return nil
	}
	if err := os.Remove(conf); err != nil {
		return cnierr.New(op, cnierr.IO, "%w", err)
	}
	return nil
}
