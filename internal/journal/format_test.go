package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

var key = Key{"c0ffee", "eth0"}

// begun begins a journal of a plan with n attachments.
func begun(t testing.TB, n int) (Dir, *Entry) {
	t.Helper()
	d := Dir{filepath.Join(t.TempDir(), "state")}
	e, err := d.Begin(context.Background(), key, &plan.Plan{Version: 1, Attachments: make([]plan.Attachment, n)})
	if err != nil {
		t.Fatal(err)
	}
	return d, e
}

func appendAll(t testing.TB, e *Entry, steps ...Step) {
	t.Helper()
	for _, s := range steps {
		if err := e.Append(s); err != nil {
			t.Fatal(err)
		}
	}
}

func TestChecksumIsCRC32C(t *testing.T) {
	for _, text := range []string{"", "a", "123456789", strings.Repeat("\x00\xff", 700)} {
		if want := crc32.Checksum([]byte(text), crc32.MakeTable(crc32.Castagnoli)); checksum([]byte(text)) != want {
			t.Errorf("%q: %08x, want %08x", text, checksum([]byte(text)), want)
		}
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	d, e := begun(t, 3)
	appendAll(t, e,
		Step{Attachment: 0, Phase: Trying, Before: json.RawMessage(`{"driver":"x"}`)}, Step{Attachment: 0, Phase: Attached, Result: json.RawMessage(`{"a":1}`)},
		Step{Attachment: 0, Phase: Verified, Checked: []string{"MAC"}}, Step{Attachment: 1, Phase: Trying}, Step{Attachment: 2, Phase: Trying}, Step{Attachment: 2, Phase: Untouched})
	got, err := d.Open(key)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Steps) != 6 || string(got.Result(0)) != `{"a":1}` || string(got.Before(0)) != `{"driver":"x"}` || got.Result(1) != nil {
		t.Errorf("%+v", got)
	}
	if u := got.Unreleased(); !reflect.DeepEqual(u, []int{1, 0}) {
		t.Errorf("unreleased %v, want reverse order without what was never touched", u)
	}
	appendAll(t, got, Step{Attachment: 1, Phase: ReleaseFailed, Error: "busy"}, Step{Attachment: 0, Phase: Released})
	if u := got.Unreleased(); !reflect.DeepEqual(u, []int{1}) {
		t.Errorf("unreleased %v", u)
	}
	if p, text := got.Phase(1); p != ReleaseFailed || text != "busy" {
		t.Errorf("phase %s %s", p, text)
	}
	if keys, err := d.List(); err != nil || !reflect.DeepEqual(keys, []Key{key}) {
		t.Errorf("list %v %v", keys, err)
	}
	if _, err := d.Begin(context.Background(), key, e.Plan); !cnierr.Is(err, cnierr.Busy) {
		t.Errorf("a second Begin: %v", err)
	}
	if err := got.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Open(key); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

func TestDamage(t *testing.T) {
	d, e := begun(t, 1)
	appendAll(t, e, Step{Phase: Trying}, Step{Phase: Attached})
	path := filepath.Join(d.Path, key.String()+".journal")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(good), "\n")
	for name, tc := range map[string]struct {
		content string
		kind    cnierr.Kind
		steps   int
	}{
		"torn last line":     {string(good[:len(good)-9]), cnierr.Other, 1},
		"last line half":     {lines[0] + lines[1] + lines[2][:5], cnierr.Other, 1},
		"empty":              {"", cnierr.JournalCorrupt, 0},
		"first line torn":    {lines[0][:len(lines[0])/2], cnierr.JournalCorrupt, 0},
		"first line changed": {strings.Replace(string(good), `"version":1`, `"version":2`, 1), cnierr.JournalCorrupt, 0},
		"two lines damaged":  {lines[0] + "damaged\n" + "damaged\n" + lines[2], cnierr.JournalCorrupt, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := d.Open(key)
			if tc.kind != cnierr.Other {
				if !cnierr.Is(err, tc.kind) || !strings.Contains(err.Error(), path) && tc.kind == cnierr.JournalCorrupt {
					t.Errorf("error %v, want kind %s", err, tc.kind)
				}
				return
			}
			if err != nil || len(got.Steps) != tc.steps {
				t.Fatalf("%+v, %v", got, err)
			}
			appendAll(t, got, Step{Phase: Releasing}, Step{Phase: Released})
			if again, err := d.Open(key); err != nil || len(again.Unreleased()) != 0 {
				t.Errorf("after more steps: %+v, %v", again, err)
			}
		})
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if aside, err := d.SetAside(key, AsideCorrupt); err != nil || !strings.HasPrefix(aside, path+".corrupt-") {
		t.Errorf("set aside: %s %v", aside, err)
	}
}

// A power failure while a journal is begun leaves a file without a whole record. Nothing
// that a delegate may have run for looks like it.
func TestDropUnbegun(t *testing.T) {
	d, e := begun(t, 1)
	whole, err := os.ReadFile(e.path)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		content []byte
		unbegun bool
	}{
		"empty":                      {nil, true},
		"half of the record":         {whole[:len(whole)/2], true},
		"zeros":                      {make([]byte, len(whole)), true},
		"whole":                      {whole, false},
		"with a torn step":           {append(slices.Clone(whole), "0000"...), false},
		"with a damaged record":      {append([]byte("x"), whole...), false},
		"too large to be a torn one": {make([]byte, maxFile+1), false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(e.path, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			dropped, err := d.DropUnbegun(key)
			_, left := os.Stat(e.path)
			if err != nil || dropped != c.unbegun || errors.Is(left, os.ErrNotExist) != c.unbegun {
				t.Errorf("dropped: %t, want %t; %v; the file: %v", dropped, c.unbegun, err, left)
			}
		})
	}
}

// Steps are not synced, so after a power failure a missing step proves nothing.
func TestAfterAnotherBootAllThatThePlanNamesIsReleased(t *testing.T) {
	d, e := begun(t, 4)
	appendAll(t, e, Step{Attachment: 0, Phase: Trying}, Step{Attachment: 1, Phase: Released}, Step{Attachment: 2, Phase: Untouched})
	if u := e.Unreleased(); !reflect.DeepEqual(u, []int{0}) {
		t.Fatalf("in the same boot %v", u)
	}
	content, err := os.ReadFile(e.path)
	if err != nil {
		t.Fatal(err)
	}
	_, steps, _ := strings.Cut(string(content), "\n")
	first, err := encode(header{Version: Version, Boot: "another", Created: e.Created, Plan: e.Plan})
	if err == nil {
		err = os.WriteFile(e.path, append(first, steps...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.Open(key)
	if err != nil {
		t.Fatal(err)
	}
	if u := got.Unreleased(); !reflect.DeepEqual(u, []int{3, 0}) {
		t.Errorf("after another boot %v, want all but what is recorded as released or untouched", u)
	}
}

// A dropped line may be the only step of the first attachment without steps, but not
// of those after it.
func TestADroppedLineMayBeTheOnlyOne(t *testing.T) {
	d, e := begun(t, 3)
	appendAll(t, e, Step{Attachment: 0, Phase: Trying}, Step{Attachment: 1, Phase: Trying})
	content, err := os.ReadFile(e.path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(content), "\n")
	for damaged, want := range map[int][]int{1: {1, 0}, 2: {1, 0}} {
		changed := slices.Clone(lines)
		changed[damaged] = "damaged\n"
		if err := os.WriteFile(e.path, []byte(strings.Join(changed, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := d.Open(key)
		if err != nil {
			t.Fatal(err)
		}
		if u := got.Unreleased(); !reflect.DeepEqual(u, want) {
			t.Errorf("without line %d: unreleased %v, want %v", damaged, u, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	_, e := begun(f, 1)
	appendAll(f, e, Step{Phase: Trying, Before: json.RawMessage("{}")})
	good, err := os.ReadFile(e.path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add([]byte("00000000 {}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := decode(data)
		if err == nil {
			e.Unreleased()
			e.Result(0)
		}
		left := remains(data)
		if err == nil && e.Before(0) != nil && len(left.Befores) == 0 {
			t.Error("a sound journal has no remains")
		}
	})
}

// Remains finds what the sound lines of a damaged journal say about devices, past all
// damage.
func TestRemains(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	pod := plan.Pod{Namespace: "shop", Name: "web"}
	e, err := d.Begin(t.Context(), key, &plan.Plan{Pod: pod, Attachments: make([]plan.Attachment, 2)})
	if err != nil {
		t.Fatal(err)
	}
	first, second := json.RawMessage(`{"pf":"a"}`), json.RawMessage(`{"pf":"b"}`)
	appendAll(t, e, Step{Phase: Trying, Before: first}, Step{Phase: Attached}, Step{Attachment: 1, Phase: Trying, Before: second})
	good, err := os.ReadFile(e.path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(good), "\n")
	_, body, _ := strings.Cut(strings.Replace(lines[0], bootID(), "another", 1), " ")
	other := fmt.Sprintf("%08x %s", checksum([]byte(strings.TrimSuffix(body, "\n"))), body)
	for name, tc := range map[string]struct {
		content string
		want    Remains
	}{
		"sound":             {string(good), Remains{Pod: pod, Befores: []json.RawMessage{first, second}}},
		"no header":         {"damaged\n" + strings.Join(lines[1:], ""), Remains{Befores: []json.RawMessage{first, second}}},
		"a step lost":       {lines[0] + "damaged\n" + lines[3], Remains{Pod: pod, Befores: []json.RawMessage{second}}},
		"torn":              {lines[0] + lines[1] + "damaged\n" + lines[3][:9], Remains{Pod: pod, Befores: []json.RawMessage{first}}},
		"of another boot":   {other + lines[1], Remains{Pod: pod, OtherBoot: true, Befores: []json.RawMessage{first}}},
		"nothing":           {"", Remains{}},
		"zeros, line sound": {"\x00\x00\n" + lines[1], Remains{Befores: []json.RawMessage{first}}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(e.path, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := d.Remains(key); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
	if got := d.Remains(Key{"none", "eth0"}); !reflect.DeepEqual(got, Remains{}) {
		t.Errorf("without a journal: %+v", got)
	}
}

// ordinary returns the plan of a pod with a bridge as its default network, a VF and a
// macvlan.
func ordinary() *plan.Plan {
	ipam := `"ipam":{"type":"host-local","ranges":[[{"subnet":"10.56.0.0/16","rangeStart":"10.56.1.1","rangeEnd":"10.56.200.254"}]]}`
	list := func(name, plugins string) json.RawMessage {
		return json.RawMessage(`{"cniVersion":"1.0.0","name":"` + name + `","plugins":[` + plugins + `]}`)
	}
	const address, pf = "0000:21:10.4", "0000:21:00.0"
	return &plan.Plan{
		Version: plan.Version, Pod: plan.Pod{Namespace: "shop", Name: "app-7d9c", UID: "77e9faa3-7bea-4ed6-ab72-19fcefc568b8"},
		ContainerID: key.ContainerID, NetNS: "/run/netns/cni-4f0e",
		Attachments: []plan.Attachment{
			{
				Name: "cluster", Network: "cluster", IfName: "eth0", Default: true,
				Config: list("cluster", `{"type":"bridge","bridge":"cni0","isGateway":true,`+ipam+`},{"type":"portmap","capabilities":{"portMappings":true}}`),
			},
			{
				Name: "shop/fast", Network: "fast", IfName: "net1",
				Config:       list("fast", `{"type":"host-device","pciBusID":"`+address+`",`+ipam+`},{"type":"tuning","mtu":9000}`),
				Capabilities: map[string]json.RawMessage{"deviceID": json.RawMessage(`"` + address + `"`)},
				Device:       &plan.Device{Resource: "vendor.example/vfs", ID: address, PCIAddress: address, Container: "main", Driver: "igbvf", PF: pf},
				Want:         plan.Want{Verify: plan.VerifyEnforce, MTU: 9000},
			},
			{Name: "shop/plain", Network: "plain", IfName: "net2", Config: list("plain", `{"type":"macvlan","master":"eth1",`+ipam+`}`)},
		},
	}
}

func BenchmarkBegin(b *testing.B) {
	d := Dir{b.TempDir()}
	p := ordinary()
	begin := func() {
		e, err := d.Begin(context.Background(), key, p)
		if err != nil {
			b.Fatal(err)
		}
		if err := e.Close(); err != nil {
			b.Fatal(err)
		}
	}
	begin() // the first one creates the directory and prepares the encoder
	b.ReportAllocs()
	for b.Loop() {
		begin()
	}
}

func BenchmarkAppend(b *testing.B) {
	_, e := begun(b, 1)
	b.ReportAllocs()
	for b.Loop() {
		appendAll(b, e, Step{Phase: Trying})
		e.Steps = e.Steps[:0]
	}
}

// A plugin that is killed while it begins a journal leaves a temporary file named
// after its sandbox. The next Begin overwrites it, and whoever finds nothing else of
// the sandbox removes it.
func TestWriterKilledBeforeTheJournalHasItsName(t *testing.T) {
	d := Dir{t.TempDir()}
	leftover := d.file(key) + newSuffix
	for _, begin := range []bool{true, false} {
		l, err := d.Lock(context.Background(), key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(leftover, []byte("cut"), 0o600); err != nil {
			t.Fatal(err)
		}
		if begin {
			e, err := d.Begin(context.Background(), key, &plan.Plan{Version: 1, Attachments: make([]plan.Attachment, 1)})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.Open(key); err != nil {
				t.Error(err)
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Unlock(true); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(leftover); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("begun: %t; it is left: %v", begin, err)
		}
	}
}
