package reconcile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/manifold-cni/manifold/sriov"
)

// maxAltName bounds the name of a network device, in bytes. It is the bound of
// alternative names: ALTIFNAMSIZ of the kernel's linux/if.h, without the final NUL.
const maxAltName = 127

// shortDomain is what lspci omits on a machine with a single PCI domain.
const shortDomain = "0000:"

// ParseExclude returns an entry of [Reconciler.Exclude] in the form in which it is
// compared: a PCI address in the kernel's spelling (an address as lspci prints it is
// completed), or the name of a network device. An entry that can be neither is an error:
// it would exclude nothing.
func ParseExclude(entry string) (string, error) {
	s := strings.TrimSpace(entry)
	for _, address := range []string{s, shortDomain + s} {
		if a, err := sriov.ParseAddress(address); err == nil {
			return a, nil
		}
	}
	if s == "" || s == "." || s == ".." || len(s) > maxAltName || strings.ContainsAny(s, "/:\x00 \t\n\v\f\r") {
		return "", fmt.Errorf("%.*q is neither a PCI address nor the name of a network device", maxAltName, entry)
	}
	return s, nil
}

// excluded tells why the configuration keeps the VF's PF from being touched; empty if it
// does not. A name that the node does not have may still be the PF's: the PF may have
// been renamed, or a pod or a program may have its network device.
func (r *Reconciler) excluded(f Finding) string {
	why := ""
	for _, entry := range r.Exclude {
		address, err := r.excludedPF(entry)
		switch {
		case err != nil:
			why = "its PF may be excluded, which is not known: " + err.Error()
		case slices.Contains([]string{f.PF, f.Device}, address):
			return "its PF is excluded"
		}
	}
	return why
}

// excludedPF returns the PCI address of the function that an entry names.
func (r *Reconciler) excludedPF(entry string) (string, error) {
	name, err := ParseExclude(entry)
	if err != nil {
		return "", err
	}
	if !sriov.IsAddress(name) {
		return r.Host.OfLink(name)
	}
	_, err = r.Host.Function(name) // an address without a function excludes nothing and may be misspelled
	return name, err
}
