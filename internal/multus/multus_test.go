package multus

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func delegates() []Delegate {
	config := json.RawMessage(`{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}`)
	return []Delegate{
		{IfName: "eth0", Config: config},
		{
			Name: "default/net", IfName: "net1", DeviceID: "0000:5e:01.0", Resource: "vendor.example/vfs", Config: config,
			Requests: Requests{MAC: "02:00:00:00:00:07", GUID: "c2:11:22:33:44:55:66:77", IPs: []string{"10.1.2.3/24", "fd00::3/64"}},
		},
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	dir := t.TempDir()
	want := delegates()
	if err := Write(dir, "id", want); err != nil {
		t.Fatal(err)
	}
	if got, lost, err := Read(dir, "id", "eth0"); lost != nil || err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v, want %+v", got, err, want)
	}
}

// TestOfNothingLeftAListIsWritten: no delegates are an empty list, not null.
func TestOfNothingLeftAListIsWritten(t *testing.T) {
	dir := t.TempDir()
	if err := Write(dir, "id", nil); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "id")); err != nil || string(text) != "[]" {
		t.Errorf("written %q, %v", text, err)
	}
}

// FuzzRead: whatever is in a file, each delegate that is read has an interface and a
// configuration in JSON, and survives being written and read again.
func FuzzRead(f *testing.F) {
	for _, text := range []string{
		``, `null`, `[null]`, `[{"Bytes":"e30="},7]`, `{}`, `[{"Bytes":"e30="}]`, `[{"Bytes":7}]`, `[{"Bytes":"e30=","ipRequest":["10.1.2.3/24"],"macRequest":7}]`,
		`[{"Conf":{},"Bytes":"e30="},{"ConfList":{"plugins":[]},"ifnameRequest":"data","deviceID":"x","ipRequest":[],"Bytes":"bnVsbA=="}]`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "id"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		got, _, err := Read(dir, "id", "eth0")
		if err != nil {
			return
		}
		for _, d := range got {
			if d.IfName == "" || !json.Valid(d.Config) {
				t.Errorf("read %+v", d)
			}
		}
		if err := Write(dir, "id", got); err != nil {
			t.Fatal(err)
		}
		again, lost, err := Read(dir, "id", "eth0")
		if lost != nil || err != nil || len(again) != len(got) {
			t.Fatalf("read again %+v, %v, want %+v", again, err, got)
		}
		for i := range got {
			if len(got[i].IPs) == 0 {
				got[i].IPs = nil // an empty list of addresses is like none
			}
			if !reflect.DeepEqual(again[i], got[i]) {
				t.Errorf("read again %+v, want %+v", again[i], got[i])
			}
		}
	})
}

// TestWhatIsNoFileIsNotRemoved: only a regular file is removed, and an impossible file
// name is no error.
func TestWhatIsNoFileIsNotRemoved(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"id", "results/of"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := Write(dir, "file", nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"id", "results", "absent", strings.Repeat("x", 300), "file/x", "file"} {
		if err := Remove(dir, name); err != nil {
			t.Errorf("%.20s: %v", name, err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 || left[0].Name() != "id" || left[1].Name() != "results" {
		t.Errorf("left %v, %v, want the directories", left, err)
	}
}
