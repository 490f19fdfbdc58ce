package rtnl

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAnswer checks what ends an answer and which messages do not belong to it.
func TestAnswer(t *testing.T) {
	message := func(kind, flags uint16, seq uint32, data ...byte) syscall.NetlinkMessage {
		return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind, Flags: flags, Seq: seq}, Data: data}
	}
	part := message(unix.RTM_NEWLINK, unix.NLM_F_MULTI, 7, 1)
	for name, tc := range map[string]struct {
		messages []syscall.NetlinkMessage
		want     string // bodies, ended, interrupted, error
	}{
		"acknowledged":        {[]syscall.NetlinkMessage{part, message(unix.NLMSG_ERROR, 0, 7, 0, 0, 0, 0)}, "1 true false <nil>"},
		"a list":              {[]syscall.NetlinkMessage{part, part, message(unix.NLMSG_DONE, 0, 7)}, "2 true false <nil>"},
		"going on":            {[]syscall.NetlinkMessage{part}, "1 false false <nil>"},
		"another's":           {[]syscall.NetlinkMessage{message(unix.RTM_NEWLINK, 0, 8, 1), message(unix.NLMSG_DONE, 0, 8)}, "0 false false <nil>"},
		"a list, interrupted": {[]syscall.NetlinkMessage{part, message(unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, 7, 0, 0, 0, 0)}, "1 true true <nil>"},
		"a list that failed":  {[]syscall.NetlinkMessage{part, message(unix.NLMSG_DONE, 0, 7, 0xa6, 0xff, 0xff, 0xff)}, "1 true false message too long"},
	} {
		t.Run(name, func(t *testing.T) {
			a := answer{seq: 7}
			var err error
			for _, m := range tc.messages {
				err = errors.Join(err, a.add(m))
			}
			if got := fmt.Sprint(len(a.bodies), a.ended, a.interrupted, err); strings.ReplaceAll(got, "\n", " ") != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}
