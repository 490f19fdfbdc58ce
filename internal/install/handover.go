package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"

	"github.com/manifold-cni/manifold/internal/chain"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/files"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/multus"
	"github.com/manifold-cni/manifold/internal/plan"
)

// handOver writes, for every sandbox of the journal, the files from which Multus
// releases it, into Multus's cniDir: Multus's own file and libcni's records. With
// aside, it also sets the journals aside, so that nobody else releases the sandboxes.
func handOver(dir journal.Dir, to string, aside bool, out io.Writer) error {
	keys, err := dir.List()
	if err != nil {
		return err
	}
	var problems []error
	for _, k := range keys {
		done, err := handOverOne(dir, k, to, aside)
		if err != nil {
			problems = append(problems, cnierr.New("hand over sandbox "+k.String(), cnierr.IO, "%w", err).
				WithFix("run uninstall again; nothing is lost, the journal is kept"))
			continue
		}
		fmt.Fprintln(out, done, k)
	}
	return errors.Join(problems...)
}

// handOverOne hands one sandbox over. done says how.
func handOverOne(dir journal.Dir, k journal.Key, to string, aside bool) (done string, err error) {
	lock, err := dir.TryLock(k)
	if err != nil {
		return "", err
	}
	if lock == nil {
		return "", errors.New("another operation holds its lock")
	}
	defer func() { err = errors.Join(err, lock.Unlock(aside && err == nil)) }()
	done, as := "handed over", journal.AsideHanded
	attachments, err := heldBy(dir, k)
	if cnierr.Is(err, cnierr.JournalCorrupt) {
		as = journal.AsideCorrupt
		attachments, done, err = recordedOf(dir, k)
	}
	if errors.Is(err, os.ErrNotExist) {
		return "already released:", nil
	}
	// An empty list of attachments would say that nothing is left, which a damaged
	// journal does not prove.
	if err == nil && (as == journal.AsideHanded || len(attachments) > 0) {
		err = writeFor(dir, k, to, attachments)
	}
	if err != nil || !aside {
		return done, err
	}
	_, err = dir.SetAside(k, as)
	return done, err
}

// writeFor writes the files from which Multus releases a sandbox's attachments.
func writeFor(dir journal.Dir, k journal.Key, to string, attachments []plan.Attachment) error {
	var delegates []multus.Delegate
	for i := range attachments {
		a := &attachments[i]
		d := multus.Delegate{Name: a.Name, IfName: a.IfName, Config: a.Config, Requests: requestsOf(a)}
		if a.Device != nil {
			d.DeviceID, d.Resource = a.Device.ID, a.Device.Resource
		}
		delegates = append(delegates, d)
		if err := copyRecord(dir.Path, to, fmt.Sprintf("%s-%s-%s", a.Network, k.ContainerID, a.IfName)); err != nil {
			return err
		}
	}
	return multus.Write(to, k.ContainerID, delegates)
}

// heldBy returns the attachments that a sandbox holds according to its journal.
func heldBy(dir journal.Dir, k journal.Key) (held []plan.Attachment, err error) {
	entry, err := dir.Open(k)
	if err != nil {
		return nil, err
	}
	for i, a := range entry.Plan.Attachments {
		if p, _ := entry.Phase(i); p != journal.Released && p != journal.Untouched {
			held = append(held, a)
		}
	}
	return held, nil
}

// recordedOf returns the attachments that libcni has records of, the default network's
// first: all that is left of a sandbox whose journal is damaged. It leaves out a record
// that can never be run, which would keep Multus from deleting the pod. done says how
// the sandbox is handed over.
func recordedOf(dir journal.Dir, k journal.Key) (held []plan.Attachment, done string, err error) {
	records, err := libcni.NewCNIConfigWithCacheDir(nil, dir.Path, nil).GetCachedAttachments(k.ContainerID)
	if err != nil {
		return nil, "", err
	}
	without := ""
	for _, c := range records {
		list, err := chain.Runnable(c)
		if err != nil {
			without += fmt.Sprintf(" without the record of network %.64q, interface %.64q (%v),", c.Network, c.IfName, err)
			continue
		}
		a := plan.Attachment{Name: c.Network, Network: c.Network, IfName: c.IfName, Config: list.Bytes, Capabilities: map[string]json.RawMessage{}}
		for capability, value := range c.CapabilityArgs {
			if a.Capabilities[capability], err = json.Marshal(value); err != nil {
				return nil, "", err
			}
		}
		if id := asked[string](a.Capabilities["deviceID"]); id != "" {
			a.Device = &plan.Device{ID: id}
		}
		if c.IfName == k.IfName {
			held = slices.Insert(held, 0, a)
			continue
		}
		held = append(held, a)
	}
	if len(held) == 0 {
		return nil, "given no file, since its journal is damaged and libcni has no records of it, so that Multus releases what it knows itself, " +
			"or else what a pod would get now," + without, nil
	}
	return held, "handed over from libcni's records, since its journal is damaged," + without, nil
}

// requestsOf returns the requests of an attachment that a file of Multus can express.
func requestsOf(a *plan.Attachment) multus.Requests {
	return multus.Requests{
		MAC:  asked[string](a.Capabilities["mac"]),
		GUID: asked[string](a.Capabilities["infinibandGUID"]),
		IPs:  asked[[]string](a.Capabilities["ips"]),
	}
}

// asked decodes the argument of a capability. A missing argument, or one of another
// type, counts as none: those of the default network come from the runtime, which may
// choose any form and passes them to Multus as well.
func asked[T any](raw json.RawMessage) (none T) {
	var value T
	if json.Unmarshal(raw, &value) != nil {
		return none
	}
	return value
}

// copyRecord copies a record of libcni. A missing one was never written.
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
	return files.Replace(filepath.Join(to, "results", name), raw)
}
