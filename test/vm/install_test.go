package vm

import (
	"os"
	"path/filepath"
	"testing"
)

// The tree of the guests' software is found in a directory of any name, since the name
// of a user's cache directory may have the characters of a pattern.
func TestSoftwareInADirectoryOfAnyName(t *testing.T) {
	for _, name := range []string{"cache", "[open", "a[b]c"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), name)
			if err := os.MkdirAll(filepath.Join(dir, "root/boot"), 0o755); err != nil {
				t.Fatal(err)
			}
			for _, file := range []string{"packages", "root/boot/vmlinuz-6.1.0-13", "root/boot/config-6.1.0-13"} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte("linux-image"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if s, err := openSoftware(dir); err != nil || s.Release != "6.1.0-13" {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
}
