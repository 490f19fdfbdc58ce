package checkpoint

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
)

// Claim is a resource claim as the kubelet prepared it on this node. The kubelet writes
// the entry before it starts the sandbox of a pod that uses the claim, and removes the
// pod from the entry once the sandbox is gone.
type Claim struct {
	Namespace string
	Name      string
	UID       string   // of the ResourceClaim
	PodUIDs   []string // pods that use the claim, sorted
	Devices   []ClaimDevice
}

// ClaimDevice is a device that is allocated to a claim. Driver, Pool, Name and ShareID
// together identify it.
type ClaimDevice struct {
	Driver  string // for example vf.vendor.example
	Pool    string // usually the node's name
	Name    string
	ShareID string // set if the device can be allocated more than once; else empty
	// Requests are the claim's requests that the device serves, each in the form
	// "request" or "request/subrequest". Empty if the kubelet does not record them.
	Requests []string
}

// Claims is a decoded claims checkpoint. Callers must not modify it.
type Claims struct{ All []Claim }

// Pod returns the claims that a pod uses, in the file's order.
func (c *Claims) Pod(uid string) []Claim {
	var out []Claim
	for i := range c.All {
		if uid != "" && slices.Contains(c.All[i].PodUIDs, uid) {
			out = append(out, c.All[i])
		}
	}
	return out
}

// ClaimFile is the kubelet's file dra_manager_state. It is safe for concurrent use.
type ClaimFile struct{ content content[*Claims] }

// NewClaimFile returns the file at path, which need not exist yet.
func NewClaimFile(path string) *ClaimFile {
	return &ClaimFile{content[*Claims]{path: path, decode: DecodeClaims}}
}

// Load returns the file's content, cached as in [File.Load].
func (f *ClaimFile) Load() (*Claims, error) { return f.content.load() }

// claimsFile is the file as the kubelet writes it: Data holds JSON in a string, and
// Checksum is the CRC-32 (IEEE) of that string.
type claimsFile struct {
	Data     string
	Checksum uint32
}

// claimsData is the content of Data.
type claimsData struct {
	Kind               string          `json:"kind"`
	APIVersion         string          `json:"apiVersion"`
	ClaimInfoStateList []claimInfoJSON `json:"ClaimInfoStateList"`
}

type claimInfoJSON struct {
	ClaimUID    string
	ClaimName   string
	Namespace   string
	PodUIDs     map[string]struct{}
	DriverState map[string]driverStateJSON
}

type driverStateJSON struct{ Devices []claimDeviceJSON }

type claimDeviceJSON struct {
	PoolName     string
	DeviceName   string
	ShareID      *string
	RequestNames []string
	CDIDeviceIDs []string
}

// Type of the file's content. The version is not checked: a kubelet, too, reads a file
// of another version.
const (
	claimsKind    = "DRACheckpoint"
	claimsVersion = "checkpoint.dra.kubelet.k8s.io/v1"
)

// DecodeClaims decodes the claims checkpoint of Kubernetes 1.32 or newer. It ignores
// unknown keys. Its errors are those of [Decode].
func DecodeClaims(raw []byte) (*Claims, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(raw), MaxSize)
	}
	var f claimsFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if sum := crc32.ChecksumIEEE([]byte(f.Data)); sum != f.Checksum {
		return nil, fmt.Errorf("%w: it is %d, the content gives %d", ErrChecksum, f.Checksum, sum)
	}
	var d claimsData
	if err := json.Unmarshal([]byte(f.Data), &d); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if d.Kind != claimsKind {
		return nil, fmt.Errorf("%w: kind is %.64q, want %s", ErrFormat, d.Kind, claimsKind)
	}
	out := &Claims{}
	for i := range d.ClaimInfoStateList {
		out.All = append(out.All, d.ClaimInfoStateList[i].claim())
	}
	return out, nil
}

// claim returns the exported form, with the drivers sorted by name.
func (in *claimInfoJSON) claim() Claim {
	out := Claim{Namespace: in.Namespace, Name: in.ClaimName, UID: in.ClaimUID, PodUIDs: slices.Sorted(maps.Keys(in.PodUIDs))}
	for _, driver := range slices.Sorted(maps.Keys(in.DriverState)) {
		for _, d := range in.DriverState[driver].Devices {
			dev := ClaimDevice{Driver: driver, Pool: d.PoolName, Name: d.DeviceName, Requests: d.RequestNames}
			if d.ShareID != nil {
				dev.ShareID = *d.ShareID
			}
			out.Devices = append(out.Devices, dev)
		}
	}
	return out
}

// EncodeClaims returns a file as a kubelet writes it, but without CDI device names.
func EncodeClaims(claims []Claim) ([]byte, error) {
	d := claimsData{Kind: claimsKind, APIVersion: claimsVersion}
	for i := range claims {
		c := &claims[i]
		info := claimInfoJSON{
			ClaimUID: c.UID, ClaimName: c.Name, Namespace: c.Namespace, PodUIDs: map[string]struct{}{}, DriverState: map[string]driverStateJSON{},
		}
		for _, uid := range c.PodUIDs {
			info.PodUIDs[uid] = struct{}{}
		}
		for _, dev := range c.Devices {
			out := claimDeviceJSON{PoolName: dev.Pool, DeviceName: dev.Name, RequestNames: dev.Requests}
			if dev.ShareID != "" {
				out.ShareID = &dev.ShareID
			}
			state := info.DriverState[dev.Driver]
			state.Devices = append(state.Devices, out)
			info.DriverState[dev.Driver] = state
		}
		d.ClaimInfoStateList = append(d.ClaimInfoStateList, info)
	}
	inner, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode claims: %w", err)
	}
	raw, err := json.Marshal(claimsFile{string(inner), crc32.ChecksumIEEE(inner)})
	if err != nil {
		return nil, fmt.Errorf("encode claims: %w", err)
	}
	return raw, nil
}
