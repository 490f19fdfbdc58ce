package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// vfccUID is the UID of a captured pod with two containers.
const vfccUID = "fda9741f-df60-4a11-9d85-54a35bd7eb94"

func readTestdata(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func mustDecode(t testing.TB, raw []byte) *Checkpoint {
	t.Helper()
	c, err := Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sealed builds a file from its Data and the checksum that a kubelet computes.
func sealed(t testing.TB, data string) []byte {
	t.Helper()
	_, _, sum, ok := kubeletReads(json.RawMessage(data))
	if !ok {
		t.Fatalf("no kubelet reads %s", data)
	}
	return fmt.Appendf(nil, `{"Data":%s,"Checksum":%d}`, data, sum)
}

func TestRealKubeletFilesVerify(t *testing.T) {
	names, err := filepath.Glob("testdata/*checkpoint*")
	if err != nil || len(names) != 5 {
		t.Fatalf("captured files: %v, %v", names, err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			raw := readTestdata(t, filepath.Base(name))
			c := mustDecode(t, raw)
			if len(c.Entries) == 0 || len(c.Registered) == 0 {
				t.Errorf("%d entries, %d resources", len(c.Entries), len(c.Registered))
			}
			if _, ok := parseCanonical(raw); !ok {
				t.Error("a real kubelet's file takes the slow way")
			}
			damaged := []byte(strings.Replace(string(raw), `"c1"`, `"c9"`, 1))
			if _, err := Decode(damaged); !errors.Is(err, ErrChecksum) {
				t.Errorf("a changed file gives %v, want ErrChecksum", err)
			}
		})
	}
}

func TestCapturedAllocation(t *testing.T) {
	c := mustDecode(t, readTestdata(t, "two-numa-kubelet_internal_checkpoint"))
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
	if e := c.Pod("unknown"); len(e) != 0 {
		t.Errorf("entries of an unknown pod: %+v", e)
	}
}

func TestHoldersAreEntriesOnce(t *testing.T) {
	raw, err := Encode([]Entry{
		{PodUID: "gone", Container: "c", Resource: "r", Devices: []NUMADevices{{0, []string{"a", "a"}}, {1, []string{"a"}}}},
		{PodUID: "here", Container: "c", Resource: "r", Devices: []NUMADevices{{0, []string{"a"}}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var uids []string
	for _, e := range mustDecode(t, raw).Holders("r", "a") {
		uids = append(uids, e.PodUID)
	}
	if !slices.Equal(uids, []string{"gone", "here"}) {
		t.Errorf("holders %v", uids)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := readTestdata(t, "one-pf-kubelet_internal_checkpoint")
	const entry = `{"PodUID":"u","ContainerName":"c","ResourceName":"r","DeviceIDs":%s,"AllocResp":null}`
	inData := func(entries string) []byte {
		return []byte(`{"Data":{"PodDeviceEntries":[` + entries + `],"RegisteredDevices":null},"Checksum":1}`)
	}
	for name, tc := range map[string]struct {
		raw  []byte
		want error
	}{
		"empty":             {nil, ErrFormat},
		"null":              {[]byte("null"), ErrFormat},
		"list":              {[]byte("[]"), ErrFormat},
		"no data":           {[]byte("{}"), ErrFormat},
		"data null":         {[]byte(`{"Data":null,"Checksum":1}`), ErrFormat},
		"truncated":         {good[:len(good)/2], ErrFormat},
		"last byte missing": {good[:len(good)-1], ErrFormat},
		"something behind":  {append(slices.Clone(good), '}'), ErrFormat},
		"checksum":          {[]byte(strings.Replace(string(good), `"Checksum":`, `"Checksum":1`, 1)), ErrChecksum},
		"checksum missing":  {[]byte(`{"Data":{"PodDeviceEntries":null,"RegisteredDevices":null}}`), ErrChecksum},
		"checksum negative": {[]byte(`{"Data":{"PodDeviceEntries":null,"RegisteredDevices":null},"Checksum":-1}`), ErrFormat},
		"checksum too long": {[]byte(`{"Data":{"PodDeviceEntries":null,"RegisteredDevices":null},"Checksum":18446744073709551616}`), ErrFormat},
		"checksum of more than 32 bits, low ones right": {addTo32Bits(t, good), ErrChecksum},
		"entries not a list":                            {[]byte(`{"Data":{"PodDeviceEntries":{}},"Checksum":1}`), ErrFormat},
		"node not a number":                             {inData(fmt.Sprintf(entry, `{"x":[]}`)), ErrFormat},
		"node too large":                                {inData(fmt.Sprintf(entry, `{"9223372036854775808":[]}`)), ErrFormat},
		"IDs not strings":                               {inData(fmt.Sprintf(entry, `{"0":[1]}`)), ErrFormat},
		"IDs a string":                                  {inData(fmt.Sprintf(entry, `"a"`)), ErrFormat},
		"both forms":                                    {inData(fmt.Sprintf(entry, `{}`) + "," + fmt.Sprintf(entry, `[]`)), ErrFormat},
		"IDs twice":                                     {inData(`{"DeviceIDs":{"0":["a"]},"DeviceIDs":["a"]}`), ErrFormat},
		"checksum begins with zero":                     {[]byte(`{"Data":{"PodDeviceEntries":null,"RegisteredDevices":null},"Checksum":01}`), ErrFormat},
		"newline in a name":                             {inData(strings.Replace(fmt.Sprintf(entry, `{}`), `"c"`, "\"\n\"", 1)), ErrFormat},
		"answer not base64":                             {inData(`{"PodUID":"u","ContainerName":"c","ResourceName":"r","DeviceIDs":{},"AllocResp":"*"}`), ErrFormat},
		"too large":                                     {make([]byte, MaxSize+1), ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := Decode(tc.raw); !errors.Is(err, tc.want) || c != nil {
				t.Errorf("Decode = %v, %v, want %v", c, err, tc.want)
			}
		})
	}
}

// addTo32Bits adds 2^32 to a file's checksum.
func addTo32Bits(t *testing.T, raw []byte) []byte {
	t.Helper()
	var f struct {
		Data     json.RawMessage
		Checksum uint64
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, `{"Data":%s,"Checksum":%d}`, f.Data, f.Checksum+1<<32)
}

func TestDecodeAccepts(t *testing.T) {
	for name, tc := range map[string]struct{ data, want string }{
		"nothing":        {`{"PodDeviceEntries":null,"RegisteredDevices":null}`, `null`},
		"empty":          {`{"PodDeviceEntries":[],"RegisteredDevices":{}}`, `[]`},
		"members absent": {`{}`, `null`},
		"entry null":     {`{"PodDeviceEntries":[null]}`, `[{"PodUID":"","Container":"","Resource":"","Devices":null,"AllocResp":null}]`},
		"IDs null, answer empty": {`{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"c","ResourceName":"r","DeviceIDs":null,"AllocResp":""}],"RegisteredDevices":{"r":null,"s":[]}}`,
			`[{"PodUID":"u","Container":"c","Resource":"r","Devices":null,"AllocResp":""}]`},
		"nodes in any order": {`{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"c","ResourceName":"r","DeviceIDs":{"10":["d"],"2":["c","b"],"-1":[]},"AllocResp":null}],"RegisteredDevices":null}`,
			`[{"PodUID":"u","Container":"c","Resource":"r","Devices":[{"Node":-1,"IDs":[]},{"Node":2,"IDs":["c","b"]},{"Node":10,"IDs":["d"]}],"AllocResp":null}]`},
		"a node twice": {`{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"c","ResourceName":"r","DeviceIDs":{"0":["a"],"0":["b"]},"AllocResp":null}],"RegisteredDevices":null}`,
			`[{"PodUID":"u","Container":"c","Resource":"r","Devices":[{"Node":0,"IDs":["b"]}],"AllocResp":null}]`},
		"a resource twice": {`{"PodDeviceEntries":null,"RegisteredDevices":{"r":["a"],"r":["b"]}}`, `null`},
		"escapes": {`{"PodDeviceEntries":[{"PodUID":"\u0075","ContainerName":"c","ResourceName":"<>","DeviceIDs":{"0":["\"\\"]},"AllocResp":"AQI="}],"RegisteredDevices":null}`,
			`[{"PodUID":"u","Container":"c","Resource":"\u003c\u003e","Devices":[{"Node":0,"IDs":["\"\\"]}],"AllocResp":"AQI="}]`},
		"one escape": {`{"PodDeviceEntries":[{"PodUID":"\u0075","ContainerName":"c","ResourceName":"r","DeviceIDs":{},"AllocResp":null}],"RegisteredDevices":null}`,
			`[{"PodUID":"u","Container":"c","Resource":"r","Devices":[],"AllocResp":null}]`},
		"letters beyond ASCII, and what is none": {"{\"PodDeviceEntries\":[{\"PodUID\":\"ç\",\"ContainerName\":\"\xff\",\"ResourceName\":\"r\",\"DeviceIDs\":{},\"AllocResp\":null}],\"RegisteredDevices\":null}",
			`[{"PodUID":"ç","Container":"�","Resource":"r","Devices":[],"AllocResp":null}]`},
		"before 1.20": {`{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"c","ResourceName":"r","DeviceIDs":["b","a"],"AllocResp":"AQI="}],"RegisteredDevices":{"r":["a","b"]}}`,
			`[{"PodUID":"u","Container":"c","Resource":"r","Devices":[{"Node":-1,"IDs":["b","a"]}],"AllocResp":"AQI="}]`},
		"before 1.20, some null": {`{"PodDeviceEntries":[{"DeviceIDs":["a"]},{"DeviceIDs":null}]}`,
			`[{"PodUID":"","Container":"","Resource":"","Devices":[{"Node":-1,"IDs":["a"]}],"AllocResp":null},{"PodUID":"","Container":"","Resource":"","Devices":null,"AllocResp":null}]`},
		"unknown keys": {`{"Newer":[{}],"PodDeviceEntries":[{"Newer":{"x":1},"PodUID":"u"}]}`, `[{"PodUID":"u","Container":"","Resource":"","Devices":null,"AllocResp":null}]`},
	} {
		t.Run(name, func(t *testing.T) {
			c := mustDecode(t, sealed(t, tc.data))
			got, err := json.Marshal(c.Entries)
			if err != nil || string(got) != tc.want {
				t.Errorf("entries %s, %v, want %s", got, err, tc.want)
			}
			entries, registered, _, _ := kubeletReads(json.RawMessage(tc.data))
			sameContent(t, c, entries, registered)
		})
	}
}

func TestNullsOfOldKubeletsVerify(t *testing.T) {
	m := checkpointDataV1{PodDeviceEntries: []PodDevicesEntryV1{{PodUID: "u"}}}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	mustDecode(t, fmt.Appendf(nil, `{"Data":%s,"Checksum":%d}`, data, m.sum()))
}

func TestUnknownKeysChangeNothing(t *testing.T) {
	good := string(readTestdata(t, "one-pf-kubelet_internal_checkpoint"))
	for name, edit := range map[string][2]string{
		"in an entry":   {`{"PodUID"`, `{"Newer":{"x":1},"PodUID"`},
		"beside Data":   {`{"Data"`, `{"Newer":null,"Data"`},
		"the boot's ID": {`}`, `,"BootID":"5ea5e5a0-0000-4000-8000-000000000000"}`},
	} {
		t.Run(name, func(t *testing.T) {
			at := strings.LastIndex(good, edit[0])
			more := good[:at] + edit[1] + good[at+len(edit[0]):]
			if c := mustDecode(t, []byte(more)); len(c.Entries) != 4 {
				t.Errorf("%d entries", len(c.Entries))
			}
			if _, err := Decode([]byte(strings.Replace(more, `"c1"`, `"c9"`, 1))); !errors.Is(err, ErrChecksum) {
				t.Errorf("changed as well: %v", err)
			}
		})
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
	if c := mustDecode(t, raw); len(c.Entries) != len(entries) {
		t.Fatalf("%d entries", len(c.Entries))
	}
}

// manyEntries builds n allocations with responses like those of an SR-IOV device
// plugin.
func manyEntries(n int) ([]Entry, map[string][]string) {
	answer := []byte(strings.Repeat("PCIDEVICE_VENDOR_EXAMPLE_VFS=0000:21:10.4 ", 4))
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

// FuzzDecode builds a file from its Data and the checksum that a kubelet would compute
// with the general printer, and compares what Decode reads with what a kubelet reads.
func FuzzDecode(f *testing.F) {
	names, err := filepath.Glob("testdata/*checkpoint*")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		var parts struct{ Data json.RawMessage }
		if err := json.Unmarshal(readTestdata(f, filepath.Base(name)), &parts); err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(parts.Data))
	}
	f.Add([]byte(`{"PodDeviceEntries":[null],"RegisteredDevices":{"a":null}}`))
	f.Add([]byte(`{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"c","ResourceName":"r","DeviceIDs":["a"],"AllocResp":""}],"RegisteredDevices":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := Decode(data); err == nil {
			t.Log("a whole file")
		}
		entries, registered, sum, ok := kubeletReads(data)
		c, err := Decode(fmt.Appendf(nil, `{"Data":%s,"Checksum":%d}`, data, sum))
		switch {
		case err != nil && ok && json.Valid(data) && string(data) != "null" && !errors.Is(err, errTwice):
			t.Fatalf("a kubelet reads it, Decode does not: %v", err)
		case err == nil && !ok:
			t.Fatal("no kubelet reads it, Decode does")
		case err == nil:
			sameContent(t, c, entries, registered)
		}
	})
}

// sameContent compares c with what a kubelet read, and checks that c survives Encode.
func sameContent(t *testing.T, c *Checkpoint, entries []Entry, registered map[string][]string) {
	t.Helper()
	if !reflect.DeepEqual(c.Entries, entries) || !reflect.DeepEqual(c.Registered, registered) {
		t.Fatalf("Decode reads\n%+v %v\na kubelet\n%+v %v", c.Entries, c.Registered, entries, registered)
	}
	raw, err := Encode(c.Entries, c.Registered)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Decode(raw)
	if err != nil {
		t.Fatalf("what Encode wrote: %v", err)
	}
	if !reflect.DeepEqual(again, c) {
		t.Fatalf("Encode changes\n%+v\nto\n%+v", c, again)
	}
	for _, e := range c.Entries {
		if held := c.Pod(e.PodUID); len(held) == 0 {
			t.Fatalf("entry %+v is not indexed by pod", e)
		}
		for _, id := range e.IDs() {
			if len(c.Holders(e.Resource, id)) == 0 {
				t.Fatalf("device %s of %+v is not indexed", id, e)
			}
		}
	}
}

func BenchmarkDecode5000(b *testing.B) {
	raw, err := Encode(manyEntries(5000))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(raw); err != nil {
			b.Fatal(err)
		}
	}
}
