package attach

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// placeDeviceInfo creates the attachment's device-information file with what the
// device plugin wrote, for a delegate that has the capability
// CNIDeviceInfoFile and may extend it (device information specification, 4.2).
func placeDeviceInfo(a *plan.Attachment) error {
	if a.DeviceInfoFile == "" {
		return nil
	}
	err := os.MkdirAll(filepath.Dir(a.DeviceInfoFile), 0o700)
	if err == nil && a.DeviceInfo != nil {
		err = os.WriteFile(a.DeviceInfoFile, a.DeviceInfo, 0o600)
	}
	if err != nil {
		return cnierr.New("write device information", cnierr.IO, "%w", err)
	}
	return nil
}

// maxDeviceInfo bounds a device-information file, in bytes.
const maxDeviceInfo = 64 << 10

// readDeviceInfo returns what the file holds after ADD, nil when there is none
// or it is no JSON object. A delegate may have put anything in its place.
func readDeviceInfo(a *plan.Attachment) json.RawMessage {
	if a.DeviceInfoFile == "" {
		return nil
	}
	fi, err := os.Stat(a.DeviceInfoFile)
	if err != nil || !fi.Mode().IsRegular() || fi.Size() > maxDeviceInfo {
		return nil
	}
	b, err := os.ReadFile(a.DeviceInfoFile)
	if err != nil {
		return nil
	}
	var object map[string]json.RawMessage
	if json.Unmarshal(b, &object) != nil || object == nil {
		return nil
	}
	return b
}

// removeDeviceInfo removes the file, whoever wrote it last.
func removeDeviceInfo(a *plan.Attachment) error {
	if a.DeviceInfoFile == "" {
		return nil
	}
	return remove(a.DeviceInfoFile)
}
