// Command scripted is a CNI delegate that does what its configuration says: work
// like a real plugin, lie, hang or die. Tests of how Manifold handles bad delegates
// run it next to the reference plugins.
//
// It creates a veth pair, named on the host "s" and a hash of the container ID and
// CNI_IFNAME. One end goes into the sandbox as CNI_IFNAME, with the mac, mtu and
// addresses of the configuration. With "device" it moves that network device instead.
// Its own key "script" says by verb what else happens:
//
//	{"type": "scripted", "addresses": ["10.1.2.3/24"], "log": "/tmp/calls",
//	 "script": {"ADD": {"exit": 3, "stdout": "garbage"}}}
//
// Before the work: "gate" (touches FILE.reached, then waits until FILE exists),
// "hang". Instead of the work: "exit" with "stdout", "signal", "error" {code, msg}.
// In the result: "lie" missing (claims another interface), mac, mtu, address. In
// the work: "lie" left (moves nothing), device (moves "other"), renamed (gives the
// interface another name), down (does not set it up). Every call is appended to
// "log" as a line of JSON: verb, environment, stdin.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
)

type config struct {
	types.PluginConf
	Device    string            `json:"device"`
	Other     string            `json:"other"`
	MAC       string            `json:"mac"`
	MTU       int               `json:"mtu"`
	Addresses []string          `json:"addresses"`
	Log       string            `json:"log"`
	Script    map[string]script `json:"script"`
}

type script struct {
	Gate   string       `json:"gate"`
	Hang   bool         `json:"hang"`
	Exit   int          `json:"exit"`
	Stdout string       `json:"stdout"`
	Signal int          `json:"signal"`
	Error  *types.Error `json:"error"`
	Lie    string       `json:"lie"`
}

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: verb("ADD", add), Del: verb("DEL", del), Check: verb("CHECK", nothing), GC: verb("GC", nothing), Status: verb("STATUS", nothing)},
		version.All, "scripted test delegate")
}

// verb wraps the work of a verb in its script.
func verb(name string, work func(*skel.CmdArgs, *config, script) error) func(*skel.CmdArgs) error {
	return func(a *skel.CmdArgs) error {
		var c config
		if err := json.Unmarshal(a.StdinData, &c); err != nil {
			return err
		}
		s := c.Script[name]
		if err := record(&c, name, a); err != nil {
			return err
		}
		if s.Gate != "" {
			if err := wait(s.Gate); err != nil {
				return err
			}
		}
		for s.Hang {
			time.Sleep(time.Hour)
		}
		switch {
		case s.Signal != 0:
			if err := syscall.Kill(os.Getpid(), syscall.Signal(s.Signal)); err != nil {
				return err
			}
			time.Sleep(time.Minute)
		case s.Error != nil:
			return s.Error
		case s.Exit != 0 || s.Stdout != "":
			fmt.Print(s.Stdout)
			os.Exit(s.Exit)
		}
		return work(a, &c, s)
	}
}

func record(c *config, verb string, a *skel.CmdArgs) error {
	if c.Log == "" {
		return nil
	}
	line, err := json.Marshal(map[string]any{
		"verb": verb, "containerID": a.ContainerID, "netns": a.Netns, "ifName": a.IfName, "args": a.Args, "stdin": json.RawMessage(a.StdinData),
	})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// wait creates GATE.reached and waits for the gate to open.
func wait(gate string) error {
	if err := os.WriteFile(gate+".reached", nil, 0o600); err != nil {
		return err
	}
	for {
		if _, err := os.Stat(gate); err == nil {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func nothing(*skel.CmdArgs, *config, script) error { return nil }

// hostName returns the name of the host's end of the pair. It is a hash, because the
// container ID does not fit in the 15 bytes of an interface name and part of it would
// not be unique.
func hostName(a *skel.CmdArgs) string {
	sum := sha256.Sum256([]byte(a.ContainerID + "/" + a.IfName))
	return "s" + hex.EncodeToString(sum[:7])
}

func add(a *skel.CmdArgs, c *config, s script) error {
	sandbox, err := ns.GetNS(a.Netns)
	if err != nil {
		return err
	}
	defer sandbox.Close()
	name, err := makeLink(a, c, s)
	if err != nil {
		return err
	}
	result := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	iface := &types100.Interface{Name: a.IfName, Sandbox: a.Netns, Mtu: c.MTU}
	if s.Lie != "left" {
		if err := enter(sandbox, name, a.IfName, c, s, iface); err != nil {
			return err
		}
	}
	for _, addr := range c.Addresses {
		ip, prefix, err := net.ParseCIDR(addr)
		if err != nil {
			return err
		}
		prefix.IP = ip
		if s.Lie == "address" {
			prefix.IP = net.IPv4(192, 0, 2, 99)
		}
		result.IPs = append(result.IPs, &types100.IPConfig{Interface: types100.Int(0), Address: *prefix})
	}
	switch s.Lie {
	case "missing":
		iface.Name = "ghost0"
	case "mac":
		iface.Mac = "02:00:00:00:00:99"
	case "mtu":
		iface.Mtu = 9000
	}
	result.Interfaces = []*types100.Interface{iface}
	return types.PrintResult(result, c.CNIVersion)
}

// makeLink returns the name of the host's link that goes into the sandbox.
func makeLink(a *skel.CmdArgs, c *config, s script) (string, error) {
	if s.Lie == "device" {
		return c.Other, nil
	}
	if c.Device != "" {
		return c.Device, nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = hostName(a), c.MTU
	return "t" + attrs.Name[1:], netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "t" + attrs.Name[1:]})
}

// renamed returns the name that the lie "renamed" gives to an interface.
func renamed(ifName string) string { return ifName + "x" }

// enter moves a link into the sandbox and configures it there.
func enter(sandbox ns.NetNS, name, ifName string, c *config, s script, iface *types100.Interface) error {
	if s.Lie == "renamed" {
		ifName = renamed(ifName)
	}
	link, err := netlinksafe.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetNsFd(link, int(sandbox.Fd())); err != nil {
		return err
	}
	return sandbox.Do(func(ns.NetNS) error {
		link, err := netlinksafe.LinkByName(name)
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetName(link, ifName), netlink.LinkSetAlias(link, name)); err != nil {
			return err
		}
		if err := configure(link, c); err != nil {
			return err
		}
		if link, err = netlinksafe.LinkByName(ifName); err == nil {
			iface.Mac = link.Attrs().HardwareAddr.String()
		}
		if s.Lie == "down" {
			return errors.Join(err, netlink.LinkSetDown(link))
		}
		return errors.Join(err, netlink.LinkSetUp(link))
	})
}

// configure sets an interface's MAC, MTU and addresses.
func configure(link netlink.Link, c *config) error {
	if c.MAC != "" {
		mac, err := net.ParseMAC(c.MAC)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
			return err
		}
	}
	if c.MTU > 0 {
		if err := netlink.LinkSetMTU(link, c.MTU); err != nil {
			return err
		}
	}
	for _, text := range c.Addresses {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return nil
}

// del undoes what ADD may have done; what is gone already is no error.
func del(a *skel.CmdArgs, c *config, _ script) error {
	if c.Device == "" && c.Other == "" {
		link, err := netlinksafe.LinkByName(hostName(a))
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	}
	host, err := ns.GetCurrentNS()
	if err != nil {
		return err
	}
	defer host.Close()
	err = ns.WithNetNSPath(a.Netns, func(ns.NetNS) error {
		link, err := netlinksafe.LinkByName(a.IfName)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			link, err = netlinksafe.LinkByName(renamed(a.IfName))
		}
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		name := link.Attrs().Alias
		if err := errors.Join(netlink.LinkSetDown(link), netlink.LinkSetName(link, name), netlink.LinkSetAlias(link, "")); err != nil {
			return err
		}
		return netlink.LinkSetNsFd(link, int(host.Fd()))
	})
	if errors.As(err, &ns.NSPathNotExistErr{}) || a.Netns == "" {
		return nil
	}
	return err
}
