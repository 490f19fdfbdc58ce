package inspect

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/files"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/plan"
)

// maxBundled bounds each file of a bundle, in bytes. A longer log keeps its end.
const maxBundled = 2 << 20

// bundleReadme is the first file of a bundle.
const bundleReadme = `What kubectl manifold support-bundle found on this node.

  view.json         attachments and virtual functions
  doctor.json       what the node needs, and whether it has it
  release.txt       the release of the program that wrote this archive
  agent.json        the agent's configuration
  net.d/            the runtime's network configurations
  journals/         the plans and steps of sandboxes
  log.txt           the end of the plugin's log, if it has one
  problems.txt      what could not be read

Kubeconfigs, the kubelet's checkpoint and the API server's objects are left out.
Values of keys that name tokens, passwords, keys, certificates and other secrets,
and whatever else looks like a secret, are replaced by "REDACTED". Names of pods,
addresses and devices are unchanged: look through the archive before you pass it on.
`

// bundle is an archive being written.
type bundle struct {
	tar      *tar.Writer
	now      time.Time
	problems bytes.Buffer
}

// Bundle writes a gzipped tar archive of everything known of the node, without secrets.
// The archive lists what could not be read; an error means that the archive itself could
// not be written. release is the release of the running program.
func (l Local) Bundle(ctx context.Context, release string, w io.Writer) (err error) {
	zip := gzip.NewWriter(w)
	b := &bundle{tar: tar.NewWriter(zip), now: time.Now().Truncate(time.Second)}
	defer func() { err = errors.Join(err, b.tar.Close(), zip.Close()) }()
	if err := errors.Join(b.add("README.txt", []byte(bundleReadme)), b.add("release.txt", []byte(release+"\n"))); err != nil {
		return err
	}
	if err := b.json("doctor.json", l.Diagnose(ctx)); err != nil {
		return err
	}
	conf, problem := configfile.ReadAgent(l.Config)
	if problem == nil {
		v, problem := l.view(ctx)
		b.problem(problem)
		err = b.json("view.json", v)
	} else { // the agent's configuration may be the only thing that is broken
		b.problem(problem)
		conf = configfile.ReadableAgent(l.Config)
	}
	err = errors.Join(err, b.file("agent.json", l.Config), b.node(conf))
	return errors.Join(err, b.add("problems.txt", b.problems.Bytes()))
}

// node adds the files that the agent's configuration leads to.
func (b *bundle) node(conf *configfile.Agent) error {
	var err error
	dir := filepath.Dir(conf.CNIConfig)
	entries, problem := os.ReadDir(dir)
	b.problem(problem)
	for _, e := range entries {
		// Runtimes read .conf, .conflist and .json; what others renamed ends differently.
		if strings.Contains(e.Name(), ".conf") || filepath.Ext(e.Name()) == ".json" {
			err = errors.Join(err, b.file("net.d/"+e.Name(), filepath.Join(dir, e.Name())))
		}
	}
	if plugin, _, problem := configfile.ReadPlugin(conf.CNIConfig); problem == nil && plugin.LogFile != "" {
		err = errors.Join(err, b.file("log.txt", plugin.LogFile))
	}
	return errors.Join(err, b.journals(journal.Dir{Path: conf.CNIDir}))
}

// journals adds the plans and steps of every sandbox.
func (b *bundle) journals(dir journal.Dir) error {
	keys, problem := dir.List()
	b.problem(problem)
	var err error
	for _, k := range keys {
		entry, problem := dir.Open(k)
		if problem != nil {
			b.problem(problem)
			continue
		}
		err = errors.Join(err, b.json("journals/"+k.String()+".json", struct {
			Boot    string         `json:"boot"`
			Created time.Time      `json:"created"`
			Plan    *plan.Plan     `json:"plan"`
			Steps   []journal.Step `json:"steps"`
		}{entry.Boot, entry.Created, entry.Plan, entry.Steps}))
	}
	return err
}

// problem records an error for the reader of the bundle.
func (b *bundle) problem(err error) {
	if err != nil {
		fmt.Fprintln(&b.problems, err)
	}
}

// json adds v as a JSON document.
func (b *bundle) json(name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return b.add(name, raw)
}

// file adds a file of the node: its last maxBundled bytes if it is longer.
func (b *bundle) file(name, path string) error {
	f, err := files.OpenRegular(path)
	if err != nil {
		b.problem(err)
		return nil
	}
	defer f.Close()
	cut := false
	if fi, err := f.Stat(); err == nil && fi.Size() > maxBundled {
		_, err = f.Seek(-maxBundled, io.SeekEnd)
		b.problem(err)
		cut = true
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxBundled))
	if err != nil {
		b.problem(err)
		return nil
	}
	if cut { // the first line may be the end of a secret whose key was cut off
		if _, raw, cut = bytes.Cut(raw, []byte("\n")); !cut {
			b.problem(fmt.Errorf("%s: its last line is longer than %d bytes and is left out", path, maxBundled))
		}
	}
	return b.add(name, raw)
}

// add adds a file without its secrets. Everything in the archive passes through here.
func (b *bundle) add(name string, raw []byte) error {
	raw = redact(raw)
	if err := b.tar.WriteHeader(&tar.Header{Name: "manifold/" + name, Mode: 0o600, Size: int64(len(raw)), ModTime: b.now}); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if _, err := b.tar.Write(raw); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
