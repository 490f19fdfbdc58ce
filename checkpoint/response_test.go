package checkpoint

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// env encodes an environment variable of a ContainerAllocateResponse.
func env(name, value string) []byte {
	pair := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), name)
	pair = protowire.AppendString(protowire.AppendTag(pair, 2, protowire.BytesType), value)
	return protowire.AppendBytes(protowire.AppendTag(nil, envsField, protowire.BytesType), pair)
}

func TestResponseOrderOfARealPlugin(t *testing.T) {
	c := mustDecode(t, readTestdata(t, "one-pf-kubelet_internal_checkpoint"))
	two := 0
	for _, e := range c.Entries {
		if len(e.IDs()) != 2 {
			continue
		}
		two++
		if got, want := e.ResponseOrder(), []string{"0000:01:10.6", "0000:01:10.4"}; !slices.Equal(got, want) || slices.Equal(got, e.IDs()) {
			t.Errorf("order %v, want %v, which differs from the file's %v", got, want, e.IDs())
		}
	}
	if two != 1 {
		t.Errorf("%d entries with two devices", two)
	}
}

func TestResponseOrder(t *testing.T) {
	mount := protowire.AppendString(protowire.AppendTag(nil, 2, protowire.BytesType), "\x12\x03a,b")
	number := protowire.AppendVarint(protowire.AppendTag(nil, envsField, protowire.VarintType), 7)
	for name, tc := range map[string]struct {
		answer []byte
		ids    []string
		want   []string
	}{
		"as listed":                    {env("E", "b,a"), []string{"a", "b"}, []string{"b", "a"}},
		"one device":                   {env("E", "a"), []string{"a"}, []string{"a"}},
		"other variables":              {slices.Concat(env("A", "x,y"), env("E", "b,a"), env("I", `{"b":{},"a":{}}`)), []string{"a", "b"}, []string{"b", "a"}},
		"two that agree":               {slices.Concat(env("A", "b,a"), env("E", "b,a")), []string{"a", "b"}, []string{"b", "a"}},
		"two that do not":              {slices.Concat(env("A", "a,b"), env("E", "b,a")), []string{"a", "b"}, nil},
		"other fields":                 {slices.Concat(mount, number, env("E", "b,a")), []string{"a", "b"}, []string{"b", "a"}},
		"one missing":                  {env("E", "a"), []string{"a", "b"}, nil},
		"one more":                     {env("E", "a,b,c"), []string{"a", "b"}, nil},
		"another of the same length":   {env("E", "a,c"), []string{"a", "b"}, nil},
		"one twice":                    {env("E", "a,a"), []string{"a", "b"}, nil},
		"no devices":                   {env("E", ""), nil, nil},
		"no answer":                    {nil, []string{"a"}, nil},
		"garbage":                      {[]byte("garbage"), []string{"a"}, nil},
		"ends in the midst of a field": {append(env("E", "b,a"), 0x0a, 0x7f), []string{"a", "b"}, []string{"b", "a"}},
		"a value given twice": {protowire.AppendBytes(protowire.AppendTag(nil, envsField, protowire.BytesType), slices.Concat(
			[]byte("\x12\x03a,b"), []byte("\x12\x03b,a"))), []string{"a", "b"}, []string{"b", "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := Entry{AllocResp: tc.answer, Devices: []NUMADevices{{0, tc.ids}}}
			if got := e.ResponseOrder(); !slices.Equal(got, tc.want) {
				t.Errorf("ResponseOrder = %q, want %q", got, tc.want)
			}
		})
	}
}

// A device of two NUMA nodes is one device in the plugin's answer.
func TestResponseOrderOfDevicesOfSeveralNUMANodes(t *testing.T) {
	e := Entry{AllocResp: env("E", "b,a"), Devices: []NUMADevices{{0, []string{"a", "b"}}, {1, []string{"a"}}}}
	if got, want := e.ResponseOrder(), []string{"b", "a"}; !slices.Equal(got, want) {
		t.Errorf("ResponseOrder = %q, want %q", got, want)
	}
}

func FuzzResponseOrder(f *testing.F) {
	f.Add(env("E", "b,a"), "a,b")
	f.Add([]byte("garbage"), "a")
	f.Fuzz(func(t *testing.T, answer []byte, ids string) {
		e := Entry{AllocResp: answer, Devices: []NUMADevices{{0, strings.Split(ids, ",")}}}
		got := e.ResponseOrder()
		if got != nil && !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(e.IDs()))) {
			t.Errorf("%q is no order of %q", got, e.IDs())
		}
	})
}
