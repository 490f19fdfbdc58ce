package harness

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// HostState is the state of a network namespace and some directories as sorted lines of
// text, to compare before and after. It leaves out counters and indexes.
type HostState []string

// Capture returns the state of the current network namespace and of all files below
// dirs.
func Capture(dirs ...string) (HostState, error) {
	var out HostState
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	links, err := netlinksafe.LinkList()
	if err != nil {
		return nil, err
	}
	names := map[int]string{0: ""}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		a := l.Attrs()
		add("link %s type %s mtu %d master %q up %v alias %q", a.Name, l.Type(), a.MTU, names[a.MasterIndex], a.Flags&1 != 0, a.Alias)
		addrs, err := netlinksafe.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, err
		}
		for _, addr := range addrs {
			if !addr.IP.IsLinkLocalUnicast() {
				add("address %s on %s", addr.IPNet, a.Name)
			}
		}
	}
	routes, err := netlinksafe.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.Dst == nil || !r.Dst.IP.IsLinkLocalUnicast() {
			add("route %s via %s dev %s metric %d", r.Dst, r.Gw, names[r.LinkIndex], r.Priority)
		}
	}
	for _, line := range firewall() {
		add("%s", line)
	}
	for _, dir := range dirs {
		if err := files(dir, add); err != nil {
			return nil, err
		}
	}
	sort.Strings(out)
	return out, nil
}

// firewall returns the firewall's rules, if a program to list them is installed.
func firewall() []string {
	for _, cmd := range [][]string{{"iptables-save"}, {"nft", "list", "ruleset"}} {
		text, err := exec.Command(cmd[0], cmd[1:]...).Output()
		if err != nil {
			continue
		}
		var out []string
		for _, line := range strings.Split(string(text), "\n") {
			if line != "" && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") {
				out = append(out, "firewall "+line)
			}
		}
		return out
	}
	return nil
}

// files adds the files below dir, with the hashes of their contents.
func files(dir string, add func(string, ...any)) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil || d.IsDir() || isCursor(d.Name()) {
			return err
		}
		if !d.Type().IsRegular() {
			add("file %s %s", path, d.Type())
			return nil
		}
		content, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		if errors.Is(err, unix.EINVAL) {
			add("file %s", path) // a mounted namespace
			return nil
		}
		if err != nil {
			return err
		}
		add("file %s %d bytes %x", path, len(content), sha256.Sum256(content))
		return nil
	})
}

// isCursor tells whether a file is host-local's lock or its record of the last reserved
// address, rather than an allocation.
func isCursor(name string) bool {
	return name == "lock" || strings.HasPrefix(name, "last_reserved_ip.")
}

// Diff returns the lines that only one of the states has, marked - (only s) and + (only
// after); it is empty if they are equal.
func (s HostState) Diff(after HostState) string {
	count := map[string]int{}
	for _, line := range s {
		count[line]--
	}
	for _, line := range after {
		count[line]++
	}
	var out []string
	for line, n := range count {
		for ; n > 0; n-- {
			out = append(out, "+ "+line)
		}
		for ; n < 0; n++ {
			out = append(out, "- "+line)
		}
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}
