package rules

import (
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/manifold-cni/manifold/netattach"
)

// itself is the plugin that must not be its own delegate.
const itself = "manifold"

// Definition returns what is wrong with a definition.
func Definition(def *netattach.Definition) []Finding {
	var l list
	meta, at := field.NewPath("metadata"), field.NewPath("spec", "config")
	for _, text := range validation.IsDNS1123Subdomain(def.Name) {
		l.add(Error, meta.Child("name"), "%s", text)
	}
	if name := def.ResourceName(); name != "" {
		for _, text := range resourceName(name) {
			l.add(Error, annotation(meta, netattach.ResourceNameAnnotation), "%q: %s", name, text)
		}
	}
	if _, err := NodeSelector(def); err != nil {
		l.add(Error, annotation(meta, netattach.NodeSelectorAnnotation), "%v", err)
	}
	if strings.TrimSpace(def.Spec.Config) == "" {
		l.add(Warning, at, "it is empty: every node must have a file whose configuration is named %q", def.Name)
		return l
	}
	c, err := netattach.ParseConfig([]byte(def.Spec.Config))
	if err != nil {
		l.add(Error, at, "%v", err)
		return l
	}
	l.config(at, def, c)
	return l
}

// quotas is the prefix of the names under which a ResourceQuota counts requests.
const quotas = "requests."

// resourceName returns what is wrong with the name of a device plugin's resource.
func resourceName(name string) []string {
	domain, _, ok := strings.Cut(name, "/")
	if !ok || domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io") {
		return []string{"the resource of a device plugin is domain/name, with a domain other than kubernetes.io"}
	}
	if strings.HasPrefix(domain, quotas) {
		return []string{"no container can request a resource whose name begins with " + quotas}
	}
	return validation.IsQualifiedName(name)
}

// NodeSelector returns the labels of the nodes that a definition's pods are bound to; nil
// means all nodes.
func NodeSelector(def *netattach.Definition) (map[string]string, error) {
	text := def.Annotations[netattach.NodeSelectorAnnotation]
	if text == "" {
		return nil, nil
	}
	set, err := labels.ConvertSelectorToLabelsMap(text)
	if err != nil {
		return nil, err
	}
	return set, metav1validation.ValidateLabels(set, nil).ToAggregate()
}

// config checks a configuration that can be parsed for what will not work.
func (l *list) config(at *field.Path, def *netattach.Definition, c *netattach.Config) {
	if name := c.Name(); name != "" {
		if err := utils.ValidateNetworkName(name); err != nil {
			l.add(Error, at, "name %.64q: %v", name, err)
		}
	}
	if _, err := c.Asked(nil); err != nil {
		l.add(Error, at, "%v", err)
	}
	l.plugins(at, def.ResourceName(), c)
	l.capabilities(at, def.ResourceName(), c)
}

// plugins checks what a configuration's plugins have to do with devices.
func (l *list) plugins(at *field.Path, resource string, c *netattach.Config) {
	for _, p := range c.Plugins() {
		switch {
		case p.Type == itself || p.IPAMType == itself:
			l.add(Error, at, "it delegates to manifold itself, without end").Fix = "name another plugin"
		case p.DeviceID != "" && resource != "":
			l.add(Error, at, "plugin %s names the device %s, but the definition names a resource: "+
				"the kubelet's allocation would replace it", p.Type, p.DeviceID).Fix = "drop deviceID and pciBusID"
		case resource == "" && p.DeviceID == "" && p.Type == "sriov":
			l.add(Warning, at, "plugin sriov needs a device, but the definition names no resource").Fix = setResource
		}
	}
	if resource != "" && !slices.ContainsFunc(c.Plugins(), func(p netattach.PluginInfo) bool { return !deviceless[p.Type] || p.Capabilities["deviceID"] }) {
		l.add(Warning, at, "the definition names a resource, but none of its plugins takes a device: each pod wastes one").Fix =
			"drop the annotation " + netattach.ResourceNameAnnotation + ", or name a plugin that takes a device"
	}
}

// setResource is the fix if a device is needed.
const setResource = "set the annotation " + netattach.ResourceNameAnnotation

// deviceless are the reference plugins that take no device.
var deviceless = map[string]bool{
	"bandwidth": true, "bridge": true, "dummy": true, "firewall": true, "ipvlan": true, "loopback": true, "macvlan": true, "portmap": true,
	"ptp": true, "sbr": true, "tap": true, "tuning": true, "vlan": true, "vrf": true,
}

// capable are the capabilities that a runtime or a pod's annotation can fill in.
var capable = []string{
	"ips", "mac", "portMappings", "bandwidth", "infinibandGUID", "deviceID", "CNIDeviceInfoFile", "ipRanges", "dns", "aliases", "cgroupPath",
}

// capabilities checks the capabilities that the plugins declare.
func (l *list) capabilities(at *field.Path, resource string, c *netattach.Config) {
	if resource == "" && c.HasCapability("deviceID") {
		l.add(Warning, at, "a plugin has the capability deviceID, but the definition names no resource").Fix = setResource
	}
	for _, p := range c.Plugins() {
		for name, on := range p.Capabilities {
			i := slices.IndexFunc(capable, func(known string) bool { return strings.EqualFold(known, name) })
			if on && i >= 0 && capable[i] != name {
				l.add(Warning, at, "plugin %s has the capability %q, which nothing fills in", p.Type, name).Fix = "write " + capable[i]
			}
		}
	}
}
