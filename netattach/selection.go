package netattach

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Limits of an annotation. In the API, a pod's annotations together hold at most 256
// KiB. A pod with hundreds of interfaces is a mistake.
const (
	MaxAnnotation = 256 << 10 // bytes
	MaxSelections = 256       // entries
)

// Selection is one entry of a pod's annotation (specification 4.1): a definition, and
// what the pod wants of its attachment. Fields that the entry does not set are zero.
type Selection struct {
	Name      string
	Namespace string
	Interface string        // name in the pod; "" lets the implementation choose
	IPs       []string      // addresses, each with or without prefix length
	MAC       string        // six bytes
	Ports     []PortMapping // "portMappings"
	Bandwidth *Bandwidth
	GUID      string // "infiniband-guid", eight bytes
	// CNIArgs goes into args.cni of every plugin of the network.
	CNIArgs map[string]json.RawMessage
	// DeviceID pins one of the devices that are allocated to the pod.
	DeviceID string
	// Container names the container whose device is wanted ([ContainerKey]).
	Container string
	// Claim names the resource claim whose device is wanted ([ClaimKey]). Request names
	// one of that claim's requests, or "request/subrequest" ([RequestKey]).
	Claim   string
	Request string
	// DefaultRoute: nil leaves routes alone; a list makes these gateways the pod's
	// default routes; an empty list removes all default routes.
	DefaultRoute *[]string
	// IPAMClaimReference names an IPAMClaim object for the network's IPAM.
	IPAMClaimReference string
	// Unknown holds every other key, verbatim.
	Unknown map[string]json.RawMessage
}

// PortMapping is an entry of "portMappings", as the portmap plugin takes it.
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol,omitempty"` // tcp (default), udp or sctp
	HostIP        string `json:"hostIP,omitempty"`
}

// Bandwidth is "bandwidth", as the bandwidth plugin takes it: rates in bits per second,
// bursts in bits. A burst needs its rate.
type Bandwidth struct {
	IngressRate  int64 `json:"ingressRate,omitempty"`
	IngressBurst int64 `json:"ingressBurst,omitempty"`
	EgressRate   int64 `json:"egressRate,omitempty"`
	EgressBurst  int64 `json:"egressBurst,omitempty"`
}

// String returns namespace/name, with @interface if the selection sets one.
func (s Selection) String() string {
	out := s.Namespace + "/" + s.Name
	if s.Interface != "" {
		out += "@" + s.Interface
	}
	return out
}

// UnknownReserved returns the unknown keys without a dot, sorted. The specification
// reserves them (4.1.2), so callers should warn about them.
func (s Selection) UnknownReserved() []string {
	var keys []string
	for _, k := range slices.Sorted(maps.Keys(s.Unknown)) {
		if !strings.Contains(k, ".") {
			keys = append(keys, k)
		}
	}
	return keys
}

// ParseSelections parses an annotation: a JSON list of entries, or the comma form
// "name, namespace/name, name@interface". Entries without a namespace are of
// podNamespace. The first mistake refuses the whole annotation.
func ParseSelections(annotation, podNamespace string) ([]Selection, error) {
	if len(annotation) > MaxAnnotation {
		return nil, fieldError("", "the annotation has %d bytes, at most %d are allowed", len(annotation), MaxAnnotation)
	}
	text := strings.TrimSpace(annotation)
	parse := parseComma
	if strings.HasPrefix(text, "[") || strings.HasPrefix(text, "{") || strings.HasPrefix(text, `"`) {
		parse = parseList
	}
	out, err := parse(text, podNamespace)
	if err != nil {
		return nil, err
	}
	for i := range out {
		if err := out[i].validate(); err != nil {
			return nil, inEntry(i, &out[i], err)
		}
	}
	return out, checkTogether(out)
}

// inEntry adds to an error the entry that it is about.
func inEntry(i int, s *Selection, err error) error {
	entry := fmt.Sprintf("entry %d", i+1)
	if s != nil && s.Name != "" {
		entry += " (" + clip(s.String()) + ")"
	}
	return &Error{Entry: entry, Err: err}
}

// parseComma parses the comma form. It ignores blanks around each name.
func parseComma(text, podNamespace string) ([]Selection, error) {
	if text == "" {
		return nil, nil
	}
	parts := strings.Split(text, ",")
	if len(parts) > MaxSelections {
		return nil, tooMany(len(parts))
	}
	out := make([]Selection, 0, len(parts))
	for i, part := range parts {
		part = strings.TrimSpace(part)
		if part == "" {
			return nil, inEntry(i, nil, fieldError("", "it is empty; write namespace/name@interface"))
		}
		var s Selection
		rest, ifName, hasIf := strings.Cut(part, "@")
		ns, name, hasNS := strings.Cut(rest, "/")
		if !hasNS {
			ns, name = podNamespace, rest
		}
		s.Namespace, s.Name, s.Interface = strings.TrimSpace(ns), strings.TrimSpace(name), strings.TrimSpace(ifName)
		if hasNS && s.Namespace == "" || hasIf && s.Interface == "" || strings.Contains(ifName, "@") {
			return nil, inEntry(i, &s, fieldError("", "%s is not of the form namespace/name@interface", clip(part)))
		}
		out = append(out, s)
	}
	return out, nil
}

func tooMany(n int) error {
	return fieldError("", "the annotation has %d entries, at most %d are allowed", n, MaxSelections)
}

// parseList parses the JSON form.
func parseList(text, podNamespace string) ([]Selection, error) {
	var entries []json.RawMessage
	if err := decodeJSON([]byte(text), &entries); err != nil {
		return nil, &Error{Text: "the annotation is neither a JSON list nor a comma list of names", Err: err}
	}
	if len(entries) > MaxSelections {
		return nil, tooMany(len(entries))
	}
	out := make([]Selection, len(entries))
	for i, raw := range entries {
		if !isObject(raw) {
			return nil, inEntry(i, nil, fieldError("", "%s is not an object", clip(string(raw))))
		}
		err := out[i].UnmarshalJSON(raw)
		if out[i].Namespace == "" {
			out[i].Namespace = podNamespace
		}
		if err != nil {
			return nil, inEntry(i, &out[i], err)
		}
	}
	return out, nil
}

// UnmarshalJSON reads one entry of the JSON form. Key names are exact; of a duplicate
// key the last counts, as usual in JSON. null means that the key is absent, because
// some libraries write absent keys that way.
func (s *Selection) UnmarshalJSON(data []byte) error {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil {
		return &Error{Text: "it is not an object", Err: err}
	}
	fields := []struct {
		key  string
		into any
	}{
		{"name", &s.Name}, {"namespace", &s.Namespace}, {"interface", &s.Interface},
		{"ips", &s.IPs}, {"mac", &s.MAC}, {"portMappings", &s.Ports}, {"bandwidth", &s.Bandwidth},
		{"infiniband-guid", &s.GUID}, {"cni-args", &s.CNIArgs}, {"deviceID", &s.DeviceID},
		{ContainerKey, &s.Container}, {ClaimKey, &s.Claim}, {RequestKey, &s.Request}, {"default-route", &s.DefaultRoute}, {"ipam-claim-reference", &s.IPAMClaimReference},
	}
	for _, f := range fields {
		raw, ok := keys[f.key]
		if !ok {
			continue
		}
		delete(keys, f.key)
		if string(raw) == "null" {
			continue
		}
		if err := json.Unmarshal(raw, f.into); err != nil {
			return &Error{Field: f.key, Text: clip(string(raw)) + " is of the wrong type", Err: err}
		}
		if f.key == "ips" && len(s.IPs) == 0 {
			return fieldError("ips", "it is empty; leave the key out or give an address")
		}
	}
	if len(keys) > 0 {
		s.Unknown = keys
	}
	return nil
}

// MarshalJSON writes the entry in the JSON form.
func (s Selection) MarshalJSON() ([]byte, error) {
	out := map[string]any{}
	for k, v := range s.Unknown {
		out[k] = v
	}
	set := func(key string, v any, present bool) {
		if present {
			out[key] = v
		}
	}
	set("name", s.Name, true)
	set("namespace", s.Namespace, s.Namespace != "")
	set("interface", s.Interface, s.Interface != "")
	set("ips", s.IPs, len(s.IPs) > 0)
	set("mac", s.MAC, s.MAC != "")
	set("portMappings", s.Ports, len(s.Ports) > 0)
	set("bandwidth", s.Bandwidth, s.Bandwidth != nil)
	set("infiniband-guid", s.GUID, s.GUID != "")
	set("cni-args", s.CNIArgs, s.CNIArgs != nil)
	set("deviceID", s.DeviceID, s.DeviceID != "")
	set(ContainerKey, s.Container, s.Container != "")
	set(ClaimKey, s.Claim, s.Claim != "")
	set(RequestKey, s.Request, s.Request != "")
	set("default-route", s.DefaultRoute, s.DefaultRoute != nil)
	set("ipam-claim-reference", s.IPAMClaimReference, s.IPAMClaimReference != "")
	return json.Marshal(out)
}

// validate checks one entry's fields.
func (s *Selection) validate() error {
	checks := []func() error{
		func() error { return checkName("name", s.Name) },
		func() error { return checkLabel("namespace", s.Namespace) },
		func() error {
			return optional(s.Interface, func() error { return checkInterface("interface", s.Interface) })
		},
		func() error { return optional(s.MAC, func() error { return checkHardware("mac", s.MAC, 6) }) },
		func() error {
			return optional(s.GUID, func() error { return checkHardware("infiniband-guid", s.GUID, 8) })
		},
		func() error {
			return optional(s.Container, func() error { return checkLabel(ContainerKey, s.Container) })
		},
		s.validateAddresses, s.validatePorts, s.validateBandwidth, s.validateDevice, s.validateClaim,
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func optional(value string, check func() error) error {
	if value == "" {
		return nil
	}
	return check()
}

func (s *Selection) validateAddresses() error {
	for _, ip := range s.IPs {
		if err := checkIP("ips", ip); err != nil {
			return err
		}
	}
	if len(s.IPs) > 0 && s.IPAMClaimReference != "" {
		return fieldError("ips", "it cannot be combined with ipam-claim-reference")
	}
	if s.DefaultRoute == nil {
		return nil
	}
	for _, gw := range *s.DefaultRoute {
		a, err := netip.ParseAddr(gw)
		if err != nil || a.Zone() != "" {
			return fieldError("default-route", "%s is not an IP address", clip(gw))
		}
		if a = a.Unmap(); a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
			return fieldError("default-route", "%s cannot be the address of a gateway", clip(gw))
		}
	}
	return nil
}

func (s *Selection) validatePorts() error {
	for i := range s.Ports {
		p := &s.Ports[i]
		p.Protocol = strings.ToLower(p.Protocol)
		if p.Protocol == "" {
			p.Protocol = "tcp"
		}
		if p.Protocol != "tcp" && p.Protocol != "udp" && p.Protocol != "sctp" {
			return fieldError("portMappings", "protocol %s is not tcp, udp or sctp", clip(p.Protocol))
		}
		for _, n := range []int{p.HostPort, p.ContainerPort} {
			if n < 1 || n > 65535 {
				return fieldError("portMappings", "port %d is not between 1 and 65535", n)
			}
		}
		if p.HostIP != "" {
			if _, err := netip.ParseAddr(p.HostIP); err != nil {
				return fieldError("portMappings", "hostIP %s is not an IP address", clip(p.HostIP))
			}
		}
	}
	return nil
}

func (s *Selection) validateBandwidth() error {
	b := s.Bandwidth
	if b == nil {
		return nil
	}
	if b.IngressRate < 0 || b.IngressBurst < 0 || b.EgressRate < 0 || b.EgressBurst < 0 {
		return fieldError("bandwidth", "rates and bursts cannot be negative")
	}
	if b.IngressBurst > 0 && b.IngressRate == 0 || b.EgressBurst > 0 && b.EgressRate == 0 {
		return fieldError("bandwidth", "a burst needs its rate")
	}
	return nil
}

// maxDeviceID is the maximum length of a device ID, in bytes. Device plugins choose IDs
// freely.
const maxDeviceID = 256

func (s *Selection) validateDevice() error {
	if len(s.DeviceID) > maxDeviceID {
		return fieldError("deviceID", "%s is longer than %d bytes", clip(s.DeviceID), maxDeviceID)
	}
	return nil
}

// validateClaim checks the names of a claim and a request, which are labels. A
// subrequest follows its request after a slash.
func (s *Selection) validateClaim() error {
	if s.Request != "" && s.Claim == "" {
		return fieldError(RequestKey, "it needs %s as well", ClaimKey)
	}
	err := optional(s.Claim, func() error { return checkLabel(ClaimKey, s.Claim) })
	if err != nil || s.Request == "" {
		return err
	}
	for _, part := range strings.SplitN(s.Request, "/", 2) {
		if err := checkLabel(RequestKey, part); err != nil {
			return err
		}
	}
	return nil
}

// checkTogether checks what involves several entries.
func checkTogether(all []Selection) error {
	seen := map[string]int{}
	route := -1
	for i := range all {
		s := &all[i]
		if j, ok := seen[s.Interface]; ok && s.Interface != "" {
			return inEntry(i, s, fieldError("interface", "entry %d has the same interface name", j+1))
		}
		seen[s.Interface] = i
		if s.DefaultRoute == nil {
			continue
		}
		if route >= 0 {
			return inEntry(i, s, fieldError("default-route", "entry %d already sets it; only one network can", route+1))
		}
		route = i
	}
	return nil
}
