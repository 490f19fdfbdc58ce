package checkpoint

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// claimsJSON wraps Data in a file as the kubelet writes it.
func claimsJSON(data string) string {
	return fmt.Sprintf(`{"Data":%q,"Checksum":%d}`, data, crc32.ChecksumIEEE([]byte(data)))
}

func TestDecodeClaims(t *testing.T) {
	const head = `{"kind":"DRACheckpoint","apiVersion":"checkpoint.dra.kubelet.k8s.io/v1","ClaimInfoStateList":`
	for name, tc := range map[string]struct {
		file string
		want []Claim
		err  error
	}{
		"none":  {file: claimsJSON(head + `null}`)},
		"empty": {file: claimsJSON(head + `[]}`)},
		"shared claim, two drivers, a share": {
			file: claimsJSON(head + `[{"ClaimUID":"c-1","ClaimName":"nics","Namespace":"shop","PodUIDs":{"b":{},"a":{}},"DriverState":{
				"z.example":{"Devices":[{"PoolName":"node1","DeviceName":"nic","ShareID":"s-1","RequestNames":null,"CDIDeviceIDs":null}]},
				"a.example":{"Devices":[{"PoolName":"node1","DeviceName":"vf-1","ShareID":null,"RequestNames":["vf/fast"],"CDIDeviceIDs":["a.example/vf=1"]}]}}}]}`),
			want: []Claim{{Namespace: "shop", Name: "nics", UID: "c-1", PodUIDs: []string{"a", "b"}, Devices: []ClaimDevice{
				{Driver: "a.example", Pool: "node1", Name: "vf-1", Requests: []string{"vf/fast"}},
				{Driver: "z.example", Pool: "node1", Name: "nic", ShareID: "s-1"},
			}}},
		},
		"another version":      {file: claimsJSON(strings.Replace(head, "v1", "v0", 1) + `null}`)},
		"checksum":             {file: strings.Replace(claimsJSON(head+`null}`), "kubelet", "cubelet", 1), err: ErrChecksum},
		"no JSON":              {file: `{`, err: ErrFormat},
		"no JSON inside":       {file: claimsJSON(`{`), err: ErrFormat},
		"of the other manager": {file: `{"Data":{"PodDeviceEntries":[]},"Checksum":1}`, err: ErrFormat},
		"another kind":         {file: claimsJSON(`{"kind":"Pod"}`), err: ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := DecodeClaims([]byte(tc.file))
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(tc.want, got.All); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestClaimFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dra_manager_state")
	f := NewClaimFile(path)
	if _, err := f.Load(); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("an absent file: %v", err)
	}
	want := []Claim{{Namespace: "shop", Name: "nics", UID: "c-1", PodUIDs: []string{"a"}, Devices: []ClaimDevice{
		{Driver: "a.example", Pool: "node1", Name: "vf-1", ShareID: "s-1", Requests: []string{"vf"}},
	}}}
	raw, err := EncodeClaims(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := f.Load()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.Pod("a")); diff != "" {
		t.Error(diff)
	}
	for _, uid := range []string{"b", ""} {
		if claims := got.Pod(uid); len(claims) != 0 {
			t.Errorf("pod %q has claims %v", uid, claims)
		}
	}
}

func FuzzDecodeClaims(f *testing.F) {
	raw, err := EncodeClaims([]Claim{{Namespace: "n", Name: "c", PodUIDs: []string{"u"}, Devices: []ClaimDevice{{Driver: "d", Pool: "p", Name: "x"}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(raw))
	f.Add(claimsJSON(`{"kind":"DRACheckpoint","ClaimInfoStateList":[{"PodUIDs":null,"DriverState":{"d":{}}}]}`))
	f.Fuzz(func(t *testing.T, file string) {
		got, err := DecodeClaims([]byte(file))
		if err != nil {
			return
		}
		again, err := EncodeClaims(got.All)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeClaims(again)
		if err != nil {
			t.Fatal(err)
		}
		if len(back.All) != len(got.All) {
			t.Errorf("%d claims became %d", len(got.All), len(back.All))
		}
	})
}
