package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NetNS is a network namespace kept by a bind mount, as container runtimes keep a
// sandbox's.
type NetNS struct{ Path string }

// NewNetNS creates a network namespace at /run/netns/name, with loopback down.
func NewNetNS(name string) (*NetNS, error) {
	n := &NetNS{Path: filepath.Join("/run/netns", name)}
	f, err := os.OpenFile(n.Path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	done := make(chan error)
	go func() { done <- n.make() }()
	if err := <-done; err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", n.Path, err)
	}
	return n, nil
}

// make creates the namespace on this goroutine's thread and moves the thread back: the
// process's first thread does not exit with its goroutine, and would keep the namespace
// alive.
func (n *NetNS) make() error {
	runtime.LockOSThread() // stays locked if the thread cannot be moved back
	self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
	home, err := os.Open(self)
	if err != nil {
		return err
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = unix.Mount(self, n.Path, "", unix.MS_BIND, "")
	if err = errors.Join(err, unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)); err == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// Delete removes the namespace. The kernel disposes of the devices in it.
func (n *NetNS) Delete() error {
	err := unix.Unmount(n.Path, unix.MNT_DETACH)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EINVAL) {
		err = nil
	}
	if e := os.Remove(n.Path); !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// Do runs f inside the namespace.
func (n *NetNS) Do(f func() error) error {
	return ns.WithNetNSPath(n.Path, func(ns.NetNS) error { return f() })
}

// Link returns an interface inside the namespace, or nil if there is none.
func (n *NetNS) Link(name string) (netlink.Link, error) {
	var link netlink.Link
	err := n.Do(func() (err error) {
		link, err = netlinksafe.LinkByName(name)
		return err
	})
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	return link, err
}
