package plan

import (
	"encoding/json"
	"os"
)

// maxDeviceInfo bounds a device-information file, in bytes.
const maxDeviceInfo = 64 << 10

// ReadDeviceInfo returns what a device-information file holds, of a device plugin
// or of a delegate. It is nil without a name, and where there is no file or no
// JSON object in it: anybody who may write there can have put anything in its
// place, and what describes a device must not fail its pod.
func ReadDeviceInfo(path string) json.RawMessage {
	if path == "" {
		return nil
	}
	fi, err := os.Stat(path)
	if err != nil || !fi.Mode().IsRegular() || fi.Size() > maxDeviceInfo {
		return nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil || object == nil {
		return nil
	}
	return raw
}
