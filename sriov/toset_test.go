package sriov

import "testing"

// On an InfiniBand network device only the GUID part of the address is set, because the
// kernel allows no more. No lab has such a device.
func TestAddressToSet(t *testing.T) {
	const mac, guid, another = "02:00:00:00:00:01", ":c2:11:22:33:44:55:66:77", ":b8:59:9f:03:00:a4:3e:7c"
	const begin, begun = "00:00:02:08:fe:80:00:00:00:00:00:00", "80:00:10:2a:fe:80:00:00:00:00:00:01"
	for _, tc := range []struct{ is, to, want string }{
		{mac, "02:00:00:00:00:02", "02:00:00:00:00:02"},
		{mac, mac, ""},
		{mac, "", ""},
		{"", mac, mac},
		{begin + guid, begun + another, begin + another},
		{begin + guid, begun + guid, ""},
	} {
		if got := toSet(tc.is, tc.to).String(); got != tc.want {
			t.Errorf("%s is to be %s: sets %q, want %q", tc.is, tc.to, got, tc.want)
		}
	}
}
