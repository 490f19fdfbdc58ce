// Package journal is the write-ahead record of every attachment on the node. It is
// the only state that Manifold keeps.
//
// There is one journal per sandbox and runtime interface name, in the journal
// directory: "<container ID>@<interface>.journal". It is a log of lines:
//
//	<crc32c, 8 hex digits> <JSON record>\n
//
// The first record holds the format version and the whole plan. It is written before
// the first delegate runs: to a temporary file, which gets its name before file and
// directory are synced, so that the file system commits once. After a power failure,
// either the whole record exists or no delegate has run, see [Dir.DropUnbegun]. Each
// later record is one step and is appended with one write. Steps need not survive a
// power failure: when one is lost, the tear-down covers everything that the plan names,
// and that is safe because a delegate's DEL succeeds without an ADD (CNI specification,
// section DEL). A torn last line is therefore ignored. A damaged line before the last
// is [cnierr.JournalCorrupt].
//
// Beside each journal stands a lock, "<container ID>@<interface>.lock". Every
// delegate that Manifold starts inherits its file descriptor, so the lock outlives a
// killed shim for as long as an orphaned delegate runs, see [Lock].
package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/killpoint"
	"github.com/manifold-cni/manifold/internal/plan"
)

// Version is the format version that this code writes. A journal of a newer version
// is refused with [cnierr.JournalVersion], never guessed at.
const Version = 1

// maxFile is the largest journal that is read, in bytes.
const maxFile = 64 << 20

// Phase is the state that a step records for its attachment.
type Phase string

// The phases of an attachment. The normal life runs from Trying to Released.
const (
	Trying   Phase = "trying"   // the delegate's ADD is about to run
	Attached Phase = "attached" // its result is recorded
	Verified Phase = "verified" // the interface was compared with the plan
	Routed   Phase = "routed"   // the sandbox's default routes were set, and the result says so
	// Untouched: no plugin of the delegate chain could be started, so there is
	// nothing to release.
	Untouched     Phase = "untouched"
	Releasing     Phase = "releasing"      // the delegate's DEL is about to run
	Released      Phase = "released"       // its DEL succeeded
	ReleaseFailed Phase = "release-failed" // its DEL failed and will be retried
)

// Step is a record after the first.
type Step struct {
	Attachment int             `json:"attachment"` // index into the plan's attachments
	Phase      Phase           `json:"phase"`
	Result     json.RawMessage `json:"result,omitempty"`  // of Attached and Routed
	Before     json.RawMessage `json:"before,omitempty"`  // of Trying: the device before the delegate ran, see package verify
	Error      string          `json:"error,omitempty"`   // of ReleaseFailed
	Checked    []string        `json:"checked,omitempty"` // of Verified: what was compared and found equal
	Differs    []string        `json:"differs,omitempty"` // of Verified: what differed and was tolerated, one sentence each
	Time       time.Time       `json:"time"`
}

// header is the first record.
type header struct {
	Version int        `json:"version"`
	Boot    string     `json:"boot,omitempty"` // kernel's boot ID
	Created time.Time  `json:"created"`
	Plan    *plan.Plan `json:"plan"`
}

// Key identifies a journal by the sandbox and the interface name that the runtime
// gave. Together they are the runtime's attachment.
type Key struct {
	ContainerID string
	IfName      string
}

// String returns "containerID@ifname", the stem of the journal's file names. A
// container ID cannot contain "@" (CNI specification, CNI_CONTAINERID).
func (k Key) String() string { return k.ContainerID + "@" + k.IfName }

// ParseKey is the inverse of [Key.String]. It reports whether s is a key.
func ParseKey(s string) (Key, bool) {
	id, ifName, ok := strings.Cut(s, "@")
	return Key{ContainerID: id, IfName: ifName}, ok
}

// Dir is a journal directory.
type Dir struct{ Path string }

const suffix = ".journal"

func (d Dir) file(k Key) string { return filepath.Join(d.Path, k.String()+suffix) }

// Entry is one open journal. It is not safe for concurrent use; the lock that its
// user holds rules that out.
type Entry struct {
	Key     Key
	Plan    *plan.Plan
	Boot    string
	Created time.Time
	Steps   []Step
	// Torn reports that the last line was incomplete and has been dropped.
	Torn bool
	// dropped reports that a damaged line, of any step, was dropped.
	dropped bool
	path    string
	file    *os.File // for appending; opened by the first Append
}

// Begin writes the first record durably and returns the entry. An existing journal of
// the same key is an error, because its attachments must be released first. Begin
// waits, until ctx ends, while a garbage collection holds the [Dir.Barrier].
func (d Dir) Begin(ctx context.Context, k Key, p *plan.Plan) (_ *Entry, err error) {
	op := "begin journal"
	barrier, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, barrier.Unlock(false)) }()
	e := &Entry{Key: k, Plan: p, Boot: bootID(), Created: time.Now().UTC(), path: d.file(k)}
	if _, err := os.Lstat(e.path); err == nil {
		return nil, cnierr.New(op, cnierr.Busy, "sandbox %s is already attached", k).WithFix("the runtime must DEL it first")
	}
	line, err := encode(header{Version: Version, Boot: e.Boot, Created: e.Created, Plan: p})
	if err != nil {
		return nil, ioError(op, err)
	}
	if err := createDurably(e.path, line); err != nil {
		return nil, ioError(op, err)
	}
	killpoint.Here("journal begun")
	return e, nil
}

// Open reads the journal of k. The error is os.ErrNotExist when there is none.
func (d Dir) Open(k Key) (*Entry, error) {
	e, err := read(d.file(k))
	if err != nil {
		return nil, err
	}
	e.Key = k
	return e, nil
}

// Stat returns the file information of k's journal, from which a reader sees that the
// journal has changed. The error is os.ErrNotExist when there is none.
func (d Dir) Stat(k Key) (os.FileInfo, error) {
	fi, err := os.Stat(d.file(k))
	if err != nil {
		return nil, ioError("read journal "+k.String(), err)
	}
	return fi, nil
}

// List returns the keys of all journals in the directory, none for a directory that
// does not exist.
func (d Dir) List() ([]Key, error) { return d.keys(suffix) }

// Locked returns the keys of all sandboxes that have a lock file: those being worked
// on, with or without a journal, those with a journal, and those whose lock a killed
// process left behind.
func (d Dir) Locked() ([]Key, error) { return d.keys(lockSuffix) }

// keys returns the keys of the directory's files that end in suffix.
func (d Dir) keys(suffix string) ([]Key, error) {
	names, err := os.ReadDir(d.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, ioError("list journals", err)
	}
	var keys []Key
	for _, n := range names {
		stem, ok := strings.CutSuffix(n.Name(), suffix)
		if !ok {
			continue
		}
		if k, ok := ParseKey(stem); ok {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// Usable returns an error when no journal could be begun in the directory, because it
// is no directory or is not writable. It creates a missing directory but writes
// nothing into it.
func (d Dir) Usable() error {
	const op = "begin journal"
	if err := os.MkdirAll(d.Path, 0o700); err != nil {
		return ioError(op, err)
	}
	if err := unix.Access(d.Path, unix.W_OK|unix.X_OK); err != nil {
		return ioError(op, &os.PathError{Op: "write into", Path: d.Path, Err: err})
	}
	return nil
}

// Holding reports whether any sandbox has, or is being given, more than its default
// network, which nobody but Manifold releases. An unreadable journal counts, since it
// may stand for anything.
func (d Dir) Holding() (bool, error) {
	names, err := os.ReadDir(d.Path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return true, ioError("list journals", err)
	}
	for _, n := range names {
		stem, isJournal := strings.CutSuffix(n.Name(), suffix)
		stem, isLock := strings.CutSuffix(stem, lockSuffix)
		k, ok := ParseKey(stem)
		switch {
		case !ok:
		case isJournal:
			if e, err := d.Open(k); err == nil && e.holding() || err != nil && !errors.Is(err, os.ErrNotExist) {
				return true, nil
			}
		case isLock:
			if underWay, err := d.underWay(k); err != nil || underWay {
				return true, err
			}
		}
	}
	return false, nil
}

// holding reports whether e has an unreleased attachment other than a default network
// without a device.
func (e *Entry) holding() bool {
	return slices.ContainsFunc(e.Unreleased(), func(i int) bool {
		a := &e.Plan.Attachments[i]
		return !a.Default || a.Device != nil
	})
}

// Append adds a step. When Append returns, the step is in the kernel's page cache: it
// survives the death of any process, but not a power failure.
func (e *Entry) Append(s Step) error {
	s.Time = time.Now().UTC()
	line, err := encode(s)
	if err != nil {
		return ioError("append to journal", err)
	}
	if e.file == nil {
		if e.file, err = os.OpenFile(e.path, os.O_WRONLY|os.O_APPEND, 0); err != nil {
			return ioError("append to journal", err)
		}
	}
	if e.Torn {
		// The dropped line lacks its newline. Add it, so that the lines stay apart.
		line = append([]byte("\n"), line...)
	}
	if n, err := e.file.Write(line); err != nil {
		return ioError("append to journal", errors.Join(err, e.takeBack(n)))
	}
	e.Torn = false
	e.Steps = append(e.Steps, s)
	killpoint.Here("journal " + string(s.Phase))
	return nil
}

// takeBack removes the n bytes that a failed write has appended, as on a full disk: the
// next step would continue that line, and both would be lost.
func (e *Entry) takeBack(n int) error {
	if n == 0 {
		return nil
	}
	fi, err := e.file.Stat()
	if err == nil {
		err = e.file.Truncate(fi.Size() - int64(n))
	}
	if err != nil {
		e.Torn = true
	}
	return err
}

// Bounds on what is recorded of failed releases. The runtime tries again for as long as
// the pod is there, and a delegate's message can be megabytes long; but a journal that is
// longer than maxFile counts as damaged.
const (
	maxFailures = 100  // per attachment
	maxError    = 4096 // of each, in bytes
)

// AppendFailure adds a step ReleaseFailed of attachment i with an error text, of which it
// keeps the beginning. It adds nothing if that failure is the last one already, or once
// there have been maxFailures.
func (e *Entry) AppendFailure(i int, text string) error {
	if len(text) > maxError {
		text = strings.ToValidUTF8(text[:maxError], "") + "…"
	}
	phase, last := e.Phase(i)
	count := 0
	for _, s := range e.Steps {
		if s.Attachment == i && s.Phase == ReleaseFailed {
			count++
		}
	}
	if phase == ReleaseFailed && (last == text || count >= maxFailures) {
		return nil
	}
	return e.Append(Step{Attachment: i, Phase: ReleaseFailed, Error: text})
}

// Close removes the journal, once nothing of the sandbox is left.
func (e *Entry) Close() error {
	err := os.Remove(e.path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if e.file != nil {
		err = errors.Join(err, e.file.Close())
		e.file = nil
	}
	if err != nil {
		return ioError("close journal", err)
	}
	killpoint.Here("journal closed")
	return nil
}

// Phase returns the last phase of attachment i and the error recorded with it. The
// phase is "" when the attachment was never tried.
func (e *Entry) Phase(i int) (Phase, string) {
	var phase Phase
	var last string
	for _, s := range e.Steps {
		if s.Attachment == i {
			phase, last = s.Phase, s.Error
		}
	}
	return phase, last
}

// Result returns the last recorded result of attachment i, or nil.
func (e *Entry) Result(i int) json.RawMessage {
	return last(e, i, func(s Step) json.RawMessage { return s.Result })
}

// Before returns what was recorded about attachment i's device before its delegate
// ran, or nil.
func (e *Entry) Before(i int) json.RawMessage {
	return last(e, i, func(s Step) json.RawMessage { return s.Before })
}

// last returns the last value that get finds in the steps of attachment i, or nil.
func last(e *Entry, i int, get func(Step) json.RawMessage) json.RawMessage {
	var out json.RawMessage
	for _, s := range e.Steps {
		if v := get(s); s.Attachment == i && v != nil {
			out = v
		}
	}
	return out
}

// SameBoot reports whether the journal was begun in the current boot. Nothing of an
// earlier boot is left in the kernel.
func (e *Entry) SameBoot() bool { return e.Boot == bootID() }

// Gone says why the sandbox no longer exists. It returns "" while the sandbox exists
// and while that is unknown: an agent in a container may not see the directory of
// network namespaces, or may see its files without what is mounted on them.
func (e *Entry) Gone() string {
	if !e.SameBoot() {
		return "the node was booted since"
	}
	if _, err := os.ReadDir(filepath.Dir(e.Plan.NetNS)); err != nil {
		return ""
	}
	var st unix.Stat_t
	err := unix.Lstat(e.Plan.NetNS, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return "its network namespace is gone"
	case err == nil && e.isAnothers(&st):
		return "its network namespace is gone, and another is at the path"
	}
	return ""
}

// isAnothers reports whether st, of the file at the path of the sandbox's network
// namespace, is surely of another namespace. A link is not followed: in an agent's
// container /proc shows other processes than on the node.
func (e *Entry) isAnothers(st *unix.Stat_t) bool {
	inode, _, _ := strings.Cut(e.Plan.NetNSFile, "@")
	had, err := strconv.ParseUint(inode, 10, 64)
	if err != nil || had == st.Ino || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false
	}
	var fs unix.Statfs_t
	return unix.Statfs(e.Plan.NetNS, &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// Releasing reports whether a tear-down of the sandbox has begun.
func (e *Entry) Releasing() bool {
	return slices.ContainsFunc(e.Steps, func(s Step) bool { return s.Phase == Releasing })
}

// Unreleased returns the indexes of the attachments that a tear-down must release, in
// reverse order of attachment: all that were tried and whose DEL has not succeeded.
// Where steps can be lost, an attachment without a step may have been tried too.
// After another boot that is every such attachment, since a power failure loses the
// last steps; where a damaged line was dropped, it is the first one.
func (e *Entry) Unreleased() []int {
	lost := 0
	switch {
	case !e.SameBoot():
		lost = len(e.Plan.Attachments)
	case e.dropped:
		lost = 1
	}
	var out []int
	for i := range e.Plan.Attachments {
		p, _ := e.Phase(i)
		if p == "" {
			lost--
		}
		if p == Untouched || p == Released || p == "" && lost < 0 {
			continue
		}
		out = append(out, i)
	}
	slices.Reverse(out)
	return out
}

// read decodes a journal file.
func read(path string) (*Entry, error) {
	op := "read journal " + filepath.Base(path)
	f, err := os.Open(path)
	if errors.Is(err, unix.ENAMETOOLONG) { // no file can have that name
		err = fmt.Errorf("%w: %w", os.ErrNotExist, err)
	}
	if err != nil {
		return nil, ioError(op, err)
	}
	defer f.Close()
	var body bytes.Buffer
	if fi, err := f.Stat(); err == nil { // usually one read gets it all
		body.Grow(int(min(fi.Size(), maxFile)) + bytes.MinRead)
	}
	if _, err := body.ReadFrom(io.LimitReader(f, maxFile+1)); err != nil {
		return nil, ioError(op, err)
	}
	data := body.Bytes()
	if len(data) > maxFile {
		return nil, corrupt(op, path, fmt.Errorf("larger than %d bytes", maxFile))
	}
	e, err := decode(data)
	if err != nil {
		var typed *cnierr.Error
		if errors.As(err, &typed) {
			return nil, err
		}
		return nil, corrupt(op, path, err)
	}
	e.path = path
	return e, nil
}

// decode parses the lines of a journal.
func decode(data []byte) (*Entry, error) {
	e := &Entry{}
	for n := 0; len(data) > 0; n++ {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		data = rest
		body, err := checkLine(line)
		if err == nil && whole {
			err = e.add(n, body)
		} else if err == nil {
			err = errors.New("line without end")
		}
		if err == nil {
			continue
		}
		if n == 0 || cnierr.Is(err, cnierr.JournalVersion) {
			return nil, err
		}
		// Only the last line can be torn, by a power failure. Behind it may stand the
		// newline that Append adds and later steps. The torn step itself is unknown,
		// so it must not count as never written.
		if len(bytes.TrimSpace(data)) > 0 && !tornBefore(data) {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
		e.Torn, e.dropped = len(data) == 0, true
	}
	if e.Plan == nil {
		return nil, errors.New("no record")
	}
	return e, nil
}

// tornBefore reports whether all lines after a damaged one are sound. A journal looks
// so when new steps follow its torn last line.
func tornBefore(data []byte) bool {
	for len(data) > 0 {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		if _, err := checkLine(line); err != nil || !whole {
			return false
		}
		data = rest
	}
	return true
}

// add decodes record n into e. Record 0 is the header.
func (e *Entry) add(n int, body []byte) error {
	if n > 0 {
		var s Step
		if err := json.Unmarshal(body, &s); err != nil {
			return err
		}
		if s.Attachment < 0 || s.Attachment >= len(e.Plan.Attachments) {
			return fmt.Errorf("attachment %d is not in the plan", s.Attachment)
		}
		e.Steps = append(e.Steps, s)
		return nil
	}
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return err
	}
	if v.Version < 1 || v.Version > Version {
		return cnierr.New("read journal", cnierr.JournalVersion, "format version %d, this program reads 1 to %d", v.Version, Version).
			WithFix("run the release that wrote it, or a newer one")
	}
	var h header
	if err := json.Unmarshal(body, &h); err != nil {
		return err
	}
	if h.Plan == nil || len(h.Plan.Attachments) == 0 {
		return errors.New("no plan in the first record")
	}
	e.Plan, e.Boot, e.Created = h.Plan, h.Boot, h.Created
	return nil
}

// castagnoli is the reversed polynomial of CRC-32C.
const castagnoli = 0x82f63b78

// crcTable is the table of a bytewise CRC-32C. The standard library's implementation
// is built for megabytes: in a short-lived process its setup costs more than
// checksumming the few kilobytes of a journal.
var crcTable = sync.OnceValue(func() *[256]uint32 {
	t := &[256]uint32{}
	for i := range t {
		c := uint32(i)
		for range 8 {
			c = c>>1 ^ castagnoli&-(c&1)
		}
		t[i] = c
	}
	return t
})

// checksum returns the CRC-32C of b.
func checksum(b []byte) uint32 {
	table, sum := crcTable(), ^uint32(0)
	for _, v := range b {
		sum = sum>>8 ^ table[byte(sum)^v]
	}
	return ^sum
}

// encode returns v as a line with its checksum.
func encode(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%08x %s\n", checksum(body), body), nil
}

// checkLine returns the JSON of a line after checking its checksum.
func checkLine(line []byte) ([]byte, error) {
	sum, body, ok := bytes.Cut(line, []byte(" "))
	if !ok || len(sum) != 8 {
		return nil, errors.New("not a record")
	}
	if want := fmt.Sprintf("%08x", checksum(body)); want != string(sum) {
		return nil, fmt.Errorf("checksum %s, computed %s", sum, want)
	}
	return body, nil
}

// newSuffix ends the name of a file that is still being written. The rest of the name
// tells whose it is: a killed writer leaves the file behind, and whoever finds
// nothing else of the sandbox removes it, see [Lock.Unlock].
const newSuffix = ".new"

// createDurably creates path with content and returns when both are on the disk. It
// names the file before it syncs it, so that one commit of the file system holds the
// content and the name: syncing first would wait for two. After a power failure in
// between the file may be torn, which is for callers that do nothing before it returns,
// see [Dir.DropUnbegun]. The caller must be the only one who writes path.
func createDurably(path string, content []byte) (err error) {
	f, err := writeNew(path, content)
	if err != nil {
		return err
	}
	killpoint.Here("journal written")
	if err := os.Rename(f.Name(), path); err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if err := errors.Join(f.Sync(), f.Close(), syncDir(path)); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// replaceDurably gives path new content. After a power failure the file has the old or
// the new content, whole. The caller must be the only one who writes path.
func replaceDurably(path string, content []byte) error {
	f, err := writeNew(path, content)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(path)
}

// writeNew writes content to the file that is to become path and returns it open.
func writeNew(path string, content []byte) (*os.File, error) {
	f, err := os.OpenFile(path+newSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(content); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return f, nil
}

// syncDir syncs the directory that path is in.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func ioError(op string, err error) error {
	e := cnierr.New(op, cnierr.IO, "%w", err)
	if !errors.Is(err, os.ErrNotExist) {
		e.WithFix("make the directory cniDir writable and free space in it")
	}
	return e
}

func corrupt(op, path string, err error) error {
	return cnierr.New(op, cnierr.JournalCorrupt, "%w", err).
		WithFix("inspect %s; move it away once nothing of the sandbox is left", path)
}

// bootID is the kernel's identifier of this boot, empty when it has none. A journal
// of another boot describes links that no longer exist.
var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})

// Reasons for setting a journal aside.
const (
	AsideCorrupt = "corrupt" // it cannot be read
	AsideHanded  = "handed"  // another meta-plugin takes over the release of the sandbox
)

// DropUnbegun removes the journal of k if it holds no whole record, and reports whether
// it did. That is what a power failure leaves of a journal that Begin had not yet synced:
// no delegate has run. The caller must have looked at libcni's records and the claims
// first, since a file system that was damaged later could look the same.
func (d Dir) DropUnbegun(k Key) (bool, error) {
	data, err := d.content(k)
	if err == nil && (len(data) == maxFile || bytes.ContainsRune(data, '\n')) {
		return false, nil
	}
	if err == nil {
		err = os.Remove(d.file(k))
	}
	if err != nil {
		return false, ioError("drop journal", err)
	}
	return true, nil
}

// SetAside renames the journal of k, so that it is no longer found but stays readable
// for people, and returns its new path.
func (d Dir) SetAside(k Key, why string) (string, error) {
	path := d.file(k)
	aside := fmt.Sprintf("%s.%s-%d", path, why, time.Now().UnixNano())
	if err := os.Rename(path, aside); err != nil {
		return "", ioError("set journal aside", err)
	}
	return aside, nil
}
