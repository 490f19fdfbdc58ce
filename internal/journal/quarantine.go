package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// A device that could not be made as it must be is in quarantine: one file per
// device in the directory QuarantineDir, a line as in a journal. It says how the
// device must stand, and no sandbox gets the device before it stands so. It is
// written and removed only by who has the device: the holder of its claim, or who
// holds the lock of the sandbox that does.

// QuarantineDir is the directory of quarantines in the journal's.
const QuarantineDir = "quarantine"

// maxQuarantine bounds a quarantine's file, in bytes.
const maxQuarantine = 1 << 20

// Quarantine is why a device must not be used, and until when.
type Quarantine struct {
	Version int       `json:"version"`
	Device  string    `json:"device"` // PCI address
	Reason  string    `json:"reason"` // for people
	Since   time.Time `json:"since"`
	Boot    string    `json:"boot,omitempty"`
	// Sandbox, Pod and Network are of the attachment that left the device so; zero
	// for none.
	Sandbox string   `json:"sandbox,omitempty"`
	Pod     plan.Pod `json:"pod"`
	Network string   `json:"network,omitempty"`
	// To is how the device must stand, see package verify; nil when nobody knows.
	To json.RawMessage `json:"to,omitempty"`
}

// SameBoot reports whether the node has not been booted since: what was left on a
// device does not outlive a boot.
func (q *Quarantine) SameBoot() bool { return q.Boot == bootID() }

// Quarantine puts a device into quarantine, durably. Version, Since and Boot are
// filled in. A device that is in quarantine already gets the new reason.
func (d Dir) Quarantine(q Quarantine) error {
	const op = "put device into quarantine"
	path, err := d.deviceFile(op, QuarantineDir, q.Device)
	if err != nil {
		return err
	}
	q.Version, q.Since, q.Boot = Version, time.Now().UTC(), bootID()
	line, err := encode(q)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err == nil {
		err = writeDurably(path, line)
	}
	if err != nil {
		return ioError(op, err)
	}
	return nil
}

// Quarantined returns a device's quarantine, nil when it is in none. One that
// cannot be read is an error: nobody knows then how the device must stand.
func (d Dir) Quarantined(device string) (*Quarantine, error) {
	op := "read quarantine of " + device
	path, err := d.deviceFile(op, QuarantineDir, device)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, ioError(op, err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxQuarantine))
	if err != nil {
		return nil, ioError(op, err)
	}
	q, err := decodeQuarantine(raw)
	if err != nil {
		return nil, cnierr.New(op, cnierr.JournalCorrupt, "%w", err).
			WithFix("remove %s once the device is as it should be", path)
	}
	return q, nil
}

// decodeQuarantine decodes a quarantine's file.
func decodeQuarantine(raw []byte) (*Quarantine, error) {
	n := len(raw) - 1
	if n < 0 || raw[n] != '\n' {
		return nil, errors.New("line without end")
	}
	body, err := checkLine(raw[:n])
	if err != nil {
		return nil, err
	}
	q := &Quarantine{}
	if err := json.Unmarshal(body, q); err != nil {
		return nil, err
	}
	if q.Version < 1 || q.Version > Version {
		return nil, fmt.Errorf("format version %d, this program reads 1 to %d", q.Version, Version)
	}
	return q, nil
}

// Release takes a device out of quarantine.
func (d Dir) Release(device string) error {
	const op = "take device out of quarantine"
	path, err := d.deviceFile(op, QuarantineDir, device)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return ioError(op, err)
	}
	return nil
}

// deviceFile returns the path of a device's file in a directory of the journal's.
func (d Dir) deviceFile(op, dir, device string) (string, error) {
	if device == "" || device != filepath.Base(device) || device == "." || device == ".." {
		return "", cnierr.New(op, cnierr.InvalidConfig, "%q is no file name", device)
	}
	return filepath.Join(d.Path, dir, device), nil
}
