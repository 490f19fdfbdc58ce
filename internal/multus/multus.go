// Package multus reads and writes the state that Multus keeps of a sandbox, so that
// pods outlive a switch to Manifold and back.
//
// Multus leaves one file per sandbox in its cniDir, named after the container ID. The
// file is a JSON list of the delegates in order of attachment, the cluster default
// network first. Of the many fields of a delegate, these decide what its DEL runs:
//
//	Bytes          the delegate's configuration, base64
//	ConfList       the same, decoded, if it is a list: non-empty plugins tell
//	Conf           the same, decoded, if it is a single configuration
//	ifnameRequest  the interface, if the pod or Multus named it; otherwise the
//	               runtime's for the first delegate and "net<position>" for the others
//	deviceID       the allocated device
//	resourceName   its resource
//	macRequest, ipRequest, infinibandGUIDRequest
//	               what the pod asked for: mac, ips and infinibandGUID of runtimeConfig
//
// The file lacks the port mappings and the bandwidth that a pod asked for. The
// subdirectory "results" has libcni's own records, with the result and the capability
// arguments of each attachment.
package multus

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// maxFile bounds the size of a file that is read, in bytes.
const maxFile = 32 << 20

// Delegate is one attachment in a file.
type Delegate struct {
	Name     string // the name in network-status; may be empty
	IfName   string
	DeviceID string // empty for none
	Resource string // empty for none
	Config   json.RawMessage
	Requests
}

// Requests is what a pod asked of an attachment, as far as Multus keeps it. An empty
// field means no request.
type Requests struct {
	MAC  string   `json:"macRequest,omitempty"`
	GUID string   `json:"infinibandGUIDRequest,omitempty"`
	IPs  []string `json:"ipRequest,omitempty"`
}

// wire is a delegate as Multus writes it.
type wire struct {
	Conf     json.RawMessage `json:"Conf,omitempty"`
	ConfList json.RawMessage `json:"ConfList,omitempty"`
	Name     string
	IfName   string `json:"ifnameRequest,omitempty"`
	DeviceID string `json:"deviceID,omitempty"`
	Resource string `json:"resourceName,omitempty"`
	Requests
	Bytes []byte
}

// Read returns the delegates of a sandbox; ifName is the runtime's interface. It leaves
// out a delegate that it cannot decode and reports it in lost, so that the others can
// still be released. For a sandbox without a file, err is os.ErrNotExist.
func Read(dir, containerID, ifName string) (out []Delegate, lost, err error) {
	path := filepath.Join(dir, containerID)
	fi, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxFile {
		return nil, nil, fmt.Errorf("%s is not a regular file of at most %d bytes", path, maxFile)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	for i, raw := range list {
		d, err := read(raw)
		if err != nil {
			lost = errors.Join(lost, fmt.Errorf("%s: delegate %d: %w", path, i+1, err))
			continue
		}
		switch {
		case d.IfName != "":
		case i == 0:
			d.IfName = ifName
		default:
			d.IfName = fmt.Sprintf("net%d", i)
		}
		out = append(out, *d)
	}
	return out, lost, nil
}

// read decodes one delegate. IfName is empty if the file names no interface.
func read(raw json.RawMessage) (*Delegate, error) {
	var w wire
	if err := json.Unmarshal(raw, &w); err != nil {
		return nil, err
	}
	if !json.Valid(w.Bytes) {
		return nil, errors.New("its configuration is not JSON")
	}
	return &Delegate{Name: w.Name, IfName: w.IfName, DeviceID: w.DeviceID, Resource: w.Resource, Config: w.Bytes, Requests: w.Requests}, nil
}

// Remove removes a sandbox's file. The file may be missing, and containerID may be
// impossible as a file name. Anything but a regular file is not Multus's, and stays.
func Remove(dir, containerID string) error {
	path := filepath.Join(dir, containerID)
	fi, err := os.Lstat(path)
	if err == nil && fi.Mode().IsRegular() {
		err = os.Remove(path)
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil
	}
	return err
}

// Write writes the file of a sandbox whose configurations are lists, and replaces an
// existing one. A file with no delegates says that nothing is left of the sandbox;
// without a file, Multus would release what a pod would get now.
func Write(dir, containerID string, delegates []Delegate) error {
	list := []wire{}
	for _, d := range delegates {
		list = append(list, wire{
			ConfList: d.Config, Name: d.Name, IfName: d.IfName, DeviceID: d.DeviceID, Resource: d.Resource, Bytes: d.Config, Requests: d.Requests,
		})
	}
	raw, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(dir, containerID), raw, 0o600, renameio.WithTempDir(dir))
}
