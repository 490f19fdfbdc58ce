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
// value that names exactly the entry's devices tells; two that tell different
// orders do not. The order of the environment's variables means nothing: the
// kubelet writes them in another one each time.
func (e Entry) ResponseOrder() []string {
	want := e.IDs()
	if len(want) == 0 {
		return nil
	}
	size := len(strings.Join(want, ","))
	slices.Sort(want)
	var found []string
	for _, value := range envValues(e.AllocResp) {
		if len(value) != size {
			continue // saves splitting what may be large
		}
		listed := strings.Split(string(value), ",")
		if !slices.Equal(slices.Sorted(slices.Values(listed)), want) {
			continue
		}
		if found != nil && !slices.Equal(found, listed) {
			return nil
		}
		found = listed
	}
	return found
}

// envValues returns the values of the answer's environment. What is not protobuf
// has none; of what ends in the midst of a field, the fields before it count.
func envValues(msg []byte) [][]byte {
	var out [][]byte
	fields(msg, func(num protowire.Number, pair []byte) {
		if num != envsField {
			return
		}
		var value []byte
		fields(pair, func(num protowire.Number, v []byte) {
			if num == valueField {
				value = v
			}
		})
		out = append(out, value)
	})
	return out
}

// fields calls each for every length-delimited field of a message.
func fields(msg []byte, each func(num protowire.Number, content []byte)) {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return
		}
		msg = msg[n:]
		if n = protowire.ConsumeFieldValue(num, typ, msg); n < 0 {
			return
		}
		if typ == protowire.BytesType {
			content, _ := protowire.ConsumeBytes(msg)
			each(num, content)
		}
		msg = msg[n:]
	}
}
