package checkpoint

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of ContainerAllocateResponse.envs, a map<string, string>, in the
// kubelet's device plugin API v1beta1.
const (
	envsField  = 1
	valueField = 2
)

// ResponseOrder returns the entry's device IDs in the order in which the device
// plugin's own answer lists them, which is what the application sees in its
// environment; nil when the answer does not tell. A comma-separated environment
// value that names exactly the entry's devices tells.
func (e Entry) ResponseOrder() []string {
	want := e.IDs()
	slices.Sort(want)
	for _, value := range envValues(e.AllocResp) {
		listed := strings.Split(value, ",")
		sorted := slices.Sorted(slices.Values(listed))
		if slices.Equal(sorted, want) {
			return listed
		}
	}
	return nil
}

// envValues returns the values of the answer's environment, in its order. What
// is not protobuf has none.
func envValues(msg []byte) []string {
	var out []string
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return out
		}
		msg = msg[n:]
		if num != envsField || typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, msg); n < 0 {
				return out
			}
			msg = msg[n:]
			continue
		}
		pair, n := protowire.ConsumeBytes(msg)
		if n < 0 {
			return out
		}
		msg = msg[n:]
		if v, ok := mapValue(pair); ok {
			out = append(out, v)
		}
	}
	return out
}

// mapValue returns the value of an encoded map entry.
func mapValue(pair []byte) (string, bool) {
	for len(pair) > 0 {
		num, typ, n := protowire.ConsumeTag(pair)
		if n < 0 {
			return "", false
		}
		pair = pair[n:]
		if num == valueField && typ == protowire.BytesType {
			v, n := protowire.ConsumeBytes(pair)
			return string(v), n >= 0
		}
		if n = protowire.ConsumeFieldValue(num, typ, pair); n < 0 {
			return "", false
		}
		pair = pair[n:]
	}
	return "", false
}
