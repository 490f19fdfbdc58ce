package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/multus"
	"github.com/manifold-cni/manifold/internal/plan"
)

// handOver writes for every sandbox of the journal the files from which Multus
// releases it: its own, and libcni's records, into Multus's cniDir. With aside
// the journals are set aside, so that nobody else releases the sandboxes.
func handOver(dir journal.Dir, to string, aside bool, out io.Writer) error {
	keys, err := dir.List()
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := handOverOne(dir, k, to, aside); err != nil {
			return cnierr.New("hand over sandbox "+k.String(), cnierr.IO, "%w", err).
				WithFix("nothing is lost: the journal is kept; run uninstall again")
		}
		fmt.Fprintln(out, "handed over", k)
	}
	return nil
}

func handOverOne(dir journal.Dir, k journal.Key, to string, aside bool) (err error) {
	lock, err := dir.TryLock(k)
	if err != nil {
		return err
	}
	if lock == nil {
		return errors.New("an operation on it is under way")
	}
	defer func() { err = errors.Join(err, lock.Unlock(aside && err == nil)) }()
	entry, err := dir.Open(k)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var delegates []multus.Delegate
	for i := range entry.Plan.Attachments {
		a := &entry.Plan.Attachments[i]
		if p, _ := entry.Phase(i); p == journal.Released || p == journal.Untouched {
			continue
		}
		d := multus.Delegate{Name: a.Name, IfName: a.IfName, Config: a.Config, Requests: requestsOf(a)}
		if a.Device != nil {
			d.DeviceID, d.Resource = a.Device.ID, a.Device.Resource
		}
		delegates = append(delegates, d)
		if err := copyRecord(dir.Path, to, fmt.Sprintf("%s-%s-%s", a.Network, k.ContainerID, a.IfName)); err != nil {
			return err
		}
	}
	if err := multus.Write(to, k.ContainerID, delegates); err != nil || !aside {
		return err
	}
	_, err = dir.SetAside(k, journal.AsideHanded)
	return err
}

// requestsOf returns what was asked of an attachment, as far as a file of Multus can
// say it.
func requestsOf(a *plan.Attachment) multus.Requests {
	return multus.Requests{
		MAC:  asked[string](a.Capabilities["mac"]),
		GUID: asked[string](a.Capabilities["infinibandGUID"]),
		IPs:  asked[[]string](a.Capabilities["ips"]),
	}
}

// asked decodes a capability's argument, absent or of another form as none: the
// default network's are the runtime's, in whatever form, and Multus gets those from
// the runtime as well.
func asked[T any](raw json.RawMessage) (none T) {
	var value T
	if json.Unmarshal(raw, &value) != nil {
		return none
	}
	return value
}

// copyRecord copies a record of libcni; one that is not there was never written.
func copyRecord(from, to, name string) error {
	if from == to {
		return nil
	}
	raw, err := os.ReadFile(filepath.Join(from, "results", name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.MkdirAll(filepath.Join(to, "results"), 0o700)
	}
	if err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(to, "results", name), raw, 0o600)
}
