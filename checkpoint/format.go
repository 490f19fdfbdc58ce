package checkpoint

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
)

// file, data, entry and deviceIDs mirror the file's JSON.
type file struct {
	Data     *data
	Checksum uint64
}

type data struct {
	PodDeviceEntries  []entry
	RegisteredDevices map[string][]string
}

type entry struct {
	PodUID        string
	ContainerName string
	ResourceName  string
	DeviceIDs     deviceIDs
	AllocResp     []byte
}

// deviceIDs maps NUMA nodes to IDs. Before 1.20 it was a list of IDs.
type deviceIDs struct {
	form  form          // ascending; a single NoNUMA element for a list; nil for null
	nodes []NUMADevices // ascending; one element NoNUMA for a list; nil for null
}

// form is how a file represents deviceIDs.
type form uint8

const (
	formNull form = iota // null or absent
	formList
	formMap
)

// errTwice refuses a duplicate key: no kubelet writes it, and parsers disagree on its
// meaning.
var errTwice = errors.New("duplicate DeviceIDs")

// UnmarshalJSON reads either form.
func (d *deviceIDs) UnmarshalJSON(raw []byte) error {
	if d.form != formNull {
		return errTwice
	}
	if bytes.HasPrefix(raw, []byte("[")) {
		var list []string
		err := json.Unmarshal(raw, &list)
		*d = ofList(list)
		return err
	}
	var byNode map[int64][]string
	err := json.Unmarshal(raw, &byNode)
	*d = ofMap(byNode)
	return err
}

func ofList(ids []string) deviceIDs {
	return deviceIDs{formList, []NUMADevices{{Node: NoNUMA, IDs: ids}}}
}

func ofMap(byNode map[int64][]string) deviceIDs {
	if byNode == nil {
		return deviceIDs{}
	}
	d := deviceIDs{formMap, make([]NUMADevices, 0, len(byNode))}
	for _, node := range slices.Sorted(maps.Keys(byNode)) {
		d.nodes = append(d.nodes, NUMADevices{Node: node, IDs: byNode[node]})
	}
	return d
}

// parseCanonical reads a file in exactly the form that a kubelet writes for plain ASCII
// names: no white space, these keys in this order. It is several times faster than
// encoding/json, and interns the strings that a checkpoint repeats. It leaves
// everything else, malformed input included, to encoding/json: ok means that
// encoding/json would have produced the same result.
func parseCanonical(raw []byte) (f *file, ok bool) {
	p := &parser{rest: raw, known: map[string]string{}}
	f = &file{Data: &data{}}
	p.expect(`{"Data":{"PodDeviceEntries":`)
	f.Data.PodDeviceEntries = p.entries()
	p.expect(`,"RegisteredDevices":`)
	f.Data.RegisteredDevices = p.registered()
	p.expect(`},"Checksum":`)
	f.Checksum = p.number()
	if p.next(`,"BootID":`) { // written by kubelets that record the boot ID; not part of the checksum
		p.text()
	}
	p.expect(`}`)
	return f, !p.failed && len(p.rest) == 0
}

// parser reads canonical JSON from rest. After a failure it reads nothing more.
type parser struct {
	rest   []byte
	failed bool
	known  map[string]string // interned strings
}

// next consumes s if the input starts with it, and reports whether it did.
func (p *parser) next(s string) bool {
	if p.failed || len(p.rest) < len(s) || string(p.rest[:len(s)]) != s {
		return false
	}
	p.rest = p.rest[len(s):]
	return true
}

func (p *parser) expect(s string) {
	if !p.next(s) {
		p.failed = true
	}
}

// raw consumes a quoted string of plain ASCII without escapes, and returns it without
// its quotes.
func (p *parser) raw() []byte {
	p.expect(`"`)
	for i, c := range p.rest {
		if c == '"' && !p.failed {
			s := p.rest[:i]
			p.rest = p.rest[i+1:]
			return s
		}
		if c < ' ' || c >= 0x7f || c == '\\' {
			break
		}
	}
	p.failed = true
	return nil
}

func (p *parser) text() string {
	b := p.raw()
	if s, ok := p.known[string(b)]; ok {
		return s
	}
	s := string(b)
	p.known[s] = s
	return s
}

// list calls what once for each element, up to the closing bracket.
func (p *parser) list(closing string, what func()) {
	for first := true; !p.failed && !p.next(closing); first = false {
		if !first {
			p.expect(",")
		}
		what()
	}
}

func (p *parser) texts() []string {
	if p.next("null") {
		return nil
	}
	p.expect("[")
	out := []string{}
	p.list("]", func() { out = append(out, p.text()) })
	return out
}

func (p *parser) registered() map[string][]string {
	if p.next("null") {
		return nil
	}
	p.expect("{")
	out := map[string][]string{}
	p.list("}", func() {
		key := p.text()
		p.expect(":")
		out[key] = p.texts()
	})
	return out
}

func (p *parser) entries() []entry {
	if p.next("null") {
		return nil
	}
	p.expect("[")
	out := []entry{}
	p.list("]", func() {
		var e entry
		p.expect(`{"PodUID":`)
		e.PodUID = p.text()
		p.expect(`,"ContainerName":`)
		e.ContainerName = p.text()
		p.expect(`,"ResourceName":`)
		e.ResourceName = p.text()
		p.expect(`,"DeviceIDs":`)
		e.DeviceIDs = p.deviceIDs()
		p.expect(`,"AllocResp":`)
		e.AllocResp = p.bytes()
		p.expect(`}`)
		out = append(out, e)
	})
	return out
}

func (p *parser) deviceIDs() deviceIDs {
	if p.next("null") {
		return deviceIDs{}
	}
	if bytes.HasPrefix(p.rest, []byte("[")) {
		return ofList(p.texts())
	}
	p.expect("{")
	d := deviceIDs{formMap, []NUMADevices{}}
	p.list("}", func() {
		node, err := strconv.ParseInt(string(p.raw()), 10, 64)
		if err != nil {
			p.failed = true
		}
		p.expect(":")
		d.nodes = append(d.nodes, NUMADevices{Node: node, IDs: p.texts()})
	})
	slices.SortFunc(d.nodes, func(a, b NUMADevices) int { return cmp.Compare(a.Node, b.Node) })
	for i := range d.nodes {
		if i > 0 && d.nodes[i].Node == d.nodes[i-1].Node {
			p.failed = true // encoding/json lets the last one win; leave it to that
		}
	}
	return d
}

func (p *parser) bytes() []byte {
	if p.next("null") {
		return nil
	}
	text := p.raw()
	out := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(out, text)
	if err != nil {
		p.failed = true
	}
	return out[:n]
}

func (p *parser) number() uint64 {
	end := 0
	for end < len(p.rest) && p.rest[end] >= '0' && p.rest[end] <= '9' {
		end++
	}
	n, err := strconv.ParseUint(string(p.rest[:end]), 10, 64)
	if err != nil || end > 1 && p.rest[0] == '0' {
		p.failed = true
	}
	p.rest = p.rest[end:]
	return n
}
