package harness

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// KillPoints runs a verb, which must succeed, and returns the names of its kill points
// in order. log is the file that the plugin records them in. The plugin must have been
// built with kill points, see [Programs].
func (r *Runtime) KillPoints(verb string, s Sandbox, log string) ([]string, error) {
	if err := os.RemoveAll(log); err != nil {
		return nil, err
	}
	rt := *r
	rt.Env = append(append([]string{}, r.Env...), "MANIFOLD_KILL_LOG="+log)
	res, err := rt.Call(verb, s)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(log)
	if res.Status != 0 {
		err = errors.Join(err, fmt.Errorf("%s: status %d, %s %s", verb, res.Status, res.Stdout, res.Stderr))
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n"), err
}

// KillAt runs a verb that is killed at its k-th kill point, alone or with its whole
// process group.
func (r *Runtime) KillAt(verb string, s Sandbox, k int, group bool) error {
	rt := *r
	rt.Env = append(append([]string{}, r.Env...), fmt.Sprintf("MANIFOLD_KILL_AT=%d", k))
	if group {
		rt.Env = append(rt.Env, "MANIFOLD_KILL_GROUP=1")
	}
	res, err := rt.Call(verb, s)
	if err == nil && res.Status != -1 {
		err = fmt.Errorf("%s was not killed at point %d: status %d, %s %s", verb, k, res.Status, res.Stdout, res.Stderr)
	}
	return err
}
