package podresources

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Metadata is the path of the kubelet's plugin directory, usually
// /var/lib/kubelet/plugins. DRA drivers that publish device metadata (KEP-5304, from
// Kubernetes 1.36) write one file there for each request of a claim:
//
//	<driver>/dra-device-metadata/<namespace>_<claim>/<request>/metadata.json
//
// A driver writes the file before the pod's sandbox starts. Reading it needs no API
// server.
type Metadata string

// Limits on what is read for one claim.
const (
	maxMetadata         = 1 << 20 // bytes of one file
	maxMetadataRequests = 256     // files; a claim has at most 32 requests
)

const metadataGroup = "metadata.resource.k8s.io/"

// metadataVersions are the understood versions of the file's objects.
var metadataVersions = []string{metadataGroup + "v1beta1", metadataGroup + "v1alpha1"}

// metadataObject is one object of the file.
type metadataObject struct {
	Metadata struct {
		UID string `json:"uid"`
	} `json:"metadata"`
	Requests []struct {
		Name    string           `json:"name"`
		Devices []metadataDevice `json:"devices"`
	} `json:"requests"`
}

type metadataDevice struct {
	Driver     string                     `json:"driver"`
	Pool       string                     `json:"pool"`
	Name       string                     `json:"name"`
	Attributes map[string]json.RawMessage `json:"attributes"`
}

// Attributes implements [AttributeSource].
func (m Metadata) Attributes(_ context.Context, devices []*ClaimDevice) []Attributes {
	out := make([]Attributes, len(devices))
	root, err := os.OpenRoot(string(m))
	if err != nil {
		for i := range out {
			out[i].Err = fmt.Errorf("device metadata: %w", err)
		}
		return out
	}
	defer root.Close()
	for i, d := range devices {
		if out[i], err = metadataOf(root, d); err != nil {
			out[i].Err = fmt.Errorf("device metadata: %w", err)
		}
	}
	return out
}

// metadataOf looks up a device in the files of its claim.
func metadataOf(root *os.Root, d *ClaimDevice) (Attributes, error) {
	dir := filepath.Join(d.Driver, "dra-device-metadata", d.Namespace+"_"+d.Claim)
	requests, err := metadataRequests(root, dir, d)
	if err != nil {
		return Attributes{}, err
	}
	out := Attributes{Source: "device metadata"}
	found := false
	for _, request := range requests {
		o, err := readMetadata(root, filepath.Join(dir, request, "metadata.json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Attributes{}, err
		}
		if d.ClaimUID != "" && o.Metadata.UID != "" && o.Metadata.UID != d.ClaimUID {
			return Attributes{}, fmt.Errorf("%w: %s belongs to an older claim of the same name, with UID %.64q", ErrUnavailable, dir, o.Metadata.UID)
		}
		found = o.collect(d, &out) || found
	}
	if !found {
		return Attributes{}, fmt.Errorf("driver %s has written none below %s", d.Driver, dir)
	}
	return out, nil
}

// metadataRequests returns the requests whose files to read: those that the device
// serves, or all requests of the claim if the device's are unknown.
func metadataRequests(root *os.Root, dir string, d *ClaimDevice) ([]string, error) {
	var out []string
	if len(d.Requests) > 0 {
		for _, r := range d.Requests {
			base, _, _ := strings.Cut(r, "/")
			if !slices.Contains(out, base) {
				out = append(out, base)
			}
		}
		return out, nil
	}
	f, err := root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out, err = f.Readdirnames(maxMetadataRequests)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	slices.Sort(out)
	return out, nil
}

// readMetadata reads one file. Drivers replace the file in place, so a decoding error
// may be gone a moment later: it wraps ErrUnavailable.
func readMetadata(root *os.Root, path string) (*metadataObject, error) {
	fi, err := root.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxMetadata {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", path, maxMetadata)
	}
	raw, err := root.ReadFile(path)
	if err != nil {
		return nil, err
	}
	o, err := decodeMetadata(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnavailable, path, err)
	}
	return o, nil
}

// decodeMetadata returns the first object of an understood version. A file holds the
// same object in several versions.
func decodeMetadata(raw []byte) (*metadataObject, error) {
	var others []string
	for d := json.NewDecoder(bytes.NewReader(raw)); ; {
		var one json.RawMessage
		if err := d.Decode(&one); err != nil {
			if errors.Is(err, io.EOF) {
				return nil, fmt.Errorf("no object has a known version; found %.256q", others)
			}
			return nil, err
		}
		var head struct {
			Kind       string `json:"kind"`
			APIVersion string `json:"apiVersion"`
		}
		if err := json.Unmarshal(one, &head); err != nil {
			return nil, err
		}
		if head.Kind != "DeviceMetadata" || !slices.Contains(metadataVersions, head.APIVersion) {
			others = append(others, head.APIVersion)
			continue
		}
		o := &metadataObject{}
		if err := json.Unmarshal(one, o); err != nil {
			return nil, err
		}
		return o, nil
	}
}

// collect adds to out what the object knows about a device, and reports whether the
// object contains the device.
func (o *metadataObject) collect(d *ClaimDevice, out *Attributes) bool {
	found := false
	for i := range o.Requests {
		for j := range o.Requests[i].Devices {
			dev := &o.Requests[i].Devices[j]
			if dev.Driver != d.Driver || dev.Pool != d.Pool || dev.Name != d.Name {
				continue
			}
			found = true
			out.Requests = append(out.Requests, o.Requests[i].Name)
			for name, raw := range dev.Attributes {
				var value struct {
					String string `json:"string"`
				}
				if json.Unmarshal(raw, &value) == nil { // other types are not used here
					out.set(name, value.String)
				}
			}
		}
	}
	return found
}
