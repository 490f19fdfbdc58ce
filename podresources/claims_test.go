package podresources

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/manifold-cni/manifold/checkpoint"
)

// claimed returns a pod with three claims: one from a template, of which c1 uses the
// request vf; one by name, which both containers share; and an extended resource in c2.
func claimed() Pod {
	return Pod{Namespace: "shop", Name: "web-0", UID: ours,
		Claims: []PodClaim{{Name: "nics", Claim: "web-0-nics-abcde", Template: true}, {Name: "common", Claim: "shared-claim"}},
		Containers: []Container{
			{Name: "c1", Claims: []ContainerClaim{{Name: "nics", Request: "vf"}, {Name: "common"}}},
			{Name: "c2", Claims: []ContainerClaim{{Name: "common"}}, Resources: []string{"cpu", vfs}},
		}}
}

// inClaim returns a claim with one device as the checkpoint has it, used by the pods
// with these UIDs.
func inClaim(claim, device, request string, uids ...string) checkpoint.Claim {
	d := checkpoint.ClaimDevice{Driver: "vf.example", Pool: "node1", Name: device}
	if request != "" {
		d.Requests = []string{request}
	}
	return checkpoint.Claim{Namespace: "shop", Name: claim, UID: "uid-of-" + claim, PodUIDs: uids, Devices: []checkpoint.ClaimDevice{d}}
}

// inUse returns a claim's device as the API lists it for a container.
func inUse(container, claim, device string) ContainerDevice {
	return ContainerDevice{Container: container, Claim: &ClaimDevice{Namespace: "shop", Claim: claim, Driver: "vf.example", Pool: "node1", Name: device}}
}

// claimFile is a checkpoint of claims, or the error from reading it.
type claimFile struct {
	all []checkpoint.Claim
	err error
}

// Load implements ClaimMemory.
func (f claimFile) Load() (*checkpoint.Claims, error) { return &checkpoint.Claims{All: f.all}, f.err }

// showClaims prints the claims' devices and the notes, one per line.
func showClaims(a *Allocation) string {
	var b strings.Builder
	for _, d := range a.Devices {
		fmt.Fprintf(&b, "%s of %s/%s %v in %s by %s", d.Claim.Name, d.Claim.PodClaim, d.Claim.Claim, d.Claim.Requests, strings.Join(d.Containers, "+"), d.Source)
		if d.Claim.Extended != "" {
			b.WriteString(" behind " + d.Claim.Extended)
		}
		b.WriteString("\n")
	}
	for _, n := range a.Notes {
		b.WriteString("note: " + n + "\n")
	}
	if a.ClaimsErr != nil {
		fmt.Fprintf(&b, "without claims: %v\n", a.ClaimsErr)
	}
	return b.String()
}

func TestJoinClaims(t *testing.T) {
	nics, common := inClaim("web-0-nics-abcde", "vf-1", "vf", ours), inClaim("shared-claim", "pf-0", "pf", old, ours)
	two := inClaim("web-0-nics-abcde", "vf-1", "vf", ours)
	two.Devices = append(two.Devices, checkpoint.ClaimDevice{Driver: "vf.example", Pool: "node1", Name: "vf-2", Requests: []string{"other"}})
	extended := inClaim("web-0-extended-resources-abcde", "vf-9", "container-1-request-1", ours)
	damaged := claimFile{err: checkpoint.ErrChecksum}
	for name, tc := range map[string]claimCase{
		"both agree, a shared claim once": {
			live: []ContainerDevice{inUse("c2", "shared-claim", "pf-0"), inUse("c1", "shared-claim", "pf-0"), inUse("c1", "web-0-nics-abcde", "vf-1")},
			file: claimFile{all: []checkpoint.Claim{nics, common}},
			want: "pf-0 of common/shared-claim [pf] in c1+c2 by podresources+checkpoint\nvf-1 of nics/web-0-nics-abcde [vf] in c1 by podresources+checkpoint\n",
		},
		"the checkpoint alone": {file: claimFile{all: []checkpoint.Claim{nics}}, want: "vf-1 of nics/web-0-nics-abcde [vf] in c1 by checkpoint\n"},
		"the API does not answer": {liveErr: errDown, file: claimFile{all: []checkpoint.Claim{nics}},
			want: "vf-1 of nics/web-0-nics-abcde [vf] in c1 by checkpoint\nnote: claims are from the kubelet's checkpoint alone, because its API does not answer: " + errDown.Error() + "\n"},
		"a request that no container uses": {file: claimFile{all: []checkpoint.Claim{two}},
			want: "vf-1 of nics/web-0-nics-abcde [vf] in c1 by checkpoint\nvf-2 of nics/web-0-nics-abcde [other] in  by checkpoint\n"},
		"the checkpoint alone, nothing else configured": {file: claimFile{all: []checkpoint.Claim{nics}}, noAPI: true, want: "vf-1 of nics/web-0-nics-abcde [vf] in c1 by checkpoint\n"},
		"another pod's claims":                          {file: claimFile{all: []checkpoint.Claim{inClaim("web-0-nics-zzzzz", "vf-1", "vf", old)}}},
		"an older pod of the name": {live: []ContainerDevice{inUse("c1", "web-0-nics-zzzzz", "vf-1")}, file: claimFile{all: []checkpoint.Claim{inClaim("web-0-nics-zzzzz", "vf-1", "vf", old)}},
			want: "without claims: " + ErrOtherPod.Error() + ": it lists device vf-1 of pool node1 of driver vf.example, claim shop/web-0-nics-zzzzz, and its checkpoint has no claim of pod UID uid-new\n"},
		"the API alone, by the claims' names": {live: []ContainerDevice{inUse("c1", "web-0-nics-abcde", "vf-1")}, file: damaged,
			want: "vf-1 of nics/web-0-nics-abcde [] in c1 by podresources\nnote: claims are from the kubelet's API alone, because the checkpoint of claims is unusable: " + checkpoint.ErrChecksum.Error() + "\n"},
		"the API alone, a template's name not known": {live: []ContainerDevice{inUse("c1", "web-0-nics-vwxyz", "vf-1")}, file: claimFile{err: errNoSource},
			pod: func(p *Pod) { p.Claims[0].Claim = "" }, want: "vf-1 of nics/web-0-nics-vwxyz [] in c1 by podresources\n"},
		"the API alone, claims of an older pod": {live: []ContainerDevice{inUse("c1", "web-0-nics-zzzzz", "vf-1")}, file: damaged,
			want: "without claims: " + ErrOtherPod.Error() + ": it lists device vf-1 of pool node1 of driver vf.example, claim shop/web-0-nics-zzzzz, which the pod's spec and status do not name\n"},
		"no source": {liveErr: errDown, file: damaged,
			want: "note: devices are from the checkpoint alone, because the kubelet's API does not answer: " + errDown.Error() + "\n" +
				"without claims: " + ErrUnavailable.Error() + ": API: connection refused; checkpoint of claims: " + checkpoint.ErrChecksum.Error() + "\n"},
		"an extended resource, by its request's name": {file: claimFile{all: []checkpoint.Claim{extended}},
			want: "vf-9 of /web-0-extended-resources-abcde [container-1-request-1] in c2 by checkpoint behind " + vfs + "\n"},
		"an extended resource, by the pod's status": {
			file: claimFile{all: []checkpoint.Claim{inClaim("any-name", "vf-9", "r", ours)}},
			pod: func(p *Pod) {
				p.Extended = &ExtendedClaim{Claim: "any-name", Requests: []ExtendedRequest{{Container: "c2", Resource: vfs, Request: "r"}}}
			},
			want: "vf-9 of /any-name [r] in c2 by checkpoint behind " + vfs + "\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { tc.run(t) })
		})
	}
}

// claimCase is a row of the table of claims in the package comment.
type claimCase struct {
	live    []ContainerDevice
	liveErr error
	file    claimFile
	pod     func(*Pod)
	noAPI   bool // neither the API nor the device manager's checkpoint
	want    string
}

func (tc *claimCase) run(t *testing.T) {
	pod := claimed()
	if tc.pod != nil {
		tc.pod(&pod)
	}
	s := &script{t: t, moments: []moment{{live: tc.live, liveErr: tc.liveErr}}}
	r := NewReader(s, s, Options{Retry: retry, Claims: tc.file})
	if tc.liveErr != nil && tc.file.err != nil {
		r.memory = mustHave{s} // otherwise there is no answer at all
	}
	if tc.noAPI {
		r.live, r.memory = nil, nil
	}
	a, err := r.Devices(t.Context(), pod, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.Devices = withClaims(a.Devices); showClaims(a) != tc.want {
		t.Errorf("got\n%swant\n%s", showClaims(a), tc.want)
	}
	synctest.Wait()
}

// mustHave is a checkpoint with one device of the pod.
type mustHave struct{ *script }

// Load implements Memory.
func (m mustHave) Load() (*checkpoint.Checkpoint, error) {
	return decoded(m.t, []checkpoint.Entry{entry(ours, "c1", "a")}), nil
}

func withClaims(in []Device) []Device {
	var out []Device
	for _, d := range in {
		if d.Claim != nil {
			out = append(out, d)
		}
	}
	return out
}

// source is an AttributeSource that knows some devices by name, and returns err for all
// others.
type source struct {
	name  string
	known map[string]Attributes
	err   error
	asked *int
}

// Attributes implements AttributeSource.
func (s source) Attributes(_ context.Context, devices []*ClaimDevice) []Attributes {
	out := make([]Attributes, len(devices))
	for i, d := range devices {
		a, ok := s.known[d.Name]
		if !ok {
			a.Err = s.err
		}
		a.Source = s.name
		out[i] = a
		*s.asked++
	}
	return out
}

func TestAttributesOfClaims(t *testing.T) {
	const address, other = "0000:21:10.0", "0000:21:10.2"
	errFiles, errSlices := errors.New("no file"), fmt.Errorf("slices: %w", ErrUnavailable)
	for name, tc := range map[string]struct {
		files, slices map[string]Attributes
		extended      bool
		want          string // resource and ID
		slicesAsked   int
		source        string
		gap           string
		passes        bool // the gap is temporary
	}{
		"the file suffices":               {files: map[string]Attributes{"vf-1": {DeviceID: address, ResourceName: vfs}}, source: "files", want: vfs + " " + address},
		"each from another":               {files: map[string]Attributes{"vf-1": {PCIBusID: address}}, slices: map[string]Attributes{"vf-1": {ResourceName: vfs, PCIBusID: other}}, slicesAsked: 1, source: "files and slices", want: vfs + " " + address},
		"slices alone":                    {slices: map[string]Attributes{"vf-1": {ResourceName: vfs, DeviceID: "mlx5_core.sf.2", PCIBusID: other}}, slicesAsked: 1, want: vfs + " mlx5_core.sf.2"},
		"a parent's address does not do":  {files: map[string]Attributes{"vf-1": {PCIBusID: other, ResourceName: vfs}}, slices: map[string]Attributes{"vf-1": {DeviceID: "mlx5_core.sf.2"}}, slicesAsked: 1, want: vfs + " mlx5_core.sf.2"},
		"an extended resource":            {files: map[string]Attributes{"vf-1": {DeviceID: address, ResourceName: "else.example/vfs"}}, extended: true, want: vfs + " " + address},
		"an extended resource, no name":   {files: map[string]Attributes{"vf-1": {DeviceID: address}}, extended: true, want: vfs + " " + address},
		"no resource anywhere":            {files: map[string]Attributes{"vf-1": {DeviceID: address}}, slices: map[string]Attributes{"vf-1": {}}, slicesAsked: 1, want: " " + address, gap: "no source knows its " + AttributeResourceName},
		"no source knows":                 {slicesAsked: 1, want: " ", gap: "no source knows its " + AttributeDeviceID + " or " + AttributePCIBusID + ", nor its " + AttributeResourceName + ": no file\nslices: ", passes: true},
		"no ID, and the slices know that": {slices: map[string]Attributes{"vf-1": {ResourceName: vfs}}, slicesAsked: 1, want: vfs + " ", gap: "no source knows its " + AttributeDeviceID + " or " + AttributePCIBusID + ": no file"},
	} {
		t.Run(name, func(t *testing.T) {
			claim, pod := "web-0-nics-abcde", claimed()
			if tc.extended {
				claim = "web-0-extended-resources-abcde"
			}
			var files, slices int
			r := NewReader(nil, nil, Options{Claims: claimFile{all: []checkpoint.Claim{inClaim(claim, "vf-1", "container-1-request-1", ours)}},
				Attributes: []AttributeSource{source{"files", tc.files, errFiles, &files}, source{"slices", tc.slices, errSlices, &slices}}})
			r.memory = &script{t: t, moments: []moment{{}}}
			a, err := r.Devices(t.Context(), pod, nil)
			if err != nil || len(a.Devices) != 1 {
				t.Fatal(a, err)
			}
			d := a.Devices[0]
			if got := d.Resource + " " + d.ID; got != tc.want || files != 1 || slices != tc.slicesAsked {
				t.Errorf("got %q after %d and %d questions, want %q after 1 and %d", got, files, slices, tc.want, tc.slicesAsked)
			}
			if got := d.Claim.Attributes.Source; tc.source != "" && got != tc.source {
				t.Errorf("told by %s, want %s", got, tc.source)
			}
			if (d.Claim.Gap == nil) != (tc.gap == "") || tc.gap != "" && !strings.HasPrefix(d.Claim.Gap.Error(), tc.gap) || errors.Is(d.Claim.Gap, ErrUnavailable) != tc.passes {
				t.Errorf("gap %v, want %q", d.Claim.Gap, tc.gap)
			}
		})
	}
}

// The API does not name requests. If device metadata does, the extended resource and
// the container are derived from it.
func TestRequestsThatMetadataTells(t *testing.T) {
	pod, asked := claimed(), 0
	live := []ContainerDevice{inUse("c1", "web-0-extended-resources-abcde", "vf-9"), inUse("c2", "web-0-extended-resources-abcde", "vf-9")}
	s := &script{t: t, moments: []moment{{live: live}}}
	files := source{"files", map[string]Attributes{"vf-9": {DeviceID: "0000:21:10.0", Requests: []string{"container-1-request-1"}}}, nil, &asked}
	a, err := NewReader(s, s, Options{Attributes: []AttributeSource{files}}).Devices(t.Context(), pod, nil)
	if err != nil || len(a.Devices) != 1 {
		t.Fatal(a, err)
	}
	if got, want := showClaims(a), "vf-9 of /web-0-extended-resources-abcde [container-1-request-1] in c2 by podresources behind "+vfs+"\n"; got != want || a.Devices[0].Resource != vfs {
		t.Errorf("got %s %s, want %s", got, a.Devices[0].Resource, want)
	}
}

// metadataFile writes a metadata file as a driver does.
func metadataFile(t testing.TB, dir, driver, claim, request, content string) {
	t.Helper()
	path := dir + "/" + driver + "/dra-device-metadata/" + claim + "/" + request
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+"/metadata.json", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

const metadataHead = `{"kind":"DeviceMetadata","apiVersion":"metadata.resource.k8s.io/v1beta1","metadata":{"name":"nics","namespace":"shop","uid":"uid-1","generation":1},"podClaimName":"nics",`

// metadataOfVF returns a metadata object with one device.
func metadataOfVF(request, device, address string) string {
	return metadataHead + fmt.Sprintf(`"requests":[{"name":%q,"devices":[{"driver":"vf.example","pool":"node1","name":%q,"attributes":{
		"resource.kubernetes.io/pciBusID":{"string":%q},"k8s.cni.cncf.io/resourceName":{"string":"vendor.example/vfs"},"numaNode":{"int":1},"list":{"strings":["a"]},"odd":7}}]}]}`, request, device, address)
}

func TestMetadata(t *testing.T) {
	const future = `{"kind":"DeviceMetadata","apiVersion":"metadata.resource.k8s.io/v9","requests":"differently"}` + "\n"
	dir := t.TempDir()
	metadataFile(t, dir, "vf.example", "shop_nics", "vf", future+metadataOfVF("vf/fast", "vf-1", "0000:21:10.0"))
	metadataFile(t, dir, "vf.example", "shop_nics", "pf", strings.ReplaceAll(metadataOfVF("pf", "pf-0", "0000:21:00.0"), "v1beta1", "v1alpha1"))
	metadataFile(t, dir, "vf.example", "shop_broken", "vf", metadataHead+`"requests":[`)
	metadataFile(t, dir, "vf.example", "shop_future", "vf", future)
	metadataFile(t, dir, "vf.example", "shop_large", "vf", strings.Repeat(" ", maxMetadata+1))
	if err := os.MkdirAll(dir+"/vf.example/dra-device-metadata/shop_dir/vf/metadata.json", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", dir+"/away"); err != nil {
		t.Fatal(err)
	}
	device := func(claim, name string, requests ...string) *ClaimDevice {
		return &ClaimDevice{Namespace: "shop", Claim: claim, ClaimUID: "uid-1", Driver: "vf.example", Pool: "node1", Name: name, Requests: requests}
	}
	with := func(d *ClaimDevice, change func(*ClaimDevice)) *ClaimDevice { change(d); return d }
	for name, tc := range map[string]struct {
		device *ClaimDevice
		want   string
		err    string
		passes bool
	}{
		"of its request":          {device: device("nics", "vf-1", "vf/fast"), want: "0000:21:10.0 [vf/fast]"},
		"of an older version":     {device: device("nics", "pf-0", "pf"), want: "0000:21:00.0 [pf]"},
		"of a request not known":  {device: device("nics", "vf-1"), want: "0000:21:10.0 [vf/fast]"},
		"of another request":      {device: device("nics", "vf-1", "pf"), err: "driver vf.example has written none"},
		"of another pool":         {device: with(device("nics", "vf-1", "vf"), func(d *ClaimDevice) { d.Pool = "node2" }), err: "has written none"},
		"of another driver":       {device: with(device("nics", "vf-1"), func(d *ClaimDevice) { d.Driver = "gpu.example" }), err: "driver gpu.example has written none"},
		"of an older claim":       {device: with(device("nics", "vf-1", "vf"), func(d *ClaimDevice) { d.ClaimUID = "uid-2" }), err: "older claim of the same name, with UID \"uid-1\"", passes: true},
		"claim's UID not known":   {device: with(device("nics", "vf-1", "vf"), func(d *ClaimDevice) { d.ClaimUID = "" }), want: "0000:21:10.0 [vf/fast]"},
		"half written":            {device: device("broken", "vf-1", "vf"), err: "unexpected EOF", passes: true},
		"of a future version":     {device: device("future", "vf-1", "vf"), err: `found ["metadata.resource.k8s.io/v9"]`, passes: true},
		"too large":               {device: device("large", "vf-1", "vf"), err: "is not a file of at most"},
		"no file":                 {device: device("dir", "vf-1", "vf"), err: "is not a file of at most"},
		"a name that leads away":  {device: with(device("nics", "vf-1", "vf"), func(d *ClaimDevice) { d.Driver = "../../etc" }), err: "escapes"},
		"a link that leads away":  {device: with(device("nics", "vf-1", "vf"), func(d *ClaimDevice) { d.Driver = "away" }), err: "escapes"},
		"a request that climbs":   {device: device("nics", "vf-1", ".."), err: "has written none"},
		"no claim of the name":    {device: device("none", "vf-1"), err: "has written none"},
		"no request of the claim": {device: device("nics", "vf-1", "none"), err: "has written none"},
	} {
		t.Run(name, func(t *testing.T) {
			got := Metadata(dir).Attributes(t.Context(), []*ClaimDevice{tc.device})[0]
			if tc.err != "" {
				if got.Err == nil || !strings.Contains(got.Err.Error(), tc.err) || errors.Is(got.Err, ErrUnavailable) != tc.passes {
					t.Errorf("error %v, want %q", got.Err, tc.err)
				}
				return
			}
			if text := fmt.Sprintf("%s %v", got.PCIBusID, got.Requests); got.Err != nil || text != tc.want || got.ResourceName != vfs {
				t.Errorf("got %+v, want %s", got, tc.want)
			}
		})
	}
	if got := Metadata(dir+"/none").Attributes(t.Context(), []*ClaimDevice{device("nics", "vf-1")}); !errors.Is(got[0].Err, os.ErrNotExist) {
		t.Errorf("a directory that does not exist: %v", got[0].Err)
	}
}

// FuzzMetadata checks that a file yields either an error or attributes, and only those
// of the requested device.
func FuzzMetadata(f *testing.F) {
	f.Add([]byte(metadataOfVF("vf", "vf-1", "0000:21:10.0")))
	f.Add([]byte(metadataHead + `"requests":[{"devices":[{"attributes":null}]}]}`))
	f.Add([]byte(`{"kind":"DeviceMetadata"}[]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		o, err := decodeMetadata(raw)
		if (o == nil) == (err == nil) {
			t.Fatalf("object %v and error %v", o, err)
		}
		if err != nil {
			return
		}
		var a Attributes
		found := o.collect(&ClaimDevice{Driver: "vf.example", Pool: "node1", Name: "vf-1"}, &a)
		if !found && (a.PCIBusID+a.DeviceID+a.ResourceName != "" || a.Requests != nil) {
			t.Errorf("attributes %+v of a device that is not there", a)
		}
	})
}
