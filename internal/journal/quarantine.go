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

// A device that could not be restored to the state it must have is in quarantine: one
// file per device in the directory QuarantineDir, a single line in the journal's
// format. The line holds the state that the device must have, and no sandbox gets the
// device before it has that state. Only the holder of the device's claim, or whoever
// holds the lock of that sandbox, writes and removes the file.

// QuarantineDir is the directory of quarantines inside the journal directory.
const QuarantineDir = "quarantine"

// maxQuarantine is the largest quarantine file that is read, in bytes.
const maxQuarantine = 1 << 20

// Quarantine says why a device must not be used and until when.
type Quarantine struct {
	Version int       `json:"version"`
	Device  string    `json:"device"` // PCI address
	Reason  string    `json:"reason"` // for people
	Since   time.Time `json:"since"`
	Boot    string    `json:"boot,omitempty"`
	// Sandbox, Pod and Network name the attachment that left the device in this
	// state. They are zero when there is none.
	Sandbox string   `json:"sandbox,omitempty"`
	Pod     plan.Pod `json:"pod"`
	Network string   `json:"network,omitempty"`
	// To is the state that the device must have, see package verify; nil when
	// unknown.
	To json.RawMessage `json:"to,omitempty"`
}

// SameBoot reports whether the quarantine is of the current boot. Nothing that is
// left on a device outlives a boot.
func (q *Quarantine) SameBoot() bool { return q.Boot == bootID() }

// Quarantine puts a device into quarantine, durably. It fills in Version, Since and
// Boot. A device that is already in quarantine gets the new reason.
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
		err = replaceDurably(path, line)
	}
	if err != nil {
		return ioError(op, err)
	}
	return nil
}

// Quarantined returns the quarantine of a device, nil when it has none. An unreadable
// quarantine is an error, because the state that the device must have is then
// unknown.
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

// decodeQuarantine decodes the content of a quarantine file.
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

// Release takes a device out of quarantine. Without a quarantine it does nothing.
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

// deviceFile returns the path of the device's file in the subdirectory dir. It
// refuses a device name that would leave that directory.
func (d Dir) deviceFile(op, dir, device string) (string, error) {
	if device == "" || device != filepath.Base(device) || device == "." || device == ".." {
		return "", cnierr.New(op, cnierr.InvalidConfig, "%q is not a file name", device)
	}
	return filepath.Join(d.Path, dir, device), nil
}
