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

// ResponseOrder returns the entry's device IDs in the order of the device plugin's own
// response, which is the order that the application sees in its environment. An
// environment value shows the order if it is a comma-separated list of exactly the
// entry's devices. ResponseOrder returns nil if no value shows an order, or if two
// values show different ones. The order of the variables themselves means nothing: the
// kubelet writes it differently each time.
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
			continue // avoids splitting a large value
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

// envValues returns the values of the response's environment. Bytes that are not
// protobuf yield none; a truncated message yields the fields before the truncated one.
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
