package netattach

import (
	"encoding/json"
	"strings"
)

// DeviceInfo is a device-info object (device information specification 1.1.0).
// Type says which of the pointers is set.
type DeviceInfo struct {
	Type      string     `json:"type"` // pci, vdpa, vhost-user or memif
	Version   string     `json:"version,omitempty"`
	PCI       *PCI       `json:"pci,omitempty"`
	VDPA      *VDPA      `json:"vdpa,omitempty"`
	VhostUser *VhostUser `json:"vhost-user,omitempty"`
	Memif     *Memif     `json:"memif,omitempty"`
}

// PCI describes a PCI device.
type PCI struct {
	Address     string `json:"pci-address"`
	PFAddress   string `json:"pf-pci-address,omitempty"`
	VhostNet    string `json:"vhost-net,omitempty"`
	RDMADevice  string `json:"rdma-device,omitempty"`
	Representor string `json:"representor-device,omitempty"`
}

// VDPA describes a vDPA device.
type VDPA struct {
	ParentDevice string `json:"parent-device,omitempty"`
	Driver       string `json:"driver"` // vhost or virtio
	Path         string `json:"path,omitempty"`
	Address      string `json:"pci-address,omitempty"`
	PFAddress    string `json:"pf-pci-address,omitempty"`
	Representor  string `json:"representor-device,omitempty"`
}

// VhostUser describes a vhost-user socket.
type VhostUser struct {
	Mode string `json:"mode"` // client or server
	Path string `json:"path"`
}

// Memif describes a memif socket.
type Memif struct {
	Role string `json:"role"` // master or slave
	Path string `json:"path"`
	Mode string `json:"mode"` // ethernet, ip or punt
}

// ParseDeviceInfo parses a device-info object and checks that it has the part that its
// type names. It ignores unknown keys; publish the original bytes to keep them.
func ParseDeviceInfo(raw []byte) (*DeviceInfo, error) {
	var d DeviceInfo
	if err := decodeJSON(raw, &d); err != nil {
		return nil, &Error{Text: "the device information is not JSON", Err: err}
	}
	present := map[string]bool{
		"pci":        d.PCI != nil && d.PCI.Address != "",
		"vdpa":       d.VDPA != nil && d.VDPA.Driver != "",
		"vhost-user": d.VhostUser != nil && d.VhostUser.Path != "",
		"memif":      d.Memif != nil && d.Memif.Path != "",
	}
	ok, known := present[d.Type]
	if !known {
		return nil, fieldError("type", "%s is not pci, vdpa, vhost-user or memif", clip(d.Type))
	}
	if !ok {
		return nil, fieldError(d.Type, "it is missing or incomplete")
	}
	return &d, nil
}

// NewPCIInfo returns the device-info object of a PCI device. pf is the address of its
// physical function, empty unless the device is a VF.
func NewPCIInfo(address, pf string) (json.RawMessage, error) {
	raw, err := json.Marshal(DeviceInfo{Type: "pci", Version: "1.1.0", PCI: &PCI{Address: address, PFAddress: pf}})
	if err != nil {
		return nil, &Error{Text: "the device information cannot be encoded", Err: err}
	}
	return raw, nil
}

// DPFileName returns the name of the file in which a device plugin describes a device
// (device information specification 4.1), relative to devinfo/dp. Slashes in resource
// and deviceID become dashes, so the name cannot leave the directory. An empty resource
// or deviceID, a NUL byte and a name of more than 255 bytes are errors.
func DPFileName(resource, deviceID string) (string, error) {
	name := strings.ReplaceAll(resource, "/", "-") + "-" + strings.ReplaceAll(deviceID, "/", "-") + "-device.json"
	if len(name) > 255 || strings.ContainsRune(name, 0) || resource == "" || deviceID == "" {
		return "", fieldError("", "resource %s and device %s do not make a file name", clip(resource), clip(deviceID))
	}
	return name, nil
}
