package plan

import (
	"encoding/json"
	"os"
)

// maxDeviceInfo is the largest device-information file that is read, in bytes.
const maxDeviceInfo = 64 << 10

// ReadDeviceInfo returns the content of a device-information file, written by a device
// plugin or a delegate. It returns nil when path is empty, the file is missing, or it
// holds no JSON object: anybody with write access there can put anything in its place,
// and a description of a device must not fail its pod.
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
