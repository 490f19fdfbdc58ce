package attach

import (
	"os"
	"path/filepath"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// placeDeviceInfo creates the attachment's device-information file with what the device
// plugin wrote, for a delegate that has the capability CNIDeviceInfoFile and may extend
// the file (device information specification, 4.2).
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

// removeDeviceInfo removes the attachment's device-information file, whoever wrote it
// last.
func removeDeviceInfo(a *plan.Attachment) error {
	if a.DeviceInfoFile == "" {
		return nil
	}
	return remove(a.DeviceInfoFile)
}
