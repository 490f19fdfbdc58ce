package kube

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/netattach"
)

// The snapshot file is JSON, one object per line: a header, a line for each definition,
// sorted by namespace and name, and a trailer with the number of definitions and the
// SHA-256 of every byte before the trailer. A truncated or altered file is recognized.
// A definition's line begins with namespace and name, so that a reader finds one
// definition without decoding the others.
const (
	snapshotFormat  = "manifold-definitions"
	snapshotVersion = 1
	snapshotMode    = 0o600

	maxSnapshotBytes = 256 << 20
	// maxSnapshotLine holds the largest definition: JSON escapes one byte as up to six.
	maxSnapshotLine = 6*(maxConfig+maxAnnotations) + 64<<10
)

type snapshotHeader struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	Written time.Time `json:"written"`
}

// How the line of a definition begins: the first fields of [snapshotLine] and
// [snapshotEntry] as they are encoded.
const (
	lineNamespace = `{"definition":{"namespace":"`
	lineName      = `,"name":"`
)

// snapshotLine is any line after the header. Exactly one of its fields is set.
type snapshotLine struct {
	Definition *snapshotEntry   `json:"definition,omitempty"`
	End        *snapshotTrailer `json:"end,omitempty"`
}

type snapshotEntry struct {
	Namespace       string            `json:"namespace"`
	Name            string            `json:"name"`
	UID             types.UID         `json:"uid,omitempty"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Annotations     map[string]string `json:"annotations,omitempty"`
	Config          string            `json:"config,omitempty"`
	Oversized       int               `json:"oversized,omitempty"` // see entry
}

type snapshotTrailer struct {
	Count  int    `json:"count"`
	SHA256 string `json:"sha256"` // hexadecimal
}

// Snapshot holds the definitions of the cluster as [DefinitionInformer] last wrote them
// to disk. It implements [Definitions] without an API server.
type Snapshot struct {
	path    string
	written time.Time
	lines   map[string][]byte // by namespace/name
}

// OpenSnapshot reads the snapshot file at path and verifies its checksum. A file that
// does not exist, cannot be read, is damaged or was written by a newer version of this
// package is [ErrUnavailable]: another source may know, and a [DefinitionInformer]
// replaces the file once it has synced. Errors name the file.
func OpenSnapshot(path string) (*Snapshot, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO would block
	if err != nil {
		return nil, fmt.Errorf("snapshot of definitions: %w: %w", ErrUnavailable, err)
	}
	defer func() { _ = f.Close() }() // only read from
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("snapshot of definitions: %w: %w", ErrUnavailable, err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("snapshot of definitions %s: not a regular file: %w", path, ErrUnavailable)
	case info.Size() > maxSnapshotBytes:
		return nil, fmt.Errorf("snapshot of definitions %s: %d bytes, at most %d are read: %w", path, info.Size(), maxSnapshotBytes, ErrUnavailable)
	}
	s, err := readSnapshot(io.LimitReader(f, maxSnapshotBytes))
	if err != nil {
		return nil, damagedSnapshot(path, err)
	}
	s.path = path
	return s, nil
}

// damagedSnapshot returns err as [ErrUnavailable]. Only the text of err is kept, without
// [ErrInvalid]: a bad name in the file is not the request's.
func damagedSnapshot(path string, err error) error {
	return &combined{text: fmt.Sprintf("snapshot of definitions %s: %v: %v", path, ErrUnavailable, err), errs: []error{ErrUnavailable}}
}

// Len returns the number of definitions.
func (s *Snapshot) Len() int { return len(s.lines) }

// Definition implements [Definitions]. A damaged definition is [ErrUnavailable].
func (s *Snapshot) Definition(_ context.Context, namespace, name string) (*netattach.Definition, error) {
	if err := checkNames("definition", namespace, name); err != nil {
		return nil, err
	}
	line, ok := s.lines[namespace+"/"+name]
	if !ok {
		return nil, fmt.Errorf("%s: not in the snapshot %s, written %s: %w",
			definitionText(namespace, name), s.path, s.written.UTC().Format(time.RFC3339), ErrNotFound)
	}
	e, err := decodeEntry(line)
	if err == nil && e.key() != namespace+"/"+name {
		err = fmt.Errorf("%s: the line is of %s", definitionText(namespace, name), e.key())
	}
	if err != nil {
		return nil, damagedSnapshot(s.path, err)
	}
	return e.definition()
}

// readSnapshot reads a whole snapshot and verifies its checksum and number of
// definitions. It decodes no definition: a planner needs few of perhaps a thousand.
func readSnapshot(r io.Reader) (*Snapshot, error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 64<<10), maxSnapshotLine)
	sum := sha256.New()
	head, err := readSnapshotHeader(sc, sum)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{written: head.Written, lines: map[string][]byte{}}
	for sc.Scan() {
		key, end, err := readLine(sc.Bytes())
		switch {
		case err != nil:
			return nil, fmt.Errorf("definition %d: %w", len(s.lines)+1, err)
		case end != nil:
			return s, s.verify(end, sum, sc)
		case s.lines[key] != nil:
			return nil, fmt.Errorf("definition %s: twice", key)
		}
		s.lines[key] = bytes.Clone(sc.Bytes())
		hashLine(sum, sc.Bytes())
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("after %d definitions: %w", len(s.lines), err)
	}
	return nil, fmt.Errorf("truncated after %d definitions", len(s.lines))
}

// readLine returns the namespace/name of a definition's line, or the trailer. It decodes
// only lines that do not begin as the line of a definition does.
func readLine(text []byte) (key string, end *snapshotTrailer, err error) {
	if key, ok := lineKey(text); ok {
		return key, nil, nil
	}
	var line snapshotLine
	if err := json.Unmarshal(text, &line); err != nil {
		return "", nil, err
	}
	if line.End != nil {
		return "", line.End, nil
	}
	e, err := newSnapshotEntry(line.Definition)
	if err != nil {
		return "", nil, err
	}
	return e.key(), nil, nil
}

// lineKey returns the namespace/name with which the line of a definition begins. ok is
// false if the line begins otherwise, or has a name that JSON escapes.
func lineKey(line []byte) (key string, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(lineNamespace))
	namespace, rest, ok2 := bytes.Cut(rest, []byte{'"'})
	rest, ok3 := bytes.CutPrefix(rest, []byte(lineName))
	name, _, ok4 := bytes.Cut(rest, []byte{'"'})
	if !ok || !ok2 || !ok3 || !ok4 || bytes.IndexByte(namespace, '\\') >= 0 || bytes.IndexByte(name, '\\') >= 0 {
		return "", false
	}
	return string(namespace) + "/" + string(name), true
}

// decodeEntry decodes the line of a definition.
func decodeEntry(text []byte) (*entry, error) {
	var line snapshotLine
	if err := json.Unmarshal(text, &line); err != nil {
		return nil, err
	}
	return newSnapshotEntry(line.Definition)
}

func readSnapshotHeader(sc *bufio.Scanner, sum hash.Hash) (snapshotHeader, error) {
	var head snapshotHeader
	if !sc.Scan() {
		if err := sc.Err(); err != nil {
			return head, fmt.Errorf("header: %w", err)
		}
		return head, errors.New("the file is empty")
	}
	if err := json.Unmarshal(sc.Bytes(), &head); err != nil {
		return head, fmt.Errorf("header: %w", err)
	}
	if head.Format != snapshotFormat {
		return head, fmt.Errorf("format %.40q, want %q", head.Format, snapshotFormat)
	}
	if head.Version != snapshotVersion {
		return head, fmt.Errorf("version %d, this program reads version %d", head.Version, snapshotVersion)
	}
	hashLine(sum, sc.Bytes())
	return head, nil
}

// newSnapshotEntry returns the definition that a line holds, which may be nil.
func newSnapshotEntry(in *snapshotEntry) (*entry, error) {
	if in == nil {
		return nil, errors.New("empty line object")
	}
	if err := checkNames("definition", in.Namespace, in.Name); err != nil {
		return nil, err
	}
	e := &entry{oversized: in.Oversized, Definition: netattach.Definition{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: in.Namespace, Name: in.Name, UID: in.UID,
			ResourceVersion: in.ResourceVersion, Annotations: in.Annotations,
		},
		Spec: netattach.DefinitionSpec{Config: in.Config},
	}}
	if len(in.Config) > maxConfig || in.Oversized < 0 || in.Oversized > 0 && in.Config != "" {
		return nil, fmt.Errorf("%s: configuration of %d bytes, oversized %d", definitionText(in.Namespace, in.Name), len(in.Config), in.Oversized)
	}
	return e, nil
}

// verify compares the trailer with what was read and requires the end of file.
func (s *Snapshot) verify(end *snapshotTrailer, sum hash.Hash, sc *bufio.Scanner) error {
	if end.Count != len(s.lines) {
		return fmt.Errorf("%d definitions, the trailer says %d", len(s.lines), end.Count)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != end.SHA256 {
		return fmt.Errorf("checksum is %s, the trailer says %.64q", got, end.SHA256)
	}
	if sc.Scan() {
		return errors.New("data after the trailer")
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("after the trailer: %w", err)
	}
	return nil
}

// hashLine adds a line, with the newline that the scanner removed.
func hashLine(sum hash.Hash, line []byte) {
	sum.Write(line) // a hash.Hash never fails
	sum.Write(newline)
}

// newline is passed to an interface, for which a local slice would be allocated anew.
var newline = []byte{'\n'}

// writeSnapshot encodes entries, which must be sorted, with the time now.
func writeSnapshot(w io.Writer, entries []*entry, now time.Time) error {
	sum := sha256.New()
	enc := json.NewEncoder(io.MultiWriter(w, sum))
	if err := enc.Encode(snapshotHeader{Format: snapshotFormat, Version: snapshotVersion, Written: now.UTC()}); err != nil {
		return err
	}
	for _, e := range entries {
		line := snapshotLine{Definition: &snapshotEntry{
			Namespace: e.Namespace, Name: e.Name, UID: e.UID, ResourceVersion: e.ResourceVersion,
			Annotations: e.Annotations, Config: e.Spec.Config, Oversized: e.oversized,
		}}
		if err := enc.Encode(line); err != nil {
			return err
		}
	}
	end := snapshotTrailer{Count: len(entries), SHA256: hex.EncodeToString(sum.Sum(nil))}
	return json.NewEncoder(w).Encode(snapshotLine{End: &end})
}

// saveSnapshot replaces the file at path atomically: after a crash at any moment, path
// holds the old file or the new one.
func saveSnapshot(path string, entries []*entry, now time.Time) (err error) {
	// The temporary file is in the target's directory: a rename from another file
	// system is not atomic.
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(snapshotMode))
	if err != nil {
		return fmt.Errorf("write snapshot of definitions: %w", err)
	}
	defer func() { err = errors.Join(err, f.Cleanup()) }() // nothing to do once replaced
	buf := bufio.NewWriterSize(f, 64<<10)
	if err := errors.Join(writeSnapshot(buf, entries, now), buf.Flush()); err != nil {
		return fmt.Errorf("write snapshot of definitions %s: %w", path, err)
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("write snapshot of definitions %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeLeftovers removes the temporary files of writers that were killed.
func removeLeftovers(path string) error {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	temp, err := regexp.Compile(`^\.` + regexp.QuoteMeta(base) + `-?\d+$`) // renameio's pattern
	if err != nil {
		return fmt.Errorf("clean up snapshots: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("clean up snapshots: %w", err)
	}
	var errs []error
	for _, f := range files {
		if f.Type().IsRegular() && temp.MatchString(f.Name()) {
			errs = append(errs, os.Remove(filepath.Join(dir, f.Name())))
		}
	}
	return errors.Join(errs...)
}
