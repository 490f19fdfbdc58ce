package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// UIDs of the captured pods.
const (
	vf2UID  = "77e9faa3-7bea-4ed6-ab72-19fcefc568b8"
	vfccUID = "fda9741f-df60-4a11-9d85-54a35bd7eb94"
)

func readTestdata(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestRealKubeletFilesVerify(t *testing.T) {
	names, err := filepath.Glob("testdata/*checkpoint*")
	if err != nil || len(names) != 5 {
		t.Fatalf("captured files: %v, %v", names, err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			raw := readTestdata(t, filepath.Base(name))
			c, err := Decode(raw)
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Entries) == 0 || len(c.Registered) == 0 {
				t.Errorf("%d entries, %d resources", len(c.Entries), len(c.Registered))
			}
			damaged := []byte(strings.Replace(string(raw), `"c1"`, `"c9"`, 1))
			if _, err := Decode(damaged); !errors.Is(err, ErrChecksum) {
				t.Errorf("a changed file gives %v, want ErrChecksum", err)
			}
		})
	}
}

func TestCapturedAllocation(t *testing.T) {
	c, err := Decode(readTestdata(t, "two-numa-kubelet_internal_checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, e := range c.Pod(vfccUID) {
		got[e.Container] = e.IDs()
		if e.Resource != "rig.example/igb_vfs" || e.Devices[0].Node != 0 {
			t.Errorf("entry %+v", e)
		}
	}
	if fmt.Sprint(got) != "map[c1:[0000:21:10.4] c2:[0000:21:10.0]]" {
		t.Errorf("devices of vfcc: %v", got)
	}
	holders := c.Holders("rig.example/igb_vfs", "0000:21:10.0")
	if len(holders) != 1 || holders[0].PodUID != vfccUID {
		t.Errorf("holders: %+v", holders)
	}
	if h := c.Holders("rig.example/igb_vfs_b", "0000:21:10.0"); len(h) != 0 {
		t.Errorf("holders under another resource: %+v", h)
	}
}

func TestResponseOrderIsThePluginsOwn(t *testing.T) {
	c, err := Decode(readTestdata(t, "one-pf-kubelet_internal_checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range c.Entries {
		if ids := e.IDs(); len(ids) != 2 {
			continue
		} else if got, want := e.ResponseOrder(), []string{"0000:01:10.6", "0000:01:10.4"}; !slices.Equal(got, want) || slices.Equal(got, ids) {
			t.Errorf("order %v, want %v, which differs from the file's %v", got, want, ids)
		}
	}
	if got := (Entry{AllocResp: []byte("garbage")}).ResponseOrder(); got != nil {
		t.Errorf("garbage gives %v", got)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := readTestdata(t, "one-pf-kubelet_internal_checkpoint")
	for name, tc := range map[string]struct {
		raw  []byte
		want error
	}{
		"empty":            {nil, ErrFormat},
		"null":             {[]byte("null"), ErrFormat},
		"no data":          {[]byte("{}"), ErrFormat},
		"data null":        {[]byte(`{"Data":null,"Checksum":1}`), ErrFormat},
		"truncated":        {good[:len(good)/2], ErrFormat},
		"checksum":         {[]byte(strings.Replace(string(good), `"Checksum":`, `"Checksum":1`, 1)), ErrChecksum},
		"checksum missing": {[]byte(`{"Data":{"PodDeviceEntries":null,"RegisteredDevices":null}}`), ErrChecksum},
		"wrong type":       {[]byte(`{"Data":{"PodDeviceEntries":{}},"Checksum":1}`), ErrFormat},
		"node not number":  {[]byte(`{"Data":{"PodDeviceEntries":[{"DeviceIDs":{"x":[]}}]},"Checksum":1}`), ErrFormat},
		"too large":        {make([]byte, MaxSize+1), ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := Decode(tc.raw); !errors.Is(err, tc.want) || c != nil {
				t.Errorf("Decode = %v, %v, want %v", c, err, tc.want)
			}
		})
	}
}

func TestUnknownFieldsAreNotCovered(t *testing.T) {
	good := string(readTestdata(t, "one-pf-kubelet_internal_checkpoint"))
	more := strings.Replace(good, `{"PodUID"`, `{"Newer":{"x":1},"PodUID"`, 1)
	if c, err := Decode([]byte(more)); err != nil || len(c.Entries) != 4 {
		t.Errorf("Decode = %v, %v", c, err)
	}
}

func TestListFormBefore120(t *testing.T) {
	d := data{
		PodDeviceEntries:  []entry{{PodUID: "u", ContainerName: "c", ResourceName: "r/x", DeviceIDs: deviceIDs{isList: true, list: []string{"b", "a"}}, AllocResp: []byte{1, 2}}},
		RegisteredDevices: map[string][]string{"r/x": {"a", "b"}},
	}
	raw := fmt.Appendf(nil, `{"Data":{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"c","ResourceName":"r/x","DeviceIDs":["b","a"],"AllocResp":"AQI="}],`+
		`"RegisteredDevices":{"r/x":["a","b"]}},"Checksum":%d}`, kubeletChecksumV1(&d))
	c, err := Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Entries[0].Devices; len(got) != 1 || got[0].Node != NoNUMA || !slices.Equal(got[0].IDs, []string{"b", "a"}) {
		t.Errorf("devices %+v", got)
	}
}

func TestLargeFile(t *testing.T) {
	entries, registered := manyEntries(135_000)
	raw, err := Encode(entries, registered)
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) < 50<<20 || len(raw) > MaxSize {
		t.Fatalf("%d bytes: not the size to test", len(raw))
	}
	c, err := Decode(raw)
	if err != nil || len(c.Entries) != len(entries) {
		t.Fatalf("Decode: %v", err)
	}
}

// manyEntries builds n allocations as an SR-IOV device plugin answers them.
func manyEntries(n int) ([]Entry, map[string][]string) {
	answer := readAnswer()
	var entries []Entry
	registered := map[string][]string{}
	for i := range n {
		id := fmt.Sprintf("%04x:%02x:%02x.%d", i>>16, i>>8&0xff, i>>3&0x1f, i&7)
		entries = append(entries, Entry{
			PodUID: fmt.Sprintf("%08d-0000-4000-8000-000000000000", i), Container: "main", Resource: "vendor.example/vfs",
			Devices: []NUMADevices{{Node: int64(i % 2), IDs: []string{id}}}, AllocResp: answer,
		})
		registered["vendor.example/vfs"] = append(registered["vendor.example/vfs"], id)
	}
	return entries, registered
}

func readAnswer() []byte {
	return []byte(strings.Repeat("PCIDEVICE_VENDOR_EXAMPLE_VFS=0000:21:10.4 ", 4))
}

func FuzzDecode(f *testing.F) {
	names, err := filepath.Glob("testdata/*checkpoint*")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"Data":{"PodDeviceEntries":[null],"RegisteredDevices":{"a":null}},"Checksum":0}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var in file
		if json.Unmarshal(raw, &in) == nil && in.Data != nil {
			isList := slices.ContainsFunc(in.Data.PodDeviceEntries, func(e entry) bool { return e.DeviceIDs.isList })
			if got, want := checksum(in.Data), kubeletChecksum(in.Data); got != want && !isList {
				t.Fatalf("checksum %d, the kubelet's printer gives %d", got, want)
			}
		}
		c, err := Decode(raw)
		if err != nil {
			return
		}
		for _, e := range c.Entries {
			e.ResponseOrder()
		}
		again, err := Encode(c.Entries, c.Registered)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(again); err != nil {
			t.Fatalf("what Encode wrote: %v", err)
		}
	})
}

func TestFileReadsAgainOnlyOnChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoint")
	f := NewFile(path)
	if _, err := f.Load(); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("absent file: %v", err)
	}
	replace := func(n int) {
		t.Helper()
		raw, err := Encode(manyEntries(n))
		if err == nil {
			err = errors.Join(os.WriteFile(path+".new", raw, 0o600), os.Rename(path+".new", path))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	replace(1)
	first, err := f.Load()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := f.Load(); err != nil || again != first {
		t.Errorf("an unchanged file was decoded again: %v", err)
	}
	replace(2)
	if c, err := f.Load(); err != nil || len(c.Entries) != 2 {
		t.Errorf("after a change: %+v, %v", c, err)
	}
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := f.Load(); !errors.Is(err, ErrFormat) || c != nil {
		t.Errorf("damaged file: %v, %v", c, err)
	}
}

func TestWatchTellsOfReplacement(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoint")
	f := NewFile(path)
	changed, err := f.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "other"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(path+".new", nil, 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Fatal("no signal after the file was replaced")
	}
	if _, err := NewFile("/nonexistent/dir/file").Watch(t.Context()); err == nil {
		t.Error("a directory that does not exist was watched")
	}
}

func BenchmarkDecode5000(b *testing.B) {
	raw, err := Encode(manyEntries(5000))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := Decode(raw); err != nil {
			b.Fatal(err)
		}
	}
}
